"""Windows of rasters are parts of the whole arrays, each pixel counts once, and nothing depends on who reads them."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from resnest_seg import build_segmenter
from resnest_seg.cli.datasets.check import open_splits, parse
from resnest_seg.combining import cross_validation
from resnest_seg.combining.cross_validation import held_out
from resnest_seg.combining.folds import fold_record
from resnest_seg.config import DataConfig, config_from_dict
from resnest_seg.config_reading import to_yaml
from resnest_seg.data.build import build_dataset, dataset_for, with_task
from resnest_seg.data.class_balance import pixel_statistics
from resnest_seg.data.datasets import Subset, assign_folds
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.loader import build_loader, load_batches, training_batches
from resnest_seg.data.tiles import WindowDataset, paired_files, scored_part
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.io import raster_windows
from resnest_seg.io.bands import BandReader
from resnest_seg.io.raster_windows import RasterWindows, Window
from resnest_seg.training.assembly import Parts, splits

TRANSFORM = rasterio.Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0)
SIZES = {"a [1] 50%": (130, 200), "ä": (64, 64), "small": (20, 90), "one": (1, 300)}
CLASSES = "name,id,red,green,blue\nsea,3,0,0,200\nroad,7,90,90,90\nfield,9,0,200,0\n"
TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}


def write(path, array, *, crs="EPSG:32633", transform=TRANSFORM, **options):
    bands = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands), dtype=bands.dtype,
        crs=crs, transform=transform, **(TILES | options),
    ) as file:  # fmt: skip
        file.write(bands)
        if len(bands) == 3 and bands.dtype == np.uint8:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    return path


def arrays(size, seed=0, bands=3, kind=np.uint8):
    random = np.random.default_rng([seed, *size])
    image = random.integers(1, 250, (*size, bands)).astype(kind)
    image[: size[0] // 3, : size[1] // 3] = 0  # no data
    labels = random.choice([3, 7, 9, 255], size).astype(np.uint8)
    labels[size[0] // 2 :, size[1] // 2 :] = 255
    return image, labels


@pytest.fixture
def root(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        for split in ("train", "val"):
            image, labels = arrays(size, number)
            write(tmp_path / "images" / split / f"{name}.tif", image, nodata=0)
            write(tmp_path / "masks" / split / f"{name}.tif", labels)
    (tmp_path / "classes.csv").write_text(CLASSES)
    return tmp_path


def opened(root, split="train", window=48, overlap=8, **options):
    return WindowDataset(FolderDataset(root, split, **options), window, overlap=overlap)


def whole(dataset, pair):
    """Image and train ids of a raster, read at once and by hand."""
    path = dataset.files.source.local(dataset.files.pairs[pair][0])
    with rasterio.open(path) as file:
        image = file.read().transpose(1, 2, 0)
    with rasterio.open(dataset.files.source.local(dataset.files.pairs[pair][1])) as file:
        raw = file.read(1)
    labels = np.select([raw == 3, raw == 7, raw == 9], [0, 1, 2], 255).astype(np.uint8)
    labels[(image == 0).all(axis=2)] = 255
    return image, labels


@pytest.mark.parametrize(("window", "overlap"), [(48, 8), (32, 0), (1000, 3)])
def test_every_labelled_pixel_counts_once_and_context_does_not(root, window, overlap):
    dataset = opened(root, window=window, overlap=overlap)
    seen = [np.full(size, 255, np.uint8) for size in (whole(dataset, pair)[1].shape for pair in range(4))]
    for index, cell in enumerate(dataset.cells):
        sample = dataset[index]
        assert sample.image.shape[:2] == sample.labels.shape
        assert all(size <= min(window + 2 * overlap, full) for size, full in
                   zip(sample.labels.shape, (cell.height, cell.width), strict=True))  # fmt: skip
        image, truth = whole(dataset, cell.pair)
        rows, columns = (tuple(map(int, part.split(" to "))) for part in
                         sample.name.rpartition("rows ")[2].split(", columns "))  # fmt: skip
        place = (slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))
        assert np.array_equal(sample.image, image[place])
        counted = sample.labels != 255
        assert np.array_equal(sample.labels[counted], truth[place][counted])
        assert (seen[cell.pair][place][counted] == 255).all(), "counted twice"
        seen[cell.pair][place][counted] = sample.labels[counted]
    for pair, labels in enumerate(seen):
        assert np.array_equal(labels, whole(dataset, pair)[1]), "a pixel is missing"


@pytest.mark.parametrize(("window", "overlap"), [(48, 8), (32, 0), (1000, 3)])
def test_the_scored_parts_of_windows_make_the_whole_raster(root, window, overlap):
    views = opened(root, window=window, overlap=overlap), with_task(opened(root, window=window, overlap=overlap),
                                                                   "binary", "road")  # fmt: skip
    for dataset, inner in ((views[0], views[0]), (views[1], views[0])):
        seen = {pair: np.zeros(whole(inner, pair)[0].shape, np.uint8) for pair in range(4)}
        for index, cell in enumerate(inner.cells):
            part, core = dataset[index].image[scored_part(dataset, index)], cell.core
            seen[cell.pair][core.top : core.top + core.height, core.left : core.left + core.width] = part
        for pair, image in seen.items():
            truth, labels = whole(inner, pair)
            assert np.array_equal(image[labels != 255], truth[labels != 255])


def test_the_counts_of_windows_are_those_of_whole_rasters(root):
    from resnest_seg.data.checks import scan

    dataset = opened(root)
    counts = sum(fact.labels[:-1] for fact in scan(dataset, range(len(dataset))))
    true = np.sum([np.bincount(whole(dataset, pair)[1].ravel(), minlength=256)[:3] for pair in range(4)], axis=0)
    assert np.array_equal(counts, true)


def test_windows_without_data_are_left_out(root):
    dataset = opened(root, window=32, overlap=0)
    kept = {(cell.pair, cell.core) for cell in dataset.cells}
    for pair in range(4):
        _, labels = whole(dataset, pair)
        for cell in dataset._cells(pair):
            rows, columns = (slice(*ends) for ends in cell.core.ranges)
            assert ((pair, cell.core) in kept) == (labels[rows, columns] != 255).any()
    assert len(kept) < sum(len(list(dataset._cells(pair))) for pair in range(4))


def test_drawn_windows_are_parts_of_the_rasters_decided_by_the_seed(root):
    dataset = opened(root)
    places = set()
    for index, cell in enumerate(dataset.cells):
        image, labels = whole(dataset, cell.pair)
        for seed in range(5):
            sample, again = dataset.draw(index, seed=seed), pickle.loads(pickle.dumps(dataset)).draw(index, seed=seed)
            assert sample.name == again.name
            assert np.array_equal(sample.image, again.image)
            assert np.array_equal(sample.labels, again.labels)
            places.add(sample.name)
            assert sample.labels.shape == (min(48, cell.height), min(48, cell.width))
            rows, columns = (tuple(map(int, part.split(" to "))) for part in
                             sample.name.rpartition("rows ")[2].split(", columns "))  # fmt: skip
            place = (slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))
            assert np.array_equal(sample.image, image[place])
            assert np.array_equal(sample.labels, labels[place])
    assert len(places) > 2 * len(dataset), "they move"


def test_drawn_windows_are_everywhere_alike(tmp_path):
    """Far from the border every pixel is drawn with the same probability, whatever the grid is."""
    write(tmp_path / "images" / "train" / "a.tif", np.ones((320, 320, 3), np.uint8))
    write(tmp_path / "masks" / "train" / "a.tif", np.full((320, 320), 3, np.uint8))
    (tmp_path / "classes.csv").write_text(CLASSES)
    dataset, drawn, starts = opened(tmp_path, window=32), np.zeros((320, 320)), [set(), set()]
    for index in range(len(dataset)):
        for seed in range(30):
            name = dataset.draw(index, seed=100 * index + seed).name
            rows, columns = (tuple(map(int, part.split(" to "))) for part in
                             name.rpartition("rows ")[2].split(", columns "))  # fmt: skip
            drawn[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] += 1
            starts[0].add(rows[0])
            starts[1].add(columns[0])
    assert min(map(len, starts)) > 200, "of 289"
    inner = drawn[64:-64, 64:-64] / 30
    assert abs(inner.mean() - 1) < 0.02
    by_column = inner.mean(axis=0)  # a grid that shows would be stripes
    assert by_column.std() < 0.08


@pytest.mark.slow
def test_batches_do_not_depend_on_processes_or_on_a_resume(root):
    dataset = opened(root)
    transform = TrainTransform.from_config(DataConfig(crop_size=32, base_size=48, class_mix=0.5))

    def batches(steps, workers):
        order = training_batches(len(dataset), seed=3, batch_size=4, steps=steps)
        return list(load_batches(dataset, order, transform=transform, seed=3, workers=workers))

    here, there, later = batches(range(8), 0), batches(range(8), 2), batches(range(5, 8), 1)
    assert len(here) == 8
    for one, two in [*zip(here, there, strict=True), *zip(here[5:], later, strict=True)]:
        assert one.names == two.names
        assert (one.images == two.images).all()
        assert (one.labels == two.labels).all()
    names = {name for batch in here for name in batch.names}
    assert len(names) > len(dataset), "the next epoch has other windows"


def test_a_loader_of_ones_own_takes_windows(root):
    loader = build_loader(opened(root), batch_size=2, transform=TrainTransform.from_config(DataConfig(crop_size=32)))
    first, second = [batch.names for batch in loader], [batch.names for batch in loader]
    assert first != second


def test_bands_of_16_bits_and_their_statistics(tmp_path):
    image, labels = arrays((90, 70), bands=5, kind=np.uint16)
    image *= 100
    write(tmp_path / "images" / "train" / "a.tif", image, nodata=0)
    write(tmp_path / "masks" / "train" / "a.tif", labels)
    (tmp_path / "classes.csv").write_text(CLASSES)
    dataset = opened(tmp_path, window=32, overlap=4)
    with pytest.raises(DatasetError, match=r"5 bands of uint16 .*data.bands"):
        dataset[0]
    dataset.read_as(BandReader((5, 1)))
    sample = dataset.draw(0, seed=1)
    assert (sample.image.dtype, sample.image.shape[2]) == (np.uint16, 2)
    found = pixel_statistics(dataset)
    inside = np.zeros((90, 70), bool)
    for cell in dataset.cells:
        inside[slice(*cell.core.ranges[0]), slice(*cell.core.ranges[1])] = True
    values = image[..., [4, 0]][inside & (image != 0).any(axis=2)].astype(float)
    assert found.mean == pytest.approx(values.mean(axis=0))
    assert found.std == pytest.approx(values.std(axis=0))
    before = len(dataset)
    image[..., :] = 7
    write(tmp_path / "images" / "train" / "a.tif", image)
    dataset = opened(tmp_path, window=32, overlap=4)
    assert len(dataset) >= before
    count = len(dataset)
    for reader, words in (
        (BandReader((5, 1), nodata=7), "no window of the train split has a labelled pixel with data"),
        (BandReader((9,)), "data.bands asks for band 9"),
    ):
        with pytest.raises(DatasetError, match=words):
            dataset.read_as(reader)
        assert (dataset.bands, len(dataset)) == (None, count), "a refused reader leaves all as it was"


def test_grey_rasters_and_opacity(tmp_path):
    """Grey becomes RGB; where a fourth band is opacity, transparent pixels have no data."""
    image, labels = arrays((40, 40), bands=4)
    image[..., 3] = np.where(image[..., 3] > 99, 255, 0)
    grey = image[..., 0] + 1
    (tmp_path / "classes.csv").write_text(CLASSES)
    write(tmp_path / "images" / "train" / "grey.tif", grey)
    path = write(tmp_path / "images" / "train" / "opacity.tif", image, photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    for name in ("grey", "opacity"):
        write(tmp_path / "masks" / "train" / f"{name}.tif", labels)
    dataset = opened(tmp_path, window=64)
    one, other = dataset[0], dataset[1]
    assert np.array_equal(one.image, np.stack([grey] * 3, axis=2))
    assert ((one.labels == 255) == (labels == 255)).all()
    assert np.array_equal(other.image, image[..., :3])
    assert ((other.labels == 255) == ((labels == 255) | (image[..., 3] == 0))).all()


def test_labels_with_a_no_data_value_of_their_own(tmp_path):
    """200 is no class, so as no data it is ignored; 3 is one, and stays one."""
    image, labels = arrays((40, 40))
    (tmp_path / "classes.csv").write_text(CLASSES)
    for name, none in (("a", 200), ("b", 3)):
        changed = np.where(labels == 255, none, labels).astype(np.uint8)
        write(tmp_path / "images" / "train" / f"{name}.tif", image + 1)
        write(tmp_path / "masks" / "train" / f"{name}.tif", changed, nodata=none)
    dataset = opened(tmp_path, window=64)
    one, other = dataset[0].labels, dataset[1].labels
    assert ((one == 255) == (labels == 255)).all()
    assert (other[labels == 255] == 0).all()


def test_masks_of_colours_and_palettes(tmp_path):
    """A mask in the classes' colours, as three bands and as a palette in another order, is that of ids."""
    image, labels = arrays((40, 50))
    (tmp_path / "classes.csv").write_text(CLASSES.replace("blue\n", "blue,ignore\n").replace("\n", ",\n").replace(
        "ignore,", "ignore") + "none,255,1,1,1,yes\n")  # fmt: skip
    colors = {3: (0, 0, 200), 7: (90, 90, 90), 9: (0, 200, 0), 255: (1, 1, 1)}
    painted = np.zeros((40, 50, 3), np.uint8)
    order = np.zeros((40, 50), np.uint8)
    for number, (value, color) in enumerate(colors.items(), start=10):
        painted[labels == value], order[labels == value] = color, number
    for name in "abc":
        write(tmp_path / "images" / "train" / f"{name}.tif", image + 1)
    write(tmp_path / "masks" / "train" / "a.tif", labels)
    write(tmp_path / "masks" / "train" / "b.tif", painted)
    path = write(tmp_path / "masks" / "train" / "c.tif", order, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, dict(enumerate(colors.values(), start=10)))
    dataset = opened(tmp_path, window=64)
    assert np.array_equal(dataset[0].labels, dataset[1].labels)
    assert np.array_equal(dataset[0].labels, dataset[2].labels)


