"""No tool writes outside the folder that it was told, over what it reads, or after work that it then loses."""

import dataclasses
import errno
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_data, small_onnx
from support.small_models import small_segmenter

from resnest_seg.config import DataConfig, RunConfig, TrainConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import CheckpointError, DatasetError
from resnest_seg.evaluation.image_scores import ImageScoresFile
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.evaluation.submission import Submission
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.video import write_video
from resnest_seg.io.visualize import write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.training.run_folder import METRICS, RunFolder
from resnest_seg.training.tasks import Validation
from resnest_seg.training.trainer import Trainer

pytestmark = pytest.mark.slow

HOSTILE = (
    b"[bold] photo [1].png",
    b"caf\xe9.png",
    b"\x1b[31mred\n.png",
    b"C:evil.png",
    b"a\\..\\..\\evil.png",
    b"x" * 250 + b".png",
    b" .. .png",
    b"Case.png",
    b"case.png",
)
"""Names that a file system of Linux takes, and that lead astray elsewhere, or cannot be printed."""


def snapshot(folder, without=None):
    """Every file below a folder with its content."""
    return {
        path: path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and (without is None or Path(without) not in path.parents)
    }


@pytest.fixture
def evaluate(tool, tmp_path, monkeypatch):
    """tools/eval_seg.py with a model of one convolution instead of a checkpoint."""
    run = tool("eval_seg")
    from resnest_seg.cli import eval as module

    (tmp_path / "model.onnx").write_bytes(b"")  # exported files leave the processes alone

    def open_source(options, *, elsewhere):
        space = LabelSpace.of(options.dataset)
        model = small_segmenter(space, classes=len(space), data=options.dataset)
        backend = TorchBackend(model, RunOptions("cpu", fuse=False))
        data = DataConfig(dataset=options.dataset)
        return module.Source(backend, (tmp_path / "model.onnx",), "a convolution", data, "val", 1 << 30, "fp32")

    monkeypatch.setattr(module, "open_source", open_source)
    return lambda *words: run("--checkpoint", tmp_path / "model.onnx", "--workers", 0, "--device", "cpu", *words)


def full_disk(monkeypatch, when):
    """The disk is full for files of some names: told when they are brought to it, as by systems that write late."""
    real = os.fsync

    def fsync(number):
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        if when(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)


PLACES = {
    "camvid": "val/0001TP_000000.png",
    "cityscapes": "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
    "ade20k": "ADEChallengeData2016/images/validation/ADE_val_00000001.png",
}


