"""Mask2Former: a set of masks, each with a class, instead of a class for each pixel.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", https://arxiv.org/abs/2112.01527. A
pixel decoder makes features of four strides from the encoder's; a transformer decoder lets learned queries look at
them, each within the mask that it predicted last; every query ends as a class and a mask. Deformable attention is that
of Zhu et al., "Deformable DETR", https://arxiv.org/abs/2010.04159. `SetLoss` assigns queries to the masks of the truth.

Module names follow mmsegmentation's `decode_head`, so that its state dicts load key by key.

Shapes: N batch, Q queries, K classes, C channels, L = h w positions of a level, H x W pixels of the labels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MASK2FORMER = "mask2former"
"""Name of the head."""

CHANNELS, HEADS, LEVELS, POINTS = 256, 8, 3, 4
"""Channels of all features and queries; heads of attention; levels (strides 32, 16, 8) and points a level and head of
deformable attention."""


class MaskPrediction(NamedTuple):
    """Masks and their classes.

    Attributes:
        classes: Scores before softmax, [N, Q, K + 1]; the last is that of no object.
        masks: Scores before sigmoid, [N, Q, h, w], a quarter of the image's size.
    """

    classes: Tensor
    masks: Tensor


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Scores of the classes for each pixel: the sum over queries of class probability times mask probability.

    Args:
        classes: [N, Q, K + 1], before softmax.
        masks: [N, Q, h, w], before sigmoid, at the size of the result: the published protocol resizes them first.

    Returns:
        [N, K, h, w], 0 or more; their sum over classes is not 1.
    """
    return _of_classes(classes, masks.sigmoid())


