"""The command line: one module per verb, each with `main(argv) -> exit code`."""

from resnest_seg import lazy_exports

_HOMES: dict[str, str] = {}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
