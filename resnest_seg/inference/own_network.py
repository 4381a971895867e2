"""A network of the user's own, from a Python file: what `--model FILE.py:FUNCTION` names. Imports no torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from resnest_seg.models.segmenter import Segmenter


def own_network(spec: str | None) -> Callable[[int], Segmenter] | None:
    """`network_builder` of what `--model` says, or None."""
    return None if spec is None else network_builder(spec)


def network_builder(spec: str) -> Callable[[int], Segmenter]:
    """Import the file of `FILE.py:FUNCTION` and return the function.

    Raises:
        ConfigError: The text has another form, there is no such file or function, or running the file fails.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"--model must be FILE.py:FUNCTION, such as own_head.py:build, not {spec!r}.")
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f"--model: there is no file {path}.")
    # Under a name of its own: a file called like a module of some library must not take that module's place.
    module_spec = importlib.util.spec_from_file_location(f"resnest_seg_model_{file.stem}", file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # so that its classes can be pickled
    sys.path.insert(0, str(file.parent))  # as Python does for a script: it may import its neighbours
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no __pycache__ in the user's folder
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, file)
        raise ConfigError(f"--model: running {path}{line} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(file.parent))
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if name not in functions:
        raise unknown_name(f"function of {path}", name, functions)
    builder: Callable[[int], Segmenter] = getattr(module, name)
    return builder


def _line_in(error: BaseException, file: Path) -> str:
    """The last line of a file that an error passed through, in words."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(file) else line
        trace = trace.tb_next
    return f", line {line}," if line else ""
