"""Segment photos, videos and camera streams: label PNGs, overlays with a legend, scores, polygons.

python tools/predict_seg.py --checkpoint runs/my_run photo.jpg folder/ "more/**/*.png" --output predictions
python tools/predict_seg.py --checkpoint runs/my_run --protocol encoding --write labels polygons photo.jpg
python tools/predict_seg.py --checkpoint runs/my_run drive.mp4
python tools/predict_seg.py --checkpoint runs/my_run --tile 1024 --overlap 128 satellite.tif
python tools/predict_seg.py --checkpoint model.onnx photo.jpg

Inputs that cannot be segmented are listed at the end; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.options import (
    Parser,
    add_checkpoint,
    add_execution,
    add_memory,
    add_model_option,
    add_protocol,
    memory_bytes,
    own_network,
    protocol_names,
)
from resnest_seg.config import COUNT
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.files import check_not_inputs, check_output_file, check_output_folder, claimed, next_free, numbered

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from resnest_seg.inference.backends import Backend
    from resnest_seg.inference.inputs import Input
    from resnest_seg.inference.prediction import Prediction
    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.inference.protocols import Protocol

PREDICTIONS = "predictions"
"""The folder that is written to by default, and the first name of its series."""

EXIT_SOME_FAILED = 1
"""Exit code if some inputs could not be segmented."""

ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png", "scores": "_scores.npz", "polygons": ".geojson"}
"""Output of an image -> suffix of its file."""

VIDEO_ENDING = "_overlay.mp4"
"""Suffix of the output of a video."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""System errors that would occur for every further input."""

