"""Run folders in a table: what differs in their configs, how far and how good they are, and means over seeds.

Everything is read from the files of a run, see `resnest_seg.training.run_folder`, while it trains or afterwards; lines
that are cut off are passed over. Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.display import PlainTable
from resnest_seg.yaml_files import load_yaml

CONFIG, METRICS, MACHINE, LOCK = "config.yaml", "metrics.jsonl", "machine.jsonl", ".lock"
"""Names of the files of a run that are read here."""

STATES = ("last.safetensors", "best.safetensors")
"""Names of the checkpoints of a run: the newest state, and the best weights."""

SCORES = {"mean_iou": "mIoU", "top1": "top-1"}
"""Score by which the best weights of a run are chosen -> its name in the table: of segmenters, of classifiers."""

COLUMNS = ("name", "score", "step", "epochs", "speed", "state")
"""Values of `--sort`, besides the keys of a config."""

MOST_KEYS = 6
"""Columns of config keys that the table shows."""

LONGEST = 40
"""Characters of a config value in the table."""

NOT_COMPARED = ("output",)
"""Keys that differ in every run and decide nothing."""

SEED = re.compile(r"_seed\d+$")
"""End of the name of a run folder of train --seed 0,1,2."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a run say of it.

    Attributes:
        name: Its path below the folder that was searched.
        folder: The run folder.
        config: Dotted key -> value, as in config.yaml.
        state: "running" (a process holds the lock), "finished", "stopped", "failed" (nothing was saved), or "unknown"
            (not finished, and the lock cannot be read here).
        step: Optimiser steps done, as far as they are saved or logged.
        steps: Of the whole run; None if the files do not tell.
        epoch: Epochs done; None before the first line of metrics.
        epochs: Of the whole run; None if it is measured in steps.
        score_name: One of `SCORES`.
        score: The best one, 0..1; None before the first validation.
        score_step: Its step; None if only the newest state tells the score.
        speed: Images per second, the median of what was logged; None before.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    state: str
    step: int
    steps: int | None
    epoch: float | None
    epochs: int | None
    score_name: str
    score: float | None
    score_step: int | None
    speed: float | None

    @property
    def seed(self) -> Any:
        """The seed of the run."""
        return self.config.get("seed")


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in nothing but their seeds, one run a seed.

    Attributes:
        name: What their names have in common.
        seeds: The seeds of the finished runs.
        unfinished: Runs that are not finished and do not count.
        score_name: One of `SCORES`.
        mean: Of the best scores of the finished runs; None without any.
        deviation: Sample deviation (n - 1) of these; None of fewer than two.
    """

    name: str
    seeds: tuple[int, ...]
    unfinished: int
    score_name: str
    mean: float | None
    deviation: float | None


def find_runs(folder: str | Path) -> tuple[list[Run], list[str]]:
    """Read all run folders in a folder and below, or the folder itself if it is one; links to run folders count.

    Args:
        folder: Such as runs/.

    Returns:
        The runs by their names, and a sentence on each folder that looks like a run and cannot be read.

    Raises:
        ConfigError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ConfigError(f"{root} {what}: name a folder with run folders in it, such as runs.")
    runs: list[Run] = []
    problems: list[str] = []
    for place in _candidates(root, problems):
        name = root.name if place == root else place.relative_to(root).as_posix()
        try:
            runs.append(read_run(place, name=name or str(root.resolve().name)))
        except (DatasetError, ConfigError) as error:
            problems.append(str(error))
    return runs, problems


def _candidates(root: Path, problems: list[str]) -> Iterator[Path]:
    """Folders that hold a config, or the metrics of a run, sorted."""

    def refused(error: OSError) -> None:
        problems.append(f"cannot read folder {error.filename}: {error.strerror}.")

    for parent, folders, files in os.walk(root, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "tensorboard")
        if METRICS in files or (CONFIG in files and {*STATES, LOCK} & set(files)):
            yield Path(parent)
        for name in folders:  # os.walk does not follow links, which may lead round in circles
            link = Path(parent, name)
            if link.is_symlink() and (link / CONFIG).is_file():
                yield link


