"""One call from a checkpoint to the labels of a photo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference import MEMORY, probabilities, score_rows, scores
from resnest_seg.large import LargeImage, preview
from resnest_seg.large_labels import LargeLabels
from resnest_seg.photos import as_pixels
from resnest_seg.prediction import Prediction
from resnest_seg.protocols import Protocol, with_tiles
from resnest_seg.running import protocol_of, runner_for
from resnest_seg.segmenter import Segmenter
from resnest_seg.views import preload, views_of
from resnest_seg.visualize import overlay, with_legend, write_png
from resnest_seg.zoo import load_checkpoint

Photo = str | Path | NDArray[np.uint8] | Image.Image
"""What can be labelled: a file, an RGB array uint8 [H, W, 3], or a PIL image."""


class Predictor:
    """Labels photos with a model, in memory that is bounded for photos of any size.

    Args:
        segmenter: A model with a label space, as `load_checkpoint` returns it; it is moved to the device.
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1".
        protocol: An inference protocol or its name, see `resnest_seg.protocols`.
        tile: Edge in pixels of square windows that go through the model one after the other, blended where they
            overlap; None shows views as the protocol does.
        overlap: Pixels that neighbouring tiles share; None is an eighth of the tile.
        precision: "fp32", "bf16" or "fp16".
        compiled: Use `torch.compile`: slow at first, for every new size of images, and then faster.
        batch: Images or tiles a call of the model; None chooses.
        memory: Bytes that scores may take.
        fuse: Fold batch norms into convolutions, in the given model: faster, and the same numbers but for rounding.

    Raises:
        ConfigError: Unknown protocol or precision, a tile that makes no sense, or a device that is not there.
        CheckpointError: The model does not know its classes, or cannot segment photos.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        device: str = "auto",
        protocol: str | Protocol = "whole",
        tile: int | None = None,
        overlap: int | None = None,
        precision: str = "fp32",
        compiled: bool = False,
        batch: int | None = None,
        memory: int = MEMORY,
        fuse: bool = False,
    ) -> None:
        if segmenter.config.model.head == "classifier":
            raise CheckpointError(
                f"{segmenter.description}: this is an image classifier, it cannot segment. Train a segmentation model "
                "from it: --model.encoder_weights takes its file."
            )
        if segmenter.config.model.in_channels != 3:
            raise CheckpointError(
                f"the model is for images of {segmenter.config.model.in_channels} channels, and photos have 3."
            )
        if segmenter.label_space is None:
            raise CheckpointError("the model has no label space: set segmenter.label_space, or load a checkpoint.")
        self.label_space = segmenter.label_space
        self.protocol = with_tiles(protocol_of(segmenter, protocol), tile, overlap)
        self.device = choose_device(device)
        self.segmenter = segmenter.to(self.device).eval()
        if fuse:
            self.segmenter.fuse()
        self.run = runner_for(self.segmenter, precision=precision, compiled=compiled, batch=batch)
        self.memory = memory

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
        memory: int = MEMORY,
        fuse: bool = True,
    ) -> Predictor:
        """Load a checkpoint file, a run folder or a published checkpoint; see the class and `load_checkpoint`.

        Args:
            path: The checkpoint.
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
        return cls(
            load_checkpoint(path),
            device=device,
            protocol=protocol,
            tile=tile,
            overlap=overlap,
            precision=precision,
            compiled=compiled,
            batch=batch,
            memory=memory,
            fuse=fuse,
        )

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
        tensors = [torch.from_numpy(pixels).permute(2, 0, 1).to(self.device) for pixels in photos]
        views = [views_of(self.run, tensor, self.protocol) for tensor in tensors]
        if len(photos) > 1:
            preload([view for group in views for view in group])
        found = []
        for pixels, tensor, group in zip(photos, tensors, views, strict=True):
            slabs = score_rows(self.run, tensor, self.protocol, memory=self.memory, views=group)
            labels = torch.cat([slab.argmax(dim=0).to(torch.uint8) for _, slab in slabs]).cpu().numpy()
            found.append(Prediction(pixels, labels, self.label_space, _Again(self, pixels)))
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
            photo: A JPEG, PNG or TIFF file, see `resnest_seg.large`.
            path: Where the labels go, .png or .tif.
            ids: "raw" or "train", see `resnest_seg.visualize.write_labels`.
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
                for first, slab in score_rows(self.run, image, self.protocol, memory=self.memory):
                    labels = slab.argmax(dim=0).to("cpu", torch.uint8).numpy()
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
        """Class probabilities of an RGB image uint8 [H, W, 3]: float32 [K, H, W], on the predictor's device."""
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
        return probabilities(scores(self.run, tensor, self.protocol, memory=self.memory), self.protocol.merge)


@dataclasses.dataclass(frozen=True)
class _Again:
    """Runs a model again on a photo."""

    predictor: Predictor
    pixels: NDArray[np.uint8]

    def __call__(self) -> NDArray[np.float32]:
        return self.predictor.scores(self.pixels).cpu().numpy()


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: No such device, here or anywhere.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
