"""The report of runs, of run folders that look as a training leaves them."""

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_runs import HOSTILE, Blocks, fake_run, space, write_lines
from support.small_models import small_segmenter
from test_page import Reader

from resnest_seg.cli.review import report as verb
from resnest_seg.config import PretrainConfig, RunConfig
from resnest_seg.config_reading import to_yaml
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import CheckpointError, ConfigError, run_tool
from resnest_seg.evaluation.comparison import compare_images
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.evaluation.image_scores import ImageScoresFile
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.predictor import open_backend
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter
from resnest_seg.reports import run_report
from resnest_seg.reports.run_files import changed_keys, config_table, names_of, read_files
from resnest_seg.reports.run_pictures import choose
from resnest_seg.reports.run_report import Pictures, evaluations, write_report


@pytest.fixture(scope="module")
def model():
    return small_segmenter(space())


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """Two runs whose models differ a little; not to be changed."""
    folder, dataset = tmp_path_factory.mktemp("runs"), Blocks(space())
    fake_run(folder / "first", model, dataset)
    other = small_segmenter(space())
    with torch.no_grad():
        other.head.get_parameter(next(name for name, _ in other.head.named_parameters())).mul_(0.3)
    fake_run(folder / "second", other, dataset, seed=1, optim={"lr": 0.02})
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "runs"))


def written(folders, output, **options):
    """The page and what was said."""
    said = []
    write_report(folders, output, say=said.append, **options)
    return Reader(output.read_text(encoding="utf-8")), said


def cells(page, row):
    """Texts of the row of a table that begins with a heading."""
    texts = [(tag, data) for tag, data in page.texts if tag in ("th", "td")]
    start = texts.index(("th", row))
    found = []
    for tag, data in texts[start + 1 :]:
        if tag == "th":
            break
        found.append(data)
    return found


def test_a_report_has_the_numbers_of_the_run(runs, tmp_path, model):
    images = Pictures(count=2, segmenter=model, dataset=Blocks(space()))
    page, said = written([runs / "first"], tmp_path / "r.html", images=images)
    assert said == []
    report = EvalReport.load(runs / "first" / "val_report.json")
    scores = report.scores["whole"]
    headings = page.text("h2")
    assert headings == "What was runCurvesScoresConfusion matrixReliabilityImages"
    assert cells(page, "mean IoU, absent classes skipped") == [f"{100 * scores.mean_iou:.2f}"]
    assert cells(page, "pixel accuracy") == [f"{100 * scores.pixel_accuracy:.2f}"]
    for label, name in enumerate(report.classes):
        assert cells(page, name)[0] == f"{100 * scores.class_iou[label]:.2f}"
        assert cells(page, name)[-1] == f"{100 * scores.class_share[label]:.2f}"
    assert cells(page, "machine") == ["<b>host</b>, 1 process on cpu, bf16"]
    assert cells(page, "data fingerprint") == ["0123456789ab"]
    data = json.loads(next(text for tag, text in page.texts if tag == "script" and "counts" in text))
    assert data["run0"]["counts"] == report.matrices["whole"]
    assert "stopped at step 40 of 40: it is not running" in page.text("p")
    names = [path.get("data-name") for path in page.all("path") if path.get("class") == "series"]
    assert names == ["training", "validation", "mean IoU", "pixel accuracy", "learning rate", "gradient norm", "sky",
                     "road", "car"]  # fmt: skip


def test_the_parts_of_a_loss_are_curves_beside_it(runs, tmp_path):
    """Of teachers and unlabelled photos, where a run has some."""
    path = runs / "first" / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        if entry["kind"] == "train":
            entry |= {"labelled_loss": entry["loss"] / 2, "kl_loss": entry["loss"] / 4, "cwd_loss": entry["loss"] / 4}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    page, _ = written([runs / "first"], tmp_path / "r.html", images=Pictures(count=0))
    names = [path.get("data-name") for path in page.all("path") if path.get("class") == "series"]
    assert names[:5] == ["training", "validation", "labelled", "teachers, kl", "teachers, cwd"]
    assert "unlabelled" not in names


