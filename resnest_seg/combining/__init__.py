"""Several models out of one data set: folds and averages."""

from resnest_seg import lazy_exports

_HOMES = {
    "fit_folds": "folds",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
