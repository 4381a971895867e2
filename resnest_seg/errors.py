"""The exceptions a user can meet, and how a command-line tool shows them.

    ResNeStSegError (ValueError)
    ├── ConfigError        a key, a value or a name in a config, on the command line or in a call
    ├── DatasetError       a data set that is missing, incomplete, unreadable or labelled out of range
    ├── CheckpointError    a file or run folder that cannot be loaded, or must not be overwritten
    ├── DownloadError      a file that cannot be fetched, or is not the one that was published
    └── ExportError        an export that failed or did not agree with its source

Every message says what is wrong, where, the value seen and what fixes it. Mistakes of ours are `assert`s.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

EXIT_USER_ERROR = 2
"""Exit code of a tool that was stopped by a mistake in its input."""

EXIT_INTERRUPTED = 130
"""Exit code of a tool that was stopped by Ctrl-C (128 + SIGINT), as shells expect."""

EXIT_TERMINATED = 143
"""Exit code of what SIGTERM stopped (128 + SIGTERM): serving; or training, after saving: --resume auto goes on."""


class ResNeStSegError(ValueError):
    """Base of every error that is the input's fault and not the library's."""


class ConfigError(ResNeStSegError):
    """A config key, a value or a name that does not exist or does not fit."""


class DatasetError(ResNeStSegError):
    """A data set that is missing, incomplete, unreadable or labelled out of range."""


class CheckpointError(ResNeStSegError):
    """A checkpoint or run folder that cannot be used, or must not be overwritten."""


class DownloadError(ResNeStSegError):
    """A file that cannot be fetched, or whose content is not what was published."""


class ExportError(ResNeStSegError):
    """An export that failed, or whose predictions differ from those of its source."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a `name` that is none of the `known` ones: lists them and points at the nearest."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def run_tool(main: Callable[[], int]) -> int:
    """Run a tool's `main` and return the process's exit code.

    A user's mistake, and a file that the system refuses, become one message on standard error and exit code 2, without
    a traceback; an error of ours keeps its traceback, because that is what a bug report needs.
    """
    try:
        return main()
    except ResNeStSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.strerror is None:  # not the system's: a bug
            raise
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