def test_runs_are_compared_with_an_interval(runs, tmp_path):
    folders = [runs / "first", runs / "second"]
    page, _ = written(folders, tmp_path / "r.html", images=Pictures(count=0))
    files = [folder / "val_images.jsonl" for folder in folders]
    assert f"second: {compare_images(*files, protocol='whole')}" in page.text("li")
    reports = [EvalReport.load(folder / "val_report.json").scores["whole"] for folder in folders]
    found = [f"{100 * report.class_iou[0]:.2f}" for report in reports]
    change = 100 * (reports[1].class_iou[0] - reports[0].class_iou[0])
    assert cells(page, "sky")[:3] == [*found, f"{change:+.2f}"]
    assert cells(page, "optim.lr")[:2] == ["0.01", "0.02"]
    assert cells(page, "seed")[:2] == ["0", "1"]


def test_runs_are_compared_by_the_newest_evaluation_that_all_have(runs):
    files = [read_files(runs / name) for name in ("first", "second")]
    for name, stamp in (("first", 10**10), ("second", 10**10 + 5)):
        shutil.copy(runs / name / "val_report.json", runs / name / "eval_blocks_val.json")
        os.utime(runs / name / "eval_blocks_val.json", (stamp, stamp))
    shutil.copy(runs / "first" / "val_report.json", runs / "first" / "eval_alone.json")
    os.utime(runs / "first" / "eval_alone.json", (10**10 + 9, 10**10 + 9))
    found, problems = evaluations(files, ["a", "b"])
    assert [one.file.name for one in found] == ["eval_blocks_val.json"] * 2
    assert [one.images for one in found] == [None, None]  # those of the validation are of another report
    found, problems = evaluations(files[:1], ["a"])
    assert found[0].file.name == "eval_alone.json"
    assert problems == []


def by_slide(folder, report="val_report.json", images="val_images.jsonl"):
    """Rewrite an evaluation as one by protocol slide."""
    for name in (report, images):
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace('"whole"', '"slide"'), encoding="utf-8")


def test_scores_by_two_protocols_are_not_compared_by_class(runs, tmp_path):
    folders = [runs / "first", runs / "second"]
    by_slide(runs / "second")
    page, _ = written(folders, tmp_path / "r.html", images=Pictures(count=0))
    first = EvalReport.load(runs / "first" / "val_report.json").scores["whole"]
    assert cells(page, "sky")[0] == f"{100 * first.class_iou[0]:.2f}"
    texts = [data for tag, data in page.texts if tag == "th"]
    assert {"first, whole", "second, slide"} <= set(texts)  # the means
    assert not [text for text in texts if text.endswith(", points")]
    assert "second is left out: it was evaluated by protocol slide and not by whole" in page.text("p")
    assert f"eval_seg.py --checkpoint {runs / 'second'} --protocols whole --split val" in page.text("code")
    assert "--model" not in page.text("code")
    assert "second: no interval, because it was not evaluated by protocol whole" in page.text("li")


@pytest.mark.parametrize("before", ["val_report.json", "eval_blocks_val.json"])
def test_the_command_of_a_run_that_is_left_out_brings_it_in(before, runs, tmp_path):
    """It writes eval_blocks_val.json, or -2, beside reports of the same names by other protocols."""
    folders = [runs / "first", runs / "second"]
    whole = (runs / "second" / "val_report.json").read_text(encoding="utf-8")
    by_slide(runs / "second")
    for folder in folders:
        (folder / "val_report.json").rename(folder / before)
    after = runs / "second" / ("eval_blocks_val-2.json" if before.startswith("eval") else "eval_blocks_val.json")
    after.write_text(whole, encoding="utf-8")
    for stamp in (10**9, 2 * 10**9):  # older than the one by slide, and newer
        os.utime(after, (stamp, stamp))
        for order in (folders, folders[::-1]):
            found, _ = evaluations([read_files(folder) for folder in order], [folder.name for folder in order])
            assert {one.name: one.file.name for one in found} == {"first": before, "second": after.name}
            assert [one.protocol for one in found] == ["whole", "whole"]
    test = json.loads(whole) | {"split": "test"}  # a newer evaluation of other images is none to compare with
    (runs / "second" / "eval_blocks_test.json").write_text(json.dumps(test), encoding="utf-8")
    found, _ = evaluations([read_files(folder) for folder in folders], ["first", "second"])
    assert found[1].file == after


