"""Metrics and reports: confusion matrix, boundaries, calibration, `evaluate`, submission packs."""

from resnest_seg import lazy_exports

_HOMES = {
    "BoundaryScores": "boundaries",
    "Calibration": "calibration",
    "ConfusionMatrix": "metrics",
    "EvalReport": "report",
    "EvaluatedImage": "evaluate",
    "LabelScore": "label_scores",
    "LabelScores": "label_scores",
    "ScoreHistogram": "label_scores",
    "Scores": "metrics",
    "Submission": "submission",
    "evaluate": "evaluate",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
