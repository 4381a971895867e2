"""Segment photos, videos, camera streams and maps: labels, overlays with a legend, scores, polygons, annotations.

python tools/predict_seg.py --checkpoint runs/my_run photo.jpg folder/ "more/**/*.png" --output predictions
python tools/predict_seg.py --checkpoint runs/my_run photo.jpg --protocol encoding --write labels polygons
python tools/predict_seg.py --checkpoint runs/my_run folder/ --write coco labelme cvat yolo
python tools/predict_seg.py --checkpoint runs/my_run drive.mp4
python tools/predict_seg.py --checkpoint runs/my_run --tile 1024 --overlap 128 satellite.tif
python tools/predict_seg.py --checkpoint model.onnx photo.jpg
python tools/predict_seg.py --checkpoint runs/first --checkpoint runs/second photo.jpg    # the mean of both

Labels of a TIFF that lies on the map (CRS and transform) are a GeoTIFF there; its polygons are in longitude and
latitude, or with --write geopackage in its CRS.

Inputs that cannot be segmented are listed at the end; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.bulk import job as jobs
from resnest_seg.bulk.job import ENDINGS, PARQUET, Job
from resnest_seg.bulk.outputs import (
    ALL_ENDINGS,
    endings_of,
    on_map,
    open_predictor,
    problem_of,
    segment_video,
    segmented,
    write_outputs,
)
from resnest_seg.cli.parsing.options import (
    Parser,
    add_checkpoint,
    add_execution,
    add_memory,
    add_model_option,
    add_protocol,
    memory_bytes,
    protocol_names,
)
from resnest_seg.config import COUNT
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, command, load_extra, printable
from resnest_seg.files import check_not_inputs, check_output_file, check_output_folder, claimed, next_free, numbered
from resnest_seg.inference.ensemble import checkpoints_of

if TYPE_CHECKING:
    from resnest_seg.annotations.writers import AnnotationWriter
    from resnest_seg.bulk.listing import BulkItem
    from resnest_seg.inference.inputs import Input
    from resnest_seg.inference.predictor import Predictor

PREDICTIONS = "predictions"
"""The folder that is written to by default, and the first name of its series."""

EXIT_SOME_FAILED = 1
"""Exit code if some inputs could not be segmented."""

ANNOTATIONS = {"coco": "coco/annotations.json", "labelme": "labelme/", "cvat": "cvat/annotations.xml",
               "yolo": "yolo/data.yaml"}  # fmt: skip
"""Formats of annotation tools, of all images together -> what is written below the output folder."""

FOLDERS = {"labelme": ("labelme",), "yolo": ("yolo/labels", "yolo/images")}
"""Formats of annotation tools -> folders below the output folder with files of each image."""

ABOUT = {
    "--simplify": jobs.ABOUT["simplify"],
    "--write-tolerance": tuple(ANNOTATIONS),
    "--ids": jobs.ABOUT["ids"],
    "--overlay-bands": jobs.ABOUT["overlay_bands"],
    "--cog": jobs.ABOUT["cog"],
}
"""Options -> the outputs that they are about, as --write names them."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("predict", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a photo, a folder with its subfolders, a pattern "
                        "in quotes, a video, a camera (0), an address (http, https, s3 ...), or a manifest: a .csv or "
                        ".parquet file with a column of paths")  # fmt: skip
    add_checkpoint(parser, exported=True, several=True)
    add_model_option(parser)
    parser.add_argument("--output", help=f"folder to write to (default: {PREDICTIONS}, or {PREDICTIONS}-2, -3 ... if "
                        "that exists)")  # fmt: skip
    parser.add_argument("--write", nargs="+", choices=(*ENDINGS, PARQUET, *ANNOTATIONS), metavar="KIND",
                        default=["labels", "overlay"], help="outputs of an image: labels as PNG, overlay with legend, "
                        "scores (class probabilities, npz, half precision), polygons (GeoJSON in pixels, or in "
                        "longitude and latitude), geopackage (polygons in the CRS of an image that has one), parquet "
                        "(rows of tables: path, labels as PNG, shares of classes, mean confidence, error); and of all "
                        "images, for annotation tools: coco, labelme, cvat, yolo (default: labels "
                        "overlay)")  # fmt: skip
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
    how.add_argument("--merge", choices=("logits", "softmax", "exp"), help="quantity of the views that is averaged "
                     "(refused for binary and multi-label models, which average sigmoids)")  # fmt: skip
    how.add_argument("--tile", type=int, help="largest edge of tiles in pixels: images of any size in bounded memory")
    how.add_argument("--overlap", type=int, help="overlap of tiles in pixels (default: an eighth of the tile)")
    how.add_argument("--blend", choices=("none", "hann", "distance"), help="weights of a tile's pixels (default: hann)")
    bulk = parser.add_argument_group("many inputs", "Prediction is a job with --shard, --engine, a manifest, --write\n"
                                     "parquet, or an address as --output: OUTPUT/manifest/ records what is done, and\n"
                                     "the same command goes on with the rest.")  # fmt: skip
    bulk.add_argument("--shard", metavar="I/N", help="segment the I-th of N shares, counted from 0: one process each, "
                      "such as 0/2 and 1/2, on any machines that see the output")  # fmt: skip
    bulk.add_argument("--engine", choices=("plain", "torchrun", "ray"), help="who hands out the inputs: torchrun takes "
                      "I and N from what it started (RANK, WORLD_SIZE); ray starts processes on a Ray cluster "
                      "(RAY_ADDRESS, or that of 'ray start'), or on the cores of this machine")  # fmt: skip
    bulk.add_argument("--cpus-per-actor", type=int, metavar="N", help="with --engine ray: cores of each process "
                      "(default: 1)")  # fmt: skip
    bulk.add_argument("--path-column", metavar="NAME", help="column of a manifest's paths, which are relative to the "
                      "manifest's folder (default: path)")  # fmt: skip
    run = parser.add_argument_group("execution")
    add_execution(run)
    add_memory(run, what="memory limit of scores", default="1; 4 for exported files")
    options = parser.read(argv)
    options.changed = parser.changed(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Reject contradictory options, before anything is loaded.

    Raises:
        ConfigError: An option is out of range, or options contradict each other.
    """
    options.checkpoint = checkpoints_of(options.checkpoint)
    check_option("--alpha", options.alpha, 0, 1)
    check_option("--simplify", options.simplify, 0, 10_000)
    check_option("--write-tolerance", options.write_tolerance, 0, 100)
    check_option("--frames", options.frames, 1, COUNT)
    check_option("--tile", options.tile, 1, 65536)
    check_option("--overlap", options.overlap, 0, 65536)
    check_option("--batch", options.batch, 1, 65536)
    check_option("--cpus-per-actor", options.cpus_per_actor, 1, 4096)
    if options.cpus_per_actor is not None and options.engine != "ray":
        raise ConfigError("--cpus-per-actor is for --engine ray: give that as well.")
    if options.blend is not None and options.tile is None:
        raise ConfigError("--blend needs tiles: give --tile as well.")
    options.write = list(dict.fromkeys(options.write))
    options.annotations = [kind for kind in options.write if kind in ANNOTATIONS]
    for option, outputs in ABOUT.items():
        if option in options.changed and not set(options.write) & set(outputs):
            raise ConfigError(
                f"{option} is about {', '.join(outputs)}, and --write {' '.join(options.write)} makes none of them: "
                "add one, or leave it out."
            )
    (options.protocol,) = protocol_names(options.protocol)
    options.memory = None if options.memory is None else memory_bytes(options.memory)
    if options.cog or "geopackage" in options.write:
        from resnest_seg.io.large_images import load_rasterio

        load_rasterio("--cog and --write geopackage")
    check_job(options)
    options.fresh = options.output is None and not options.overwrite
    options.output = options.output or str(next_free(PREDICTIONS) if options.fresh else PREDICTIONS)
    if options.bulk:
        return
    check_output_folder(options.output)
    for kind in options.annotations:
        if kind != "labelme":
            place = Path(options.output) / ANNOTATIONS[kind]
            check_output_file(place, what="the file of annotations", overwrite=options.overwrite)
        for place in (Path(options.output) / folder for folder in FOLDERS.get(kind, ())):
            if place.is_dir() and any(place.iterdir()) and not options.overwrite:
                raise ConfigError(f"{place} already holds files. Choose another --output, or pass --overwrite.")


def shard_of(options: argparse.Namespace) -> tuple[int, int] | None:
    """The number of this process's share, from 0, and how many there are; None if there is one only.

    Raises:
        ConfigError: --shard is no I/N with I below N, or torchrun did not start this.
    """
    if options.engine == "torchrun":
        if options.shard is not None:
            raise ConfigError("--shard and --engine torchrun both say which share is meant: give one of them.")
        words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
        if not all(word.isdecimal() for word in words):
            raise ConfigError(
                "--engine torchrun takes its share from RANK and WORLD_SIZE, which torchrun sets: start this as "
                f"{command('predict', launcher='torchrun --nproc-per-node 8')} ..., or give --shard I/N."
            )
        return int(words[0]), int(words[1])
    if options.shard is None:
        return None
    if options.engine == "ray":
        raise ConfigError("--shard is for processes that you start, and --engine ray starts its own: leave one out.")
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", options.shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(
            f"--shard must be I/N with I from 0 to N - 1, such as 0/4, 1/4, 2/4 and 3/4, not {options.shard!r}."
        )
    return int(match[1]), int(match[2])


def check_job(options: argparse.Namespace) -> None:
    """Decide whether the inputs are a job, and reject what a job of many processes cannot do.

    Raises:
        ConfigError: No output, formats of all images together, or --overwrite in one of several processes.
    """
    from resnest_seg.bulk.listing import is_manifest
    from resnest_seg.storage.remote import is_address

    options.shard = shard_of(options)
    lists = any(is_manifest(word) for word in options.inputs)
    if options.path_column is not None and not lists:
        raise ConfigError("--path-column is for inputs that are manifests: files .csv or .parquet.")
    address = options.output is not None and is_address(options.output)
    options.bulk = (
        options.shard is not None or options.engine is not None or lists or PARQUET in options.write or address
    )
    if not options.bulk:
        return
    options.shard, options.path_column = options.shard or (0, 1), options.path_column or "path"
    if options.output is None:
        raise ConfigError("a job of many inputs needs an --output, by which the same command continues it.")
    if PARQUET in options.write:
        load_extra("pyarrow", "import")
    if options.annotations:
        raise ConfigError(
            f"--write {' '.join(options.annotations)} makes one file of all images, and here each process sees its own "
            "share. Write polygons, or give neither --shard, --engine, a manifest, parquet nor an address to write to."
        )
    if options.overwrite and options.shard[1] > 1:
        raise ConfigError(
            f"--overwrite would remove what the other shards have done. Remove {options.output} before you start them, "
            "or choose another --output."
        )


def check_places(items: Sequence[Input], options: argparse.Namespace) -> None:
    """Say which inputs do not lie on the map where others do, or where an option needs it.

    Raises:
        ConfigError: None does, and an option is for those alone.
    """
    from resnest_seg.io.georeference import is_tiff

    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        lying = {item.source for item in items if on_map(item.source, item.kind)}
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        print(f"warning: {lost[0].message}{more}", file=sys.stderr)
    wanted = _for_maps(options)
    away = [item.shown for item in items if item.kind == "address" and _TIFF_ADDRESS.search(item.source)]
    others = [item for item in items if item.source not in lying]
    if wanted and items and not lying:
        raise _nowhere(wanted[0], others[0].shown, _IN_A_JOB if away else "")
    if away and set(options.write) & {"labels", "polygons", "geopackage"}:
        print(
            f"note: {len(away)} of {len(items)} inputs are TIFFs at addresses, whose place on the map is not kept."
            f"{_IN_A_JOB} The first: {printable(away[0])}",
            file=sys.stderr,
        )
    others = [item for item in others if item.shown not in away]
    strays = [item.shown for item in others if wanted or (lying and is_tiff(item.source))]
    if strays:
        print(
            f"note: {len(strays)} of {len(items)} inputs have no CRS or no place in it: their labels are PNG, their "
            f"polygons in pixels, and they get no GeoPackage. The first: {printable(strays[0])}",
            file=sys.stderr,
        )


def say_what_is_ignored(items: Sequence[Input] | Sequence[BulkItem], options: argparse.Namespace) -> None:
    """Say that --frames, or --alpha, has no effect on any of the inputs; what is at an address may be a video."""
    kinds = {item.kind for item in items}
    if not kinds or kinds & {"video", "camera", "address"}:
        return
    if options.frames is not None:
        print("note: --frames is about videos and cameras, and no input is one: it has no effect.", file=sys.stderr)
    if "--alpha" in options.changed and "overlay" not in options.write:
        print(
            f"note: --alpha is about overlays, and --write {' '.join(options.write)} makes none: it has no effect.",
            file=sys.stderr,
        )


def check_places_of_job(items: Sequence[BulkItem], options: argparse.Namespace) -> None:
    """Refuse an option for images on the map in a job that has none; what is at an address may be one.

    It looks no further than the first that lies there, as a job may have millions of inputs.

    Raises:
        ConfigError: None of the inputs lies on the map.
    """
    if options.write == ["geopackage"]:  # an image off the map then has no output, and its line of errors says why
        return
    wanted = _for_maps(options)
    if wanted and items and not any(item.kind == "address" or on_map(item.source, item.kind) for item in items):
        raise _nowhere(wanted[0], items[0].source)


def _for_maps(options: argparse.Namespace) -> list[str]:
    """The given options that are for images on the map."""
    words = (("--cog", options.cog), ("--write geopackage", "geopackage" in options.write))
    return [word for word, given in words if given]


_TIFF_ADDRESS = re.compile(r"(?i)^[^?#]+\.tiff?([?#]|::|$)")

_IN_A_JOB = " The place of a TIFF at an address is read in jobs only: add --shard 0/1 and --output FOLDER."


def _nowhere(option: str, source: str, more: str = "") -> ConfigError:
    """The error that no input lies on the map, and what could be done."""
    return ConfigError(
        f"{option} is for images on the map, and none of the inputs is one, such as {printable(source)}: a TIFF with a "
        f"CRS and a transform (gdalinfo shows them).{more}"
    )


def job_of(options: argparse.Namespace) -> Job:
    """What the options, checked, say of every input, as plain values."""
    return Job(
        checkpoint=tuple(options.checkpoint) if len(options.checkpoint) > 1 else options.checkpoint[0],
        output=options.output,
        write=tuple(options.write),
        model=options.model,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        batch=options.batch,
        memory=options.memory,
        protocol=options.protocol,
        scales=None if options.scales is None else tuple(options.scales),
        flip=options.flip,
        merge=options.merge,
        tile=options.tile,
        overlap=options.overlap,
        blend=options.blend,
        ids=options.ids,
        alpha=options.alpha,
        simplify=options.simplify,
        cog=options.cog,
        overlay_bands=None if options.overlay_bands is None else tuple(options.overlay_bands.split(",")),
        frames=options.frames,
    )


def check_yolo_photos(items: Sequence[Input], output: str) -> None:
    """Reject links to photos in yolo/images that would stand in place of the photo of another input.

    Raises:
        ConfigError: One would; the message names it.
    """
    from resnest_seg.annotations.writers import yolo_files

    replaced = []
    for item in items:
        if item.kind == "image":
            _, target = yolo_files(Path(output) / "yolo", item.place.as_posix(), Path(item.source))
            is_file = target.is_file() and not target.is_symlink()  # a link of before may be made again
            replaced += [target] if is_file and not target.samefile(item.source) else []
    check_not_inputs(replaced, [item.source for item in items])


def results(item: Input, job: Job, *, overwrite: bool) -> dict[str, Path]:
    """Return the output files of an input, by kind; "video" for the overlay of one.

    Raises:
        ConfigError: A file exists.
    """
    stem = Path(job.output) / item.place
    paths = {
        kind: stem.with_name(stem.name + ending) for kind, ending in endings_of(item.source, item.kind, job).items()
    }
    for path in paths.values():
        check_output_file(path, what=item.shown, overwrite=overwrite)
    return paths


def segment_image(
    predictor: Predictor, item: Input, paths: Mapping[str, Path], job: Job, writer: AnnotationWriter | None, name: str
) -> None:
    """Segment a photo and write its outputs; the writer of annotations gets it by its name."""
    prediction = segmented(predictor, item.source, item.kind, paths, job)
    if prediction is None:
        return
    write_outputs(prediction, paths, job)
    if writer is not None:
        photo = item.source if item.kind == "image" else None
        writer.add(name, prediction.labels, photo=photo, place=item.place.as_posix())


def segment(
    predictor: Predictor,
    items: Sequence[Input],
    outputs: Sequence[Mapping[str, Path]],
    job: Job,
    problems: list[str],
    writer: AnnotationWriter | None = None,
) -> tuple[int, OSError | None]:
    """Segment the inputs one after the other; errors of single inputs are added to the problems.

    Returns:
        The number of segmented inputs; and the error that ended the work, such as a full disk, or None.
    """
    from resnest_seg.inference.inputs import photo_names
    from resnest_seg.io.display import progress_bars

    done, names = 0, photo_names(items)
    with progress_bars() as progress:
        bar = progress.add_task("segmenting", total=len(items))
        for item, paths, name in zip(items, outputs, names, strict=True):
            try:
                if item.kind in ("image", "address"):
                    segment_image(predictor, item, paths, job, writer, name)
                else:
                    segment_video(predictor, item.source, paths["video"], job, endless=item.kind == "camera",
                                  shown=lambda text: progress.update(bar, description=text))  # fmt: skip
                done += 1
            except Exception as error:
                problem = problem_of(error, item.source)
                if problem is None and isinstance(error, OSError):
                    return done, error
                if problem is None:
                    raise
                problems.append(problem)  # the other inputs are still segmented
            progress.update(bar, advance=1)
    return done, None


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every input; returns the exit code."""
    options = parse(argv)
    check(options)
    if options.bulk:
        return run_bulk(options)

    from resnest_seg.inference.inputs import plan
    from resnest_seg.io.images import IMAGE_SUFFIXES

    earlier = list(numbered(PREDICTIONS).values())
    items, problems = plan(
        options.inputs, options.output, suffixes=IMAGE_SUFFIXES, endings=ALL_ENDINGS, earlier=earlier
    )
    return run(items, problems, options)


def run(items: Sequence[Input], problems: list[str], options: argparse.Namespace) -> int:
    """Segment the inputs of a plan; returns the exit code.

    Args:
        items: What is segmented.
        problems: Sentences on inputs that cannot be, which are shown at the end.
        options: The command line, checked.
    """
    job = job_of(options)
    check_places(items, options)
    say_what_is_ignored(items, options)
    outputs = [results(item, job, overwrite=options.overwrite) for item in items]
    check_not_inputs([path for paths in outputs for path in paths.values()], [item.source for item in items])
    if "yolo" in options.annotations:
        check_yolo_photos(items, job.output)
    done, stopped = 0, None
    if items:
        predictor = open_predictor(job)
        print(f"protocol {predictor.protocol.description}", file=sys.stderr)
        with contextlib.ExitStack() as held:
            if options.fresh:  # two starts at a time write into two folders
                job = dataclasses.replace(job, output=str(held.enter_context(claimed(PREDICTIONS))))
                outputs = [results(item, job, overwrite=options.overwrite) for item in items]
            writer = None
            if options.annotations:
                from resnest_seg.annotations.writers import AnnotationWriter

                writer = held.enter_context(AnnotationWriter(job.output, options.annotations, predictor.label_space,
                                                             tolerance=options.write_tolerance))  # fmt: skip
            done, stopped = segment(predictor, items, outputs, job, problems, writer)
            if stopped is not None and writer is not None:
                writer.forget()
    if done:
        print(f"{done} of {len(items)} inputs segmented into {job.output}: {', '.join(job.write)}")
    if problems:
        print("\n  ".join([f"error: {len(problems)} not segmented:", *map(printable, problems)]), file=sys.stderr)
    if stopped is not None:
        raise stopped
    return EXIT_SOME_FAILED if problems else 0


def run_bulk(options: argparse.Namespace) -> int:
    """Segment what is not done of this process's share of the inputs; returns the exit code."""
    from resnest_seg.bulk.engines import finish, run_plain, shown_progress, wait_for_the_others
    from resnest_seg.bulk.job import begin
    from resnest_seg.bulk.listing import list_inputs

    job = job_of(options)
    earlier = list(numbered(PREDICTIONS).values())
    items, problems = list_inputs(options.inputs, output=job.output, path_column=options.path_column, earlier=earlier)
    check_places_of_job(items, options)
    say_what_is_ignored(items, options)
    begin(job, overwrite=options.overwrite)
    try:
        with shown_progress() as report:
            if options.engine == "ray":
                from resnest_seg.bulk.ray_engine import run_ray

                summary = run_ray(job, items, cpus=options.cpus_per_actor, report=report)
            else:
                summary = run_plain(job, items, shard=options.shard, report=report)
    except KeyboardInterrupt:
        print("What is done is written down: the same command goes on with the rest.", file=sys.stderr)
        raise
    code = finish(summary, job, problems, shard=options.shard)
    if options.engine == "torchrun":
        wait_for_the_others(code)
    return code
