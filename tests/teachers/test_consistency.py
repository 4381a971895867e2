"""A step of FixMatch and UniMatch against one that is written by hand in plain torch and numpy."""

import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from support import fake_data
from support.small_models import OneConvolution
from torch import nn

from resnest_seg.config import DataConfig, EvalConfig, ModelConfig, OptimConfig, RunConfig, SemiConfig, TrainConfig
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.data.transforms import sample_seed
from resnest_seg.labels import LabelSpace
from resnest_seg.models.heads import FCNHead
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.teachers.consistency import Consistency, ConsistencyLoss, ConsistencyOutput, levels_read
from resnest_seg.teachers.unlabelled import UnlabelledPhotos, find_photos
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer

pytestmark = pytest.mark.slow


class Noise(SegmentationDataset):
    """Four pictures of noise, of which a part is not labelled."""

    label_space, split = LabelSpace.numbered(4, name="four"), "train"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        labels = random.integers(0, 4, (10, 12), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        image = (60 * labels[..., None] + random.integers(0, 70, (80, 96, 3))).astype(np.uint8)
        labels[: 3 * index] = 255
        return Sample(image, labels, f"noise {index}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five photos of other sizes, some smaller than the crop, so that they are padded."""
    root = tmp_path_factory.mktemp("photos")
    for index, size in enumerate([(40, 30), (70, 90), (64, 64), (31, 100), (90, 50)]):
        pixels = np.random.default_rng(10 + index).integers(0, 256, (*size, 3), dtype=np.uint8)
        fake_data.write(root / f"photo {index}.png", pixels)
    return find_photos(str(root), train=Noise(), validation=Noise())


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


def config_of(
    semi, *, head="fcn", family="encoding", accumulation=1, ema=0.0, frozen=False, batch=4, loss="cross_entropy"
):
    return RunConfig(
        model=ModelConfig(encoder="resnest14_tiny", head=head, family=family, output_stride=16),
        data=DataConfig(base_size=64, crop_size=64, scale_min=0.7, scale_max=1.4, workers=0),
        optim=OptimConfig(lr=0.02, reference_batch=None, freeze="bn,head_bn" if frozen else None),
        train=TrainConfig(
            epochs=None, iterations=4, batch_size=batch, accumulation=accumulation, ema=ema, log_every=1,
            trackers="none", unlabelled="photos", aux_weight=0.4, loss=loss,
        ),
        eval=EvalConfig(sheet=0),
        semi=semi,
    )  # fmt: skip


def trainer_of(config, photos, output, dataset=None):
    torch.manual_seed(0)
    dataset = dataset or Noise()
    model = config.model
    segmenter = build_segmenter(
        model.encoder, head=model.head, family=model.family, num_classes=len(dataset.label_space), output_stride=16
    )
    with torch.no_grad():  # so that it is certain of some pixels
        last = segmenter.head.conv_seg if hasattr(segmenter.head, "conv_seg") else segmenter.head.conv5[-1]
        last.weight *= 40
    task = SegmentationTask(config, dataset, dataset, photos=photos)
    return Trainer(config, segmenter=segmenter, task=task, output=output)


def gradients_of(trainer, parts):
    """Loss, gradients and figures of the first step."""
    found = []
    trainer.optimizer.step = lambda: found.extend(p.grad.clone() for p in trainer.segmenter.parameters())
    loss, _, figures = trainer._optimise(parts)
    return loss, found, figures


def first_batches(trainer, count=1):
    batches = trainer._batches()
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def hand_labels(logits, valid, size, threshold, align_corners):
    """Labels and confidences of whole images, and what is confident."""
    whole = F.interpolate(logits.detach(), size, mode="bilinear", align_corners=align_corners).softmax(dim=1)
    confidence, labels = (each.numpy() for each in whole.max(dim=1))
    return labels.copy(), confidence.copy(), valid.numpy().copy()


def hand_mixed(own, other, boxes):
    mixed = [each.copy() for each in own]
    for n, (top, left, height, width) in enumerate(boxes.tolist()):
        for each, theirs in zip(mixed, other, strict=True):
            each[n, top : top + height, left : left + width] = theirs[n, top : top + height, left : left + width]
    return mixed


def hand_loss(logits, mixed, size, threshold, align_corners):
    labels, confidence, valid = (torch.from_numpy(each) for each in mixed)
    whole = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    losses = F.cross_entropy(whole, labels, reduction="none")
    counted = (confidence >= threshold) & valid
    agreeing = (counted & (whole.argmax(dim=1) == labels)).sum()
    return (losses * counted).sum() / valid.sum(), agreeing, counted.sum()


def step_by_hand(model, batch, semi, *, aux_weight, levels, teacher=None):
    """UniMatch's and FixMatch's training step as their code writes it; returns loss, figures."""
    size, corners = batch.valid.shape[1:], model.align_corners
    labelled, count, own = len(batch.images), len(batch.weak), teacher or model

    def passed(network, images):
        return network.encoder(network.normalise(images))

    states = [module.training for module in model.modules()]
    own.eval()
    with torch.no_grad():
        partner = own.head(passed(own, batch.partner))
        given = own.head(passed(own, batch.weak)) if teacher is not None else None
    for module, training in zip(model.modules(), states, strict=True):
        module.training = training

    unimatch = semi.method == "unimatch"
    both = torch.cat([batch.images, batch.weak]) if teacher is None or unimatch else batch.images
    features = list(passed(model, both))
    decoded = features
    if unimatch:
        drop = nn.Dropout2d(semi.feature_dropout)
        decoded = [
            torch.cat([level, drop(level[labelled:])]) if number in levels else level
            for number, level in enumerate(features)
        ]
    logits, aux = model.head(decoded), model.aux_head(features)
    strong = model.head(passed(model, batch.strong))
    weak = logits[labelled : labelled + count] if given is None else given

    def mean(scores):
        whole = F.interpolate(scores[:labelled], size, mode="bilinear", align_corners=corners)
        return F.cross_entropy(whole, batch.labels.long(), ignore_index=255)

    supervised = mean(logits) + aux_weight * mean(aux)
    own_labels = hand_labels(weak, batch.valid, size, semi.threshold, corners)
    others = hand_labels(partner, batch.partner_valid, size, semi.threshold, corners)
    results = [
        hand_loss(view, hand_mixed(own_labels, others, boxes), size, semi.threshold, corners)
        for view, boxes in zip(strong.split(count), batch.boxes.split(count), strict=True)
    ]
    if unimatch:
        perturbed, *_ = hand_loss(logits[-count:], own_labels, size, semi.threshold, corners)
        unlabelled = 0.25 * results[0][0] + 0.25 * results[1][0] + 0.5 * perturbed
    else:
        unlabelled = results[0][0]
    certain = ((own_labels[1] >= semi.threshold) & own_labels[2]).sum() / own_labels[2].sum()
    agreement = sum(int(each[1]) for each in results) / sum(int(each[2]) for each in results)
    figures = {"labelled_loss": float(supervised.detach()), "unlabelled_loss": float(unlabelled.detach())}
    return (supervised + unlabelled) / 2, figures | {"certain": certain, "agreement": agreement}


CASES = [
    ("fixmatch", "fcn", "encoding", {3}, 0.0),
    ("unimatch", "fcn", "encoding", {3}, 0.0),
    ("unimatch", "deeplabv3plus", "mmseg", {0, 3}, 0.0),
    ("fixmatch", "fcn", "encoding", {3}, 0.9),
    ("unimatch", "fcn", "encoding", {3}, 0.9),
]


@pytest.mark.parametrize(("method", "head", "family", "levels", "ema"), CASES)
def test_a_step_is_that_of_plain_torch(photos, tmp_path, method, head, family, levels, ema):
    semi = SemiConfig(method=method, threshold=0.7, teacher="ema" if ema else "self", cutmix=0.8, ratio=2)
    config = config_of(semi, head=head, family=family, ema=ema, batch=2)
    one = trainer_of(config, photos, tmp_path / "run")
    (batch,) = first_batches(one)
    assert (len(batch.images), len(batch.weak), len(batch.strong)) == (2, 4, 8 if method == "unimatch" else 4)
    assert not batch.valid.all()  # there is padding
    assert (batch.boxes[:, 2] > 0).any()
    assert levels_read(one.segmenter) == levels
    if ema:  # another network than the student
        with torch.no_grad():
            for value in one.average.values.values():
                if value.is_floating_point() and value.ndim > 1:
                    value *= 1.1
    model = copy.deepcopy(one.segmenter).train()
    teacher = copy.deepcopy(one.averaged)
    torch.manual_seed(sample_seed(config.seed, 0, 0))
    expected, figures = step_by_hand(model, batch, semi, aux_weight=0.4, levels=levels, teacher=teacher)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss, found, ours = gradients_of(one, [batch])
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert ours == pytest.approx(figures, rel=1e-4)
    assert 0.05 < ours["certain"] < 0.95
    assert 0.05 < ours["agreement"] < 1
    total = torch.nn.utils.get_total_norm(gradients)
    for mine, theirs in zip(found, gradients, strict=True):  # those of shifts before batch norm are 0 but for rounding
        assert (mine - theirs).norm() <= 2e-4 * theirs.norm() + 1e-6 * total
    for (name, mine), theirs in zip(one.segmenter.named_buffers(), model.buffers(), strict=True):
        if "aux_head" not in name:
            torch.testing.assert_close(mine, theirs, msg=name)  # batch norm saw the same batches


@pytest.mark.parametrize("method", ["fixmatch", "unimatch"])
def test_accumulation_gives_the_loss_of_the_whole_batch(photos, tmp_path, method):
    """Of parts with unequally many valid pixels, with frozen batch norm and without dropout."""
    semi, results = SemiConfig(method=method, threshold=0.7, feature_dropout=0.0), []
    for parts in (1, 2):
        AcceleratorState._reset_state(reset_partial_state=True)
        one = trainer_of(config_of(semi, accumulation=parts, frozen=True), photos, tmp_path / f"run{parts}")
        for module in one.segmenter.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batches = first_batches(one, parts)
        if parts == 2:
            assert batches[0].valid.sum() != batches[1].valid.sum()
        results.append(gradients_of(one, batches))
    (loss, gradients, figures), (again, accumulated, others) = results
    assert again == pytest.approx(loss, rel=1e-5)
    assert others == pytest.approx(figures, rel=1e-5)
    for whole, parts in zip(gradients, accumulated, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


def test_pixels_of_the_padding_change_nothing(photos, tmp_path):
    semi = SemiConfig(method="fixmatch", threshold=0.5, cutmix=0.0)
    one = trainer_of(config_of(semi), photos, tmp_path / "run")
    (batch,) = first_batches(one)
    loss = one.task.consistency
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 4, 64, 64, generator=generator)
    values = []
    for noise in (0.0, 100.0):
        changed = logits + noise * ~batch.valid[:, None] * torch.randn(logits.shape, generator=generator)
        output = output_of(weak=changed, strong=changed.flip(1))
        total = loss.weight_of(batch, torch.device("cpu"))
        values.append(loss(output, batch, total=total, reported=True))
    assert float(values[0][0]) == float(values[1][0]) > 0
    assert values[0][1] == values[1][1]
    assert total.tolist() == [float(batch.valid.sum())] * 2


def output_of(**logits):
    return ConsistencyOutput(**{"logits": None, "aux_logits": None, "partner": None, "perturbed": None} | logits)


@pytest.mark.parametrize(("task", "labels"), [("binary", 1), ("multilabel", 3)])
def test_labels_of_other_tasks_are_learnt_by_their_own_entropy(photos, tmp_path, task, labels):
    """The mean binary cross-entropy of the pixels all of whose labels are certain, over all valid pixels and labels."""
    ignore = 255 if task == "binary" else 1 << 15

    def summed(logits, bits):
        counted = bits.int() != ignore
        whole = F.interpolate(logits, bits.shape[1:], mode="bilinear", align_corners=False)
        present = torch.stack([(bits.int() >> label & 1).float() for label in range(labels)], dim=1)
        losses = F.binary_cross_entropy_with_logits(whole, present, reduction="none")
        return (losses * counted[:, None]).sum()

    semi = SemiConfig(method="fixmatch", threshold=0.7)
    own = ConsistencyLoss(semi, summed, task, labels, False, 0)
    one = trainer_of(config_of(SemiConfig(method="fixmatch")), photos, tmp_path / "run")
    (batch,) = first_batches(one)
    generator = torch.Generator().manual_seed(1)
    weak, strong, partner = (3 * torch.randn(4, labels, 8, 8, generator=generator) for _ in range(3))
    total = own.weight_of(batch, torch.device("cpu"))
    loss, sums = own(output_of(weak=weak, strong=strong, partner=partner), batch, total=total, reported=True)

    def probabilities(logits):
        return torch.sigmoid(F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)).numpy()

    mine, theirs, scores = probabilities(weak), probabilities(partner), probabilities(strong).astype(np.float64)
    valid = batch.valid.numpy().copy()
    for n, (top, left, height, width) in enumerate(batch.boxes.tolist()):
        box = slice(top, top + height), slice(left, left + width)
        mine[n, :, *box] = theirs[n, :, *box]
        valid[n][box] = batch.partner_valid.numpy()[n][box]
    certain = (np.maximum(mine, 1 - mine).min(axis=1) >= 0.7) & valid
    entropy = -np.where(mine >= 0.5, np.log(scores), np.log(1 - scores)).sum(axis=1)
    assert float(loss) == pytest.approx((entropy * certain).sum() / (labels * valid.sum()), rel=1e-4)
    agreeing = ((scores >= 0.5) == (mine >= 0.5)).all(axis=1)
    assert (int(sums["agreeing"]), int(sums["compared"])) == ((agreeing & certain).sum(), certain.sum())


def test_the_weight_rises():
    def share(step, **options):
        return ConsistencyLoss(SemiConfig(**options), None, "multiclass", 3, False, 8).share(step)

    assert share(8) == share(100) == (0.5, 0.5)
    assert share(0) == (0.5, pytest.approx(0.5 * np.exp(-5)))
    assert share(4)[1] == pytest.approx(0.5 * np.exp(-5 / 4))
    assert share(9, weight=0.2) == (0.8, 0.2)
    at_once = ConsistencyLoss(SemiConfig(), None, "multiclass", 3, False, 0)
    assert at_once.share(0) == (0.5, 0.5)


def test_the_ramp_up_counts_epochs_as_the_run_does(photos, tmp_path):
    for epochs, expected in ((None, 3.0), (5, 6.0)):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = config_of(SemiConfig(ramp_up=3), batch=2)
        train = dataclasses.replace(config.train, epochs=epochs, iterations=None if epochs else 4)
        one = trainer_of(dataclasses.replace(config, train=train), photos, tmp_path / f"run{epochs}")
        assert one.task.consistency.ramp_steps == expected  # 2 steps of 2 are an epoch of 4


class InPlace(FCNHead):
    """A head that changes its features."""

    def forward(self, features):
        return super().forward([*features[:-1], features[-1].relu_()])


class Breaks(FCNHead):
    def forward(self, features):
        raise RuntimeError("broken head")


def test_levels_are_found_of_heads_that_change_features_and_modes_come_back_from_those_that_break():
    for head, said in ((InPlace(16, 3), None), (Breaks(16, 3), "broken head")):
        segmenter = Segmenter(OneConvolution(), head, num_classes=3).train()
        with contextlib.nullcontext() if said is None else pytest.raises(RuntimeError, match=said):
            assert levels_read(segmenter) == {3}
        assert all(module.training for module in segmenter.modules())


def test_the_passes_leave_the_model_as_it_was(photos):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=4, output_stride=16).train()
    segmenter.encoder.layer1.eval()  # as frozen statistics are
    before = [module.training for module in segmenter.modules()]
    module = Consistency(segmenter, SemiConfig())
    assert [module.training for module in segmenter.modules()] == before
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    output = module(images, images, torch.cat([images, images]), images, None)
    assert [module.training for module in segmenter.modules()] == before
    assert not segmenter.head._forward_pre_hooks
    assert not output.weak.requires_grad
    assert not output.partner.requires_grad
    assert output.aux_logits.shape == output.logits.shape
    assert isinstance(photos, UnlabelledPhotos)
