"""FixMatch and UniMatch: what a model must predict for strong views is what it predicts for the weak one.

FixMatch (Sohn et al., https://arxiv.org/abs/2001.07685) labels the weak view of a photo where the model is certain, and
trains a strong view on these labels. UniMatch (Yang et al., https://arxiv.org/abs/2208.09910) takes two strong views,
and the features of the weak view with half of their channels zeroed. Losses and weights are those of its code,
https://github.com/LiheYoung/UniMatch: FixMatch's loss is that of the strong view, UniMatch's 0.25 times that of each
strong view plus 0.5 times that of the perturbed features; each is a sum over certain pixels divided by all valid ones.

The passes of a step are those of that code: photos and samples together in training mode, so that batch norm sees both;
all strong views together; and before, the CutMix partners in eval mode without gradient. Only the features of photos
are decoded twice, where that code decodes those of samples twice, too, without using them.

Shapes: N labelled and U unlabelled images, V strong views, K classes, h x w feature pixels, H x W pixels of a crop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_seg.config import SemiConfig
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE
from resnest_seg.models.segmenter import PixelModel, Segmenter
from resnest_seg.teachers.pseudo_labelling import inside, predict, predict_bits, pseudo_labels
from resnest_seg.teachers.unlabelled import MixedBatch

SummedLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits [N, K, h, w] and labels [N, H, W] -> the loss, summed over labelled pixels (and, of bits, over labels)."""

WEIGHTS = {"fixmatch": (1.0,), "unimatch": (0.25, 0.25, 0.5)}
"""Method -> weights of the losses of its strong views and, in UniMatch, of the perturbed features."""


class ConsistencyOutput(NamedTuple):
    """Logits at feature size, or at full size where the model pads its images.

    Attributes:
        logits: Of the samples, [N, K, h, w].
        aux_logits: Of the auxiliary head, or None without one.
        weak: What the photos are labelled by, [U, K, h, w], without gradient.
        partner: What the partners are labelled by, likewise; None where no partner is seen.
        strong: Of the strong views, [V * U, K, h, w].
        perturbed: Of the weak views' perturbed features, [U, K, h, w]; None in FixMatch.
    """

    logits: Tensor
    aux_logits: Tensor | None
    weak: Tensor
    partner: Tensor | None
    strong: Tensor
    perturbed: Tensor | None


