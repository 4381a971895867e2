"""Classifiers: they learn, resume to the same bits, and give a segmenter its encoder."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PROJECT
from support import fake_data, many_processes

from resnest_seg.config import (
    ClassFolderConfig,
    ClassifierConfig,
    ClassifyConfig,
    LoopConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TrainConfig,
)
from resnest_seg.config_reading import load_config
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError, ResNeStSegError
from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint
from resnest_seg.models.loading import build_segmenter, classifier_for, load_checkpoint, load_classifier
from resnest_seg.training.classification import ClassFolder, ClassificationTask, accuracy, batch_mix
from resnest_seg.training.run_folder import CLASSES, LOCK, MACHINE, METRICS
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer

pytestmark = pytest.mark.slow

CONFIG = PretrainConfig(
    model=ClassifierConfig(encoder="resnest14_tiny", zero_gamma=True),
    data=ClassFolderConfig(dataset="colours", crop_size=32, workers=0),
    optim=OptimConfig(lr=0.05, reference_batch=None, head_lr_factor=1, decay="weights", schedule="cosine", warmup=0.5),
    train=LoopConfig(epochs=4, batch_size=8, accumulation=2, validate_every=2, log_every=1, ema=0.5, trackers="none"),
    classify=ClassifyConfig(augment="none", mixup=0.2, cutmix=1.0, dropout=0.1),
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """More only wait for each other over tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    many_processes.write_colours(root)
    return root


def trainer(root, output, config=CONFIG, *, resume=False, train=None):
    torch.manual_seed(config.seed)
    classifier = classifier_for(config, num_classes=3)
    task = ClassificationTask(config, train or ClassFolder(root, "train"), ClassFolder(root, "val"))
    return Trainer(config, segmenter=classifier, task=task, output=output, resume=resume)


def metrics(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert trainer(root, output).fit()
    return output


def test_the_run_folder(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", CLASSES, LAST, BEST, METRICS, MACHINE, LOCK, "step_00000009.safetensors"),
    }
    assert (finished / CLASSES).read_text() == "blue\ngreen\nred\n"
    lines = metrics(finished)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [6, 12]
    assert all(line["top1"] == max(line["average/top1"], line["weights/top1"]) for line in validations)
    assert Checkpoint.load(finished / BEST).origin["of"] in {line["of"] for line in validations}
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert max(rates) == 0.05
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[-1]


def test_colours_are_learnt(root, tmp_path):
    train = dataclasses.replace(CONFIG.train, epochs=10, validate_every=10, accumulation=1)
    config = dataclasses.replace(CONFIG, train=train, classify=ClassifyConfig(augment="none", mixup=0, dropout=0.1))
    assert trainer(root, tmp_path / "run", config).fit()
    top1 = [line["top1"] for line in metrics(tmp_path / "run") if line["kind"] == "validation"]
    assert top1[-1] > 0.8  # chance is a third
    classifier = load_classifier(tmp_path / "run")
    red = torch.tensor([200, 50, 40], dtype=torch.uint8)[:, None, None].expand(1, 3, 32, 32)
    assert classifier(red).shape == (1, 3)
    assert classifier(red)[0].argmax() == 2


@pytest.mark.parametrize("reads", [5, 29, 60])
def test_ctrl_c_and_resume_give_the_bits_of_a_run_that_was_not_stopped(finished, root, tmp_path, reads):
    class Interrupted(ClassFolder):
        count = 0

        def __getitem__(self, index):
            self.count += 1
            if self.count == reads:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(index)

    output = tmp_path / "run"
    assert not trainer(root, output, train=Interrupted(root, "train")).fit()
    assert 0 < Checkpoint.load(output / LAST).training.values["step"] < 12
    torch.manual_seed(99)
    assert trainer(root, output, resume=True).fit()
    ours, theirs = Checkpoint.load(output / LAST), Checkpoint.load(finished / LAST)
    assert ours.training.values == theirs.training.values
    for first, second in ((ours.weights, theirs.weights), (ours.training.tensors, theirs.training.tensors)):
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert metrics(output) == metrics(finished)


def test_a_segmenter_starts_from_its_encoder(finished):
    weights = Checkpoint.load(finished / BEST).weights
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=5, encoder_weights=str(finished / BEST))
    for key, value in segmenter.encoder.state_dict().items():
        assert torch.equal(value, weights[f"encoder.{key}"]), key


def test_a_classifier_cannot_segment(finished):
    for path in (finished, finished / LAST):
        with pytest.raises(CheckpointError, match=r"safetensors: this is an image classifier, it cannot segment"):
            load_checkpoint(path)


def test_a_run_of_another_kind_is_not_resumed(finished, small_dataset):
    config = RunConfig(train=TrainConfig(batch_size=2))
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    task = SegmentationTask(config, small_dataset, small_dataset)
    with pytest.raises(CheckpointError, match="is a state of a model of another kind: it cannot be resumed"):
        Trainer(config, segmenter=segmenter, task=task, output=finished, resume=True)


