"""Writing files so that a reader, or a restart after a crash, never meets half of one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+\.tmp(\.\w+)?")
"""Names of `atomic_write`'s temporary files."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` at the end, in one step.

    The data is on the disk before the name changes, and the name before this returns: a power failure leaves the old
    file or the new one. If the body raises, `path` stays as it was and the temporary file is removed; if the process is
    killed, `remove_leftovers` removes it later.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays last, because image libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can (Windows cannot, and needs not)."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove the temporary files of some names that killed processes left in a folder.

    Args:
        folder: Where they lie.
        names: What they would have become; nobody may be writing these there.
    """
    stems = {Path(name).stem for name in names}
    for path in folder.glob(".*.tmp*"):
        found = TEMPORARY.fullmatch(path.name)
        if found and found["stem"] in stems:
            path.unlink(missing_ok=True)
