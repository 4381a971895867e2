"""Data sets of many bands: samples, statistics, augmentation, loading and checks; 8-bit RGB is as it was."""

import argparse
import dataclasses
import io
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_data import make
from support.rasters import NAMES, make_scenes, scene, values, write_raster

from resnest_seg.cli.parsing.options import bands_in
from resnest_seg.config import DataConfig, config_from_dict
from resnest_seg.data.build import dataset_for
from resnest_seg.data.checks import check_samples, diagnose
from resnest_seg.data.class_balance import pixel_statistics
from resnest_seg.data.datasets import CamVid, PairDataset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.loader import build_loader
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.data.transforms import TrainTransform, class_mix, resize_like_opencv, resize_like_pil
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.io.bands import BandReader, decode_photo
from resnest_seg.io.georeference import warn_once
from resnest_seg.models.loading import segmenter_for
from resnest_seg.training.assembly import Parts, splits, with_bands


def opened(root, split="train", **data):
    return dataset_for(DataConfig(dataset="folder", root=str(root), **data), split)


def test_samples_have_the_values_of_their_files(tmp_path):
    dataset = opened(make_scenes(tmp_path), bands=("nir", "red"))
    for index in range(len(dataset)):
        pixels, labels = scene(index)
        sample = dataset[index]
        assert sample.image.dtype == np.uint16
        assert np.array_equal(sample.image, pixels[..., [3, 0]])
        assert np.array_equal(sample.labels, labels)


def test_pixels_without_data_get_the_mean_and_are_ignored(tmp_path):
    make_scenes(tmp_path, nodata=0)
    statistics = pixel_statistics(opened(tmp_path, bands=(1, 2, 3, 4)))
    everything = np.concatenate([scene(index)[0][8:].reshape(-1, 4) for index in range(6)]).astype(np.float64)
    assert np.allclose(statistics.mean, everything.mean(axis=0), rtol=1e-13)
    assert np.allclose(statistics.std, everything.std(axis=0), rtol=1e-12)
    assert statistics.kind == "uint16"
    assert np.isclose(statistics.missing, 8 / 48)
    sample = opened(tmp_path, bands=(1, 2, 3, 4), pixel_mean=statistics.mean, pixel_std=statistics.std)[0]
    assert (sample.labels[:8] == 255).all()
    assert not (sample.labels[8:] == 255).any()
    assert (sample.image[:8] == np.round(statistics.mean)).all()
    assert abs((sample.image[:8] - statistics.mean) / statistics.std).max() < 0.01


def test_statistics_do_not_depend_on_workers(tmp_path):
    dataset = opened(make_scenes(tmp_path, nodata=0), bands=NAMES)
    assert pixel_statistics(dataset, workers=0) == pixel_statistics(dataset, workers=2)


def test_zips_arrays_and_other_data_sets_have_bands(tmp_path):
    for index in range(3):
        pixels, labels = scene(index)
        (tmp_path / "images").mkdir(exist_ok=True)
        np.save(tmp_path / "images" / f"train{index}.npy", pixels)
        (tmp_path / "masks").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "masks" / f"train{index}.png"), labels)
    (tmp_path / "train.txt").write_text("train0\ntrain1\ntrain2\n", encoding="utf-8")
    dataset = opened(tmp_path, bands=(4, 2))
    assert np.array_equal(dataset[1].image, scene(1)[0][..., [3, 1]])
    camvid = CamVid(make("camvid", tmp_path / "camvid"))
    plain = camvid[0]
    camvid.read_as(BandReader((3, 2, 1)))
    assert np.array_equal(camvid[0].image, plain.image[..., ::-1])


