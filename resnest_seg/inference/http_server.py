"""An HTTP service around a predictor: photos in, labels out. Starlette and uvicorn do it, the extra `serve`.

    POST /segment?output=labels|overlay|polygons    the body is a JPEG, PNG or WebP file, and its type the Content-Type;
                                                    of a model of many bands a TIFF file, too
    GET /classes                                    what the values in label PNGs are
    GET /model                                      the model, its classes, and the files that are taken
    GET /health                                     that it is there, and how many photos are in work
    GET /                                           a page on which a person labels a photo; other clients get 404

The header Server-Timing of labels, overlays and polygons says how many milliseconds their steps took.

What a client does wrong is answered by {"error": "one line"}: 400 an unknown option, 408 a body that does not come, 413
too many bytes or pixels, 415 a type that is no photo's, 422 no image, a damaged one, or one that takes too long to
decode. 503 says that too many wait or arrive, or that the service is being stopped.

What clients hold is bounded: photos that wait, bytes that arrive, connections, and the time for a request's head, its
body, and the taking of an answer. Who has held his place the longest gives way to who comes, so that many slow clients
cannot keep others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.resources
import itertools
import json
import queue
import signal
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ConfigError, DatasetError
from resnest_seg.inference.decoding import PhotoDecoder
from resnest_seg.inference.prediction import Prediction
from resnest_seg.io.bands import BandReader
from resnest_seg.io.images import MOST_PIXELS
from resnest_seg.io.visualize import labels_png, png_bytes
from resnest_seg.labels import MULTILABEL_IGNORE, LabelSpace

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
"""Content types of bodies; the bytes themselves say which of the three kinds of photo it is."""

OUTPUTS = {"labels": "image/png", "overlay": "image/png", "polygons": "application/geo+json"}
"""Kinds of output -> their content type."""

IDS = ("raw", "train")

STEPS = ("queue", "decode", "model", "encode")
"""Steps of the answer to a photo, as its header Server-Timing names them."""

PAGE_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
"""Address -> file in the folder page/."""

PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


class Labeller(Protocol):
    """An `OnnxPredictor`, a `Predictor`, or what else labels photos from several threads at once."""

    label_space: LabelSpace

    def __call__(self, image: Any) -> Any:
        """A `Prediction` of an RGB array uint8 [H, W, 3]."""


class Limits(NamedTuple):
    """Limits of a service; `BOUNDS` has the ranges of these values.

    Attributes:
        max_bytes: Of a body; more is not read.
        max_pixels: Of a photo; what has more is not decoded.
        workers: Photos that are in work at a time, each in a thread, and decoded in a process of its own.
        queue: Photos that may wait beside these. A photo counts from the moment that its body has come.
        arriving: Bodies of max_bytes that may be on their way, counted in bytes. Beyond, the one that began first gives
            way. All photos together hold at most (workers + queue + arriving) * max_bytes.
        connections: Of clients at a time, or what the limit of file descriptors permits. Beyond, the one whose request
            has been on its way the longest gives way.
        seconds: In which a body must have come.
        decode_seconds: Of processor time that decoding a photo may take.
        head_seconds: In which a request's head must have come.
        answer_seconds: In which an answer must have been taken.
        stop_seconds: That requests may still take when the service is stopped.
    """

    max_bytes: int = 16 << 20
    max_pixels: int = 24_000_000
    workers: int = 1
    queue: int = 64
    arriving: int = 16
    connections: int = 1000
    seconds: float = 30.0
    decode_seconds: float = 10.0
    head_seconds: float = 10.0
    answer_seconds: float = 60.0
    stop_seconds: int = 5


BOUNDS: dict[str, tuple[float, float]] = {
    "max_bytes": (1, 1 << 30),
    "max_pixels": (1, MOST_PIXELS),
    "workers": (1, 256),
    "queue": (0, 10_000),
    "arriving": (1, 10_000),
    "connections": (1, 100_000),
    "seconds": (0.001, 3600),
    "decode_seconds": (0.001, 3600),
    "head_seconds": (0.001, 3600),
    "answer_seconds": (0.001, 3600),
    "stop_seconds": (0, 3600),
}
"""Smallest and largest value of each limit."""


def check_limits(limits: Limits) -> None:
    """Refuse limits that make no sense.

    Raises:
        ConfigError: Names the limit, its value and its bounds.
    """
    for name, value in limits._asdict().items():
        low, high = BOUNDS[name]
        if not low <= value <= high:  # nor NaN
            raise ConfigError(f"{name} of a service must lie in {low:,}..{high:,}, not {value:,}.")


class _RefusedError(Exception):
    """An answer other than 200; `close` ends the connection, where the client may go on to send."""

    def __init__(self, status: int, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.close = status, message, close


class _Wish(NamedTuple):
    output: str
    ids: str
    alpha: float


@dataclasses.dataclass(eq=False)
class _Arrival:
    """A body that has come in part, and the time limit under which the rest is awaited."""

    deadline: asyncio.Timeout
    data: bytearray = dataclasses.field(default_factory=bytearray)
    gave_way: bool = False


@dataclasses.dataclass(eq=False)
class _Job:
    """A photo that waits or is in work; None once its client has gone."""

    body: bytes | None
    wish: _Wish
    came: float = dataclasses.field(default_factory=time.perf_counter)


class _Result(NamedTuple):
    """The content of an answer, and its header Server-Timing."""

    content: bytes
    timing: str = ""


class _Service:
    """One predictor, a pool of threads, and the photos that are with it."""

    def __init__(self, predictor: Labeller, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="segment")
        self.bands: BandReader | None = getattr(getattr(predictor, "backend", None), "bands", None)
        self.decoders = [
            PhotoDecoder(max_pixels=limits.max_pixels, seconds=limits.decode_seconds, bands=self.bands)
            for _ in range(limits.workers)
        ]
        self.free: queue.SimpleQueue[PhotoDecoder] = queue.SimpleQueue()
        for decoder in self.decoders:
            self.free.put(decoder)
        self.held: set[Future[_Result]] = set()  # photos that wait or are in work
        self.arriving: dict[_Arrival, None] = {}  # in the order in which they began
        self.arrived = 0  # bytes of these

    async def segment(self, request: Request) -> Response:
        try:
            return await self._segment(request)
        except _RefusedError as refusal:
            return _answer(refusal)
        except asyncio.CancelledError:  # the server's time to stop is over; it would log a traceback
            return _answer(_RefusedError(503, "the service is being stopped.", close=True))

    async def _segment(self, request: Request) -> Response:
        from starlette.responses import Response

        try:
            _check_type(request, self.bands)
            wish = _wish(request)
            self._check_room()
        except _RefusedError as refusal:
            refusal.close = not await self._drained(request)
            raise
        body = await self._body(request)
        self._check_room()  # others may have been faster
        result = await self._worked(request, _Job(body, wish))
        return Response(result.content, media_type=OUTPUTS[wish.output], headers={"Server-Timing": result.timing})

    def _check_room(self) -> None:
        if len(self.held) >= self.limits.workers + self.limits.queue:
            raise _RefusedError(503, "too many photos wait, try again in a second.")

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more than the limit is ever held."""
        from starlette.requests import ClientDisconnect

        limit = self.limits.max_bytes
        length = request.headers.get("content-length", "")
        too_much = length.isdecimal() and int(length) > limit
        arrival = _Arrival(asyncio.timeout(self.limits.seconds))
        self.arriving[arrival] = None
        try:
            async with arrival.deadline:
                chunks = request.stream()
                while not too_much and (chunk := await anext(chunks, b"")):
                    too_much = len(arrival.data) + len(chunk) > limit
                    if not too_much:
                        self._make_room(len(chunk))
                        arrival.data += chunk
                        self.arrived += len(chunk)
                if arrival.gave_way:  # while its last bytes came
                    raise TimeoutError
                if not too_much:
                    return bytes(arrival.data)
        except TimeoutError:
            if arrival.gave_way:
                raise _RefusedError(503, "too many photos arrive, try again in a second.", close=True) from None
            raise _RefusedError(408, f"the photo did not come within {self.limits.seconds:g} s.", close=True) from None
        except ClientDisconnect:
            raise _RefusedError(400, "the connection broke off.") from None
        finally:
            self._forget(arrival)
        close = not await self._drained(request)
        raise _RefusedError(413, f"a photo may have {limit} bytes.", close=close)

    def _make_room(self, size: int) -> None:
        """Let bodies that began first give way until `size` more bytes may be held."""
        while self.arriving and self.arrived + size > self.limits.arriving * self.limits.max_bytes:
            first = next(iter(self.arriving))
            first.gave_way = True
            first.deadline.reschedule(asyncio.get_running_loop().time())
            self._forget(first)

    def _forget(self, arrival: _Arrival) -> None:
        """Give the bytes of the request back, once, at its end or when it is cancelled."""
        self.arriving.pop(arrival, None)
        self.arrived -= len(arrival.data)
        arrival.data = bytearray()

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

    async def _worked(self, request: Request, job: _Job) -> _Result:
        """The answer to a job, which is dropped when its client leaves: at once if it waits, else between two steps."""
        future = self.pool.submit(self._work, job)
        self.held.add(future)
        future.add_done_callback(self.held.discard)
        answer, left = asyncio.wrap_future(future), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise _RefusedError(400, "the connection broke off.")
        finally:
            job.body = None
            left.cancel()
            answer.cancel()

    def _work(self, job: _Job) -> _Result:
        """Run in a thread of the pool; returns nothing if the client has gone."""
        times = [job.came, time.perf_counter()]
        try:
            pixels = self._pixels(job)
            times.append(time.perf_counter())
            prediction: Prediction | None = None if job.body is None else self.predictor(pixels)
            times.append(time.perf_counter())
        except DatasetError as error:
            raise _RefusedError(422, str(error)) from None
        except ConfigError as error:  # too many pixels, or its scores would take too much memory
            raise _RefusedError(413, str(error)) from None
        if prediction is None or job.body is None:
            return _Result(b"")
        content = _encoded(prediction, job.wish)
        times.append(time.perf_counter())
        spans = zip(STEPS, itertools.pairwise(times), strict=True)
        return _Result(content, ", ".join(f"{step};dur={1000 * (end - start):.1f}" for step, (start, end) in spans))

    def _pixels(self, job: _Job) -> Any:
        """The photo, uint8 [H, W, 3], or bands; there is a decoder for every thread."""
        decoder = self.free.get()
        try:
            return decoder(job.body or b"")
        finally:
            self.free.put(decoder)

    async def health(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok", "in_work": len(self.held), "classes": len(self.predictor.label_space)})

    async def classes(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(_classes(self.predictor.label_space))

    async def model(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        space, backend = self.predictor.label_space, getattr(self.predictor, "backend", None)
        protocol = getattr(self.predictor, "protocol", None)
        return JSONResponse(
            {
                "description": getattr(backend, "description", ""),
                "protocol": getattr(protocol, "name", ""),
                "task": space.task,
                "channels": getattr(backend, "channels", 3),
                "bands": None if self.bands is None else self.bands.bands or True,
                "types": _types(self.bands),
                "max_bytes": self.limits.max_bytes,
                "max_pixels": self.limits.max_pixels,
                "ignored_raw_id": MULTILABEL_IGNORE if space.task == "multilabel" else space.ignored_raw_id,
                "classes": _classes(space),
            }
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, application: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            for decoder in self.decoders:
                decoder.close()


async def _left(request: Request) -> None:
    """Waits until a client whose body has come ends the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _classes(space: LabelSpace) -> list[dict[str, Any]]:
    every = zip(space.raw_ids, space.names, space.colors, strict=True)
    return [
        {"train_id": label, "raw_id": raw, "name": name, "color": color}
        for label, (raw, name, color) in enumerate(every)
    ]


def _encoded(prediction: Prediction, wish: _Wish) -> bytes:
    if wish.output == "labels":
        return labels_png(prediction.labels, prediction.label_space, ids=wish.ids)
    if wish.output == "overlay":
        return png_bytes(prediction.overlay(wish.alpha))
    return json.dumps(prediction.polygons(), separators=(",", ":")).encode()


def _types(bands: BandReader | None) -> tuple[str, ...]:
    return TYPES if bands is None else ("image/tiff", *TYPES)


def _check_type(request: Request, bands: BandReader | None) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    types = _types(bands)
    if kind not in types:
        raise _RefusedError(
            415,
            f"the body is {kind or 'of no type'}: send a photo as {', '.join(types)} (curl -H 'Content-Type: ...').",
        )


def _wish(request: Request) -> _Wish:
    """The parsed query."""
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
    check_limits(limits)
    service = _Service(predictor, limits)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _answer(_RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))

    async def failed(request: Request, error: Exception) -> Response:
        return _answer(_RefusedError(500, "the service failed; its log says why."))

    application = Starlette(
        routes=[
            Route("/segment", service.segment, methods=["POST"]),
            Route("/classes", service.classes),
            Route("/model", service.model),
            Route("/health", service.health),
            *page_routes(),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=service.lifespan,
    )
    application.state.busy = lambda: bool(service.held)
    return application


def page_routes() -> list[Route]:
    """Return the routes of the page and its files, for a Starlette application.

    It asks for nothing but what this service has, and its headers hold browsers to that.
    """
    from starlette.routing import Route

    folder = importlib.resources.files("resnest_seg.inference") / "page"
    contents = {address: (folder / name).read_bytes() for address, name in PAGE_FILES.items()}

    async def answer(request: Request) -> Response:
        from starlette.exceptions import HTTPException
        from starlette.responses import Response

        name = PAGE_FILES[request.url.path]
        if name.endswith(".html") and "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(404, "Not Found; there is a page for browsers (Accept: text/html)")
        kind = PAGE_TYPES[name[name.rindex(".") :]]
        return Response(contents[request.url.path], media_type=kind, headers=PAGE_HEADERS)

    return [Route(address, answer) for address in PAGE_FILES]


def server(
    application: Starlette,
    *,
    limits: Limits = Limits(),  # noqa: B008  # a constant
    host: str = "127.0.0.1",
    port: int = 8000,
) -> tuple[uvicorn.Server, socket.socket]:
    """A uvicorn server, and the socket that it is to listen on, for `run`.

    Args:
        application: What `app` returns.
        limits: As given to `app`: of connections, heads and answers, and of the time to stop.
        host: Address of this machine, IPv4 or IPv6; "0.0.0.0" or "::" listens to all networks of its kind.
        port: 0 takes a free one.

    Raises:
        ConfigError: uvicorn is not installed, a limit makes no sense, or the port cannot be had.
    """
    try:
        import uvicorn

        from resnest_seg.inference.connections import Connection, ListeningSocket, Places, most_connections
    except ImportError:
        raise _missing() from None

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Stop also what a second Ctrl-C would leave to be cancelled, with a traceback."""
            await super().shutdown(sockets)
            if self.force_exit:
                await self.lifespan.shutdown()

    check_limits(limits)
    places = Places(
        most=most_connections(limits.connections, workers=limits.workers),
        head_seconds=limits.head_seconds,
        answer_seconds=limits.answer_seconds,
    )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = ListeningSocket(fileno=socket.create_server((host, port), family=family).detach())
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}.") from None
    config = uvicorn.Config(
        application,
        http=cast("type[asyncio.Protocol]", functools.partial(Connection, places)),
        ws="none",
        log_level="error",  # what clients do wrong fills no log
        log_config=None,  # uvicorn's would close the log handlers of the process that it is in
        server_header=False,
        backlog=1,  # see ListeningSocket
        timeout_graceful_shutdown=limits.stop_seconds,
    )
    return Server(config), listening


def run(own: uvicorn.Server, listening: socket.socket) -> int:
    """Serve until Ctrl-C or SIGTERM: no connection is accepted from then on, and requests have `stop_seconds` to end.

    Called in the main thread. A second Ctrl-C waits for nothing.

    Returns:
        The exit code of the tool: 143 after SIGTERM, 130 after Ctrl-C.
    """
    got: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        got.append(number)
        own.should_exit = True

    # uvicorn puts its own handlers over these, and at its end raises the signals again, for whom it may concern
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        own.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_TERMINATED if signal.SIGTERM in got else EXIT_INTERRUPTED


def _missing() -> ConfigError:
    return ConfigError("serving needs starlette and uvicorn: pip install starlette uvicorn.")
