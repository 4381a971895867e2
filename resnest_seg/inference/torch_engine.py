"""Inference protocols carried out in torch: from a `logits_fn` and an image to scores or labels, in bounded memory.

A `logits_fn` maps images [N, 3, H, W] (RGB, 0..255) to logits [N, K, h, w], at the images' size or coarser; coarse
logits are resized bilinearly here, a few rows at a time, and windows are run when their rows are asked for. Nothing
here knows a model class or a data set, so the same functions serve validation, evaluation and a user's photo.

The memory at a time is that of the logits of the windows that the current rows need, at the size the network gives
them, and a slab of rows of scores within the memory budget; the scores of the whole image exist only on request.

Shapes: K classes, H x W image pixels, h x w pixels of a resized view or of coarse logits, r rows, F flips (1 or 2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.protocols import Protocol, Window, with_options
from resnest_seg.io.resize import pixel_weights, resized_bands, taps
from resnest_seg.models.mask2former import semantic_scores, unpacked
from resnest_seg.models.pixel_range import PixelRange

LogitsFn = Callable[[Tensor], Any]
"""Images [N, 3, H, W] -> logits [N, K, h, w], at the images' size or coarser, or an output with them as `.logits`."""

CPU_PIXELS, GPU_PIXELS = 2 * 512 * 512, 16 * 512 * 512
"""Pixels of the images that one call of the network gets, where no batch size is given."""