def test_differing_files_are_named(tmp_path):
    make_scenes(tmp_path)
    write_raster(tmp_path / "images" / "train" / "3.tif", scene(3)[0][..., :2])
    with pytest.raises(DatasetError, match=r"3\.tif has 2 bands, and data.bands asks for band 4"):
        pixel_statistics(opened(tmp_path, bands=(1, 4)))
    write_raster(tmp_path / "images" / "train" / "3.tif", scene(3)[0].astype(np.float32))
    dataset = opened(tmp_path, bands=(1, 4))
    with pytest.raises(DatasetError, match=r"0\.tif holds uint16, and .*3\.tif float32"):
        pixel_statistics(dataset)
    with pytest.raises(DatasetError, match=r"0\.tif holds uint16, and .*3\.tif float32"):
        check_samples(dataset, count=64)
    loader = build_loader(opened(tmp_path, bands=(1, 4)), batch_size=6)
    with pytest.raises(DatasetError, match=r"0\.tif holds 2 bands of uint16, and .*3\.tif 2 bands of float32"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_rasterio_the_check_names_the_extra(tmp_path, monkeypatch, workers):
    make_scenes(tmp_path)
    monkeypatch.setitem(sys.modules, "rasterio", None)  # also in loader processes, which are forked
    with pytest.raises(
        ConfigError, match=r"^TIFF files of many bands need rasterio: pip install 'resnest-seg\[large\]'"
    ):
        diagnose([opened(tmp_path, bands=(1, 4))], workers=workers)


def test_a_constant_band_is_told_and_divides_by_one(tmp_path):
    make_scenes(tmp_path)
    for path in (tmp_path / "images" / "train").iterdir():
        pixels = scene(int(path.stem))[0]
        pixels[..., 1] = 5
        write_raster(path, pixels)
    found = pixel_statistics(opened(tmp_path, bands=(3, 2)))
    assert (found.mean[1], found.std[1]) == (5, 1)
    assert re.search("band 2 has one value in all files of train", found.warnings[0])


def test_the_check_shows_statistics_in_one_pass(tmp_path):
    make_scenes(tmp_path, nodata=0)
    splits = [opened(tmp_path, split, bands=NAMES) for split in ("train", "val")]
    diagnosis = diagnose(splits)
    expected = pixel_statistics(splits[0])
    assert (diagnosis.pixel_mean, diagnosis.pixel_std) == (expected.mean, expected.std)
    assert not diagnosis.errors
    assert diagnosis.ignored["train"] == pytest.approx(8 / 48)
    assert diagnose([Synthetic("val")], limit=2).pixel_mean == ()


def test_undeclared_nan_is_said_once(tmp_path):
    make_scenes(tmp_path)
    for index in (1, 2):
        pixels = scene(index)[0].astype(np.float32)
        pixels[:3] = np.nan
        write_raster(tmp_path / "images" / "train" / f"{index}.tif", pixels)
    for index in (0, 3, 4, 5):
        write_raster(tmp_path / "images" / "train" / f"{index}.tif", scene(index)[0].astype(np.float32))
    dataset = opened(tmp_path, bands=(1, 2, 3, 4))
    (warning,) = pixel_statistics(dataset).warnings
    assert re.search(r"2 files of train hold NaN, which is taken for no data, the first is .*1\.tif", warning)
    assert [finding.message for finding in diagnose([dataset]).findings if finding.kind == "bands"] == [warning]


RAW = DataConfig(
    bands=(1, 2, 3, 4, 5), pixel_mean=(1000.0,) * 5, pixel_std=(9.0,) * 5, crop_size=40, base_size=60, rotate=25.0,
    blur=1.0, coarse_dropout=1.0,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
def test_augmentation_of_any_bands(kind, count):
    """A law: the order of bands changes nothing but their order; and geometry is that of the labels."""
    data = dataclasses.replace(RAW, bands=tuple(range(1, count + 1)), pixel_mean=(100.0,) * count,
                               pixel_std=(1.0,) * count)  # fmt: skip
    pixels = np.clip(values("float32", 50, 70, count) / 8, 0, 255).astype(kind)
    labels = np.random.default_rng(1).integers(0, 4, (50, 70), dtype=np.uint8)
    transform = TrainTransform.from_config(data)
    for seed in range(4):
        image, mask = transform(pixels, labels, seed=seed)
        assert (image.dtype, image.shape, mask.shape) == (np.dtype(kind), (40, 40, count), (40, 40))
        turned, other = transform(np.ascontiguousarray(pixels[..., ::-1]), labels, seed=seed)
        assert np.array_equal(mask, other)
        assert np.allclose(turned[..., ::-1].astype(float), image.astype(float), rtol=1e-5, atol=1)


def test_geometry_of_bands_is_that_of_labels():
    """An image whose every band is its labels stays so, apart from borders between classes."""
    labels = scene(3, size=96)[1]
    pixels = labels[..., None].repeat(6, axis=2).astype(np.uint16) * 1000
    data = DataConfig(bands=tuple(range(1, 7)), pixel_mean=(0.0,) * 6, pixel_std=(1.0,) * 6, crop_size=64, base_size=96,
                      rotate=30.0)  # fmt: skip
    transform = TrainTransform.from_config(data)
    for seed in range(5):
        image, mask = transform(pixels, labels, seed=seed)
        known = mask != 255
        assert (abs(image[known].astype(int) - 1000 * mask[known][:, None].astype(int)) < 500).mean() > 0.9
        assert abs(image[..., 0].astype(int) - image[..., 5]).max() <= 1


@pytest.mark.parametrize("resize", [resize_like_pil, resize_like_opencv])
@pytest.mark.parametrize("size", [(20, 30), (70, 90), (30, 90)])
def test_bands_are_resized_like_photos(resize, size):
    """A photo's bands in 16 bits, times 100, come out as the photo, times 100, within its rounding."""
    photo = cv2.GaussianBlur(values("uint8", 40, 60, 3), (0, 0), 3)
    labels = np.zeros((40, 60), np.uint8)
    plain, _ = resize(photo, labels, size)
    for kind, scale in (("uint16", 100), ("int16", -100), ("float32", 0.5)):
        deep, _ = resize((photo.astype(np.float32) * scale).astype(kind), labels, size)
        assert deep.dtype == kind
        assert abs(deep / scale - plain).max() < 1.2


def test_class_mix_keeps_types():
    (one, labels), (other, others) = scene(0), scene(1)
    image, mixed = class_mix((one, labels), (other, others), np.random.default_rng(0))
    assert image.dtype == np.uint16
    assert all(tuple(image[y, x]) in (tuple(one[y, x]), tuple(other[y, x])) for y, x in ((0, 0), (20, 30), (40, 8)))
    assert mixed.dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "mmseg"}, "data.recipe mmseg changes colours .* set data.recipe to encoding"),
        (
            {"color_jitter": 0.2},
            "data.color_jitter is for 8-bit RGB, and the images are uint16 of 4 bands: set it to 0",
        ),
    ],
)
def test_colour_augmentations_are_refused(change, message):
    transform = TrainTransform.from_config(DataConfig(**change))
    with pytest.raises(ConfigError, match=message):
        transform.check(scene(0)[0])
    transform.check(values("uint8", 4, 4, 3))


