"""`Job`: everything that decides the results of a bulk prediction, as plain values, and its record in the output."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.errors import ConfigError

if TYPE_CHECKING:
    from resnest_seg.bulk.destination import Destination

FORMAT = 1
"""Number of the format of job.json and of the manifest."""

FILE = "job.json"
"""Where a job is recorded, below its output."""

MANIFEST = "manifest"
"""The folder of the manifest of finished outputs, below the output."""

PARQUET = "parquet"
"""The kind of output that is a row of a table, and the folder of its files."""

ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png", "scores": "_scores.npz", "polygons": ".geojson",
           "geopackage": ".gpkg"}  # fmt: skip
"""Output of an image -> suffix of its file."""

ABOUT = {"ids": ("labels", PARQUET), "simplify": ("polygons", "geopackage"), "overlay_bands": ("overlay",),
         "cog": ("labels",)}  # fmt: skip
"""Field of a job -> the outputs that it is about: without any of them it decides nothing."""

_OURS = re.compile(
    rf"{MANIFEST}/[\w.-]+-\d+-[0-9a-f]{{8}}(-\d{{6,}})?\.jsonl|{PARQUET}/(part-[0-9a-f]{{24}}-\d+|failed-[0-9a-f]{{24}})\.parquet"
)
"""Names of files of a job: a folder of one of these names may hold other files, even the inputs."""

_ELSEWHERE = ("checkpoint", "model", "output", "device", "compile", "batch", "memory", "threads")
"""Fields that another start, or another machine, may change: places, and what decides speed only."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done with every input. Plain values: it can be pickled, and written as JSON.

    Attributes:
        checkpoint: A checkpoint file, a run folder, the name of a published checkpoint, or an exported file; several
            are the members of an ensemble.
        output: The folder that is written to, or an address such as s3://bucket/out.
        write: Kinds of outputs: keys of `ENDINGS`, "parquet", or formats of annotation tools.
        model: FILE.py:FUNCTION of a network of the user's own.
        device: See `resnest_seg.inference.backends.RunOptions`, as for the next three.
        precision: See there.
        compile: See there.
        batch: See there.
        memory: Bytes that scores may take; None is the backend's default.
        threads: Of the model's runtime; None leaves them to it.
        protocol: Name of the inference protocol.
        scales: Of the image, instead of the protocol's.
        flip: Add mirrored views, or do not; None as the protocol does.
        merge: What of the views is averaged; None as the protocol does.
        tile: Largest edge of tiles.
        overlap: Of tiles.
        blend: Of tiles.
        ids: Values in label PNGs, "raw" or "train".
        alpha: Opacity of overlays.
        simplify: Tolerance of polygons, in pixels.
        cog: Write labels on the map as Cloud Optimized GeoTIFF.
        overlay_bands: Bands that overlays of a model of many bands show.
        frames: Maximum frames of a video.
    """

    checkpoint: str | tuple[str, ...]
    output: str
    write: tuple[str, ...] = ("labels", "overlay")
    model: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    batch: int | None = None
    memory: int | None = None
    threads: int | None = None
    protocol: str = "whole"
    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    merge: str | None = None
    tile: int | None = None
    overlap: int | None = None
    blend: str | None = None
    ids: str = "raw"
    alpha: float = 0.5
    simplify: float = 0.0
    cog: bool = False
    overlay_bands: tuple[str, ...] | None = None
    frames: int | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The kinds of outputs that are files of their own."""
        return tuple(kind for kind in self.write if kind in ENDINGS)

    @property
    def destination(self) -> Destination:
        """Where the outputs go."""
        from resnest_seg.bulk.destination import open_destination  # imported here because --help needs no HTTP client

        return open_destination(self.output)

    def decides(self) -> dict[str, Any]:
        """What decides results, as JSON: the options, and hashes of the checkpoint and of a network's file.

        Raises:
            CheckpointError: There is no such checkpoint.
        """
        from resnest_seg.inference.backends import content_hash, file_hash  # imported here because --help needs neither

        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in _ELSEWHERE}
        values["write"] = sorted(self.write)
        if isinstance(self.checkpoint, str):
            values["checkpoint"] = content_hash(self.checkpoint)
        else:
            values["checkpoint"] = [content_hash(each) for each in self.checkpoint]
        if self.model is not None:
            path, _, function = self.model.rpartition(":")
            values["model"] = f"{file_hash(Path(path))}:{function}"
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def from_the_root(checkpoint: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """A job's checkpoint, or checkpoints, for a process in another folder: paths that exist begin at the root."""
    if not isinstance(checkpoint, str):
        return tuple(str(from_the_root(each)) for each in checkpoint)
    return str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint


def begin(job: Job, *, overwrite: bool = False) -> None:
    """Record a job in its output, or find that it continues there. Processes of one job may begin at the same time.

    Args:
        job: The job.
        overwrite: Begin anew: forget what is done there; result files are replaced as they are made again.

    Raises:
        ConfigError: The output holds results of another job, or other files.
        CheckpointError: There is no such checkpoint.
    """
    decides, place = job.decides(), job.destination
    if overwrite:
        for name in (FILE, *filter(_OURS.fullmatch, (*place.names(MANIFEST), *place.names(PARQUET)))):
            place.remove(name)
    free = overwrite or place.empty()
    record = place.read(FILE)  # after the look: another process may have begun since
    if record is None and not free:
        raise ConfigError(
            f"{place.shown} holds files, and no {FILE} of a job that could continue there. Choose another --output, or "
            "pass --overwrite."
        )
    if record is None:
        place.write(FILE, (json.dumps({"format": FORMAT, **decides}, indent=1) + "\n").encode())
        record = place.read(FILE) or b""  # which is that of a process that began at the same time, and another job
    _check_same(place, record, decides)


def _without_effect(values: Mapping[str, Any]) -> set[str]:
    """The options about outputs that a job does not write: these may change, or be left out.

    Earlier versions recorded such options; the command line refuses them now.
    """
    written = {*(values.get("write") or ())}
    return {key for key, outputs in ABOUT.items() if not written & {*outputs}}


def _check_same(place: Destination, record: bytes, decides: Mapping[str, Any]) -> None:
    """Raise a ConfigError if the record of a job is not that of this one; it says what differs."""
    where = f"{place.shown}/{FILE}"
    try:
        known = json.loads(record)
        form = known.pop("format")
    except (ValueError, AttributeError, KeyError):
        raise ConfigError(f"{where} is damaged. Choose another --output, or pass --overwrite to begin anew.") from None
    if form != FORMAT:
        raise ConfigError(f"{where} is of format {form}, and this version knows {FORMAT}: choose another --output.")
    changes = []
    for key in sorted((known.keys() | decides.keys()) - _without_effect(known) - _without_effect(decides)):
        before, now = known.get(key), decides.get(key)
        if before != now:
            shown = key in ("checkpoint", "model") and None not in (before, now)
            changes.append(f"{key} has another content" if shown else f"{key} was {before}, and is now {now}")
    if changes:
        raise ConfigError(
            f"{place.shown} holds results of another job: {'; '.join(changes)}. Choose another --output, or pass "
            "--overwrite to begin anew."
        )
