"""The folder of a run: its states, the newest and those before it, and its lines of numbers.

    config.yaml                  the whole resolved config
    last.safetensors             the newest state, to resume from
    step_<number>.safetensors    states before it, in case it is damaged (train.keep)
    best.safetensors             the weights with the best mIoU, for inference
    val_report.json              the report of the best validation, and
    val_images.jsonl             the scores of its images
    metrics.jsonl                what the run computed: the same bytes, whether it was interrupted or not
    machine.jsonl                what the machine did meanwhile: speed, memory, starts
    .lock                        held by the process that trains; it says which one that is, or was last
    .mark                        for a moment, at a start on several machines: whether all of them see the folder

A process can be killed between any two instructions here: there is a whole state on the disk at every moment.

One run at a time: the lock is the operating system's (`flock`, on Windows `msvcrt.locking`), which ends with the
process that holds it, however that ends; that of a machine which died ends with its lease, for which a start on
another machine waits. On network file systems it is seen by all machines where the file system
passes locks on: NFS does since Linux 2.6.12, with its lock service running; GPFS, CephFS and BeeGFS can (the last one
with `tuneUseGlobalFileLocks`); Lustre needs the mount option `flock`, and with `localflock` a lock holds on one machine
only. Where the file system refuses locks altogether, a run says so and trains without.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from resnest_seg.config import AnyConfig
from resnest_seg.config_reading import flatten, to_yaml
from resnest_seg.errors import CheckpointError, DatasetError, unknown_name
from resnest_seg.evaluation.image_scores import VALIDATION_IMAGES, VALIDATION_REPORT, merge_image_scores
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.files import atomic_write, remove_leftovers, sync_folder
from resnest_seg.models.checkpoint import BEST, CONFIG, LAST, Checkpoint, TrainingState
from resnest_seg.models.weight_files import check_finite, naming_file
from resnest_seg.reports.run_files import REPORT
from resnest_seg.training.distributed import part_like
from resnest_seg.training.trackers import DVCLIVE, SWANLAB, TENSORBOARD, WANDB

METRICS, MACHINE, SHEET, CLASSES = "metrics.jsonl", "machine.jsonl", "contact_sheet.png", "classes.txt"
"""Names in a run folder: one JSON object a line each; a picture of validation images; an image classifier's classes."""

LOCK, MARK = ".lock", ".mark"
"""Names of the file that a run holds while it trains, and of the one that all machines must see at its start."""

LEASE = 120.0
"""Seconds after which the lock of a dead machine is free: NFS 4 gives a client 90 s to come back."""

SIGHT = 70.0
"""Seconds after which a new file is seen from another machine: NFS believes what it knows of a folder up to 60 s."""

OURS = {CONFIG, LAST, BEST, METRICS, MACHINE, SHEET, CLASSES, REPORT, VALIDATION_REPORT, VALIDATION_IMAGES} | {
    TENSORBOARD,
    WANDB,
    DVCLIVE,
    SWANLAB,
}
"""Files that a run can leave behind if it dies before its first save."""

MAY_CHANGE = (
    "output",
    "data.root",
    "data.workers",
    "data.cache",
    "data.cache_size",
    "data.check",
    "data.samples",
    "train.unlabelled",
    "train.save_every",
    "train.keep",
    "train.peer_timeout",
    "train.log_every",
    "train.trackers",
    "train.tags",
    "eval.sheet",
    "eval.memory",
    "distill.teacher",
    "model.checkpointing",
)
"""Config keys that a resumed run may change without being allowed to, because they change no number."""

CANNOT_CHANGE = {
    "train.batch_size": "the state counts steps, and steps of another batch are other epochs, rates and samples. So "
    "that the same batch takes less memory, divide it, with --train.accumulation and --allow-changes "
    "train.accumulation. For another batch begin a new run from these weights, with --model.weights",
}
"""Config keys that no resumed run may change -> why, and what to do instead."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error numbers of systems on which a file cannot be locked."""

