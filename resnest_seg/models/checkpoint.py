"""The checkpoint format: a safetensors file that carries everything needed to rebuild the model, and to resume.

    tensors    model.<key>              the weights and buffers of the model
               optimizer.<key>.<name>   optional training state: the optimiser's, per parameter
               average.<key>            optional training state: the moving average of the weights
    metadata   format, num_classes, and as JSON config, label_space, training
               fingerprints             as JSON, of the parts of a custom network: part -> `fingerprint`
               weights_sha256           hash of the weights and the metadata
               training_sha256          hash of the training state and the metadata

Nothing in it can execute code. Files are written atomically. The two hashes detect later damage in what is read: who
wants the weights alone neither reads nor verifies the training state, which is twice as large. Files of older versions
have one hash, sha256, of everything, so all of it is read to verify it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from resnest_seg.config import CUSTOM, AnyConfig, ModelConfig, RunConfig, config_from_dict
from resnest_seg.errors import CheckpointError, ConfigError, printable
from resnest_seg.files import atomic_write
from resnest_seg.labels import LabelSpace
from resnest_seg.models.weight_files import WeightFile, read_weights

FORMAT = "resnest_seg/1"
"""Value of the metadata key `format`."""

HASHES = ("sha256", "weights_sha256", "training_sha256")
"""Metadata keys that are hashes, and so are not hashed."""

HUB_FILE = "model.safetensors"
"""Name of the checkpoint in a folder of `save_pretrained`, and in a repository of the hub."""

BEST, LAST, CONFIG = "best.safetensors", "last.safetensors", "config.yaml"
"""Names of the files in a run folder: the best weights, the newest state, the whole resolved config."""


def fingerprint(weights: Mapping[str, Tensor], part: str) -> str:
    """Twelve hex digits that identify the keys and shapes of a part ("encoder" or "head") of a state dict."""
    lines = sorted(f"{key} {list(value.shape)}" for key, value in weights.items() if key.startswith(f"{part}."))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Training state: all values besides the weights that a run needs to resume exactly.

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
            object.__setattr__(self, "num_classes", len(self.label_space.score_names))

    @property
    def network(self) -> ModelConfig:
        """The network; a classifier has no decoder, and `head` says so."""
        return self.config.model if isinstance(self.config, RunConfig) else self.config.model.network

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            CheckpointError: The disk is full, or gone; a file that was there before is as it was.
        """
        weights = _stored({f"model.{key}": value for key, value in self.weights.items()})
        metadata = {
            "format": FORMAT,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "label_space": json.dumps(None if self.label_space is None else self.label_space.to_dict()),
            "num_classes": str(self.num_classes),
            "origin": json.dumps(dict(self.origin)),
        }
        own = [part for part in ("encoder", "head") if getattr(self.network, part) == CUSTOM]
        if own:
            metadata["fingerprints"] = json.dumps({part: fingerprint(self.weights, part) for part in own})
        state: dict[str, Tensor] = {}
        if self.training is not None:
            state = _stored(self.training.tensors)
            metadata["training"] = json.dumps(self.training.values)
            metadata["training_sha256"] = content_hash(state, metadata)
        metadata["weights_sha256"] = content_hash(weights, metadata)
        try:
            with atomic_write(path) as temporary:
                save_file(weights | state, temporary, metadata)
        except (SafetensorError, OSError) as error:  # what safetensors says is "I/O error: No space left on device ..."
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CheckpointError(f"{path} cannot be written: {reason}.") from None

    @classmethod
    def load(cls, path: str | Path, *, training: bool = True) -> Checkpoint:
        """Read a file, or the best (else the last) checkpoint of a run folder; see `from_file`."""
        return cls.from_file(read_weights(find_checkpoint(path)), training=training)

    @classmethod
    def from_file(cls, file: WeightFile, *, training: bool = True) -> Checkpoint:
        """Verify an opened file and take its content.

        Args:
            file: Of this format, see `is_ours`.
            training: Take the training state as well, where there is one.

        Raises:
            CheckpointError: The file is damaged, of another format, or of another version of this one.
        """
        path, metadata = file.path, file.metadata
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is no checkpoint that this version of resnest_seg reads: its metadata says "
                f"format={metadata.get('format')!r} instead of {FORMAT!r}."
            )
        verified_whole = "sha256" in metadata
        weights = {key: file.tensors[key] for key in file.tensors if key.startswith("model.")}
        rest = {key: file.tensors[key] for key in file.tensors if key not in weights and (training or verified_whole)}
        parts = {"weights_sha256": weights, "training_sha256": rest} if training else {"weights_sha256": weights}
        if verified_whole:
            parts = {"sha256": weights | rest}
        try:
            for name, part in parts.items():
                if name in metadata and metadata[name] != content_hash(part, metadata):
                    raise CheckpointError(f"{path} is damaged: its content is not what was written (another SHA-256).")
            config = config_from_dict(json.loads(metadata["config"]))
            classes = json.loads(metadata["label_space"])
            label_space = None if classes is None else LabelSpace.from_dict(classes)
            num_classes = int(metadata["num_classes"]) if classes is None else 0
            state = (
                TrainingState(json.loads(metadata["training"]), rest) if training and "training" in metadata else None
            )
            origin = dict(json.loads(metadata.get("origin", "{}")))
            weights = {key.removeprefix("model."): value for key, value in weights.items()}
            return cls(config, label_space, weights, state, num_classes, origin)
        except CheckpointError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({error}).") from None


def is_ours(file: WeightFile) -> bool:
    """True for a checkpoint of this package, of any version of the format."""
    return str(file.metadata.get("format")).startswith("resnest_seg/")


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, shapes, types and bytes of the tensors, on the CPU, and the metadata but its hashes."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - set(HASHES)):
        digest.update(f"{key}={len(metadata[key])}:{metadata[key]}".encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors writes them: none may share memory, as those of a layer under two names do."""
    stored, seen = dict[str, Tensor](), set[int]()
    for key, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        stored[key] = plain.clone() if plain.untyped_storage().data_ptr() in seen else plain
        seen.add(stored[key].untyped_storage().data_ptr())
    return stored


def local_weights(weights: str | Path) -> Path | None:
    """The file on this machine that initial weights mean: itself, or a run folder's best (else last) checkpoint.

    Returns:
        None for what is neither, such as the name of a published checkpoint.

    Raises:
        ConfigError: Nothing can have that name, such as one of 5,000 characters.
    """
    path = Path(weights)
    files = (path, path / BEST, path / LAST, path / HUB_FILE)
    try:
        return next((file for file in files if file.is_file()), None)
    except OSError as error:
        raise ConfigError(f"weights {printable(str(weights))[:80]!r} cannot be read: {error.strerror}.") from None


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
