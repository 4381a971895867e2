"""Data of binary and multi-label tasks: masks of 0 and 255 or 0 and 1, bits, and views of classes."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import resnest_seg
from resnest_seg.cli import eval as evaluation
from resnest_seg.cli.parsing.options import open_dataset
from resnest_seg.config import DataConfig, RunConfig
from resnest_seg.data.build import TaskView, build_dataset, dataset_for
from resnest_seg.data.checks import diagnose
from resnest_seg.data.class_balance import balance, balanced_pos_weight
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.loader import load_batches
from resnest_seg.data.transforms import TrainTransform, pad_to
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.training.losses import LabelLoss

RANDOM = np.random.default_rng(0)


def folder(root, masks, *, classes=None, size=(12, 10)):
    """A folder of noise and the given masks, [H, W] or [H, W, 3]; every second sample is in val."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
    for index, mask in enumerate(masks):
        split = ("train", "val")[index % 2]
        noise = np.random.default_rng(index).integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / split / f"{index}.png"), noise)
        Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    if classes is not None:
        (root / "classes.csv").write_text(classes)
    return root


def squares(*values, size=(12, 10)):
    """One mask of blocks with the given values."""
    return np.repeat(np.array(values, np.uint16 if max(values) > 255 else np.uint8), 120 // len(values)).reshape(size)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 255), {0: 0, 255: 1}),  # 255 is the object where no mask of the data set holds 1
        ((0, 254, 255), {0: 0, 254: 255, 255: 1}),  # so predictions of a model of such masks say what is ignored
        ((0, 1), {0: 0, 1: 1}),
        ((0, 1, 255), {0: 0, 1: 1, 255: 255}),
    ],
)
def test_binary_masks_are_read_by_the_values_of_all_of_them(tmp_path, values, expected):
    masks = [squares(0, 0), squares(*values), squares(*reversed(values)), squares(0, *values[1:])]
    root = folder(tmp_path, masks)
    for split, numbers in (("train", (0, 2)), ("val", (1, 3))):
        dataset = FolderDataset(root, split, task="binary")
        assert dataset.label_space.task == "binary"
        assert dataset.label_space.score_names == ("object",)
        for index, number in enumerate(numbers):
            want = np.vectorize(expected.get)(masks[number])
            np.testing.assert_array_equal(dataset[index].labels, want)


def test_black_and_white_pictures_are_binary_masks(tmp_path):
    masks = [np.repeat(squares(0, 255)[..., None], 3, axis=2), np.repeat(squares(255, 0)[..., None], 3, axis=2)]
    labels = FolderDataset(folder(tmp_path, masks), "val", task="binary")[0].labels
    np.testing.assert_array_equal(labels, squares(1, 0))


def test_a_class_list_of_two_names_the_object(tmp_path):
    root = folder(tmp_path, [squares(0, 255), squares(255, 0)], classes="name,id\nrest,0\nroad,255\n")
    dataset = FolderDataset(root, task="binary")
    assert dataset.label_space.names == ("rest", "road")
    np.testing.assert_array_equal(dataset[0].labels, squares(0, 1))


@pytest.mark.parametrize(
    ("values", "classes", "says"),
    [
        ((0, 1, 2), None, "the ids 0, 1, 2"),
        ((0, 7), None, "the ids 0, 7"),
        ((0, 1, 2), "name\na\nb\nc\n", "3 classes (a, b, c)"),
    ],
)
def test_masks_of_more_classes_are_no_binary_masks(tmp_path, values, classes, says):
    with pytest.raises(DatasetError) as error:
        FolderDataset(folder(tmp_path, [squares(*values)] * 2, classes=classes), task="binary")
    assert says in str(error.value)
    assert "--data.positive" in str(error.value)


def test_multi_label_masks_are_bits_of_16_bit_images(tmp_path):
    masks = [squares(0, 1, 5, 1 << 15), squares(2, 4, 7, 300)]
    root = folder(tmp_path, masks)
    dataset = FolderDataset(root, task="multilabel")
    assert len(dataset.label_space) == 9  # 300 has bit 8
    labels = dataset[0].labels
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, masks[0])
    (batch,) = load_batches(dataset, [[(0, 0)]])
    np.testing.assert_array_equal(batch.labels[0].numpy(), masks[0])


def test_an_8_bit_mask_is_one_of_8_labels(tmp_path):
    root = folder(tmp_path, [squares(255, 3), squares(128, 1)])
    dataset = FolderDataset(root, task="multilabel")
    assert len(dataset.label_space) == 8
    np.testing.assert_array_equal(dataset[0].labels, squares(255, 3))  # 255 is all labels, and nothing is ignored


