"""`Predictor` and `OnnxPredictor`: from a checkpoint or an exported file to the labels of a photo.

Exported ONNX files need NumPy, OpenCV and onnxruntime only; torch is imported where a torch model is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.backends import Block, FileModel, Model, choose_device, model_of, open_model
from resnest_seg.inference.exported import (
    EXPORTED_MEMORY,
    check_protocol,
    labels_of,
    logits_fn_of,
    no_scores,
    open_exported,
)
from resnest_seg.inference.numpy_engine import Network, score_blocks
from resnest_seg.inference.numpy_engine import probabilities as array_probabilities
from resnest_seg.inference.prediction import Prediction
from resnest_seg.inference.protocols import Protocol, with_tiles
from resnest_seg.inference.protocols import protocol as named_protocol
from resnest_seg.inference.torch_engine import probabilities
from resnest_seg.io.images import as_pixels
from resnest_seg.io.large_images import LargeImage, LargeLabels, preview
from resnest_seg.io.visualize import overlay, with_legend, write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.segmenter import Segmenter

Photo = str | Path | NDArray[np.uint8] | Image.Image
"""What can be labelled: a file, an RGB array uint8 [H, W, 3], or a PIL image."""


class Predictor:
    """Labels photos with a model, in memory that is bounded for photos of any size.

    Args:
        model: A model with a label space, as `load_checkpoint` returns it, which is moved to the device; or a `Model`
            of `resnest_seg.inference.backends.open_model`, which runs as it was opened.
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1".
        protocol: An inference protocol or its name, see `resnest_seg.inference.protocols`.
        tile: Largest edge in pixels of windows of one size that go through the model one after the other, blended
            where they overlap; None shows views as the protocol does.
        overlap: Pixels that neighbouring tiles share; None is an eighth of the tile.
        precision: "fp32", "bf16" or "fp16".
        compiled: Use `torch.compile`: slow at first, for every new size of images, and then faster.
        batch: Images or tiles a call of the model; None chooses.
        memory: Bytes that scores may take; None is 1 GiB, or 4 for an exported file, whose logits are large.
        fuse: Fold batch norms into convolutions, in the given model: faster, and the same numbers but for rounding.

    Raises:
        ConfigError: Unknown protocol or precision, a tile that makes no sense, a device that is not there, or what an
            exported file cannot do.
        CheckpointError: The model does not know its classes, or cannot segment photos.
    """

    def __init__(
        self,
        model: Segmenter | Model,
        *,
        device: str = "auto",
        protocol: str | Protocol = "whole",
        tile: int | None = None,
        overlap: int | None = None,
        precision: str = "fp32",
        compiled: bool = False,
        batch: int | None = None,
        memory: int | None = None,
        fuse: bool = False,
    ) -> None:
        if isinstance(model, Segmenter):
            _check_photos(model.config.model.in_channels, model.label_space)
            model = model.to(choose_device(device)).eval()
            if fuse:
                model.fuse()
            model = model_of(model, precision=precision, compiled=compiled, batch=batch)
        elif (device, precision, compiled, batch) != ("auto", "fp32", False, None):
            raise ConfigError("device, precision, compiled and batch are for open_model, which opened this model.")
        self.model = model
        self.label_space = _check_photos(model.channels, model.label_space)
        self.device, self.memory = model.device, memory
        self.protocol = with_tiles(model.protocol(protocol), tile, overlap)
        model.check(self.protocol)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        protocol: str | Protocol = "whole",
        tile: int | None = None,
        overlap: int | None = None,
        precision: str = "fp32",
        compiled: bool = False,
        batch: int | None = None,
        memory: int | None = None,
        fuse: bool = True,
    ) -> Predictor:
        """Open a checkpoint file, a run folder, a published checkpoint or an exported file; see the class.

        Args:
            path: See `resnest_seg.inference.backends.open_model`.
            device: See the class, as for the others.
            protocol: See the class.
            tile: See the class.
            overlap: See the class.
            precision: See the class.
            compiled: See the class.
            batch: See the class.
            memory: See the class.
            fuse: See the class.
        """
        model = open_model(path, device=device, precision=precision, compiled=compiled, batch=batch, fuse=fuse)
        return cls(model, protocol=protocol, tile=tile, overlap=overlap, memory=memory)

    @overload
    def __call__(self, image: Photo) -> Prediction: ...
    @overload
    def __call__(self, image: list[Any]) -> list[Prediction]: ...
    @torch.inference_mode()
    def __call__(self, image: Photo | list[Any]) -> Prediction | list[Prediction]:
        """Label one photo at its own size, or several; those of one size share calls of the model.

        Args:
            image: A file, a PIL image, or an RGB array uint8 [H, W, 3]; or a list of such.

        Raises:
            DatasetError: A file cannot be read.
            ConfigError: An array has another shape or type.
        """
        if not isinstance(image, list):
            return self._label([as_pixels(image)])[0]
        return self._label([as_pixels(photo) for photo in image])

    def _label(self, photos: list[NDArray[np.uint8]]) -> list[Prediction]:
        tensors = (torch.from_numpy(pixels).permute(2, 0, 1).to(self.device) for pixels in photos)
        found = []
        images = self.model.batch_blocks(tensors, self.protocol, memory=self.memory)
        for pixels, blocks in zip(photos, images, strict=True):
            labels = torch.empty(pixels.shape[:2], dtype=torch.uint8, device=self.device)
            for rows, columns, scores in blocks:
                labels[rows, columns] = scores.argmax(dim=0).to(torch.uint8)
            found.append(Prediction(pixels, labels.cpu().numpy(), self.label_space, _Again(self, pixels)))
        return found

    @torch.inference_mode()
    def segment_file(
        self,
        photo: str | Path,
        path: str | Path,
        *,
        ids: str = "raw",
        overlay_path: str | Path | None = None,
        alpha: float = 0.5,
    ) -> None:
        """Label a photo that is too large for memory: read by windows, its labels written by rows.

        Args:
            photo: A JPEG, PNG or TIFF file, see `resnest_seg.io.large_images`.
            path: Where the labels go, .png or .tif.
            ids: "raw" or "train", see `resnest_seg.io.visualize.write_labels`.
            overlay_path: Where an overlay with a legend goes, of at most 2048 pixels a side; None draws none.
            alpha: Opacity of the overlay, 0..1.

        Raises:
            DatasetError: The file cannot be read by windows.
            ConfigError: The protocol needs the whole image: it has no tiles, or scales.
        """
        if self.protocol.window is None or self.protocol.scales != (1.0,) or self.protocol.resize != "image":
            raise ConfigError(
                f"{photo} is too large for protocol {self.protocol.name}, which needs all of it at once. Use tiles at "
                "the image's own size: tile=1024 (--tile 1024) with protocol whole or slide."
            )
        with LargeImage(photo) as image:
            _, height, width = image.shape
            step = max(-(-max(height, width) // 2048), 1)
            small = []
            with LargeLabels(path, height, width, self.label_space, ids=ids) as file:
                for first, labels in _whole_rows(self.model.blocks(image, self.protocol, memory=self.memory), width):
                    file.write(first, labels)
                    small.append(labels[-first % step :: step, ::step].copy())  # a view would keep all rows
        if overlay_path is not None:
            rough = np.vstack(small)
            picture = preview(photo, longest=max(rough.shape))
            height, width = picture.shape[:2]
            rough = cv2.resize(rough, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
            blended = overlay(picture, rough, self.label_space, alpha=alpha)
            write_png(overlay_path, with_legend(blended, rough, self.label_space))

    @torch.inference_mode()
    def scores(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Class probabilities of an RGB image uint8 [H, W, 3]: float32 [K, H, W], on the predictor's device.

        Raises:
            ConfigError: The model is an exported file that gives labels only.
        """
        if isinstance(self.model, FileModel) and not self.model.scored:
            raise no_scores(self.model.file)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
        found = torch.empty((len(self.label_space), *pixels.shape[:2]), device=self.device)
        for rows, columns, scores in self.model.blocks(tensor, self.protocol, memory=self.memory):
            found[:, rows, columns] = probabilities(scores, self.protocol.merge)
        return found


