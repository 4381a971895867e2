"""Adapters to segmentation-models-pytorch: its encoders in our `Segmenter`, and our encoders under its decoders.

Importing this module imports that package, which takes seconds; so it is imported only for names that begin with
`smp:`.

SMP's interface of encoders: images -> a list of features at strides 1, 2, 4, 8, 16, 32 (the last ones smaller when
dilated), the first being the images, with `out_channels`, `output_stride` and `make_dilated`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError, unknown_name
from resnest_seg.models.checkpoint import local_weights
from resnest_seg.models.resnest import SMP, SPECS, ResNeSt, adapt_first_convolution
from resnest_seg.models.weight_files import check_finite, naming_file, read_weights

DEPTH = 5
"""Number of features besides the images."""


class ResNeStSMPEncoder(ResNeSt, EncoderMixin):  # type: ignore[misc]  # SMP has no types
    """One of our encoders with SMP's interface and the state dict of `ResNeSt`.

    Normalised images [N, in_channels, H, W] -> [images, stem, c1, c2, c3, c4] at strides 1, 2, 4, 8, 16, 32, the last
    ones limited to the output stride.

    Args:
        model: The network, see `ResNeSt`.

    Raises:
        ConfigError: Unknown name, output stride, dilation variant or rectification.
    """

    size_divisor = 1
    output_stride: int = 32  # hides SMP's property of that name

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        spec = SPECS[model.encoder]
        stem = 2 * spec.stem_width if spec.deep_stem else 64
        self._out_channels = [model.in_channels, stem, *self.channels]
        self._depth, self._in_channels = DEPTH, model.in_channels

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        stem = self.stem(images)
        return [images, stem, *self.stages(stem)]

    def get_stages(self) -> dict[int, Sequence[nn.Module]]:
        """Map output strides to the stages with them, for SMP."""
        return {16: [self.layer3], 32: [self.layer4]}

    def make_dilated(self, output_stride: int) -> None:
        """Check the output stride; SMP would edit convolutions, but the stride of these blocks is in a pool.

        Raises:
            ConfigError: The encoder was built with another output stride.
        """
        if output_stride != self.output_stride:
            raise ConfigError(
                f"this encoder was built with output stride {self.output_stride}: build it with {output_stride}."
            )


class SMPEncoder(nn.Module):
    """One of SMP's encoders in our `Segmenter`.

    Normalised images [N, in_channels, H, W], H and W multiples of 32 -> the features of SMP's encoder, of which the
    last four are c1, c2, c3, c4.

    Args:
        name: SMP's name, such as "resnet18", "se_resnext50_32x4d", "timm-skresnet18" or "tu-convnext_tiny".
        output_stride: 8, 16 or 32.
        in_channels: Channels of the images.
        weights: SMP's name of pre-trained weights, such as "imagenet", or a weight file or run folder of that encoder,
            such as one of timm or of ours; None for random weights. Neither a file nor None needs a network.

    Attributes:
        config: The encoder's keys of a config.
        pixel_mean: Mean of the pixels, 0..255, in pre-training; None without weights. A file of this package states it;
            for any other file it is the mean of timm's weights of the encoder.
        pixel_std: Standard deviation of the pixels, 0..255, in pre-training; None without weights.

    Raises:
        ConfigError: SMP has no such encoder or weights, or the encoder cannot be dilated.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The file cannot be read, is not finite, or has not the weights of this encoder.
    """

    dilation = "smp"
    size_divisor = 32
    pixel_mean: tuple[float, ...] | None
    pixel_std: tuple[float, ...] | None

    def __init__(self, name: str, *, output_stride: int, in_channels: int, weights: str | None = None) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.config = ModelConfig(f"{SMP}{name}", output_stride=output_stride, in_channels=in_channels)
        file = None if weights is None or weights == "imagenet" else local_weights(weights)
        if name.startswith("tu-") and file is None and weights not in (None, "imagenet"):
            # SMP takes any name for timm's own weights, and would fetch those
            raise ConfigError(
                f"encoder_weights: encoder {SMP}{name} has those called imagenet, and there is no file of the name "
                f"{weights!r}."
            )
        if file is not None:
            weights = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about deprecated names
                self.encoder = smp.encoders.get_encoder(
                    name, in_channels=in_channels, depth=DEPTH, weights=weights, output_stride=output_stride
                )
                reached = self._probe(in_channels)
        except OSError as error:  # the hub's errors are
            raise DownloadError(
                f"cannot download the {weights!r} weights of encoder {SMP}{name} ({type(error).__name__}). Without "
                "a network, set encoder_weights to null."
            ) from None
        except KeyError as error:
            if name not in smp.encoders.get_encoder_names():
                raise unknown_name("encoder", f"{SMP}{name}", _encoder_names()) from None
            reason = " ".join(str(error.args[0]).split())
            raise ConfigError(f"encoder {SMP}{name}: {reason}. And there is no file of that name.") from None
        except (ValueError, RuntimeError, TypeError, AssertionError, AttributeError) as error:
            # SMP's and timm's encoders raise various exceptions
            advice = (
                ""
                if output_stride == 32
                else " Use output_stride 32, or an encoder that can be dilated, such as smp:resnet50."
            )
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"encoder {SMP}{name} cannot be built with output_stride {output_stride}: {reason}{advice}"
            ) from None
        channels = self.encoder.out_channels
        if len(channels) < DEPTH + 1 or 0 in channels[2:]:
            raise ConfigError(f"encoder {SMP}{name} has no features at strides 4, 8, 16 and 32: {channels}.")
        self.out_channels, self.channels = list(channels), tuple(channels[-4:])
        if reached != output_stride:
            raise ConfigError(
                f"encoder {SMP}{name} cannot be dilated: asked for output stride {output_stride}, its last features "
                f"are at {reached}. Use output_stride {reached}, or an encoder that can, such as smp:resnet50."
            )
        if file is None:
            self.pixel_mean, self.pixel_std = _pixel_statistics(name, weights)
        else:
            held = read_weights(file).tensors
            self._load(file, held)
            self.pixel_mean, self.pixel_std = _own_statistics(held) or _timm_statistics(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.encoder(images)
        return features

    def _load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Load a file of this encoder, whose names may have a prefix, and whose classifier is left out."""
        held = {key: value for key, value in tensors.items() if not key.startswith(("average.", "optimizer."))}
        own = self.encoder.state_dict()
        counters = "num_batches_tracked"  # old files lack them, and they decide nothing
        weights = _without_prefix(held, own)
        stem = next((key for key in own if own[key].dim() == 4), "")
        if stem in weights and weights[stem].shape[1] == 3:
            weights[stem] = adapt_first_convolution(weights[stem], own[stem].shape[1])
        parts = {key.removeprefix("model.").split(".")[0] for key in own}
        problems = [
            *(f"missing {key}" for key in own if key not in weights and not key.endswith(counters)),
            *(
                f"unexpected {key}"
                for key in weights
                if key not in own and key.removeprefix("model.").split(".")[0] in parts
            ),
            *(
                f"{key} has the shape {list(weights[key].shape)} instead of {list(value.shape)}"
                for key, value in own.items()
                if key in weights and weights[key].shape != value.shape
            ),
        ]
        if problems:
            raise CheckpointError(
                f"{path} does not hold the weights of encoder {self.config.encoder}: {problems[0]} ({len(problems)} "
                f"problem{'s' * (len(problems) > 1)})."
            )
        weights = {key: value for key, value in weights.items() if key in own}
        with naming_file(path):
            check_finite(weights, own)
        self.encoder.load_state_dict(own | weights)

    @torch.no_grad()
    def _probe(self, in_channels: int) -> int:
        """Measure the output stride on an image, because SMP's attribute may be wrong."""
        was_training = self.encoder.training
        self.encoder.eval()
        features = self.encoder(next(self.encoder.parameters()).new_zeros(1, in_channels, 64, 64))
        self.encoder.train(was_training)
        return 64 // int(features[-1].shape[2])


