"""`Segmenter`, the whole model (pixel statistics, encoder, head, auxiliary head), and its builders.

Pixels in, logits out; `Classifier`, what encoders are pre-trained as, gives one answer for the whole image. Encoders
and heads are chosen by name from dict literals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.config import CUSTOM, DataConfig, ModelConfig, PretrainConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError, unknown_name
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import HUB_FILE, Checkpoint, find_checkpoint, fingerprint
from resnest_seg.models.fuse import fuse_model
from resnest_seg.models.heads import (
    HEADS,
    ClassifierHead,
    aux_head_for,
    freeze_unread,
    head_for,
    resize_logits,
    sizes_taken,
)
from resnest_seg.models.mask2former import MaskPrediction, semantic_logits
from resnest_seg.models.model_card import Report, make_way_for_card, model_card, published_config
from resnest_seg.models.pixel_range import PixelRange
from resnest_seg.models.published_weights import HUB_ERRORS, check_encoder_weights
from resnest_seg.models.resnest import DILATIONS, RECTIFICATIONS, SMP, SPECS, ResNeSt
from resnest_seg.models.weight_files import check_finite, naming_file

PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Mean of ImageNet's pixels, RGB, 0..255."""

PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Standard deviation of ImageNet's pixels, RGB, 0..255."""


class SegmenterOutput(NamedTuple):
    """Output of a `Segmenter`.

    Attributes:
        logits: Class scores before softmax at the input's size, [N, K, H, W]; of a `coarse` call at feature size.
        aux_logits: The auxiliary head's, likewise; None in eval mode or without an auxiliary head.
    """

    logits: Tensor
    aux_logits: Tensor | None


class Features(NamedTuple):
    """The features of an encoder's four stages, from `PixelModel.features`.

    Attributes:
        c1: [N, C1, H / 4, W / 4]; C1..C4 are `model.encoder.channels`, and all sizes are rounded up.
        c2: [N, C2, H / 8, W / 8].
        c3: [N, C3, H / s, W / s], s being 16, or 8 at output stride 8.
        c4: [N, C4, H / s, W / s], s being the output stride: 8, 16 or 32.
    """

    c1: Tensor
    c2: Tensor
    c3: Tensor
    c4: Tensor


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Report of a loaded checkpoint; `str` of it is for people.

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
        lines += [f"  assumed {sentence}" for sentence in self.assumed]
        if self.format == "Mask2Former":  # mmsegmentation's files, of another format, are Apache-2.0
            lines.append(
                "  terms: the weights that Mask2Former's authors publish are CC-BY-NC 4.0, not for commercial use"
            )
        return "\n".join(lines)