def test_own_transforms_get_the_raw_array(tmp_path):
    seen = []

    def own(image, labels, random):
        seen.append((image.dtype, image.shape))
        return image[:16, :16], labels[:16, :16]

    dataset = opened(make_scenes(tmp_path), bands=NAMES)
    (batch,) = build_loader(dataset, batch_size=6, transform=own)
    assert seen == [(np.dtype("uint16"), (48, 48, 4))] * 6
    assert (batch.images.dtype, batch.images.shape) == (torch.uint16, (6, 4, 16, 16))
    with pytest.raises(ConfigError, match=r"transform must give uint16 image \[H, W, C\].*float64"):
        list(build_loader(dataset, transform=lambda image, labels, random: (image / 3, labels)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_type_of_the_files(tmp_path, workers):
    dataset = opened(make_scenes(tmp_path), bands=NAMES)
    batches = list(build_loader(dataset, batch_size=3, workers=workers))
    assert np.array_equal(batches[0].images[1].numpy().transpose(1, 2, 0), scene(1)[0])


def test_pairs_of_arrays():
    pairs = [scene(index) for index in range(4)]
    dataset = PairDataset(pairs, ("ground", "tree", "roof"))
    assert np.array_equal(dataset[2].image, pairs[2][0])
    tensors = PairDataset([(torch.from_numpy(image).permute(2, 0, 1), mask) for image, mask in pairs], ("a", "b", "c"))
    assert np.array_equal(tensors[2].image, pairs[2][0])
    floats = pairs[0][0].astype(np.float32)
    floats[:4] = np.nan
    holes = PairDataset([(floats, pairs[0][1])], ("a", "b", "c"))
    holes.read_as(BandReader(fill=(1.0, 2.0, 3.0, 4.0)))
    assert (holes[0].labels[:4] == 255).all()
    assert (holes[0].image[0, 0] == [1, 2, 3, 4]).all()


def test_one_data_set_serves_runs_of_different_bands(monkeypatch):
    """The next run, and an evaluation after it, read none of the bands of the run before."""
    monkeypatch.setenv("RANK", "1")  # which says nothing
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 256, (40, 40, 3), np.uint8), np.eye(40, dtype=np.uint8)) for _ in range(2)]
    dataset = PairDataset(pairs, ("road", "sky"))
    runs = []
    for bands in (None, (3, 2, 1), (2, 3, 1), None):
        config = config_from_dict(
            {"model": {"encoder": "resnest14_tiny", "head": "fcn"}, "data": {"bands": bands, "crop_size": 32}}
        )
        train, validation = splits(config, Parts(dataset, dataset))
        assert train.bands == validation.bands == (None if bands is None else BandReader(bands))
        config = with_bands(config, train, validation, recipe=None, begun=None)
        runs.append((segmenter_for(config, dataset.label_space, pretrained=False), dataset.bands))
    for segmenter, reader in runs:
        evaluate(segmenter, dataset)
        assert dataset.bands == reader
    told = BandReader((3, 1, 2))
    dataset.read_as(told)
    for segmenter, _ in runs:
        evaluate(segmenter, dataset)
    splits(config, Parts(dataset, dataset))
    assert dataset.bands is told


