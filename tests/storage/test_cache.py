"""Copies of remote files on a local disk: bounded, shared, never stale, never half a file."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import pickle
import random
import signal
import stat
import threading
import time
from pathlib import Path

import fsspec
import pytest

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.storage import cache as module
from resnest_seg.storage.cache import GIB, Cache, copy_name
from resnest_seg.storage.remote import RemoteSource

KIB = 1024


def copies(folder):
    """Bytes of all files but the lock."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def content(number):
    return bytes([number % 251]) * (KIB + number)


def fetch(cache, number, calls=None):
    """Read object `number` through a cache; `calls` gets the numbers that were loaded."""

    def load():
        if calls is not None:
            calls.append(number)
        return content(number)

    return cache.read(copy_name("s3://b", KIB + number, str(number)), KIB + number, load)


@pytest.fixture
def small(tmp_path):
    """A cache for seven files."""
    return Cache(tmp_path / "copies", gib=8 * KIB / GIB)


def test_what_was_not_read_for_longest_leaves(small):
    calls = []
    for number in range(7):
        assert fetch(small, number, calls) == content(number)
    assert fetch(small, 0, calls) == content(0)  # a hit, which makes 1 the oldest
    assert calls == list(range(7))
    fetch(small, 7, calls)
    assert copies(small.folder) <= small.limit
    calls.clear()
    for number in (0, 7, 6, 1):
        assert fetch(small, number, calls) == content(number)
    assert calls == [1]
    other = pickle.loads(pickle.dumps(small))
    fetch(other, 7, calls)
    assert calls == [1]


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_who_shares_a_cache_can_read_its_copies(tmp_path, umask):
    """The mode of a copy is that of any new file: by the umask, like those of lock and folders."""
    before = os.umask(umask)
    try:
        cache = Cache(tmp_path / "copies", gib=1)
        fetch(cache, 1)
        cache.local(copy_name("s3://b/large", 4, "1"), 4, lambda file: file.write(b"abcd"), "s3://b/large")
    finally:
        os.umask(before)
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_the_limit_holds_after_every_write(small):
    draws = random.Random(0)
    for _ in range(200):
        number = draws.randrange(20)
        assert fetch(small, number) == content(number)
        assert copies(small.folder) <= small.limit
    big = b"x" * (small.limit + 1)
    assert small.read("0" * 64, len(big), lambda: big) == big  # and is not kept
    assert copies(small.folder) <= small.limit
    with pytest.raises(DatasetError, match=r"there has 8193 bytes, and the cache 8192: raise data.cache_size"):
        small.local("0" * 64, len(big), lambda file: file.write(big), "there")


def test_foreign_files_stay(tmp_path):
    (tmp_path / "ab").mkdir()
    mine = [tmp_path / "photo.jpg", tmp_path / "ab" / "notes.txt"]
    for path in mine:
        path.write_bytes(b"1" * 9000)
    cache = Cache(tmp_path, gib=8 * KIB / GIB)
    for number in range(30):
        fetch(cache, number)
    assert all(path.stat().st_size == 9000 for path in mine)


def test_a_short_copy_is_made_anew(small):
    fetch(small, 3)
    (path,) = small.folder.glob("??/*")
    path.write_bytes(b"cut")
    calls = []
    assert fetch(small, 3, calls) == content(3)
    assert calls == [3]


def _work(folder, seed, seconds):
    cache, draws, end = Cache(folder, gib=16 * KIB / GIB), random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        number = draws.randrange(40)
        assert fetch(cache, number) == content(number)


