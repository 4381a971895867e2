"""Try a model on a page in the browser: choose, drop, paste or film a photo. pip install 'resnest-seg[export,serve]'.

python tools/demo_seg.py --checkpoint runs/my_run
python tools/demo_seg.py --checkpoint deeplab_resnest50_ade
python tools/demo_seg.py --checkpoint model.onnx --port 9000 --no-browser

It is the server of `serve` with its defaults, for this machine alone, and its page. A checkpoint is exported first, to
best.serve.onnx beside best.safetensors, once. Ctrl-C stops it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence

from resnest_seg.cli import serve
from resnest_seg.cli.parsing.options import Parser, add_checkpoint

PORT = 8000
"""The port that is tried without --port; a free one is taken if it is in use."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve on this machine and open the page, until Ctrl-C or SIGTERM; returns the exit code."""
    parser = Parser("demo", description=__doc__)
    add_checkpoint(parser, exported=True, required=False, several=True)
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help="the network of a checkpoint with parts of your "
                        "own, for its export; without --checkpoint, another name of that")  # fmt: skip
    parser.add_argument("--port", type=int, help=f"0 chooses a free port (default: {PORT}, or a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    options = parser.read(argv)
    port = PORT if options.port is None else options.port
    model = [f"--checkpoint={checkpoint}" for checkpoint in options.checkpoint or ()]
    model += [] if options.model is None else [f"--model={options.model}"]
    served = serve.parse([f"--port={port}", *model])

    def ready(description: str, address: str) -> None:
        print(f"{description}\n{address}  is the page. Ctrl-C stops it.", file=sys.stderr, flush=True)
        if not options.no_browser:
            threading.Thread(target=open_browser, args=[address], daemon=True).start()

    return serve.serve(served, ports=[port] if options.port is not None else [port, 0], ready=ready)


def open_browser(address: str) -> None:
    """Open an address in the user's browser, unless there is none, or but one for terminals, such as lynx."""
    with contextlib.suppress(webbrowser.Error, OSError):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser or "BROWSER" in os.environ:
            browser.open(address)
