"""Decoding photos of strangers in a process of its own, which ends when a photo takes too long or crashes the decoder.

The size of a photo does not bound its decoding: a progressive JPEG of 1.5 MB can have 100,000 scans, each of which goes
over all pixels, and a PNG of 80 bytes can say that a chunk of 4 GiB follows, for which OpenCV takes the memory. Only a
process can be stopped in the middle of that.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, ResNeStSegError
from resnest_seg.io.bands import BandReader
from resnest_seg.io.images import TIFF, decode_image, size_in_header, size_of_tiff

QUESTION = struct.Struct("<Q")
"""Header of a request: the size of the photo's file in bytes."""

ANSWER = struct.Struct("<BII")
"""Header of an answer: its kind, and height and width of the pixels, or 0 and the bytes of a message or of bands."""

PIXELS, DAMAGED, TOO_LARGE, BANDS = range(4)

ERRORS: dict[int, type[ResNeStSegError]] = {DAMAGED: DatasetError, TOO_LARGE: ConfigError}

BYTES_OF_A_PIXEL = 64
"""Memory for decoding: pixels of 16 bits with transparency, colours over white, coefficients of a progressive JPEG; or
a band of any type, as floats, with its mask."""

BYTES_BESIDE = 512 << 20
"""Memory of Python, NumPy and OpenCV, which are to have no threads, whose stacks would count."""

ALONE = {"OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1", "OPENCV_LOG_LEVEL": "OFF"}
"""Environment of the process."""

CODE = (
    "import sys; sys.path[:] = {path!r}; from resnest_seg.inference.decoding import answer_all; "
    "from resnest_seg.io.bands import BandReader; answer_all({pixels}, {seconds}, {bands!r})"
)


class PhotoDecoder:
    """Decodes JPEG, PNG and WebP files as `resnest_seg.io.images.decode_image`, or bands of TIFF files, within limits.

    Its process is started by the first photo, and again after one that ended it. Calls from several threads wait for
    each other.

    Args:
        max_pixels: Of a photo; more are refused by its header, and by OpenCV itself. Memory is bounded accordingly.
        seconds: Of processor time that decoding a photo may take.
        bands: How bands are read; None is for photos.
    """

    def __init__(self, *, max_pixels: int, seconds: float, bands: BandReader | None = None) -> None:
        self.max_pixels, self.seconds, self.bands = max_pixels, seconds, bands
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, data: bytes) -> NDArray[Any]:
        """The photo as RGB, uint8 [H, W, 3]; or its bands, [H, W, C], in floats with NaN where they have no data.

        Args:
            data: The content of its file.

        Raises:
            DatasetError: No such image, a damaged one, or one that took too long.
            ConfigError: It has too many pixels.
        """
        with self._lock:
            process = self._process = self._process or self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(QUESTION.pack(len(data)))
                process.stdin.write(data)
                process.stdin.flush()
                kind, height, width = ANSWER.unpack(_exactly(process.stdout, ANSWER.size))
                if kind == PIXELS:
                    pixels = np.empty((height, width, 3), np.uint8)
                    _fill(process.stdout, pixels.data.cast("B"))
                    return pixels
                if kind == BANDS:
                    found: NDArray[Any] = np.load(io.BytesIO(_exactly(process.stdout, width)), allow_pickle=False)
                    return found
                message = _exactly(process.stdout, width).decode()
            except (BrokenPipeError, EOFError):
                raise self._ended(process) from None
        raise ERRORS[kind](message)

    def close(self) -> None:
        """End the process, and with it what it is at; the next photo would start it again."""
        process = self._process
        if process is not None:
            process.kill()  # before the lock is taken, which a call holds that waits for an answer
            with self._lock:
                if self._process is process:
                    self._ended(process)

    def _started(self) -> subprocess.Popen[bytes]:
        code = CODE.format(path=sys.path, pixels=self.max_pixels, seconds=self.seconds, bands=self.bands)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ALONE | {"OPENCV_IO_MAX_IMAGE_PIXELS": str(self.max_pixels)},
            process_group=0,  # Ctrl-C at a terminal is for the service, which goes on for a while
        )

    def _ended(self, process: subprocess.Popen[bytes]) -> Exception:
        """Forget a process that has ended; returns the error that says why."""
        self._process = None
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what was not written is lost anyway
                pipe.close()  # type: ignore[union-attr]
        if code == -signal.SIGPROF:
            return DatasetError(f"the photo takes more than {self.seconds:g} s to decode.")
        if code < 0:
            return DatasetError(f"the photo ended its decoder ({signal.Signals(-code).name}).")
        return RuntimeError(f"the process that decodes photos ended with exit code {code}; its error is above.")


def _fill(pipe: IO[bytes], memory: memoryview) -> None:
    if pipe.readinto(memory) < len(memory):  # type: ignore[attr-defined]
        raise EOFError


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = bytearray(size)
    _fill(pipe, memoryview(data))
    return bytes(data)


def answer_all(max_pixels: int, seconds: float, bands: BandReader | None = None) -> None:
    """Main loop of the decoding process, until its input or its parent ends.

    Args:
        max_pixels: As of `PhotoDecoder`.
        seconds: Likewise.
        bands: Likewise.
    """
    errors = os.dup(2)  # libjpeg and libpng write there what they think of a photo, which is up to strangers
    sys.stderr = os.fdopen(errors, "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    while len(head := source.read(QUESTION.size)) == QUESTION.size:
        data = source.read(QUESTION.unpack(head)[0])
        count = 1 if bands is None or bands.bands is None else len(bands.bands)
        memory = BYTES_BESIDE + BYTES_OF_A_PIXEL * max_pixels * count + 4 * len(data)
        resource.setrlimit(
            resource.RLIMIT_DATA, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard)
        )
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF then ends this process, in the middle of C code as well
        try:
            pixels = _decoded(data, max_pixels, bands)
            if bands is None:
                first, content = ANSWER.pack(PIXELS, *pixels.shape[:2]), np.ascontiguousarray(pixels).data.cast("B")
            else:
                file = io.BytesIO()
                np.save(file, pixels)
                first, content = ANSWER.pack(BANDS, 0, file.tell()), file.getbuffer()
        except ResNeStSegError as error:
            message = str(error).encode()
            kind = next(kind for kind, known in ERRORS.items() if isinstance(error, known))
            first, content = ANSWER.pack(kind, 0, len(message)), memoryview(message)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(first)
        sink.write(content)
        sink.flush()


def _decoded(data: bytes, max_pixels: int, bands: BandReader | None) -> NDArray[Any]:
    size = size_in_header(data)
    if size is None and bands is not None and data[:4] in TIFF:
        size = size_of_tiff(data)
    if size is None:
        known = "JPEG, PNG or WebP image" if bands is None else "TIFF, PNG, JPEG or WebP image"
        raise DatasetError(f"the body, of {len(data)} bytes, is no {known}.")
    if size[0] * size[1] > max_pixels:
        raise ConfigError(f"the photo has {size[0]} x {size[1]} pixels, {max_pixels} are allowed.")
    if bands is None:
        return decode_image(data, "the photo")
    pixels, valid, _ = bands.decode(data, "the image")
    return pixels if valid is None else np.where(valid, pixels, np.float32(np.nan)).astype(np.float32)
