"""Kill training again and again, and compare what it ends with to a run that nobody killed.

python tests/campaigns/kill_campaign.py --kills 100             # forked children of one process: quick
python tests/campaigns/kill_campaign.py --kills 40 --all        # signals mixed, loader processes and all that is random
python tests/campaigns/kill_campaign.py --kills 20 --processes  # a fresh `python tools/train_seg.py` each time
python tests/campaigns/kill_campaign.py --kills 10 --workers 2  # torchrun: a process killed each time
python tests/campaigns/kill_campaign.py --kills 20 --semi       # learning from unlabelled photos as well
python tests/campaigns/kill_campaign.py --kills 10 --masks      # Mask2Former

A run is started with --resume auto, ended by SIGKILL, SIGTERM, or SIGTERM and then SIGKILL, at a random instant, in a
random file operation of a save, or within a validation, started again, and so on to its end. The weights, the
optimiser, the average and the metrics must be the same bits, SIGTERM must end with exit code 143 and a saved state, and
no loader process may be left. A table of what was done is printed at the end.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from resnest_seg.data.synthetic import Synthetic
from resnest_seg.io.visualize import write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint
from resnest_seg.models.loading import build_segmenter

PROJECT = Path(__file__).resolve().parents[2]
TRAIN = PROJECT / "tools" / "train_seg.py"
STRUCK = Path(__file__).with_name("struck_train_seg.py")

WORDS = [
    *("--dataset", "synthetic", "--resume", "auto"),
    *("--data.crop_size=32", "--data.base_size=64", "--data.workers=0", "--data.check=0"),
    *(
        "--model.output_stride=32",
        "--train.batch_size=4",
        "--train.epochs=null",
        "--train.iterations=64",
        "--eval.limit=2",
        "--eval.sheet=1",
    ),
    *("--train.ema=0.9", "--train.save_every=3", "--train.validate_every_steps=16", "--train.log_every=1"),
    *("--train.trackers=none",),
]
"""A run of 64 steps that takes seconds, saves often, and uses all that a state holds."""

FEATURES = {
    "ema": ["--train.ema=0.95"],
    "class_mix": ["--data.class_mix=0.5"],
    "rare_class": ["--data.rare_class=0.1"],
    "loaders": ["--data.workers=2"],
    "semi": ["--train.unlabelled=PHOTOS", "--semi.teacher=ema", "--semi.threshold=0.15", "--semi.ramp_up=20"],
    "teacher": ["--distill.teacher=TEACHER", "--distill.method=both"],
    "masks": [
        "--model.head=mask2former",
        "--model.family=mmseg",
        "--model.aux_head=false",
        "--optim.optimizer=adamw",
        "--optim.lr=0.0001",
        "--optim.clip_norm=0.01",
    ],
}
"""What makes a run more random, or gives it more processes."""

SIGNALS = {"kill": ["KILL"], "term": ["TERM"], "mix": ["KILL", "TERM", "TERM, KILL"]}
"""--signals -> what is sent, one after the other."""

TERMINATED = 143
"""Exit code after SIGTERM."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """How one start of a run is to end.

    Attributes:
        by: What the instants of `blows` are, see kill_server.py.
        blows: Instants and signals, one after the other.
    """

    by: str
    blows: tuple[tuple[float, str], ...]

    @property
    def kind(self):
        return f"{', '.join(name.removeprefix('SIG') for _, name in self.blows)} by {self.by}"

    @classmethod
    def draw(cls, random, *, signals, seconds):
        """One of the given sequences of signals, at random instants up to `seconds` after the start."""
        names = [f"SIG{name}" for name in random.choice(SIGNALS[signals]).split(", ")]
        by = random.choice(("time", "group", "operation", "operation", "validation"))
        if by == "validation":  # the second signal of two comes with the state that follows
            by, first = ("validation", random.randrange(4)) if len(names) == 1 else ("operation", 0)
        if by == "operation":
            first = random.randrange(120)
        if by in ("time", "group"):
            first = random.uniform(0, seconds)
        then = random.randrange(8) if by == "operation" else random.uniform(0, 0.2)
        return cls(by, tuple(zip((first, then), names, strict=False)))


class Server:
    """The process whose children are killed."""

    def __init__(self, log):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
        )  # fmt: skip

    def run(self, words, *, attack=None, ranks=1):
        """Exit code of the child (of several: of rank 0), negative for a signal."""
        order = {"words": [str(word) for word in words], "log": str(self.log), "ranks": ranks}
        order |= {"by": attack.by, "blows": attack.blows} if attack else {"by": None, "blows": []}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["status"]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=120)


def run_process(words, log, *, attack=None):
    """Exit code of a fresh process, negative for a signal; attacks are by time."""
    with open(log, "a") as file:
        # one thread, as in the forked children: two on a busy machine wait for each other most of the time
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, TRAIN, *words], stdout=file, stderr=file, env=environment, start_new_session=True
        )
        for seconds, name in attack.blows if attack else ():
            try:
                return process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                (os.killpg if attack.by == "group" else os.kill)(process.pid, signal.Signals[name])
        return process.wait()


def killed_run(start, folder, random, *, kills, seconds, signals="kill", words=(), done=None, by_time=False):
    """Start a run until it ends, killing it up to `kills` times; returns how often it was.

    `done` counts what ended it.
    """
    killed = 0
    while True:
        attack = Attack.draw(random, signals=signals, seconds=seconds) if killed < kills else None
        while by_time and attack is not None and attack.by not in ("time", "group"):
            attack = Attack.draw(random, signals=signals, seconds=seconds)
        status = start([*WORDS, *words, "--output", folder], attack=attack)
        if status == 0:
            return killed
        assert attack is not None, f"the run ended by itself with exit code {status}"
        names = {name for _, name in attack.blows}
        # SIGTERM ends a start before its first step as it ends any process
        expected = {-signal.Signals[name] for name in names} | ({TERMINATED} if "SIGTERM" in names else set())
        assert status in expected, f"{attack} ended with exit code {status}"
        if status == TERMINATED:
            assert Checkpoint.load(folder / LAST).training is not None
        killed += 1
        if done is not None:
            done[attack.kind, status] += 1


def await_no_process(log):
    """Nothing that writes into the log may be left, loader processes included."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        left = [process for process in psutil.process_iter(["open_files"]) if _uses(process, log)]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"still alive: {left}")


