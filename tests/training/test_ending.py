"""Processes end when they should: loader processes with their loader, and the main process whatever happens to it."""

import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PROJECT
from support.processes import still_running
from test_training import CONFIG_OF_TEST, Stripes, trainer

from resnest_seg.config import ClassFolderConfig, ClassifierConfig, PretrainConfig
from resnest_seg.data import loader
from resnest_seg.data.inspection import scan
from resnest_seg.data.loader import _loaded, load_batches, loader_processes
from resnest_seg.errors import DatasetError, ResNeStSegError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.models.checkpoint import LAST, Checkpoint
from resnest_seg.models.loading import build_segmenter, classifier_for
from resnest_seg.training.classification import ClassFolder, ClassificationTask

pytestmark = [pytest.mark.slow, pytest.mark.long]

ORDER = [[(0, index)] for index in (0, 1, 2, 3, 4, 5) * 4]
"""Batches of one sample, more than two loader processes fetch ahead."""

FILE_LIMIT = 4000
"""Bytes: less than a state or a batch takes."""


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _no_cap_on_processes(monkeypatch):
    """As many loader processes as are asked for, also where there is one core."""
    monkeypatch.setattr(loader, "loader_processes", lambda workers: workers)


def end_children():
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.fixture(autouse=True)
def _no_children_left():
    """Other files leave no processes to a test, which counts them, nor a test that fails to the exit of pytest."""
    end_children()
    yield
    end_children()


def stuck(dataset, at, seconds=600):
    """The data set, with a sample whose reading does not come to an end."""

    class Stuck(type(dataset)):
        def __getitem__(self, index):
            if index == at:
                time.sleep(seconds)
            return super().__getitem__(index)

    return Stuck


def names(batches):
    return [batch.names for batch in batches]


def test_a_killed_loader_process_is_one_message(small_dataset):
    """As the system does when memory runs out; torch raises such a death anywhere in the main thread."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = load_batches(small_dataset, ORDER, workers=2)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    child = multiprocessing.active_children()[0]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with pytest.raises(ResNeStSegError) as error:
        list(batches)
    message = str(error.value)
    assert message.startswith(f"a loader process (pid {child.pid}) was killed by SIGKILL. Usually memory ran out")
    assert all(word in message for word in ("data.workers", "--workers", "here 2", "data.crop_size", "--resume"))
    assert multiprocessing.active_children() == []


def test_a_loader_process_that_dies_while_its_batch_is_awaited_is_told(small_dataset):
    class Crashing(type(small_dataset)):
        def __getitem__(self, index):
            if index == 5:
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().__getitem__(index)

    with pytest.raises(ResNeStSegError, match=r"was killed by SIGSEGV\. A library crashed, usually on a corrupt pho"):
        list(load_batches(Crashing(), [[(0, 5)]], workers=1))
    assert multiprocessing.active_children() == []


def die_slowly():
    """As a process on a busy machine: the system closes its files, sockets and sentinel first."""
    os.closerange(3, 1024)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_whose_files_close_before_its_death_is_told():
    process = multiprocessing.get_context("fork").Process(target=die_slowly)
    process.start()

    class Batches:
        """torch's iterator, which reads from the socket of that process."""

        def __next__(self):
            assert multiprocessing.connection.wait([process.sentinel], timeout=60)
            raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(ResNeStSegError, match=rf"a loader process \(pid {process.pid}\) was killed by SIGKILL"):
        next(_loaded(Batches(), [process]))


@pytest.mark.parametrize("end", ["closed", "left", "raised", "broken sample"])
def test_loader_processes_end_with_their_loader(small_dataset, end):
    """At once, although one of them is in the midst of a sample and a traceback keeps the frames alive."""
    dataset = stuck(small_dataset, 5)()
    begin, failure = None, None

    class Broken(type(dataset)):
        def __getitem__(self, index):
            if end == "broken sample" and index == 2:
                raise DatasetError("photo 2 is damaged")
            return super().__getitem__(index)

    def work():
        nonlocal begin
        with contextlib.closing(load_batches(Broken(), ORDER, workers=2)) as batches:
            for number, _ in enumerate(batches):
                begin = time.monotonic()
                if number == 1 and end == "left":
                    return
                if number == 1 and end == "raised":
                    raise MemoryError
                if number == 1 and end == "closed":
                    batches.close()

    try:
        work()
    except (MemoryError, DatasetError) as error:
        failure = error  # with its traceback
    assert (failure is not None) == (end in ("raised", "broken sample"))
    assert multiprocessing.active_children() == []
    assert time.monotonic() - begin < 30


