"""ONNX models in 8 bits: weights and activations as integers, whose ranges a few training images tell.

Static quantisation of onnxruntime: every convolution gets a scale for each of its channels, every activation one scale
from the values that it takes on the images. What is not quantised (pixels, resizing, argmax) stays in float32. Weights
use seven of the eight bits: processors without VNNI add two products of 8 bits in 16, which overflows silently, so that
a file would be good where it was proven and wrong elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, ExportError

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