def read_run(folder: str | Path, *, name: str | None = None) -> Run:
    """Read one run folder.

    Args:
        folder: The run folder.
        name: What the run is called; None is the folder's name.

    Raises:
        DatasetError: It has no config.yaml, or that cannot be read or is not a run's.
        ConfigError: The config is not YAML.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    metrics, machine = list(json_lines(folder / METRICS)), list(json_lines(folder / MACHINE))
    saved = saved_values(folder / STATES[0])
    score_name = next((key for key in SCORES if f"best_{key}" in saved), None)
    score_name = score_name or next((key for key in SCORES for line in metrics if key in line), "mean_iou")
    score, score_step = _best(metrics, score_name)
    if score is None and (kept := finite(saved.get(f"best_{score_name}"))) is not None and kept >= 0:
        score = kept
    logged = max((_whole(line.get("step")) for line in metrics), default=0)
    step = _whole(saved["step"]) if "step" in saved else logged
    validated = [_whole(line.get("step")) for line in metrics if line.get("kind") == "validation"]
    validated_step = _whole(saved["validated_step"]) if "validated_step" in saved else max(validated, default=0)
    per_epoch = _steps_per_epoch(metrics)
    steps, epochs = _length(config, machine, per_epoch)
    patience, stale = _whole(config.get("train.patience")), _whole(saved.get("stale_validations"))
    done = bool(step) and step == validated_step and (
        (steps is not None and step >= steps) or 0 < patience <= stale
    )  # fmt: skip
    some = any((folder / state).is_file() for state in STATES)
    held = _is_held(folder / LOCK)
    over = "finished" if done else "unknown" if held is None else "stopped" if some else "failed"
    state = "running" if held else over
    speeds = [value for line in machine if (value := finite(line.get("images_per_second"))) is not None]
    step = max(step, logged) if state in ("running", "unknown") else step
    return Run(
        folder.name if name is None else name,
        folder,
        config,
        state,
        step,
        steps,
        None if not per_epoch else step / per_epoch,
        epochs,
        score_name,
        score,
        score_step,
        statistics.median(speeds) if speeds else None,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Dotted key -> value of a run's config.yaml; keys of other versions of this package are kept."""
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise DatasetError(f"{path.parent} holds {METRICS} but no {CONFIG}: it is no complete run folder.") from None
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not the config of a run: {error}.") from None
    if not isinstance(tree, Mapping) or not {"model", "data", "train"} <= set(tree):
        raise DatasetError(f"{path} is not the config of a run: it has no model, data and train.")
    flat: dict[str, Any] = {}
    for group, values in tree.items():
        if isinstance(values, Mapping):
            flat |= {f"{group}.{key}": value for key, value in values.items()}
        else:
            flat[str(group)] = values
    return flat


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; a line that a run is just writing, or died at, is passed over."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value
    except OSError:
        return


def saved_values(path: Path) -> dict[str, Any]:
    """The plain values of a training state, from the header of its file; nothing of a damaged or foreign one."""
    with contextlib.suppress(OSError, SafetensorError, ValueError, RecursionError):
        with safe_open(path, framework="numpy") as file:
            values = json.loads((file.metadata() or {}).get("training", "{}"))
        return values if isinstance(values, dict) else {}
    return {}


def _best(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, int | None]:
    """The best score of the validations and its step, the first of equal ones."""
    found: tuple[float | None, int | None] = None, None
    for line in metrics:
        value = finite(line.get(key)) if line.get("kind") == "validation" else None
        if value is not None and (found[0] is None or value > found[0]):
            found = value, _whole(line.get("step"))
    return found


