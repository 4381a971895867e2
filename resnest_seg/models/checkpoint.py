"""The checkpoint format: a safetensors file that carries everything needed to rebuild the model, and to resume.

    tensors    model.<key>              the weights and buffers of the model
               optimizer.<key>.<name>   optional training state: the optimiser's, per parameter
               average.<key>            optional training state: the moving average of the weights
    metadata   format, num_classes, sha256, and as JSON config, label_space, training

Nothing in it can execute code. Files are written atomically, and a hash of the content detects later damage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnest_seg.config import AnyConfig, ModelConfig, RunConfig, config_from_dict
from resnest_seg.errors import CheckpointError
from resnest_seg.files import atomic_write
from resnest_seg.labels import LabelSpace

FORMAT = "resnest_seg/1"
"""Value of the metadata key `format`."""

HUB_FILE = "model.safetensors"
"""Name of the checkpoint in a folder of `save_pretrained`, and in a repository of the hub."""

BEST, LAST, CONFIG = "best.safetensors", "last.safetensors", "config.yaml"
"""Names of the files in a run folder: the best weights, the newest state, the whole resolved config."""


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What a run needs, besides the weights, to continue as if it had not stopped.

    Attributes:
        values: Plain JSON values: the step, the best score.
        tensors: The optimiser's state, by name.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        config: The whole resolved config of the run; its type says what was trained, a `Segmenter` or a `Classifier`.
        label_space: The classes, in the order of the model's outputs; None for an image classifier.
        weights: The state dict of the model.
        training: None in files that are meant for inference only.
        num_classes: K; that of the label space where there is one.
        origin: Of a run's best weights, plain values: the step, whose they are (the weights' own, or of their average),
            and their scores.
    """

    config: AnyConfig
    label_space: LabelSpace | None
    weights: Mapping[str, Tensor]
    training: TrainingState | None = None
    num_classes: int = 0
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.label_space is not None or self.num_classes
        if self.label_space is not None:
            object.__setattr__(self, "num_classes", len(self.label_space))

    @property
    def network(self) -> ModelConfig:
        """The network; a classifier has no decoder, and `head` says so."""
        return self.config.model if isinstance(self.config, RunConfig) else self.config.model.network

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            CheckpointError: The disk is full, or gone; a file that was there before is as it was.
        """
        tensors = {f"model.{key}": value for key, value in self.weights.items()}
        metadata = {
            "format": FORMAT,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "label_space": json.dumps(None if self.label_space is None else self.label_space.to_dict()),
            "num_classes": str(self.num_classes),
            "origin": json.dumps(dict(self.origin)),
        }
        if self.training is not None:
            tensors |= self.training.tensors
            metadata["training"] = json.dumps(self.training.values)
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        metadata["sha256"] = content_hash(plain, metadata)
        try:
            with atomic_write(path) as temporary:
                save_file(plain, temporary, metadata)
        except (SafetensorError, OSError) as error:  # what safetensors says is "I/O error: No space left on device ..."
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CheckpointError(f"{path} cannot be written: {reason}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a file, or the best (else the last) checkpoint of a run folder.

        Raises:
            CheckpointError: There is none, it is damaged, or it was not written by this package.
        """
        path = find_checkpoint(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(
                        f"{path} is a safetensors file, but no checkpoint of resnest_seg: its metadata says "
                        f"format={metadata.get('format')!r} instead of {FORMAT!r}."
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
            if metadata.get("sha256", "") not in ("", content_hash(tensors, metadata)):
                raise CheckpointError(f"{path} is damaged: its content is not what was written (another SHA-256).")
            config = config_from_dict(json.loads(metadata["config"]))
            classes = json.loads(metadata["label_space"])
            label_space = None if classes is None else LabelSpace.from_dict(classes)
            num_classes = int(metadata["num_classes"]) if classes is None else 0
            values = json.loads(metadata["training"]) if "training" in metadata else None
            origin = dict(json.loads(metadata.get("origin", "{}")))
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({error}).") from None
        weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        rest = {key: value for key, value in tensors.items() if not key.startswith("model.")}
        state = None if values is None else TrainingState(values, rest)
        return cls(config, label_space, weights, state, num_classes, origin)


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, shapes, types and bytes of the tensors, on the CPU, and the metadata but the hash itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{key}={len(metadata[key])}:{metadata[key]}".encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, the best (else the last) one of a run folder, or a saved model's.

    Raises:
        CheckpointError: There is no such file or folder, or the folder holds no checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint {path}: there is no such file or run folder.")
    for name in (BEST, LAST, HUB_FILE):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} is no run folder, or a run that has not saved yet: it has no {BEST} and no {LAST}.")
