"""`open_backend`, `Predictor`, `OnnxPredictor`: from a checkpoint or an exported file to the labels of an image.

Exported ONNX files need NumPy, OpenCV and onnxruntime only; torch is imported where a torch model is used.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.backends import Backend, Block, FileBackend, RunOptions
from resnest_seg.inference.ensemble import EnsembleBackend, checkpoints_of
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.prediction import Prediction
from resnest_seg.inference.protocols import Protocol, with_tiles
from resnest_seg.io.bands import BandReader, Raster, as_raster, without_labels
from resnest_seg.io.georeference import DataMask, Georeference, read_georeference
from resnest_seg.io.images import as_pixels, decode_image, is_file, is_tensor
from resnest_seg.io.large_images import LargeImage, LargeLabels, preview
from resnest_seg.io.raster_windows import LargeBands
from resnest_seg.io.visualize import overlay, picture_of, with_legend, write_png
from resnest_seg.labels import LabelSpace

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from resnest_seg.models.loading import Network
    from resnest_seg.models.segmenter import Segmenter

Photo = Union[str, Path, "Image.Image"]
"""Types that always are one image; arrays and tensors may be a batch."""


def open_backend(
    path: str | Path | Sequence[str | Path],
    options: RunOptions = RunOptions(),  # noqa: B008  # a constant
    *,
    into: Network | None = None,
) -> Backend:
    """A checkpoint, a run folder, the name of a published checkpoint, or an exported file, ready to run.

    Args:
        path: What is opened; several, or the folder of `fit_folds`, become an `EnsembleBackend`.
        options: How it is run.
        into: The network of a checkpoint with parts of the user's own, see `load_checkpoint`.

    Raises:
        CheckpointError: It cannot be loaded, or several have other classes.
        ConfigError: No such device, or an option that it cannot follow.
    """
    paths = checkpoints_of(path)
    if len(paths) > 1:
        return EnsembleBackend([open_backend(each, options, into=into) for each in paths], paths)
    (path,) = paths
    if is_exported(path):
        if into is not None:
            raise ConfigError(f"{path} is an exported file, which holds its network: leave out into (--model).")
        return FileBackend(path, options)
    from resnest_seg.inference.torch_backend import TorchBackend
    from resnest_seg.models.loading import load_checkpoint

    return TorchBackend(load_checkpoint(path, into=into), options)


class Predictor:
    """Labels photos, or images of other channels, with a model, in memory that is bounded for photos of any size.

    Args:
        model: A model with a label space, as `load_checkpoint` returns it, which is moved to the device; or a `Backend`
            of `open_backend`, which runs as it was opened; or a list of these, whose mean probabilities are taken, see
            `resnest_seg.inference.ensemble`.
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1".
        protocol: An inference protocol or its name, see `resnest_seg.inference.protocols`.
        tile: Largest edge in pixels of windows of one size that go through the model one after the other, blended
            where they overlap; None shows views as the protocol does.
        overlap: Pixels that neighbouring tiles share; None is an eighth of the tile.
        precision: "fp32", "bf16" or "fp16".
        compiled: Use `torch.compile`: slow at first, for every new size of images, and then faster.
        batch: Images or tiles a call of the model; None chooses.
        memory: Bytes that scores may take, 1 or more; None is 1 GiB, or 4 for an exported file, whose logits are large.
        fuse: Fold batch norms into convolutions, in the given model: faster, and the same numbers but for rounding.
        overlay_bands: Of a model of many bands, those that overlays show as red, green and blue (or one, as grey), with
            the names of the config's `data.bands`; None shows the first three.
        confidence: Let predictions know their mean confidence.

    Attributes:
        backend: The model, ready to run.
        label_space: The classes.
        protocol: The protocol.
        memory: The bytes that scores may take.
        shown: The channels that overlays show, from 0; None is the first three.

    Raises:
        ConfigError: Unknown protocol or precision, a tile or memory that makes no sense, a device that is not there,
            what an exported file cannot do, or a band to show that the model does not have.
        CheckpointError: The model does not know its classes.
    """

    def __init__(
        self,
        model: Segmenter | Backend | Sequence[Segmenter | Backend],
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
        overlay_bands: Sequence[int | str] | None = None,
        confidence: bool = False,
    ) -> None:
        if memory is not None and not memory >= 1:
            raise ConfigError(f"memory must be at least 1, not {memory}.")
        options = RunOptions(device, precision, compiled, batch, fuse)
        if isinstance(model, Sequence):
            model = EnsembleBackend([_backend_of(each, options) for each in model])
        else:
            model = _backend_of(model, options)
        self.backend, self.memory, self.confidence = model, memory, confidence and model.scored
        if model.label_space is None:
            raise CheckpointError("the model has no label space: set segmenter.label_space, or load a checkpoint.")
        self.label_space = model.label_space
        self.shown = None if overlay_bands is None else self._channels(overlay_bands)
        self.protocol = with_tiles(model.protocol(protocol), tile, overlap)
        model.check(self.protocol)

    @staticmethod
    def from_checkpoint(
        path: str | Path | Sequence[str | Path],
        *,
        into: Network | None = None,
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
        """Open a checkpoint file, a run folder, a published checkpoint or an exported file, or several; see the class.

        Args:
            path: See `open_backend`.
            into: See `open_backend`.
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
        backend = open_backend(path, RunOptions(device, precision, compiled, batch, fuse), into=into)
        return Predictor(backend, protocol=protocol, tile=tile, overlap=overlap, memory=memory)

    @overload
    def __call__(self, image: Photo) -> Prediction: ...
    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...] | Iterator[Any]) -> list[Prediction]: ...
    @overload
    def __call__(self, image: NDArray[Any] | Tensor | Iterable[Any]) -> Any: ...
    def __call__(self, image: Any) -> Any:
        """Label one image at its own size, or several; those of one size share calls of a torch model.

        The same pixels give the same labels in every form. Floats that are no whole numbers go to the model as they
        are; floats in 0..1 are warned of, once.

        Args:
            image: One image: a file, an address (http, https, s3 ...), a PIL image, an array [H, W, 3] or a torch
                tensor [3, H, W], grey ones [H, W], uint8 or floats in 0..255; see `resnest_seg.io.images.as_pixels`. Or
                several: an array [N, H, W, 3], a tensor [N, 3, H, W], or an iterable of any of these, also mixed. A
                model for images of C other channels takes arrays and tensors of C; one of named bands also files of
                them, see `resnest_seg.io.bands.as_raster`. Where no band has data, its labels are `IGNORE_LABEL`.

        Returns:
            A `Prediction`, or a list of them for a batch or an iterable. That of a georeferenced TIFF file, alone or
            among several images, knows its place on the map, and its pixels without data are ignored ones.

        Raises:
            DatasetError: A file or PIL image cannot be decoded, or an address cannot be read.
            ConfigError: Something else, which the message describes; or scores would take more than the memory.
        """
        rasters, several, files = images_of(image, self.backend.channels, self.backend.bands, self.backend.mean)
        found = self.backend.batch_blocks([pixels for pixels, *_ in rasters], self.protocol, memory=self.memory)
        predictions: list[Prediction] = []
        for (pixels, valid, _), blocks, file in zip(rasters, found, files, strict=True):
            found_labels, sure = _labels(blocks, pixels, self.protocol.merge if self.confidence else None)
            labels = without_labels(found_labels, valid)
            place = self._place(file, labels)
            scores, picture = functools.partial(self.scores, pixels), self._picture(pixels, valid)
            mean = None if sure is None else _mean(sure, labels, self.label_space)
            predictions.append(Prediction(picture, labels, self.label_space, scores, place, mean))
        return predictions if several else predictions[0]

    def _channels(self, bands: Sequence[int | str]) -> list[int]:
        """The channels of bands that overlays are to show."""
        if self.backend.bands is None:
            raise ConfigError("overlay bands are for a model of many bands, and this one takes photos.")
        if len(bands) not in (1, 3):
            raise ConfigError(f"an overlay shows three bands, or one as grey, not {len(bands)}.")
        return self.backend.bands.channels(bands)

    def _picture(self, pixels: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Return the RGB picture [H, W, 3] with which a prediction shows an image [H, W, C]."""
        return _shown(pixels) if self.backend.bands is None else picture_of(pixels, channels=self.shown, valid=valid)

    def _place(self, file: Any, labels: NDArray[np.uint8]) -> Georeference | None:
        """Return a file's position on the map; pixels without data become `IGNORE_LABEL` in its labels [H, W]."""
        place = None if file is None else read_georeference(file)
        if place is not None and self.backend.bands is None:  # a reader of bands knows them
            with DataMask(file) as mask:
                empty = mask.without_data(0, len(labels))
            if empty is not None:
                labels[empty] = self.label_space.ignore_value
        return place

    def scores(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Class probabilities, float32 [K, H, W], of an image [H, W, C], as the model takes it.

        Raises:
            ConfigError: The model is an exported file that gives labels only.
        """
        self.backend.check_scores()
        scores = np.empty((len(self.label_space.score_names), *pixels.shape[:2]), np.float32)
        for block in self.backend.blocks(pixels, self.protocol, memory=self.memory):
            scores[:, block.rows, block.columns] = block.probabilities(self.protocol.merge)
        return scores

    def check_photos(self) -> None:
        """Raise a `CheckpointError` if the model is neither for photos, whose three channels are RGB, nor for files."""
        if self.backend.bands is None and self.backend.channels != 3:
            raise CheckpointError(
                f"the model is for images of {self.backend.channels} channels, and photos have 3. In Python, a "
                f"Predictor takes arrays [H, W, {self.backend.channels}]."
            )

    def _check_windows(self, photo: str | Path) -> None:
        """Raise a `ConfigError` if a photo cannot be labelled by windows."""
        if self.protocol.window is None or self.protocol.scales != (1.0,) or self.protocol.resize != "image":
            raise ConfigError(
                f"{photo} is too large for protocol {self.protocol.name}, which needs all of it at once. Use tiles at "
                "the image's own size: tile=1024 (--tile 1024) with protocol whole or slide."
            )

    def segment_file(
        self,
        photo: str | Path,
        path: str | Path,
        *,
        ids: str = "raw",
        overlay_path: str | Path | None = None,
        alpha: float = 0.5,
        cog: bool = False,
    ) -> None:
        """Label a photo that is too large for memory: read by windows, its labels written by rows.

        Args:
            photo: A JPEG, PNG or TIFF file, see `resnest_seg.io.large_images`.
            path: Where the labels go, .png or .tif; the .tif of a georeferenced TIFF lies where that lies. Pixels of
                one that have no data are ignored ones.
            ids: "raw" or "train", see `resnest_seg.io.visualize.write_labels`.
            overlay_path: Where an overlay with a legend goes, of at most 2048 pixels a side; None draws none.
            alpha: Opacity of the overlay, 0..1.
            cog: Write a Cloud Optimized GeoTIFF.

        Raises:
            DatasetError: The file cannot be read by windows.
            ConfigError: The protocol needs the whole image: it has no tiles, or scales; or labels of a multi-label task
                shall become a PNG.
        """
        self.check_photos()
        self._check_windows(photo)
        bands, small = self.backend.bands, []
        with contextlib.ExitStack() as opened:
            image: LargeImage | LargeBands = LargeImage(photo) if bands is None else LargeBands(photo, bands)
            opened.enter_context(image)
            height, width, _ = image.shape
            step = max(-(-max(height, width) // 2048), 1)
            place = read_georeference(photo)
            mask: DataMask | LargeBands | None = image if isinstance(image, LargeBands) else None
            if mask is None and place is not None:
                mask = opened.enter_context(DataMask(photo))
            kept = place if Path(path).suffix.lower() in (".tif", ".tiff") else None
            file = opened.enter_context(
                LargeLabels(path, height, width, self.label_space, ids=ids, place=kept, cog=cog)
            )
            for first, labels in _whole_rows(self.backend.blocks(image, self.protocol, memory=self.memory), width):
                empty = None if mask is None else mask.without_data(first, len(labels))
                if empty is not None:
                    labels[empty] = self.label_space.ignore_value
                file.write(first, labels)
                small.append(labels[-first % step :: step, ::step].copy())  # a view would keep all rows
        if overlay_path is not None:
            rough = np.vstack(small)
            picture = self._preview(photo, longest=max(rough.shape))
            height, width = picture.shape[:2]
            rough = cv2.resize(rough, (width, height), interpolation=cv2.INTER_NEAREST).astype(rough.dtype, copy=False)
            blended = overlay(picture, rough, self.label_space, alpha=alpha)
            write_png(overlay_path, with_legend(blended, rough, self.label_space))

    def _preview(self, photo: str | Path, *, longest: int) -> NDArray[np.uint8]:
        """A picture of a large image in small, RGB."""
        if self.backend.bands is None:
            return preview(photo, longest=longest)
        with LargeBands(photo, self.backend.bands) as image:
            pixels, valid, _ = image.preview(longest=longest)
        return self._picture(pixels, valid)


class OnnxPredictor(Predictor):
    """A `Predictor` of an exported file. Calls from several threads at once are fine.

    Args:
        path: A file of `resnest-seg export`: .onnx, or .xml, which needs OpenVINO (or .pt2, which needs torch); or
            several, whose mean probabilities are taken.
        device: "auto", "cpu", or what `resnest_seg.inference.exported.open_exported` knows beside.
        protocol: See `Predictor`, as for the others.
        tile: See `Predictor`.
        overlap: See `Predictor`.
        batch: See `Predictor`.
        memory: Bytes that scores and logits may take, see `numpy_engine`; what needs more is refused. None is 4 GiB.
        threads: Of the runtime, for one call; None leaves them to it.

    Raises:
        CheckpointError: No such file, or a damaged or foreign one.
        ConfigError: The runtime is not installed, or the file cannot be used by this protocol.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        device: str = "auto",
        protocol: str | Protocol = "whole",
        tile: int | None = None,
        overlap: int | None = None,
        batch: int | None = None,
        memory: int | None = None,
        threads: int | None = None,
    ) -> None:
        options = RunOptions(device, batch=batch, threads=threads)
        paths = checkpoints_of(path)
        files: list[Backend] = [FileBackend(each, options) for each in paths]
        backend = EnsembleBackend(files, paths) if len(files) > 1 else files[0]
        super().__init__(backend, protocol=protocol, tile=tile, overlap=overlap, memory=memory)


def _backend_of(model: Segmenter | Backend, options: RunOptions) -> Backend:
    """A model as a backend that runs by these options, or that was opened."""
    if not isinstance(model, Backend):
        from resnest_seg.inference.torch_backend import TorchBackend

        return TorchBackend(model, options)
    if options != RunOptions(fuse=options.fuse):
        raise ConfigError("device, precision, compiled and batch are for open_backend, which opened this model.")
    return model


class Images(NamedTuple):
    """What `Predictor` is called with.

    Attributes:
        rasters: The images [H, W, C], in order.
        several: It is a batch or an iterable, not one image.
        files: The path that each image was read from; None of what is no file.
    """

    rasters: list[Raster]
    several: bool
    files: list[str | os.PathLike[str] | None]


def images_of(value: Any, channels: int = 3, reader: BandReader | None = None, mean: tuple[float, ...] = ()) -> Images:
    """Convert what `Predictor` is called with to pixels: one image, or several.

    Args:
        value: An image that `resnest_seg.io.images.as_pixels` accepts, or its address; a batch, array
            [N, H, W, C] or tensor [N, C, H, W]; or an iterable of images, addresses and batches, in any mixture.
        channels: C.
        reader: How bands are read, where the images are no photos; then they are what `as_raster` accepts.
        mean: Of these bands.

    Raises:
        DatasetError: A file or PIL image cannot be decoded, or an address cannot be fetched.
        ConfigError: Something else; says what is accepted, what was seen and, of several, which it is.
    """
    if isinstance(value, str) and "://" in value and (channels == 3 or reader is not None):
        from resnest_seg.inference.inputs import image_at  # which needs more than exported files do
        from resnest_seg.storage.retries import without_secrets

        data, name = image_at(value), without_secrets(value)
        raster = Raster(decode_image(data, name)) if reader is None else reader.decode(data, name)
        return Images([raster], False, [None])
    if (isinstance(value, np.ndarray) or is_tensor(value)) and value.ndim == 4:
        return _each(value, (channels, reader, mean), f"of the batch {list(value.shape)}")
    names = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "UO"
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)
    if names or (listed and not isinstance(value, np.ndarray | os.PathLike) and not is_tensor(value)):
        return _each(value, (channels, reader, mean), "of the list")
    raster = Raster(as_pixels(value, channels=channels)) if reader is None else as_raster(value, reader, mean)
    return Images([raster], False, [value if is_file(value) else None])


