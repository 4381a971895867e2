"""Inference protocols carried out in NumPy, for networks whose logits have the size of their images, such as exports.

`torch_engine` does the same in torch for coarse logits, and needs less memory for them: here a window's logits are
4 K bytes a pixel. So intermediate scores are merged at once. Windows at the image's own size go into *blocks*, the
pieces between all edges of windows, and a block is complete, and released, when the last window over it has been run:
beside one window, only the overlaps wait. Views of other sizes are merged either in the scores of the image, one view
after the other, or in the pixels of the views, whichever is smaller.

Shapes: K classes, H x W image pixels, h x w pixels of a view or of a window, r rows, c columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError
from resnest_seg.inference.protocols import Protocol, Window
from resnest_seg.io.resize import Floats, pixel_weights, resized_bands, resized_rows

Pixels = NDArray[Any]
"""RGB 0..255, uint8 or float32, [3, H, W]."""

LogitsFn = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Images [N, 3, H, W], RGB 0..255, uint8 or float32 -> logits [N, K, H, W]."""

BATCH_PIXELS = 512 * 512
"""Pixels of the images that one call of the network gets, where no batch size is given."""

EXP_LIMIT, EXP_START = 700.0, 600.0
"""Exponents up to which a sum of exponentials is safe in float64; and where the largest is put at first."""

_SLAB = 1 << 24  # bytes of rows that are resized at once: they fit into the caches


Block = tuple[slice, slice, Floats]
"""Rows and columns of a rectangle of an image, and its scores [K, r, c]: the protocol's mean logits, mean
probabilities, or sum of exponentials, times a factor that is the same everywhere in the image."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A `LogitsFn` with what must be known to use it.

    Attributes:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, H, W].
        classes: K.
        stride: Input pixels per step of the network's last features.
        align_corners: How scores of views are resized where the protocol does not say.
        batch: Windows a call; None takes as many as have a fixed number of pixels.
        padding: Values of what lies outside an image, C of them; None is 0, black.
        log_scores: The logits are logarithms of scores that were made of masks: of flips the scores are summed.
    """

    logits_fn: LogitsFn
    classes: int
    stride: int = 8
    align_corners: bool = True
    batch: int | None = None
    padding: tuple[float, ...] | None = None
    log_scores: bool = False


