"""Read a run folder, whatever its state: config, metrics, evaluations, progress.

A run may be in progress, or dead: a line that was cut off is passed over, and what is missing is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from resnest_seg.config import AnyConfig, PretrainConfig, RunConfig
from resnest_seg.config_reading import flatten, load_config
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.image_scores import VALIDATION_REPORT
from resnest_seg.files import shipped_configs
from resnest_seg.reports.run_table import CONFIG, LOCK, MACHINE, METRICS, Run, finite, json_lines, read_run

REPORT = "report.html"
"""Name of the report in a run folder."""

PLACES = ("output", "data.root", "data.workers", "data.cache", "data.cache_size")
"""Config keys that say where a run was, not what it was."""

DEFAULTS = "the defaults"
"""What a config is compared with that has no shipped one."""

Line = Mapping[str, Any]
"""A JSON object of a line."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
        folder: The folder.
        config: Its resolved config.
        steps: Lines of training steps: step, epoch, loss, grad_norm, lr.
        validations: Lines of validations: step, epoch, scores.
        starts: Lines of starts and resumes: versions, device, host.
        speeds: Lines of the machine: images_per_second, memory_mib.
        run: How far it is, as a table of runs shows it.
    """

    folder: Path
    config: AnyConfig
    steps: Sequence[Line]
    validations: Sequence[Line]
    starts: Sequence[Line]
    speeds: Sequence[Line]
    run: Run

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        where = f"step {self.run.step}" + ("" if self.run.steps is None else f" of {self.run.steps}")
        return {
            "running": f"running, {where}",
            "finished": f"finished, {where}",
            "stopped": f"stopped at {where}: it is not running",
            "failed": "ended before anything was saved",
            "unknown": f"at {where}; whether it is running cannot be told, as its file {LOCK} cannot be read here",
        }[self.run.state]

    @property
    def score(self) -> str:
        """Name of the score by which weights are best."""
        return "mean_iou" if isinstance(self.config, RunConfig) else "top1"

    def evaluations(self) -> dict[str, Path]:
        """Reports in the folder by their names, the newest last: of the best validation, and of `resnest-seg eval`."""
        return evaluations(self.folder)


def evaluations(folder: Path) -> dict[str, Path]:
    """Reports in a folder of checkpoints; see `RunFiles.evaluations`."""
    files = folder / VALIDATION_REPORT, *folder.glob("eval_*.json")
    found = [path for path in files if path.is_file()]
    return {path.name: path for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))}


def read_files(folder: str | Path) -> RunFiles:
    """Read a run folder, whatever state it is in.

    Raises:
        CheckpointError: It is no run folder: there is no config.
        ConfigError: Its config cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        found = "it is a file" if folder.is_file() else f"it has no {CONFIG}" if folder.is_dir() else "there is none"
        raise CheckpointError(f"{folder} is no run folder: {found}. Name the folder that a training wrote.")
    metrics, machine = list(json_lines(folder / METRICS)), list(json_lines(folder / MACHINE))
    return RunFiles(
        folder,
        read_config(folder / CONFIG),
        [line for line in metrics if line.get("kind") == "train"],
        [line for line in metrics if line.get("kind") == "validation"],
        [line for line in machine if line.get("kind") == "start"],
        [line for line in machine if line.get("kind") == "speed"],
        read_run(folder),
    )


def read_config(path: Path) -> AnyConfig:
    """Read the config of a run of either kind.

    Raises:
        ConfigError: It cannot be read; names the file.
    """
    try:
        return load_config(path, RunConfig)
    except ConfigError as error:
        try:
            return load_config(path, PretrainConfig)
        except ConfigError:
            raise error from None


def number(line: Line, key: str) -> float | None:
    """Return a finite number of a line, or None."""
    return finite(line.get(key))


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short names that tell run folders apart: their last parts, with those above where they are equal."""
    parts = [folder.resolve().parts for folder in folders]
    names = [path[-1] or "/" for path in parts]
    deep = 2
    while len(set(names)) < len(names) and deep <= max(map(len, parts)):
        names = ["/".join(path[-deep:]) for path in parts]
        deep += 1
    return names if len(set(names)) == len(names) else [f"{name} ({place})" for place, name in enumerate(names, 1)]


def changed_keys(config: AnyConfig) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """Compare a config with the shipped one that is nearest to it: fewest keys differ.

    Returns:
        The name of the shipped config, or `DEFAULTS`; and key -> (value there, value here), without `PLACES`.
    """
    kind, own = type(config), flatten(config)
    best = DEFAULTS, _differences(flatten(kind()), own)
    if not isinstance(config, RunConfig):
        return best
    for name, path in shipped_configs().items():
        if not name.startswith(f"{config.data.dataset}_"):
            continue
        found = _differences(flatten(load_config(path, kind)), own)
        if best[0] == DEFAULTS or len(found) < len(best[1]):
            best = f"the shipped config {name}", found
    return best


def _differences(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (base[key], own[key]) for key in own if base[key] != own[key] and key not in PLACES}


def config_table(configs: Sequence[AnyConfig]) -> dict[str, list[Any]]:
    """Keys in which runs differ -> the value of each, None for one that a run of another kind does not have."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: [one.get(key) for one in flat] for key in keys if key not in PLACES}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def plain(value: Any) -> str:
    """A value of a config as YAML writes it."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
