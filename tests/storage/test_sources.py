"""Files by name, from folders and from zip files."""

import os
import pickle
import sys
import zipfile

import fsspec
import pytest

from resnest_seg.errors import DatasetError
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.sources import FolderSource, ZipSource

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"22", "c/three.txt": b"333"}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


@pytest.fixture
def archives(tmp_path):
    paths = [tmp_path / "first.zip", tmp_path / "second.zip"]
    for path, names in zip(paths, (["a/one.txt", "a/b/two.txt"], ["c/three.txt"]), strict=True):
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("a")
            for name in names:
                archive.writestr(name, FILES[name])
    return paths


@pytest.mark.parametrize("kind", ["folder", "zip", "sent to another process"])
def test_a_zip_is_a_folder(kind, folder, archives):
    source = FolderSource(folder) if kind == "folder" else ZipSource(archives)
    if kind == "sent to another process":
        source.read("a/one.txt")
        source = pickle.loads(pickle.dumps(source))
    assert source.names("") == sorted(FILES)
    assert source.names("a") == ["a/b/two.txt", "a/one.txt"]
    assert source.names("nothing") == []
    for name, data in FILES.items():
        assert source.has(name)
        assert source.read(name) == data
        assert name in source.locate(name)
    assert not source.has("a")
    with pytest.raises(DatasetError, match=r"cannot read .*gone.txt"):
        source.read("gone.txt")


def test_what_a_root_means(folder, archives, tmp_path):
    assert isinstance(open_source(folder, zips=("first.zip",)), FolderSource)
    assert open_source(archives[1], zips=()).names("") == ["c/three.txt"]
    assert open_source(tmp_path, zips=("first.zip", "second.zip")).names("") == sorted(FILES)
    assert isinstance(open_source(tmp_path, zips=("first.zip", "third.zip")), FolderSource)


def test_damaged_zips_are_named(archives):
    data = archives[0].read_bytes()
    archives[0].write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match=r"first.zip: not a zip file, or a truncated one"):
        ZipSource(archives)
    archives[0].write_bytes(data.replace(b"22", b"23", 1))
    with pytest.raises(DatasetError, match=r"first.zip!a/b/two.txt: Bad CRC"):
        ZipSource(archives).read("a/b/two.txt")


def test_a_link_back_does_not_multiply_files(folder):
    (folder / "a" / "again").symlink_to(folder, target_is_directory=True)
    assert [name for name in FolderSource(folder).names("") if "again" not in name] == sorted(FILES)
    assert len(FolderSource(folder).names("")) == len(FILES)


def test_damage_within_a_compressed_file_is_named(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", bytes(range(256)) * 50)
    data = path.read_bytes()
    path.write_bytes(data[:45] + b"\xff\xff\xff\xff" + data[49:])
    with pytest.raises(DatasetError, match=r"cannot read .*data.zip!a.bin"):
        ZipSource([path]).read("a.bin")


def test_a_path_that_no_file_can_have():
    with pytest.raises(DatasetError, match=r"no data set can be at a\\x00b: the path holds a zero byte"):
        open_source("a\0b", zips=())


def fill(address, files):
    system, folder = fsspec.url_to_fs(address)
    system.pipe({f"{folder}/{name}": data for name, data in files.items()})
    return address


@pytest.fixture
def memory():
    yield "memory://mine"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("sent", [False, True])
def test_an_address_is_a_folder(sent, memory, folder):
    files = FILES | {"d/ü [1] 50%.txt": b"4"}
    source = open_source(fill(memory, files), zips=())
    source = pickle.loads(pickle.dumps(source)) if sent else source
    assert source.names("") == sorted(files)
    assert source.names("a") == ["a/b/two.txt", "a/one.txt"]
    assert source.names("a/o") == []
    assert all(source.has(name) and source.read(name) == data for name, data in files.items())
    assert not source.has("a")
    assert source.blocks("a")
    assert not source.blocks("a/one.txt")
    assert source.locate("a/one.txt") == "memory://mine/a/one.txt"
    with pytest.raises(DatasetError, match=r"cannot read memory://mine/gone.txt: there is no such file"):
        source.read("gone.txt")
    fsspec.filesystem("memory").rm("/mine/c/three.txt")
    with pytest.raises(DatasetError, match=r"cannot read memory://mine/c/three.txt: there is no such file"):
        source.read("c/three.txt")  # it vanished after the listing


def test_a_zip_file_at_an_address(memory, archives):
    source = open_source(fill(memory, {"first.zip": archives[0].read_bytes()}) + "/first.zip", zips=())
    assert source.names("") == ["a/b/two.txt", "a/one.txt"]
    assert pickle.loads(pickle.dumps(source)).read("a/one.txt") == b"1"
    fill(memory, {"cut.zip": archives[0].read_bytes()[:-30]})
    with pytest.raises(
        DatasetError, match=r"cannot list memory://mine/cut.zip: File is not a zip file, or a truncated one"
    ):
        open_source("memory://mine/cut.zip", zips=())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nothing", "no files at memory://nothing: is the address right"),
        ("s9://bucket/mine", r"cannot list s9://bucket/mine: Protocol not known: s9"),
        ("file:///no/such/folder", "no files at file:///no/such/folder"),
    ],
)
def test_addresses_that_cannot_be_read(address, message):
    with pytest.raises(DatasetError, match=message):
        open_source(address, zips=())


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3", "s3a"):  # if a test has loaded it before
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(DatasetError, match=r"s3fs.*pip install 'resnest-seg\[remote\]'"):
        open_source("s3://bucket/mine", zips=())


def test_two_links_to_one_folder_are_both_followed(folder, tmp_path):
    for name in ("one", "two"):
        (folder / name).symlink_to(folder / "a", target_is_directory=True)
    names = FolderSource(folder).names("")
    assert [name for name in names if name.startswith(("one", "two"))] == [
        "one/b/two.txt", "one/one.txt", "two/b/two.txt", "two/one.txt"]  # fmt: skip
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)  # and a loop ends
    assert len(FolderSource(folder).names("")) == 7


def test_a_folder_that_cannot_be_read_is_an_error_and_not_fewer_photos(tmp_path, monkeypatch):
    """Root may read everything, so the system's answer to others is played."""
    for name in ("images/a.jpg", "images/locked/b.jpg", "lost+found/x", ".Trash/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scandir, refused = os.scandir, []

    def scanned(path):
        if str(path).endswith(tuple(refused)):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanned)
    refused += ["lost+found", ".Trash"]  # of the system, on every disk
    assert FolderSource(tmp_path).names("") == ["images/a.jpg", "images/locked/b.jpg"]
    assert FolderSource(tmp_path).names("gone") == []
    refused.append("locked")
    with pytest.raises(DatasetError, match=r"cannot read the folder .*images/locked: Permission denied"):
        FolderSource(tmp_path).names("")
