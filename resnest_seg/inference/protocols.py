"""Inference protocols by name: which views of an image a model sees, and how their scores are merged.

"Multi-scale mIoU" is not one number: evaluators differ in how they resize, where they put windows, how they merge
flips, windows and scales, and how absent classes count. A `Protocol` records all of it. Plain arithmetic without torch;
the engines carry a protocol out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.io.resize import canvas_size, long_edge_size

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The usual scales."""

CITYSCAPES_SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
"""PyTorch-Encoding's scales for Cityscapes."""

SCALE_RANGE, MOST_SCALES = (0.01, 16.0), 64
"""Scales from which a network can see something, and which leave an image that fits into memory; how many a protocol
may have."""

LONGEST_EDGE = 1 << 20
"""Pixels of the longest edge of a window or of a view's base."""

RESIZES = ("image", "tensor", "canvas", "long_edge")
MERGES = ("logits", "softmax", "exp", "sigmoid")
BLENDS = ("none", "hann", "distance")
PLACEMENTS = ("inward", "cut", "even")
PADDINGS = ("none", "stride", "window")


class Window(NamedTuple):
    """A rectangle of an image in pixels; what of it lies outside the image is black."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An inference protocol: all choices that determine the scores of an image.

    Attributes:
        name: How reports call it.
        scales: Every scale makes one resized view of the image.
        flip: Show every view mirrored as well.
        resize: How a scale makes a size: "image" (height and width times the scale; uint8, OpenCV's bilinear),
            "tensor" (the same sizes; float bilinear by pixel centres), "canvas" (the largest size within `canvas` times
            the scale; uint8, OpenCV's bilinear) or "long_edge" (long edge `base_size` times the scale; float bilinear
            with aligned corners).
        base_size: For "long_edge", in pixels.
        canvas: For "canvas", long and short edge in pixels.
        window: Height and width of the windows that a view is cut into; None takes a view as a whole.
        step: Pixels down and right from one window to the next.
        placement: The last window of a row or column is shifted "inward" to end with the view, or "cut" at its edge and
            filled up with black. "even" makes all windows as small as their number and overlap allow, so that little of
            a view is looked at twice.
        padding: A view is padded below and right with black to multiples of the network's "stride", to at least one
            "window", or not at all ("none").
        merge: What of a view is averaged: "logits", their "softmax", or the "exp" of the sum of a window's logits and
            its mirror image's, which are summed over the scales; or the "sigmoid" of each logit, which binary and
            multi-label models take in the place of the others.
        blend: Weights of a window's pixels where windows overlap: "none" (all alike), "hann" or "distance" to the edge.
        absent: What a class counts in the mean IoU that neither labels nor predictions have: "skipped" or "zero".
    """

    name: str = "custom"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    resize: str = "image"
    base_size: int = 520
    canvas: tuple[int, int] = (2048, 512)
    window: tuple[int, int] | None = None
    step: tuple[int, int] = (320, 320)
    placement: str = "inward"
    padding: str = "none"
    merge: str = "logits"
    blend: str = "none"
    absent: str = "skipped"

    def __post_init__(self) -> None:
        for key, known in (("resize", RESIZES), ("merge", MERGES), ("blend", BLENDS), ("placement", PLACEMENTS),
                           ("padding", PADDINGS), ("absent", ("skipped", "zero"))):  # fmt: skip
            if getattr(self, key) not in known:
                raise unknown_name(f"protocol.{key}", getattr(self, key), known)
        low, high = SCALE_RANGE
        if not self.scales or len(self.scales) > MOST_SCALES or not all(low <= scale <= high for scale in self.scales):
            raise ConfigError(
                f"protocol {self.name}: scales must be 1 to {MOST_SCALES} numbers from {low} to {high}, not "
                f"{', '.join(f'{scale:g}' for scale in self.scales[:MOST_SCALES]) or 'none'}."
            )
        edges = [self.base_size, *self.canvas, *self.step, *(self.window or ())]
        if min(edges) < 1 or max(edges) > LONGEST_EDGE:
            raise ConfigError(
                f"protocol {self.name}: base size, canvas, window and step must be 1 to {LONGEST_EDGE} pixels, not "
                f"{', '.join(map(str, edges))}."
            )
        if self.window is not None and any(s > w for s, w in zip(self.step, self.window, strict=True)):
            raise ConfigError(
                f"protocol {self.name}: windows of {self.window} pixels that are {self.step} pixels apart leave gaps. "
                "The step must not exceed the window (the overlap must not be negative)."
            )

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Height and width of the view of an image at a scale, at least one pixel each."""
        if self.resize == "long_edge":
            return long_edge_size(height, width, math.ceil(self.base_size * scale))
        if self.resize == "canvas":
            long, short = (max(int(edge * scale), 1) for edge in self.canvas)
            return canvas_size(height, width, (long, short))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)

    def windows(self, height: int, width: int, *, stride: int) -> list[Window]:
        """The windows of a view of this size, row by row from the top.

        Args:
            height: Of the view.
            width: Of the view.
            stride: The network's output stride, for `padding="stride"`.
        """
        if self.window is None:
            unit = stride if self.padding == "stride" else 1
            return [Window(0, 0, height + -height % unit, width + -width % unit)]
        tall, wide = self.window
        axes = zip((height, width), self.window, self.step, strict=True)
        if self.placement == "even":
            (rows, tall), (columns, wide) = (_evenly(*axis, unit=stride) for axis in axes)
        else:
            rows, columns = (self._places(*axis) for axis in axes)
        if self.padding != "window":  # an image smaller than the window is its own window
            unit = stride if self.padding == "stride" else 1
            tall, wide = min(tall, height + -height % unit), min(wide, width + -width % unit)
        return [Window(top, left, tall, wide) for top in rows for left in columns]

    def _places(self, length: int, window: int, step: int) -> list[int]:
        """Return the offsets of the windows along one edge."""
        if length <= window:
            return [0]
        if self.placement == "cut":
            return list(range(0, length - window + step, step))
        return [min(place, length - window) for place in range(0, length - window + step, step)]

    @property
    def description(self) -> str:
        """The protocol in one line."""
        views = ", ".join(f"{scale:g}" for scale in self.scales) + (" and mirrored" if self.flip else "")
        sizes = {"long_edge": f"long edge {self.base_size}", "canvas": f"canvas {self.canvas[0]} x {self.canvas[1]}"}
        whole = (
            f", windows {self.window[0]} x {self.window[1]} every {self.step[0]} x {self.step[1]}"
            f"{' or less' if self.placement == 'even' else ''}"
            if self.window
            else ""
        )
        blend = f" blended by {self.blend}" if self.blend != "none" else ""
        return (
            f"{self.name}: scales {views} of {sizes.get(self.resize, 'the image')}{whole}{blend}, merged by "
            f"{self.merge}, absent classes {'count 0' if self.absent == 'zero' else 'skipped'}"
        )


def _evenly(length: int, window: int, step: int, *, unit: int) -> tuple[list[int], int]:
    """Return offsets and size of windows along an edge: the smallest multiple of `unit` that keeps the overlap."""
    overlap = window - step
    count = max(math.ceil((length - overlap) / step), 1)
    if count == 1:
        return [0], window
    size = math.ceil((length + (count - 1) * overlap) / count)
    size = min(size + -size % unit, window)
    return [number * (length - size) // (count - 1) for number in range(count)], size


class Setting(NamedTuple):
    """Training sizes of a run, from which the named protocols are derived.

    Attributes:
        dataset: Name of the data set; Cityscapes has scales and a canvas of its own.
        recipe: "encoding" or "mmseg".
        base_size: Of the recipe, in pixels.
        crop: Height and width of the training crop in pixels.
        long_edge: Of the canvas of recipe mmseg, in pixels.
    """

    dataset: str = "ade20k"
    recipe: str = "encoding"
    base_size: int = 520
    crop: tuple[int, int] = (480, 480)
    long_edge: int = 2048

    @property
    def long_edge_base(self) -> int:
        """Long edge at scale 1 in PyTorch-Encoding's recipe; the base size of recipe mmseg is a short edge."""
        if self.recipe == "mmseg":
            return 2048 if self.dataset == "cityscapes" else 520
        return self.base_size

    @property
    def canvas(self) -> tuple[int, int]:
        """Long and short edge of mmsegmentation's canvas at scale 1."""
        if self.recipe == "mmseg":
            return self.long_edge, self.base_size
        return (2048, 1024) if self.dataset == "cityscapes" else (2048, 512)