LARGE = 64_000_000
"""Minimum pixels of an image that is read, and whose labels are written, by windows."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("predict", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a photo, a folder with its subfolders, a pattern "
                        "in quotes, a video, a camera (0), or an http(s) address")  # fmt: skip
    add_checkpoint(parser, exported=True)
    add_model_option(parser)
    parser.add_argument("--output", help=f"folder to write to (default: {PREDICTIONS}, or {PREDICTIONS}-2, -3 ... if "
                        "that exists)")  # fmt: skip
    parser.add_argument("--write", nargs="+", choices=tuple(ENDINGS), default=["labels", "overlay"], help="outputs of "
                        "an image: labels as PNG, overlay with legend, scores (class probabilities, npz, half "
                        "precision), polygons (GeoJSON in pixels) (default: labels overlay)")  # fmt: skip
    parser.add_argument("--ids", choices=("raw", "train"), default="raw", help="values in the label PNGs: the data "
                        "set's ids, or indices of the classes (default: raw)")  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0..1 (default: 0.5)")
    parser.add_argument("--overlay-bands", metavar="BANDS", help="for a model of many bands: three that the overlay "
                        "shows as red, green and blue, such as 4,3,2 (default: the first three)")  # fmt: skip
    parser.add_argument("--simplify", type=float, default=0.0, help="tolerance of polygons in pixels (default: 0)")
    parser.add_argument("--frames", type=int, help="maximum frames of a video or camera (default: all)")
    parser.add_argument("--overwrite", action="store_true", help=f"replace files that exist; without --output those in "
                        f"{PREDICTIONS}")  # fmt: skip
    how = parser.add_argument_group("inference protocol")
    add_protocol(how)
    how.add_argument("--scales", type=float, nargs="+", help="scales of the image, instead of the protocol's")
    how.add_argument("--flip", action=argparse.BooleanOptionalAction, help="add horizontally flipped views, or do not")
    how.add_argument("--merge", choices=("logits", "softmax", "exp"), help="quantity of the views that is averaged")
    how.add_argument("--tile", type=int, help="largest edge of tiles in pixels: images of any size in bounded memory")
    how.add_argument("--overlap", type=int, help="overlap of tiles in pixels (default: an eighth of the tile)")
    how.add_argument("--blend", choices=("none", "hann", "distance"), help="weights of a tile's pixels (default: hann)")
    run = parser.add_argument_group("execution")
    add_execution(run)
    add_memory(run, what="memory limit of scores", default="1; 4 for exported files")
    return parser.read(argv)


def check(options: argparse.Namespace) -> None:
    """Reject contradictory options, before anything is loaded.

    Raises:
        ConfigError: An option is out of range, or options contradict each other.
    """
    check_option("--alpha", options.alpha, 0, 1)
    check_option("--simplify", options.simplify, 0, 10_000)
    check_option("--frames", options.frames, 1, COUNT)
    check_option("--tile", options.tile, 1, 65536)
    check_option("--overlap", options.overlap, 0, 65536)
    check_option("--batch", options.batch, 1, 65536)
    if options.blend is not None and options.tile is None:
        raise ConfigError("--blend needs tiles: give --tile as well.")
    options.write = list(dict.fromkeys(options.write))
    (options.protocol,) = protocol_names(options.protocol)
    options.memory = None if options.memory is None else memory_bytes(options.memory)
    options.fresh = options.output is None and not options.overwrite
    options.output = options.output or str(next_free(PREDICTIONS) if options.fresh else PREDICTIONS)
    check_output_folder(options.output)


def protocol_for(options: argparse.Namespace, backend: Backend) -> Protocol:
    """Build the protocol of the options."""
    from resnest_seg.inference.protocols import protocol, with_options

    base = protocol(options.protocol, setting=backend.setting)
    placement, blend = ("even", "hann") if options.tile else (None, None)
    return with_options(base, scales=options.scales, flip=options.flip, merge=options.merge, placement=placement,
                        window=options.tile, overlap=options.overlap, blend=options.blend or blend)  # fmt: skip


def results(item: Input, options: argparse.Namespace) -> list[Path]:
    """Return the output files of an input.

    Raises:
        ConfigError: A file exists.
    """
    stem = Path(options.output) / item.place
    endings = [ENDINGS[kind] for kind in options.write] if item.kind in ("image", "address") else [VIDEO_ENDING]
    paths = [stem.with_name(stem.name + ending) for ending in endings]
    for path in paths:
        check_output_file(path, what=item.source, overwrite=options.overwrite)
    return paths


def write_image(prediction: Prediction, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Write the requested outputs of one image."""
    from resnest_seg.io.polygons import write_polygons
    from resnest_seg.io.visualize import write_png

    for kind, path in zip(options.write, paths, strict=True):
        if kind == "labels":
            prediction.save(path, ids=options.ids)
        elif kind == "overlay":
            write_png(path, prediction.overlay(options.alpha))
        elif kind == "scores":
            prediction.save_scores(path)
        else:
            write_polygons(path, prediction.labels, prediction.label_space, simplify=options.simplify)


