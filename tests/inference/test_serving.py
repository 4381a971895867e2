"""The service over the loopback interface: right answers, one line for every wrong question, and nothing mixed up.

Clients that are slow, leave, or never end hold nothing for long, and nobody else out.
"""

import contextlib
import io
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from support import hostile_photos, small_onnx
from support.photo_service import PHOTO, ask, encoded, error, picture, running

from resnest_seg.errors import ConfigError
from resnest_seg.inference import http_server as serving
from resnest_seg.inference.connections import Connection
from resnest_seg.inference.http_server import Limits, app, server
from resnest_seg.inference.prediction import Prediction
from resnest_seg.inference.predictor import OnnxPredictor
from resnest_seg.io.images import decode_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return OnnxPredictor(small_onnx.write(tmp_path_factory.mktemp("m") / "a.onnx", weights=None), threads=1)


@pytest.fixture(scope="module")
def port(predictor):
    with running(predictor, max_bytes=100_000, max_pixels=50_000, queue=256, workers=2) as port:
        yield port


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
    assert "POST /nothing: Not Found" in error(ask(port, path="/nothing"), 404)


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


HEAD = b"POST /segment?ids=train HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
"""Of a request, without its end."""


@contextlib.contextmanager
def sent(port, *texts):
    """Connections over which these bytes have gone."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in texts]
        for client, text in zip(clients, texts, strict=True):
            client.sendall(text)
        yield clients


def until(condition):
    """Waits, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def in_work(port):
    return json.loads(ask(port, None, "/health", method="GET")[2])["in_work"]


def rest(client):
    """What comes until the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(1 << 20):
            found += chunk
    return found


def ended(client):
    """Whether the server ends a connection without a word."""
    return rest(client) == b""


def test_bodies_that_are_on_their_way_hold_no_place_in_the_queue(predictor):
    """Once, seventy of them shut the service for half a minute."""
    with running(predictor, queue=2) as port, sent(port, *[HEAD + b"Content-Length: 99\r\n\r\nab"] * 10):
        assert in_work(port) == 0
        assert ask(port)[0] == 200


def test_the_body_that_began_first_gives_way_when_too_many_bytes_are_on_their_way(predictor):
    """Room for 2 bodies of 1000 bytes, in which one holds 900, others 700 and 450."""
    begun = HEAD + b"Content-Length: 1000\r\n\r\n"
    with (
        running(predictor, max_bytes=1000, arriving=2) as port,
        sent(port, begun + bytes(900), begun, begun) as (first, second, third),
    ):
        second.sendall(bytes(700))
        third.sendall(bytes(450))
        answer = rest(first)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too many photos arrive" in answer
        for client, missing in ((second, 300), (third, 550)):  # these may go on: 422, as zeros are no photo
            client.sendall(bytes(missing))
            assert client.recv(100).startswith(b"HTTP/1.1 422")


def test_photos_of_clients_that_have_left_are_dropped():
    gate = Gate()
    body = HEAD + b"Content-Length: %d\r\n\r\n" % len(PHOTO) + PHOTO
    with running(gate, workers=1, queue=8) as port:
        with sent(port, *[body] * 6):
            assert gate.entered.acquire(timeout=60)
            until(lambda: in_work(port) == 6)
        until(lambda: in_work(port) == 1)  # the one that is in the model goes on
        gate.opened.set()
        assert ask(port)[0] == 200
        assert gate.entered.acquire(timeout=60)  # that of the last
        assert not gate.entered.acquire(blocking=False)


def test_heads_that_do_not_come_are_not_awaited(predictor):
    """The first of a connection, and the next; a drop now and then changes nothing."""
    with running(predictor, head_seconds=0.5) as port:
        with sent(port, b"", HEAD) as (silent, half):
            assert ended(silent)
            assert ended(half)
        with sent(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD) as (second,):
            assert second.recv(1000).startswith(b"HTTP/1.1 200")
            with contextlib.suppress(ConnectionError):
                for _ in range(3000):  # half a minute, if nobody ends it
                    second.sendall(b"A: b\r\n")
                    time.sleep(0.01)
                pytest.fail("a head that never ends was awaited")


@pytest.mark.long
def test_answers_may_be_taken_slowly_but_not_for_ever(predictor):
    """Slower than a head may come; an answer of eight megabytes is more than the system's buffers hold."""
    noise = encoded(np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8), compress_level=0)
    question = b"POST /segment?output=overlay HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + (
        b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(noise) + noise
    )

    def taken(wait, **limits):
        with running(predictor, **limits) as port, socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(question)
            answer = client.recv(1000)  # it is there
            time.sleep(wait)
            head, _, content = (answer + rest(client)).partition(b"\r\n\r\n")
            return len(content) / int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])

    assert taken(2.2, head_seconds=2) == 1
    assert taken(1.0, answer_seconds=0.2) < 1