def _steps_per_epoch(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of an epoch, by the last line with a step and an epoch, which is rounded to 4 digits."""
    pairs = [(_whole(line.get("step")), finite(line.get("epoch"))) for line in metrics]
    known = [(step, epoch) for step, epoch in pairs if step > 0 and epoch is not None and epoch > 0]
    if not known:
        return None
    step, epoch = max(known)
    return max(round(step / epoch), 1)


def _length(
    config: Mapping[str, Any], machine: Sequence[Mapping[str, Any]], per_epoch: int | None
) -> tuple[int | None, int | None]:
    """Steps and epochs of the whole run; steps as its last start said, or by what an epoch has."""
    iterations, epochs = _whole(config.get("train.iterations")), _whole(config.get("train.epochs"))
    recorded = [_whole(line.get("steps")) for line in machine if line.get("kind") == "start" and line.get("steps")]
    if recorded:
        return recorded[-1], epochs or None
    if iterations:
        return iterations, None
    return (epochs * per_epoch if epochs and per_epoch else None), epochs or None


def finite(value: object) -> float | None:
    """Return a finite number as it is, and None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _whole(value: object) -> int:
    """A whole number, or 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_held(lock: Path) -> bool | None:
    """True if a process trains into the folder of a lock; None where that cannot be told.

    The folder may be a colleague's, or mounted to be read: a shared lock of a file that is only read tells as well.
    """
    if not lock.is_file():
        return False
    try:
        import fcntl  # here, because Windows has none, where one trains as well
    except ImportError:
        return None
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as some systems call it
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)  # which releases it
    return False


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The config keys in which runs differ, in the order of their configs; those that all of them have come first."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    differing = [key for key in keys if len({_text(run.config.get(key, ...)) for run in runs}) > 1]
    return sorted(differing, key=lambda key: not all(key in run.config for run in runs))


def _text(value: object) -> str:
    """A config value in the words of YAML."""
    if value is ...:
        return "-"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """Find runs that differ in their seeds alone, and the mean of their best scores; see `SeedGroup`.

    Of several runs with one seed the first that is finished counts.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: _text(value) for key, value in run.config.items() if key not in (*NOT_COMPARED, "seed")}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    groups = []
    for members in alike.values():
        by_seed: dict[Any, Run] = {}
        for run in sorted(members, key=lambda run: run.state != "finished"):
            if isinstance(run.seed, int):
                by_seed.setdefault(run.seed, run)
        if len(by_seed) < 2:
            continue
        counted = {
            seed: run.score
            for seed, run in sorted(by_seed.items())
            if run.state == "finished" and run.score is not None
        }
        scores = list(counted.values())
        groups.append(
            SeedGroup(
                _common_name([run.name for run in by_seed.values()]),
                tuple(counted),
                len(by_seed) - len(counted),
                next(iter(by_seed.values())).score_name,
                statistics.fmean(scores) if scores else None,
                statistics.stdev(scores) if len(scores) > 1 else None,
            )
        )
    return groups


def _common_name(names: Sequence[str]) -> str:
    """Such as mine_seed* for mine_seed0 and mine_seed1; else the first and how many more."""
    stems = {SEED.sub("", name) for name in names}
    if len(stems) == 1:
        return f"{stems.pop()}_seed*"
    return f"{names[0]} and {len(names) - 1} more"


def sort_runs(runs: Sequence[Run], key: str) -> list[Run]:
    """Sort runs by a column or a config key: numbers from the highest, text by the alphabet, missing values last.

    Args:
        runs: The runs.
        key: One of `COLUMNS`, or a config key; the last part of one, such as lr, if it names one key alone.

    Raises:
        ConfigError: There is no such column or key.
    """
    keys = list(dict.fromkeys(name for run in runs for name in run.config))
    matches = [name for name in keys if name == key] or [name for name in keys if name.rpartition(".")[2] == key]
    if key not in COLUMNS and len(matches) != 1:
        if len(matches) > 1:
            raise ConfigError(f"--sort {key} means several keys: {', '.join(matches)}. Give one of them.")
        raise unknown_name("column to sort by", key, [*COLUMNS, *differing_keys(runs)])

    def value(run: Run) -> Any:
        return run.config.get(matches[0]) if key not in COLUMNS else getattr(run, "epoch" if key == "epochs" else key)

    def rank(run: Run) -> tuple[int, float, str]:
        found = value(run)
        number = finite(found)
        if number is not None:
            return 0, -number, ""
        return (2, 0.0, "") if found is None else (1, 0.0, _text(found))

    return sorted(runs, key=rank)