def segment_image(predictor: Predictor, item: Input, paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Segment a photo; with tiles, a large one is read and written by windows."""
    from resnest_seg.io.masks import image_size

    if item.kind == "address":
        write_image(predictor(item.source), paths, options)
        return
    height, width = image_size(item.source)
    if height * width < LARGE:
        write_image(predictor(item.source), paths, options)
        return
    wanted = dict(zip(options.write, paths, strict=True))
    if options.tile is None or set(wanted) - {"labels", "overlay"} or "labels" not in wanted:
        raise DatasetError(
            f"{item.source} has {height} x {width} pixels: give --tile 1024, and --write labels or overlay only."
        )
    predictor.segment_file(
        item.source, wanted["labels"], ids=options.ids, overlay_path=wanted.get("overlay"), alpha=options.alpha
    )


def segment_video(
    predictor: Predictor, item: Input, path: Path, options: argparse.Namespace, progress: Progress, bar: TaskID
) -> None:
    """Segment a video or a camera's stream, until it ends or Ctrl-C; writes an overlay video.

    Raises:
        DatasetError: The input cannot be read, or is truncated; the frames before are written.
    """
    from resnest_seg.io.video import VideoReader, write_video

    problem: DatasetError | None = None
    with VideoReader(item.source) as frames, write_video(path, fps=frames.fps) as writer:
        try:
            for number, frame in enumerate(frames, start=1):
                writer.write(predictor(frame).overlay(options.alpha, legend=False))
                shown = f"{item.source}: frame {number}" + (f" of {frames.count}" if frames.count else "")
                progress.update(bar, description=shown)
                if number == options.frames:
                    break
        except DatasetError as error:
            problem = error
        except KeyboardInterrupt:
            if item.kind != "camera" or not writer.frames:
                raise
    if problem is not None:
        raise DatasetError(f"{problem} {writer.frames} frames are in {path}.")


def segment(predictor: Predictor, items: Sequence[Input], outputs: Sequence[list[Path]], options: argparse.Namespace,
            problems: list[str]) -> tuple[int, OSError | None]:  # fmt: skip
    """Segment the inputs one after the other; errors of single inputs are added to the problems.

    Returns:
        The number of segmented inputs; and the error that ended the work, such as a full disk, or None.
    """
    import torch

    from resnest_seg.io.display import progress_bars

    done = 0
    with progress_bars() as progress:
        bar = progress.add_task("segmenting", total=len(items))
        for item, paths in zip(items, outputs, strict=True):
            try:
                if item.kind in ("image", "address"):
                    segment_image(predictor, item, paths, options)
                else:
                    segment_video(predictor, item, paths[0], options, progress, bar)
                done += 1
            except (DatasetError, ConfigError) as error:  # the other inputs are still segmented
                problems.append(str(error) if item.source in str(error) else f"{item.source}: {error}")
            except (MemoryError, torch.OutOfMemoryError):
                problems.append(f"{item.source}: there is not enough memory. Give --tile 512.")
            except OSError as error:
                if error.errno in FULL:
                    return done, error
                problems.append(f"{item.source}: {error.filename or ''}: {error.strerror or error}.")
            progress.update(bar, advance=1)
    return done, None


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every input; returns the exit code."""
    options = parse(argv)
    check(options)

    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.inputs import plan
    from resnest_seg.inference.predictor import Predictor, open_backend
    from resnest_seg.io.images import IMAGE_SUFFIXES

    endings = (*ENDINGS.values(), VIDEO_ENDING)
    earlier = list(numbered(PREDICTIONS).values())
    items, problems = plan(options.inputs, options.output, suffixes=IMAGE_SUFFIXES, endings=endings, earlier=earlier)
    outputs = [results(item, options) for item in items]
    check_not_inputs([path for paths in outputs for path in paths], [item.source for item in items])
    done, stopped = 0, None
    if items:
        how = RunOptions(options.device, options.precision, options.compile, options.batch)
        backend = open_backend(options.checkpoint, how, into=own_network(options.model))
        if "scores" in options.write:
            backend.check_scores()
        shown = None if options.overlay_bands is None else options.overlay_bands.split(",")
        predictor = Predictor(
            backend, protocol=protocol_for(options, backend), memory=options.memory, overlay_bands=shown
        )
        predictor.check_photos()
        print(f"protocol {predictor.protocol.description}", file=sys.stderr)
        with contextlib.ExitStack() as held:
            if options.fresh:  # two starts at a time write into two folders
                options.output = str(held.enter_context(claimed(PREDICTIONS)))
                outputs = [results(item, options) for item in items]
            done, stopped = segment(predictor, items, outputs, options, problems)
    if done:
        print(f"{done} of {len(items)} inputs segmented into {options.output}: {', '.join(options.write)}")
    if problems:
        print("\n  ".join([f"error: {len(problems)} not segmented:", *map(printable, problems)]), file=sys.stderr)
    if stopped is not None:
        raise stopped
    return EXIT_SOME_FAILED if problems else 0
