"""One call from a checkpoint to the labels of a photo."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference import protocol as protocol_named
from resnest_seg.labels import LabelSpace
from resnest_seg.samples import read_image
from resnest_seg.segmenter import Segmenter
from resnest_seg.visualize import overlay, with_legend, write_labels
from resnest_seg.zoo import load_checkpoint


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a `Predictor` found in one image.

    Attributes:
        image: The photo, RGB, uint8 [H, W, 3].
        labels: Train ids, uint8 [H, W]; positions in `label_space.names`.
        label_space: The classes.
        logits: Class scores before softmax, float32 [K, H, W], on the predictor's device.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    label_space: LabelSpace
    logits: torch.Tensor

    def scores(self) -> NDArray[np.float32]:
        """Class probabilities (softmax), float32 [K, H, W]."""
        return self.logits.softmax(dim=0).cpu().numpy()

    def overlay(self, alpha: float = 0.5, *, legend: bool = True) -> NDArray[np.uint8]:
        """The photo with `alpha` (0..1) of the class colours blended in, with a legend below it; RGB uint8."""
        picture = overlay(self.image, self.labels, self.label_space, alpha=alpha)
        return with_legend(picture, self.labels, self.label_space) if legend else picture

    def save(self, path: str | Path, *, ids: str = "raw") -> None:
        """Write the labels as a palette PNG of "raw" or "train" ids; see `resnest_seg.visualize.write_labels`."""
        write_labels(path, self.labels, self.label_space, ids=ids)


class Predictor:
    """Labels photos with a model.

    Args:
        segmenter: A model with a label space, as `load_checkpoint` returns it.
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1".
        protocol: Name of an inference protocol, see `resnest_seg.inference`.

    Raises:
        ConfigError: Unknown protocol, or a device that is not there.
        CheckpointError: The model does not know its classes.
    """

    def __init__(self, segmenter: Segmenter, *, device: str = "auto", protocol: str = "whole") -> None:
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
        self.device = choose_device(device)
        self.segmenter = segmenter.to(self.device).eval()
        self.protocol = protocol_named(protocol)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str = "auto", protocol: str = "whole") -> Predictor:
        """Load a checkpoint file or a run folder; see `load_checkpoint` for the errors."""
        return cls(load_checkpoint(path), device=device, protocol=protocol)

    @torch.inference_mode()
    def __call__(self, image: str | Path | NDArray[np.uint8] | Image.Image) -> Prediction:
        """Label one photo at its own size.

        Args:
            image: A file, a PIL image, or an RGB array uint8 [H, W, 3].

        Raises:
            DatasetError: The file cannot be read.
            ConfigError: The array has another shape or type.
        """
        pixels = _as_pixels(image)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
        stride = self.segmenter.output_stride
        logits = self.protocol(lambda images: self.segmenter(images).logits, tensor, stride=stride).float()
        labels = logits.argmax(dim=0).to("cpu", torch.uint8).numpy()
        return Prediction(pixels, labels, self.label_space, logits)


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


def _as_pixels(image: str | Path | NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = np.array(image.convert("RGB"))
    pixels = image
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ConfigError(f"an image array must be RGB, uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}.")
    return np.ascontiguousarray(pixels)
