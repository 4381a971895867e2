"""Measure this package beside what else one would pick, in one run on this machine.

python tools/benchmark_seg.py infer
python tools/benchmark_seg.py infer --encoder resnest50 --size 512 512 --rounds 9 --json infer.json
python tools/benchmark_seg.py data --data.root /data/ade20k

infer    forward passes of one image: the encoder beside the same network of timm, with equal outputs checked first,
         and the whole model beside DeepLabV3 of segmentation-models-pytorch on timm's encoder.
data     training samples of the ADE20K recipe (decode, random long edge, pad, crop 480, flip, to tensor), on one core,
         beside the same recipe written with PIL as PyTorch-Encoding does. Equal samples are checked first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.errors import ConfigError, run_tool, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMM_NAMES = {"resnest14": "resnest14d", "resnest26": "resnest26d", "resnest50": "resnest50d"}
TIMM_NAMES |= {"resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e"}
"""Our encoders that timm has as well -> timm's names."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contestant of a benchmark.

    Attributes:
        name: What was measured.
        parameters: In millions, without an auxiliary head.
        gflops: Of one forward pass; a multiplication and an addition count as two.
        seconds: Median time of one call.
        spread: Half the distance between the quartiles, as a share of the median.
    """

    name: str
    parameters: float
    gflops: float
    seconds: float
    spread: float


def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time every call once a round, A B A B, so that a busy machine is unfair to none; after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for current in range(rounds + 1):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if current:
                times[place].append(time.perf_counter() - start)
    return times


def measure(models: dict[str, nn.Module], images: Tensor, rounds: int) -> list[Measurement]:
    """Count and time one forward pass of each model in eval mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    gflops = []
    with torch.inference_mode():
        for model in models.values():
            with FlopCounterMode(display=False) as counter:
                model(images)
            gflops.append(counter.get_total_flops() / 1e9)
        calls = [lambda model=model: model(images) for model in models.values()]
        times = interleave(calls, rounds)
    rows = []
    for name, flops, taken in zip(models, gflops, times, strict=True):
        low, median, high = statistics.quantiles(taken, n=4)
        used = (p.numel() for key, p in models[name].named_parameters() if not key.startswith("aux_head."))
        rows.append(Measurement(name, sum(used) / 1e6, flops, median, (high - low) / 2 / median))
    return rows


def contestants(encoder: str, size: tuple[int, int]) -> tuple[dict[str, nn.Module], Tensor]:
    """The models, and images for them; ours and timm's encoder have the same weights, and the same outputs.

    Raises:
        ConfigError: timm has no such encoder.
        AssertionError: The outputs differ, so that comparing times would mean nothing.
    """
    import segmentation_models_pytorch as smp
    import timm
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    from resnest_seg.resnest import build_encoder
    from resnest_seg.segmenter import build_segmenter

    if encoder not in TIMM_NAMES:
        raise unknown_name("encoder of timm", encoder, TIMM_NAMES)
    name = TIMM_NAMES[encoder]
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)).eval()
    ours = build_encoder(encoder, output_stride=8, dilation="timm").eval()
    convert_conv2d_weight_memory_format(ours, torch.channels_last)  # as a Segmenter does
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for a, b in zip(ours(images), theirs(images), strict=True):
            assert (a - b).abs().max() < 1e-3 * b.abs().max(), "our encoder and timm's do not agree"
    whole = build_segmenter(encoder, dilation="timm", num_classes=150).eval()
    peer = smp.DeepLabV3(f"tu-{name}", encoder_weights=None, classes=150, encoder_output_stride=8).eval()
    return {
        f"{encoder} encoder, ours": ours,
        f"{encoder} encoder, timm {timm.__version__} ({name})": theirs,
        f"{encoder} DeepLabV3, ours": whole,
        f"{encoder} DeepLabV3, SMP {smp.__version__} (tu-{name})": peer,
    }, images


def drawn_photos(folder: Path, count: int) -> None:
    """Write street scenes in ADE20K's layout and usual size, for a machine without the data set."""
    import cv2
    import numpy as np

    from resnest_seg.datasets import Synthetic

    scenes = Synthetic("train", size=(512, 683))
    for index in range(count):
        sample, stem = scenes[index], f"ADE_train_{index:08d}"
        for kind, ending, picture in (
            ("images", ".jpg", sample.image[..., ::-1]),
            ("annotations", ".png", np.where(sample.labels == 255, 0, sample.labels + 1)),
        ):
            path = folder / "ADEChallengeData2016" / kind / "training" / f"{stem}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)


