"""Jobs through the command line: what plain predict writes, in shares, after kills, in tables and in stores."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pandas
import pyarrow.dataset
import pytest
import torch
from PIL import Image

from resnest_seg.bulk import engines
from resnest_seg.bulk import worker as workers
from resnest_seg.bulk.engines import Summary, finish, remaining
from resnest_seg.bulk.job import Job
from resnest_seg.bulk.ledger import Ledger
from resnest_seg.bulk.listing import bucket, list_inputs
from resnest_seg.bulk.worker import Worker
from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.evaluation.calibration import certainty
from resnest_seg.inference.predictor import Predictor
from resnest_seg.io.video import write_video
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter, load_checkpoint

pytestmark = pytest.mark.slow

SIZES = ((40, 60), (48, 48), (33, 71), (64, 64), (1, 5))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two fresh models of the synthetic scenes."""
    folder, found = tmp_path_factory.mktemp("run"), []
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn"), data=DataConfig(dataset="synthetic"))
    for seed in range(2):
        torch.manual_seed(seed)
        weights = build_segmenter("resnest14_tiny", head="fcn", num_classes=10).state_dict()
        found.append(folder / f"{seed}.safetensors")
        Checkpoint(config, Synthetic("test").label_space, weights).save(found[-1])
    return found


def write_photos(folder, count, bad=()):
    """Photos of mixed sizes in mixed formats, some of which are none."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"in {number % 3}" / f"p[{number}]{(number // 2) % 7}.{'jpg' if number % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = SIZES[number % len(SIZES)]
        pixels = cv2.resize(random.integers(0, 256, (4, 6, 3), dtype=np.uint8), (width, height))
        Image.fromarray(pixels).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[: [0, 20, 60][number % 3]])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("many") / "photos", 30)


@pytest.fixture(scope="module")
def plain(photos, checkpoints, tmp_path_factory):
    """What plain predict writes of the photos: name -> bytes."""
    out = tmp_path_factory.mktemp("plain") / "out"
    from resnest_seg.cli.predict import main

    words = ["--checkpoint", checkpoints[0], "--device", "cpu", photos, "--output", out]
    assert main([*map(str, words), "--write", "labels", "overlay", "polygons"]) == 0
    return content(out)


@pytest.fixture
def predict(checkpoints, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: tool("predict_seg")("--checkpoint", checkpoints[0], "--device", "cpu", *words)


def content(folder):
    """Name -> bytes of the outputs."""
    ours = ("job.json", "errors.jsonl")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ours and path.parent != folder / "manifest"
    }


KILLED = """
import os, signal, sys
from resnest_seg.bulk.ledger import Ledger
from resnest_seg.cli.main import run

def write_and_die(ledger, outcomes):
    write(ledger, outcomes)
    os.kill(os.getpid(), signal.SIGKILL)

