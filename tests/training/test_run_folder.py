"""The states of a run: killed at any instant, it ends with the bits of a run that nobody killed."""

import contextlib
import dataclasses
import errno
import json
import os
import platform
import random
import resource
import signal
import time

import pytest
import torch
from campaigns import kill_campaign

from resnest_seg.config import OptimConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.checkpoint import LAST, Checkpoint, TrainingState
from resnest_seg.training.run_folder import MACHINE, METRICS, RunFolder, config_changes

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(tiny_space):
    def make(step):
        state = TrainingState({"step": step}, {"optimizer.0.momentum_buffer": torch.full((3,), float(step))})
        return Checkpoint(RunConfig(), tiny_space, {"weight": torch.full((64,), float(step))}, state)

    return make


@pytest.mark.long
def test_six_kills_leave_no_trace(tmp_path):
    """SIGKILL, SIGTERM and both after random times, within file operations of saves and within validations."""
    server, rng = kill_campaign.Server(tmp_path / "log"), random.Random(1)  # whose draws have all kinds
    words = ["--train.batch_size=2"]  # drawing the photos is what takes most of the time
    try:
        whole = [*kill_campaign.WORDS, *words, "--output", tmp_path / "whole"]
        assert server.run(whole) == 0, (tmp_path / "log").read_text()
        middle = kill_campaign.Attack("operation", ((60, "SIGKILL"),))  # where the run has saved some times
        run1 = [*kill_campaign.WORDS, *words, "--output", tmp_path / "run1"]
        assert server.run(run1, attack=middle) == -9, (tmp_path / "log").read_text()
        killed, runs = 1, 0
        while killed < 6:
            runs += 1
            killed += kill_campaign.killed_run(
                server.run, tmp_path / f"run{runs}", rng, kills=6 - killed, seconds=0.8, signals="mix", words=words
            )
            kill_campaign.assert_same_run(tmp_path / f"run{runs}", tmp_path / "whole")
    finally:
        server.close()
    steps = [entry["step"] for entry in lines(tmp_path / "run1" / MACHINE) if entry["kind"] == "start"]
    assert 0 < steps[1] < 64  # it did continue in the middle


def few_photos(workers):
    """Words of a shared run of as many steps as one epoch in the campaign has, but of four photos for each process."""
    return [f"--train.batch_size={4 * workers}", "--train.epochs=null", f"--train.iterations={32 // workers}"]


@pytest.mark.long
def test_a_worker_that_dies_is_restarted_by_torchrun(tmp_path):
    """One of two gloo processes is killed; the agent starts both again, which resume by themselves."""
    server, log = kill_campaign.Server(tmp_path / "log"), tmp_path / "log"
    try:
        words = [*kill_campaign.shared_words(2), *few_photos(2), "--output", tmp_path / "whole"]
        assert server.run(words, ranks=2) == 0, log.read_text()
    finally:
        server.close()
    output = tmp_path / "killed"
    kill_campaign.elastic(output, log, workers=2, kills=0, random=None, words=few_photos(2), strike="1 8 SIGKILL")
    kill_campaign.assert_same_run(output, tmp_path / "whole")
    starts = [entry["step"] for entry in lines(output / MACHINE) if entry["kind"] == "start"]
    assert len(starts) == 2
    assert 6 <= starts[1] <= 8  # the save before, or one that the other process made as it ended


@pytest.mark.parametrize(
    ("optim", "values", "refused"),
    [
        ({}, {"step": 7}, True),
        ({"optimizer": "adamw"}, {"step": 7}, True),
        ({}, {"step": 7, "scaler": {"scale": 65536.0, "_growth_tracker": 7}}, True),
        ({}, {"step": 0}, False),
        ({"momentum": 0.0}, {"step": 7}, False),
        ({}, {"step": 2, "scaler": {"scale": 16384.0, "_growth_tracker": 0}}, False),  # both overflowed
    ],
)
def test_a_state_without_the_optimisers_tensors_is_refused(optim, values, refused, checkpoint, tmp_path):
    """It would go on without momentum, and nobody would know."""
    state = dataclasses.replace(
        checkpoint(7),
        config=dataclasses.replace(RunConfig(), optim=dataclasses.replace(OptimConfig(), **optim)),
        training=TrainingState(values, {"average.weight": torch.zeros(64)}),
    )
    state.save(tmp_path / LAST)
    with (
        pytest.raises(CheckpointError, match=r"last\.safetensors is at step 7 and holds no state of the optimiser")
        if (refused)
        else contextlib.nullcontext()
    ):
        RunFolder(tmp_path).load_state()