def test_who_connects_when_all_places_are_taken_gets_that_of_the_slowest(predictor):
    texts = HEAD, HEAD + b"Content-Length: 9\r\n\r\n", HEAD, HEAD
    with running(predictor, connections=4) as port, sent(port, *texts) as (first, second, third, _):
        assert ask(port)[0] == 200
        assert ended(first)
        with sent(port, HEAD, HEAD):
            assert ended(second)
            third.sendall(b"Content-Length: 2\r\n\r\nab")
            assert third.recv(100).startswith(b"HTTP/1.1 422")


def test_who_connects_when_all_places_are_in_work_is_told_to_come_again(monkeypatch):
    gate, full, update = Gate(), threading.Event(), Connection._update

    def watched(connection):
        update(connection)
        if len(connection.connections) == 2 and not connection.places.waiting:
            full.set()

    monkeypatch.setattr(Connection, "_update", watched)
    with running(gate, workers=1, connections=2) as port, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, port) for _ in range(2)]
        assert gate.entered.acquire(timeout=60)
        assert full.wait(60)  # the other's body has come as well
        with sent(port, b"") as (client,):
            answer = rest(client)
        assert answer.startswith(b"HTTP/1.1 503")
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(content) in head
        assert "too many are connected" in json.loads(content)["error"]
        gate.opened.set()
        assert [done.result()[0] for done in waiting] == [200, 200]


def test_a_photo_that_takes_too_long_to_decode(predictor):
    with running(predictor, decode_seconds=0.3) as port:
        text = error(ask(port, hostile_photos.scans(20_000), kind="image/jpeg"), 422)
        assert "takes more than 0.3 s to decode" in text
        assert ask(port)[0] == 200  # by another process


def test_a_jpeg_that_hides_its_size(port):
    assert "300 x 400 pixels, 50000 are allowed" in error(ask(port, hostile_photos.hidden_size(300, 400)), 413)


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
    for name, (low, high) in serving.BOUNDS.items():
        for value in (low - 1, high + 1, float("nan")):
            with pytest.raises(ConfigError, match=f"{name} of a service must lie in .*, not .*"):
                app(predictor, limits=Limits(**{name: value}))
        with pytest.raises(ConfigError, match=f"{name} of a service"):
            server(app(predictor), limits=Limits(**{name: high + 1}), port=0)
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


@contextlib.contextmanager
def tool_running(tmp_path, *words, files=200):
    """The tool in a process of its own, which may open so many files, and import but what it needs: (process, port)."""
    small_onnx.write(tmp_path / "a.onnx", weights=None)
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored where tests run
        "for name in ('torch', 'PIL', 'yaml', 'rich'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(PROJECT / 'tools')!r})\n"
        "import serve_seg\nfrom resnest_seg.errors import run_tool\nsys.exit(run_tool(serve_seg.main))"
    )
    command = [sys.executable, "-c", code, "--checkpoint", str(tmp_path / "a.onnx"), "--port", "0", *words]
    command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert line.startswith("a convolution, exported in float32, by onnxruntime"), line
        assert ", protocol whole" in line
        yield process, int(line.rpartition(":")[2].partition("/")[0])
    finally:
        process.kill()
        process.communicate()


def test_the_tool_serves_without_torch_until_it_is_interrupted(tmp_path):
    with tool_running(tmp_path, "--tile", "16") as (process, port):
        status, _, content = ask(port, path="/segment?ids=train")
        assert status == 200
        assert (np.array(Image.open(io.BytesIO(content))) == picture().argmax(axis=2)).mean() > 0.99
        process.send_signal(signal.SIGINT)
        log = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert "Traceback" not in log