def test_a_run_without_a_partner_leaves_the_others_together(runs, tmp_path):
    shutil.copytree(runs / "second", runs / "third")
    (runs / "second" / "val_report.json").rename(runs / "second" / "eval_x.json")
    by_slide(runs / "third")
    found, _ = evaluations([read_files(runs / name) for name in ("first", "third", "second")], ["a", "b", "c"])
    assert [one.protocol for one in found] == ["whole", "slide", "whole"]


def test_the_command_for_a_network_of_ones_own_names_it(runs, tmp_path):
    path = runs / "second" / "config.yaml"
    config = read_files(runs / "second").config
    path.write_text(to_yaml(dataclasses.replace(config, model=dataclasses.replace(config.model, head="custom"))))
    by_slide(runs / "second")
    page, _ = written([runs / "first", runs / "second"], tmp_path / "r.html", images=Pictures(count=0))
    assert "--protocols whole --split val --model FILE.py:FUNCTION" in page.text("code")


def test_runs_are_compared_by_a_protocol_that_they_share(runs):
    files = [read_files(runs / name) for name in ("first", "second")]
    tree = json.loads((runs / "first" / "val_report.json").read_text(encoding="utf-8"))
    both = tree | {"scores": {"mmseg": tree["scores"]["whole"], **tree["scores"]}}
    (runs / "first" / "val_report.json").write_text(json.dumps(both), encoding="utf-8")
    for name, stamp in (("first", 10**10), ("second", 10**10 + 5)):
        shutil.copy(runs / name / "val_report.json", runs / name / "eval_blocks_val.json")
        os.utime(runs / name / "eval_blocks_val.json", (stamp, stamp))
    found, _ = evaluations(files, ["a", "b"])
    assert [one.protocol for one in found] == ["whole", "whole"]
    by_slide(runs / "second", report="eval_blocks_val.json")  # the newest that both have
    found, _ = evaluations(files, ["a", "b"])
    assert [(one.file.name, one.protocol) for one in found] == [("val_report.json", "whole")] * 2
    (runs / "first" / "val_report.json").rename(runs / "first" / "eval_other.json")
    (runs / "first" / "eval_blocks_val.json").unlink()  # now they have no name in common
    found, _ = evaluations(files, ["a", "b"])
    assert [one.file.name for one in found] == ["eval_other.json", "val_report.json"]
    assert [one.protocol for one in found] == ["whole", "whole"]


def test_images_are_chosen_by_their_scores(runs):
    files = [(name, runs / name / "val_images.jsonl") for name in ("first", "second")]
    means = [{image.index: image.mean_iou for image in ImageScoresFile(path)} for _, path in files]
    chosen = choose(files, "whole", classes=("sky", "road", "car"), count=2)
    order = sorted(means[0], key=means[0].get)
    tagged = {tag: {one.index for one in chosen if tag in one.tags} for one in chosen for tag in one.tags}
    assert tagged["worst"] == set(order[:2])
    assert tagged["best"] == set(order[-2:])
    assert len(tagged["random"]) == 2
    change = {index: means[1][index] - means[0][index] for index in order}
    for tag, sign in (("better in second", 1), ("worse in second", -1)):
        expected = [index for index in sorted(change, key=lambda i: -sign * change[i])[:2] if sign * change[index] > 0]
        assert tagged.get(tag, set()) == set(expected)
    first = next(one for one in chosen if one.index == order[0])
    assert first.scores["mean IoU"] == means[0][order[0]]
    assert first.scores["mean IoU of second"] == means[1][order[0]]
    other = runs / "other.jsonl"
    other.write_text(files[1][1].read_text().replace("street", "road"))  # other images of the same places
    alone = choose([files[0], ("other", other)], "whole", classes=("sky", "road", "car"), count=2)
    assert {tag for one in alone for tag in one.tags} == {"worst", "best", "random"}
    assert {one.scores["mean IoU of other"] for one in alone} == {None}
    again = choose(files, "whole", classes=("sky", "road", "car"), count=2)
    assert chosen == again  # the same page every time


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_have_their_thresholds_drawn(task, tmp_path):
    dataset = Blocks(space(task=task), count=3)
    model = small_segmenter(dataset.label_space, classes=len(dataset.label_space.score_names))
    model.take_task(task)
    fake_run(tmp_path / "run", model, dataset, model={"task": task})
    images = Pictures(count=1, segmenter=model, dataset=dataset)
    page, said = written([tmp_path / "run"], tmp_path / "r.html", images=images)
    assert said == []
    assert page.text("h2") == "What was runCurvesScoresThresholdsImages"
    labels = EvalReport.load(tmp_path / "run" / "val_report.json").labels["whole"]
    assert len(labels.curves) == len(dataset.label_space.score_names)
    for curve, score in zip(labels.curves, labels.labels, strict=True):
        assert len(curve.thresholds) == 101
        assert curve.iou[50] == score.iou  # the model's threshold is 0.5
        assert (curve.precision[50], curve.recall[50]) == (score.precision, score.recall)
    drawn = [path["data-name"] for path in page.all("path") if path.get("class") == "series"]
    assert drawn.count("precision") == len(labels.curves)