def test_colours_have_a_no_data_value_and_8_bits(tmp_path):
    """Which is ignored if no class is black; and 16 bits a channel are refused, whose colours would wrap at 256."""
    image, labels = arrays((40, 50))
    (tmp_path / "classes.csv").write_text(CLASSES)
    painted = np.zeros((40, 50, 3), np.uint8)
    for value, color in {3: (0, 0, 200), 7: (90, 90, 90), 9: (0, 200, 0)}.items():
        painted[labels == value] = color
    for name, mask in (("ids", labels), ("painted", painted)):
        write(tmp_path / "images" / "train" / f"{name}.tif", image + 1)
        write(tmp_path / "masks" / "train" / f"{name}.tif", mask, nodata=0)
    dataset = opened(tmp_path, window=64)
    assert (dataset[0].labels == 255).any()
    assert np.array_equal(dataset[0].labels, dataset[1].labels)
    write(tmp_path / "masks" / "train" / "painted.tif", painted)
    with pytest.raises(DatasetError, match=r"painted\.tif: the mask has colours that are not .*: \(0, 0, 0\)"):
        opened(tmp_path, window=64)[1]
    write(tmp_path / "masks" / "train" / "painted.tif", painted.astype(np.uint16))
    with pytest.raises(DatasetError, match=r"painted\.tif is not a mask: its colours are uint16\. Save masks with 8"):
        opened(tmp_path, window=64)[1]


