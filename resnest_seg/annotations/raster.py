"""From outlines and run lengths to pixels, by one rule: a pixel belongs where its centre is; from objects to labels.

Outlines are filled exactly, by the crossings of every row's centre with the edges; a centre on an edge belongs to the
area on its right or below it, so that areas that share an edge share no pixel and leave none out. `cv2.fillPoly` and
PIL draw the border as well: 6 to 9 % too much on objects of usual size.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations.objects import IGNORE_NAMES, AnnotatedImage, AnnotatedObject, Part, Patch, Ring
from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE, LabelSpace

FARTHEST = 1e7
"""Largest coordinate, in pixels."""

MOST_CROSSINGS = 1 << 29
"""Crossings of rows and edges that an object may have."""

IGNORED_CLASS = "ignored "
"""Beginning of the numbers in `Facts` that count the objects of a class whose name means ignored pixels."""

_CHUNK = 1 << 22
_KEPT_BYTES = 256 << 20  # of drawn objects that wait for their order
_IGNORED, _NOTHING = -1, -2


def draw(parts: Iterable[Part], height: int, width: int) -> Patch | None:
    """Draw the union of parts, clipped to an image of `height` x `width`; None if they cover no pixel.

    Raises:
        ValueError: An outline is too intricate.
    """
    patches = [patch for part in parts if (patch := _drawn(part, height, width)) is not None]
    if len(patches) <= 1:
        return patches[0] if patches else None
    top, left = min(patch.top for patch in patches), min(patch.left for patch in patches)
    bottom = max(patch.top + patch.mask.shape[0] for patch in patches)
    right = max(patch.left + patch.mask.shape[1] for patch in patches)
    union = np.zeros((bottom - top, right - left), bool)
    for patch in patches:
        rows, columns = patch.mask.shape
        window = union[patch.top - top : patch.top - top + rows, patch.left - left : patch.left - left + columns]
        window |= patch.mask
    return Patch(top, left, union)


def _drawn(part: Part, height: int, width: int) -> Patch | None:
    if isinstance(part, Patch):
        top, left = max(part.top, 0), max(part.left, 0)
        mask = part.mask[top - part.top : max(height - part.top, 0), left - part.left : max(width - part.left, 0)]
        return Patch(top, left, mask) if mask.any() else None
    # From here on, a pixel's centre has whole coordinates.
    rings = [ring - 0.5 for ring in part.rings]
    every = np.concatenate(rings)
    (left, top), (right, bottom) = np.ceil(every.min(axis=0)), np.floor(every.max(axis=0)) + 1
    top, bottom, left, right = max(int(top), 0), min(int(bottom), height), max(int(left), 0), min(int(right), width)
    if top >= bottom or left >= right:
        return None
    if part.closed:
        mask = _closed(rings[0], top, bottom, left, right)
        for hole in rings[1:]:
            mask &= ~_closed(hole, top, bottom, left, right)
    else:
        mask = _filled(rings, top, bottom, left, right)
    return Patch(top, left, mask) if mask.any() else None


def _closed(ring: Ring, top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    return _filled([ring], top, bottom, left, right) | _on_edges(ring, top, bottom, left, right)


def _filled(rings: Sequence[Ring], top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    """Fill by the even-odd rule; coordinates count from the centre of the first pixel."""
    height, width = bottom - top, right - left
    flips = np.zeros(height * (width + 1), np.uint8)  # of inside to outside, at the first pixel behind a crossing
    for rows, columns in _crossings(rings, top, bottom, closed=False):
        column = np.clip(np.ceil(columns), left, right).astype(np.int64) - left
        np.add.at(flips, (rows - top) * (width + 1) + column, 1)
    inside = np.bitwise_xor.accumulate(flips.reshape(height, width + 1) & 1, axis=1)[:, :width]
    return inside.astype(bool)


def _on_edges(ring: Ring, top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies on the ring itself."""
    mask = np.zeros((bottom - top, right - left), bool)
    for rows, columns in _crossings([ring], top, bottom, closed=True):
        column = np.rint(columns)
        on = (np.abs(columns - column) < 1e-6) & (column >= left) & (column < right)
        mask[rows[on] - top, column[on].astype(np.int64) - left] = True
    following = np.roll(ring, -1, axis=0)
    level = (ring[:, 1] == following[:, 1]) & (ring[:, 1] == np.rint(ring[:, 1]))
    for (x, y), (end, _) in zip(ring[level], following[level], strict=True):
        if top <= y < bottom:
            first, last = max(np.ceil(min(x, end)), left), min(np.floor(max(x, end)), right - 1)
            mask[int(y) - top, int(first) - left : int(last) + 1 - left] |= first <= last
    return mask


