"""Small data sets in the real on-disk layouts, made from a seed."""

import cv2
import numpy as np

from resnest_seg.labels import LabelSpace

SIZE = (72, 96)


def picture_and_mask(space, index):
    """A photo whose colour says which class it shows, and its mask of raw ids."""
    random = np.random.default_rng(index)
    rows, columns = (side // 24 for side in SIZE)
    blocks = random.integers(0, len(space), (rows, columns))
    labels = blocks.repeat(24, axis=0).repeat(24, axis=1).astype(np.uint8)
    noise = random.integers(-20, 21, (*SIZE, 3))
    photo = np.clip(space.palette[labels].astype(int) + noise, 0, 255).astype(np.uint8)
    mask = space.decode(labels)
    if space.ignored_raw_ids:
        mask[:4] = space.ignored_raw_ids[0]
    return photo, mask


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


def read(path):
    """A mask as it is stored."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def ade20k_files(split, index):
    folder, stem = {"train": ("training", "train"), "val": ("validation", "val")}[split]
    name = f"ADE_{stem}_{index + 1:08d}"
    base = "ADEChallengeData2016"
    return f"{base}/images/{folder}/{name}.jpg", f"{base}/annotations/{folder}/{name}.png"


def cityscapes_files(split, index):
    name = f"ulm/ulm_{index:06d}_000019"
    return f"leftImg8bit/{split}/{name}_leftImg8bit.png", f"gtFine/{split}/{name}_gtFine_labelIds.png"


def camvid_files(split, index):
    return f"{split}/0001TP_{index:06d}.png", f"{split}annot/0001TP_{index:06d}.png"


LAYOUTS = {"ade20k": ade20k_files, "cityscapes": cityscapes_files, "camvid": camvid_files}


def make(name, root, count=4):
    """Write `count` train and `count` val pairs of a data set below `root`; returns root."""
    space = LabelSpace.of(name)
    for number, split in enumerate(("train", "val")):
        for index in range(count):
            photo, mask = picture_and_mask(space, 100 * number + index)
            image_file, mask_file = LAYOUTS[name](split, index)
            write(root / image_file, photo)
            write(root / mask_file, mask)
    return root
