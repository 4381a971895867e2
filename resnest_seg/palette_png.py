"""Palette PNGs (https://www.w3.org/TR/png-3/), written by rows: values are ids, and viewers show colours.

OpenCV cannot write them, Pillow and GDAL want the whole picture first, and a light runtime has neither of these two.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np
from numpy.typing import NDArray


class PalettePng:
    """Writes an 8-bit palette PNG into a file; a context manager, at whose end the file is complete.

    Args:
        file: Open for writing bytes; it is not closed.
        height: H.
        width: W.
        palette: Colours by value, uint8 [256, 3].
    """

    def __init__(self, file: IO[bytes], height: int, width: int, palette: NDArray[np.uint8]) -> None:
        self._file = file
        self._above = np.zeros((1, width), np.uint8)
        self._packer = zlib.compressobj()
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        self._chunk(b"PLTE", palette.tobytes())

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Add rows, uint8 [r, W], as differences from the row above (filter 2), which in labels are nearly all zero."""
        if not len(rows):
            return
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)
        np.subtract(rows, np.concatenate([self._above, rows[:-1]]), out=filtered[:, 1:])
        self._above = rows[-1:].copy()
        if packed := self._packer.compress(filtered.tobytes()):
            self._chunk(b"IDAT", packed)

    def __enter__(self) -> PalettePng:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._chunk(b"IDAT", self._packer.flush())
            self._chunk(b"IEND", b"")
