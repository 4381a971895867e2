"""The configuration of a run that trains an image classifier: that of any run, and one group more. Imports no torch."""

from __future__ import annotations

import dataclasses

from resnest_seg.config import DataConfig, ModelConfig, RunConfig, TrainConfig, flatten
from resnest_seg.config_checks import within
from resnest_seg.errors import ConfigError, unknown_name

AUGMENTS = ("none", "auto", "rand")
"""Values of `classify.augment`."""


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """What training a classifier needs beyond training a segmenter."""

    augment: str = "auto"
    """Changes of colour and shape after the crop: none, auto (AutoAugment, ImageNet's policy) or rand (RandAugment)."""
    area_min: float = within(0.08, 0, 1, above=True)
    """Smallest share of the image that a training crop shows."""
    mixup: float = within(0.2, 0, 100)
    """Alpha of MixUp, which blends pairs of images and of their labels; 0 turns it off."""
    cutmix: float = within(0.0, 0, 100)
    """Alpha of CutMix, which pastes a rectangle of one image into another; with mixup, a batch gets either one."""
    label_smoothing: float = within(0.1, 0, 1, below=True)
    """Share of the truth that is spread over all classes."""
    dropout: float = within(0.2, 0, 1, below=True)
    """Probability of dropout before the last layer."""
    eval_share: float = within(0.875, 0, 1, above=True)
    """Side of the validation's centre crop, times the short edge of the resized image."""


WITHOUT_EFFECT = (
    *(f"data.{name}" for name in ("rotate", "color_jitter", "blur", "coarse_dropout", "class_mix", "rare_class")),
    *(f"train.{name}" for name in ("loss", "class_weights", "label_smoothing")),
    *("data.classes", "model.weights", "eval.limit"),
)
"""Keys of `RunConfig` that change nothing about a classifier."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Everything that decides what the training of a classifier computes.

    Of `RunConfig` all keys count that are not about pixels; those of `WITHOUT_EFFECT` must keep their defaults.
    """

    model: ModelConfig = dataclasses.field(
        default_factory=lambda: ModelConfig(head="classifier", output_stride=32, aux_head=False)
    )
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(dataset="imagenet", crop_size=224))
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(epochs=270, batch_size=256))
    classify: ClassifyConfig = dataclasses.field(default_factory=ClassifyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.classify
        if self.model.head != "classifier":
            raise ConfigError(f"model.head must be classifier here, not {self.model.head!r}.")
        flat, usual = flatten(self), flatten(RunConfig())
        for key in WITHOUT_EFFECT:
            if flat[key] != usual[key]:
                raise ConfigError(f"{key} has no effect on a classifier: leave it at {usual[key]}, not {flat[key]}.")
        if own.augment not in AUGMENTS:
            raise unknown_name("classify.augment", own.augment, AUGMENTS)

    @property
    def run(self) -> RunConfig:
        """The same without what only training needs: what a checkpoint of the classifier carries."""
        return RunConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(RunConfig)})
