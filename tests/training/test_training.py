"""The loop: it learns, it resumes to the same bits, it stops before harm."""

import concurrent.futures
import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from resnest_seg.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    load_run_config,
)
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import CheckpointError, ConfigError, ResNeStSegError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.models.checkpoint import BEST, CONFIG, LAST, Checkpoint
from resnest_seg.models.loading import build_segmenter, load_checkpoint
from resnest_seg.training import distributed as engine
from resnest_seg.training.distributed import StopSignal
from resnest_seg.training.monitor import progress_bars
from resnest_seg.training.optim import hold_frozen
from resnest_seg.training.run_folder import LOCK, MACHINE, METRICS, SHEET, RunFolder
from resnest_seg.training.tasks import SegmentationTask, Validation
from resnest_seg.training.trainer import Trainer

pytestmark = pytest.mark.slow

CONFIG_OF_TEST = RunConfig(
    model=ModelConfig(encoder="resnest14_tiny", head="fcn"),
    data=DataConfig(base_size=56, crop_size=32, workers=0),
    optim=OptimConfig(lr=0.02, reference_batch=None, head_lr_factor=3),
    train=TrainConfig(epochs=4, batch_size=2, validate_every=2, log_every=1),
    eval=EvalConfig(sheet=2),
)


@pytest.fixture(autouse=True)
def _fresh_engine():
    """accelerate keeps the state of the first engine of a process; a test is a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(dataset, output, config=CONFIG_OF_TEST, *, resume=False, validation=None, class_weights=None):
    torch.manual_seed(config.seed)
    segmenter = build_segmenter(config.model.encoder, head=config.model.head, num_classes=len(dataset.label_space))
    task = SegmentationTask(config, dataset, validation or dataset, class_weights=class_weights)
    return Trainer(config, segmenter=segmenter, task=task, output=output, resume=resume)


def state(folder):
    return Checkpoint.load(folder / LAST)


def same_bits(first, second):
    assert first.training.values == second.training.values
    for ours, theirs in ((first.weights, second.weights), (first.training.tensors, second.training.tensors)):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key


def metrics(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_space):
    """One complete run, whose files the tests look at."""
    output = tmp_path_factory.mktemp("runs") / "complete"
    assert trainer(Stripes(tiny_space), output).fit()
    return output


class Stripes(SegmentationDataset):
    """Six small pictures that can be learnt: the class is the colour."""

    split = "train"

    def __init__(self, space, interrupt_at=None):
        self.label_space, self.reads, self.interrupt_at = space, 0, interrupt_at

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        random = np.random.default_rng(index)
        labels = random.integers(0, 3, (2, 3)).repeat(20, axis=0).repeat(20, axis=1)[:, :56].astype(np.uint8)
        image = self.label_space.palette[labels] + random.integers(0, 20, (40, 56, 3)).astype(np.uint8)
        labels[:2] = 255
        return Sample(image, labels, f"stripes {index}")


def test_the_run_folder_is_complete(finished, tiny_space):
    assert {path.name for path in finished.iterdir()} == {
        *(CONFIG, LAST, BEST, METRICS, MACHINE, SHEET, LOCK, "tensorboard", "val_images.jsonl", "val_report.json"),
        "step_00000009.safetensors",
    }
    assert load_run_config(finished / CONFIG) == CONFIG_OF_TEST
    lines = metrics(finished)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [2.0, 4.0]
    assert list((finished / "tensorboard").rglob("events.*"))
    assert load_checkpoint(finished).label_space == tiny_space
    best = max(line["mean_iou"] for line in lines if line["kind"] == "validation")
    data = Stripes(tiny_space).identity()
    expected = {"step": 12, "best_mean_iou": best, "validated_step": 12, "stale_validations": 0, "data": data}
    expected["precision"] = "fp32"
    scores = [line["mean_iou"] for line in lines if line["kind"] == "validation"]
    expected["stale_validations"] = 1 - scores.index(best)
    assert state(finished).training.values == expected


def test_the_rate_follows_the_schedule(finished):
    lines = [line for line in metrics(finished) if line["kind"] == "train"]
    assert len(lines) == 12
    for line in lines:
        assert line["lr"] == pytest.approx(0.02 * (1 - (line["step"] - 1) / 12) ** 0.9)


def test_it_learns(tiny_space, tmp_path):
    """Colours can be learnt in seconds: the loss falls well below that of guessing, log(3) with its auxiliary part."""
    config = dataclasses.replace(
        CONFIG_OF_TEST,
        data=DataConfig(base_size=56, crop_size=32, scale_min=1, scale_max=1, workers=0),
        train=TrainConfig(epochs=30, batch_size=4, validate_every=30, log_every=1),
    )
    trainer(Stripes(tiny_space), tmp_path / "run", config).fit()
    losses = [line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.6 * np.log(3) * 1.2


def test_the_same_config_gives_the_same_bits(finished, tiny_space, tmp_path):
    trainer(Stripes(tiny_space), tmp_path / "again").fit()
    same_bits(state(tmp_path / "again"), state(finished))
    assert metrics(tmp_path / "again") == metrics(finished)


def in_a_thread(call):
    """What a call returns in a thread of its own, as behind a notebook's or a server's."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_a_run_in_another_thread_gives_the_same_bits_and_leaves_signals_alone(finished, tiny_space, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = dataclasses.replace(CONFIG_OF_TEST, data=dataclasses.replace(CONFIG_OF_TEST.data, workers=1))
    assert not in_a_thread(lambda: trainer(Stripes(tiny_space), tmp_path / "run", config).fit(until=7))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert in_a_thread(lambda: trainer(Stripes(tiny_space), tmp_path / "run", config, resume=True).fit())
    same_bits(state(tmp_path / "run"), state(finished))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("reads", [5, 10, 17])