def _each(values: Iterable[Any], how: tuple[int, BandReader | None, tuple[float, ...]], where: str) -> Images:
    """Convert images one by one; an error says which it is, counted from 0."""
    found = Images([], True, [])
    for number, value in enumerate(values):
        try:
            rasters, _, files = images_of(value, *how)
            found.rasters.extend(rasters)
            found.files.extend(files)
        except ConfigError as error:
            raise ConfigError(f"image {number} {where}: {error}") from None
    return found


def _shown(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """An image [H, W, C] as RGB, uint8 [H, W, 3]: the first three channels, or the first as grey."""
    rgb = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=2)
    return rgb if rgb.dtype == np.uint8 else rgb.round().astype(np.uint8)


def _labels(
    blocks: Iterable[Block], pixels: NDArray[Any], merge: str | None
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Labels of an image [H, W], and with `merge` how sure they are; a function, so that no scores are held then."""
    labels: NDArray[Any] | None = None
    sure = None if merge is None else np.empty(pixels.shape[:2], np.float32)
    for block in blocks:
        part = block.labels()
        if labels is None:
            labels = np.empty(pixels.shape[:2], part.dtype)
        labels[block.rows, block.columns] = part
        if sure is not None:
            assert merge is not None
            sure[block.rows, block.columns] = block.confidence(merge)
    assert labels is not None
    return labels, sure


def _mean(sure: NDArray[np.float32], labels: NDArray[Any], space: LabelSpace) -> float | None:
    """Mean confidence [H, W] of the pixels that are not ignored; None if all are."""
    kept = sure[labels != space.ignore_value]
    return float(kept.mean(dtype=np.float64)) if kept.size else None


def _whole_rows(blocks: Iterable[Block], width: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Blocks as (first row, labels of whole rows [r, W]), from the top down."""
    waiting: dict[int, NDArray[Any]] = {}
    lacking: dict[int, int] = {}
    following = 0
    for block in blocks:
        labels, first = block.labels(), block.rows.start
        if first not in waiting:
            waiting[first] = np.empty((len(labels), width), labels.dtype)
            lacking[first] = width
        waiting[first][:, block.columns] = labels
        lacking[first] -= labels.shape[1]
        while lacking.get(following) == 0:
            whole = waiting.pop(following)
            del lacking[following]
            yield following, whole
            following += len(whole)