def _crossings(
    rings: Sequence[Ring], top: int, bottom: int, *, closed: bool
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield rows and the x at which edges cross their centres; with `closed`, also where edges only end there."""
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    down = starts[:, 1] <= ends[:, 1]  # from above, so that a shared edge is crossed at the same x from both sides
    (x, y), (far_x, far_y) = np.where(down, starts.T, ends.T), np.where(down, ends.T, starts.T)
    first = np.clip(np.ceil(y), top, bottom).astype(np.int64)
    last = np.clip(np.floor(far_y) + 1 if closed else np.ceil(far_y), top, bottom).astype(np.int64)
    counts = np.where(y < far_y, np.maximum(last - first, 0), 0)
    if int(counts.sum()) > MOST_CROSSINGS:
        raise ValueError(
            f"its outline crosses rows of pixels {int(counts.sum()):,} times; {MOST_CROSSINGS:,} are allowed"
        )
    crossed = np.flatnonzero(counts)
    bounds = np.cumsum(counts[crossed])
    slope = (far_x[crossed] - x[crossed]) / (far_y[crossed] - y[crossed])
    begin = 0
    while begin < len(crossed):
        before = int(bounds[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(bounds, before + _CHUNK)), begin + 1)
        some, number = crossed[begin:end], counts[crossed[begin:end]]
        edge = np.repeat(np.arange(len(some)), number)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number, number) + first[some][edge]
        yield rows, x[some][edge] + (rows - y[some][edge]) * slope[begin:end][edge]
        begin = end


def extent(parts: Iterable[Part]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of parts; at least one."""
    boxes = []
    for part in parts:
        if isinstance(part, Patch):
            height, width = part.mask.shape
            boxes.append((part.left, part.top, part.left + width, part.top + height))
        else:
            every = np.concatenate(part.rings)
            boxes.append((*every.min(axis=0).tolist(), *every.max(axis=0).tolist()))
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def ellipse(x: float, y: float, width: float, height: float, degrees: float = 0) -> Ring:
    """Return an ellipse with its centre and two radii as a ring that deviates by less than 0.01 pixels.

    Args:
        x: Of the centre.
        y: Of the centre.
        width: Horizontal radius.
        height: Vertical radius.
        degrees: Clockwise rotation about the centre.
    """
    corners = int(min(max(np.pi * np.sqrt(max(width, height, 1) / 0.02), 24), 4096))
    angles = np.arange(corners) * 2 * np.pi / corners
    ring = np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)
    return rotated(ring, (x, y), degrees)


def rectangle(left: float, top: float, right: float, bottom: float) -> Ring:
    """Return a rectangle as a ring."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def rotated(ring: Ring, centre: tuple[float, float], degrees: float) -> Ring:
    """Rotate a ring clockwise, as seen on the screen, about a point."""
    if not degrees:
        return ring
    angle = np.deg2rad(degrees % 360)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned: Ring = (ring - centre) @ turn + centre
    return turned


def runs_to_mask(counts: Sequence[int], height: int, width: int, *, by_columns: bool) -> NDArray[np.bool_]:
    """Decode run lengths, which alternate and begin with zeros, to a mask [height, width].

    Args:
        counts: The lengths.
        height: Rows.
        width: Columns.
        by_columns: Pixels are counted down the columns (COCO), not along the rows (CVAT).

    Raises:
        ValueError: A length is negative, or the sum is not height x width.
    """
    lengths = np.asarray(counts, np.int64).reshape(-1)
    if len(lengths) and (lengths.min() < 0 or lengths.max() > height * width):
        value = lengths.min() if lengths.min() < 0 else lengths.max()
        raise ValueError(f"a run of length {value} in an area of {height} x {width} pixels")
    if int(lengths.sum()) != height * width:
        raise ValueError(f"the runs cover {int(lengths.sum())} pixels, and the area has {height} x {width}")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T if by_columns else flat.reshape(height, width)


def mask_to_runs(mask: NDArray[np.bool_], *, by_columns: bool) -> list[int]:
    """Encode a mask [h, w] as `runs_to_mask` decodes it."""
    flat = (mask.T if by_columns else mask).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(flat)]])
    counts: list[int] = np.diff(bounds).tolist()
    return [0, *counts] if len(flat) and flat[0] else counts


def parse_runs(text: str) -> list[int]:
    """Decode COCO's compressed run lengths.

    Every number is groups of 5 bits, the lowest first, in characters from `0` on; bit 32 says that one more follows,
    bit 16 of the last one is the sign. From the fourth on, the difference to the number two before is written.

    Raises:
        ValueError: A character is none of these, a number is too long, or the text ends within a number.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for place, letter in enumerate(text):
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {place} is {letter!r}")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 40:
            raise ValueError(f"a run before character {place} is longer than any image")
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("the text ends within a number: it is truncated")
    return counts