def test_a_state_that_is_not_finite_is_passed_over(checkpoint, tmp_path):
    """As a damaged one is: the state before it is taken, and file and tensor are said."""
    folder, said = RunFolder(tmp_path), []
    older, newer = checkpoint(3), checkpoint(7)
    older.save(tmp_path / "step_0000000003.safetensors")
    newer.weights["weight"][5] = float("nan")
    newer.save(tmp_path / LAST)
    assert folder.load_state(said.append).training.values["step"] == 3
    assert len(said) == 1
    assert f"{tmp_path / LAST}: 1 of 64 values of weight are not finite" in said[0]


def test_what_a_users_object_keeps_need_not_be_finite(checkpoint, tmp_path):
    """A callback may begin with the least loss so far at infinity; a run's own tensors may not."""
    state = checkpoint(7)
    state.training.tensors["kept.callback 0.least"] = torch.tensor(float("inf"))
    state.save(tmp_path / LAST)
    found = RunFolder(tmp_path).load_state()
    assert found.training.tensors["kept.callback 0.least"].isinf()
    state.training.tensors["optimizer.0.momentum_buffer"][0] = float("inf")
    state.save(tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"1 of 3 values of optimizer\.0\.momentum_buffer are not"):
        RunFolder(tmp_path).load_state()


@pytest.mark.long
def test_three_processes_add_in_the_same_order_after_a_resume(tmp_path):
    """Of three numbers, the order of a sum matters; DDP changes it after the first step unless it is told not to."""
    server, words = kill_campaign.Server(tmp_path / "log"), [*kill_campaign.shared_words(3), *few_photos(3)]
    try:
        assert server.run([*words, "--output", tmp_path / "whole"], ranks=3) == 0, (tmp_path / "log").read_text()
        again = [*words, "--resume", "auto", "--output", tmp_path / "killed"]
        third_save = kill_campaign.Attack("operation", ((35, "SIGKILL"),))
        assert server.run(again, ranks=3, attack=third_save) == -9  # in its fourth save or so
        assert server.run(again, ranks=3) == 0, (tmp_path / "log").read_text()
    finally:
        server.close()
    kill_campaign.assert_same_run(tmp_path / "killed", tmp_path / "whole")
    starts = [entry["step"] for entry in lines(tmp_path / "killed" / MACHINE) if entry["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1] > 1


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_newest_states_are_kept(checkpoint, tmp_path):
    folder = RunFolder(tmp_path, keep=3)
    for step in (0, 5, 5, 9, 12):
        folder.save_state(checkpoint(step), step)
    names = [path.name for path in folder.states()]
    assert names == [LAST, "step_00000009.safetensors", "step_00000005.safetensors"]
    assert [Checkpoint.load(path).training.values["step"] for path in folder.states()] == [12, 9, 5]
    alone = RunFolder(tmp_path / "alone", keep=1)
    alone.path.mkdir()
    for step in (1, 2):
        alone.save_state(checkpoint(step), step)
    assert [path.name for path in alone.states()] == [LAST]


@pytest.mark.parametrize("links", [True, False])
def test_states_survive_on_file_systems_without_links(checkpoint, tmp_path, monkeypatch, links):
    def refuse(source, target):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.save_state(checkpoint(step), step)
    assert [Checkpoint.load(path).training.values["step"] for path in folder.states()] == [2, 1]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "gone", "metadata"])
def test_a_damaged_state_is_told_and_the_one_before_is_taken(checkpoint, tmp_path, damage):
    folder = RunFolder(tmp_path)
    for step in (3, 6):
        folder.save_state(checkpoint(step), step)
    last = tmp_path / LAST
    data = bytearray(last.read_bytes())
    match damage:
        case "truncated":
            last.write_bytes(data[:-10])
        case "one bit":
            data[-7] ^= 4
            last.write_bytes(data)
        case "metadata":
            last.write_bytes(data.replace(b'\\"step\\": 6', b'\\"step\\": 7'))
        case "empty":
            last.write_bytes(b"")
        case "gone":  # killed between two names, where there are no links
            last.unlink()
    said, again = [], RunFolder(tmp_path)
    assert again.load_state(said.append).training.values["step"] == 3
    if damage != "gone":
        assert len(said) == 1
        assert str(last) in said[0]
        assert "damaged" in said[0]
        assert "Resuming from the one before, step_00000003.safetensors, step 3" in said[0]
    again.save_state(checkpoint(6), 6)  # the run goes on: the damaged one is not set aside
    assert [Checkpoint.load(path).training.values["step"] for path in again.states()] == [6, 3]


