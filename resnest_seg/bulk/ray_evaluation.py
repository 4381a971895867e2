"""Evaluation by actors of Ray: each counts shares of the images, and the counts add up to those of one process.

What is counted are whole numbers (`resnest_seg.evaluation.evaluator.Counting`). A share comes back as a whole or not at
all, so that one whose actor was killed is counted again, and once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.bulk.job import from_the_root
from resnest_seg.bulk.ray_engine import Actors, actors_for, ray_session, results_of
from resnest_seg.files import remove_leftovers
from resnest_seg.inference.backends import RunOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.evaluation.evaluator import Counting, EvaluatedImage, Measures

SHARE = 32
"""Maximum images of a share, which are counted again if its actor is killed."""

SHARES_EACH = 8
"""Shares that every actor gets at least, if there are so many images."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an actor needs to know, as plain values.

    Attributes:
        checkpoint: What is evaluated; several are the members of an ensemble.
        model: FILE.py:FUNCTION of a network of the user's own.
        run: How it is run.
        protocols: Names of the protocols.
        measures: What is measured besides.
        memory: Bytes that scores may take.
        by_image: Score every image by itself, too.
        workers: Loader processes of an actor that has a GPU; without one, an actor loads itself.
        predictions: Name of a sample -> file for its prediction by the first protocol; empty for none.
        ids: Ids in these, see `resnest_seg.io.visualize.write_labels`.
        named: What the scores by image say was evaluated.
    """

    checkpoint: str | tuple[str, ...]
    model: str | None
    run: RunOptions
    protocols: tuple[str, ...]
    measures: Measures
    memory: int
    by_image: bool
    workers: int = 0
    predictions: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    ids: str = "raw"
    named: str = ""


@dataclasses.dataclass(frozen=True)
class Share:
    """What was counted of some images.

    Attributes:
        first: The index of the first.
        images: How many they are.
        state: That of `Counting`, as arrays.
        lines: The file of the scores by image; empty without.
        problem: Why their predictions were not written, or None.
    """

    first: int
    images: int
    state: list[NDArray[Any]]
    lines: bytes
    problem: OSError | None


class Evaluator:
    """Counts shares of a data set; the work of an actor.

    Args:
        evaluation: What is done.
        dataset: The data set.
    """

    def __init__(self, evaluation: Evaluation, dataset: SegmentationDataset) -> None:
        from resnest_seg.inference.own_network import own_network
        from resnest_seg.inference.predictor import open_backend

        self.evaluation, self.dataset = evaluation, dataset
        self.backend = open_backend(evaluation.checkpoint, evaluation.run, into=own_network(evaluation.model))

    def __call__(self, indices: Sequence[int]) -> Share:
        """Count some images, in ascending order of their indices."""
        from resnest_seg.evaluation.evaluator import Counting
        from resnest_seg.evaluation.image_scores import ImageScoresWriter

        how = self.evaluation
        counting = Counting(
            self.backend,
            self.dataset,
            protocols=how.protocols,
            measures=how.measures,
            memory=how.memory,
            by_image=how.by_image,
        )
        saved = _Saved(how, self.dataset, indices)
        lines = b""
        if how.by_image:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "images.jsonl")
                with ImageScoresWriter(path) as writer:
                    counting.count(
                        indices, workers=how.workers, on_image=saved.add, images=writer, checkpoint=how.named
                    )
                lines = path.read_bytes()
        else:
            counting.count(indices, workers=how.workers, on_image=saved.add)
        return Share(indices[0], len(indices), [part.cpu().numpy() for part in counting.state], lines, saved.problem)


class _Saved:
    """Writes the predictions of a share, until there is a problem."""

    def __init__(self, how: Evaluation, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        self.how, self.dataset, self.indices = how, dataset, iter(indices)
        self.problem: OSError | None = None

    def add(self, image: EvaluatedImage) -> None:
        """Write the prediction of the next image."""
        from resnest_seg.data.tiles import scored_part
        from resnest_seg.io.visualize import write_labels

        index = next(self.indices)
        if not self.how.predictions or self.problem is not None:
            return
        path, part = self.how.predictions[self.dataset.sample_name(index)], scored_part(self.dataset, index)
        try:
            write_labels(path, image.predictions[part], self.dataset.label_space, ids=self.how.ids)
        except OSError as error:
            self.problem = error


class _Parts:
    """Files of scores by image with ascending indices each, for `merge_image_scores`.

    A share is appended to a file that ends before it begins: shares come almost in order, so that there are about as
    many files as actors.

    Args:
        path: Names the files: number -> file.
    """

    def __init__(self, path: Callable[[int], Path]) -> None:
        self.path = path
        self.last: list[int] = []

    def add(self, share: Share) -> None:
        """Append the lines of a share."""
        number = next((n for n, last in enumerate(self.last) if last < share.first), len(self.last))
        new = number == len(self.last)
        with open(self.path(number), "wb" if new else "ab") as file:
            file.write(share.lines if new else share.lines.partition(b"\n")[2])
        last = share.first + share.images - 1
        self.last = [*self.last, last] if new else [last if n == number else old for n, old in enumerate(self.last)]

    def remove(self) -> None:
        """Remove the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.path(number) for number in range(len(self.last))]


