"""Suggest which unlabelled photos to label next: those of which the model is unsure, and that differ from each other.

python tools/suggest_photos.py --checkpoint runs/my_run photos/ --count 50
python tools/suggest_photos.py --checkpoint runs/my_run photos/ --labelled mine --output next
python tools/suggest_photos.py --checkpoint runs/my_run photos/ --write labelme     # and pre-annotations to correct

suggestions.csv has rank, path, score and distance, suggestions.txt the paths alone. Photos that cannot be read are
listed at the end; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.bulk.job import ENDINGS
from resnest_seg.bulk.outputs import LARGE, size_of
from resnest_seg.cli import predict
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
from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.files import atomic_write, check_output_file, check_output_folder, claimed, next_free, numbered
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnest_seg.evaluation.acquisition import Choice
    from resnest_seg.inference.inputs import Input
    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.models.segmenter import Segmenter

SUGGESTIONS = "suggestions"
"""The folder that is written to by default, the first name of its series, and the name of the files in it."""

BY = ("margin", "entropy", "random")
"""Values of --by."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("suggest", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="PHOTO", help="unlabelled photos, folders with their subfolders, "
                        "or patterns in quotes")  # fmt: skip
    add_checkpoint(parser, exported=True)
    add_model_option(parser)
    parser.add_argument("--count", type=int, default=50, help="photos to suggest (default: 50)")
    parser.add_argument("--labelled", nargs="+", default=[], metavar="PHOTO", help="photos or folders that are "
                        "labelled already: they are not suggested, nor are photos like them; a folder with images/ and "
                        "masks/ in it means its images")  # fmt: skip
    parser.add_argument("--output", help=f"folder to write to (default: {SUGGESTIONS}, or {SUGGESTIONS}-2, -3 ... if "
                        "that exists)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    how = parser.add_argument_group("choice")
    how.add_argument("--by", choices=BY, default="margin", help="uncertainty of a pixel: margin (of the two highest "
                     "probabilities) or entropy; or random photos, to compare with (default: margin)")  # fmt: skip
    how.add_argument("--top-share", type=float, default=1.0, help="share of an image's pixels, the most uncertain "
                     "ones, over which the mean is taken (default: 1, all)")  # fmt: skip
    how.add_argument("--diversity", action=argparse.BooleanOptionalAction, default=True, help="among the most "
                     "uncertain photos choose those that differ, by the encoder's features (k-centre)")  # fmt: skip
    how.add_argument("--factor", type=float, default=10.0, help="so many times --count photos count as the most "
                     "uncertain ones; more where many are alike (default: 10)")  # fmt: skip
    how.add_argument("--seed", type=int, default=0, help="seed of --by random (default: 0)")
    pre = parser.add_argument_group("pre-annotations of the suggested photos")
    pre.add_argument("--write", nargs="+", choices=tuple(predict.ANNOTATIONS), metavar="FORMAT", default=[],
                     help="write the model's labels as annotations for a tool: coco, labelme, cvat, yolo")  # fmt: skip
    run = parser.add_argument_group("execution")
    add_protocol(run)
    run.add_argument("--tile", type=int, help="largest edge of tiles in pixels: images of any size in bounded memory")
    add_execution(run)
    add_memory(run, what="memory limit of scores", default="1; 4 for exported files")
    return parser.read(argv)


def check(options: argparse.Namespace) -> argparse.Namespace | None:
    """Reject contradictory options, before anything is loaded; returns the options of the pre-annotations, if any.

    Raises:
        ConfigError: An option is out of range, or an output exists.
    """
    check_option("--count", options.count, 1, COUNT)
    check_option("--top-share", options.top_share, 0, 1, above=True)
    check_option("--factor", options.factor, 1, COUNT)
    check_option("--seed", options.seed, 0, 2**63 - 1)
    check_option("--tile", options.tile, 1, 65536)
    check_option("--batch", options.batch, 1, 65536)
    protocol_names(options.protocol)
    words = ["--checkpoint", options.checkpoint, "--protocol", options.protocol, "--device", options.device]
    words += ["--precision", options.precision, *["--compile"] * options.compile, *["--overwrite"] * options.overwrite]
    for name in ("model", "batch", "tile", "memory"):
        words += [f"--{name}={value}"] if (value := getattr(options, name)) is not None else []
    options.memory = None if options.memory is None else memory_bytes(options.memory)
    options.fresh = options.output is None
    options.output = options.output or str(next_free(SUGGESTIONS))
    check_output_folder(options.output)
    for suffix in (".csv", ".txt"):
        check_output_file(Path(options.output) / f"{SUGGESTIONS}{suffix}", what="list", overwrite=options.overwrite)
    if not options.write:
        return None
    annotations = predict.parse([*words, "--write", *options.write, "--output", options.output, "--", "-"])
    predict.check(annotations)
    return annotations


def photos(words: Sequence[str], output: str) -> tuple[list[Input], list[str]]:
    """Resolve words of the command line to photos, each once, and say what is none."""
    from resnest_seg.inference.inputs import plan
    from resnest_seg.io.images import IMAGE_SUFFIXES

    earlier = list(numbered(SUGGESTIONS).values())
    items, problems = plan(
        words, output, suffixes=IMAGE_SUFFIXES, endings=(*ENDINGS.values(), ".json"), earlier=earlier
    )
    fixes = {"address": "is not on this machine: suggest reads photos several times. Copy them into a folder first."}
    fix = "is no photo: suggest takes image files; cut videos into frames first."
    problems += [f"{item.source} {fixes.get(item.kind, fix)}" for item in items if item.kind != "image"]
    found: dict[str, Input] = {}
    for item in items:
        if item.kind == "image":
            found.setdefault(os.path.realpath(item.source), item)
    return list(found.values()), problems


def labelled(options: argparse.Namespace) -> list[Input]:
    """Return the photos of --labelled.

    Raises:
        DatasetError: One is missing: it would be suggested again.
    """
    words = [
        str(Path(word) / "images") if (Path(word) / "images").is_dir() and (Path(word) / "masks").is_dir() else word
        for word in options.labelled
    ]
    items, problems = photos(words, options.output) if words else ([], [])
    if problems:
        raise DatasetError(f"--labelled: {problems[0]}")
    return items


def pixels_of(predictor: Predictor, photo: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read a photo as the model takes it, [H, W, C], and where it has data, [H, W] or None for everywhere."""
    import numpy as np

    from resnest_seg.inference.predictor import images_of

    backend = predictor.backend
    (raster,), *_ = images_of([photo], backend.channels, backend.bands, backend.mean)
    valid = None if raster.valid is None else np.asarray(raster.valid.any(axis=2))
    return raster.pixels, valid


def score(predictor: Predictor, photo: str, options: argparse.Namespace) -> float:
    """Score a photo; with tiles, a large one is read by windows."""
    from resnest_seg.evaluation.acquisition import image_uncertainty
    from resnest_seg.io.large_images import LargeImage
    from resnest_seg.io.raster_windows import LargeBands

    backend = predictor.backend
    how: dict[str, Any] = {"measure": options.by, "top_share": options.top_share, "memory": options.memory}
    height, width = size_of(photo)
    if height * width < LARGE:
        pixels, valid = pixels_of(predictor, photo)
        return image_uncertainty(backend, pixels, predictor.protocol, valid=valid, **how)
    if options.tile is None:
        raise DatasetError(f"{photo} has {height} x {width} pixels: give --tile 1024.")
    with LargeImage(photo) if backend.bands is None else LargeBands(photo, backend.bands) as image:
        return image_uncertainty(backend, image, predictor.protocol, **how)


def features(predictor: Predictor, segmenter: Segmenter, photo: str) -> NDArray[np.float32]:
    """Compute the features of a photo; of a large one those of a smaller copy."""
    from resnest_seg.evaluation.acquisition import FEATURE_SIDE, pooled_features
    from resnest_seg.io.large_images import preview
    from resnest_seg.io.raster_windows import LargeBands

    if math.prod(size_of(photo)) < LARGE:
        return pooled_features(segmenter, pixels_of(predictor, photo)[0])
    if predictor.backend.bands is None:
        return pooled_features(segmenter, preview(photo, longest=FEATURE_SIDE))
    with LargeBands(photo, predictor.backend.bands) as image:
        return pooled_features(segmenter, image.preview(longest=FEATURE_SIDE)[0])


class Work:
    """Calls a function for photos one after the other with a progress bar; those that fail become problems.

    Args:
        problems: Sentences on photos that failed, which are added to.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def each(self, what: str, call: Any, items: Sequence[Input]) -> dict[int, Any]:
        """Return place -> result of `call(path)`, without the photos that failed."""
        import torch

        from resnest_seg.io.display import console, progress_bars

        found: dict[int, Any] = {}
        with progress_bars(on=console(stderr=True)) as progress:
            bar = progress.add_task(what, total=len(items))
            for place, item in enumerate(items):
                try:
                    found[place] = call(item.source)
                except (DatasetError, ConfigError) as error:
                    text = str(error)
                    self.problems.append(text if item.source in text else f"{item.source}: {text}")
                except (MemoryError, torch.OutOfMemoryError):
                    self.problems.append(f"{item.source}: there is not enough memory. Give --tile 512.")
                except OSError as error:
                    self.problems.append(f"{item.source}: {error.strerror or error}.")
                progress.update(bar, advance=1)
        return found


def chosen_from(
    items: Sequence[Input], known: Sequence[Input], options: argparse.Namespace, work: Work
) -> tuple[list[Input], list[Choice]]:
    """Score the photos and choose among those that can be read: these, and the choices by their places."""
    import numpy as np

    from resnest_seg.evaluation.acquisition import choose
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.predictor import Predictor, open_backend
    from resnest_seg.inference.torch_backend import TorchBackend
    from resnest_seg.models.loading import load_checkpoint

    if options.by == "random":
        values = np.random.default_rng(options.seed).random(len(items)).tolist()
        return list(items), choose(values, options.count)
    how = RunOptions(options.device, options.precision, options.compile, options.batch)
    segmenter = None if is_exported(options.checkpoint) else load_checkpoint(
        options.checkpoint, into=own_network(options.model)
    )  # fmt: skip
    backend = open_backend(options.checkpoint, how) if segmenter is None else TorchBackend(segmenter, how)
    backend.check_scores()
    predictor = Predictor(backend, protocol=options.protocol, tile=options.tile, memory=options.memory)
    predictor.check_photos()
    if segmenter is None and options.diversity:
        print(f"note: {options.checkpoint} is an exported file, which gives no features: photos are chosen by "
              "uncertainty alone, and may be alike.", file=sys.stderr)  # fmt: skip
    scores = work.each("scoring", lambda photo: score(predictor, photo, options), items)
    readable = [items[place] for place in scores]
    if segmenter is None or not options.diversity:
        return readable, choose(list(scores.values()), options.count)
    model = segmenter
    near = work.each("labelled photos", lambda photo: features(predictor, model, photo), known)

    def features_of(places: Sequence[int]) -> tuple[Sequence[int], NDArray[np.floating]]:
        some = work.each(
            "comparing", lambda photo: features(predictor, model, photo), [readable[place] for place in places]
        )
        return [places[number] for number in some], np.array(list(some.values()))

    centres = np.array(list(near.values())) if near else None
    return readable, choose(
        list(scores.values()), options.count, features=features_of, centres=centres, factor=options.factor
    )


def write_lists(folder: Path, items: Sequence[Input], choices: Sequence[Choice]) -> None:
    """Write the table and the list of paths."""
    rows = [
        (rank, items[choice.place].source, f"{choice.score:.6f}",
         "" if choice.distance is None else f"{choice.distance:.6f}")
        for rank, choice in enumerate(choices, start=1)
    ]  # fmt: skip
    with (
        atomic_write(folder / f"{SUGGESTIONS}.csv") as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file).writerows([("rank", "path", "score", "distance"), *rows])
    with atomic_write(folder / f"{SUGGESTIONS}.txt") as temporary:
        lines = "".join(path.replace("\n", "\\n") + "\n" for _, path, *_ in rows)  # one line a photo
        temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")


def main(argv: Sequence[str] | None = None) -> int:
    """Suggest photos; returns the exit code."""
    options = parse(argv)
    annotations = check(options)
    items, problems = photos(options.inputs, options.output)
    known = labelled(options)
    files = {os.path.realpath(item.source) for item in known}
    fresh = [item for item in items if os.path.realpath(item.source) not in files]
    if len(fresh) < len(items):
        print(f"{len(items) - len(fresh)} of {len(items)} photos are labelled and left out", file=sys.stderr)
    code = 0
    if fresh:
        readable, choices = chosen_from(fresh, known, options, Work(problems))
        with contextlib.ExitStack() as held:
            if choices and options.fresh:
                options.output = str(held.enter_context(claimed(SUGGESTIONS)))
            if choices:
                write_lists(Path(options.output), readable, choices)
                print(f"{len(choices)} of {len(readable)} photos suggested: "
                      f"{Path(options.output) / SUGGESTIONS}.csv and .txt")  # fmt: skip
            if choices and annotations is not None:
                annotations.output = options.output
                code = predict.run([readable[choice.place] for choice in choices], [], annotations)
    elif items:
        print("all photos are labelled: nothing to suggest", file=sys.stderr)
    if problems:
        print("\n  ".join([f"error: {len(problems)} not scored:", *map(printable, problems)]), file=sys.stderr)
    return predict.EXIT_SOME_FAILED if problems else code