def test_ctrl_c_and_resume_give_the_bits_of_a_run_that_was_not_stopped(finished, tiny_space, tmp_path, reads):
    """Stopped in the middle of an epoch, once, then resumed: weights, optimiser, random state and metrics."""
    output = tmp_path / "stopped"
    stopped = trainer(Stripes(tiny_space, interrupt_at=reads), output, validation=Stripes(tiny_space))
    assert not stopped.fit()
    assert 0 < state(output).training.values["step"] < 12
    torch.manual_seed(99)
    torch.rand(7)
    assert trainer(Stripes(tiny_space), output, resume=True).fit()
    same_bits(state(output), state(finished))
    assert metrics(output) == metrics(finished)


def test_a_run_that_dies_in_its_validation_loses_nothing(finished, tiny_space, tmp_path):
    """The state is saved before validation, and a resumed run validates first."""

    class Deadly(Stripes):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        trainer(Stripes(tiny_space), output, validation=Deadly(tiny_space)).fit()
    data = Stripes(tiny_space).identity()
    expected = {"step": 6, "best_mean_iou": -1.0, "validated_step": 0, "stale_validations": 0, "data": data}
    expected["precision"] = "fp32"
    assert state(output).training.values == expected
    assert trainer(Stripes(tiny_space), output, resume=True).fit()
    same_bits(state(output), state(finished))
    assert metrics(output) == metrics(finished)