def evaluate_on_ray(
    evaluation: Evaluation,
    counting: Counting,
    *,
    count: int,
    cpus: int | None,
    part: Callable[[int], Path],
    on_share: Callable[[int], None] = lambda images: None,
) -> tuple[list[Path], OSError | None]:
    """Have the first images of a data set counted by actors.

    Args:
        evaluation: What an actor does; device, threads and workers are decided here.
        counting: What the counts are added to. Its model calculates nothing.
        count: Images, from the first of the data set; 1 or more.
        cpus: Cores of an actor; None for the default of `actors_for`.
        part: Names the files of the scores by image: number -> file.
        on_share: Is told of every share how many images it has.

    Returns:
        The files, which the caller removes; and why predictions were not written, or None.

    Raises:
        DatasetError: A sample cannot be read.
        CheckpointError: The model cannot be loaded.
        ConfigError: See `actors_for` and `ray_session`.
        OSError: The files cannot be written.
        ResNeStSegError: See `results_of`.
    """
    import torch

    parts, problem = _Parts(part), None
    with contextlib.ExitStack() as failed, contextlib.ExitStack() as ended, ray_session() as ray:
        failed.callback(parts.remove)
        ended.callback(_tidy, evaluation.predictions.values())
        actors = actors_for(ray, evaluation.run.device, cpus)
        size = min(max(count // (actors.count * SHARES_EACH), 1), SHARE)
        shares = [range(first, min(first + size, count)) for first in range(0, count, size)]
        results = results_of(ray, Evaluator, (_for(evaluation, actors), counting.dataset), shares, actors)
        with contextlib.closing(results) as found:  # before Ray ends, which it would start again for the closing
            for share in found:
                counted = [torch.from_numpy(values) for values in share.state]
                counting.state = [total + more for total, more in zip(counting.state, counted, strict=True)]
                if evaluation.by_image:
                    parts.add(share)
                problem = problem or share.problem
                on_share(share.images)
        failed.pop_all()
    return parts.paths, problem


def _tidy(predictions: Iterable[Path]) -> None:
    """Remove what actors that were killed while they wrote a prediction left beside it."""
    names: dict[Path, set[str]] = {}
    for path in predictions:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, mine in names.items():
        remove_leftovers(folder, mine)


def _for(evaluation: Evaluation, actors: Actors) -> Evaluation:
    """The evaluation as these actors do it, with paths from the root."""
    device = evaluation.run.device if actors.gpus else "cpu"
    return dataclasses.replace(
        evaluation,
        checkpoint=from_the_root(evaluation.checkpoint),
        model=None if evaluation.model is None else str(Path(evaluation.model).absolute()),
        run=dataclasses.replace(evaluation.run, device=device, threads=actors.cpus),
        workers=evaluation.workers if actors.gpus else 0,
        predictions={name: Path(os.path.abspath(path)) for name, path in evaluation.predictions.items()},  # noqa: PTH100
    )
