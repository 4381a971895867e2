"""The pages of the site: their fenced blocks, and how a block is run or, if it needs data, checked.

A page is read by markdown-it, as the site's builder reads it. Its bash and python blocks run in the order of the page,
in one folder. These comments, each on a line of its own, say otherwise:

    <!-- setup: NAME -->     at the top: `support.page_setups` prepares this in the folder
    <!-- needs data -->      before a block: it is checked (verbs, options, values, extras, Python's syntax), not run

A python or yaml block whose first line is a comment with a file's name, `# my_head.py`, is written to that file.
"""

import argparse
import ast
import contextlib
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

PROJECT = Path(__file__).resolve().parents[2]
WRITTEN = [path for path in sorted((PROJECT / "docs").rglob("*.md")) if "reference" not in path.parts]
PAGES = [PROJECT / "README.md", PROJECT / "datasets" / "README.md", *WRITTEN]
"""Every page that a person has written; a build writes those of the reference."""

SHELL = re.compile(r"[|&;<>$`*?(){}]")
"""What only a shell understands, outside of quotes."""

OURS = ("tools/", "datasets/", "examples/")
BATCH_SCRIPTS = {"tools/slurm_train.sh": "train", "examples/cluster/predict_array.sh": "predict"}
"""Script for a scheduler -> the verb that it hands its words to."""
PREFIXES = re.compile(r"^(srun|nice|time|exec)$|^[A-Z_]+=")


class Block(NamedTuple):
    """A fenced block: its language, its text, its line in the page, and whether it may run."""

    language: str
    text: str
    line: int
    runs: bool

    @property
    def file(self):
        """The file that the block is, if its first line names one."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml))\s*$", self.text.partition("\n")[0])
        return found[1] if found and self.language in ("python", "yaml") else None


class Page(NamedTuple):
    """A page: the setup that it names, and its blocks in order."""

    setup: str | None
    blocks: list


def read(text):
    """Read a page."""
    setup, blocks, marked = None, [], False
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            named = re.fullmatch(r"<!-- setup: (\w+) -->", token.content.strip())
            assert named or not token.content.startswith("<!-- setup"), token.content
            setup = named[1] if named else setup
            marked = token.content.strip() == "<!-- needs data -->"
        elif token.type == "fence":
            language = token.info.split()[0] if token.info else ""
            blocks.append(Block(language, token.content, token.map[0] + 1, not marked))
            marked = False
        elif token.type.endswith("_open"):
            assert not marked, f"line {token.map[0] + 1}: 'needs data' is not followed by a block"
    return Page(setup, blocks)


def lines(text):
    """The commands of a bash block, a line each: continued ones are joined, comments and empty ones left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


def ours(line):
    """The words of a line behind `resnest-seg`, if it is one of our commands, in whatever launcher; else None."""
    words = shlex.split(line, comments=True)
    while words and PREFIXES.match(words[0]):
        words = words[1:]
    if words[:1] == ["resnest-seg"]:
        return words[1:]
    for number, word in enumerate(words):
        if word in BATCH_SCRIPTS:
            return [BATCH_SCRIPTS[word], *words[number + 1 :]]
        if word.startswith(OURS[:2]) and word.endswith(".py") and (PROJECT / word).is_file():
            return [*_verb(word), *words[number + 1 :]]
        if words[number : number + 2] == ["-m", "resnest_seg"]:
            return words[number + 2 :]
        assert not (word.startswith(OURS) and word.endswith(".py") and not (PROJECT / word).is_file()), word
    return None


def _verb(script):
    from resnest_seg.errors import SCRIPTS

    return next(verb.split() for verb, path in SCRIPTS.items() if path == script)


class _ParsedError(BaseException):
    """The command line was parsed; nothing has been done yet."""


def check_command(argv, monkeypatch):
    """Parse the words behind `resnest-seg` as the verb does, with the values of config keys, and do nothing else."""
    from resnest_seg.cli import main as command
    from resnest_seg.cli.parsing.options import Parser

    if set(argv) & {"--help", "-h", "--help-all", "--version"}:
        assert argv[0] in command.VERBS or argv[0].startswith("-")
        return
    if argv[:1] in (["train"], ["pretrain"], ["budget"]):
        _check_keys(importlib.import_module(f"resnest_seg.cli.{argv[0]}"), argv[1:])
        return
    plain, whole = argparse.ArgumentParser.parse_args, Parser.read

    def parsed(parse):
        def call(self, *words):
            if not isinstance(self, Parser) or parse is whole:
                parse(self, *words)
                raise _ParsedError
            return parse(self, *words)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(_ParsedError):
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed(plain))
        patch.setattr(Parser, "read", parsed(whole))
        command.main(argv)
        raise AssertionError(f"{argv[0]} parsed nothing")