def test_signals_to_the_group_leave_loader_processes_alone(small_dataset):
    """The first comes while they are being set up: a handler that they have from before must not get it."""
    expected = names(load_batches(small_dataset, ORDER, workers=0))
    early = [True]

    def signal_itself():
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(after_in_child=signal_itself)
    try:
        batches = load_batches(small_dataset, ORDER, workers=2)
        found = [next(batches).names]
    finally:
        early.clear()
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert found + names(batches) == expected
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's iterator, half made, complains
def test_a_loader_that_cannot_start_leaves_no_process(small_dataset):
    """Of two processes the second cannot be started, because files may not be opened any more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    highest = max(spare)
    for descriptor in spare:
        os.close(descriptor)
    failures = []
    try:
        for more in range(3, 40, 3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 39 + more, limits[1]))
            try:
                list(load_batches(small_dataset, ORDER, workers=2))
            except ResNeStSegError as error:
                failures.append(str(error))
            except OSError:
                pass
            assert multiprocessing.active_children() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert any(f.startswith("cannot start 2 loader processes: Too many open files. Use fewer") for f in failures)


@pytest.mark.parametrize("error", [RuntimeError("Too many open files. Communication with the workers is no longer"),
                                   OSError(errno.EMFILE, os.strerror(errno.EMFILE))])  # fmt: skip
def test_a_batch_that_finds_no_descriptor_is_one_message(error):
    """torch hands batches over by files, and says so by a RuntimeError where it looks for room itself."""

    def batches():
        yield "a batch"
        raise error

    found = _loaded(batches(), [])
    assert next(found) == "a batch"
    with pytest.raises(ResNeStSegError, match=r"cannot hand their batches over: Too many open files.*ulimit -n"):
        next(found)


def test_shared_memory_that_is_full_is_one_message(small_dataset):
    """torch would print a traceback and lose the batch, for which training then waited for ever."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, limits[1]))
        with pytest.raises(ResNeStSegError, match=r"Shared memory is full \(df /dev/shm.*--shm-size.*here 2"):
            list(load_batches(small_dataset, ORDER, workers=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert multiprocessing.active_children() == []


ENDS = ["sample", "validation", "save", "killed", "signal", "ctrl-c"]


@pytest.mark.parametrize("end", ENDS)
def test_training_ends_its_loader_processes(tiny_space, tmp_path, end):
    """However it ends; the state on the disk is whole and can be resumed."""
    config = dataclasses.replace(
        CONFIG_OF_TEST,
        data=dataclasses.replace(CONFIG_OF_TEST.data, workers=2),
        train=dataclasses.replace(CONFIG_OF_TEST.train, save_every=1, trackers="none"),
    )

    class Broken(Stripes):
        def __getitem__(self, index):
            if index == 4:
                raise DatasetError("stripes 4 is damaged")
            return super().__getitem__(index)

    whole = Stripes(tiny_space)
    train = Broken(tiny_space) if end == "sample" else whole
    one = trainer(train, tmp_path / "run", config, validation=Broken(tiny_space) if end == "validation" else whole)
    save, steps = one.folder.save_state, []

    def save_state(checkpoint, step):
        save(checkpoint, step)
        steps.append(step)
        if step == 2:
            children = multiprocessing.active_children()
            assert len(children) == 2
            if end == "save":
                raise OSError(28, "No space left on device", str(tmp_path / "run" / LAST))
            if end == "killed":
                os.kill(children[1].pid, signal.SIGKILL)
                children[1].join()
            if end in ("signal", "ctrl-c"):
                signal.raise_signal(signal.SIGTERM if end == "signal" else signal.SIGINT)
            if end == "ctrl-c":
                signal.raise_signal(signal.SIGINT)

    one.folder.save_state = save_state
    kind = {"signal": None, "ctrl-c": KeyboardInterrupt, "save": OSError, "killed": ResNeStSegError}
    expected = kind.get(end, DatasetError)
    if expected is None:
        assert not one.fit()
        assert one.stopped_by == signal.SIGTERM
    else:
        with pytest.raises(expected) as failure:
            one.fit()
        assert failure.traceback  # which keeps the frames alive
    assert multiprocessing.active_children() == []
    assert Checkpoint.load(tmp_path / "run" / LAST).training.values["step"] == steps[-1]
    again = trainer(whole, tmp_path / "run", config, resume=True)
    assert again.step == steps[-1]
    again.fit(until=steps[-1] + 1)
    assert again.step == steps[-1] + 1


def test_evaluation_ends_its_loader_processes(small_dataset):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    with pytest.raises(RuntimeError, match="on purpose") as failure:
        evaluate(segmenter, small_dataset, workers=2, on_image=lambda image: fail())
    assert failure.traceback
    assert multiprocessing.active_children() == []


def test_a_scan_ends_its_loader_processes_and_tells_a_broken_sample(small_dataset):
    class Broken(type(small_dataset)):
        def __getitem__(self, index):
            if index == 3:
                raise DatasetError("sample 3 is damaged")
            return super().__getitem__(index)

    seen = []
    with pytest.raises(DatasetError) as failure:
        seen.extend(fact.name for fact in scan(Broken(), range(6), workers=2))
    assert str(failure.value) == "sample 3 is damaged"  # no traceback of another process
    assert multiprocessing.active_children() == []
    with contextlib.closing(scan(small_dataset, range(6), workers=2)) as facts:
        assert next(facts).name == "sample 0"
    assert multiprocessing.active_children() == []


def test_a_classifier_s_validation_ends_its_loader_processes(tmp_path):
    from support.many_processes import write_colours

    write_colours(tmp_path, validation=12)
    config = PretrainConfig(
        model=ClassifierConfig(encoder="resnest14_tiny"), data=ClassFolderConfig(crop_size=32, workers=2)
    )
    task = ClassificationTask(config, ClassFolder(tmp_path, "train"), ClassFolder(tmp_path, "val"))

    class Progress:
        def add_task(self, *arguments, **options):
            return 0

        def update(self, *arguments, **options):
            fail()

    class Engine:
        process_index, num_processes, device = 0, 1, torch.device("cpu")

    class Stop:
        number = None

    classifier = classifier_for(config, num_classes=3)
    with pytest.raises(RuntimeError, match="on purpose") as failure:
        task.validate(classifier, Engine(), stop=Stop(), progress=Progress())
    assert failure.traceback
    assert multiprocessing.active_children() == []


def fail():
    raise RuntimeError("on purpose")


LEFT_OPEN = """
import sys
import time
import numpy as np
from resnest_seg.labels import LabelSpace
from resnest_seg.data import loader
from resnest_seg.data.loader import _loaded, load_batches
from resnest_seg.data.datasets import Sample, SegmentationDataset

class Slow(SegmentationDataset):
    label_space, split = LabelSpace.numbered(3, name="three"), "train"
    def __len__(self):
        return 9
    def __getitem__(self, index):
        time.sleep(600 if index else 0)
        return Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), "sample")

loader.loader_processes = lambda workers: workers
batches = load_batches(Slow(), [[(0, index)] for index in range(9)], workers=2)
next(batches)
print("ready", flush=True)
if sys.argv[1] == "raise":
    raise RuntimeError("on purpose")
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["raise", "killed"])
def test_a_loader_that_is_never_closed_ends_with_its_process(end):
    """Of a script or a notebook's kernel, whose variables and last traceback live to the end; or of one that is killed,
    whose lock on a run folder the loader processes would hold."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", LEFT_OPEN, end], text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children() if end == "killed" else []
    if end == "killed":
        assert len(children) == 2
        process.kill()
    process.communicate(timeout=60)  # its pipe is closed when the loader processes are gone as well
    assert process.returncode == (-signal.SIGKILL if end == "killed" else 1)
    assert still_running(children) == []


@pytest.mark.parametrize("cause", ["killed", "full disk"])
def test_the_training_tool_is_gone_within_seconds(tmp_path, cause):
    """A scheduler must see that the job is over; what was saved is resumed."""
    folder = tmp_path / "run [1]"
    words = ["--dataset", "synthetic", "--data.crop_size=32", "--data.base_size=64", "--data.workers=2"]
    words += ["--data.check=0", "--model.output_stride=32", "--train.batch_size=4", "--train.epochs=null"]
    words += ["--train.save_every=1", "--train.validate_every_steps=4000", "--train.log_every=1", "--eval.limit=1"]
    words += ["--train.trackers=none", "--optim.schedule=cosine", "--output", str(folder), "--resume", "auto"]
    command = [sys.executable, PROJECT / "tools/train_seg.py", *words]
    process = subprocess.Popen([*command, "--train.iterations=4000"], stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == loader_processes(2)
    if cause == "killed":
        children[0].kill()
    else:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    _, message = process.communicate(timeout=60)
    assert still_running(children) == []
    if cause == "killed":
        assert process.returncode == 2
        assert message.strip().startswith("error: a loader process (pid")
        assert len(message.strip().splitlines()) == 1
    else:
        assert process.returncode not in (0, 143)
    step = Checkpoint.load(folder / LAST).training.values["step"]
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert step >= 1
    assert step >= max(line["step"] for line in lines) - 1
    assert not list(folder.glob(".*.tmp*"))
