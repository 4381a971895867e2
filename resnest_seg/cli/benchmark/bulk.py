"""How cost grows with the number of photos: jobs of both engines, listings, indices of shards, loaders, image files."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.measuring import interleave, peak_during
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import psutil

    from resnest_seg.data.loader import Loader

ENGINES = ("plain", "ray")
PHOTOS, FILES, SAMPLES, PAIRS = (100, 1000, 10_000), (1000, 10_000, 100_000), (10_000, 100_000, 1_000_000), (500, 2000)
SIZE, DRAWN = (96, 128), 64
"""Height and width of small photos, and how many of them are different."""

Row = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of these series."""
    parser.add_argument(
        "--photos", type=int, nargs="+", default=PHOTOS, help="numbers to predict (default: 100 1000 10000)"
    )
    parser.add_argument("--engines", nargs="+", default=ENGINES, help="that predict (default: plain ray, if installed)")
    parser.add_argument(
        "--files", type=int, nargs="+", default=FILES, help="numbers to list (default: 1000 10000 100000)"
    )
    parser.add_argument(
        "--samples", type=int, nargs="+", default=SAMPLES, help="numbers in an index (default: 10^4 to 10^6)"
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, help="numbers to load (default: 500 2000)")


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that no machine could take, and engines that there are not.

    Raises:
        ConfigError: Says which.
    """
    for name, most in (("photos", 10**6), ("files", 10**7), ("samples", 10**8), ("pairs", 10**6)):
        for value in getattr(options, name):
            check_option(f"--{name}", value, 1, most)
    for engine in options.engines:
        if engine not in ENGINES:
            raise unknown_name("--engines", engine, ENGINES)


def exponent(work: Sequence[float], cost: Sequence[float]) -> float:
    """The slope of log cost over log work by least squares: 1 is proportional, 0 is constant."""
    return statistics.linear_regression([math.log(x) for x in work], [math.log(y) for y in cost]).slope


def series(name: str, work: Sequence[int], cost: Sequence[float], *, least: float = 0.0) -> list[Row]:
    """Rows of one series; the exponent is that of all of it, but for costs below the `least` that can be measured.

    It is None where fewer than two are left.
    """
    fitted = [(units, value) for units, value in zip(work, cost, strict=True) if value > least]
    slope = exponent(*zip(*fitted, strict=True)) if len({units for units, _ in fitted}) > 1 else None
    return [
        {"name": name, "work": units, "cost": value, "per_unit": value / units, "exponent": slope}
        for units, value in zip(work, cost, strict=True)
    ]


def small_photos(folder: Path, count: int, *, masks: Path | None = None) -> None:
    """Write drawn scenes as JPEG files, and their masks as PNG: a few, and links to them, which are read as files."""
    import cv2

    from resnest_seg.data.synthetic import Synthetic

    scenes = Synthetic("train", size=SIZE)
    for index in range(count):
        for place, suffix in ((folder, ".jpg"), (masks, ".png")):
            if place is None:
                continue
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{index:07d}{suffix}"
            if index >= DRAWN:
                os.link(place / f"{index % DRAWN:07d}{suffix}", path)
                continue
            sample = scenes[index]
            cv2.imwrite(str(path), sample.image[..., ::-1] if suffix == ".jpg" else sample.labels)


def growing_jobs(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds and memory of prediction jobs, as commands; what one photo takes is the start-up, and is told apart.

    A start varies, so that what is below a tenth of it counts for nothing in the exponent.

    The network is the smallest there is, so that the job is measured and not the network.
    """
    import torch

    from resnest_seg.config import ModelConfig, RunConfig
    from resnest_seg.labels import LabelSpace
    from resnest_seg.models.checkpoint import Checkpoint
    from resnest_seg.models.loading import build_segmenter

    torch.manual_seed(0)
    space = LabelSpace.of("synthetic")
    model = build_segmenter("resnest14_tiny", head="fcn", num_classes=len(space))
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn", encoder_weights=None))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Checkpoint(config, space, model.state_dict(), None, len(space), {}).save(folder / "model.safetensors")
        small_photos(folder / "1", 1)
        for count in options.photos:
            small_photos(folder / str(count), count)
        for engine in options.engines:
            if engine == "ray" and importlib.util.find_spec("ray") is None:
                print("ray is not installed: pip install 'resnest-seg[ray]'", file=sys.stderr)
                continue
            _job(folder, 1, engine, options.device)  # loads the libraries from the disk
            runs = [_job(folder, count, engine, options.device) for count in (1, *options.photos)]
            seconds, memory = zip(*runs, strict=True)
            yield from series(f"{engine}: seconds of the start-up", (1,), seconds[:1])
            work = [max(taken - seconds[0], 1e-3) for taken in seconds[1:]]
            yield from series(f"{engine}: seconds by photos, without it", options.photos, work, least=seconds[0] / 10)
            yield from series(f"{engine}: MiB by photos", options.photos, memory[1:])


