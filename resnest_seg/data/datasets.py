"""Samples, the base class of data sets, the public ones ADE20K, Cityscapes and CamVid, and pairs of one's own."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnest_seg.errors import ConfigError, DatasetError, command, unknown_name
from resnest_seg.io.bands import KEPT, BandReader, Raster, decode_photo, without_labels
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_bits, decode_mask, mask_palette
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE, LabelSpace, labels_to_bits
from resnest_seg.storage.opening import base_of, open_source
from resnest_seg.storage.remote import is_address
from resnest_seg.storage.sources import FolderSource, Source


class Sample(NamedTuple):
    """One photo with its labels.

    Attributes:
        image: RGB, uint8 [H, W, 3]; or bands of the type of their file: uint8, uint16, int16 or float32 [H, W, C].
        labels: Train ids, uint8 [H, W], 0..K-1 or `IGNORE_LABEL`; of a multi-label task bits, uint16 [H, W].
        name: The photo's path, or the synthetic scene's number, for messages.
    """

    image: NDArray[Any]
    labels: NDArray[Any]
    name: str


class SegmentationDataset(ABC):
    """Base class: a sequence of samples in a fixed order.

    Attributes:
        label_space: The classes.
        split: "train", "val" or "test".
        bands: How bands are read, where the images are no photos (8-bit RGB).
    """

    label_space: LabelSpace
    split: str
    bands: BandReader | None = None

    def read_as(self, bands: BandReader | None) -> None:
        """Set how bands are read; a data set of the user's own may take it over for its `raster`."""
        self.bands = bands

    def raster(self, index: int) -> Raster:
        """Read the image of a sample, with its values without data; its bands count in statistics."""
        return Raster(self[index].image)

    @abstractmethod
    def __len__(self) -> int: ...

    def identity(self) -> str:
        """Return a hash that identifies the samples and their order, without reading one."""
        space = json.dumps(self.label_space.to_dict())
        return hashlib.sha256(f"{len(self)} {self.split} {space}".encode()).hexdigest()

    def draw(self, index: int, *, seed: int) -> Sample:
        """Read a sample for training: a data set of windows moves its window at random, decided by the seed alone."""
        return self[index]

    def sample_name(self, index: int) -> str:
        """Return the name of a sample within its data set, independent of the root; results are named after it.

        A sample has the same name on every machine, and names are unique.
        """
        return f"{self.split}_{index:06d}"

    def group(self, index: int) -> str:
        """Return the name of what a sample is cut from, its own name if it is nothing larger.

        Samples of one group may share pixels, so they go into the same fold, see `assign_folds`.
        """
        return self.sample_name(index)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DatasetError: A file cannot be read, photo and mask differ in size, or a label is out of range; the
                message names the file.
        """


class DatasetView(SegmentationDataset):
    """Another data set with fewer samples or other labels; a subclass says which.

    Args:
        inner: The data set.

    Attributes:
        inner: The data set.
    """

    def __init__(self, inner: SegmentationDataset) -> None:
        self.inner, self.split, self.bands, self.label_space = inner, inner.split, inner.bands, inner.label_space

    def inner_index(self, index: int) -> int:
        """Return the index that a sample has in the inner data set."""
        return index

    def viewed(self, sample: Sample) -> Sample:
        """Return a sample of the inner data set as this one shows it."""
        return sample

    def __len__(self) -> int:
        return len(self.inner)

    def identity(self) -> str:
        """Return a hash of the data set and of the label space."""
        return hashlib.sha256(f"{super().identity()} {self.inner.identity()}".encode()).hexdigest()

    def sample_name(self, index: int) -> str:
        """The name that the sample has in the data set."""
        return self.inner.sample_name(self.inner_index(index))

    def group(self, index: int) -> str:
        """The group that the sample has in the data set."""
        return self.inner.group(self.inner_index(index))

    def read_as(self, bands: BandReader | None) -> None:
        """Set how bands are read."""
        self.inner.read_as(bands)
        self.bands = self.inner.bands

    def raster(self, index: int) -> Raster:
        """Read the image of a sample."""
        return self.inner.raster(self.inner_index(index))

    def draw(self, index: int, *, seed: int) -> Sample:
        """Read a sample for training."""
        return self.viewed(self.inner.draw(self.inner_index(index), seed=seed))

    def __getitem__(self, index: int) -> Sample:
        return self.viewed(self.inner[self.inner_index(index)])


def behind_views(dataset: SegmentationDataset) -> SegmentationDataset:
    """Return the data set behind all views of it; any other data set itself."""
    while isinstance(dataset, DatasetView):
        dataset = dataset.inner
    return dataset


class Subset(DatasetView):
    """Some of the samples of a data set.

    Args:
        inner: The data set.
        indices: Their indices in it, in the order of the new samples.
    """

    def __init__(self, inner: SegmentationDataset, indices: Sequence[int]) -> None:
        super().__init__(inner)
        self.indices = [int(index) for index in indices]

    def inner_index(self, index: int) -> int:
        """Return the index that a sample has in the inner data set; an `IndexError` beyond the last."""
        if not 0 <= index < len(self.indices):
            raise IndexError(index)
        return self.indices[index]

    def read_as(self, bands: BandReader | None) -> None:
        """Set how bands are read; a `DatasetError` if other windows have data then, so that indices are of others."""
        before, identity = self.inner.bands, self.inner.identity()
        super().read_as(bands)
        if self.inner.identity() != identity:
            super().read_as(before)
            reader = None if bands is None else f"resnest_seg.io.bands.{bands!r}"
            raise DatasetError(
                f"samples of the {self.split} split were chosen by index before its bands were, with which other "
                f"windows have data. Choose them after dataset.read_as({reader})."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def identity(self) -> str:
        """Return a hash of the data set and of the indices."""
        return hashlib.sha256(f"{super().identity()} {self.indices}".encode()).hexdigest()


class TaskView(DatasetView):
    """A data set of K classes a pixel as one of another task.

    Args:
        inner: The data set.
        task: "binary" or "multilabel".
        positive: Names of the classes that are the object of a binary task.

    Raises:
        ConfigError: Unknown class, or none or all classes are the object.
    """

    def __init__(self, inner: SegmentationDataset, task: str, positive: Sequence[str] = ()) -> None:
        super().__init__(inner)
        self.label_space = inner.label_space.for_task(task, positive=positive)
        chosen = set(positive)
        values = [name in chosen if task == "binary" else 1 << k for k, name in enumerate(inner.label_space.names)]
        self._table = np.full(256, self.label_space.ignore_value, np.uint8 if task == "binary" else np.uint16)
        self._table[: len(values)] = values

    def viewed(self, sample: Sample) -> Sample:
        """Return a sample with the labels of the task."""
        return sample._replace(labels=self._table[sample.labels])


def assign_folds(dataset: SegmentationDataset, folds: int, *, group_by: str | None = None) -> NDArray[np.int64]:
    """Divide a data set into parts of almost equal size, by the names of its samples alone.

    Groups are dealt to the smallest part, the largest group first, equal ones in the order of the hash of their name:
    neighbours in the alphabet, such as frames of one street, are spread over the parts unless they are one group.

    Args:
        dataset: The data set.
        folds: Number of parts, 2 or more.
        group_by: A regular expression; samples whose names (of windows, that of their raster) have the same match
            (the same text in its groups, if it has some) are one group and stay together, such as the frames of a
            video. None takes each sample, and all windows of a raster, as a group.

    Returns:
        The part of every sample, 0..folds - 1, [N].

    Raises:
        ConfigError: The expression is not valid or does not match a name; fewer groups than parts.
    """
    names = [dataset.group(index) for index in range(len(dataset))]
    groups = names if group_by is None else _matches(names, group_by)
    sizes = collections.Counter(groups)
    if not 2 <= folds <= len(sizes):
        grouped = "" if group_by is None else f" by {group_by!r}"
        raise ConfigError(
            f"the {len(names)} samples of the {dataset.split} split make {len(sizes)} groups{grouped}, and {folds} "
            f"folds were asked for: give a number from 2 to {len(sizes)}, or other groups."
        )
    filled, fold_of = [0] * folds, dict[str, int]()
    for group in sorted(
        sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    ):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], np.int64)


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    """The text that a regular expression finds in each name."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the groups of folds are no regular expression: {pattern!r} ({error}).") from None
    found = [expression.search(name) for name in names]
    missing = next((name for name, match in zip(names, found, strict=True) if match is None), None)
    if missing is not None:
        raise ConfigError(
            f"the groups of folds, {pattern!r}, do not match the sample {missing!r}: every name must match, such as by "
            "'^[^_]+' for what is before the first underscore."
        )
    return ["\0".join(map(str, match.groups() or (match[0],))) for match in found if match is not None]


