"""The exceptions a user can meet, how a command-line tool shows them, and what commands are called here.

    ResNeStSegError (ValueError)
    ├── ConfigError        a key, a value or a name in a config, on the command line or in a call
    ├── DatasetError       a data set that is missing, incomplete, unreadable or labelled out of range
    ├── CheckpointError    a file or run folder that cannot be loaded, or must not be overwritten
    ├── DownloadError      a file that cannot be fetched, or is not the one that was published
    └── ExportError        an export that failed or did not agree with its source

Every message says what is wrong, where, the value seen and what fixes it. Bugs of the library are `assert`s.
"""

from __future__ import annotations

import difflib
import importlib
import io
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

EXIT_SOFTWARE = 70
"""Exit code of a tool that hit a bug of the library (EX_SOFTWARE of sysexits.h)."""

EXIT_USER_ERROR = 2
"""Exit code of a tool that rejects its input."""

EXIT_INTERRUPTED = 130
"""Exit code of a tool that was stopped by Ctrl-C (128 + SIGINT), as shells expect."""

EXIT_TERMINATED = 143
"""Exit code of a server, or of training that has saved its state for --resume auto, after SIGTERM (128 + SIGTERM)."""

SCRIPTS = {
    "train": "tools/train_seg.py",
    "eval": "tools/eval_seg.py",
    "predict": "tools/predict_seg.py",
    "export": "tools/export_seg.py",
    "serve": "tools/serve_seg.py",
    "demo": "tools/demo_seg.py",
    "import": "tools/import_labels.py",
    "check": "tools/check_dataset.py",
    "pack": "tools/pack_dataset.py",
    "zoo": "tools/zoo_seg.py",
    "average": "tools/average_weights.py",
    "budget": "tools/budget_seg.py",
    "pretrain": "tools/pretrain_cls.py",
    "runs": "tools/list_runs.py",
    "audit": "tools/audit_labels.py",
    "suggest": "tools/suggest_photos.py",
    "benchmark": "tools/benchmark_seg.py",
    "report": "tools/report_seg.py",
    "prepare ade20k": "datasets/prepare_ade20k.py",
    "prepare camvid": "datasets/prepare_camvid.py",
    "prepare cityscapes": "datasets/prepare_cityscapes.py",
    "prepare synthetic": "datasets/prepare_synthetic.py",
}
"""Verb of `resnest-seg` -> the script of a checkout that does the same."""


class ResNeStSegError(ValueError):
    """Base of every error that is caused by the input, not by a bug of the library."""


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


def unknown_name(kind: str, name: str, known: Iterable[str], *, meant: str | None = None) -> ConfigError:
    """Return the error for a `name` that is not in `known`; it lists the known names and suggests the nearest.

    Args:
        kind: What is named.
        name: The name; its case is ignored where the nearest is looked for.
        known: The names that exist.
        meant: The name to suggest, where that is known better than by the spelling.
    """
    known = list(known)
    spellings = {str(each).lower(): each for each in reversed(known)}
    nearest = difflib.get_close_matches(str(name).lower(), spellings, n=1, cutoff=0.4)
    if meant is None and nearest:
        meant = spellings[nearest[0]]
    hint = f" Did you mean {meant!r}?" if meant is not None else ""
    return ConfigError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def unknown_option(word: str, known: Iterable[str], *, listing: str = "--help") -> ConfigError:
    """Return the error for an option that does not exist; it names the nearest ones, at most three.

    Nearest is, whatever is found first: the same word written with other dashes and underscores; a config key that ends
    with it (`--encoder`: `--model.encoder`); words that are spelled alike.

    Args:
        word: The option as it was given, with its dashes.
        known: All options, with their dashes.
        listing: The option that lists all of them.
    """
    names = {option: _spelling(option) for option in known}
    wanted = _spelling(word)
    last = wanted.rpartition(".")[2]
    nearest = [option for option, name in names.items() if name == wanted]
    nearest = nearest or [option for option, name in names.items() if name.rpartition(".")[2] == last]
    if not nearest:
        alike = {
            option: max(
                difflib.SequenceMatcher(None, wanted, name).ratio(),
                difflib.SequenceMatcher(None, last, name.rpartition(".")[2]).ratio() if wanted == last else 0.0,
            )
            for option, name in names.items()
        }
        best = max(alike.values(), default=0.0)
        near = [option for option in alike if alike[option] >= max(best - 0.1, 0.6)]
        nearest = sorted(near, key=lambda option: -alike[option])
    hint = f" Did you mean {' or '.join(map(repr, nearest[:3]))}?" if nearest else ""
    return ConfigError(f"unknown option {word!r}.{hint} {listing} lists all.")


