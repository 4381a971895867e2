"""Photos of strangers are decoded like others, or end a process that is not ours."""

import io
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import hostile_photos

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.inference.decoding import PhotoDecoder
from resnest_seg.io.images import decode_image

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 400, 4), dtype=np.uint8)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = encoded(PIXELS, "PNG")


@pytest.fixture
def decoder():
    decoder = PhotoDecoder(max_pixels=120_000, seconds=0.3)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_photos_are_decoded_as_everywhere(decoder, kind):
    for number in range(3):
        data = encoded(PIXELS[number:, :, : 3 if kind == "JPEG" else 4], kind)
        found = decoder(data)
        assert np.array_equal(found, decode_image(data, "x"))
        assert found.flags.writeable


def test_what_is_wrong_with_a_photo_does_not_end_the_process(decoder):
    decoder(PHOTO)
    process = decoder._process
    for data, error, message in (
        (b"", DatasetError, "of 0 bytes, is no JPEG, PNG or WebP image"),
        (PHOTO[:-40], DatasetError, "cannot read the photo"),
        (hostile_photos.hidden_size(300, 401), ConfigError, "300 x 401 pixels, 120000 are allowed"),
        (encoded(PIXELS, "TIFF"), DatasetError, "is no JPEG"),
    ):
        with pytest.raises(error, match=message):
            decoder(data)
    assert decoder(PHOTO).shape == (300, 400, 3)
    assert decoder._process is process


def test_a_size_that_no_header_told_is_refused_by_the_decoder_itself():
    """As if the header was misread: OpenCV in that process has the limit as well."""
    decoder = PhotoDecoder(max_pixels=10**6, seconds=10)
    decoder(PHOTO)
    environment = Path(f"/proc/{decoder._process.pid}/environ").read_bytes().split(b"\0")
    decoder.close()
    assert b"OPENCV_IO_MAX_IMAGE_PIXELS=1000000" in environment


def test_a_photo_that_takes_too_long_ends_the_process(decoder):
    with pytest.raises(DatasetError, match=r"takes more than 0\.3 s to decode"):
        decoder(hostile_photos.scans(100_000, 300, 400))
    assert decoder(PHOTO).shape == (300, 400, 3)


def test_a_photo_that_asks_for_all_memory(decoder):
    decoder(PHOTO)
    process = decoder._process
    with pytest.raises(DatasetError, match="cannot read the photo"):
        decoder(hostile_photos.hungry())
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 1 << 20  # a GiB, of 4


def test_a_process_that_dies_is_started_again(decoder):
    decoder(PHOTO)
    decoder._process.send_signal(signal.SIGKILL)
    with pytest.raises(DatasetError, match=r"ended its decoder \(SIGKILL\)"):
        decoder(PHOTO)
    assert decoder(PHOTO).shape == (300, 400, 3)


def test_the_end_of_a_decoder_is_the_end_of_its_process(decoder):
    decoder.close()  # before it has one
    decoder(PHOTO)
    process = decoder._process
    decoder.close()
    assert process.poll() == -signal.SIGKILL
    assert decoder(PHOTO).shape == (300, 400, 3)


def test_a_process_that_cannot_start_is_a_failure_of_ours(decoder, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(RuntimeError, match="ended with exit code 1; its error is above"):
        decoder(PHOTO)
