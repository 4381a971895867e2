"""Segment photos, videos, camera streams and maps: labels, overlays with a legend, scores, polygons, annotations.

python tools/predict_seg.py --checkpoint runs/my_run photo.jpg folder/ "more/**/*.png" --output predictions
python tools/predict_seg.py --checkpoint runs/my_run --protocol encoding --write labels polygons photo.jpg
python tools/predict_seg.py --checkpoint runs/my_run --write coco labelme cvat yolo folder/
python tools/predict_seg.py --checkpoint runs/my_run drive.mp4
python tools/predict_seg.py --checkpoint runs/my_run --tile 1024 --overlap 128 satellite.tif
python tools/predict_seg.py --checkpoint model.onnx photo.jpg

Labels of a TIFF that lies on the map (CRS and transform) are a GeoTIFF there; its polygons are in longitude and
latitude, or with --write geopackage in its CRS.

Inputs that cannot be segmented are listed at the end; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
import warnings
from collections.abc import Mapping, Sequence
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

    from resnest_seg.annotations.writers import AnnotationWriter
    from resnest_seg.inference.backends import Backend
    from resnest_seg.inference.inputs import Input
    from resnest_seg.inference.prediction import Prediction
    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.inference.protocols import Protocol

PREDICTIONS = "predictions"
"""The folder that is written to by default, and the first name of its series."""

EXIT_SOME_FAILED = 1
"""Exit code if some inputs could not be segmented."""

ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png", "scores": "_scores.npz", "polygons": ".geojson",
           "geopackage": ".gpkg"}  # fmt: skip
"""Output of an image -> suffix of its file."""

MAP_LABELS = "_labels.tif"
"""Suffix of the labels of an image that lies on the map."""

ANNOTATIONS = {"coco": "coco/annotations.json", "labelme": "labelme/", "cvat": "cvat/annotations.xml",
               "yolo": "yolo/data.yaml"}  # fmt: skip
"""Formats of annotation tools, of all images together -> what is written below the output folder."""

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
    parser.add_argument("--write", nargs="+", choices=(*ENDINGS, *ANNOTATIONS), metavar="KIND", default=["labels",
                        "overlay"], help="outputs of an image: labels as PNG, overlay with legend, scores (class "
                        "probabilities, npz, half precision), polygons (GeoJSON in pixels, or in longitude and "
                        "latitude), geopackage (polygons in the CRS of an image that has one); and of all images, for "
                        "annotation tools: coco, labelme, cvat, yolo (default: labels overlay)")  # fmt: skip
    parser.add_argument("--write-tolerance", type=float, default=1.0, metavar="PIXELS", help="simplification of "
                        "outlines for annotation tools; small and thin regions keep more (default: 1)")  # fmt: skip
    parser.add_argument("--cog", action="store_true", help="labels of an image on the map as Cloud Optimized GeoTIFF")
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
    check_option("--write-tolerance", options.write_tolerance, 0, 100)
    check_option("--frames", options.frames, 1, COUNT)
    check_option("--tile", options.tile, 1, 65536)
    check_option("--overlap", options.overlap, 0, 65536)
    check_option("--batch", options.batch, 1, 65536)
    if options.blend is not None and options.tile is None:
        raise ConfigError("--blend needs tiles: give --tile as well.")
    options.write = list(dict.fromkeys(options.write))
    options.annotations = [kind for kind in options.write if kind in ANNOTATIONS]
    options.files = [kind for kind in options.write if kind in ENDINGS]
    (options.protocol,) = protocol_names(options.protocol)
    options.memory = None if options.memory is None else memory_bytes(options.memory)
    if options.cog or "geopackage" in options.write:
        from resnest_seg.io.large_images import load_rasterio

        load_rasterio("--cog and --write geopackage")
    options.fresh = options.output is None and not options.overwrite
    options.output = options.output or str(next_free(PREDICTIONS) if options.fresh else PREDICTIONS)
    check_output_folder(options.output)
    for kind in options.annotations:
        place = Path(options.output) / ANNOTATIONS[kind]
        if kind != "labelme":
            check_output_file(place, what="the file of annotations", overwrite=options.overwrite)
        elif place.is_dir() and any(place.iterdir()) and not options.overwrite:
            raise ConfigError(f"{place} already holds files. Choose another --output, or pass --overwrite.")


def protocol_for(options: argparse.Namespace, backend: Backend) -> Protocol:
    """Build the protocol of the options."""
    from resnest_seg.inference.protocols import protocol, with_options

    base = protocol(options.protocol, setting=backend.setting)
    placement, blend = ("even", "hann") if options.tile else (None, None)
    return with_options(base, scales=options.scales, flip=options.flip, merge=options.merge, placement=placement,
                        window=options.tile, overlap=options.overlap, blend=options.blend or blend)  # fmt: skip


def on_map(item: Input) -> bool:
    """True for a TIFF file with a CRS and a place in it."""
    from resnest_seg.io.georeference import read_georeference

    return item.kind == "image" and read_georeference(item.source) is not None


def check_places(items: Sequence[Input], options: argparse.Namespace) -> None:
    """Say which inputs do not lie on the map where others do, or where an option needs it.

    Raises:
        ConfigError: None does, and an option is for those alone.
    """
    from resnest_seg.io.georeference import is_tiff

    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        lying = {item.source for item in items if on_map(item)}
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        print(f"warning: {lost[0].message}{more}", file=sys.stderr)
    wanted = [word for word, given in (("--cog", options.cog), ("--write geopackage", "geopackage" in options.write))
              if given]  # fmt: skip
    others = [item.source for item in items if item.source not in lying]
    if wanted and items and not lying:
        raise ConfigError(
            f"{wanted[0]} is for images on the map, and none of the inputs is one, such as {printable(others[0])}: a "
            "TIFF with a CRS and a transform (gdalinfo shows them)."
        )
    strays = [source for source in others if wanted or (lying and is_tiff(source))]
    if strays:
        print(
            f"note: {len(strays)} of {len(items)} inputs have no CRS or no place in it: their labels are PNG, their "
            f"polygons in pixels, and they get no GeoPackage. The first: {printable(strays[0])}",
            file=sys.stderr,
        )


def results(item: Input, options: argparse.Namespace) -> dict[str, Path]:
    """Return the output files of an input, by kind; "video" for the overlay of one.

    Raises:
        ConfigError: A file exists.
    """
    stem = Path(options.output) / item.place
    if item.kind in ("image", "address"):
        endings = {kind: ENDINGS[kind] for kind in options.files}
        if on_map(item):
            endings = {kind: MAP_LABELS if kind == "labels" else ending for kind, ending in endings.items()}
        else:
            endings.pop("geopackage", None)
    else:
        endings = {"video": VIDEO_ENDING}
    paths = {kind: stem.with_name(stem.name + ending) for kind, ending in endings.items()}
    for path in paths.values():
        check_output_file(path, what=item.source, overwrite=options.overwrite)
    return paths


def write_image(
    prediction: Prediction,
    item: Input,
    paths: Mapping[str, Path],
    options: argparse.Namespace,
    writer: AnnotationWriter | None,
) -> None:
    """Write the requested outputs of one image."""
    from resnest_seg.io.visualize import write_png

    if writer is not None:
        suffix = Path(item.source).suffix if item.kind == "image" else ".png"
        name = item.place if item.place.suffix == suffix else item.place.with_name(item.place.name + suffix)
        photo = item.source if item.kind == "image" else None
        writer.add(name.as_posix(), prediction.labels, photo=photo, place=item.place.as_posix())
    for kind, path in paths.items():
        if kind == "labels":
            prediction.save(path, ids=options.ids, cog=options.cog and path.suffix == ".tif")
        elif kind == "overlay":
            write_png(path, prediction.overlay(options.alpha))
        elif kind == "scores":
            prediction.save_scores(path)
        else:
            prediction.save_polygons(path, simplify=options.simplify)


def size_of(photo: str) -> tuple[int, int]:
    """Read (H, W) of an image file from its header; zeros of a file that has none that is known."""
    from resnest_seg.io.georeference import is_tiff, raster_size
    from resnest_seg.io.masks import image_size

    height, width = image_size(photo)
    if not height and is_tiff(photo):  # of bands that Pillow does not know
        height, width = raster_size(photo)
    return height, width


def segment_image(
    predictor: Predictor,
    item: Input,
    paths: Mapping[str, Path],
    options: argparse.Namespace,
    writer: AnnotationWriter | None,
) -> None:
    """Segment a photo; with tiles, a large one is read and written by windows."""
    if item.kind == "address":
        write_image(predictor(item.source), item, paths, options, writer)
        return
    height, width = size_of(item.source)
    if height * width < LARGE:
        write_image(predictor(item.source), item, paths, options, writer)
        return
    if options.tile is None or set(options.write) - {"labels", "overlay"} or "labels" not in paths:
        raise DatasetError(
            f"{item.source} has {height} x {width} pixels: give --tile 1024, and --write labels or overlay only."
        )
    predictor.segment_file(
        item.source,
        paths["labels"],
        ids=options.ids,
        overlay_path=paths.get("overlay"),
        alpha=options.alpha,
        cog=options.cog and paths["labels"].suffix == ".tif",
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


def segment(
    predictor: Predictor,
    items: Sequence[Input],
    outputs: Sequence[Mapping[str, Path]],
    options: argparse.Namespace,
    problems: list[str],
    writer: AnnotationWriter | None = None,
) -> tuple[int, OSError | None]:
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
                    segment_image(predictor, item, paths, options, writer)
                else:
                    segment_video(predictor, item, paths["video"], options, progress, bar)
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

    from resnest_seg.inference.inputs import plan
    from resnest_seg.io.images import IMAGE_SUFFIXES

    endings = (*ENDINGS.values(), MAP_LABELS, VIDEO_ENDING)
    earlier = list(numbered(PREDICTIONS).values())
    items, problems = plan(options.inputs, options.output, suffixes=IMAGE_SUFFIXES, endings=endings, earlier=earlier)
    return run(items, problems, options)


def run(items: Sequence[Input], problems: list[str], options: argparse.Namespace) -> int:
    """Segment the inputs of a plan; returns the exit code.

    Args:
        items: What is segmented.
        problems: Sentences on inputs that cannot be, which are shown at the end.
        options: The command line, checked.
    """
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.predictor import Predictor, open_backend

    check_places(items, options)
    outputs = [results(item, options) for item in items]
    check_not_inputs([path for paths in outputs for path in paths.values()], [item.source for item in items])
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
            writer = None
            if options.annotations:
                from resnest_seg.annotations.writers import AnnotationWriter

                writer = held.enter_context(AnnotationWriter(options.output, options.annotations, predictor.label_space,
                                                             tolerance=options.write_tolerance))  # fmt: skip
            done, stopped = segment(predictor, items, outputs, options, problems, writer)
    if done:
        print(f"{done} of {len(items)} inputs segmented into {options.output}: {', '.join(options.write)}")
    if problems:
        print("\n  ".join([f"error: {len(problems)} not segmented:", *map(printable, problems)]), file=sys.stderr)
    if stopped is not None:
        raise stopped
    return EXIT_SOME_FAILED if problems else 0
