"""Stores that are no S3: folders on this machine, web servers, archives, and hosts by name."""

import errno
import functools
import http.server
import io
import re
import threading
import types
import zipfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from resnest_seg.errors import DatasetError
from resnest_seg.storage.remote import RemoteSource, Store, _held, list_addresses, read_address, write_address
from resnest_seg.storage.retries import Limits
from resnest_seg.storage.tar_shards import SampleFiles, TarShards, write_shard

QUICK = Limits(tries=3, wait=0.01)


@pytest.fixture
def site(tmp_path):
    """Python's web server: its `folder`, its `url`, and whether it knows `ranges` of bytes, which Python's does not."""
    found = types.SimpleNamespace(folder=tmp_path / "site", ranges=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            path = Path(self.translate_path(self.path))
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not (found.ranges and asked and path.is_file()):
                super().do_GET()
                return
            data, start, stop = path.read_bytes(), int(asked[1]), int(asked[2]) + 1
            self.send_response(206)
            self.send_header("Content-Length", str(len(data[start:stop])))
            self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start:stop])

        def log_message(self, *arguments):
            pass

    found.folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=found.folder))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def memory():
    """The store in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def photos(folder):
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return ["a.jpg", "sub/b.jpg", "sub/deep/c.jpg"]


def refusing(monkeypatch, folder, error, times):
    """Let listing a folder of this machine fail so many times; returns the tries."""
    listed, tried = LocalFileSystem.ls, []

    def ls(self, path, detail=False, **options):
        if path.rstrip("/").endswith(folder):
            tried.append(path)
            if len(tried) <= times:
                raise error
        return listed(self, path, detail=detail, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    return tried


def test_a_folder_is_listed_with_its_subfolders(tmp_path):
    names = photos(tmp_path / "mine")
    source = RemoteSource(f"file://{tmp_path}/mine", limits=QUICK)
    assert source.names("") == names
    assert source.read("sub/deep/c.jpg") == b"sub/deep/c.jpg"
    with pytest.raises(DatasetError, match=r"no files at file://\S*none"):
        RemoteSource(f"file://{tmp_path}/none", limits=QUICK)


@pytest.mark.parametrize("folder", ["/mine", "/sub"])
def test_a_folder_that_cannot_be_listed_is_tried_again_and_never_left_out(folder, tmp_path, monkeypatch):
    names = photos(tmp_path / "mine")
    tried = refusing(monkeypatch, folder, TimeoutError("timed out"), 2)
    assert RemoteSource(f"file://{tmp_path}/mine", limits=QUICK).names("") == names
    assert len(tried) == 3
    tried = refusing(monkeypatch, folder, TimeoutError("timed out"), 9)
    with pytest.raises(DatasetError, match=rf"cannot list file://\S*{folder} after 3 tries in .*TimeoutError"):
        RemoteSource(f"file://{tmp_path}/mine", limits=QUICK)
    tried = refusing(monkeypatch, folder, PermissionError(13, "Permission denied"), 9)
    with pytest.raises(DatasetError, match=rf"cannot list file://\S*{folder}: .*Permission denied"):
        RemoteSource(f"file://{tmp_path}/mine", limits=QUICK)
    assert len(tried) == 1


def test_a_systems_own_folder_may_be_closed(tmp_path, monkeypatch):
    names = photos(tmp_path / "mine")
    (tmp_path / "mine" / "lost+found").mkdir()
    refusing(monkeypatch, "lost+found", PermissionError(13, "Permission denied"), 9)
    assert RemoteSource(f"file://{tmp_path}/mine", limits=QUICK).names("") == names


def test_links_to_files_are_files_and_links_to_folders_are_told(tmp_path, capsys):
    photos(tmp_path / "mine")
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "mine" / "link.jpg").symlink_to(tmp_path / "x.jpg")
    (tmp_path / "mine" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    source = RemoteSource(f"file://{tmp_path}/mine", limits=QUICK)
    assert source.names("") == ["a.jpg", "gone.jpg", "link.jpg", "sub/b.jpg", "sub/deep/c.jpg"]
    assert source.read("link.jpg") == b"x"
    assert capsys.readouterr().err == ""
    with pytest.raises(DatasetError, match=r"gone\.jpg: there is no such file"):
        source.read("gone.jpg")
    (tmp_path / "mine" / "sub" / "up").symlink_to(tmp_path / "mine")
    assert RemoteSource(f"file://{tmp_path}/mine", limits=QUICK).names("") == source.names("")
    assert "mine/sub/up is a link to a folder" in capsys.readouterr().err


def test_files_and_zip_files_of_a_web_server(site):
    folder, url = site.folder, site.url
    names = photos(folder)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("x/1.png", b"one")
        archive.writestr("2.png", b"two")
    source = RemoteSource(url, limits=QUICK)
    assert source.names("") == sorted([*names, "a.zip"])
    assert source.read("sub/b.jpg") == b"sub/b.jpg"
    source = RemoteSource(f"{url}/a.zip", limits=QUICK)
    assert source.names("") == ["2.png", "x/1.png"]
    assert source.read("x/1.png") == b"one"
    with pytest.raises(DatasetError, match=f"no files at {url}/none"):
        RemoteSource(f"{url}/none", limits=QUICK)
    site.ranges = False
    with pytest.raises(DatasetError, match=f"{url}/a.zip: the server sends whole files only.*Download"):
        RemoteSource(f"{url}/a.zip", limits=QUICK)


def test_shards_behind_a_server_that_sends_whole_files_only(site):
    samples = [SampleFiles(str(index), "", ".jpg", bytes([index]) * 900, b"mask") for index in range(3)]
    suffixes = []
    shard, table = write_shard(site.folder / "train-000000.tar", 0, iter(samples), suffixes)
    shards = TarShards(RemoteSource(site.url, limits=QUICK), [shard], table, suffixes)
    assert [shards.read(shards.photo_name(row)) for row in range(3)] == [sample.photo for sample in samples]
    site.ranges = False
    shards = TarShards(RemoteSource(site.url, limits=QUICK), [shard], table, suffixes)
    for row in (0, 2):
        with pytest.raises(DatasetError, match=r"000000\.tar!.* the server sends whole files only.*Download"):
            shards.read(shards.photo_name(row))


class HostedFileSystem(MemoryFileSystem):
    """The store in memory with a host in its addresses, as sftp, hdfs and abfss have them."""

    protocol = "hosted"
    cachable = False

    def __init__(self, host, **options):
        assert host == "me@host:22"
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("hosted://me@host:22"))

    @staticmethod
    def _get_kwargs_from_urls(path):
        return {"host": path.removeprefix("hosted://").partition("/")[0]}


def zipped(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return file.getvalue()


@pytest.fixture
def hosted(memory):
    fsspec.register_implementation("hosted", HostedFileSystem, clobber=True)
    return "hosted://me@host:22"


@pytest.mark.parametrize(
    ("address", "listed"),
    [
        ("hosted://me@host:22/mine/", ["hosted://me@host:22/mine/1.png", "hosted://me@host:22/mine/b/2.png"]),
        ("hosted://me@host:22/mine/b/2.png", ["hosted://me@host:22/mine/b/2.png"]),
        ("memory://mine/b", ["memory://mine/b/2.png"]),
        ("memory://", ["memory://a.zip", "memory://mine/1.png", "memory://mine/b/2.png"]),
        ("zip://::memory://a.zip", ["zip://1.png::memory://a.zip", "zip://b/2.png::memory://a.zip"]),
        ("zip::memory://a.zip", ["zip://1.png::memory://a.zip", "zip://b/2.png::memory://a.zip"]),
        ("zip://b::memory://a.zip", ["zip://b/2.png::memory://a.zip"]),
        ("zip://b/2.png::memory://a.zip", ["zip://b/2.png::memory://a.zip"]),
        ("simplecache::memory://mine/b", ["simplecache::memory://mine/b/2.png"]),
    ],
)
def test_what_is_listed_can_be_read_by_its_address(address, listed, hosted, memory):
    contents = {"1.png": b"1.png", "b/2.png": b"b/2.png"}
    for name, data in contents.items():
        memory.pipe(f"/mine/{name}", data)
    memory.pipe("/a.zip", zipped(contents))
    assert list(list_addresses(address)) == listed
    found = {each: read_address(each) for each in listed if each != "memory://a.zip"}
    assert found == {each: next(data for name, data in contents.items() if name in each) for each in found}


def test_a_name_with_two_colons_is_at_its_host(hosted):
    write_address(f"{hosted}/mine/10::30.png", b"a photo")
    assert read_address(f"{hosted}/mine/10::30.png") == b"a photo"
    assert list(list_addresses(f"{hosted}/mine")) == [f"{hosted}/mine/10::30.png"]


@pytest.mark.slow
def test_an_address_in_an_address_is_no_chain(site, object_store):
    place = site.folder / "http:" / "x"
    place.mkdir(parents=True)
    (place / "list.csv").write_bytes(b"path")
    assert read_address(f"{site.url}/http://x/list.csv") == b"path"
    object_store.put("pages", {"http://x/a.png": b"a", "http://x/b.png": b"b"})
    assert read_address("s3://pages/http://x/a.png") == b"a"
    held = len(_held())
    assert list(list_addresses("s3://pages/http://x")) == [
        "s3://pages/http://x/a.png",
        "s3://pages/http://x/b.png",
    ]
    assert read_address("s3://pages/http://x/b.png") == b"b"
    assert len(_held()) == held


def test_a_full_disk_here_is_said_to_be_one(memory, monkeypatch):
    """The store is asked once, and what is raised is the system's error of the file."""

    def refused(system, path, data):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(data)

    memory.pipe("/mine/a.bin", b"12345678")
    store = Store("memory://mine", limits=QUICK)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as caught:
        store.copy("/mine/a.bin", file)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    with pytest.raises(OSError, match="No space left") as caught:
        write_address("memory://mine/b.bin", b"1")
    assert caught.value.filename == "memory://mine/b.bin"
