"""Training on several machines: what a process does that lost another one, and a machine that dies and comes back."""

import argparse
import fcntl
import io
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from campaigns import kill_campaign, node_campaign
from conftest import PROJECT
from torch.distributed.run import get_args_parser as torch_arguments

from resnest_seg.cli import eval
from resnest_seg.cli.train import parse
from resnest_seg.errors import CheckpointError, ResNeStSegError
from resnest_seg.training import run_folder
from resnest_seg.training.distributed import StopSignal, lost_peers_named
from resnest_seg.training.run_folder import LOCK, RunFolder

CLUSTER = PROJECT / "examples" / "cluster"


@pytest.mark.long
@pytest.mark.slow
def test_a_machine_that_dies_and_comes_back_leaves_no_trace(tmp_path):
    """Two torchrun agents; SIGKILL of one and of its process: the run is that of one machine, to the bit."""

    def whole():
        server, log = kill_campaign.Server(tmp_path / "log"), tmp_path / "log"
        try:
            ours = [*node_campaign.SHARED, *short, "--output", tmp_path / "whole"]
            assert server.run(ours, ranks=2) == 0, log.read_text()
        finally:
            server.close()
        return tmp_path / "whole"

    short = ["--train.iterations=16", "--train.validate_every_steps=16", "--train.ema=0", "--train.batch_size=4"]
    node_campaign.play_node(tmp_path / "node", whole, argparse.Namespace(), short, hold=8)
    assert len(list((tmp_path / "node").glob("log*"))) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:9"),
         "Connection closed by peer [::1]:9"),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"),
         "Timed out waiting 5000ms"),
        (torch.distributed.DistStoreError("Timed out after 6 seconds waiting for clients. 1/2 clients joined."),
         "1/2 clients joined"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."), "aborted on rank 1"),
    ],
)  # fmt: skip
def test_a_lost_process_is_named_and_how_to_go_on(error, said):
    says = pytest.raises(ResNeStSegError, match=r"process 0 of 2, on .*lost another one")
    with says as raised, lost_peers_named(2, go_on="Give it again."):
        raise error
    assert said in str(raised.value)
    assert "third_party" not in str(raised.value)
    assert str(raised.value).endswith("Give it again.")


def test_an_evaluation_names_it_as_well(monkeypatch):
    def lost(total):
        raise RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:9"
        )

    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ResNeStSegError, match=r"lost another one.*Give the same command again"):
        eval.all_reduce(torch.ones(3))


@pytest.mark.parametrize("processes", [1, 2])
def test_other_errors_stay_what_they_are(processes):
    """Of tensors always, and where there is one process those of a group as well."""
    text = "The size of tensor a (3) must match" if processes == 2 else "gloo/transport: Connection closed by peer"
    with pytest.raises(RuntimeError) as raised, lost_peers_named(processes, go_on=""):
        raise RuntimeError(text)
    assert type(raised.value) is RuntimeError


def test_a_process_whose_agent_died_stops(monkeypatch, capsys):
    one = argparse.Namespace(num_processes=1)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with StopSignal() as alone:  # whoever started a process without torchrun may go
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopSignal() as stop:
        assert stop.anywhere(one) is None
        monkeypatch.setattr(os, "getppid", lambda: 2)
        assert stop.anywhere(one) == signal.SIGTERM
        assert stop.anywhere(one) == signal.SIGTERM
        assert alone.anywhere(one) is None
    assert capsys.readouterr().err.count("stopping after this step") == 1


def test_a_mark_is_seen_or_not(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with RunFolder(tmp_path / "here").marked("abc"):
        assert RunFolder(tmp_path / "here").shows("abc", seconds=0)
        assert not RunFolder(tmp_path / "here").shows("abd", seconds=0)
        assert not RunFolder(tmp_path / "elsewhere").shows("abc", seconds=0)
    assert list((tmp_path / "here").iterdir()) == []


class TimerStarting(io.StringIO):
    """A stream that starts a timer with its first line."""

    def __init__(self, timer):
        super().__init__()
        self.timer = timer

    def write(self, text):
        if not self.getvalue():
            self.timer.start()
        return super().write(text)


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_lock_of_another_machine_is_waited_for(comes_back, tmp_path, monkeypatch):
    """It may be dead: its lease ends. That of this one is known to be alive."""
    lease = 60 if comes_back else 0.1
    monkeypatch.setattr(run_folder, "LEASE", lease)
    (tmp_path / LOCK).write_text("process 9 on node7\n")
    there = os.open(tmp_path / LOCK, os.O_RDWR)
    fcntl.flock(there, fcntl.LOCK_EX)
    lease_ends = threading.Timer(0.2 if comes_back else 600, os.close, [there])
    said = TimerStarting(lease_ends)
    monkeypatch.setattr(sys, "stderr", said)
    if comes_back:
        with RunFolder(tmp_path).held():
            assert f"process {os.getpid()} on {platform.node()}" in (tmp_path / LOCK).read_text()
    else:
        with pytest.raises(CheckpointError, match=r"another run is training into .* process 9 on node7 holds"):
            RunFolder(tmp_path).check_free()
        lease_ends.cancel()
        os.close(there)
    lease_ends.join()
    assert f"process 9 on node7 holds {tmp_path / LOCK}: waiting up to {lease:.0f} s" in said.getvalue()


def test_shell_scripts_of_clusters_are_sound():
    scripts = [PROJECT / "tools/slurm_train.sh", *sorted(CLUSTER.glob("*.sh"))]
    assert len(scripts) == 2
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", script], check=True)


def test_the_job_of_kubernetes_is_one_that_the_command_line_takes():
    """The job names the runtime beside it, and its command, after torchrun's options, is a training."""
    runtime, job = yaml.safe_load_all((CLUSTER / "train_job.yaml").read_text())
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    trainer = job["spec"]["trainer"]
    bash, option, script, _ = trainer["command"]
    assert (bash, option, script.split()[-1]) == ("bash", "-c", '"$@"')
    words = shlex.split(re.sub(r'"is_host=.*?\)"', "is_host=true", script))
    launch = torch_arguments().parse_args([*words[2:-1], *trainer["args"]])
    assert (launch.training_script, launch.training_script_args[0], launch.max_restarts) == ("resnest_seg", "train", 3)
    order = parse(launch.training_script_args[1:])
    assert (order.resume, order.config.train.save_every) == ("auto", 200)
    assert all(path.startswith(mounted["runs"]) for path in (order.output, order.config.data.root))
    assert pod["terminationGracePeriodSeconds"] > 30  # what torchrun gives its processes
