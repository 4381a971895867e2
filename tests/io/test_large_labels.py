"""Labels by rows are labels saved at once; and a picture that is read and written never lies in memory."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from resnest_seg.errors import ConfigError
from resnest_seg.io import large_images as large_labels
from resnest_seg.io.georeference import Georeference
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


@pytest.mark.long
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


PLACE = Georeference(CRS.from_epsg(32633).to_wkt(), (10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0))


@pytest.mark.parametrize("ids", ["raw", "train"])
@pytest.mark.parametrize("cog", [False, True])
def test_labels_on_the_map(ids, cog, tmp_path, tiny_space):
    path = tmp_path / "ä [1] 50%.tif"
    labels = np.tile(LABELS, (2, 2))
    with LargeLabels(path, *labels.shape, tiny_space, ids=ids, place=PLACE, cog=cog) as target:
        for first in range(0, len(labels), 100):
            target.write(first, labels[first : first + 100])
    assert list(tmp_path.iterdir()) == [path]
    own = tiny_space.raw_ids if ids == "raw" else range(3)
    with rasterio.open(path) as file:
        assert (file.crs, file.transform) == (PLACE.crs, PLACE.affine)
        assert (file.dtypes, file.nodata, file.compression.name) == (("uint8",), 255, "deflate")
        assert file.block_shapes == [(512, 512)]
        assert [file.tags(1)[f"class_{value}"] for value in own] == list(tiny_space.names)
        assert [file.colormap(1)[value][:3] for value in own] == list(tiny_space.colors)
        values = file.read(1)
        for label, value in enumerate(own):
            assert np.array_equal(values == value, labels == label)
        assert np.array_equal(values == 255, labels == 255)
        assert np.array_equal(file.dataset_mask() == 0, labels == 255)
        assert file.overviews(1) == ([2, 4] if cog else [])
        if cog:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    if cog:
        with rasterio.open(path, overview_level=0) as small:
            assert np.array_equal(small.read(1), values[::2, ::2]), "averages of ids are no ids"


@pytest.mark.parametrize("ids", ["raw", "train"])
@pytest.mark.parametrize("cog", [False, True])
def test_bits_of_a_multi_label_task_on_the_map(ids, cog, tmp_path, tiny_space):
    space = tiny_space.for_task("multilabel")
    bits = np.random.default_rng(0).choice([0, 1, 5, 6, 1 << 15], (700, 530)).astype(np.uint16)
    with LargeLabels(tmp_path / "a.tif", 700, 530, space, ids=ids, place=PLACE, cog=cog) as target:
        for first in range(0, 700, 100):
            target.write(first, bits[first : first + 100])
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(1), bits)
        assert (file.crs, file.nodata, file.dtypes) == (PLACE.crs, 32768, ("uint16",))
        assert [file.tags(1)[f"bit_{bit}"] for bit in range(3)] == list(space.names)
    with pytest.raises(ConfigError, match=r"multi-label task are saved by rows as .tif, not as .*a.png"):
        LargeLabels(tmp_path / "a.png", 700, 530, space)


def test_no_data_where_255_is_a_class(tmp_path):
    space = LabelSpace("object", ("background", "object"), ((0, 0, 0), (200, 0, 0)), (0, 255), (128,))
    labels = np.array([[0, 1, 255]], np.uint8)
    for name, where, expected in (
        ("a", space, 128),
        ("b", LabelSpace("object", space.names, space.colors, (0, 255)), 254),
    ):
        with LargeLabels(tmp_path / f"{name}.tif", 1, 3, where, place=PLACE) as target:
            target.write(0, labels)
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert file.nodata == expected
            assert file.read(1)[0].tolist() == [0, 255, expected]


def test_a_png_has_no_place(tmp_path, tiny_space):
    for options in ({"place": PLACE}, {"cog": True}):
        with pytest.raises(
            ConfigError, match=r"a PNG has no place on the map: save the labels as .tif, not as .*a.png"
        ):
            LargeLabels(tmp_path / "a.png", 9, 9, tiny_space, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("cog", [False, True])
def test_an_interrupted_map_leaves_the_old_file(cog, error, tmp_path, tiny_space, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(b"old")

    def interrupted(*words, **options):
        raise error

    with pytest.raises(error), LargeLabels(path, 700, 530, tiny_space, place=PLACE, cog=cog) as target:
        interrupted(target.write(0, LABELS[:300]))
    monkeypatch.setattr("rasterio.shutil.copy", interrupted)
    if cog:
        with pytest.raises(error), LargeLabels(path, 700, 530, tiny_space, place=PLACE, cog=True) as target:
            target.write(0, LABELS)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.long
def test_a_full_disk_keeps_the_old_map(tmp_path):
    """GDAL writes most when the file is closed, and tells nobody there; the old file was whole."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"old")
    code = f"""
import resource, signal
import numpy as np
from resnest_seg.io.large_images import LargeLabels
from resnest_seg.labels import LabelSpace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
labels = np.random.default_rng(0).integers(0, 3, (1500, 1500), dtype=np.uint8)
for cog, limit in ((False, 4096), (False, 300_000), (False, 500_000), (True, 4096), (True, 550_000), (True, 650_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with LargeLabels({str(path)!r}, *labels.shape, LabelSpace.numbered(3), cog=cog) as target:
            for first in range(0, 1500, 100):
                target.write(first, labels[first : first + 100])
        print("no error of", cog, limit)
    except OSError as error:
        print(error.filename, "Is the disk full?" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} True\n" * 6
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
