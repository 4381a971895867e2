"""How cost grows with work: pixels, images a batch, images of an evaluation, processes of a training; see `bulk`."""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark import bulk
from resnest_seg.cli.benchmark.bulk import series
from resnest_seg.cli.benchmark.eval import settle
from resnest_seg.cli.benchmark.measuring import interleave, peak_during
from resnest_seg.cli.benchmark.options import add_network, check_network
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError

if TYPE_CHECKING:
    from resnest_seg.models.segmenter import Segmenter

SIDES, BATCHES, IMAGES, PROCESSES = (256, 512, 1024, 2048), (1, 2, 4, 8), (10, 100), (1, 2)
STEPS = 24
SERIES = ("pixels", "batch", "images", "processes", *bulk.GROWING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_network(parser, encoder="resnest14", head="fcn", precisions=("fp32", "bf16", "fp16"))
    parser.add_argument("--tile", type=int, default=1024, help="edge of tiles, at most (default: 1024)")
    parser.add_argument("--overlap", type=int, default=64, help="pixels that tiles share (default: 64)")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="sides of photos (default: 256 to 2048)")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="numbers to evaluate (default: 10 100)")
    bulk.add_arguments(parser)
    parser.add_argument("--series", nargs="+", choices=SERIES, default=SERIES, help="what grows (default: all)")


def network(options: argparse.Namespace) -> Segmenter:
    """A model of the synthetic classes."""
    import torch

    from resnest_seg.labels import LabelSpace
    from resnest_seg.models.loading import build_segmenter

    torch.manual_seed(0)
    space = LabelSpace.of("synthetic")
    model = build_segmenter(options.encoder, head=options.head, num_classes=len(space)).eval()
    settle(model)
    model.label_space = space
    return model


def growing_pixels(options: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds of photos of growing size, in tiles and whole; what tiles share is computed twice."""
    from resnest_seg.data.synthetic import Synthetic
    from resnest_seg.inference.predictor import Predictor

    rows, model = [], network(options)
    photos = [Synthetic("train", size=(side, side))[0].image for side in options.sides]
    tiles = f"seconds by pixels, tiles of at most {options.tile} that share {options.overlap}"
    for name, tile, overlap in ((tiles, options.tile, options.overlap), ("seconds by pixels, whole", None, None)):
        predictor = Predictor(
            model,
            tile=tile,
            overlap=overlap,
            device=options.device,
            precision=options.precision,
            fuse=True,
            compiled=options.compile,
        )
        times = interleave([functools.partial(predictor, photo) for photo in photos], options.rounds)
        medians = [statistics.median(taken) for taken in times]
        rows += series(name, [side**2 for side in options.sides], medians)
    return rows


def growing_batch(options: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds of lists of photos of 256 x 256 that go through the network together."""
    from resnest_seg.data.synthetic import Synthetic
    from resnest_seg.inference.predictor import Predictor

    drawn = Synthetic("train", size=(256, 256))
    photos = [drawn[index].image for index in range(max(BATCHES))]
    calls = []
    for batch in BATCHES:
        predictor = Predictor(
            network(options), device=options.device, precision=options.precision, fuse=True, batch=batch
        )
        calls.append(functools.partial(predictor, photos[:batch]))
    medians = [statistics.median(taken) for taken in interleave(calls, options.rounds)]
    return series("seconds by images a batch, 256 x 256", BATCHES, medians)


def evaluation_peak(options: argparse.Namespace, images: int) -> float:
    """Mebibytes of main memory of a whole process at the worst moment of an evaluation; for a process of its own."""
    import psutil

    from resnest_seg.data.synthetic import Synthetic
    from resnest_seg.evaluation.evaluator import evaluate
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.torch_backend import TorchBackend

    model = TorchBackend(network(options), RunOptions(options.device, options.precision))
    dataset = Synthetic("train", size=(120, 160))
    evaluate(model, dataset, indices=range(2))  # whatever the first images load
    before = float(psutil.Process().memory_info().rss) / 2**20
    return before + peak_during(lambda: evaluate(model, dataset, indices=range(images)))


def growing_evaluation(options: argparse.Namespace) -> list[dict[str, object]]:
    """Memory of evaluations of more and more images: it must not grow."""
    peaks = []
    for images in options.images:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peaks.append(fresh.submit(evaluation_peak, options, images).result())
    return series("MiB by images evaluated", options.images, peaks)


def training_speed(processes: int, options: argparse.Namespace) -> float:
    """Seconds an image of a short training under torchrun, by its own log, without the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = ["--dataset", "synthetic", "--output", str(output), "--train.batch_size", "8", "--train.epochs", "null"]
        words += ["--train.iterations", str(STEPS), "--train.log_every", str(STEPS // 2), "--eval.limit", "2"]
        words += ["--train.trackers", "none", "--model.encoder", options.encoder, "--model.head", options.head]
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        threads = str(max((os.cpu_count() or 1) // processes, 1))
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        if options.device == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        done = subprocess.run(
            [*launch, "-m", "resnest_seg", "train", *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise ConfigError(f"the training of {processes} processes failed: {done.stderr.strip()[-500:]}")
        lines = [json.loads(line) for line in (output / "machine.jsonl").read_text(encoding="utf-8").splitlines()]
    return 1 / float([line["images_per_second"] for line in lines if line["kind"] == "speed"][-1])


def growing_training(options: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds an image of trainings by more and more processes: each has a GPU of its own, if they train on GPUs."""
    import torch

    most = max(PROCESSES) if options.device == "cpu" else torch.cuda.device_count()
    numbers = [processes for processes in PROCESSES if processes <= most]
    if len(numbers) < len(PROCESSES):
        print(f"this machine has {most} GPU: trainings of {numbers[-1]} process only", file=sys.stderr)
    speeds = [training_speed(processes, options) for processes in numbers]
    return series("seconds an image of training, by processes", numbers, speeds)


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of every series; `exponent` is that of the whole series. One that fails is left out, and a line says why.

    Raises:
        ConfigError: An option is out of range, or every series failed.
    """
    check_network(options)
    if min(options.sides) < 64:
        raise ConfigError("--sides must be at least 64.")
    for images in options.images:
        check_option("--images", images, 1, 512)
    bulk.check(options)
    growing: dict[str, Callable[[argparse.Namespace], Iterable[dict[str, object]]]] = {
        "pixels": growing_pixels,
        "batch": growing_batch,
        "images": growing_evaluation,
        "processes": growing_training,
        **bulk.GROWING,
    }
    rows: list[dict[str, object]] = []
    problems: list[ConfigError] = []
    for name in [name for name in growing if name in options.series]:
        try:
            rows += growing[name](options)
        except ConfigError as error:  # the others may have taken minutes
            print(f"series {name} is not measured: {error}", file=sys.stderr)
            problems.append(error)
    if not rows and problems:
        raise problems[0]
    return rows