def _uses(process, log):
    return any(file.path == str(log) for file in process.info["open_files"] or ())


def assert_same_run(ours, theirs):
    """All that a run leaves behind, to the bit; machine.jsonl alone depends on time."""
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    first, second = Checkpoint.load(ours / LAST), Checkpoint.load(theirs / LAST)
    assert first.training.values == second.training.values
    for name in (LAST, BEST):
        tensors, expected = load_file(ours / name), load_file(theirs / name)
        assert tensors.keys() == expected.keys()
        different = [key for key, value in tensors.items() if not torch.equal(value, expected[key])]
        assert not different, f"{name}: {len(different)} tensors differ, first {different[0]}"
    assert not list(ours.glob(".*.tmp*"))


def shared_words(workers):
    """A run for several processes: of fewer steps, and without --resume, which a restart implies."""
    words = [word for word in WORDS if word not in ("--resume", "auto")]
    return [*words, f"--train.batch_size={16 * workers}", "--train.epochs=1", "--train.iterations=null"]


def elastic(folder, log, *, workers, kills, random, words=(), strike=None):
    """One run under torchrun, whose agent restarts what is killed here, up to 3 s after a start; says how often.

    With `strike` (see struck_train_seg.py) a process ends itself at that step, besides.
    """
    words = [*shared_words(workers), *words, "--output", str(folder)]
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone",
              f"--max-restarts={kills + 1}", "--monitor-interval=0.2"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"STRIKE": strike} if strike else {}
    killed, script = 0, str(STRUCK if strike else TRAIN)
    with open(log, "a") as file:
        agent = subprocess.Popen([*launch, script, *words], stdout=file, stderr=file, env=environment)
        end = time.monotonic() + 300
        while agent.poll() is None:
            if time.monotonic() > end:
                agent.terminate()
            pids = workers_of(agent.pid)
            machine = folder / "machine.jsonl"
            starts = machine.read_text().count('"start"') if machine.exists() else 0
            if killed < kills and len(pids) == workers and starts > killed:
                time.sleep(random.uniform(0, 3))
                with contextlib.suppress(ProcessLookupError):  # the run was over first
                    os.kill(random.choice(pids), signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)
    assert agent.returncode == 0, Path(log).read_text()[-3000:]
    return killed


