"""A run tried out: all of it, and nothing left behind."""

import tempfile

import fake_data
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import PROJECT, TINY

from resnest_seg.config import load_run_config
from resnest_seg.dry_run import StandIn, dry_run
from resnest_seg.errors import ConfigError
from resnest_seg.labels import LabelSpace


@pytest.fixture(autouse=True)
def _fresh_engine(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert not list((tmp_path / "temporary").iterdir())


def config(name, *words):
    path = next((PROJECT / "configs").glob(f"{name}_*.yaml"))
    return load_run_config(path, overrides=[*TINY, "--model.encoder=resnest14_tiny", *words])


@pytest.mark.parametrize("name", ["camvid", "folder"])
def test_without_its_data_street_scenes_stand_in(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_SEG_DATA", str(tmp_path / "nowhere"))
    said = dry_run(
        config(name, "--train.ema=0.9", "--train.validate_every_steps=1", "--model.encoder_weights=imagenet")
    )
    assert "passed: trained, saved, resumed, validated, evaluated" in said
    assert f"not found, so street scenes with the classes of {name}, {11 if name == 'camvid' else 10} classes" in said
    assert "images, memory" in said


def test_with_its_data_that_is_read(tmp_path):
    root = fake_data.make("camvid", tmp_path / "data", count=1)
    assert "read from camvid" in dry_run(config("camvid", f"--data.root={root}"))


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