Signature = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of every state in a folder."""


class RunFolder:
    """The files of one run, written by its main process alone, within `held`.

    Args:
        path: The folder.
        keep: How many states to keep.
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path, self.keep = Path(path), keep
        self.last_step: int | None = None  # of the state in LAST, if that is known to be whole
        self._seen: Signature | None = None  # the states that this run knows of
        self._lock = FileLock(self.path / LOCK, fallback_to_soft=False, on_acquired=_sign)

    def check_free(self) -> None:
        """Refuse a folder that another process trains into at this moment. Only the main process may ask.

        Raises:
            CheckpointError: It does; names the process.
        """
        if (self.path / LOCK).is_file():
            probe = FileLock(self.path / LOCK, fallback_to_soft=False)
            self._acquire(probe)
            probe.release()

    @contextlib.contextmanager
    def marked(self, mark: str) -> Iterator[None]:
        """Within this, the folder shows a mark, by which the other machines know it."""
        with atomic_write(self.path / MARK) as temporary:
            temporary.write_text(mark, encoding="utf-8")
        try:
            yield
        finally:
            (self.path / MARK).unlink(missing_ok=True)

    def shows(self, mark: str, *, seconds: float = SIGHT) -> bool:
        """True as soon as the mark is seen here; false if it is not within so many seconds."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if (self.path / MARK).read_text(encoding="utf-8") == mark:
                    return True
            if time.monotonic() > end:
                return False
            time.sleep(0.2)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this, no other run can write into the folder, which is made if need be.

        Raises:
            CheckpointError: Another process trains into it, or has since this run looked at its states.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire(self._lock)
        try:
            if self._seen not in (None, self._signature()):
                raise CheckpointError(
                    f"another run saved into {self.path} while this one was starting. Give the same command again with "
                    f"--resume {self.path}, or choose another folder with --output."
                )
            yield
        finally:
            self._lock.release()

    def _acquire(self, lock: BaseFileLock) -> None:
        """Get a lock; of one that another machine holds, which may be dead, the lease is waited for."""
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                holder = _holder(self.path / LOCK)
                if f" on {platform.node()} " in holder or " on " not in holder:
                    raise
                print(f"{holder}: waiting up to {LEASE:.0f} s, in case that machine is dead.", file=sys.stderr)
                lock.acquire(timeout=LEASE, poll_interval=0.5)
        except Timeout:
            raise CheckpointError(
                f"another run is training into {self.path}: {_holder(self.path / LOCK)}. Two runs would mix their "
                "files. Wait for that one, end it, or choose another folder with --output."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"warning: the file system of {self.path} has no locks ({error.strerror}): nothing would keep a second "
                "run out of this folder. See to it yourself.",
                file=sys.stderr,
            )

    def _signature(self) -> Signature:
        found = []
        for path in self.states():
            with contextlib.suppress(FileNotFoundError):  # a live run renames them
                stat = path.stat()
                found.append((path.name, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def states(self) -> list[Path]:
        """The files of states, newest first."""
        last = self.path / LAST
        return ([last] if last.is_file() else []) + self._older()

    def _older(self) -> list[Path]:
        return sorted(self.path.glob("step_*.safetensors"), reverse=True)

    def load_state(self, say: Callable[[str], None] = print) -> Checkpoint:
        """The newest state that is whole; says which ones were damaged.

        Raises:
            CheckpointError: There is none, or it holds weights only, or lacks the optimiser's state.
        """
        damaged: list[str] = []
        self._seen = self._signature()
        for path in self.states():
            try:
                with naming_file(path):
                    state = Checkpoint.load(path)
                    check_finite({**state.weights, **_of_the_run(state.training)})
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if state.training is None:
                raise CheckpointError(f"{path} holds weights only and no training state: it cannot be resumed.")
            step = int(state.training.values.get("step", -1))
            if _lacks_optimizer(state, state.training):
                raise CheckpointError(
                    f"{path} is at step {step} and holds no state of the optimiser {state.config.optim.optimizer}: it "
                    "cannot be resumed, because the run would go on without its momentum. To begin a new run from its "
                    f"weights: --model.weights {shlex.quote(str(path))}"
                )
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
        """Refuse to begin a run in a folder that exists and is not empty.

        Args:
            adopt: Take one into which a run has saved nothing yet.

        Raises:
            CheckpointError: The folder is another run's, or not a run's.
        """
        self._seen = ()
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if adopt and self.path.is_dir() and not self.states():
            strange = sorted({path.name for path in self.path.iterdir() if not path.name.startswith(".")} - OURS)
            if not strange:
                return
            raise CheckpointError(f"{self.path} exists and is no run folder: it holds {strange[0]}. Choose --output.")
        way_out = f", or continue that run with --resume {self.path}" if self.states() else ""
        raise CheckpointError(f"run folder {self.path} already exists. Choose another with --output{way_out}.")

    def open(
        self,
        config: AnyConfig,
        reached: Mapping[str, int],
        *,
        files: Mapping[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Create the folder, or cut a resumed run's metrics back to where it continues.

        Args:
            config: What config.yaml shall say.
            reached: Kind of line -> the last step whose lines stay.
            files: Name -> text of more files.
            say: Called with a message if a resumed run's metrics are gone.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for part in list(self.path.glob(f".*{VALIDATION_IMAGES}.*")):  # of a validation that was killed
            part.unlink(missing_ok=True)
        remove_leftovers(self.path, {*OURS, *(files or {})})
        for name, text in {CONFIG: to_yaml(config), **(files or {})}.items():
            with atomic_write(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        metrics = self.path / METRICS
        if not metrics.exists() and max(reached.values(), default=0) > 0:
            say(
                f"warning: {metrics} is gone, and with it the losses and scores up to step {max(reached.values())}. "
                "The weights do not depend on it; it goes on from here."
            )
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
        with atomic_write(metrics) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if _is_reached(line, reached)), encoding="utf-8")

    def identity(self) -> str:
        """Identifier of the run, the same after a resume: the `id` of the first start in MACHINE, or a new one."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            first = (self.path / MACHINE).read_text(encoding="utf-8").splitlines()[0]
            return str(json.loads(first)["id"])
        return uuid.uuid4().hex

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Append a JSON line to METRICS or MACHINE.

        Raises:
            CheckpointError: As `save_state`.
        """
        path = self.path / name
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise self._not_written(path, error) from None

    def save_state(self, checkpoint: Checkpoint, step: int) -> None:
        """Write the state as the newest, keep the one before under its step, and drop those beyond `keep`.

        Raises:
            CheckpointError: The disk is full, or gone; names the file, and says that the state before it is good.
        """
        try:
            with open(self.path / METRICS, "ab") as file:
                os.fsync(file.fileno())  # a state must not survive a power failure that its lines do not
            if self.keep > 1 and self.last_step is not None and self.last_step != step:
                self._set_aside(self.path / _named(self.last_step))
            checkpoint.save(self.path / LAST)
        except (OSError, CheckpointError) as error:
            raise self._not_written(self.path / LAST, error) from None
        self.last_step = step
        # those of later steps were damaged when the run went on from an older one, and would outlive good ones
        past = [path for path in self._older() if path.name < _named(step)]
        for path in {*self._older()} - {*past[: self.keep - 1]}:
            path.unlink(missing_ok=True)
        self._seen = self._signature()

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best weights.

        Raises:
            CheckpointError: As `save_state`.
        """
        try:
            checkpoint.save(self.path / BEST)
        except (OSError, CheckpointError) as error:
            raise self._not_written(self.path / BEST, error) from None

    def image_part(self, name: str, process: int) -> Path:
        """The file in which a process collects scores by image, of the weights of this name."""
        return self.path / f".{VALIDATION_IMAGES}.{name}.{process}"

    def save_validation(self, report: EvalReport, parts: Sequence[Path]) -> None:
        """Write the report of the best validation, and the scores of its images from the processes' parts.

        Raises:
            CheckpointError: As `save_state`; or a part is missing, because the machines do not see the same files.
        """
        try:
            merge_image_scores(parts, self.path / VALIDATION_IMAGES)
            report.save(self.path / VALIDATION_REPORT)
        except OSError as error:
            raise self._not_written(Path(error.filename or self.path / VALIDATION_REPORT), error) from None
        except DatasetError as error:
            raise CheckpointError(f"{error} The run folder must lie where all machines see the same files.") from None

    def _not_written(self, path: Path, error: OSError | CheckpointError) -> CheckpointError:
        """The error for a file that the system refused, with what is still good and how to go on."""
        what = getattr(error, "strerror", None) or error
        reason = str(error) if isinstance(error, CheckpointError) else f"{path} cannot be written: {what}."
        states = self.states()
        if not states:
            return CheckpointError(f"{reason} The run has saved nothing yet.")
        which = "its newest state" if self.last_step is None else f"the state of step {self.last_step}"
        return CheckpointError(
            f"{reason} The run was stopped; {which}, {states[0]}, is good. Make room, then go on with --resume "
            f"{shlex.quote(str(self.path))}"
        )

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