def semantic_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Logarithms of `semantic_scores`: logits with the same best classes, whose exponentials are the scores."""
    inside = 1 / (1 + (-masks.float()).exp())  # onnxruntime's sigmoid is 0 below -18, where logarithms still tell
    scores = _of_classes(classes.float(), inside)
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def _of_classes(classes: Tensor, inside: Tensor) -> Tensor:
    """Class scores [N, Q, K + 1] and mask probabilities [N, Q, h, w] -> [N, K, h, w]."""
    return torch.einsum("nqk,nqhw->nkhw", classes.softmax(dim=-1)[..., :-1], inside)


def packed(prediction: MaskPrediction) -> Tensor:
    """Masks and class scores in one tensor, float32 [N, Q, h + r, w]: the class scores fill r rows below the masks."""
    classes, masks = prediction.classes.float(), prediction.masks.float()
    width = masks.shape[3]
    return torch.cat([masks, F.pad(classes, (0, -classes.shape[2] % width)).unflatten(2, (-1, width))], dim=2)


def unpacked(tensor: Tensor, num_classes: int) -> MaskPrediction:
    """The prediction that `packed` made a tensor of, without a copy of the masks."""
    below = -(-(num_classes + 1) // tensor.shape[3])
    classes = tensor[:, :, -below:].flatten(2)[..., : num_classes + 1]
    return MaskPrediction(classes, tensor[:, :, :-below])


def sine_position(height: int, width: int, like: Tensor) -> Tensor:
    """Position embedding, [1, C, h, w] typed as `like`: sines and cosines of y in half of the channels, then x."""
    count = CHANNELS // 2
    frequency = 10000.0 ** (2 * torch.arange(count // 2, device=like.device, dtype=torch.float32) / count)

    def waves(size: int) -> Tensor:  # [size, C / 2], sine and cosine alternating
        place = torch.arange(1, size + 1, device=like.device, dtype=torch.float32)
        angles = (place / (size + 1e-6) * 2 * math.pi)[:, None] / frequency
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    rows, columns = waves(height)[:, None].expand(-1, width, -1), waves(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).permute(2, 0, 1)[None].to(like.dtype)


class ConvGN(nn.Module):
    """Convolution and group norm, optionally ReLU: [N, C, h, w] -> [N, 256, h, w]."""

    def __init__(self, in_channels: int, kernel_size: int, *, bias: bool = False, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, CHANNELS, kernel_size, padding=kernel_size // 2, bias=bias)
        self.gn = nn.GroupNorm(32, CHANNELS)
        self.relu = relu
        _xavier_or_kaiming(self.conv, xavier=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.conv(x))
        return x.relu() if self.relu else x


class FFN(nn.Module):
    """Two linear layers with ReLU between them, added to their input: [N, L, C] -> [N, L, C]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(CHANNELS, hidden), nn.ReLU())
        self.layers = nn.Sequential(first, nn.Linear(hidden, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


class DeformableAttention(nn.Module):
    """Every position of three levels looks at four points a level and head, whose places it chooses itself.

    Runs in float32 within autocast, too: places in half precision would be off by pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(CHANNELS, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(CHANNELS, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(CHANNELS, CHANNELS)
        self.output_proj = nn.Linear(CHANNELS, CHANNELS)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        # At first, heads look into eight directions, points at 1, 2, 3, 4 pixels.
        angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
        ways = torch.stack([angles.cos(), angles.sin()], dim=1)
        ways = ways / ways.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, POINTS + 1).view(1, 1, POINTS, 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ways.view(HEADS, 1, 1, 2) * steps).expand(-1, LEVELS, -1, -1).flatten())

    def forward(self, x: Tensor, position: Tensor, places: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Attend.

        Args:
            x: All levels one after the other, [N, L, C].
            position: Added to x where it asks, [1, L, C].
            places: Where each position lies in the image, x and y in 0..1, [L, 2].
            sizes: (h, w) of the levels.

        Returns:
            [N, L, C].
        """
        batch, length, _ = x.shape
        asking = x + position
        value = self.value_proj(x).transpose(1, 2)  # [N, C, L]
        offsets = self.sampling_offsets(asking).view(batch, length, HEADS, LEVELS, POINTS, 2)
        shares = self.attention_weights(asking).view(batch, length, HEADS, LEVELS * POINTS).softmax(dim=-1)
        shares = shares.permute(0, 2, 1, 3).reshape(batch * HEADS, 1, length, LEVELS, POINTS)
        total = x.new_zeros(())
        parts = value.split([height * width for height, width in sizes], dim=2)
        for level, (part, (height, width)) in enumerate(zip(parts, sizes, strict=True)):
            across = places[:, 0].view(1, length, 1, 1) + offsets[:, :, :, level, :, 0] / width
            down = places[:, 1].view(1, length, 1, 1) + offsets[:, :, :, level, :, 1] / height
            grid = 2 * torch.stack([across, down], dim=-1) - 1
            grid = grid.transpose(1, 2).flatten(0, 1)  # [N heads, L, points, 2]
            maps = part.reshape(batch * HEADS, CHANNELS // HEADS, height, width)
            seen = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            total = total + (seen * shares[:, :, :, level]).sum(dim=-1)
        found: Tensor = self.output_proj(total.reshape(batch, CHANNELS, length).transpose(1, 2))
        return found


class DeformableLayer(nn.Module):
    """Deformable attention and an FFN, each added to its input and normalised: [N, L, C] -> [N, L, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = DeformableAttention()
        self.ffn = FFN(1024)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2))
        for layer in self.ffn.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, position: Tensor, places: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        x = self.norms[0](x + self.self_attn(x, position, places, sizes))
        normalised: Tensor = self.norms[1](self.ffn(x))
        return normalised


class DeformableEncoder(nn.Module):
    """Six deformable layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableLayer() for _ in range(6))


class DeformablePixelDecoder(nn.Module):
    """Deformable attention over strides 32, 16 and 8, and one step of an FPN to stride 4.

    c1..c4 -> features of the mask [N, C, h, w] at stride 4, and three levels [N, C, h, w] at strides 32, 16, 8.

    Args:
        in_channels: Channels of c1, c2, c3, c4.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        c1, *others = in_channels
        self.input_convs = nn.ModuleList(ConvGN(channels, 1, bias=True) for channels in reversed(others))
        self.encoder = DeformableEncoder()
        self.level_encoding = nn.Embedding(LEVELS, CHANNELS)
        self.lateral_convs = nn.ModuleList([ConvGN(c1, 1)])
        self.output_convs = nn.ModuleList([ConvGN(CHANNELS, 3, relu=True)])
        self.mask_feature = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=1)
        _xavier_or_kaiming(self.mask_feature)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        c1, c2, c3, c4 = features
        with torch.autocast(c1.device.type, enabled=False):
            levels = self._attended([_float(c4), _float(c3), _float(c2)])
        fine = self.lateral_convs[0](c1)
        above = F.interpolate(levels[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.mask_feature(self.output_convs[0](fine + above)), levels

    def _attended(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The three levels after the encoder's layers."""
        inputs = [conv(x) for conv, x in zip(self.input_convs, features, strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in inputs]
        encoding = self.level_encoding.weight
        positions = [
            sine_position(height, width, x).flatten(2).transpose(1, 2) + encoding[level]
            for level, (x, (height, width)) in enumerate(zip(inputs, sizes, strict=True))
        ]
        position = torch.cat(positions, dim=1)
        places = torch.cat([_centres(height, width, inputs[0]) for height, width in sizes])
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], dim=1)
        again = torch.is_grad_enabled() and self.training  # or else these layers would take most of the memory
        for layer in self.encoder.layers:
            arguments = x, position, places, sizes
            x = checkpoint(layer, *arguments, use_reentrant=False) if again else layer(*arguments)
        parts = x.split([height * width for height, width in sizes], dim=1)
        return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


class ConvolutionalPixelDecoder(nn.Module):
    """A feature pyramid of convolutions alone, for runtimes and CPUs: the paper's FPN.

    c1..c4 -> features of the mask [N, C, h, w] at stride 4, and three levels [N, C, h, w] at strides 32, 16, 8.

    Args:
        in_channels: Channels of c1, c2, c3, c4.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.last_feat_conv = ConvGN(in_channels[-1], 3, relu=True)
        self.lateral_convs = nn.ModuleList(ConvGN(channels, 1) for channels in in_channels[:-1])
        self.output_convs = nn.ModuleList(ConvGN(CHANNELS, 3, relu=True) for _ in in_channels[:-1])
        self.mask_feature = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1)
        _xavier_or_kaiming(self.mask_feature)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        levels = [self.last_feat_conv(features[-1])]
        for index in reversed(range(len(features) - 1)):
            lateral = self.lateral_convs[index](features[index])
            above = F.interpolate(levels[-1], size=lateral.shape[2:], mode="nearest")
            levels.append(self.output_convs[index](lateral + above))
        return self.mask_feature(levels[-1]), levels[:LEVELS]


class Projections(nn.Module):
    """The parameters of `torch.nn.MultiheadAttention`, which itself would need a copy of the mask for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * CHANNELS, CHANNELS))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * CHANNELS))
        self.out_proj = nn.Linear(CHANNELS, CHANNELS)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)


class Attention(nn.Module):
    """Attention of several heads, added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Projections()

    def forward(self, x: Tensor, asking: Tensor, keys: Tensor, values: Tensor, open_at: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: What the result is added to, [N, Q, C].
            asking: [N, Q, C].
            keys: [N, L, C].
            values: [N, L, C].
            open_at: Where each query may look, bool [N, 1, Q, L]; None is everywhere.

        Returns:
            [N, Q, C].
        """
        thirds = [slice(third * CHANNELS, (third + 1) * CHANNELS) for third in range(3)]
        query, key, value = (
            F.linear(part, self.attn.in_proj_weight[third], self.attn.in_proj_bias[third])
            .unflatten(2, (HEADS, -1))
            .transpose(1, 2)
            for part, third in zip((asking, keys, values), thirds, strict=True)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=open_at)
        added: Tensor = x + self.attn.out_proj(found.transpose(1, 2).flatten(2))
        return added


class MaskedLayer(nn.Module):
    """Queries look at a level within their masks, then at each other, then pass an FFN; each step is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.cross_attn, self.self_attn, self.ffn = Attention(), Attention(), FFN(2048)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(3))
        for layer in self.ffn.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, embed: Tensor, level: Tensor, position: Tensor, open_at: Tensor) -> Tensor:
        x = self.norms[0](self.cross_attn(x, x + embed, level + position, level, open_at))
        x = self.norms[1](self.self_attn(x, x + embed, x + embed, x))
        normalised: Tensor = self.norms[2](self.ffn(x))
        return normalised


class MaskDecoder(nn.Module):
    """Nine masked layers and the norm before every prediction."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskedLayer() for _ in range(layers))
        self.post_norm = nn.LayerNorm(CHANNELS)


PIXEL_DECODERS: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "deformable": DeformablePixelDecoder,
    "fpn": ConvolutionalPixelDecoder,
}


class Mask2FormerHead(nn.Module):
    """c1..c4 at strides 4, 8, 16, 32 -> predictions of masks, the one before the first layer first, the best last.

    Args:
        in_channels: Channels of c1, c2, c3, c4.
        num_classes: K.
        pixel_decoder: One of `PIXEL_DECODERS`.
        queries: Q.
        layers: Layers of the decoder.
    """

    size_divisor = 32
    """The published models pad images to multiples of it."""

    predicts_masks = True

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        pixel_decoder: str = "deformable",
        queries: int = 100,
        layers: int = 9,
    ) -> None:
        super().__init__()
        self.pixel_decoder = PIXEL_DECODERS[pixel_decoder](in_channels)
        self.transformer_decoder = MaskDecoder(layers)
        self.query_feat, self.query_embed = nn.Embedding(queries, CHANNELS), nn.Embedding(queries, CHANNELS)
        self.level_embed = nn.Embedding(LEVELS, CHANNELS)
        self.cls_embed = nn.Linear(CHANNELS, num_classes + 1)
        self.mask_embed = nn.Sequential(
            *(layer for _ in range(2) for layer in (nn.Linear(CHANNELS, CHANNELS), nn.ReLU())),
            nn.Linear(CHANNELS, CHANNELS),
        )

    def forward(self, features: Sequence[Tensor]) -> list[MaskPrediction]:
        mask_features, levels = self.pixel_decoder(features[-4:])
        batch, sizes = mask_features.shape[0], [(level.shape[2], level.shape[3]) for level in levels]
        positions = [sine_position(*size, like=mask_features).flatten(2).transpose(1, 2) for size in sizes]
        flat = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(levels, self.level_embed.weight, strict=True)
        ]
        x = self.query_feat.weight.expand(batch, -1, -1)
        embed = self.query_embed.weight.expand(batch, -1, -1)
        predictions = [self._predict(x, mask_features)]
        for index, layer in enumerate(self.transformer_decoder.layers):
            level = index % LEVELS
            open_at = _open_positions(predictions[-1].masks, sizes[level])
            x = layer(x, embed, flat[level], positions[level], open_at)
            predictions.append(self._predict(x, mask_features))
        return predictions

    def _predict(self, x: Tensor, mask_features: Tensor) -> MaskPrediction:
        normalised = self.transformer_decoder.post_norm(x)
        masks = torch.einsum("nqc,nchw->nqhw", self.mask_embed(normalised), mask_features)
        return MaskPrediction(self.cls_embed(normalised), masks)


