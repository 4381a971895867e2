"""Kill training again and again, and compare what it ends with to a run that nobody killed.

python tests/kill_campaign.py --kills 100                 # forked children of one process: quick
python tests/kill_campaign.py --kills 20 --processes      # a fresh `python tools/train_seg.py` each time
python tests/kill_campaign.py --kills 10 --workers 2      # torchrun, one worker killed each time; the agent restarts it

A run is started with --resume auto, killed at a random instant or in a random file operation of a save, started again,
and so on to its end. The weights, the optimiser, the average and the metrics must be the same bits.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from resnest_seg.checkpoint import BEST, LAST, Checkpoint

PROJECT = Path(__file__).resolve().parents[1]
TRAIN = PROJECT / "tools" / "train_seg.py"

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


class Server:
    """The process whose children are killed."""

    def __init__(self, log):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, PROJECT / "tests" / "kill_server.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
        )  # fmt: skip

    def run(self, words, *, after=None, crash=None, ranks=1):
        """Exit code of the child (of several: of rank 0), negative for a signal."""
        order = {"words": [str(word) for word in words], "log": str(self.log), "after": after, "crash": crash}
        order["ranks"] = ranks
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["status"]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)


def run_process(words, log, *, after=None):
    """Exit code of a fresh process, negative for a signal."""
    with open(log, "a") as file:
        # one thread, as in the forked children: two on a busy machine wait for each other most of the time
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, TRAIN, *words], stdout=file, stderr=file, env=environment)
        try:
            return process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def killed_run(start, folder, random, *, kills, seconds):
    """Start a run until it ends, killing it up to `kills` times; returns how often it was."""
    killed = 0
    while True:
        deadly = killed < kills
        crash = random.randrange(120) if deadly and random.random() < 0.5 else None
        after = random.uniform(0, seconds) if deadly and crash is None else None
        options = {"after": after} | ({"crash": crash} if crash is not None else {})
        status = start([*WORDS, "--output", folder], **options)
        if status == 0:
            return killed
        assert status == -signal.SIGKILL, f"the run ended by itself with exit code {status}"
        killed += 1


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


def elastic(folder, log, *, workers, kills, random):
    """One run under torchrun, whose agent restarts what is killed here; returns how often that was."""
    words = [*shared_words(workers), "--output", str(folder)]
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone",
              f"--max-restarts={kills + 1}", "--monitor-interval=0.2"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    killed = 0
    with open(log, "a") as file:
        agent = subprocess.Popen([*launch, str(TRAIN), *words], stdout=file, stderr=file, env=environment)
        end = time.monotonic() + 300
        while agent.poll() is None:
            if time.monotonic() > end:
                agent.terminate()
            pids = workers_of(agent.pid)
            machine = folder / "machine.jsonl"
            starts = machine.read_text().count('"start"') if machine.exists() else 0
            if killed < kills and len(pids) == workers and starts > killed:
                time.sleep(random.uniform(0, 3))
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
            if (
                int(after_name[1]) == parent
                and after_name[0] != "Z"
                and b"train_seg" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=None, help="latest instant of a kill after a start")
    parser.add_argument("--processes", action="store_true", help="a fresh process for each start")
    parser.add_argument("--workers", type=int, default=0, help="train in this many processes under torchrun")
    options = parser.parse_args()
    rng, killed, runs = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log"
        if options.workers:
            server = Server(log)
            words = [*shared_words(options.workers), "--output", folder / "whole"]
            assert server.run(words, ranks=options.workers) == 0, log.read_text()[-3000:]
            server.close()
            killed = elastic(folder / "killed", log, workers=options.workers, kills=options.kills, random=rng)
            assert_same_run(folder / "killed", folder / "whole")
            print(f"{killed} of {options.workers} workers' deaths: the same bits as the run that was left alone")
            return
        server = None if options.processes else Server(log)
        start = (
            (lambda words, **given: run_process(words, log, after=given.get("after"))) if server is None else server.run
        )
        begin = time.monotonic()
        assert start([*WORDS, "--output", folder / "whole"]) == 0, log.read_text()[-3000:]
        seconds = options.seconds or (time.monotonic() - begin) * (1 if server is None else 0.3)
        while killed < options.kills:
            runs += 1
            at_most = min(options.kills - killed, 12)
            killed += killed_run(start, folder / f"run{runs}", rng, kills=at_most, seconds=seconds)
            assert_same_run(folder / f"run{runs}", folder / "whole")
            print(f"{killed} kills in {runs} runs, all of the same bits, {time.monotonic() - begin:.0f} s", flush=True)
        if server is not None:
            server.close()


if __name__ == "__main__":
    main()
