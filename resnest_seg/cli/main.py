"""The command `resnest-seg`: it finds the verb, imports its module and hands the rest of the words over.

A verb is a module of this wing, with the same name but for `MODULES`, which has `main(argv) -> exit code`.
"""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import resnest_seg
from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, ConfigError, command, run_tool, unknown_name

if TYPE_CHECKING:
    from argparse import ArgumentParser

GROUPS = {
    "data": {
        "prepare": "download, check and unpack ADE20K, Cityscapes or CamVid; write synthetic scenes",
        "import": "import labels of annotation tools: COCO, YOLO, labelme, CVAT, GeoJSON ...",
        "check": "check photos and masks before training",
        "pack": "pack a data set into tar shards, for fast and remote reading",
    },
    "training": {
        "train": "train a segmentation model",
        "pretrain": "train an image classifier, to pre-train an encoder",
        "average": "average the weights of a run's newest states, or of several runs",
        "budget": "plan how a recipe fits into the memory of given devices",
    },
    "trained models": {
        "eval": "evaluate a model: scores by class, and a JSON report",
        "predict": "segment photos, folders, videos and large images",
        "export": "export a model to ONNX, torch or OpenVINO, verified, or as a folder for the hub",
        "serve": "serve an exported model by HTTP",
        "demo": "try a model on a page in the browser",
    },
    "results": {
        "runs": "list run folders: config differences, best mIoU, speed, state",
        "report": "write a report of one run or several: a page with curves, scores and images",
        "audit": "find doubtful labels: ranked images and regions, a page to click through",
        "suggest": "suggest which unlabelled photos to label next",
    },
    "comparisons": {
        "zoo": "list and fetch the published checkpoints",
        "benchmark": "measure this package beside others on this machine",
    },
}
"""Group -> verb -> its line of help."""

MODULES = {
    "prepare": "datasets.prepare",
    "import": "datasets.import_labels",
    "check": "datasets.check",
    "pack": "datasets.pack",
    "runs": "review.runs",
    "report": "review.report",
    "audit": "review.audit",
    "suggest": "review.suggest",
}
"""Verb -> its module, where that cannot have the verb's name."""

VERBS = [verb for group in GROUPS.values() for verb in group]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns its exit code.

    Raises:
        ConfigError: There is no such verb, or a package is missing that it needs.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if completing():
        words = typed()
        if not words:
            complete(_verbs_parser(), after=0)
    if not words:
        print(help_text(), file=sys.stderr)
        return EXIT_USER_ERROR
    verb, *rest = words
    if verb in ("-h", "--help"):
        print(help_text())
        return 0
    if verb == "--version":
        print(version_text())
        return 0
    if verb not in VERBS:
        raise unknown_name("option" if verb.startswith("-") else "verb", verb, [*VERBS, "--help", "--version"])
    try:
        code: int = importlib.import_module(f"resnest_seg.cli.{MODULES.get(verb, verb)}").main(rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "resnest_seg":  # a bug of ours
            raise
        package = error.name.split(".")[0]
        raise ConfigError(
            f"{verb} needs the package {package}, which is not installed here. All that training and evaluation need: "
            "pip install resnest-seg"
        ) from error
    return code


def run() -> int:
    """Run the command as a process: the entry point of `resnest-seg`; returns the exit code."""
    code = run_tool(main)
    if code == EXIT_INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C while libraries are unloaded: no traceback
    return code


def help_text() -> str:
    """Return the help: every verb in its group."""
    name = command("").strip()
    lines = [
        f"usage: {name} VERB ...      {name} VERB --help describes a verb",
        "",
        "Semantic segmentation with ResNeSt encoders.",
    ]
    for group, verbs in GROUPS.items():
        lines += ["", group, *(f"  {verb:<10} {text}" for verb, text in verbs.items())]
    return "\n".join([*lines, "", "  --version  print the versions of this package, Python and torch"])


def version_text() -> str:
    """Return the versions that a report of a problem should name; reads torch's without importing it."""
    try:
        torch = f"torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        torch = "no torch"
    return f"resnest-seg {resnest_seg.__version__} (Python {platform.python_version()}, {torch})"


def completing() -> bool:
    """Return True if a shell started this process to ask how a command line goes on (argcomplete)."""
    return "_ARGCOMPLETE" in os.environ


def typed() -> list[str]:
    """Return the complete words before the cursor, after the name of the program."""
    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    words = line.split()[1:]
    return words if line[-1:].isspace() else words[:-1]


def complete(parser: ArgumentParser, *, after: int = 1) -> None:
    """Answer the shell and exit, if it asks how a command line goes on; called before a parser parses.

    Args:
        parser: The parser of a verb.
        after: The number of words between the name of the program and the parser's, the verbs.
    """
    if not completing():
        return
    import argcomplete

    os.environ["_ARGCOMPLETE"] = str(1 + after)  # the word with which the parser's part of the line begins
    argcomplete.autocomplete(parser)


def _verbs_parser() -> ArgumentParser:
    """Return a parser that knows the verbs only."""
    from argparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--version", action="store_true")
    return parser
