"""Prediction and evaluation by actors of Ray: the same bytes as without, whatever dies meanwhile.

One cluster on loopback serves all tests that need none of their own; they find it by RAY_ADDRESS, as a user does.
"""

import atexit
import contextlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.small_models import save_scenes_model

from resnest_seg.bulk import ray_engine, ray_evaluation, ray_watch
from resnest_seg.bulk.ray_engine import Actors, Attempts
from resnest_seg.bulk.ray_evaluation import Share, _Parts
from resnest_seg.errors import ConfigError, ResNeStSegError

pytestmark = [pytest.mark.slow, pytest.mark.long]
if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra ray", allow_module_level=True)

PROJECT = Path(__file__).resolve().parents[2]
SIZES = [(64, 64), (48, 80), (64, 64), (70, 50)]
BROKEN = range(3, 40, 7)
"""Numbers of the photos that cannot be read, two of each kind."""

CORES = ray_engine._cores()
"""Those of this machine, of which the fixture `cluster` has two at most."""

SLOW = ("--protocol", "encoding")
"""Options by which a photo takes long enough to kill something meanwhile."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A fresh model of the synthetic scenes."""
    return save_scenes_model(tmp_path_factory.mktemp("run"))


def draw(folder, count):
    """Photos in mixed sizes."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 3}" / f"photo {number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = SIZES[number % len(SIZES)]
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 photos."""
    return draw(tmp_path_factory.mktemp("photos") / "ünter [1] %20#?", 20)


@pytest.fixture
def many(tmp_path):
    """40 photos, of which six are broken: empty, cut off, or no photo."""
    folder = draw(tmp_path / "many", 40)
    for number in BROKEN:
        path = folder / f"{number % 3}" / f"photo {number}.jpg"
        path.write_bytes((b"", path.read_bytes()[:300], b"no photo")[number % 3])
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A session of two cores, which ends with the module; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(ray_engine, "_cores", lambda: 2)
        with ray_engine.ray_session() as ray:
            from colorama.initialise import reset_all  # Ray's copy, which holds the captured output

            atexit.unregister(reset_all)
            yield ray.get_runtime_context().gcs_address


@pytest.fixture
def predict(checkpoint, tool, tmp_path, monkeypatch):
    """The tool on the CPU, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: tool("predict_seg")("--checkpoint", checkpoint, "--device", "cpu", *words)


def files(folder):
    """Name -> content of the outputs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".png", ".geojson")
    }


def lines(folder):
    """The lines of the manifest."""
    return [json.loads(line) for path in sorted(folder.glob("manifest/*")) for line in path.read_text().splitlines()]


def actors_in(folder):
    """Process -> number of inputs that it has done: the manifest's files are named by machine and process."""
    return {int(path.stem.split("-")[-2]): len(path.read_text().splitlines()) for path in folder.glob("manifest/*")}


@contextlib.contextmanager
def hunting(candidates):
    """Kill one of the processes that a function names, as soon as there is one; a thread, whose `killed` it is.

    At the end of the block it has a minute left, and none if the block fails.
    """

    def run():
        while not (thread.killed or over.is_set()):
            for pid in candidates():
                with contextlib.suppress(ProcessLookupError):  # it ended since: there may be another one
                    os.kill(pid, signal.SIGKILL)
                    thread.killed = pid
                    return
            time.sleep(0.01)

    thread, over = threading.Thread(target=run, daemon=True), threading.Event()
    thread.killed = None
    thread.start()
    try:
        yield thread
        thread.join(60)
        assert thread.killed
    finally:
        over.set()
        thread.join(60)


def kill_one(folder, *, after):
    """Kill an actor as soon as it has done some inputs."""
    return hunting(lambda: [pid for pid, count in actors_in(folder).items() if count >= after])


def kill_child(name, *, when=lambda: True):
    """Kill a process below this one by its name, as soon as there is one."""

    def candidates():
        for child in psutil.Process().children(recursive=True) if when() else ():
            with contextlib.suppress(psutil.Error):
                if child.name().startswith(name[:15]) and " ".join(child.cmdline()).startswith(name):
                    yield child.pid

    return hunting(candidates)


