"""Unlabelled photos: where they are, the views of them that a step trains on, and batches beside labelled samples.

Everything is decided by (seed, epoch, index) alone, as for labelled samples: an epoch of the photos is a permutation of
them, and their partners in CutMix follow another one. So neither worker processes nor a resumed run change anything.

Shapes: N labelled and U unlabelled images of a batch, V strong views, C channels, H x W pixels of a crop.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from resnest_seg.config import SemiConfig
from resnest_seg.data.datasets import PairedFiles, Sample, SegmentationDataset
from resnest_seg.data.layouts import PHOTO_SUFFIXES, recognise
from resnest_seg.data.loader import AugmentedSamples, Division, run_loader, stack_images, stack_samples
from resnest_seg.data.shards import is_packed
from resnest_seg.data.tiles import paired_files
from resnest_seg.data.transforms import OwnTransform, TrainTransform, sample_seed
from resnest_seg.errors import DatasetError, ResNeStSegError, printable
from resnest_seg.io.bands import BandReader, Raster, decode_photo, without_labels
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.labels import ignored_pixels
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.remote import is_address
from resnest_seg.storage.sources import FolderSource, Source
from resnest_seg.teachers.pseudo_labelling import Box, draw_box
from resnest_seg.teachers.strong_views import strong_view

VIEWS = {"fixmatch": 1, "unimatch": 2}
"""Method -> strong views of a photo."""

NO_BOX = Box(0, 0, 0, 0)

LOOKED_AT = 50_000
"""Names among which masks are looked for by their layout; of more it takes seconds."""


@dataclasses.dataclass(frozen=True)
class UnlabelledPhotos:
    """Photos without masks, in a fixed order.

    Attributes:
        source: The storage of their files.
        names: Their names in it, sorted.
        bands: How bands are read, where the images are no photos (8-bit RGB).
        labelled: Number of files that were left out because they are samples of the training split.
        held_out: Number of photos that are samples of the validation split.
        scored: Number of files that were left out because they are what a fold is scored on.
    """

    source: Source
    names: tuple[str, ...]
    bands: BandReader | None = None
    labelled: int = 0
    held_out: int = 0
    scored: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Raster:
        """Read a photo.

        Raises:
            DatasetError: It cannot be read; names the file.
        """
        name = self.names[index]
        data, where = self.source.read(name), self.source.locate(name)
        return decode_photo(data, where) if self.bands is None else self.bands.decode(data, where)

    @property
    def identity(self) -> str:
        """The number of photos, and a hash of their names."""
        names = "\n".join(self.names).encode("utf-8", "surrogateescape")
        return f"{len(self)} photos, SHA-256 {hashlib.sha256(names).hexdigest()[:16]}"

    def check(self, count: int) -> None:
        """Read `count` photos, evenly spread.

        Raises:
            DatasetError: One cannot be read, or holds other bands than the first; names the file.
        """
        kinds: dict[str, str] = {}
        for index in np.unique(np.linspace(0, len(self) - 1, min(count, len(self)), dtype=int)):
            pixels = self[index].pixels
            kinds.setdefault(f"{pixels.shape[2]} bands of {pixels.dtype}", self.source.locate(self.names[index]))
        if len(kinds) > 1:
            (first, one), (second, other) = itertools.islice(kinds.items(), 2)
            raise DatasetError(f"unlabelled photos differ: {one} holds {first}, and {other} {second}.")


def find_photos(
    where: str | Source,
    *,
    train: SegmentationDataset,
    validation: SegmentationDataset,
    scored: SegmentationDataset | None = None,
    bands: BandReader | None = None,
) -> UnlabelledPhotos:
    """List unlabelled photos, but for those that are samples of the training split, or of the part of a fold.

    Args:
        where: A folder (with its subfolders; hidden files are left out), a pattern with `*`, `?`, `[...]` or `**` for
            any subfolders, a zip file, or an address; or a storage that is open.
        train: The training split.
        validation: The split that is validated on; what is in it is counted, and stays.
        scored: The part that a fold is scored on; what is in it is left out. None is of a run without folds.
        bands: How bands are read.

    Raises:
        DatasetError: Nothing is there, there is no photo but those that are left out, or there are masks.
    """
    source, names = _listed(where)
    suffixes = IMAGE_SUFFIXES if bands is None else PHOTO_SUFFIXES
    photos = [name for name in names if name.lower().endswith(suffixes)]
    shown = printable(str(where)) if isinstance(where, str) else source.locate("")
    if not photos:
        raise DatasetError(f"train.unlabelled {shown} has no photo ({', '.join(suffixes)}) among {len(names)} files.")
    if isinstance(where, str) and is_packed(where):
        raise DatasetError(
            f"train.unlabelled {shown} holds packed shards: name a folder, zip file or address of photos."
        )
    place = _Places()
    places = {name: place(source, name) for name in photos}
    masks = _masks(train, place) | _masks(validation, place)
    mask = next((name for name in photos if places[name] in masks), None) or _mask_among(photos)
    if mask is not None:
        raise DatasetError(
            f"train.unlabelled {shown} has masks among the photos, such as {source.locate(mask)}: name the folder of "
            "the photos alone, or a pattern."
        )
    return _without_samples(UnlabelledPhotos(source, tuple(photos), bands), places, shown,
                            samples=(_samples(train, place), _samples(validation, place)),
                            scored=None if scored is None else _samples(scored, place))  # fmt: skip


def _without_samples(
    photos: UnlabelledPhotos,
    places: Mapping[str, str],
    shown: str,
    *,
    samples: tuple[set[str], set[str]],
    scored: set[str] | None,
) -> UnlabelledPhotos:
    """The photos that may be learned from, by the places of the training, validation and scored samples."""
    (labelled, held_out), names = samples, photos.names
    apart = (scored or set()) - labelled
    left_out = labelled | apart
    left = tuple(name for name in names if places[name] not in left_out)
    if not left:
        or_scored = "" if scored is None else ", or of the part that this fold is scored on"
        raise DatasetError(
            f"all {len(names)} photos of train.unlabelled {shown} are samples of the training split, which has their "
            f"labels{or_scored}: choose fewer labelled samples (data.samples), or other photos."
        )
    return dataclasses.replace(
        photos,
        names=left,
        labelled=sum(places[name] in labelled for name in names),
        held_out=sum(places[name] in held_out for name in left),
        scored=sum(places[name] in apart for name in names),
    )


def _listed(where: str | Source) -> tuple[Source, list[str]]:
    """A storage and the names of visible files in it, sorted."""
    if isinstance(where, Source) or is_address(where) or Path(where).exists() or not glob.has_magic(where):
        if isinstance(where, str) and not is_address(where) and not Path(where).exists():
            raise DatasetError(f"train.unlabelled {printable(where)}: there is no such folder or file.")
        source = open_source(where, zips=())
        names = source.names("")
    else:
        parts = Path(where).parts
        root = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
        source = FolderSource(root)
        matches = glob.glob(where, recursive=True)  # noqa: PTH207, Path.glob takes no absolute patterns
        # A file has several matches of a pattern with several `**`.
        names = sorted({Path(match).relative_to(root).as_posix() for match in matches if Path(match).is_file()})
        if not names:
            hint = " A bracket that is part of a name is written [[]." if "[" in where else ""
            raise DatasetError(f"train.unlabelled {printable(where)}: no file fits this pattern.{hint}")
    return source, [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


def _mask_among(names: Sequence[str]) -> str | None:
    """A mask among files that lie as photos and masks of a data set do."""
    try:
        pairing = recognise(names) if len(names) <= LOOKED_AT else None
    except DatasetError:  # several layouts fit
        return None
    return None if pairing is None else next((photo.mask for photo in pairing.photos if photo.mask is not None), None)


class _Places:
    """What a file is known by, whatever root or link it is named by."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}

    def __call__(self, source: Source, name: str) -> str:
        if not isinstance(source, FolderSource):
            return source.locate(name)
        path = source.local(name)
        if path.is_symlink():
            return str(path.resolve())
        if path.parent not in self._folders:  # to resolve every path of a million takes half a minute
            self._folders[path.parent] = path.parent.resolve()
        return str(self._folders[path.parent] / path.name)


