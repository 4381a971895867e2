"""One file format: a safetensors file that carries everything needed to rebuild the model, and to resume.

    tensors    model.<key>              the weights and buffers of the `Segmenter`
               optimizer.<i>.<name>     optional training state: the optimiser's, per parameter
    metadata   format, config, label_space, training    strings, the last three are JSON

Nothing in it can execute code. Files are written atomically.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnest_seg.config import RunConfig, run_config_from_dict
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.files import atomic_write
from resnest_seg.labels import LabelSpace
from resnest_seg.segmenter import Segmenter, build_segmenter

FORMAT = "resnest_seg/1"
"""Value of the metadata key `format`."""

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
        config: The whole resolved config of the run.
        label_space: The classes, in the order of the model's outputs.
        weights: The state dict of the `Segmenter`.
        training: None in files that are meant for inference only.
    """

    config: RunConfig
    label_space: LabelSpace
    weights: Mapping[str, Tensor]
    training: TrainingState | None = None

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        tensors = {f"model.{key}": value for key, value in self.weights.items()}
        metadata = {
            "format": FORMAT,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "label_space": json.dumps(self.label_space.to_dict()),
        }
        if self.training is not None:
            tensors |= self.training.tensors
            metadata["training"] = json.dumps(self.training.values)
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with atomic_write(path) as temporary:
            save_file(plain, temporary, metadata)

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
            config = run_config_from_dict(json.loads(metadata["config"]))
            label_space = LabelSpace.from_dict(json.loads(metadata["label_space"]))
            values = json.loads(metadata["training"]) if "training" in metadata else None
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({error}).") from None
        weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        rest = {key: value for key, value in tensors.items() if not key.startswith("model.")}
        return cls(config, label_space, weights, None if values is None else TrainingState(values, rest))

    def build(self) -> Segmenter:
        """The model with these weights, in eval mode, with `label_space` and `config` set.

        Raises:
            CheckpointError: The weights do not fit the config or the label space.
        """
        segmenter = segmenter_for(self.config, self.label_space)
        load_weights(segmenter, self.weights)
        return segmenter.eval()


def load_checkpoint(path: str | Path) -> Segmenter:
    """Load a model for inference: a checkpoint file, or a run folder (its best checkpoint, else its last).

    Returns:
        The model in eval mode on the CPU; `.label_space` names its classes, `.config` says how it was trained.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or its weights do not fit its config.
    """
    path = find_checkpoint(path)
    try:
        return Checkpoint.load(path).build()
    except ConfigError as error:
        raise CheckpointError(f"{path} needs what this version does not have: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or the best (else the last) one of a run folder.

    Raises:
        CheckpointError: There is no such file or folder, or the folder holds no checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint {path}: there is no such file or run folder.")
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} is no run folder, or a run that has not saved yet: it has no {BEST} and no {LAST}.")


def segmenter_for(config: RunConfig, label_space: LabelSpace) -> Segmenter:
    """A model with fresh weights as a config describes it, for the classes of a label space."""
    segmenter = build_segmenter(
        config.model.encoder,
        head=config.model.head,
        num_classes=len(label_space),
        output_stride=config.model.output_stride,
        dilation=config.model.dilation,
        aux_head=config.model.aux_head,
    )
    segmenter.config, segmenter.label_space = config, label_space
    return segmenter


def load_weights(segmenter: Segmenter, weights: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a model, every key of which must be there with the right shape, and no other.

    Raises:
        CheckpointError: It does not fit; names the first keys of each kind, and the classes if those differ.
    """
    own = segmenter.state_dict()
    problems = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            f"{key} {list(weights[key].shape)} instead of {list(value.shape)}"
            for key, value in own.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    found = [f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"the weights do not fit the model: {'; '.join(found)}.")
    segmenter.load_state_dict(dict(weights))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, named optimizer.<parameter>.<name>."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back; parameter groups and their rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == "optimizer":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