def test_damaged_states_of_steps_to_come_are_not_kept_in_place_of_good_ones(checkpoint, tmp_path):
    """After two that are damaged, the run goes on from the third, and may save at other steps."""
    folder = RunFolder(tmp_path, keep=3)
    for step in (2, 4, 6):
        folder.save_state(checkpoint(step), step)
    for path in folder.states()[:2]:
        path.write_bytes(b"damaged")
    again = RunFolder(tmp_path, keep=3)
    assert again.load_state(lambda text: None).training.values["step"] == 2
    again.save_state(checkpoint(3), 3)
    assert [path.name for path in again.states()] == [LAST, "step_00000002.safetensors"]
    again.save_state(checkpoint(5), 5)
    assert [path.name for path in again.states()][1:] == ["step_00000003.safetensors", "step_00000002.safetensors"]


def test_nothing_but_damaged_states_is_an_error(checkpoint, tmp_path):
    folder = RunFolder(tmp_path)
    for step in (3, 6):
        folder.save_state(checkpoint(step), step)
    for path in folder.states():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"no state in .* can be resumed: .*last.* is no .*step_00000003.* Begin"):
        RunFolder(tmp_path).load_state()
    with pytest.raises(CheckpointError, match="died before the first save"):
        RunFolder(tmp_path / "nothing").load_state()