def format_runs(counts: Sequence[int]) -> str:
    """Encode run lengths as `parse_runs` decodes them."""
    letters = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + (bits | 32 if more else bits)))
            if not more:
                break
    return "".join(letters)


@dataclasses.dataclass
class Facts:
    """Counts of one image, or of all: objects and pixels by class, dropped objects by reason, other numbers by name."""

    objects: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    pixels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    numbers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Mapping[str, Mapping[str, int]]) -> None:
        """Add the counts of one image, as they are written down."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).update(other[field.name])


@dataclasses.dataclass(frozen=True)
class Rules:
    """How objects become pixels.

    Attributes:
        space: The classes.
        ids: Class of the source -> its train id, or None if it is ignored.
        fill: Label of pixels without an object.
        order: What is on top, see `Order`.
        crowd: "ignore", "class" or "background".
        overlap: "tool", "ignore" or "multilabel".
    """

    space: LabelSpace
    ids: Mapping[str, int | None]
    fill: int
    order: str
    crowd: str
    overlap: str

    @property
    def bits(self) -> bool:
        """True if masks hold a bit for each label."""
        return self.overlap == "multilabel"

    def number(self, label: str | None) -> int:
        """Return the train id of a class of the source, `_IGNORED`, or `_NOTHING` for the background of bits."""
        if label is None or (label not in self.ids and label.lower() in IGNORE_NAMES):
            return _IGNORED
        number = self.ids.get(label, _NOTHING)
        return _IGNORED if number is None else number


def draw_labels(image: AnnotatedImage, height: int, width: int, rules: Rules, facts: Facts) -> NDArray[Any]:
    """Draw the objects of an image: train ids, uint8 [H, W], or bits, uint16 [H, W]; counts go to `facts`."""
    canvas = _Canvas(height, width, rules)
    crowds: list[tuple[AnnotatedObject, Patch]] = []
    drawn = 0
    for one, patch in _ordered(image, height, width, rules, facts):
        if one.crowd:
            crowds.append((one, patch))
            continue
        number = rules.number(one.label)
        canvas.put(patch, number, count=number != _IGNORED)
        drawn += number != _IGNORED
        if number >= 0:
            facts.objects[rules.space.names[number]] += 1
        elif number == _IGNORED and one.label is not None:
            facts.numbers[f"{IGNORED_CLASS}{one.label}"] += 1
    for one, patch in crowds:  # below all others: only where none of them is
        number = _IGNORED if rules.crowd == "ignore" else rules.number(one.label)
        inside = canvas.covered[canvas.window(patch)]
        free = patch.mask if rules.bits and number != _IGNORED else patch.mask & ~inside
        canvas.put(Patch(patch.top, patch.left, free), number, count=False)
        if number >= 0:
            facts.objects[rules.space.names[number]] += 1
    labels = canvas.finished()
    facts.numbers.update(
        overlapping=int(canvas.twice.sum()),
        conflicting=int(canvas.differ.sum()),
        empty=int(not drawn and not crowds),
    )
    _count(labels, rules, facts)
    return labels


class _Canvas:
    """Labels of an image while its objects are put on them, the lowest first."""

    def __init__(self, height: int, width: int, rules: Rules) -> None:
        self.rules = rules
        self.labels: NDArray[Any] = np.zeros((height, width), np.uint16)
        if not rules.bits:
            self.labels = np.full((height, width), rules.fill, np.uint8)
        self.covered, self.twice, self.differ, self.ignored = (np.zeros((height, width), bool) for _ in range(4))

    def window(self, patch: Patch) -> tuple[slice, slice]:
        """Position of a patch in its image."""
        rows, columns = patch.mask.shape
        return slice(patch.top, patch.top + rows), slice(patch.left, patch.left + columns)

    def put(self, patch: Patch, number: int, *, count: bool) -> None:
        """Put a class on the pixels of a patch, or `_IGNORED` or, in masks of bits, `_NOTHING`."""
        window, mask, bits = self.window(patch), patch.mask, self.rules.bits
        value = (1 << number if number >= 0 else 0) if bits else number if number >= 0 else IGNORE_LABEL
        if count:
            again = self.covered[window] & mask
            self.twice[window] |= again
            self.differ[window] |= again & (self.labels[window] != value)
            self.covered[window] |= mask
        if number == _IGNORED:
            self.ignored[window] |= mask
        if bits:
            self.labels[window] |= mask * np.uint16(value)
        else:
            self.labels[window][mask] = value

    def finished(self) -> NDArray[Any]:
        """Return the labels by the rules for overlaps and for pixels without an object."""
        if self.rules.overlap == "ignore":
            self.labels[self.twice] = IGNORE_LABEL
        if self.rules.bits:
            unknown = self.ignored if self.rules.fill == 0 else ~self.covered | self.ignored
            self.labels[(self.labels == 0) & unknown] = MULTILABEL_IGNORE
        return self.labels


def _count(labels: NDArray[Any], rules: Rules, facts: Facts) -> None:
    counts = np.bincount(labels.ravel(), minlength=256)
    if rules.bits:
        values = np.flatnonzero(counts)
        for number, name in enumerate(rules.space.names):
            facts.pixels[name] += int(counts[values[(values >> number & 1) == 1]].sum())
        facts.pixels["ignored"] += int(counts[MULTILABEL_IGNORE:].sum())
        return
    facts.pixels.update({name: int(counts[number]) for number, name in enumerate(rules.space.names)})
    facts.pixels["ignored"] += int(counts[IGNORE_LABEL])


def _ordered(
    image: AnnotatedImage, height: int, width: int, rules: Rules, facts: Facts
) -> Iterator[tuple[AnnotatedObject, Patch]]:
    """Yield the objects that can be drawn, the lowest first; crowds among them."""
    objects = image.objects(height, width)
    if rules.order == "list":
        for one in objects:
            if (found := _patch(one, height, width, rules, facts)) is not None:
                yield one, found
        return
    entries: list[tuple[float, AnnotatedObject, Patch | None]] = []
    kept = 0
    for one in objects:
        patch = _patch(one, height, width, rules, facts)
        if patch is None:
            continue
        rank = one.level if rules.order == "level" else -float(patch.mask.sum())
        patch = _tight(patch)
        kept += patch.mask.size
        entries.append((rank, one, patch if kept < _KEPT_BYTES else None))
    for _, one, held in sorted(entries, key=lambda entry: entry[0]):  # stable: the order of the file among equals
        again = held if held is not None else draw(one.parts, height, width)
        assert again is not None
        yield one, again


def _patch(one: AnnotatedObject, height: int, width: int, rules: Rules, facts: Facts) -> Patch | None:
    """Draw an object, or count why it is not drawn."""
    if one.dropped:
        facts.dropped[one.dropped] += 1
        return None
    if one.crowd:
        facts.numbers["crowds"] += 1
        if rules.crowd == "background":
            return None
    left, top, right, bottom = extent(one.parts)
    try:
        patch = draw(one.parts, height, width)
    except ValueError as error:
        raise DatasetError(f"{one.place}: {error}.") from None
    if patch is None:
        inside = left < width and right > 0 and top < height and bottom > 0
        facts.dropped["too thin to cover a pixel's centre" if inside else "outside of the photo"] += 1
        return None
    facts.numbers["clipped"] += int(min(left, top) < -0.5 or right > width + 0.5 or bottom > height + 0.5)
    return patch


def _tight(patch: Patch) -> Patch:
    """Cut a patch to the rectangle that it covers."""
    rows, columns = np.flatnonzero(patch.mask.any(axis=1)), np.flatnonzero(patch.mask.any(axis=0))
    inner = patch.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(patch.top + int(rows[0]), patch.left + int(columns[0]), inner.copy())
