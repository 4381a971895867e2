"""`fit`: the caller's own data, network, loss, augmentation, optimiser and callbacks in a run."""

import dataclasses
import json

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import nn

import resnest_seg
from resnest_seg.config import RunConfig, load_run_config
from resnest_seg.config_reading import flatten
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.models.checkpoint import BEST, CONFIG, LAST, Checkpoint
from resnest_seg.training.assembly import Parts, trainer_for
from resnest_seg.training.rehearsal import dry_run
from resnest_seg.training.run_folder import METRICS

pytestmark = pytest.mark.slow

CONFIG_OF_TEST = {
    "model": {"encoder": "resnest14_tiny", "head": "fcn"},
    "data": {"base_size": 56, "crop_size": 32, "workers": 0},
    "optim": {"lr": 0.02, "reference_batch": None},
    "train": {"epochs": None, "iterations": 4, "batch_size": 2, "log_every": 1, "trackers": "none"},
    "eval": {"sheet": 0},
}


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


def config(**groups):
    return {key: {**CONFIG_OF_TEST.get(key, {}), **groups.get(key, {})} for key in {*CONFIG_OF_TEST, *groups}}


class Own(SegmentationDataset):
    """Four pictures whose class is the brightness."""

    def __init__(self, split="train", classes=3):
        self.split, self.label_space = split, resnest_seg.LabelSpace.numbered(classes, name="own")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        labels = np.random.default_rng(index).integers(0, 3, (2, 3)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
        labels[:3] = 255
        return Sample(np.repeat(labels[..., None], 3, 2) % 3 * np.uint8(100), labels, f"own {index}")


def fit(output, values=CONFIG_OF_TEST, **parts):
    """A run on `Own`, as a user would start it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    given = {"train": Own(), "validation": Own("val"), **parts}
    return resnest_seg.fit(values, output=output, **given)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run of the config alone."""
    return fit(tmp_path_factory.mktemp("plain") / "run")


def losses(folder, key="loss"):
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [line[key] for line in lines if line["kind"] == "train"]


def weights(folder, name=LAST):
    return Checkpoint.load(folder / name).weights


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# Data


def test_a_folder_that_exists_is_refused_before_samples_are_read(tmp_path):
    class Unread(Own):
        def __getitem__(self, index):
            raise AssertionError("read")

    (tmp_path / "notes.txt").write_text("mine")
    for resume, said in (("no", "already exists"), ("auto", "it holds notes.txt")):
        with pytest.raises(CheckpointError, match=said):
            fit(tmp_path, train=Unread(), validation=Unread("val"), resume=resume)


def test_a_run_on_data_of_ones_own_is_recorded_as_such_and_evaluates_as_it_validated(plain):
    result = plain
    assert result.finished
    assert (result.step, result.stopped_by, result.best) == (4, None, result.output / BEST)
    assert load_run_config(result.output / CONFIG).data.dataset == "custom"
    report = resnest_seg.evaluate(resnest_seg.load_checkpoint(result.output), Own("val"))
    assert report.scores["whole"].mean_iou == result.best_score == result.scores["mean_iou"]
    assert same(result.segmenter.state_dict(), weights(result.output, BEST))
    with pytest.raises(ConfigError, match="own"):
        resnest_seg.build_dataset("custom")


def test_our_own_data_sets_keep_their_name(tmp_path):
    scenes = resnest_seg.Synthetic("train", size=(48, 64)), resnest_seg.Synthetic("val", size=(48, 64))
    values = config(eval={"limit": 2}, train={"iterations": 1})
    fit(tmp_path / "run", values, train=scenes[0], validation=scenes[1])
    assert load_run_config(tmp_path / "run" / CONFIG).data.dataset == "synthetic"


def test_data_that_does_not_fit_is_refused(tmp_path):
    other = resnest_seg.PairDataset([], resnest_seg.LabelSpace.numbered(2).for_task("multilabel"))
    for parts, error, words in (
        ({"validation": None}, ConfigError, "validation="),
        ({"train": [1, 2]}, ConfigError, "PairDataset"),
        ({"validation": Own("val", classes=4)}, ConfigError, "must be the same"),
        (dict.fromkeys(("train", "validation"), resnest_seg.PairDataset([], ["a"])), DatasetError, "no sample"),
        ({"train": other, "validation": other}, ConfigError, r"LabelSpace.numbered\(2, names=\[...\]\).for_task"),
    ):
        with pytest.raises(error, match=words):
            fit(tmp_path / "run", **parts)
        assert not (tmp_path / "run").exists()
    for wrong in (5, {"train": {"epoch": 3}}, {"train": {"epochs": "five"}}, {"trian": {}}):
        with pytest.raises(ConfigError):
            fit(tmp_path / "run", wrong)


# Loss


def test_cross_entropy_as_a_loss_of_ones_own_trains_as_ours_does(tmp_path):
    """An oracle: torch's own mean over labelled pixels, with an auxiliary head and two micro-batches."""

    def plain(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=255)

    values = config(train={"accumulation": 2, "batch_size": 4}, optim={"lr": 0.001})  # rounding grows with the rate
    fit(tmp_path / "ours", values)
    fit(tmp_path / "own", values, loss=plain)
    # Rounding grows from step to step; the gradient of the first one tells whether both losses are the same.
    ours, own = (losses(tmp_path / name, "grad_norm") for name in ("ours", "own"))
    assert own[0] == pytest.approx(ours[0], rel=1e-4)
    assert losses(tmp_path / "own")[:2] == pytest.approx(losses(tmp_path / "ours")[:2], rel=1e-5)


def test_options_of_named_losses_are_refused_with_a_loss_of_ones_own(tmp_path):
    for key, value in (("class_weights", "median_frequency"), ("label_smoothing", 0.1)):
        with pytest.raises(ConfigError, match=rf"train\.{key} .* the loss is your own: leave it out"):
            fit(tmp_path / "run", config(train={key: value}), loss=F.cross_entropy)
        assert not (tmp_path / "run").exists()


def test_a_loss_is_not_called_without_labelled_pixels_and_must_give_a_scalar(tmp_path):
    class Unlabelled(Own):
        def __getitem__(self, index):
            image, labels, name = super().__getitem__(index)
            return Sample(image, labels if index else np.full_like(labels, 255), name)

    def strict(logits, labels):
        assert (labels != 255).any()
        return F.cross_entropy(logits, labels, ignore_index=255)

    values = config(train={"batch_size": 1}, optim={"freeze": "bn,head_bn"})
    fit(tmp_path / "run", values, train=Unlabelled(), loss=strict)
    assert 0.0 in losses(tmp_path / "run")
    with pytest.raises(ConfigError, match="scalar"):
        fit(tmp_path / "map", loss=lambda logits, labels: logits.mean(dim=1))


class Running(nn.Module):
    """Cross-entropy with a buffer that every call changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits, labels):
        loss = F.cross_entropy(logits, labels, ignore_index=255)
        self.mean.lerp_(loss.detach(), 0.5)
        return loss * (1 + self.mean.detach().clone().sigmoid())


def test_the_state_of_a_loss_is_saved_with_the_run(tmp_path):
    whole, first, second = Running(), Running(), Running()
    fit(tmp_path / "whole", loss=whole)
    fit(tmp_path / "killed", loss=first, until=2)
    fit(tmp_path / "killed", loss=second, resume="yes")
    assert torch.equal(second.mean, whole.mean)
    assert not torch.equal(first.mean, whole.mean)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_state_that_cannot_be_saved_is_one_message(tmp_path):
    class Odd(resnest_seg.Callback):
        def state_dict(self):
            return {"folder": tmp_path}

    with pytest.raises(CheckpointError, match=r"callback 0 \(Odd\): 'folder'"):
        fit(tmp_path / "run", callbacks=[Odd()])


# Augmentation


def test_an_albumentations_transform_and_a_function_augment_by_seed_alone(tmp_path):
    pipeline = A.Compose([A.RandomCrop(32, 32), A.RandomBrightnessContrast(p=1)])

    def function(image, labels, random):
        top = int(random.integers(8))
        return image[top : top + 32, :32], labels[top : top + 32, :32]

    for name, transform in (("pipeline", pipeline), ("function", function)):
        whole = fit(tmp_path / name, transform=transform)
        fit(tmp_path / f"{name}_killed", transform=transform, until=2)
        fit(tmp_path / f"{name}_killed", transform=transform, resume="yes")
        assert same(weights(whole.output), weights(tmp_path / f"{name}_killed")), name
    assert not same(weights(tmp_path / "pipeline"), weights(tmp_path / "function"))


def test_a_transform_that_gives_something_else_is_refused_in_words(tmp_path):
    for transform, error, words in (
        (A.Compose([A.RandomCrop(32, 32), A.Normalize()]), ConfigError, "ToTensor and Normalize"),
        (lambda image, labels, random: (image[:32], labels), ConfigError, "pixels"),
        (A.Compose([A.RandomScale((-0.5, 0.0), p=1)]), DatasetError, "different sizes"),
    ):
        with pytest.raises(error, match=words):
            fit(tmp_path / f"run_{words[0]}", transform=transform)


# Optimiser


@pytest.mark.parametrize(
    "build",
    [
        lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
        lambda groups: torch.optim.RMSprop(groups, momentum=0.9),
        lambda groups: torch.optim.Adafactor(groups),
    ],
)
def test_optimisers_of_ones_own_resume_to_the_same_bits(tmp_path, build):
    fit(tmp_path / "whole", optimizer=build)
    fit(tmp_path / "killed", optimizer=build, until=2)
    fit(tmp_path / "killed", optimizer=build, resume="yes")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    with pytest.raises(CheckpointError, match="optimizer"):
        fit(tmp_path / "killed", resume="yes")


def test_sgd_as_an_optimiser_of_ones_own_is_the_configs(plain, tmp_path):
    fit(tmp_path / "function", optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9))
    assert same(weights(plain.output), weights(tmp_path / "function"))


class Counting(torch.optim.SGD):
    """An optimiser with a plain number in its state."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
        self.seen = self.state[self.param_groups[0]["params"][0]]["count"]


def test_numbers_in_an_optimisers_state_are_kept_as_numbers(tmp_path):
    made = []

    def build(groups):
        made.append(Counting(groups, momentum=0.9))
        return made[-1]

    fit(tmp_path / "run", optimizer=build, until=2)
    fit(tmp_path / "run", optimizer=build, resume="yes")
    assert (made[-1].seen, type(made[-1].seen)) == (4, int)


def test_an_optimiser_of_other_parameters_is_refused(tmp_path):
    other = nn.Linear(2, 2)
    for wrong, words in ((torch.optim.SGD(other.parameters(), lr=0.1), "not the model's"), (lambda groups: 3, "int")):
        with pytest.raises(ConfigError, match=words):
            fit(tmp_path / "run", optimizer=wrong)


def test_an_optimiser_that_exists_keeps_its_rates_as_highest_ones(tmp_path):
    segmenter = resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    parts = [
        {"params": segmenter.encoder.parameters(), "lr": 0.03},
        {"params": [*segmenter.head.parameters(), *segmenter.aux_head.parameters()], "lr": 0.3},
    ]
    values = config(optim={"reference_batch": 16})  # which scales the config's own rates for its batch of 2
    fit(tmp_path / "run", values, segmenter=segmenter, optimizer=torch.optim.SGD(parts))
    first = json.loads((tmp_path / "run" / METRICS).read_text().splitlines()[0])
    assert (first["lr/0"], first["lr/1"]) == pytest.approx((0.03, 0.3))


# Callbacks


class Recorder(resnest_seg.Callback):
    """Notes everything, and stops after a step."""

    def __init__(self, stop_at=None):
        self.steps, self.validations, self.stop_at = [], [], stop_at

    def on_step(self, report):
        self.steps.append((report.step, report.loss))
        return report.step == self.stop_at

    def on_validation(self, report):
        self.validations.append(report)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = [tuple(step) for step in state["steps"]]


def test_a_callback_hears_of_everything_stops_the_run_and_is_resumed(tmp_path):
    values = config(train={"validate_every_steps": 2})
    whole, stopped, resumed = Recorder(), Recorder(stop_at=3), Recorder()
    fit(tmp_path / "whole", values, callbacks=[whole])
    assert whole.steps == [(step, loss) for step, loss in zip(range(1, 5), losses(tmp_path / "whole"), strict=True)]
    assert [report.step for report in whole.validations] == [2, 4]
    assert whole.validations[0].best
    assert whole.validations[0].report.mean_iou("whole") == whole.validations[0].scores["mean_iou"]
    result = fit(tmp_path / "stopped", values, callbacks=[stopped])
    assert (result.finished, result.step, result.stopped_by) == (False, 3, None)
    assert fit(tmp_path / "stopped", values, callbacks=[resumed], resume="yes").finished
    assert resumed.steps == whole.steps
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_the_process_of_an_error_in_a_callback_leaves_a_state_to_resume(plain, tmp_path):
    class Broken(resnest_seg.Callback):
        def on_step(self, report):
            if report.step == 3:
                raise RuntimeError("mine")

    values = config(train={"save_every": 1})
    with pytest.raises(RuntimeError, match="mine"):
        fit(tmp_path / "run", values, callbacks=[Broken()])
    assert fit(tmp_path / "run", values, resume="yes").finished
    assert same(weights(plain.output), weights(tmp_path / "run"))


# Network


class Head(nn.Module):
    """One convolution of c4."""

    def __init__(self, channels, classes):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)

    def forward(self, features):
        return self.layer(features[-1])