def test_accumulation_sees_the_same_samples_and_labelled_pixels(tiny_space, tmp_path, monkeypatch):
    """2 x 2 accumulated is 4: with batch norm in eval mode the gradients are those of the whole batch."""
    updates = []
    for parts in (1, 2):
        config = dataclasses.replace(CONFIG_OF_TEST, train=TrainConfig(epochs=2, batch_size=4, accumulation=parts))
        one = trainer(Stripes(tiny_space), tmp_path / f"run{parts}", config)
        monkeypatch.setattr(
            one.model, "train", lambda mode=True, one=one: torch.nn.Module.train(one.model, False)
        )  # no dropout, fixed statistics: only sums differ
        one.optimizer.step = lambda one=one: updates.append([p.grad.clone() for p in one.segmenter.head.parameters()])
        batches = one._batches()
        one._optimise([next(batches) for _ in range(parts)])
    for whole, accumulated in zip(*updates, strict=True):
        assert torch.allclose(whole, accumulated, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_step_is_torchs_mean_over_the_whole_batch(tiny_space, tmp_path):
    """Class weights, smoothing and both heads, from micro-batches of unequally many labelled pixels."""
    train = TrainConfig(epochs=2, batch_size=6, accumulation=3, aux_weight=0.4, class_weights="median_frequency",
                        label_smoothing=0.1)  # fmt: skip
    optim = dataclasses.replace(CONFIG_OF_TEST.optim, freeze="bn,head_bn")
    weights, config = torch.tensor([0.5, 1.0, 3.0]), dataclasses.replace(CONFIG_OF_TEST, train=train, optim=optim)
    with pytest.raises(ConfigError, match=r"train.class_weights is median_frequency, and none were given"):
        trainer(Stripes(tiny_space), tmp_path / "run", config)
    AcceleratorState._reset_state(reset_partial_state=True)
    one = trainer(Stripes(tiny_space), tmp_path / "run", config, class_weights=weights)
    for module in one.segmenter.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0  # its masks depend on how the batch is divided
    batches = one._batches()
    parts = [next(batches) for _ in range(3)]
    assert len({int((part.labels == 255).sum()) for part in parts}) > 1
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    one.segmenter.train()
    hold_frozen(one.segmenter, config.optim)
    output = one.segmenter(images)  # of full size
    assert output.logits.shape[2:] == labels.shape[1:]
    main, aux = (
        F.cross_entropy(logits, labels.long(), weight=weights, label_smoothing=0.1, ignore_index=255)
        for logits in (output.logits, output.aux_logits)
    )
    expected = torch.autograd.grad(main + 0.4 * aux, list(one.segmenter.parameters()))
    found = []
    one.optimizer.step = lambda: found.extend(p.grad.clone() for p in one.segmenter.parameters())
    loss, *_ = one._optimise(parts)
    assert loss == pytest.approx(float((main + 0.4 * aux).detach()), rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


def test_a_run_folder_that_exists_is_not_touched(finished, tiny_space):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(CheckpointError, match=r"already exists.*--resume"):
        trainer(Stripes(tiny_space), finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_space, tmp_path):
    one = trainer(Stripes(tiny_space), tmp_path / "run")
    with torch.no_grad():
        one.segmenter.head.conv5[4].bias.fill_(float("nan"))
    before = [p.clone() for p in one.segmenter.encoder.parameters()]
    with pytest.raises(ResNeStSegError, match=r"the loss is nan at step 0 .*stripes \d, stripes \d. Lower optim.lr"):
        one.fit()
    assert all(torch.equal(p, q) for p, q in zip(one.segmenter.encoder.parameters(), before, strict=True))
    assert state(tmp_path / "run").training.values["step"] == 0


def test_a_gradient_that_is_not_finite_stops_before_the_update(tiny_space, tmp_path):
    """With a finite loss: the weights, the average and the saved state stay what they were."""
    config = dataclasses.replace(CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, ema=0.5))
    one = trainer(Stripes(tiny_space), tmp_path / "run", config)
    one.segmenter.head.conv5[4].bias.register_hook(lambda gradient: gradient * float("inf"))
    before = {key: value.clone() for key, value in one.average.values.items()}
    says = r"gradient of head.conv5.4.bias and 0 more parameters is not finite \(norm (inf|nan), loss \d.*at step 0 "
    with pytest.raises(ResNeStSegError, match=says + r"\(epoch 0, lr 0.02\).*stripes \d, stripes \d."):
        one.fit()
    for name, parameter in one.segmenter.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(one.average.values[name], before[name])
    assert state(tmp_path / "run").training.values["step"] == 0


def test_patience_ends_the_run_also_when_it_was_interrupted(tiny_space, tmp_path):
    """With a learning rate too small to change a prediction, no validation beats the first."""
    changed = {"patience": 2, "validate_every_steps": 2, "save_every": 1}
    config = dataclasses.replace(
        CONFIG_OF_TEST,
        optim=OptimConfig(lr=1e-30, freeze="bn,head_bn"),
        train=dataclasses.replace(CONFIG_OF_TEST.train, **changed),
    )
    assert trainer(Stripes(tiny_space), tmp_path / "run", config).fit()
    assert [line["step"] for line in metrics(tmp_path / "run") if line["kind"] == "validation"] == [2, 4, 6]
    values = state(tmp_path / "run").training.values
    assert (values["step"], values["stale_validations"]) == (6, 2)
    assert not trainer(Stripes(tiny_space), tmp_path / "again", config).fit(until=5)
    assert trainer(Stripes(tiny_space), tmp_path / "again", config, resume=True).fit()
    same_bits(state(tmp_path / "again"), state(tmp_path / "run"))
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")
    assert trainer(Stripes(tiny_space), tmp_path / "run", config, resume=True).fit()  # there is nothing left to do
    assert state(tmp_path / "run").training.values["step"] == 6


def test_the_average_is_validated_and_kept_as_best(tiny_space, tmp_path):
    train = dataclasses.replace(CONFIG_OF_TEST.train, epochs=2, ema=0.9, validate_every_steps=3, keep=1)
    config = dataclasses.replace(CONFIG_OF_TEST, train=train)
    one = trainer(Stripes(tiny_space), tmp_path / "run", config)
    one.fit()
    last = state(tmp_path / "run")
    average = {key.removeprefix("average."): v for key, v in last.training.tensors.items() if key.startswith("average")}
    assert average.keys() == last.weights.keys()
    assert not torch.equal(average["head.conv5.4.weight"], last.weights["head.conv5.4.weight"])
    report = evaluate(load_checkpoint(tmp_path / "run" / BEST), Stripes(tiny_space))
    assert report.scores["whole"].mean_iou == last.training.values["best_mean_iou"]
    lines, best = metrics(tmp_path / "run"), Checkpoint.load(tmp_path / "run" / BEST)
    validations = {line["step"]: line for line in lines if line["kind"] == "validation"}
    for line in validations.values():
        assert line["mean_iou"] == max(line["average/mean_iou"], line["weights/mean_iou"])
        assert line["mean_iou"] == line[f"{line['of']}/mean_iou"]
        assert line["pixel_accuracy"] == line[f"{line['of']}/pixel_accuracy"]
    origin = validations[best.origin["step"]]
    assert best.origin == {key: origin[key] for key in ("step", "of", "mean_iou", "pixel_accuracy")}
    assert last.training.values["best_of"] == origin["of"]
    assert last.training.values["average_updates"] == 6


@pytest.mark.parametrize(
    ("average", "weights", "better"), [(0.3, 0.5, "weights"), (0.5, 0.3, "average"), (0.4, 0.4, "average")]
)
def test_the_better_of_average_and_weights_is_kept_and_named(average, weights, better, tiny_space, tmp_path, capsys):
    train = dataclasses.replace(CONFIG_OF_TEST.train, epochs=2, ema=0.9, trackers="none")
    one = trainer(Stripes(tiny_space), tmp_path / "run", dataclasses.replace(CONFIG_OF_TEST, train=train))
    scores = iter([average, weights])
    one.task.validate = lambda *given, **options: Validation({"mean_iou": next(scores), "pixel_accuracy": 0.9}, "")
    assert one.fit()
    last, best = state(tmp_path / "run"), Checkpoint.load(tmp_path / "run" / BEST)
    theirs = last.weights if better == "weights" else one.average.values
    assert all(torch.equal(value, theirs[key]) for key, value in best.weights.items())
    assert (best.origin["of"], last.training.values["best_of"]) == (better, better)
    assert last.training.values["best_mean_iou"] == max(average, weights)
    other = {"weights": "average", "average": "weights"}[better]
    assert f"of the {better} ({other}: {100 * min(average, weights):.2f})" in " ".join(capsys.readouterr().out.split())


def test_patience_looks_at_the_better_of_average_and_weights(tiny_space, tmp_path):
    changed = {"patience": 2, "validate_every_steps": 1, "ema": 0.9, "trackers": "none"}
    config = dataclasses.replace(CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, **changed))
    one = trainer(Stripes(tiny_space), tmp_path / "run", config)
    scores = iter([0.1, 0.2, 0.3, 0.1, 0.3, 0.3, 0.1, 0.4, 0.4, 0.2, 0.2, 0.4])  # average, weights, average, ...
    one.task.validate = lambda *given, **options: Validation({"mean_iou": next(scores), "pixel_accuracy": 0.9}, "")
    assert one.fit()
    values = state(tmp_path / "run").training.values
    assert (one.step, values["best_mean_iou"], values["best_of"], values["stale_validations"]) == (6, 0.4, "weights", 2)