write, Ledger.write = Ledger.write, write_and_die
sys.exit(run())
"""


def command(checkpoint, *words, program=("-m", "resnest_seg")):
    """Predict as a process."""
    before = [sys.executable, *program, "predict", "--checkpoint", checkpoint, "--device", "cpu", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, before)), env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


@pytest.mark.long
def test_two_shares_side_by_side_write_what_plain_predict_writes(photos, plain, checkpoints, predict, tmp_path, capsys):
    """The bytes of all files; then there is nothing to do, in whatever shares."""
    words = [photos, "--output", tmp_path / "out", "--write", "labels", "overlay", "polygons"]
    processes = [command(checkpoints[0], *words, "--shard", f"{number}/2") for number in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(plain) == 90
    assert content(tmp_path / "out") == plain
    counts = [int(text.split(" of ")[0]) for text in printed]
    assert sum(counts) == 30
    assert min(counts) > 3
    for number, text in enumerate(printed):
        assert f"inputs of shard {number}/2 segmented into {tmp_path}/out: labels, overlay, polygons (0 done" in text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert predict(*words, "--shard", "2/3") == 0
    assert predict(*words, "--engine", "plain") == 0
    assert "0 of 30 inputs segmented" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before
    photo = photos / "in 0" / "p[0]0.png"
    other = 1 - bucket(str(photo)) % 2
    assert predict(photo, "--shard", f"{other}/2", "--output", tmp_path / "one") == 0
    assert f"nothing to do: no input is in shard {other}/2" in capsys.readouterr().out


def test_bad_files_are_named_and_nothing_else_is_lost(checkpoints, predict, tmp_path, capsys):
    bad = range(7, 70, 10)
    photos = write_photos(tmp_path / "photos", 70, bad=bad)
    broken = {str(path) for path in photos.rglob("*") if path.is_file() and int(path.name[2:].split("]")[0]) in bad}
    words = [photos, "--output", "out", "--write", "labels", "parquet", "--shard", "0/1"]
    assert predict(*words) == 1
    printed = capsys.readouterr()
    assert "63 of 70 inputs segmented into out: labels, parquet (0 done before, 7 failed" in printed.out
    assert "error: 7 not segmented:" in printed.err
    with open("out/errors.jsonl") as file:
        errors = {each["source"]: each["error"] for each in map(json.loads, file)}
    assert set(errors) == broken
    for source, error in errors.items():
        assert source in error
        assert error in printed.err
    table = pandas.read_parquet("out/parquet")
    assert set(table.path[table.error.notna()]) == broken
    assert len(table) == table.path.nunique() == 70
    assert len(list(Path("out").rglob("*_labels.png"))) == 63
    for path in broken:  # mended: the next start segments these alone
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(path)
    assert predict(*words) == 0
    assert "7 of 70 inputs segmented into out: labels, parquet (63 done before, 0 failed" in capsys.readouterr().out
    assert Path("out/errors.jsonl").read_text() == ""
    table = pandas.read_parquet("out/parquet")
    assert len(table) == table.path.nunique() == 70
    assert table.error.isna().all()


def test_more_errors_than_can_be_shown_are_counted(capsys, tmp_path):
    from resnest_seg.bulk.ledger import Outcome

    job = Job("model", str(tmp_path))
    failed = [Outcome(f"/{number}.jpg", str(number), error=f"cannot read /{number}.jpg") for number in range(25)]
    Ledger(job.destination).write(failed)
    assert finish(Summary(25, failed=failed), job, ["no file or folder x."]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 26 not segmented:"
    assert len(lines) == 22
    assert lines[-1] == f"  and 6 more, see {tmp_path}/errors.jsonl"
    assert len((tmp_path / "errors.jsonl").read_text().splitlines()) == 25


@pytest.mark.long
def test_a_killed_job_continues(photos, plain, checkpoints, predict, tmp_path, capsys, monkeypatch):
    """SIGKILL as soon as the first outputs are written down; then a torn line, and a temporary file, beside them."""
    words = [photos, "--output", tmp_path / "out", "--write", "labels", "overlay", "polygons", "--shard", "0/1"]
    process = command(checkpoints[0], *words, program=("-c", KILLED))
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    (file,) = (tmp_path / "out" / "manifest").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 30
    torn = json.loads(lines[-1])
    file.write_bytes(b"".join(lines)[:-20])
    folder = tmp_path / "out" / Path(torn["place"]).parent
    leftover = folder / f".{Path(torn['place']).name}_labels.99999.tmp.png"
    leftover.touch()
    done = [name for line in lines[:-1] for name in json.loads(line)["outputs"]]
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    assert predict(*words) == 0
    assert f"{30 - len(lines) + 1} of 30 inputs segmented" in capsys.readouterr().out
    assert content(tmp_path / "out") == plain  # all once, and no temporary file
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == before
    removed = tmp_path / "out" / done[0]
    removed.unlink()
    assert predict(*words) == 0  # who removes a result wants it again
    assert "1 of 30 inputs segmented" in capsys.readouterr().out
    assert content(tmp_path / "out") == plain


def test_another_job_in_the_same_output_is_refused(photos, checkpoints, predict, tool, tmp_path, capsys):
    one = photos / "in 0" / "p[0]0.png"
    assert predict(one, "--output", "out", "--shard", "0/1") == 0
    other = ["--checkpoint", checkpoints[1], "--device", "cpu", one, "--output", "out"]
    assert tool("predict_seg")(*other, "--shard", "0/1") == 2
    assert "out holds results of another job: checkpoint has another content" in capsys.readouterr().err
    before = Path("out/p[0]0_labels.png").read_bytes()
    assert tool("predict_seg")(*other, "--shard", "0/1", "--overwrite") == 0
    assert Path("out/p[0]0_labels.png").read_bytes() != before


def test_results_of_other_inputs_are_not_written_over(photos, predict, tmp_path, capsys):
    """Which the manifest would have gone on to call those of the first ones."""
    for day, number in (("one", 0), ("two", 3)):
        (tmp_path / day).mkdir()
        (tmp_path / day / "0001.png").write_bytes((photos / "in 0" / f"p[{2 * number}]{number}.png").read_bytes())
    assert predict("one", "--output", "out", "--shard", "0/1") == 0
    before = Path("out/0001_labels.png").read_bytes()
    assert predict("two", "--output", "out", "--shard", "0/1") == 2
    assert re.search(
        r"out holds the results of .*/one/0001.png as 0001, where those of .*/two", capsys.readouterr().err
    )
    assert Path("out/0001_labels.png").read_bytes() == before
    assert predict("one", "two", "--output", "other", "--shard", "0/1") == 0  # together they have places of their own
    for path in Path("out").glob("0001_*"):
        path.unlink()
    assert predict("two", "--output", "out", "--shard", "0/1") == 0
    assert Path("out/0001_labels.png").read_bytes() != before


REFUSED = {
    "no share": (["--shard", "2/2", "--output", "o"], "--shard must be I/N with I from 0 to N - 1"),
    "from one": (["--shard", "1/1", "--output", "o"], "0/4, 1/4, 2/4 and 3/4, not '1/1'"),
    "a word": (["--shard", "first", "--output", "o"], "not 'first'"),
    "no output": (["--shard", "0/2"], "a job of many inputs needs an --output"),
    "one file of all": (["--shard", "0/2", "--output", "o", "--write", "coco"], "--write coco makes one file of all"),
    "two shares": (["--engine", "torchrun", "--shard", "0/2", "--output", "o"], "give one of them"),
    "no torchrun": (["--engine", "torchrun", "--output", "o"], "RANK and WORLD_SIZE, which torchrun sets"),
    "others' work": (["--shard", "0/2", "--output", "o", "--overwrite"], "remove what the other shards have done"),
    "no manifest": (["--shard", "0/2", "--output", "o", "--path-column", "x"], "is for inputs that are manifests"),
}


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_what_a_job_cannot_do_is_said_before_anything_is_loaded(predict, capsys, monkeypatch, words, says):
    monkeypatch.delenv("RANK", raising=False)
    assert predict("a.jpg", *words) == 2
    assert says in capsys.readouterr().err
    assert not any(Path().iterdir())


def test_rows_are_the_png_files(photos, plain, checkpoints, predict, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "ROWS", 12)
    (photos.parent / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in sorted(photos.rglob("*.*"))))
    assert predict(photos.parent / "list.csv", "--output", "out", "--write", "parquet", "polygons") == 0
    table = pandas.read_parquet("out/parquet").set_index("place")
    assert len(list(Path("out/parquet").iterdir())) == 3
    assert len(table) == 30
    model = Predictor(load_checkpoint(checkpoints[0]), device="cpu")
    for place, row in table.iterrows():
        within = place.removeprefix("photos/")  # the manifest lies above the folder
        assert bytes(row.labels) == plain[f"{within}_labels.png"]
        assert (tmp_path / "out" / f"{place}.geojson").read_bytes() == plain[f"{within}.geojson"]
        labels = np.array(Image.open(io.BytesIO(row.labels)))
        assert (row.height, row.width) == labels.shape
        space = model.label_space
        for raw, name in zip(space.raw_ids, space.names, strict=True):
            assert row.shares[name] == pytest.approx((labels == raw).mean())
    for place in table.index[:5]:  # by another implementation
        found = model(table.path[place])
        scores = torch.from_numpy(found.scores())
        expected = certainty(scores, "softmax", torch.from_numpy(found.labels))[0].mean().item()
        assert table.confidence[place] == pytest.approx(expected, abs=1e-5)
    schema = pyarrow.dataset.dataset("out/parquet").schema
    assert json.loads(schema.metadata[b"classes"]) == list(space.names)


def test_a_table_that_no_line_names_is_not_written_again(photos, checkpoints, tmp_path):
    """The process was killed between the file and its lines: then its rows are done. And once more, by chunks."""
    job = Job(str(checkpoints[0]), str(tmp_path / "out"), write=("parquet",), device="cpu")
    items, _ = list_inputs([str(photos / "in 0")], output=job.output)
    worker = Worker(job)
    first = worker(items[:8])
    (line,) = (tmp_path / "out" / "manifest").iterdir()
    line.unlink()
    assert remaining(job, items) == items[8:]
    done = Ledger(job.destination).done({item.key for item in items})
    assert done == {outcome.source: outcome.outputs for outcome in first}
    assert remaining(job, items) == items[8:]
    for file in (tmp_path / "out" / "manifest").iterdir():  # as by a full disk: some of its lines
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3])[:-9])
    assert remaining(job, items) == items[8:]
    assert set(Ledger(job.destination).done({item.key for item in items})) == set(done)
    Worker(job)(items[:8])  # again by hand: the same file
    assert len(list((tmp_path / "out" / "parquet").iterdir())) == 1
    assert set(dataclasses.asdict(first[0])) == {"source", "place", "outputs", "error", "seconds", "height", "width"}


def test_rows_of_a_process_that_died_are_replaced_whatever_fails_now(checkpoints, tmp_path, monkeypatch):
    """An actor of Ray's dies between the file and its lines, and another does the same inputs again."""
    photos = write_photos(tmp_path / "photos", 6)
    job = Job(str(checkpoints[0]), str(tmp_path / "out"), write=("parquet",), device="cpu")
    items = sorted(list_inputs([str(photos)], output=job.output)[0], key=lambda item: item.key)
    written, failing = workers.Worker._written, set()

    def flaky(self, photo, prediction):
        if photo.item.key in failing:
            return workers.Outcome(photo.item.key, photo.item.place, error="the share was away")
        return written(self, photo, prediction)

    def died(*given):
        raise KeyboardInterrupt

    def rows():
        tables = map(pandas.read_parquet, (tmp_path / "out" / "parquet").glob("part-*"))
        return sorted(path for table in tables for path in table.path)

    monkeypatch.setattr(workers.Worker, "_written", flaky)
    worker = Worker(job)
    for failing in ({items[0].key}, {items[1].key, items[2].key}, set()):
        with monkeypatch.context() as patched:
            patched.setattr(worker.ledger, "write", died)
            with pytest.raises(KeyboardInterrupt):
                worker(items)
        assert rows() == [item.key for item in items if item.key not in failing]
    failing = {items[3].key}
    worker(items)
    assert rows() == [item.key for item in items if item.key not in failing]
    reads = []
    monkeypatch.setattr(engines, "places_in", lambda destination, name: reads.append(name) or ())
    assert remaining(job, items) == [items[3]]
    assert not reads  # the failed one is accounted for: the file need not be opened at every start
    failing = {item.key for item in items}
    worker(items)
    assert rows() == []


