"""Losses by which a model learns from others: KL of the classes of each pixel, CWD of the pixels of each class.

KL (Hinton et al., https://arxiv.org/abs/1503.02531; here as CIRKD computes it): with softmax over the classes at
temperature T, the mean over pixels of T^2 KL(teacher || model). CWD (Shu et al., https://arxiv.org/abs/2011.13256):
with softmax over the pixels of each channel, the mean over channels of the same. Both compare logits before they are
enlarged to the images' size, and both count every pixel, as their authors do: also ignored ones and padding, where
the teacher has an answer, too.

Both are means of an image. Their sum over the images, divided by the images of the effective batch, is the same however
the batch is divided over micro-batches and processes.

Shapes: N images, K classes, h x w places, P = h * w.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnest_seg.config import DistillConfig
from resnest_seg.errors import ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.teachers.teacher import Grid, Reply, Teacher, at_places, coarsest

TEMPERATURES = {"kl": 1.0, "cwd": 4.0}
"""Loss -> its published temperature."""

CHUNK = 2**22
"""Elements that are compared at a time, of each teacher and of the model: 16 MiB each."""


class SharedClasses(NamedTuple):
    """The classes that a model and all of its teachers have.

    Attributes:
        own: Their logits in the model, in its order.
        theirs: The same classes' logits in each teacher.
        unknown: Classes of the model that some teacher lacks.
    """

    own: list[int]
    theirs: list[list[int]]
    unknown: list[str]


def shared_classes(space: LabelSpace, teachers: Sequence[Teacher]) -> SharedClasses:
    """Match classes by their names; those of a teacher that does not know the names are matched by their order.

    Args:
        space: The classes of the model.
        teachers: Their classes may be more, fewer, or in another order.

    Raises:
        ConfigError: Too few classes are shared to compare, or a teacher has neither names nor as many classes.
    """
    names = space.score_names
    known: list[tuple[str, ...]] = []
    for teacher in teachers:
        if teacher.label_space is None and teacher.classes != len(names):
            raise ConfigError(
                f"distill.teacher {teacher.name} does not say which classes its {teacher.classes} logits are, and the "
                f"data has {len(names)} ({', '.join(names[:4])} ...): a teacher without names needs the same classes."
            )
        known.append(names if teacher.label_space is None else teacher.label_space.score_names)
    own = [place for place, name in enumerate(names) if all(name in others for others in known)]
    if len(own) < (2 if space.task == "multiclass" else 1):
        theirs = "; ".join(f"{teacher.name}: {', '.join(others[:8])}{' ...' * (len(others) > 8)}"
                           for teacher, others in zip(teachers, known, strict=True))  # fmt: skip
        found = "no class" if not own else f"only the class {names[own[0]]}"
        raise ConfigError(
            f"distill.teacher and the data share {found}, by name. The data has {', '.join(names[:8])}"
            f"{' ...' * (len(names) > 8)}; {theirs}. Name the classes alike (data.classes), or take another teacher."
        )
    theirs_of = [[others.index(names[place]) for place in own] for others in known]
    return SharedClasses(own, theirs_of, [name for place, name in enumerate(names) if place not in own])


class Distillation:
    """The teachers of a run, and the losses of what they say.

    Classes that a teacher lacks are left out: the others are compared among themselves, in teacher and model, by a
    softmax over them alone. So are classes that the model lacks. Of several teachers, the distributions are averaged.

    Args:
        config: Losses, weights and temperature.
        teachers: The models that teach.
        space: The classes of the model.
        align_corners: How the model's logits are enlarged to the images' size.

    Raises:
        ConfigError: See `shared_classes`.
    """

    def __init__(
        self, config: DistillConfig, teachers: Sequence[Teacher], space: LabelSpace, *, align_corners: bool
    ) -> None:
        self.teachers, self.sigmoid, self.align_corners = list(teachers), space.task != "multiclass", align_corners
        self.shared, self.classes = shared_classes(space, teachers), len(space.score_names)
        chosen = {"kl": config.kl_weight, "cwd": config.cwd_weight}
        self.weights = {name: weight for name, weight in chosen.items() if config.method in (name, "both") and weight}
        self.temperatures = {name: config.temperature or TEMPERATURES[name] for name in self.weights}

    def tell(self) -> None:
        """Print who teaches, and warn of classes that are not taught; in the main process."""
        if os.environ.get("RANK", "0") != "0":
            return
        what = " and ".join(f"{self.weights[name]:g} x {name} at temperature {self.temperatures[name]:g}"
                            for name in self.weights)  # fmt: skip
        for teacher in self.teachers:
            taught = f"{len(self.shared.own)} of {self.classes} classes"
            print(f"taught by {teacher.name} ({teacher.backend.description}): {taught}, {what}")
            if teacher.label_space is None:
                print(f"warning: {teacher.name} does not name its classes: they are taken to be those of the data, in "
                      "the same order.", file=sys.stderr)  # fmt: skip
        missing = self.shared.unknown
        if missing:
            print(
                f"warning: the teachers do not know {', '.join(missing[:8])}{' ...' * (len(missing) > 8)}, which "
                f"{'is' if len(missing) == 1 else 'are'} learned from labels alone: the other classes are compared "
                "among themselves.",
                file=sys.stderr,
            )

    def ask(self, images: Tensor) -> Lesson:
        """Let the teachers look at images [N, C, H, W], before the model that learns does: memory is free then."""
        return Lesson(self, [teacher.ask(images) for teacher in self.teachers], (images.shape[2], images.shape[3]))


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the teachers say about some images.

    Attributes:
        of: Whose losses are computed.
        replies: Of each teacher.
        size: (H, W) of the images.
    """

    of: Distillation
    replies: Sequence[Reply]
    size: tuple[int, int]

    def losses(self, logits: Tensor, *, images: int) -> dict[str, Tensor]:
        """Name -> loss, float32 scalars with their weights; their sum is what is learned by.

        Args:
            logits: Of the model for the same images, [N, K, h, w], as it gives them before they are enlarged.
            images: The divisor: images of the effective batch.
        """
        taught = self.of
        own = Grid.of(logits, self.size, align_corners=taught.align_corners)
        places = coarsest([own, *(reply.grid for reply in self.replies)])
        if places != own:
            logits = at_places(logits.float(), own, places)
        if len(taught.shared.own) < taught.classes:
            logits = logits[:, taught.shared.own]
        said = []
        for reply, classes in zip(self.replies, taught.shared.theirs, strict=True):
            scores = reply.at(places)
            said.append(scores if classes == list(range(scores.shape[1])) else scores[:, classes])
        found = {}
        for name, weight in taught.weights.items():
            form = "pixels" if name == "cwd" else "labels" if taught.sigmoid else "classes"
            found[f"{name}_loss"] = (
                weight * divergence(logits, said, over=form, temperature=taught.temperatures[name]) / images
            )
        return found


