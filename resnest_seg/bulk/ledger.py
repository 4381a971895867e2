"""The manifest of finished outputs: what every process has done, a line an input, below OUTPUT/manifest/.

Every process appends to a file of its own, so that none waits for another, and a line is written only after its outputs
lie under their final names. What is done is the union of all files: an input that any line calls done is done; a line
that was cut short by a kill counts for nothing, and its input is segmented again, into the same files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import secrets
from collections.abc import Container, Iterator, Sequence

from resnest_seg.bulk.destination import Destination
from resnest_seg.bulk.job import MANIFEST


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        source: The input's path or address.
        place: Where its outputs lie, below the output, without endings.
        outputs: Names of its files below the output; of an input that failed, the table of the
            inputs that were done together with it.
        error: Why there are none; None if it is done.
        seconds: That it took; of a batch, its share.
        height: Of the image in pixels, 0 where it is not known.
        width: Likewise.
    """

    source: str
    place: str
    outputs: tuple[str, ...] = ()
    error: str | None = None
    seconds: float = 0.0
    height: int = 0
    width: int = 0

    def to_json(self) -> str:
        """One line; bytes of a name that are not UTF-8 are kept as escapes."""
        return json.dumps(dataclasses.asdict(self))


def parsed(line: bytes) -> Outcome | None:
    """Read a line of the manifest; None for one that is torn, or none of ours."""
    try:
        values = json.loads(line)
        return Outcome(**{**values, "outputs": tuple(values["outputs"])})
    except (ValueError, TypeError, KeyError):
        return None


class Ledger:
    """The manifest of one output.

    Args:
        destination: The output.
    """

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        machine = re.sub(r"[^\w.-]", "_", platform.node())[:60]
        self.file = f"{MANIFEST}/{machine}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Append what was done by this process.

        Raises:
            OSError: The disk is full, or the output is gone.
        """
        self.destination.append(self.file, [outcome.to_json() for outcome in outcomes])

    def read(self) -> Iterator[Outcome]:
        """All lines of all processes, file by file."""
        for name in self.destination.names(MANIFEST):
            for line in (self.destination.read(name) or b"").splitlines():
                outcome = parsed(line)
                if outcome is not None:
                    yield outcome

    def done(self, sources: Container[str]) -> dict[str, tuple[str, ...]]:
        """The inputs of these that any line calls done, with their outputs."""
        return {each.source: each.outputs for each in self.read() if each.error is None and each.source in sources}

    def failures(self) -> dict[str, str]:
        """The inputs that no line calls done, with their last error."""
        errors: dict[str, str] = {}
        done: set[str] = set()
        for outcome in self.read():
            if outcome.error is not None:
                errors[outcome.source] = outcome.error
        for outcome in self.read() if errors else ():
            if outcome.error is None and outcome.source in errors:
                done.add(outcome.source)
        return {source: error for source, error in errors.items() if source not in done}
