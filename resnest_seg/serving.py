"""An HTTP service around a predictor: photos in, labels out. Starlette and uvicorn do it, the extra `serve`.

    POST /segment?output=labels|overlay|polygons    the body is a JPEG, PNG or WebP file, and its type the Content-Type
    GET /classes                                    what the values in label PNGs are
    GET /health                                     that it is there, and how many photos are in work

What a client does wrong is answered by {"error": "one line"}: 400 an unknown option, 408 a body that does not come, 413
too many bytes or pixels, 415 a type that is no photo's, 422 no image or a damaged one. 503 says that too many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.photos import decode_image, size_in_header
from resnest_seg.prediction import Prediction
from resnest_seg.visualize import labels_png, png_bytes

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
"""Content types of bodies; the bytes themselves say which of the three kinds of photo it is."""

OUTPUTS = {"labels": "image/png", "overlay": "image/png", "polygons": "application/geo+json"}
"""What can be asked for -> its content type."""

IDS = ("raw", "train")


class Labeller(Protocol):
    """An `OnnxPredictor`, a `Predictor`, or what else labels photos from several threads at once."""

    label_space: LabelSpace

    def __call__(self, image: Any) -> Any:
        """A `Prediction` of an RGB array uint8 [H, W, 3]."""


class Limits(NamedTuple):
    """What a service takes.

    Attributes:
        max_bytes: Of a body; more is not read.
        max_pixels: Of a photo; what has more by its header is not decoded.
        workers: Photos that are in work at a time, each in a thread.
        queue: Photos that may wait beside these. Together they hold at most (workers + queue) * max_bytes.
        seconds: In which a body must have come.
    """

    max_bytes: int = 16 << 20
    max_pixels: int = 24_000_000
    workers: int = 1
    queue: int = 64
    seconds: float = 30.0


class _RefusedError(Exception):
    """An answer other than 200; `close` ends the connection, where the client may go on to send."""

    def __init__(self, status: int, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.close = status, message, close


class _Wish(NamedTuple):
    output: str
    ids: str
    alpha: float


class _Service:
    """One predictor, a pool of threads, and how many photos are with it."""

    def __init__(self, predictor: Labeller, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="segment")
        self.held = 0  # changed by the event loop's thread alone

    async def segment(self, request: Request) -> Response:
        from starlette.responses import Response

        try:
            _check_type(request)
            wish = _wish(request)
            if self.held >= self.limits.workers + self.limits.queue:
                raise _RefusedError(503, "too many photos wait, try again in a second.")
        except _RefusedError as refusal:
            refusal.close = not await self._drained(request)
            return _answer(refusal)
        self.held += 1
        try:
            body = await self._body(request)
            content = await asyncio.get_running_loop().run_in_executor(self.pool, self._work, body, wish)
        except _RefusedError as refusal:
            return _answer(refusal)
        finally:
            self.held -= 1
        return Response(content, media_type=OUTPUTS[wish.output])

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more than the limit is ever held."""
        from starlette.requests import ClientDisconnect

        limit, data = self.limits.max_bytes, bytearray()
        length = request.headers.get("content-length", "")
        too_much = length.isdecimal() and int(length) > limit
        try:
            async with asyncio.timeout(self.limits.seconds):
                chunks = request.stream()
                while not too_much and (chunk := await anext(chunks, b"")):
                    too_much = len(data) + len(chunk) > limit
                    data += b"" if too_much else chunk
        except TimeoutError:
            raise _RefusedError(408, f"the photo did not come within {self.limits.seconds:g} s.", close=True) from None
        except ClientDisconnect:
            raise _RefusedError(400, "the connection broke off.") from None
        if too_much:
            data.clear()
            close = not await self._drained(request)
            raise _RefusedError(413, f"a photo may have {limit} bytes.", close=close)
        return bytes(data)

    async def _drained(self, request: Request) -> bool:
        """Let a client finish, up to the limit, and forget what it sends: who is cut off may not see the answer.

        Returns:
            Whether it has finished.
        """
        from starlette.requests import ClientDisconnect

        if "expect" in request.headers:  # it asks before it sends
            return False
        seen = 0
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self.limits.seconds):
                while seen <= self.limits.max_bytes:
                    message = await request.receive()  # not the stream, which may have been begun
                    seen += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return True
        return False

    def _work(self, body: bytes, wish: _Wish) -> bytes:
        """Runs in a thread of the pool."""
        size = size_in_header(body)
        if size is None:
            raise _RefusedError(422, f"the body, of {len(body)} bytes, is no JPEG, PNG or WebP image.")
        if size[0] * size[1] > self.limits.max_pixels:
            raise _RefusedError(
                413, f"the photo has {size[0]} x {size[1]} pixels, {self.limits.max_pixels} are allowed."
            )
        try:
            prediction: Prediction = self.predictor(decode_image(body, "the photo"))
        except DatasetError as error:
            raise _RefusedError(422, str(error)) from None
        except ConfigError as error:  # its scores would take too much memory
            raise _RefusedError(413, str(error)) from None
        if wish.output == "labels":
            return labels_png(prediction.labels, prediction.label_space, ids=wish.ids)
        if wish.output == "overlay":
            return png_bytes(prediction.overlay(wish.alpha))
        return json.dumps(prediction.polygons(), separators=(",", ":")).encode()

    async def health(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok", "in_work": self.held, "classes": len(self.predictor.label_space)})

    async def classes(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        space = self.predictor.label_space
        every = zip(space.raw_ids, space.names, space.colors, strict=True)
        return JSONResponse(
            [{"train_id": label, "raw_id": raw, "name": name, "color": color}
             for label, (raw, name, color) in enumerate(every)]
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(self, application: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in TYPES:
        raise _RefusedError(
            415,
            f"the body is {kind or 'of no type'}: send a photo as {', '.join(TYPES)} (curl -H 'Content-Type: ...').",
        )


def _wish(request: Request) -> _Wish:
    """What the query asks for."""
    query = dict(request.query_params)
    output, ids, alpha = query.pop("output", "labels"), query.pop("ids", "raw"), query.pop("alpha", "0.5")
    if query:
        raise _RefusedError(400, f"unknown option {min(query)}: there are output, ids and alpha.")
    if output not in OUTPUTS or ids not in IDS:
        raise _RefusedError(400, f"output is one of {', '.join(OUTPUTS)}, and ids of {', '.join(IDS)}.")
    try:
        opacity = float(alpha)
    except ValueError:
        opacity = -1.0
    if not 0 <= opacity <= 1:
        raise _RefusedError(400, f"alpha must be a number in 0..1, not {alpha[:20]}.")
    return _Wish(output, ids, opacity)


def _answer(refusal: _RefusedError) -> Response:
    from starlette.responses import JSONResponse

    headers = ({"Retry-After": "1"} if refusal.status == 503 else {}) | (
        {"Connection": "close"} if refusal.close else {}
    )
    return JSONResponse({"error": refusal.message}, status_code=refusal.status, headers=headers)


def app(predictor: Labeller, *, limits: Limits = Limits()) -> Starlette:  # noqa: B008  # a constant
    """The service as an ASGI application, for uvicorn or any other server.

    Args:
        predictor: What labels the photos.
        limits: What is taken.

    Raises:
        ConfigError: Starlette is not installed, or a limit makes no sense.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ImportError:
        raise _missing() from None
    if min(limits.max_bytes, limits.max_pixels, limits.workers) < 1 or limits.queue < 0 or not limits.seconds > 0:
        raise ConfigError(f"limits of a service must be positive, not {limits}.")
    service = _Service(predictor, limits)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _answer(_RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))

    async def failed(request: Request, error: Exception) -> Response:
        return _answer(_RefusedError(500, "the service failed; its log says why."))

    return Starlette(
        routes=[
            Route("/segment", service.segment, methods=["POST"]),
            Route("/classes", service.classes),
            Route("/health", service.health),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=service.lifespan,
    )


def server(
    application: Starlette, *, host: str = "127.0.0.1", port: int = 8000
) -> tuple[uvicorn.Server, socket.socket]:
    """A uvicorn server, and the socket that it is to listen on: `server.run(sockets=[socket])`.

    Args:
        application: What `app` returns.
        host: Address of this machine; "0.0.0.0" listens to all networks.
        port: 0 takes a free one.

    Raises:
        ConfigError: uvicorn is not installed, or the port cannot be had.
    """
    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    try:
        listening = socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from None
    config = uvicorn.Config(application, log_level="warning", server_header=False, timeout_graceful_shutdown=30)
    return uvicorn.Server(config), listening


def _missing() -> ConfigError:
    return ConfigError("serving needs starlette and uvicorn: pip install starlette uvicorn.")
