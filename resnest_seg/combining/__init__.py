"""Several models out of one data set: folds, their cross-validation, and averages of weights."""

from resnest_seg import lazy_exports

_HOMES = {
    "CrossValidation": "cross_validation",
    "Spread": "cross_validation",
    "cross_validate": "cross_validation",
    "fit_folds": "folds",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
