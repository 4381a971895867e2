"""Kills actors, helpers and heads of `predict --engine ray` at random moments, and starts the same command again.

python tests/campaigns/kill_ray.py [KILLS] [SEED]: ten kills by default. At the end, every photo must have its outputs,
equal to those of plain predict, and one line of the manifest that calls it done; and no process may be left.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter

PROJECT = Path(__file__).resolve().parents[2]
PHOTOS = 400


def prepare(folder):
    """A fresh model, and photos of mixed sizes."""
    torch.manual_seed(0)
    config = RunConfig(
        model=ModelConfig(encoder="resnest14_tiny", head="fcn"),
        data=DataConfig(dataset="synthetic", base_size=96, crop_size=64),
    )
    weights = build_segmenter("resnest14_tiny", head="fcn", num_classes=10).state_dict()
    Checkpoint(config, Synthetic("test").label_space, weights).save(folder / "best.safetensors")
    pixels = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(PHOTOS):
        size = ((64, 64), (80, 48), (33, 41))[number % 3]
        small = Image.fromarray(pixels.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize(size).save(folder / "photos" / f"{number}.png")


def command(output, *words):
    return [sys.executable, "-m", "resnest_seg", "predict", "--checkpoint", "best.safetensors", "photos", "--device",
            "cpu", "--output", output, "--protocol", "encoding", "--write", "labels", *words]  # fmt: skip


def start(folder):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "RAY_ADDRESS": "local"}
    return subprocess.Popen(command("out", "--engine", "ray"), cwd=folder, env=environment, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def below(process):
    """The processes of a head, by what they are."""
    found = {"actor": [], "helper": [], "head": [process]}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            name = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "MapWorker" in name:
            found["actor"].append(child)
        elif name.startswith(("ray::Attempts", "ray::IDLE")):
            found["helper"].append(child)
    return {kind: processes for kind, processes in found.items() if processes}


def manifest(folder):
    lines = []
    for path in folder.glob("out/manifest/*"):
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # torn by a kill
                continue
    return lines


def pngs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*_labels.png")}


def main(kills=10, seed=0):
    chance, done = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        # With as many threads as an actor has: another number rounds differently, which shows where two classes tie.
        alone = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command("plain"), cwd=folder, env=alone, check=True)
        heads, process = [], start(folder)
        while True:
            heads.append(process.pid)
            while process.poll() is None and done < kills:
                time.sleep(chance.uniform(0.5, 12))
                if process.poll() is not None:
                    break
                kind = chance.choice(list(below(process)))
                victim = chance.choice(below(process).get(kind, [process]))
                os.kill(victim.pid, signal.SIGKILL)
                done += 1
                print(f"kill {done}: {kind}, {len(manifest(folder))} lines", flush=True)
            text, _ = process.communicate()
            if process.returncode != -signal.SIGKILL:
                break
            process = start(folder)
        print(text.strip().splitlines()[-1])
        assert process.returncode == 0, (process.returncode, text)
        assert pngs(folder / "out") == pngs(folder / "plain")
        sources = {line["source"] for line in manifest(folder)}
        assert len(sources) == PHOTOS
        print(
            f"{len(heads)} starts, {done} kills, {len(manifest(folder)) - PHOTOS} photos done twice, all outputs right"
        )
        time.sleep(60)  # Ray's agents look for their head every few seconds
        left = [each.pid for each in psutil.process_iter() if each.pid in heads or os.getsid(each.pid) in heads]
        assert not left, left


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