def workers_of(parent):
    """Children of a process that train."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent and after_name[0] != "Z" and _trains((folder / "cmdline").read_bytes()):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def _trains(command):
    """True of a process that trains, by the script or as a module; not of torchrun's agent."""
    return b"torch.distributed.run" not in command and (b"train_seg" in command or b"resnest_seg\0train" in command)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=None, help="latest instant of a signal after a start")
    parser.add_argument("--signals", choices=SIGNALS, default="kill", help="mix: also SIGTERM and then SIGKILL")
    parser.add_argument("--loaders", action="store_true", help="two loader processes (data.workers)")
    parser.add_argument("--ema", action="store_true", help="a slower moving average")
    parser.add_argument("--class-mix", action="store_true", help="data.class_mix")
    parser.add_argument("--rare-class", action="store_true", help="data.rare_class")
    parser.add_argument("--semi", action="store_true", help="learn from unlabelled photos, labelled by the average")
    parser.add_argument("--teacher", action="store_true", help="distillation, of a random teacher")
    parser.add_argument("--masks", action="store_true", help="a head that predicts masks (not with --semi, --teacher)")
    parser.add_argument("--all", action="store_true", help="all of these, and --signals mix")
    parser.add_argument("--processes", action="store_true", help="a fresh process for each start")
    parser.add_argument("--workers", type=int, default=0, help="train in this many processes under torchrun")
    options = parser.parse_args()
    if options.all:
        options.signals = "mix"
    chosen = [name for name in FEATURES if options.all or getattr(options, name)]
    return options, [word for name in chosen for word in FEATURES[name]]


def write_photos(folder):
    """Drawn scenes without their labels."""
    scenes = Synthetic("train", size=(72, 96))
    folder.mkdir()
    for index in range(100, 116):
        write_png(folder / f"{index}.png", scenes[index].image)
    return folder


def write_teacher(path):
    """A random model of the drawn scenes, at a finer output stride than the run's; returns its path."""
    torch.manual_seed(0)
    model = build_segmenter("resnest14_tiny", head="fcn", num_classes=10, output_stride=16, aux_head=False)
    model.label_space = LabelSpace.of("synthetic")
    model.to_checkpoint().save(path)
    return path


def print_table(done, killed, runs):
    print(f"{'what ended a start':<32}{'exit code':>10}{'times':>7}")
    for (kind, status), count in sorted(done.items()):
        print(f"{kind:<32}{status:>10}{count:>7}")
    print(f"{killed} kills in {runs} runs: the same bits as the run that was left alone, no process left")


def under_torchrun(options, words, folder, log, rng):
    server = Server(log)
    whole = [*shared_words(options.workers), *words, "--output", folder / "whole"]
    assert server.run(whole, ranks=options.workers) == 0, log.read_text()[-3000:]
    server.close()
    begin = time.monotonic()
    killed = elastic(folder / "killed", log, workers=options.workers, kills=options.kills, random=rng, words=words)
    seconds = time.monotonic() - begin
    assert_same_run(folder / "killed", folder / "whole")
    await_no_process(log)
    print(
        f"{killed} of {options.workers} workers' deaths, {seconds:.0f} s: the same bits as the run that was left alone"
    )


def main():
    options, words = parse()
    rng, killed, runs, done = random.Random(options.seed), 0, 0, Counter()
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log"
        photos = write_photos(folder / "photos")
        teacher = write_teacher(folder / "teacher.safetensors")
        words = [word.replace("PHOTOS", str(photos)).replace("TEACHER", str(teacher)) for word in words]
        if options.workers:
            under_torchrun(options, words, folder, log, rng)
            return
        server = None if options.processes else Server(log)
        start = functools.partial(run_process, log=log) if server is None else server.run
        begin = time.monotonic()
        assert start([*WORDS, *words, "--output", folder / "whole"]) == 0, log.read_text()[-3000:]
        taken = time.monotonic() - begin
        seconds = options.seconds or taken * (1 if server is None else 0.5)
        print(f"the run that is left alone: {taken:.1f} s; signals up to {seconds:.1f} s after a start", flush=True)
        while killed < options.kills:
            runs += 1
            killed += killed_run(
                start, folder / f"run{runs}", rng, kills=min(options.kills - killed, 12), seconds=seconds,
                signals=options.signals, words=words, done=done, by_time=server is None,
            )  # fmt: skip
            assert_same_run(folder / f"run{runs}", folder / "whole")
            print(f"{killed} kills in {runs} runs, all of the same bits, {time.monotonic() - begin:.0f} s", flush=True)
        if server is not None:
            server.close()
        await_no_process(log)
        print_table(done, killed, runs)


if __name__ == "__main__":
    main()
