"""Names of results, checks before the work, and atomic writing."""

import errno
import os
import stat
import unicodedata
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from resnest_seg.errors import ConfigError
from resnest_seg.files import (
    TEMPORARY,
    atomic_write,
    check_not_inputs,
    check_output_file,
    check_output_folder,
    check_outside,
    claimed,
    remove_leftovers,
    result_places,
)


def places(*names, endings=(".png",)):
    return list(result_places(dict(zip(names, names, strict=True)), endings=endings).values())


def test_a_place_is_the_name_without_its_ending():
    assert places("val/a.png", "leftImg8bit/val/ulm/b.c.png", "synthetic test scene 3") == [
        Path("val/a"), Path("leftImg8bit/val/ulm/b.c"), Path("synthetic test scene 3")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),  # the ending tells them apart
        (["/data/a.png", "../../b.png", "./c.png", "x/../../d.png"], ["data/a", "__/__/b", "c", "x/__/__/d"]),
        (["C:/evil.txt", "\\\\host\\x.png", "a\0b\n.png", ".. /x.png"], ["C_/evil", "__host_x", "a_x00b_", "___/x"]),
        ([os.fsdecode(b"caf\xe9.png"), "café.png"], ["caf_xe9", "café"]),
        (["", "/", "..."], None),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),  # a.png cannot be a file and a folder
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_to_the_same_file(names, expected):
    found = places(*names)
    if expected is not None:
        assert [place.as_posix() for place in found] == expected
    check_laws(found)


def test_case_and_accents_do_not_tell_files_apart_on_every_system():
    found = places("A.png", "a.png", "caf\u00e9.png", "cafe\u0301.png")
    check_laws(found)
    assert all(place.name[0].lower() in "ac" for place in found)  # it still tells the sample


def test_long_names_are_cut_and_stay_different(tmp_path):
    stem = "ü" * 120  # 240 bytes
    found = places(f"{stem}a.png", f"{stem}b.png", "x" * 250 + ".jpg", "f" * 255 + "/a.png", endings=("_overlay.png",))
    check_laws(found, "_overlay.png")
    for place in found:
        with atomic_write(tmp_path / f"{place}_overlay.png") as temporary:
            temporary.write_bytes(b"")
    assert len([path for path in tmp_path.rglob("*.png") if path.is_file()]) == 4


PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "C:", "a", "A", "a.png", "a.jpg", "é", "e\u0301", "x" * 250, "\0", "..\\.."]),
    st.text(max_size=6),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(PARTS, max_size=3).map("/".join), unique=True, max_size=8), st.randoms())
def test_the_laws_of_places_hold_for_all_names(names, random):
    endings = ("_labels.png", ".geojson")
    found = result_places({name: name for name in names}, endings=endings)
    for end in endings:
        check_laws(list(found.values()), end)
    shuffled = random.sample(names, len(names))
    assert result_places({name: name for name in shuffled}, endings=endings) == found