class _Shot(NamedTuple):
    """A window of a view as the network is shown it: as it is, mirrored, or both, of which the logits are summed."""

    window: Window  # may begin left of the view
    flips: tuple[bool, ...]
    share: float  # of the layer


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Windows of one view whose logits, or exponentials, are averaged before anything else happens to them."""

    size: tuple[int, int]
    shots: tuple[_Shot, ...]

    def place(self, window: Window) -> tuple[slice, slice]:
        """The part of a window that lies in the view."""
        rows = slice(window.top, min(window.top + window.height, self.size[0]))
        return rows, slice(max(window.left, 0), min(window.left + window.width, self.size[1]))


def score_blocks(network: Network, image: Pixels, protocol: Protocol, *, memory: int) -> Iterator[Block]:
    """The scores of an image, a block at a time; together the blocks cover it.

    Args:
        network: The network.
        image: [3, H, W].
        protocol: How it is shown to the network, and how its answers are merged.
        memory: Bytes that scores and logits may take.

    Raises:
        ConfigError: They would take more; says what would help.
    """
    size = (image.shape[1], image.shape[2])
    layers = _layers(size, protocol, network.stride)
    streamed = len(layers) == 1 and layers[0].size == size and protocol.merge != "exp"
    need = _need(layers, size, protocol, network, streamed=streamed)
    if need > memory:
        tile = "give a smaller tile" if protocol.window else "give a tile, such as tile=512"
        raise ConfigError(
            f"the logits of an image of {size[0]} x {size[1]} pixels and {network.classes} classes by protocol "
            f"{protocol.name} take {need >> 20} MiB, and {memory >> 20} are allowed (memory={memory}): "
            f"{tile if len(protocol.scales) == 1 else 'use one scale and a tile'}, or allow more."
        )
    if streamed:
        return _streamed(network, image, layers[0], protocol)
    return _Gathered(network, image, layers, protocol).blocks()


def _layers(size: tuple[int, int], protocol: Protocol, stride: int) -> list[_Layer]:
    layers = []
    for scale in protocol.scales:
        view = protocol.size(*size, scale)
        windows = protocol.windows(*view, stride=stride)
        if protocol.merge == "exp":  # mirrors each window in its place
            flips = (False, True) if protocol.flip else (False,)
            layers.append(_Layer(view, tuple(_Shot(window, flips, 1.0) for window in windows)))
            continue
        share = 0.5 if protocol.flip and protocol.merge == "logits" else 1.0
        plain = tuple(_Shot(window, (False,), share) for window in windows)
        mirrored = tuple(  # windows of the mirrored view
            _Shot(window._replace(left=view[1] - window.left - window.width), (True,), share) for window in windows
        )
        if not protocol.flip:
            layers.append(_Layer(view, plain))
        elif protocol.merge == "logits":
            layers.append(_Layer(view, plain + mirrored))
        else:
            layers += [_Layer(view, plain), _Layer(view, mirrored)]
    return layers


def _item(protocol: Protocol) -> int:
    return 8 if protocol.merge == "exp" else 4


def _need(
    layers: Sequence[_Layer], size: tuple[int, int], protocol: Protocol, network: Network, *, streamed: bool
) -> int:
    """Bytes at the worst moment."""
    pixels = max(shot.window.height * shot.window.width for layer in layers for shot in layer.shots)
    calls = max(_batch(network, pixels), len(layers[0].shots[0].flips))
    logits = 4 * pixels * (calls + 1)  # and a weighted copy of one
    if streamed:
        waiting = largest = 0
        for _, cells in _plan(layers[0]):
            for rows, columns, begins, ends in cells:
                area = (rows.stop - rows.start) * (columns.stop - columns.start)
                waiting += area * (begins - ends)
            largest = max(largest, waiting)
        return network.classes * (logits + 4 * largest)
    views = [_item(protocol) * layer.size[0] * layer.size[1] for layer in layers]
    total = _item(protocol) * size[0] * size[1]
    return network.classes * (logits + min(sum(views), total + max(views))) + 2 * _SLAB


class _Cell(NamedTuple):
    rows: slice
    columns: slice
    begins: bool  # no window has been here before
    ends: bool  # none will be after


def _plan(layer: _Layer) -> Iterator[tuple[_Shot, list[_Cell]]]:
    """Windows in an order in which blocks end early, and the blocks that each lies on."""
    shots = _early(layer.shots)
    places = [layer.place(shot.window) for shot in shots]
    edges = [sorted({edge for place in places for edge in (place[axis].start, place[axis].stop)}) for axis in (0, 1)]
    numbers = [{edge: number for number, edge in enumerate(some)} for some in edges]
    spans = [[range(numbers[axis][place[axis].start], numbers[axis][place[axis].stop]) for axis in (0, 1)]
             for place in places]  # fmt: skip
    last = {(row, column): index for index, (down, right) in enumerate(spans) for row in down for column in right}
    seen: set[tuple[int, int]] = set()
    for index, (shot, (down, right)) in enumerate(zip(shots, spans, strict=True)):
        here = [(row, column) for row in down for column in right]
        yield shot, [
            _Cell(slice(*edges[0][row : row + 2]), slice(*edges[1][column : column + 2]),
                  (row, column) not in seen, last[row, column] == index)
            for row, column in here
        ]  # fmt: skip
        seen.update(here)


def _early(shots: Sequence[_Shot]) -> list[_Shot]:
    """Row by row, but the last two rows, which may overlap by nearly all of a window, column by column."""
    tops = sorted({shot.window.top for shot in shots})
    late = set(tops[-2:])
    return sorted(
        shots, key=lambda s: (True, s.window.left, s.window.top) if s.window.top in late else
        (False, s.window.top, s.window.left))  # fmt: skip


def _streamed(network: Network, image: Pixels, layer: _Layer, protocol: Protocol) -> Iterator[Block]:
    """Blocks of the one layer of a protocol, at the size of the image."""
    weights = _Weights(layer, protocol)
    cells = dict(_plan(layer))
    waiting: dict[tuple[int, int], Floats] = {}
    for shot, logits in _run(network, image, list(cells)):
        window = shot.window
        for rows, columns, begins, ends in cells[shot]:
            inside = (slice(rows.start - window.top, rows.stop - window.top),
                      slice(columns.start - window.left, columns.stop - window.left))  # fmt: skip
            part = weights.applied(logits[:, inside[0], inside[1]], shot, inside, (rows, columns))
            key = (rows.start, columns.start)
            if not begins:
                part += waiting.pop(key)
            if ends:
                yield rows, columns, _PROBABILITIES[protocol.merge](part) if protocol.merge in _PROBABILITIES else part
            else:
                waiting[key] = part


class _Gathered:
    """Merges layers of any size; see the head of this file."""

    def __init__(self, network: Network, image: Pixels, layers: Sequence[_Layer], protocol: Protocol) -> None:
        self.network, self.image, self.layers, self.protocol = network, image, layers, protocol
        self.size = (image.shape[1], image.shape[2])
        self.corners = {"long_edge": True, "tensor": False}.get(protocol.resize, network.align_corners)
        self.kind: type[np.floating] = np.float64 if protocol.merge == "exp" else np.float32
        self.shift: float | None = None  # of all exponents
        self.kept: list[Floats] = []  # sums of exponentials

    def blocks(self) -> Iterator[Block]:
        """All blocks, which are slabs of whole rows."""
        height, width = self.size
        step = max(_SLAB // (self.network.classes * width * np.dtype(self.kind).itemsize), 1)
        slabs = [range(first, min(first + step, height)) for first in range(0, height, step)]
        parts = 1 if self.protocol.merge == "exp" else len(self.layers)
        every = slice(0, width)
        if sum(layer.size[0] * layer.size[1] for layer in self.layers) <= height * width:
            for layer in self.layers:
                self._gather(layer)
            for rows in slabs:
                scores = self._rows(self.kept[0], rows)
                for view in self.kept[1:]:
                    scores += self._rows(view, rows)
                yield slice(rows.start, rows.stop), every, scores / parts
            return
        total = np.zeros((self.network.classes, height, width), self.kind)
        self.kept.append(total)
        for layer in self.layers:
            view = self._gather(layer)
            for rows in slabs:
                total[:, rows.start : rows.stop] += self._rows(view, rows)
            del self.kept[1:], view
        for rows in slabs:
            yield slice(rows.start, rows.stop), every, total[:, rows.start : rows.stop] / parts

    def _rows(self, view: Floats, rows: range) -> Floats:
        """Scores that a layer adds to some rows of the image; they may share memory with the layer's rows."""
        found = resized_rows(view, self.size, rows, align_corners=self.corners)
        return _PROBABILITIES[self.protocol.merge](found) if self.protocol.merge in _PROBABILITIES else found

    def _gather(self, layer: _Layer) -> Floats:
        """The mean logits, or exponentials, of a layer in its own pixels, [K, h, w]; they are added to what is kept."""
        view = np.zeros((self.network.classes, *layer.size), self.kind)
        self.kept.append(view)
        weights = _Weights(layer, self.protocol)
        image = resized_image(self.image, layer.size, self.protocol)
        for shot, logits in _run(self.network, image, layer.shots):
            rows, columns = layer.place(shot.window)
            inside = (slice(0, rows.stop - rows.start),
                      slice(columns.start - shot.window.left, columns.stop - shot.window.left))  # fmt: skip
            part: Floats = logits[:, inside[0], inside[1]]
            if self.protocol.merge == "exp":
                part = self._exponentials(part)
            view[:, rows, columns] += weights.applied(part, shot, inside, (rows, columns))
        return view

    def _exponentials(self, logits: Floats) -> Floats:
        """exp of logits, less a shift that all exponentials of an image share: sums neither overflow nor vanish."""
        top = float(logits.max())
        if self.shift is None or top > self.shift + EXP_LIMIT:
            shift = top - EXP_START
            if self.shift is not None:
                for sums in self.kept:
                    sums *= math.exp(self.shift - shift)
            self.shift = shift
        return np.exp(logits.astype(np.float64) - self.shift)


