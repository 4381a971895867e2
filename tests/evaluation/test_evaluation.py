"""Evaluation against a plain loop over the data set."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from test_metrics import loop

from resnest_seg.combining.averages import recompute_batch_norms
from resnest_seg.config import DataConfig
from resnest_seg.data.datasets import PairDataset, Subset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.evaluation.boundaries import BoundaryScores
from resnest_seg.evaluation.calibration import Calibration
from resnest_seg.evaluation.evaluator import Measures, evaluate
from resnest_seg.evaluation.label_audit import audit
from resnest_seg.inference.predictor import Predictor
from resnest_seg.io.bands import BandReader
from resnest_seg.models.loading import build_segmenter


@pytest.fixture(scope="module")
def segmenter(tiny_space):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", num_classes=3).eval()
    segmenter.label_space = tiny_space
    segmenter.config = dataclasses.replace(segmenter.config, data=DataConfig(base_size=64, crop_size=48))
    return segmenter


def test_the_report_equals_a_plain_loop(segmenter, small_dataset):
    seen = []
    report = evaluate(segmenter, small_dataset, on_image=seen.append)
    counts = np.zeros((3, 3), np.int64)
    for index, shown in enumerate(seen):
        sample = small_dataset[index]
        padded = np.zeros((3, -(-sample.image.shape[0] // 8) * 8, 56), np.float32)
        padded[:, : sample.image.shape[0]] = sample.image.transpose(2, 0, 1)
        with torch.inference_mode():
            logits = segmenter(torch.from_numpy(padded)[None]).logits[0, :, : sample.image.shape[0]]
        predictions = logits.argmax(0).numpy()
        assert np.array_equal(shown.predictions, predictions)
        assert np.array_equal(shown.image, sample.image)
        assert np.array_equal(shown.labels, sample.labels)
        counts += loop(sample.labels, predictions, 3)
    assert len(seen) == report.images == 6
    scores = report.scores["whole"]
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert scores.class_iou == pytest.approx(list(counts.diagonal() / union))
    assert seen[-1].mean_iou == scores.mean_iou
    assert scores.pixel_accuracy == counts.trace() / counts.sum()


def test_shares_of_the_work_add_up(segmenter, small_dataset):
    """As with two processes: each counts its indices, and the counts are summed."""
    parts = []
    for indices in (range(0, 6, 2), range(1, 6, 2)):
        evaluate(segmenter, small_dataset, indices=indices, reduce=lambda counts: parts.append(counts) or counts)
    images, counts = parts[0] + parts[2], parts[1] + parts[3]
    whole = []
    evaluate(segmenter, small_dataset, reduce=lambda counts: whole.append(counts) or counts)
    assert torch.equal(images, whole[0])
    assert torch.equal(counts, whole[1])


def test_workers_change_nothing(segmenter, small_dataset):
    assert evaluate(segmenter, small_dataset) == evaluate(segmenter, small_dataset, workers=2)


def test_the_report_says_what_its_numbers_belong_to(segmenter, small_dataset, tmp_path):
    report = evaluate(segmenter, small_dataset)
    report.save(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["scores"]["whole"]["mean_iou"] == report.scores["whole"].mean_iou
    assert stored["classes"] == ["sky", "road", "car"]
    assert "dilation encoding" in stored["model"]
    console = Console(record=True, width=120)
    console.print(report.table())
    text = console.export_text()
    for part in ("sky", "road", "car", "tiny train, 6 images", "protocol: whole", "share of pixels"):
        assert part in text
    assert f"{100 * report.scores['whole'].mean_iou:.2f}" in text


def test_a_split_without_labels_is_no_score_of_zero(segmenter, small_dataset):
    class Unlabelled(type(small_dataset)):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample._replace(labels=np.full_like(sample.labels, 255))

    with pytest.raises(DatasetError, match="no pixel of the train split of tiny has a label"):
        evaluate(segmenter, Unlabelled())


def test_other_classes_are_refused(segmenter, small_dataset, tiny_space):
    class Four(type(small_dataset)):
        label_space = dataclasses.replace(
            tiny_space, name="four", names=(*tiny_space.names, "bus"), colors=(*tiny_space.colors, (1, 2, 3)),
            raw_ids=(*tiny_space.raw_ids, 8))  # fmt: skip

    class Renamed(type(small_dataset)):
        label_space = dataclasses.replace(tiny_space, names=("sky", "road", "bus"))

    with pytest.raises(CheckpointError, match=r"the checkpoint has 3 classes \(tiny\) and the data set four has 4"):
        evaluate(segmenter, Four())
    with pytest.raises(CheckpointError, match=r"class 2 = 'car' and the data set tiny has 'bus' there"):
        evaluate(segmenter, Renamed())


@pytest.mark.parametrize(
    "judge", [evaluate, audit, recompute_batch_norms, lambda model, dataset: evaluate(model, dataset, indices=[1, 0])]
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_files_are_read_as_the_model_was_trained(kind, judge, tmp_path):
    """A model of three bands in another order gets them from files that would also be photos, in the same type."""
    random, images = np.random.default_rng(0), {}
    for name in "ab":
        images[name] = (random.random((48, 48, 3)) * np.iinfo(kind).max).astype(kind)
        for folder, pixels in (("images", images[name]), ("masks", random.integers(0, 3, (48, 48), np.uint8))):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / "train" / f"{name}.png"), pixels)
    (tmp_path / "classes.csv").write_text("name,id\nsky,0\nroad,1\ncar,2\n")
    read = {}

    class Watched(FolderDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            read["ab"[index]] = sample.image
            return sample

    middle = (float(np.iinfo(kind).max // 2),) * 3
    data = DataConfig(bands=(3, 2, 1), pixel_mean=middle, pixel_std=middle, crop_size=32, base_size=32)
    segmenter = build_segmenter("resnest14_tiny", num_classes=3)
    segmenter.config = dataclasses.replace(segmenter.config, data=data)
    judge(segmenter, Watched(tmp_path, "train"))
    for name, image in images.items():
        assert read[name].dtype == kind
        assert np.array_equal(read[name], image), "OpenCV writes bands 3, 2, 1"


@pytest.mark.parametrize("view", [lambda dataset: dataset, lambda dataset: Subset(dataset, [1, 0])])
@pytest.mark.parametrize("told", [False, True])
def test_a_data_set_serves_models_of_different_bands(told, view, tmp_path):
    """Each gets its own bands, whoever was evaluated before; of a data set that was told, what it was told."""
    random = np.random.default_rng(0)
    for name in "ab":
        for folder, pixels in (("images", random.integers(0, 256, (32, 32, 4), np.uint8)),
                               ("masks", random.integers(0, 3, (32, 32), np.uint8))):  # fmt: skip
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / "train" / f"{name}.png"), pixels)
    (tmp_path / "classes.csv").write_text("name,id\nsky,0\nroad,1\ncar,2\n")
    models = []
    for bands in (None, (1, 2, 3), (3, 1, 2), (1, 2, 3, 4)):
        torch.manual_seed(0)
        count = 3 if bands is None else len(bands)
        data = DataConfig(bands=bands, pixel_mean=None if bands is None else (100.0,) * count, base_size=32,
                          pixel_std=None if bands is None else (60.0,) * count, crop_size=32)  # fmt: skip
        segmenter = build_segmenter("resnest14_tiny", num_classes=3, in_channels=count)
        segmenter.config = dataclasses.replace(segmenter.config, data=data)
        models.append(segmenter)
    reader = BandReader((2, 3, 1)) if told else None
    models = models[:3] if told else models

    def opened():
        dataset = FolderDataset(tmp_path, "train")
        dataset.read_as(reader)
        return dataset

    def probabilities(model, dataset):
        found = []
        evaluate(model, dataset, on_scores=lambda scores, *_: found.append(scores.clone()))
        return torch.cat([each.flatten() for each in found]).tolist()

    alone = [probabilities(model, view(opened())) for model in models]
    if not told:
        assert alone[0] != alone[2] != alone[1], "else this would test nothing"
    shared = opened()
    early = view(shared)  # which was made before any model
    for order in (range(len(models)), reversed(range(len(models)))):
        for number in order:
            assert probabilities(models[number], view(shared)) == alone[number]
            assert probabilities(models[-1 - number], early) == alone[-1 - number]
    assert not told or shared.bands == early.bands == reader


def test_arrays_of_other_channels_are_refused():
    data = DataConfig(bands=(1, 2, 3, 4), pixel_mean=(9.0,) * 4, pixel_std=(9.0,) * 4)
    segmenter = build_segmenter("resnest14_tiny", num_classes=3, in_channels=4)
    segmenter.config = dataclasses.replace(segmenter.config, data=data)
    image = np.full((40, 40, 3), np.nan, np.float32)
    for bands in (None, BandReader((1, 2, 3))):
        dataset = PairDataset([(image * 9, np.zeros((40, 40), np.uint8))], ("sky", "road", "car"))
        dataset.read_as(bands)
        with pytest.raises(ConfigError, match=r"model.in_channels is 4, and .*(have 3|has 3 bands)"):
            evaluate(segmenter, dataset)


@pytest.mark.parametrize("name", ["whole", "encoding", "mmseg"])
def test_calibration_and_boundaries_are_those_of_the_whole_scores(name, segmenter, small_dataset):
    """Fed at once with the predictor's probabilities, instead of a slab of rows at a time."""
    predictor = Predictor(segmenter, device="cpu", protocol=name)
    calibration, boundaries = Calibration(), BoundaryScores(3)
    for index in range(2):
        sample = small_dataset[index]
        prediction = predictor(sample.image)
        labels, found = torch.from_numpy(sample.labels), torch.from_numpy(prediction.labels)
        calibration.update(labels, found, torch.from_numpy(prediction.scores().max(axis=0)))
        boundaries.update(labels, found)
    report = evaluate(
        segmenter,
        small_dataset,
        protocols=(name,),
        measures=Measures(boundaries=True, calibration=True),
        memory=1,
        indices=range(2),
    )
    expected, ours = calibration.report(), report.calibration[name]
    assert ours.expected_calibration_error == pytest.approx(expected.expected_calibration_error, abs=1e-6)
    assert [part.count for part in ours.bins] == [part.count for part in expected.bins]
    assert report.boundaries[name] == boundaries.report()


@pytest.mark.parametrize("memory", [0, -1])
def test_memory_that_makes_no_sense(memory, segmenter, small_dataset):
    with pytest.raises(ConfigError, match=f"memory must be at least 1, not {memory}"):
        evaluate(segmenter, small_dataset, memory=memory)
