"""The scores of every image against a slow version of each, and against the totals of the report."""

import dataclasses
import errno
import itertools
import json
import math
import os
import sys

import numpy as np
import pytest
import torch
from test_metrics import loop

from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import DatasetError
from resnest_seg.evaluation.boundaries import BoundaryScores
from resnest_seg.evaluation.calibration import certainty
from resnest_seg.evaluation.evaluator import Counting, Measures, evaluate
from resnest_seg.evaluation.image_scores import (
    ImageScores,
    ImageScoresFile,
    ImageScoresWriter,
    ImagesHeader,
    images_beside,
    merge_image_scores,
)
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.backends import Backend, Block, Decision
from resnest_seg.inference.protocols import Setting
from resnest_seg.labels import LabelSpace

CLASSES = 4
MULTICLASS = LabelSpace.numbered(CLASSES, names=["sky", "<b>road</b>", "Straße", "moon"])


class Drawn(SegmentationDataset):
    """Random labels of several sizes, some ignored; class 3 is nowhere, and the last image is without labels."""

    split = "val"

    def __init__(self, count=5, space=MULTICLASS, size=23):
        self.count, self.label_space, self.size = count, space, size

    def __len__(self):
        return self.count

    def sample_name(self, index):
        return f"photo {index} [1] ü%.jpg"

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        shape = (self.size + index % 3, self.size + 7)
        highest = {"multiclass": 3, "binary": 2, "multilabel": 8}[self.label_space.task]
        labels = random.integers(0, highest, shape).astype(np.uint8 if highest < 8 else np.uint16)
        labels[random.random(shape) < 0.2] = self.label_space.ignore_value
        if index == self.count - 1:
            labels[:] = self.label_space.ignore_value
        image = np.full((*shape, 3), index % 256, np.uint8)
        return Sample(image, labels, f"photo {index} at /where/")


class Guessing(Backend):
    """Random scores, a few rows at a time; `scores_of` gives those of a whole image."""

    description, head, channels, bands = "guessing", "none", 3, None
    setting, device, memory = Setting(), "cpu", 1 << 30

    def __init__(self, space=MULTICLASS, *, scored=True, rows=9):
        self.label_space, self.scored, self.rows = space, scored, rows
        names = len(space.score_names)
        self.decision = Decision(space.task, () if space.task == "multiclass" else (0.4,) * names)

    def scores_of(self, image, protocol):
        random = torch.Generator().manual_seed(int(image[0, 0, 0]))
        logits = 3 * torch.randn(len(self.label_space.score_names), *image.shape[:2], generator=random)
        logits[-1] += 1  # the absent class is predicted in some pixels
        forms = {"logits": logits, "softmax": logits.softmax(0), "exp": logits.exp(), "sigmoid": logits.sigmoid()}
        return forms[protocol.merge]

    def blocks(self, image, protocol, *, memory=None):
        scores = self.scores_of(image, protocol)
        for first in range(0, image.shape[0], self.rows):
            rows = slice(first, min(first + self.rows, image.shape[0]))
            part = scores[:, rows]
            given = None if self.scored else self.decision.labels(part).numpy().astype(self.decision.dtype)
            columns = slice(0, image.shape[1])
            yield Block(rows, columns, part if self.scored else None, given=given, decision=self.decision)


def read(path, protocol=None):
    return [scores for scores in ImageScoresFile(path) if protocol in (None, scores.protocol)]


