"""Unlabelled photos: which they are, their views, and their batches."""

import dataclasses
import zipfile

import cv2
import numpy as np
import pytest
import torch
from support import fake_data

import resnest_seg
from resnest_seg.config import DataConfig, SemiConfig
from resnest_seg.data.datasets import Subset
from resnest_seg.data.loader import AugmentedSamples, Division
from resnest_seg.data.transforms import TrainTransform, sample_seed, sample_transform
from resnest_seg.errors import DatasetError
from resnest_seg.io.bands import BandReader
from resnest_seg.teachers.pseudo_labelling import Box
from resnest_seg.teachers.strong_views import strong_view
from resnest_seg.teachers.unlabelled import (
    NO_BOX,
    PhotoKey,
    PhotoViews,
    find_photos,
    mixed_batches,
    paste,
)

PAIRS = resnest_seg.PairDataset(
    [(np.full((40, 50, 3), 40 * index, np.uint8), np.full((40, 50), index % 3, np.uint8)) for index in range(5)],
    ["a", "b", "c"],
)


def photo(seed, size=(50, 60), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A data set of three photos with masks for training and one for validation, and two photos more."""
    root = tmp_path / "my photos [1]"
    for split, names in (("train", "abc"), ("val", "v")):
        for seed, name in enumerate(names):
            fake_data.write(root / "images" / split / f"{name} ü.png", photo(seed))
            fake_data.write(root / "masks" / split / f"{name} ü.png", np.full((50, 60), seed, np.uint8))
    for seed, name in enumerate(("x", "y #2")):
        fake_data.write(root / "more" / f"{name}.jpg", photo(10 + seed, size=(30 + seed, 80)))
    (root / "more" / "notes.txt").write_text("no photo")
    fake_data.write(root / "more" / ".hidden" / "z.png", photo(3))
    return root


def splits(root):
    return (resnest_seg.FolderDataset(root, split) for split in ("train", "val"))


def found(root, where):
    train, validation = splits(root)
    return find_photos(str(where), train=train, validation=validation)


def test_a_folder_has_its_visible_photos(folder):
    photos = found(folder, folder / "more")
    assert photos.names == ("x.jpg", "y #2.jpg")
    assert photos[1].pixels.shape == (31, 80, 3)
    assert photos.identity.startswith("2 photos, SHA-256 ")
    assert (photos.labelled, photos.held_out) == (0, 0)


def test_samples_of_the_training_split_are_left_out_by_whatever_path_they_are_named(folder, tmp_path, monkeypatch):
    train, validation = splits(folder)
    fewer = Subset(train, [0, 2])
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "other name.png").symlink_to(folder / "images" / "train" / "a ü.png")
    fake_data.write(tmp_path / "linked" / "more.png", photo(1))
    monkeypatch.chdir(tmp_path)
    for where in (folder / "images", "my photos [1]/images", tmp_path / "link" / "images"):
        photos = find_photos(str(where), train=fewer, validation=validation)
        assert photos.names == ("train/b ü.png", "val/v ü.png")
        assert (photos.labelled, photos.held_out) == (2, 1)
    photos = find_photos("linked", train=fewer, validation=validation)
    assert photos.names == ("more.png",)
    with pytest.raises(DatasetError, match=r"all 3 photos of train.unlabelled .* are samples of the training split"):
        find_photos(str(folder / "images" / "train"), train=train, validation=validation)


def test_samples_that_a_fold_is_scored_on_are_left_out(folder):
    train, validation = splits(folder)
    one, rest = Subset(train, [0]), Subset(train, [1, 2])
    photos = find_photos(str(folder / "images"), train=rest, validation=validation, scored=one)
    assert photos.names == ("val/v ü.png",)
    assert (photos.labelled, photos.scored, photos.held_out) == (2, 1, 1)
    with pytest.raises(DatasetError, match=r"all 3 photos .* or of the part that this fold is scored on"):
        find_photos(str(folder / "images" / "train"), train=rest, validation=validation, scored=one)


def test_a_pattern_and_a_zip_file(folder, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for path in ("1.png", "deep/2.png", "deep/er/3.jpg", "deep/er/4.png"):
        fake_data.write(tmp_path / path, photo(1))
    train, validation = splits(folder)
    photos = find_photos(str(tmp_path / "deep" / "**" / "*.png"), train=train, validation=validation)
    assert photos.names == ("2.png", "er/4.png")
    twice = find_photos(str(tmp_path / "deep" / "**" / "**" / "*.png"), train=train, validation=validation)
    assert twice.names == photos.names
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "in/1.png")
    photos = find_photos(str(tmp_path / "photos.zip"), train=train, validation=validation)
    assert photos.names == ("in/1.png",)
    assert (photos[0].pixels == photo(1)).all()


def test_what_holds_no_photos_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a")
    for where, said in (
        ("nowhere", "there is no such folder or file"),
        (f"{tmp_path}/no*thing/*.png", "no file fits this pattern.$"),
        (folder / "images" / "*" / "*.png", "A bracket that is part of a name is written"),
        (tmp_path / "empty", r"has no photo \(.*.jpg.*\) among 0 files"),
        (tmp_path / "words", "among 1 files"),
        (folder / "masks", "masks among the photos, such as .*masks/train"),
        (folder, "masks among the photos"),
    ):
        with pytest.raises(DatasetError, match=rf"train.unlabelled .*{said}"):
            found(folder, where)
    with pytest.raises(DatasetError, match=r"masks among the photos, such as .*masks/train"):
        find_photos(str(folder), train=PAIRS, validation=PAIRS)  # masks of a data set that is not trained with


def test_broken_photos_and_mixed_bands_are_found_before_the_run(tmp_path):
    for index in range(4):
        fake_data.write(tmp_path / f"{index}.png", photo(index))
    photos = find_photos(str(tmp_path), train=PAIRS, validation=PAIRS)
    photos.check(64)
    (tmp_path / "3.png").write_bytes(b"no image")
    photos.check(0)
    with pytest.raises(DatasetError, match=r"3.png"):
        photos.check(2)
    np.save(tmp_path / "4.npy", np.zeros((20, 20, 5), np.uint16))
    (tmp_path / "3.png").unlink()
    arrays = find_photos(str(tmp_path), train=PAIRS, validation=PAIRS, bands=BandReader(None))
    with pytest.raises(DatasetError, match=r"differ: .*0.png holds 3 bands of uint8, and .*4.npy 5 bands of uint16"):
        arrays.check(9)


@pytest.mark.parametrize("kind", ["grey", "alpha"])
def test_photos_of_other_kinds_are_read_as_rgb(tmp_path, kind):
    pixels = photo(1)
    encoded = {"grey": pixels[..., 0], "alpha": np.dstack([pixels, np.full((50, 60), 255, np.uint8)])}[kind]
    cv2.imwrite(str(tmp_path / "a.png"), encoded)
    photos = find_photos(str(tmp_path), train=PAIRS, validation=PAIRS)
    read = photos[0].pixels
    assert (read.shape, read.dtype) == ((50, 60, 3), np.uint8)
    assert (read == (pixels[..., :1] if kind == "grey" else pixels[..., ::-1])).all()


def views_of(tmp_path, *, method="unimatch", cutmix=0.5, recipe="encoding", data=None, **options):
    for index, size in enumerate([(30, 40), (90, 70), (64, 64), (48, 48)]):
        fake_data.write(tmp_path / "photos" / f"{index}.png", photo(index, size))
    photos = find_photos(str(tmp_path / "photos"), train=PAIRS, validation=PAIRS)
    data = data or DataConfig(base_size=64, crop_size=48, recipe=recipe, color_jitter=0.5, blur=1.0, rotate=30.0)
    return PhotoViews(
        photos, TrainTransform.from_config(data), SemiConfig(method=method, cutmix=cutmix, **options), seed=7
    )


@pytest.mark.parametrize("method", ["fixmatch", "unimatch"])
def test_strong_views_are_those_of_the_crops_with_the_partners_in_their_boxes(tmp_path, method):
    views, alone = views_of(tmp_path, method=method, cutmix=1.0), views_of(tmp_path, method=method, cutmix=0.0)
    for key in (PhotoKey(0, 1, 0, 2), PhotoKey(3, 0, 1, 1)):
        mixed, plain = views(key), alone(key)
        assert len(mixed.strong) == len(mixed.boxes) == (2 if method == "unimatch" else 1)
        assert (mixed.weak == plain.weak).all()
        assert (mixed.valid == plain.valid).all()
        assert plain.boxes == (NO_BOX,) * len(plain.boxes)
        for view, (box, strong, own) in enumerate(zip(mixed.boxes, mixed.strong, plain.strong, strict=True)):
            assert box.height > 0
            inside = np.zeros((48, 48), bool)
            inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
            assert (strong[~inside] == own[~inside]).all()
            partner = strong_partner(views, key, view)
            assert (strong[inside] == partner[inside]).all()
        assert len({strong.tobytes() for strong in plain.strong}) == len(plain.strong)


def strong_partner(views, key, view):
    """The strong view of the partner's crop."""
    seed = sample_seed(views._stream(1), key.partner_epoch, key.partner)
    crop, _ = views._crop(key.partner, seed)
    assert (crop == views(key).partner).all()
    return strong_view(crop, seed=sample_seed(seed, 2, view))


def test_views_depend_on_seed_epoch_and_photo_alone(tmp_path):
    views = views_of(tmp_path)
    first, again = views(PhotoKey(1, 2, 0, 3)), views(PhotoKey(1, 2, 0, 3))
    assert all((one == other).all() for one, other in zip(first.strong, again.strong, strict=True))
    assert (first.boxes, first.names) == (again.boxes, ("2.png", "3.png"))
    for other in (views(PhotoKey(2, 2, 0, 3)), dataclasses.replace(views, seed=8)(PhotoKey(1, 2, 0, 3))):
        assert other.weak.tobytes() != first.weak.tobytes()


@pytest.mark.parametrize("recipe", ["encoding", "mmseg"])
def test_the_weak_view_has_the_recipes_geometry_and_no_colours(tmp_path, recipe):
    """A photo of one colour keeps it, and what is not photo is not valid."""
    fake_data.write(tmp_path / "photos" / "a.png", np.full((30, 90, 3), (200, 90, 30), np.uint8))
    data = DataConfig(base_size=48, long_edge=96, crop_size=64, recipe=recipe, color_jitter=1.0)
    views = views_of(tmp_path, cutmix=0.0, data=data)
    place, padded = views.photos.names.index("a.png"), 0
    for epoch in range(12):
        weak, valid, strong, *_ = views(PhotoKey(epoch, place, 0, 0))
        assert weak.shape == (64, 64, 3)
        assert (np.abs(weak[valid].astype(int) - (200, 90, 30)) <= 1).all()
        assert valid.any()
        padded += not valid.all()
        assert len({weak.tobytes(), *(each.tobytes() for each in strong)}) > 1
    assert padded


def test_a_transform_of_ones_own_gives_the_weak_view(tmp_path):
    def halved(image, labels, random):
        labels[:3] = 255
        return image[:24, :24], labels[:24, :24]

    views = dataclasses.replace(views_of(tmp_path), transform=sample_transform(halved))
    weak, valid, *_ = views(PhotoKey(0, 1, 0, 2))
    assert (weak == photo(1, (90, 70))[:24, :24]).all()
    assert valid.sum() == 24 * 21


def test_the_order_is_a_permutation_a_pass_and_another_one_of_partners(tmp_path):
    views = views_of(tmp_path, ratio=2)
    whole = [key for batch in views.order(Division(3, 2, range(8))) for key in batch]
    assert len(whole) == 32
    for start in range(0, 32, 4):
        part = whole[start : start + 4]
        assert {key.photo for key in part} == {key.partner for key in part} == {0, 1, 2, 3}
        assert {key.epoch for key in part} == {start // 4}
    assert [key.photo for key in whole] != [key.partner for key in whole]
    resumed = [key for batch in views.order(Division(3, 2, range(5, 8))) for key in batch]
    assert resumed == whole[20:]
    shared = [list(views.order(Division(3, 2, range(8), rank=rank, processes=2))) for rank in range(2)]
    assert [key for pair in zip(*shared, strict=True) for batch in pair for key in batch] == whole


def test_batches_do_not_depend_on_worker_processes(tmp_path):
    views = views_of(tmp_path)
    data = DataConfig(base_size=64, crop_size=48)
    samples, results = AugmentedSamples(PAIRS, TrainTransform.from_config(data), 7), []
    for workers in (0, 2):
        division = Division(7, 2, range(3))
        order, photos = division.batches(len(PAIRS)), views.order(division)
        results.append(list(mixed_batches(samples, order, views, photos, workers=workers, pin_memory=False)))
    for one, other in zip(*results, strict=True):
        assert one.names == other.names
        assert one.strong.shape == (4, 3, 48, 48)
        for mine, theirs in zip(one, other, strict=True):
            assert not isinstance(mine, torch.Tensor) or torch.equal(mine, theirs)


def test_a_photo_that_breaks_stops_the_batches_with_its_name(tmp_path):
    views = views_of(tmp_path)
    (tmp_path / "photos" / "2.png").write_bytes(b"")
    samples = AugmentedSamples(PAIRS, views.transform, 7)
    division = Division(7, 2, range(3))
    batches = mixed_batches(samples, division.batches(5), views, views.order(division), workers=0, pin_memory=False)
    with pytest.raises(DatasetError, match=r"2\.png"):
        list(batches)


def test_photos_of_other_bands_than_the_samples_are_refused(tmp_path):
    views = views_of(tmp_path)
    grey = resnest_seg.PairDataset([(photo(1, (40, 50), 4), np.zeros((40, 50), np.uint8))] * 4, ["a", "b"])
    division = Division(7, 2, range(1))
    samples = AugmentedSamples(grey, TrainTransform.from_config(DataConfig(base_size=64, crop_size=48)), 7)
    batches = mixed_batches(samples, division.batches(4), views, views.order(division), workers=0, pin_memory=False)
    said = r"unlabelled photo .*png gives a crop of \[3, 48, 48\] torch.uint8, .*\[4, 48, 48\] torch.uint8"
    with pytest.raises(DatasetError, match=said):
        list(batches)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_strong_views_of_bands_are_blurred_or_the_same(kind):
    image = (1000 * np.random.default_rng(0).normal(size=(20, 30, 5))).astype(kind)
    results = [strong_view(image, seed=seed) for seed in range(40)]
    assert all((each.dtype, each.shape) == (image.dtype, image.shape) for each in results)
    same = sum((each == image).all() for each in results)
    assert 8 < same < 35
    rough = np.abs(np.diff(image.astype(np.float64), axis=0)).mean()
    assert all(np.abs(np.diff(each.astype(np.float64), axis=0)).mean() <= rough for each in results)


def test_pasting_leaves_the_original():
    image, other = photo(0), photo(1)
    before = image.copy()
    mixed = paste(image, other, Box(5, 6, 7, 8))
    assert (image == before).all()
    assert (mixed[5:12, 6:14] == other[5:12, 6:14]).all()