def _samples(dataset: SegmentationDataset, place: _Places) -> set[str]:
    """The places of the photos of a data set of files."""
    files = paired_files(dataset)
    if not isinstance(files, PairedFiles):
        return set()
    return {place(files.source, dataset.group(index)) for index in range(len(dataset))}


def _masks(dataset: SegmentationDataset, place: _Places) -> set[str]:
    """The places of the masks of a data set of files."""
    files = paired_files(dataset)
    if not isinstance(files, PairedFiles):
        return set()
    return {place(files.source, mask) for image, mask in files.pairs if mask is not None and mask != image}


class Views(NamedTuple):
    """The views of a photo.

    Attributes:
        weak: [H, W, C]: the crop.
        valid: bool [H, W]: false in the padding, and where no band has data.
        strong: V views of the crop [H, W, C], each with the partner's strong view in its box.
        boxes: The boxes of the strong views.
        partner: [H, W, C]: the crop of the other photo in the boxes.
        partner_valid: bool [H, W].
        names: The files of both.
    """

    weak: NDArray[Any]
    valid: NDArray[np.bool_]
    strong: tuple[NDArray[Any], ...]
    boxes: tuple[Box, ...]
    partner: NDArray[Any]
    partner_valid: NDArray[np.bool_]
    names: tuple[str, str]