def test_an_average_can_be_added_to_a_run_and_begins_from_its_weights(tiny_space, tmp_path):
    data, output = Stripes(tiny_space), tmp_path / "run"
    trainer(data, output).fit(until=4)
    config = dataclasses.replace(CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, ema=0.9))
    one = resumed(config, data, output, allow_changes=["train.ema"])
    saved = state(output)
    assert all(torch.equal(value, saved.weights[key]) for key, value in one.average.values.items())
    one.fit(until=7)
    assert state(output).training.values["average_updates"] == 3
    same = resumed(config, data, output)
    assert same.average.updates == 3
    assert all(torch.equal(value, one.average.values[key]) for key, value in same.average.values.items())


def resumed(config, data, output, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    segmenter, task = build_segmenter("resnest14_tiny", head="fcn", num_classes=3), SegmentationTask(config, data, data)
    return Trainer(config, segmenter=segmenter, task=task, output=output, resume=True, **options)


def test_a_run_goes_on_in_the_precision_that_it_began_in(tiny_space, tmp_path):
    """As if auto had been bf16 on the GPU where it began."""
    data, output = Stripes(tiny_space), tmp_path / "run"
    trainer(data, output).fit(until=4)
    saved = state(output)
    values = dict(saved.training.values) | {"precision": "bf16"}
    dataclasses.replace(saved, training=dataclasses.replace(saved.training, values=values)).save(output / LAST)
    says = r"computed in bf16, and on cpu train.precision auto is fp32.*--train.precision bf16 --allow-changes"
    with pytest.raises(CheckpointError, match=says):
        trainer(data, output, resume=True)
    one = resumed(CONFIG_OF_TEST, data, output, allow_changes=["train.precision"])
    assert one.changes == ["arithmetic (bf16 -> fp32)"]
    same = dataclasses.replace(CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, precision="bf16"))
    assert resumed(same, data, output, allow_changes=["train.precision"]).changes == ["train.precision (auto -> bf16)"]
    assert one.fit()
    assert state(output).training.values["precision"] == "fp32"


