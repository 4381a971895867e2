"""The manifest of finished outputs, the record of a job, and where outputs go."""

import dataclasses
import json

import fsspec
import pytest

from resnest_seg.bulk.destination import AddressDestination, open_destination
from resnest_seg.bulk.job import FILE, Job, begin
from resnest_seg.bulk.ledger import Ledger, Outcome, parsed
from resnest_seg.errors import CheckpointError, ConfigError

DONE = Outcome("/photos/a \udcff[1].jpg", "a", ("a_labels.png",), None, 0.5, 40, 60)


@pytest.fixture(params=["folder", "address"])
def place(request, tmp_path):
    if request.param == "folder":
        yield open_destination(str(tmp_path / "out"))
        return
    yield open_destination("memory://me:word@ledgers/out")
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_what_any_process_has_done_is_done(place):
    first, second = Ledger(place), Ledger(place)
    assert first.file != second.file
    failed = Outcome("/b.jpg", "b", error="cannot read /b.jpg")
    first.write([DONE, failed])
    second.write([dataclasses.replace(failed, error="still not"), Outcome("/c.jpg", "c", error="x")])
    third = Ledger(place)
    assert sorted(third.failures()) == ["/b.jpg", "/c.jpg"]
    assert third.done({DONE.source, "/b.jpg"}) == {DONE.source: ("a_labels.png",)}
    third.write([Outcome("/c.jpg", "c", ("c_labels.png",))])
    third.write([Outcome("/b.jpg", "b", ("b_labels.png",))])
    first.write([failed])  # by one that began earlier: what is done stays done
    assert first.failures() == {}
    assert set(first.done({DONE.source, "/b.jpg", "/c.jpg"})) == {DONE.source, "/b.jpg", "/c.jpg"}
    assert first.done({"/none.jpg"}) == {}
    assert DONE in list(first.read())


def test_a_line_of_a_killed_process_counts_for_nothing(tmp_path):
    place = open_destination(str(tmp_path))
    Ledger(place).write([DONE, dataclasses.replace(DONE, source="/b.jpg")])
    (file,) = (tmp_path / "manifest").iterdir()
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        whole = data[:length].count(b"}")  # the last line may lack its newline, no more
        assert len(Ledger(place).done({DONE.source, "/b.jpg"})) == whole
    for strange in (
        b"",
        b"[]",
        b"{}",
        b"1",
        b'{"source": "a"}',
        b'{"source": "a", "place": "b", "outputs": 3}',
        b"\xff",
    ):
        assert parsed(strange) is None


def test_a_destination_keeps_whole_files(place, tmp_path):
    assert place.empty()
    assert place.read("x/a.txt") is None
    assert place.names("x") == []
    place.write("x/a #?%.txt", b"1")
    place.write("x/a #?%.txt", b"22")
    with place.files(["x/b.txt", "x/in/c.txt"]) as (path, _):  # the second is not written
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"b")
    assert not place.empty()
    assert place.read("x/a #?%.txt") == b"22"
    assert place.names("x") == ["x/a #?%.txt", "x/b.txt"]
    assert place.has("x/b.txt")
    with pytest.raises(OSError, match="nothing"), place.files(["x/d.txt"]):
        raise OSError("nothing")
    assert not place.has("x/d.txt")
    place.remove("x/b.txt")
    place.remove("x/b.txt")
    assert not place.has("x/b.txt")
    assert "word" not in place.shown


def test_what_killed_processes_left_is_cleared_for_the_own_items_only(tmp_path):
    place = open_destination(str(tmp_path))
    (tmp_path / "in").mkdir()
    mine = [".a_labels.77.tmp.png", ".a.77.tmp.geojson", ".a_overlay.9.tmp.png"]
    others = [".b_labels.77.tmp.png", ".a_labels.png", "a_labels.77.tmp.png", ".aa_labels.7.tmp.png"]
    for name in mine + others:
        (tmp_path / "in" / name).touch()
    place.tidy(["in/a", "c"])
    assert {path.name for path in (tmp_path / "in").iterdir()} == set(others)


@pytest.fixture
def job(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "net.py").write_text("def build(k): ...")
    return Job(str(tmp_path / "model.onnx"), str(tmp_path / "out"), model=f"{tmp_path}/net.py:build")