@pytest.mark.long
@pytest.mark.slow
def test_killed_processes_leave_no_half_file_and_the_limit_holds(tmp_path):
    folder, context, draws = tmp_path / "copies", multiprocessing.get_context("fork"), random.Random(1)
    biggest, sizes, done = 0, dict[int, int](), threading.Event()

    def watch():
        nonlocal biggest, sizes
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError), open(folder / "lock", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # while one makes room, what it deletes would count
                sizes = {(status := path.stat()).st_ino: status.st_size for path in folder.glob("??/*")}
            biggest = max(biggest, sum(sizes.values()))

    watcher = threading.Thread(target=watch)
    workers = [context.Process(target=_work, args=(folder, seed, 60)) for seed in range(4)]
    for worker in workers:
        worker.start()
    watcher.start()
    for seed in range(4, 24):  # one is killed and replaced, twenty times
        time.sleep(draws.uniform(0.01, 0.05))
        index = draws.randrange(4)
        os.kill(workers[index].pid, signal.SIGKILL)
        workers[index].join()
        workers[index] = context.Process(target=_work, args=(folder, seed, 60))
        workers[index].start()
    end = time.monotonic() + 30
    while biggest <= 8 * KIB and time.monotonic() < end:
        time.sleep(0.01)
    for worker in workers:
        worker.kill()
        worker.join()
    done.set()
    watcher.join()
    assert 8 * KIB < biggest <= 16 * KIB
    names = {copy_name("s3://b", KIB + number, str(number)): content(number) for number in range(40)}
    whole = [path for path in folder.glob("??/*") if not path.name.startswith(".")]
    assert whole
    assert all(path.read_bytes() == names[path.name] for path in whole)
    for path in folder.glob("??/.*"):
        os.utime(path, (0, 0))  # abandoned long ago
    cache = Cache(folder, gib=16 * KIB / GIB)
    for number in range(40):
        assert fetch(cache, number) == content(number)
    assert not list(folder.glob("??/.*"))


def test_a_full_disk_turns_the_cache_off(small, monkeypatch, capsys):
    fetch(small, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    calls = []
    assert fetch(small, 2, calls) == content(2)
    assert fetch(small, 3, calls) == content(3)
    assert fetch(small, 1, calls) == content(1)  # what is there is read
    assert calls == [2, 3]
    assert capsys.readouterr().err.count("cannot be written (No space left on device): going on without it") == 1
    assert len(list(small.folder.glob("??/*"))) == 1  # nothing half is left
    with pytest.raises(DatasetError, match=r"cannot keep a copy of there in .*: the cache is off"):
        small.local("1" * 64, 1, lambda file: file.write(b"1"), "there")


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file is not a folder. Choose another data.cache"):
        Cache(tmp_path / "file" / "inner")


def test_a_source_reads_once_and_never_what_is_stale(tmp_path):
    system = fsspec.filesystem("memory")
    try:
        system.pipe("/mine/a", b"12")
        cache = Cache(tmp_path)
        source = RemoteSource("memory://mine", cache=cache)
        assert source.read("a") == b"12"
        system.rm("/mine/a")
        assert source.read("a") == b"12"  # from the disk
        assert pickle.loads(pickle.dumps(source)).read("a") == b"12"
        assert source.local("a").read_bytes() == b"12"
        system.pipe("/mine/a", b"34")  # as long as before, by another client
        assert RemoteSource("memory://mine", cache=cache).read("a") == b"34"
        with pytest.raises(DatasetError, match=r"mine/a must be read from a file on this machine: .*data.cache FOLDER"):
            RemoteSource("memory://mine").local("a")
    finally:
        system.store.clear()


def test_what_others_are_writing_counts(small):
    (small.folder / "ab").mkdir()
    (small.folder / "ab" / ".tmp-other").write_bytes(bytes(small.limit - 100))
    for number in range(8):
        assert fetch(small, number) == content(number)
    assert copies(small.folder) == small.limit - 100


def test_a_system_without_locks_is_told(tmp_path, monkeypatch):
    """Windows has no fcntl; data sets are read there, too, without a cache."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Linux or macOS"):
        Cache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def full(*arguments):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_a_disk_that_is_full_is_no_matter_of_the_store(small, monkeypatch, capsys):
    fsspec.filesystem("memory").pipe("/full/a.bin", b"12345678")
    source = RemoteSource("memory://full", cache=small)
    monkeypatch.setattr("resnest_seg.storage.remote._copied", full)
    with pytest.raises(DatasetError, match=r"cannot keep a copy of memory://full/a.bin in .*Choose another data.cache"):
        source.local("a.bin")
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: the cache {small.folder} cannot be written ({os.strerror(errno.EDQUOT)})")
    monkeypatch.undo()
    assert source.read("a.bin") == b"12345678"
    fsspec.filesystem("memory").store.clear()


def test_nothing_stays_of_a_copy_that_has_no_room(small, monkeypatch):
    before = len(list(Path("/dev/fd").iterdir()))
    monkeypatch.setattr(os, "ftruncate", full)
    assert fetch(small, 1) == content(1)
    assert copies(small.folder) == 0
    assert [path for path in small.folder.rglob("*") if path.is_file()] == [small.folder / "lock"]
    assert len(list(Path("/dev/fd").iterdir())) == before
