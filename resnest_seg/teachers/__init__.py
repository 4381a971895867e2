"""What a model learns from besides masks: unlabelled photos and other models."""

from resnest_seg import lazy_exports

_HOMES = {
    "Box": "pseudo_labelling",
    "Consistency": "consistency",
    "ConsistencyLoss": "consistency",
    "Distillation": "distillation",
    "MixedBatch": "unlabelled",
    "PhotoViews": "unlabelled",
    "Teacher": "teacher",
    "UnlabelledPhotos": "unlabelled",
    "divergence": "distillation",
    "draw_box": "pseudo_labelling",
    "find_photos": "unlabelled",
    "open_teachers": "teacher",
    "pseudo_labels": "pseudo_labelling",
    "strong_view": "strong_views",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
