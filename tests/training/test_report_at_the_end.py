"""The report that a run writes when it is over, and that it never fails for."""

import pytest
from accelerate.state import AcceleratorState
from support.fake_runs import Blocks, space

import resnest_seg
from resnest_seg.training import assembly

pytestmark = pytest.mark.slow

CONFIG = {
    "model": {"encoder": "resnest14_tiny", "head": "fcn"},
    "data": {"base_size": 56, "crop_size": 32, "workers": 0},
    "train": {"epochs": None, "iterations": 4, "batch_size": 2, "log_every": 1, "trackers": "none"},
    "eval": {"sheet": 2},
}


def fit(output, config=CONFIG, **how):
    AcceleratorState._reset_state(reset_partial_state=True)
    data = {"train": Blocks(space(), count=4), "validation": Blocks(space(), count=3)}
    return resnest_seg.fit(config, output=output, **data, **how)


def test_a_run_ends_with_its_report_and_never_for_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run [1] ü"
    page = folder / "report.html"
    assert not fit(folder, until=2).finished
    assert not page.exists()  # it goes on, and whoever stopped it may be in a hurry

    for error in (RuntimeError("out of paper"), KeyboardInterrupt()):

        def fail(*arguments, error=error, **options):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(assembly, "write_report", fail)
            assert fit(folder, resume="yes").finished
        warning = capsys.readouterr().err
        assert f"warning: {page} was not written: {str(error) or 'KeyboardInterrupt'}. Write it with: " in warning
        assert not page.exists()

    capsys.readouterr()
    assert fit(folder, resume="yes").finished  # there is nothing left to do but this
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {page}"
    text = page.read_text(encoding="utf-8")
    assert "finished, step 4 of 4" in text
    assert text.count("<article") == 3
    for name in ("training", "validation", "mean IoU", "gradient norm", *space().names):
        assert f'data-name="{name}"' in text
    shown = {name: text.count(f">{name}<") for name in ("Confusion matrix", "data fingerprint", "training images")}
    assert min(shown.values()) >= 1, shown


def test_a_run_without_a_sheet_has_a_report_without_pictures(tmp_path):
    config = CONFIG | {"eval": {"sheet": 0}, "train": CONFIG["train"] | {"iterations": 1}}
    assert fit(tmp_path / "run", config).finished
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "finished, step 1 of 1" in text
    assert 'data-name="mean IoU"' in text
    assert "<article" not in text
    assert not (tmp_path / "run" / "contact_sheet.png").exists()
