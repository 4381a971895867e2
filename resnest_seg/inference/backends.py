"""Backends: a torch model or an exported file behind one interface, ready to give the scores of images by a protocol.

This module imports no torch: exported files need NumPy, OpenCV and their runtime only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import CheckpointError, ConfigError, printable, unknown_name
from resnest_seg.inference.exported import is_exported, open_exported
from resnest_seg.inference.numpy_engine import Network, Pixels, crop, score_blocks
from resnest_seg.inference.numpy_engine import probabilities as array_probabilities
from resnest_seg.inference.protocols import Protocol, Setting, Window
from resnest_seg.inference.protocols import protocol as named_protocol
from resnest_seg.io.bands import BandReader
from resnest_seg.io.large_images import LargeImage
from resnest_seg.io.raster_windows import LargeBands
from resnest_seg.labels import LabelSpace, labels_to_bits

if TYPE_CHECKING:
    from resnest_seg.models.pixel_range import PixelRange

Image = NDArray[Any] | LargeImage | LargeBands
"""RGB [H, W, 3], uint8 or floats 0..255; or the bands of a model that has some, [H, W, C] of the types that
`resnest_seg.io.bands` keeps; or a file that is read by windows, which cannot be resized."""

FILE_MEMORY = 4 << 30
"""Default of the bytes that scores and logits of an exported file may take: those of 7 megapixels in 150 classes."""

PRECISIONS = ("fp32", "bf16", "fp16")
"""Names that `RunOptions.precision` takes."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a model is run.

    Attributes:
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1"; without a number, each
            process that torchrun started takes a GPU of its own. For exported files see
            `resnest_seg.inference.exported.open_exported`.
        precision: "fp32", or "bf16" or "fp16" by autocast; scores are merged in float32 all the same.
        compile: Use `torch.compile`, which takes a minute for every new size of images and then is faster.
        batch: Images or windows a call of the network; None chooses.
        fuse: Fold batch norms into convolutions, in the given model: faster, and the same numbers but for rounding.
            Exported files have it done anyway.
        threads: Of the runtime, for one call; None leaves them to it. torch's are those of the whole process.

    Raises:
        ConfigError: Unknown precision, or a batch below 1.
    """

    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    batch: int | None = None
    fuse: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"a batch must have at least 1 image, not {self.batch}.")


@dataclasses.dataclass(frozen=True)
class Decision:
    """How the scores of a pixel become its label.

    Attributes:
        task: One of `resnest_seg.labels.TASKS`: the class of the highest score; or every label whose probability
            reaches its threshold.
        thresholds: Of binary and multi-label tasks, one for each score, 0..1.
    """

    task: str = "multiclass"
    thresholds: tuple[float, ...] = ()

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        """Type of the labels."""
        return np.uint16 if self.task == "multilabel" else np.uint8

    def labels(self, scores: Any) -> Any:
        """Decide for scores [K, r, c]: labels [r, c] on the scores' device.

        Args:
            scores: A torch tensor or an array; probabilities, if the task is binary or multi-label.

        Returns:
            Train ids, uint8 (binary: 0 or 1); for multi-label bits, uint16 as an array and int32 as a tensor.
        """
        if isinstance(scores, np.ndarray):
            if self.task == "multiclass":
                return scores.argmax(axis=0).astype(np.uint8)
            present = scores >= np.array(self.thresholds, np.float32)[:, None, None]
            return present[0].astype(np.uint8) if self.task == "binary" else labels_to_bits(present)
        if self.task == "multiclass":
            return scores.argmax(dim=0).byte()
        thresholds = scores.new_tensor(self.thresholds)[:, None, None]
        present = scores >= thresholds
        if self.task == "binary":
            return present[0].byte()
        bits = present[0].int()
        for label in range(1, len(present)):
            bits |= present[label].int() << label
        return bits


class Block(NamedTuple):
    """The scores of a rectangle of an image.

    Attributes:
        rows: Of the image.
        columns: Of the image.
        scores: [K, r, c]: the protocol's mean logits, mean probabilities, or sum of exponentials; a torch tensor on the
            backend's device, or an array. None of a file that gives labels only.
        given: The labels of such a file, [r, c].
        decision: How scores become labels.
    """

    rows: slice
    columns: slice
    scores: Any
    given: NDArray[Any] | None = None
    decision: Decision = Decision()

    def labels(self) -> NDArray[Any]:
        """The label of every pixel [r, c]: the best class, uint8; of a multi-label task bits, uint16."""
        if self.given is not None:
            return self.given
        labels = self.decision.labels(self.scores)
        found: NDArray[Any] = labels if isinstance(labels, np.ndarray) else labels.cpu().numpy()
        return found.astype(self.decision.dtype, copy=False)

    def probabilities(self, merge: str) -> NDArray[np.float32]:
        """Class probabilities [K, r, c], of scores of a protocol with this `merge`."""
        if isinstance(self.scores, np.ndarray):
            return array_probabilities(self.scores, merge)
        from resnest_seg.inference.torch_engine import probabilities

        return probabilities(self.scores, merge).cpu().numpy()

    def confidence(self, merge: str) -> NDArray[np.float32]:
        """The probability of what was predicted, [r, c]; of labels the mean over them."""
        if isinstance(self.scores, np.ndarray):
            found = array_probabilities(self.scores, merge)
            sure: NDArray[np.float32] = found.max(axis=0)
            return np.maximum(found, 1 - found).mean(axis=0) if merge == "sigmoid" else sure
        from resnest_seg.inference.torch_engine import probabilities

        each = probabilities(self.scores, merge)
        best = each.maximum(1 - each).mean(dim=0) if merge == "sigmoid" else each.amax(dim=0)
        on_host: NDArray[np.float32] = best.float().cpu().numpy()
        return on_host


class Backend(ABC):
    """A model that is ready to run.

    Attributes:
        description: The network in one line.
        label_space: The classes, where they are known.
        head: Name of its head.
        channels: Of images.
        setting: The sizes that it was trained with, for the named protocols.
        device: Where scores are: a torch device, "cpu" for arrays.
        memory: Bytes that scores may take where the caller does not say.
        scored: Whether it gives scores, beside labels.
        decision: How its scores become labels.
        bands: How its images are read, where they are no photos (8-bit RGB).
        mean: Of each channel, C values, by which it normalises.
    """

    description: str
    label_space: LabelSpace | None
    head: str
    channels: int
    setting: Setting
    device: str
    memory: int
    scored: bool = True
    decision: Decision = Decision()
    bands: BandReader | None = None
    mean: tuple[float, ...] = ()

    def protocol(self, name: str | Protocol) -> Protocol:
        """A protocol as it is, or by its name with the sizes of the model; of binary and multi-label models by sigmoid.

        Raises:
            ConfigError: Unknown name, or a protocol that the model cannot follow.
        """
        chosen = name if isinstance(name, Protocol) else named_protocol(name, setting=self.setting)
        if self.decision.task != "multiclass":
            chosen = dataclasses.replace(chosen, merge="sigmoid")
        elif chosen.merge == "sigmoid":
            raise ConfigError(f"protocol {chosen.name} merges by sigmoid, which is for binary and multi-label models.")
        self.check(chosen)
        return chosen

    def check(self, protocol: Protocol) -> None:  # noqa: B027  # a torch model can follow all
        """Raise a `ConfigError` if the model cannot follow a protocol."""

    def check_scores(self) -> None:
        """Raise a `ConfigError` if the model gives labels only."""
        if not self.scored:
            raise ConfigError(
                f"{self.description}: it gives labels only, no scores. Export the model again with logits "
                "(--result logits)."
            )

    @abstractmethod
    def blocks(self, image: Image, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """The scores of an image, a block at a time; together the blocks cover it.

        Blocks that begin in the same row have the same rows.

        Args:
            image: The image.
            protocol: How it is shown to the model, and how its answers are merged.
            memory: Bytes that scores may take; None is the backend's default.
        """

    def batch_blocks(
        self, images: Iterable[Image], protocol: Protocol, *, memory: int | None = None
    ) -> Iterator[Iterator[Block]]:
        """The blocks of one image after the other; neighbours of one size may share calls of the network.

        Memory does not grow with the number of images, if each one's blocks are consumed before the next is asked for.
        """
        for image in images:
            yield self.blocks(image, protocol, memory=memory)


class FileBackend(Backend):
    """An exported file in its own runtime. Calls from several threads at once are fine.

    Args:
        path: The file.
        options: How it is run. Precision and compiling were decided when the model was exported.

    Attributes:
        file: The opened file.
        network: The file as a function from images to logits.

    Raises:
        CheckpointError: The file cannot be opened.
        ConfigError: Its runtime is not installed or has no such device; or a precision, or compiling.
    """

    def __init__(self, path: str | Path, options: RunOptions = RunOptions()) -> None:
        if options.precision != "fp32" or options.compile:
            named = "--compile (compiled)" if options.compile else f"--precision {options.precision}"
            raise ConfigError(f"{path} is an exported model and runs as it was exported: leave {named} out.")
        self.file = open_exported(path, device=options.device, threads=options.threads)
        info = self.file.info
        self.description = f"{info.description}, exported in {info.precision}, by {self.file.runtime}"
        self.label_space: LabelSpace = info.label_space
        self.head, self.channels, self.setting = info.head, info.channels, info.setting
        self.device, self.memory, self.scored = "cpu", FILE_MEMORY, info.output != "labels"
        self.decision = Decision(info.label_space.task, info.thresholds)
        self.mean = info.mean
        if info.bands:
            self.bands = BandReader(info.bands, info.nodata, info.mean)
        self.network = Network(
            self._logits,
            len(info.label_space.score_names),
            stride=1 if info.predicts_masks else info.output_stride,  # as of the model in torch
            align_corners=info.align_corners,
            batch=options.batch,
            padding=None if self.bands is None else info.mean,
            log_scores=info.predicts_masks,
        )

    def check(self, protocol: Protocol) -> None:
        """Refuse a protocol for which the file does not give enough; says which form of the file would do."""
        info, path = self.file.info, self.file.path
        plain = (protocol.scales, protocol.flip, protocol.window, protocol.resize) == ((1.0,), False, None, "image")
        if not self.scored and not plain:
            raise ConfigError(
                f"{path} gives labels only, and protocol {protocol.name} has scores to merge. Use protocol whole "
                "without tiles, scales and flip, or export the model again with logits (--result logits)."
            )
        if info.output == "softmax" and protocol.merge == "exp":
            raise ConfigError(
                f"{path} gives probabilities, and protocol {protocol.name} merges exponentials of logits. "
                "Export the model again with logits (--result logits)."
            )
        if info.pixels != "float32" and protocol.resize in ("tensor", "long_edge"):
            raise ConfigError(
                f"{path} takes pixels that are whole numbers ({info.pixels}), and protocol {protocol.name} resizes "
                "images to fractions of grey levels. Export the model again with float32 pixels (--pixels float32)."
            )

    def blocks(self, image: Image, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """See `Backend`. Scores that take more than the memory are refused by a `ConfigError`."""
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            self._check_range(image)
        if isinstance(image, np.ndarray):
            image = self.in_units(image)
        pixels: Any = image.transpose(2, 0, 1) if isinstance(image, np.ndarray) else _Bands(image, self.in_units)
        if not self.scored:
            height, width = image.shape[:2]
            yield Block(slice(0, height), slice(0, width), None, self._labels(pixels))
            return
        allowed = self.memory if memory is None else memory
        for rows, columns, scores in score_blocks(self.network, pixels, protocol, memory=allowed):
            yield Block(rows, columns, scores, decision=self.decision)

    def in_units(self, image: NDArray[Any]) -> NDArray[Any]:
        """Bands of any shape as the file takes them: floats, which may hold means, are rounded to whole numbers.

        Raises:
            ConfigError: The file's type does not hold the values.
        """
        kind = np.dtype(self.file.info.pixels)
        if self.bands is None or kind.kind == "f" or image.dtype.kind != "f":
            return image
        limits = np.iinfo(kind)
        if image.min() < limits.min - 0.5 or image.max() > limits.max + 0.5:
            raise ConfigError(
                f"{self.file.path} takes {kind} bands, and the image has values from {image.min():.5g} to "
                f"{image.max():.5g}. Export the model again with float32 pixels (--pixels float32)."
            )
        return image.round().clip(limits.min, limits.max).astype(kind)

    def _check_range(self, image: NDArray[Any]) -> None:
        from torch import from_numpy

        self._pixel_range.check(from_numpy(image))

    @functools.cached_property
    def _pixel_range(self) -> PixelRange:
        """Check of the range of float images, which data sets in torch may give."""
        from resnest_seg.models.pixel_range import PixelRange

        return PixelRange(None if self.bands is None else self.mean)

    def _logits(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Images [N, 3, H, W], uint8 or float32 -> logits [N, K, H, W].

        Logarithms stand for logits where the file gives probabilities: they differ by the same number for all classes
        of a pixel, which neither a softmax nor a best class sees, be it after means or bilinear resizing. Of a sigmoid,
        they are the inverse.
        """
        logits: NDArray[np.float32] = self._run(images)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"the outputs of {self.file.path} are not all finite numbers (NaN or infinity): its weights are "
                f"damaged, or they overflow in its precision, {self.file.info.precision}. Export it again, in float32."
            )
        if self.file.info.output == "softmax":
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        elif self.file.info.output == "sigmoid":
            logits = np.clip(logits, np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg)
            logits = np.log(logits) - np.log1p(-logits)
        return logits

    def _labels(self, image: Pixels) -> NDArray[Any]:
        """Labels [H, W] of an image [3, H, W] that is padded as by protocol whole."""
        height, width = image.shape[1:]
        (window,) = Protocol(padding="stride").windows(height, width, stride=self.network.stride)
        labels = self._run(crop(image, Window(*window), padding=self.network.padding)[None])[0, :height, :width]
        return np.ascontiguousarray(labels, dtype=self.decision.dtype)

    def _run(self, images: NDArray[Any]) -> NDArray[Any]:
        return self.file(images.transpose(0, 2, 3, 1) if self.file.info.layout == "nhwc" else images)


