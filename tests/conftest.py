"""Fixtures: the real data where it is there, the tools as a user calls them, a run small enough for a test."""

import functools
import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Idle threads of torch's pools sleep instead of spinning, also in the processes that tests start: where there are more
# threads than cores, spinning costs ten times the work. The variable is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

PROJECT = Path(__file__).resolve().parents[1]

# Two threads in all: as many as there are, whether pytest runs alone or (make test) in two processes.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_collection_finish():
    """Keep what collecting has made out of every later collection of garbage; some tests ask for many."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup():
    """Let the exporter to ONNX, where something has imported it, register its thousand functions once for all files."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is not None and not hasattr(registration, "registered"):
        registration.registered = functools.cache(registration.ONNXRegistry.from_torchlib)
        registration.ONNXRegistry.from_torchlib = staticmethod(registration.registered)


@pytest.fixture
def real_data() -> Path:
    """The folder with real photos, which is not part of the project."""
    folder = Path(os.environ.get("RESNEST_SEG_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real photos here: RESNEST_SEG_TEST_DATA names their folder")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A real browser, for `support.browser.visit`; the test is skipped if there is none."""
    from support import browser

    with browser.launched() as found:
        yield found


@pytest.fixture(scope="module")
def object_store():
    """An S3 store on this machine and its proxy, see `support.object_store`; the environment names it."""
    from support import object_store as support

    with support.running() as store:
        yield store


@pytest.fixture
def tool(monkeypatch):
    """Load a tool by name; its exit code is that of the real command line."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, PROJECT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        from resnest_seg.errors import run_tool

        return lambda *words: run_tool(lambda: module.main([str(word) for word in words]))

    return load


TINY = [
    "--data.crop_size=64",
    "--data.base_size=96",
    "--data.workers=0",
    "--data.check=2",
    "--model.encoder_weights=null",
    "--train.epochs=1",
    "--train.batch_size=2",
    "--optim.reference_batch=null",
    "--eval.limit=2",
    "--eval.sheet=2",
]
"""Overrides that make a run of a shipped config fit into a test."""


@pytest.fixture(scope="session")
def tiny_space():
    from resnest_seg.labels import LabelSpace

    return LabelSpace(
        name="tiny",
        names=("sky", "road", "car"),
        colors=((10, 20, 200), (90, 90, 90), (200, 30, 30)),
        raw_ids=(1, 5, 7),
        ignored_raw_ids=(0, 9),
    )


@pytest.fixture
def small_dataset(tiny_space):
    """Six pictures of noise and stripes of different sizes, in memory."""
    import numpy as np

    from resnest_seg.data.datasets import Sample, SegmentationDataset

    class Small(SegmentationDataset):
        label_space, split = tiny_space, "train"

        def __len__(self):
            return 6

        def __getitem__(self, index):
            random = np.random.default_rng(index)
            image = random.integers(0, 256, (40 + index, 56, 3), dtype=np.uint8)
            labels = random.integers(0, 3, (40 + index, 56), dtype=np.uint8)
            labels[:3] = 255
            return Sample(image, labels, f"sample {index}")

    return Small()


@pytest.fixture
def pyplot():
    """matplotlib.pyplot without a display; its figures are closed after the test."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
    yield pyplot
    pyplot.close("all")
