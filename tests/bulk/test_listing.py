"""Inputs of a bulk job: manifests, places, shares."""

import os
import re
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from resnest_seg.bulk import listing
from resnest_seg.bulk.listing import BulkItem, list_inputs, share
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.inference.inputs import plan
from resnest_seg.io.images import IMAGE_SUFFIXES


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "a.png", "in/a.jpg", "in/A.JPG", "in/b [1].png", "in/ü %41#?.jpg", "notes.txt", "clip.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def listed(*words, output="out", **options):
    items, problems = list_inputs([str(word) for word in words], output=str(output), **options)
    return {Path(item.source).name: item.place for item in items}, problems


def test_folders_and_patterns_have_the_places_of_plain_predict(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["photos"], ["photos/in/*.png", "photos/a.*"], ["./photos/../photos/in"]):
        ours, problems = list_inputs(words, output="out")
        plain, others = plan(words, "out", suffixes=IMAGE_SUFFIXES, endings=listing.ALL_ENDINGS)
        assert [(item.source, item.place) for item in ours] == [
            (os.path.normpath(tmp_path / item.source), item.place.as_posix()) for item in plain
        ]
        assert problems == others == []
    again, _ = list_inputs([str(photos), "photos"], output="out")  # the same files by two names
    assert [item.source for item in again] == [item.source for item in list_inputs(["photos"], output="out")[0]]
    assert listed("0", "photos/none.jpg")[1] == [
        "camera:0 is a camera, and a job takes files: leave --shard and --engine out.",
        "no file or folder photos/none.jpg.",
    ]


MANIFESTS = {
    "plain": b"path,label\na.jpg,1\nin/a.jpg,2\n",
    "byte order mark, CRLF, another case": b"\xef\xbb\xbfPath,label\r\na.jpg,1\r\nin/a.jpg,2\r\n",
    "semicolons, another place": b"id;path\n1;a.jpg\n2;in/a.jpg\n",
    "tabs, blank lines": b"path\tx\na.jpg\t1\n\nin/a.jpg\t2\n\n",
    "quotes": b'x,path\n"1,2","a.jpg"\n,"in/a.jpg"',
    "detours": b"path\n./in/../a.jpg\nin//a.jpg\n",
}