def test_whatever_things_are_called_the_page_is_html(tmp_path):
    dataset = Blocks(space(HOSTILE))
    folder = tmp_path / "run [1] <b>ü% \"'&"
    model = small_segmenter(dataset.label_space)
    data = {"dataset": "folder", "classes": "</script><script>alert(1)</script>.csv"}
    fake_run(folder, model, dataset, data=data)
    images = Pictures(count=8, segmenter=model, dataset=dataset)
    page, said = written([folder], tmp_path / "r.html", images=images)
    assert said == []
    assert page.text("h1") == page.text("title") == folder.name
    assert {a["src"].partition(",")[0] for a in page.all("img")} == {"data:image/jpeg;base64", "data:image/png;base64"}
    assert len([tag for tag, attributes in page.elements if tag == "script" and "type" not in attributes]) == 1
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text("h3").count(dataset.sample_name(0)) == 1
    assert "</script><script>alert(1)</script>.csv" in [text for tag, text in page.texts if tag == "td"]
    for name in HOSTILE:
        assert cells(page, name)


def test_a_run_that_died_in_a_line_gives_what_is_there(runs, tmp_path):
    folder = runs / "first"
    for name in ("val_report.json", "val_images.jsonl"):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    odd = [
        "[1, 2]",
        '{"kind": "train", "step": "x"}',
        '{"kind": "train", "step": 12, "epoch": 1.2, "loss": NaN}',
        '{"kind": "train", "step": 13, "epoch": 1.3, "loss": 1e308, "grad_norm": "x", "lr": -1e308}',
        lines[0][:20],
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:12], *odd]))
    page, said = written([folder], tmp_path / "r.html")
    assert said == ["first has not been evaluated: no validation so far, and no report of an evaluation."]
    assert page.text("h2") == "What was runCurves"
    assert "stopped at step 13" in page.text("p")
    (folder / "metrics.jsonl").write_text("\n".join(lines))  # of a version that kept no report of its validations
    _, said = written([folder], tmp_path / "r.html")
    assert said == ["first has not been evaluated: its validations left no report, and no report of an evaluation."]
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    page, _ = written([folder], tmp_path / "r.html")
    assert page.text("h2") == "What was run"


def test_pictures_are_of_the_data_of_the_run_that_was_evaluated(runs, tmp_path, model):
    """Also behind a run that was not, or an image classifier, which has no evaluation at all."""
    bare, classifier = tmp_path / "bare", tmp_path / "classifier"
    for folder, config in (
        (bare, RunConfig.from_dict({"data": {"dataset": "camvid"}})),
        (classifier, PretrainConfig()),
    ):
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(config))
    shutil.copy(runs / "first" / "val_report.json", classifier / "eval_x.json")  # that nobody asks for
    page, said = written([classifier, bare, runs / "first"], tmp_path / "r.html", images=Pictures(segmenter=model))
    assert said[0].startswith("bare has not been evaluated")
    assert [text for text in said if "no pictures" in text] == said[1:]
    assert "the val split of synthetic is not what was evaluated" in said[1]
    assert "Scores" in page.text("h2")


def test_pictures_of_other_data_are_not_shown(runs, tmp_path, model):
    other = Blocks(space(), count=1)
    page, said = written([runs / "first"], tmp_path / "r.html", images=Pictures(8, segmenter=model, dataset=other))
    assert said[0].startswith("no pictures: the val split of blocks is not what was evaluated: image ")
    assert said[0].endswith(" & 'co', and has 1 images.")
    assert "Images" not in page.text("h2")
    other = Blocks(space())
    other.sample_name = lambda index: f"other {index}"
    _, said = written([runs / "first"], tmp_path / "r.html", images=Pictures(8, segmenter=model, dataset=other))
    assert " & 'co', and is other " in said[0]