def test_the_loss_of_a_step_is_that_of_the_mixed_batch(root, tmp_path):
    """Without accumulation and dropout: the cross-entropy of blended labels, written out."""
    plain = ClassifyConfig(augment="none", mixup=5.0, label_smoothing=0.1, dropout=0)
    config = dataclasses.replace(CONFIG, classify=plain, train=dataclasses.replace(CONFIG.train, accumulation=1))
    one = trainer(root, tmp_path / "run", config)
    mix, seen = one.task.mix, []
    one.task.mix = lambda images, labels: seen.append(mix(images, labels)) or seen[-1]
    copy = classifier_for(config, num_classes=3)
    copy.load_state_dict(one.segmenter.state_dict())
    loss, *_ = one._optimise([next(one._batches())])
    ((images, shares),) = seen
    assert shares.sum(dim=1) == pytest.approx(torch.ones(8))
    assert ((shares > 0.01) & (shares < 0.99)).any()
    log_p = copy.train()(images).log_softmax(dim=1)
    expected = -((0.9 * shares + 0.1 / 3) * log_p).sum(dim=1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_accuracy_counts_the_first_and_the_first_five(root):
    classifier = classifier_for(CONFIG, num_classes=7)
    with torch.no_grad():
        classifier.head.fc.weight.zero_()
        classifier.head.fc.bias.copy_(torch.tensor([7.0, 6, 5, 4, 3, 2, 1]))  # always says 0, 1, 2, 3, 4
    from resnest_seg.training.classification import ClassBatch

    batch = ClassBatch(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 4, 5, 6]), [])
    assert accuracy(classifier, iter([batch, batch]), device=torch.device("cpu")) == (4, 8)


def test_mixing_is_what_the_config_says():
    def kind(**options):
        mix = batch_mix(dataclasses.replace(CONFIG, classify=ClassifyConfig(**options)), 3)
        return type(mix).__name__

    assert kind(mixup=0.2, cutmix=0) == "MixUp"
    assert kind(mixup=0, cutmix=1) == "CutMix"
    assert kind(mixup=0.2, cutmix=1) == "RandomChoice"
    assert kind(mixup=0, cutmix=0) == "NoneType"


def test_what_is_refused(finished, root, tmp_path):
    with pytest.raises(CheckpointError, match="already exists"):
        trainer(root, finished)
    edited = dataclasses.replace(CONFIG, classify=dataclasses.replace(CONFIG.classify, dropout=0.5))
    with pytest.raises(CheckpointError, match=r"classify.dropout \(0.1 -> 0.5\)"):
        trainer(root, finished, edited, resume=True)
    for name in ("blue", "green"):
        fake_data.write(tmp_path / "train" / name / "0.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DatasetError, match="the splits have other classes: red"):
        trainer(root, tmp_path / "run", train=ClassFolder(tmp_path, "train"))
    torn = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, batch_size=7))
    with pytest.raises(ConfigError, match=r"train.batch_size \(7\) must be a multiple"):
        trainer(root, tmp_path / "run", torn)


def test_a_loss_that_is_not_finite_stops_before_the_update(root, tmp_path):
    one = trainer(root, tmp_path / "run")
    with torch.no_grad():
        one.segmenter.head.fc.bias.fill_(float("nan"))
    before = one.segmenter.encoder.layer1[0].conv1.weight.clone()
    with pytest.raises(ResNeStSegError, match=r"(?s)the loss is nan at step 0 .*\.png"):
        one.fit()
    assert torch.equal(one.segmenter.encoder.layer1[0].conv1.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_the_update(root, tmp_path):
    """Also in the last step, after which nothing would have been asked any more."""
    one, last = trainer(root, tmp_path / "run"), []
    one.segmenter.head.fc.bias.register_hook(lambda gradient: gradient * torch.inf if one.step == 11 else gradient)
    with pytest.raises(
        ResNeStSegError, match=r"the gradient of segmenter\.head\.fc\.bias|of head\.fc\.bias.*not finite"
    ):
        one.fit()
    last = Checkpoint.load(tmp_path / "run" / LAST)
    assert last.training.values["step"] == 9
    assert all(value.isfinite().all() for value in last.weights.values())


@pytest.mark.parametrize("key", ["train.loss=dice", "data.class_mix=0.5", "train.label_smoothing=0.1", "eval.limit=3"])
def test_keys_without_effect_are_unknown(key):
    path = PROJECT / "configs" / "imagenet_classifier_resnest50.yaml"
    with pytest.raises(ConfigError, match=f"unknown option '--{key.partition('=')[0]}'"):
        load_config(path, PretrainConfig, overrides=[f"--{key}"])


def test_the_tool(tool, root, tmp_path, capsys):
    """From images to a segmenter, as a user does it."""
    output = tmp_path / "run"
    words = ["--config", "configs/imagenet_classifier_resnest50.yaml", "--data.root", root, "--output", output]
    words += ["--model.encoder=resnest14_tiny", "--data.crop_size=32", "--data.workers=0", "--train.epochs=1"]
    words += ["--train.batch_size=8", "--optim.warmup=0", "--train.log_every=1"]
    assert tool("pretrain_cls")(*words) == 0
    assert f"--model.encoder_weights {output}/best.safetensors" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tool("pretrain_cls")("--resume", output) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tool("pretrain_cls")(*words, "--resume", "auto") == 0  # is done, and says so
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tool("pretrain_cls")(*words, "--output", tmp_path / "dry", "--dry-run") == 0
    assert "passed: trained, saved, resumed, validated, loaded" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    nowhere = ["--data.root", tmp_path / "nowhere"]
    assert tool("pretrain_cls")(*words, *nowhere, "--output", tmp_path / "dry", "--dry-run") == 0
    assert "not found, so noise, 1000 classes" in capsys.readouterr().out
    for bad, says in (
        ([], "give one of --config FILE or --resume FOLDER"),
        (["--resume", tmp_path / "no"], "is not a run folder that can be resumed"),
        ([*words[:2], "--data.root", tmp_path], "must be a folder with one folder of images"),
    ):
        capsys.readouterr()
        assert tool("pretrain_cls")(*bad) == 2
        assert says in capsys.readouterr().err
