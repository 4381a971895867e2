"""Waits for Ray that have to end, without Ray: rows that never come, signals at bad moments, helpers that are mute."""

import contextlib
import gc
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from resnest_seg.bulk import ray_engine, ray_evaluation
from resnest_seg.bulk.ray_engine import Actor, Actors
from resnest_seg.bulk.ray_evaluation import Evaluation, Share
from resnest_seg.bulk.ray_watch import LONGEST, Watch, watched
from resnest_seg.errors import ResNeStSegError
from resnest_seg.evaluation.evaluator import Measures
from resnest_seg.inference.backends import RunOptions


class Hours:
    """A clock and a count of signs, both set by hand."""

    def __init__(self, *, patient=False):
        self.now, self.signs = 0.0, 0
        self.watch = Watch(self.asked, limit=300, patient=patient, clock=lambda: self.now)

    def asked(self):
        if isinstance(self.signs, Exception):
            raise self.signs
        return self.signs

    def pass_by(self, seconds, *, working=False):
        """Look every ten seconds; returns what the looks said."""
        said = []
        for _ in range(int(seconds) // 10):
            self.now += 10
            self.signs = self.signs + 1 if working else self.signs
            said.append(self.watch.look())
        return said


def test_a_long_chunk_is_no_stall_and_silence_is():
    hours = Hours()
    assert not any(hours.pass_by(20 * 3600, working=True))
    assert not any(hours.pass_by(300))
    assert all(hours.pass_by(20))


@pytest.mark.parametrize("sign", [5, 0])  # another one, and the first of a helper that was started anew
def test_a_sign_begins_the_silence_anew(sign):
    hours = Hours()
    hours.pass_by(10, working=True)
    hours.pass_by(290)
    hours.signs = sign
    assert not any(hours.pass_by(300))
    assert hours.pass_by(20)[-1]


def test_a_helper_that_does_not_answer_gives_no_signs():
    hours = Hours()
    hours.pass_by(20, working=True)
    hours.signs = TimeoutError("of Ray's")
    assert not any(hours.pass_by(300))
    assert hours.pass_by(20)[-1]


def test_only_waiting_counts_and_a_row_is_a_sign():
    hours = Hours()
    hours.watch.waiting = False
    assert not any(hours.pass_by(3600))  # the head writes, say
    hours.watch.waiting = True
    assert not any(hours.pass_by(290))
    hours.watch.rows += 1
    assert not any(hours.pass_by(300))


def test_on_a_cluster_that_others_use_the_first_actor_may_wait_for_room():
    hours = Hours(patient=True)
    assert not any(hours.pass_by(7 * 3600))
    hours.pass_by(10, working=True)
    assert hours.pass_by(320)[-1]


def test_a_machine_that_slept_heard_nothing():
    hours = Hours()
    hours.now += 8 * 3600
    assert not hours.watch.look()
    assert not any(hours.pass_by(300 - LONGEST))


def rows(*found):
    """Rows, and then none for ten seconds, as Ray waits for them."""
    yield from found
    for _ in range(1000):
        time.sleep(0.01)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # as under nohup
def test_a_wait_without_signs_ends_and_says_what_helps(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        found = []
        with pytest.raises(
            ResNeStSegError, match=r"nothing for 0 minutes, after 2 parts .* Start the same command again"
        ):
            found.extend(watched(rows(1, 2), lambda: 7, patient=False, limit=0.05, every=0.01))
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [thread for thread in threading.enumerate() if thread.name == "ray_watch"]


class Swallowing:
    """An object whose destructor meets a signal, and swallows what the handler raises."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_a_destructor_swallows_is_not_lost(number, raised):
    with ray_engine._as_before(signal.SIGTERM):
        ray_engine._end_by_sigterm()
        before = signal.getsignal(number)
        coming = watched(iter((1, 2, 3)), lambda: 7, patient=False)
        assert next(coming) == 1
        Swallowing(number)
        gc.collect()
        with pytest.raises(raised):
            next(coming)
        assert signal.getsignal(number) is before


def test_ctrl_c_is_still_ctrl_c():
    def pressed():
        yield 1
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        list(watched(pressed(), lambda: 7, patient=False))


class RayError(Exception):
    """Stands for Ray's."""


@pytest.fixture
def fake_ray(monkeypatch):
    """A module that stands for Ray where nothing of it is needed; what it was told."""
    told = []
    fake = SimpleNamespace(
        told=told,
        exceptions=SimpleNamespace(RayError=RayError),
        is_initialized=lambda: False,
        shutdown=lambda: told.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_an_actor_does_not_wait_for_ever_for_a_helper_that_is_mute(fake_ray):
    def get(reference, timeout):
        assert timeout <= 600
        raise RayError("no answer")

    fake_ray.get = get
    helper = SimpleNamespace(begin=SimpleNamespace(remote=lambda number: None))
    actor = Actor(list, (), 1, helper, 10, ".")
    (ended,) = actor({"number": [3], "chunk": [pickle.dumps([1, 2])]})["result"]
    error = pickle.loads(ended).error
    assert type(error) is ResNeStSegError
    assert "does not answer (RayError)" in str(error)
    assert "Start the same command again" in str(error)


def test_an_actor_gives_signs_while_it_works(fake_ray, monkeypatch):
    monkeypatch.setattr(ray_engine, "SIGN", 0.01)
    fake_ray.get = lambda reference, timeout: 1
    signs = []
    helper = SimpleNamespace(
        begin=SimpleNamespace(remote=lambda number: None), sign=SimpleNamespace(remote=lambda: signs.append(1))
    )

    class Long:
        def __call__(self, chunk):
            for _ in range(1000):
                if len(signs) >= 3:
                    return "done"
                time.sleep(0.01)
            return "no signs"

    (result,) = Actor(Long, (), 1, helper, 10, ".")({"number": [0], "chunk": [pickle.dumps([1])]})["result"]
    assert pickle.loads(result) == "done"
    time.sleep(0.03)
    given = len(signs)
    time.sleep(0.1)
    assert len(signs) <= given + 1


def test_sigterm_while_ray_ends_leaves_no_process(fake_ray):
    before = psutil.Process().children(recursive=True)

    def shutdown():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    fake_ray.shutdown = shutdown
    with subprocess.Popen(["sleep", "60"]) as child, ray_engine._as_before(signal.SIGTERM):
        ray_engine._end_by_sigterm()
        try:
            ray_engine._stop(fake_ray, before, own=True)
            assert child.wait(timeout=10) == -signal.SIGKILL
        finally:
            child.kill()


def test_sigterm_while_ray_starts_leaves_no_folder(fake_ray, monkeypatch):
    folders = []

    def init(*, _temp_dir, **rest):
        folders.append(Path(_temp_dir))
        signal.raise_signal(signal.SIGTERM)

    def unexpected(number, frame):
        raise AssertionError("the handler of before")

    fake_ray.init = init
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0")
    monkeypatch.setattr(ray_engine, "load_extra", lambda module, extra: fake_ray)
    before = signal.signal(signal.SIGTERM, unexpected)
    try:
        with pytest.raises(SystemExit) as ended, ray_engine.ray_session():
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert fake_ray.told == ["shutdown"]
    assert not folders[0].exists()


def test_an_evaluation_that_fails_closes_its_results_before_ray_ends(fake_ray, monkeypatch, tmp_path):
    """Later, and Ray would start a cluster to be told of it."""

    def results(*arguments):
        try:
            yield Share(0, 1, [], b"", None)
            yield Share(1, 1, [], b"", None)
        finally:
            fake_ray.told.append("closed")

    @contextlib.contextmanager
    def session():
        try:
            yield fake_ray
        finally:
            fake_ray.shutdown()

    def full(images):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray_evaluation, "results_of", results)
    monkeypatch.setattr(ray_evaluation, "ray_session", session)
    monkeypatch.setattr(ray_evaluation, "actors_for", lambda *arguments: Actors(1, 1, 0, 1))
    how = Evaluation("best.pt", None, RunOptions(), ("whole",), Measures(), 1 << 20, by_image=False)
    counting = SimpleNamespace(state=[], dataset=None)
    with pytest.raises(OSError, match="No space left"):
        ray_evaluation.evaluate_on_ray(
            how, counting, count=2, cpus=None, part=lambda number: tmp_path / str(number), on_share=full
        )
    assert fake_ray.told == ["closed", "shutdown"]