class _Bands:
    """A file [C, H, W] that is read by windows from the top down; two rows of windows are kept, for the last two.

    Args:
        image: The file.
        in_units: What is read [h, w, C] -> the same as the model takes it.
    """

    def __init__(
        self, image: LargeImage | LargeBands, in_units: Callable[[NDArray[Any]], NDArray[Any]] = lambda pixels: pixels
    ) -> None:
        self.image, self.in_units, self.shape = image, in_units, (image.shape[2], *image.shape[:2])
        self.held: dict[tuple[int, int], NDArray[Any]] = {}

    def __getitem__(self, window: tuple[slice, slice, slice]) -> NDArray[Any]:
        _, rows, columns = window
        key = (rows.start, rows.stop)
        if key not in self.held:
            if len(self.held) == 2:
                del self.held[next(iter(self.held))]
            self.held[key] = self.in_units(self.image[rows, :]).transpose(2, 0, 1)
        return self.held[key][:, :, columns]


def content_hash(checkpoint: str) -> str:
    """The SHA-256 of a checkpoint's file, by its path, run folder or published name, or of an exported model's files.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if not is_exported(checkpoint):
        from resnest_seg.models.loading import checkpoint_file

        return file_hash(checkpoint_file(checkpoint))
    path = Path(checkpoint)
    beside = [path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else []
    return "+".join(file_hash(each) for each in (path, *(each for each in beside if each.is_file())))


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, which is read once as long as it does not change.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        status = path.stat()
        return _hash_of(str(path.resolve()), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise CheckpointError(f"cannot read {printable(str(path))}: {error.strerror}.") from None


@functools.cache
def _hash_of(path: str, mtime: int, size: int) -> str:
    """The hash of a file as it was at some time."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
