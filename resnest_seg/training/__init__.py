"""Training: trainer, tasks, losses, optimisers, distributed runs, run folders, memory planning."""

from resnest_seg import lazy_exports

_HOMES = {
    "Callback": "monitor",
    "ClassFolder": "classification",
    "ClassificationTask": "classification",
    "Devices": "memory",
    "FitResult": "assembly",
    "LabelLoss": "losses",
    "Parts": "assembly",
    "Plan": "memory",
    "RunFolder": "run_folder",
    "Schedule": "optim",
    "SegmentationLoss": "losses",
    "SegmentationTask": "tasks",
    "StepReport": "monitor",
    "Task": "tasks",
    "Trainer": "trainer",
    "ValidationReport": "monitor",
    "WeightAverage": "optim",
    "build_optimizer": "optim",
    "dry_run": "rehearsal",
    "dry_run_classifier": "rehearsal",
    "faster_weight_gradients": "cpu_speed",
    "fit": "assembly",
    "lean_binary_cross_entropy": "chunked_loss",
    "lean_cross_entropy": "chunked_loss",
    "plan": "memory",
    "trainer_for": "assembly",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