def _named(step: int) -> str:
    """The name of an older state."""
    return f"step_{step:08d}.safetensors"


def _of_the_run(training: TrainingState | None) -> dict[str, Tensor]:
    """The tensors of a state but those of the user's own objects, which may mean infinity: a least loss so far."""
    tensors = {} if training is None else training.tensors
    return {key: value for key, value in tensors.items() if not key.startswith("kept.")}


def _lacks_optimizer(state: Checkpoint, training: TrainingState) -> bool:
    """True where optimiser steps must have left momentum or moments, and the state has none."""
    if any(key.startswith("optimizer.") for key in training.tensors) or training.values.get("own_optimizer"):
        return False
    scaler = training.values.get("scaler", {})  # of fp16, where every step so far can have overflowed
    stepped = training.values.get("step", 0) > 0 and scaler.get("_growth_tracker") != 0
    return bool(stepped) and (state.config.optim.optimizer != "sgd" or state.config.optim.momentum > 0)


def config_changes(saved: AnyConfig, config: AnyConfig, *, allowed: Collection[str], file: Path) -> list[str]:
    """Changes of a resumed run's config, as "key (old -> new)".

    Args:
        saved: The config of the state.
        config: What the run shall continue with.
        allowed: Keys that may change, beyond `MAY_CHANGE`.
        file: What errors call the config.

    Raises:
        ConfigError: An allowed key does not exist.
        CheckpointError: Another key changed, or one that no run may change.
    """
    before, now = flatten(saved), flatten(config)
    for key in allowed:
        if key not in now:
            raise unknown_name("key to change:", key, now)
    changes = {key: f"{key} ({before[key]} -> {now[key]})" for key in now if now[key] != before[key]}
    for key in CANNOT_CHANGE.keys() & changes.keys():
        raise CheckpointError(f"{changes[key]} cannot change while a run goes on: {CANNOT_CHANGE[key]} {file.parent}")
    refused = [key for key in changes if key not in (*MAY_CHANGE, *allowed)]
    if refused:
        raise CheckpointError(
            f"{file} is not the config of this run any more: {', '.join(changes[key] for key in refused)}. The run "
            f"would be another one. If that is what you want: --allow-changes {','.join(refused)}"
        )
    return list(changes.values())


