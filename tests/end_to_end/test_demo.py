"""`resnest-seg demo` as a process: it opens the page in a browser, and leaves nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser

import psutil
import pytest
from conftest import PROJECT
from support import small_onnx
from support.photo_service import ask
from support.processes import still_running

from resnest_seg.cli import demo, serve
from resnest_seg.cli.main import main
from resnest_seg.errors import ConfigError, ResNeStSegError


@contextlib.contextmanager
def running(tmp_path, *words):
    """The command in a process of its own, whose browser writes the address into a file: (process, its two lines)."""
    model = small_onnx.write(tmp_path / "straße [1].onnx", weights=None)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/opened"\n')
    browser.chmod(0o755)
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored here
        "sys.modules['torch'] = None\n"  # an exported file needs none
        "from resnest_seg.cli.main import run\nsys.exit(run())"
    )
    command = [sys.executable, "-c", code, "demo", "--checkpoint", str(model), *words]
    environment = os.environ | {"BROWSER": f"{browser} %s", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, [process.stderr.readline(), process.stderr.readline()]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_page_opens_and_ctrl_c_leaves_nothing(tmp_path):
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # taken by others, which is as good
            held.enter_context(socket.create_server(("127.0.0.1", demo.PORT)))
        process, (model, line) = held.enter_context(running(tmp_path))
        assert model.startswith("a convolution, exported in float32, by onnxruntime")
        assert line.endswith("  is the page. Ctrl-C stops it.\n")
        address = line.split()[0]
        port = int(address.removeprefix("http://127.0.0.1:").removesuffix("/"))
        assert port != demo.PORT
        until = time.monotonic() + 60
        while not (tmp_path / "opened").exists() or not (tmp_path / "opened").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert (tmp_path / "opened").read_text().strip() == address
        assert b"Segment a photo" in ask(port, None, "/", method="GET", kind=None, Accept="text/html")[2]
        assert ask(port)[0] == 200  # with a process that decodes
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 130
        assert still_running(children) == []


@pytest.mark.slow
def test_a_port_that_was_asked_for_and_no_browser(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(tmp_path, "--no-browser", "--port", str(port)) as (process, lines):
            assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in lines[0]
            assert process.wait(timeout=60) == 2
    with running(tmp_path, "--no-browser", "--port", "0") as (process, lines):
        assert lines[1].startswith("http://127.0.0.1:")
        process.terminate()
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 143
    assert not (tmp_path / "opened").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_shows_no_traceback(tmp_path):
    with running(tmp_path, "--no-browser", "--port", "0") as (process, lines):
        port = int(lines[1].split()[0].rpartition(":")[2].removesuffix("/"))
        assert ask(port)[0] == 200
        children = psutil.Process(process.pid).children(recursive=True)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)  # within the tenth of a second that the server takes to stop
        # The second one may also come when the server has just ended, and before it is ignored.
        assert process.communicate(timeout=60)[1] in ("", "interrupted\n")
        assert process.returncode == 130
        assert still_running(children) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "--checkpoint is missing: a run folder, a checkpoint, or an exported file"),
     (["--model", "x.onnx", "--port", "70000"], "--port must lie in 0..65535, not 70000"),
     (["--model", "x.onnx"], "x.onnx"), (["--checkpoints", "x"], "Did you mean '--checkpoint'")],
)  # fmt: skip
def test_mistakes(words, message):
    with pytest.raises(ResNeStSegError, match=message):
        main(["demo", *words])


@pytest.mark.parametrize(
    ("kind", "variable", "expected"),
    [(webbrowser.GenericBrowser, None, False), (webbrowser.GenericBrowser, "lynx", True),
     (webbrowser.BackgroundBrowser, None, True)],
)  # fmt: skip
def test_a_browser_for_terminals_is_not_opened_unless_it_is_wanted(monkeypatch, kind, variable, expected):
    opened = []
    monkeypatch.setattr(kind, "open", lambda self, address: opened.append(address))
    monkeypatch.setattr(webbrowser, "get", lambda: kind("lynx"))
    monkeypatch.delenv("BROWSER", raising=False)
    if variable:
        monkeypatch.setenv("BROWSER", variable)
    demo.open_browser("http://127.0.0.1:1/")
    assert opened == (["http://127.0.0.1:1/"] if expected else [])


def test_no_browser_at_all(monkeypatch):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    demo.open_browser("http://127.0.0.1:1/")


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_a_missing_extra_is_said_before_a_checkpoint_is_exported(missing, monkeypatch):
    exports = []
    monkeypatch.setattr(serve, "exported", exports.append)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'resnest-seg\[export,serve\]'"):
        demo.main(["--checkpoint", "runs/any", "--no-browser"])
    assert not exports