def soon(condition, seconds=60):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def start(*words, cwd, **environment):
    """The command as a process of a group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "resnest_seg", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process):
    """Wait until something is so, or a process has ended."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def group_of(process):
    """The processes of a session that are alive."""
    found = subprocess.run(["ps", "-A", "-o", "sid=,pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.split()[0] == str(process.pid) and "<defunct>" not in line]


def test_the_same_bytes_as_without_and_bad_photos_lose_nothing(cluster, predict, many, tmp_path, capsys):
    assert predict(many, "--output", "plain", "--write", "labels", "polygons") == 1
    capsys.readouterr()
    assert predict(many, "--output", "out", "--write", "labels", "polygons", "--engine", "ray") == 1
    printed = capsys.readouterr()
    assert len(files(tmp_path / "plain")) == 2 * 34
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    assert "34 of 40 inputs segmented into out: labels, polygons (0 done before, 6 failed" in printed.out
    assert "6 not segmented" in printed.err
    assert all(f"photo {number}.jpg" in printed.err for number in BROKEN)
    assert "raylet" not in printed.out + printed.err
    assert not Path.home().joinpath(".ray").exists()  # where Ray would leave a token
    listed = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert len(listed) == 6
    counts = Counter(line["source"] for line in lines(tmp_path / "out"))
    assert len(counts) == 40
    assert set(counts.values()) == {1}

    for number in BROKEN:  # the photos are mended, and another engine goes on
        path = many / f"{number % 3}" / f"photo {number}.jpg"
        path.write_bytes((many / f"{number % 3}" / f"photo {number - 3}.jpg").read_bytes())
    assert predict(many, "--output", "out", "--write", "labels", "polygons", "--shard", "0/1") == 0
    assert "6 of 40 inputs segmented into out: labels, polygons (34 done before, 0 failed" in capsys.readouterr().out


def test_killed_processes_lose_nothing_and_double_nothing(cluster, predict, photos, tmp_path, capsys):
    """An actor, and the process that counts attempts, which is a worker of Ray's as well."""
    assert predict(photos, "--output", "plain", "--write", "labels", *SLOW) == 0
    with kill_one(tmp_path / "out", after=2) as actor, kill_child("ray::Attempts", when=lambda: actor.killed):
        assert predict(photos, "--output", "out", "--write", "labels", "parquet", "--engine", "ray", *SLOW) == 0
    assert actor.killed in actors_in(tmp_path / "out")
    assert "20 of 20 inputs segmented into out: labels, parquet (0 done before, 0 failed" in capsys.readouterr().out
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    check_rows(tmp_path / "out", photos)


def test_ctrl_c_and_a_killed_head_continue(cluster, predict, photos, checkpoint, tmp_path, capsys):
    """On two clusters that the command starts itself; what is left is done on one that is there already.

    Each has one actor with all cores, whatever machine this is.
    """
    out = tmp_path / "out"
    words = ("predict", "--checkpoint", checkpoint, "--device", "cpu", photos, "--output", "out", "--engine", "ray",
             "--write", "parquet", *SLOW)  # fmt: skip
    alone = ("--cpus-per-actor", CORES)
    head = start(*words, *alone, cwd=tmp_path, RAY_ADDRESS="local")
    wait_for(lambda: len(lines(out)) >= 2, head)
    os.killpg(head.pid, signal.SIGINT)
    printed, said = head.communicate()
    assert (head.returncode, said.strip()[-11:]) == (130, "interrupted")
    assert "Traceback" not in said + printed
    assert "ray" not in said.lower()
    soon(lambda: not group_of(head))
    interrupted = len(lines(out))
    assert 2 <= interrupted < 20

    head = start(*words, *alone, cwd=tmp_path, RAY_ADDRESS="local")
    try:
        wait_for(lambda: len(lines(out)) >= interrupted + 1, head)
        head.kill()
        head.communicate()
        soon(lambda: not any("MapWorker" in line for line in group_of(head)))
    finally:
        if group_of(head):  # Ray's agents look for their head every few seconds
            os.killpg(head.pid, signal.SIGKILL)
    before = {line["source"]: line for line in lines(out)}
    assert interrupted + 1 <= len(before) < 20
    written = {path: path.stat().st_mtime_ns for path in out.glob("parquet/*")}

    assert predict(*words[5:], "--cpus-per-actor", 2) == 0
    assert f"20 inputs segmented into out: parquet ({len(before)} done before, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written
    check_rows(out, photos)


def check_rows(out, photos):
    """Every photo has one line that calls it done, and one row, with its size."""
    table = pyarrow.parquet.read_table(out / "parquet").to_pylist()
    found = Counter(Path(row["path"]) for row in table)
    assert found == Counter(path.absolute() for path in photos.glob("*/*"))
    for row in table:
        with Image.open(row["path"]) as photo, Image.open(io.BytesIO(row["labels"])) as labels:
            assert labels.size == photo.size == (row["width"], row["height"])
    assert {line["source"] for line in lines(out)} == {row["path"] for row in table}
    assert not list(out.rglob(".*"))


def test_eval_gives_the_same_report(cluster, checkpoint, tool, tmp_path, monkeypatch, capsys):
    """The same report, scores by image and predictions, though the only actor dies in the middle."""
    monkeypatch.chdir(tmp_path)
    words = ("--checkpoint", checkpoint, "--limit", 12, "--protocols", "whole,slide", "--boundaries", "--calibration",
             "--device", "cpu", "--workers", 0)  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # as the actor has
    try:
        assert tool("eval_seg")(*words, "--output", "plain.json", "--save-predictions", "plain") == 0
    finally:
        torch.set_num_threads(threads)
    expected = capsys.readouterr().out
    counted = ray_evaluation.results_of

    def killing(*arguments):
        for number, share in enumerate(counted(*arguments)):
            if not number:
                with kill_child("ray::MapWorker"):
                    pass
                # As the actor leaves one if it dies while it writes a prediction, which it does in some runs only.
                (tmp_path / "out" / ".synthetic val scene 3.99999.tmp.png").write_bytes(b"half")
            yield share

    monkeypatch.setattr(ray_evaluation, "results_of", killing)
    by_ray = ("--engine", "ray", "--cpus-per-actor", 2)
    assert tool("eval_seg")(*words, "--output", "out.json", "--save-predictions", "out", *by_ray) == 0
    assert capsys.readouterr().out == expected
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "plain.json").read_bytes()
    assert (tmp_path / "out.images.jsonl").read_bytes() == (tmp_path / "plain.images.jsonl").read_bytes()
    assert files(tmp_path / "out").keys() == files(tmp_path / "plain").keys()
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    assert len(files(tmp_path / "out")) == 12
    assert not list(tmp_path.glob(".out*"))


def test_inputs_that_kill_every_actor_end_the_job(cluster, monkeypatch):
    monkeypatch.setattr(ray_engine, "DEATHS", 1)

    class Deadly:  # here, so that actors need not import this file
        def __call__(self, numbers):
            if 13 in numbers:
                os.kill(os.getpid(), signal.SIGKILL)
            return sum(numbers)

    with ray_engine.ray_session() as ray:
        found = ray_engine.results_of(ray, Deadly, (), [[1, 2], [13, 14], [3, 4]], Actors(1, 1, 0, 1))
        results = []
        with pytest.raises(ResNeStSegError, match=r"1 processes died with these inputs, .*: sample 13 to sample 14"):
            results.extend(found)


def test_a_process_that_froze_ends_the_job(cluster, monkeypatch, tmp_path):
    """Ray itself would wait for it, and the head with it, for a day."""
    monkeypatch.setattr(ray_watch, "QUIET", 3.0)
    monkeypatch.setattr(ray_watch, "LOOK", 0.2)
    frozen = tmp_path / "frozen"

    class Freezing:
        def __call__(self, numbers):
            if 13 in numbers:
                frozen.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            return sum(numbers)

    try:
        with ray_engine.ray_session() as ray:
            # patient: of a helper and an actor that have yet to start, nothing is heard either
            found = ray_engine.results_of(ray, Freezing, (), [[13, 14]], Actors(1, 1, 0, None))
            with pytest.raises(ResNeStSegError, match="after 0 parts of the work: one of them was killed"):
                next(found)
    finally:
        if frozen.exists():
            os.kill(int(frozen.read_text()), signal.SIGKILL)


def test_what_ray_raises_is_no_bug_of_ours(cluster, monkeypatch):
    from ray import exceptions
    from ray.data.exceptions import ExecutionTimeoutError

    def failing(rows, signs, *, patient):
        raise raised
        yield

    monkeypatch.setattr(ray_engine, "watched", failing)
    with ray_engine.ray_session() as ray:
        for raised in (exceptions.NodeDiedError("a machine.\nMore"), ExecutionTimeoutError("no progress")):
            with pytest.raises(ResNeStSegError) as caught:
                next(ray_engine.results_of(ray, list, (), [[1]], Actors(1, 1, 0, 1)))
            assert f"Ray has failed with {type(raised).__name__}: {str(raised).split()[0]}" in str(caught.value)
            assert "Start the same command again" in str(caught.value)
        bug = exceptions.RayTaskError("f", "traceback", exceptions.UserCodeException()).as_instanceof_cause()
        for raised in (bug, AssertionError("of ours"), OSError(28, "full")):
            with pytest.raises(type(raised)):
                next(ray_engine.results_of(ray, list, (), [[1]], Actors(1, 1, 0, 1)))


def test_what_an_actor_cannot_do_is_said_as_without_ray(cluster, predict, photos, tool, tmp_path, capsys):
    assert predict(photos, "--output", "a", "--engine", "ray", "--device", "cuda:1") == 2
    assert "Ray chooses the GPU. Give --device cuda, cpu or auto." in capsys.readouterr().err
    assert predict(photos, "--output", "b", "--engine", "ray", "--cpus-per-actor", 64) == 2
    assert "--cpus-per-actor 64: the largest machine of the Ray cluster has 2 cores." in capsys.readouterr().err
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    one = photos / "0" / "photo 0.jpg"
    assert tool("predict_seg")("--checkpoint", "bad.safetensors", one, "--output", "c", "--engine", "ray") == 2
    assert "error: " in (said := capsys.readouterr().err)
    assert "bad.safetensors" in said


def test_words_that_do_not_go_together(predict, photos, capsys):
    for words, said in {
        ("--engine", "ray", "--shard", "0/2"): "--engine ray starts its own: leave one out.",
        ("--cpus-per-actor", "2"): "--cpus-per-actor is for --engine ray",
        ("--engine", "ray", "--cpus-per-actor", "0"): "--cpus-per-actor",
    }.items():
        assert predict(photos, "--output", "out", *words) == 2
        assert said in capsys.readouterr().err


def test_a_cluster_that_is_named_has_to_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert ray_engine.cluster_address() == "10.0.0.7:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_engine.cluster_address() is None
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_engine.cluster_address() is None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert ray_engine.cluster_address() == address
    assert ray_engine.cluster_address() is None  # it has ended since
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # which the other tests have a session of
    said = rf"no Ray cluster answers at {address} \(RAY_ADDRESS\)"
    with pytest.raises(ConfigError, match=said), ray_engine.ray_session():
        pass


def test_attempts_are_counted_by_chunk():
    attempts = Attempts()
    assert [attempts.begin(number) for number in (3, 4, 3, 3)] == [1, 1, 2, 3]
    attempts.sign()
    assert attempts.seen() == 5


def test_parts_of_shares_ascend(tmp_path):
    """Shares come in any order, and each file is one of ascending indices, with one header."""
    parts = _Parts(lambda number: tmp_path / str(number))
    for first in (2, 0, 6, 4, 8):
        text = b"header\n" + b"".join(b"%d\n" % index for index in (first, first + 1))
        parts.add(Share(first, 2, [], text, None))
    texts = [path.read_text().splitlines() for path in parts.paths]
    assert texts == [["header", "2", "3", "6", "7", "8", "9"], ["header", "0", "1", "4", "5"]]
    parts.remove()
    assert not list(tmp_path.iterdir())
