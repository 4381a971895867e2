"""Raster files of many bands, and a small data set of them in which only one band tells two classes apart."""

import cv2
import numpy as np
import rasterio
from rasterio import Affine

NAMES = ("red", "green", "blue", "nir")


def write_raster(path, pixels, *, names=(), nodata=None, mask=None, **profile):
    """Write [H, W, C] as a TIFF; `mask` [H, W] goes into the file as its internal mask."""
    height, width, count = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype,
                      nodata=nodata, crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile) as file,
    ):  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
        if mask is not None:
            file.write_mask(mask)
    return path


def values(kind, *shape, seed=0):
    """Values over most of a type's range."""
    random = np.random.default_rng(seed)
    if np.dtype(kind).kind == "f":
        return random.normal(1000, 300, shape).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def scene(index, *, size=48, block=16):
    """Four bands of 16 bits and labels: class 1 differs from 0 in the fourth band alone, class 2 in all but it."""
    random = np.random.default_rng(index)
    labels = (
        random.integers(0, 3, (size // block, size // block))
        .repeat(block, axis=0)
        .repeat(block, axis=1)
        .astype(np.uint8)
    )
    pixels = random.normal(1200, 40, (size, size, 4))
    pixels[..., :3] += 500 * (labels == 2)[..., None]
    pixels[..., 3] += 900 * (labels == 1)
    return pixels.round().astype(np.uint16), labels


def make_scenes(root, *, train=6, val=3, size=48, block=16, nodata=None):
    """Write scenes in the layout of a folder data set; with `nodata`, their first rows have no data. Returns root."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for index in range(count):
            pixels, labels = scene(first + index, size=size, block=block)
            if nodata is not None:
                pixels[:8] = nodata
            write_raster(root / "images" / split / f"{index}.tif", pixels, names=NAMES, nodata=nodata)
            mask = root / "masks" / split / f"{index}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(mask), labels)
    (root / "classes.csv").write_text("name,id\nground,0\ntree,1\nroof,2\n", encoding="utf-8")
    return root
