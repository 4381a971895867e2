"""A data set gives the same samples to the bit, wherever its files lie."""

import hashlib
import logging
import shutil

import fsspec
import numpy as np
import pytest
from support import fake_data, rasters

from resnest_seg.config import DataConfig
from resnest_seg.data.build import build_dataset, opened_root
from resnest_seg.data.loader import build_loader
from resnest_seg.data.shards import ShardDataset, pack_shards
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.training.classification import ClassFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Data sets in folders, by name, each with the options that open it."""
    base = tmp_path_factory.mktemp("data sets")
    found = {name: (fake_data.make(name, base / name, count=2), name, {}) for name in fake_data.LAYOUTS}
    space = LabelSpace.numbered(4)
    for style, photo, mask in (
        ("folder", "images/à [{}].jpg", "masks/à [{}].png"),
        ("lists", "JPEGImages/a#{}.jpg", "SegmentationClass/a#{}.png"),
        ("patterns", "p/train/x%20{}_rgb.png", "q/train/x%20{}_L.png"),
    ):
        for index in range(12):
            pixels, labels = fake_data.picture_and_mask(space, index)
            fake_data.write(base / style / photo.format(index), pixels)
            fake_data.write(base / style / mask.format(index), labels)
        found[style] = (base / style, "folder", {})
    lists = base / "lists" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, numbers in (("train", range(9)), ("val", range(9, 12))):
        (lists / f"{split}.txt").write_text("".join(f"a#{number}\n" for number in numbers))
    (base / "folder" / "classes.csv").write_text("name,id\nzero,0\none,1\ntwo,2\nthree,3\n")
    found["patterns"] = (base / "patterns", "folder", {"images": "p/{split}/*_rgb.png", "masks": "q/{split}/*_L.png"})
    return found


def pack(folder, path):
    """The files of a folder in a zip file."""
    shutil.make_archive(path.with_suffix(""), "zip", folder)
    return path


def in_memory(folder):
    fsspec.filesystem("memory").pipe(
        {f"/{folder.name}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.*")}
    )
    return f"memory://{folder.name}"


PLACES = {
    "zip": lambda folder, store, tmp: {"root": pack(folder, tmp / "all.zip")},
    "memory": lambda folder, store, tmp: {"root": in_memory(folder)},
    "s3": lambda folder, store, tmp: {"root": store.put_folder("same-samples", folder, f"{folder.name}/")},
    "s3 with a cache": lambda folder, store, tmp: {
        "root": store.put_folder("same-samples", folder, f"{folder.name}/"),
        "cache": tmp / "cache",
    },
    "a zip at s3": lambda folder, store, tmp: {
        "root": store.put("same-samples", {"all.zip": pack(folder, tmp / "all.zip").read_bytes()}) + "/all.zip"
    },
}
"""Where the files of a folder can lie -> a function of (folder, store, temporary folder) that puts them there and
returns the options of `build_dataset` that open them."""


@pytest.fixture(params=PLACES)
def place(request, object_store, tmp_path):
    object_store.heal()
    yield lambda folder: PLACES[request.param](folder, object_store, tmp_path)
    fsspec.filesystem("memory").store.clear()


def content(dataset):
    """Names within the data set, and a hash of pixels and labels of every sample."""
    samples = [(dataset.sample_name(index), dataset[index]) for index in range(len(dataset))]
    return [
        (name, hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes()).hexdigest()) for name, sample in samples
    ]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ade20k", "cityscapes", "camvid", "folder", "lists", "patterns"])
def test_every_data_set(kind, roots, place):
    folder, name, options = roots[kind]
    there = place(folder)
    for split in ("train", "val"):
        ours = build_dataset(name, root=folder, split=split, **options)
        other = build_dataset(name, split=split, **options, **there)
        assert content(other) == content(ours)
        assert content(other) == content(ours)  # now from the cache, where there is one
        assert other.identity() == ours.identity()  # so a run goes on when its data moves
        assert other.label_space == ours.label_space


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, "folder") for kind in ("ade20k", "cityscapes", "folder", "patterns")]
    + [("folder", where) for where in ("s3", "s3 with a cache", "memory")],
)
def test_packed_shards(kind, where, roots, object_store, tmp_path):
    """Every layout is packed; shards are alike wherever they lie, so that those of one layout lie at addresses."""
    folder, name, options = roots[kind]
    splits = [build_dataset(name, root=folder, split=split, **options) for split in ("train", "val")]
    pack_shards(splits, tmp_path / f"shards-{kind}", shard_size=100_000)
    there = {"root": tmp_path / f"shards-{kind}"} if where == "folder" else None
    there = there or PLACES[where](tmp_path / f"shards-{kind}", object_store, tmp_path)
    for ours in splits:
        for called in ("shards", name):
            other = build_dataset(called, split=ours.split, **there)
            assert content(other) == content(ours)
            assert other.identity() == ours.identity()
            assert other.label_space == ours.label_space
        for one, two in zip(batches(ours, 0), batches(other, 1), strict=True):
            assert np.array_equal(one[0], two[0])
            assert np.array_equal(one[1], two[1])
    fsspec.filesystem("memory").store.clear()


def test_shards_at_s3_cost_a_request_a_sample(roots, object_store, tmp_path):
    """Index, table and listing once; photo and mask of a sample together, whatever trouble the store has."""
    ours = build_dataset("folder", root=roots["folder"][0])
    pack_shards([ours], tmp_path / "shards", shard_size=100_000)
    address = object_store.put_folder("few-requests", tmp_path / "shards", "a b [1]/")
    object_store.heal()
    dataset = ShardDataset(address)
    assert object_store.count() == 3
    random = np.random.default_rng(0).permutation(len(dataset))
    for index in random:
        dataset[int(index)]
    assert object_store.count(r"GET .*\.tar") == len(dataset) == object_store.count() - 3
    object_store.trouble("503", times=1, match=r"GET .*\.tar")
    object_store.trouble("cut", times=1, match=r"GET .*\.tar")
    assert content(dataset) == content(ours)
    whole = (tmp_path / "shards" / "train-000000.tar").read_bytes()
    for data, message in (
        (whole[:-5000], r"cannot read s3://.*/train-000000.tar: it has \d+ bytes, and index.json says"),
        (whole[:3000] + b"x" + whole[3001:], r"train-000000.tar!.* was changed"),  # since it was listed
    ):
        object_store.put("few-requests", {"a b [1]/train-000000.tar": data})
        with pytest.raises(DatasetError, match=message):
            content(ShardDataset(address) if len(data) < len(whole) else dataset)
    with pytest.raises(DatasetError, match=r"train-000000.tar is damaged, or was written anew"):
        content(ShardDataset(address))
    object_store.client().delete_object(Bucket="few-requests", Key="a b [1]/index.json")
    with pytest.raises(DatasetError, match=r"no packed data set: there is no s3://few-requests/a b \[1\]/index.json"):
        ShardDataset(address)


def batches(dataset, workers):
    crop = TrainTransform.from_config(DataConfig(base_size=48, crop_size=32))
    loader = build_loader(dataset, batch_size=4, transform=crop, shuffle=True, seed=3, epoch=1, workers=workers)
    return [(batch.images.numpy().copy(), batch.labels.numpy().copy()) for batch in loader]


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_loader_processes(workers, roots, place, tmp_path, monkeypatch):
    log = logging.FileHandler(tmp_path / "log.txt")  # what asyncio says of connections that a fork has shared
    monkeypatch.setattr(logging.getLogger("asyncio"), "handlers", [log])
    folder, name, options = roots["folder"]
    ours = batches(build_dataset(name, root=folder, **options), 0)
    theirs = batches(build_dataset(name, **options, **place(folder)), workers)
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    log.close()
    assert (tmp_path / "log.txt").read_text() == ""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3 with a cache"])
def test_windows_of_rasters(kind, object_store, tmp_path):
    pytest.importorskip("rasterio")
    folder = tmp_path / "rasters"
    for split in ("train", "val"):
        for index in range(2):
            photo, mask = fake_data.picture_and_mask(LabelSpace.numbered(3), index)
            rasters.write_raster(folder / "images" / split / f"ü {index}.tif", photo)
            rasters.write_raster(folder / "masks" / split / f"ü {index}.tif", mask[..., None])
    there = PLACES[kind](folder, object_store, tmp_path)
    ours = build_dataset("folder", root=folder, window=32)
    other = build_dataset("folder", window=32, **there)
    assert content(other) == content(ours)
    assert [ours.draw(index, seed=4).image.tobytes() for index in range(len(ours))] == [
        other.draw(index, seed=4).image.tobytes() for index in range(len(other))
    ]


def test_folders_of_classes(tmp_path, place):
    random, folder = np.random.default_rng(0), tmp_path / "classes"
    for split in ("train", "val"):
        for name in ("bee", "ant-eater", "ant"):
            for index in range(2):
                pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                fake_data.write(folder / split / name / f"{index}.png", pixels)
    ours = ClassFolder(folder, "train")
    other = ClassFolder(opened_root("imagenet", **place(folder)), "train")
    assert (other.names, other.labels, other.identity()) == (ours.names, ours.labels, ours.identity())
    assert all(np.array_equal(other[index][0], ours[index][0]) for index in range(len(ours)))


def test_a_class_list_at_an_address(roots, object_store):
    folder, name, _ = roots["patterns"]
    address = object_store.put("same-samples", {"lists/my classes.csv": b"name,id\na,0\nb,1\nc,2\nd,3\n"})
    dataset = build_dataset(name, root=folder, images="p/{split}/*_rgb.png", masks="q/{split}/*_L.png",
                            classes=f"{address}/lists/my classes.csv")  # fmt: skip
    assert dataset.label_space.names == ("a", "b", "c", "d")


def test_official_zips_in_a_folder_at_an_address(roots, object_store, tmp_path):
    folder, name, _ = roots["cityscapes"]
    packed = {}
    for part in ("leftImg8bit", "gtFine"):
        path = tmp_path / f"{part}_trainvaltest.zip"
        shutil.make_archive(path.with_suffix(""), "zip", folder, part)
        packed[f"zips/{path.name}"] = path.read_bytes()
    address = object_store.put("same-samples", packed) + "/zips"
    ours, other = build_dataset(name, root=folder), build_dataset(name, root=address, cache=tmp_path / "cache")
    assert content(other) == content(ours)
    assert other.identity() == ours.identity()


def test_errors_of_rasters_name_their_address(object_store, tmp_path):
    pytest.importorskip("rasterio")
    files = {f"broken/{kind}/a.tif": b"no raster" for kind in ("images", "masks")} | {
        "broken/val.txt": b"",
        "broken/train.txt": b"a",
    }
    address = object_store.put("same-samples", files | {"broken/classes.csv": b"name\na\nb\n"}) + "/broken"
    with pytest.raises(
        DatasetError, match=r"cannot read s3://same-samples/broken/images/a.tif by windows: it is no TIFF"
    ):
        build_dataset("folder", root=address, window=32, cache=tmp_path / "cache")
