"""Several models as one: the mean of their probabilities, in bounded memory. Imports no torch by itself.

Each member follows the protocol by itself, with its own normalisation, stride and size, and gives the rows of its
scores in its own portions; the rows that all of them have given are merged and handed on. So what waits are the rows in
which one member is ahead of another, and no member's scores of a whole image are kept.

Sums are made in float64: the mean of equal members has their labels to the bit, and the order of others hardly matters.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import CheckpointError, ConfigError, DatasetError, printable
from resnest_seg.inference.backends import Backend, Block, Decision, FileBackend, Image
from resnest_seg.inference.protocols import Protocol
from resnest_seg.labels import LabelSpace

FOLDS = "folds.json"
"""Name of the file that says how a split was divided, in the folder of the folds' runs."""


def read_fold_record(path: Path) -> dict[str, Any]:
    """Read the file that `resnest_seg.combining.folds.fit_folds` writes: how a data set was divided.

    Raises:
        DatasetError: It is no such file.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from None
    kinds = {"format": str, "samples": str, "folds": int, "group_by": str | None}
    fits = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    if not fits or record["format"] != "resnest_seg folds":
        raise DatasetError(f"{path} does not say how a data set was divided: it is no file of fit_folds.")
    return record


def checkpoints_of(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """The checkpoints that are meant: the folder of `fit_folds` stands for the run folders of all its folds.

    Raises:
        ConfigError: There is none, or one is named twice.
        CheckpointError: A fold has not been trained.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[str] = []
    for path in given:
        found += _folds_in(Path(path)) or [str(path)]
    if not found:
        raise ConfigError("no checkpoint is given: name one, or several for the mean of their probabilities.")
    places = [str(Path(path).resolve()) for path in found]
    twins = [path for index, path in enumerate(found) if places[index] in places[:index]]
    if twins:
        raise ConfigError(f"checkpoint {printable(twins[0])} is named twice: each member of an ensemble counts once.")
    return found


def _folds_in(folder: Path) -> list[str]:
    """The run folders of a folder of folds; none of any other path."""
    if not (folder / FOLDS).is_file() or folder.joinpath("best.safetensors").is_file():
        return []
    runs = [folder / f"fold_{fold}" for fold in range(read_fold_record(folder / FOLDS)["folds"])]
    for run in runs:
        if not run.joinpath("best.safetensors").is_file():
            raise CheckpointError(
                f"{run} has no best.safetensors: its fold was not trained to the end. Give the command again that "
                "began the folds."
            )
    return [str(run) for run in runs]


def same_classes(spaces: Sequence[LabelSpace | None], names: Sequence[str]) -> list[list[int]]:
    """Compare the classes of several models by name.

    Args:
        spaces: Their label spaces.
        names: What errors call the models.

    Returns:
        For each model the places of its scores in the order of the first one's.

    Raises:
        CheckpointError: A model does not know its classes, or has others, or another task; says which.
    """
    first = spaces[0]
    orders: list[list[int]] = []
    for space, name in zip(spaces, names, strict=True):
        if space is None or first is None:
            raise CheckpointError(f"{name if space is None else names[0]} does not know its classes (label space), by "
                                  "which the members of an ensemble are matched.")  # fmt: skip
        if space.task != first.task:
            raise CheckpointError(f"an ensemble needs one task: {names[0]} is {first.task}, and {name} {space.task}.")
        missing = [each for each in first.names if each not in space.names]
        more = [each for each in space.names if each not in first.names]
        if missing or more:
            lists = [f"without {_some(missing)}" if missing else "", f"with {_some(more)}" if more else ""]
            raise CheckpointError(
                f"an ensemble needs equal classes, in any order: compared with {names[0]} ({len(first)} classes), "
                f"{name} is {' and '.join(filter(None, lists))}."
            )
        if space.task == "binary" and space.names != first.names:
            raise CheckpointError(
                f"an ensemble needs one object: that of {names[0]} is {first.names[1]!r}, of {name} {space.names[1]!r}."
            )
        orders.append([space.score_names.index(each) for each in first.score_names])
    return orders


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def described(descriptions: Sequence[str]) -> str:
    """An ensemble in one line, from its members'."""
    counts = {text: descriptions.count(text) for text in descriptions}
    parts = [text if count == 1 else f"{count} x {text}" for text, count in counts.items()]
    return f"mean of {len(descriptions)} models: {'; '.join(parts)}"