class Otherwise(Blocks):
    """The same names for other photos, or for other labels."""

    def __init__(self, *, photos=False):
        super().__init__(space())
        self.photos = photos

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if self.photos:
            return sample._replace(image=np.roll(sample.image, 24, axis=1))
        labels = sample.labels.copy()
        labels[-1, -1] = 0  # one pixel
        return sample._replace(labels=labels)


def test_pictures_of_other_labels_photos_or_weights_than_were_evaluated_are_not_shown(runs, tmp_path, model):
    file = runs / "first" / "val_images.jsonl"
    torch.manual_seed(5)
    untrained = build_segmenter("resnest14_tiny", "fcn", 3).eval()
    untrained.label_space = space()
    others = (
        f"of the pixels or more are predicted otherwise than when {file} was written: the weights or the photos are"
    )
    for segmenter, dataset, says in (
        (model, Otherwise(), f" has other labels here than when {file} was written: name the data that were evaluated"),
        (model, Otherwise(photos=True), others),
        (untrained, Blocks(space()), others),
    ):
        images = Pictures(8, segmenter=segmenter, dataset=dataset)
        page, (said,) = written([runs / "first"], tmp_path / "r.html", images=images)
        assert said.startswith("no pictures: ")
        assert says in said
        assert "Images" not in page.text("h2")
    for task in ("binary", "multilabel"):
        data = Blocks(space(task=task), count=3)
        right = small_segmenter(data.label_space, classes=len(data.label_space.score_names))
        right.take_task(task)
        folder = fake_run(tmp_path / task, right, data, model={"task": task})
        wrong = copy.deepcopy(right)
        wrong.thresholds.fill_(0.0)  # every label everywhere
        _, said = written([folder], tmp_path / "r.html", images=Pictures(8, segmenter=wrong, dataset=data))
        assert "of the pixels or more are predicted otherwise" in said[0]