def divergence(logits: Tensor, teachers: Sequence[Tensor], *, over: str, temperature: float) -> Tensor:
    """Sum over images of the mean Kullback-Leibler divergence of a model from its teachers: a float32 scalar.

    With p the distribution of the model and q the mean of the teachers', each of logits / temperature, a distribution
    adds temperature^2 sum q (log q - log p). There is a gradient by `logits` alone, and no second one. It is computed
    with the loss, `CHUNK` elements at a time, so that of the logits' size only the gradient is held.

    Args:
        logits: Of the model, [N, K, h, w], any float type.
        teachers: Logits of the same shape.
        over: What a distribution is over: "classes" (softmax over K, mean over pixels), "pixels" (softmax over the
            pixels of a channel, mean over channels), or "labels" (sigmoid, label present or absent, mean over both).
        temperature: T.
    """
    total: Tensor = _Divergence.apply(logits, over, temperature, *teachers)  # type: ignore[no-untyped-call]
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, over: str, temperature: float, *teachers: Tensor) -> Tensor:
        images, classes, height, width = logits.shape
        dtype, pixels = torch.promote_types(logits.dtype, torch.float32), height * width
        needed = ctx.needs_input_grad[0]
        gradient = logits.new_empty((images, pixels, classes) if needed else 0, dtype=dtype)  # in channels-last memory
        # Of [K, P], distributions are the columns, and a chunk is some of these; or the rows, likewise.
        axis, length, step = (1, classes, CHUNK // pixels) if over == "pixels" else (0, pixels, CHUNK // classes)
        divisor = {"classes": pixels, "pixels": classes, "labels": pixels * classes}[over]
        compare = _of_labels if over == "labels" else _of_distributions
        sums = []
        with torch.autocast(logits.device.type, enabled=False):
            for n in range(images):
                for start in range(0, length, max(step, 1)):
                    size = min(max(step, 1), length - start)
                    own, *theirs = (
                        each[n].flatten(1).narrow(1 - axis, start, size).to(dtype) / temperature
                        for each in (logits, *teachers)
                    )
                    value, slope = compare(own, theirs, axis)
                    sums.append(value)
                    if needed:
                        part = gradient[n].T.narrow(1 - axis, start, size)
                        torch.mul(slope, temperature / divisor, out=part)
            total = torch.stack(sums).sum() * (temperature**2 / divisor)
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.shape, ctx.teachers = logits.dtype, (images, height, width, classes), len(teachers)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = (gradient * of_total).to(ctx.dtype).view(ctx.shape).permute(0, 3, 1, 2)
        return scaled, None, None, *[None] * ctx.teachers


def _of_distributions(own: Tensor, theirs: Sequence[Tensor], axis: int) -> tuple[Tensor, Tensor]:
    """Sum the divergences of distributions along an axis of logits; and the gradient, p - q."""
    log_p, log_q = own.log_softmax(axis), _mean([each.log_softmax(axis) for each in theirs])
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(), log_p.exp_().sub_(q)


def _of_labels(own: Tensor, theirs: Sequence[Tensor], axis: int) -> tuple[Tensor, Tensor]:
    """Likewise for labels that are each present or absent; `axis` is without meaning."""
    total = own.new_zeros(())
    for sign in (-1, 1):
        log_p, log_q = F.logsigmoid(sign * own), _mean([F.logsigmoid(sign * each) for each in theirs])
        q = log_q.exp()
        total = total + (q * (log_q - log_p)).sum()
    return total, log_p.exp_().sub_(q)


def _mean(logarithms: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of probabilities that are given by their logarithms."""
    if len(logarithms) == 1:
        return logarithms[0]
    return torch.stack([*logarithms]).logsumexp(0) - math.log(len(logarithms))