def network(classes, head_classes=None):
    encoder = resnest_seg.build_encoder("resnest14_tiny", output_stride=16)
    return resnest_seg.Segmenter(encoder, Head(encoder.channels[-1], head_classes or classes), num_classes=classes)


def test_a_network_of_ones_own_resumes_to_the_same_bits_and_is_recorded(tmp_path):
    result = fit(tmp_path / "whole", segmenter=network)
    fit(tmp_path / "killed", segmenter=network, until=2)
    fit(tmp_path / "killed", segmenter=network, resume="yes")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    written = flatten(load_run_config(tmp_path / "whole" / CONFIG))
    assert (written["model.encoder"], written["model.head"], written["model.output_stride"]) == (
        "resnest14_tiny",
        "custom",
        16,
    )
    loaded = resnest_seg.load_checkpoint(tmp_path / "whole", into=network)
    images = torch.randint(0, 256, (1, 3, 40, 56))
    with torch.inference_mode():
        assert torch.equal(loaded(images).logits, result.segmenter(images).logits)


def test_keys_of_the_network_that_ones_own_does_not_follow_are_told_when_it_begins(tmp_path, capsys):
    values = config(
        model={"encoder_weights": "imagenet", "checkpointing": True}, optim={"schedule": "cosine", "power": 2}
    )
    fit(tmp_path / "run", values, segmenter=network, until=1)
    said = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert said == [
        "warning: optim.power 2.0 has no effect: it is for optim.schedule poly, and that is cosine.",
        "warning: model.encoder_weights imagenet, model.checkpointing True in the config has no effect, because the "
        "network is your own: set it where you build that.",
    ]
    fit(tmp_path / "run", values, segmenter=network, until=2, resume="yes")
    assert "model." not in capsys.readouterr().err


