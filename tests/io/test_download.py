"""Downloads against a server on this machine that behaves as badly as real ones do."""

import errno
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from support.local_server import serve

from resnest_seg.errors import DownloadError
from resnest_seg.io.downloads import TRIES, Digest, Pace, download

pytestmark = pytest.mark.slow

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
DIGEST = Digest("sha256", hashlib.sha256(DATA).hexdigest()[:8])


@pytest.fixture
def site():
    with serve({"/file.bin": DATA}) as site:
        yield site


def fetch(site, path, *, digest=DIGEST, pauses=None):
    pauses = [] if pauses is None else pauses
    return download(f"{site.url}/file.bin", path, digest=digest, timeout=5, pause=pauses.append)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_arrives_once(site, tmp_path):
    path = tmp_path / "new" / "file.bin"
    assert fetch(site, path) == path
    assert path.read_bytes() == DATA
    assert fetch(site, path) == path
    assert len(site.asked) == 1
    assert names(path.parent) == ["file.bin"]


def test_a_broken_connection_is_continued_where_it_broke(site, tmp_path):
    site.cut_after = [1_000_000, 500_000]
    pauses = []
    assert fetch(site, tmp_path / "file.bin", pauses=pauses).read_bytes() == DATA
    assert [wanted for _, wanted in site.asked] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert len(pauses) == 2


def test_an_interrupted_download_is_continued_by_the_next_run(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA[:1234])
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA
    assert site.asked == [("/file.bin", "bytes=1234-")]


def test_more_breaks_than_tries_are_survived_while_it_goes_on(site, tmp_path):
    site.cut_after = [200_000] * (2 * TRIES)
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA


def test_a_server_that_cannot_continue_sends_all_again(site, tmp_path):
    site.ranges, site.cut_after = False, [1_000_000]
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA


def test_what_was_begun_as_another_file_is_begun_anew(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"older" * 1000)
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA
    (tmp_path / "longer.bin.part").write_bytes(DATA + b"more")
    assert fetch(site, tmp_path / "longer.bin").read_bytes() == DATA


def test_another_file_than_the_published_one_is_refused(site, tmp_path):
    with pytest.raises(DownloadError, match="the server has another file, its hash is not SHA256 00000000") as error:
        fetch(site, tmp_path / "file.bin", digest=Digest("sha256", "00000000"))
    assert str(tmp_path / "file.bin") in str(error.value)
    assert names(tmp_path) == []
    (tmp_path / "file.bin").write_bytes(b"put by hand")
    with pytest.raises(DownloadError, match=r"is not the published file.* Delete it to fetch it again"):
        fetch(site, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b"put by hand"


def test_a_file_put_by_hand_asks_no_network(tmp_path):
    (tmp_path / "file.bin").write_bytes(DATA)
    assert download("http://nowhere.invalid/file.bin", tmp_path / "file.bin", digest=DIGEST).read_bytes() == DATA


def test_temporary_errors_are_waited_out_and_final_ones_are_not(site, tmp_path):
    site.status, pauses = [503, 429], []
    assert fetch(site, tmp_path / "file.bin", pauses=pauses).read_bytes() == DATA
    assert pauses == [1.0, 2.0]
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(f"{site.url}/nothing", tmp_path / "nothing", pause=pauses.append)
    assert len(pauses) == 2


def test_without_a_network_the_way_out_is_named(tmp_path):
    with serve({}) as gone:
        url = f"{gone.url}/weights-12345678.pth"
    pauses = []
    with pytest.raises(DownloadError) as error:
        download(url, tmp_path / "w.pth", digest=Digest("sha256", "12345678"), pause=pauses.append)
    assert len(pauses) == TRIES - 1
    for part in (
        f"cannot download {url}: ",
        "refused",
        "it must have SHA256 12345678...",
        f"put it at {tmp_path}/w.pth",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full. Free some space there or choose another folder with the variable X."),
        (errno.EDQUOT, f"{os.strerror(errno.EDQUOT)}. Free some space there or choose another folder with"),
        (errno.EROFS, f"{os.strerror(errno.EROFS)}. Choose another folder with the variable X."),
        (errno.EACCES, f"{os.strerror(errno.EACCES)}. Choose another folder with the variable X."),
    ],
)
def test_a_folder_that_cannot_be_written_is_no_matter_of_the_network(code, said, tmp_path, monkeypatch):
    tries, pauses = [], []

    def refused(*arguments, **options):
        tries.append(1)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("resnest_seg.io.downloads._fetch", refused)
    with pytest.raises(DownloadError) as error:
        download("http://x/file.bin", tmp_path / "file.bin", moved_by="the variable X", pause=pauses.append)
    assert str(error.value).startswith(f"cannot write into {tmp_path}: {said}")
    assert (len(tries), pauses) == (1, [])
    assert names(tmp_path) == []


def test_a_byte_now_and_then_is_no_answer(site, tmp_path):
    """Every byte ends a silence: without a least speed this takes 35 days at a byte a second."""
    site.drip, pauses = 0.02, []
    with pytest.raises(DownloadError, match=r"the rate was \d+ bytes a second for \d+ s, and the minimum is 1000\."):
        download(f"{site.url}/file.bin", tmp_path / "file.bin", pace=Pace(1000, 0.1), pause=pauses.append)
    assert len(pauses) == TRIES - 1
    assert len(site.asked) == TRIES
    assert names(tmp_path) == ["file.bin.part"]


def test_a_slow_line_arrives_and_may_falter(tmp_path):
    data = DATA[:60]
    with serve({"/file.bin": data}) as site:
        site.drip = 0.01  # about 90 bytes a second, in six windows
        path = download(f"{site.url}/file.bin", tmp_path / "file.bin", timeout=5, pace=Pace(20, 0.1))
    assert path.read_bytes() == data


def test_a_server_that_gives_a_byte_a_connection_is_given_up(site, tmp_path):
    site.cut_after, pauses = [1] * 100, []
    with pytest.raises(DownloadError, match="the connection broke off after 4 of 3000000 bytes"):
        fetch(site, tmp_path / "file.bin", pauses=pauses)
    assert len(site.asked) == TRIES


def test_several_processes_fetch_it_once(site, tmp_path):
    code = (
        "import sys; from pathlib import Path; from resnest_seg.io.downloads import download\n"
        "print(len(download(sys.argv[1], Path(sys.argv[2])).read_bytes()))"
    )
    command = [sys.executable, "-c", code, f"{site.url}/file.bin", str(tmp_path / "file.bin")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {run.communicate()[0].strip().splitlines()[-1] for run in runs} == {str(len(DATA))}
    assert len(site.asked) == 1


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_digests_are_those_of_hashlib(algorithm, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    whole = hashlib.new(algorithm, DATA).hexdigest()
    assert Digest(algorithm, whole[:8]).matches(tmp_path / "file")
    assert not Digest(algorithm, "x" + whole[1:8]).matches(tmp_path / "file")


def test_a_download_that_was_stopped_before_it_got_its_name_is_not_fetched_again(site, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA)
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA
    assert site.asked == []


def test_a_file_in_a_folder_of_others_needs_no_lock(site, tmp_path, monkeypatch):
    (tmp_path / "file.bin").write_bytes(DATA)
    monkeypatch.setattr("resnest_seg.io.downloads.FileLock", lambda path: pytest.fail("wrote a lock"))
    assert fetch(site, tmp_path / "file.bin").read_bytes() == DATA


def test_a_folder_that_cannot_be_made_is_one_error(site, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"cannot write into .*Not a directory"):
        fetch(site, tmp_path / "file" / "below" / "file.bin")