class SMPHead(nn.Module):
    """One of SMP's decoders with a convolution to classes: features -> logits [N, K, h, w].

    h and w are those of the decoder's output, a half to an eighth of the image's; the `Segmenter` resizes.

    Args:
        decoder: Maps a list of features in SMP's order to [N, channels, h, w].
        channels: Channels of its output.
        num_classes: K.
        kernel_size: Kernel size of the convolution to classes.
        min_size: Minimum height and width of an image, in pixels.
    """

    size_divisor = 32

    def __init__(
        self, decoder: nn.Module, *, channels: int, num_classes: int, kernel_size: int, min_size: int = 32
    ) -> None:
        super().__init__()
        self.min_size = min_size
        self.decoder = decoder
        self.segmentation_head = SegmentationHead(channels, num_classes, kernel_size=kernel_size)
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.segmentation_head(self.decoder(list(features)))
        return logits


class Decoder(Protocol):
    """Builds an `SMPHead`: (channels of all features, K, output stride)."""

    def __call__(self, channels: list[int], classes: int, stride: int) -> SMPHead: ...


UNET_CHANNELS = (256, 128, 64, 32, 16)


def _unet(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = UnetDecoder(encoder_channels=channels, decoder_channels=UNET_CHANNELS, n_blocks=DEPTH)
    return SMPHead(decoder, channels=UNET_CHANNELS[-1], num_classes=classes, kernel_size=3)


def _unetplusplus(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = UnetPlusPlusDecoder(encoder_channels=channels, decoder_channels=UNET_CHANNELS, n_blocks=DEPTH)
    return SMPHead(decoder, channels=UNET_CHANNELS[-1], num_classes=classes, kernel_size=3)


def _manet(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = MAnetDecoder(encoder_channels=channels, decoder_channels=UNET_CHANNELS, n_blocks=DEPTH)
    return SMPHead(decoder, channels=UNET_CHANNELS[-1], num_classes=classes, kernel_size=3)


def _linknet(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = LinknetDecoder(encoder_channels=channels, prefinal_channels=32, n_blocks=DEPTH)
    return SMPHead(decoder, channels=32, num_classes=classes, kernel_size=1)


def _fpn(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = FPNDecoder(encoder_channels=channels, encoder_depth=DEPTH)
    return SMPHead(decoder, channels=decoder.out_channels, num_classes=classes, kernel_size=1)


def _pspnet(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = PSPDecoder(encoder_channels=channels, out_channels=512)
    return SMPHead(decoder, channels=512, num_classes=classes, kernel_size=3)


def _deeplabv3(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = DeepLabV3Decoder(
        in_channels=channels[-1], out_channels=256, atrous_rates=(12, 24, 36), aspp_separable=False, aspp_dropout=0.5
    )
    return SMPHead(decoder, channels=256, num_classes=classes, kernel_size=1)


def _deeplabv3plus(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=DEPTH,
        out_channels=256,
        atrous_rates=(12, 24, 36),
        output_stride=stride,
        aspp_separable=True,
        aspp_dropout=0.5,
    )
    return SMPHead(decoder, channels=256, num_classes=classes, kernel_size=1)


def _pan(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = PANDecoder(encoder_channels=channels, encoder_depth=DEPTH, decoder_channels=32)
    # PAN halves c4 three times.
    return SMPHead(decoder, channels=32, num_classes=classes, kernel_size=3, min_size=8 * stride)


def _upernet(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = UPerNetDecoder(encoder_channels=channels, encoder_depth=DEPTH, decoder_channels=256)
    return SMPHead(decoder, channels=256, num_classes=classes, kernel_size=1)


def _segformer(channels: list[int], classes: int, stride: int) -> SMPHead:
    decoder = SegformerDecoder(encoder_channels=channels, encoder_depth=DEPTH, segmentation_channels=256)
    return SMPHead(decoder, channels=256, num_classes=classes, kernel_size=1)


DECODERS: dict[str, tuple[Decoder, tuple[int, ...]]] = {
    # name -> (builder, supported output strides)
    "unet": (_unet, (8, 16, 32)),
    "unetplusplus": (_unetplusplus, (32,)),
    "manet": (_manet, (32,)),
    "linknet": (_linknet, (32,)),
    "fpn": (_fpn, (32,)),
    "pspnet": (_pspnet, (8, 16, 32)),
    "deeplabv3": (_deeplabv3, (8, 16, 32)),
    "deeplabv3plus": (_deeplabv3plus, (8, 16)),
    "pan": (_pan, (16, 32)),
    "upernet": (_upernet, (8, 16, 32)),
    "segformer": (_segformer, (8, 16, 32)),
}


def check_encoder_name(name: str) -> None:
    """Refuse an encoder that SMP does not have, without building it; names of timm's ("tu-...") are left to timm.

    Raises:
        ConfigError: Names the nearest one.
    """
    if not name.startswith("tu-") and name not in smp.encoders.get_encoder_names():
        raise unknown_name("encoder", f"{SMP}{name}", _encoder_names())


def check_decoder_name(name: str) -> None:
    """Refuse a decoder that is not in `DECODERS`.

    Raises:
        ConfigError: Names the nearest one.
    """
    if name not in DECODERS:
        raise unknown_name("head", f"{SMP}{name}", [f"{SMP}{known}" for known in DECODERS])


def build_smp_head(name: str, channels: list[int], num_classes: int, *, output_stride: int) -> SMPHead:
    """Build one of SMP's decoders with its defaults and random weights.

    Args:
        name: A key of `DECODERS`.
        channels: Channels of all six features, those of the images first.
        num_classes: K.
        output_stride: Output stride of the encoder.

    Raises:
        ConfigError: Unknown name, or the decoder does not support this output stride.
    """
    check_decoder_name(name)
    decoder, strides = DECODERS[name]
    if output_stride not in strides:
        raise ConfigError(
            f"head {SMP}{name} works with output_stride {' or '.join(str(stride) for stride in strides)}, not "
            f"{output_stride}."
        )
    return decoder(channels, num_classes, output_stride)


def _without_prefix(held: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Rename tensors so that as many as possible have names in `own`: "module.", "encoder." or "model." may be before.

    Encoders that SMP takes from timm have "model." before timm's names, which is put before where a file lacks it.
    """
    best: dict[str, Tensor] = {}
    first = next(iter(own), "")
    for added in ("", "model."):
        name = first.removeprefix(added)
        for prefix in sorted({key.removesuffix(name) for key in held if key.endswith(name)}):
            renamed = {added + key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
            if len(renamed.keys() & set(own)) > len(best.keys() & set(own)):
                best = renamed
    return best


def _pixel_statistics(name: str, weights: str | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and standard deviation of the pixels, 0..255, for pre-trained weights."""
    if weights is None:
        return None, None
    settings = smp.encoders.get_preprocessing_params(name, weights)
    scale = 255 / max(settings["input_range"])
    return tuple(scale * value for value in settings["mean"]), tuple(scale * value for value in settings["std"])


def _own_statistics(tensors: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation of the pixels that a model of ours was trained with; None in other files."""
    found = [
        next((tensors[key] for key in (f"model.{name}", name) if key in tensors), None)
        for name in ("pixel_mean", "pixel_std")
    ]
    if found[0] is None or found[1] is None or {found[0].numel(), found[1].numel()} != {3}:
        return None
    return tuple(found[0].flatten().tolist()), tuple(found[1].flatten().tolist())


def _timm_statistics(name: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and standard deviation of the pixels, 0..255, of timm's weights of an encoder; without a network.

    None for encoders that are not timm's: they were trained on ImageNet's usual statistics.
    """
    known = timm.get_pretrained_cfg(name.removeprefix("timm-").removeprefix("tu-"), allow_unregistered=True)
    if known is None:
        return None, None
    return tuple(255 * value for value in known.mean), tuple(255 * value for value in known.std)


def smp_decoder_like(name: str, ours: Collection[str]) -> str | None:
    """The one of SMP's decoders that a name is meant for, but for its prefix, case and signs; None if it is none.

    Args:
        name: Such as "unet" or "FPN".
        ours: Names of our own heads, which come first.
    """
    found = _spelt_like(name, DECODERS)
    return None if found is None or found in ours else f"{SMP}{found}"


def smp_encoder_like(name: str) -> str | None:
    """The one of SMP's encoders that a name such as "resnet34" is meant for; None if it is ours, misspelt, or none."""
    if _spelt_like(name, SPECS) is not None:
        return None
    found = name if name.startswith("tu-") else _spelt_like(name, smp.encoders.get_encoder_names())
    return None if found is None else f"{SMP}{found}"


def _spelt_like(name: str, known: Iterable[str]) -> str | None:
    """The known name with the same letters and digits."""

    def signs(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return next((each for each in known if signs(each) == signs(name)), None)


def _encoder_names() -> list[str]:
    return [f"{SMP}{name}" for name in smp.encoders.get_encoder_names() if not name.startswith("timm-")]
