"""What a model learns from besides masks: unlabelled photos and other models."""

from resnest_seg import lazy_exports

_HOMES = {
    "Box": "pseudo_labels",
    "Distillation": "distillation",
    "Teacher": "teacher",
    "divergence": "distillation",
    "draw_box": "pseudo_labels",
    "open_teachers": "teacher",
    "pseudo_labels": "pseudo_labels",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