def whole(setting: Setting) -> Protocol:
    """One pass over the whole image at its own size, padded with black as far as the network's stride needs."""
    return Protocol("whole", padding="stride")


def slide(setting: Setting) -> Protocol:
    """Windows of the training crop at the image's own size, two thirds of a window apart; logits averaged."""
    return Protocol("slide", window=setting.crop, step=_two_thirds(setting.crop))


def encoding(setting: Setting) -> Protocol:
    """PyTorch-Encoding's multi-scale evaluator (MultiEvalModule), which the authors' ADE20K numbers were made with."""
    edge = max(setting.crop)
    return Protocol(
        "encoding",
        scales=CITYSCAPES_SCALES if setting.dataset == "cityscapes" else SCALES,
        flip=True,
        resize="long_edge",
        base_size=setting.long_edge_base,
        window=(edge, edge),
        step=_two_thirds((edge, edge)),
        placement="cut",
        padding="window",
        merge="exp",
        absent="zero",
    )


def mmseg(setting: Setting) -> Protocol:
    """mmsegmentation 1.x's test-time augmentation: the mean of every view's softmax at the original size."""
    return Protocol("mmseg", scales=SCALES, flip=True, resize="image", merge="softmax")


def mmseg0(setting: Setting) -> Protocol:
    """mmsegmentation 0.x's, which its published numbers were made with: scales of a canvas, not of the image."""
    return Protocol("mmseg0", scales=SCALES, flip=True, resize="canvas", canvas=setting.canvas, merge="softmax")


