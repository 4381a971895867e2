"""Any sequence of (image, mask) pairs as a data set: a torch `Dataset`, a list, a table of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.bands import KEPT, Raster, without_labels
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE, LabelSpace, labels_to_bits


class Indexable(Protocol):
    """A sequence by length and index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class PairDataset(SegmentationDataset):
    """A data set of any object with `len()` and `[index]` that gives pairs of image and mask.

    Images are PIL images, uint8 arrays [H, W, C] or [H, W], or uint8 tensors [C, H, W]; or the bands of an instrument,
    arrays or tensors of uint16, int16 or float32, in which NaN means no data. Masks are PIL images (P, L, I), or arrays
    or tensors of whole numbers [H, W] or [1, H, W]; of a multi-label task bits, or one plane of booleans for each
    label, [K, H, W].

    Args:
        pairs: Items are tuples (image, mask), or mappings with the two `keys`, as rows of Hugging Face tables are.
        classes: The names of the classes 0..K-1, or a label space, by whose raw ids the masks are decoded.
        split: "train", "val" or "test".
        keys: Keys of image and mask in a mapping.
        ignore: Values in masks that are not labelled, besides `IGNORE_LABEL`.

    Raises:
        ConfigError: The classes make no label space.
    """

    def __init__(
        self,
        pairs: Indexable,
        classes: LabelSpace | Sequence[str],
        *,
        split: str = "train",
        keys: tuple[str, str] = ("image", "mask"),
        ignore: Collection[int] = (),
    ) -> None:
        if isinstance(classes, str):
            raise ConfigError(f"classes must be a list of names or a LabelSpace, not the text {classes!r}.")
        self.pairs, self.split, self.keys, self.ignore = pairs, split, keys, tuple(ignore)
        self.label_space = (
            classes if isinstance(classes, LabelSpace) else LabelSpace.numbered(len(classes), names=classes)
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = f"{self.split} sample {index}"
        image, mask = self._parts(self.pairs[index], name)
        (pixels, valid, _), ids = self._raster(image, name), _ids(mask, name, self.label_space)
        if pixels.shape[:2] != ids.shape:
            raise DatasetError(f"{name}: the image has {pixels.shape[:2]} pixels and the mask {ids.shape}.")
        if self.label_space.task == "multilabel":
            return Sample(pixels, without_labels(self._bits(ids, name), valid), name)
        unlabelled = np.isin(ids, [*self.ignore, IGNORE_LABEL])
        known = np.where(unlabelled, self.label_space.raw_ids[0], ids)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > 255:
            raise DatasetError(
                f"{name}: the mask holds {low if low < 0 else high}, and classes are 0..{len(self.label_space) - 1}. "
                "Name values that are not labelled: ignore=(...)."
            )
        try:
            labels = self.label_space.encode(known.astype(np.uint8))
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}. Name values that are not labelled: ignore=(...).") from None
        labels[unlabelled] = IGNORE_LABEL
        return Sample(pixels, without_labels(labels, valid), name)

    def _bits(self, ids: NDArray[np.int64], name: str) -> NDArray[Any]:
        if ids.min() < 0 or ids.max() > 65535:
            raise DatasetError(f"{name}: the mask holds {ids.min()} to {ids.max()}, and bits of labels are 0..65535.")
        try:
            bits = self.label_space.encode(ids)
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}.") from None
        bits[np.isin(ids, self.ignore)] = MULTILABEL_IGNORE
        return bits

    def raster(self, index: int) -> Raster:
        """Take the image of a pair, without its mask."""
        name = f"{self.split} sample {index}"
        return self._raster(self._parts(self.pairs[index], name)[0], name)

    def _raster(self, image: Any, name: str) -> Raster:
        pixels = _pixels(image, name, raw=self.bands is not None)
        return Raster(pixels) if self.bands is None else self.bands.checked(pixels, name)

    def _parts(self, item: Any, name: str) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            missing = [key for key in self.keys if key not in item]
            if missing:
                raise ConfigError(f"{name} has no {missing[0]!r}, only {', '.join(map(repr, item))}: give keys=(...).")
            return item[self.keys[0]], item[self.keys[1]]
        if not isinstance(item, Sequence) or len(item) != 2:
            raise ConfigError(f"{name} must be a pair (image, mask) or a mapping, not a {type(item).__name__}.")
        return item[0], item[1]


def _array(value: Any) -> NDArray[Any]:
    """A tensor, an array or a list as an array, on the CPU."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _pixels(image: Any, name: str, *, raw: bool) -> NDArray[Any]:
    """An image [H, W, C] of a type that is kept; a tensor has its channels first, everything else last."""
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "L", "P", "1"):
            raise DatasetError(f"{name}: the image is a {image.mode} picture: convert it to RGB.")
        image = np.asarray(image.convert("RGB"))
    pixels = _array(image)
    if not raw and (pixels.dtype.name not in KEPT or _is_photo_in_floats(pixels, image)):
        span = f" from {pixels.min():.4g} to {pixels.max():.4g}" if pixels.size and pixels.dtype.kind in "fiu" else ""
        raise DatasetError(
            f"{name}: the image is {pixels.dtype}{span}, and uint8 of 0..255 is needed: leave out ToTensor and "
            "Normalize (v2.PILToTensor keeps uint8), because the model normalises. Bands of other instruments are "
            "uint16, int16 or float32; float32 of three bands needs data.bands: [1, 2, 3] in the config."
        )
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.dtype == np.uint8 and not raw else pixels[..., None]
    if pixels.ndim != 3:
        raise DatasetError(f"{name}: the image has the shape {pixels.shape}, not [H, W, C], or [C, H, W] of a tensor.")
    return np.ascontiguousarray(pixels.transpose(1, 2, 0) if hasattr(image, "detach") else pixels)


def _is_photo_in_floats(pixels: NDArray[Any], image: Any) -> bool:
    """True for what ToTensor and Normalize make of a photo: three channels of floats between -3 and 3."""
    if pixels.dtype.kind != "f" or pixels.ndim != 3 or not pixels.size:
        return False
    channels = pixels.shape[0] if hasattr(image, "detach") else pixels.shape[2]
    return channels == 3 and bool(np.nanmin(pixels) >= -3) and bool(np.nanmax(pixels) <= 3)


def _ids(mask: Any, name: str, space: LabelSpace) -> NDArray[np.int64]:
    """A mask as int64 [H, W]."""
    if isinstance(mask, Image.Image) and mask.mode not in ("P", "L", "I", "I;16", "1"):
        raise DatasetError(f"{name}: the mask is a {mask.mode} picture, and one of class numbers (P, L, I) is needed.")
    ids = _array(mask)
    if space.task == "multilabel" and ids.ndim == 3 and ids.dtype == np.bool_ and len(ids) == len(space):
        ids = labels_to_bits(ids)
    if ids.ndim == 3 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 2 or ids.dtype.kind not in "iub":
        raise DatasetError(f"{name}: the mask is {ids.dtype} of shape {ids.shape}, not whole numbers [H, W].")
    return ids.astype(np.int64)