class PixelModel(nn.Module):
    """A network that takes pixels, and normalises and pads them by itself: encoder and head.

    Args:
        encoder: Normalised images -> features, the last four being c1, c2, c3, c4.
        head: Takes the features.
        channels: C of the images.

    Attributes:
        load_report: What was loaded into the model, where a file was.
        pixel_range: What looks at float images, until their range is known.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    load_report: LoadReport | None = None

    def __init__(self, encoder: nn.Module, head: nn.Module, *, channels: int) -> None:
        super().__init__()
        mean, std = getattr(encoder, "pixel_mean", None), getattr(encoder, "pixel_std", None)
        self.register_buffer("pixel_mean", _pixel_buffer(mean or PIXEL_MEAN, channels))
        self.register_buffer("pixel_std", _pixel_buffer(std or PIXEL_STD, channels))
        self.encoder = encoder
        self.head = head
        self.size_divisor, self.min_size = sizes_taken([encoder, head])
        self.pixel_range = PixelRange()

    def take_statistics(self, data: DataConfig) -> None:
        """Normalise by the statistics of a config's data, if it has some, in place of ImageNet's."""
        if data.pixel_mean is not None and data.pixel_std is not None:
            for buffer, values in ((self.pixel_mean, data.pixel_mean), (self.pixel_std, data.pixel_std)):
                buffer.copy_(torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1))
        if data.bands is not None:
            self.pixel_range = PixelRange(self.pixel_mean.flatten().tolist())

    @property
    def description(self) -> str:
        """The network in one line."""
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels to zero mean and unit variance over ImageNet, or over the training data, in channels-last memory.

        Raises:
            ConfigError: The images have another shape than [N, C, H, W].
        """
        channels = self.pixel_mean.shape[1]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ConfigError(f"images must have the shape [N, {channels}, H, W], not {list(images.shape)}.")
        images = images.to(dtype=self.pixel_mean.dtype, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def prepare(self, images: Tensor) -> tuple[Tensor, bool]:
        """The images normalised and padded to a size that encoder and head take, and whether they had to be padded."""
        x = self.normalise(images)
        height, width = images.shape[2:]
        right, below = (max(size + -size % self.size_divisor, self.min_size) - size for size in (width, height))
        padded = bool(right or below)
        return (F.pad(x, (0, right, 0, below)) if padded else x), padded  # with zeros, the mean pixel

    def features(self, images: Tensor) -> Features:
        """Extract features: what `encoder` gives for the images once they are normalised and padded as it needs.

        `encoder` itself takes normalised images. Gradients flow; call `eval()` first, and use `torch.inference_mode()`,
        for features of a trained model.

        Args:
            images: [N, C, H, W], RGB 0..255, uint8 or float, as the model takes them.

        Returns:
            c1, c2, c3, c4 of the padded images: encoders of segmentation-models-pytorch take H and W as multiples of
            32, ours any.

        Raises:
            ConfigError: The images have another shape.
        """
        self.pixel_range.check(images)
        c1, c2, c3, c4 = self.encoder(self.prepare(images)[0])[-4:]
        return Features(c1, c2, c3, c4)


class Segmenter(PixelModel, ModelHubMixin, library_name="resnest_seg", tags=["semantic-segmentation"]):
    """Images [N, 3, H, W], RGB 0..255 (uint8 or float) -> `SegmenterOutput`; or bands [N, C, H, W] of any type.

    With `coarse=True` the logits stay at feature size, about 64 times smaller, for a caller that resizes them to the
    images' size itself, bilinearly by `align_corners`. Where the model had to pad the images, they have full size all
    the same, because the padding is cut off there.

    The model normalises by itself, with its own buffers, so that loaders, predictors and exports cannot disagree.
    Float images in 0..1 are warned of, once. `features(images)` gives the encoder's features for such images.
    Any H, W >= 1; runs in channels-last memory, which the layers of this network prefer on CPU and GPU.

    `save_pretrained(folder)`, `from_pretrained(folder_or_repository)` and `push_to_hub(repository)` are those of the
    Hugging Face hub; they write one checkpoint file of ours, which `load_checkpoint` reads as well, and a model card.

    Encoder and heads may be any modules; those of a name come from `build_segmenter`. A checkpoint of a network with
    modules of the user's own says so, with a fingerprint of their keys and shapes, and `load_checkpoint(path, into=)`
    loads it into such a network again.

    Args:
        encoder: Normalised images [N, C, H, W] -> features, the last four being c1, c2, c3, c4. Of its attributes are
            read, if there are any, `output_stride`, `size_divisor` (the sides of the images become multiples of it,
            and of the head's), `min_size`, and `pixel_mean` and `pixel_std` (of R, G and B, 0..255; else ImageNet's).
        head: The features -> logits [N, K, h, w], at any size; they are resized to the images'. `min_size` and
            `size_divisor` are read.
        aux_head: Features -> logits, used in training only.
        num_classes: K, the number of logits: 1 of a binary model.
        config: The run that the model was trained by, or at least its network; None for a network of one's own, which
            is then described by its encoder, if that is one of `build_encoder`, and as custom.
        label_space: The classes, in the order of the logits, where they are known.
        in_channels: C, where `config` is None and the encoder is one's own.
        output_stride: Input pixels per step of c4, where `config` is None: 8, 16 or 32; None is the encoder's, or 32.
        align_corners: How logits are resized, where `config` is None.

    Attributes:
        fused: `fuse` was called.
        thresholds: Of a binary or multi-label model, a buffer [K]: labels are present from this probability on, 0.5
            until a validation chooses the best.
    """

    thresholds: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        num_classes: int,
        config: RunConfig | None = None,
        label_space: LabelSpace | None = None,
        in_channels: int = 3,
        output_stride: int | None = None,
        align_corners: bool = False,
    ) -> None:
        if config is None:
            model = getattr(encoder, "config", None)
            if not isinstance(model, ModelConfig):
                model = ModelConfig(
                    CUSTOM, output_stride=getattr(encoder, "output_stride", 32), in_channels=in_channels
                )
            config = RunConfig(
                model=dataclasses.replace(
                    model,
                    head=CUSTOM,
                    family="encoding" if align_corners else "mmseg",
                    aux_head=aux_head is not None,
                    output_stride=output_stride or model.output_stride,
                )
            )
        super().__init__(encoder, head, channels=config.model.in_channels)
        self.take_statistics(config.data)
        self.config, self.num_classes, self.label_space = config, num_classes, label_space
        self.take_task(config.model.task)
        self.aux_head = aux_head
        self.align_corners, self.fused = config.model.family != "mmseg", False
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def take_task(self, task: str) -> None:
        """Make this a model of a task, one of `resnest_seg.labels.TASKS`, with thresholds of 0.5 if it has any."""
        self.config = dataclasses.replace(self.config, model=dataclasses.replace(self.config.model, task=task))
        if task != "multiclass":
            self.register_buffer("thresholds", torch.full((self.num_classes,), 0.5, device=self.pixel_mean.device))

    @property
    def task(self) -> str:
        """The task, one of `resnest_seg.labels.TASKS`."""
        return self.config.model.task

    @property
    def decision_thresholds(self) -> tuple[float, ...]:
        """Probabilities from which on labels are present, one for each logit; none of a multiclass model."""
        return () if self.task == "multiclass" else tuple(self.thresholds.float().tolist())

    @property
    def output_stride(self) -> int:
        """Input pixels per step of the last features."""
        return self.config.model.output_stride

    @property
    def description(self) -> str:
        """Encoder, head, output stride, dilation variant and rectification in one line: what decides the numbers."""
        model = self.config.model
        encoder, head = (
            f"{CUSTOM} {part} {fingerprint(self.state_dict(), part)}" if name == CUSTOM else name
            for part, name in (("encoder", model.encoder), ("head", model.head))
        )
        head = f"mmseg {head}" if model.family == "mmseg" and model.head != CUSTOM else head
        own = model.encoder.startswith(SMP) or model.encoder == CUSTOM
        dilation = "" if own else f", dilation {model.dilation}"
        rectify = "" if model.rectify == "none" else f", {model.rectify}"
        name = f"{encoder} {head}, output stride {model.output_stride}{dilation}{rectify}"
        return name + ", fused" * self.fused

    @property
    def predicts_masks(self) -> bool:
        """True if the head predicts masks and their classes, as Mask2Former's does, of which logits are made."""
        return bool(getattr(self.head, "predicts_masks", False))

    def masks(self, images: Tensor) -> list[MaskPrediction]:
        """Predict masks, by a head that does: those of the padded images, see `size_divisor`; the best last."""
        self.pixel_range.check(images)
        predictions: list[MaskPrediction] = self.head(self.encoder(self.prepare(images)[0]))
        return predictions

    def forward(self, images: Tensor, *, coarse: bool = False) -> SegmenterOutput:
        self.pixel_range.check(images)
        x, padded = self.prepare(images)
        features = self.encoder(x)
        logits = self.head(features)
        if self.predicts_masks:  # masks are resized before they become scores of classes
            classes, masks = logits[-1]
            if padded or not coarse:
                masks = self._resize(masks, (x.shape[2], x.shape[3]))[..., : images.shape[2], : images.shape[3]]
            return SegmenterOutput(semantic_logits(classes, masks), None)
        aux_logits = self.aux_head(features) if self.training and self.aux_head is not None else None
        if coarse and not padded:
            return SegmenterOutput(logits, aux_logits)
        (height, width), size = images.shape[2:], (x.shape[2], x.shape[3])
        logits = self._resize(logits, size)[..., :height, :width]
        if aux_logits is not None:
            aux_logits = self._resize(aux_logits, size)[..., :height, :width]
        return SegmenterOutput(logits, aux_logits)

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_logits(logits, size, align_corners=self.align_corners)

    def fuse(self) -> Segmenter:
        """Make this a faster model for inference alone, in place, with the same numbers but for rounding; returns it.

        Batch norms go into convolutions, the auxiliary head and gradients go; an `ExportError` if the numbers differ.
        Fuse a `copy.deepcopy` of a model that is still to be trained or saved: a fused one refuses, by `ConfigError`.
        """
        if not self.fused:
            self.aux_head = None
            with self.pixel_range.trusted():  # the images that prove it say nothing about the user's
                fuse_model(self, lambda images: self(images, coarse=True).logits, self.pixel_mean.shape[1])
        self.fused = True
        return self

    def train(self, mode: bool = True) -> Segmenter:
        """Set training or eval mode; a fused model refuses training mode with a `ConfigError`."""
        if mode and self.fused:
            raise ConfigError("a fused model cannot be trained: it has no batch norms. Load it again, without fuse().")
        return super().train(mode)

    def to_checkpoint(self) -> Checkpoint:
        """The content of a checkpoint file of this model, without training state; a `ConfigError` if it is fused."""
        if self.fused:
            raise ConfigError("a fused model cannot be saved: it has no batch norms. Save it before fuse().")
        return Checkpoint(self.config, self.label_space, self.state_dict(), num_classes=self.num_classes)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Segmenter:
        """Rebuild the model of a checkpoint, in eval mode and in the precision that it was saved in.

        Raises:
            CheckpointError: It is an image classifier's; the weights do not fit the config or the number of classes, or
                are not finite.
            ConfigError: The config names what this version does not have.
        """
        if isinstance(checkpoint.config, PretrainConfig):
            raise CheckpointError(CANNOT_SEGMENT)
        if CUSTOM in (checkpoint.network.encoder, checkpoint.network.head):
            raise CheckpointError(NEEDS_OWN_PARTS)
        segmenter = fresh_segmenter(checkpoint.config, checkpoint.label_space, num_classes=checkpoint.num_classes)
        load_own_weights(segmenter, checkpoint.weights)
        return segmenter.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        config = published_config(self.config)
        self._hub_mixin_config = config  # which the mixin writes into config.json
        dataclasses.replace(self.to_checkpoint(), config=config).save(Path(save_directory) / HUB_FILE)
        make_way_for_card(Path(save_directory) / "README.md")  # the mixin writes one where there is none

    def generate_model_card(self, report: Report | None = None) -> ModelCard:
        """Make the README.md that the hub shows, with the figures of an `EvalReport` of this model if there is one.

        `save_pretrained` and `push_to_hub` write it, and take `model_card_kwargs={"report": report}`. In a folder with
        a card, `save_pretrained` replaces one that nobody edited; it warns of any other, and leaves it as it is.
        """
        return ModelCard(model_card(self.to_checkpoint(), description=self.description, report=report))

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
        except HUB_ERRORS as error:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])  # some have no text
            raise DownloadError(
                f"{source!r} is no folder, and no file {HUB_FILE} of a repository of that name can be fetched from the "
                f"hub ({reason})."
            ) from None
        return cls._from_file(Path(path))

    @classmethod
    def _from_file(cls, path: Path) -> Segmenter:
        with naming_file(path):
            return cls.from_checkpoint(Checkpoint.load(path, training=False))


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
    classes = len(label_space.score_names) if label_space is not None else num_classes
    if classes is None or classes < 1:
        raise ConfigError(f"num_classes must be at least 1, not {classes}.")
    if label_space is not None and label_space.task != model.task:
        raise ConfigError(f"model.task is {model.task}, and the classes of {label_space.name} are {label_space.task}.")
    if model.task == "binary" and classes != 1:
        raise ConfigError(f"a binary model has 1 logit (num_classes=1), not {classes}.")
    check_names(model)
    encoder = encoder_for(model, pretrained=smp_weights)
    head, aux_head = head_for(model, encoder, classes), aux_head_for(model, encoder, classes)
    if model.encoder.startswith(SMP) or model.head.startswith(SMP):
        heads = [head] if aux_head is None else [head, aux_head]
        freeze_unread(encoder, heads, in_channels=model.in_channels)
    return Segmenter(encoder, head, aux_head, num_classes=classes, config=config, label_space=label_space)