def pil_sample(image_path: str, mask_path: str, seed: int) -> tuple[Tensor, Tensor]:
    """One sample as PyTorch-Encoding's loader makes it, with the random numbers of ours: float image, int64 labels."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import normalize, to_tensor

    base_size, crop = 520, 480
    image: Image.Image = Image.open(image_path).convert("RGB")
    mask: Image.Image = Image.open(mask_path)
    random = np.random.default_rng(seed)
    flip, long = random.random() < 0.5, int(random.integers(base_size // 2, 2 * base_size + 1))
    if flip:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    w, h = image.size
    ow, oh = (int(1.0 * w * long / h + 0.5), long) if h > w else (long, int(1.0 * h * long / w + 0.5))
    image = image.resize((ow, oh), Image.Resampling.BILINEAR)
    mask = mask.resize((ow, oh), Image.Resampling.NEAREST)
    border = (0, 0, max(crop - ow, 0), max(crop - oh, 0))
    if any(border):
        image, mask = ImageOps.expand(image, border=border, fill=0), ImageOps.expand(mask, border=border, fill=0)
    top, left = int(random.integers(image.size[1] - crop + 1)), int(random.integers(image.size[0] - crop + 1))
    image, mask = (part.crop((left, top, left + crop, top + crop)) for part in (image, mask))
    pixels = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return pixels, torch.from_numpy(np.array(mask).astype("int64") - 1)


def benchmark_data(options: argparse.Namespace) -> list[dict[str, object]]:
    """Samples a second on one core, ours and PIL's interleaved; where our time goes."""
    import tempfile

    import cv2
    import torch

    from resnest_seg.config import DataConfig
    from resnest_seg.datasets import ADE20K
    from resnest_seg.samples import decode_image, decode_mask
    from resnest_seg.transforms import TrainTransform

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        if options.root is None:
            drawn_photos(Path(temporary), options.photos)
        dataset = ADE20K(options.root or temporary, "train")
        paths = [
            (dataset.source.locate(image), dataset.source.locate(str(mask)))
            for image, mask in dataset.pairs[: options.photos]
        ]
        transform = TrainTransform.from_config(DataConfig(base_size=520, crop_size=480))
        contents = [(Path(image).read_bytes(), Path(mask).read_bytes()) for image, mask in paths]
        decoded = [(decode_image(a, ""), decode_mask(b, "")) for a, b in contents]
        seeds = range(len(paths))

        def ours(place: int) -> tuple[Tensor, Tensor]:
            sample = dataset[place]
            image, labels = transform(sample.image, sample.labels, seed=place)
            return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)

        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        for place in seeds:
            (image, labels), (pixels, theirs) = ours(place), pil_sample(paths[place][0], paths[place][1], place)
            assert ((image / 255 - mean) / std - pixels).abs().mean() < 0.02, "our samples and PIL's are not the same"
            assert bool((labels[theirs >= 0] == theirs[theirs >= 0]).float().mean() > 0.999)
        calls = {
            "ours": lambda: [ours(place) for place in seeds],
            "PIL, as PyTorch-Encoding": lambda: [
                pil_sample(paths[place][0], paths[place][1], place) for place in seeds
            ],
            "ours: decoding the photo": lambda: [decode_image(a, "") for a, _ in contents],
            "ours: decoding the mask": lambda: [decode_mask(b, "") for _, b in contents],
            "ours: resize, pad, crop, flip": lambda: [transform(a, b, seed=s) for s, (a, b) in enumerate(decoded)],
        }
        times = interleave(list(calls.values()), options.rounds)
    medians = [statistics.median(taken) / len(paths) for taken in times]
    return [
        {"name": name, "milliseconds": 1e3 * taken, "images_per_second": 1 / taken, "times_ours": taken / medians[0]}
        for name, taken in zip(calls, medians, strict=True)
    ]


def benchmark_infer(options: argparse.Namespace) -> list[dict[str, object]]:
    """Forward passes, see the module's docstring."""
    if min(options.size) < 32:
        raise ConfigError("--size must be at least 32 32.")
    models, images = contestants(options.encoder, tuple(options.size))
    rows = measure(models, images, options.rounds)
    return [
        dataclasses.asdict(row) | {"times_ours": row.seconds / rows[place - place % 2].seconds}
        for place, row in enumerate(rows)
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmark_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    infer = commands.add_parser("infer", help="forward passes of one image, output stride 8, float32, eager, CPU")
    infer.add_argument("--encoder", default="resnest50", help=f"one of {', '.join(TIMM_NAMES)} (default: resnest50)")
    infer.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="default: 512 512")
    data = commands.add_parser("data", help="training samples of the ADE20K recipe on one core, beside PIL")
    data.add_argument("--data.root", dest="root", help="folder of ADE20K (default: drawn photos of 683 x 512)")
    data.add_argument("--photos", type=int, default=32, help="photos to use (default: 32)")
    for command in (infer, data):
        command.add_argument("--rounds", type=int, default=9, help="timed calls of each, A B A B (default: 9)")
        command.add_argument("--json", help="write the figures to this file as well")
    return parser.parse_args(argv)


COMMANDS = {"infer": benchmark_infer, "data": benchmark_data}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parse(argv)
    if options.rounds < 2:
        raise ConfigError(f"--rounds must be at least 2, not {options.rounds}.")

    import torch
    from rich.console import Console
    from rich.table import Table

    rows = COMMANDS[options.command](options)
    table = Table(
        title=f"{options.command}: torch {torch.__version__}, {torch.get_num_threads()} threads, medians of "
        f"{options.rounds} interleaved rounds"
    )
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), justify="left" if heading == "name" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console().print(table)
    if options.json:
        report = {"options": vars(options), "torch": torch.__version__, "threads": torch.get_num_threads()}
        Path(options.json).write_text(json.dumps(report | {"measurements": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
