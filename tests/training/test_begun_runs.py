"""Runs that earlier versions let begin go on, alone and in a series, with keys that no run may begin with today."""

import dataclasses

import pytest
from support.fake_runs import Blocks, fake_run, space
from support.small_models import small_segmenter

from resnest_seg.cli import train as verb
from resnest_seg.combining.cross_validation import folded_dataset, held_out
from resnest_seg.combining.folds import fit_folds
from resnest_seg.config import config_from_dict, load_run_config
from resnest_seg.config_reading import to_yaml
from resnest_seg.errors import ConfigError, run_tool
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.io.georeference import warn_once
from resnest_seg.models.checkpoint import CONFIG, LAST, Checkpoint
from resnest_seg.reports import run_report
from resnest_seg.reports.run_files import read_files
from resnest_seg.reports.score_sections import Evaluated
from resnest_seg.training import assembly
from resnest_seg.training.assembly import Parts, trainer_for
from resnest_seg.training.monitor import Callback

pytestmark = [pytest.mark.slow, pytest.mark.long]

VALUES = {
    "data": {"dataset": "synthetic", "crop_size": 32, "base_size": 32, "workers": 0, "check": 0},
    "model": {"encoder": "resnest14_tiny", "head": "fcn"},
    "train": {"epochs": None, "iterations": 2, "batch_size": 2, "save_every": 1, "trackers": "none"},
    "eval": {"limit": 2, "sheet": 0},
}


def with_key(folder, group, key, value):
    """Write a key into the config and the state of a run, as an earlier version left them."""
    config = load_run_config(folder / CONFIG)
    changed = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    (folder / CONFIG).write_text(to_yaml(changed), encoding="utf-8")
    if (folder / LAST).is_file():
        state = Checkpoint.load(folder / LAST)
        own = dataclasses.replace(getattr(state.config, group), **{key: value})
        dataclasses.replace(state, config=dataclasses.replace(state.config, **{group: own})).save(folder / LAST)
    return changed


@pytest.fixture
def told():
    warn_once.cache_clear()
    return pytest.warns(UserWarning, match=r"data.classes 'mine.csv' has no effect: synthetic has its own classes")


@pytest.mark.parametrize("resume", ["yes", "auto"])
def test_a_run_goes_on_beside_a_list_of_classes_that_was_never_read(resume, told, tmp_path):
    assembly.run(trainer_for(VALUES, Parts(), output=tmp_path / "run"), until=1)
    config = with_key(tmp_path / "run", "data", "classes", "mine.csv")
    with pytest.raises(ConfigError, match=r"Leave out 'mine.csv'"):
        trainer_for(config, Parts(), output=tmp_path / "new", resume="auto")
    assert not (tmp_path / "new").exists()
    with told:
        assert trainer_for(config, Parts(), output=tmp_path / "run", resume=resume).step == 1


def test_folds_and_pictures_of_such_runs_are_there(told, tmp_path):
    fake_run(tmp_path / "run", small_segmenter(space()), Blocks(space()))
    (tmp_path / "run" / LAST).unlink()  # which is none
    for key, value in (("dataset", "synthetic"), ("classes", "mine.csv")):
        with_key(tmp_path / "run", "data", key, value)
    with told:
        assert len(folded_dataset(tmp_path / "run")) == 512
    path = tmp_path / "run" / "val_report.json"
    one = Evaluated("run", EvalReport.load(path), "whole", path, None)
    assert len(run_report._dataset(read_files(tmp_path / "run"), one, run_report.Pictures())) == 64


@pytest.mark.filterwarnings("ignore:data.classes 'mine.csv' has no effect")
@pytest.mark.parametrize("key", ["data.classes", "train.label_smoothing"])
def test_a_series_of_folds_goes_on_with_a_key_that_no_run_may_begin_with(key, tmp_path, monkeypatch):
    """The folds after those that are done have begun, too: without the key they would be of another series."""
    (group, name), value = key.split("."), {"data.classes": "mine.csv", "train.label_smoothing": 0.1}[key]
    if group == "train":  # as of a head that predicts masks
        monkeypatch.setattr(assembly, "MASK2FORMER", "fcn")
    results = fit_folds(VALUES, 2, output=tmp_path / "folds", callbacks=[_Stop()])
    assert (len(results), results[0].finished) == (1, False)
    config = with_key(tmp_path / "folds", group, name, value)
    with_key(tmp_path / "folds" / "fold_0", group, name, value)
    with pytest.raises(ConfigError, match=rf"{key} "):
        fit_folds(config, 2, output=tmp_path / "new", resume="auto")
    assert not (tmp_path / "new").exists()
    assert [result.finished for result in fit_folds(config, 2, output=tmp_path / "folds", resume="auto")] == [True] * 2
    assert sum(map(len, held_out(tmp_path / "folds", folded_dataset(tmp_path / "folds")))) == 512  # to be scored


@pytest.mark.parametrize("how", ["folder", "auto"])
def test_a_series_of_seeds_goes_on_with_such_a_key(how, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assembly, "MASK2FORMER", "fcn")
    path = tmp_path / "values.yaml"
    path.write_text(to_yaml(config_from_dict(VALUES)), encoding="utf-8")
    first = ["--config", str(path), "--output", str(tmp_path / "a_seed0"), "--seed", "0"]
    assert run_tool(lambda: verb.main(first)) == 0
    config = with_key(tmp_path / "a_seed0", "train", "label_smoothing", 0.1)
    path.write_text(to_yaml(config), encoding="utf-8")
    words = {
        "folder": ["--resume", str(tmp_path / "a"), "--seed", "0,1"],
        "auto": ["--config", str(path), "--resume", "auto", "--output", str(tmp_path / "a"), "--seed", "0,1"],
    }
    new = ["--config", str(path), "--output", str(tmp_path / "b"), "--seed", "0,1"]
    assert run_tool(lambda: verb.main(new)) == 2
    assert "train.label_smoothing 0.1 is for losses of pixels" in capsys.readouterr().err
    assert run_tool(lambda: verb.main(words[how])) == 0
    assert load_run_config(tmp_path / "a_seed1" / CONFIG).train.label_smoothing == 0.1
    assert (tmp_path / "a_seed1" / LAST).is_file()


class _Stop(Callback):
    """Ends a run after its first step."""

    def on_step(self, report):
        return True