def _check_keys(module, argv):
    """Check the options of a verb that takes every key of a config, and their values."""
    from resnest_seg.cli.parsing.keys import CHECKPOINT, ENCODER_CHECKPOINT, SHORT, take
    from resnest_seg.config import PretrainConfig, RunConfig, load_config
    from resnest_seg.files import find_config, shipped_configs

    kind = PretrainConfig if module.__name__.endswith("pretrain") else RunConfig
    short = SHORT | (ENCODER_CHECKPOINT if kind is PretrainConfig else CHECKPOINT)
    own, overrides = take(argv, module.OWN, kind=kind, short=short if not module.__name__.endswith("budget") else SHORT)
    several = [word for word in overrides if re.fullmatch(r"\d+(,\d+)+", word)]
    overrides = [word.split(",")[0] if word in several and "--seed" in overrides else word for word in overrides]
    name = own.get("--config")
    if own.get("--dataset"):
        from resnest_seg.cli.train import config_path

        path = config_path(own["--dataset"], None)
    elif name is not None and (Path(name).stem in shipped_configs() or (PROJECT / name).is_file()):
        path = find_config(Path(name).stem)
    else:
        path = find_config("imagenet_classifier_resnest50" if kind is PretrainConfig else "folder_deeplabv3_resnest50")
    load_config(path, kind, overrides=overrides)


def check_line(line, monkeypatch):
    """Check a line of a bash block that does not run."""
    argv = ours(line)
    words = shlex.split(line, comments=True)
    if argv is not None:
        from resnest_seg.errors import ResNeStSegError

        try:
            check_command([*_before_shell(argv)], monkeypatch)
        except (ResNeStSegError, SystemExit) as error:
            raise AssertionError(f"{line}\n  {error}") from error
    elif words[:2] == ["pip", "install"]:
        known = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"(?:resnest-seg|\.)\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(known["optional-dependencies"]), line
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), line


def _before_shell(words):
    """The words before a pipe, a redirection or an ampersand."""
    for word in words:
        if word in ("|", ">", ">>", "&", "&&", ";", "2>", "||"):
            return
        yield word


def check_block(block, monkeypatch):
    """Check a block that does not run: our commands parse, Python compiles."""
    if block.language == "python":
        ast.parse(block.text)
    elif block.language in ("bash", ""):
        for line in lines(block.text):
            if block.language == "bash" or line.startswith(("resnest-seg ", *(f"python {folder}" for folder in OURS))):
                check_line(line, monkeypatch)


class Runner:
    """Runs the blocks of a page in a folder, which is the current one, as a user would in a shell and an interpreter.

    Our own commands run within this process, which has loaded torch already.
    """

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.names = {"__name__": "page"}
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(PROJECT))
        monkeypatch.setenv("MPLBACKEND", "Agg")

    def run(self, block):
        """Run a block, or write it to the file that it names."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # as a user has them
                exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        elif block.language == "bash" and "<<" in block.text:
            self.shell(block.text)
        elif block.language == "bash":
            for line in lines(block.text):
                self.line(line)

    def line(self, line):
        """Run a line."""
        argv, words = ours(line), shlex.split(line, comments=True)
        alone = words[0] == "resnest-seg" or (words[0] == "python" and words[1].startswith(OURS))
        bare = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)
        if words[0] in ("pip", "make", "git", "source"):
            check_line(line, self.monkeypatch)
        elif not alone or SHELL.search(bare):
            self.shell(line)
        elif argv is None:  # an example
            self.monkeypatch.setattr(sys, "argv", [words[1], *words[2:]])
            runpy.run_path(str(PROJECT / words[1]), run_name="__main__")
        else:
            self.command(argv)

    def command(self, argv):
        """Run `resnest-seg` with these words; it must succeed."""
        from resnest_seg.cli.main import main
        from resnest_seg.errors import run_tool

        self.monkeypatch.setattr(sys, "argv", ["resnest-seg", *argv])
        self.capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code = run_tool(main)
        said = self.capsys.readouterr()
        assert code == 0, f"resnest-seg {shlex.join(argv)}: exit code {code}\n{said.out}{said.err}"

    def shell(self, text):
        """Run commands in a shell, which must succeed."""
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