NEEDS_OWN_PARTS = (
    "this network has an encoder or head of its author's own (custom), and a checkpoint holds no code: give a function "
    "that builds it, by --model FILE.py:FUNCTION on the command line, or by load_checkpoint(path, into=...) in Python."
)
"""Message for a network that only the user's own code can build."""

CANNOT_SEGMENT = (
    "this is an image classifier, it cannot segment. Train a segmentation model from it: --model.encoder_weights takes "
    "its file."
)
"""Message for a classifier where a segmentation model is needed."""


class Classifier(PixelModel):
    """Images [N, 3, H, W], RGB 0..255 (uint8 or float) -> class scores before softmax [N, K].

    Like a `Segmenter` it normalises by itself, with its own buffers.

    Args:
        encoder: Normalised images -> features, the last one being c4.
        head: Features -> class scores.
        config: The run that the model was trained by, or at least its network.
        num_classes: K.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, config: PretrainConfig, num_classes: int) -> None:
        super().__init__(encoder, head, channels=3)
        self.config, self.num_classes = config, num_classes

    @property
    def description(self) -> str:
        """The network in one line."""
        return f"{self.config.model.encoder} classifier, output stride {self.config.model.output_stride}"

    def forward(self, images: Tensor) -> Tensor:
        self.pixel_range.check(images)
        scores: Tensor = self.head(self.encoder(self.prepare(images)[0]))
        return scores

    def to_checkpoint(self) -> Checkpoint:
        """The content of a checkpoint file of this model, without training state."""
        return Checkpoint(self.config, None, self.state_dict(), num_classes=self.num_classes)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Classifier:
        """Rebuild the model of a checkpoint, in eval mode and in the precision that it was saved in.

        Raises:
            CheckpointError: It is a segmentation model's; the weights do not fit, or are not finite.
            ConfigError: The config names what this version does not have.
        """
        if not isinstance(checkpoint.config, PretrainConfig):
            raise CheckpointError(NO_CLASSIFIER)
        classifier = fresh_classifier(checkpoint.config, num_classes=checkpoint.num_classes)
        load_own_weights(classifier, checkpoint.weights)
        return classifier.eval()


NO_CLASSIFIER = "this is a segmentation model, no image classifier."


def fresh_classifier(config: PretrainConfig, *, num_classes: int, smp_weights: bool = False) -> Classifier:
    """The classifier that a config describes, in training mode and channels-last memory, with fresh weights.

    Args:
        config: The run; its `model` counts, and the dropout.
        num_classes: K.
        smp_weights: Let an encoder of SMP load `config.model.encoder_weights`.

    Raises:
        ConfigError: Unknown name (the nearest is named), or an encoder that cannot be dilated.
    """
    network = config.model.network
    check_names(network)
    encoder = encoder_for(network, pretrained=smp_weights)
    assert isinstance(encoder.channels, tuple)
    head = ClassifierHead(encoder.channels[3], num_classes, dropout=config.classify.dropout)
    if network.encoder.startswith(SMP):
        freeze_unread(encoder, [head], in_channels=3)
    classifier = Classifier(encoder, head, config=config, num_classes=num_classes)
    convert_conv2d_weight_memory_format(classifier, torch.channels_last)
    return classifier


def load_own_weights(model: PixelModel, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a checkpoint of ours into a model, which takes the precision that they were saved in.

    Raises:
        CheckpointError: They do not fit, are not finite, or lack the pixel statistics.
    """
    if "pixel_mean" in weights:
        model.to(weights["pixel_mean"].dtype)
    kept = [key for key in load_weights(model, weights) if key.startswith("pixel_")]
    if kept:
        raise CheckpointError(f"the checkpoint lacks {' and '.join(kept)}, without which pixels cannot be normalised.")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy a state dict into a model; every key must be there with the right shape, and no other.

    Expected to be absent from files of others are the pixel statistics and, from old ones, the counters
    `num_batches_tracked`, which decide nothing: they keep the values that the model has.

    Returns:
        The keys that kept their values.

    Raises:
        CheckpointError: It does not fit, or is not finite; names the first keys of each kind.
    """
    own = model.state_dict()
    absent = [key for key in own if key not in weights]
    kept = [key for key in absent if key.endswith("num_batches_tracked") or key.startswith(("pixel_", "thresholds"))]
    problems = {
        "missing": [key for key in absent if key not in kept],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": misfits(weights, own),
    }
    found = [f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"the weights do not fit the model: {'; '.join(found)}.")
    check_finite(weights, own)
    model.load_state_dict(dict(weights), strict=False)
    return kept


def _pixel_buffer(values: Sequence[float], channels: int) -> Tensor:
    """Statistics of R, G, B for any number of channels, [1, C, 1, 1]: one channel gets the mean, more repeat them."""
    if channels == 1:
        values = [sum(values) / len(values)]
    return torch.tensor([values[channel % len(values)] for channel in range(channels)]).view(1, channels, 1, 1)


def _and_more(names: tuple[str, ...] | list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def encoder_for(model: ModelConfig, *, pretrained: bool = False) -> nn.Module:
    """The encoder that a config describes, as a feature extractor; ours has fresh weights, see `load_encoder`.

    Args:
        model: The network.
        pretrained: Let an encoder of SMP load `model.encoder_weights`.

    Returns:
        Normalised images [N, C, H, W] -> features, the last four being c1, c2, c3, c4, with their channels in
        `.channels`.

    Raises:
        ConfigError: Unknown name (the nearest is named), or an encoder that cannot be dilated.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The weights do not fit.
    """
    if model.encoder.startswith(SMP):
        from resnest_seg.models.smp import SMPEncoder

        weights = model.encoder_weights if pretrained else None
        if any((model.drop_block, model.drop_path, model.zero_gamma, model.checkpointing, model.rectify != "none")):
            raise ConfigError(
                f"encoder {model.encoder} is not ours: drop_block, drop_path, zero_gamma, rectify and checkpointing do "
                "not go with it."
            )
        name = model.encoder.removeprefix(SMP)
        return SMPEncoder(name, output_stride=model.output_stride, in_channels=model.in_channels, weights=weights)
    if model.head.startswith(SMP):
        from resnest_seg.models.smp import ResNeStSMPEncoder

        return ResNeStSMPEncoder(model)
    return ResNeSt(model)


def check_names(model: ModelConfig) -> None:
    """Refuse names that do not exist or that nothing would look up, and options that do not go together.

    The head is left to `check_head`: a classifier has none.

    Raises:
        ConfigError: Says which; the nearest name is named.
    """
    if CUSTOM in (model.encoder, model.head):
        raise ConfigError(NEEDS_OWN_PARTS)
    if model.encoder.startswith(SMP):
        from resnest_seg.models.smp import check_encoder_name

        check_encoder_name(model.encoder.removeprefix(SMP))
    elif model.encoder not in SPECS:
        from resnest_seg.models.smp import smp_encoder_like

        raise unknown_name("encoder", model.encoder, [*SPECS, f"{SMP}NAME"], meant=smp_encoder_like(model.encoder))
    check_encoder_weights(model.encoder_weights)
    if model.rectify not in RECTIFICATIONS:
        raise unknown_name("rectify", model.rectify, RECTIFICATIONS)
    if model.family not in HEADS:
        raise unknown_name("family", model.family, HEADS)
    if model.dilation not in DILATIONS:
        raise unknown_name("dilation", model.dilation, DILATIONS)
    if model.zero_gamma and model.encoder_weights is not None:
        raise ConfigError(
            "zero_gamma is a way to start from fresh weights, and encoder_weights brings its own: set one of the two."
        )


def misfits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The keys that both have with different shapes, and these shapes."""
    return [
        f"{key} {list(weights[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
