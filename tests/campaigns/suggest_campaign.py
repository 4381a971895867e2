"""Compare ways to choose what to label next with choosing at random, at equal numbers of labels, on drawn videos.

python tests/campaigns/suggest_campaign.py                       # 3 seeds: 9 minutes of one core
python tests/campaigns/suggest_campaign.py --seeds 1 --rounds 1 --iterations 30     # a try

Videos are drawn street scenes (resnest_seg.data.synthetic), each repeated with small shifts and changes of light, some
for few frames and some for many, as a car that stands or drives. A small network is trained from scratch on a few
frames; each way then chooses `--count` more, round after round, with the model that its own labels gave. The score is
the mean IoU on scenes of other videos. The table has mean and sample deviation over the seeds, and the number of
different scenes that were labelled.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import resnest_seg
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.data.synthetic import render_scene
from resnest_seg.evaluation.acquisition import choose, image_uncertainty, pooled_features
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.torch_backend import TorchBackend

SIZE, JITTER = (48, 72), 6
"""Of a frame, in pixels; and how far frames of a scene are shifted."""

WAYS = {
    "random": (None, False),
    "margin": ("margin", False),
    "entropy": ("entropy", False),
    "margin + k-centre": ("margin", True),
    "entropy + k-centre": ("entropy", True),
    "k-centre alone": (None, True),
}
"""Name -> measure of uncertainty, and whether photos that differ are chosen."""


class Frames(SegmentationDataset):
    """Frames of drawn videos, in memory."""

    split = "train"

    def __init__(self, frames):
        self.label_space, self.frames = resnest_seg.LabelSpace.of("synthetic"), frames

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        image, labels, scene = self.frames[index]
        return Sample(image, labels, f"scene {scene}, frame {index}")

    def part(self, indices):
        return Frames([self.frames[index] for index in indices])


def videos(seed, lengths):
    """The frames of scenes that are repeated as often as `lengths` says."""
    random, (height, width), frames = np.random.default_rng(seed), SIZE, []
    for scene, length in enumerate(lengths):
        image, ids = render_scene(1000 + seed, scene, height=height + JITTER, width=width + JITTER)
        space = resnest_seg.LabelSpace.of("synthetic")
        labels = space.encode(ids)
        for _ in range(length):
            top, left = random.integers(0, JITTER + 1, 2)
            window = (slice(top, top + height), slice(left, left + width))
            light = image[window].astype(np.float32) * random.uniform(0.95, 1.05) + random.normal(0, 3, (*SIZE, 3))
            frames.append((light.clip(0, 255).astype(np.uint8), labels[window].copy(), scene))
    return Frames(frames)


def train(labelled, test, seed, options):
    """A network trained from scratch, and its mean IoU on the test scenes."""
    folder = Path(tempfile.mkdtemp())
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn", "encoder_weights": None},
        "data": {"dataset": "synthetic", "crop_size": 48, "base_size": 72, "workers": 0, "check": 0},
        "optim": {"lr": 0.05, "reference_batch": None, "head_lr_factor": 4.0},
        "train": {"epochs": None, "iterations": options.iterations, "batch_size": 8, "log_every": 1000,
                  "validate_every_steps": options.iterations, "trackers": "none"},
        "eval": {"sheet": 0},
        "seed": seed,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        result = resnest_seg.fit(config, train=labelled, validation=test, output=folder / "run")
    shutil.rmtree(folder)
    return result.segmenter.eval(), result.best_score


def chosen(way, pool, free, known, segmenter, random, options):
    """Places in the pool of the next frames to label, of those that are free."""
    measure, differ = WAYS[way]
    backend = TorchBackend(segmenter, RunOptions("cpu", fuse=False))
    protocol = backend.protocol("whole")
    if measure is None:
        scores = list(random.random(len(free)))
    else:
        scores = [image_uncertainty(backend, pool[place].image, protocol, measure=measure) for place in free]

    def features(places):
        return list(places), np.array([pooled_features(segmenter, pool[free[place]].image) for place in places])

    centres = np.array([pooled_features(segmenter, pool[place].image) for place in known]) if differ else None
    factor = len(free) if measure is None else options.factor
    picked = choose(scores, options.count, features=features if differ else None, centres=centres, factor=factor)
    return [free[choice.place] for choice in picked]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--start", type=int, default=6, help="frames that are labelled at first, at random")
    parser.add_argument("--count", type=int, default=12, help="frames that are labelled in a round")
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(1)  # images this small leave nothing to share
    found = {}  # (way, labels) -> [(mIoU, scenes)]
    for seed in range(options.seeds):
        random = np.random.default_rng(seed)
        pool = videos(seed, random.integers(1, 25, options.scenes))
        test = videos(500 + seed, [1] * 60)
        first = sorted(random.choice(len(pool), options.start, replace=False).tolist())
        begin = train(pool.part(first), test, seed, options)
        for way in options.ways:
            known, (segmenter, score) = list(first), begin
            own = np.random.default_rng(100 + seed)
            for number in range(options.rounds + 1):
                if number:
                    free = [place for place in range(len(pool)) if place not in known]
                    known += chosen(way, pool, free, known, segmenter, own, options)
                    segmenter, score = train(pool.part(known), test, seed, options)
                scenes = len({pool.frames[place][2] for place in known})
                found.setdefault((way, len(known)), []).append((score, scenes))
                line = {"seed": seed, "way": way, "labels": len(known), "mean_iou": round(score, 4), "scenes": scenes}
                print(json.dumps(line | {"pool": len(pool)}), flush=True)
    print(f"\n{'way':<20} labels  mIoU, % (mean +- sample deviation over {options.seeds} seeds)  scenes")
    for (way, labels), results in found.items():
        scores = [100 * score for score, _ in results]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        scenes = statistics.fmean(scenes for _, scenes in results)
        print(f"{way:<20} {labels:>6}  {statistics.fmean(scores):6.2f} +- {spread:.2f}  {scenes:6.1f}")


if __name__ == "__main__":
    main()