def _logits_of(output: object) -> Tensor:
    """The logits of whatever a network returns: a tensor, or an output that has them under that name."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        kind = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"a logits_fn must return logits [N, K, h, w], or an output with .logits, not {kind}: pass a function such "
            'as lambda images: model(images)["out"].'
        )
    return logits


class Runner:
    """A `logits_fn` with what must be known to use it, called on batches that fit into memory.

    When CUDA runs out of memory, the batch is halved and the images are run again; what fitted is remembered.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w].
        stride: Input pixels per step of the network's last features.
        align_corners: How coarse logits are resized: PyTorch-Encoding aligns corners, mmsegmentation does not.
        batch: Images a call; None takes as many as have a fixed number of pixels, more on a GPU.
        device: Where the network is; images are moved there. None leaves them where they are.
        pixel_range: What looks at float images before views are made of them; None does not, for a network whose range
            is not known.
        padding: Values of what lies outside an image, [C]; None is 0, black.
        mask_classes: K of a network whose logits are masks and their classes, `resnest_seg.models.mask2former.packed`;
            None of any other.
        mask_divisor: Such a network pads images to multiples of it, and gives masks of the padded ones.

    Raises:
        ConfigError: A batch below 1.
        CheckpointError: From a call: logits that are no finite numbers, whose labels would be garbage.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        *,
        stride: int = 8,
        align_corners: bool = True,
        batch: int | None = None,
        device: torch.device | str | None = None,
        pixel_range: PixelRange | None = None,
        padding: Tensor | None = None,
        mask_classes: int | None = None,
        mask_divisor: int = 1,
    ) -> None:
        if batch is not None and batch < 1:
            raise ConfigError(f"a batch must have at least 1 image, not {batch}.")
        self.logits_fn, self.stride, self.align_corners = logits_fn, stride, align_corners
        self.batch, self.device, self._limit = batch, device, math.inf
        self.pixel_range, self.padding = pixel_range, padding
        self.mask_classes, self.mask_divisor = mask_classes, mask_divisor

    def __call__(self, crops: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Functions that give images [3, H, W] of one size -> float32 logits [N, K, h, w]."""
        found: Tensor | None = None  # in one piece: small ones between the network's large ones would fragment memory
        done = 0
        while found is None or done < len(crops):
            first = crops[done]()
            part = crops[done + 1 : done + self.batch_size(first.shape[1] * first.shape[2], first)]
            images = torch.stack([first, *(crop() for crop in part)])
            try:
                logits = _logits_of(self.logits_fn(images.to(self.device)))
            except torch.OutOfMemoryError:
                if len(images) == 1:
                    raise
                self._limit = len(images) // 2 * first[0].numel()
                continue
            if found is None:
                found = logits.new_empty((len(crops), *logits.shape[1:]), dtype=torch.float32)
            found[done : done + len(images)] = logits
            done += len(images)
        if not bool(found.isfinite().all()):
            raise CheckpointError(
                "the model's logits are not all finite numbers (NaN or infinity): its weights are damaged, or they "
                "overflow in this precision. Try another checkpoint, or precision fp32."
            )
        return found

    def batch_size(self, pixels: int, image: Tensor) -> int:
        """How many windows of so many pixels, cut from an image, one call takes."""
        gpu = image.is_cuda if self.device is None else torch.device(self.device).type == "cuda"
        usual = self.batch if self.batch is not None else (GPU_PIXELS if gpu else CPU_PIXELS) // pixels
        return max(int(min(usual, self._limit / pixels)), 1)


class View:
    """One resized copy of an image, whose windows go through the network as rows of its logits are asked for.

    Args:
        run: The network.
        image: [3, H, W], RGB 0..255; anything with `shape` and slices of tensors will do if no resizing is needed.
        size: Height and width of the view.
        protocol: What decides the windows, flips and merging.
    """

    def __init__(self, run: Runner, image: Any, size: tuple[int, int], protocol: Protocol) -> None:
        self.run, self.protocol = run, protocol
        self.size = size
        self.image = resized_image(image, size, protocol)
        self.flips = (False, True) if protocol.flip else (False,)
        self.bands: dict[int, list[Window]] = {}
        for window in protocol.windows(*self.size, stride=run.stride):
            self.bands.setdefault(window.top, []).append(window)
        self._logits: dict[int, Tensor] = {}  # top of a band -> [windows, F, K, h, w]
        self._weights: Tensor | None = None  # of a window's pixels, where windows are blended
        self.shift, self.dtype = 0.0, torch.float32

    def band(self, top: int) -> Tensor:
        """Coarse logits of the windows that begin at this row, [windows, F, K, h, w]; computed once."""
        if top not in self._logits:
            _load([(self, top)])
        return self._logits[top]

    def take(self, top: int, logits: Tensor) -> None:
        """Take over the logits of a band, [windows * F, K, h, w]."""
        logits = logits.unflatten(0, (-1, len(self.flips)))
        linear = self.run.mask_classes is None
        if linear and len(self.flips) > 1 and self.protocol.merge == "exp":  # flips can be summed before resizing
            logits = logits[:, :1] + logits[:, 1:].flip(-1)
        self._logits[top] = logits

    @property
    def calls(self) -> float:
        """How many calls of the network the view is worth: below 1 where others fit in, too."""
        sizes = [window.height * window.width for windows in self.bands.values() for window in windows]
        return len(self.flips) * sum(1 / self.run.batch_size(pixels, self.image) for pixels in sizes)

    @property
    def loaded(self) -> bool:
        """True if the logits of all windows are computed."""
        return len(self._logits) == len(self.bands)

    def rows(self, first: int, last: int) -> Tensor:
        """Logits, or exponentials of them, in the view's own pixels: [F, K, last - first, w], all turned one way.

        Rows must be asked for from the top down: windows that end above `first` are forgotten.
        """
        for top in [top for top in self._logits if top + self.bands[top][0].height <= first]:
            if self.protocol.merge != "exp":  # whose logits are all needed first, and kept
                del self._logits[top]
        tops = [top for top in self.bands if top < last and top + self.bands[top][0].height > first]
        if len(self.bands) == 1 and len(self.bands[tops[0]]) == 1:
            return self._turned_back(self._part(self.band(tops[0])[0], self.bands[tops[0]][0], first, last))
        sums: Tensor | None = None
        for top in tops:
            for window, logits in zip(self.bands[top], self.band(top), strict=True):
                a, b = max(first, top), min(last, top + window.height)
                part = self._part(logits, window, a, b)
                if sums is None:
                    sums = part.new_zeros((*part.shape[:2], last - first, self.size[1]))
                    weights = part.new_zeros((last - first, self.size[1]))
                place = (slice(a - first, b - first), slice(window.left, window.left + part.shape[3]))
                if self.protocol.blend == "none":
                    weights[place] += 1
                else:
                    if self._weights is None:
                        weights_of = pixel_weights(window.height, window.width, self.protocol.blend)
                        self._weights = torch.from_numpy(weights_of).to(part)
                    weight = self._weights[a - top : b - top, : part.shape[3]]
                    weights[place] += weight
                    part = part * weight
                sums[:, :, place[0], place[1]] += part
        assert sums is not None
        return self._turned_back(sums.div_(weights))

    def _part(self, logits: Tensor, window: Window, first: int, last: int) -> Tensor:
        """Rows first..last of the view within one window: [F, K, last - first, columns of the view]."""
        rows = range(first - window.top, last - window.top)
        if self.run.mask_classes is not None:
            return self._part_of_masks(logits, window, rows)
        part = resized_rows(logits, (window.height, window.width), rows, align_corners=self.run.align_corners)
        part = part[..., : self.size[1] - window.left]
        if self.protocol.merge != "exp":
            return part
        part = part.to(self.dtype)
        return (part - self.shift).exp_() if self.shift else part.exp()

    def _part_of_masks(self, packed: Tensor, window: Window, rows: range) -> Tensor:
        """The same of masks: scores are made of resized masks; logits are their logarithms, `exp` gives the scores."""
        assert self.run.mask_classes is not None
        classes, masks = unpacked(packed, self.run.mask_classes)
        divisor = self.run.mask_divisor
        padded = (window.height + -window.height % divisor, window.width + -window.width % divisor)
        masks = resized_rows(masks, padded, rows, align_corners=False)[..., : window.width]
        scores = semantic_scores(classes, masks)
        if self.protocol.merge != "exp":
            scores = scores.clamp_(min=torch.finfo(scores.dtype).tiny).log_()
        elif len(scores) > 1:
            scores = scores[:1] + scores[1:].flip(-1)
        return scores[..., : self.size[1] - window.left]

    def _turned_back(self, rows: Tensor) -> Tensor:
        return rows if len(rows) == 1 else torch.stack([rows[0], rows[1].flip(-1)])

    def _crop(self, window: Window, mirrored: bool) -> Tensor:
        """A window of the view, [3, height, width]; of the mirrored view, or, for `exp`, the mirrored window."""
        left = window.left
        if mirrored and self.protocol.merge != "exp":
            left = self.size[1] - window.left - window.width
        rows = slice(window.top, min(window.top + window.height, self.size[0]))
        columns = slice(max(left, 0), min(left + window.width, self.size[1]))
        crop: Tensor = self.image[:, rows, columns]
        missing = (columns.start - left, left + window.width - columns.stop)
        below = window.height - crop.shape[1]
        if below or any(missing):
            crop = _padded(crop, missing, below, self.run.padding)
        return crop.flip(-1) if mirrored else crop


def _padded(crop: Tensor, beside: tuple[int, int], below: int, values: Tensor | None) -> Tensor:
    """Pad an image [C, h, w] left, right and below; with these values [C], or black."""
    if values is None:
        return F.pad(crop, (*beside, 0, below))
    _, height, width = crop.shape
    padded = values.to(crop)[:, None, None].repeat(1, height + below, width + sum(beside))
    padded[:, :height, beside[0] : beside[0] + width] = crop
    return padded


def preload(views: Sequence[View]) -> None:
    """Run all windows of views, be they of one image or of several, in as few calls of the network as possible."""
    _load([(view, top) for view in views for top in view.bands])


def _load(bands: Sequence[tuple[View, int]]) -> None:
    """Run the windows of (view, top) bands; those of one size go together."""
    sizes: dict[tuple[int, int], list[tuple[View, int]]] = {}
    for view, top in bands:
        sizes.setdefault(view.bands[top][0][2:], []).append((view, top))
    for group in sizes.values():
        crops = [
            functools.partial(view._crop, window, mirrored)
            for view, top in group
            for window in view.bands[top]
            for mirrored in view.flips
        ]
        found = group[0][0].run(crops)
        counts = [len(view.bands[top]) * len(view.flips) for view, top in group]
        for (view, top), logits in zip(group, found.split(counts), strict=True):
            view.take(top, logits)


def views_of(run: Runner, image: Any, protocol: Protocol) -> list[View]:
    """The views of an image [3, H, W], one a scale."""
    _, height, width = image.shape
    if run.pixel_range is not None and isinstance(image, Tensor):
        run.pixel_range.check(image)
    return [View(run, image, protocol.size(height, width, scale), protocol) for scale in protocol.scales]


def resized_image(image: Any, size: tuple[int, int], protocol: Protocol) -> Any:
    """The image [3, H, W] at the size of a view, as the protocol resizes; the image itself where it has that size."""
    if tuple(image.shape[1:]) == size:
        return image
    assert isinstance(image, Tensor), "an image that is read by windows cannot be resized"
    if protocol.resize in ("long_edge", "tensor"):
        corners = protocol.resize == "long_edge"
        return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=corners)[0]
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    resized = resized_bands(pixels, size, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1).to(image.device)


def resized_rows(
    x: Tensor, size: tuple[int, int], rows: range, *, align_corners: bool, source: tuple[int, int] | None = None
) -> Tensor:
    """Some rows of a bilinearly resized map: `F.interpolate(x, size)[:, :, rows]` without the other rows.

    Args:
        x: [F, K, h, w].
        size: (H, W) of the whole resized map.
        rows: Consecutive rows of it.
        align_corners: As in `F.interpolate`.
        source: Where x holds only some rows of the map to be resized: the height of that map, and x's first row in it.

    Returns:
        [F, K, len(rows), W].
    """
    height, offset = source or (x.shape[2], 0)
    if height == size[0]:
        x = x[:, :, rows.start - offset : rows.stop - offset]
    else:
        upper, shares = taps(rows, height, size[0], align_corners)
        above = torch.from_numpy(upper).to(x.device) - offset
        share = torch.from_numpy(shares).to(x.device, x.dtype)[:, None]
        below = (above + 1).clamp(max=x.shape[2] - 1)
        x = torch.lerp(x[:, :, above], x[:, :, below], share)
    return resized_columns(x, size[1], align_corners=align_corners, as_image=x.is_cuda)


def resized_columns(x: Tensor, width: int, *, align_corners: bool, as_image: bool) -> Tensor:
    """Resize [F, K, r, w] bilinearly to `width` columns, row by row: [F, K, r, width].

    Args:
        x: [F, K, r, w].
        width: Columns of the result.
        align_corners: As in `F.interpolate`.
        as_image: Call the kernel for images instead of the one for lines, with equal values. An H100 needs 0.10 instead
            of 0.58 s for the authors' protocol with it, because the other has one thread a column; a CPU is quicker
            with lines.
    """
    if x.shape[3] == width:
        return x
    if as_image:
        return F.interpolate(x, size=(x.shape[2], width), mode="bilinear", align_corners=align_corners)
    # Rows first and then columns, of few rows at a time: each value has two taps, and stays in the cache.
    lines = F.interpolate(x.flatten(0, 2)[None], size=width, mode="linear", align_corners=align_corners)[0]
    return lines.view(*x.shape[:3], width)


MEMORY = 1 << 30
"""Default budget of a slab of scores, in bytes."""

CPU_SLAB = 1 << 24
"""On a CPU, slabs stay within this many bytes: they fit its caches, and are several times as fast for that."""

EXP_LIMIT, EXP_LIMIT_64 = 80.0, 700.0
"""Exponents up to which a sum of exponentials is safe in float32 and in float64."""


def score_rows(
    run: Runner,
    image: Any,
    protocol: Protocol,
    *,
    memory: int = MEMORY,
    slab_rows: int | None = None,
    views: list[View] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The scores of an image, a slab of rows at a time.

    Args:
        run: The network.
        image: [3, H, W], RGB 0..255, uint8 or float.
        protocol: How it is shown to the network, and how its answers are merged.
        memory: Bytes that the scores of a slab and their intermediates may take.
        slab_rows: Rows of a slab; None takes what the memory allows.
        views: `views_of` the image where they have been preloaded; None makes them.

    Yields:
        The first row of a slab, and its scores [K, r, W]: the protocol's mean logits, mean probabilities, or sum of
        exponentials (of float64, where float32 could not hold them).

    Raises:
        ConfigError: The image has another shape.
    """
    if len(image.shape) != 3:
        raise ConfigError(f"an image must be [3, H, W], or a batch [N, 3, H, W], not {list(image.shape)}.")
    height, width = image.shape[1:]
    views = views_of(run, image, protocol) if views is None else views
    if protocol.merge == "exp" and run.mask_classes is None:  # which need the largest logit of the whole image first
        preload([view for view in views if not view.loaded])
        _agree_on_exponents(views)
    classes = views[0].band(0).shape[2]
    if run.mask_classes is not None:
        classes = 2 * classes + run.mask_classes  # masks before and after the sigmoid
    if slab_rows is None:
        row = 4 * classes * max(width, *(view.size[0] * view.size[1] // height for view in views))
        # a slab of scores, one of a view with its flips, and what computing and resizing that takes
        slab_rows = memory // (row * (2 + 4 * len(views[0].flips)))
        if not views[0].band(0).is_cuda:
            slab_rows = min(slab_rows, CPU_SLAB // row)
        slab_rows = max(slab_rows, 1)
    for first in range(0, height, slab_rows):
        last = min(first + slab_rows, height)
        yield first, _merged(views, first, last, size=(height, width), protocol=protocol)


def _merged(views: list[View], first: int, last: int, *, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Rows first..last of the image's scores, [K, last - first, W]."""
    total: Tensor | None = None
    corners = {"long_edge": True, "tensor": False}.get(protocol.resize, views[0].run.align_corners)
    for view in views:
        if view.size == size:
            rows = view.rows(first, last)
        else:
            upper, _ = taps(range(first, last), view.size[0], size[0], corners)
            source = range(int(upper[0]), min(int(upper[-1]) + 2, view.size[0]))
            slab = view.rows(source.start, source.stop)
            rows = resized_rows(
                slab, size, range(first, last), align_corners=corners, source=(view.size[0], source.start)
            )
        if protocol.merge in ("softmax", "sigmoid"):
            rows = rows.softmax(dim=1) if protocol.merge == "softmax" else rows.sigmoid()
        scores = rows.sum(dim=0) if len(rows) > 1 else rows[0]
        total = scores if total is None else total + scores
    assert total is not None
    return total if protocol.merge == "exp" else total / (len(views) * len(views[0].flips))


def scores(run: Runner, image: Any, protocol: Protocol, *, memory: int = MEMORY) -> Tensor:
    """All scores of an image, [K, H, W]; see `score_rows`."""
    return torch.cat([slab for _, slab in score_rows(run, image, protocol, memory=memory)], dim=1)


def _scores_of(run: Runner, images: Tensor, protocol: Protocol) -> Tensor:
    """All scores of an image [3, H, W], as [K, H, W], or of each image of a batch [N, 3, H, W], as [N, K, H, W].

    Images of a batch share calls of the network, as many as one call takes at the images' own size.

    Raises:
        ConfigError: The images have another shape.
    """
    if images.dim() != 4:
        return scores(run, images, protocol)
    if not len(images):
        raise ConfigError(f"a batch must have at least one image, not the shape {list(images.shape)}.")
    found: list[Tensor] = []
    for group in images.split(run.batch_size(images.shape[2] * images.shape[3], images[0])):
        views = [views_of(run, image, protocol) for image in group]
        if len(group) > 1:
            preload([view for each in views for view in each])
        for image, each in zip(group, views, strict=True):
            slabs = score_rows(run, image, protocol, views=each)
            found.append(torch.cat([slab for _, slab in slabs], dim=1))
    return torch.stack(found)


def labels(run: Runner, image: Any, protocol: Protocol, *, memory: int = MEMORY) -> Tensor:
    """The best class of every pixel, uint8 [H, W], without the scores of the whole image in memory."""
    slabs = score_rows(run, image, protocol, memory=memory)
    return torch.cat([slab.argmax(dim=0).to(torch.uint8) for _, slab in slabs])


def probabilities(scores: Tensor, merge: str) -> Tensor:
    """Scores [K, ...] of a protocol with this `merge` -> class probabilities, float32 [K, ...]."""
    if merge == "logits":
        return scores.softmax(dim=0)
    if merge == "sigmoid":
        return scores
    return (scores / scores.sum(dim=0)).float()


def whole(logits_fn: LogitsFn, image: Tensor, *, stride: int = 8, align_corners: bool = True) -> Tensor:
    """One pass over the whole image at its own size.

    The image is padded right and below with black to multiples of `stride`, as in training, and the logits are cropped
    back, so that features lie at the same pixels whatever the size.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w], or an output with them as `.logits`, as a `Segmenter`.
        image: [3, H, W], RGB 0..255, or a batch [N, 3, H, W].
        stride: Sizes become multiples of this many pixels, the network's output stride.
        align_corners: How logits that are coarser than the image are resized.

    Returns:
        Logits [K, H, W], or [N, K, H, W] of a batch.

    Raises:
        ConfigError: An option out of range, or images of another shape.
    """
    run = Runner(logits_fn, stride=stride, align_corners=align_corners)
    return _scores_of(run, image, Protocol("whole", padding="stride"))


def sliding_window(
    logits_fn: LogitsFn,
    image: Tensor,
    *,
    window: int = 480,
    overlap: int = 160,
    blend: str = "none",
    align_corners: bool = True,
    batch: int | None = None,
) -> Tensor:
    """The mean logits of overlapping square windows, the last of each row and column shifted inward.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w], or an output with them as `.logits`, as a `Segmenter`.
        image: [3, H, W], RGB 0..255, or a batch [N, 3, H, W].
        window: Edge of a window in pixels; a smaller image is its own window.
        overlap: Pixels that neighbours share, below `window`.
        blend: "none", or "hann" or "distance": pixels near the edge of a window count less.
        align_corners: How logits that are coarser than the image are resized.
        batch: Windows a call; None chooses.

    Returns:
        Logits [K, H, W], or [N, K, H, W] of a batch.

    Raises:
        ConfigError: An option out of range, or images of another shape.
    """
    method = with_options(Protocol("slide"), window=window, overlap=overlap, blend=blend)
    return _scores_of(Runner(logits_fn, align_corners=align_corners, batch=batch), image, method)


def multiscale(
    logits_fn: LogitsFn,
    image: Tensor,
    *,
    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip: bool = True,
    window: int | None = None,
    overlap: int | None = None,
    merge: str = "softmax",
    align_corners: bool = True,
    batch: int | None = None,
) -> Tensor:
    """Several sizes of an image, mirrored as well, merged: mmsegmentation's test-time augmentation by default.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, h, w], or an output with them as `.logits`, as a `Segmenter`.
        image: [3, H, W], RGB 0..255, or a batch [N, 3, H, W].
        scales: Sizes of the views, as multiples of the image's.
        flip: Show every view mirrored as well.
        window: Edge of square windows within a view, in pixels; None takes views as a whole.
        overlap: Pixels that neighbouring windows share; None is an eighth of the window.
        merge: What is averaged: "logits", their "softmax", or "exp" of the sum over flips.
        align_corners: How logits that are coarser than the image are resized.
        batch: Images a call; None chooses.

    Returns:
        Scores [K, H, W], see `score_rows`; or [N, K, H, W] of a batch.

    Raises:
        ConfigError: An option out of range, or images of another shape.
    """
    method = with_options(Protocol("multiscale"), scales=scales, flip=flip, window=window, overlap=overlap, merge=merge)
    return _scores_of(Runner(logits_fn, align_corners=align_corners, batch=batch), image, method)


def _agree_on_exponents(views: list[View]) -> None:
    """Choose one shift and precision for all exponentials of an image, so that their sums neither overflow nor vanish.

    Values are those of the plain formula wherever float32 can hold the best class of every pixel; beyond, float64 holds
    logits that are up to 1400 apart, and only what lies outside is scaled, by the same factor everywhere.
    """
    bands = [view.band(start) for view in views for start in view.bands]  # [windows, 1, K, h, w]
    top = max(float(band.max()) for band in bands)
    weakest = min(float(band.amax(dim=2).min()) for band in bands)  # the pixel whose best class is the lowest
    if top <= EXP_LIMIT and weakest >= -EXP_LIMIT:
        return
    shift = top - min(max(top, -EXP_LIMIT_64), EXP_LIMIT_64)
    for view in views:
        view.dtype, view.shift = torch.float64, shift
