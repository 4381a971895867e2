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
    "FolderSource": "storage",
    "Loader": "loader",
    "OwnTransform": "transforms",
    "PairDataset": "pairs",
    "RemoteSource": "storage",
    "Sample": "datasets",
    "SampleFacts": "inspection",
    "SegmentationDataset": "datasets",
    "Source": "storage",
    "Synthetic": "synthetic",
    "TrainTransform": "transforms",
    "ZipSource": "storage",
    "balance": "class_balance",
    "build_dataset": "build",
    "build_loader": "loader",
    "check_samples": "checks",
    "class_shares": "class_balance",
    "data_root": "build",
    "dataset_for": "build",
    "diagnose": "checks",
    "draft_classes": "folder",
    "effective_number_weights": "class_balance",
    "infer_classes": "folder",
    "load_batches": "loader",
    "median_frequency_weights": "class_balance",
    "open_source": "storage",
    "parse_classes": "folder",
    "rare_class_probabilities": "class_balance",
    "read_classes": "folder",
    "render_scene": "synthetic",
    "scan": "inspection",
    "training_batches": "loader",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
