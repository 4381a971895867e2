"""The inputs of a bulk job: folders, patterns, manifests and addresses as items, each with a place of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence

from resnest_seg.bulk.outputs import ALL_ENDINGS
from resnest_seg.inference.inputs import VIDEO_SUFFIXES, plan
from resnest_seg.io.images import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True, slots=True)
class BulkItem:
    """One input.

    Attributes:
        source: The file's absolute path, or an address.
        place: Where its outputs go: a path below the output, with `/`, without ending.
    """

    source: str
    place: str

    @property
    def kind(self) -> str:
        """ "address", "video" or "image"."""
        if "://" in self.source:
            return "address"
        return "video" if self.source.lower().endswith(VIDEO_SUFFIXES) else "image"


def list_inputs(words: Sequence[str], *, output: str) -> tuple[list[BulkItem], list[str]]:
    """Resolve the words of a command line to items; places are those of `resnest_seg.inference.inputs.plan`.

    Args:
        words: The inputs as the user gave them.
        output: The output, which is left out where it lies within a folder of inputs.

    Returns:
        Items with different places, and a sentence on each problem.
    """
    found, problems = plan(words, output, suffixes=IMAGE_SUFFIXES, endings=ALL_ENDINGS)
    problems += [f"{item.source} is a camera: a bulk job takes files." for item in found if item.kind == "camera"]
    items = [
        BulkItem(item.source if item.kind == "address" else _absolute(item.source), item.place.as_posix())
        for item in found
        if item.kind != "camera"
    ]
    return items, problems


def share(items: Iterable[BulkItem], shard: tuple[int, int]) -> list[BulkItem]:
    """The items of one process: those whose hash modulo the number of processes is its number.

    It depends on the item alone, so that it is the same where files are added, and needs no coordination.

    Args:
        items: All items.
        shard: The number of the process, from 0, and how many there are.
    """
    number, count = shard
    return [item for item in items if bucket(item.source) % count == number]


def bucket(source: str) -> int:
    """A hash of a source, the same in every process."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(source), digest_size=8).digest())


def _absolute(path: str) -> str:
    """A path from the root, which means the same in every process; links in it are kept."""
    return os.path.abspath(path)  # noqa: PTH100  # resolve() follows links