@dataclasses.dataclass(frozen=True)
class _Again:
    """Runs a model again on a photo."""

    predictor: Predictor
    pixels: NDArray[np.uint8]

    def __call__(self) -> NDArray[np.float32]:
        return self.predictor.scores(self.pixels).cpu().numpy()


def _check_photos(channels: int, label_space: LabelSpace | None) -> LabelSpace:
    """The label space of a model that can segment photos."""
    if channels != 3:
        raise CheckpointError(f"the model is for images of {channels} channels, and photos have 3.")
    if label_space is None:
        raise CheckpointError("the model has no label space: set segmenter.label_space, or load a checkpoint.")
    return label_space


def _whole_rows(blocks: Iterable[Block], width: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Blocks as (first row, labels of whole rows [r, W]), from the top down."""
    waiting: dict[int, NDArray[np.uint8]] = {}
    lacking: dict[int, int] = {}
    following = 0
    for rows, columns, scores in blocks:
        labels = scores.argmax(dim=0).to("cpu", torch.uint8).numpy()
        if rows.start not in waiting:
            waiting[rows.start] = np.empty((len(labels), width), np.uint8)
            lacking[rows.start] = width
        waiting[rows.start][:, columns] = labels
        lacking[rows.start] -= labels.shape[1]
        while lacking.get(following) == 0:
            whole = waiting.pop(following)
            del lacking[following]
            yield following, whole
            following += len(whole)


class OnnxPredictor:
    """Labels photos with an exported model, as `resnest_seg.inference.predictor.Predictor` does with a checkpoint.

    Photos are read, shown to the model, and written as there. Calls from several threads at once are fine.

    Args:
        path: A file of `tools/export_seg.py`: .onnx, or .xml, which needs OpenVINO (or .pt2, which needs torch).
        device: "auto", "cpu", or what `resnest_seg.inference.exported.open_exported` knows beside.
        protocol: An inference protocol or its name, see `resnest_seg.inference.protocols`.
        tile: Largest edge in pixels of windows of one size that go through the model one after the other, blended
            where they overlap; None shows views as the protocol does.
        overlap: Pixels that neighbouring tiles share; None is an eighth of the tile.
        batch: Windows a call of the model; None chooses.
        memory: Bytes that scores and logits may take, see `numpy_engine`; what needs more is refused.
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
        return Prediction(pixels, self.labels(pixels), self.label_space, _FileAgain(self, pixels))

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
class _FileAgain:
    """Runs a model again on a photo."""

    predictor: OnnxPredictor
    pixels: NDArray[np.uint8]

    def __call__(self) -> NDArray[np.float32]:
        return self.predictor.scores(self.pixels)
