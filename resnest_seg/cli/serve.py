"""Serve a model by HTTP: photos in, labels out. pip install 'resnest-seg[serve]'; an exported file needs no torch.

python tools/serve_seg.py --checkpoint model.onnx
python tools/serve_seg.py --checkpoint runs/my_run
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg http://127.0.0.1:8000/segment > labels.png
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg "http://127.0.0.1:8000/segment?output=overlay" > overlay.png

Also ?output=polygons (GeoJSON), ?ids=train, ?alpha=0.5; and GET /classes, GET /model, GET /health. Browsers find a page
at /, on which a person labels photos (the verb demo opens it). A model of many bands takes TIFF files, too
(Content-Type: image/tiff). There is no authentication and no encryption: use a proxy if others can reach the server.

Besides the limits below, a request's header must arrive within 10 s, its body within 30 s, and the response must be
read within 60 s; decoding a photo may take 10 s of processor time; uploads may hold 16 times --max-bytes together, and
1000 clients may be connected, or as many as `ulimit -n` permits: beyond that, the slowest request is ended.
Photos of disconnected clients are dropped.

A checkpoint is exported first (pip install 'resnest-seg[export]'), to best.serve.onnx beside best.safetensors, and so
for every file name. That file is used again as long as the checkpoint has not changed.

Exit codes: 2 for invalid input, 143 after SIGTERM, 130 after Ctrl-C; pending requests have 5 s to finish.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from resnest_seg.cli.parsing.options import (
    Parser,
    add_checkpoint,
    add_memory,
    add_protocol,
    memory_bytes,
    protocol_names,
)
from resnest_seg.errors import EXIT_TERMINATED, ConfigError, load_extra
from resnest_seg.inference.ensemble import checkpoints_of
from resnest_seg.inference.exported import is_exported

BOUNDS = {
    "port": (0, 65_535),
    "tile": (1, 1 << 20),
    "overlap": (0, 1 << 20),
    "threads": (1, 1024),
}
"""Ranges of options; those of the limits are `resnest_seg.inference.http_server.BOUNDS`."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("serve", description=__doc__)
    add_checkpoint(parser, exported=True, required=False, several=True)
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help="the network of a checkpoint with parts of your "
                        "own, for its export: see export")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 listens to all networks (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 chooses a free port (default: 8000)")
    how = parser.add_argument_group("inference protocol and execution")
    add_protocol(how)
    how.add_argument("--tile", type=int, help="largest edge of tiles in pixels, 1..1048576")
    how.add_argument("--overlap", type=int, help="overlap of tiles in pixels (default: an eighth of the tile)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    how.add_argument("--threads", type=int, help="threads of the runtime, for one photo, 1..1024 (default: all cores)")
    add_memory(how, what="memory limit of a photo's scores", default="4")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-bytes", type=int, default=16 << 20, help="size of a photo's file, up to 1 GiB (default: 16 MiB)"
    )
    limits.add_argument(
        "--max-pixels", type=int, default=24_000_000, help="pixels of a photo, up to 2^28 (default: 24 million)"
    )
    limits.add_argument("--parallel", type=int, default=1, help="photos processed at a time, 1..256 (default: 1)")
    limits.add_argument("--workers", dest="parallel", type=int, help=argparse.SUPPRESS)  # its former name
    limits.add_argument("--queue", type=int, default=64, help="photos that may wait, 0..10000 (default: 64)")
    options = parser.read(argv)
    if options.checkpoint is None:  # --model is its former name
        options.checkpoint, options.model = options.model and [options.model], None
    if options.checkpoint is None:
        raise ConfigError(
            "--checkpoint is missing: a run folder, a checkpoint, or an exported file such as model.onnx."
        )
    (options.protocol,) = protocol_names(options.protocol)
    options.memory = memory_bytes(options.memory or "4", low=1 / 1024, high=1024)
    return options


def exported(checkpoint: str, network: str | None = None) -> str:
    """Return the exported file of a checkpoint, which another process makes if need be: this one loads no torch.

    Args:
        checkpoint: A run folder, a checkpoint file, or the name of a published one.
        network: FILE.py:FUNCTION that builds its network, if that is one's own.

    Raises:
        SystemExit: It cannot be made; that process has said why.
    """
    code = (
        "import sys; from resnest_seg.cli.export import for_serving; from resnest_seg.errors import run_tool; "
        "raise SystemExit(run_tool(lambda: for_serving(*sys.argv[1:])))"
    )
    words = [checkpoint, *([] if network is None else [network])]
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout.splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code."""
    options = parse(argv)

    def ready(description: str, address: str) -> None:
        print(f"{description}: {address}segment", file=sys.stderr, flush=True)

    return serve(options, ports=[options.port], ready=ready)


def serve(options: argparse.Namespace, *, ports: Sequence[int], ready: Callable[[str, str], None]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        options: What `parse` returns.
        ports: The first of these that is free is taken.
        ready: Called when the server listens, with the model in words and the address of the page.

    Raises:
        ConfigError: An option is out of range, or no port is free.
        CheckpointError: The model cannot be loaded, or is not for photos.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _serve(options, ports, ready)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM while the model is loaded."""
    raise SystemExit(EXIT_TERMINATED)


def _serve(options: argparse.Namespace, ports: Sequence[int], ready: Callable[[str, str], None]) -> int:
    from resnest_seg.inference import http_server as serving
    from resnest_seg.inference.predictor import OnnxPredictor

    for name in ("port", "tile", "overlap", "threads", "max_bytes", "max_pixels", "parallel", "queue"):
        low, high = BOUNDS.get(name) or serving.BOUNDS["workers" if name == "parallel" else name]
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} must lie in {low:.0f}..{high:.0f}, not {value}.")
    checkpoints = checkpoints_of(options.checkpoint)
    files = [checkpoint for checkpoint in checkpoints if is_exported(checkpoint)]
    if len(files) < len(checkpoints):
        for module in ("starlette.applications", "uvicorn"):  # which is known before an export, that takes a while
            load_extra(module, "export,serve")
    limits = serving.Limits(options.max_bytes, options.max_pixels, options.parallel, options.queue)
    if options.model is not None and files:
        raise ConfigError(f"{files[0]} is an exported file, which holds its network: leave out --model.")
    predictor = OnnxPredictor(
        [each if is_exported(each) else exported(each, options.model) for each in checkpoints],
        device=options.device,
        protocol=options.protocol,
        tile=options.tile,
        overlap=options.overlap,
        memory=options.memory,
        threads=options.threads,
    )
    predictor.check_photos()
    application = serving.app(predictor, limits=limits)
    *others, last = ports
    for port in others:
        with contextlib.suppress(ConfigError):
            http_server, listening = serving.server(application, limits=limits, host=options.host, port=port)
            break
    else:
        http_server, listening = serving.server(application, limits=limits, host=options.host, port=last)
    host, port = listening.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    ready(f"{predictor.backend.description}, protocol {predictor.protocol.name}", f"http://{place}:{port}/")
    code = serving.run(http_server, listening)
    if application.state.busy():  # a photo is in the model, which cannot be stopped, and Python would wait for it
        os._exit(code)
    return code
