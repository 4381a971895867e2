"""What a model learns from besides masks: unlabelled photos and other models."""

from resnest_seg import lazy_exports

_HOMES = {
    "Box": "pseudo_labels",
    "draw_box": "pseudo_labels",
    "pseudo_labels": "pseudo_labels",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
