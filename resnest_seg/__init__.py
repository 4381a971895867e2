"""Semantic segmentation with ResNeSt encoders.

>>> import resnest_seg
>>> predictor = resnest_seg.Predictor.from_checkpoint("runs/my_run")
>>> predictor("photo.jpg").overlay()

Names are imported when they are first used, so that `import resnest_seg` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnest_seg.config import RunConfig as RunConfig
    from resnest_seg.config import load_run_config as load_run_config
    from resnest_seg.datasets import ADE20K as ADE20K
    from resnest_seg.datasets import CamVid as CamVid
    from resnest_seg.datasets import Cityscapes as Cityscapes
    from resnest_seg.datasets import Synthetic as Synthetic
    from resnest_seg.doctor import Diagnosis as Diagnosis
    from resnest_seg.doctor import diagnose as diagnose
    from resnest_seg.errors import CheckpointError as CheckpointError
    from resnest_seg.errors import ConfigError as ConfigError
    from resnest_seg.errors import DatasetError as DatasetError
    from resnest_seg.errors import DownloadError as DownloadError
    from resnest_seg.errors import ExportError as ExportError
    from resnest_seg.errors import ResNeStSegError as ResNeStSegError
    from resnest_seg.evaluation import evaluate as evaluate
    from resnest_seg.folder import FolderDataset as FolderDataset
    from resnest_seg.inference import multiscale as multiscale
    from resnest_seg.inference import sliding_window as sliding_window
    from resnest_seg.inference import whole as whole
    from resnest_seg.labels import IGNORE_LABEL as IGNORE_LABEL
    from resnest_seg.labels import LabelSpace as LabelSpace
    from resnest_seg.loader import build_loader as build_loader
    from resnest_seg.metrics import ConfusionMatrix as ConfusionMatrix
    from resnest_seg.metrics import Scores as Scores
    from resnest_seg.prediction import Prediction as Prediction
    from resnest_seg.predictor import Predictor as Predictor
    from resnest_seg.protocols import Protocol as Protocol
    from resnest_seg.protocols import protocol as protocol
    from resnest_seg.report import EvalReport as EvalReport
    from resnest_seg.runtime import OnnxPredictor as OnnxPredictor
    from resnest_seg.segmenter import LoadReport as LoadReport
    from resnest_seg.segmenter import Segmenter as Segmenter
    from resnest_seg.segmenter import SegmenterOutput as SegmenterOutput
    from resnest_seg.training import Trainer as Trainer
    from resnest_seg.zoo import build_segmenter as build_segmenter
    from resnest_seg.zoo import load_checkpoint as load_checkpoint

_HOMES = {
    "ADE20K": "datasets",
    "CamVid": "datasets",
    "CheckpointError": "errors",
    "Cityscapes": "datasets",
    "ConfigError": "errors",
    "ConfusionMatrix": "metrics",
    "DatasetError": "errors",
    "Diagnosis": "doctor",
    "DownloadError": "errors",
    "EvalReport": "report",
    "ExportError": "errors",
    "FolderDataset": "folder",
    "IGNORE_LABEL": "labels",
    "LabelSpace": "labels",
    "LoadReport": "segmenter",
    "OnnxPredictor": "runtime",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "ResNeStSegError": "errors",
    "RunConfig": "config",
    "Scores": "metrics",
    "Segmenter": "segmenter",
    "SegmenterOutput": "segmenter",
    "Synthetic": "datasets",
    "Trainer": "training",
    "build_loader": "loader",
    "build_segmenter": "zoo",
    "diagnose": "doctor",
    "evaluate": "evaluation",
    "load_checkpoint": "zoo",
    "load_run_config": "config",
    "multiscale": "inference",
    "protocol": "protocols",
    "Protocol": "protocols",
    "sliding_window": "inference",
    "whole": "inference",
}

__version__ = "0.1.0"
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
