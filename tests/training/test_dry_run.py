"""A run tried out: all of it, and nothing left behind."""

import dataclasses
import tempfile

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import PROJECT, TINY
from support import fake_data
from support.small_models import save_scenes_model

from resnest_seg.config import load_run_config
from resnest_seg.config_reading import flatten
from resnest_seg.errors import ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.training.rehearsal import StandIn, dry_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh_engine(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir())


def config(name, *words):
    path = min((PROJECT / "configs").glob(f"{name}_*.yaml"))
    return load_run_config(path, overrides=[*TINY, "--model.encoder=resnest14_tiny", *words])


SMALL = ["--data.crop_size=64", "--data.crop_width=null", "--data.base_size=96", "--data.long_edge=256",
         "--data.workers=0", "--data.check=2", "--train.batch_size=2", "--eval.sheet=0"]  # fmt: skip

SHORTENED = {"model.encoder", "train.epochs", "train.iterations", "train.validate_every", "train.log_every"}
"""What the test, or a dry run itself, sets for every recipe; and so are the keys of `SMALL`."""


def settings(path):
    """What is special about a shipped config when it is rehearsed: its settings, and its network as a whole."""
    config = load_run_config(path)
    ours = SHORTENED | {word.removeprefix("--").partition("=")[0] for word in SMALL}
    network = dataclasses.replace(config.model, encoder="")
    return {(key, value) for key, value in flatten(config).items() if key not in ours} | {("model", network)}


def distinct():
    """Shipped configs that have together every setting and every network of all of them."""
    found, known = [], set()
    for path in sorted((PROJECT / "configs").glob("*.yaml")):
        if "classify:" not in path.read_text(encoding="utf-8").splitlines():  # see test_classification.py
            if not settings(path) <= known:
                found.append(path)
            known |= settings(path)
    return found


@pytest.mark.long
@pytest.mark.parametrize("path", distinct(), ids=lambda path: path.stem)
def test_every_shipped_recipe_passes(path, tmp_path, monkeypatch):
    """With a small encoder and crop; test_config.py builds the real networks, without memory."""
    monkeypatch.setenv("RESNEST_SEG_DATA", str(tmp_path / "nowhere"))
    said = dry_run(load_run_config(path, overrides=[*SMALL, "--model.encoder=resnest14_tiny"]))
    assert "passed: trained, saved, resumed, validated, evaluated" in said


@pytest.mark.parametrize("words", [["--train.loss=ohem+dice", "--train.class_weights=median_frequency"],
                                   ["--optim.warmup=0.5", "--optim.freeze=encoder,head_bn", "--train.batch_size=1"]],
                         ids=["losses", "frozen"])  # fmt: skip
def test_options_that_few_recipes_have(words, tmp_path):
    assert "passed" in dry_run(config("synthetic", *words))


@pytest.mark.parametrize("name", ["camvid", "folder"])
def test_without_its_data_street_scenes_stand_in(name, tmp_path, monkeypatch):
    """Which are not checked, as samples would be: these could only be what they are."""
    drawn, draw = [], StandIn.__getitem__
    monkeypatch.setattr(StandIn, "__getitem__", lambda self, index: drawn.append(index) or draw(self, index))
    monkeypatch.setenv("RESNEST_SEG_DATA", str(tmp_path / "nowhere"))
    words = ["--train.ema=0.9", "--train.validate_every_steps=1", "--model.encoder_weights=imagenet"]
    said = dry_run(config(name, *words, "--data.check=64"))
    assert set(drawn) == {0, 1, 2, 3}
    assert "passed: trained, saved, resumed, validated, evaluated" in said
    assert f"not found, so street scenes with the classes of {name}, {11 if name == 'camvid' else 10} classes" in said
    assert "images, memory" in said


def test_with_its_data_that_is_read(tmp_path):
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    assert "read from camvid" in dry_run(config("camvid", f"--data.root={root}"))


def test_teachers_are_asked_but_for_those_that_would_be_downloaded(tmp_path, capsys):
    teacher = save_scenes_model(tmp_path)
    said = dry_run(config("synthetic", f"--distill.teacher={teacher},deeplab_resnest50_ade", "--distill.method=cwd"))
    assert "teacher  deeplab_resnest50_ade left out, as a run would download it" in said
    assert f"taught by {teacher} (resnest14_tiny fcn" in capsys.readouterr().out
    assert "left out" in dry_run(config("synthetic", "--distill.teacher=deeplab_resnest50_ade", "--distill.method=cwd"))


def test_what_would_stop_the_run_stops_it(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="leaves one image"):
        dry_run(config("synthetic", "--train.accumulation=2"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        dry_run(config("synthetic"))


def test_a_stand_in_has_every_class():
    space = LabelSpace.of("ade20k")
    data = StandIn(space, "train", size=(48, 64))
    seen = np.unique(np.concatenate([np.unique(data[index].labels) for index in range(120)]))
    assert seen[seen < 255].max() == 149
    assert len(seen[seen < 255]) > 120
    assert data[3].image.shape == (48, 64, 3)