class _Weights:
    """Weight of each pixel of a layer's windows, so that the weights of all windows over a pixel sum up to 1."""

    def __init__(self, layer: _Layer, protocol: Protocol) -> None:
        self.single = len(layer.shots) == 1
        first = layer.shots[0].window
        self.window = pixel_weights(first.height, first.width, protocol.blend)
        self.sums: dict[tuple[bool, ...], NDArray[np.float32]] = {}
        for shot in layer.shots if not self.single else ():
            rows, columns = layer.place(shot.window)
            left = shot.window.left
            sums = self.sums.setdefault(shot.flips, np.zeros(layer.size, np.float32))
            sums[rows, columns] += self.window[
                : rows.stop - rows.start, columns.start - left : columns.stop - left
            ]  # fmt: skip

    def applied(self, logits: Floats, shot: _Shot, inside: tuple[slice, slice], place: tuple[slice, slice]) -> Floats:
        """Logits of a part of a window [K, r, c] times their weights: new memory, unless there is one window alone.

        Args:
            logits: Of the part.
            shot: The window.
            inside: Where the part lies in the window.
            place: And where in the view.
        """
        if self.single:
            return logits
        found: Floats = logits * (self.window[inside] / self.sums[shot.flips][place] * np.float32(shot.share))
        return found


