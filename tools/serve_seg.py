"""Serve an exported model by HTTP: photos in, labels out. Needs no torch; pip install 'resnest-seg[serve]'.

python tools/serve_seg.py --model model.onnx
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg http://127.0.0.1:8000/segment > labels.png
curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg "http://127.0.0.1:8000/segment?output=overlay" > overlay.png

Also ?output=polygons (GeoJSON), ?ids=train, ?alpha=0.5; and GET /classes, GET /health. There is no password and no
encryption: put a proxy before it where others than yourself can reach it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from resnest_seg.errors import ConfigError, run_tool


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="serve_seg.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", required=True, help="an exported file: .onnx, .xml or .pt2")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 listens to all networks (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    how = parser.add_argument_group("how the model is shown a photo, and what it runs on")
    how.add_argument("--protocol", default="whole", help="as of predict_seg.py (default: whole)")
    how.add_argument("--tile", type=int, help="largest edge of tiles in pixels")
    how.add_argument("--overlap", type=int, help="pixels that tiles share (default: an eighth of the tile)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    how.add_argument("--threads", type=int, help="of the runtime, for one photo (default: all cores)")
    how.add_argument("--memory", type=int, default=4096, help="MiB that scores of a photo may take (default: 4096)")
    limits = parser.add_argument_group("what is taken")
    limits.add_argument("--max-bytes", type=int, default=16 << 20, help="of a photo's file (default: 16 MiB)")
    limits.add_argument("--max-pixels", type=int, default=24_000_000, help="of a photo (default: 24 million)")
    limits.add_argument("--workers", type=int, default=1, help="photos in work at a time (default: 1)")
    limits.add_argument("--queue", type=int, default=64, help="photos that may wait (default: 64)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    options = parse(argv)
    if not 0 <= options.port < 1 << 16:
        raise ConfigError(f"--port must lie in 0..65535, not {options.port}.")

    from resnest_seg.runtime import OnnxPredictor
    from resnest_seg.serving import Limits, app, server

    limits = Limits(options.max_bytes, options.max_pixels, options.workers, options.queue)
    predictor = OnnxPredictor(
        options.model,
        device=options.device,
        protocol=options.protocol,
        tile=options.tile,
        overlap=options.overlap,
        memory=options.memory << 20,
        threads=options.threads,
    )
    running, listening = server(app(predictor, limits=limits), host=options.host, port=options.port)
    host, port = listening.getsockname()[:2]
    print(f"{predictor.model.info.description}, protocol {predictor.protocol.name}: http://{host}:{port}/segment",
          file=sys.stderr, flush=True)  # fmt: skip
    running.run(sockets=[listening])
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
