"""Outputs as rows of Parquet files: labels as PNG bytes, shares of the classes, mean confidence, or an error.

A worker writes the rows of a few items as one file, whole or not at all, under a name that the items decide, whichever
of them fail; so a retry replaces the file. A row of a failed input is a file of its own, named by the input: the row
goes when a later start succeeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from resnest_seg.bulk.destination import Destination
from resnest_seg.bulk.job import PARQUET
from resnest_seg.errors import load_extra, printable
from resnest_seg.inference.prediction import Prediction
from resnest_seg.io.visualize import labels_png, pixel_counts
from resnest_seg.labels import LabelSpace

PART, FAILED = f"{PARQUET}/part-", f"{PARQUET}/failed-"
"""What the names of files of results, and of errors, begin with."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One input.

    Attributes:
        path: Its path or address.
        place: Where its other outputs lie, if there are any, without endings.
        labels: As PNG; None with an error.
        height: In pixels.
        width: In pixels.
        shares: Of the pixels, one a class.
        confidence: Mean over the pixels of the probability of what was predicted; None of a model without scores.
        error: Why there are no labels.
    """

    path: str
    place: str
    labels: bytes | None = None
    height: int = 0
    width: int = 0
    shares: tuple[float, ...] | None = None
    confidence: float | None = None
    error: str | None = None


def row_of(path: str, place: str, prediction: Prediction, *, ids: str) -> Row:
    """The row of a segmented image."""
    space, labels = prediction.label_space, prediction.labels
    height, width = labels.shape
    shares = tuple((pixel_counts(labels, space) / labels.size).tolist())
    png = labels_png(labels, space, ids=ids)
    return Row(printable(path), place, png, height, width, shares, prediction.confidence)


def write_part(destination: Destination, paths: Sequence[str], rows: Sequence[Row], space: LabelSpace) -> str | None:
    """Write the rows of segmented images as one file; returns its name, or None if there are no rows, and no file.

    Args:
        destination: The output.
        paths: The inputs, with those that failed: they name the file.
        rows: Of those that did not.
        space: The classes.

    Raises:
        OSError: The disk is full.
        ConfigError: pyarrow is not installed.
    """
    name = f"{PART}{_digest(*sorted(map(printable, paths)))}-{len(paths)}.parquet"
    if not rows:
        destination.remove(name)  # of a process that died before it said so, and for which they did not fail
        return None
    destination.write(name, _table(sorted(rows, key=lambda row: row.path), space))
    return name


def write_failed(destination: Destination, row: Row, space: LabelSpace) -> None:
    """Write the row of an input that could not be segmented, as a file of its own."""
    destination.write(failed_name(row.path), _table([row], space))


def failed_name(path: str) -> str:
    """The name of the file with the row of a failed input."""
    return f"{FAILED}{_digest(path)}.parquet"


def inputs_of(name: str) -> int:
    """The number of inputs of a file of results, with those that failed, by its name; 0 of another file."""
    match = re.fullmatch(rf"{PART}[0-9a-f]{{24}}-(\d+)\.parquet", name)
    return int(match[1]) if match else 0


def places_in(destination: Destination, name: str) -> Iterator[tuple[str, int, int]]:
    """(place, height, width) of the images in a file of results."""
    table = load_extra("pyarrow.parquet", "import").read_table(
        io.BytesIO(destination.read(name) or b""), columns=["place", "height", "width"]
    )
    for row in table.to_pylist():
        yield row["place"], row["height"], row["width"]


def _table(rows: Sequence[Row], space: LabelSpace) -> bytes:
    """The bytes of a Parquet file of rows."""
    arrow, parquet = load_extra("pyarrow", "import"), load_extra("pyarrow.parquet", "import")
    text, number = arrow.string(), arrow.float32()
    shares = arrow.struct([(name, number) for name in space.names])
    schema = arrow.schema(
        [("path", text), ("place", text), ("labels", arrow.binary()), ("height", arrow.int32()),
         ("width", arrow.int32()), ("shares", shares), ("confidence", number), ("error", text)],
        metadata={"classes": json.dumps(space.names)},
    )  # fmt: skip
    values: list[dict[str, Any]] = [vars(row).copy() for row in rows]
    for value in values:
        if value["shares"] is not None:
            value["shares"] = dict(zip(space.names, value["shares"], strict=True))
    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(values, schema=schema), file)
    return file.getvalue()


def _digest(*paths: str) -> str:
    return hashlib.sha256(b"\0".join(map(os.fsencode, paths))).hexdigest()[:24]