def shown_keys(runs: Sequence[Run], *, first: str | None = None, most: int = MOST_KEYS) -> tuple[list[str], list[str]]:
    """Choose the config keys that the table shows: those with the most different values.

    Args:
        runs: The runs.
        first: A key that is shown in any case, or the last part of one; None or another word chooses none.
        most: The number of keys to show.

    Returns:
        The keys to show, and the others in which the runs differ; both in the order of `differing_keys`.
    """
    keys = differing_keys(runs)

    def rank(key: str) -> tuple[bool, bool, int]:
        values = [run.config.get(key, ...) for run in runs]
        return first not in (key, key.rpartition(".")[2]), ... in values, -len(set(map(_text, values)))

    chosen = set(sorted(keys, key=rank)[:most])
    return [key for key in keys if key in chosen], [key for key in keys if key not in chosen]


def runs_table(runs: Sequence[Run], *, first: str | None = None, most: int = MOST_KEYS) -> PlainTable:
    """Make the table of runs, in their order: config keys in which they differ, score, progress, speed and state.

    Args:
        runs: The runs.
        first: See `shown_keys`.
        most: See `shown_keys`.
    """
    shown, folded = shown_keys(runs, first=first, most=most)
    last = [key.rpartition(".")[2] for key in shown]
    headings = [short if last.count(short) == 1 else key for key, short in zip(shown, last, strict=True)]
    caption = f"{len(folded)} more keys differ (--json shows all): {', '.join(folded)}" if folded else ""
    table = PlainTable(caption=caption, compact=True)
    table.caption_justify = "left"
    table.column("name")
    table.columns[0].overflow = "fold"  # its end tells runs apart
    for heading in headings:
        table.column(heading)
    names = dict.fromkeys(SCORES[run.score_name] for run in runs)
    for heading in (f"best {' or '.join(names)}", "at step", "steps", "epochs", "images/s"):
        table.column(heading, right=True, no_wrap=True)
    table.column("state", no_wrap=True)
    for run in runs:
        table.row(
            run.name,
            *(_shortened(_text(run.config.get(key, ...))) for key in shown),
            _percent(run.score),
            "-" if run.score_step is None else str(run.score_step),
            f"{run.step}/{'?' if run.steps is None else run.steps}",
            "-" if run.epoch is None else f"{run.epoch:.3g}{f'/{run.epochs}' if run.epochs else ''}",
            "-" if run.speed is None else f"{run.speed:.1f}",
            f"stopped at step {run.step}" if run.state == "stopped" else run.state,
        )
    return table


def seed_table(groups: Sequence[SeedGroup]) -> PlainTable:
    """Make the table of `seed_groups`: mean and sample deviation of the best scores."""
    table = PlainTable(compact=True)
    table.column("runs", no_wrap=True)
    table.column("seeds")
    for heading in dict.fromkeys(SCORES[group.score_name] for group in groups):
        table.column(f"best {heading}, mean +- sample deviation", right=True)
    table.column("not finished", right=True)
    names = list(dict.fromkeys(group.score_name for group in groups))
    for group in groups:
        spread = "" if group.deviation is None else f" +- {100 * group.deviation:.2f}"
        figure = "-" if group.mean is None else f"{_percent(group.mean)}{spread}"
        cells = [figure if name == group.score_name else "-" for name in names]
        table.row(group.name, ",".join(map(str, group.seeds)) or "-", *cells, str(group.unfinished))
    return table


def runs_as_json(runs: Sequence[Run], problems: Sequence[str]) -> str:
    """Write runs, groups of seeds and unreadable folders as JSON; `config` has the keys in which the runs differ."""
    keys = differing_keys(runs)
    entries = []
    for run in runs:
        entry = dataclasses.asdict(run)
        entry |= {
            "name": printable(run.name),
            "folder": printable(str(run.folder)),
            "config": {key: run.config.get(key) for key in keys},
            "seed": run.seed,
        }
        entries.append(entry)
    tree = {
        "runs": entries,
        "seeds": [dataclasses.asdict(group) for group in seed_groups(runs)],
        "problems": list(map(printable, problems)),
    }
    return json.dumps(tree, indent=2, default=str)


def _shortened(text: str) -> str:
    """A text of at most `LONGEST` characters; of a path the end matters most."""
    return text if len(text) <= LONGEST else f"{text[:10]}...{text[13 - LONGEST :]}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