class PhotoKey(NamedTuple):
    """A photo of a batch and its partner in CutMix, by epoch and index of both."""

    epoch: int
    photo: int
    partner_epoch: int
    partner: int


@dataclasses.dataclass(frozen=True)
class PhotoViews:
    """Makes views of photos.

    Attributes:
        photos: The photos.
        transform: What labelled samples are augmented by, of which the weak view takes the geometry.
        semi: The method, which has one or two strong views, and the probability of CutMix.
        seed: Seed of the run.
        wide: Labels are bits of 16.
    """

    photos: UnlabelledPhotos
    transform: TrainTransform | OwnTransform
    semi: SemiConfig
    seed: int
    wide: bool = False

    @property
    def count(self) -> int:
        """Strong views of a photo, V."""
        return VIEWS[self.semi.method]

    def order(self, division: Division) -> Iterator[list[PhotoKey]]:
        """The photos of every micro-batch of a process."""
        own, partners = (
            division.batches(len(self.photos), seed=self._stream(number), ratio=self.semi.ratio) for number in (0, 1)
        )
        for batch, others in zip(own, partners, strict=True):
            yield [PhotoKey(*key, *other) for key, other in zip(batch, others, strict=True)]

    def __call__(self, key: PhotoKey) -> Views:
        """Read a photo and its partner, and make their views.

        Raises:
            DatasetError: One of them cannot be read; names the file.
        """
        own = sample_seed(self._stream(0), key.epoch, key.photo)
        weak, valid = self._crop(key.photo, own)
        random = np.random.default_rng([own, 1])
        boxes = tuple(
            draw_box(valid.shape, random) if random.random() < self.semi.cutmix else NO_BOX for _ in range(self.count)
        )
        strong = [strong_view(weak, seed=sample_seed(own, 2, view)) for view in range(self.count)]
        names = self.photos.names[key.photo], self.photos.names[key.partner]
        if not any(box.height for box in boxes):  # nothing is seen of the partner
            return Views(weak, valid, tuple(strong), boxes, weak, valid, names)
        other = sample_seed(self._stream(1), key.partner_epoch, key.partner)
        partner, partner_valid = self._crop(key.partner, other)
        for view, box in enumerate(boxes):
            if box.height:
                pasted = strong_view(partner, seed=sample_seed(other, 2, view))
                strong[view] = paste(strong[view], pasted, box)
        return Views(weak, valid, tuple(strong), boxes, partner, partner_valid, names)

    def _stream(self, number: int) -> int:
        """Seed of the order and the views of the photos (0) or of the partners (1), apart from labelled samples'."""
        return sample_seed(self.seed, 1 << 40, number)

    def _crop(self, index: int, seed: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        pixels, has_data, _ = self.photos[index]
        nothing = np.zeros(pixels.shape[:2], np.uint16 if self.wide else np.uint8)
        image, labels = self.transform.weak(pixels, without_labels(nothing, has_data), seed=seed)
        return image, ~ignored_pixels(labels)


def paste(image: NDArray[Any], other: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return an image [H, W, ...] with the pixels of another one within a box."""
    mixed = image.copy()
    within = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    mixed[within] = other[within]
    return mixed


class MixedBatch(NamedTuple):
    """Labelled samples and unlabelled photos of one size.

    Attributes:
        images: Labelled images [N, C, H, W], see `resnest_seg.data.loader.Batch`.
        labels: [N, H, W].
        names: N names of samples, then those of photos and partners.
        weak: [U, C, H, W].
        valid: bool [U, H, W].
        strong: [V * U, C, H, W]: the first views of all photos, then the second ones.
        boxes: int64 [V * U, 4], as `Box`.
        partner: [U, C, H, W].
        partner_valid: bool [U, H, W].
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    weak: Tensor
    valid: Tensor
    strong: Tensor
    boxes: Tensor
    partner: Tensor
    partner_valid: Tensor


def mixed_batches(
    samples: AugmentedSamples,
    order: Iterator[list[tuple[int, int]]],
    views: PhotoViews,
    photos: Iterator[list[PhotoKey]],
    *,
    workers: int,
    pin_memory: bool,
) -> Generator[MixedBatch, None, None]:
    """Load batches of labelled samples and unlabelled photos, see `resnest_seg.data.loader.load_batches`.

    Args:
        samples: The labelled samples.
        order: The (epoch, index) of those of each batch.
        views: The photos.
        photos: Those of each batch.
        workers: Loader processes; the batches do not depend on their number.
        pin_memory: Put batches into page-locked memory.

    Raises:
        DatasetError: A file cannot be read, or photos have other bands or sizes than samples.
        ResNeStSegError: A loader process could not be started, or died.
    """
    keys = ([*some, *others] for some, others in zip(order, photos, strict=True))
    yield from run_loader(_Mixed(samples, views), keys, stack_mixed, workers=workers, pin_memory=pin_memory)


class _Mixed(Dataset["Sample | Views | ResNeStSegError"]):
    """Samples and views by their keys; errors are returned, see `AugmentedSamples`."""

    def __init__(self, samples: AugmentedSamples, views: PhotoViews) -> None:
        self.samples, self.views = samples, views

    def __getitem__(self, key: tuple[int, int] | PhotoKey) -> Sample | Views | ResNeStSegError:
        if not isinstance(key, PhotoKey):
            return self.samples[key]
        try:
            return self.views(key)
        except ResNeStSegError as error:
            return error


def stack_mixed(items: Sequence[Sample | Views | ResNeStSegError]) -> MixedBatch | ResNeStSegError:
    """Stack samples and views of one size and type; returns the first error, or that which says how they differ."""
    batch = stack_samples([item for item in items if not isinstance(item, Views)])
    if isinstance(batch, ResNeStSegError):
        return batch
    views = [item for item in items if isinstance(item, Views)]
    expected = batch.images.shape[1:], batch.images.dtype
    for view in views:
        for image, name in zip((view.weak, view.partner), view.names, strict=True):
            pixels = torch.from_numpy(image[:1, :1])
            found = torch.Size((image.shape[2], *image.shape[:2])), pixels.dtype
            if found != expected:
                return DatasetError(
                    f"the unlabelled photo {printable(name)} gives a crop of {list(found[0])} {found[1]}, and the "
                    f"labelled samples {list(expected[0])} {expected[1]} (channels, height, width): photos and samples "
                    "must have the same bands, and a transform of your own must give one size."
                )
    strong = [view.strong[number] for number in range(len(views[0].strong)) for view in views]
    boxes = [view.boxes[number] for number in range(len(views[0].boxes)) for view in views]
    return MixedBatch(
        images=batch.images,
        labels=batch.labels,
        names=[*batch.names, *(printable(name) for view in views for name in dict.fromkeys(view.names))],
        weak=stack_images([view.weak for view in views]),
        valid=torch.from_numpy(np.stack([view.valid for view in views])),
        strong=stack_images(strong),
        boxes=torch.tensor(boxes, dtype=torch.int64),
        partner=stack_images([view.partner for view in views]),
        partner_valid=torch.from_numpy(np.stack([view.partner_valid for view in views])),
    )