def _is_reached(line: str, reached: Mapping[str, int]) -> bool:
    """True if a line of metrics.jsonl is whole and not after the step from which a resumed run continues."""
    try:
        entry = json.loads(line)
        return int(entry["step"]) <= reached[entry["kind"]]
    except (ValueError, KeyError, TypeError):
        return False  # the run died while writing it


def _sign(lock: int) -> None:
    """Write into the file of a lock that was just got, by its descriptor, who has it."""
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {platform.node()}\n".encode())


def _holder(lock: Path) -> str:
    """Who has a lock, in words."""
    with contextlib.suppress(OSError, UnicodeDecodeError):  # Windows lets nobody read it
        words = lock.read_text(encoding="utf-8").strip()
        if words:
            return f"{words} holds {lock}"
    return f"another process holds {lock}"


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimiser's state as tensors optimizer.<parameter>.<name>; `names` are in the optimiser's order.

    Numbers become scalars; `number_slots` tells which.

    Raises:
        CheckpointError: An optimiser of the user's own has other values in its state.
    """
    tensors: dict[str, Tensor] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if not isinstance(value, Tensor | int | float):
                whose, kind = type(optimizer).__name__, type(value).__name__
                raise CheckpointError(f"the state of {whose} has a {kind} {name!r}, which cannot be saved.")
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            tensors[f"optimizer.{names[index]}.{name}"] = value
    return tensors


def number_slots(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the state of an optimiser whose values are plain numbers."""
    states = optimizer.state_dict()["state"].values()
    return sorted({name for slots in states for name, value in slots.items() if not isinstance(value, Tensor)})


