"""Exported models without torch: NumPy, OpenCV and the file's own runtime are all that is imported.

>>> from resnest_seg.runtime import OnnxPredictor
>>> OnnxPredictor("model.onnx")("photo.jpg").save("labels.png")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from resnest_seg.composition import Network, Pixels, crop, score_blocks
from resnest_seg.composition import probabilities as array_probabilities
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.exported import ExportedModel, open_exported
from resnest_seg.photos import as_pixels
from resnest_seg.prediction import Prediction
from resnest_seg.protocols import Protocol, Window, with_tiles
from resnest_seg.protocols import protocol as named_protocol

EXPORTED_MEMORY = 4 << 30
"""Default of the bytes that scores and logits may take: those of 7 megapixels in 150 classes."""


class OnnxPredictor:
    """Labels photos with an exported model, as `resnest_seg.predictor.Predictor` does with a checkpoint.

    Photos are read, shown to the model, and written as there. Calls from several threads at once are fine.

    Args:
        path: A file of `tools/export_seg.py`: .onnx, or .xml, which needs OpenVINO (or .pt2, which needs torch).
        device: "auto", "cpu", or what `resnest_seg.exported.open_exported` knows beside.
        protocol: An inference protocol or its name, see `resnest_seg.protocols`.
        tile: Largest edge in pixels of windows of one size that go through the model one after the other, blended
            where they overlap; None shows views as the protocol does.
        overlap: Pixels that neighbouring tiles share; None is an eighth of the tile.
        batch: Windows a call of the model; None chooses.
        memory: Bytes that scores and logits may take, see `resnest_seg.composition`; what needs more is refused.
        threads: Of the runtime, for one call; None leaves them to it.

    Attributes:
        model: The opened file.
        label_space: The classes.
        protocol: The protocol.

    Raises:
        CheckpointError: No such file, a damaged or foreign one, or a model that is not for photos.
        ConfigError: The runtime is not installed, or the file cannot be used by this protocol.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        protocol: str | Protocol = "whole",
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        memory: int = EXPORTED_MEMORY,
        threads: int | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise ConfigError(f"a batch must have at least 1 image, not {batch}.")
        self.model = open_exported(path, device=device, threads=threads)
        info = self.model.info
        self.label_space, self.memory = info.label_space, memory
        named = protocol if isinstance(protocol, Protocol) else named_protocol(protocol, setting=info.setting)
        self.protocol = with_tiles(named, tile, overlap)
        check_protocol(self.model, self.protocol)
        self.network = Network(
            logits_fn_of(self.model),
            len(info.label_space),
            stride=info.output_stride,
            align_corners=info.align_corners,
            batch=batch,
        )

    @overload
    def __call__(self, image: list[Any]) -> list[Prediction]: ...
    @overload
    def __call__(self, image: Any) -> Prediction: ...
    def __call__(self, image: Any) -> Prediction | list[Prediction]:
        """Label one photo at its own size, or several.

        Args:
            image: A file, an RGB array uint8 [H, W, 3], or a PIL image; or a list of such.

        Raises:
            DatasetError: A file cannot be read.
            ConfigError: An array has another shape or type, or scores would take more than the memory.
        """
        if isinstance(image, list):
            return [self._predict(photo) for photo in image]
        return self._predict(image)

    def _predict(self, image: Any) -> Prediction:
        pixels = as_pixels(image)
        return Prediction(pixels, self.labels(pixels), self.label_space, _Again(self, pixels))

    def labels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Train ids, uint8 [H, W], of an RGB image uint8 [H, W, 3]."""
        image = pixels.transpose(2, 0, 1)
        if self.model.info.output == "labels":
            return labels_of(self.model, image)
        found = np.empty(pixels.shape[:2], np.uint8)
        for rows, columns, scores in score_blocks(self.network, image, self.protocol, memory=self.memory):
            found[rows, columns] = scores.argmax(axis=0)
        return found

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 [K, H, W], of an RGB image uint8 [H, W, 3].

        Raises:
            ConfigError: The file gives labels only.
        """
        image = pixels.transpose(2, 0, 1)
        if self.model.info.output == "labels":
            raise no_scores(self.model)
        found = np.empty((self.network.classes, *pixels.shape[:2]), np.float32)
        for rows, columns, scores in score_blocks(self.network, image, self.protocol, memory=self.memory):
            found[:, rows, columns] = array_probabilities(scores, self.protocol.merge)
        return found


