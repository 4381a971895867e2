"""Files by name, from folders and from zip files."""

import pickle
import zipfile

import pytest

from resnest_seg.data.storage import FolderSource, ZipSource, open_source
from resnest_seg.errors import DatasetError

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
