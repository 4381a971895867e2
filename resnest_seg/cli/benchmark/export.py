"""One network through every runtime: torch eager, fused and compiled, onnxruntime in 32 and 8 bits, OpenVINO."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.cli.benchmark.infer import ours, photos
from resnest_seg.cli.benchmark.measuring import interleave, spread
from resnest_seg.cli.benchmark.options import add_network, check_network, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnest_seg.models.segmenter import Segmenter

    Run = Callable[[], NDArray[np.uint8]]

PEERS = ("onnxruntime", "int8", "openvino")
"""Runtimes and forms beside torch's eager and fused."""

CALIBRATION = 4
"""Drawn scenes that the 8-bit ranges come from: enough to time it, not to judge it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_network(parser, size=(480, 480), batch=1, precisions=(), peers=PEERS)
    parser.set_defaults(precision="fp32")


def in_torch(options: argparse.Namespace) -> dict[str, Run]:
    """Ours by a `Predictor`."""
    import numpy as np

    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.labels import LabelSpace

    found: dict[str, Run] = {}
    images = photos(options)
    ways = {"torch, eager": (False, False), "torch, fused": (True, False)}
    if options.compile:
        ways["torch, fused, compiled"] = (True, True)
    for name, (fuse, compiled) in ways.items():
        model = ours(options)
        model.label_space = LabelSpace.of("ade20k")
        predictor = Predictor(model, device=options.device, fuse=fuse, compiled=compiled, batch=options.batch)
        found[name] = lambda run=predictor: np.stack([one.labels for one in run(list(images))])  # type: ignore[misc]
    return found


def pixels_of(model: Segmenter) -> str:
    """The type of pixels that a model's files take: float32 holds the units of any bands."""
    return "uint8" if model.config.data.bands is None else "float32"


def exported(
    model: Segmenter, runtimes: Sequence[str], folder: Path, *, calibration: Sequence[NDArray[Any]]
) -> dict[str, Path]:
    """Write files that give labels, for runtimes out of `PEERS`; whoever measures them compares what they give.

    They are all made of one file, which is written into the folder by the first call.
    """
    from resnest_seg.export.export import write_openvino
    from resnest_seg.export.graph import ExportOptions, info_of
    from resnest_seg.export.onnx import write_int8, write_onnx

    paths, plain = {}, folder / "model.onnx"
    info = info_of(model, ExportOptions(pixels=pixels_of(model), output="labels"))
    if not plain.exists():
        write_onnx(model, info, plain, ())
    if "onnxruntime" in runtimes:
        paths["onnxruntime"] = plain
    if "int8" in runtimes:
        paths["onnxruntime, int8"] = folder / "int8.onnx"
        write_int8(plain, dataclasses.replace(info, precision="int8"), paths["onnxruntime, int8"], calibration)
    if "openvino" in runtimes and importlib.util.find_spec("openvino") is not None:
        paths["OpenVINO"] = folder / "model.xml"
        write_openvino(plain, info, paths["OpenVINO"])
    return paths


def stride_of(model: Segmenter) -> int:
    """What sides of images are padded to multiples of before a model gets them: one that predicts masks pads itself."""
    return 1 if model.predicts_masks else model.output_stride


def padded(images: Sequence[NDArray[Any]], model: Segmenter) -> list[NDArray[Any]]:
    """Images that grew right and below to multiples of the output stride, as the protocol whole gives them.

    By black, and by their means where a model takes bands.
    """
    import numpy as np

    stride, data = stride_of(model), model.config.data
    fill = 0 if data.bands is None else np.array(data.pixel_mean or model.pixel_mean.flatten().tolist())
    found = []
    for image in images:
        height, width, channels = image.shape
        canvas = np.empty((height + -height % stride, width + -width % stride, channels), image.dtype)
        canvas[:] = fill
        canvas[:height, :width] = image
        found.append(canvas)
    return found


def opened(path: Path, images: Sequence[NDArray[Any]], *, device: str, threads: int | None = None) -> Run:
    """A file of labels in its runtime, called on images of one size."""
    import numpy as np

    from resnest_seg.inference.exported import open_exported

    batch = np.ascontiguousarray(np.stack(list(images)).transpose(0, 3, 1, 2))
    model = open_exported(path, device=device, threads=threads)
    batch = batch.astype(model.info.pixels)  # here, or every call would convert it
    return lambda: model(batch)


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a runtime, torch eager first; `same_labels` is the share that agrees with it."""
    check_network(options)
    require(("onnx", "onnxruntime", "onnxscript"), instead="pip install 'resnest-seg[export]'")
    with tempfile.TemporaryDirectory() as folder:
        runtimes = [name for name in options.peers if name != "openvino" or options.device == "cpu"]
        scenes = photos(argparse.Namespace(size=options.size, batch=CALIBRATION))
        model, (height, width) = ours(options), options.size
        files = exported(model, runtimes, Path(folder), calibration=scenes)
        images = padded(photos(options), model)  # as torch pads them, where sizes are no multiples of the stride
        calls = in_torch(options) | {name: opened(path, images, device=options.device) for name, path in files.items()}
        expected = calls["torch, eager"]()
        agreements = [float((call()[:, :height, :width] == expected).mean()) for call in calls.values()]
        for name, agreement in zip(calls, agreements, strict=True):
            assert agreement > 0.999 or "int8" in name, f"{name}: only {agreement:.4%} of the labels agree"
        times = interleave(list(calls.values()), options.rounds)
    medians = [statistics.median(taken) for taken in times]
    rows = zip(calls, medians, times, agreements, strict=True)
    return [
        {
            "name": name,
            "seconds": median,
            "spread": spread(taken),
            "speed_of_eager": medians[0] / median,
            "same_labels": same,
        }
        for name, median, taken, same in rows
    ]