def test_the_tool_serves_at_an_ipv6_address(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    small_onnx.write(tmp_path / "a.onnx", weights=None)
    words = ("--checkpoint", str(tmp_path / "a.onnx"), "--host", "::1", "--port", "0")
    command = [sys.executable, "-m", "resnest_seg", "serve", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
    try:
        address = process.stderr.readline().split()[-1]  # http://[::1]:1234/segment
        assert address.startswith("http://[::1]:"), address
        with urllib.request.urlopen(address.replace("segment", "health"), timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_sigterm_ends_the_tool_within_seconds_whatever_its_clients_do(tmp_path):
    """A body that does not come is awaited for 5 s and no more; its client is told."""
    with tool_running(tmp_path) as (process, port), sent(port, HEAD, HEAD + b"Content-Length: 9\r\n\r\nab") as clients:
        assert in_work(port) == 0
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=25)[1]
        assert process.returncode == 143
        assert "Traceback" not in log
        assert ended(clients[0])
        answer = rest(clients[1])
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"being stopped" in answer


def test_half_sent_heads_with_few_file_descriptors_left(tmp_path):
    """Once, the loop that accepts connections span, and wrote half a million lines into the log within seconds."""
    with tool_running(tmp_path, files=100) as (process, port), sent(port, *[HEAD] * 150) as clients:
        assert ask(port)[0] == 200
        assert all(ended(client) for client in clients[:80])
        process.terminate()
        assert process.communicate(timeout=60)[1] == ""
    small = sys.executable, PROJECT / "tools" / "serve_seg.py", "--checkpoint", tmp_path / "a.onnx", "--port", "0"
    command = ["sh", "-c", 'ulimit -n 40 && exec "$@"', "sh", *map(str, small), "--parallel", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "may open 40 files (ulimit -n), and serving with 2 workers needs" in done.stderr


def test_without_any_file_descriptor_it_is_tried_again_in_a_second(tmp_path):
    """asyncio writes one line then, as long as it accepts one connection at a time."""
    with tool_running(tmp_path) as (process, port):
        assert ask(port)[0] == 200
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        with sent(port, *[HEAD] * 20):
            time.sleep(2.5)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        assert ask(port)[0] == 200
        process.terminate()
        log = process.communicate(timeout=60)[1]
        assert 1 <= log.count("out of system resource") <= 4


@pytest.mark.long
def test_a_photo_in_the_model_does_not_keep_the_tool_alive(tmp_path):
    """The model is one that never ends, and its thread cannot be stopped."""
    (tmp_path / "stuck.py").write_text(
        "import sys, threading\n"
        "from resnest_seg.cli import serve\n"
        "from resnest_seg.errors import run_tool\n"
        "from resnest_seg.inference.predictor import OnnxPredictor\n"
        "OnnxPredictor.__call__ = lambda self, image: threading.Event().wait()\n"
        "sys.exit(run_tool(serve.main))"
    )
    small_onnx.write(tmp_path / "a.onnx", weights=None)
    command = [sys.executable, str(tmp_path / "stuck.py"), "--checkpoint", str(tmp_path / "a.onnx"), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stderr.readline().rpartition(":")[2].partition("/")[0])
        with sent(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(PHOTO) + PHOTO):
            until(lambda: in_work(port) == 1)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=25)
        assert process.returncode == 143
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--port", "70000"], "--port must lie in 0..65535, not 70000"), (["--port", "-1"], "--port must lie"),
     (["--tile", "0"], "--tile must lie in 1.."), (["--overlap", "-1"], "--overlap must lie in 0.."),
     (["--overlap", "9"], "give a window size"), (["--tile", "9", "--overlap", "9"], "an overlap must lie in 0..8"),
     (["--memory", "0"], "--memory must be from 0.0009765625 to 1024, not 0"), (["--memory", "-1"], "--memory must be"),
     (["--memory", "4096"], "--memory must be from"), (["--memory", "much"], "--memory must be a number"),
     (["--threads", "0"], "--threads must lie in 1..1024, not 0"),
     (["--threads", "100000"], "--threads must lie"), (["--parallel", "0"], "--parallel must lie in 1..256, not 0"),
     (["--parallel", "100000"], "--parallel must lie"), (["--queue", "-1"], "--queue must lie in 0..10000, not -1"),
     (["--queue", "10001"], "--queue must lie"), (["--max-bytes", "0"], "--max-bytes must lie in 1..1073741824, not 0"),
     (["--max-bytes", "9999999999"], "--max-bytes must lie"), (["--max-pixels", "0"], "--max-pixels must lie in 1.."),
     (["--max-pixels", "268435457"], "--max-pixels must lie"), (["--protocol", "hole"], "Did you mean 'whole'")],
)  # fmt: skip
def test_the_tool_refuses_what_makes_no_sense(tool, tmp_path, capsys, words, message):
    handler = signal.getsignal(signal.SIGTERM)
    assert tool("serve_seg")("--checkpoint", small_onnx.write(tmp_path / "a.onnx"), *words) == 2
    assert message in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler
