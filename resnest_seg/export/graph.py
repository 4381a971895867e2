"""A `Segmenter` as an exportable graph: pixels in, logits, probabilities or labels out, at any size.

The copy that is exported has no auxiliary head, no batch norms where they can be folded, and pools that torch.export
can follow at sizes that it does not know. Several models become one graph, of the mean of their probabilities.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import resnest_seg
from resnest_seg.config import DataConfig
from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.files import sha256
from resnest_seg.inference.ensemble import described, mean_thresholds, same_classes
from resnest_seg.inference.exported import ExportInfo
from resnest_seg.inference.torch_backend import setting_of
from resnest_seg.labels import LabelSpace
from resnest_seg.models.fuse import fold_batch_norms
from resnest_seg.models.mask2former import semantic_logits
from resnest_seg.models.resnest import SplitAttention
from resnest_seg.models.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of an export: inputs, outputs and precision of the file.

    Attributes:
        pixels: Type of the images, one of `resnest_seg.inference.exported.PIXELS`.
        layout: Their shape, one of `LAYOUTS`.
        output: What comes out, one of `OUTPUTS`.
        precision: One of `PRECISIONS`.
        calibration: For int8: training images, uint8 [H, W, 3], whose values decide the ranges.
    """

    pixels: str = "uint8"
    layout: str = "nchw"
    output: str = "logits"
    precision: str = "float32"
    calibration: Sequence[NDArray[np.uint8]] = ()


def members_of(model: Segmenter | Sequence[Segmenter]) -> tuple[Segmenter, ...]:
    """The models of an export: one, or those of an ensemble."""
    members = tuple(model) if isinstance(model, Sequence) else (model,)
    if not members:
        raise ConfigError("there is no model to export.")
    return members


def info_of(model: Segmenter | Sequence[Segmenter], options: ExportOptions) -> ExportInfo:
    """Metadata of an export of a model, or of the mean of several; a model without a label space gets numbered classes.

    Raises:
        ConfigError: An option that does not exist, or an output of another task; or more classes than a label space can
            have; models of other bands, or 8 bits for several models.
        CheckpointError: Models of other classes.
    """
    members = members_of(model)
    infos = [_info_of(member, options) for member in members]
    if len(infos) == 1:
        return infos[0]
    if options.precision == "int8":
        raise ConfigError(
            "several models are not exported as one file in 8 bits, which their mean would suffer from: export each by "
            "itself, and give predict, eval or serve the files (--checkpoint A.onnx --checkpoint B.onnx)."
        )
    first, names = infos[0], [_name_of(member, number) for number, member in enumerate(members)]
    for info, name in zip(infos, names, strict=True):
        if (info.bands, info.nodata, info.channels) != (first.bands, first.nodata, first.channels):
            raise ConfigError(
                f"models of one file need the same bands (data.bands, data.nodata): {names[0]} has "
                f"{first.bands or 'none'} with nodata {first.nodata}, and {name} {info.bands or 'none'} with nodata "
                f"{info.nodata}."
            )
    orders = same_classes([info.label_space for info in infos], names)
    digests = [info.source_sha256 for info in infos]
    return dataclasses.replace(
        first,
        description=described([info.description for info in infos]),
        output_stride=math.lcm(*(info.output_stride for info in infos)),
        size_divisor=math.lcm(*(info.size_divisor for info in infos)),
        min_size=max(info.min_size for info in infos),
        source=" + ".join(info.source or "a model in memory" for info in infos),
        source_sha256=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        thresholds=mean_thresholds([info.thresholds for info in infos], orders),
        members=tuple(f"{name} sha256:{digest}" for name, digest in zip(names, digests, strict=True)),
        predicts_masks=all(info.predicts_masks for info in infos),
    )


def _name_of(segmenter: Segmenter, number: int) -> str:
    """What a member of an ensemble is called: its file with its folder, or its number."""
    path = segmenter.load_report.path if segmenter.load_report is not None else None
    return f"model {number}" if path is None else "/".join(path.parts[-2:])


def _info_of(segmenter: Segmenter, options: ExportOptions) -> ExportInfo:
    """Metadata of an export of one model."""
    model, data = segmenter.config.model, segmenter.config.data
    _refuse_other_units(data, options.pixels)
    wrong = "softmax" if segmenter.task != "multiclass" else "sigmoid"
    if options.output == wrong:
        right = "sigmoid" if wrong == "softmax" else "softmax"
        raise ConfigError(f"the model is {segmenter.task}: its probabilities are its {right}, not {wrong} (--result).")
    source, digest = _source(segmenter)
    return ExportInfo(
        label_space=segmenter.label_space or _numbered(segmenter),
        mean=tuple(segmenter.pixel_mean.double().flatten().tolist()),
        std=tuple(segmenter.pixel_std.double().flatten().tolist()),
        description=segmenter.description,
        encoder=model.encoder,
        head=model.head,
        family=model.family,
        dilation=model.dilation,
        output_stride=segmenter.output_stride,
        align_corners=segmenter.align_corners,
        size_divisor=segmenter.size_divisor,
        min_size=segmenter.min_size,
        setting=setting_of(segmenter),
        pixels=options.pixels,
        layout=options.layout,
        output=options.output,
        precision=options.precision,
        source=source,
        source_sha256=digest,
        version=resnest_seg.__version__,
        thresholds=segmenter.decision_thresholds,
        bands=data.bands or (),
        nodata=data.nodata,
        predicts_masks=segmenter.predicts_masks,
    )


def _numbered(segmenter: Segmenter) -> LabelSpace:
    """Label space of a model that has none."""
    count = 2 if segmenter.task == "binary" else segmenter.num_classes
    return LabelSpace.numbered(count).for_task(segmenter.task, positive=("class 1",))


def _refuse_other_units(data: DataConfig, pixels: str) -> None:
    """Refuse a type of pixels that cannot hold the values of the training data."""
    if data.bands is None:
        if pixels == "uint16":
            raise ConfigError(
                "pixels uint16 is for models of many bands (data.bands), and this one takes photos: uint8."
            )
        return
    means = data.pixel_mean or (0.0,)
    if (pixels == "uint8" and max(means) > 255) or (pixels != "float32" and min(means) < 0):
        raise ConfigError(
            f"the bands of the model have means from {min(means):.5g} to {max(means):.5g}, which {pixels} pixels "
            "cannot hold: choose pixels float32 (--pixels float32)."
        )


def in_units_of(photos: NDArray[np.uint8], info: ExportInfo) -> NDArray[Any]:
    """Photos [N, H, W, 3] as images [N, H, W, C] with the mean and deviation of a model's bands, in the file's type.

    Channels beyond RGB repeat RGB; for a model of photos they are the photos.
    """
    pixels = photos[..., np.arange(info.channels) % 3]
    if not info.bands:
        return pixels
    kind = np.dtype(info.pixels)
    values = (pixels.astype(np.float32) - 115) / 58 * np.asarray(info.std, np.float32) + np.asarray(
        info.mean, np.float32
    )
    if kind.kind == "f":
        return values.astype(kind)
    return values.round().clip(np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def _source(segmenter: Segmenter) -> tuple[str, str]:
    """The name and the hash of the file that a model was loaded from; of a model in memory, the hash of its weights."""
    path = segmenter.load_report.path if segmenter.load_report is not None else None
    if path is not None and path.is_file():
        return path.name, sha256(path)
    digest = hashlib.sha256()
    for key, value in sorted(segmenter.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return "", digest.hexdigest()


class ExportGraph(nn.Module):
    """The computation of an exported file: images of `info.layout` and `info.pixels` to `info.output`.

    The pixels are normalised, and the logits resized, in float32 in every precision. Images are padded, unlike by the
    `Segmenter` without asking whether they have to be, because a graph that asks fits one size only.

    Args:
        segmenter: A model for inference, see `exportable`.
        info: The options.
    """

    mean: Tensor
    scale: Tensor
    thresholds: Tensor

    def __init__(self, segmenter: Segmenter, info: ExportInfo) -> None:
        super().__init__()
        self.register_buffer("mean", segmenter.pixel_mean.float())
        self.register_buffer("scale", 1 / segmenter.pixel_std.float())
        if info.thresholds:
            self.register_buffer("thresholds", torch.tensor(info.thresholds)[:, None, None])
        self.encoder, self.head, self.info = segmenter.encoder, segmenter.head, info
        self.masks = segmenter.predicts_masks
        self.dtype = torch.float16 if info.precision == "half" else torch.float32
        self.encoder.to(self.dtype)
        self.head.to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        if self.info.layout == "nhwc":
            images = images.permute(0, 3, 1, 2).contiguous()
        height, width = images.shape[2:]
        x = (images.float() - self.mean) * self.scale
        tall, wide = self._padded(height), self._padded(width)
        padded = self.info.size_divisor > 1 or self.info.min_size > 1
        if padded:
            x = F.pad(x, (0, wide - width, 0, tall - height))
        found = self.head(self.encoder(x.to(self.dtype)))
        logits = (found[-1].masks if self.masks else found).float()
        logits = F.interpolate(logits, size=(tall, wide), mode="bilinear", align_corners=self.info.align_corners)
        logits = semantic_logits(found[-1].classes, logits) if self.masks else logits
        if padded:  # not by slices, of which torch.export wants to know whether they cut something off
            logits = logits.index_select(2, torch.arange(height, device=logits.device))
            logits = logits.index_select(3, torch.arange(width, device=logits.device))
        return _result(logits, self.info, self.thresholds if self.info.thresholds else None)

    def _padded(self, size: int) -> int:
        """Pad as the `Segmenter` does, written so that the exporter can prove the divisibility of an unknown size."""
        divisor = self.info.size_divisor
        steps = (size + divisor - 1) // divisor
        if self.info.min_size > divisor:
            steps = torch.sym_max(steps, -(-self.info.min_size // divisor))
        return divisor * steps


class MeanGraph(nn.Module):
    """The computation of the exported file of several models: the mean of their probabilities.

    Where the file gives logits, these are the logarithms of the mean probabilities, and of binary and multi-label
    models the numbers whose sigmoids are the mean of the members' sigmoids: what comes after them, a softmax, the best
    class, sigmoids against thresholds, is that of the mean.

    Args:
        graphs: The members' graphs, which give logits.
        orders: For each the places of its logits in the order of the first one's.
        info: The options, and what the file says about itself.
    """

    orders: Tensor
    thresholds: Tensor

    def __init__(self, graphs: Sequence[ExportGraph], orders: Sequence[Sequence[int]], info: ExportInfo) -> None:
        super().__init__()
        self.graphs, self.info = nn.ModuleList(graphs), info
        self.register_buffer("orders", torch.tensor(orders))
        if info.thresholds:
            self.register_buffer("thresholds", torch.tensor(info.thresholds)[:, None, None])
        self.permuted = [list(order) != list(range(len(order))) for order in orders]

    def forward(self, images: Tensor) -> Tensor:
        every: list[Tensor] = []
        for place, graph in enumerate(self.graphs):
            logits = graph(images)
            every.append(logits.index_select(1, self.orders[place]) if self.permuted[place] else logits)
        if self.info.label_space.task == "multiclass":
            logits = _log_mean([each.log_softmax(dim=1) for each in every])
        else:  # log of the mean probability of the label, less that of its absence
            present, absent = ([-F.softplus(sign * each) for each in every] for sign in (-1, 1))
            logits = _log_mean(present) - _log_mean(absent)
        return _result(logits, self.info, self.thresholds if self.info.thresholds else None)


def _log_mean(values: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the exponentials of tensors of one shape, which neither overflows nor vanishes."""
    stacked = torch.stack(list(values))
    top = stacked.amax(dim=0)
    return top + (stacked - top).exp().mean(dim=0).log()


def _result(logits: Tensor, info: ExportInfo, thresholds: Tensor | None) -> Tensor:
    """Logits [N, K, H, W] as what a file gives."""
    task = info.label_space.task
    if info.output == "softmax":
        return logits.softmax(dim=1)
    if info.output == "sigmoid":
        return logits.sigmoid()
    if info.output == "logits":
        return logits
    if task == "multiclass":
        return logits.argmax(dim=1).to(torch.uint8)
    assert thresholds is not None
    present = logits.sigmoid() >= thresholds
    if task == "binary":
        return present[:, 0].to(torch.uint8)
    bits = 1 << torch.arange(len(info.thresholds), dtype=torch.int32, device=logits.device)
    return (present.to(torch.int32) * bits[:, None, None]).sum(dim=1).to(torch.int32)


def orders_of(members: Sequence[Segmenter], info: ExportInfo) -> list[list[int]]:
    """For each member of an export the places of its scores in the order of the file's classes."""
    spaces = [info.label_space, *(member.label_space or _numbered(member) for member in members)]
    return same_classes(spaces, ["the file", *(_name_of(member, number) for number, member in enumerate(members))])[1:]


def exportable(model: Segmenter | Sequence[Segmenter], info: ExportInfo) -> ExportGraph | MeanGraph:
    """The graph of a model, or of the mean of several, on the CPU in eval mode; the models stay as they are.

    Raises:
        ExportError: Folding batch norms would change the output.
    """
    members = members_of(model)
    if len(members) == 1:
        return _exportable(members[0], info)
    options = ExportOptions(info.pixels, info.layout, "logits", info.precision)
    graphs = [_exportable(member, _info_of(member, options)) for member in members]
    return MeanGraph(graphs, orders_of(members, info), info).eval()


def _exportable(segmenter: Segmenter, info: ExportInfo) -> ExportGraph:
    twin = copy.deepcopy(segmenter).cpu().eval().requires_grad_(False).float()
    twin.aux_head = None
    images = 255 * torch.rand(1, info.channels, 72, 88, generator=torch.Generator().manual_seed(0))
    if not twin.fused:
        fold_batch_norms(twin, lambda: twin(images, coarse=True).logits)
    for name, module in list(twin.named_modules()):
        other = _followable(module)
        if other is not None:
            twin.set_submodule(name, other)
    for parameter in twin.parameters():
        # In channels-last memory, torch.export asks of every feature map whether it has more than one pixel.
        parameter.data = parameter.data.contiguous()
    return ExportGraph(twin, info).eval()


def trace(graph: ExportGraph | MeanGraph, *, smallest: int) -> ExportedProgram:
    """The graph as a program for any batch and size from `smallest` pixels on.

    Raises:
        ExportError: torch.export cannot follow the network.
    """
    info = graph.info
    shape = (2, 72, 88, info.channels) if info.layout == "nhwc" else (2, info.channels, 72, 88)
    rows = 1 if info.layout == "nhwc" else 2
    sizes = {0: Dim("batch", min=1), rows: Dim("height", min=smallest), rows + 1: Dim("width", min=smallest)}
    images = torch.zeros(shape, dtype=getattr(torch, info.pixels))
    # It cannot prove everything that is true of multiples of 32, and from torch 2.15 on of strides; then let it look at
    # run time.
    for deferred in (True,) if info.size_divisor > 1 else (False, True):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    graph,
                    (images,),
                    dynamic_shapes={"images": sizes},
                    prefer_deferred_runtime_asserts_over_guards=deferred,
                )
            break
        except Exception as error:  # it raises whatever comes up in it
            failure = error
    else:
        raise ExportError(
            f"{info.description}: torch.export cannot follow this network at sizes that it does not know "
            f"({type(failure).__name__}: {first_line(failure)})."
        ) from failure
    for node in program.graph.nodes:  # which name the folders of this machine
        node.meta.pop("stack_trace", None)
    return program


def smallest_for_torch(info: ExportInfo) -> int:
    """Height and width from which on a .pt2 file works: where the last features have more than one pixel.

    torch.export takes a dimension that may be 1 for one that is.
    """
    return max(info.output_stride, info.size_divisor) + 1


def first_line(error: Exception) -> str:
    """First line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


@dataclasses.dataclass(frozen=True)
class _Pool:
    """The values of a pool that are one for both directions."""

    kernel: int
    stride: int
    padding: int


class StridedPool(nn.Module):
    """A pool with a stride as one without, of which pixels are left out: the same numbers.

    torch.export binds a size to be even or odd where a pool has a stride. `edge` stands for ceil_mode: the last row and
    column are repeated, which changes no maximum, and no mean of 2 x 2 that leaves out what lies outside.
    """

    def __init__(self, pool: _Pool, *, mean: bool, edge: bool, count_padding: bool) -> None:
        super().__init__()
        self.pool, self.mean, self.edge, self.count_padding = pool, mean, edge, count_padding

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.pool.kernel, self.pool.stride, self.pool.padding
        if self.edge:
            x = F.pad(x, (0, stride - 1, 0, stride - 1), mode="replicate")
        if self.mean:
            x = F.avg_pool2d(x, kernel, 1, padding, count_include_pad=self.count_padding)
        else:
            x = F.max_pool2d(x, kernel, 1, padding)
        return x[:, :, ::stride, ::stride]


class PartMeans(nn.Module):
    """Adaptive average pooling as two products with matrices of means, for sizes that are not known.

    [N, C, h, w] -> [N, C, rows, columns]; part i of p covers the pixels floor(i h / p) to ceil((i + 1) h / p) - 1.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows == self.columns == 1:
            return x.mean(dim=(2, 3), keepdim=True)
        return _means(self.rows, x.shape[2], x) @ x @ _means(self.columns, x.shape[3], x).T


class CopiedSplits(SplitAttention):
    """`SplitAttention` on copies of the splits: of views, torch.export asks how their strides compare.

    Other runtimes have no strides, so that nothing is copied there.
    """

    def __init__(self, module: SplitAttention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(module.__dict__)

    def weighted_sum(self, features: Tensor, weights: Tensor) -> Tensor:
        """Compute the output of `SplitAttention`."""
        splits = [split.contiguous() for split in features.chunk(self.radix, dim=1)]
        products = [split * weight for split, weight in zip(splits, weights.chunk(self.radix, dim=1), strict=True)]
        return sum(products[1:], start=products[0])


def _means(parts: int, size: int, like: Tensor) -> Tensor:
    """[parts, size]: in each row the weights of the pixels of a part."""
    part = torch.arange(parts, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    # floor(part size / parts) <= place < ceil((part + 1) size / parts), without divisions
    inside = ((place + 1) * parts > part * size) & (place * parts < (part + 1) * size)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


def _followable(module: nn.Module) -> nn.Module | None:
    """Replacement that computes the same as a module at every size; None for modules that can stay."""
    if isinstance(module, SplitAttention):
        return CopiedSplits(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size = module.output_size
        rows, columns = (size, size) if not isinstance(size, tuple) else size
        return None if rows is None or columns is None else PartMeans(rows, columns)
    if not isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        return None
    pool = _Pool(*(_single(value) for value in (module.kernel_size, module.stride, module.padding)))
    mean = isinstance(module, nn.AvgPool2d)
    plain = module.divisor_override is None if isinstance(module, nn.AvgPool2d) else _single(module.dilation) == 1
    edge = bool(module.ceil_mode) and pool.stride > 1
    fits = not edge or (pool.padding == 0 and pool.kernel >= pool.stride)
    if mean and edge:
        fits = fits and pool.kernel == pool.stride == 2 and not module.count_include_pad
    if min(pool.kernel, pool.stride, pool.padding + 1) < 1 or pool.stride == 1 or not (plain and fits):
        return None
    count = isinstance(module, nn.AvgPool2d) and module.count_include_pad
    return StridedPool(pool, mean=mean, edge=edge, count_padding=count)


def _single(value: int | tuple[int, ...]) -> int:
    """A value for both directions; -1 where they differ."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else -1
    return value