DATA_ROOT_VARIABLE = "RESNEST_SEG_DATA"
"""Environment variable: the folder that holds one folder per data set."""

T = TypeVar("T")


class PairedFiles(SegmentationDataset):
    """A data set of photo and mask files, paired by their names.

    Args:
        label_space: The classes.
        split: Name of the split.
        source: The storage of the files.
        pairs: Names of (photo, mask), in the order of the samples; a mask of None means that all pixels are ignored.
        encoding: Label space of the raw ids in the masks, if they differ from those of `label_space`.
        colors: Accept masks of colours as well as of ids.
        palettes: Decode a palette mask by its colours, if they are the classes' colours.
        masks: All existing masks, to detect those without a photo.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.

    Attributes:
        orphans: Masks without a photo.

    Raises:
        DatasetError: There is no photo, or a mask is missing.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        split: str,
        source: Source,
        pairs: Sequence[tuple[str, str | None]],
        *,
        encoding: LabelSpace | None = None,
        colors: bool = False,
        palettes: bool = False,
        masks: Collection[str] = (),
        allow_missing: bool = False,
    ) -> None:
        self.label_space, self.split, self.source, self.pairs = label_space, split, source, pairs
        self.encoding, self.colors, self.palettes = encoding or label_space, colors, palettes
        self.orphans = sorted(set(masks) - {mask for _, mask in self.pairs if mask is not None}) if masks else []
        if not self.pairs:
            raise DatasetError(f"the {split} split of {label_space.name} is empty.")
        if allow_missing:
            return
        alone = [(image, mask) for image, mask in self.pairs if mask is not None and not source.has(mask)]
        if alone:
            image, mask = alone[0]
            assert mask is not None
            raise DatasetError(
                f"{len(alone)} of {len(self.pairs)} images of the {split} split have no mask. The first: "
                f"{source.locate(image)} needs {source.locate(mask)}. Add the masks, or remove these images."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def folders(self) -> list[Path]:
        """The folders directly below the root in which its photos and masks lie; none where it is read from zips."""
        if not isinstance(self.source, FolderSource):
            return []
        names = {PurePosixPath(name).parts[0] for pair in self.pairs for name in pair if name and "/" in name}
        return [self.source.root / name for name in sorted(names)]

    def sample_name(self, index: int) -> str:
        """The photo's path below the root of the data set, or within its zip file."""
        return self.pairs[index][0]

    def __getitem__(self, index: int) -> Sample:
        image_name, mask_name = self.pairs[index]
        where = self.source.locate(image_name)
        image, valid, _ = self.raster(index)
        if mask_name is None:
            return Sample(image, self.nothing_labelled(image.shape[:2]), where)
        raw = self.read_mask(mask_name)
        if image.shape[:2] != raw.shape[:2]:
            raise DatasetError(self.size_problem(index, image, raw))
        return Sample(image, without_labels(self.encode(mask_name, raw), valid), where)

    def raster(self, index: int) -> Raster:
        """Read the image of a sample: a photo, or the bands that `bands` names."""
        name = self.pairs[index][0]
        return self.decode(self.source.read(name), self.source.locate(name))

    def decode(self, data: bytes, where: str) -> Raster:
        """Decode the content of a file of this name: a photo, or bands; with the pixels that have data."""
        return decode_photo(data, where) if self.bands is None else self.bands.decode(data, where)

    def nothing_labelled(self, size: tuple[int, ...]) -> NDArray[Any]:
        """Labels [H, W] of a photo without a mask: all pixels are ignored."""
        kind = np.uint16 if self.label_space.task == "multilabel" else np.uint8
        return np.full(size, self.label_space.ignore_value, kind)

    def read_mask(self, name: str) -> NDArray[Any]:
        """Read a mask, uint8: ids [H, W], or colours [H, W, 3], also of a palette with the classes' colours.

        Of a multi-label task, bits, uint16 [H, W].

        Raises:
            DatasetError: The file is missing, corrupt or not a mask.
        """
        data = self.source.read(name)
        if self.label_space.task == "multilabel":
            return decode_bits(data, self.source.locate(name))
        raw = decode_mask(data, self.source.locate(name))
        return self.meant(raw, mask_palette(data) if self.palettes and raw.ndim == 2 else None)

    def meant(self, raw: NDArray[np.uint8], palette: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Ids [H, W] of a mask with a palette, or its colours [H, W, 3] if these are the classes' and its ids are not.

        Args:
            raw: The mask as stored.
            palette: Its colours, uint8 [256, 3]; None without one.
        """
        if palette is None or not self.palettes:
            return raw
        used = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
        by_id = dict(zip(self.encoding.raw_ids, self.encoding.colors, strict=True))
        known = {*self.encoding.colors, *self.encoding.ignored_colors}
        painted = [tuple(int(channel) for channel in palette[index]) for index in used]
        meant = any(by_id.get(int(index)) != color for index, color in zip(used, painted, strict=True))
        return palette[raw] if meant and all(color in known for color in painted) else raw

    def encode(self, name: str, raw: NDArray[Any]) -> NDArray[Any]:
        """Convert a mask of ids, colours or bits to labels [H, W].

        Raises:
            DatasetError: An id or colour is not in the label space, or colours are not accepted; names the mask.
        """
        where = self.source.locate(name)
        if raw.ndim == 3 and not self.colors:
            raise DatasetError(f"{where} is a mask of colours (RGB), but {self.label_space.name} has masks of ids.")
        try:
            return self.encoding.encode_colors(raw) if raw.ndim == 3 else self.encoding.encode(raw)
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}.") from None

    def size_problem(self, index: int, image: NDArray[Any], raw: NDArray[Any]) -> str:
        """Describe the problem if mask and photo differ in size; None if they agree."""
        image_name, mask_name = self.pairs[index]
        photo, mask = self.source.locate(image_name), self.source.locate(str(mask_name))
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (raw, image)]
        hint = ""
        if image.shape[:2] == raw.shape[1::-1]:
            hint = " Width and height are swapped: masks must fit the photo as rotated by its orientation tag (EXIF)."
        sides = f"{sizes[0]} pixels (width x height), its photo {photo} is {sizes[1]}"
        return f"mask of another size: {mask} is {sides}.{hint}"

    def identity(self) -> str:
        """Return a hash of the label space and of the names of all photos and masks, in order."""
        names = "\n".join(f"{image} {mask}" for image, mask in self.pairs)
        return hashlib.sha256(f"{super().identity()} {names}".encode("utf-8", "surrogateescape")).hexdigest()


class ADE20K(PairedFiles):
    """ADE20K scene parsing (SceneParse150): 20,210 train and 2,000 val photos of many sizes, 150 classes.

    Files: images/{training,validation}/*.jpg and annotations/{training,validation}/*.png below `root` (or below
    `root`/ADEChallengeData2016), or inside ADEChallengeData2016.zip, which `root` names or holds; 923 MB. Masks hold
    the raw ids 0 (ignored) and 1..150. Photos are from 256 to several thousand pixels on a side, mostly 683 x 512.
    Terms: research and education, non-commercial. Cite: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.

    Raises:
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """

    def __init__(self, root: str | Path | Source, split: str = "train", *, allow_missing: bool = False) -> None:
        folder = _choose("split", split, {"train": "training", "val": "validation"})
        source = open_source(root, zips=("ADEChallengeData2016.zip",))
        base = "ADEChallengeData2016/" if source.names(f"ADEChallengeData2016/images/{folder}") else ""
        images = _images(source, f"{base}images/{folder}")
        _require(images, root, f"{base}images/{folder}", "ade20k", f"{command('prepare ade20k')} downloads it (923 MB)")
        pairs = [(name, f"{base}annotations/{folder}/{PurePosixPath(name).stem}.png") for name in images]
        masks = _images(source, f"{base}annotations/{folder}")
        space = LabelSpace.of("ade20k")
        super().__init__(space, split, source, pairs, masks=masks, allow_missing=allow_missing)


class Cityscapes(PairedFiles):
    """Cityscapes, fine annotations: 2,975 train, 500 val, 1,525 test photos of 2048 x 1024, 19 classes.

    Files: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_gtFine_labelIds.png` below
    `root`, or inside leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, which `root` holds; 11 GB. Masks hold
    label ids 0..33, of which 19 are trained; if there are only `*_gtFine_labelTrainIds.png` (0..18, 255), these are
    read. Masks of the test split are not published: its samples have no labels.
    Terms: research, non-commercial, no redistribution. Cite: Cordts et al., "The Cityscapes Dataset for Semantic
    Urban Scene Understanding", CVPR 2016.

    Raises:
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """

    def __init__(self, root: str | Path | Source, split: str = "train", *, allow_missing: bool = False) -> None:
        folder = _choose("split", split, {"train": "train", "val": "val", "test": "test"})
        source = open_source(root, zips=("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"))
        ending = "_leftImg8bit.png"
        images = [name for name in _images(source, f"leftImg8bit/{folder}") if name.endswith(ending)]
        remedy = (
            "log in at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip and "
            f"gtFine_trainvaltest.zip, and run {command('prepare cityscapes')} FOLDER_OF_THE_ZIPS"
        )
        _require(images, root, f"leftImg8bit/{folder}", "cityscapes", remedy)
        masks = {name for name in source.names(f"gtFine/{folder}") if name.endswith(".png")}

        def stem(image: str) -> str:
            return image.replace("leftImg8bit/", "gtFine/", 1).removesuffix(ending) + "_gtFine_"

        space = LabelSpace.of("cityscapes")
        trained = not any(f"{stem(image)}labelIds.png" in masks for image in images)
        trained = trained and any(f"{stem(image)}labelTrainIds.png" in masks for image in images)
        kind, encoding = ("labelTrainIds", _train_ids(space)) if trained else ("labelIds", space)
        unlabelled = split == "test" and not masks
        pairs = [(image, None if unlabelled else f"{stem(image)}{kind}.png") for image in images]
        kinds = [name for name in masks if name.endswith(f"_{kind}.png")]
        super().__init__(space, split, source, pairs, encoding=encoding, masks=kinds, allow_missing=allow_missing)


class CamVid(PairedFiles):
    """CamVid in SegNet's form: 367 train, 101 val, 233 test photos of 480 x 360, 11 classes.

    Files: `{train,val,test}/*` and `{train,val,test}annot/*.png` with the same stem below `root`, or in a zip file of
    them; 200 MB. Raw ids 0..10, 11 is ignored. The val split is one short stretch of a sequence whose other frames
    are in train: report on test.
    Terms: CC BY-NC 4.0. Cite: Brostow et al., "Semantic Object Classes in Video", Pattern Recognition Letters 2009;
    Badrinarayanan et al., "SegNet", PAMI 2017.

    Raises:
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """

    def __init__(self, root: str | Path | Source, split: str = "train", *, allow_missing: bool = False) -> None:
        folder = _choose("split", split, {"train": "train", "val": "val", "test": "test"})
        source = open_source(root, zips=())
        base = base_of(source, folder)
        images = _images(source, f"{base}{folder}")
        _require(images, root, folder, "camvid", f"{command('prepare camvid')} downloads it")
        pairs = [(name, f"{base}{folder}annot/{PurePosixPath(name).stem}.png") for name in images]
        masks, space = _images(source, f"{base}{folder}annot"), LabelSpace.of("camvid")
        super().__init__(space, split, source, pairs, masks=masks, allow_missing=allow_missing)


def _images(source: Source, folder: str) -> list[str]:
    """List the image files below a folder, without hidden ones, sorted."""
    names = (PurePosixPath(name) for name in source.names(folder))
    shown = (name for name in names if not any(part.startswith((".", "__")) for part in name.parts))
    return [str(name) for name in shown if name.suffix.lower() in IMAGE_SUFFIXES]


def _train_ids(space: LabelSpace) -> LabelSpace:
    """Return the label space for masks of train ids: raw ids equal train ids."""
    return dataclasses.replace(space, raw_ids=tuple(range(len(space))), ignored_raw_ids=(IGNORE_LABEL,))


def _require(images: Sequence[str], root: str | Path | Source, folder: str, name: str, remedy: str) -> None:
    remote = isinstance(root, Source) or is_address(root)
    if images or (not remote and (Path(str(root)) / folder).is_dir()):  # an empty split raises another error
        return
    place = open_source(root, zips=()).locate(folder) if remote else Path(str(root)) / folder
    raise DatasetError(
        f"data set {name} not found: there is no folder {place}. To get it: {remedy}. If you have it "
        f"elsewhere, pass --data.root FOLDER or set {DATA_ROOT_VARIABLE}. Layouts: "
        f"{command('prepare')} --help."
    )


def _choose(kind: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise DatasetError(str(unknown_name(kind, name, known)))
    return known[name]


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
        ignore: Values in masks that are not labelled, besides `IGNORE_LABEL` where that is no class's raw id.

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
        unlabelled = np.isin(ids, [*self.ignore, *({IGNORE_LABEL} - set(self.label_space.raw_ids))])
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
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # upright, as files are read
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
