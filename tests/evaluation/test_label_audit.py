"""Audits of data sets: every image by the right model, the same numbers as of whole arrays, any task and layout."""

import json

import numpy as np
import pytest
import torch
from support.planted_errors import KINDS, PlantedErrors
from support.scripted_backend import ScriptedBackend
from support.scripted_data import NAMES, SPACE, Scripted, said

import resnest_seg
from resnest_seg.data.datasets import Subset, TaskView, assign_folds
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.evaluation.label_audit import AUDIT, IMAGES, REGIONS, JudgedPixels, audit
from resnest_seg.evaluation.label_issues import LEVELS, JudgedLabels, SoftMinimum


def test_an_audit_counts_what_whole_arrays_say():
    data, steps = Scripted(), []
    report = audit(ScriptedBackend(SPACE, said), data, min_area=5, on_step=lambda *step: steps.append(step))
    assert sorted(image.index for image in report.images) == list(range(6))
    scores = [image.score for image in report.images]
    assert scores == sorted(scores)
    assert report.images[0].index == 2
    for image in report.images:
        sample = data[image.index]
        known = sample.labels != 255
        own = np.take_along_axis(said(sample.image), np.where(known, sample.labels, 0)[None].astype(int), 0)[0][known]
        soft = SoftMinimum()
        soft.update(own)
        assert image.score == pytest.approx(soft.value, rel=1e-5)
        assert image.pixels == known.sum()
        (kept,), (issues,) = report.kept[image.index], report.kept.issues(image.index)
        np.testing.assert_array_equal(kept.given, sample.labels)
        np.testing.assert_array_equal(kept.predicted, said(sample.image).argmax(axis=0))
        assert image.issues == issues.sum() == sum(image.pairs.values())
        assert not issues[~known].any()
    assert report.issues == pytest.approx(report.confident, abs=report.confident * 0.1)
    assert steps == [(step, done, 6) for step in ("predicting", "comparing") for done in range(1, 7)]


def test_the_size_of_slabs_and_the_number_of_loaders_change_nothing():
    one = audit(ScriptedBackend(SPACE, said), Scripted())
    other = audit(ScriptedBackend(SPACE, said, rows=7), Scripted(), workers=1)
    assert one.regions == other.regions
    for first, second in zip(one.images, other.images, strict=True):
        assert first.score == pytest.approx(second.score, rel=1e-6)  # softmax of other slabs rounds otherwise
        assert (first.index, first.pairs) == (second.index, second.pairs)


def test_the_regions_are_ranked_and_lie_where_they_say():
    report = audit(ScriptedBackend(SPACE, said), Scripted(), min_area=20)
    scores = [region.region.score for region in report.regions]
    assert scores == sorted(scores, reverse=True)
    worst = report.regions[0]
    assert worst.index == 2
    assert len(report.regions) == report.found
    assert report.small > 0
    left, top, width, height = worst.region.box
    assert min(left, top) >= 5  # where the labels are wrong
    assert max(left + width, top + height) <= 15
    (kept,) = report.kept[2]
    names = SPACE.names
    here = slice(top, top + height), slice(left, left + width)
    same = (kept.given[here] == names.index(worst.given)) & (kept.predicted[here] == names.index(worst.predicted))
    assert same.sum() >= worst.region.area


def test_every_image_is_judged_once_and_by_the_model_of_its_fold():
    data = Scripted(9)
    fold_of = assign_folds(data, 3)
    models = [ScriptedBackend(SPACE, said, name=f"model {fold}") for fold in range(3)]
    asked = []

    def one_after_the_other():
        for fold, model in enumerate(models):
            asked.append([len(other.shown) for other in models[:fold]])
            yield model

    report = audit(one_after_the_other(), data, fold_of=fold_of)
    for fold, model in enumerate(models):
        assert model.shown == [hash(data[index].image.tobytes()) for index in np.flatnonzero(fold_of == fold)]
    assert asked == [[], [3], [3, 3]]  # the next model is asked for when the one before is done
    assert report.models == ("model 0", "model 1", "model 2")
    alone = audit(models[0], data)
    assert [image.score for image in report.images] == [image.score for image in alone.images]


def test_binary_and_multilabel_tasks_ask_for_each_label_alone():
    scenes = Subset(resnest_seg.Synthetic("val", size=(48, 64)), [0, 1])
    both = TaskView(scenes, "multilabel")
    wrong = both.label_space.names.index("tree")

    def of_labels(image):
        (sample,) = [both[index] for index in range(2) if np.array_equal(both[index].image, image)]
        present = (sample.labels[None] >> np.arange(10)[:, None, None]) & 1
        present[wrong, 10:30, 10:30] ^= 1
        return np.where(present, 0.9, 0.1).astype(np.float32)

    report = audit(ScriptedBackend(both.label_space, of_labels), both, min_area=30)
    assert report.images[0].pixels == 10 * int((both[0].labels < 1 << 15).sum())
    assert {(region.given, region.predicted) for region in report.regions} <= {("tree", "no tree"), ("no tree", "tree")}
    assert sum(region.region.area for region in report.regions) + 30 > report.issues > 0
    assert len(report.thresholds) == 10
    one = TaskView(scenes, "binary", ["car"])
    model = ScriptedBackend(one.label_space, lambda image: np.full((1, *image.shape[:2]), 0.1, np.float32))
    report = audit(model, one, min_area=1)
    cars = sum(int((one[index].labels == 1).sum()) for index in range(2))
    assert cars
    assert report.pairs in ({}, {("car", "rest"): cars}, {("car", "background"): cars})
    assert sum(region.region.area for region in report.regions) == cars


