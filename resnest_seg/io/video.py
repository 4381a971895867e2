"""Videos as RGB frames: read from a file or a camera, written to a file, by OpenCV."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, require_utf8
from resnest_seg.files import atomic_write

Frame = NDArray[np.uint8]
"""RGB, uint8 [H, W, 3]."""

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
"""Suffix -> four letters of the codec: MPEG-4 part 2 and Motion JPEG, which OpenCV's wheels can encode."""

FPS = 25.0
"""Frames per second if a container or camera states none, or an implausible rate."""

COUNTED = (".mp4", ".m4v", ".mov", ".avi")
"""Suffixes of containers that store a frame count; for the others OpenCV multiplies the duration by the rate."""

TOLERANCE = 2
"""Frames that may be missing at the end: encoders count a frame that is never shown, or round up a duration."""


class VideoReader:
    """The frames of a video file or a camera, in order, once; a context manager and an iterable.

    Frames are RGB, uint8 [H, W, 3], rotated by the file's orientation. A camera has no end: leave the loop.

    For a truncated file, iterating raises `DatasetError` *after* the last decodable frame: the container lists more
    than `TOLERANCE` further frames or, if it does not list them, the last frame is more than 5 % before the end (sound
    may be that much longer, and rates may vary). A count of 0 or less, as in recordings that were never closed, is
    ignored. A file that was trimmed without re-encoding, as phones do, still counts the frames that were cut off, which
    OpenCV cannot tell; the message mentions it.

    Attributes:
        source: The file's path, or "camera:0".
        fps: Frames per second, above 0 and at most 240; `FPS` if the source states another or none.
        count: Number of frames by the container, for a progress bar; None for cameras and if it states none.

    Raises:
        DatasetError: The file or camera is missing, or the video cannot be decoded.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        camera = self.source.removeprefix("camera:")
        self._is_camera = self.source.startswith("camera:") and camera.isdecimal()
        if not self._is_camera:
            require_utf8(Path(source).absolute())
            try:
                with open(source, "rb"):
                    pass
            except OSError as error:
                raise DatasetError(f"cannot read {source}: {error.strerror}.") from None
        with _quiet():
            # an absolute path cannot be taken for the URL of a protocol
            self._capture = cv2.VideoCapture(int(camera) if self._is_camera else str(Path(source).absolute()))
        if not self._capture.isOpened():
            what = "the camera cannot be opened" if self._is_camera else "not a video, or a corrupt one"
            raise DatasetError(f"cannot read {source}: {what}.")
        rate, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = float(rate) if 0 < rate <= 240 else FPS
        sensible = not self._is_camera and math.isfinite(count) and 0 < count < 1 << 31
        self.count = int(count) if sensible else None
        self._seconds = count / rate if sensible and rate > 0 else 0.0

    def __iter__(self) -> Iterator[Frame]:
        number, seconds = 0, 0.0
        while True:
            with _quiet():
                try:
                    taken, frame = self._capture.read()
                except cv2.error:
                    taken, frame = False, None
            if not taken or frame is None:
                break
            number, seconds = number + 1, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        if self._is_camera:
            raise DatasetError(f"{self.source} gives no more frames, after {number}: was it unplugged?")
        if not number:
            raise DatasetError(f"cannot read {self.source}: no frame can be decoded.")
        if self._breaks_off(number, seconds):
            raise DatasetError(
                f"{self.source} ends after frame {number} of about {self.count}: it is corrupt or incomplete "
                "(or was trimmed without re-encoding; then no frame is missing)."
            )

    def _breaks_off(self, number: int, seconds: float) -> bool:
        if self.count is None or number >= self.count - TOLERANCE:
            return False
        return self.source.lower().endswith(COUNTED) or seconds < 0.95 * self._seconds - TOLERANCE / self.fps

    def close(self) -> None:
        """Release the file or camera."""
        self._capture.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def write_video(path: str | Path, *, fps: float) -> Iterator[VideoWriter]:
    """Write frames to a video file; yields a `VideoWriter`.

    The file appears, complete, when the block ends. If the block raises, no file is written and an existing one stays:
    catch inside the block exceptions that should only end the video, such as Ctrl-C with a camera, or `VideoReader`'s
    error at the end of a truncated file. The codecs subsample colour and accept even sizes only: odd ones are padded by
    repeating the last row or column.

    Args:
        path: .mp4, .m4v, .mov or .mkv (MPEG-4 part 2), or .avi (Motion JPEG).
        fps: Frames per second, above 0 and at most 240.

    Raises:
        ConfigError: Another suffix, or a rate out of range.
        DatasetError: No frame was written, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in CODECS:
        raise ConfigError(f"videos are written as {', '.join(CODECS)}, not as {path}.")
    if not 0 < fps <= 240:
        raise ConfigError(f"a video has more than 0 and at most 240 frames a second, not {fps}.")
    with atomic_write(path) as temporary:
        writer = VideoWriter(path, temporary, fps)
        try:
            yield writer
        finally:
            writer.close()
        _check_written(writer, temporary)


class VideoWriter:
    """Writer of one video, made by `write_video`.

    Attributes:
        path: The output file.
        frames: Frames written so far.
    """

    def __init__(self, path: Path, temporary: Path, fps: float) -> None:
        self.path = path
        self.frames = 0
        self._temporary, self._fps = temporary, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: Frame) -> None:
        """Add a frame, RGB, uint8 [H, W, 3]; the first determines the size of the video.

        Raises:
            ConfigError: The size differs from the first frame's, or OpenCV lacks the codec.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            self._size = (height, width)
            self._writer = self._open(width + width % 2, height + height % 2)
        if (height, width) != self._size:
            raise ConfigError(
                f"{self.path}: frame {self.frames + 1} is {height}x{width}, and the first was "
                f"{self._size[0]}x{self._size[1]}."
            )
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        with _quiet():
            self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            with _quiet():
                self._writer.release()

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        code = CODECS[self.path.suffix.lower()]
        require_utf8(self._temporary.absolute())
        with _quiet():
            fourcc = cv2.VideoWriter.fourcc(*code)
            writer = cv2.VideoWriter(str(self._temporary.absolute()), fourcc, self._fps, (width, height))
        if not writer.isOpened():
            other = ".mp4" if self.path.suffix.lower() == ".avi" else ".avi"
            raise ConfigError(
                f"cannot write {self.path}: this OpenCV has no encoder {code!r} for {height}x{width} at {self._fps:g} "
                f"frames a second. Write {other} instead, or install opencv-python-headless from PyPI."
            )
        return writer


def _check_written(writer: VideoWriter, temporary: Path) -> None:
    """Count the frames in the written file, because OpenCV does not report a full disk."""
    if not writer.frames:
        raise DatasetError(f"cannot write {writer.path}: no frame was added.")
    try:
        with VideoReader(temporary) as written:
            count = written.count or 0
    except DatasetError:
        count = 0
    if count < writer.frames - TOLERANCE:
        raise DatasetError(
            f"cannot write {writer.path}: {count} of {writer.frames} frames are in the file. Is the disk full?"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the logs of OpenCV and FFmpeg on standard error; our exceptions report problems.

    FFmpeg's level is read once per process, when OpenCV first uses it; a level set by the user is kept.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