def test_other_tasks_take_windows(root, tmp_path_factory):
    """A binary view of classes, and 16-bit masks of bits, whose no-data value is ignored."""
    binary = build_dataset("folder", root=root, task="binary", positive="road", window=48, window_overlap=8)
    plain = opened(root)
    for one, other in ((binary[3], plain[3]), (binary.draw(3, seed=5), plain.draw(3, seed=5))):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, np.select([other.labels == 1, other.labels == 255], [1, 255], 0))
    folder = tmp_path_factory.mktemp("bits")
    bits = np.random.default_rng(0).choice([0, 1, 2, 5, 32768, 6], (70, 60)).astype(np.uint16)
    image, _ = arrays((70, 60))
    write(folder / "images" / "train" / "a.tif", image + 1)
    write(folder / "masks" / "train" / "a.tif", bits, nodata=6)
    (folder / "classes.csv").write_text("name\na\nb\nc\n")
    dataset = build_dataset("folder", root=folder, task="multilabel", window=100)
    assert np.array_equal(dataset[0].labels, np.where(bits == 6, 32768, bits))
    for value in (65537, -1):  # which 16 bits would take for 1, and for ignored
        write(folder / "masks" / "train" / "a.tif", np.where(bits == 6, value, bits.astype(np.int32)).astype(np.int32))
        with pytest.raises(DatasetError, match=rf"a.tif: label out of range: .*{value}.* 0..65535, in rows 0 to 69"):
            build_dataset("folder", root=folder, task="multilabel", window=100)


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        ("EPSG:32634", TRANSFORM, r"another CRS, EPSG:32634 and not EPSG:32633"),
        (
            "EPSG:32633",
            rasterio.Affine(5, 0, 500000, 0, -5, 5300000),
            r"another resolution, 5 x 5 metre and not 10 x 10",
        ),
        ("EPSG:32633", TRANSFORM @ rasterio.Affine.translation(3, 0), r"another place, 3 pixels away"),
        ("EPSG:32633", rasterio.Affine(10, 0, 500000, 0, 10, 5300000), r"another place"),
        ("EPSG:32633", rasterio.Affine(7, 7, 500000, 7, -7, 5300000), r"another resolution"),
    ],
)
def test_labels_elsewhere_are_refused(crs, transform, message, root):
    _, labels = arrays(SIZES["ä"], 1)
    path = write(root / "masks" / "train" / "ä.tif", labels, crs=crs, transform=transform)
    with pytest.raises(DatasetError, match=message) as caught:
        opened(root)
    assert str(path) in str(caught.value)
    assert str(root / "images" / "train" / "ä.tif") in str(caught.value)
    assert "gdalwarp" in str(caught.value)


