"""Training from shards: the bits of training from files; windows of shards; exact resume in the midst of an epoch."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from resnest_seg.config import DataConfig, EvalConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from resnest_seg.data.datasets import Subset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.loader import ShardOrder, load_batches, training_batches
from resnest_seg.data.shards import ShardDataset, pack_shards, shard_numbers
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.checkpoint import LAST, Checkpoint
from resnest_seg.models.loading import build_segmenter
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer

CONFIG_OF_TEST = RunConfig(
    model=ModelConfig(encoder="resnest14_tiny", head="fcn"),
    data=DataConfig(base_size=48, crop_size=32, workers=0),
    optim=OptimConfig(lr=0.02, reference_batch=None, head_lr_factor=3),
    train=TrainConfig(epochs=2, batch_size=2, validate_every=2, save_every=1, trackers="none"),
    eval=EvalConfig(sheet=0, limit=1),
)
WINDOWED = dataclasses.replace(CONFIG_OF_TEST, data=dataclasses.replace(CONFIG_OF_TEST.data, shard_window=2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten noisy photos of two classes, in images/train, and one in val."""
    root = tmp_path_factory.mktemp("root")
    for index in range(11):
        random = np.random.default_rng(index)
        mask = random.integers(0, 2, (5, 6)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        photo = (mask[..., None] * 120 + random.integers(0, 100, (40, 48, 3))).astype(np.uint8)
        for kind, picture in (("images", photo), ("masks", mask)):
            folder = root / kind / ("train" if index < 10 else "val")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{index}.png"), picture)
    return root


@pytest.fixture(scope="module")
def shards(root, tmp_path_factory):
    """The training split in five shards of two photos."""
    folder = tmp_path_factory.mktemp("packed")
    index = pack_shards([FolderDataset(root)], folder, shard_size=17_000)
    assert [int((shard_numbers(ShardDataset(folder)) == number).sum()) for number in range(5)] == [2] * 5
    assert len(index.shards) == 5
    return folder


def slow_order(shards, window, seed, epoch):
    """Shards in a random order, dealt to windows; in each window the samples in the order of one long shuffle."""
    random = np.random.default_rng([seed, epoch])
    places = random.permutation(len(set(shards)))
    shuffled = random.permutation(len(shards)).tolist()
    order = []
    for first in range(0, len(places), window):
        inside = [shard for shard, place in zip(sorted(set(shards)), places, strict=True)
                  if first <= place < first + window]  # fmt: skip
        order += [sample for sample in shuffled if shards[sample] in inside]
    return order


@pytest.mark.parametrize("window", [1, 2, 3, 50])
def test_the_order_within_windows_of_shards(window):
    shards = np.array([0, 0, 0, 2, 2, 5, 5, 5, 5, 7, 9, 9])  # a part of a data set: of some shards, nothing
    batches = list(training_batches(12, seed=3, batch_size=4, steps=range(9), shard_order=ShardOrder(shards, window)))
    for epoch in range(3):
        order = [index for batch in batches for of, index in batch if of == epoch]
        assert sorted(order) == list(range(12))
        assert order == slow_order(shards.tolist(), window, 3, epoch)
    late = list(training_batches(12, seed=3, batch_size=4, steps=range(4, 9), shard_order=ShardOrder(shards, window)))
    assert late == batches[4:]
    parts = [
        list(training_batches(12, seed=3, batch_size=4, steps=range(9), rank=rank, processes=2,
                              shard_order=ShardOrder(shards, window)))
        for rank in range(2)
    ]  # fmt: skip
    assert [a + b for a, b in zip(*parts, strict=True)] == batches


def test_a_window_reads_few_shards_at_a_time(shards):
    """The samples of an epoch pass through the shards window by window, and every shard is entered once."""
    dataset = ShardDataset(shards)
    numbers = shard_numbers(dataset)
    order = ShardOrder(numbers, 1)(np.random.default_rng(0))
    changes = int((np.diff(numbers[order]) != 0).sum())
    assert changes == 4
    dataset.source.files.most = 1
    batches = [[(0, int(index)) for index in order]]
    (batch,) = load_batches(dataset, batches)
    assert batch.names == [dataset[int(index)].name for index in order]


def trainer(dataset, output, config, *, resume=False, allow=()):
    AcceleratorState._reset_state(reset_partial_state=True)  # a run is a process of its own
    torch.manual_seed(config.seed)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=2)
    task = SegmentationTask(config, dataset, dataset)
    return Trainer(config, segmenter=segmenter, task=task, output=output, resume=resume, allow_changes=allow)


def same_bits(one, other):
    first, second = (Checkpoint.load(folder / LAST) for folder in (one, other))
    assert first.training.values == second.training.values
    for ours, theirs in ((first.weights, second.weights), (first.training.tensors, second.training.tensors)):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert ours.keys() == theirs.keys()


@pytest.mark.long
@pytest.mark.slow
def test_shards_give_the_bits_of_files_also_when_a_run_goes_on_with_them(root, shards, tmp_path):
    assert trainer(FolderDataset(root), tmp_path / "files", CONFIG_OF_TEST).fit()
    assert trainer(ShardDataset(shards), tmp_path / "shards", CONFIG_OF_TEST).fit()
    same_bits(tmp_path / "files", tmp_path / "shards")
    assert not trainer(FolderDataset(root), tmp_path / "moved", CONFIG_OF_TEST).fit(until=7)
    assert trainer(ShardDataset(shards), tmp_path / "moved", CONFIG_OF_TEST, resume=True).fit()
    same_bits(tmp_path / "files", tmp_path / "moved")


@pytest.mark.slow
def test_a_run_with_windows_resumes_to_the_same_bits(shards, tmp_path):
    """Stopped in the midst of a window of the first epoch, and of one of the second."""
    assert trainer(ShardDataset(shards), tmp_path / "whole", WINDOWED).fit()
    more = dataclasses.replace(WINDOWED, data=dataclasses.replace(WINDOWED.data, workers=2))
    for config, until in ((WINDOWED, 3), (WINDOWED, 6), (more, None)):
        one = trainer(ShardDataset(shards), tmp_path / "stopped", config, resume=until != 3)
        assert one.fit(until=until) == (until is None)
    same_bits(tmp_path / "whole", tmp_path / "stopped")
    assert not trainer(ShardDataset(shards), tmp_path / "plain", CONFIG_OF_TEST).fit(until=3)
    with pytest.raises(CheckpointError, match=r"data.shard_window"):
        trainer(ShardDataset(shards), tmp_path / "plain", WINDOWED, resume=True)


def test_options_that_contradict_a_window(root, shards, tmp_path):
    for key, value in (("rare_class", 0.1), ("class_mix", 0.5)):
        with pytest.raises(ConfigError, match=rf"data.{key} takes samples from anywhere, and data.shard_window 2"):
            RunConfig(data=DataConfig(shard_window=2, **{key: value}))
    with pytest.raises(ConfigError, match=r"data.shard_window must be a whole number from 1 to"):
        RunConfig(data=DataConfig(shard_window=0))
    with pytest.raises(ConfigError, match=r"data.shard_window 2 is for packed shards, .* pack the data set \("):
        SegmentationTask(WINDOWED, FolderDataset(root), FolderDataset(root))
    some = Subset(ShardDataset(shards), [1, 4, 5])
    assert SegmentationTask(WINDOWED, some, some).shard_order.shards.tolist() == [0, 2, 2]
