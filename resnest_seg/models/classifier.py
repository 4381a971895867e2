"""`Classifier`, an encoder with one answer for the whole image: what encoders are pre-trained as."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.config import PretrainConfig
from resnest_seg.errors import CheckpointError
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.heads import ClassifierHead
from resnest_seg.models.resnest import SMP
from resnest_seg.models.segmenter import PixelModel, check_names, encoder_for, freeze_unread, load_own_weights


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
