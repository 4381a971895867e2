"""Train on two "machines", torchrun agents on this one, end them in every way, and compare with runs left alone.

python tests/campaigns/node_campaign.py                       # all scenes
python tests/campaigns/node_campaign.py node elastic          # some
python tests/campaigns/node_campaign.py frozen --seconds 20   # with another patience of the processes

equal    two agents of one process are one agent of two processes, to the bit
worker   SIGKILL of a training process: both agents start theirs again
node     SIGKILL of the second agent and its process, then the agent is started again
first    the same with the first agent, which keeps the rendezvous: all ends, and is started again
agent    SIGKILL of an agent alone: the process that it leaves behind must end as well
frozen   SIGSTOP of a machine, as when a network fails: the other one must not wait for ever
elastic  from two machines to one and back; each part of the run is repeated undisturbed
kubernetes  the command of examples/cluster/train_job.yaml, with the Kubeflow trainer's variables; SIGKILL of processes
slurm    tools/slurm_train.sh among commands that act as SLURM's: pre-emption, and the job that comes back
disks    machines that do not see the same run folder: refused at the start (needs root, for a private mount)
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import yaml
from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from free_port import free_port  # noqa: E402
from kill_campaign import LAST, STRUCK, TRAIN, WORDS, assert_same_run, await_no_process, workers_of  # noqa: E402

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}  # fmt: skip
SHARED = [*WORDS, "--train.batch_size=16"]
PATIENCE = 180
"""Seconds within which everything that is waited for must happen."""


def launch(*options):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--monitor-interval=0.2", *options]


@dataclasses.dataclass
class Node:
    """A machine: an agent and its training process; `log` is what they say."""

    log: Path
    agent: subprocess.Popen

    @property
    def workers(self):
        return workers_of(self.agent.pid)

    def send(self, number, *, agent=True, worker=True):
        """A signal to the agent, then to the process; the agent first, or it would restart what it misses."""
        pids = [*([self.agent.pid] if agent else []), *(self.workers if worker else [])]
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGKILL and agent:
            self.agent.wait()

    def ended(self):
        """Its exit code, within `PATIENCE`."""
        try:
            return self.agent.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} hangs: {self.log.read_text()[-2000:]}") from None


class Cluster:
    """Machines with one run; every start of one is another log."""

    def __init__(self, folder, words=(), *, nodes="2", restarts=5, script=TRAIN):
        self.port = free_port()
        self.run, self.logs = folder / "run", folder
        self.words = [*SHARED, *words, "--output", str(self.run)]
        options = [
            f"--nnodes={nodes}", f"--max-restarts={restarts}", "--rdzv-backend=c10d", "--rdzv-id=campaign",
            f"--rdzv-endpoint=127.0.0.1:{self.port}",
            "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,close_timeout=5",
        ]  # fmt: skip
        self.command = [*launch(*options), str(script), *self.words]
        self.nodes = []

    def start(self, *, within=(), **variables):
        """One more machine; `within` are the words of a program that starts the agent."""
        log = self.logs / f"log{len(self.nodes)}"
        with open(log, "w") as file:
            words = [*within, *self.command]
            agent = subprocess.Popen(
                words, stdout=file, stderr=file, env=ENVIRONMENT | variables, start_new_session=True
            )
        self.nodes.append(Node(log, agent))
        self.await_(lambda: agent.poll() is not None or self.listens())  # the first one keeps the rendezvous
        return self.nodes[-1]

    def listens(self):
        """True if an agent keeps the rendezvous."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def lines(self, file, kind):
        path = self.run / file
        texts = path.read_text().splitlines() if path.exists() else []
        found = []
        for text in texts:
            with contextlib.suppress(ValueError):  # of a process that was killed
                found.append(json.loads(text))
        return [line for line in found if line["kind"] == kind]

    def starts(self):
        """(step, processes) of every start so far."""
        return [(line["step"], line["processes"]) for line in self.lines("machine.jsonl", "start")]

    def reaches(self, step, *, starts=1):
        """Wait until the run, started so often, has done a step."""
        self.await_(lambda: len(self.starts()) >= starts and self.step() >= step)

    def step(self):
        return max((line["step"] for line in self.lines("metrics.jsonl", "train")), default=0)

    def await_(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "\n".join(node.log.read_text()[-1500:] for node in self.nodes)
            time.sleep(0.05)

    def close(self):
        for node in self.nodes:
            for pid in (node.agent.pid, *node.workers) if node.agent.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.agent.wait()


@contextlib.contextmanager
def cluster(folder, words=(), **options):
    """A cluster that is gone at the end, with everything that it started."""
    folder.mkdir()
    made = Cluster(folder, words, **options)
    try:
        yield made
    finally:
        made.close()
        for node in made.nodes:
            await_no_process(node.log)


def one_machine(folder, words=(), *, processes=2):
    """A run on one machine that is left alone."""
    options = [f"--nproc-per-node={processes}", "--standalone"]
    words = [*launch(*options), str(PROJECT / "tools/train_seg.py"), *SHARED, *words, "--output", str(folder)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def replay(folder, words, parts):
    """The parts of a run, (processes, until which step), one after the other and undisturbed; the end is beyond 64."""
    code = (
        "import sys\n"
        "from resnest_seg.cli.train import parse, own_parts\n"
        "from resnest_seg.training.assembly import trainer_for\n"
        "order = parse(sys.argv[2:])\n"
        "trainer = trainer_for(order.config, own_parts(None), output=order.output, resume='auto')\n"
        "trainer.fit(until=int(sys.argv[1]))\n"
    )
    script = folder.with_suffix(".py")
    script.write_text(code)
    for processes, until in parts:
        options = [f"--nproc-per-node={processes}", "--standalone"]
        words_ = [*launch(*options), str(script), str(until), *SHARED, *words, "--output", str(folder)]
        done = subprocess.run(words_, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def named_once(log):
    """The message of a process that lost another one, which says it once a start and has no traceback of ours."""
    text = log.read_text()
    assert "lost another one" in text, text[-3000:]
    assert "This is a bug of resnest_seg" not in text
    return next(line for line in text.splitlines() if "lost another one" in line)


def play_equal(folder, whole, options):
    with cluster(folder) as nodes:
        first, second = nodes.start(), nodes.start()
        assert (first.ended(), second.ended()) == (0, 0)
        assert_same_run(nodes.run, whole())
    return "the same bits as one machine with two processes"


def play_worker(folder, whole, options):
    with cluster(folder) as nodes:
        machines = [nodes.start(), nodes.start()]
        for number, machine in enumerate((machines[1], machines[0], machines[1])):
            nodes.reaches(10 * (number + 1), starts=number + 1)
            machine.send(signal.SIGKILL, agent=False)
        assert [machine.ended() for machine in machines] == [0, 0]
        said = named_once(machines[0].log)
        assert_same_run(nodes.run, whole())
    return f"3 processes killed, starts at {nodes.starts()}, the same bits; {said[:160]}"


def play_node(folder, whole, options, words=(), hold=None):
    """The second machine is killed at step 10 or later, or, so that a short run is not over first, held at a step."""
    held = {"STRIKE": f"0 {hold} SIGSTOP"} if hold else {}
    with cluster(folder, words, script=STRUCK if hold else TRAIN) as nodes:
        first, second = nodes.start(), nodes.start(**held)
        nodes.reaches(hold or 10)
        second.send(signal.SIGKILL)
        third = nodes.start()
        assert (first.ended(), third.ended()) == (0, 0)
        named_once(first.log)
        assert_same_run(nodes.run, whole())
    return f"starts at {nodes.starts()}, the same bits"


def play_first(folder, whole, options):
    with cluster(folder) as nodes:
        first, second = nodes.start(), nodes.start()
        nodes.reaches(10)
        first.send(signal.SIGKILL)
        begin = time.monotonic()
        code = second.ended()
        taken = time.monotonic() - begin
        assert code != 0
        named_once(second.log)
        assert [nodes.start().ended, nodes.start().ended][0]() == 0
        assert nodes.nodes[-1].ended() == 0
        assert_same_run(nodes.run, whole())
    return (
        f"the second agent ended with {code} after {taken:.0f} s; both again: starts at {nodes.starts()}, the same bits"
    )


def play_agent(folder, whole, options):
    results = []
    for place in (0, 1):
        with cluster(folder.with_name(f"agent{place}")) as nodes:
            machines = [nodes.start(), nodes.start()]
            nodes.reaches(10)
            orphans = machines[place].workers
            machines[place].send(signal.SIGKILL, worker=False)
            begin = time.monotonic()
            nodes.await_(lambda orphans=orphans: not any(map(psutil.pid_exists, orphans)))
            taken = time.monotonic() - begin
            if place == 0:  # with it the rendezvous is gone
                machines[1].ended()
                machines.append(nodes.start())
            again = nodes.start()
            assert again.ended() == 0
            assert_same_run(nodes.run, whole())
            results.append(f"agent {place}: its process saved and ended after {taken:.1f} s")
    return f"{'; '.join(results)}; the same bits"


def play_frozen(folder, whole, options):
    with cluster(folder, [f"--train.peer_timeout={options.seconds}"]) as nodes:
        first, second = nodes.start(), nodes.start()
        nodes.reaches(10)
        left = first.workers
        second.send(signal.SIGSTOP)
        begin = time.monotonic()
        nodes.await_(lambda: not any(map(psutil.pid_exists, left)))
        taken = time.monotonic() - begin
        second.send(signal.SIGKILL)
        third = nodes.start()
        assert (first.ended(), third.ended()) == (0, 0)
        said = named_once(first.log)
        assert taken < options.seconds + 10, taken
        assert_same_run(nodes.run, whole())
    return f"ended {taken:.0f} s after the other one fell silent, starts at {nodes.starts()}, the same bits; {said}"


def play_elastic(folder, whole, options):
    """With batch norm's statistics frozen, the count of processes changes the order of sums alone."""
    results = []
    for words in ([], ["--optim.freeze=bn,head_bn"]):
        with cluster(folder.with_name(f"elastic{len(words)}"), words, nodes="1:2", restarts=3) as nodes:
            first, second = nodes.start(), nodes.start()
            nodes.reaches(8)
            second.send(signal.SIGKILL)
            nodes.reaches(20, starts=2)
            third = nodes.start()
            nodes.reaches(28, starts=3)
            assert (first.ended(), third.ended()) == (0, 0)
            starts = nodes.starts()
            counts = [processes for _, processes in starts]
            assert [counts[0], 1 in counts, counts[-1]] == [2, True, 2], starts
            parts = [
                (processes, until) for (_, processes), (until, _) in zip(starts, [*starts[1:], (65, 0)], strict=True)
            ]
            assert_same_run(nodes.run, replay(nodes.logs / "parts", words, parts))
            undisturbed = one_machine(nodes.logs / "whole", words)
            results.append(f"{words or 'batch norm by process'}: starts at {starts}, each part the same bits as alone; "
                           f"against two machines throughout {differences(nodes.run, undisturbed)}")  # fmt: skip
    return "; ".join(results)


def differences(ours, theirs):
    """Largest relative difference of the weights, tensor by tensor, and of the losses."""
    weights, others = load_file(ours / LAST), load_file(theirs / LAST)
    names = [name for name in weights if name.startswith("model.") or not name.startswith(("optimizer.", "average."))]
    far = max(
        float((weights[name] - others[name]).double().norm() / others[name].double().norm().clamp_min(1e-12))
        for name in names
        if torch.is_floating_point(weights[name])
    )
    lines = [[json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()] for run in (ours, theirs)]
    losses = [[line["loss"] for line in run if line["kind"] == "train"] for run in lines]
    loss = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    scores = [run[-1]["mean_iou"] for run in lines]
    return f"weights differ by {far:.1e}, losses by {loss:.1e}, mIoU {scores[0]:.4f} and {scores[1]:.4f}"


def play_kubernetes(folder, whole, options):
    """The command of the pods, with the variables that the Kubeflow trainer sets."""
    _, job = yaml.safe_load_all((PROJECT / "examples/cluster/train_job.yaml").read_text())
    with cluster(folder) as nodes:
        commands(folder / "bin", {"torchrun": SLURM["torchrun"]})
        agreed = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
        agreed |= {"PET_MASTER_PORT": str(nodes.port), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        agreed |= {variable["name"]: variable["value"] for variable in job["spec"]["trainer"]["env"]}
        nodes.command = [*job["spec"]["trainer"]["command"], *nodes.words]
        machines = [nodes.start(PET_NODE_RANK=str(rank), **agreed) for rank in (0, 1)]
        for number, machine in enumerate((machines[1], machines[0])):
            nodes.reaches(10 * (number + 1), starts=number + 1)
            machine.send(signal.SIGKILL, agent=False)
        assert [machine.ended() for machine in machines] == [0, 0]
        assert_same_run(nodes.run, whole())
    return f"2 processes killed, starts at {nodes.starts()}, the same bits"


def commands(folder, bodies):
    """Programs of bash in a folder."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)


SLURM = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >> "$QUEUE"; fi',
    "srun": 'shift; sed -i d "$QUEUE.step"; echo $$ > "$QUEUE.step"; exec env "PATH=$OWN:$PATH" "$@"',
    "scancel": 'step=$(cat "$QUEUE.step"); kill -TERM "$step" $(cat /proc/"$step"/task/*/children)',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}
"""What SLURM's commands do here: one machine, and SIGTERM reaches every process of a step."""


def play_slurm(folder, whole, options):
    with cluster(folder) as nodes:
        binaries, queue = folder / "bin", folder / "queue"
        (folder / "queue.step").touch()
        commands(binaries, SLURM)
        environment = {"PATH": f"{binaries}:{os.environ['PATH']}", "QUEUE": str(queue), "OWN": str(binaries)}
        environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "77"}
        environment |= {"SLURM_JOB_NODELIST": "here"}
        words = [word for word in nodes.words if word not in ("--resume", "auto")]
        command = ["bash", str(PROJECT / "tools/slurm_train.sh"), *words]
        with open(folder / "log", "w") as log:
            job = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT | environment, cwd=PROJECT)
            nodes.reaches(10)
            job.send_signal(signal.SIGTERM)
            assert job.wait(timeout=PATIENCE) == 0
            assert queue.read_text() == "requeue 77\n"
            stopped = nodes.step()
            done = subprocess.run(command, stdout=log, stderr=log, env=ENVIRONMENT | environment, cwd=PROJECT)
        assert done.returncode == 0, (folder / "log").read_text()[-3000:]
        assert nodes.starts() == [(0, 2), (stopped, 2)], (nodes.starts(), stopped)
        assert_same_run(nodes.run, whole())
    return f"SIGTERM at step {stopped}: saved, queued again, gone on from there; the same bits"


def play_disks(folder, whole, options):
    with cluster(folder, restarts=0) as nodes:
        nodes.run.mkdir()
        private = f'mount -t tmpfs none {shlex.quote(str(nodes.run))} && exec "$@"'
        nodes.start()
        nodes.start(within=["unshare", "--mount", "--propagation=private", "sh", "-c", private, "sh"])
        codes = [node.ended() for node in nodes.nodes]
        text = "".join(node.log.read_text() for node in nodes.nodes)
        assert all(codes), codes
        assert "the run folder must lie where all machines see the same files" in " ".join(text.split()), text[-3000:]
        assert nodes.step() == 0
    return next(line for line in text.splitlines() if "same files" in line)


SCENES = {name.removeprefix("play_"): play for name, play in list(globals().items()) if name.startswith("play_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", default=list(SCENES), metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--seconds", type=int, default=15, help="train.peer_timeout of the frozen machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nodes") as name:
        folder, made = Path(name), []

        def whole():
            if not made:
                made.append(one_machine(folder / "whole"))
            return made[0]

        for scene in options.scenes:
            begin = time.monotonic()
            told = SCENES[scene](folder / scene, whole, options)
            print(f"{scene} ({time.monotonic() - begin:.0f} s): {told}", flush=True)


if __name__ == "__main__":
    main()
