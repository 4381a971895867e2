"""Every kind of word becomes what it names or a sentence; addresses answer, or say why not."""

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.local_server import serve

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.inference.inputs import fetch_image, plan
from resnest_seg.io.downloads import Pace

SUFFIXES = (".jpg", ".png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/B.PNG", "photos/deep/a.jpg", "photos/deep/er/film.MP4", "photos/notes.txt",
                 "photos/.trash/x.jpg", "photos/._a.jpg", "photos/__MACOSX/a.jpg", "alone.jpg", "odd.dat", "clip.avi",
                 "a[1].jpg", "0"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def named(*words, output="out"):
    items, problems = plan(words, output, suffixes=SUFFIXES)
    assert len({item.place for item in items}) == len(items)
    assert not any(item.place.is_absolute() or ".." in item.place.parts for item in items)
    return {(item.kind, item.source): str(item.place) for item in items}, problems


def one(*words, output="out"):
    """The one problem of words that name nothing."""
    items, problems = named(*words, output=output)
    assert not items
    (problem,) = problems
    return problem


def test_files(folder):
    assert named("alone.jpg", "odd.dat", "clip.avi", "a[1].jpg", "0", str(folder / "photos" / "a.jpg")) == (
        {
            ("image", "alone.jpg"): "alone",
            ("image", "odd.dat"): "odd",
            ("video", "clip.avi"): "clip",
            ("image", "a[1].jpg"): "a[1]",
            ("image", "0"): "0",
            ("image", str(folder / "photos" / "a.jpg")): "a",
        },
        [],
    )


def test_a_folder_keeps_its_subfolders(folder):
    assert named("photos") == (
        {
            ("image", "photos/B.PNG"): "B",
            ("image", "photos/a.jpg"): "a",
            ("image", "photos/deep/a.jpg"): "deep/a",
            ("video", "photos/deep/er/film.MP4"): "deep/er/film",
        },
        [],
    )
    items, _ = plan(["photos/"], "out", suffixes=SUFFIXES)
    assert [item.source for item in items] == sorted(item.source for item in items)


def test_patterns(folder):
    assert named("photos/*.jpg")[0] == {("image", "photos/a.jpg"): "a"}
    assert named("photos/*/*.jpg")[0] == {
        ("image", "photos/__MACOSX/a.jpg"): "__MACOSX/a",
        ("image", "photos/deep/a.jpg"): "deep/a",
    }
    assert set(named("**/film.*")[0].values()) == {"photos/deep/er/film"}
    assert named("photos/*")[0] == {("image", "photos/B.PNG"): "B", ("image", "photos/a.jpg"): "a"}
    assert named(str(folder / "al?ne.jpg"))[0] == {("image", str(folder / "alone.jpg")): "alone"}
    assert one("*.jpeg").startswith("pattern *.jpeg matches nothing: it must match images or videos (.jpg, .png, .mp4")
    assert "matches only folders and other files, among 1:" in one("photos/dee?")


def test_cameras(folder):
    assert named("1", "camera:0", "/dev/video2") == (
        {("camera", "camera:1"): "camera_1", ("camera", "camera:0"): "camera_0", ("camera", "camera:2"): "camera_2"},
        [],
    )


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://example.org/some/cat.jpg?size=1#x", "cat"),
        ("HTTP://example.org/cat.tar.png", "cat.tar"),
        ("http://example.org", "example.org"),
        ("http://example.org/", "example.org"),
        ("http://127.0.0.1:80/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "passwd"),
        ("http://example.org/..%5C..%5Cx.jpg", "_.._x"),
        ("http://example.org/.jpg", "jpg"),
        ("http://example.org/hübsch%20es.jpg", "hübsch_es"),
        ("http://example.org/" + "long" * 200, "long" * 25),
    ],
)
def test_addresses(address, place):
    assert named(address) == ({("address", address): place}, [])


def test_what_is_wrong_is_said_and_the_rest_is_done(folder):
    (folder / "empty").mkdir()
    words = ["", "  ", "no.jpg", "empty", "alone.jpg", "ftp://example.org/a.jpg", "http://[", "https://x.org/a.mov",
             "photos/notes.jpg", "photos/a.jpg/x", "zero\0byte", "x" * 5000, "1234"]  # fmt: skip
    items, problems = named(*words)
    assert items == {("image", "alone.jpg"): "alone"}
    assert len(problems) == len(words) - 1
    for word, problem in zip([word for word in words if word != "alone.jpg"], problems, strict=True):
        assert word.strip() in problem
        assert problem.endswith((".", "?"))
    assert problems[0] == "an input is empty: is a shell variable not set?"
    assert problems[2] == "no file or folder no.jpg."
    assert problems[3].startswith("folder empty holds no image or video (.jpg, .png, .mp4")


def test_no_two_results_have_the_same_place(folder):
    """Where names are the same but for the ending, it stays; where they are the same, a hash tells them apart."""
    items, problems = named("alone.jpg", "photos/a.jpg", "photos/deep/a.jpg")
    assert problems == []
    alone, one, other = items.values()
    assert alone == "alone"
    assert one != other
    for place in (one, other):
        assert re.fullmatch(r"a\.jpg-[0-9a-f]{8}", place)
    (folder / "photos" / "a.mp4").write_bytes(b"")
    assert {"a.jpg", "a.mp4"} <= set(named("photos")[0].values())
    items, problems = named("alone.jpg", "./alone.jpg", str(folder / "alone.jpg"), "al*.jpg", "1", "camera:1")
    assert problems == []
    assert len(items) == 2


