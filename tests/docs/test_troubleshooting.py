"""Every message of the page on troubleshooting is what the product says, up to the values."""

import itertools
import re
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from support import small_onnx
from support.page_setups import TRAIN, run
from support.pages import PROJECT, MarkdownIt

from resnest_seg.cli.main import main
from resnest_seg.errors import run_tool

pytestmark = pytest.mark.slow

PROVOKED = {}
"""Heading -> what provokes its message, a function of `say`."""


def messages():
    """Heading -> message, of the page."""
    tokens = MarkdownIt().parse((PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    found, heading = {}, None
    for token, following in itertools.pairwise(tokens):
        if token.type == "heading_open":
            heading = following.content
        if token.type == "fence" and token.info == "text":
            assert heading not in found
            found[heading] = token.content
    return found


MESSAGES = messages()


def pattern(message):
    """A message of the page as a regular expression: `...` is anything, and white space is one blank."""
    parts = [re.escape(" ".join(part.split())) for part in message.split("...")]
    return r"\s*.*?\s*".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mine/ and runs/my_run."""
    path = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        run(path)
    return path


class Said:
    """Runs commands in the folder of a test, and keeps what they say; they must fail."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys, self.text = folder, monkeypatch, capsys, ""

    def __call__(self, *words):
        self.monkeypatch.setattr(sys, "argv", ["resnest-seg", *words])
        assert run_tool(lambda: main(list(words))) in (1, 2)
        said = self.capsys.readouterr()
        self.text += said.out + said.err


def provokes(heading):
    def keep(function):
        PROVOKED[heading] = function
        return function

    return keep


def masks(say):
    return sorted((say.folder / "mine" / "masks").iterdir())


@provokes("The data set is not found")
def _(say):
    say("train", "--dataset", "ade20k")


@provokes("No photos are found")
def _(say):
    say(*TRAIN[:-1], "nowhere")


@provokes("The layout is not known")
def _(say):
    (say.folder / "odd").mkdir()
    (say.folder / "mine" / "images").rename(say.folder / "odd" / "pics")
    (say.folder / "mine" / "masks").rename(say.folder / "odd" / "truth")
    say("check", "--dataset", "folder", "--data.root", "odd")


@provokes("A mask is missing")
def _(say):
    masks(say)[0].unlink()
    say(*TRAIN)


@provokes("A mask has another size than its photo")
def _(say):
    for path in masks(say):
        with Image.open(path) as mask:
            small = mask.resize((120, 80), Image.Resampling.NEAREST)
        small.save(path)
    say(*TRAIN)


@provokes("A mask has ids that are no class")
def _(say):
    (say.folder / "two.csv").write_text("name\nsky\nroad\n")
    say(*TRAIN, "--data.classes", "two.csv")


@provokes("A mask has colours that are no class")
def _(say):
    for path in masks(say):
        with Image.open(path) as mask:
            ids = np.asarray(mask)
        Image.fromarray(np.stack([ids * 20] * 3, axis=2)).save(path)
    (say.folder / "mine" / "classes.csv").write_text("name\n" + "\n".join(f"class {n}" for n in range(10)))
    say(*TRAIN)


@provokes("Masks of a binary task hold other values")
def _(say):
    say(*TRAIN, "--model.task", "binary")


@provokes("The validation split is empty")
def _(say):
    for kind in ("images", "masks"):
        for path in sorted((say.folder / "mine" / kind).iterdir())[1:]:
            path.unlink()
    say(*TRAIN)


@provokes("A photo cannot be read")
def _(say):
    for path in (say.folder / "mine" / "images").iterdir():
        path.write_bytes(b"not an image")
    say(*TRAIN)


@provokes("An option or a key does not exist")
def _(say):
    say("train", "--dataset", "folder", "--encoder", "resnest50")


@provokes("The run folder exists")
def _(say):
    say(*TRAIN, "--output", "runs/my_run")


@provokes("The config has changed")
def _(say):
    say("train", "--resume", "runs/my_run", "--lr", "0.1")


@provokes("Another run is in the folder")
def _(say):
    from resnest_seg.training.run_folder import LOCK

    with FileLock(say.folder / "runs" / "my_run" / LOCK):
        say("train", "--resume", "runs/my_run", "--epochs", "3", "--allow-changes", "train.epochs")


@provokes("Batch norm has one image")
def _(say):
    say(*TRAIN, "--train.accumulation", "4")


@provokes("The GPU is out of memory")
def _(say):
    def fails(*_words, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    say.monkeypatch.setattr(torch.Tensor, "backward", fails)
    say(*TRAIN)


@provokes("The loss or the logits are not finite")
def _(say):
    say(*TRAIN, "--lr", "100", "--epochs", "1")


@provokes("Weights cannot be downloaded")
def _(say):
    say.monkeypatch.setenv("TORCH_HOME", str(say.folder / "nowhere"))
    for name in ("http_proxy", "https_proxy"):
        say.monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    say(*TRAIN, "--model.encoder", "resnest50", "--model.encoder_weights", "imagenet")


@provokes("There is no such checkpoint")
def _(say):
    say("eval", "--checkpoint", "deeplab_resnest5_ade")


class _Code:
    def __reduce__(self):
        return print, ("run",)


@provokes("A weight file wants to run code")
def _(say):
    torch.save({"state_dict": _Code()}, say.folder / "theirs.pth")
    say("eval", "--checkpoint", "theirs.pth", "--dataset", "folder", "--data.root", "mine")


@provokes("The keys of a weight file are not known")
def _(say):
    torch.save({"weight": torch.zeros(3)}, say.folder / "theirs.pth")
    say("eval", "--checkpoint", "theirs.pth", "--dataset", "folder", "--data.root", "mine")


@provokes("The classes differ")
def _(say):
    (say.folder / "two.csv").write_text("name\nsky\nroad\n")
    say("eval", "--checkpoint", "runs/my_run", "--data.classes", "two.csv")


@provokes("The device cannot be used")
def _(say):
    if torch.cuda.is_available():
        pytest.skip("the device can be used here")
    say("predict", "--checkpoint", "runs/my_run", "photo.jpg", "--device", "cuda")


@provokes("A package is missing")
def _(say):
    say.monkeypatch.setitem(sys.modules, "onnxscript", None)
    say("export", "--checkpoint", "runs/my_run", "--output", "new.onnx")


@provokes("An exported file cannot do a protocol")
def _(say):
    small_onnx.write(say.folder / "model.onnx", pixels="uint8")
    say("predict", "--checkpoint", "model.onnx", "photo.jpg", "--protocol", "encoding")


@provokes("Images are floats in 0..1")
def _(say):
    from resnest_seg import Predictor

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Predictor.from_checkpoint("runs/my_run")(np.full((32, 48, 3), 0.5, np.float32))
    say.text = "\n".join(str(warning.message) for warning in caught)


@provokes("Results exist already")
def _(say):
    (say.folder / "out").mkdir()
    (say.folder / "out" / "photo_labels.png").write_bytes(b"")
    say("predict", "--checkpoint", "runs/my_run", "photo.jpg", "--output", "out")


def test_the_page_and_this_file_have_the_same_errors():
    assert list(MESSAGES) == list(PROVOKED)
    assert len(MESSAGES) >= 20


@pytest.mark.long
@pytest.mark.parametrize("heading", MESSAGES)
def test_the_product_says_what_the_page_says(heading, folder, tmp_path, monkeypatch, capsys):
    place = tmp_path / "here"
    shutil.copytree(folder, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("RESNEST_SEG_DATA", raising=False)
    say = Said(place, monkeypatch, capsys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PROVOKED[heading](say)
    said = " ".join(say.text.split())
    assert re.search(pattern(MESSAGES[heading]), said), said


def test_a_message_of_the_page_is_literal_but_for_its_gaps():
    assert re.search(pattern("error: no ... in (x)"), "error: no photo\n in (x)".replace("\n", ""))
    assert not re.search(pattern("error: no ... in (x)"), "error: no photo in x")
    assert not re.search(pattern("error: no photos"), "error: no masks")
