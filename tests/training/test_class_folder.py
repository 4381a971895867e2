"""Images by class, and the samples cut from them."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from support import fake_data

from resnest_seg.config import ClassFolderConfig, ClassifyConfig, PretrainConfig
from resnest_seg.errors import DatasetError
from resnest_seg.training.classification import ClassFolder, class_batches, eval_transform, train_transform

CONFIG = PretrainConfig(data=ClassFolderConfig(dataset="mine", crop_size=16))


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        for index in range(3):
            photo = random.integers(0, 256, (24 + index, 40, 3), dtype=np.uint8)
            place = "deep/" if index == 2 else ""
            fake_data.write(tmp_path / "train" / name / f"{place}{label}{index}.png", photo)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    return tmp_path


def test_classes_are_the_sorted_folders(root):
    data = ClassFolder(root, "train")
    assert data.names == ("ant", "bee", "cat")
    assert data.labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    image, label = data[5]
    assert (image.shape, label) == ((26, 40, 3), 1)
    before = data.identity()
    (root / "train" / "bee" / "10.png").rename(root / "train" / "bee" / "19.png")
    assert ClassFolder(root, "train").identity() != before


def batches(root, transform, workers):
    order = [[(3, 0), (3, 4)], [(3, 8), (4, 0)]]
    return list(class_batches(ClassFolder(root, "train"), order, transform=transform, seed=7, workers=workers))


@pytest.mark.parametrize("augment", ["none", "auto", "rand"])
def test_samples_depend_on_seed_epoch_and_index_alone(root, augment):
    transform = train_transform(dataclasses.replace(CONFIG, classify=ClassifyConfig(augment=augment)))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = batches(root, transform, 0)
    assert torch.equal(torch.get_rng_state(), before)  # which decides dropout
    second = batches(root, transform, 1)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert ours.images.shape == (2, 3, 16, 16)
        assert ours.images.dtype == torch.uint8
    assert [batch.labels.tolist() for batch in first] == [[0, 1], [2, 0]]
    assert not torch.equal(first[0].images[0], first[1].images[1])  # the same photo in another epoch


def test_validation_takes_the_middle(root):
    photo = torch.zeros(3, 32, 64, dtype=torch.uint8)
    photo[:, 2:30, 18:46] = 200  # 28 of 32 pixels, around the centre
    config = dataclasses.replace(CONFIG, data=ClassFolderConfig(crop_size=28))
    assert eval_transform(config)(photo).unique().tolist() == [200]


def test_mistakes(root):
    with pytest.raises(DatasetError, match=r"val must be a folder with one folder of images for each"):
        ClassFolder(root, "val")
    (root / "train" / "dog").mkdir()
    with pytest.raises(DatasetError, match="dog holds no image"):
        ClassFolder(root, "train")
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"no image")
    data = ClassFolder(root, "train")
    with pytest.raises(DatasetError, match=r"cannot read .*bad.jpg"):
        list(class_batches(data, [[(0, 9)]], transform=eval_transform(CONFIG), workers=1))


def test_names_that_are_not_utf_8(root):
    bee = (root / "train" / "bee").rename(root / "train" / os.fsdecode(b"b\xe9e"))
    (bee / "10.png").rename(bee / os.fsdecode(b"\xff.png"))
    data = ClassFolder(root, "train")
    assert data.names == ("ant", "b\\xe9e", "cat")
    assert len(data.identity()) == 64
    (batch,) = class_batches(data, [[(0, 3), (0, 4), (0, 5)]], transform=eval_transform(CONFIG), workers=1)
    assert f"{root}/train/b\\xe9e/\\xff.png" in batch.names