def test_labels_of_another_size_are_refused(root):
    write(root / "masks" / "train" / "ä.tif", np.full((64, 65), 3, np.uint8))
    with pytest.raises(DatasetError, match=r"labels of another size: .*ä.tif has 65 x 64 pixels .*ä.tif 64 x 64"):
        opened(root)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_in_several_zones_and_without_a_place(root):
    """Only image and labels of a pair must agree."""
    for name, crs, transform in (("ä", "EPSG:32634", TRANSFORM), ("small", None, None)):
        image, labels = arrays(SIZES[name])
        for folder, array in (("images", image), ("masks", labels)):
            write(root / folder / "train" / f"{name}.tif", array, crs=crs, transform=transform)
    assert len(opened(root)) > 4
    image, labels = arrays(SIZES["ä"])
    write(root / "masks" / "train" / "ä.tif", labels, crs=None)  # painted on a copy that lost its place
    assert len(opened(root)) > 4


def test_a_damaged_tile_names_file_and_window(root):
    path = root / "images" / "train" / "a [1] 50%.tif"
    image, _ = arrays(SIZES["a [1] 50%"])
    write(path, image + 1, blockxsize=64, blockysize=64)
    dataset = opened(root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8000] = np.random.default_rng(1).bytes(8000)
    path.write_bytes(data)
    messages = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except DatasetError as error:
            messages.append(str(error))
    assert messages
    assert all("cannot read rows " in text and ", columns " in text for text in messages)
    assert all(f"{path}: damaged, or not complete" in text for text in messages)