def test_of_several_runs_the_one_with_other_weights_is_left_out(runs, tmp_path, model):
    images = Pictures(2, segmenter=model, dataset=Blocks(space()))
    page, said = written([runs / "first", runs / "second"], tmp_path / "r.html", images=images)
    assert said[-1].startswith("no predictions of second: ")
    assert "Images" in page.text("h2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs with their checkpoints, which predict otherwise; not to be changed."""
    folder, dataset, tiny = (
        tmp_path_factory.mktemp("runs"),
        Blocks(space()),
        {"encoder": "resnest14_tiny", "head": "fcn"},
    )
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        segmenter = build_segmenter("resnest14_tiny", "fcn", 3).eval()
        fake_run(folder / name, segmenter, dataset, model=tiny, save=True)
        os.utime(folder / name / "best.safetensors", (10**9, 10**9))
    return folder


def evaluated_as(folder, checkpoint):
    """Write into the report of a run what was evaluated."""
    tree = json.loads((folder / "val_report.json").read_text(encoding="utf-8")) | {"checkpoint": str(checkpoint)}
    (folder / "val_report.json").write_text(json.dumps(tree), encoding="utf-8")


def opened(folders, tmp_path, monkeypatch):
    """The files whose predictions a report shows, and what it says."""
    files = []

    def recording(path, *arguments, **options):
        files.append(Path(path).resolve())
        return open_backend(path, *arguments, **options)

    monkeypatch.setattr(run_report, "open_backend", recording)
    images = Pictures(1, dataset=Blocks(space()), device="cpu")
    return files, written(folders, tmp_path / "r.html", images=images)[1]


def test_the_weights_of_a_run_are_looked_for_in_its_folder(trained, tmp_path, monkeypatch):
    runs = Path(shutil.copytree(trained, tmp_path / "runs"))
    for name in "ab":
        evaluated_as(runs / name, "best.safetensors")  # as a training writes it
    monkeypatch.chdir(runs / "a")
    expected = [runs / "a" / "best.safetensors", runs / "b" / "best.safetensors"]
    assert opened([Path(), Path("../b")], tmp_path, monkeypatch) == (expected, [])
    (runs / "b" / "best.safetensors").unlink()
    assert opened([Path("../b")], tmp_path, monkeypatch) == ([], ["no pictures: ../b has no best.safetensors."])


def test_the_weights_of_a_moved_run_are_not_those_of_another_one_in_its_place(trained, tmp_path, monkeypatch):
    runs = Path(shutil.copytree(trained, tmp_path / "runs"))
    place, old = runs / "a" / "best.safetensors", runs / "old" / "best.safetensors"
    evaluated_as(runs / "a", place)
    assert opened([runs / "a"], tmp_path, monkeypatch) == ([place], [])
    (runs / "a").rename(runs / "old")
    (runs / "b").rename(runs / "a")
    os.utime(place, (2**32, 2**32))  # trained after the evaluation
    assert opened([runs / "old"], tmp_path, monkeypatch) == ([old], [])
    os.utime(place, (10**9, 10**9))  # or before
    assert opened([runs / "old"], tmp_path, monkeypatch) == ([place, old], [])
    old.rename(tmp_path / "best.safetensors")
    _, (said,) = opened([runs / "old"], tmp_path, monkeypatch)
    assert "the weights or the photos are others now" in said
    evaluated_as(runs / "old", tmp_path / "best.safetensors")  # by --output
    assert opened([runs / "old"], tmp_path, monkeypatch) == ([tmp_path / "best.safetensors"], [])


def test_damaged_scores_are_named(runs, tmp_path):
    path = runs / "first" / "val_images.jsonl"
    path.write_text(path.read_text() + '{"index": 1, "na')
    _, said = written([runs / "first"], tmp_path / "r.html", images=Pictures(2, dataset=Blocks(space())))
    assert said[0].startswith(f"no pictures: {path}, line 10, is no scores of an image")
    (runs / "first" / "val_report.json").write_text("{}")
    page, said = written([runs / "first"], tmp_path / "r.html")
    assert said[0].startswith(f"{runs / 'first' / 'val_report.json'} is not a report of this version")
    assert page.text("h2") == "What was runCurves"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("classes",), [1, 2, 3]),
        (("scores", "whole", "class_iou"), ["<b>", 0.1, 0.2]),
        (("scores", "whole", "class_iou"), [float("nan"), 0.1, 0.2]),
        (("scores", "whole", "class_share"), [0.1]),
        (("scores", "whole", "class_share"), [None, None, None]),
        (("confusions", "whole"), [{"label": 77, "prediction": 1, "pixels": 5, "share": 0.1}]),
        (("calibration", "whole", "bins", 0, "low"), "a"),
    ],
    ids=str,
)
def test_reports_that_nobody_evaluated_are_refused_and_the_page_is_written(path, value, runs, tmp_path):
    file = runs / "first" / "val_report.json"
    tree = json.loads(file.read_text())
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(tree))
    page, said = written([runs / "first"], tmp_path / "r.html")
    assert said[0].startswith(f"{file} is not a report of this version (ValueError: ")
    assert page.text("h2") == "What was runCurves"


@pytest.mark.slow
def test_a_report_of_two_thousand_images_is_small_enough_to_send(tmp_path, runs, model):
    """Scores of 2,000 images, and as many pictures as are shown by default, as large as they get."""
    folder, dataset = runs / "first", Blocks(space(), count=2000, size=(240, 320))
    first = dataset[0]
    dataset.__class__ = type("Alike", (Blocks,), {"__getitem__": lambda self, index: first})
    evaluate(model, dataset, indices=[0], images=folder / "val_images.jsonl")
    header, line = (folder / "val_images.jsonl").read_text().splitlines()
    one = json.loads(line)
    random = np.random.default_rng(0)
    lines = [one | {"index": k, "name": dataset.sample_name(k), "mean_iou": random.random()} for k in range(2000)]
    write_lines(folder / "val_images.jsonl", [json.loads(header), *lines])
    page, said = written([folder], tmp_path / "r.html", images=Pictures(segmenter=model, dataset=dataset))
    assert said == []
    assert len(page.all("article")) >= 46
    assert (tmp_path / "r.html").stat().st_size < 10_000_000