class Consistency(nn.Module):
    """All passes of a step, in one module, which the engine prepares.

    Args:
        segmenter: The model.
        semi: The method.
    """

    def __init__(self, segmenter: Segmenter, semi: SemiConfig) -> None:
        super().__init__()
        self.segmenter, self.semi = segmenter, semi
        self.levels = levels_read(segmenter) if semi.method == "unimatch" else frozenset()

    def forward(
        self, images: Tensor, weak: Tensor, strong: Tensor, partner: Tensor | None, teacher: PixelModel | None
    ) -> ConsistencyOutput:
        own = self.segmenter if teacher is None else teacher
        labels = None if partner is None else self._labelling(own, partner)
        count, perturbs = len(weak), self.semi.method == "unimatch"
        # A teacher needs no weak views in the student, but for their features.
        together = torch.cat([images, weak]) if teacher is None or perturbs else images
        with self._perturbed(count) if perturbs else contextlib.nullcontext():
            logits, aux_logits = self.segmenter(together, coarse=True)
        found = len(images)
        return ConsistencyOutput(
            logits[:found],
            None if aux_logits is None else aux_logits[:found],
            logits[found : found + count].detach() if teacher is None else self._labelling(teacher, weak),
            labels,
            self._without_aux(strong),
            logits[-count:] if perturbs else None,
        )

    @torch.no_grad()
    def _labelling(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of a model in eval mode, whose mode and statistics stay what they are."""
        with _in_eval_mode(model):
            logits: Tensor = model(images, coarse=True).logits
        return logits

    def _without_aux(self, images: Tensor) -> Tensor:
        """Logits in training mode, without those of the auxiliary head, which nothing would use."""
        training, self.segmenter.training = self.segmenter.training, False  # not that of the parts
        try:
            logits: Tensor = self.segmenter(images, coarse=True).logits
        finally:
            self.segmenter.training = training
        return logits

    @contextlib.contextmanager
    def _perturbed(self, count: int) -> Iterator[None]:
        """Within this, the head decodes the features of the last images once more, with zeroed channels."""

        def twice(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features = [
                torch.cat([level, F.dropout2d(level[-count:], self.semi.feature_dropout)])
                if number in self.levels
                else level
                for number, level in enumerate(inputs[0])
            ]
            return (features, *inputs[1:])

        handle = self.segmenter.head.register_forward_pre_hook(twice)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within this, a model is in eval mode; then each of its modules has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def levels_read(segmenter: Segmenter) -> frozenset[int]:
    """Return which of its encoder's features a head reads, as indices, found by a small image of zeros."""
    side = max(64, segmenter.min_size)
    side += -side % segmenter.size_divisor
    with torch.enable_grad(), _in_eval_mode(segmenter):
        like = segmenter.pixel_mean
        features = segmenter.encoder(like.new_zeros(1, like.shape[1], side, side))
        features = [level.detach().requires_grad_() for level in features]
        given = [level.clone() for level in features]  # which a head may change in place
        read = torch.autograd.grad(segmenter.head(given).float().sum(), features, allow_unused=True)
    return frozenset(number for number, gradient in enumerate(read) if gradient is not None)


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """The loss of unlabelled photos, and the figures of a step.

    Attributes:
        semi: The method.
        summed: The loss of logits and labels.
        task: One of `resnest_seg.labels.TASKS`.
        num_classes: K.
        align_corners: How logits are resized.
        ramp_steps: Steps in which the weight rises.
    """

    semi: SemiConfig
    summed: SummedLoss
    task: str
    num_classes: int
    align_corners: bool
    ramp_steps: float

    def weight_of(self, batch: MixedBatch, device: torch.device) -> Tensor:
        """Count the valid pixels of the strong views, view by view, and of the weak ones: int64 [V + 1]."""
        valid, partner, boxes = (
            each.to(device, non_blocking=True) for each in (batch.valid, batch.partner_valid, batch.boxes)
        )
        counts = [
            torch.where(inside(part, (valid.shape[1], valid.shape[2])), partner, valid).sum()
            for part in boxes.split(len(valid))
        ]
        return torch.stack([*counts, valid.sum()])

    def share(self, step: int) -> tuple[float, float]:
        """Weights of the labelled and of the unlabelled loss in a step."""
        progress = min(step / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        return 1 - self.semi.weight, self.semi.weight * math.exp(-5 * (1 - progress) ** 2)

    def __call__(
        self, output: ConsistencyOutput, batch: MixedBatch, *, total: Tensor, reported: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a micro-batch.

        Args:
            output: Its logits.
            batch: The micro-batch.
            total: `weight_of`, summed over the effective batch.
            reported: Compare the predictions of the strong views with the labels, for `figures`.

        Returns:
            The loss, divided by the effective batch's valid pixels; and the sums that `figures` takes.
        """
        device, size = output.strong.device, (batch.valid.shape[1], batch.valid.shape[2])
        valid, boxes = (each.to(device, non_blocking=True) for each in (batch.valid, batch.boxes))
        labels = self._labels(output.weak, valid)
        views = [labels] * (len(boxes) // len(valid))
        if output.partner is not None:
            others = self._labels(output.partner, batch.partner_valid.to(device, non_blocking=True))
            views = [torch.where(inside(part, size), others, labels) for part in boxes.split(len(valid))]
        strong = output.strong.split(len(valid))
        divisors = torch.where(total > 0, total, 1) * (1 if self.task == "multiclass" else self.num_classes)
        parts = list(zip(strong, views, divisors[:-1], strict=True))
        if output.perturbed is not None:
            parts.append((output.perturbed, labels, divisors[-1]))
        weighted = zip(WEIGHTS[self.semi.method], parts, strict=True)
        loss = torch.stack(
            [weight * self.summed(logits, own) / divisor.float() for weight, (logits, own, divisor) in weighted]
        ).sum()
        sums = {
            "unlabelled_loss": loss.detach(),
            "certain": self._counted(labels).sum() / torch.where(total[-1] > 0, total[-1], 1),
        }
        return loss, sums | (self._agreement(strong, views) if reported else {})

    @staticmethod
    def figures(sums: Mapping[str, float]) -> dict[str, float]:
        """Make figures of a step's sums.

        Returns:
            labelled_loss and unlabelled_loss, without their shares; certain: the share of the weak views' valid pixels
            that have a label; agreement: the share of the strong views' labelled pixels that are predicted so.
        """
        figures = {name: sums[name] for name in ("labelled_loss", "unlabelled_loss", "certain")}
        if sums.get("compared"):
            figures["agreement"] = sums["agreeing"] / sums["compared"]
        return figures

    def _labels(self, logits: Tensor, valid: Tensor) -> Tensor:
        return pseudo_labels(
            logits, valid, threshold=self.semi.threshold, align_corners=self.align_corners, task=self.task
        )

    def _counted(self, labels: Tensor) -> Tensor:
        return labels != (MULTILABEL_IGNORE if self.task == "multilabel" else IGNORE_LABEL)

    def _agreement(self, strong: Sequence[Tensor], views: Sequence[Tensor]) -> dict[str, Tensor]:
        agreeing, compared = [], []
        for logits, labels in zip(strong, views, strict=True):
            size = (labels.shape[1], labels.shape[2])
            predicted = (predict if self.task == "multiclass" else predict_bits)(
                logits, size, align_corners=self.align_corners
            )[0]
            counted = self._counted(labels)
            agreeing.append((counted & (predicted == labels)).sum())
            compared.append(counted.sum())
        return {"agreeing": torch.stack(agreeing).sum(), "compared": torch.stack(compared).sum()}
