"""Packed data sets: the same samples to the bit, in files that others read; nothing half-written or changed passes."""

import contextlib
import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support import fake_data
from support.rasters import NAMES, make_scenes, write_raster

from resnest_seg.config import DataConfig
from resnest_seg.data.build import build_dataset, stored_as, with_task
from resnest_seg.data.checks import diagnose
from resnest_seg.data.class_balance import balance, pixel_statistics
from resnest_seg.data.datasets import PairDataset, Subset, assign_folds
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.shards import ShardDataset, pack_shards, shard_numbers
from resnest_seg.data.tiles import WindowDataset
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.bands import BandReader

SIZE = 40_000
"""Bytes of a shard, so that a few small photos fill one."""


def photos(root, *, names, masks, suffix=".jpg", exif=None):
    """A folder data set of noise and the given masks, one for each name; val is one photo in ten by its name."""
    for index, (name, mask) in enumerate(zip(names, masks, strict=True)):
        rough = np.random.default_rng(index).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        photo = Image.fromarray(cv2.resize(rough, mask.shape[1::-1], interpolation=cv2.INTER_CUBIC))
        for kind, picture, end, options in (
            ("images", photo, suffix, {} if exif is None else {"exif": exif}),
            ("masks", Image.fromarray(mask), ".png", {}),
        ):
            path = root / kind / f"{name}{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **options)
    return root


