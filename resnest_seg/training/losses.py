"""Training losses by name: main head plus weighted auxiliary head, over labelled pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_seg.config import LABEL_LOSSES, LOSSES, TrainConfig, loss_names
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.evaluation.label_scores import unpack_labels
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE
from resnest_seg.models.heads import resize_logits
from resnest_seg.models.mask2former import MaskPrediction, SetLoss
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.training.chunked_loss import (
    lean_binary_cross_entropy,
    lean_cross_entropy,
    true_class_probabilities,
)

REGION_LOSSES = {"dice": "DiceLoss", "focal": "FocalLoss", "tversky": "TverskyLoss"}
"""Names of segmentation-models-pytorch's losses; with its defaults: full-size logits and labels -> a mean."""

FULL_SIZE_LOSSES = (*REGION_LOSSES, "lovasz")
"""Losses that hold logits of full size, and whose memory depends on the labels."""

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss of binary and multi-label tasks, segmentation-models-pytorch's default."""

_IGNORED_TARGET = -1  # of a pixel and a label, for segmentation-models-pytorch


def _region_loss(name: str, mode: str = "multiclass", ignore_index: int = IGNORE_LABEL) -> nn.Module:
    from segmentation_models_pytorch import losses  # imported here because it takes seconds and is rarely needed

    loss: nn.Module = getattr(losses, REGION_LOSSES[name])(mode, ignore_index=ignore_index)
    return loss


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász-Softmax loss of the classes that the labelled pixels show, over all pixels of a batch together.

    By M. Berman et al., "The Lovász-Softmax loss", CVPR 2018. Value and gradient are those of
    segmentation-models-pytorch's `LovaszLoss`, in a third of its time on a CPU; see `_descending`.

    Args:
        logits: float [N, K, H, W].
        labels: int64 [N, H, W], 0..K-1 or `IGNORE_LABEL`; one pixel at least is labelled.

    Returns:
        The mean over the classes, a scalar in 0..1.
    """
    probabilities, valid = logits.softmax(dim=1), labels != IGNORE_LABEL
    slopes, offsets = torch.zeros_like(probabilities), []
    with torch.no_grad():
        for index in labels[valid].unique().tolist():
            truth = labels == index
            errors = torch.where(truth, 1 - probabilities[:, index], probabilities[:, index])
            # An ignored pixel counts as certain: it comes last in the order, where an error of 0 adds nothing.
            weights = lovasz_weights((errors * valid).flatten(), truth.flatten()).view_as(errors)
            slopes[:, index] = torch.where(truth, -weights, weights) * valid
            offsets.append((weights * truth).sum())
    return ((probabilities * slopes).sum() + torch.stack(offsets).sum()) / len(offsets)


def lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over labels of the binary Lovász hinge loss, that of segmentation-models-pytorch for each label.

    Args:
        logits: float [N, K, H, W].
        targets: int8 [N, K, H, W], 0, 1 or `_IGNORED_TARGET`.
    """
    losses = []
    for scores, truth in zip(logits.unbind(1), targets.unbind(1), strict=True):
        margins = torch.where(truth == 1, 1 - scores, 1 + scores)
        errors = (F.relu(margins) * (truth != _IGNORED_TARGET)).flatten()
        losses.append(errors @ lovasz_weights(errors.detach(), (truth == 1).flatten()))
    return torch.stack(losses).mean()


def lovasz_weights(errors: Tensor, truth: Tensor) -> Tensor:
    """Return the weights [P] by which errors add up to the Lovász extension of the Jaccard loss of a class.

    Algorithm 1 of the paper: while the order of the errors stays, the extension is linear in them. Its coefficients
    are what each further pixel adds to the Jaccard loss if pixels become wrong in this order.

    Args:
        errors: float32 [P], >= 0.
        truth: bool [P]: the pixels of the class.
    """
    order = _descending(errors)
    hits = truth[order].cumsum(0)
    ranks = torch.arange(1, len(hits) + 1, device=hits.device)
    jaccard = 1 - (hits[-1] - hits).double() / (hits[-1] + ranks - hits)  # neighbours differ by a millionth
    jaccard[1:] -= jaccard[:-1].clone()
    return torch.empty_like(errors).scatter_(0, order, jaccard.to(errors.dtype))


