"""tools/train_seg.py, which gets a signal before a step, so that a test ends or holds a process at a known place.

STRIKE="1 8 SIGKILL" in the environment is for the process of local rank 1, before the step after its eighth; what
torchrun starts again after a failure is left alone.
"""

import os
import signal
from typing import Any

from resnest_seg.cli.train import main
from resnest_seg.errors import run_tool
from resnest_seg.training.trainer import Trainer


def strike() -> None:
    """Let the trainer's next steps end with the signal, if it is this process's."""
    rank, step, name = os.environ["STRIKE"].split()
    found = [os.environ.get(name, "0") for name in ("LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")]
    if found != [rank, "0"]:
        return
    optimise = Trainer._optimise

    def struck(self: Trainer, *given: Any) -> Any:
        if self.step == int(step):
            os.kill(os.getpid(), signal.Signals[name])
        return optimise(self, *given)

    Trainer._optimise = struck  # type: ignore[method-assign]


if __name__ == "__main__":
    if "STRIKE" in os.environ:
        strike()
    raise SystemExit(run_tool(main))