def test_a_full_disk_ends_the_job(photos, checkpoints, tmp_path, monkeypatch):
    job = Job(str(checkpoints[0]), str(tmp_path / "out"), device="cpu")
    items, _ = list_inputs([str(photos / "in 0")], output=job.output)
    worker = Worker(job)

    def full(*given):
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patched:
        patched.setattr(workers, "write_outputs", full)
        with pytest.raises(OSError, match="No space left"):
            worker(items[:3])
    assert remaining(job, items) == items
    assert [outcome.error for outcome in worker(items[:3])] == [None] * 3


def test_a_batch_with_a_bad_photo_and_a_video(checkpoints, tmp_path):
    photos = write_photos(tmp_path / "photos", 30, bad=(2, 12))
    with write_video(tmp_path / "photos" / "clip.mp4", fps=5) as writer:
        for _ in range(3):
            writer.write(np.zeros((32, 48, 3), np.uint8))
    job = Job(str(checkpoints[0]), str(tmp_path / "out"), device="cpu", frames=2)
    items, problems = list_inputs([str(photos)], output=job.output)
    outcomes = Worker(job)(items)
    assert problems == []
    assert [outcome.source for outcome in outcomes] == [item.source for item in items]
    assert sum(outcome.error is not None for outcome in outcomes) == 2
    assert (tmp_path / "out" / "clip_overlay.mp4").is_file()
    table = Worker(dataclasses.replace(job, write=("parquet",)))
    (outcome,) = table([item for item in items if item.kind == "video"])
    assert "a row of a table holds an image, and this is a video" in outcome.error