def _batch(network: Network, pixels: int) -> int:
    return network.batch if network.batch is not None else max(BATCH_PIXELS // pixels, 1)


def _run(network: Network, image: Pixels, shots: Sequence[_Shot]) -> Iterator[tuple[_Shot, NDArray[np.float32]]]:
    """Each shot with its logits [K, h, w], turned back; a call of the network takes several, which have one size."""
    flips = len(shots[0].flips)
    step = max(_batch(network, shots[0].window.height * shots[0].window.width) // flips, 1)
    for first in range(0, len(shots), step):
        group = shots[first : first + step]
        crops = [
            crop(image, shot.window, mirrored=flip, padding=network.padding) for shot in group for flip in shot.flips
        ]
        found = network.logits_fn(np.stack(crops))
        for number, shot in enumerate(group):
            answers = found[number * flips : (number + 1) * flips]
            turned = [logits[..., ::-1] if flip else logits for logits, flip in zip(answers, shot.flips, strict=True)]
            if flips == 1:
                yield shot, turned[0]
            else:  # by merge "exp": the exponentials of logits are multiplied, those of scores of masks are added
                yield shot, np.logaddexp(*turned) if network.log_scores else turned[0] + turned[1]


def crop(image: Pixels, window: Window, *, mirrored: bool = False, padding: tuple[float, ...] | None = None) -> Pixels:
    """A window of an image [C, h, w], mirrored if asked for; what lies outside the image is black, or `padding`."""
    height, width = image.shape[1:]
    rows = slice(window.top, min(window.top + window.height, height))
    columns = slice(max(window.left, 0), min(window.left + window.width, width))
    found = image[:, rows, columns]
    before, below = columns.start - window.left, window.height - found.shape[1]
    after = window.width - found.shape[2] - before
    if below or before or after:
        inside, found = found, np.pad(found, ((0, 0), (0, below), (before, after)))
        if padding is not None:
            found[:] = np.asarray(padding).astype(found.dtype)[:, None, None]
            found[:, : inside.shape[1], before : before + inside.shape[2]] = inside
    return found[..., ::-1] if mirrored else found


def resized_image(image: Pixels, size: tuple[int, int], protocol: Protocol) -> Pixels:
    """The image [3, H, W] at the size of a view, as the protocol resizes; the image itself where it has that size."""
    if image.shape[1:] == size:
        return image
    if protocol.resize in ("long_edge", "tensor"):
        corners = protocol.resize == "long_edge"
        return resized_rows(image.astype(np.float32), size, range(size[0]), align_corners=corners)
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return resized_bands(pixels, size, interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)


def _softmax(logits: Floats) -> Floats:
    """Over the first axis, as new memory."""
    found: Floats = np.exp(logits - logits.max(axis=0))
    found /= found.sum(axis=0)
    return found


def _sigmoid(logits: Floats) -> Floats:
    """Compute the softmax in new memory; exponents are negative, so that none overflows."""
    small = np.exp(-np.abs(logits))
    found: Floats = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)
    return found


_PROBABILITIES = {"softmax": _softmax, "sigmoid": _sigmoid}
"""Merge of a protocol that averages probabilities -> how they come from logits."""


def probabilities(scores: Floats, merge: str) -> NDArray[np.float32]:
    """Scores [K, ...] of a protocol with this `merge` -> class probabilities, float32 [K, ...]."""
    if merge == "logits":
        found = _softmax(scores)
    elif merge == "sigmoid":
        found = scores
    else:  # exponentials of logits that are over 1400 apart may all be zero
        found = scores / np.maximum(scores.sum(axis=0), np.finfo(scores.dtype).tiny)
    return found.astype(np.float32)