@pytest.mark.parametrize("begin", [dry_run, trainer_for])
def test_no_budget_is_made_for_a_network_of_ones_own(begin):
    """It would be that of the config's network."""
    parts = Parts(Own(), Own("val"), segmenter=network)
    with pytest.raises(ConfigError, match=r"--budget auto counts the memory of the network that the config names"):
        begin(RunConfig.from_dict(CONFIG_OF_TEST), parts, budget="auto")


def test_networks_that_give_something_else_are_refused_before_the_first_step(tmp_path):
    for wrong, words in (
        (lambda classes: network(classes, head_classes=5), "it must give"),
        (lambda classes: nn.Linear(2, 2), "Segmenter"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(tmp_path / "run", segmenter=wrong)
        assert not (tmp_path / "run").exists()


def test_parameters_that_no_logit_depends_on_do_not_hinder_a_resume(tmp_path):
    class Spare(Head):
        def __init__(self, channels, classes):
            super().__init__(channels, classes)
            self.spare = nn.Linear(3, 3)

    def spare(classes):
        encoder = resnest_seg.build_encoder("resnest14_tiny")
        return resnest_seg.Segmenter(encoder, Spare(encoder.channels[-1], classes), num_classes=classes)

    fit(tmp_path / "run", segmenter=spare, until=2)
    assert fit(tmp_path / "run", segmenter=spare, resume="yes").finished


def test_a_result_is_plain_values(tmp_path):
    result = fit(tmp_path / "run", until=1)
    assert dataclasses.asdict(dataclasses.replace(result, segmenter=None))["best_score"] == -1
    assert (result.finished, result.step, dict(result.scores)) == (False, 1, {})
