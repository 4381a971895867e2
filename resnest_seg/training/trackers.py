"""Trackers of curves: accelerate's, by name, told a run's name, tags and identity, so that a resumed run goes on.

They need no account where they write to a folder (tensorboard, aim, dvclive, trackio, mlflow) or are told to stay
offline, by `WANDB_MODE=offline`, `COMET_START_ONLINE=0`, `CLEARML_OFFLINE_MODE=1` or `SWANLAB_MODE=local`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from numpy.typing import NDArray
from PIL import Image

from resnest_seg.config import AnyConfig
from resnest_seg.config_reading import flatten
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.files import naming

PROJECT = "resnest_seg"
"""Name of the project, or experiment, that all runs belong to."""

TENSORBOARD, WANDB, DVCLIVE, SWANLAB = "tensorboard", "wandb", "dvclive", "swanlog"
"""Folders that trackers make in a run folder; aim and mlflow write into the first one, too."""


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it.

    Attributes:
        folder: The run folder.
        identity: The same after a resume, 32 hexadecimal digits.
        tags: Of the config.
        step: Steps done; what a tracker knows of later ones is of a run that was killed.
    """

    folder: Path
    identity: str
    tags: tuple[str, ...]
    step: int

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.folder.absolute().name


def _wandb(run: TrackedRun) -> dict[str, Any]:
    return {"dir": str(run.folder), "id": run.identity, "resume": "allow", "name": run.name, "tags": list(run.tags)}


def _trackio(run: TrackedRun) -> dict[str, Any]:
    # trackio knows runs by their names, and folders of one name may be in several places
    return {"name": f"{run.name}-{run.identity[:8]}", "resume": "allow", "config": {"tags": ", ".join(run.tags)}}


def _comet_ml(run: TrackedRun) -> dict[str, Any]:
    config = importlib.import_module("comet_ml").ExperimentConfig(name=run.name, tags=list(run.tags))
    return {"experiment_key": run.identity, "mode": "get_or_create", "experiment_config": config}


def _mlflow(run: TrackedRun) -> dict[str, Any]:
    tags = {"resnest_seg.run": run.identity, "tags": ", ".join(run.tags)}  # whose names take few characters
    return {"run_name": run.name, "tags": tags, "run_id": _mlflow_run(run)}


def _mlflow_run(run: TrackedRun) -> str | None:
    """mlflow's own identity of the run, if it knows it."""
    found = importlib.import_module("mlflow").search_runs(
        search_all_experiments=True, filter_string=f"tags.`resnest_seg.run` = '{run.identity}'", output_format="list"
    )
    return str(found[0].info.run_id) if found else None


def _clearml(run: TrackedRun) -> dict[str, Any]:
    again: dict[str, Any] = {"continue_last_task": 0} if run.step else {"reuse_last_task_id": False}
    return {"project_name": PROJECT, "task_name": f"{run.name}-{run.identity[:8]}", "tags": list(run.tags), **again}


def _dvclive(run: TrackedRun) -> dict[str, Any]:
    return {"dir": str(run.folder / DVCLIVE), "resume": run.step > 0, "save_dvc_exp": False}


def _swanlab(run: TrackedRun) -> dict[str, Any]:
    return {"logdir": str(run.folder / SWANLAB), "id": run.identity, "resume": "allow",
            "experiment_name": run.name, "tags": list(run.tags)}  # fmt: skip


TRACKERS: dict[str, Callable[[TrackedRun], dict[str, Any]]] = {
    "tensorboard": lambda run: {"purge_step": run.step + 1},
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "aim": lambda run: {"run_hash": run.identity, "experiment": PROJECT},
    "clearml": _clearml,
    "comet_ml": _comet_ml,
    "dvclive": _dvclive,
    "swanlab": _swanlab,
}
"""Names in `train.trackers` -> the arguments that accelerate gives to the tracker of a run."""


def tracker_names(names: str) -> list[str]:
    """Parse `train.trackers`: its names in the order of `TRACKERS`.

    Raises:
        ConfigError: A tracker is unknown or not installed.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in wanted:
        if name not in TRACKERS:
            raise unknown_name("train.trackers", name, (*TRACKERS, "none"))
    there = {str(tracker) for tracker in get_available_trackers()}
    for name in wanted:
        if name not in there:
            raise ConfigError(
                f"train.trackers {name} needs its package: pip install {name.replace('_', '-')}. Or use tensorboard."
            )
    return [name for name in TRACKERS if name in wanted]


def begin_trackers(config: AnyConfig, engine: Accelerator, *, folder: Path, identity: str, step: int) -> None:
    """Start the trackers of a run, or resume them at `step`; `identity` identifies the run.

    Raises:
        ConfigError: A tracker cannot be started: it has no account, or no network.
    """
    names = tracker_names(config.train.trackers)
    if not names or not engine.is_main_process:
        return
    tags = tuple(tag.strip() for tag in (config.train.tags or "").split(",") if tag.strip())
    run = TrackedRun(folder, identity, tags, step)
    values = {key: str(value) for key, value in flatten(config).items()}
    try:
        options = {name: TRACKERS[name](run) for name in names}
        engine.init_trackers(PROJECT, None, options)
        for tracker in engine.trackers:
            if options[tracker.name].get("run_id") is None:  # mlflow refuses to change what it was told first
                tracker.store_init_configuration(values)
        if "aim" in names:
            aim = engine.get_tracker("aim", unwrap=True)
            aim.name = run.name
            for tag in tags:
                aim.add_tag(tag)
    except OSError:
        raise
    except Exception as error:  # each tracker has its own
        raise ConfigError(
            f"train.trackers {','.join(names)} cannot be started: {type(error).__name__}: {error}. Log in, stay "
            "offline (WANDB_MODE=offline, CLEARML_OFFLINE_MODE=1 ...), or use tensorboard."
        ) from error


def class_points(classes: Sequence[str], ious: Sequence[float | None]) -> dict[str, float]:
    """Name the points of IoU by class, "class_iou/03 road"; absent classes have none.

    The numbers keep the classes in order, and apart where their names differ in characters that trackers refuse.
    """
    digits = len(str(max(len(classes) - 1, 0)))
    pairs = enumerate(zip(classes, ious, strict=True))
    return {f"class_iou/{number:0{digits}} {_plain(name)}": iou for number, (name, iou) in pairs if iou is not None}


def _plain(name: str) -> str:
    """Letters of any script, digits, spaces, dots, dashes and underscores, as many as all trackers take."""
    return re.sub(r"[^\w .-]", "_", name)[:100].strip()


def log_picture(
    engine: Accelerator, names: Sequence[str], picture: NDArray[np.uint8], *, step: int, folder: Path
) -> None:
    """Hand a picture of a validation, RGB [H, W, 3], to the trackers that take some."""
    for name in names:
        tracker = engine.get_tracker(name)
        if not hasattr(tracker, "log_images"):
            continue
        form: Any = {"aim": Image.fromarray(picture), "clearml": picture}.get(name, picture[None])
        extra = {"dataformats": "NHWC"} if name == "tensorboard" else {}
        with naming(folder / name):  # whose errors name no file
            tracker.log_images({"validation": form}, step=step, **extra)
