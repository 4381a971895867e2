"""The authors' multi-scale protocol beside their loop: window by window, a flip as a second call, NCHW, not folded."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.measuring import interleave, spread
from resnest_seg.cli.benchmark.options import add_network, check_network

if TYPE_CHECKING:
    from torch import Tensor, nn

CROP, BASE = 480, 520
PEERS = ("plain", "unfused")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_network(parser, size=(512, 683), precisions=("fp32", "bf16", "fp16"), peers=PEERS)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="default: 0.5 to 1.75 by 0.25")


def plain_evaluator(
    logits_fn: Callable[[Tensor], Tensor], image: Tensor, black: Tensor, scales: tuple[float, ...]
) -> Tensor:
    """PyTorch-Encoding's MultiEvalModule written plainly: a normalised image [1, 3, H, W] -> scores [1, K, H, W]."""
    import torch
    import torch.nn.functional as F

    def resize(x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)

    def pad(x: Tensor) -> Tensor:
        height, width = max(x.shape[2], CROP), max(x.shape[3], CROP)
        padded = black.expand(-1, -1, height, width).clone()
        padded[:, :, : x.shape[2], : x.shape[3]] = x
        return padded

    def with_flip(x: Tensor) -> Tensor:
        return (logits_fn(x) + logits_fn(x.flip(3)).flip(3)).exp()

    height, width = image.shape[2:]
    step = int(CROP * 2 / 3)
    total = torch.zeros(1, 1, device=image.device)
    for scale in scales:
        long = math.ceil(BASE * scale)
        h, w = (long, int(width * long / height + 0.5)) if height > width else (int(height * long / width + 0.5), long)
        resized = pad(resize(image, h, w))
        tall, wide = resized.shape[2:]
        if long <= CROP:
            scores = with_flip(resized)
        else:
            sums: Tensor | None = None
            count = torch.zeros(tall, wide, device=image.device)
            for top in range(0, max(tall - CROP + step, 1), step):
                for left in range(0, max(wide - CROP + step, 1), step):
                    window = resized[:, :, top : top + CROP, left : left + CROP]
                    rows, columns = window.shape[2:]
                    part = with_flip(pad(window))[:, :, :rows, :columns]
                    if sums is None:
                        sums = part.new_zeros(1, part.shape[1], tall, wide)
                    sums[:, :, top : top + rows, left : left + columns] += part
                    count[top : top + rows, left : left + columns] += 1
            assert sums is not None
            scores = sums / count
        total = total + resize(scores[:, :, :h, :w], height, width)
    return total


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """Ours and the authors' loop on the same weights, after their labels have been compared."""
    import copy

    import torch

    from resnest_seg.cli.benchmark.plain import PlainSegmenter
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.inference.protocols import protocol, with_options
    from resnest_seg.inference.torch_backend import TorchBackend
    from resnest_seg.inference.torch_engine import labels
    from resnest_seg.models.loading import build_segmenter

    check_network(options)
    torch.manual_seed(0)
    model = build_segmenter(options.encoder, head=options.head).eval()
    settle(model)
    fast = TorchBackend(copy.deepcopy(model), RunOptions(options.device, options.precision, options.compile)).run
    unfused = TorchBackend(model, RunOptions(options.device, fuse=False)).run
    plain = PlainSegmenter(model).eval()
    method = with_options(protocol("encoding"), scales=options.scales)
    image = photo(*options.size).to(unfused.device)
    normal = ((image[None].float() - model.pixel_mean) / model.pixel_std).contiguous()
    black = -model.pixel_mean / model.pixel_std

    def finish(found: Tensor) -> Tensor:
        return found.cpu()  # which waits for a GPU

    with torch.inference_mode():
        calls: dict[str, Callable[[], Tensor]] = {
            f"ours, fused, {options.precision}{', compiled' if options.compile else ''}": lambda: finish(
                labels(fast, image, method)
            ),
        }
        if "unfused" in options.peers:
            calls["ours, not fused"] = lambda: finish(labels(unfused, image, method))

        def authors() -> Tensor:
            scores = plain_evaluator(lambda x: plain.logits(x)[0], normal, black, options.scales)
            return finish(scores.argmax(dim=1)[0].to(torch.uint8))

        if "plain" in options.peers:
            calls["the authors' loop, plain"] = authors
        expected = authors()
        agreements = [float((call() == expected).double().mean()) for call in calls.values()]
        for name, agreement in zip(calls, agreements, strict=True):
            bound = 0.999 if options.precision == "fp32" else 0.98
            assert agreement > bound, f"{name}: only {agreement:.4%} of the labels agree"
        times = interleave(list(calls.values()), options.rounds)
    medians = [statistics.median(taken) for taken in times]
    return [
        {
            "name": name,
            "seconds": median,
            "spread": spread(taken),
            "times_ours": median / medians[0],
            "same_labels": same,
        }
        for name, median, taken, same in zip(calls, medians, times, agreements, strict=True)
    ]


def settle(model: nn.Module) -> None:
    """Give a fresh model norms as those of a used one: branches that add little each, statistics that matter."""
    import torch

    random = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            size = module.weight.shape
            scale = 0.2 if name.endswith("bn3") else 1.0
            module.weight.data = scale * (0.8 + 0.4 * torch.rand(size, generator=random)).to(module.weight.device)
            for values in (module.bias.data, module.running_mean):
                assert values is not None
                values.copy_(0.1 * torch.randn(size, generator=random))
            assert module.running_var is not None
            module.running_var.copy_(0.8 + 0.4 * torch.rand(size, generator=random))


def photo(height: int, width: int, *, seed: int = 0) -> Tensor:
    """A street scene, uint8 [3, H, W]."""
    import torch

    from resnest_seg.data.synthetic import Synthetic

    pixels = Synthetic("train", size=(height, width))[seed].image
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
