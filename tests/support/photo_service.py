"""The HTTP service in a thread, photos for it, and what it answers."""

import contextlib
import http.client
import io
import json
import threading

import cv2
import numpy as np
from PIL import Image

from resnest_seg.inference.http_server import Limits, app, server


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height=40, width=60, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


PHOTO = encoded(picture())


@contextlib.contextmanager
def running(predictor, *, port=0, **limits):
    """A server in a thread; yields its port."""
    given = Limits(**limits)
    own, listening = server(app(predictor, limits=given), limits=given, port=port)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        own.should_exit = True
        thread.join()
        listening.close()


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
