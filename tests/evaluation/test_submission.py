"""Submission packs, and the official Cityscapes evaluator on the same predictions."""

import io
import types
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_data

from resnest_seg.data.build import build_dataset
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.evaluation.submission import Submission, validate
from resnest_seg.labels import LabelSpace

CITY, ADE = LabelSpace.of("cityscapes"), LabelSpace.of("ade20k")
PHOTO = "x/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"


def read(path, name):
    with zipfile.ZipFile(path) as archive:
        return np.array(Image.open(io.BytesIO(archive.read(name))))


@pytest.mark.parametrize(
    ("space", "photo", "name"),
    [
        (CITY, PHOTO, "berlin_000000_000019_pred_labelIds.png"),
        (ADE, "ADEChallengeData2016/images/validation/ADE_val_00000012.jpg", "ADE_val_00000012.png"),
    ],
)
def test_packs_hold_raw_ids_under_the_servers_names(space, photo, name, tmp_path):
    labels = np.random.default_rng(0).integers(0, len(space), (30, 40), dtype=np.uint8)
    with Submission(tmp_path / "out.zip", space, [photo]) as submission:
        submission.add(photo, labels, size=(30, 40))
    assert np.array_equal(read(tmp_path / "out.zip", name), np.array(space.raw_ids)[labels])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip"]


def pack(path, *predictions, photos=None):
    with Submission(path, CITY, [PHOTO] if photos is None else photos) as submission:
        for labels in predictions:
            submission.add(PHOTO, labels, size=(3, 3))


def test_what_is_not_valid_gets_no_name(tmp_path):
    good, undecided = np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8)
    with pytest.raises(DatasetError, match="two photos would both be submitted as berlin"):
        pack(tmp_path / "a.zip", good, good)
    with pytest.raises(DatasetError, match=r"not valid: .* has ids that are not classes: 0"):
        pack(tmp_path / "b.zip", undecided)
    with pytest.raises(DatasetError, match=r"1 of 1 photos are missing, first \['berlin"):
        pack(tmp_path / "c.zip")
    with pytest.raises(DatasetError, match="it is empty"):
        pack(tmp_path / "c.zip", photos=[])
    with pytest.raises(DatasetError, match=r"is \(4, 3\), its photo \(3, 3\)"):
        pack(tmp_path / "c.zip", np.zeros((4, 3), np.uint8))
    with pytest.raises(DatasetError, match="its name does not end with"):
        pack(tmp_path / "c.zip", good, photos=["any/thing.jpg"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="submission format: data set 'camvid'"):
        Submission(tmp_path / "d.zip", LabelSpace.of("camvid"), [])
    (tmp_path / "e.zip").write_bytes(b"")
    with pytest.raises(ConfigError, match="already exists"):
        Submission(tmp_path / "e.zip", CITY, [])


@pytest.mark.parametrize("space", [CITY, ADE])
def test_a_view_of_the_classes_is_not_submitted(space, tmp_path):
    """It keeps the data set's name, and the ids 0 and 1 of an object would pass as classes."""
    view = space.for_task("binary", positive=space.names[-1:])
    assert view.name == space.name
    with pytest.raises(ConfigError, match="takes one of its classes a pixel, and this model is binary: leave"):
        Submission(tmp_path / "out.zip", view, [PHOTO])


def test_validation_reads_the_file_itself(tmp_path):
    with Submission(tmp_path / "out.zip", CITY, [PHOTO]) as submission:
        submission.add(PHOTO, np.zeros((3, 4), np.uint8), size=(3, 4))
    name = "berlin_000000_000019_pred_labelIds.png"
    validate(tmp_path / "out.zip", CITY, {name: (3, 4)})
    with pytest.raises(DatasetError, match=r"is \(3, 4\), its photo \(4, 3\)"):
        validate(tmp_path / "out.zip", CITY, {name: (4, 3)})
    with pytest.raises(DatasetError, match="one file for each photo"):
        validate(tmp_path / "out.zip", CITY, {name: (3, 4), "other.png": (3, 4)})


def test_a_pack_from_the_evaluation_tool(tool, tmp_path, capsys, monkeypatch):
    """A test split without masks is predicted and packed; one with masks is measured as well."""
    from resnest_seg.models.loading import build_segmenter

    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=19)
    segmenter.label_space = CITY
    segmenter.to_checkpoint().save(tmp_path / "model.safetensors")
    root = fake_data.make("cityscapes", tmp_path / "data")
    photo = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
    fake_data.write(root / PHOTO[2:], photo)
    words = [
        "--checkpoint",
        tmp_path / "model.safetensors",
        "--dataset",
        "cityscapes",
        "--data.root",
        root,
        "--workers",
        0,
    ]
    assert tool("eval_seg")(*words, "--split", "test", "--submission", tmp_path / "test.zip") == 0
    printed = capsys.readouterr()
    assert "1 predictions, validated" in printed.err
    assert "has no labels: nothing to measure" in printed.err
    assert read(tmp_path / "test.zip", "berlin_000000_000019_pred_labelIds.png").shape == (72, 96)
    assert tool("eval_seg")(*words, "--split", "val", "--submission", tmp_path / "val.zip") == 0
    assert "mean of classes" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "val.zip") as archive:
        assert len(archive.namelist()) == 4
    assert tool("eval_seg")(*words, "--limit", 1, "--submission", tmp_path / "part.zip") == 2
    assert "a submission needs every photo" in capsys.readouterr().err
    assert tool("eval_seg")(*words, "--split", "test") == 2
    assert "nothing to measure" in capsys.readouterr().err


def official_scores(pairs):
    """IoU by class from cityscapesScripts' pixel-level evaluator, for (prediction file, truth file)."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluator  # noqa: N813

    arguments = types.SimpleNamespace(**vars(evaluator.args))
    arguments.evalInstLevelScore, arguments.evalPixelAccuracy, arguments.quiet, arguments.JSONOutput = (
        False,
        False,
        True,
        False,
    )
    arguments.evalLabels = []
    evaluator.generateMatrix(arguments)
    matrix = evaluator.generateMatrix(arguments)
    for prediction, truth in pairs:
        evaluator.evaluatePair(str(prediction), str(truth), matrix, {}, {}, arguments)
    from cityscapesscripts.helpers.labels import trainId2label

    return [evaluator.getIouScoreForLabel(trainId2label[train_id].id, matrix, arguments) for train_id in range(19)]


def test_the_official_evaluator_agrees(tmp_path, real_data):
    """Real full-size masks, predictions that are wrong in many ways: the same IoU for every class."""
    dataset = build_dataset("cityscapes", root=real_data / "cityscapes_sample", split="val")
    random = np.random.default_rng(0)
    matrix, pairs = ConfusionMatrix(19), []
    for index in range(len(dataset)):
        labels = dataset[index].labels
        predictions = np.roll(labels, (7, 13), axis=(0, 1))
        predictions[predictions == 255] = random.integers(0, 19, int((predictions == 255).sum()))
        noise = random.random(labels.shape) < 0.1
        predictions[noise] = random.integers(0, 19, int(noise.sum()))
        matrix.update(torch.from_numpy(labels), torch.from_numpy(predictions))
        Image.fromarray(CITY.decode(predictions)).save(tmp_path / f"{index}.png")
        pairs.append((tmp_path / f"{index}.png", dataset.source.locate(dataset.pairs[index][1])))
    ours, theirs = matrix.scores().class_iou, official_scores(pairs)
    for name, a, b in zip(CITY.names, ours, theirs, strict=True):
        assert (a is None) == bool(np.isnan(b)) or a == 0, name
        assert a is None or np.isnan(b) or abs(a - b) < 1e-6, name
    assert sum(value is not None for value in ours) >= 15
