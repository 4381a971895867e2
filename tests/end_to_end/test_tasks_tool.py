"""Binary and multi-label tasks as a user has them: a folder of masks, from the check to an exported file."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image

from resnest_seg import FolderDataset, LabelSpace, Synthetic
from resnest_seg.labels import bits_to_labels

pytestmark = pytest.mark.slow

SHORT = [
    "--model.encoder",
    "resnest14_tiny",
    "--model.head",
    "fcn",
    "--model.encoder_weights",
    "null",
    "--data.crop_size",
    "96",
    "--data.base_size",
    "120",
    "--data.workers",
    "0",
    "--train.batch_size",
    "2",
    "--train.epochs",
    "null",
    "--train.iterations",
    "4",
    "--train.trackers",
    "none",
    "--eval.limit",
    "3",
]


def make_folder(root, task):
    """Drawn scenes: cars are 255, or the first three classes are bits."""
    for split, count in (("train", 6), ("val", 3)):
        scenes, space = Synthetic(split), LabelSpace.of("synthetic")
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image, labels, _ = scenes[index]
            cv2.imwrite(str(root / "images" / split / f"{index} [1].jpg"), image[..., ::-1])
            if task == "binary":
                mask = np.where(labels == space.names.index("car"), 255, 0).astype(np.uint8)
            else:
                mask = np.where(labels < 3, 1 << (labels % 3).astype(np.uint16), 0).astype(np.uint16)
                mask |= (labels < 9).astype(np.uint16) << 3  # a label that overlaps the others
            cv2.imwrite(str(root / "masks" / split / f"{index} [1].png"), mask)


@pytest.mark.long
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_folder_of_masks_becomes_an_exported_model(task, tmp_path, tool, capsys):
    root, run = tmp_path / "my data", tmp_path / "run"
    make_folder(root, task)
    where = ["--dataset", "folder", "--data.root", root]
    assert tool("check_dataset")(*where, "--model.task", task, "--workers", "0") == 0
    assert ("object" if task == "binary" else "label 3") in capsys.readouterr().out
    assert tool("train_seg")(*where, *SHORT, "--model.task", task, "--output", run) == 0
    score = r"val IoU [\d.]+ \(threshold 0" if task == "binary" else r"val mIoU [\d.]+ \(thresholds 0[\d., ]+"
    assert re.search(score + r"[\d.]*\)  average precision [\d.]+$", capsys.readouterr().out, re.MULTILINE)
    assert tool("eval_seg")("--checkpoint", run, "--workers", "0", "--device", "cpu") == 0
    assert "all pooled" in capsys.readouterr().out
    photos = root / "images" / "val"
    wanted = ["--write", "labels", "overlay", "scores", "polygons", "coco"]
    predict = ["--checkpoint", run, photos, "--output", tmp_path / "out", "--device", "cpu", *wanted]
    assert tool("predict_seg")(*predict) == 0
    assert tool("export_seg")("--checkpoint", run, "--output", tmp_path / "model.onnx", "--result", "labels") == 0
    exported = ["--checkpoint", tmp_path / "model.onnx", photos, "--output", tmp_path / "onnx", "--device", "cpu"]
    assert tool("predict_seg")(*exported) == 0
    space = FolderDataset(root, "val", task=task).label_space
    for index in range(3):
        ours, theirs = (
            np.array(Image.open(tmp_path / folder / f"{index} [1]_labels.png")) for folder in ("out", "onnx")
        )
        assert ours.dtype == (np.uint8 if task == "binary" else np.uint16)
        assert (ours == theirs).mean() > 0.99
        scores = np.load(tmp_path / "out" / f"{index} [1]_scores.npz")
        assert tuple(scores["names"]) == space.score_names
        assert scores["scores"].shape == (len(space.score_names), *ours.shape)
        if task == "binary":
            assert set(np.unique(ours)) <= {0, 255}  # the ids of the user's own masks
        else:
            assert bits_to_labels(ours, 4).present.shape == (4, *ours.shape)


def test_a_binary_run_needs_its_object(tmp_path, tool, capsys):
    assert tool("train_seg")("--dataset", "synthetic", "--model.task", "binary", "--output", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "--data.positive person" in said
    assert not (tmp_path / "run").exists()