@pytest.mark.slow
def test_the_command_predicts_with_the_best_checkpoint(tmp_path, monkeypatch, capsys):
    """As a person calls it: the model from the run folder, the data by the config."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    dataset = Synthetic("val")
    segmenter = build_segmenter("resnest14_tiny", "fcn", len(dataset.label_space)).eval()
    tiny = {"encoder": "resnest14_tiny", "head": "fcn"}
    folder = fake_run(tmp_path / "run", small_segmenter(space()), Blocks(space(), count=2), model=tiny)
    config = RunConfig.from_dict({"model": tiny, "data": {"dataset": "synthetic"}})
    Checkpoint(config, dataset.label_space, segmenter.state_dict()).save(folder / "best.safetensors")
    evaluate(segmenter, dataset, indices=range(3), images=folder / "val_images.jsonl").save(folder / "val_report.json")
    assert run_tool(lambda: verb.main(["run", "--images", "1", "--device", "cpu"])) == 0
    out = capsys.readouterr()
    assert out.out == "report: run/report.html\n"
    assert out.err == ""
    page = Reader((folder / "report.html").read_text(encoding="utf-8"))
    assert 2 <= len(page.all("article")) <= 3
    assert run_tool(lambda: verb.main(["run", "--no-images"])) == 0
    assert capsys.readouterr().out == "report: run/report-2.html\n"
    (tmp_path / "own.py").write_text("def build(num_classes):\n    raise ValueError('for another run')\n")
    words = ["run", "--images", "1", "--model", "own.py:build", "--output", "own.html"]
    assert run_tool(lambda: verb.main(words)) == 0  # a network of one's own is for the runs that were trained with one
    assert capsys.readouterr().err == ""
    tree = json.loads((folder / "val_report.json").read_text()) | {"checkpoint": "/gone/kept.safetensors"}
    (folder / "val_report.json").write_text(json.dumps(tree))
    (folder / "best.safetensors").rename(folder / "kept.safetensors")  # what was evaluated; the run has been moved
    assert run_tool(lambda: verb.main(["run", "--images", "1", "--output", "moved.html"])) == 0
    assert capsys.readouterr().err == ""
    (folder / "kept.safetensors").unlink()
    assert run_tool(lambda: verb.main(["run", "--output", "run/report.html", "--overwrite"])) == 0
    assert capsys.readouterr().err == "note: no pictures: run has no kept.safetensors.\n"


def test_mistakes_on_the_command_line_are_named(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    for words, says in (
        (["none"], "none is no run folder: there is none. Name the folder that a training wrote."),
        (["."], ". is no run folder: it has no config.yaml."),
        (["first", "--images", "-1"], "--images must be from 0 to 1000, not -1."),
        (["first", "--output", "second"], "cannot write the report to second: it is a folder."),
        (["second", "first", "--output", "first/metrics.jsonl", "--overwrite"], "first/metrics.jsonl is an input file"),
        (["first", "--ouput", "x"], "unknown option '--ouput'. Did you mean '--output'?"),
        ([], "the following arguments are required: RUN"),
    ):
        assert run_tool(lambda words=words: verb.main(words)) == 2
        assert capsys.readouterr().err.startswith(f"error: {says}")
    Path("report.html").write_text("mine")
    assert run_tool(lambda: verb.main(["first", "second", "--output", "report.html"])) == 2
    assert "already exists" in capsys.readouterr().err
    assert Path("report.html").read_text() == "mine"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="none is given"):
        write_report([], tmp_path / "r.html")


def test_the_nearest_shipped_config_is_what_a_config_is_compared_with():
    from resnest_seg.config import load_run_config

    config = load_run_config("camvid_deeplabv3_resnest50", overrides=["--optim.lr", "0.5", "--data.root", "/x"])
    rate = load_run_config("camvid_deeplabv3_resnest50").optim.lr
    assert changed_keys(config) == ("the shipped config camvid_deeplabv3_resnest50", {"optim.lr": (rate, 0.5)})
    other = RunConfig.from_dict({"seed": 3, "output": "x"})
    assert config_table([RunConfig(), other]) == {"seed": [0, 3]}


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    assert names_of(folders) == ["a/run", "b/run", "b/other"]
    assert names_of(folders[:1]) == ["run"]
    assert [name.rpartition("/")[2] for name in names_of([folders[0]] * 2)] == ["run (1)", "run (2)"]
