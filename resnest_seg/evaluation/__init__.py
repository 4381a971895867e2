"""Metrics and reports: confusion matrix, boundaries, calibration, scores by image, `evaluate`, submission packs."""

from resnest_seg import lazy_exports

_HOMES = {
    "BoundaryScores": "boundaries",
    "Calibration": "calibration",
    "ConfusionMatrix": "metrics",
    "Difference": "comparison",
    "EvalReport": "report",
    "EvaluatedImage": "evaluate",
    "ImageScores": "image_scores",
    "ImageScoresFile": "image_scores",
    "LabelScore": "label_scores",
    "LabelScores": "label_scores",
    "ScoreHistogram": "label_scores",
    "Scores": "metrics",
    "Submission": "submission",
    "compare_images": "comparison",
    "evaluate": "evaluate",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
