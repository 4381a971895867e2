"""Export a model to ONNX, torch (.pt2) or OpenVINO, and verify that the file's predictions equal the model's.

With --format hub: a folder for the Hugging Face hub, weights and a model card, which no runtime has to verify.

python tools/export_seg.py --checkpoint runs/my_run --output model.onnx
python tools/export_seg.py --checkpoint runs/my_run --format onnx torch openvino --result labels --dataset camvid
python tools/export_seg.py --checkpoint runs/my_run --int8 --calibration-images 64 --output model_int8.onnx
python tools/export_seg.py --checkpoint runs/first --checkpoint runs/second --output mean.onnx    # one file of both
python tools/export_seg.py --checkpoint runs/my_run --format hub --report runs/my_run/eval_camvid_test.json

A file that disagrees with its source is not kept, and the exit code is 1. The measured agreement is printed and saved
in NAME.report.json beside the file. Several formats are written to one name with several suffixes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.cli.parsing.options import (
    Parser,
    add_checkpoint,
    add_dataset,
    add_model_option,
    open_dataset,
)
from resnest_seg.config import COUNT
from resnest_seg.config_types import check_option
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError, ExportError, command
from resnest_seg.files import atomic_write, check_output_file, check_output_folder
from resnest_seg.inference.ensemble import checkpoints_of
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.models.segmenter import Segmenter

EXIT_NOT_PROVEN = 1
"""Exit code if a file disagreed with its source, or could not be made."""

HUB, CARD = "hub", "README.md"
"""The format of a folder for the hub, which is its default name, too; its card."""

FOR_HUB = ("--checkpoint", "--model", "--format", "--output", "--report", "--overwrite")
"""The options that a folder for the hub takes."""

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
"""Format -> suffix of its file."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("export", description=__doc__)
    add_checkpoint(parser, exported=False, several=True)
    add_model_option(parser)
    parser.add_argument("--format", nargs="+", choices=(*FORMATS, HUB), help="one or several (default: by the suffix "
                        "of --output, or onnx); or hub: a folder with weights and a model card")  # fmt: skip
    parser.add_argument("--output", help="the file; its suffix follows the format (default: model.* beside the "
                        "checkpoint; hub/ for --format hub)")  # fmt: skip
    parser.add_argument("--report", metavar="JSON", help="for --format hub: a report of eval, whose figures the card "
                        "shows (default: val_report.json of the run folder)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    what = parser.add_argument_group("input and output of the file")
    what.add_argument("--pixels", choices=("uint8", "uint16", "float32"), help="type of the images: uint8 or float32 "
                      "for RGB 0..255, any that holds the values for other bands (default: uint8, of other bands "
                      "float32)")  # fmt: skip
    what.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw", help="default: nchw")
    what.add_argument("--result", choices=("logits", "softmax", "sigmoid", "labels"), default="logits",
                      help="sigmoid is for binary and multi-label models (default: logits)")  # fmt: skip
    how = parser.add_argument_group("precision")
    how.add_argument("--half", action="store_true", help="weights and arithmetic in half precision")
    how.add_argument("--int8", action="store_true", help="8-bit integers, calibrated on training images; not for torch")
    how.add_argument("--calibration-images", type=int, metavar="N", help="number, for --int8 (default: 32)")
    how.add_argument("--aoti", action="store_true", help="compile torch's file by AOTInductor; needs a C++ compiler")
    proof = parser.add_argument_group("images for the verification (default: drawn street scenes)")
    proof.add_argument("--images", nargs="+", metavar="PHOTO", help="photos, folders or patterns in quotes")
    add_dataset(proof, default="none, so no mean IoU; with --int8, the one trained on")
    proof.add_argument("--limit", type=int, help="use the first LIMIT images of the data set only")
    options = parser.read(argv)
    options.changed = parser.changed(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Reject contradictory options, before anything is loaded.

    Raises:
        ConfigError: Options contradict each other.
    """
    options.given = options.checkpoint
    options.checkpoint = checkpoints_of(options.given)
    files = [checkpoint for checkpoint in options.checkpoint if is_exported(checkpoint)]
    if len(options.checkpoint) > 1 and (files or HUB in (options.format or ())):
        what = f"{files[0]} is an exported file" if files else "--format hub writes the weights of one model"
        raise ConfigError(
            f"{what}, and the file of several models' mean is made of their checkpoints: leave it out. Exported files "
            "are taken together by predict, eval and serve (--checkpoint A --checkpoint B)."
        )
    check_option("--calibration-images", options.calibration_images, 1, 65536)
    check_option("--limit", options.limit, 1, COUNT)
    if options.half and options.int8:
        raise ConfigError("--half and --int8 are two precisions: choose one.")
    endings = {suffix: name for name, suffix in FORMATS.items()}
    if options.format is None:
        ending = Path(options.output).suffix if options.output else ".onnx"
        if ending not in endings:
            raise ConfigError(f"--output {options.output} has no suffix of a format: {', '.join(endings)}.")
        options.format = [endings[ending]]
    options.format = list(dict.fromkeys(options.format))
    if HUB in options.format:
        given = [option for option in options.changed if option not in FOR_HUB]
        if given or len(options.format) > 1:
            words = ", ".join(given or [name for name in options.format if name != HUB])
            raise ConfigError(f"--format hub writes the weights as they are, into a folder: leave out {words}.")
    elif options.report is not None:
        raise ConfigError("--report is for --format hub.")
    elif options.dataset is None and not options.int8:
        given = [word for word in options.changed if word in ("--split", "--limit") or word.startswith("--data.")]
        if given:
            raise ConfigError(f"{', '.join(given)}: which data set to verify with is missing: give --dataset as well.")
    if options.calibration_images is not None and not options.int8:
        raise ConfigError("--calibration-images is for --int8: give that as well.")
    options.calibration_images = options.calibration_images or 32
    if options.int8 and "torch" in options.format:
        raise ConfigError("--int8 is for formats onnx and openvino, not for torch.")
    if options.aoti and "torch" not in options.format:
        raise ConfigError("--aoti is about format torch: add --format torch.")


def targets(options: argparse.Namespace) -> dict[str, Path]:
    """Choose and check the output files, format -> path, before a model is loaded.

    Raises:
        ConfigError: A file exists, or cannot be written.
    """
    source = Path(options.given[0])  # a published one is in a shared folder, and several in none
    folder = source if source.is_dir() else source.parent if source.exists() else Path()
    folder = folder if len(options.given) == 1 else Path()
    name = Path(options.output) if options.output else folder / "model"
    if options.output and name.is_dir():
        raise ConfigError(f"--output {name} is a folder: name a file in it, such as {name / 'model.onnx'}.")
    stem = name.with_suffix("") if name.suffix in FORMATS.values() else name
    paths = {kind: stem.with_name(stem.name + FORMATS[kind]) for kind in options.format}
    weights = [path.with_suffix(".bin") for kind, path in paths.items() if kind == "openvino"]
    for path in (*paths.values(), *weights):
        check_output_file(path, what="file", overwrite=options.overwrite)
    return paths


def to_hub(options: argparse.Namespace) -> int:
    """Write the folder for the hub; returns the exit code.

    Raises:
        ConfigError: The folder holds files already, or the report is of other classes.
    """
    from resnest_seg.evaluation.image_scores import VALIDATION_REPORT
    from resnest_seg.evaluation.report import EvalReport
    from resnest_seg.models.checkpoint import BEST, Checkpoint, find_checkpoint
    from resnest_seg.models.loading import load_checkpoint
    from resnest_seg.models.model_card import model_card
    from resnest_seg.training.run_folder import SHEET

    (checkpoint,) = options.checkpoint
    source = Path(checkpoint)
    folder = Path(options.output or (source if source.is_dir() else source.parent if source.exists() else Path()) / HUB)
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not options.overwrite:
        raise ConfigError(f"{folder} already holds files. Choose another --output, or pass --overwrite.")
    file = find_checkpoint(source) if source.exists() else None
    run = file.parent if file is not None and file.name == BEST else None
    path = options.report or (
        run / VALIDATION_REPORT if run is not None and (run / VALIDATION_REPORT).is_file() else None
    )
    report = None if path is None else EvalReport.load(path)
    segmenter = load_checkpoint(checkpoint, into=own_network(options.model))
    # Photos of other data sets are not ours to publish.
    sheet = run / SHEET if run is not None and segmenter.config.data.dataset == "synthetic" else None
    picture = SHEET if sheet is not None and sheet.is_file() else None
    checkpoint = segmenter.to_checkpoint()
    if run is not None and file is not None:
        checkpoint = dataclasses.replace(checkpoint, origin=Checkpoint.load(file, training=False).origin)
    card = model_card(checkpoint, description=segmenter.description, report=report, picture=picture)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)  # which --overwrite replaces, also where somebody edited it
    segmenter.save_pretrained(folder)
    with atomic_write(folder / CARD) as temporary:  # replaces a card that names no step and no figures
        temporary.write_text(card, encoding="utf-8")
    if sheet is not None and picture is not None:
        with atomic_write(folder / SHEET) as temporary:
            shutil.copyfile(sheet, temporary)
    figures = "without figures, which --report gives it" if report is None else f"with the figures of {path}"
    print(f"{folder}: weights, config and a card {figures}")
    print(f"Publish it with: hf upload NAME/MODEL {shlex.quote(str(folder))}")
    return 0


def photos(words: Sequence[str], count: int) -> list[NDArray[np.uint8]]:
    """Read at most `count` of the images that the command line names, evenly spread: RGB, uint8 [H, W, 3].

    Raises:
        DatasetError: There are none, or one cannot be read.
    """
    from resnest_seg.inference.inputs import plan
    from resnest_seg.io.images import IMAGE_SUFFIXES, read_image

    items, problems = plan(words, "", suffixes=IMAGE_SUFFIXES)
    if problems:
        raise DatasetError(" ".join(problems))
    paths = [item.source for item in items if item.kind == "image"]
    count = min(count, len(paths))
    return [read_image(paths[index * len(paths) // count]) for index in range(count)]


def datasets(
    options: argparse.Namespace, segmenter: Segmenter
) -> tuple[SegmentationDataset | None, SegmentationDataset | None]:
    """Open the data sets for the comparison and for the calibration; None if not requested.

    Raises:
        ConfigError: int8 has neither a data set nor photos for the calibration.
    """
    from resnest_seg.data.build import DATASETS, say_layout

    data = segmenter.config.data
    name = options.dataset or (data.dataset if options.int8 and data.dataset in DATASETS else None)
    if name is None:
        if options.int8 and not options.images:
            raise ConfigError(
                f"--int8 needs images to calibrate with, and for the model's data set {data.dataset!r} there is no "
                "loader here. Name a data set with --dataset, or photos with --images."
            )
        return None, None
    space, split = segmenter.label_space, options.split or segmenter.config.eval.split
    scored = open_dataset(options, data, space, name=name, split=split)
    say_layout(scored)
    return scored, open_dataset(options, data, space, name=name, split="train") if options.int8 else None


def calibration(dataset: SegmentationDataset | None, count: int, given: list[Any]) -> list[NDArray[np.uint8]]:
    """Return the images for the calibration: `count`, evenly spread over the data set, or the given photos."""
    if dataset is None:
        return given[:count]
    count = min(count, len(dataset))
    return [dataset[index * len(dataset) // count].image for index in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Export the model; returns the exit code."""
    options = parse(argv)
    check(options)
    if HUB in options.format:
        return to_hub(options)

    from resnest_seg.export.export import EXPORTERS, report_path
    from resnest_seg.export.verify import PHOTOS, Evidence
    from resnest_seg.io.display import console, progress_bars
    from resnest_seg.models.loading import load_checkpoint

    files = targets(options)
    members = [load_checkpoint(checkpoint, into=own_network(options.model)) for checkpoint in options.checkpoint]
    segmenter = members[0]
    for member in members:
        print(member.load_report, file=sys.stderr)
    scored, training = datasets(options, segmenter)
    count = max(PHOTOS, options.calibration_images if options.int8 else 0)
    given = photos(options.images, count) if options.images else []
    common: dict[str, Any] = {
        "pixels": options.pixels or ("uint8" if segmenter.config.data.bands is None else "float32"),
        "layout": options.layout,
        "output": options.result,
        "precision": "half" if options.half else "int8" if options.int8 else "float32",
        "evidence": Evidence(photos=given, dataset=scored, limit=options.limit),
    }
    if options.int8:
        common["calibration"] = calibration(training, options.calibration_images, given)
    problems, terminal = [], console()
    with progress_bars(on=console(stderr=True)) as progress:
        for kind, path in files.items():
            total = min(len(scored), options.limit or len(scored)) if scored is not None else None
            bar = progress.add_task(f"{kind}: {path}", total=total)
            extra = {"aoti": options.aoti} if kind == "torch" else {}
            try:
                proof = EXPORTERS[kind](
                    members, path, on_image=lambda bar=bar: progress.update(bar, advance=1), **common, **extra
                )
            except ExportError as error:  # the other formats are still exported
                problems.append(str(error))
            else:
                terminal.print(proof.table())
                print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, verified in {report_path(path)}")
            progress.remove_task(bar)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_NOT_PROVEN if problems else 0


def for_serving(checkpoint: str, network: str | None = None) -> int:
    """Export a checkpoint to NAME.serve.onnx beside its file, unless that has been done, and print the file's path.

    Args:
        checkpoint: A run folder, a checkpoint file, or the name of a published one.
        network: FILE.py:FUNCTION that builds its network, if that is one's own.

    Returns:
        The exit code.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{checkpoint} is no exported file, and to export it needs torch, which is not installed: pip install "
            "'resnest-seg[export]'. Or export it elsewhere, and serve the file: --checkpoint model.onnx."
        )

    import resnest_seg
    from resnest_seg.files import sha256
    from resnest_seg.inference.exported import open_exported
    from resnest_seg.models.checkpoint import find_checkpoint
    from resnest_seg.models.published_weights import published

    entry = None if Path(checkpoint).exists() else published(checkpoint)
    source = find_checkpoint(checkpoint) if entry is None else entry.fetch()
    output = source.with_name(f"{source.stem}.serve.onnx")
    with contextlib.suppress(CheckpointError):  # there is none, or it is damaged
        info = open_exported(output).info
        if (info.source_sha256, info.version) == (sha256(source), resnest_seg.__version__):
            print(output)
            return 0
    if not os.access(source.parent, os.W_OK):
        raise ConfigError(
            f"no permission to write {output}. Export it elsewhere, and serve that file: {command('export')} "
            f"--checkpoint {shlex.quote(checkpoint)} --pixels float32 --output model.onnx"
        )
    print(f"exporting {source} to {output}, which is used again as long as the checkpoint is the same", file=sys.stderr)
    words = ["--checkpoint", str(source), "--output", str(output), "--overwrite", "--pixels", "float32"]
    words += [] if network is None else ["--model", network]
    with contextlib.redirect_stdout(sys.stderr):
        code = main(words)
    print(output)
    return code
