"""What a validation leaves: its loss, IoU by class, and the report and the scores by image of the best one."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from segmentation_models_pytorch.losses import DiceLoss
from support.small_models import small_segmenter

from resnest_seg.config import DataConfig, EvalConfig, OptimConfig, RunConfig, TrainConfig
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import CheckpointError
from resnest_seg.evaluation.image_scores import VALIDATION_IMAGES, VALIDATION_REPORT, ImageScoresFile
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST, Checkpoint
from resnest_seg.training.distributed import StopSignal
from resnest_seg.training.losses import LabelLoss, OwnLoss, ScoredLoss, SegmentationLoss
from resnest_seg.training.monitor import Callback, progress_bars
from resnest_seg.training.run_folder import METRICS, RunFolder
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer

# The loss


def images(task="multiclass", count=3):
    """Logits [4, H, W] and labels [H, W] of images of several sizes, some pixels ignored, the last image wholly."""
    random = torch.Generator().manual_seed(1)
    for index in range(count):
        shape = (11 + index, 13)
        ignore = {"multiclass": 255, "binary": 255, "multilabel": 1 << 15}[task]
        labels = torch.randint(0, {"multiclass": 4, "binary": 2, "multilabel": 16}[task], shape, generator=random)
        labels[torch.rand(shape, generator=random) < 0.3] = ignore
        if index == count - 1:
            labels[:] = ignore
        yield 2 * torch.randn(1 if task == "binary" else 4, *shape, generator=random), labels.int()


def scored(criterion, pairs, merge, *, rows=4, forms=None):
    found = ScoredLoss(criterion)
    for logits, labels in pairs:
        scores = {"logits": logits, "softmax": logits.softmax(0), "exp": 7 * logits.exp(), "sigmoid": logits.sigmoid()}
        for first in range(0, len(labels), rows):
            found.add(scores[merge][:, first : first + rows], labels[first : first + rows], merge)
        found.end_image()
    return found


@pytest.mark.parametrize("held", [1 << 26, 4 * 13 * 3])
@pytest.mark.parametrize("merge", ["logits", "softmax", "exp"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs_over_all_labelled_pixels(merge, weighted, held, monkeypatch):
    monkeypatch.setattr("resnest_seg.training.losses.HELD", held)
    weights = torch.tensor([1.0, 2, 0.5, 3]) if weighted else None
    criterion = SegmentationLoss(0.4, class_weights=weights)
    logits = torch.cat([logits.flatten(1) for logits, _ in images()], dim=1).T
    labels = torch.cat([labels.flatten() for _, labels in images()]).long()
    expected = F.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    assert scored(criterion, images(), merge).mean() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_have_the_binary_one(task):
    criterion = LabelLoss(task, num_labels=1 if task == "binary" else 4, aux_weight=0.4)
    total = count = 0
    for logits, labels in images(task):
        for label, one in enumerate(logits):
            valid = labels < (1 << 15) if task == "multilabel" else labels != 255
            truth = ((labels >> label) & 1).float()
            total += float(F.binary_cross_entropy_with_logits(one[valid], truth[valid], reduction="sum"))
            count += int(valid.sum())
    assert scored(criterion, images(task), "sigmoid").mean() == pytest.approx(total / count, rel=1e-5)


def test_other_losses_are_means_over_images_by_their_labelled_pixels():
    total = count = 0
    dice = DiceLoss("multiclass", ignore_index=255)
    for logits, labels in list(images())[:-1]:
        pixels = int((labels != 255).sum())
        total, count = total + pixels * float(dice(logits[None], labels[None].long())), count + pixels
    for criterion in (SegmentationLoss(0.4, names=["dice"]), OwnLoss(dice, aux_weight=0.4, align_corners=False)):
        assert scored(criterion, images(), "logits").mean() == pytest.approx(total / count, rel=1e-5)


def test_nothing_labelled_and_what_is_not_finite_have_no_mean():
    nothing = list(images())[-1:]
    assert scored(SegmentationLoss(0.4), nothing, "logits").mean() is None
    infinite = OwnLoss(lambda logits, labels: logits.sum() * float("inf"), aux_weight=0, align_corners=False)
    assert scored(infinite, images(), "logits").mean() is None


# Files of a run

CONFIG = RunConfig(
    data=DataConfig(base_size=56, crop_size=32, workers=0),
    optim=OptimConfig(lr=0.02, reference_batch=None),
    train=TrainConfig(
        epochs=None, iterations=6, batch_size=2, validate_every_steps=2, log_every=1, ema=0.5, trackers="none"
    ),
    eval=EvalConfig(sheet=0),
)


class Own(SegmentationDataset):
    """Four pictures whose class is the brightness; class 3 is nowhere."""

    label_space = LabelSpace.numbered(4, names=["sky", "<road>", "Straße", "moon"])

    def __init__(self, split="train"):
        self.split = split

    def __len__(self):
        return 4

    def __getitem__(self, index):
        labels = np.random.default_rng(index).integers(0, 3, (2, 3)).repeat(17, 0).repeat(15, 1).astype(np.uint8)
        labels[: 3 + index] = 255
        return Sample(np.repeat(labels[..., None], 3, 2) % 3 * np.uint8(100), labels, self.sample_name(index))

    def sample_name(self, index):
        return f"own {index} [1] ü.png"


def trainer(output, *, resume=False, loss=None, callbacks=(), **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    segmenter = small_segmenter(Own.label_space, classes=4).train()
    segmenter.config = dataclasses.replace(segmenter.config, train=config.train, eval=config.eval)
    task = SegmentationTask(config, Own(), Own("val"), loss=loss)
    return Trainer(config, segmenter=segmenter, task=task, output=output, resume=resume, callbacks=callbacks)


def validations(folder):
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    one = trainer(folder)
    assert one.fit()
    return one, folder


def test_the_files_are_those_of_the_best_validation(run):
    one, folder = run
    report, best = EvalReport.load(folder / VALIDATION_REPORT), max(line["mean_iou"] for line in validations(folder))
    assert report.mean_iou("whole") == one.best_score == best
    assert (report.checkpoint, report.images, report.split) == (BEST, 4, "val")
    (line,) = [line for line in validations(folder) if line["mean_iou"] == best]
    assert line["class_iou"] == list(report.scores["whole"].class_iou)
    assert line["class_iou"][3] is None
    file = ImageScoresFile(folder / VALIDATION_IMAGES)
    names, counts = file.counts("whole")
    assert names == [(index, f"own {index} [1] ü.png") for index in range(4)]
    matrix = np.array(report.matrices["whole"])
    assert np.array_equal(counts.sum(0), np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)], axis=1))
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_the_loss_is_that_of_the_kept_weights(run):
    one, folder = run
    segmenter = one.judged.eval()
    segmenter.load_state_dict(Checkpoint.load(folder / BEST).weights)
    total = count = 0
    for index in range(4):
        sample = Own("val")[index]
        padded = np.zeros((3, 40, 48), np.uint8)
        padded[:, :34, :45] = sample.image.transpose(2, 0, 1)
        with torch.inference_mode():
            logits = segmenter(torch.from_numpy(padded)[None]).logits[:, :, :34, :45]
        labels = torch.from_numpy(sample.labels)[None].long()
        total += float(F.cross_entropy(logits, labels, ignore_index=255, reduction="sum"))
        count += int((labels != 255).sum())
    (line,) = [line for line in validations(folder) if line["mean_iou"] == one.best_score]
    assert line["val_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("until", [2, 3])
def test_a_resumed_run_has_the_same_files(run, tmp_path, until):
    """Stopped before a validation, and after one."""
    first = trainer(tmp_path / "run")
    assert not first.fit(until=until)
    for left in (f".{VALIDATION_IMAGES}.weights.7", f"..{VALIDATION_IMAGES}.weights.4711.tmp.7"):
        (tmp_path / "run" / left).write_text("of a validation that was killed")
    assert trainer(tmp_path / "run", resume=True).fit()
    for name in (VALIDATION_REPORT, VALIDATION_IMAGES, METRICS):
        assert (tmp_path / "run" / name).read_bytes() == (run[1] / name).read_bytes(), name
    assert not list((tmp_path / "run").glob(f".*{VALIDATION_IMAGES}.*"))


def test_a_validation_that_is_not_the_best_writes_no_files(tmp_path):
    one = trainer(tmp_path / "run", train=dataclasses.replace(CONFIG.train, iterations=2))
    one.best_score = 1.0
    assert one.fit()
    assert len(validations(tmp_path / "run")) == 1
    assert not {VALIDATION_REPORT, VALIDATION_IMAGES, BEST} & {path.name for path in (tmp_path / "run").iterdir()}
    assert not list((tmp_path / "run").glob(f".*{VALIDATION_IMAGES}*"))


def test_a_callback_hears_of_the_best_when_it_is_written_and_again_if_the_run_died_then(run, tmp_path):
    class Copying(Callback):
        def __init__(self, dies_at=None):
            self.dies_at, self.heard = dies_at, []

        def on_validation(self, report):
            if report.best:
                best = Checkpoint.load(report.output / BEST)
                assert (best.origin["step"], best.origin["mean_iou"]) == (report.step, report.scores["mean_iou"])
            self.heard.append((report.step, report.best))
            if report.step == self.dies_at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", callbacks=[first := Copying(dies_at=2)]).fit()
    assert trainer(tmp_path / "run", callbacks=[again := Copying()], resume=True).fit()
    assert first.heard == again.heard[:1] == [(2, True)]  # as the callback itself is the one that was saved before
    assert [step for step, _ in again.heard] == [2, 4, 6]
    for name in (VALIDATION_REPORT, VALIDATION_IMAGES, METRICS):
        assert (tmp_path / "run" / name).read_bytes() == (run[1] / name).read_bytes(), name


def test_a_device_without_float64_gets_none(run, monkeypatch):
    """Apple's: nothing of that type moves there, and what comes from there becomes it here."""
    one, sent, fetched = run[0], [], []
    to, cpu, double = torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.double

    def moved(tensor, *where, **options):
        if any(isinstance(place, torch.device) for place in where):
            sent.append(tensor.dtype)
        return to(tensor, *where, **options)

    def fetch(tensor):
        fetched.append(cpu(tensor))
        return fetched[-1]

    def doubled(tensor):
        assert any(tensor is one for one in fetched)
        return double(tensor)

    for name, watched in (("to", moved), ("cpu", fetch), ("double", doubled)):
        monkeypatch.setattr(torch.Tensor, name, watched)
    with StopSignal() as stop, progress_bars(one.console) as progress:
        assert one.task.validate(one.judged, one.engine, stop=stop, progress=progress).loss is not None
    assert sent
    assert torch.float64 not in sent


def test_a_loss_of_ones_own_is_in_eval_mode_and_trains_on(tmp_path):
    class Counting(torch.nn.Module):
        seen = ()

        def forward(self, logits, labels):
            self.seen = (*self.seen, (self.training, tuple(labels.shape)))
            return F.cross_entropy(logits, labels, ignore_index=255)

    loss = Counting()
    one = trainer(tmp_path / "run", loss=loss, train=dataclasses.replace(CONFIG.train, iterations=2, ema=0.0))
    assert one.fit()
    assert loss.training
    assert {shape for training, shape in loss.seen if not training} == {(1, 34, 45)}
    assert {shape for training, shape in loss.seen if training} == {(2, 32, 32)}


def test_a_part_that_another_machine_has_is_told(tmp_path):
    report = EvalReport.load  # never reached
    with pytest.raises(CheckpointError, match="where all machines see the same files"):
        RunFolder(tmp_path).save_validation(report, [tmp_path / ".val_images.jsonl.weights.1"])
