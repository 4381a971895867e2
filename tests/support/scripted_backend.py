"""A backend whose probabilities a function gives, for tests of what is done with predictions."""

import numpy as np

from resnest_seg.inference.backends import Backend, Block, Decision
from resnest_seg.inference.protocols import Setting


class ScriptedBackend(Backend):
    """Gives the probabilities that a function returns for an image.

    Args:
        space: The classes.
        answers: Image [H, W, 3] -> probabilities [K, H, W], of binary and multi-label tasks of each score.
        rows: Of a block.

    Attributes:
        shown: A hash of every image that it was shown.
    """

    def __init__(self, space, answers, *, rows=16, name="scripted"):
        self.label_space, self.answers, self.rows, self.shown = space, answers, rows, []
        self.description, self.head, self.channels, self.device, self.memory = name, "none", 3, "cpu", 1 << 20
        self.setting = Setting(dataset=space.name, recipe="encoding", base_size=64, crop=(64, 64), long_edge=64)
        self.decision = Decision(space.task, (0.5,) * (0 if space.task == "multiclass" else len(space.score_names)))

    def blocks(self, image, protocol, *, memory=None):
        self.shown.append(hash(image.tobytes()))
        scores = self.answers(image)
        if self.decision.task == "multiclass":
            scores = np.log(np.maximum(scores, 1e-12))
        for first in range(0, image.shape[0], self.rows):
            rows = slice(first, min(first + self.rows, image.shape[0]))
            yield Block(rows, slice(0, image.shape[1]), scores[:, rows].astype(np.float32), decision=self.decision)