@dataclasses.dataclass(frozen=True)
class _Again:
    """Runs a model again on a photo."""

    predictor: OnnxPredictor
    pixels: NDArray[np.uint8]

    def __call__(self) -> NDArray[np.float32]:
        return self.predictor.scores(self.pixels)


def check_protocol(model: ExportedModel, protocol: Protocol) -> None:
    """Refuse a protocol for which an exported file does not give enough.

    Raises:
        CheckpointError: The model is not for photos.
        ConfigError: Says which form of the file would do.
    """
    info = model.info
    if info.channels != 3:
        raise CheckpointError(f"{model.path} is for images of {info.channels} channels, and photos have 3.")
    plain = protocol.scales == (1.0,) and not protocol.flip and protocol.window is None and protocol.resize == "image"
    if info.output == "labels" and not plain:
        raise ConfigError(
            f"{model.path} gives labels only, and protocol {protocol.name} has scores to merge. Use protocol whole "
            "without tiles, scales and flip, or export the model again with logits (--result logits)."
        )
    if info.output == "softmax" and protocol.merge == "exp":
        raise ConfigError(
            f"{model.path} gives probabilities, and protocol {protocol.name} merges exponentials of logits. "
            "Export the model again with logits (--result logits)."
        )
    if info.pixels == "uint8" and protocol.resize in ("tensor", "long_edge"):
        raise ConfigError(
            f"{model.path} takes pixels that are whole numbers (uint8), and protocol {protocol.name} resizes images to "
            "fractions of grey levels. Export the model again with float32 pixels (--pixels float32)."
        )


def no_scores(model: ExportedModel) -> ConfigError:
    """The error of who asks a file that gives labels for scores."""
    return ConfigError(
        f"{model.path} gives labels only, no scores. Export the model again with logits (--result logits)."
    )


def logits_fn_of(model: ExportedModel) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """An exported file as a function from images [N, 3, H, W], uint8 or float32, to logits [N, K, H, W].

    Logarithms stand for logits where the file gives probabilities: they differ by the same number for all classes of a
    pixel, which neither a softmax nor a best class sees, be it after means or bilinear resizing. The function raises a
    `CheckpointError` if logits are no finite numbers.
    """

    def logits_fn(images: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model(_laid_out(model, images))
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"the outputs of {model.path} are not all finite numbers (NaN or infinity): its weights are damaged, "
                f"or they overflow in its precision, {model.info.precision}. Export it again, in float32."
            )
        if model.info.output == "softmax":
            found = np.log(np.maximum(found, np.finfo(np.float32).tiny))
        return found

    return logits_fn


def labels_of(model: ExportedModel, image: Pixels) -> NDArray[np.uint8]:
    """Train ids, uint8 [H, W], of an image [3, H, W] by a file that gives labels.

    As by protocol whole, the image is padded with black to multiples of the output stride.
    """
    (window,) = Protocol(padding="stride").windows(*image.shape[1:], stride=model.info.output_stride)
    padded = crop(image, Window(*window))[None]
    labels = model(_laid_out(model, padded))[0, : image.shape[1], : image.shape[2]]
    return np.ascontiguousarray(labels, dtype=np.uint8)


def _laid_out(model: ExportedModel, images: NDArray[Any]) -> NDArray[Any]:
    return images.transpose(0, 2, 3, 1) if model.info.layout == "nhwc" else images