def test_from_a_store_into_a_store(photos, plain, predict, tmp_path, capsys):
    """The same bytes; what fails is named by its address; a second start does nothing."""
    store = fsspec.filesystem("memory")
    for path in sorted(photos.rglob("*.*"))[:20]:
        store.pipe(f"/bucket/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    store.pipe("/bucket/photos/bad #1?.jpg", b"no photo")
    words = ["memory://bucket/photos", "--output", "memory://bucket/out", "--write", "labels", "overlay", "polygons"]
    assert predict(*words) == 1
    printed = capsys.readouterr()
    assert "20 of 21 inputs segmented into memory://bucket/out" in printed.out
    assert "memory://bucket/photos/bad #1?.jpg: 8 bytes that are not an image" in printed.err
    assert "/resnest_seg_" not in printed.err  # where it was fetched to
    found = {name.removeprefix("/bucket/out/"): store.cat_file(name) for name in store.find("/bucket/out")}
    outputs = {name: data for name, data in found.items() if name.endswith((".png", ".geojson"))}
    assert len(outputs) == 60
    assert outputs == {name: plain[name] for name in outputs}
    assert len([name for name in found if name.startswith("manifest/")]) == 1
    assert b"bad #1?" in found["errors.jsonl"]
    store.pipe("/bucket/photos/bad #1?.jpg", store.cat_file(store.find("/bucket/photos/in 0")[0]))
    assert predict(*words) == 0
    assert "1 of 21 inputs segmented into memory://bucket/out: labels, overlay, polygons (20 done before" in (
        capsys.readouterr().out
    )
    assert predict("memory://bucket/photos/in 0", "memory://bucket/none", "--output", "here") == 1  # plain predict
    printed = capsys.readouterr()
    assert "no files at memory://bucket/none" in printed.err
    (name,) = [name for name in plain if name.startswith("in 0/p[0]") and name.endswith("labels.png")]
    assert Path("here", Path(name).name).read_bytes() == plain[name]
    assert not Path("here", "manifest").exists()
    store.rm("/bucket", recursive=True)


def test_a_cut_video_is_not_said_to_be_where_it_is_not(predict, tmp_path, capsys):
    """A folder keeps the frames before the damage; a store gets whole files only."""
    with write_video(tmp_path / "a.avi", fps=5.0) as video:
        for shade in range(40):
            video.write(np.full((48, 64, 3), 6 * shade, np.uint8))
    (tmp_path / "a.avi").write_bytes((tmp_path / "a.avi").read_bytes()[:12_000])
    assert predict("a.avi", "--output", "out", "--shard", "0/1") == 1
    assert re.search(r"\d+ frames are in out/a_overlay\.\w+", capsys.readouterr().err)
    assert predict("a.avi", "--output", "memory://bucket/out") == 1
    said = capsys.readouterr().err
    assert "a.avi" in said
    assert "frames are in" not in said.replace("frames are in the file", "")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_results_in_a_store_are_no_inputs(photos, predict, capsys):
    """As within a folder: of the same command again, and where the output is the input."""
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.png", (photos / "in 0" / "p[0]0.png").read_bytes())
    for before in (0, 1):
        assert predict("memory://bucket/", "--output", "memory://bucket/out/") == 0
        assert (
            f"of 1 inputs segmented into memory://bucket/out: labels, overlay ({before} done" in capsys.readouterr().out
        )
    assert predict("memory://bucket/out", "--output", "memory://bucket/out") == 1
    assert "memory://bucket/out/a_labels.png lies in the output folder" in capsys.readouterr().err
    store.rm("/bucket", recursive=True)


def test_secrets_of_addresses_are_shown_and_kept_nowhere(predict, tmp_path, capsys):
    address = "http://me:geheim@127.0.0.1:9/a.jpg?token=geheim"
    for words in ([], ["--shard", "0/1", "--write", "labels", "parquet"]):
        assert predict(address, "--output", "out", *words) == 1
        printed = capsys.readouterr()
        assert "cannot fetch http://127.0.0.1:9/a.jpg?token=***" in printed.err
        assert "geheim" not in printed.out + printed.err
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.parent.name for path in found} == {"out", "manifest", "parquet"}
    assert not any(b"geheim" in path.read_bytes() for path in found)


