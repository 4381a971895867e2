"""Labels by rows are labels saved at once; and a picture that is read and written never lies in memory."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image

from resnest_seg.errors import ConfigError
from resnest_seg.io import large_images as large_labels
from resnest_seg.io.large_images import LargeLabels
from resnest_seg.io.visualize import write_labels
from resnest_seg.labels import LabelSpace

LABELS = np.random.default_rng(0).choice([0, 1, 2, 255], (700, 530)).astype(np.uint8)


@pytest.mark.parametrize("ids", ["raw", "train"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("rows", [1, 64, 700])
def test_labels_by_rows_are_labels_saved_at_once(ids, suffix, rows, tmp_path, tiny_space, monkeypatch):
    monkeypatch.setattr(large_labels, "_AT_ONCE", 5000)
    height = 700 if rows > 1 else 9
    labels = LABELS[:height]
    path = tmp_path / "new" / f"a{suffix}"
    with LargeLabels(path, height, 530, tiny_space, ids=ids) as target:
        for first in range(0, height, rows):
            target.write(first, labels[first : first + rows])
        target.write(height, labels[:0])
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]
    write_labels(tmp_path / "once.png", labels, tiny_space, ids=ids)
    one, other = Image.open(path), Image.open(tmp_path / "once.png")
    assert one.mode == other.mode == "P"
    assert np.array_equal(np.array(one), np.array(other))
    assert np.array_equal(np.array(one.convert("RGB")), np.array(other.convert("RGB")))
    with warnings.catch_warnings(action="ignore"), rasterio.open(path) as file:  # a second decoder
        assert np.array_equal(file.read(1), np.array(other))
        assert suffix == ".png" or file.block_shapes == [(512, 512)]


def test_labels_of_many_classes_are_small(tmp_path):
    space = LabelSpace.of("ade20k")
    labels = np.repeat(np.repeat(np.arange(150, dtype=np.uint8).reshape(10, 15), 64, axis=0), 64, axis=1)
    with LargeLabels(tmp_path / "a.png", *labels.shape, space) as target:
        target.write(0, labels)
    assert (tmp_path / "a.png").stat().st_size < 10_000
    assert np.array_equal(space.encode(np.array(Image.open(tmp_path / "a.png"))), labels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_failed_file_leaves_the_old_one(suffix, tmp_path, tiny_space):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    for rows, error in ((0, AssertionError), (100, AssertionError), (800, AssertionError)):
        with pytest.raises(error), LargeLabels(path, 700, 530, tiny_space) as target:
            target.write(0, np.zeros((rows, 530), np.uint8))
    with pytest.raises(AssertionError, match="row 0 is next, not 1"), LargeLabels(path, 9, 9, tiny_space) as target:
        target.write(1, np.zeros((1, 9), np.uint8))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_options_for_labels(tmp_path, tiny_space):
    with pytest.raises(ConfigError, match=r"saved as .png or .tif, .* not as .*a.jpg"):
        LargeLabels(tmp_path / "a.jpg", 9, 9, tiny_space)
    with pytest.raises(ConfigError, match="ids must be 'raw' or 'train', not 'other'"):
        LargeLabels(tmp_path / "a.png", 9, 9, tiny_space, ids="other")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_folder_in_the_way(suffix, tmp_path, tiny_space):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(OSError, match=r"(File exists|Not a directory)"),
        LargeLabels(tmp_path / "file" / f"a{suffix}", 9, 9, tiny_space),
    ):
        pass


def test_memory_is_that_of_a_band(tmp_path):
    """A picture of 192 MB, read by windows and written, in a fresh process: the peak above the start is a fraction."""
    code = f"""
import resource, sys
import numpy as np, rasterio
from resnest_seg.io.large_images import LargeImage
from resnest_seg.io.large_images import LargeLabels
from resnest_seg.labels import LabelSpace
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
space, size = LabelSpace.numbered(3), 8000
with LargeLabels({str(tmp_path / "a.png")!r}, size, size, space) as target:
    rows = np.zeros((500, size), np.uint8)
    start = peak()
    for first in range(0, size, 500):
        target.write(first, rows)
with LargeImage({str(tmp_path / "a.png")!r}) as image:
    for top in range(0, size, 500):
        for left in range(0, size, 500):
            image.read(top, left, 500, 500)
print(peak() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90e6, "of 192 MB; a band has 12"
