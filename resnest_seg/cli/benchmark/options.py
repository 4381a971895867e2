"""The options that all benchmarks of networks share, and what they may be."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from resnest_seg.errors import ConfigError, unknown_name

HEADS = ("fcn", "deeplabv3")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "bf16")


def add_network(
    parser: argparse.ArgumentParser,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    encoder: str = "resnest50",
    head: str = "deeplabv3",
    precisions: Sequence[str] = PRECISIONS,
    peers: Sequence[str] = (),
) -> None:
    """Add the options that a benchmark has a default for, --encoder, --head, --device and --compile always."""
    parser.add_argument("--encoder", default=encoder, help=f"default: {encoder}")
    parser.add_argument("--head", default=head, help=f"{' or '.join(HEADS)} (default: {head})")
    if size is not None:
        shown = f"of an image in pixels (default: {size[0]} {size[1]})"
        parser.add_argument("--size", type=int, nargs=2, default=size, metavar=("H", "W"), help=shown)
    if batch is not None:
        parser.add_argument("--batch", type=int, default=batch, help=f"images together (default: {batch})")
    parser.add_argument("--device", default="cpu", help=f"{' or '.join(DEVICES)} (default: cpu)")
    if precisions:
        shown = f"{' or '.join(precisions)} (default: {precisions[0]})"
        parser.add_argument("--precision", default=precisions[0], help=shown)
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile, in `train` the peers as well")
    if peers:
        shown = f"beside ours: of {', '.join(peers)} (default: all)"
        parser.add_argument("--peers", nargs="*", default=list(peers), help=shown)
    parser.set_defaults(known_peers=tuple(peers), known_precisions=tuple(precisions))


def require(packages: Sequence[str], *, instead: str) -> None:
    """Refuse a benchmark whose peers are not installed.

    Args:
        packages: Their import names.
        instead: What the person can do: an installation, or an option that leaves the peer out.

    Raises:
        ConfigError: Names the first that is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"this benchmark needs {package.replace('_', '-')}, which is not installed: {instead}.")


def check_network(options: argparse.Namespace, *, smallest: int = 32, batch: int = 1) -> None:
    """Refuse what cannot be measured: names that there are not, a GPU that is not here, images that are too small.

    Raises:
        ConfigError: Says which.
    """
    import torch

    named = [("--head", options.head, HEADS), ("--device", options.device, DEVICES)]
    if options.known_precisions:
        named.append(("--precision", options.precision, options.known_precisions))
    named += [("--peers", peer, options.known_peers) for peer in getattr(options, "peers", ())]
    for what, value, known in named:
        if value not in known:
            raise unknown_name(what, value, known)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use.")
    if min(getattr(options, "size", [smallest])) < smallest:
        raise ConfigError(f"--size must be at least {smallest} {smallest}, not {options.size[0]} {options.size[1]}.")
    if getattr(options, "batch", batch) < batch:
        raise ConfigError(f"--batch must be at least {batch}, not {options.batch}.")