def test_an_image_off_the_map_without_an_output_is_not_done(photos, predict, capsys):
    one = photos / "in 0" / "p[0]0.png"
    assert predict(one, "--output", "out", "--shard", "0/1", "--write", "geopackage") == 1
    assert f"{one}: it has no CRS or no place in it" in capsys.readouterr().err


def test_overwrite_removes_what_is_the_jobs_alone(photos, predict, tmp_path):
    """A folder manifest/ may hold the lists of inputs."""
    theirs = [tmp_path / "out" / name for name in ("manifest/list.csv", "manifest/a-1.jsonl", "parquet/part-1.parquet")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"path\n{photos}/in 0/p[0]0.png\n")
    words = [theirs[0], "--output", "out", "--overwrite", "--write", "labels", "parquet"]
    assert [predict(*words), predict(*words)] == [0, 0]
    assert all(path.is_file() for path in theirs)
    assert len(list((tmp_path / "out").rglob("*.*"))) == len(theirs) + 4  # job.json, labels, a line, a row


def test_under_torchrun_a_failed_process_waits_for_the_others(monkeypatch):
    """torchrun ends all of them as soon as one has failed; who is done waits for none."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": "3",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    engines.wait_for_the_others(0)
    failed = threading.Thread(target=engines.wait_for_the_others, args=(1,))
    failed.start()
    failed.join(timeout=1.0)
    assert failed.is_alive()
    engines.wait_for_the_others(0)
    failed.join(timeout=60)
    assert not failed.is_alive()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    engines.wait_for_the_others(1)  # by another launcher: at once