def test_results_are_not_read_again(folder):
    for name in ("photos/out/a_labels.png", "photos/out/deep/a_labels.png", "photos/outer.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for word in ("photos", "photos/**/*"):
        places = set(named(word, output="photos/out")[0].values())
        assert "outer" in places
        assert "deep/a" in places
        assert not any("labels" in place for place in places)
    assert len(named("photos/out", output="elsewhere")[0]) == 2
    assert "a_labels" in named("photos/out/*.png", output="photos/out")[0].values()  # named on purpose
    assert "folder photos is the output folder too" in one("photos", output=folder / "photos")
    assert len(named("photos/deep", output="photos")[0]) == 2  # the output folder around the photos is no trouble


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read(folder):
    (folder / "photos" / "deep").chmod(0)
    try:
        items, problems = named("photos", "photos/deep/a.jpg")
    finally:
        (folder / "photos" / "deep").chmod(0o700)
    assert len(items) == 2
    assert problems == ["cannot read folder photos/deep: Permission denied.",
                        "cannot read photos/deep/a.jpg: Permission denied."]  # fmt: skip


def test_links_in_circles_end(folder):
    (folder / "photos" / "deep" / "again").symlink_to(folder / "photos", target_is_directory=True)
    (folder / "photos" / "gone.jpg").symlink_to("nowhere")
    assert len(named("photos")[0]) == 4


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("a0*?[]{}:/.\\~\0 é%", max_size=12).filter(lambda word: not word.lstrip().startswith("/"))))
def test_any_words_are_planned_or_refused(folder, words):
    for word in words:
        items, problems = named(word)
        assert bool(items) or bool(problems)
    named(*words)


def test_what_is_fetched():
    with serve({"/a%20b.jpg": b"photo", "/%C3%BC.jpg": b"other"}) as site:
        assert fetch_image(f"{site.url}/a b.jpg") == b"photo"
        assert fetch_image(f"{site.url}/a%20b.jpg") == b"photo"
        assert fetch_image(f"{site.url}/ü.jpg") == b"other"


def test_what_cannot_be_fetched():
    with serve({"/a.jpg": bytes(1000)}) as site:
        for path, limit, says in (
            ("/none.jpg", 1000, r"none.jpg: HTTP 404 Not Found\."),
            ("/a.jpg", 999, "it has 1000 bytes, and an image may have 999"),
        ):
            with pytest.raises(DatasetError, match=says):
                fetch_image(site.url + path, limit_bytes=limit)
        assert len(fetch_image(site.url + "/a.jpg", limit_bytes=1000)) == 1000
        site.cut_after = [400]
        with pytest.raises(DatasetError, match="the connection broke off after 400 of 1000 bytes"):
            fetch_image(site.url + "/a.jpg")
        url = site.url
    with pytest.raises(DatasetError, match=r"a\.jpg: .*refused"):
        fetch_image(f"{url}/a.jpg")
    for secret in ("http://me:geheim@127.0.0.1:9/a.jpg", f"{url}/a.jpg?id=7&X-Amz-Signature=geheim"):
        with pytest.raises(DatasetError, match=r"cannot fetch http://127\.0\.0\.1:\d+/a\.jpg") as refused:
            fetch_image(secret)
        assert "geheim" not in str(refused.value)
    with pytest.raises(DatasetError, match=r"cannot fetch http://127\.0\.0\.1:x/a"):
        fetch_image("http://127.0.0.1:x/a")
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/a", "a.jpg"):
        with pytest.raises(ConfigError, match="only http and https"):
            fetch_image(url)


def answering(answer):
    """A server that gives one raw answer and then is silent; returns its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve_once():
        with server, server.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(answer)
            connection.recv(10_000)  # until the other side goes

    thread = threading.Thread(target=serve_once, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_silence(answer):
    with pytest.raises(DatasetError, match=r"no answer for 0\.2 s"):
        fetch_image(answering(answer), timeout=0.2)


def dripping(answer):
    """A server that gives a raw answer a byte at a time; returns its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve_once():
        with server, server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.recv(10_000)
            for byte in answer:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)

    threading.Thread(target=serve_once, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_a_byte_now_and_then_is_no_answer(answer):
    """In the headers and behind them."""
    with pytest.raises(DatasetError, match=r"cannot fetch .*: the rate was \d+ bytes a second"):
        fetch_image(dripping(answer + b"x" * 9999), pace=Pace(1000, 0.1))


def test_no_length_and_no_end():
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3000))
    with pytest.raises(DatasetError, match="it has more than 2000 bytes"):
        fetch_image(url, limit_bytes=2000, timeout=30)


def test_redirections_stay_on_the_web(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret"):
        url = answering(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        with pytest.raises(DatasetError, match="cannot fetch"):
            fetch_image(url, timeout=30)
    with serve({"/a.jpg": b"photo"}) as site:
        url = answering(f"HTTP/1.1 302 Found\r\nLocation: {site.url}/a.jpg\r\nContent-Length: 0\r\n\r\n".encode())
        assert fetch_image(url, timeout=30) == b"photo"


def test_places_are_paths():
    (item,), _ = plan(["camera:7"], Path("out"), suffixes=SUFFIXES)
    assert item.place == Path("camera_7")