def paddle(setting: Setting) -> Protocol:
    """PaddleSeg's augmented evaluation: the mean of raw logits; its scales are the user's, here 0.75, 1, 1.25."""
    return Protocol("paddle", scales=(0.75, 1.0, 1.25), flip=True, resize="tensor", merge="logits", absent="zero")


PROTOCOLS = {"whole": whole, "slide": slide, "encoding": encoding, "mmseg": mmseg, "mmseg0": mmseg0, "paddle": paddle}
"""Name -> the protocol for a setting."""


def protocol(name: str, *, setting: Setting = Setting()) -> Protocol:  # noqa: B008  # a constant
    """The protocol of a name.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name](setting)


def with_options(
    base: Protocol,
    *,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    window: int | None = None,
    overlap: int | None = None,
    placement: str | None = None,
    merge: str | None = None,
    blend: str | None = None,
) -> Protocol:
    """A protocol with some of its ingredients replaced, and a name that says so; None leaves an ingredient as it is.

    Args:
        base: The protocol to start from.
        scales: Scales of the views.
        flip: Whether views are shown mirrored as well.
        window: Edge of square windows in pixels; 0 takes views as a whole.
        overlap: Pixels that neighbouring windows share; None with a new window is an eighth of it.
        placement: See `Protocol`.
        merge: See `Protocol`.
        blend: See `Protocol`.

    Raises:
        ConfigError: An ingredient makes no sense, or an overlap without windows.
    """
    changes: dict[str, object] = {}
    if scales is not None:
        changes["scales"] = tuple(scales)
    for key, value in (("flip", flip), ("placement", placement), ("merge", merge), ("blend", blend)):
        if value is not None:
            changes[key] = value
    if window is not None:
        if window < 0:
            raise ConfigError(f"a window must be at least 1 pixel, or 0 for none, not {window}.")
        changes["window"] = (window, window) if window else None
        overlap = window // 8 if overlap is None and window else overlap
    size = base.window if window is None else (window, window) if window else None
    if overlap is not None and size is None:
        raise ConfigError(f"protocol {base.name} has no windows that could overlap: give a window size as well.")
    if overlap is not None and size is not None:
        if not 0 <= overlap < min(size):
            raise ConfigError(
                f"an overlap must lie in 0..{min(size) - 1}, below the window's {min(size)} pixels, not {overlap}."
            )
        changes["step"] = (size[0] - overlap, size[1] - overlap)
    changed = {key: value for key, value in changes.items() if value != getattr(base, key)}
    if not changed:
        return base
    names = [key for key in changed if key not in ("step", "placement") or "window" not in changed]
    return dataclasses.replace(base, name=f"{base.name} ({', '.join(names)} changed)", **changed)  # type: ignore[arg-type]


def with_tiles(base: Protocol, tile: int | None, overlap: int | None) -> Protocol:
    """A protocol in tiles of at most `tile` pixels that fade where they overlap; None leaves it as it is.

    Raises:
        ConfigError: A tile or an overlap that makes no sense.
    """
    if tile is not None and tile < 1:
        raise ConfigError(f"a tile must be at least 1 pixel, not {tile}.")
    if tile is None and overlap is None:
        return base
    return with_options(base, window=tile, overlap=overlap, placement="even" if tile else None, blend="hann")


def _two_thirds(window: tuple[int, int]) -> tuple[int, int]:
    return max(int(window[0] * 2 / 3), 1), max(int(window[1] * 2 / 3), 1)
