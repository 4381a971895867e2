"""A callback of your own: hears of every step and validation, may stop the run, and is saved with it.

python examples/own_callback.py runs/own_callback
"""

import sys
from typing import Any

import resnest_seg


class StopAtPlateau(resnest_seg.Callback):
    """Print the worst class after each validation, and stop when the mean loss of 10 steps no longer falls."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, report: resnest_seg.StepReport) -> bool:
        self.losses.append(report.loss)
        if len(self.losses) < 20 or len(self.losses) % 10:
            return False
        before, now = sum(self.losses[-20:-10]), sum(self.losses[-10:])
        return now >= before

    def on_validation(self, report: resnest_seg.ValidationReport) -> None:
        assert report.report is not None
        ious = zip(report.report.scores["whole"].class_iou, report.report.classes, strict=True)
        worst = min((iou, name) for iou, name in ious if iou is not None)[1]
        print(f"step {report.step}: mIoU {100 * report.scores['mean_iou']:.1f}, worst class {worst}")

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


def main(output: str) -> None:
    """Train on drawn street scenes until the loss stays."""
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn"},
        "data": {"dataset": "synthetic", "crop_size": 96, "check": 0},
        "train": {"epochs": None, "iterations": 20, "batch_size": 4, "validate_every_steps": 10},
        "eval": {"limit": 4},
    }
    result = resnest_seg.fit(config, callbacks=[StopAtPlateau()], output=output)
    print("all steps" if result.finished else f"stopped after {result.step} steps")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_callback")
