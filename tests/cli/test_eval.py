"""The verb eval: its processes, what it keeps of an evaluation, and options that would do nothing."""

import accelerate
import numpy as np
import pytest
import torch
from support.fake_runs import Blocks, space
from support.small_models import small_segmenter

from resnest_seg.cli import eval as verb
from resnest_seg.errors import ConfigError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.evaluation.image_scores import ImageScoresFile, images_beside
from resnest_seg.evaluation.report import EvalReport


class Changed(Blocks):
    """The same photos with other labels."""

    def __init__(self, task, change):
        super().__init__(space(task=task), count=2)
        self.change = change

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample._replace(labels=self.change(sample.labels))


def evaluated(dataset, images=None):
    model = small_segmenter(dataset.label_space, classes=len(dataset.label_space.score_names))
    model.take_task(dataset.label_space.task)
    return evaluate(model, dataset, images=images, require_labels=False)


@pytest.mark.parametrize(
    ("task", "change", "kept"),
    [
        ("binary", lambda labels: np.where(labels == 255, labels, 0).astype(np.uint8), True),  # no object anywhere
        ("multilabel", lambda labels: labels & np.uint16(1 << 15), True),
        ("binary", lambda labels: np.full_like(labels, 255), False),
        ("multilabel", lambda labels: np.full_like(labels, 1 << 15), False),
        ("multiclass", lambda labels: np.full_like(labels, 255), False),
    ],
)
def test_data_without_the_object_are_labelled(task, change, kept, tmp_path, capsys):
    part, output = tmp_path / "part", tmp_path / "eval.json"
    report = evaluated(Changed(task, change), part)
    verb.finish(report, None, output, [part])
    assert output.is_file() == images_beside(output).is_file() == kept
    assert ("nothing to measure" in capsys.readouterr().err) != kept
    if kept:
        assert EvalReport.load(output).scores == report.scores
        assert all(image.pixels for image in ImageScoresFile(images_beside(output)))


def test_no_scores_by_image_of_another_report_stay_beside_a_new_one(tmp_path):
    output = tmp_path / "eval.json"
    first = evaluated(Blocks(space(), count=2), tmp_path / "part")
    verb.finish(first, None, output, [tmp_path / "part"])
    assert images_beside(output).is_file()
    verb.finish(first, None, output, [])  # --overwrite --no-images, or an error in writing predictions
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_scores_by_image_without_a_report_are_not_taken_for_those_of_a_new_one(tmp_path):
    images_beside(tmp_path / "eval.json").write_text("mine")
    for words in ((), ("--no-images",)):
        options = verb.parse(["--checkpoint", "x", "--output", str(tmp_path / "eval.json"), *words])
        with pytest.raises(ConfigError, match=r"scores by image .*eval.images.jsonl already exists"):
            verb.report_path(options, None, "blocks", "val")


def options_of(*words):
    options = verb.parse(["--checkpoint", "x", *words])
    verb.check(options)
    return options


@pytest.fixture
def two_processes(monkeypatch):
    """The variables of the second of two processes that torchrun started; nothing is really joined."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "localhost"),
                        ("MASTER_PORT", "1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(accelerate, "PartialState", lambda *, cpu: cpu)


@pytest.mark.parametrize(("gpu", "device", "cpu"), [(False, "auto", True), (False, "cpu", True), (True, "cpu", True),
                                                    (True, "auto", False), (True, "cuda", False)])  # fmt: skip
def test_processes_without_gpus_still_form_a_group(two_processes, monkeypatch, gpu, device, cpu):
    """accelerate takes each for a single one unless it hears that CPUs are meant: all would evaluate every image."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert verb.process_state(options_of("--device", device)) is cpu


def test_one_gpu_for_all_processes_is_refused(two_processes, monkeypatch):
    with pytest.raises(ConfigError, match=r"--device cuda:1 is one GPU, and torchrun started 2.*give --device cuda,"):
        options_of("--device", "cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    options_of("--device", "cuda:1")


def test_processes_that_cannot_find_each_other_are_refused(two_processes, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match="2 processes work together, but MASTER_ADDR is not set"):
        verb.process_state(options_of())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--boundary-width", "0.02"), "--boundary-width is about the scores of boundaries: give --boundaries as well"),
        (("--boundary-tolerance", "0.01"), "--boundary-tolerance is about .* give --boundaries as well"),
        (("--ids", "train"), "--ids train is about the PNGs of --save-predictions DIR: give that as well"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        options_of(*words)


def test_widths_of_boundaries_have_defaults_where_they_are_left_out():
    given = options_of("--boundaries", "--boundary-width", "0.5")
    assert (given.boundary_width, given.boundary_tolerance) == (0.5, 0.0075)
    assert (options_of().boundary_width, options_of("--boundaries").boundary_width) == (0.02, 0.02)


@pytest.mark.parametrize("words", [("--boundaries",), ("--protocols", "encoding"), ("--data.root", "x", "--limit", "3"),
                                   ("--checkpoint", "x"), ("--output", "x.json"), ("--no-images",)])  # fmt: skip
def test_two_reports_are_compared_without_options_of_an_evaluation(words):
    options = verb.parse(["--compare", "a.json", "b.json", *words])
    named = ", ".join(word.replace("--protocols", "--protocol") for word in words if word.startswith("--"))
    with pytest.raises(ConfigError, match=f"--compare of two reports evaluates nothing: leave {named} out, or name"):
        verb.check(options)
    verb.check(verb.parse(["--compare", "a.json", "b.json"]))