def blocks(index, values, *, size=(48, 64)):
    """A mask of blocks of the given values."""
    chosen = np.random.default_rng(index).choice(values, (size[0] // 8, size[1] // 8))
    return chosen.repeat(8, axis=0).repeat(8, axis=1)


STRANGE = ["a b", "ü [1]", "50%", "a%20b", "c#d", "e?f", "dots.in.it", "deep/er/name", "bytes\udcff\udcfe", "x" * 200]


def make(kind, root):
    """A data set of a kind, with its splits."""
    if kind in fake_data.LAYOUTS:
        fake_data.make(kind, root, count=5)
        if kind == "cityscapes":  # without masks
            photo = root / fake_data.cityscapes_files("test", 0)[0]
            fake_data.write(photo, np.full((48, 64, 3), 9, np.uint8))
            return [build_dataset(kind, root=root, split=split) for split in ("train", "val", "test")]
        return [build_dataset(kind, root=root, split=split) for split in ("train", "val")]
    if kind == "synthetic":
        return [Subset(build_dataset("synthetic", split=split), range(3)) for split in ("train", "val")]
    if kind == "bands":
        make_scenes(root, nodata=0)
        return [FolderDataset(root, split) for split in ("train", "val")]
    names = [*STRANGE, *map(str, range(20))]
    if kind == "folder":
        values, exif = np.array([0, 1, 2, 255], np.uint8), Image.Exif()
        exif[274] = 3  # upside down
        photos(root, names=names, masks=[blocks(i, values) for i in range(len(names))], exif=exif)
        return [FolderDataset(root, split) for split in ("train", "val")]
    if kind == "binary":
        masks = [blocks(i, np.array([0, 255], np.uint8)) for i in range(len(names))]
    else:
        masks = [blocks(i, np.array([0, 1, 2, 7, 32768], np.uint16)) for i in range(len(names))]
    photos(root, names=names, masks=masks, suffix=".png")
    return [FolderDataset(root, split, task=kind) for split in ("train", "val")]


KINDS = (*fake_data.LAYOUTS, "folder", "binary", "multilabel", "bands", "synthetic")


def same_samples(one, other):
    """Both data sets are equal but for the places of their files."""
    assert len(one) == len(other) > 0
    assert (one.split, one.label_space, one.identity()) == (other.split, other.label_space, other.identity())
    for index in range(len(one)):
        assert (one.sample_name(index), one.group(index)) == (other.sample_name(index), other.group(index))
        for first, second in zip(one[index][:2], other[index][:2], strict=True):
            assert first.dtype == second.dtype
            assert first.shape == second.shape
            assert first.tobytes() == second.tobytes()
        rasters = one.raster(index), other.raster(index)
        assert rasters[0].pixels.tobytes() == rasters[1].pixels.tobytes()
        assert rasters[0].undeclared == rasters[1].undeclared
        assert np.array_equal(*(raster.valid if raster.valid is not None else True for raster in rasters))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_data_set_has_the_same_samples(kind, tmp_path):
    splits = make(kind, tmp_path / "before")
    workers = 2 if kind == "folder" else 0
    for dataset in splits:
        dataset.read_as(BandReader(NAMES) if kind == "bands" else None)
    pack_shards(splits, tmp_path / "shards", shard_size=SIZE, workers=workers)
    for dataset in splits:
        packed = ShardDataset(tmp_path / "shards", dataset.split)
        for bands in (None,) if kind != "bands" else (BandReader(NAMES), BandReader((4, 2), fill=(700.0, 900.0))):
            dataset.read_as(bands)
            packed.read_as(bands)
            same_samples(dataset, packed)
    if kind == "folder":
        assert len(ShardDataset(tmp_path / "shards").source.shards) > 2


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The training split of a folder of 27 photos."""
    return make("folder", tmp_path_factory.mktemp("before"))[0]


@pytest.fixture(scope="module")
def shards(before, tmp_path_factory):
    """Its shards; tests that change them take a copy."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack_shards([before], folder, shard_size=SIZE)
    return folder


@pytest.fixture
def copied(shards, tmp_path):
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_tar_reads_the_shards(before, shards):
    """By the standard library: members in order, photos with their bytes, names and groups as JSON."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            keys = [member.name.partition(".")[0] for member in archive]
            assert keys == sorted(keys)
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    assert len(found) == 3 * len(before)
    for index in range(len(before)):
        photo, _ = before.pairs[index]
        assert found[f"{index:09}.jpg"] == before.source.read(photo)
        labels = np.array(Image.open(io.BytesIO(found[f"{index:09}.seg.png"])))
        assert np.array_equal(labels, before[index].labels)
        assert json.loads(found[f"{index:09}.json"]) == {"name": photo, "group": photo}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # its files
def test_webdataset_reads_the_shards(before, shards):
    import webdataset

    paths = sorted(map(str, shards.glob("train-*.tar")))
    rows = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    assert [row["__key__"] for row in rows] == [f"{index:09}" for index in range(len(before))]
    assert [row["json"]["name"] for row in rows] == [before.sample_name(index) for index in range(len(before))]
    for index, row in enumerate(rows):
        assert np.array_equal(row["seg.png"][..., 0], before[index].labels)
        assert row["jpg"].shape == before[index].image.shape


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class StopError(Exception):
    """What ends a pack in its middle."""


def after(count):
    """Called with a number of packed samples; raises when there are so many."""
    done = [0]

    def on_sample(more):
        done[0] += more
        if done[0] >= count:
            raise StopError

    return on_sample


def test_what_was_interrupted_goes_on_to_the_same_bytes(before, shards, tmp_path):
    for count in (1, 9, 20, len(before)):
        with contextlib.suppress(StopError):
            pack_shards([before], tmp_path / "again", shard_size=SIZE, on_sample=after(count))
        with pytest.raises(DatasetError, match=r"there is no .*index.json: it was not packed to its end, and the"):
            ShardDataset(tmp_path / "again")
    (tmp_path / "again" / ".train-000004.4711.tmp.tar").write_bytes(b"left by a killed process")
    (tmp_path / "again" / "train-000001.tar").write_bytes(b"cut off by a power failure")
    done = []
    pack_shards([before], tmp_path / "again", shard_size=SIZE, workers=1, on_sample=done.append)
    assert done[0] == int((ShardDataset(shards).source.table.rows["shard"] == 0).sum())  # of finished shards
    assert sum(done) == len(before)
    assert contents(tmp_path / "again") == contents(shards)


KILLED = """
import os, signal, sys
from pathlib import Path
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.shards import pack_shards
root, output, *moments = sys.argv[1:]
dataset = FolderDataset(root)

def pack(last):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("os.rename", "os.remove") and output in str(arguments[0]):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    pack_shards([dataset], output, shard_size=40_000)

for last in map(int, moments):
    child = os.fork()
    if not child:
        pack(last)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, Path(output, "index.json").exists(), flush=True)
"""
"""Packs again and again; each time, the process kills itself before the so-manieth change of a name in the output."""


@pytest.mark.long
@pytest.mark.slow
def test_kill_9_leaves_nothing_that_passes_for_whole(before, shards, tmp_path):
    """At random instants, other ones in every run of the tests, one after the other in the same folder."""
    output, moments = tmp_path / "again", sorted(random.choices(range(1, 12), k=6))
    words = [sys.executable, "-c", KILLED, before.source.root, output, *moments]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    seen = [line.split() for line in done.stdout.splitlines()]
    assert [code for code, _ in seen][:1] == ["-9"], (moments, done.stderr)
    whole = seen[-1][1] == "True"
    assert all(code == "-9" for code, _ in seen[:-1]) or whole, (moments, done)
    if whole:
        same_samples(before, ShardDataset(output))
        pack_shards([before], output, shard_size=SIZE, overwrite=True)
    else:
        with pytest.raises(DatasetError, match=r"no packed data set"):
            ShardDataset(output)
        pack_shards([before], output, shard_size=SIZE)
    assert contents(output) == contents(shards), moments


def test_shards_and_folders_that_are_in_use_are_refused(before, shards, copied, tmp_path):
    with pytest.raises(ConfigError, match=r"holds a packed data set already: .* --overwrite"):
        pack_shards([before], copied, shard_size=SIZE)
    pack_shards([before], copied, shard_size=10 * SIZE, overwrite=True)
    assert len(list(copied.glob("*.tar"))) < len(list(shards.glob("*.tar")))
    same_samples(before, ShardDataset(copied))

    with pytest.raises(ConfigError, match=r"before0 holds the data set that is to be packed: choose another --output"):
        pack_shards([before], before.source.root, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds other files, such as 0.jpg"):
        pack_shards([before], before.source.root / "images", overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds other files, such as thesis.tex"):
        pack_shards([before], mine, overwrite=True)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"copy holds the data set that is to be packed"):
        pack_shards([ShardDataset(copied)], copied, overwrite=True)
    same_samples(before, ShardDataset(copied))

    with contextlib.suppress(StopError):
        pack_shards([before], tmp_path / "begun", shard_size=SIZE, on_sample=after(20))
    with pytest.raises(ConfigError, match=r"another call began .*\(shards of 40000 bytes, not 80000\)"):
        pack_shards([before], tmp_path / "begun", shard_size=2 * SIZE)
    with pytest.raises(ConfigError, match=r"another call began .*\(other splits\)"):
        pack_shards([Subset(before, range(20))], tmp_path / "begun", shard_size=SIZE)
    pack_shards([Subset(before, range(20))], tmp_path / "begun", shard_size=SIZE, overwrite=True)
    same_samples(Subset(before, range(20)), ShardDataset(tmp_path / "begun"))


def test_one_process_packs_into_a_folder(before, tmp_path):
    def meanwhile(count):
        with pytest.raises(ConfigError, match=r"another process is packing into .*shards: wait for it to end"):
            pack_shards([before], tmp_path / "shards", overwrite=True)

    pack_shards([before], tmp_path / "shards", on_sample=meanwhile)
    same_samples(before, ShardDataset(tmp_path / "shards"))


def test_what_cannot_be_packed(before, tmp_path):
    for kind, bands in (("images", 3), ("masks", 1)):
        pixels = np.random.default_rng(0).integers(0, 2, (64, 64, bands), dtype=np.uint8)
        write_raster(tmp_path / "scenes" / kind / "train" / "a.tif", pixels)
        write_raster(tmp_path / "scenes" / kind / "val" / "b.tif", pixels)
    windows = WindowDataset(FolderDataset(tmp_path / "scenes"), 32)
    with pytest.raises(ConfigError, match=r"windows of rasters cannot be packed: .* Pack whole images"):
        pack_shards([windows], tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"different words, not 'train', 'train'"):
        pack_shards([before, before], tmp_path / "shards")
    other = FolderDataset(tmp_path / "scenes", "val")
    with pytest.raises(ConfigError, match=r"train and val have different classes"):
        pack_shards([before, other], tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"nothing to pack"):
        pack_shards([], tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_a_damaged_photo_is_named_and_nothing_is_whole(before, tmp_path):
    root = Path(shutil.copytree(before.source.root, tmp_path / "root"))
    bad = root / "images" / "e?f.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    for workers in (0, 1):
        with pytest.raises(DatasetError, match=r"cannot read .*images/e\?f.jpg"):
            pack_shards([FolderDataset(root)], tmp_path / "shards", shard_size=SIZE, workers=workers)
        assert not (tmp_path / "shards" / "index.json").exists()
    Image.new("L", (10, 20)).save(root / "masks" / "e?f.png")
    shutil.copy(before.source.root / "images" / "e?f.jpg", bad)
    with pytest.raises(DatasetError, match=r"mask of another size: .*masks/e\?f.png is 10 x 20"):
        pack_shards([FolderDataset(root)], tmp_path / "shards", shard_size=SIZE)


def test_samples_in_memory_are_packed_to_the_bit(tmp_path):
    """Floats with missing values, one band, and 16 bits, of which no photo file holds all."""
    random_ = np.random.default_rng(0)
    for kind, channels in ((np.float32, 2), (np.uint16, 5), (np.uint8, 3)):
        images = [(random_.random((9, 7, channels)) * 250).astype(kind) for _ in range(3)]
        if kind == np.float32:
            images[1][2, 3] = np.nan
        labels = [random_.integers(0, 2, (9, 7), dtype=np.uint8) for _ in range(3)]
        dataset = PairDataset(list(zip(images, labels, strict=True)), ["sky", "sea"])
        pack_shards([dataset], tmp_path / np.dtype(kind).name)
        packed = ShardDataset(tmp_path / np.dtype(kind).name)
        bands = None if kind == np.uint8 else BandReader(tuple(range(1, channels + 1)))
        dataset.read_as(bands)
        packed.read_as(bands)
        same_samples(dataset, packed)


# --- reading ------------------------------------------------------------------------------------------------------


def opens_of(action):
    """How often an action opens tar files."""
    opened, active = [], [True]

    def hook(event, arguments):
        if active[0] and event == "open" and str(arguments[0]).endswith(".tar"):
            opened.append(arguments[0])

    sys.addaudithook(hook)  # which cannot be removed
    action()
    active[0] = False
    return len(opened)


def test_a_shard_is_opened_once(shards, before):
    dataset = ShardDataset(shards)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    assert opens_of(lambda: [dataset[index] for index in order]) == len(dataset.source.shards) > 3
    sent = pickle.loads(pickle.dumps(dataset))
    assert opens_of(lambda: [sent[index] for index in order]) == len(dataset.source.shards)
    same_samples(before, sent)


def test_the_number_of_open_shards_is_bounded(shards, before):
    dataset = ShardDataset(shards)
    dataset.source.files.most = 2
    known = set(Path("/proc/self/fd").iterdir())
    for index in np.random.default_rng(1).permutation(len(dataset)).tolist():
        assert dataset[index].image.tobytes() == before[index].image.tobytes()
        assert len(set(Path("/proc/self/fd").iterdir()) - known) <= 2
    del dataset
    assert set(Path("/proc/self/fd").iterdir()) <= known


def read_all(folder):
    dataset = ShardDataset(folder)
    return [dataset[index] for index in range(len(dataset))]


def test_a_truncated_shard_is_named(copied):
    path = copied / "train-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(DatasetError, match=rf"cannot read .*train-000001.tar: it has {len(data) - 1000} bytes, and "
                                           rf"index.json says {len(data)}: it is truncated"):  # fmt: skip
        read_all(copied)
    path.write_bytes(data[:-20000] + bytes(20000))  # as some file systems do after a power failure
    with pytest.raises(DatasetError, match=r"train-000001.tar!\d+.jpg \(images/.*: its bytes are not those"):
        read_all(copied)
    path.unlink()
    with pytest.raises(DatasetError, match=r"train-000001.tar!.*: there is no such file as train-000001.tar, which"):
        read_all(copied)


def test_every_changed_byte_is_found(copied, before):
    """Whether in a header, a photo, a mask or the padding between them: but for JSON, which is not read."""
    path = copied / "train-000000.tar"
    data, dataset = path.read_bytes(), ShardDataset(copied)
    last = int((dataset.source.table.rows["shard"] == 0).sum())
    random_ = np.random.default_rng(0)
    for place in random_.integers(0, dataset.source.shards[0].size - 11_000, 40).tolist():
        changed = bytearray(data)
        changed[place] ^= 1 << int(random_.integers(8))
        path.write_bytes(changed)
        dataset = ShardDataset(copied)
        hurt = 0
        for index in range(last):
            try:
                sample = dataset[index]
            except DatasetError as error:
                hurt += 1
                assert "train-000000.tar is damaged, or was written anew" in str(error)  # noqa: PT017
            else:
                assert sample.image.tobytes() == before[index].image.tobytes()
        rows = dataset.source.table.rows[:last]
        photo, mask = rows["photo"].astype(int), rows["mask"].astype(int)
        ends = rows["start"].astype(int) + 512 + photo + -photo % 512 + 512 + mask
        assert hurt == int(((rows["start"] <= place) & (place < ends)).sum())


def test_files_of_two_packs_do_not_mix(before, copied, tmp_path):
    pack_shards([Subset(before, range(20))], tmp_path / "other", shard_size=2 * SIZE)
    table = (copied / "train.npz").read_bytes()
    shutil.copy(tmp_path / "other" / "train.npz", copied)
    with pytest.raises(DatasetError, match=r"train.npz has 20 samples, and index.json says 2\d: .* different packs"):
        ShardDataset(copied)
    (copied / "train.npz").write_bytes(table)
    shutil.copy(tmp_path / "other" / "train-000000.tar", copied)
    with pytest.raises(DatasetError, match=r"train-000000.tar: it has \d+ bytes, and index.json says"):
        read_all(copied)
    (copied / "train.npz").write_bytes(table[: len(table) // 2])
    with pytest.raises(DatasetError, match=r"cannot read .*train.npz: a damaged table of samples"):
        ShardDataset(copied)
    (copied / "train.npz").unlink()
    with pytest.raises(DatasetError, match=r"train.npz is missing"):
        ShardDataset(copied)


def stranger(**changes):
    """A change of an index."""

    def change(values):
        for key, value in changes.items():
            *path, last = key.split("__")
            inner = values
            for part in path:
                inner = inner[int(part) if isinstance(inner, list) else part]
            inner[last] = value
        return json.dumps(values).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stranger(version=2), r"index.json has version 2, and version 1 is read here"),
        (stranger(format="wids"), r"its format is 'wids'"),
        (stranger(splits={"train": 3}), r"damaged, or no index of shards \(TypeError"),
        (stranger(splits__train__samples="many"), r"damaged, or no index of shards \(ValueError"),
        (stranger(splits__train__shards__0__name="../../etc/passwd"), r"names a shard '../../etc/passwd'"),
        (stranger(splits__train__shards__0__size=5), r"beyond the end of train-000000.tar"),
        (stranger(splits__train__shards__0__size=-5), r"damaged, or no index of shards \(ValueError"),
        (stranger(splits__train__shards__0__size=10**30), r"damaged, or no index of shards \(ValueError"),
        (stranger(splits__train__shards=[]), r"the index names 0 shards, and its table of samples more"),
        (stranger(splits__train__suffixes=[]), r"and its table of samples more"),
        (stranger(label_space={"name": "x"}), r"damaged, or no index of shards \(ConfigError"),
        (lambda values: b"[" * 100_000, r"damaged, or no index of shards \(RecursionError"),
        (lambda values: b"\xff\xfe", r"damaged, or no index of shards \(JSONDecodeError"),
        (lambda values: b"[]", r"damaged, or no index of shards \(TypeError"),
    ],
)
def test_an_index_of_strangers_is_refused(change, message, copied):
    path = copied / "index.json"
    path.write_bytes(change(json.loads(path.read_text())))
    with pytest.raises(DatasetError, match=message):
        ShardDataset(copied)


def test_a_table_runs_no_code(copied):
    """NumPy files may hold pickled objects."""
    np.savez(copied / "train.npz", rows=np.array([print], object))
    with pytest.raises(DatasetError, match=r"a damaged table of samples \(Object arrays cannot be loaded"):
        ShardDataset(copied)


@pytest.mark.parametrize("shape", ["(3, 4, 5X, ", f"({10**20}, 3)", "(True, 3)", "(03, 4)"])
def test_a_table_whose_arrays_are_damaged(shape, copied):
    """NumPy reads the header of an array as Python, with errors of its own for what is none."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(copied / "train.npz", "w") as archive:
        archive.writestr("rows.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DatasetError, match=r"cannot read .*train.npz: a damaged table of samples"):
        ShardDataset(copied)


def test_a_table_of_another_zip_version(copied):
    """One changed byte asks for what Python's zipfile does not have."""
    table = bytearray((copied / "train.npz").read_bytes())
    table[table.index(b"PK\x01\x02") + 6] = 200
    (copied / "train.npz").write_bytes(table)
    with pytest.raises(DatasetError, match=r"a damaged table of samples \(zip file version 20.0"):
        ShardDataset(copied)


def test_a_table_that_would_fill_the_memory_is_not_unpacked(copied):
    """A gigabyte of zeros packs into a megabyte."""
    with (
        zipfile.ZipFile(copied / "train.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("rows.npy", "w") as file,
    ):
        for _ in range(10):
            file.write(bytes(10_000_000))
    with pytest.raises(DatasetError, match=r"a damaged table of samples \(100000000 bytes for 2\d samples\)"):
        ShardDataset(copied)


def test_a_packed_folder_is_recognised_under_any_name(before, shards, tmp_path):
    for name in ("folder", "shards"):
        same_samples(before, build_dataset(name, root=str(shards)))
    assert stored_as("folder", shards) == "shards"
    assert stored_as("folder", tmp_path) == "folder"
    assert stored_as("folder", f"{tmp_path}\0") == "folder"
    with pytest.raises(ConfigError, match=r"holds packed shards of folder, not of ade20k: pass --dataset shards"):
        build_dataset("ade20k", root=shards)
    with pytest.raises(ConfigError, match=r"data.masks is for files in a folder, .* leave out 'masks/\*.png'"):
        build_dataset("folder", root=shards, masks="masks/*.png")
    with pytest.raises(ConfigError, match=r"data.window is for files in a folder"):
        build_dataset("shards", root=shards, window=64)
    with pytest.raises(DatasetError, match=r"unknown split 'val'.* Known: train"):
        build_dataset("shards", root=shards, split="val")
    with pytest.raises(DatasetError, match=r"no packed data set: there is no .*index.json: .* makes one"):
        build_dataset("shards", root=tmp_path)


def test_tasks_of_packed_masks(tmp_path):
    binary = make("binary", tmp_path / "before")
    pack_shards(binary, tmp_path / "shards")
    same_samples(binary[0], build_dataset("shards", root=tmp_path / "shards", task="binary"))
    with pytest.raises(ConfigError, match=r"packed masks of model.task binary, not of multiclass: pass --model.task b"):
        build_dataset("shards", root=tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"leave out data.positive"):
        build_dataset("shards", root=tmp_path / "shards", task="binary", positive="object")


def test_views_statistics_and_checks_of_shards(before, shards):
    """What reads a data set finds the same in shards: folds, tasks, class weights, rare classes, a diagnosis."""
    from resnest_seg.config import RunConfig, TrainConfig

    packed = ShardDataset(shards)
    assert np.array_equal(assign_folds(packed, 3), assign_folds(before, 3))
    for task, positive in (("binary", "class 1,class 2"), ("multilabel", None)):
        views = [with_task(dataset, task, positive) for dataset in (before, packed)]
        same_samples(*views)
    config = RunConfig(data=DataConfig(rare_class=0.1, workers=0), train=TrainConfig(class_weights="median_frequency"))
    ours, theirs = balance(packed, config), balance(before, config)
    assert np.array_equal(ours.probabilities, theirs.probabilities)
    assert ours.class_weights.tolist() == theirs.class_weights.tolist()
    assert pixel_statistics(packed).mean == pixel_statistics(before).mean
    found, wanted = diagnose([packed]), diagnose([before])
    assert (found.shares, found.ignored, found.sizes) == (wanted.shares, wanted.ignored, wanted.sizes)
    assert [finding.kind for finding in found.findings] == [finding.kind for finding in wanted.findings]


def test_ade20k_in_shards_is_not_taken_for_shifted_masks(tmp_path):
    """Masks of train ids hold 255, of which raw ADE20K masks would be suspected."""
    splits = make("ade20k", tmp_path / "before")
    pack_shards(splits, tmp_path / "shards")
    found = diagnose([ShardDataset(tmp_path / "shards")])
    assert "off by one" not in {finding.kind for finding in found.findings}


def test_shard_numbers_go_through_views(before, shards):
    packed = ShardDataset(shards)
    numbers = shard_numbers(packed)
    assert numbers.tolist() == sorted(numbers.tolist())
    assert set(numbers) == set(range(len(packed.source.shards)))
    some = [20, 3, 11]
    view = with_task(Subset(Subset(packed, range(5, 27)), some), "multilabel")
    assert shard_numbers(view).tolist() == [numbers[5 + index] for index in some]
    assert shard_numbers(before) is None


def test_a_view_keeps_the_bytes_of_photos(before, tmp_path):
    view = Subset(with_task(before, "binary", "class 1"), [3, 1])
    pack_shards([view], tmp_path / "shards")
    packed = ShardDataset(tmp_path / "shards")
    same_samples(view, packed)
    assert packed.source.read("000000000.jpg") == before.source.read(before.pairs[3][0])


def test_packing_shards_again_changes_their_size_only(before, shards, tmp_path):
    pack_shards([ShardDataset(shards)], tmp_path / "large")
    assert len(list((tmp_path / "large").glob("*.tar"))) == 1
    same_samples(before, ShardDataset(tmp_path / "large"))


def test_shards_of_others_are_left_alone(before, copied, tmp_path):
    """WebDataset's are called like ours; without an index or a record of packing they are somebody's data."""
    theirs = tmp_path / "web"
    theirs.mkdir()
    for name in ("train-000000.tar", "train-000001.tar", "features.npz"):
        (theirs / name).write_bytes(b"theirs")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"web holds other files, such as features.npz: choose another --output"):
            pack_shards([before], theirs, shard_size=SIZE, overwrite=overwrite)
    assert {path.read_bytes() for path in theirs.iterdir()} == {b"theirs"}
    assert len(list(theirs.iterdir())) == 3
    (copied / "features.npz").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds other files, such as features.npz"):
        pack_shards([before], copied, shard_size=SIZE, overwrite=True)
    same_samples(before, ShardDataset(copied))


def test_an_overwriting_call_that_was_killed_is_begun_anew_by_another(before, copied, monkeypatch):
    class Killed(BaseException):
        pass

    unlink = Path.unlink

    def unlinked(path, missing_ok=False):
        if path.name.endswith(".tar"):
            raise Killed
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinked)
    with pytest.raises(Killed):
        pack_shards([before], copied, shard_size=SIZE, overwrite=True)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert list(copied.glob("*.tar"))
    with pytest.raises(ConfigError, match="pass --overwrite to begin anew"):
        pack_shards([before], copied, shard_size=SIZE)
    pack_shards([before], copied, shard_size=SIZE, overwrite=True)
    same_samples(before, ShardDataset(copied))
