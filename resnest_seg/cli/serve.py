"""Serve an exported model by HTTP: photos in, labels out. Needs no torch; pip install 'resnest-seg[serve]'.

python tools/serve_seg.py --model model.onnx
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg http://127.0.0.1:8000/segment > labels.png
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg "http://127.0.0.1:8000/segment?output=overlay" > overlay.png

Also ?output=polygons (GeoJSON), ?ids=train, ?alpha=0.5; and GET /classes, GET /health. There is no authentication and
no encryption: use a proxy if others can reach the server.

Besides the limits below, a request's header must arrive within 10 s, its body within 30 s, and the response must be
read within 60 s; decoding a photo may take 10 s of processor time; uploads may hold 16 times --max-bytes together, and
1000 clients may be connected, or as many as `ulimit -n` permits: beyond that, the slowest request is ended.
Photos of disconnected clients are dropped.

Exit codes: 2 for invalid input, 143 after SIGTERM, 130 after Ctrl-C; pending requests have 5 s to finish.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from resnest_seg.errors import EXIT_TERMINATED, ConfigError

BOUNDS = {
    "port": (0, 65_535),
    "tile": (1, 1 << 20),
    "overlap": (0, 1 << 20),
    "threads": (1, 1024),
    "memory": (1, 1 << 20),
}
"""Ranges of options; those of the limits are `resnest_seg.inference.server.BOUNDS`."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="serve_seg.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", required=True, help="an exported file: .onnx, .xml or .pt2")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 listens to all networks (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 chooses a free port (default: 8000)")
    how = parser.add_argument_group("inference protocol and execution")
    how.add_argument("--protocol", default="whole", help="as of predict_seg.py (default: whole)")
    how.add_argument("--tile", type=int, help="largest edge of tiles in pixels, 1..1048576")
    how.add_argument("--overlap", type=int, help="overlap of tiles in pixels (default: an eighth of the tile)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    how.add_argument("--threads", type=int, help="threads of the runtime, for one photo, 1..1024 (default: all cores)")
    how.add_argument(
        "--memory", type=int, default=4096, help="memory limit of a photo's scores in MiB, 1..1048576 (default: 4096)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-bytes", type=int, default=16 << 20, help="size of a photo's file, up to 1 GiB (default: 16 MiB)"
    )
    limits.add_argument(
        "--max-pixels", type=int, default=24_000_000, help="pixels of a photo, up to 2^28 (default: 24 million)"
    )
    limits.add_argument("--workers", type=int, default=1, help="photos processed at a time, 1..256 (default: 1)")
    limits.add_argument("--queue", type=int, default=64, help="photos that may wait, 0..10000 (default: 64)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code."""
    options = parse(argv)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _serve(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM while the model is loaded."""
    raise SystemExit(EXIT_TERMINATED)


def _serve(options: argparse.Namespace) -> int:
    from resnest_seg.inference import server as serving
    from resnest_seg.inference.predictor import OnnxPredictor

    for name in ("port", "tile", "overlap", "threads", "memory", "max_bytes", "max_pixels", "workers", "queue"):
        low, high = BOUNDS.get(name) or serving.BOUNDS[name]
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} must lie in {low:.0f}..{high:.0f}, not {value}.")
    limits = serving.Limits(options.max_bytes, options.max_pixels, options.workers, options.queue)
    predictor = OnnxPredictor(
        options.model,
        device=options.device,
        protocol=options.protocol,
        tile=options.tile,
        overlap=options.overlap,
        memory=options.memory << 20,
        threads=options.threads,
    )
    predictor.check_photos()
    application = serving.app(predictor, limits=limits)
    http_server, listening = serving.server(application, limits=limits, host=options.host, port=options.port)
    host, port = listening.getsockname()[:2]
    print(f"{predictor.backend.description}, protocol {predictor.protocol.name}: http://{host}:{port}/segment",
          file=sys.stderr, flush=True)  # fmt: skip
    code = serving.run(http_server, listening)
    if application.state.busy():  # a photo is in the model, which cannot be stopped, and Python would wait for it
        os._exit(code)
    return code