PROTOCOLS = ("whole", "encoding", "mmseg")  # which merge logits, exponentials and probabilities


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Report and file of five images by three protocols."""
    path = tmp_path_factory.mktemp("scores") / "eval [1] ü.images.jsonl"
    report = evaluate(Guessing(), Drawn(), protocols=PROTOCOLS, images=path, checkpoint="a/b.safetensors",
                      measures=Measures(boundaries=True))  # fmt: skip
    return report, path


def test_counts_add_up_to_the_confusion_matrix(evaluated):
    report, path = evaluated
    header = ImageScoresFile(path).header
    assert header == ImagesHeader(MULTICLASS.name, "val", MULTICLASS.names, PROTOCOLS, "multiclass", "guessing",
                                  "a/b.safetensors")  # fmt: skip
    for name in PROTOCOLS:
        names, counts = ImageScoresFile(path).counts(name)
        assert names == [(index, f"photo {index} [1] ü%.jpg") for index in range(5)]
        matrix = np.array(report.matrices[name])
        assert np.array_equal(counts.sum(0), np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)], axis=1))
        assert sum(scores.pixels for scores in read(path, name)) == matrix.sum()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_image_equals_a_slow_version(evaluated, name):
    backend, dataset = Guessing(), Drawn()
    method = backend.protocol(name)
    for scores in read(evaluated[1], name):
        sample = dataset[scores.index]
        found = backend.scores_of(sample.image, method).double()
        probabilities = (found.softmax(0) if method.merge == "logits" else found / found.sum(0)).numpy()
        predictions, valid = probabilities.argmax(0), sample.labels != 255
        counts = loop(sample.labels, predictions, CLASSES)
        unions = [int(counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(CLASSES)]
        ious = [counts[k, k] / unions[k] if unions[k] else None for k in range(CLASSES)]
        assert [scores.iou(k) for k in range(CLASSES)] == ious
        assert scores.pixels == valid.sum()
        if not valid.any():
            assert (
                scores.mean_iou is scores.mean_iou_absent_zero is scores.pixel_accuracy is scores.boundary_iou is None
            )
            assert scores.confidence is scores.entropy is None
            assert scores.counts == {}
            continue
        present = [iou for iou in ious if iou is not None]
        assert scores.mean_iou == pytest.approx(np.mean(present))
        assert scores.mean_iou_absent_zero == pytest.approx(np.sum(present) / CLASSES)
        assert scores.pixel_accuracy == pytest.approx((predictions == sample.labels)[valid].mean())
        alone = BoundaryScores(CLASSES).update(torch.from_numpy(sample.labels), torch.from_numpy(predictions)).report()
        assert scores.boundary_iou == alone.mean_boundary_iou > 0
        assert scores.confidence == pytest.approx(probabilities.max(0)[valid].mean(), abs=1e-6)
        entropies = -(probabilities * np.log(probabilities)).sum(0) / math.log(CLASSES)
        assert scores.entropy == pytest.approx(entropies[valid].mean(), abs=1e-6)


def test_the_report_is_the_same_without_the_file(evaluated):
    assert evaluate(Guessing(), Drawn(), protocols=PROTOCOLS, checkpoint="a/b.safetensors",
                    measures=Measures(boundaries=True)) == evaluated[0]  # fmt: skip


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_are_counted_one_by_one(task, tmp_path):
    space = LabelSpace.numbered(3, names=["bright", "red", "wet"]).for_task(task, positive=["red"])
    backend, dataset = Guessing(space), Drawn(space=space)
    report = evaluate(backend, dataset, images=tmp_path / "i.jsonl")
    assert report.matrices == {}
    assert ImageScoresFile(tmp_path / "i.jsonl").header.classes == space.score_names == report.classes
    total = np.zeros((len(space.score_names), 3), np.int64)
    for scores in read(tmp_path / "i.jsonl"):
        sample = dataset[scores.index]
        p = backend.scores_of(sample.image, backend.protocol("whole")).double().numpy()
        valid, right = sample.labels != space.ignore_value, np.ones(sample.labels.shape, bool)
        for label in range(len(p)):
            truth, found = ((sample.labels.astype(int) >> label) & 1 == 1) & valid, (p[label] >= 0.4) & valid
            right &= truth == found
            counted = ((truth & found).sum(), truth.sum(), found.sum())
            assert scores.counts.get(label, (0, 0, 0)) == counted
            total[label] += counted
        if valid.any():
            assert scores.pixel_accuracy == right[valid].mean()
            assert scores.confidence == pytest.approx(np.maximum(p, 1 - p).mean(0)[valid].mean(), abs=1e-6)
            entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(0)
            assert scores.entropy == pytest.approx(entropy[valid].mean(), abs=1e-5)
    ious = total[:, 0] / (total[:, 1] + total[:, 2] - total[:, 0])
    assert [label.iou for label in report.labels["whole"].labels] == pytest.approx(list(ious))
    assert total[:, 0].all()


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_shares_in_any_order_are_the_report_of_all(task):
    space = LabelSpace.numbered(3, names=["bright", "red", "wet"])
    space = space if task == "multiclass" else space.for_task(task, positive=["red"])
    backend, dataset = Guessing(space), Drawn(8, space=space)
    measures = Measures(boundaries=True, calibration=True) if task == "multiclass" else Measures()
    options = {"protocols": PROTOCOLS, "measures": measures}
    total = Counting(backend, dataset, **options)
    for indices in ([6, 3, 1], [7], [0, 2, 5, 4]):
        share = Counting(backend, dataset, **options)
        share.count(indices)
        total.state = [sum_ + more for sum_, more in zip(total.state, share.state, strict=True)]
    assert total.report(checkpoint="x") == evaluate(backend, dataset, **options, checkpoint="x")
    assert total.images == 8


def test_a_model_of_labels_only_has_no_confidence(tmp_path):
    evaluate(Guessing(scored=False), Drawn(), images=tmp_path / "i.jsonl")
    evaluate(Guessing(), Drawn(), images=tmp_path / "scored.jsonl")
    for bare, scored in zip(read(tmp_path / "i.jsonl"), read(tmp_path / "scored.jsonl"), strict=True):
        assert bare.confidence is bare.entropy is None
        assert bare.counts == scored.counts


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_only_have_no_average_precision_and_no_best_threshold(task, tmp_path):
    """Hard labels are no scores: of a histogram of 0 and 1, all of these would be wrong and look measured."""
    space = LabelSpace.numbered(3, names=["bright", "red", "wet"]).for_task(task, positive=["red"])
    bare, scored = (evaluate(Guessing(space, scored=scored), Drawn(space=space)) for scored in (False, True))
    found, known = bare.labels["whole"], scored.labels["whole"]
    for score, same in zip((*found.labels, found.micro), (*known.labels, known.micro), strict=True):
        assert score.average_precision is score.best_threshold is score.best_iou is None
        assert same == dataclasses.replace(score, average_precision=same.average_precision, best_iou=same.best_iou,
                                           best_threshold=same.best_threshold)  # fmt: skip
    assert (found.mean_average_precision, found.curves) == (None, ())
    assert found.best_thresholds == tuple(score.threshold for score in found.labels)
    assert known.mean_average_precision > 0
    bare.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json").labels == bare.labels
    assert bare.summary()
    assert bare.label_table()


def test_certainty_at_its_ends():
    """One class sure, all equally likely, and logits beyond float32's exponentials."""
    sure, even = torch.tensor([200.0, 0, -200])[:, None, None], torch.full((3, 1, 1), -1000.0)
    for logits, expected in ((sure, (1, 0)), (even, (1 / 3, 1))):
        found = [float(part) for part in certainty(logits, "logits", logits.argmax(0))]
        assert found == pytest.approx(expected, abs=1e-6)
    ends = torch.tensor([1.0, 0.0])[:, None, None]
    for merge in ("softmax", "exp", "sigmoid"):
        assert [float(part) for part in certainty(ends, merge, ends.argmax(0))] == [1, 0]