def mean_thresholds(thresholds: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """The thresholds of an ensemble of binary or multi-label models: for each label the mean of the members' own.

    Rounded to thousandths, in which evaluations count.
    """
    ordered = [[own[place] for place in order] for own, order in zip(thresholds, orders, strict=True) if own]
    return tuple(round(statistics.fmean(label), 3) for label in zip(*ordered, strict=True))


class EnsembleBackend(Backend):
    """Several backends as one: their scores are the mean probabilities of the members, each by the same protocol.

    The classes, the bands and the sizes of named protocols are those of the first member; classes of the others are
    matched by name. Labels of binary and multi-label tasks are decided by the mean of the members' thresholds. Scores
    are probabilities where the protocol merges probabilities, else numbers whose softmax they are, as of every backend.

    Args:
        members: The backends, one or more; files and torch models may be mixed.
        names: What errors call them; None counts them.

    Raises:
        CheckpointError: They have other classes, or one does not know its classes.
        ConfigError: No members, other channels or bands, or a file that gives labels only.
    """

    def __init__(self, members: Sequence[Backend], names: Sequence[str] | None = None) -> None:
        if not members:
            raise ConfigError("an ensemble needs at least one model.")
        self.members = tuple(members)
        self.names = tuple(names or (f"model {number}" for number in range(len(members))))
        for member in members:
            member.check_scores()
        first = members[0]
        self._orders = same_classes([member.label_space for member in members], self.names)
        self._check_images()
        self.description = described([member.description for member in members])
        self.label_space, self.head, self.channels = first.label_space, first.head, first.channels
        self.setting, self.bands, self.mean = first.setting, first.bands, first.mean
        self.device = next((member.device for member in members if not isinstance(member, FileBackend)), first.device)
        self.memory = max(member.memory for member in members)
        thresholds = [member.decision.thresholds for member in members]
        self.decision = Decision(first.decision.task, mean_thresholds(thresholds, self._orders))

    def _check_images(self) -> None:
        """Refuse members that take other images than the first one."""
        first = self.members[0]
        for member, name in zip(self.members, self.names, strict=True):
            if member.channels != first.channels:
                raise ConfigError(f"an ensemble needs one kind of images: {self.names[0]} takes {first.channels} "
                                  f"channels, and {name} {member.channels}.")  # fmt: skip
            readers = [None if each.bands is None else (each.bands.bands, each.bands.nodata)
                       for each in (first, member)]  # fmt: skip
            if readers[0] != readers[1]:
                raise ConfigError(f"an ensemble needs the same bands (data.bands, data.nodata): {self.names[0]} has "
                                  f"{readers[0] or 'none'}, and {name} {readers[1] or 'none'}.")  # fmt: skip

    def check(self, protocol: Protocol) -> None:
        """Refuse a protocol that a member cannot follow."""
        for member in self.members:
            member.check(protocol)

    def blocks(self, image: Image, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """See `Backend`; blocks are slabs of whole rows, from the top down. Members get half of the memory."""
        allowed = self.memory if memory is None else memory
        self._check_waiting(image, protocol, allowed)
        streams = [member.blocks(image, protocol, memory=max(allowed // 2, 1)) for member in self.members]
        return self._merged(streams, image, protocol)

    def batch_blocks(
        self, images: Iterable[Image], protocol: Protocol, *, memory: int | None = None
    ) -> Iterator[Iterator[Block]]:
        """See `Backend`; images that share calls do so in every member."""
        allowed = self.memory if memory is None else memory
        shown, *copies = itertools.tee(images, 1 + len(self.members))
        streams = [
            member.batch_blocks(copy, protocol, memory=max(allowed // 2, 1))
            for member, copy in zip(self.members, copies, strict=True)
        ]
        for image, *blocks in zip(shown, *streams, strict=True):
            self._check_waiting(image, protocol, allowed)
            yield self._merged(blocks, image, protocol)

    def _check_waiting(self, image: Image, protocol: Protocol, memory: int) -> None:
        """Refuse an image whose sums would take more than half of the memory.

        Torch models give slabs of few rows. Files give windows, of the last two rows of which the rows wait.
        """
        height, width = image.shape[:2]
        if not any(isinstance(member, FileBackend) for member in self.members):
            return
        assert self.label_space is not None
        streamed = protocol.scales == (1.0,) and protocol.merge != "exp"
        rows = height if protocol.window is None or not streamed else min(height, 2 * protocol.window[0])
        need = 8 * len(self.label_space.score_names) * rows * width
        if need > memory // 2:
            raise ConfigError(
                f"the probabilities of an image of {height} x {width} pixels, summed over models of which some are "
                f"exported files, take {need >> 20} MiB, and half of the memory, {memory >> 21} MiB, is allowed: give "
                "a tile, such as tile=512 (--tile 512), or more memory."
            )

    def _merged(self, streams: Sequence[Iterator[Block]], image: Image, protocol: Protocol) -> Iterator[Block]:
        """The means of the members' blocks of an image."""
        height, width = image.shape[:2]
        rows = [_Rows(height, width) for _ in streams]
        sums: Any = None  # of probabilities [K, r, W], float64, from the row `first` on
        first = 0
        while first < height:
            behind = min(range(len(streams)), key=lambda index: rows[index].complete)
            block = next(streams[behind])
            part = self._probabilities(block.scores, protocol.merge)
            if self._orders[behind] != list(range(len(part))):
                part = part[self._orders[behind]]
            last = block.rows.stop - first
            sums = _extended(sums, part, last, width)
            sums[:, block.rows.start - first : last, block.columns] += part
            rows[behind].add(block)
            if rows[behind].complete == height:
                more = next(streams[behind], None)  # which frees what the member holds, also where asserts are off
                assert more is None
            complete = min(each.complete for each in rows) - first
            if not complete:
                continue
            scores = _scores(sums[:, :complete] / len(streams), protocol.merge)
            sums = None if complete == sums.shape[1] else sums[:, complete:] + 0.0  # a view would keep all rows
            yield Block(slice(first, first + complete), slice(0, width), scores, decision=self.decision)
            first += complete

    def _probabilities(self, scores: Any, merge: str) -> Any:
        """Probabilities [K, r, c] in float64, on the ensemble's device, of a member's scores."""
        if all(isinstance(member, FileBackend) for member in self.members):
            return _array_probabilities(scores, merge)
        import torch

        exact = torch.float32 if self.device.startswith("mps") else torch.float64
        values = torch.as_tensor(scores).to(self.device, exact)
        if merge == "logits":
            return values.softmax(dim=0)
        return values / values.sum(dim=0) if merge == "exp" else values


class _Rows:
    """How far a member has come with an image: blocks that begin in the same row have the same rows."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.complete = 0
        self._bands: dict[int, tuple[int, int]] = {}  # first row -> the row after the last, columns that are lacking

    def add(self, block: Block) -> None:
        """Note a block."""
        columns = block.columns.stop - block.columns.start
        _, lacking = self._bands.get(block.rows.start, (0, self.width))
        self._bands[block.rows.start] = (block.rows.stop, lacking - columns)
        while self._bands.get(self.complete, (0, 1))[1] == 0:
            self.complete = self._bands.pop(self.complete)[0]


def _extended(sums: Any, part: Any, rows: int, width: int) -> Any:
    """Sums with at least so many rows, those that are new are zero; of the kind of `part`, [K, r, c]."""
    known = 0 if sums is None else sums.shape[1]
    if known >= rows:
        return sums
    shape = (part.shape[0], rows - known, width)
    if isinstance(part, np.ndarray):
        more = np.zeros(shape)
        return more if not known else np.concatenate([sums, more], axis=1)
    import torch

    fresh = part.new_zeros(shape)
    return fresh if not known else torch.cat([sums, fresh], dim=1)


def _array_probabilities(scores: NDArray[Any], merge: str) -> NDArray[np.float64]:
    """Probabilities [K, r, c] of scores of a protocol with this `merge`."""
    values = scores.astype(np.float64)
    if merge == "logits":
        values = np.exp(values - values.max(axis=0))
    elif merge != "exp":
        return values
    found: NDArray[np.float64] = values / np.maximum(values.sum(axis=0), np.finfo(np.float64).tiny)
    return found


def _scores(mean: Any, merge: str) -> Any:
    """Scores of a protocol with this `merge` whose probabilities are `mean`, [K, r, c].

    Float32 holds the mean of equal float32 exactly; what comes from logits stays in float64, in which no two classes
    become equal that were not.
    """
    if merge == "exp":
        return mean
    if isinstance(mean, np.ndarray):
        if merge == "logits":
            return np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))
        return mean.astype(np.float32)
    import torch

    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log() if merge == "logits" else mean.float()
