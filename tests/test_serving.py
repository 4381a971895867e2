"""The service over the loopback interface: right answers, one line for every wrong question, and nothing mixed up."""

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import small_onnx
from conftest import PROJECT
from PIL import Image

from resnest_seg import serving
from resnest_seg.errors import ConfigError
from resnest_seg.photos import decode_image
from resnest_seg.prediction import Prediction
from resnest_seg.runtime import OnnxPredictor
from resnest_seg.serving import Limits, app, server


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height=40, width=60, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


PHOTO = encoded(picture())


@contextlib.contextmanager
def running(predictor, **limits):
    """A server in a thread; yields its port."""
    own, listening = server(app(predictor, limits=Limits(**limits)), port=0)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        own.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return OnnxPredictor(small_onnx.write(tmp_path_factory.mktemp("m") / "a.onnx", weights=None), threads=1)


@pytest.fixture(scope="module")
def port(predictor):
    with running(predictor, max_bytes=100_000, max_pixels=50_000, queue=256, workers=2) as port:
        yield port


def ask(port, body=PHOTO, path="/segment", *, method="POST", kind="image/png", **headers):
    """(status, headers, body) of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = {"Content-Type": kind} if kind else {}
        connection.request(method, path, body, given | headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def error(answer, status):
    """The one line of an answer that is an error."""
    assert answer[0] == status, answer
    found = json.loads(answer[2])
    assert list(found) == ["error"]
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    return found["error"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_labels_are_those_of_the_predictor(port, predictor, kind):
    body = encoded(picture(), kind)
    status, headers, content = ask(port, body, kind=f"image/{kind.lower()}")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    expected = decode_image(body, "x").argmax(axis=2).astype(np.uint8)
    shown = Image.open(io.BytesIO(content))
    assert np.array_equal(np.array(shown), small_onnx.SPACE.decode(expected))
    assert np.array_equal(np.array(shown.convert("RGB")), small_onnx.SPACE.palette[expected])
    _, _, content = ask(port, body, "/segment?ids=train", kind="application/octet-stream; x=1")
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), expected)


def test_overlays_and_polygons(port, predictor):
    prediction = predictor(picture())
    status, headers, content = ask(port, path="/segment?output=overlay&alpha=0.25")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert np.array_equal(decode_image(content, "x"), prediction.overlay(0.25))
    status, headers, content = ask(port, path="/segment?output=polygons")
    assert (status, headers["Content-Type"]) == (200, "application/geo+json")
    assert json.loads(content) == prediction.polygons()


def test_what_the_service_says_of_itself(port):
    status, _, content = ask(port, None, "/health", method="GET")
    assert (status, json.loads(content)) == (200, {"status": "ok", "in_work": 0, "classes": 3})
    status, _, content = ask(port, None, "/classes", method="GET")
    assert json.loads(content)[1] == {"train_id": 1, "raw_id": 5, "name": "road", "color": [90, 90, 90]}


HUGE = encoded(np.zeros((1000, 1000, 3), np.uint8))
JPEG = encoded(picture(), "JPEG")


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"", "image/png", 422, "of 0 bytes, is no JPEG, PNG or WebP image"),
        (b"I am not a photo", "image/jpeg", 422, "of 16 bytes, is no JPEG, PNG or WebP"),
        (PHOTO[:-40], "image/png", 422, "cannot read the photo"),
        (PHOTO[:20], "image/png", 422, "is no JPEG, PNG or WebP image"),
        (JPEG[: len(JPEG) // 2], "image/jpeg", 422, "cannot read the photo"),
        (encoded(picture(), "WEBP")[:-30], "image/webp", 422, "cannot read the photo"),
        (encoded(picture(), "TIFF"), "application/octet-stream", 422, "no JPEG, PNG or WebP"),
        (HUGE, "image/png", 413, "1000 x 1000 pixels, 50000 are allowed"),
        (bytes(100_001), "image/png", 413, "may have 100000 bytes"),
        (bytes(190_000), "image/png", 413, "may have 100000 bytes"),
        (PHOTO, "text/plain", 415, "the body is text/plain: send a photo as image/jpeg"),
        (PHOTO, None, 415, "the body is of no type"),
        (PHOTO, "multipart/form-data; boundary=x", 415, "curl -H"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_photos(port, body, kind, status, message):
    assert message in error(ask(port, body, kind=kind), status)


@pytest.mark.parametrize(
    ("query", "message"),
    [("output=label", "output is one of labels, overlay, polygons"), ("ids=0", "ids of raw, train"),
     ("alpha=2", "alpha must be a number in 0..1, not 2"), ("alpha=x", "not x"), ("size=3", "unknown option size")],
)  # fmt: skip
def test_options_that_make_no_sense(port, query, message):
    assert message in error(ask(port, path=f"/segment?{query}"), 400)


def test_addresses_that_do_not_exist(port):
    assert "GET /segment: Method Not Allowed" in error(ask(port, None, method="GET"), 405)
    assert "POST /: Not Found" in error(ask(port, path="/"), 404)


def test_a_body_that_is_too_large_is_not_read_to_its_end(port):
    """Chunks without a length, and a length of a terabyte: the connection ends while the client still sends."""
    for head in ("Transfer-Encoding: chunked", f"Content-Length: {1 << 40}"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(f"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{head}\r\n\r\n".encode())
            chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n" if "chunked" in head else bytes(0x4000)
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 100_000_000:  # of which the system's buffers hold a few
                    client.sendall(chunk)
                    sent += len(chunk)
            assert sent < 50_000_000


def test_a_client_that_asks_before_it_sends_is_told_at_once(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
                       b"Content-Length: 9999999\r\n\r\n")  # fmt: skip
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_holds_no_place_for_long(predictor):
    with running(predictor, seconds=0.2) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nab")
        assert client.recv(100).startswith(b"HTTP/1.1 408")
        assert json.loads(ask(port, None, "/health", method="GET")[2])["in_work"] == 0


def test_two_hundred_at_once_get_each_their_own_answer(port):
    """Photos of different sizes and contents, some of them broken, in a random order of arrival."""
    photos = [picture(20 + n % 7, 30 + n % 11, seed=n) for n in range(200)]
    bodies = [encoded(pixels) if n % 10 else encoded(pixels)[:-40] for n, pixels in enumerate(photos)]
    barrier = threading.Barrier(200)

    def one(number):
        barrier.wait()
        return ask(port, bodies[number], "/segment?ids=train")

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
    for number, (pixels, answer) in enumerate(zip(photos, answers, strict=True)):
        if number % 10 == 0:
            assert "cannot read the photo" in error(answer, 422)
            continue
        assert answer[0] == 200, answer
        assert np.array_equal(np.array(Image.open(io.BytesIO(answer[2]))), pixels.argmax(axis=2)), number
    assert json.loads(ask(port, None, "/health", method="GET")[2])["in_work"] == 0


class Gate:
    """A predictor that waits until it is told to go on, and counts who is inside."""

    label_space = small_onnx.SPACE

    def __init__(self):
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.inside, self.most, self.lock = 0, 0, threading.Lock()

    def __call__(self, pixels):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.opened.wait(60)
        with self.lock:
            self.inside -= 1
        return Prediction(pixels, pixels.argmax(axis=2).astype(np.uint8), self.label_space, lambda: None)


def test_what_does_not_fit_into_the_queue_is_told_to_come_again():
    gate = Gate()
    with running(gate, workers=2, queue=3) as port, ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(ask, port) for _ in range(5)]
        for _ in range(2):
            assert gate.entered.acquire(timeout=60)
        while json.loads(ask(port, None, "/health", method="GET")[2])["in_work"] < 5:
            pass
        answer = ask(port)
        assert "too many photos wait" in error(answer, 503)
        assert answer[1]["Retry-After"] == "1"
        gate.opened.set()
        assert [done.result()[0] for done in waiting] == [200] * 5
        assert ask(port)[0] == 200
    assert gate.most == 2


def test_failures_of_ours_show_no_traceback(caplog):
    def broken(pixels):
        raise RuntimeError("secret of the house")

    broken.label_space = small_onnx.SPACE
    with running(broken) as port:
        text = error(ask(port), 500)
    assert "secret" not in text
    assert "its log says why" in text


def test_scores_that_take_too_much_memory(tmp_path):
    small = OnnxPredictor(small_onnx.write(tmp_path / "a.onnx"), memory=1000)
    with running(small) as port:
        assert "give a tile" in error(ask(port), 413)


def test_services_that_cannot_be(predictor, monkeypatch):
    for limits in ({"max_bytes": 0}, {"workers": 0}, {"queue": -1}, {"seconds": float("nan")}):
        with pytest.raises(ConfigError, match="limits of a service must be positive"):
            app(predictor, limits=Limits(**limits))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {number}: Address already in use"):
            server(app(predictor), port=number)
    for name, call in (("starlette.applications", lambda: app(predictor)), ("uvicorn", lambda: server(None, port=0))):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match="pip install starlette uvicorn"):
                call()
    assert serving.Limits().max_bytes == 16 << 20


def test_the_tool_serves_without_torch_until_it_is_interrupted(tmp_path):
    small_onnx.write(tmp_path / "a.onnx", weights=None)
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored where tests run
        "for name in ('torch', 'PIL', 'yaml', 'rich'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(PROJECT / 'tools')!r})\n"
        "import serve_seg\nfrom resnest_seg.errors import run_tool\nsys.exit(run_tool(serve_seg.main))"
    )
    command = [sys.executable, "-c", code, "--model", str(tmp_path / "a.onnx"), "--port", "0", "--tile", "16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert line.startswith("a convolution, protocol whole (blend, window changed): http://127.0.0.1:"), line
        port = int(line.rpartition(":")[2].partition("/")[0])
        status, _, content = ask(port, path="/segment?ids=train")
        assert status == 200
        assert (np.array(Image.open(io.BytesIO(content))) == picture().argmax(axis=2)).mean() > 0.99
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--port", "70000"], "--port must lie in"), (["--tile", "0"], "at least 1 pixel"),
     (["--max-bytes", "0"], "limits of a service"), (["--protocol", "hole"], "Did you mean 'whole'")],
)  # fmt: skip
def test_the_tool_refuses_what_makes_no_sense(tool, tmp_path, capsys, words, message):
    assert tool("serve_seg")("--model", small_onnx.write(tmp_path / "a.onnx"), *words) == 2
    assert message in capsys.readouterr().err
