"""Networks and their weights: ResNeSt, heads, `Segmenter`, checkpoints, published files, backbones of detectors."""

from resnest_seg import lazy_exports

_HOMES = {
    "Checkpoint": "checkpoint",
    "Classifier": "segmenter",
    "DeepLabV3Head": "heads",
    "DetectionBackbone": "detection",
    "FCNHead": "heads",
    "Features": "segmenter",
    "LoadReport": "segmenter",
    "PUBLISHED": "published_weights",
    "PublishedCheckpoint": "published_weights",
    "Recognised": "conversion",
    "ResNeSt": "resnest",
    "ResNeStSMPEncoder": "smp",
    "SMPEncoder": "smp",
    "Segmenter": "segmenter",
    "SegmenterOutput": "segmenter",
    "SplitAttention": "resnest",
    "TrainingState": "checkpoint",
    "WeightFile": "weight_files",
    "build_encoder": "loading",
    "build_segmenter": "loading",
    "detection_backbone": "detection",
    "fuse_model": "fuse",
    "load_checkpoint": "loading",
    "load_classifier": "loading",
    "load_fitting": "loading",
    "published": "published_weights",
    "published_names": "published_weights",
    "read_weights": "weight_files",
    "recognise": "conversion",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