def _open_positions(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may look: where its mask is at least 0.5 at the level's size, everywhere if that is nowhere.

    Args:
        masks: [N, Q, h, w], before sigmoid.
        size: (h, w) of the level.

    Returns:
        bool [N, 1, Q, L].
    """
    resized = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False).flatten(2)
    inside = resized.sigmoid() >= 0.5
    return (inside | ~inside.any(dim=2, keepdim=True))[:, None]


def _float(x: Tensor) -> Tensor:
    """A tensor of half precision in float32, any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """x and y of the centres of a level's positions in 0..1, [L, 2]."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2).flatten(0, 1)


def _xavier_or_kaiming(conv: nn.Conv2d, *, xavier: bool = False) -> None:
    """Draw the weights of a convolution as the authors do: Xavier's before deformable attention, else Kaiming's."""
    if xavier:
        nn.init.xavier_uniform_(conv.weight)
    else:
        nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


Draw = Callable[[int, Sequence[int]], Tensor]
"""(index of an image in its batch, shape) -> uniform numbers in 0..1; each image has a sequence of its own."""


class SetLoss(nn.Module):
    """The loss of a set of masks: a query for every class that is present, no object for the others.

    For each prediction and image, queries are assigned to the classes present (Hungarian matching, by SciPy). Assigned
    queries learn class and mask, the others that they are no object. Masks are compared on points: three quarters where
    the mask is least sure, the others anywhere. Ignored pixels belong to no mask, as in the authors' code.

    Everything is a sum over images, divided by what the caller counted over the effective batch (`weight_of`), so that
    the losses of its parts add up to that of the whole.

    Args:
        num_classes: K.
        num_points: Points of a mask.
        ignore: Value of ignored pixels in labels.
    """

    CLASS, MASK, DICE = 2.0, 5.0, 5.0
    """Weights of the three parts, and of the three costs of an assignment."""

    NO_OBJECT = 0.1
    """Weight of queries without a mask in the class part."""

    OVERSAMPLED, UNSURE = 3, 0.75
    """Points that are drawn for one that is kept, and the share of the kept ones that are the least sure."""

    def __init__(self, num_classes: int, *, num_points: int = 12544, ignore: int = 255) -> None:
        super().__init__()
        self.num_classes, self.num_points, self.ignore = num_classes, num_points, ignore

    def weight_of(self, labels: Tensor, *, queries: int) -> Tensor:
        """A batch's part of the divisors: class weights of all queries of a prediction, and masks, [2]."""
        masks = sum(len(self._present(each)) for each in labels)
        assigned = sum(min(len(self._present(each)), queries) for each in labels)
        weights = assigned + self.NO_OBJECT * (len(labels) * queries - assigned)
        return torch.tensor([weights, float(masks)], device=labels.device)

    def forward(self, predictions: Sequence[MaskPrediction], labels: Tensor, *, total: Tensor, draw: Draw) -> Tensor:
        """The weighted sum of the parts of all predictions, a scalar; see `parts`."""
        weights = torch.tensor([self.CLASS, self.MASK, self.DICE], device=labels.device)
        return (self.parts(predictions, labels, total=total, draw=draw) * weights).sum()

    def parts(self, predictions: Sequence[MaskPrediction], labels: Tensor, *, total: Tensor, draw: Draw) -> Tensor:
        """The parts of each prediction.

        Args:
            predictions: Of one head.
            labels: [N, H, W], 0..K-1 or `ignore`.
            total: `weight_of` summed over the effective batch, [2].
            draw: Random numbers.

        Returns:
            Cross-entropy of classes, binary cross-entropy and dice loss of masks: [predictions, 3].
        """
        with torch.autocast(labels.device.type, enabled=False):
            rows = []
            for image, each in enumerate(labels):
                present = self._present(each)
                truth = (each == present.view(-1, 1, 1)).to(_float(predictions[0].masks).dtype)
                draw_here = functools.partial(draw, image)
                rows += [
                    self._of_image(_float(one.classes[image]), _float(one.masks[image]), present, truth, draw_here)
                    for one in predictions
                ]
            summed = torch.stack(rows).view(len(labels), len(predictions), 3).sum(dim=0)
            parts: Tensor = summed / torch.stack([total[0], *2 * [total[1].clamp(min=1)]])
            return parts

    def _present(self, labels: Tensor) -> Tensor:
        """The classes of labelled pixels, sorted, int64 [M]."""
        found: Tensor = labels.unique().long()
        present: Tensor = found[found != self.ignore]
        return present

    def _of_image(
        self, classes: Tensor, masks: Tensor, present: Tensor, truth: Tensor, draw: Callable[[Sequence[int]], Tensor]
    ) -> Tensor:
        """The sums of an image: classes [Q, K + 1], masks [Q, h, w], present classes [M], truth [M, H, W] -> [3]."""
        chosen, which = self._assigned(classes, masks, present, truth, draw)
        target = torch.full((len(classes),), self.num_classes, device=classes.device)
        target[chosen] = present[which]
        weight = classes.new_ones(self.num_classes + 1)
        weight[-1] = self.NO_OBJECT
        cross_entropy = F.cross_entropy(classes, target, weight, reduction="sum")
        if not len(chosen):
            nothing = masks.sum() * 0  # with a gradient, of zeros, as other processes have one
            return torch.stack([cross_entropy, nothing, nothing])
        masks, truth = masks[chosen][:, None], truth[which][:, None]
        places = self._unsure_places(masks.detach(), draw)
        scores, expected = _at(masks, places)[:, 0], _at(truth, places)[:, 0]
        entropy = F.binary_cross_entropy_with_logits(scores, expected, reduction="none").mean(dim=1).sum()
        return torch.stack([cross_entropy, entropy, _dice(scores.sigmoid(), expected).diagonal().sum()])

    @torch.no_grad()
    def _assigned(
        self, classes: Tensor, masks: Tensor, present: Tensor, truth: Tensor, draw: Callable[[Sequence[int]], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The queries and masks of the cheapest assignment, [M] each; the same points for all masks of an image."""
        from scipy.optimize import linear_sum_assignment  # imported here because only training needs it

        places = draw((self.num_points, 2))[None]
        scores, expected = _at(masks[None], places)[0], _at(truth[None], places)[0]  # [Q, P], [M, P]
        # The cross-entropy of a point is softplus(score) outside of the mask, and less by the score inside.
        entropy = (F.softplus(scores).sum(dim=1)[:, None] - scores @ expected.T) / self.num_points
        cost = self.MASK * entropy + self.DICE * _dice(scores.sigmoid(), expected)
        cost = cost - self.CLASS * classes.softmax(dim=-1)[:, present]
        worst = torch.finfo(cost.dtype).max
        chosen, which = linear_sum_assignment(cost.nan_to_num(worst, worst, worst).cpu().numpy())
        return torch.from_numpy(chosen).to(cost.device), torch.from_numpy(which).to(cost.device)

    @torch.no_grad()
    def _unsure_places(self, masks: Tensor, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Points for each mask [M, 1, h, w]: [M, points, 2], x and y in 0..1."""
        drawn = draw((len(masks), self.OVERSAMPLED * self.num_points, 2))
        unsure = int(self.UNSURE * self.num_points)
        best = _at(masks, drawn)[:, 0].abs().topk(unsure, dim=1, largest=False).indices
        kept = drawn.gather(1, best[:, :, None].expand(-1, -1, 2))
        return torch.cat([kept, draw((len(masks), self.num_points - unsure, 2))], dim=1)


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """Values of maps [B, C, h, w] at places [B, P, 2] (x and y in 0..1), bilinear, 0 outside: [B, C, P]."""
    return F.grid_sample(maps, 2 * places[:, :, None] - 1, align_corners=False)[..., 0]


def _dice(found: Tensor, expected: Tensor) -> Tensor:
    """Dice loss, smoothed by 1, of each of found [A, P] with each of expected [B, P]: [A, B]."""
    both = found.sum(dim=1)[:, None] + expected.sum(dim=1)
    return 1 - (2 * found @ expected.T + 1) / (both + 1)
