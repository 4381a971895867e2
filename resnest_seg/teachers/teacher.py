"""Models that teach: any checkpoint, published name or exported file, asked about training crops without gradients.

A teacher answers with logits on a grid over the images, which is finer or coarser than that of the model that learns;
`Grid` says where a grid's places are on the images, so that two maps of logits are compared at the same places.

Shapes: N images of H x W pixels, K classes, h x w places of a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resnest_seg.config import DataConfig, DistillConfig
from resnest_seg.errors import CheckpointError, ConfigError, command
from resnest_seg.inference.backends import Backend, FileBackend, RunOptions, content_hash
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.inference.torch_engine import CPU_PIXELS
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import load_checkpoint
from resnest_seg.models.mask2former import semantic_logits, unpacked
from resnest_seg.models.segmenter import NEEDS_OWN_PARTS, PIXEL_MEAN, Segmenter


class Grid(NamedTuple):
    """The places of a map of logits on an image.

    Attributes:
        height: h.
        width: w.
        align_corners: The first and last places lie on the corner pixels, as in `F.interpolate`; otherwise they are the
            centres of h x w equal parts of the image.
        covers: Height and width in pixels of what they lie on: the image, or the image as it was padded below and to
            the right.
    """

    height: int
    width: int
    align_corners: bool
    covers: tuple[int, int]

    @classmethod
    def of(cls, logits: Tensor, covers: tuple[int, int], *, align_corners: bool) -> Grid:
        """The grid of logits [N, K, h, w]."""
        return cls(logits.shape[2], logits.shape[3], align_corners, covers)


def coarsest(grids: Sequence[Grid]) -> Grid:
    """The grid with the fewest places, the first of equals."""
    return min(grids, key=lambda grid: grid.height * grid.width)


def at_places(logits: Tensor, own: Grid, wanted: Grid) -> Tensor:
    """Interpolate logits [N, K, h, w] on grid `own` bilinearly at the places of another: [N, K, wanted h, wanted w].

    Logits that were enlarged by `F.interpolate` come back as they were, where the places lie on pixels.
    """
    for axis, (count, size) in enumerate(((wanted.height, wanted.covers[0]), (wanted.width, wanted.covers[1]))):
        covered, here = own.covers[axis], logits.shape[2 + axis]
        on_pixels = here == covered and count == size  # where both conventions are one
        if here == count and covered == size and (own.align_corners == wanted.align_corners or on_pixels):
            continue
        index = torch.arange(count, dtype=torch.float64)
        if wanted.align_corners:
            pixel = index * ((size - 1) / (count - 1)) if count > 1 else index + (size - 1) / 2
        else:
            pixel = (index + 0.5) * (size / count) - 0.5
        if own.align_corners:
            place = pixel * ((here - 1) / max(covered - 1, 1))
        else:
            place = (pixel + 0.5) * (here / covered) - 0.5
        place = place.clamp(0, here - 1)
        low = place.long()
        mix = (place - low).to(logits.device, logits.dtype).view(-1, *[1] * (1 - axis))
        low, high = low.to(logits.device), (low + 1).clamp(max=here - 1).to(logits.device)
        logits = torch.lerp(logits.index_select(2 + axis, low), logits.index_select(2 + axis, high), mix)
    return logits


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a teacher says about a batch of images.

    Attributes:
        grid: Where its logits lie.
        at: Gives them at the places of another grid, [N, K, h, w] float32. An exported file runs only then, a few
            images at a time: its logits have the images' size, and would fill the memory.
    """

    grid: Grid
    at: Callable[[Grid], Tensor]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that is ready to teach.

    Attributes:
        name: As `distill.teacher` names it.
        backend: What it is: classes, task, channels, bands.
        classes: K.
        ask: Images [N, C, H, W] as the model that learns takes them -> its reply.
    """

    name: str
    backend: Backend
    classes: int
    ask: Callable[[Tensor], Reply]

    @property
    def label_space(self) -> LabelSpace | None:
        """Its classes, where they are known."""
        return self.backend.label_space


def teachers_identity(config: DistillConfig) -> str:
    """The hashes of the files of a run's teachers, in their order, in words. Fetches published ones.

    Raises:
        CheckpointError, DownloadError: There is no such file, or it cannot be fetched.
    """
    files = (content_hash(name).split("+") for name in config.teacher or ())  # OpenVINO's models are two
    return ", ".join(f"sha256 {'+'.join(each[:16] for each in hashes)}" for hashes in files)


def open_teachers(config: DistillConfig, data: DataConfig, *, channels: int, task: str,
                  device: torch.device, precision: str) -> list[Teacher]:  # fmt: skip
    """Open the teachers of a run, in eval mode and without gradients, on its device.

    Args:
        config: Names them.
        data: The data of the model that learns.
        channels: Of its images.
        task: Its task.
        device: Where it is trained. An exported file whose runtime does not run there runs on the CPU.
        precision: In which it is trained, "fp32", "bf16" or "fp16".

    Raises:
        CheckpointError: One cannot be loaded.
        ConfigError: One is of another task, takes other channels or bands, gives no scores, or has no such precision.
    """
    teachers = []
    for name in config.teacher or ():
        wanted = precision if config.precision == "auto" else config.precision
        if not is_exported(name):
            teacher = _of_checkpoint(name, RunOptions(device=str(device), precision=wanted))
        elif config.precision not in ("auto", "fp32"):
            raise ConfigError(
                f"distill.teacher {name} is an exported model and runs as it was exported: leave distill.precision "
                f"{config.precision} out, or name the checkpoint that it was made of."
            )
        else:
            teacher = _of_file(name, device)
        _check_images(teacher, data, channels)
        if teacher.backend.decision.task != task:
            raise ConfigError(
                f"distill.teacher {name} is a {teacher.backend.decision.task} model, and model.task is {task}: a "
                "teacher must have the same task."
            )
        teachers.append(teacher)
    return teachers


def _check_images(teacher: Teacher, data: DataConfig, channels: int) -> None:
    """Refuse a teacher that would see something else in the images of the model that learns than in its own."""
    name, backend = teacher.name, teacher.backend
    if backend.channels != channels:
        raise ConfigError(
            f"distill.teacher {name} takes images of {backend.channels} channels, and those of this run have "
            f"{channels} (data.bands): a teacher sees the same images."
        )
    theirs = None if backend.bands is None else backend.bands.bands
    photos = data.bands is None or data.pixel_mean == PIXEL_MEAN  # which 8-bit RGB has
    if theirs is None and not photos:
        raise ConfigError(
            f"distill.teacher {name} takes photos (8-bit RGB), and the images of this run are bands {data.bands} in "
            "units of their own: a teacher sees the same images."
        )
    if theirs is not None and theirs != data.bands:
        raise ConfigError(
            f"distill.teacher {name} takes the bands {theirs}, and this run has data.bands {data.bands}: a teacher "
            "sees the same images."
        )


def _of_checkpoint(name: str, options: RunOptions) -> Teacher:
    """A teacher in torch."""
    try:
        segmenter = load_checkpoint(name).requires_grad_(False)
    except CheckpointError as error:
        if NEEDS_OWN_PARTS not in str(error):
            raise
        raise CheckpointError(
            f"distill.teacher {name} has an encoder or head of its author's own, which a checkpoint does not hold: "
            f"export it (`{command('export')} --checkpoint {name} --model FILE.py:FUNCTION`), and name the exported "
            "file."
        ) from None
    backend = TorchBackend(segmenter, options)
    kind = torch.device(backend.device).type

    @torch.no_grad()
    def ask(images: Tensor) -> Reply:
        with torch.autocast(kind, enabled=False):  # its own precision, and not that of the model that learns
            try:
                logits = backend.run([lambda image=image: image for image in images])  # type: ignore[misc]
            except CheckpointError as error:
                raise CheckpointError(f"distill.teacher {name}: {error}") from None
            if segmenter.predicts_masks:
                logits = semantic_logits(*unpacked(logits, segmenter.num_classes))
        grid = _grid_of(segmenter, logits, (images.shape[2], images.shape[3]))
        return Reply(grid, lambda wanted: at_places(logits, grid, wanted))

    return Teacher(name, backend, segmenter.num_classes, ask)


def _grid_of(segmenter: Segmenter, logits: Tensor, size: tuple[int, int]) -> Grid:
    """The grid of a model's coarse logits for images of a size; masks lie on the padded images."""
    if segmenter.predicts_masks:
        height, width = (edge + -edge % segmenter.size_divisor for edge in size)
        size = height, width
    return Grid.of(logits, size, align_corners=segmenter.align_corners)


def _of_file(name: str, device: torch.device) -> Teacher:
    """A teacher in the runtime of an exported file."""
    try:
        backend = FileBackend(name, RunOptions(device=str(device)))
    except ConfigError:
        if device.type == "cpu":
            raise
        backend = FileBackend(name, RunOptions(device="cpu"))
    backend.check_scores()

    def ask(images: Tensor) -> Reply:
        size = images.shape[2], images.shape[3]
        grid = Grid(*size, backend.network.align_corners, size)
        at_once = max(CPU_PIXELS // (size[0] * size[1]), 1)

        @torch.no_grad()
        def at(wanted: Grid) -> Tensor:
            parts = []
            for part in images.split(at_once):
                logits = backend.network.logits_fn(backend.in_units(part.cpu().numpy()))
                parts.append(at_places(torch.from_numpy(logits).to(images.device), grid, wanted))
            return torch.cat(parts)

        return Reply(grid, at)

    return Teacher(name, backend, backend.network.classes, ask)