@pytest.mark.parametrize("data", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_names_files_relative_to_its_folder(photos, monkeypatch, tmp_path, data):
    (photos / "list.csv").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    items, problems = list_inputs(["photos/list.csv"], output="out")
    assert items == [BulkItem(str(photos / name), name.removesuffix(".jpg")) for name in ("a.jpg", "in/a.jpg")]
    assert problems == []


def test_a_parquet_manifest_is_a_csv_manifest(photos):
    names = ["a.jpg", "in/b [1].png", "in/ü %41#?.jpg", str(photos / "a.png"), "s3://bucket/x/a.jpg", None]
    pyarrow.parquet.write_table(pyarrow.table({"label": range(6), "file": names}), photos / "list.parquet")
    (photos / "list.csv").write_text("file\n" + "".join(f"{name or '  '}\n" for name in names), encoding="utf-8")
    found, problems = listed(photos / "list.parquet", path_column="file")
    assert (found, problems) != ({}, [])
    csv = listed(photos / "list.csv", path_column="file")
    assert csv[0] == found
    assert problems == [f"{photos}/list.parquet: 1 of 6 rows have no path in column file, the first is row 6."]
    assert csv[1] == [f"{photos}/list.csv: 1 of 6 rows have no path in column file, the first is in line 7."]
    assert found == {
        "a.jpg": "bucket/x/a",
        "b [1].png": "in/b [1]",
        "ü %41#?.jpg": "in/ü %41#?",
        "a.png": "a.png",
    }
    pyarrow.parquet.write_table(pyarrow.table({"path": [b"a.jpg", b"\xff.jpg"]}), photos / "bytes.parquet")
    items, _ = list_inputs([str(photos / "bytes.parquet")], output="out")
    assert [os.fsencode(item.source).rpartition(b"/")[2] for item in items] == [b"a.jpg", b"\xff.jpg"]


def test_rows_that_say_it_twice_count_once(photos, capsys):
    (photos / "list.csv").write_text(f"path\na.jpg\n./a.jpg\n{photos}/a.jpg\ngone.jpg\n", encoding="utf-8")
    found, problems = listed(photos / "list.csv")
    assert found == {"a.jpg": "a", "gone.jpg": "gone"}  # that one is missing is said when it is read
    assert problems == []
    assert f"note: {photos}/list.csv names 2 inputs again" in capsys.readouterr().err


def test_wrong_manifests_say_what_would_be_right(photos, tmp_path, monkeypatch):
    def refused(data, error, says, name="list.csv", **options):
        (photos / name).write_bytes(data)
        with pytest.raises(error, match=says):
            listed(photos / name, **options)

    refused(
        b"file,x\na.jpg,1\n", ConfigError, r"list.csv has no column 'path' .*names 'file', 'x'. Name .*--path-column"
    )
    refused(b"PATH,Path\na,b\n", ConfigError, "has no column 'path'")
    refused(b"", ConfigError, "names none")
    refused(b"a.jpg\nb.jpg\n", ConfigError, "without a line of names, add one")
    refused(b'path\n"' + b"a" * 200_000, DatasetError, "list.csv, line 2: field larger than field limit")
    refused(b"no table", DatasetError, "list.parquet: no Parquet file, or a damaged one", "list.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"path": [1, 2]}), photos / "n.parquet")
    with pytest.raises(ConfigError, match="column path is of type int64, and paths are strings"):
        listed(photos / "n.parquet")
    monkeypatch.chdir(tmp_path)
    refused(b"path\nphotos/a.jpg\n", ConfigError, r"relative to the folder of the manifest, and .* does not exist, but")
    (photos / "empty.csv").write_text("path\n")
    assert listed(photos / "empty.csv") == ({}, [f"{photos}/empty.csv has no rows."])
    (photos / "out.csv").write_text("path\nout/a.jpg\na.jpg\n")
    found, (problem,) = listed(photos / "out.csv", output=photos / "out")
    assert list(found) == ["a.jpg"]
    assert "out/a.jpg lies in the output folder" in problem


def test_manifests_and_folders_of_a_store():
    store = fsspec.filesystem("memory")
    for name in ("photos/a.jpg", "photos/in/b.png", "photos/in/notes.txt", "photos/ü %41#?.jpg"):
        store.pipe(f"/bucket/{name}", b"x")
    store.pipe("/bucket/list.csv", b"path\nphotos/a.jpg\nmemory://bucket/photos/in/b.png\n/c.jpg\n")
    items, problems = list_inputs(["memory://bucket/photos"], output="out")
    assert [(item.source, item.place, item.kind) for item in items] == [
        ("memory://bucket/photos/a.jpg", "a", "address"),
        ("memory://bucket/photos/in/b.png", "in/b", "address"),
        ("memory://bucket/photos/ü %41#?.jpg", "ü %41#?", "address"),
    ]
    assert problems == []
    items, problems = list_inputs(["memory://bucket/list.csv"], output="out")
    assert [(item.source, item.place) for item in items] == [
        ("memory://bucket/photos/a.jpg", "photos/a"),
        ("memory://bucket/photos/in/b.png", "bucket/photos/in/b"),
        ("memory://bucket/c.jpg", "c"),
    ]
    one, _ = list_inputs(["memory://bucket/photos/in/b.png"], output="out")
    assert one == [BulkItem("memory://bucket/photos/in/b.png", "b")]
    assert "no files at memory://bucket/none" in list_inputs(["memory://bucket/none"], output="out")[1][0]
    store.pipe("/bucket/texts/notes.txt", b"x")
    assert "none of the 1 files at memory://bucket/texts" in list_inputs(["memory://bucket/texts"], output="out")[1][0]
    store.rm("/bucket", recursive=True)


def test_secrets_stay_out_of_keys():
    item = BulkItem("https://me:word@host/a.jpg?X-Amz-Signature=abc&id=3", "a")
    assert item.key == "https://host/a.jpg?X-Amz-Signature=***&id=3"
    assert BulkItem("/tmp/me:word@home/a.jpg", "a").key == "/tmp/me:word@home/a.jpg"  # a path is no address


def test_addresses_that_differ_in_what_looks_like_a_secret_have_keys_of_their_own(tmp_path):
    signed = [f"https://host/a.jpg?id={number}&sig=x{number}" for number in range(2)]
    alike = ["https://host/get?key=1.jpg", "https://host/get?key=2.jpg", "s3://b/10:30@cam.jpg", "s3://b/11:30@cam.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *signed, *alike]))
    items, problems = list_inputs([str(tmp_path / "list.csv")], output="out")
    assert problems == []
    assert [item.source for item in items] == [*signed, *alike]
    assert [item.key for item in items[:2]] == [f"https://host/a.jpg?id={number}&sig=***" for number in range(2)]
    assert len({item.key for item in items}) == 6
    assert not any(part in item.key for item in items for part in ("1.jpg", "2.jpg", "10:30"))


def test_a_row_that_is_no_address_of_an_image_is_one_problem(tmp_path):
    rows = ["file:///data/a.jpg", "ftp://h/a.jpg", "http://[x].jpg", "https:///a.jpg", "https://host/b.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows]))
    items, problems = list_inputs([str(tmp_path / "list.csv")], output="out")
    assert [item.source for item in items] == rows[4:]
    assert [re.sub(r"^.*list.csv, in line (\d): (\S+) is no address.*$", r"\1 \2", each) for each in problems] == [
        f"{line} {row}" for line, row in enumerate(rows[:4], start=2)
    ]


def test_shares_are_stable_and_cover_everything():
    items = [BulkItem(f"/photos/{number}.jpg", str(number)) for number in range(3000)]
    shares = [share(items, (number, 3)) for number in range(3)]
    assert sorted((item for part in shares for item in part), key=lambda item: int(item.place)) == items
    assert all(900 < len(part) < 1100 for part in shares)
    fewer = share(items[::2], (1, 3))
    assert fewer == [item for item in shares[1] if item in items[::2]]  # whatever else there is
    assert share(items, (0, 1)) == items


def test_a_manifest_is_not_held_in_memory(tmp_path):
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"folder/{n:060d}.jpg\n" for n in range(40_000)))
    table = pyarrow.table({"path": [f"{n:060d}.jpg" for n in range(60_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    for name, count in (("list.csv", 40_000), ("list.parquet", 60_000)):
        tracemalloc.start()
        try:
            assert sum(1 for _ in listing._paths(str(tmp_path / name), "path")) == count
            assert tracemalloc.get_traced_memory()[1] < 3 << 20
        finally:
            tracemalloc.stop()