@pytest.mark.parametrize(
    ("capabilities", "precision", "says"),
    [
        ({}, "auto", "on cpu, fp32, lr"),
        ({"amx_bf16": True}, "auto", "on cpu, fp32 (this processor multiplies bfloat16: --train.precision bf16 is"),
        ({"avx512_bf16": True}, "fp32", "on cpu, fp32, lr"),
        ({"bf16": True}, "bf16", "on cpu, bf16, lr"),
        ({"amx_bf16": False}, "bf16", "on cpu, bf16 (which this processor does not multiply: --train.precision fp32"),
    ],
)
def test_a_run_on_a_cpu_says_which_precision_is_faster(
    capabilities, precision, says, tiny_space, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    config = dataclasses.replace(
        CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, precision=precision, epochs=None, iterations=1)
    )
    assert trainer(Stripes(tiny_space), tmp_path / "run", config).fit()
    assert says in capsys.readouterr().out


def test_a_second_run_changes_nothing(finished, tiny_space, tmp_path):
    """Neither where it looks at the folder first nor where it comes to write; leftovers of the live one stay."""
    output = tmp_path / "run"
    late = trainer(Stripes(tiny_space), output)
    trainer(Stripes(tiny_space), output).fit(until=4)
    with RunFolder(output).held():
        (output / ".last.4711.tmp.safetensors").write_bytes(b"half")
        before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for resume in (True, False):
            with pytest.raises(CheckpointError, match="another run is training into"):
                trainer(Stripes(tiny_space), output, resume=resume)
        with pytest.raises(CheckpointError, match="another run is training into"):
            late.fit()
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    with pytest.raises(CheckpointError, match="another run saved into"):
        late.fit()
    assert trainer(Stripes(tiny_space), output, resume=True).fit()
    same_bits(state(output), state(finished))


def test_an_encoder_with_levels_that_no_head_reads_is_resumed(tiny_space, tmp_path):
    model = ModelConfig(encoder="smp:tu-hrnet_w18_small", head="fcn", output_stride=32)
    train = dataclasses.replace(CONFIG_OF_TEST.train, epochs=1, validate_every_steps=9, trackers="none")
    config = dataclasses.replace(CONFIG_OF_TEST, model=model, train=train)
    for until in (1, 2):
        torch.manual_seed(0)
        AcceleratorState._reset_state(reset_partial_state=True)
        segmenter = build_segmenter(model.encoder, head="fcn", num_classes=3, output_stride=32)
        task = SegmentationTask(config, Stripes(tiny_space), Stripes(tiny_space))
        one = Trainer(config, segmenter=segmenter, task=task, output=tmp_path / "run", resume=until == 2)
        one.fit(until=until)
    assert state(tmp_path / "run").training.values["step"] == 2


