"""ONNX files: written by torch's exporter, tidied up, described, checked, and quantised to 8 bits on request.

Static quantisation of onnxruntime: every convolution gets a scale for each of its channels, every activation one scale
from the values that it takes on the calibration images. Pixels, resizing and argmax stay in float32. Weights use seven
of the eight bits: processors without VNNI add two products of 8 bits in 16, which overflows silently, so that a file
would be good where it was proven and wrong elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.export.graph import exportable, first_line, smallest_for_torch, trace
from resnest_seg.inference.exported import KEY, ExportInfo
from resnest_seg.models.segmenter import Segmenter

OPSET = 20
"""The ONNX opset that is written: the default of torch's exporter, which runtimes have read for years."""

LARGEST = 2_000_000_000
"""Bytes that one ONNX file can have."""


def write_onnx(
    segmenter: Segmenter | Sequence[Segmenter], info: ExportInfo, path: Path, calibration: Sequence[NDArray[np.uint8]]
) -> None:
    """Write a model, valid by ONNX's own checker, with its description as metadata.

    Args:
        segmenter: The model, which stays as it is; or several, for their mean.
        info: The options, and what the file will say about itself.
        path: The file; in precision int8 another one is written beside it on the way.
        calibration: For int8: photos, uint8 [H, W, C].

    Raises:
        ExportError: The network cannot be converted or quantised, or has more than 2 GB.
    """

    # Beyond tracing, nothing asks how many pixels a feature map has, so the file takes images of every size.
    program = trace(exportable(segmenter, info), smallest=smallest_for_torch(info))
    try:
        with quiet():
            converted = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=[info.output]
            )
        assert converted is not None
        model = converted.model_proto
    except Exception as error:  # it raises whatever comes up in it
        raise ExportError(
            f"torch.onnx cannot convert this network ({type(error).__name__}: {first_line(error)})."
        ) from error
    if model.ByteSize() > LARGEST:
        raise ExportError(
            f"the model has {model.ByteSize() / 1e9:.1f} GB, and one ONNX file holds 2. Try half precision, or format "
            "torch."
        )
    _tidy(model, info)
    if info.precision != "int8":
        _save_onnx(model, path)
        return
    plain = path.with_name("plain.onnx")
    _save_onnx(model, plain)
    write_int8(plain, info, path, calibration)


def write_int8(plain: Path, info: ExportInfo, path: Path, calibration: Sequence[NDArray[np.uint8]]) -> None:
    """Write the 8-bit form of an ONNX file of ours in float32, valid by ONNX's own checker.

    Args:
        plain: That file.
        info: What the 8-bit file will say about itself.
        path: The 8-bit file.
        calibration: Photos, uint8 [H, W, C].

    Raises:
        ExportError: The network cannot be quantised.
    """
    import onnx

    quantize(plain, path, [_calibration_image(photo, info) for photo in calibration])
    quantized = onnx.load(path)
    _describe(quantized, info)
    _save_onnx(quantized, path)


def _tidy(model: Any, info: ExportInfo) -> None:
    """Name the free dimensions, describe the model, and drop what the exporter notes of this machine's files."""
    height, width = (("height", 1), ("width", 2)) if info.layout == "nhwc" else (("height", 2), ("width", 3))
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[0].dim_param: "batch", dims[height[1]].dim_param: height[0], dims[width[1]].dim_param: width[0]}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
        value.ClearField("metadata_props")
    size = graph.output[0].type.tensor_type.shape.dim  # written out as what it is: the input's
    for dim, name in zip((size[0], size[-2], size[-1]), ("batch", "height", "width"), strict=True):
        dim.Clear()
        dim.dim_param = name
    for part in (*graph.node, *graph.initializer, graph, model):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _describe(model, info)


def _describe(model: Any, info: ExportInfo) -> None:
    """Put the description into a model, as one JSON and, for people who look into it, by the parts most asked for."""
    from onnx import helper

    model.producer_name, model.producer_version = "resnest_seg", info.version
    helper.set_model_props(
        model,
        {
            KEY: info.to_json(),
            "names": json.dumps(info.label_space.names),
            "colors": json.dumps(info.label_space.colors),
            "raw_ids": json.dumps(info.label_space.raw_ids),
            "description": info.description,
            "dataset": info.label_space.name,
        },
    )


def _save_onnx(model: Any, path: Path) -> None:
    import onnx

    onnx.save(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX file is not valid ({first_line(error)}).") from error


def _calibration_image(photo: NDArray[np.uint8], info: ExportInfo) -> NDArray[Any]:
    """The middle of a photo, of the training crop's size, as the graph takes it."""
    (tall, wide), (height, width) = info.setting.crop, photo.shape[:2]
    top, left = max(height - tall, 0) // 2, max(width - wide, 0) // 2
    middle = photo[None, top : top + tall, left : left + wide]
    return (middle if info.layout == "nhwc" else middle.transpose(0, 3, 1, 2)).astype(info.pixels)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context, torch's exporters keep their progress and their deprecations to themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


QUANTIZED = ("Conv", "Relu", "Add", "MaxPool", "AveragePool", "Concat")
"""Kinds of nodes that work on integers."""


def quantize(source: Path, target: Path, images: Sequence[NDArray[Any]]) -> None:
    """Write the 8-bit form of an ONNX model; its metadata come along.

    Args:
        source: The model in float32, with one input "images".
        target: Where the other one goes.
        images: As the model takes them, with N = 1, of any sizes.

    Raises:
        ConfigError: There are no images.
        ExportError: onnxruntime cannot quantise this model.
    """
    if not len(images):
        raise ConfigError("int8 needs images to calibrate with: give some of the training images.")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
            )
        except Exception as error:  # it raises whatever comes up in it
            raise ExportError(f"onnxruntime cannot quantise this model ({type(error).__name__}: {error}).") from error


def reader(images: Sequence[NDArray[Any]]) -> Any:
    """The images, one a call, as onnxruntime's calibration asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        """One image a call, then None."""

        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            """The next image, or None."""
            image = next(self.rest, None)
            return None if image is None else {"images": np.ascontiguousarray(image)}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within this context, onnxruntime's advice about preparing models is not shown: it has been followed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