@pytest.mark.parametrize(
    ("masks", "classes", "says"),
    [
        ([squares(0, 8), squares(1, 2)], "name\na\nb\nc\n", "has the bit 3"),
        ([squares(0, 0), squares(0, 0)], None, "hold no label"),
        ([squares(0, 255), squares(255, 0)], None, "--model.task binary"),
        ([np.zeros((12, 10, 3), np.uint8)] * 2, None, "mask of colours"),
        ([squares(1, 2)] * 2, "name,id\na,1\nb,2\n", "raw ids 0..K-1"),
        ([squares(1, 2)] * 2, "name\n" + "".join(f"c{n}\n" for n in range(16)), "1..15 labels"),
    ],
)
def test_wrong_multi_label_masks_are_refused(tmp_path, masks, classes, says):
    with pytest.raises(DatasetError) as error:
        FolderDataset(folder(tmp_path, masks, classes=classes), task="multilabel")[0]
    assert says in str(error.value)


def test_a_class_list_of_bits_is_drafted_and_read(tmp_path, tool, capsys):
    root = folder(tmp_path, [squares(0, 1, 5, 1 << 15), squares(4, 4, 1, 0)])
    words = ["--dataset", "folder", "--data.root", root, "--model.task", "multilabel", "--workers", "0"]
    assert tool("check_dataset")(*words, "--write-classes") == 0
    assert "--model.task multilabel" in capsys.readouterr().out
    rows = [line.split(",") for line in (root / "classes.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("label 0", "0", "90"), ("label 1", "1", "0"), ("label 2", "2", "90"),
    ]  # fmt: skip
    assert tool("check_dataset")(*words) in (0, 1)
    assert FolderDataset(root, task="multilabel").listed


def test_a_view_makes_classes_the_object_or_labels():
    plain, space = build_dataset("synthetic"), LabelSpace.of("synthetic")
    binary = build_dataset("synthetic", task="binary", positive="car, person")
    bits = build_dataset("synthetic", task="multilabel")
    labels = plain[3].labels
    car, person = space.names.index("car"), space.names.index("person")
    want = np.where(labels == 255, 255, (labels == car) | (labels == person))
    np.testing.assert_array_equal(binary[3].labels, want)
    np.testing.assert_array_equal(bits[3].labels, np.where(labels == 255, 1 << 15, 1 << labels.astype(int)))
    assert len({dataset.identity() for dataset in (plain, binary, bits)}) == 3
    assert binary.sample_name(3) == plain.sample_name(3)


@pytest.mark.parametrize(
    ("positive", "says"),
    [
        (None, "which of the 10 classes"),
        ("vehicle", "vehicle"),
        (",".join(LabelSpace.of("synthetic").names), "1 to 9"),
    ],
)
def test_the_object_must_be_some_of_the_classes(positive, says):
    with pytest.raises(ConfigError) as error:
        build_dataset("synthetic", task="binary", positive=positive)
    assert says in str(error.value)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_only_a_binary_task_has_an_object(task):
    """Else the option is ignored, or the masks of a multi-label folder are read as ids."""
    with pytest.raises(ConfigError, match=f"binary task, and model.task is {task}: leave 'car' out"):
        build_dataset("synthetic", task=task, positive="car")
    space = LabelSpace.of("synthetic").for_task(task) if task == "multilabel" else LabelSpace.of("synthetic")
    options = evaluation.parse(["--checkpoint", "x", "--data.positive", "car"])
    with pytest.raises(ConfigError, match=f"the checkpoint's task is {task}: leave --data.positive out"):
        open_dataset(options, DataConfig("synthetic"), space, name="synthetic", split="val")


def test_a_check_ignores_no_task_and_no_option(tmp_path, tool, capsys):
    model = resnest_seg.build_segmenter("resnest14_tiny", "fcn", 10)
    model.label_space = LabelSpace.of("synthetic")
    model.to_checkpoint().save(tmp_path / "a model.safetensors")
    root = folder(tmp_path, [squares(0, 1)] * 2)
    own = ("--dataset", "folder", "--data.root", root)
    for words, says in (
        (("--dataset", "synthetic", "--data.positive", "car"), "data.positive names the object of a binary task"),
        (
            ("--checkpoint", tmp_path / "a model.safetensors", "--dataset", "synthetic", "--model.task", "multilabel"),
            "is multiclass, not multilabel: leave out --model.task",
        ),
        ((*own, "--write-classes", "--output", tmp_path / "x.json"), "leave --output out"),
        ((*own, "--write-classes", "--limit", 1), "leave --limit out"),
        ((*own, "--write-classes", "--data.positive", "a", "--model.task", "binary"), "leave --data.positive out"),
    ):
        assert tool("check_dataset")(*words) == 2
        assert says in capsys.readouterr().err
    assert not list(root.rglob("classes.csv"))


def test_a_config_opens_the_data_of_its_task():
    config = RunConfig.from_dict({"model.task": "binary", "data.dataset": "synthetic", "data.positive": "car"})
    dataset = dataset_for(config.data, "val", task=config.model.task)
    assert isinstance(dataset, TaskView)
    assert dataset.label_space.names == ("background", "car")


@pytest.mark.parametrize(
    "values",
    [
        {"model.task": "binray"},
        {"data.positive": "car"},
        {"model.task": "binary", "train.loss": "ohem"},
        {"model.task": "multilabel", "data.class_mix": 0.5},
        {"model.task": "multilabel", "data.rare_class": 0.5},
        {"model.task": "binary", "train.label_smoothing": 0.1},
        {"model.task": "binary", "train.class_weights": "median_frequency"},
        {"train.class_weights": "balanced"},
        {"train.pos_weight": 2.0},
    ],
    ids=str,
)
def test_options_of_another_task_are_refused(values):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict(values)
    assert "task" in str(error.value)


def test_a_weight_that_no_loss_has_is_refused():
    for loss in ("dice+lovasz", "tversky"):
        with pytest.raises(ConfigError, match="pos_weight belongs to cross_entropy and focal"):
            RunConfig.from_dict({"model.task": "binary", "train.pos_weight": 2.0, "train.loss": loss})
    assert RunConfig.from_dict({"model.task": "binary", "train.pos_weight": 2.0, "train.loss": "dice+focal"})


def test_balanced_weights_are_for_focal_alone_too():
    config = RunConfig.from_dict({"model.task": "binary", "train.class_weights": "balanced", "train.loss": "focal"})
    labels, logits = torch.tensor([[[0, 1]]]), torch.tensor([[[[0.3, 0.3]]]])
    given = {"num_labels": 1, "align_corners": False}
    balanced = LabelLoss.from_config(config.train, "binary", pos_weight=torch.tensor([3.0]), **given)
    plain = LabelLoss("binary", aux_weight=0.2, names=["focal"], num_labels=1)
    absent, present = (
        plain(logits[..., [column]], None, labels[..., [column]], pixels=torch.tensor(2)) for column in (0, 1)
    )
    assert float(balanced(logits, None, labels, pixels=torch.tensor(2))) == pytest.approx(float(absent + 3 * present))


def test_augmentation_keeps_bits_and_ignores_what_lies_outside():
    data = DataConfig(crop_size=64, base_size=64, rotate=30.0, coarse_dropout=1.0, scale_min=0.4, scale_max=0.6)
    image = RANDOM.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    labels = np.full((40, 50), 0b101, np.uint16)
    for recipe in ("encoding", "mmseg"):
        transform = TrainTransform.from_config(dataclasses.replace(data, recipe=recipe), ignore=1 << 15)
        seen = set()
        for seed in range(20):
            seen |= set(np.unique(transform(image, labels, seed=seed)[1]).tolist())
        assert seen == {0b101, 1 << 15}
    padded = pad_to(image, labels, (60, 60), color=(0, 0, 0))[1]
    assert padded.dtype == np.uint16
    assert set(np.unique(padded[40:])) == {1 << 15}


def test_balanced_weights_make_both_sides_weigh_the_same(tmp_path):
    masks = [squares(0, 0, 0, 1), squares(0, 1), squares(0, 0, 0, 255), squares(0, 1)]
    config = RunConfig.from_dict({"model.task": "binary", "train.class_weights": "balanced", "data.workers": 0})
    found = balance(FolderDataset(folder(tmp_path, masks), task="binary"), config)
    labels = np.concatenate([masks[0].ravel(), masks[2].ravel()])
    assert found.pos_weight.tolist() == pytest.approx([(labels == 0).sum() / (labels == 1).sum()])
    np.testing.assert_allclose(balanced_pos_weight(np.array([0, 25]), 100), [1.0, 3.0])


def test_the_doctor_says_the_share_of_positive_pixels_and_empty_masks(tmp_path):
    root = folder(tmp_path, [squares(0, 1), squares(0, 0), squares(0, 0), squares(1, 1)])
    splits = [FolderDataset(root, split, task="binary", allow_missing=True) for split in ("train", "val")]
    diagnosis = diagnose(splits)
    assert diagnosis.shares["train"] == pytest.approx([0.75, 0.25])
    (finding,) = [f for f in diagnosis.findings if f.kind == "mask without positive pixels" and "of train" in f.message]
    assert "1 of 2 masks of train (50 %) are without object" in finding.message


def test_the_doctor_counts_overlapping_labels(tmp_path):
    root = folder(tmp_path, [squares(3, 0), squares(1, 2), squares(0, 1 << 15), squares(1, 1)])
    splits = [FolderDataset(root, split, task="multilabel", allow_missing=True) for split in ("train", "val")]
    diagnosis = diagnose(splits)
    assert diagnosis.shares["train"] == pytest.approx([60 / 180, 60 / 180])  # of 180 labelled pixels, 60 have both
    assert diagnosis.ignored["train"] == pytest.approx(60 / 240)
    assert (diagnosis.median_frequency, diagnosis.effective_number) == ([], [])  # no loss of labels takes them
    diagnosis.table()