def test_processes_that_would_train_apart_do_not_begin(tiny_space, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="2 processes work together, but RANK, MASTER_ADDR, MASTER_PORT are not set"):
        trainer(Stripes(tiny_space), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_statistics_stay(tiny_space, tmp_path):
    config = dataclasses.replace(
        CONFIG_OF_TEST,
        optim=dataclasses.replace(CONFIG_OF_TEST.optim, freeze="bn,head_bn"),
        train=dataclasses.replace(CONFIG_OF_TEST.train, epochs=1, batch_size=1),
    )
    one = trainer(Stripes(tiny_space), tmp_path / "run", config)
    before = {key: value.clone() for key, value in one.segmenter.state_dict().items()}
    one.fit()
    for key, value in one.segmenter.state_dict().items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(one.segmenter.encoder.bn1.weight, before["encoder.bn1.weight"])


def test_sigterm_within_a_validation_is_heard_at_once(tiny_space, tmp_path, finished):
    """The state is saved before; the resumed run validates again."""

    class Terminated(Stripes):
        def __getitem__(self, index):
            if index == 1:
                signal.raise_signal(signal.SIGTERM)
            assert index < 4, "the validation went on"
            return super().__getitem__(index)

    one = trainer(Stripes(tiny_space), tmp_path / "run", validation=Terminated(tiny_space))
    assert not one.fit()
    assert one.stopped_by == signal.SIGTERM
    assert state(tmp_path / "run").training.values["validated_step"] == 0
    assert trainer(Stripes(tiny_space), tmp_path / "run", resume=True).fit()
    same_bits(state(tmp_path / "run"), state(finished))
    assert (tmp_path / "run" / METRICS).read_bytes() == (finished / METRICS).read_bytes()


def test_what_the_run_logs(finished):
    lines = [line for line in metrics(finished) if line["kind"] == "train"]
    assert all(line["lr/1"] == pytest.approx(3 * line["lr/0"]) and line["grad_norm"] > 0 for line in lines)
    machine = [json.loads(line) for line in (finished / MACHINE).read_text().splitlines()]
    assert machine[0]["kind"] == "start"
    assert machine[0]["processes"] == 1
    speed = [line for line in machine if line["kind"] == "speed"]
    assert all(line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in speed)


def test_a_training_split_that_changed_is_not_resumed(tiny_space, tmp_path):
    trainer(Stripes(tiny_space), tmp_path / "run").fit()

    class Longer(Stripes):
        def __len__(self):
            return super().__len__() + 8

    with pytest.raises(CheckpointError, match="photos, masks or classes were added, removed or renamed"):
        trainer(Longer(tiny_space), tmp_path / "run", resume=True)


def test_a_config_that_was_edited_is_not_resumed(tiny_space, tmp_path):
    output = tmp_path / "run"
    assert not trainer(Stripes(tiny_space, interrupt_at=5), output, validation=Stripes(tiny_space)).fit()
    edited = dataclasses.replace(CONFIG_OF_TEST, optim=OptimConfig(lr=0.5, reference_batch=None, head_lr_factor=3))
    with pytest.raises(CheckpointError, match=r"not the config of this run any more: optim.lr \(0.02 -> 0.5\)"):
        trainer(Stripes(tiny_space), output, edited, resume=True)
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    data = Stripes(tiny_space)
    options = {"segmenter": segmenter, "task": SegmentationTask(edited, data, data), "output": output, "resume": True}
    allowed = Trainer(edited, **options, allow_changes=["optim.lr"])
    assert allowed.changes == ["optim.lr (0.02 -> 0.5)"]
    harmless = dataclasses.replace(CONFIG_OF_TEST, output="elsewhere")
    assert trainer(Stripes(tiny_space), output, harmless, resume=True).fit()


def test_a_line_that_was_half_written_is_dropped_on_resume(finished, tiny_space, tmp_path):
    output = tmp_path / "run"
    assert not trainer(Stripes(tiny_space, interrupt_at=5), output, validation=Stripes(tiny_space)).fit()
    with open(output / METRICS, "a") as file:
        file.write('{"kind": "train", "st')
    assert trainer(Stripes(tiny_space), output, resume=True).fit()
    assert metrics(output) == metrics(finished)


def test_a_run_that_dies_in_its_first_step_can_be_resumed(finished, tiny_space, tmp_path):
    output = tmp_path / "run"
    broken = trainer(Stripes(tiny_space), output)
    broken.model = None
    with pytest.raises(AttributeError):
        broken.fit()
    assert trainer(Stripes(tiny_space), output, resume=True).fit()
    same_bits(state(output), state(finished))


def test_validation_is_what_an_evaluation_of_the_saved_file_computes(tiny_space, tmp_path):
    """Also when training runs in half precision."""
    config = dataclasses.replace(
        CONFIG_OF_TEST, train=TrainConfig(epochs=1, batch_size=2, precision="bf16"), eval=EvalConfig(split="train")
    )
    trainer(Stripes(tiny_space), tmp_path / "run", config).fit()
    report = evaluate(load_checkpoint(tmp_path / "run" / BEST), Stripes(tiny_space))
    assert report.scores["whole"].mean_iou == state(tmp_path / "run").training.values["best_mean_iou"]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"precision": "fp8"}, "unknown train.precision 'fp8'"),
        ({"batch_size": 4, "accumulation": 4}, "leaves one image for each of 4 micro-batches x 1 processes"),
        ({"batch_size": 3, "accumulation": 2}, r"train.batch_size \(3\) must be a multiple"),
    ],
)
def test_impossible_configs(tiny_space, tmp_path, train, says):
    with pytest.raises(ConfigError, match=says):
        trainer(Stripes(tiny_space), tmp_path / "run", dataclasses.replace(CONFIG_OF_TEST, train=TrainConfig(**train)))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can train in fp16")