def test_files_are_plain_lines_that_any_reader_takes(tmp_path):
    report = audit(ScriptedBackend(SPACE, said), Scripted(), min_area=5)
    report.save(tmp_path)
    images, regions = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                       for name in (IMAGES, REGIONS))  # fmt: skip
    assert [row["rank"] for row in images] == list(range(1, 7))
    assert images[0]["name"] == NAMES[2]
    assert [row["score"] for row in regions] == sorted((row["score"] for row in regions), reverse=True)
    assert {"box", "area", "given", "predicted", "confidence", "self_confidence", "issues"} <= set(regions[0])
    about = json.loads((tmp_path / AUDIT).read_text())
    assert (about["format"], about["images"], about["regions"]) == ("resnest_seg audit", 6, report.found)
    assert about["issues"] == sum(row["issues"] for row in images) == sum(pair["pixels"] for pair in about["pairs"])


def test_what_cannot_be_audited_is_refused():
    other = resnest_seg.LabelSpace.numbered(3, names=("sky", "road", "bus"))
    model, data = ScriptedBackend(SPACE, said), Scripted()
    silent = ScriptedBackend(SPACE, said)
    silent.scored = False
    nothing = resnest_seg.PairDataset([(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255))], SPACE.names)
    for arguments, options, error, words in (
        ((ScriptedBackend(other, said), data), {}, CheckpointError, "wrong classes"),
        ((silent, data), {}, ConfigError, "labels only"),
        ((model, nothing), {}, DatasetError, "nothing to audit"),
        ((model, data), {"fold_of": [0] * 6}, ConfigError, "a list of models"),
        (([model], data), {}, ConfigError, "fold_of is missing"),
        (([model], data), {"fold_of": [0, 1]}, ConfigError, "fold_of has 2 values"),
        (([model], data), {"fold_of": [0, 0, 1, 0, 0, 0]}, ConfigError, "sample 2 is of fold 1, and there are 1"),
        ((model, data), {"min_area": 0}, ConfigError, "min_area"),
    ):
        with pytest.raises(error, match=words):
            audit(*arguments, **options)


def test_what_is_kept_comes_back_and_leaves_no_file(tmp_path):
    random = np.random.default_rng(0)
    kept = JudgedPixels(tmp_path)
    given, predicted = random.integers(0, 3, (2, 50, 60)).astype(np.uint8)
    levels = random.integers(0, LEVELS + 1, (2, 50, 60)).astype(np.uint16)
    judged = JudgedLabels(given, predicted, *levels)
    for index in (7, 3):
        kept.add(index, [judged, judged])
    other = judged.disagreement
    for one in (*kept[3], *kept[7]):
        np.testing.assert_array_equal(one.given, given)
        np.testing.assert_array_equal(one.predicted, predicted)
        np.testing.assert_array_equal(one.self_confidence[other], levels[0][other])
        np.testing.assert_array_equal(one.confidence[other], levels[1][other])
        assert (one.self_confidence[~other] == LEVELS).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_planted_errors_are_found_by_a_model_that_is_mostly_right():
    """The campaign `tests/campaigns/label_errors.py` trains models; here one is drawn: right, with a blur of doubt."""
    drawn = resnest_seg.Synthetic("val", size=(96, 144))
    scenes = resnest_seg.PairDataset([drawn[index][:2] for index in range(30)], drawn.label_space)
    data = PlantedErrors(scenes, share=1 / 15)
    truth = {hash(scenes[index].image.tobytes()): scenes[index].labels for index in range(30)}

    def nearly_right(image):
        labels = truth[hash(image.tobytes())]
        planes = (np.arange(10)[:, None, None] == labels).astype(np.float32)[None] + 0.02
        soft = torch.nn.functional.avg_pool2d(torch.from_numpy(planes), 5, 1, 2)[0].numpy()
        return soft / soft.sum(axis=0)

    report = audit(ScriptedBackend(data.label_space, nearly_right), data, min_area=20)
    planted = len(data.kinds)
    assert planted == 2 * len(KINDS)
    found = [image.index for image in report.images[:planted]]
    kinds = [data.kinds[index] for index in found if index in data.kinds]
    assert len(kinds) >= 6  # random order: 2.1
    right = [region for region in report.regions[:planted] if _share_wrong(data, region) > 1 / 3]
    assert len(right) >= 6
    assert {data.kinds[region.index] for region in right} >= set(KINDS[:3])


def _share_wrong(data, entry):
    """The share of the pixels in the box of a region that are wrongly labelled."""
    if entry.index not in data.kinds:
        return 0
    left, top, width, height = entry.region.box
    return data.wrong_pixels(entry.index)[top : top + height, left : left + width].mean()
