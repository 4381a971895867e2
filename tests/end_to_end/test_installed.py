"""The package as pip installs it: what is in the wheel, and the command in an environment without the checkout."""

import email
import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, TINY
from PIL import Image

import resnest_seg
from resnest_seg.labels import LabelSpace

pytestmark = [pytest.mark.slow, pytest.mark.long]

INFO = f"resnest_seg-{resnest_seg.__version__}.dist-info"


def clean_environment():
    """Without what would let a process find the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}


def copy_of_the_checkout(folder):
    """What is in the repository, without data, runs and environments that may lie beside it."""
    folder.mkdir()
    for path in PROJECT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
        elif path.name in ("resnest_seg", "configs", "tools", "tests", "docs", "examples"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets").mkdir()
    for path in (PROJECT / "datasets").glob("*.*"):
        if path.suffix in (".py", ".md"):
            shutil.copy(path, folder / "datasets")


def build(source, kind, target):
    """Build as pip does (PEP 517), with this environment's setuptools and without the network."""
    target.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True,
                          env=clean_environment())  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution, both built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("distributions")
    copy_of_the_checkout(folder / "checkout")
    return build(folder / "checkout", "wheel", folder / "wheel"), build(folder / "checkout", "sdist", folder / "sdist")


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_its_configs_and_nothing_else(distributions):
    files = {path for path in (PROJECT / "resnest_seg").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    expected = {path.relative_to(PROJECT).as_posix() for path in files}
    expected |= {f"resnest_seg/configs/{path.name}" for path in (PROJECT / "configs").iterdir()}
    names = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    assert set(contents(distributions[0])) == expected | {f"{INFO}/{name}" for name in names}


def test_the_source_distribution_builds_the_same_wheel_and_holds_what_make_needs(distributions, tmp_path):
    wheel, sdist = distributions
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert contents(build(source, "wheel", tmp_path / "again")) == contents(wheel)
    for name in ("Makefile", "constraints.txt", "tools/train_seg.py", "datasets/prepare_camvid.py", "tests/conftest.py",
                 "tests/golden/config_keys.txt", "CHANGELOG.md"):  # fmt: skip
        assert (source / name).read_bytes() == (PROJECT / name).read_bytes()


def test_the_metadata_are_complete(distributions):
    found = contents(distributions[0])
    metadata = email.message_from_bytes(found[f"{INFO}/METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("resnest-seg", resnest_seg.__version__)
    for key in ("Summary", "Author", "License-Expression", "Keywords", "Requires-Python", "Project-URL"):
        assert metadata[key], key
    assert any(value.startswith("Programming Language") for value in metadata.get_all("Classifier"))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert found[f"{INFO}/METADATA"].decode().endswith(readme)
    assert found[f"{INFO}/entry_points.txt"].decode().split("\n")[:2] == [
        "[console_scripts]", "resnest-seg = resnest_seg.cli.main:run"]  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_development_tools_for_developers_only(tmp_path):
    copy_of_the_checkout(tmp_path / "checkout")

    def plan(target):
        done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path / "checkout", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split()[-1] for line in done.stdout.splitlines() if "--editable" in line]

    for target in ("demo", "setup"):
        assert plan(target) == ["."]
    for target in ("test", "test-fast", "check", "lint", "golden", "docs"):
        assert plan(target) == [".", "'.[dev]'"]


SEVERAL = """
import contextlib, io, json, runpy, sys

done = []
for sys.argv in json.load(sys.stdin):
    code, out, err = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            code = error.code
    done.append((code, out.getvalue(), err.getvalue()))
import resnest_seg.cli.train, resnest_seg
print(json.dumps((resnest_seg.__file__, done)))
"""
"""Runs programs one after the other in one process, which loads torch once."""


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Call a program of a fresh environment in an empty folder; the environment has the wheel, and our dependencies.

    `several` calls `resnest-seg`, its script, with several lists of words in one process. A plain line of a .pth file
    adds this environment's packages, but does not run their own .pth files, which is how an editable installation of
    the checkout is found.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    programs = folder / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", distributions[0]]
    subprocess.run(install, check=True, env=clean_environment())
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (folder / "work").mkdir()

    def call(program, *words, said=None):
        done = subprocess.run([programs / program, *map(str, words)], capture_output=True, text=True, input=said,
                              cwd=folder / "work", env=clean_environment())  # fmt: skip
        for text in (done.stdout, done.stderr):
            assert "Traceback" not in text
            assert str(PROJECT) not in text
            assert "tools/" not in text
        return done

    def several(*lists):
        words = [[str(programs / "resnest-seg"), *map(str, words)] for words in lists]
        done = call("python", "-c", SEVERAL, said=json.dumps(words))
        assert done.returncode == 0, done.stderr
        where, outcomes = json.loads(done.stdout)
        assert Path(where) == packages / "resnest_seg" / "__init__.py"
        return outcomes

    call.folder, call.several = folder / "work", several
    return call


TRAIN = ["train", "--config", "synthetic_fcn_resnest14_tiny", *TINY, "--output", "run", "--model.output_stride=32",
         "--train.epochs=null", "--train.iterations=2", "--data.check=0"]  # fmt: skip
MISTAKES = [
    (["train", "--dataset", "camvid"], "To get it: resnest-seg prepare camvid downloads it."),
    (["train", "--config", "camvid_deplab"], "Did you mean camvid_deeplabv3_resnest50"),
    (["eval", "--checkpoint", "runs/none"], "`resnest-seg zoo` lists the names."),
    (["evaluate"], "Did you mean 'eval'?"),
]


@pytest.fixture(scope="module")
def first(installed):
    """What became of the mistakes and of a dry run, in a folder that holds nothing."""
    outcomes = installed.several(*(words for words, _ in MISTAKES), [*TRAIN, "--dry-run"])
    assert list(installed.folder.iterdir()) == []
    return outcomes


def test_the_command_works_from_training_to_export(installed, first):
    """In a folder that holds nothing, with neither the checkout nor its scripts."""
    code, _, message = first[-1]
    assert code == 0, message
    done = installed("resnest-seg", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "done. Evaluate with: resnest-seg eval --checkpoint run" in done.stdout
    photos = ["--split", "test", "--count", 1, "--output", "photos"]
    assert installed("python", "-m", "resnest_seg", "prepare", "synthetic", *photos).returncode == 0

    outcomes = installed.several(
        ["eval", "--checkpoint", "run", "--limit", 2, "--workers", 0, "--output", "e.json"],
        ["predict", "--checkpoint", "run", "photos/images", "--output", "predictions"],
        [
            "export",
            "--checkpoint",
            "run",
            "--format",
            "torch",
            "--output",
            "model.pt2",
        ],  # ONNX takes longer
        ["check", "--dataset", "synthetic", "--limit", 2, "--workers", 0],
    )
    assert [code for code, _, _ in outcomes] == [0, 0, 0, 0], outcomes
    assert (installed.folder / "e.json").is_file()
    labels = np.array(Image.open(installed.folder / "predictions" / "test_0000_labels.png"))
    assert set(labels.flat) <= set(LabelSpace.of("synthetic").raw_ids)

    assert (installed.folder / "model.pt2").is_file()
    assert "ready for training" in outcomes[-1][1]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_messages_name_commands_that_are_there(first, number):
    code, _, message = first[number]
    assert code == 2
    assert MISTAKES[number][1] in message
    assert message.count("\n") == 1