def test_drawn_images_have_no_bands():
    with pytest.raises(ConfigError, match=r"data.bands belongs to images that are read from files"):
        dataset_for(DataConfig(dataset="synthetic", bands=(1, 2, 3)), "train")


def test_photos_of_other_bands_are_told_the_key(tmp_path):
    with pytest.raises(DatasetError, match=r"to use the bands of all files, train with .*: --data.bands 1,2,3"):
        FolderDataset(make_scenes(tmp_path))[0]


def photo_files(root, **options):
    """A photo in a TIFF, its first rows black, and a mask of class 0 with some pixels of class 1."""
    pixels = np.random.default_rng(0).integers(1, 250, (40, 48, 3), dtype=np.uint8)
    pixels[:9] = 0
    labels = np.zeros((40, 48), np.uint8)
    labels[20:, 10:] = 1
    write_raster(root / "images" / "train" / "a.tif", pixels, **({"photometric": "RGB"} | options))
    write_raster(root / "masks" / "train" / "a.tif", labels[..., None])
    (root / "classes.csv").write_text("name,id\nground,0\ntree,1\n", encoding="utf-8")
    return pixels, labels


@pytest.mark.parametrize("how", ["nodata", "mask", "neither"])
def test_photos_without_data_are_ignored_as_by_windows(how, tmp_path):
    empty = np.arange(40)[:, None] < 9
    marked = {"nodata": {"nodata": 0}, "mask": {"mask": np.where(empty, 0, 255) * np.ones((1, 48), np.uint8)}}
    pixels, labels = photo_files(tmp_path, **marked.get(how, {}))
    whole, windows = opened(tmp_path), opened(tmp_path, window=64)
    expected = labels if how == "neither" else np.where(empty, 255, labels)
    for dataset in (whole, windows):
        assert np.array_equal(dataset[0].image, pixels)
        assert np.array_equal(dataset[0].labels, expected)


def test_a_turned_photo_and_other_formats_have_no_mask_and_are_read_once(tmp_path, monkeypatch):
    pixels, _ = photo_files(tmp_path, nodata=0)
    data = (tmp_path / "images" / "train" / "a.tif").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        picture.save(tmp_path / "turned.tif", tiffinfo={274: 3, 42113: "0"})
    turned = decode_photo((tmp_path / "turned.tif").read_bytes(), "turned")
    assert turned.valid is None
    assert np.array_equal(turned.pixels, pixels[::-1, ::-1])
    monkeypatch.setitem(sys.modules, "rasterio", None)
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"no-data value, .* pip install 'resnest-seg\[large\]'") as given:
        assert [decode_photo(data, name).valid for name in ("here", "there")] == [None, None]
    assert len(given) == 1, "one message for all files of a data set"
    with pytest.raises(ConfigError, match="rasterio"):
        BandReader((1, 2, 3)).decode(data, "x")
    for suffix in (".png", ".jpg"):  # with no need of rasterio, and without a warning
        encoded = cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()
        assert decode_photo(encoded, "x").valid is None


def test_options_name_as_many_bands_as_the_model_takes():
    trained = DataConfig(bands=("red", "green", "blue", "nir"), pixel_mean=(9.0,) * 4, pixel_std=(1.0,) * 4)
    chosen = bands_in(argparse.Namespace(bands="5,3,2,8", nodata=0.0), trained)
    assert chosen == BandReader((5, 3, 2, 8), 0.0, (9.0,) * 4)
    with pytest.raises(ConfigError, match=r"in_channels is 4, and --data.bands names 3 bands: .*red, green, blue, nir"):
        bands_in(argparse.Namespace(bands="1,2,3", nodata=None), trained)
