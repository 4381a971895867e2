"""Metrics and reports: confusion matrix, boundaries, calibration, scores by image, `evaluate`, audits, submissions."""

from resnest_seg import lazy_exports

_HOMES = {
    "AuditReport": "label_audit",
    "BoundaryScores": "boundaries",
    "Calibration": "calibration",
    "ConfidentLearning": "label_issues",
    "ConfusionMatrix": "metrics",
    "Counting": "evaluator",
    "Difference": "comparison",
    "EvalReport": "report",
    "EvaluatedImage": "evaluator",
    "ImageScores": "image_scores",
    "ImageScoresFile": "image_scores",
    "LabelScore": "label_scores",
    "LabelScores": "label_scores",
    "SoftMinimum": "label_issues",
    "ScoreHistogram": "label_scores",
    "Scores": "metrics",
    "Submission": "submission",
    "Uncertainty": "acquisition",
    "audit": "label_audit",
    "choose": "acquisition",
    "compare_images": "comparison",
    "evaluate": "evaluator",
    "image_uncertainty": "acquisition",
    "k_centre": "acquisition",
    "pooled_features": "acquisition",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