@pytest.mark.parametrize("root", ["absolute", "relative", "zip"])
@pytest.mark.parametrize("name", list(PLACES))
def test_predictions_land_below_their_folder_and_photos_stay(name, root, evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fake_data.make(name, tmp_path / "data [1]", count=1)
    given = {"absolute": folder, "relative": "data [1]", "zip": tmp_path / "data.zip"}[root]
    if root == "zip" and name == "cityscapes":
        given = tmp_path / "zips"
        given.mkdir()
        for part in ("leftImg8bit", "gtFine"):
            pack(given / f"{part}_trainvaltest.zip", folder, part)
    elif root == "zip":
        pack(given, folder)
    before = snapshot(tmp_path)
    words = ["--dataset", name, "--data.root", given, "--output", "report.json", "--save-predictions", "out/deep"]
    assert evaluate(*words) == 0
    after = snapshot(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert sorted(str(path.relative_to(tmp_path)) for path in set(after) - set(before)) == [
        f"out/deep/{PLACES[name]}",
        "report.images.jsonl",
        "report.json",
    ]
    assert evaluate(*words, "--overwrite") == 0


def pack(path, folder, part=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in (folder / part).rglob("*.*"):
            archive.write(file, file.relative_to(folder))


def test_a_folder_data_set_with_photos_of_one_name(evaluate, tmp_path, monkeypatch, tool):
    """By stem and ending; FolderDataset refuses such photos, other layouts do not."""
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    Image.open(root / "val" / "0001TP_000000.png").convert("RGB").save(root / "val" / "0001TP_000000.jpg")
    before = snapshot(root)
    out = tmp_path / "out"
    assert evaluate("--dataset", "camvid", "--data.root", root, "--save-predictions", out) == 0
    assert sorted(path.name for path in out.rglob("*.png")) == ["0001TP_000000.jpg.png", "0001TP_000000.png.png"]
    assert snapshot(root) == before


def test_predictions_into_the_data_set_itself_are_refused(evaluate, tmp_path, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    before = snapshot(tmp_path)
    words = ["--dataset", "camvid", "--data.root", root, "--overwrite"]
    assert evaluate(*words, "--save-predictions", root) == 2
    assert "a result would overwrite it" in capsys.readouterr().err
    for inside in ("val", "valannot/new"):
        assert evaluate(*words, "--save-predictions", root / inside) == 2
        assert "which holds the data set's files" in capsys.readouterr().err
    photo = root / "val" / "0001TP_000000.png"
    assert evaluate(*words, "--output", photo) == 2
    assert snapshot(tmp_path) == before


def hostile_camvid(folder):
    """A data set whose photos have hostile names."""
    root = fake_data.make("camvid", folder / "data", count=0)
    photo, mask = fake_data.picture_and_mask(LabelSpace.of("camvid"), 0)
    for kind, picture in (("val", photo), ("valannot", mask)):
        (root / kind).mkdir(parents=True)
        for name in HOSTILE:
            Image.fromarray(picture).save(root / kind / "plain.png")
            (root / kind / "plain.png").rename(root / kind / os.fsdecode(name))
    return root


def test_names_that_lead_astray_or_cannot_be_printed(evaluate, tool, tmp_path, monkeypatch, capsys):
    """Every tool that reads photos: all results are there, below the folder, and nothing else changed."""
    monkeypatch.chdir(tmp_path)
    root = hostile_camvid(tmp_path)
    small_onnx.write(tmp_path / "m.onnx")
    before = snapshot(tmp_path)
    words = [
        "--dataset",
        "camvid",
        "--data.root",
        root,
        "--output",
        "out/report.json",
        "--save-predictions",
        "out/eval",
    ]
    assert evaluate(*words) == 0
    assert len(list((tmp_path / "out" / "eval").rglob("*.png"))) == len(HOSTILE)
    kinds = ["labels", "overlay", "scores", "polygons"]
    photos = [root / "val", root / "val" / os.fsdecode(HOSTILE[0]), root / "val" / ".." / "val" / "case.png"]
    assert tool("predict_seg")("--checkpoint", "m.onnx", *photos, "--output", "out/predict", "--write", *kinds) == 0
    words = ["--dataset", "camvid", "--data.root", root, "--splits", "val", "--workers", 0]
    assert tool("check_dataset")(*words, "--output", "out/check.json") == 0
    found = list((tmp_path / "out" / "predict").rglob("*.*"))
    assert len(found) >= 4 * len(HOSTILE)
    for path in found:
        path.name.encode()
        assert "\x1b" not in str(path)
    assert snapshot(tmp_path, without=tmp_path / "out") == before
    assert "Traceback" not in capsys.readouterr().err


def test_a_bad_photo_with_an_odd_name_is_told_escaped(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_onnx.write(tmp_path / "m.onnx")
    for name in HOSTILE[:3]:
        Path(os.fsdecode(name)).write_bytes(b"no photo")
    assert tool("predict_seg")("--checkpoint", "m.onnx", ".") == 1
    text = capsys.readouterr().err
    for part in ("[bold] photo [1].png", "caf\\xe9.png", "\\x1b[31mred"):
        assert part in text


def test_a_submission_of_names_that_no_zip_file_holds(tmp_path):
    space = LabelSpace.of("ade20k")
    for name in (os.fsdecode(b"caf\xe9.jpg"), "..\\evil.jpg", "C:evil.jpg", "a\nb.jpg"):
        with pytest.raises(DatasetError, match=r"\.jpg cannot be submitted"):
            Submission(tmp_path / "s.zip", space, [name])
    with pytest.raises(DatasetError, match=r"two photos would both be submitted as a\.png"):
        Submission(tmp_path / "s.zip", space, ["x/a.jpg", "y/a.jpg"])
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_that_cannot_be_made_is_refused_before_the_work(evaluate, tmp_path, monkeypatch, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    words = ["--dataset", "camvid", "--data.root", root]
    first = tmp_path / "first.json"
    assert evaluate(*words, "--output", first) == 0
    other = EvalReport.load(first)
    dataclasses.replace(other, classes=("x", *other.classes[1:])).save(tmp_path / "classes.json")
    dataclasses.replace(other, scores={"slide": other.scores["whole"]}).save(tmp_path / "protocols.json")
    capsys.readouterr()
    monkeypatch.setattr("resnest_seg.evaluation.evaluator.evaluate", lambda *a, **o: pytest.fail("the work has begun"))
    file = tmp_path / "file"
    file.write_text("")
    for extra, says in (
        (["--compare", tmp_path / "classes.json"], "the first that differs is 'x' there"),
        (["--compare", tmp_path / "protocols.json"], "share no protocol"),
        (["--output", file / "x" / "y.json"], "file is not a folder"),
        (["--output", tmp_path], "it is a folder"),
        (["--save-predictions", file / "x"], "file is not a folder"),
        (["--submission", file / "x.zip"], "file is not a folder"),
        (["--boundaries", "--boundary-width", 0], "above 0 and at most 1"),
    ):
        assert evaluate(*words, "--overwrite", *extra) == 2, extra
        assert says in capsys.readouterr().err


def test_scores_by_image_lie_beside_the_report_and_give_a_difference_its_interval(evaluate, tmp_path, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=3)
    words = ["--dataset", "camvid", "--data.root", root]
    old, new, bare = (tmp_path / f"{name} [1] ü%.json" for name in ("old", "new", "bare"))
    assert evaluate(*words, "--output", old, "--limit", 2) == 0
    header = ImageScoresFile(tmp_path / "old [1] ü%.images.jsonl").header
    assert (header.checkpoint, header.protocols) == (str(tmp_path / "model.onnx"), ("whole",))
    assert header.classes == EvalReport.load(old).classes
    assert evaluate(*words, "--output", bare, "--no-images") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bare [1] ü%.json", "data", "model.onnx", "old [1] ü%.images.jsonl", "old [1] ü%.json"
    ]  # fmt: skip
    for other, says in ((bare, f"because {tmp_path}/bare [1] ü%.images.jsonl is missing"), (old, "not of the same")):
        capsys.readouterr()
        assert evaluate(*words, "--output", new, "--overwrite", "--compare", other) == 0
        assert says in capsys.readouterr().err
    assert evaluate(*words, "--output", new, "--overwrite", "--limit", 2, "--compare", old) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == (
        "whole: no significant difference, +0.00 points of mIoU (95 %: +0.00 to +0.00, 1,000 resamples of 2 images)"
    )
    assert evaluate(*words, "--output", new, "--overwrite", "--compare", new) == 0
    assert "this evaluation replaced the other's scores" in capsys.readouterr().err
    new.unlink()
    assert evaluate(*words, "--output", new) == 2
    assert f"scores by image {tmp_path}/new [1] ü%.images.jsonl already exists" in capsys.readouterr().err


def test_two_reports_are_compared_without_an_evaluation(evaluate, tool, tmp_path, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=2)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        assert evaluate("--dataset", "camvid", "--data.root", root, "--output", path) == 0
    capsys.readouterr()
    run = tool("eval_seg")
    assert run("--compare", *paths) == 0
    shown = capsys.readouterr()
    assert "whole: no significant difference, +0.00 points of mIoU" in shown.out
    assert "change" in shown.out
    (tmp_path / "b.images.jsonl").write_text((tmp_path / "b.images.jsonl").read_text()[:-9])
    for words, says in (
        (["--compare", *paths], "b.images.jsonl, line 3, is no scores of an image"),
        (["--compare", *paths, paths[0]], "one report or two, not 3"),
        (["--compare", *paths, "--checkpoint", "x"], "leave --checkpoint out"),
        (["--compare", paths[0]], "--checkpoint is missing"),
        (["--compare", paths[0], tmp_path / "c.json"], "cannot read report"),
    ):
        assert run(*words) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "a.images.jsonl").unlink()  # as beside the reports of earlier versions
    assert run("--compare", *paths) == 0
    shown = capsys.readouterr()
    assert "change" in shown.out
    assert f"careful: the difference has no interval, because {tmp_path}/a.images.jsonl is missing" in shown.err


def test_a_disk_that_is_too_full_for_scores_by_image_costs_no_evaluation(evaluate, tmp_path, monkeypatch, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=2)
    full_disk(monkeypatch, lambda path: ".images" in path)
    assert evaluate("--dataset", "camvid", "--data.root", root, "--output", tmp_path / "report.json") == 2
    printed = capsys.readouterr()
    assert "report.json.images.0: No space left on device" in printed.err
    assert "mean IoU" in printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model.onnx", "report.json"]


def test_a_disk_that_is_full_of_predictions_costs_no_evaluation(evaluate, tmp_path, monkeypatch, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=3)
    full_disk(monkeypatch, lambda path: "000001" in path)
    output = tmp_path / "report.json"
    words = ["--dataset", "camvid", "--data.root", root, "--output", output]
    assert evaluate(*words, "--save-predictions", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (f"error: {tmp_path}/out/val/0001TP_000001.png: No space left on device")
    assert "mean IoU" in printed.out
    assert EvalReport.load(output).images == 3
    assert len(snapshot(tmp_path / "out")) == 1


def test_a_disk_that_is_too_full_for_the_report_shows_the_numbers(evaluate, tmp_path, monkeypatch, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    full_disk(monkeypatch, lambda path: "report" in path)
    assert evaluate("--dataset", "camvid", "--data.root", root, "--output", tmp_path / "report.json") == 2
    printed = capsys.readouterr()
    assert f"error: {tmp_path}/report.json: No space left on device\n" in printed.err
    assert "mean IoU" in printed.out
    assert not (tmp_path / "report.json").exists()


def test_one_photo_that_is_too_big_or_has_a_long_name_does_not_end_a_batch(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_onnx.write(tmp_path / "m.onnx")
    image = Synthetic("test", size=(40, 60))[0].image
    for name in ("a.png", "x" * 250 + ".png", "z.png"):
        write_png(tmp_path / "photos" / name, image)
    write_png(tmp_path / "photos" / "big.png", np.tile(image, (20, 20, 1)))
    monkeypatch.setattr("resnest_seg.inference.backends.FILE_MEMORY", 4 << 20)
    assert tool("predict_seg")("--checkpoint", "m.onnx", "photos", "--write", "labels") == 1
    printed = capsys.readouterr()
    assert "3 of 4 inputs segmented" in printed.out
    assert "error: 1 not segmented:\n  photos/big.png: the logits of an image of 800 x 1200 pixels" in printed.err
    names = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert names[0] == "a_labels.png"
    assert names[1].startswith("x" * 180)
    assert names[2] == "z_labels.png"


def test_a_full_disk_ends_a_batch_and_tells_what_was_wrong_before(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_onnx.write(tmp_path / "m.onnx")
    for name in ("a", "c"):
        write_png(tmp_path / f"{name}.png", Synthetic("test", size=(40, 60))[0].image)
    (tmp_path / "b.png").write_bytes(b"no photo")
    full_disk(monkeypatch, lambda path: "c_labels" in path)
    words = ["--checkpoint", "m.onnx", "a.png", "b.png", "c.png", "--write", "labels"]
    assert tool("predict_seg")(*words) == 2
    printed = capsys.readouterr()
    assert "cannot read b.png" in printed.err
    assert printed.err.endswith("error: predictions/c_labels.png: No space left on device\n")
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["a_labels.png"]


def test_predictions_into_a_file_or_over_a_photo(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a_labels.png"):
        write_png(tmp_path / name, Synthetic("test", size=(40, 60))[0].image)
    before = snapshot(tmp_path)
    predict = tool("predict_seg")  # the checkpoint is not looked for
    assert predict("--checkpoint", "none.onnx", "a.png", "--output", "a_labels.png") == 2
    assert "a_labels.png is not a folder" in capsys.readouterr().err
    assert predict("--checkpoint", "none.onnx", "a.png", "a_labels.png", "--output", ".", "--overwrite") == 2
    assert "a result would overwrite it" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_an_export_onto_a_folder_is_refused_before_the_model_is_loaded(tool, tmp_path, capsys):
    (tmp_path / "model.onnx").mkdir()
    (tmp_path / "other.bin").write_bytes(b"somebody's")
    export = tool("export_seg")
    for output, says in (
        ("model.onnx", "is a folder"),
        (".", "is a folder"),
        ("other.xml", "other.bin already exists"),
    ):
        words = ["--checkpoint", "none", "--output", tmp_path / output]
        assert export(*words, *(["--format", "onnx"] if output == "." else [])) == 2
        assert says in capsys.readouterr().err


def test_check_asks_before_it_replaces_a_report(tool, tmp_path, capsys):
    check = tool("check_dataset")
    words = ["--dataset", "synthetic", "--limit", 1, "--workers", 0, "--output", tmp_path / "check.json"]
    (tmp_path / "check.json").write_text("mine")
    assert check(*words) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "check.json").read_text() == "mine"
    assert check(*words, "--overwrite") == 0
    assert json.loads((tmp_path / "check.json").read_text())["dataset"] == "synthetic"


def test_a_full_disk_leaves_no_half_of_a_synthetic_data_set(tmp_path, monkeypatch, capsys):
    from resnest_seg.cli.datasets.prepare import synthetic
    from resnest_seg.errors import run_tool

    words = ["--split", "test", "--count", "3", "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        full_disk(patch, lambda path: "masks" in path and "0001" in path)
        assert run_tool(lambda: synthetic(words)) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}
    assert run_tool(lambda: synthetic(words)) == 0
    assert len(snapshot(tmp_path)) == 6
    mask = (tmp_path / "out" / "masks" / "test_0001.png").read_bytes()
    assert np.array_equal(decode_mask(mask, ""), Synthetic("test")[1].labels)


def test_an_export_on_a_full_disk_names_the_file(tmp_path, monkeypatch):
    """torch says it as a RuntimeError of its own."""
    from resnest_seg.export.export import export_torch

    def save(*arguments, **options):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch.export, "save", save)
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    with pytest.raises(OSError, match="No space left") as raised:
        export_torch(small_segmenter(small_onnx.SPACE), tmp_path / "m.pt2")
    assert raised.value.filename == str(tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_export_that_gets_no_space_names_the_file(number, tmp_path, monkeypatch):
    """Of a user who has used up a quota, the disk itself has room."""
    from resnest_seg.export.export import export_torch

    def save(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        export_torch(small_segmenter(small_onnx.SPACE), tmp_path / "m.pt2")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "m.pt2"))


class _Usage:
    free = 0


def test_videos_and_large_images_of_odd_names_are_told_and_the_rest_is_done(tool, tmp_path, monkeypatch, capsys):
    """OpenCV's videos and GDAL take names as UTF-8 only."""
    monkeypatch.chdir(tmp_path)
    small_onnx.write(tmp_path / "m.onnx")
    image = Synthetic("test", size=(40, 60))[0].image
    with write_video(tmp_path / "film.avi", fps=5) as writer:
        writer.write(image)
    (tmp_path / "film.avi").rename(os.fsdecode(b"film\xe9.avi"))
    write_png(tmp_path / os.fsdecode(b"large\xe9.png"), np.tile(image, (2, 2, 1)))
    write_png(tmp_path / "small.png", image)
    predict = tool("predict_seg")
    monkeypatch.setattr("resnest_seg.bulk.outputs.LARGE", 5000)
    assert predict("--checkpoint", "m.onnx", ".", "--tile", 32) == 1
    text = capsys.readouterr().err
    for name in ("film\\xe9.avi", "large\\xe9.png"):
        assert f"{name}: its name, or that of a folder above, is not UTF-8" in text
    assert (tmp_path / "predictions" / "small_labels.png").exists()


def test_lines_and_sheets_of_a_run_name_their_file_on_a_full_disk(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (tmp_path / METRICS).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/{METRICS} cannot be written: No space left"):
        RunFolder(tmp_path).append(METRICS, {"step": 1})

    class Tracker:
        def log_images(self, *arguments, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    page = np.zeros((8, 8, 3), np.uint8)
    run = SimpleNamespace(
        config=RunConfig(train=TrainConfig(trackers="tensorboard")), output=tmp_path, epoch=1, step=1,
        engine=SimpleNamespace(get_tracker=lambda name: Tracker()),
    )  # fmt: skip
    result = Validation({}, "", lambda epoch: page)
    with pytest.raises(OSError, match="No space left") as raised:
        Trainer._draw(run, result)
    assert raised.value.filename == str(tmp_path / "tensorboard")
    full_disk(monkeypatch, lambda path: "contact_sheet" in path)
    with pytest.raises(OSError, match="No space left") as raised:
        Trainer._draw(run, result)
    assert raised.value.filename == str(tmp_path / "contact_sheet.png")
