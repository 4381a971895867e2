"""The whole model: pixel statistics, encoder, head and auxiliary head. Pixels in, logits out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.blueprints import SMP
from resnest_seg.checkpoint import HUB_FILE, Checkpoint, find_checkpoint
from resnest_seg.config import RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError
from resnest_seg.fusion import fuse_model
from resnest_seg.heads import resize_logits
from resnest_seg.labels import LabelSpace
from resnest_seg.parts import aux_head_for, build_encoder, check_names, freeze_unread, head_for, misfits
from resnest_seg.pixel_range import PixelRange
from resnest_seg.weights import check_finite, naming_file

PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Mean of ImageNet's pixels, RGB, 0..255."""

PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Standard deviation of ImageNet's pixels, RGB, 0..255."""


class SegmenterOutput(NamedTuple):
    """What a `Segmenter` returns.

    Attributes:
        logits: Class scores before softmax at the input's size, [N, K, H, W]; of a `coarse` call at feature size.
        aux_logits: The auxiliary head's, likewise; None in eval mode or without an auxiliary head.
    """

    logits: Tensor
    aux_logits: Tensor | None


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` found and did; `str` of it is for people.

    Attributes:
        path: The file.
        format: Whose format it has.
        network: The network that it was recognised as, in one line.
        loaded: Number of tensors that were loaded.
        skipped: (name in the file, why) of what was not.
        kept: Names in the model that the file does not have and need not.
        assumed: What the file does not tell, one sentence each.
    """

    path: Path
    format: str
    network: str
    loaded: int
    skipped: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.format}, {self.network}; {self.loaded} tensors loaded"]
        for reason in dict.fromkeys(why for _, why in self.skipped):
            names = [name for name, why in self.skipped if why == reason]
            lines.append(f"  not used: {names[0]}{_and_more(names)} ({reason})")
        if self.kept:
            lines.append(f"  not in the file, kept as built: {self.kept[0]}{_and_more(self.kept)}")
        return "\n".join(lines + [f"  assumed {sentence}" for sentence in self.assumed])


class Segmenter(nn.Module, ModelHubMixin, library_name="resnest_seg", tags=["semantic-segmentation"]):
    """Images [N, 3, H, W], RGB 0..255 (uint8 or float) -> `SegmenterOutput`.

    With `coarse=True` the logits stay at feature size, about 64 times smaller, for a caller that resizes them to the
    images' size itself, bilinearly by `align_corners`. Where the model had to pad the images, they have full size all
    the same, because the padding is cut off there.

    The model normalises by itself, with its own buffers, so that loaders, predictors and exports cannot disagree.
    Float images in 0..1 are warned of, once.
    Any H, W >= 1; runs in channels-last memory, which the layers of this network prefer on CPU and GPU.

    `save_pretrained(folder)`, `from_pretrained(folder_or_repository)` and `push_to_hub(repository)` are those of the
    Hugging Face hub; what they write is one checkpoint file of ours, which `load_checkpoint` reads as well.

    Args:
        encoder: Normalised images -> features, the last four being c1, c2, c3, c4.
        head: Features -> logits at feature stride.
        aux_head: The same, used in training only.
        config: The run that the model was trained by, or at least its network.
        num_classes: K.
        label_space: The classes, in the order of the logits, where they are known.

    Attributes:
        load_report: What was loaded into the model, where `load_checkpoint` made it.
        fused: `fuse` was called.
        pixel_range: What looks at float images, until their range is known.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    load_report: LoadReport | None = None

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        config: RunConfig,
        num_classes: int,
        label_space: LabelSpace | None = None,
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.label_space = config, num_classes, label_space
        mean, std = getattr(encoder, "pixel_mean", None), getattr(encoder, "pixel_std", None)
        channels = config.model.in_channels
        self.register_buffer("pixel_mean", _pixel_buffer(mean or PIXEL_MEAN, channels))
        self.register_buffer("pixel_std", _pixel_buffer(std or PIXEL_STD, channels))
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.size_divisor = max(getattr(part, "size_divisor", 1) for part in (encoder, head))
        self.min_size: int = getattr(head, "min_size", 1)
        self.align_corners, self.fused = config.model.family != "mmseg", False
        self.pixel_range = PixelRange()

    @property
    def output_stride(self) -> int:
        """Input pixels per step of the last features."""
        return self.config.model.output_stride

    @property
    def description(self) -> str:
        """Encoder, head, output stride, dilation variant and rectification in one line: what decides the numbers."""
        model = self.config.model
        head = f"mmseg {model.head}" if model.family == "mmseg" else model.head
        dilation = "" if model.encoder.startswith(SMP) else f", dilation {model.dilation}"
        rectify = "" if model.rectify == "none" else f", {model.rectify}"
        name = f"{model.encoder} {head}, output stride {model.output_stride}{dilation}{rectify}"
        return name + ", fused" * self.fused

    def forward(self, images: Tensor, *, coarse: bool = False) -> SegmenterOutput:
        self.pixel_range.check(images)
        x = self.normalise(images)
        height, width = images.shape[2:]
        right, below = (self._padding(size) for size in (width, height))
        if right or below:  # with zeros, the mean pixel
            x = F.pad(x, (0, right, 0, below))
        features = self.encoder(x)
        logits = self.head(features)
        aux_logits = self.aux_head(features) if self.training and self.aux_head is not None else None
        if coarse and not (right or below):
            return SegmenterOutput(logits, aux_logits)
        padded = (x.shape[2], x.shape[3])
        logits = self._resize(logits, padded)[..., :height, :width]
        if aux_logits is not None:
            aux_logits = self._resize(aux_logits, padded)[..., :height, :width]
        return SegmenterOutput(logits, aux_logits)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255 to zero mean and unit variance over ImageNet, in channels-last memory.

        Raises:
            ConfigError: The images have another shape than [N, in_channels, H, W].
        """
        channels = self.pixel_mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ConfigError(f"images must have the shape [N, {channels}, H, W], not {list(images.shape)}.")
        images = images.to(dtype=self.pixel_mean.dtype, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def _padding(self, size: int) -> int:
        """Pixels that an image side of `size` lacks for the parts of the model that take not every size."""
        return max(size + -size % self.size_divisor, self.min_size) - size

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_logits(logits, size, align_corners=self.align_corners)

    def fuse(self) -> Segmenter:
        """Make this a faster model for inference alone, in place, with the same numbers but for rounding; returns it.

        Batch norms go into convolutions, the auxiliary head and gradients go; an `ExportError` if the numbers differ.
        Fuse a `copy.deepcopy` of a model that is still to be trained or saved: a fused one refuses, by `ConfigError`.
        """
        if not self.fused:
            self.aux_head = None
            fuse_model(self, lambda images: self(images, coarse=True).logits, self.pixel_mean.shape[1])
        self.fused = True
        return self

    def train(self, mode: bool = True) -> Segmenter:
        """As of every module, but that a fused model refuses training mode with a `ConfigError`."""
        if mode and self.fused:
            raise ConfigError("a fused model cannot be trained: it has no batch norms. Load it again, without fuse().")
        return super().train(mode)

    def to_checkpoint(self) -> Checkpoint:
        """What a checkpoint file of this model holds, without training state; a `ConfigError` if it is fused."""
        if self.fused:
            raise ConfigError("a fused model cannot be saved: it has no batch norms. Save it before fuse().")
        return Checkpoint(self.config, self.label_space, self.state_dict(), num_classes=self.num_classes)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Segmenter:
        """Rebuild the model of a checkpoint, in eval mode and in the precision that it was saved in.

        Raises:
            CheckpointError: The weights do not fit the config or the number of classes, or are not finite.
            ConfigError: The config names what this version does not have.
        """
        segmenter = fresh_segmenter(checkpoint.config, checkpoint.label_space, num_classes=checkpoint.num_classes)
        if "pixel_mean" in checkpoint.weights:
            segmenter.to(checkpoint.weights["pixel_mean"].dtype)
        kept = [key for key in load_weights(segmenter, checkpoint.weights) if key.startswith("pixel_")]
        if kept:
            raise CheckpointError(
                f"the checkpoint lacks {' and '.join(kept)}, without which pixels cannot be normalised."
            )
        return segmenter.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.to_checkpoint().save(Path(save_directory) / HUB_FILE)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the file says everything else
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Segmenter:
        """Load what `save_pretrained` wrote or `push_to_hub` uploaded, in eval mode.

        Args:
            pretrained_model_name_or_path: A folder, a file, or a repository of the hub such as "someone/model".
            revision: Branch, tag or commit of the repository.
            token: For private repositories; None takes the one that is logged in.
            cache_dir: Where the hub's client keeps files; None is its own folder.
            force_download: Fetch the file even if it is there.
            local_files_only: Ask no network.

        Raises:
            DownloadError: There is no such folder, and the repository's file cannot be fetched.
            CheckpointError: The file is damaged, or not ours.
        """
        source = str(pretrained_model_name_or_path)
        if Path(source).exists():
            return cls._from_file(find_checkpoint(source))
        try:
            path = hf_hub_download(
                source,
                HUB_FILE,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise DownloadError(
                f"{source!r} is no folder, and no file {HUB_FILE} of a repository of that name can be fetched from the "
                f"hub ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from None
        return cls._from_file(Path(path))

    @classmethod
    def _from_file(cls, path: Path) -> Segmenter:
        with naming_file(path):
            return cls.from_checkpoint(Checkpoint.load(path))


def fresh_segmenter(
    config: RunConfig, label_space: LabelSpace | None, *, num_classes: int | None = None, smp_weights: bool = False
) -> Segmenter:
    """The model that a config describes, in training mode and channels-last memory, with fresh weights.

    Args:
        config: The run; its `model` counts.
        label_space: The classes, where they are known.
        num_classes: K, where the label space is None.
        smp_weights: Let an encoder of SMP load `config.model.encoder_weights`.

    Raises:
        ConfigError: Unknown name (the nearest is named), a value out of range, or parts that do not fit together.
    """
    model = config.model
    classes = len(label_space) if label_space is not None else num_classes
    if classes is None or classes < 1:
        raise ConfigError(f"num_classes must be at least 1, not {classes}.")
    check_names(model)
    encoder = build_encoder(model, pretrained=smp_weights)
    head, aux_head = head_for(model, encoder, classes), aux_head_for(model, encoder, classes)
    if model.encoder.startswith(SMP) or model.head.startswith(SMP):
        heads = [head] if aux_head is None else [head, aux_head]
        freeze_unread(encoder, heads, in_channels=model.in_channels)
    segmenter = Segmenter(
        encoder=encoder,
        head=head,
        aux_head=aux_head,
        config=config,
        num_classes=classes,
        label_space=label_space,
    )
    convert_conv2d_weight_memory_format(segmenter, torch.channels_last)
    return segmenter


def load_weights(segmenter: Segmenter, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy a state dict into a model; every key must be there with the right shape, and no other.

    Expected to be absent from files of others are the pixel statistics and, from old ones, the counters
    `num_batches_tracked`, which decide nothing: they keep the values that the model has.

    Returns:
        The keys that kept their values.

    Raises:
        CheckpointError: It does not fit, or is not finite; names the first keys of each kind.
    """
    own = segmenter.state_dict()
    absent = [key for key in own if key not in weights]
    kept = [key for key in absent if key.endswith("num_batches_tracked") or key.startswith("pixel_")]
    problems = {
        "missing": [key for key in absent if key not in kept],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": misfits(weights, own),
    }
    found = [f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"the weights do not fit the model: {'; '.join(found)}.")
    check_finite(weights, own)
    segmenter.load_state_dict(dict(weights), strict=False)
    return kept


def _pixel_buffer(values: Sequence[float], channels: int) -> Tensor:
    """Statistics of R, G, B for any number of channels, [1, C, 1, 1]: one channel gets the mean, more repeat them."""
    if channels == 1:
        values = [sum(values) / len(values)]
    return torch.tensor([values[channel % len(values)] for channel in range(channels)]).view(1, channels, 1, 1)


def _and_more(names: tuple[str, ...] | list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