def optimizer_state(tensors: Mapping[str, Tensor], numbers: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The reverse of `optimizer_tensors`: parameter -> name -> tensor or number; other tensors are passed over."""
    state: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == "optimizer":
            parameter, _, name = rest.rpartition(".")
            state.setdefault(parameter, {})[name] = value.item() if name in numbers else value
    return state


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, torch.nn.Parameter],
    state: Mapping[str, Mapping[str, Any]],
    *,
    may_differ: bool,
) -> None:
    """Put the state of parameters that are still trained back; groups and rates stay, other parameters start fresh.

    Args:
        optimizer: It is changed.
        trained: Its parameters by name, in its order.
        state: As from `optimizer_state`; empty before the first step.
        may_differ: It may be the state of other parameters.

    Raises:
        KeyError: It is, and may not be: one of them.
    """
    if state and state.keys() != trained.keys() and not may_differ:
        raise KeyError(sorted(state.keys() ^ trained.keys())[0])
    own = {
        place: {
            slot: part_like(value, parameter) if isinstance(value, Tensor) else value
            for slot, value in state[name].items()
        }
        for place, (name, parameter) in enumerate(trained.items())
        if name in state
    }
    optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})


def kept_state(kept: Mapping[str, object]) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The states of objects of the user's own that have a `state_dict()`: plain values and tensors.

    Args:
        kept: Name -> object, such as a loss with buffers or a callback.

    Returns:
        Name -> key -> plain JSON value; and kept.<name>.<key> -> tensor.

    Raises:
        CheckpointError: A value is neither a tensor nor plain.
    """
    plain: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for name, one in kept.items():
        for key, value in one.state_dict().items() if hasattr(one, "state_dict") else ():
            if isinstance(value, Tensor):
                tensors[f"kept.{name}.{key}"] = value
                continue
            try:
                plain.setdefault(name, {})[key] = json.loads(json.dumps(value))
            except (TypeError, ValueError) as error:
                raise CheckpointError(
                    f"state_dict() of {name} ({type(one).__name__}): {key!r} is neither a tensor nor a value that "
                    f"JSON holds ({error})."
                ) from None
    return plain, tensors


def restore_kept(
    kept: Mapping[str, object], plain: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Give objects their states back, as from `kept_state`; those without a saved state start fresh."""
    for name, one in kept.items():
        prefix = f"kept.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        state |= plain.get(name, {})
        if state and hasattr(one, "load_state_dict"):
            one.load_state_dict(state)