def test_parts_of_several_processes_merge_to_the_file_of_one(evaluated, tmp_path):
    parts = [tmp_path / f"part {rank}" for rank in range(3)]
    for rank, part in enumerate(parts):
        evaluate(Guessing(), Drawn(), protocols=PROTOCOLS, indices=range(rank, 5, 3), images=part,
                 checkpoint="a/b.safetensors", measures=Measures(boundaries=True), require_labels=False)  # fmt: skip
    again = parts[1].read_text().splitlines(keepends=True)
    extra = parts[2].read_text().splitlines(keepends=True)
    parts[2].write_text("".join([extra[0], *again[1:4], *extra[1:]]))  # an image that two processes had
    merge_image_scores(parts, tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == evaluated[1].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["merged.jsonl"]


def test_parts_of_different_evaluations_are_refused(evaluated, tmp_path):
    other = tmp_path / "other"
    other.write_text(evaluated[1].read_text().replace("guessing", "knowing"))
    with pytest.raises(DatasetError, match="different evaluations"):
        merge_image_scores([evaluated[1], other], tmp_path / "merged")
    with pytest.raises(DatasetError, match=r"cannot read the scores by image in .*missing: No such file"):
        merge_image_scores([evaluated[1], tmp_path / "missing"], tmp_path / "merged")
    assert evaluated[1].exists()
    assert not (tmp_path / "merged").exists()


def test_memory_does_not_grow_with_images(tmp_path):
    """Of 2,000 images: a held line would be 15 blocks of Python's memory or more."""
    threads, places, blocks = torch.get_num_threads(), itertools.count(), []

    def on_image(image):
        if next(places) in (500, 1999):
            blocks.append(sys.getallocatedblocks())

    torch.set_num_threads(1)  # such small images are quicker on one
    try:
        evaluate(Guessing(rows=99), Drawn(2000, size=4), images=tmp_path / "i.jsonl", on_image=on_image)
    finally:
        torch.set_num_threads(threads)
    assert sum(1 for _ in ImageScoresFile(tmp_path / "i.jsonl")) == 2000
    assert blocks[1] < blocks[0] + 1000


HEADER = ImagesHeader("tiny", "val", ("a", "b"), ("whole",))
ONE = ImageScores(0, "x", "whole", 9, {1: (3, 5, 4)}, 0.5, 0.25, 0.75)


def test_an_interrupted_file_leaves_the_one_before(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_text("before")

    def interrupted(image):
        if image.name.startswith("photo 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Guessing(), Drawn(), images=path, on_image=interrupted)
    assert path.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["i.jsonl"]


class FullDisk:
    """A file on a disk that is full after some writes."""

    def __init__(self, left):
        self.left = left

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_full_disk_ends_the_file_and_not_always_the_evaluation(tmp_path, keep_going):
    """One that keeps going hears of it at the end, with its report."""
    reports, seen = [], []

    def evaluated():
        with ImageScoresWriter(tmp_path / "i.jsonl", keep_going=keep_going) as writer:
            writer._file.close()
            writer._file = FullDisk(3)
            reports.append(evaluate(Guessing(), Drawn(), images=writer, on_image=seen.append))

    with pytest.raises(OSError, match=r"No space left.*i.jsonl"):
        evaluated()
    assert len(reports) == keep_going
    assert len(seen) == (5 if keep_going else 2)
    assert list(tmp_path.iterdir()) == []


def line(**changes):
    return json.dumps({**vars(ONE), "counts": {"1": [3, 5, 4]}, **changes})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (line()[:40], "line 2.*not written to its end"),
        ("[" * 5000, "line 2"),
        ("null", "line 2"),
        (line(counts={"2": [1, 1, 1]}), "class id is out of range"),
        (line(counts={"1": [4, 3, 9]}), "counts contradict"),
        (line(counts={"1": [1, 2.5, 3]}), "2.5 is no count"),
        (line(counts={"1": [1, 2]}), "line 2"),
        (line(counts=[]), "line 2"),
        (line(index=-1), "-1 is no count"),
        (line(name=["x"]), "name is no text"),
        (line(protocol="slide"), "none of the header's"),
        (line(mean_iou=float("nan")), "nan is no share"),
        (line(confidence="<script>"), "no share from 0 to 1"),
        (json.dumps({"index": 1}), "KeyError"),
        ("\udcff", "no file of scores by image"),
    ],
)
def test_damaged_lines_are_named(tmp_path, text, what):
    path = tmp_path / "i [1].jsonl"
    with ImageScoresWriter(path) as writer:
        writer.begin(HEADER)
    assert read(path) == []
    path.write_bytes(path.read_bytes() + text.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DatasetError, match=what):
        read(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "line 1"),
        ('{"kind": "train"}', "line 1: KeyError"),
        ('{"format": "another"}', "another format"),
        ('{"format": "resnest_seg image scores", "version": 2}', "version 2, not 1"),
        ('{"format": "resnest_seg image scores", "version": 1}', "KeyError"),
    ],
)
def test_other_files_are_refused(tmp_path, text, what):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=what):
        ImageScoresFile(tmp_path / "metrics.jsonl")


def test_the_file_lies_beside_its_report(tmp_path):
    for report, images in (
        ("eval_camvid_val.json", "eval_camvid_val.images.jsonl"),
        ("eval.v1.json", "eval.v1.images.jsonl"),
        ("report", "report.images.jsonl"),
        ("val_report.json", "val_images.jsonl"),
    ):
        assert images_beside(tmp_path / report) == tmp_path / images