def _job(folder: Path, count: int, engine: str, device: str) -> tuple[float, float]:
    """Seconds and peak private MiB of a job, with all processes that it starts."""
    import psutil

    words = ["predict", "--checkpoint", folder / "model.safetensors", folder / str(count), "--write", "labels"]
    words += ["--overwrite", "--output", folder / f"{engine}{count}", "--engine", engine, "--device", device]
    log = folder / "log"
    peak, start = 0, time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        job = subprocess.Popen([sys.executable, "-m", "resnest_seg", *map(str, words)], stdout=file, stderr=file)
        own = psutil.Process(job.pid)
        while job.poll() is None:
            peak = max(peak, _private(own))
            time.sleep(0.2)
    taken = time.perf_counter() - start
    if job.returncode:
        raise ConfigError(f"the job of {count} photos by {engine} failed: {log.read_text(encoding='utf-8')[-800:]}")
    return taken, peak / 2**20


def _private(process: psutil.Process) -> int:
    """Bytes that a process and its descendants do not share with others."""
    import psutil

    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            memory = each.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    except psutil.Error:  # one of them has just ended
        pass
    return total


def growing_lists(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds and memory of listing inputs in a folder, and in an object store that answers at once."""
    for place in ("folder", "store"):
        costs = []
        for count in options.files:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                costs.append(fresh.submit(listing, place, count).result())
        seconds, memory = zip(*costs, strict=True)
        yield from series(f"{place}: seconds of a listing by files", options.files, seconds)
        yield from series(f"{place}: MiB of a listing by files", options.files, memory)


def listing(place: str, count: int) -> tuple[float, float]:
    """Seconds and MiB of one listing; for a process of its own."""
    from resnest_seg.bulk.listing import list_inputs
    from resnest_seg.storage.remote import list_addresses

    taken: list[float] = []

    def timed(work: Callable[[], int]) -> None:
        start = time.perf_counter()
        assert work() == count
        taken.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        if place == "folder":
            list_inputs([name], output=os.devnull)  # loads what a first call loads; there is no file yet
            for index in range(count):
                (folder / f"{index:09d}.jpg").touch()
            kept = functools.partial(list_inputs, [str(folder)], output=str(Path(name) / "out"))
            memory = peak_during(lambda: timed(lambda: len(kept()[0])))
        else:
            import fsspec

            store = fsspec.filesystem("memory")
            store.makedirs("/photos")
            for index in range(count):
                store.pipe_file(f"/photos/{index:09d}.jpg", b"x")
            memory = peak_during(lambda: timed(lambda: len(list(list_addresses("memory://photos")))))
    return taken[0], max(memory, 2**-8)


def growing_index(options: argparse.Namespace) -> Iterator[Row]:
    """Bytes of the index of a packed data set, and seconds to open it."""
    import numpy as np

    from resnest_seg.storage.tar_shards import ROW, SampleTable, Texts

    sizes, seconds = [], []
    for count in options.samples:
        random, rows = np.random.default_rng(0), np.zeros(count, ROW)
        for field, most in (("photo", 400_000), ("mask", 40_000), ("checksum", 1 << 32)):
            rows[field] = random.integers(0, most, count)
        rows["start"] = np.cumsum(rows["photo"], dtype=np.uint64)
        rows["shard"] = rows["start"] // 256_000_000
        table = SampleTable(rows, Texts.of([f"images/train/{index:012d}.jpg" for index in range(count)]), Texts.of([]))
        content = table.to_bytes()
        start = time.perf_counter()
        SampleTable.from_bytes(content, "index")
        seconds.append(time.perf_counter() - start)
        sizes.append(len(content))
    yield from series("bytes of an index by samples", options.samples, sizes)
    yield from series("seconds to open it", options.samples, seconds)


def growing_loaders(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds of a pass over pairs of small photos and masks, in one process: as files and in shards, which agree."""
    import torch

    from resnest_seg.config import DataConfig
    from resnest_seg.data.folder import FolderDataset
    from resnest_seg.data.loader import build_loader
    from resnest_seg.data.shards import ShardDataset, pack_shards
    from resnest_seg.data.transforms import TrainTransform

    transform = TrainTransform.from_config(DataConfig(base_size=112, crop_size=96))
    with tempfile.TemporaryDirectory() as name:
        calls: list[Callable[[], object]] = []
        for count in options.pairs:
            root = Path(name) / str(count)
            small_photos(root / "images" / "train", count, masks=root / "masks" / "train")
            files = FolderDataset(root, "train")
            pack_shards([files], f"{root}_shards")
            packed = ShardDataset(f"{root}_shards", "train")
            loaders = [
                build_loader(each, batch_size=8, shuffle=True, transform=transform, workers=0)
                for each in (files, packed)
            ]
            for ours, theirs in zip(*loaders, strict=True):
                assert torch.equal(ours.images, theirs.images), "shards and files give different samples"
            calls += [functools.partial(_pass, loader) for loader in loaders]
        medians = [statistics.median(taken) for taken in interleave(calls, options.rounds)]
    yield from series("files: seconds of a pass by pairs", options.pairs, medians[::2])
    yield from series("shards: seconds of a pass by pairs", options.pairs, medians[1::2])


def _pass(loader: Loader) -> None:
    """Read everything once, in the order of the first epoch."""
    loader.epoch = 0
    for _ in loader:
        pass


def growing_files(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds by pixels of decoding a JPEG photo, encoding labels as PNG, and writing them to the disk, on one core."""
    import cv2
    import torch

    from resnest_seg.data.synthetic import Synthetic
    from resnest_seg.io.images import decode_image
    from resnest_seg.io.visualize import labels_png, write_labels

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as name:
            calls: list[Callable[[], object]] = []
            for side in options.sides:
                scenes = Synthetic("train", size=(side, side))
                sample, space = scenes[0], scenes.label_space
                content = cv2.imencode(".jpg", sample.image[..., ::-1])[1].tobytes()
                labels, path = sample.labels.clip(max=len(space) - 1), Path(name) / f"{side}.png"
                calls += [
                    functools.partial(decode_image, content, ""),
                    functools.partial(labels_png, labels, space, ids="raw"),
                    functools.partial(write_labels, path, labels, space, ids="raw"),
                ]
            medians = [statistics.median(taken) for taken in interleave(calls, options.rounds)]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    pixels = [side**2 for side in options.sides]
    decoding, encoding, writing = medians[::3], medians[1::3], medians[2::3]
    yield from series("seconds to decode a JPEG by pixels, one core", pixels, decoding)
    yield from series("seconds to encode labels as PNG", pixels, encoding)
    to_disk = [max(all_of_it - cpu, 1e-6) for all_of_it, cpu in zip(writing, encoding, strict=True)]
    yield from series("seconds until the disk has them", pixels, to_disk)


GROWING = {
    "photos": growing_jobs,
    "listing": growing_lists,
    "index": growing_index,
    "shards": growing_loaders,
    "files": growing_files,
}
"""Series -> what measures it."""