def test_fp16_needs_a_gpu(tiny_space, tmp_path):
    config = dataclasses.replace(CONFIG_OF_TEST, train=TrainConfig(precision="fp16"))
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        trainer(Stripes(tiny_space), tmp_path / "run", config)


def test_bf16_trains(tiny_space, tmp_path):
    config = dataclasses.replace(CONFIG_OF_TEST, train=TrainConfig(epochs=1, batch_size=2, precision="bf16"))
    assert trainer(Stripes(tiny_space), tmp_path / "run", config).fit()
    assert all(np.isfinite(line.get("loss", 0)) for line in metrics(tmp_path / "run"))


def test_weights_alone_cannot_be_resumed(finished, tiny_space, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / LAST).write_bytes((finished / BEST).read_bytes())
    with pytest.raises(CheckpointError, match="holds weights only"):
        trainer(Stripes(tiny_space), output, resume=True)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({"freeze": "encoder"}, {}, "head"),
        ({}, {"freeze": "layer4"}, "encoder.layer1"),
        ({}, {"decay": "weights"}, "encoder.layer1"),
        ({}, {"optimizer": "adamw", "lr": 0.001}, None),
    ],
    ids=["thaw", "freeze", "regroup", "another optimiser"],
)
def test_what_is_trained_may_change_and_momentum_goes_by_name(before, after, kept, tiny_space, tmp_path):
    first = dataclasses.replace(CONFIG_OF_TEST, optim=dataclasses.replace(CONFIG_OF_TEST.optim, **before))
    then = dataclasses.replace(CONFIG_OF_TEST, optim=dataclasses.replace(CONFIG_OF_TEST.optim, **after))
    data, output = Stripes(tiny_space), tmp_path / "run"
    trainer(data, output, first).fit(until=4)
    with pytest.raises(CheckpointError, match=r"not the config of this run any more: optim\."):
        trainer(data, output, then, resume=True)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    task, keys = SegmentationTask(then, data, data), [f"optim.{key}" for key in {**before, **after}]
    one = Trainer(then, segmenter=segmenter, task=task, output=output, resume=True, allow_changes=keys)
    saved = state(output).training.tensors
    for name, parameter in one._trained().items():
        slots, key = one.optimizer.state[parameter], f"optimizer.{name}.momentum_buffer"
        if kept is not None and key in saved:
            assert torch.equal(slots["momentum_buffer"], saved[key]), name
        else:
            assert not slots, name
    assert kept is None or any(name.startswith(kept) and one.optimizer.state[p] for name, p in one._trained().items())
    one.fit(until=6)
    assert state(output).training.values["step"] == 6


