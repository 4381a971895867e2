"""Data sets and their samples: storage, class lists, augmentation, loading, checks."""

from resnest_seg import lazy_exports

_HOMES = {
    "ADE20K": "datasets",
    "Batch": "loader",
    "CamVid": "datasets",
    "Cityscapes": "datasets",
    "Diagnosis": "checks",
    "Finding": "checks",
    "FolderDataset": "folder",
    "Loader": "loader",
    "OwnTransform": "transforms",
    "PairDataset": "datasets",
    "PixelStatistics": "class_balance",
    "Sample": "datasets",
    "SampleFacts": "inspection",
    "SegmentationDataset": "datasets",
    "Subset": "datasets",
    "Synthetic": "synthetic",
    "TrainTransform": "transforms",
    "WindowDataset": "tiles",
    "assign_folds": "datasets",
    "balance": "class_balance",
    "build_dataset": "build",
    "build_loader": "loader",
    "check_samples": "checks",
    "class_shares": "class_balance",
    "data_root": "build",
    "dataset_for": "build",
    "diagnose": "checks",
    "draft_classes": "class_lists",
    "effective_number_weights": "class_balance",
    "infer_classes": "class_lists",
    "load_batches": "loader",
    "median_frequency_weights": "class_balance",
    "parse_classes": "class_lists",
    "pixel_statistics": "class_balance",
    "rare_class_probabilities": "class_balance",
    "read_classes": "class_lists",
    "render_scene": "synthetic",
    "scan": "inspection",
    "training_batches": "loader",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