def _descending(errors: Tensor) -> Tensor:
    """Return the indices [P] that sort errors, float32 [P] >= 0, from the largest; of equal ones the first comes first.

    On a CPU, numpy sorts integers with vector instructions, in a tenth of the time that torch takes for floats. The
    bits of floats >= 0 have the order of their values; the index stands in the 32 bits below them.
    """
    if errors.device.type != "cpu" or len(errors) >> 32:
        return errors.argsort(descending=True, stable=True)
    keys = -(errors.view(torch.int32).long() << 32) + torch.arange(len(errors))
    keys.numpy().sort()
    return keys & 0xFFFFFFFF


class _Function(nn.Module):
    """A function of logits and labels as a module, beside segmentation-models-pytorch's in a `ModuleDict`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.function(logits, targets)


def labelled_pixels(labels: Tensor, *, ignore: int = IGNORE_LABEL) -> Tensor:
    """Count the pixels of `labels` [N, H, W] that are not ignored: int64 scalar."""
    return (labels != ignore).sum()


class CoarseLogits(nn.Module):
    """Wrapper that calls a `Segmenter` with `coarse=True`; accelerate prepares it for training.

    Accelerate patches half precision into the module it is given. The wrapped segmenter is unchanged, so that
    validation computes the same as an evaluation of the saved file.
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Any:
        return self.segmenter(images, coarse=True)