def test_a_new_run_adopts_only_what_a_run_left(checkpoint, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check_new()
    folder.open(RunConfig(), {})
    with pytest.raises(CheckpointError, match=r"already exists. Choose another with --output\."):
        folder.check_new()
    folder.check_new(adopt=True)
    (folder.path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"is no run folder: it holds thesis.tex"):
        folder.check_new(adopt=True)
    folder.save_state(checkpoint(1), 1)
    with pytest.raises(CheckpointError, match="or continue that run with --resume"):
        folder.check_new(adopt=True)


def test_opening_cuts_the_lines_back_and_removes_leftovers(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(RunConfig(), {})
    for kind, step in (("train", 1), ("train", 2), ("validation", 2), ("train", 3)):
        folder.append(METRICS, {"kind": kind, "step": step})
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'{"kind": "train", "step": 1, \xff')
    (tmp_path / ".last.4711.tmp.safetensors").write_bytes(b"half")
    (tmp_path / ".notes").write_text("mine")
    (tmp_path / ".eval_report.4711.tmp.json").write_text("of an evaluation that is still at work")
    folder.open(RunConfig(), {"train": 2, "validation": 0})
    assert [(line["kind"], line["step"]) for line in lines(tmp_path / METRICS)] == [("train", 1), ("train", 2)]
    assert {path.name for path in tmp_path.glob(".*")} == {".notes", ".eval_report.4711.tmp.json"}


def test_metrics_that_are_gone_are_told(tmp_path):
    said, folder = [], RunFolder(tmp_path)
    folder.open(RunConfig(), {"train": 0, "validation": 0}, say=said.append)
    folder.open(RunConfig(), {"train": 7, "validation": 4}, say=said.append)
    assert said == []
    (tmp_path / METRICS).unlink()
    folder.open(RunConfig(), {"train": 7, "validation": 4}, say=said.append)
    assert len(said) == 1
    assert f"{tmp_path / METRICS} is gone, and with it the losses and scores up to step 7" in said[0]


@contextlib.contextmanager
def another_process(folder):
    """A process that holds a folder and has a child, as a training process has its loaders; gives its id."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with RunFolder(folder).held():
                if os.fork() == 0:
                    os.write(writing, b"x")  # by now it has let go of what it inherited
                    time.sleep(5)
                    os._exit(0)
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(reading, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (reading, writing):
            os.close(end)


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(checkpoint, tmp_path):
    """Neither by itself nor by its children, which live on for a while after a SIGKILL."""
    folder = RunFolder(tmp_path / "run")
    folder.check_free()  # nobody ever held it
    with another_process(folder.path) as pid:
        says = f"another run is training into .*run: process {pid} on {platform.node()} holds .*lock.*Wait for that"
        with pytest.raises(CheckpointError, match=says):
            folder.check_free()
        with pytest.raises(CheckpointError, match=says), folder.held():
            pass
    folder.check_free()
    with folder.held():
        folder.save_state(checkpoint(1), 1)
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"):
            RunFolder(folder.path).check_free()
    with folder.held():  # again, by the same run
        pass


def test_a_run_that_saved_while_another_one_started_is_not_cut_back(checkpoint, tmp_path):
    first, second, third = RunFolder(tmp_path), RunFolder(tmp_path), RunFolder(tmp_path)
    third.check_new(adopt=True)
    with first.held():
        first.save_state(checkpoint(3), 3)
    second.load_state()
    with first.held():
        first.save_state(checkpoint(6), 6)
    for late in (second, third):
        with pytest.raises(CheckpointError, match=r"another run saved into .* --resume"), late.held():
            pass
    second.load_state()
    with second.held():
        pass


def test_where_files_cannot_be_locked_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path)

    def refuse(**options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(folder._lock, "acquire", refuse)
    with folder.held():
        assert f"warning: the file system of {tmp_path} has no locks" in capsys.readouterr().err


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a disk that is nearly full, the system refuses to write more; here with another reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_the_state_before_is_good(checkpoint, tmp_path):
    folder = RunFolder(tmp_path)
    with files_of_at_most(500), pytest.raises(CheckpointError, match=r"last.*cannot be written.*has saved nothing yet"):
        folder.save_state(checkpoint(3), 3)
    folder.save_state(checkpoint(3), 3)
    folder.append(METRICS, {"kind": "train", "step": 3})
    with files_of_at_most(500):
        good = r"cannot be written: .*[Ff]ile too large.* the state of step 3, .*last.safetensors, is good. .*--resume"
        with pytest.raises(CheckpointError, match=f"last.safetensors {good}"):
            folder.save_state(checkpoint(6), 6)
        with pytest.raises(CheckpointError, match=f"best.safetensors {good}"):
            folder.save_best(checkpoint(6))
        with pytest.raises(CheckpointError, match=f"metrics.jsonl {good}"):
            folder.append(METRICS, {"kind": "train", "step": 4, "names": "x" * 600})
    assert not list(tmp_path.glob(".*.tmp*"))
    again = RunFolder(tmp_path)
    assert again.load_state().training.values["step"] == 3
    again.open(RunConfig(), {"train": 3, "validation": 0})
    assert lines(tmp_path / METRICS) == [{"kind": "train", "step": 3}]
    again.save_state(checkpoint(6), 6)
    assert [Checkpoint.load(path).training.values["step"] for path in again.states()] == [6, 3]


def test_changes_are_refused_or_allowed_by_key(tmp_path):
    before = RunConfig()
    after = dataclasses.replace(before, seed=4, output="elsewhere", optim=OptimConfig(lr=0.5))
    with pytest.raises(
        CheckpointError, match=r"optim.lr \(0.01 -> 0.5\), seed \(0 -> 4\).*--allow-changes optim.lr,seed"
    ):
        config_changes(before, after, allowed=(), file=tmp_path)
    with pytest.raises(CheckpointError, match=r"any more: seed \(0 -> 4\)\."):
        config_changes(before, after, allowed=("optim.lr",), file=tmp_path)
    shown = config_changes(before, after, allowed=("optim.lr", "seed"), file=tmp_path)
    assert shown == ["optim.lr (0.01 -> 0.5)", "seed (0 -> 4)", "output (None -> elsewhere)"]
    other = dataclasses.replace(before, train=dataclasses.replace(before.train, batch_size=8))
    for allowed in ((), ("train.batch_size",)):
        with pytest.raises(CheckpointError, match=r"train.batch_size \(16 -> 8\) cannot change .*--train.accumulation"):
            config_changes(before, other, allowed=allowed, file=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key to change: 'optim.rl'\. Did you mean 'optim.lr'"):
        config_changes(before, before, allowed=("optim.rl",), file=tmp_path)


def test_a_run_keeps_its_identity(tmp_path):
    folder = RunFolder(tmp_path)
    first = folder.identity()
    assert first != folder.identity()  # nothing began yet
    folder.append(MACHINE, {"kind": "start", "id": first})
    folder.append(MACHINE, {"kind": "start", "id": "of a resume"})
    assert RunFolder(tmp_path).identity() == first