def test_labels_out_of_range_name_the_window(root):
    _, labels = arrays(SIZES["ä"])
    labels[50, 60] = 77
    write(root / "masks" / "train" / "ä.tif", labels)
    with pytest.raises(
        DatasetError, match=r"ä.tif: label out of range: raw id 77 .*, in rows 32 to 63, columns 32 to 63"
    ):
        opened(root, window=32)
    write(root / "masks" / "train" / "ä.tif", labels.astype(np.uint16) + 300)
    with pytest.raises(DatasetError, match=r"ä.tif holds 303 to \d+ in rows 0 to 31.*only 0..255 can be labels"):
        opened(root, window=32)
    write(root / "masks" / "train" / "ä.tif", labels.astype(np.float32))
    with pytest.raises(DatasetError, match=r"ä.tif is no label raster: it has 1 bands of float32"):
        opened(root, window=32)


def test_files_that_have_no_parts(root, tmp_path_factory):
    import cv2

    image, labels = arrays((20, 30))
    cv2.imwrite(str(root / "images" / "train" / "photo.png"), image)
    cv2.imwrite(str(root / "masks" / "train" / "photo.png"), labels)
    with pytest.raises(DatasetError, match=r"photo.png by windows: it is no TIFF.* gdal_translate -co TILED=YES"):
        opened(root)
    (root / "images" / "train" / "photo.png").rename(root / "images" / "train" / "photo.tif")
    with pytest.raises(DatasetError, match=r"photo.tif by windows: it is no TIFF"):
        opened(root)
    (root / "images" / "train" / "photo.tif").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"photo.tif by windows: it is no TIFF"):
        opened(root)
    (root / "images" / "train" / "photo.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(DatasetError, match=r"cannot read .*photo.tif: no TIFF image, or a damaged one"):
        opened(root)


def test_a_raster_of_one_giant_strip_is_refused(root, monkeypatch):
    monkeypatch.setattr(raster_windows, "LIMIT", 2000)
    image, labels = arrays((40, 60))
    write(root / "images" / "train" / "ä.tif", image, tiled=False, blockysize=40)
    write(root / "masks" / "train" / "ä.tif", labels)
    with pytest.raises(DatasetError, match=r"ä.tif by windows: its parts are 40 x 60 pixels. Save it as a tiled TIFF"):
        opened(root)


def test_nothing_but_no_data(tmp_path):
    for folder, array in (("images", np.ones((20, 20, 3), np.uint8)), ("masks", np.full((20, 20), 255, np.uint8))):
        write(tmp_path / folder / "train" / "a.tif", array)
    (tmp_path / "classes.csv").write_text(CLASSES)
    with pytest.raises(DatasetError, match=r"no window of the train split .*all 1 rasters .*images/train/a.tif"):
        opened(tmp_path)


def test_the_identity_tells_other_windows(root):
    first = opened(root).identity()
    assert opened(root).identity() == first
    assert opened(root, window=47).identity() != first
    assert opened(root, overlap=7).identity() != first
    _, labels = arrays(SIZES["ä"])
    write(root / "masks" / "train" / "ä.tif", np.full_like(labels, 3))
    assert opened(root, window=24).identity() != first


def test_names_are_unique_and_lead_nowhere(root):
    dataset = opened(root)
    names = [dataset.sample_name(index) for index in range(len(dataset))]
    assert len(set(names)) == len(names)
    assert names[0].startswith("images/train/")


def test_the_config_opens_windows(root):
    data = DataConfig(dataset="folder", root=str(root), window=48, window_overlap=4)
    dataset = dataset_for(data, "val")
    assert (type(dataset), dataset.window, dataset.overlap) == (WindowDataset, 48, 4)
    assert dataset_for(DataConfig(dataset="folder", root=str(root), window=48), "val").overlap == 6
    with pytest.raises(ConfigError, match=r"data.window is for --dataset folder: synthetic has its own layout"):
        build_dataset("synthetic", window=64)
    with pytest.raises(ConfigError, match=r"data.window_overlap \(48\) must be less than data.window \(48\)"):
        opened(root, overlap=48)


def test_a_process_keeps_few_files_open_and_a_fork_none(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_windows, "MOST_OPEN", 3)
    paths = [write(tmp_path / f"{number}.tif", np.full((9, 9), number, np.uint8)) for number in range(8)]
    rasters = RasterWindows()
    for _ in range(2):
        for number, path in enumerate(paths):
            assert (rasters.bands(path, Window(1, 2, 3, 4)) == number).all()
            assert len(rasters._open) <= 3
    handles = list(rasters._open.values())
    child = os.fork()
    if not child:
        fresh = rasters.source(paths[-1])
        os._exit(0 if all(fresh is not handle for handle in handles) and len(rasters._open) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not handles[0].closed
    rasters.close()
    assert all(handle.closed for handle in handles)
    assert not pickle.loads(pickle.dumps(rasters))._open


@pytest.mark.long
@pytest.mark.slow
def test_memory_is_that_of_windows(tmp_path):
    """Rasters of 300 MB (image) and 100 MB (labels): opened, drawn and read in order by a fresh process."""
    size = 10_000
    options = {"driver": "GTiff", "height": size, "width": size, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    for folder, count in (("images", 3), ("masks", 1)):
        (tmp_path / folder / "train").mkdir(parents=True)
        with rasterio.open(tmp_path / folder / "train" / "a.tif", "w", count=count, crs="EPSG:32633",
                           transform=TRANSFORM, **options) as file:  # fmt: skip
            for top in range(0, size, 1000):
                file.write(np.full((count, 1000, size), 3 + top // 1000 % 2 * 4, np.uint8),
                           window=((top, top + 1000), (0, size)))  # fmt: skip
    (tmp_path / "classes.csv").write_text(CLASSES)
    code = f"""
import json, resource, sys
from resnest_seg.data.datasets import Subset, assign_folds
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.tiles import WindowDataset, paired_files, scored_part
import rasterio, numpy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
files = FolderDataset({str(tmp_path)!r}, "train")
start = peak()
dataset = WindowDataset(files, 512, overlap=64)
for index in range(0, len(dataset), 3):
    dataset.draw(index, seed=index)
    dataset[index]
print(json.dumps([len(dataset), peak() - start]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    windows, grown = json.loads(done.stdout)
    assert windows == 400
    assert grown < 160e6, "of 400 MB; the cache of tiles has 64 MiB, a window 1.2 MB"


def test_a_check_of_a_run_counts_no_context_as_ignored(root, tmp_path):
    segmenter = build_segmenter("resnest14_tiny", "fcn", 3)
    segmenter.label_space = opened(root).label_space
    data = DataConfig(dataset="folder", root=str(root), window=48, window_overlap=8)
    segmenter.config = dataclasses.replace(segmenter.config, data=data)
    segmenter.to_checkpoint().save(tmp_path / "model.safetensors")
    splits, problems = open_splits(parse(["--checkpoint", str(tmp_path / "model.safetensors")]))
    assert [(split.window, split.overlap) for split in splits] == [(48, 0), (48, 0)]
    assert not problems


def test_windows_of_a_raster_are_in_one_fold_and_seen_through_views(root):
    dataset = opened(root)
    fold_of = assign_folds(dataset, 3)
    rasters = [cell.pair for cell in dataset.cells]
    assert len(set(zip(rasters, fold_of.tolist(), strict=True))) == len(set(rasters)) == len(SIZES)
    view = with_task(Subset(dataset, [5, 2]), "multilabel")
    assert paired_files(view) is dataset.files
    assert [scored_part(view, index) for index in range(2)] == [dataset.cell_within(5), dataset.cell_within(2)]


def shrinking(tmp_path):
    """Windows of two rasters of 8 bits, of which some have no data once 5 means that; the number that stay."""
    for name in "ab":
        image, labels = arrays((64, 64), ord(name))
        image += 6
        image[:32, :32] = 5
        labels[:] = 3
        write(tmp_path / "images" / "train" / f"{name}.tif", image)
        write(tmp_path / "masks" / "train" / f"{name}.tif", labels)
    (tmp_path / "classes.csv").write_text(CLASSES)
    return opened(tmp_path, window=32, overlap=0), BandReader((1, 2, 3), nodata=5), 6


def test_samples_that_were_chosen_stay_what_they_are(tmp_path):
    dataset, bands, left = shrinking(tmp_path)
    names = [dataset.sample_name(index) for index in range(len(dataset))]
    for _ in range(2):  # the refusal leaves all as it was
        with pytest.raises(DatasetError, match=r"chosen by index before its bands .*BandReader\(bands=\(1, 2, 3\)"):
            with_task(Subset(dataset, [5, 2]), "multilabel").read_as(bands)
        assert (dataset.bands, [dataset.sample_name(index) for index in range(len(dataset))]) == (None, names)
    segmenter = build_segmenter("resnest14_tiny", num_classes=3)
    data = DataConfig(bands=(1, 2, 3), nodata=5.0, pixel_mean=(9.0,) * 3, pixel_std=(9.0,) * 3)
    segmenter.config = dataclasses.replace(segmenter.config, data=data)
    with pytest.raises(DatasetError, match="chosen by index"):
        evaluate(segmenter, dataset, indices=[0, 7])
    assert evaluate(segmenter, dataset).images == left
    subset = Subset(dataset, [5, 2])
    subset.read_as(dataclasses.replace(bands, fill=(7.0, 7.0, 7.0)))
    assert [subset.sample_name(index) for index in range(2)] == [dataset.sample_name(index) for index in (5, 2)]


def test_a_runs_own_windows_are_read_before_they_are_divided(tmp_path, monkeypatch):
    """Else a fold's indices would name other windows than were dealt to it, held-out ones among them."""
    dataset, bands, left = shrinking(tmp_path)
    config = config_from_dict({"data": {"bands": [1, 2, 3], "nodata": 5}, "eval": {"sheet": 0}})
    train, validation = splits(config, Parts(dataset, dataset))
    assert train.bands == validation.bands == bands
    assert len(train) == left

    dataset = shrinking(tmp_path)[0]
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "folds" / "folds.json").write_text(json.dumps(fold_record(train, 2, group_by=None)))
    monkeypatch.setattr(cross_validation, "checkpoints_of", lambda folder: [])
    monkeypatch.setattr(cross_validation, "held_out", lambda folder, data: held_out(folder, data)[2:])
    with pytest.raises(IndexError):  # no run, no report; but the same samples
        cross_validation.cross_validate(tmp_path / "folds", train=dataset)
    assert len(dataset) == left


def test_cells_are_those_in_which_the_chosen_bands_have_data(tmp_path):
    """GDAL tags a fourth band of 8 bits as alpha: as near infrared it is 0 over water, which is data where chosen."""
    image, labels = arrays((64, 64), bands=4)
    image, labels[:] = image + 1, 3
    image[:32, :32, 3] = 0
    path = write(tmp_path / "images" / "train" / "a.tif", image)
    write(tmp_path / "masks" / "train" / "a.tif", labels)
    (tmp_path / "classes.csv").write_text(CLASSES)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    dataset = opened(tmp_path, window=32, overlap=0)
    every = [None, *(BandReader(bands) for bands in ((1, 2, 3, 4), (3, 2, 1), (4,), (1, 4)))]
    for bands in [*every, *reversed(every)]:
        dataset.read_as(bands)
        assert len(dataset) == (4 if bands is not None and 4 in bands.bands else 3)
        assert all((dataset[index].labels != 255).any() for index in range(len(dataset)))
    image[:32, :32, :3] = 0
    write(path, image, nodata=0, photometric="minisblack", alpha="unspecified")
    image[:32, :32, 3] = 9
    write(tmp_path / "images" / "train" / "b.tif", image, nodata=0, photometric="minisblack", alpha="unspecified")
    write(tmp_path / "masks" / "train" / "b.tif", labels)
    dataset = opened(tmp_path, window=32, overlap=0)
    for bands, count in ((BandReader((1, 2, 3)), 6), (BandReader((1, 2, 3, 4)), 7), (BandReader((4,), nodata=9), 6)):
        dataset.read_as(bands)
        assert len(dataset) == count
        assert all((dataset[index].labels != 255).any() for index in range(len(dataset)))
