"""Tables of run folders, of files made by hand, and means over seeds against NumPy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from resnest_seg.cli.review import runs as verb
from resnest_seg.config import PretrainConfig, RunConfig
from resnest_seg.config_reading import to_yaml
from resnest_seg.errors import ConfigError, run_tool
from resnest_seg.models import checkpoint
from resnest_seg.reports import run_table
from resnest_seg.reports.run_files import read_files
from resnest_seg.reports.run_table import differing_keys, find_runs, read_run, seed_groups, sort_runs
from resnest_seg.training import run_folder


def make_run(
    folder, *, scores=(0.2, 0.5, 0.4), seed=0, steps=30, done=None, validated=None, told=True, stale=0, **groups
):
    """A run of 10 steps an epoch; `done` is the step of the newest state, None for the last."""
    folder.mkdir(parents=True)
    train = {"epochs": 3, "batch_size": 4} | groups.pop("train", {})
    config = RunConfig.from_dict({"seed": seed, "train": train, **groups})
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    lines = []
    for epoch, score in enumerate(scores, start=1):
        lines.append({"kind": "train", "step": 10 * epoch - 5, "epoch": epoch - 0.5, "loss": 1.0})
        lines.append({"kind": "validation", "step": 10 * epoch, "epoch": epoch, "mean_iou": score})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    machine = [{"kind": "start", "step": 0, "epoch": 0, "id": "x"} | ({"steps": steps} if told else {})]
    machine += [{"kind": "speed", "images_per_second": value} for value in (1.0, 20.0, 24.0)]
    (folder / "machine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in machine), encoding="utf-8")
    step = steps if done is None else done
    values = {
        "step": step,
        "validated_step": step if validated is None else validated,
        "best_mean_iou": max(scores, default=-1.0),
        "stale_validations": stale,
    }
    save_file({"x": np.zeros(1)}, folder / "last.safetensors", {"training": json.dumps(values)})
    return folder


def test_the_names_are_those_of_a_run_folder():
    assert (run_table.CONFIG, *run_table.STATES) == (checkpoint.CONFIG, checkpoint.LAST, checkpoint.BEST)
    assert (run_table.METRICS, run_table.MACHINE) == (run_folder.METRICS, run_folder.MACHINE)
    assert run_table.LOCK == run_folder.LOCK


def test_a_run_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "a"))
    assert (run.name, run.state, run.step, run.steps, run.epoch, run.epochs) == ("a", "finished", 30, 30, 3.0, 3)
    assert (run.score, run.score_step, run.speed) == (0.5, 20, 20.0)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, "finished"),
        ({"done": 20}, "stopped"),
        ({"done": 20, "told": False}, "stopped"),
        ({"validated": 20}, "stopped"),  # before its last validation
        ({"told": False}, "finished"),  # by the steps of an epoch
        ({"done": 20, "stale": 2, "train": {"patience": 2}}, "finished"),
        ({"done": 20, "stale": 1, "train": {"patience": 2}}, "stopped"),
        ({"steps": 30, "told": False, "train": {"epochs": None, "iterations": 30}}, "finished"),
    ],
)
def test_the_state_of_a_run(options, state, tmp_path):
    run = read_run(make_run(tmp_path / "a", **options))
    assert run.state == state
    assert run.step == options.get("done", 30)


def test_a_run_that_trains_is_running_and_one_that_saved_nothing_failed(tmp_path):
    folder = make_run(tmp_path / "a", done=20, scores=(0.2, 0.5))
    with run_folder.RunFolder(folder).held():
        assert read_run(folder).state == "running"
    assert read_run(folder).state == "stopped"
    (folder / "last.safetensors").unlink()
    assert read_run(folder).state == "failed"


def test_without_locks_to_ask_a_run_is_finished_or_unknown(tmp_path, monkeypatch):
    """As on Windows, which has no fcntl."""
    folder, done = make_run(tmp_path / "a", done=20, scores=(0.2, 0.5)), make_run(tmp_path / "done")
    for run in (folder, done):
        (run / run_table.LOCK).touch()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert (read_run(folder).state, read_run(done).state) == ("unknown", "finished")
    (folder / run_table.LOCK).unlink()
    assert read_run(folder).state == "stopped"


@pytest.mark.long
def test_training_does_not_need_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import resnest_seg.training.assembly"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def refusing(*, readers):
    """An os.open that may not write into lock files, and of which readers may not even read them."""
    real = os.open

    def opening(path, flags, *arguments, **options):
        if Path(path).name == run_table.LOCK and (readers or flags & (os.O_RDWR | os.O_WRONLY)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *arguments, **options)

    return opening


def test_a_run_of_somebody_else_is_running_or_unknown_but_not_stopped(tmp_path, monkeypatch):
    folder, done = make_run(tmp_path / "a", done=20, scores=(0.2, 0.5)), make_run(tmp_path / "done")
    (done / run_table.LOCK).touch()
    with run_folder.RunFolder(folder).held(), monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing(readers=False))
        assert read_run(folder).state == "running"
        patched.setattr(os, "open", refusing(readers=True))
        assert read_run(folder).state == "unknown"
        words = "at step 20 of 30; whether it is running cannot be told, as its file .lock cannot be read here"
        assert read_files(folder).state == words
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing(readers=False))
        assert read_run(folder).state == "stopped"
        patched.setattr(os, "open", refusing(readers=True))
        assert read_run(folder).state == "unknown"
        assert read_run(done).state == "finished"


def test_files_cut_off_or_hostile_give_what_they_hold(tmp_path):
    folder = make_run(tmp_path / "a", done=20)
    whole = (folder / "metrics.jsonl").read_text()
    deep = "[" * 100_000
    odd = '\n[1]\nnull\n{"kind": "validation", "step": "x", "mean_iou": NaN}\n{"kind": "validation", "mean_iou": true}'
    (folder / "metrics.jsonl").write_bytes(
        whole[: len(whole) // 2].encode() + odd.encode() + b"\n\xff\xfe\n" + deep.encode()
    )
    (folder / "machine.jsonl").write_text('{"images_per_second": "fast"}\n{"images_per')
    run = read_run(folder)
    assert (run.score, run.state, run.speed) == (0.2, "stopped", None)
    for damage in (b"", b"\xff" * 100, b"{}"):
        (folder / "last.safetensors").write_bytes(damage)
        assert read_run(folder).score == 0.2


def test_folders_are_found_below_through_links_and_strangers_are_named(tmp_path):
    root = tmp_path / "runs ü [1]"
    make_run(root / "b")
    make_run(root / "sub" / "a <script>")
    make_run(tmp_path / "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    make_run(root / "gone")
    (root / "gone" / "config.yaml").unlink()
    make_run(root / "odd")
    (root / "odd" / "config.yaml").write_text("- 1")
    make_run(root / "worse")
    (root / "worse" / "config.yaml").write_bytes(b"a: \xff")
    make_run(root / "worst")
    (root / "worst" / "config.yaml").write_text("a: [")
    (root / "photos").mkdir()
    (root / "photos" / "config.yaml").write_text("other: tool")
    runs, problems = find_runs(root)
    assert sorted(run.name for run in runs) == ["b", "link", "sub/a <script>"]
    says = ("gone holds metrics.jsonl but no config.yaml", "odd/config.yaml is not the config of a run",
            "worse/config.yaml is not the config of a run", "worst/config.yaml is not valid YAML")  # fmt: skip
    assert len(problems) == 4
    assert all(words in problem for words, problem in zip(says, problems, strict=True))
    (run,), _ = find_runs(root / "b")
    assert run.name == "b"
    with pytest.raises(ConfigError, match="nowhere does not exist: name a folder with run folders"):
        find_runs(tmp_path / "nowhere")


def test_classifiers_have_their_own_score(tmp_path):
    folder = make_run(tmp_path / "a")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("mean_iou", "top1"))
    values = {"step": 30, "validated_step": 30, "best_top1": 0.5}
    save_file({"x": np.zeros(1)}, folder / "last.safetensors", {"training": json.dumps(values)})
    (folder / "config.yaml").write_text(to_yaml(PretrainConfig.from_dict({"train": {"epochs": 3}})))
    make_run(tmp_path / "b")
    runs, problems = find_runs(tmp_path)
    assert [(run.score_name, run.score, run.state) for run in runs] == [
        ("top1", 0.5, "finished"), ("mean_iou", 0.5, "finished")
    ]  # fmt: skip
    assert "best top-1 or mIoU" in str([column.header for column in run_table.runs_table(runs).columns])
    assert not problems


def test_keys_that_differ_are_shown_and_equal_ones_are_not(tmp_path):
    runs = [read_run(make_run(tmp_path / str(lr), optim={"lr": lr}, output=str(lr))) for lr in (0.1, 0.2, 0.4)]
    assert differing_keys(runs) == ["optim.lr"]
    assert [run.name for run in sort_runs(runs, "lr")] == ["0.4", "0.2", "0.1"]
    assert [run.name for run in sort_runs(runs, "optim.lr")] == ["0.4", "0.2", "0.1"]
    assert [run.name for run in sort_runs(runs, "name")] == ["0.1", "0.2", "0.4"]
    with pytest.raises(ConfigError, match=r"unknown column to sort by 'speeed'. Did you mean 'speed'\?"):
        sort_runs(runs, "speeed")
    with pytest.raises(ConfigError, match="--sort protocol means several keys"):
        sort_runs([*runs, run_table.Run(**{**vars(runs[0]), "config": {"a.protocol": 1, "b.protocol": 2}})], "protocol")


def test_many_keys_are_folded_but_the_one_sorted_by_is_shown(tmp_path):
    one = make_run(tmp_path / "a")
    many = {"lr": 0.5, "momentum": 0.5, "power": 0.5, "min_lr": 0.001, "warmup": 1.0, "weight_decay": 0.5}
    two = make_run(tmp_path / "b", optim=many, data={"crop_size": 64, "base_size": 96})
    runs = [read_run(one), read_run(two)]
    shown, folded = run_table.shown_keys(runs, first="warmup")
    assert (len(shown), len(folded)) == (6, 2)
    assert "optim.warmup" in shown


def test_means_over_seeds_are_numpys(tmp_path):
    scores = {0: 0.61, 3: 0.64, 2: 0.57}
    for seed, score in scores.items():
        make_run(tmp_path / f"x_seed{seed}", scores=(0.1, score), seed=seed)
    make_run(tmp_path / "x_seed7", scores=(0.9,), seed=7, done=10)  # not finished
    make_run(tmp_path / "other", scores=(0.9,), seed=8, optim={"lr": 0.5})
    make_run(tmp_path / "y_again", scores=(0.99,), seed=0)  # a seed counts once
    runs, _ = find_runs(tmp_path)
    (group,) = seed_groups([run for run in runs if run.name != "y_again"])
    assert (group.name, group.seeds, group.unfinished) == ("x_seed*", (0, 2, 3), 1)
    assert group.mean == pytest.approx(np.mean(list(scores.values())))
    assert group.deviation == pytest.approx(np.std(list(scores.values()), ddof=1))
    (group,) = seed_groups(runs)
    assert group.mean == pytest.approx(np.mean(list(scores.values())))
    assert seed_groups(runs[:1]) == []


def test_the_verb_prints_a_table_or_json_and_says_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"[bold]a_seed{seed}", seed=seed, scores=(0.5 + seed / 10,))
    make_run(tmp_path / "runs" / "c")
    (tmp_path / "runs" / "c" / "config.yaml").unlink()
    assert run_tool(lambda: verb.main([])) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1].split() == ["[bold]a_seed1", "1", "60.00", "10", "30/30", "3/3", "20.0", "finished"]
    assert "[bold]a_seed* 0,1" in out
    assert "55.00 +- 7.07" in out
    assert "note: left out: runs/c holds metrics.jsonl but no config.yaml" in err
    assert run_tool(lambda: verb.main(["runs", "--json", "--sort", "name"])) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in tree["runs"]] == ["[bold]a_seed0", "[bold]a_seed1"]
    assert [run["config"] for run in tree["runs"]] == [{"seed": 0}, {"seed": 1}]
    assert tree["seeds"][0]["seeds"] == [0, 1]
    (tmp_path / "empty").mkdir()
    assert run_tool(lambda: verb.main(["empty"])) == 0
    assert "no run folder in empty or below" in capsys.readouterr().err
    assert run_tool(lambda: verb.main(["nowhere"])) == 2
