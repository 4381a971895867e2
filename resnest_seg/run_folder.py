"""The folder of a run: its states, the newest and those before it, and its lines of numbers.

    config.yaml                  the whole resolved config
    last.safetensors             the newest state, to resume from
    step_<number>.safetensors    states before it, in case it is damaged (train.keep)
    best.safetensors             the weights with the best mIoU, for inference
    metrics.jsonl                what the run computed: the same bytes, whether it was interrupted or not
    machine.jsonl                what the machine did meanwhile: speed, memory, starts

A process can be killed between any two instructions here: there is a whole state on the disk at every moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from resnest_seg.checkpoint import BEST, CONFIG, LAST, Checkpoint
from resnest_seg.config import RunConfig, flatten, to_yaml
from resnest_seg.errors import CheckpointError, unknown_name
from resnest_seg.files import atomic_write, naming, remove_leftovers, sync_folder
from resnest_seg.weights import check_finite, naming_file

METRICS, MACHINE, SHEET, CLASSES = "metrics.jsonl", "machine.jsonl", "contact_sheet.png", "classes.txt"
"""Names in a run folder: one JSON object a line each; a picture of validation images; an image classifier's classes."""

OURS = {CONFIG, LAST, BEST, METRICS, MACHINE, SHEET, CLASSES, "tensorboard", "wandb"}
"""What a run that died before its first save can have left behind."""

MAY_CHANGE = (
    "output",
    "data.root",
    "data.workers",
    "data.check",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.trackers",
    "eval.sheet",
    "eval.memory",
    "model.checkpointing",
)
"""Config keys that a resumed run may change without being allowed to, because they change no number."""


class RunFolder:
    """The files of one run, written by its main process alone.

    Args:
        path: The folder.
        keep: How many states to keep.
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path, self.keep = Path(path), keep
        self.last_step: int | None = None  # of the state in LAST, if that is known to be whole

    def states(self) -> list[Path]:
        """The files of states, newest first."""
        last = self.path / LAST
        return ([last] if last.is_file() else []) + self._older()

    def _older(self) -> list[Path]:
        return sorted(self.path.glob("step_*.safetensors"), reverse=True)

    def load_state(self, say: Callable[[str], None] = print) -> Checkpoint:
        """The newest state that is whole; says which ones were damaged.

        Raises:
            CheckpointError: There is none, or it holds weights only.
        """
        damaged: list[str] = []
        for path in self.states():
            try:
                with naming_file(path):
                    state = Checkpoint.load(path)
                    check_finite({**state.weights, **(state.training.tensors if state.training else {})})
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if state.training is None:
                raise CheckpointError(f"{path} holds weights only and no training state: it cannot be resumed.")
            step = int(state.training.values.get("step", -1))
            for message in damaged:
                say(f"warning: {message} Resuming from the one before, {path.name}, step {step}.")
            self.last_step = step if path.name == LAST else None
            return state
        if damaged:
            raise CheckpointError(f"no state in {self.path} can be resumed: {' '.join(damaged)} Begin a new run.")
        raise CheckpointError(
            f"{self.path} holds no state to resume: its run died before the first save. Remove it, or give the run's "
            "own options with --resume auto, which begins where nothing was saved."
        )

    def check_new(self, *, adopt: bool = False) -> None:
        """Refuse to begin a run in a folder that exists.

        Args:
            adopt: Take one into which a run has saved nothing yet.

        Raises:
            CheckpointError: The folder is another run's, or not a run's.
        """
        if not self.path.exists():
            return
        if adopt and self.path.is_dir() and not self.states():
            strange = sorted({path.name for path in self.path.iterdir() if not path.name.startswith(".")} - OURS)
            if not strange:
                return
            raise CheckpointError(f"{self.path} exists and is no run folder: it holds {strange[0]}. Choose --output.")
        way_out = f", or continue that run with --resume {self.path}" if self.states() else ""
        raise CheckpointError(f"run folder {self.path} already exists. Choose another with --output{way_out}.")

    def open(self, config: RunConfig, reached: Mapping[str, int], *, files: Mapping[str, str] | None = None) -> None:
        """Create the folder, or cut a resumed run's metrics back to where it continues.

        Args:
            config: What config.yaml shall say.
            reached: Kind of line -> the last step whose lines stay.
            files: Name -> text of more files.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        for name, text in {CONFIG: to_yaml(config), **(files or {})}.items():
            with atomic_write(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        metrics = self.path / METRICS
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
        with atomic_write(metrics) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _is_reached(line, reached)), encoding="utf-8")

    def identity(self) -> str:
        """What tells a run from others, resumed or not: the `id` of the first start in MACHINE, or a new one."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            first = (self.path / MACHINE).read_text(encoding="utf-8").splitlines()[0]
            return str(json.loads(first)["id"])
        return uuid.uuid4().hex

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append a JSON line to METRICS or MACHINE."""
        with naming(self.path / name), open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def save_state(self, checkpoint: Checkpoint, step: int) -> None:
        """Write the state as the newest, keep the one before under its step, and drop those beyond `keep`."""
        with open(self.path / METRICS, "ab") as file:
            os.fsync(file.fileno())  # a state must not survive a power failure that its lines do not
        if self.keep > 1 and self.last_step not in (None, step):
            self._set_aside(self.path / f"step_{self.last_step:08d}.safetensors")
        checkpoint.save(self.path / LAST)
        self.last_step = step
        for path in self._older()[self.keep - 1 :]:
            path.unlink(missing_ok=True)

    def _set_aside(self, older: Path) -> None:
        """Give the newest state a second name, so that it outlives the next one's."""
        last = self.path / LAST
        older.unlink(missing_ok=True)  # left by a run that was killed here, or damaged
        try:
            os.link(last, older)
        except OSError:  # a file system without links: for a moment the state has the older name alone
            with contextlib.suppress(FileNotFoundError):
                last.replace(older)
        sync_folder(self.path)


def config_changes(saved: RunConfig, config: RunConfig, *, allowed: Collection[str], file: Path) -> list[str]:
    """What a resumed run changes of its config, as "key (old -> new)".

    Args:
        saved: The config of the state.
        config: What the run shall continue with.
        allowed: Keys that may change, beyond `MAY_CHANGE`.
        file: What errors call the config.

    Raises:
        ConfigError: An allowed key does not exist.
        CheckpointError: Another key changed.
    """
    before, now = flatten(saved), flatten(config)
    for key in allowed:
        if key not in now:
            raise unknown_name("key to change:", key, now)
    changes = {key: f"{key} ({before[key]} -> {now[key]})" for key in now if now[key] != before[key]}
    refused = [key for key in changes if key not in (*MAY_CHANGE, *allowed)]
    if refused:
        raise CheckpointError(
            f"{file} is not the config of this run any more: {', '.join(changes[key] for key in refused)}. The run "
            f"would be another one. If that is what you want: --allow-changes {','.join(refused)}"
        )
    return list(changes.values())


def _is_reached(line: str, reached: Mapping[str, int]) -> bool:
    """Whether a line of metrics.jsonl is whole, and not after the step that a resumed run continues from."""
    try:
        entry = json.loads(line)
        return int(entry["step"]) <= reached[entry["kind"]]
    except (ValueError, KeyError, TypeError):
        return False  # the run died while writing it