def check_laws(found, end=".png"):
    """Below the folder on POSIX and Windows, no two alike on any file system, no file where a folder must be."""

    def folded(path):
        return unicodedata.normalize("NFC", str(path)).casefold()

    files = [place.with_name(place.name + end) for place in found]
    assert len({folded(file) for file in files}) == len(files)
    assert not {folded(file) for file in files} & {folded(parent) for file in files for parent in file.parents}
    for file in files:
        assert not file.is_absolute()
        assert ".." not in file.parts
        windows = PureWindowsPath(str(file))
        assert not windows.drive
        assert not windows.root
        assert len(windows.parts) == len(file.parts)
        assert not any(part.strip(". ") == "" for part in windows.parts)
        assert all(len(part.encode()) <= 255 for part in file.parts)  # UnicodeEncodeError: bytes that are no UTF-8
        assert "\0" not in str(file)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("folder", "it is a folder"),
        ("old.json", "already exists"),
        ("old.json/deep/er.json", "old.json is not a folder"),
        ("x" * 300, "File name too long"),
        ("y" * 300 + "/a.json", "File name too long"),
        ("zero\0byte", "null byte"),
        ("pipe", "not a regular file"),
    ],
)
def test_what_cannot_be_written_is_refused_before(tmp_path, output, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.json").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=says):
        check_output_file(tmp_path / output, what="report", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.json", "pipe"]


def test_what_can_be_written_is_not(tmp_path):
    (tmp_path / "old.json").write_text("old")
    check_output_file(tmp_path / "old.json", what="report", overwrite=True)
    check_output_file(tmp_path / "new" / "er" / "report.json", what="report", overwrite=False)
    check_output_folder(tmp_path / "new")
    check_output_folder(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        check_output_folder(tmp_path / "old.json")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_a_result_never_replaces_what_it_is_made_from(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"photo")
    (tmp_path / "link.png").symlink_to(photo)
    check_not_inputs([tmp_path / "labels.png"], [photo, tmp_path / "gone.png"])
    for path in (photo, tmp_path / "link.png", tmp_path / "folder" / ".." / "photo.png"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="a result would overwrite it"):
            check_not_inputs([tmp_path / "labels.png", path], [photo])


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_the_new_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "picture.png"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_any_new_file(tmp_path, umask):
    """Also those of libraries that make files for their owner alone, as safetensors does."""
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_text("")
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with atomic_write(tmp_path / "a.json") as temporary:
            temporary.write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("plain", "a.safetensors", "a.json"), 0o666 & ~umask)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    """Writers that are given an open file, and writers that are given a name: both errors name what was wanted."""

    def into_file(path):
        with open("/dev/full", "wb") as file:
            np.savez_compressed(file, scores=np.zeros((400, 400)))

    def into_name(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def text(path):
        Path("/dev/full").write_text("report" * 10000)

    for write in (into_file, into_name, text):
        with pytest.raises(OSError, match="No space left on device") as raised:  # noqa: SIM117  # both raise
            with atomic_write(tmp_path / "report.json") as temporary:
                write(temporary)
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.filename == str(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_the_system_allows(tmp_path):
    for name in ("x" * 250 + ".png", "x." + "y" * 253, "ü" * 127):
        with atomic_write(tmp_path / name) as temporary:
            assert TEMPORARY.fullmatch(temporary.name)
            temporary.write_text("new")
            left = temporary.with_name(temporary.name.replace(f".{os.getpid()}.", ".4711."))
            left.touch()
        assert (tmp_path / name).read_text() == "new"
        remove_leftovers(tmp_path, ["other.png"])
        assert left.exists()
        remove_leftovers(tmp_path, [name])
        assert not left.exists()


def test_a_folder_of_results_among_inputs_is_refused(tmp_path):
    images = tmp_path / "images"
    (images / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(images)
    for inside in (images, images / "new", images / "train" / "new", tmp_path / "link" / "new",
                   tmp_path / "other" / ".." / "images"):  # fmt: skip
        with pytest.raises(ConfigError, match=r"lies within .*images.* Choose another --there"):
            check_outside(inside, [tmp_path / "masks", images], option="--there")
    for outside in (tmp_path, tmp_path / "images2", tmp_path / "out" / "images"):
        check_outside(outside, [tmp_path / "masks", images])
    with pytest.raises(ConfigError, match=r"cannot write to a\\x00b"):
        check_outside("a\0b", [images])


@pytest.mark.parametrize("taken", [[], ["x"], ["x", "x-2"], ["x", "x-2", "x-3"]])
def test_a_folder_that_cannot_be_listed_has_a_next_name(taken, tmp_path, monkeypatch):
    """As one of mode -wx, in which a name can be looked up and made."""

    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    made, tries = Path.mkdir, []

    def counted(path, *arguments, **options):
        tries.append(path)
        assert len(tries) < 20, "it goes on for ever"
        made(path, *arguments, **options)

    for name in taken:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Path, "iterdir", refused)
    monkeypatch.setattr(Path, "mkdir", counted)
    with claimed(tmp_path / "x") as folder:
        assert folder == tmp_path / (f"x-{len(taken) + 1}" if taken else "x")
        assert folder.is_dir()