def test_a_job_is_what_decides_its_results(job, tmp_path):
    job = dataclasses.replace(job, write=("labels", "overlay", "polygons"))
    begin(job)
    record = (tmp_path / "out" / FILE).read_bytes()
    begin(job)  # continues
    same = {
        "device": "cuda",
        "batch": 3,
        "memory": 7,
        "threads": 2,
        "compile": True,
        "write": ("polygons", "overlay", "labels"),
    }
    begin(dataclasses.replace(job, **same))
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(b"weights")
    begin(dataclasses.replace(job, checkpoint=str(moved)))
    assert (tmp_path / "out" / FILE).read_bytes() == record
    fields = (
        {field.name for field in dataclasses.fields(Job)} - {"checkpoint", "output", "model"} - (set(same) - {"write"})
    )
    other = {"write": ("labels",), "scales": (0.5, 1.0), "flip": True, "overlay_bands": ("4", "3", "2"), "tile": 64,
             "overlap": 8, "frames": 3, "alpha": 0.25, "simplify": 2.0, "cog": True}  # fmt: skip
    for field in fields:
        changed = dataclasses.replace(job, **{field: other.get(field, "other")})
        with pytest.raises(
            ConfigError, match=rf"out holds results of another job: {field} was .*, and is now .*--overwrite"
        ):
            begin(changed)
    moved.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"another job: checkpoint has another content\. Choose another --output"):
        begin(dataclasses.replace(job, checkpoint=str(moved)))
    (tmp_path / "net.py").write_text("def build(k): return 1")
    with pytest.raises(ConfigError, match="model has another content"):
        begin(job)
    with pytest.raises(CheckpointError, match="there is no such file or run folder"):
        begin(dataclasses.replace(job, checkpoint=str(tmp_path / "none")))
    assert json.loads(record)["write"] == ["labels", "overlay", "polygons"]


@pytest.mark.parametrize(
    ("write", "idle", "counts"),
    [
        (("scores",), {"ids": "train", "simplify": 2.0, "overlay_bands": ("4", "3", "2"), "cog": True}, {"alpha": 0.1}),
        (("labels",), {"simplify": 2.0, "overlay_bands": ("4", "3", "2")}, {"cog": True}),
        (("parquet",), {"simplify": 2.0, "cog": True}, {"ids": "train"}),
        (("geopackage",), {"ids": "train", "cog": True}, {"simplify": 2.0}),
    ],
)
def test_a_job_goes_on_without_options_that_had_no_effect(job, tmp_path, write, idle, counts):
    """Such as --ids without labels, which was taken and recorded, and is refused now."""
    job = dataclasses.replace(job, write=write)
    begin(dataclasses.replace(job, **idle))
    begin(job)
    ((field, value),) = counts.items()
    with pytest.raises(ConfigError, match=f"another job: {field} was [^;]*$"):
        begin(dataclasses.replace(job, **{field: value}))


def test_an_output_with_other_files_is_left_alone(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"out holds files, and no job\.json of a job that could continue there"):
        begin(job)
    begin(job, overwrite=True)
    Ledger(job.destination).write([DONE])
    begin(dataclasses.replace(job, ids="train"), overwrite=True)
    assert Ledger(job.destination).done({DONE.source}) == {}
    assert (tmp_path / "out" / "letter.txt").read_text() == "dear"
    (tmp_path / "out" / FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"out/job.json is damaged"):
        begin(job)
    (tmp_path / "out" / FILE).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="is of format 99, and this version knows 1"):
        begin(job)


def test_two_different_jobs_that_begin_at_once(job):
    """The second writes its record after the first has looked: one of them is told, whichever is overwritten."""
    other = dataclasses.replace(job, ids="train")

    class Late(AddressDestination):
        def write(self, name, data):
            super().write(name, data)
            if name == FILE and not self.written:
                Late.written = True
                begin(dataclasses.replace(other, output="memory://late/out"), overwrite=True)

    Late.written = False

    class First(Job):
        @property
        def destination(self):
            return Late("memory://late/out")

    with pytest.raises(ConfigError, match="another job: ids was train, and is now raw"):
        begin(First(**vars(job)))
    fsspec.filesystem("memory").rm("/late", recursive=True)