def test_a_run_is_not_shortened_to_less_than_it_has_done(tiny_space, tmp_path):
    data, output = Stripes(tiny_space), tmp_path / "run"
    trainer(data, output).fit(until=7)
    short = dataclasses.replace(CONFIG_OF_TEST, train=dataclasses.replace(CONFIG_OF_TEST.train, epochs=2))
    before, task = (output / "config.yaml").read_bytes(), SegmentationTask(short, data, data)
    options = {"segmenter": build_segmenter("resnest14_tiny", head="fcn", num_classes=3), "output": output}
    with pytest.raises(CheckpointError, match=r"is at step 7, and the run would have 6 only"):
        Trainer(short, task=task, resume=True, allow_changes=["train.epochs"], **options)
    assert (output / "config.yaml").read_bytes() == before


def test_a_gpu_that_is_too_small_is_told_what_to_do(tiny_space, tmp_path):
    one = trainer(Stripes(tiny_space), tmp_path / "run")

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    one.segmenter.encoder.forward = full
    with pytest.raises(ResNeStSegError, match=r"at step 0, with 2 images a micro-batch .*--budget auto.*2.00 GiB"):
        one.fit()


def test_a_wrong_recipe_leaves_no_run_folder(tiny_space, tmp_path):
    wrong = dataclasses.replace(CONFIG_OF_TEST, data=dataclasses.replace(CONFIG_OF_TEST.data, recipe="mmsg"))
    with pytest.raises(ConfigError, match="Did you mean 'mmseg'"):
        trainer(Stripes(tiny_space), tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(("protocol", "expected"), [("encoding", 1 / 3), ("whole", 1.0)])
def test_absent_classes_count_in_training_as_in_an_evaluation(protocol, expected, tiny_space, tmp_path):
    """A class that occurs nowhere has an IoU of 0 for the authors, and none for the others."""

    class Plain(Stripes):
        def __getitem__(self, index):
            return Sample(np.zeros((40, 56, 3), np.uint8), np.zeros((40, 56), np.uint8), "plain")

    config = dataclasses.replace(CONFIG_OF_TEST, eval=dataclasses.replace(CONFIG_OF_TEST.eval, protocol=protocol))
    one = trainer(Plain(tiny_space), tmp_path / "run", config)
    last = [module for module in one.segmenter.head.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    with progress_bars(one.console) as progress:
        result = one.task.validate(one.segmenter, one.engine, stop=StopSignal(), progress=progress)
    assert result.scores == {"mean_iou": pytest.approx(expected), "pixel_accuracy": 1.0}


def test_processes_that_divide_the_batch_differently_do_not_begin(tiny_space, tmp_path, monkeypatch):
    """As with --budget auto on machines of different memory."""
    monkeypatch.setattr(engine, "gather_object", lambda values: [*values, 4])
    with pytest.raises(ConfigError, match=r"accumulation 1, 4"):
        trainer(Stripes(tiny_space), tmp_path / "run")


def test_processes_that_chose_different_folders_do_not_begin(tiny_space, tmp_path, monkeypatch):
    """As two starts at the same moment can, of which one made the folder between the looks of the other's processes."""
    others = {1: 1, str(tmp_path / "run"): str(tmp_path / "run-2")}
    monkeypatch.setattr(engine, "gather_object", lambda values: [*values, others[values[0]]])
    with pytest.raises(ConfigError, match=r"different run folders \(.*run, .*run-2\).*--output .*run-2$"):
        trainer(Stripes(tiny_space), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_state_of_unknown_names_is_refused_even_where_the_rate_may_change(tiny_space, tmp_path):
    """As those of older versions, whose momentum would be lost without a word."""
    data, output = Stripes(tiny_space), tmp_path / "run"
    trainer(data, output).fit(until=4)
    saved = state(output)
    names = {key: f"optimizer.{place}.momentum_buffer" for place, key in enumerate(saved.training.tensors)}
    tensors = {names[key]: value for key, value in saved.training.tensors.items()}
    old = dataclasses.replace(saved, training=dataclasses.replace(saved.training, tensors=tensors))
    old.save(output / LAST)
    edited = dataclasses.replace(CONFIG_OF_TEST, optim=dataclasses.replace(CONFIG_OF_TEST.optim, lr=0.5))
    segmenter, task = build_segmenter("resnest14_tiny", head="fcn", num_classes=3), SegmentationTask(edited, data, data)
    with pytest.raises(CheckpointError, match="no or another state of '0'"):
        Trainer(edited, segmenter=segmenter, task=task, output=output, resume=True, allow_changes=["optim.lr"])