def _spelling(option: str) -> str:
    """Return an option without what is easily confused: dashes before it and in it, and capitals."""
    return option.lstrip("-").replace("-", "_").lower()


def command(verb: str, *, launcher: str = "python") -> str:
    """Return the command of a verb that exists where the person is.

    In a checkout it is the script, `python tools/train_seg.py`. It is `resnest-seg train` where the package was
    installed from a wheel, and where this process was itself started as `resnest-seg` (or `python -m resnest_seg`).

    Args:
        verb: A verb of `resnest-seg`, such as "train" or "prepare ade20k".
        launcher: The program that starts the script: "python", or "torchrun --nproc-per-node 8".
    """
    package, started = Path(__file__).resolve().parent, Path(sys.argv[0] if sys.argv else "")
    as_module = started.name == "__main__.py" and started.resolve() == package / "__main__.py"
    script = SCRIPTS.get(verb)
    if script and (package.parent / script).is_file() and not as_module and started.stem != "resnest-seg":
        return f"{launcher} {script if Path(script).is_file() else shlex.quote(str(package.parent / script))}"
    if launcher != "python" or as_module:
        return f"{launcher} -m resnest_seg {verb}"
    return f"resnest-seg {verb}"


def program(verb: str) -> str:
    """Return the name of the program in the help of a verb: `train_seg.py` or `resnest-seg train`; see `command`."""
    called = command(verb)
    last = shlex.split(called)[-1]
    return Path(last).name if last.endswith(".py") else called


def usage(text: str) -> str:
    """Replace the commands of scripts in a help text, `python tools/train_seg.py`, by those of `command`."""
    for verb, script in SCRIPTS.items():
        text = text.replace(f"python {script}", command(verb)).replace(f" {script}", command(verb, launcher=""))
    return text


def load_extra(module: str, extra: str) -> Any:
    """Import a library that only an extra of this package installs.

    Args:
        module: Its name, such as "matplotlib.pyplot".
        extra: The extra.

    Raises:
        ConfigError: It is not installed; the message has the command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).partition(".")[0]
        raise ConfigError(f"this needs {name}, which is not installed: pip install 'resnest-seg[{extra}]'") from None


def printable(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8, so that a name can be printed and written as UTF-8.

    File names are bytes to the system; invalid UTF-8 reaches Python as lone surrogates, which no stream accepts.
    """
    return _UNPRINTABLE.sub(_escaped, text)


def require_utf8(path: str | Path) -> None:
    """Reject a path that is not UTF-8, for a library that accepts UTF-8 names only.

    Raises:
        DatasetError: The path contains bytes that are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"cannot open {printable(str(path))}: its name, or that of a folder above, is not UTF-8, and the library "
            "for such files accepts UTF-8 names only. Rename it."
        ) from None


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\ud800-\udfff]")  # all but tab, newline


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte 80..ff
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def run_tool(main: Callable[[], int]) -> int:
    """Run a tool's `main` and return the process's exit code.

    A user's mistake and an error of the file system become one message on standard error and exit code 2, without a
    traceback. A bug becomes one message and exit code 70; its traceback, which a bug report needs, is written to a
    file in the system's folder for temporary files ($TMPDIR).
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is escaped and raises nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except ResNeStSegError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # the last chance to tell a bug from a mistake in the input
        if isinstance(error, OSError) and error.strerror is not None:  # the system's
            name = error.filename if error.filename2 is None else error.filename2
            where = "standard output or an unnamed file: " if name is None else f"{printable(str(name))}: "
            print(f"error: {where}{error.strerror}", file=sys.stderr)
            return EXIT_USER_ERROR
        _report_bug(error)
        return EXIT_SOFTWARE


def _report_bug(error: Exception) -> None:
    """Report a bug in one line, with the file that holds its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="resnest_seg_error_", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(text)
        where = f"with the traceback in {Path(file.name)}"
    except OSError:  # no room for it, either
        print(text, file=sys.stderr)
        where = "with the traceback above"
    what = " ".join(printable(f"{type(error).__name__}: {error}").split())[:300]
    print(f"error: unexpected {what}. This is a bug of resnest_seg: please report it, {where}.", file=sys.stderr)
