"""Several models out of one data set: folds, their cross-validation, and averages of weights."""

from resnest_seg import lazy_exports

_HOMES = {
    "CrossValidation": "cross_validation",
    "Spread": "cross_validation",
    "average_checkpoints": "averages",
    "cross_validate": "cross_validation",
    "fit_folds": "folds",
    "recompute_batch_norms": "averages",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
