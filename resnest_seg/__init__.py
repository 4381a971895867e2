"""Semantic segmentation with ResNeSt encoders.

>>> import resnest_seg
>>> predictor = resnest_seg.Predictor.from_checkpoint("runs/my_run")
>>> predictor("photo.jpg").overlay()

Names are imported when they are first used, so that `import resnest_seg` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnest_seg.annotations.importing import ImportReport as ImportReport
    from resnest_seg.annotations.importing import import_labels as import_labels
    from resnest_seg.combining.folds import fit_folds as fit_folds
    from resnest_seg.config import ModelConfig as ModelConfig
    from resnest_seg.config import RunConfig as RunConfig
    from resnest_seg.config import load_run_config as load_run_config
    from resnest_seg.data.build import build_dataset as build_dataset
    from resnest_seg.data.checks import Diagnosis as Diagnosis
    from resnest_seg.data.checks import diagnose as diagnose
    from resnest_seg.data.datasets import ADE20K as ADE20K
    from resnest_seg.data.datasets import CamVid as CamVid
    from resnest_seg.data.datasets import Cityscapes as Cityscapes
    from resnest_seg.data.datasets import PairDataset as PairDataset
    from resnest_seg.data.datasets import Sample as Sample
    from resnest_seg.data.datasets import SegmentationDataset as SegmentationDataset
    from resnest_seg.data.folder import FolderDataset as FolderDataset
    from resnest_seg.data.loader import build_loader as build_loader
    from resnest_seg.data.synthetic import Synthetic as Synthetic
    from resnest_seg.errors import CheckpointError as CheckpointError
    from resnest_seg.errors import ConfigError as ConfigError
    from resnest_seg.errors import DatasetError as DatasetError
    from resnest_seg.errors import DownloadError as DownloadError
    from resnest_seg.errors import ExportError as ExportError
    from resnest_seg.errors import ResNeStSegError as ResNeStSegError
    from resnest_seg.evaluation.evaluator import evaluate as evaluate
    from resnest_seg.evaluation.label_audit import AuditReport as AuditReport
    from resnest_seg.evaluation.label_audit import audit as audit
    from resnest_seg.evaluation.metrics import ConfusionMatrix as ConfusionMatrix
    from resnest_seg.evaluation.metrics import Scores as Scores
    from resnest_seg.evaluation.report import EvalReport as EvalReport
    from resnest_seg.inference.prediction import Prediction as Prediction
    from resnest_seg.inference.predictor import OnnxPredictor as OnnxPredictor
    from resnest_seg.inference.predictor import Predictor as Predictor
    from resnest_seg.inference.protocols import Protocol as Protocol
    from resnest_seg.inference.protocols import protocol as protocol
    from resnest_seg.inference.torch_engine import multiscale as multiscale
    from resnest_seg.inference.torch_engine import sliding_window as sliding_window
    from resnest_seg.inference.torch_engine import whole as whole
    from resnest_seg.labels import IGNORE_LABEL as IGNORE_LABEL
    from resnest_seg.labels import LabelSpace as LabelSpace
    from resnest_seg.models.detection import detection_backbone as detection_backbone
    from resnest_seg.models.loading import build_encoder as build_encoder
    from resnest_seg.models.loading import build_segmenter as build_segmenter
    from resnest_seg.models.loading import load_checkpoint as load_checkpoint
    from resnest_seg.models.segmenter import LoadReport as LoadReport
    from resnest_seg.models.segmenter import Segmenter as Segmenter
    from resnest_seg.models.segmenter import SegmenterOutput as SegmenterOutput
    from resnest_seg.training.assembly import FitResult as FitResult
    from resnest_seg.training.assembly import fit as fit
    from resnest_seg.training.monitor import Callback as Callback
    from resnest_seg.training.monitor import StepReport as StepReport
    from resnest_seg.training.monitor import ValidationReport as ValidationReport
    from resnest_seg.training.trainer import Trainer as Trainer

_HOMES = {
    "ADE20K": "data.datasets",
    "AuditReport": "evaluation.label_audit",
    "Callback": "training.monitor",
    "CamVid": "data.datasets",
    "CheckpointError": "errors",
    "Cityscapes": "data.datasets",
    "ConfigError": "errors",
    "ConfusionMatrix": "evaluation.metrics",
    "DatasetError": "errors",
    "Diagnosis": "data.checks",
    "DownloadError": "errors",
    "EvalReport": "evaluation.report",
    "ExportError": "errors",
    "FitResult": "training.assembly",
    "FolderDataset": "data.folder",
    "IGNORE_LABEL": "labels",
    "ImportReport": "annotations.importing",
    "LabelSpace": "labels",
    "LoadReport": "models.segmenter",
    "ModelConfig": "config",
    "OnnxPredictor": "inference.predictor",
    "PairDataset": "data.datasets",
    "Prediction": "inference.prediction",
    "Predictor": "inference.predictor",
    "Protocol": "inference.protocols",
    "ResNeStSegError": "errors",
    "RunConfig": "config",
    "Sample": "data.datasets",
    "Scores": "evaluation.metrics",
    "SegmentationDataset": "data.datasets",
    "Segmenter": "models.segmenter",
    "SegmenterOutput": "models.segmenter",
    "StepReport": "training.monitor",
    "Synthetic": "data.synthetic",
    "Trainer": "training.trainer",
    "ValidationReport": "training.monitor",
    "audit": "evaluation.label_audit",
    "build_dataset": "data.build",
    "build_encoder": "models.loading",
    "build_loader": "data.loader",
    "build_segmenter": "models.loading",
    "detection_backbone": "models.detection",
    "diagnose": "data.checks",
    "evaluate": "evaluation.evaluator",
    "fit": "training.assembly",
    "fit_folds": "combining.folds",
    "import_labels": "annotations.importing",
    "load_checkpoint": "models.loading",
    "load_run_config": "config",
    "multiscale": "inference.torch_engine",
    "protocol": "inference.protocols",
    "sliding_window": "inference.torch_engine",
    "whole": "inference.torch_engine",
}

__version__ = "0.1.0"
__all__ = sorted(_HOMES)


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first used.

    Args:
        package: Its name.
        homes: Public name -> the module, relative to the package, that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted([*homes, *vars(sys.modules[package])])


__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