class MaskPredictions(nn.Module):
    """Wrapper that calls the `masks` of a `Segmenter` whose head predicts some, as `CoarseLogits` calls the other."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> list[MaskPrediction]:
        return self.segmenter.masks(images)


class MaskLoss(nn.Module):
    """`SetLoss` of labels at the images' size, which are padded, with ignored pixels, as the model pads the images.

    The random points of an image are drawn by a seed of its own, so that they do not depend on how a batch is divided.

    Args:
        segmenter: The model.
        points: At which a mask is compared.
        ignore: Value of ignored pixels.
    """

    def __init__(self, segmenter: Segmenter, *, points: int = 12544, ignore: int = IGNORE_LABEL) -> None:
        super().__init__()
        self.loss = SetLoss(segmenter.num_classes, num_points=points, ignore=ignore)
        self.divisor = segmenter.size_divisor
        self.queries: int = segmenter.head.query_feat.num_embeddings  # type: ignore[union-attr, assignment]

    def weight_of(self, labels: Tensor) -> Tensor:
        """A batch's part of the two divisors, [2]."""
        return self.loss.weight_of(labels, queries=self.queries)

    def forward(
        self, predictions: Sequence[MaskPrediction], labels: Tensor, *, total: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """The loss of labels [N, H, W].

        Args:
            predictions: Of one head.
            labels: 0..K-1 or the value of ignored pixels.
            total: `weight_of` summed over the effective batch, [2].
            seeds: N, of each image's random points.
        """
        generators = [torch.Generator(labels.device).manual_seed(seed) for seed in seeds]
        height, width = labels.shape[1:]
        padding = (0, -width % self.divisor, 0, -height % self.divisor)
        labels = F.pad(labels, padding, value=self.loss.ignore)

        def draw(image: int, shape: Sequence[int]) -> Tensor:
            return torch.rand(*shape, device=labels.device, generator=generators[image])

        loss: Tensor = self.loss(predictions, labels, total=total, draw=draw)
        return loss


class _DividedLoss(nn.Module):
    """The sum of the losses of main logits and, times `aux_weight`, auxiliary ones, by a divisor that is given."""

    aux_weight: float

    def weight_of(self, labels: Tensor) -> Tensor:
        """Return a batch's part of the divisor."""
        raise NotImplementedError

    def _summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the losses over the batch; means are multiplied by the batch's share of the divisor."""
        raise NotImplementedError

    def forward(self, logits: Tensor, aux_logits: Tensor | None, labels: Tensor, *, pixels: Tensor) -> Tensor:
        """Compute the loss, a float32 scalar.

        Args:
            logits: [N, K, h, w], of the labels' size or smaller.
            aux_logits: [N, K, h, w] of any size, or None without an auxiliary head.
            labels: [N, H, W] uint8 or int64, 0..K-1 or `IGNORE_LABEL`; see `LabelLoss` for other tasks.
            pixels: The divisor, a scalar: `weight_of` summed over the effective batch.
        """
        total = self._summed(logits, labels)
        if aux_logits is not None:
            total = total + self.aux_weight * self._summed(aux_logits, labels)
        return total / torch.where(pixels > 0, pixels, 1)


class SegmentationLoss(_DividedLoss):
    """The sum of the named losses of the main logits, plus `aux_weight` times that of the auxiliary logits.

    Logits may have the labels' size or a smaller one (`Segmenter(images, coarse=True)`), which takes far less memory
    in cross-entropy and ohem.

    The caller passes the divisor of the loss, because with accumulation or several processes it is that of the whole
    effective batch: the sum of `weight_of(labels)` over its parts. The cross-entropies of the parts then add up to
    exactly that of the whole. The other losses are means over a part, weighted by its share of the divisor: their
    weighted mean is close, but not equal, to the loss of the whole. A batch in which all pixels are ignored has loss 0
    and gradient 0, not NaN.

    Args:
        aux_weight: Weight of the auxiliary loss (0.2 for the authors, 0.4 for mmsegmentation).
        names: Names in `LOSSES`, each once.
        align_corners: As in `F.interpolate`, for resizing logits: `Segmenter.align_corners`.
        class_weights: Class weights of cross_entropy and ohem, [K]; None for uniform weights.
        label_smoothing: Share of the target that cross_entropy and ohem spread over all classes, 0..1.
        ohem_threshold: ohem keeps pixels whose true class has less than this probability.
        ohem_min_kept: Minimum number of pixels per image that ohem keeps, the hardest.

    Raises:
        ConfigError: Unknown loss.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        aux_weight: float,
        *,
        names: Sequence[str] = ("cross_entropy",),
        align_corners: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
    ) -> None:
        super().__init__()
        for name in names:
            if name not in LOSSES:
                raise unknown_name("loss", name, LOSSES)
        self.aux_weight, self.names, self.align_corners = aux_weight, tuple(names), align_corners
        self.label_smoothing, self.ohem_threshold, self.ohem_min_kept = label_smoothing, ohem_threshold, ohem_min_kept
        self.register_buffer("class_weights", class_weights)
        self.region = nn.ModuleDict({name: _region_loss(name) for name in names if name in REGION_LOSSES})
        if "lovasz" in names:
            self.region["lovasz"] = _Function(lovasz_softmax)

    @classmethod
    def from_config(
        cls, train: TrainConfig, *, align_corners: bool, class_weights: Tensor | None = None
    ) -> SegmentationLoss:
        """Build the loss of a config; `resnest_seg.data.balance` computes the class weights that it names.

        Raises:
            ConfigError: The config names class weights and none are given, or the converse.
        """
        if (class_weights is None) != (train.class_weights == "none"):
            given = "none were given" if class_weights is None else "weights were given"
            raise ConfigError(
                f"train.class_weights is {train.class_weights}, and {given}: see resnest_seg.data.balance."
            )
        return cls(
            train.aux_weight,
            names=loss_names(train.loss),
            align_corners=align_corners,
            class_weights=class_weights,
            label_smoothing=train.label_smoothing,
            ohem_threshold=train.ohem_threshold,
            ohem_min_kept=train.ohem_min_kept,
        )

    def weight_of(self, labels: Tensor) -> Tensor:
        """Return a batch's part of the divisor: its labelled pixels, or with class weights the sum of their weights."""
        if self.class_weights is None:
            return labelled_pixels(labels)
        weights = self.class_weights.to(labels.device)
        return F.pad(weights, (0, IGNORE_LABEL + 1 - len(weights)))[labels.long()].sum()

    def _summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the losses over the batch; means are multiplied by the batch's share of the divisor."""
        parts = []
        if "cross_entropy" in self.names:
            parts.append(self._cross_entropy(logits, labels))
        if "ohem" in self.names:
            hard = self._hard_labels(logits, labels)
            kept = self.weight_of(hard)
            mean = self._cross_entropy(logits, hard) / torch.where(kept > 0, kept, 1)
            parts.append(mean * self.weight_of(labels))
        if self.region:
            parts.append(self._region(logits, labels) * self.weight_of(labels))
        return torch.stack(parts).sum()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return lean_cross_entropy(
            logits,
            labels,
            align_corners=self.align_corners,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )

    def _hard_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the labels with easy pixels ignored.

        As in HRNet's OhemCrossEntropy (https://github.com/HRNet/HRNet-Semantic-Segmentation) and mmsegmentation's
        OHEMPixelSampler, pixels below the threshold are kept, which is raised until enough pixels of the batch are.
        """
        with torch.no_grad():
            sure = true_class_probabilities(logits, labels, align_corners=self.align_corners)
            sure = sure.masked_fill(labels == IGNORE_LABEL, 2.0)  # above any probability
            hard = sure < self.ohem_threshold
            enough = min(self.ohem_min_kept * len(labels), sure.numel())
            if enough:
                hard |= sure <= sure.flatten().kthvalue(enough).values
            return labels.masked_fill(~hard, IGNORE_LABEL)

    def _region(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum segmentation-models-pytorch's losses, a scalar; 0 without labels, which they do not handle."""
        if not bool((labels != IGNORE_LABEL).any()):
            return logits.float().sum() * 0.0
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_size(logits, labels, align_corners=self.align_corners)
            return torch.stack([loss(logits, labels.long()) for loss in self.region.values()]).sum()


def _full_size(logits: Tensor, labels: Tensor, *, align_corners: bool) -> Tensor:
    """Resize logits [N, K, h, w] to the size of labels [N, H, W], in float32."""
    logits = logits.float()
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    size = (labels.shape[1], labels.shape[2])
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


class LabelLoss(_DividedLoss):
    """The losses of binary and multi-label tasks, in the place of `SegmentationLoss`.

    cross_entropy (the binary one of every label) and focal are means over labelled pixels and labels, and never hold
    full-size logits; their parts add up exactly, as cross-entropy's do. dice, tversky and lovasz (`lovasz_hinge`) are
    those of segmentation-models-pytorch for each label, over all pixels of a batch, averaged over labels; lovasz is its
    binary form for each, because its multi-label form pools the labels. Labels without a pixel in the batch add 0 to
    dice and tversky; lovasz then punishes the highest score.

    Labels are [N, H, W] of any integer type: 0, 1 or `IGNORE_LABEL` for a binary task; for a multi-label one the bits
    of the labels, or `MULTILABEL_IGNORE`.

    Args:
        task: binary, with one logit, or multilabel.
        num_labels: K; 1 for a binary task.
        aux_weight: Weight of the auxiliary loss.
        names: Names in `LABEL_LOSSES`, each once.
        align_corners: As in `F.interpolate`, for resizing logits: `Segmenter.align_corners`.
        class_weights: Weights of the labels in cross_entropy and focal, [K]; None for uniform weights.
        pos_weight: Weights of the pixels that have a label in cross_entropy and focal, [K]; None for 1.

    Raises:
        ConfigError: Unknown task or loss, or weights of another number.
    """

    class_weights: Tensor | None
    pos_weight: Tensor | None

    @classmethod
    def from_config(
        cls, train: TrainConfig, task: str, *, num_labels: int, align_corners: bool, pos_weight: Tensor | None = None
    ) -> LabelLoss:
        """Build the loss of a config; `resnest_seg.data.balance` computes the balanced weights that it may name.

        Raises:
            ConfigError: The config names balanced weights and none are given, or the converse.
        """
        if (pos_weight is None) != (train.class_weights == "none"):
            given = "none were given" if pos_weight is None else "weights were given"
            raise ConfigError(
                f"train.class_weights is {train.class_weights}, and {given}: see resnest_seg.data.balance."
            )
        if train.pos_weight != 1:
            pos_weight = train.pos_weight * (torch.ones(num_labels) if pos_weight is None else pos_weight)
        return cls(
            task,
            num_labels=num_labels,
            aux_weight=train.aux_weight,
            names=loss_names(train.loss),
            align_corners=align_corners,
            pos_weight=pos_weight,
        )

    def __init__(
        self,
        task: str,
        *,
        num_labels: int,
        aux_weight: float,
        names: Sequence[str] = ("cross_entropy",),
        align_corners: bool = False,
        class_weights: Tensor | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        if task not in _IGNORED:
            raise unknown_name("task", task, _IGNORED)
        for name in names:
            if name not in LABEL_LOSSES:
                raise unknown_name(f"loss of a {task} task", name, LABEL_LOSSES)
        for key, weights in (("class weights", class_weights), ("pos_weight", pos_weight)):
            if weights is not None and weights.shape != (num_labels,):
                raise ConfigError(f"there are {num_labels} labels, but {key} of shape {list(weights.shape)}.")
        self.num_labels, self.ignore_label = num_labels, _IGNORED[task]
        self.aux_weight, self.names, self.align_corners = aux_weight, tuple(names), align_corners
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("pos_weight", pos_weight)
        self.region = nn.ModuleDict()
        for name in names:
            if name == "lovasz":
                self.region[name] = _Function(lovasz_hinge)
            elif name in ("dice", "tversky"):
                self.region[name] = _region_loss(name, "multilabel", _IGNORED_TARGET)

    def weight_of(self, labels: Tensor) -> Tensor:
        """Return a batch's part of the divisor: its labelled pixels times K, or times the sum of the class weights."""
        pixels = (labels.int() != self.ignore_label).sum()
        return pixels * (self.num_labels if self.class_weights is None else self.class_weights.to(labels.device).sum())

    def _summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        gammas = {"cross_entropy": 0.0, "focal": FOCAL_GAMMA}
        parts = [self._pixelwise(logits, labels, gammas[name]) for name in self.names if name in gammas]
        if self.region:
            parts.append(self._region(logits, labels) * self.weight_of(labels))
        return torch.stack(parts).sum()

    def _pixelwise(self, logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
        return lean_binary_cross_entropy(
            logits,
            labels,
            ignore_label=self.ignore_label,
            align_corners=self.align_corners,
            pos_weight=self.pos_weight,
            class_weights=self.class_weights,
            gamma=gamma,
        )

    def _region(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the losses of regions, a scalar; segmentation-models-pytorch's are 0 without labels."""
        present, valid = unpack_labels(labels, self.num_labels, ignore_label=self.ignore_label)
        targets = present.to(torch.int8).masked_fill_(~valid[:, None], _IGNORED_TARGET)
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_size(logits, labels, align_corners=self.align_corners)
            return torch.stack([loss(logits, targets) for loss in self.region.values()]).sum()


_IGNORED = {"binary": IGNORE_LABEL, "multilabel": MULTILABEL_IGNORE}
"""Task -> the value of ignored pixels."""


Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss of the user's own: float logits [N, K, H, W] and labels [N, H, W], int64 0..K-1 or `IGNORE_LABEL` (of a
multi-label task, bits or `MULTILABEL_IGNORE`) -> the mean over the labelled pixels, a scalar."""


class OwnLoss(nn.Module):
    """A loss of the user's own in the place of `SegmentationLoss`.

    It gets logits of full size, and is weighted by a part's share of the labelled pixels, so that the losses of the
    parts of a batch add up to that of the whole, if it is a mean over labelled pixels. Where no pixel is labelled, it
    is not called, and the loss is 0.

    Args:
        loss: See `Loss`; a module is moved with this one.
        aux_weight: Weight of the auxiliary logits' loss.
        align_corners: As in `F.interpolate`, for resizing logits.
        ignore: Value of ignored pixels, `LabelSpace.ignore_value`.
    """

    def __init__(self, loss: Loss, *, aux_weight: float, align_corners: bool, ignore: int = IGNORE_LABEL) -> None:
        super().__init__()
        self.loss, self.aux_weight, self.align_corners, self.ignore = loss, aux_weight, align_corners, ignore

    def weight_of(self, labels: Tensor) -> Tensor:
        """Labelled pixels of `labels` [N, H, W]."""
        return labelled_pixels(labels, ignore=self.ignore)

    def forward(self, logits: Tensor, aux_logits: Tensor | None, labels: Tensor, *, pixels: Tensor) -> Tensor:
        here = self.weight_of(labels)
        parts = [(logits, 1.0), *([] if aux_logits is None else [(aux_logits, self.aux_weight)])]
        total = torch.stack([part.float().sum() for part, _ in parts]).sum() * 0
        if not int(here):
            return total
        targets = labels.long()
        for part, weight in parts:
            size = (labels.shape[1], labels.shape[2])
            value = self.loss(resize_logits(part.float(), size, align_corners=self.align_corners), targets)
            if not isinstance(value, Tensor) or value.dim():
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"the loss must return a scalar tensor, the mean over labelled pixels, not {shape}.")
            total = total + weight * value * (here / pixels.clamp(min=1))
        return total


HELD = 1 << 26
"""Scores of an image that `ScoredLoss` holds at a time: 256 MiB."""


class ScoredLoss:
    """Mean of a loss over the labelled pixels of images, from the scores that an evaluation makes of them.

    It is that of the main logits, without the auxiliary head's, over whole images. Larger ones than `HELD` scores are
    taken by bands of rows: the same for cross-entropy, and for the other losses a mean over the bands. Where a protocol
    averages probabilities, logits are their logarithms.

    Args:
        criterion: The loss, on the device of the scores.

    Attributes:
        sums: float64 [2]: the sum of the losses times weights, and of the weights; to be summed over processes.
    """

    def __init__(self, criterion: OwnLoss | SegmentationLoss | LabelLoss) -> None:
        self.criterion, self.sums = criterion, torch.zeros(2, dtype=torch.float64)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, scores: Tensor, labels: Tensor, merge: str) -> None:
        """Add rows of an image, from the top down.

        Args:
            scores: [K, r, W] of a protocol.
            labels: [r, W].
            merge: How the protocol merges: "logits", "softmax", "exp" or "sigmoid".
        """
        self._logits.append(_as_logits(scores, merge))
        self._labels.append(labels)
        band = max(HELD // scores[:, 0].numel(), 1)
        while sum(len(rows) for rows in self._labels) >= band:
            self._take(band)

    def end_image(self) -> None:
        """Count what is left of an image."""
        if self._labels:
            self._take(sum(len(rows) for rows in self._labels))

    def mean(self) -> float | None:
        """The mean of everything so far; None without labelled pixels, or if it is not finite."""
        total, weight = self.sums.tolist()
        return total / weight if weight > 0 and math.isfinite(total) else None

    def _take(self, rows: int) -> None:
        logits, labels = torch.cat(self._logits, dim=1), torch.cat(self._labels)
        self._logits, self._labels = [logits[:, rows:]], [labels[rows:]]
        if rows == len(labels):
            self._logits, self._labels = [], []
        labels = labels[None, :rows]
        weight = self.criterion.weight_of(labels)
        loss = self.criterion(logits[None, :, :rows], None, labels, pixels=torch.ones_like(weight))
        self.sums += torch.stack([loss.float(), weight.to(loss.device).float()]).cpu().double()


def _as_logits(scores: Tensor, merge: str) -> Tensor:
    """Logits, up to a number that is the same for all classes of a pixel, of scores of a protocol."""
    scores = scores.float()
    if merge == "logits":
        return scores
    if merge == "sigmoid":
        return torch.logit(scores, eps=torch.finfo(torch.float32).eps)
    return scores.clamp(min=torch.finfo(torch.float32).tiny).log()
