"""The package as pip installs it: what is in the wheel, and the command in an environment without the checkout."""

import email
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

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Call a program of a fresh environment in an empty folder; the environment has the wheel, and our dependencies.

    A plain line of a .pth file adds this environment's packages, but does not run their own .pth files, which is how
    an editable installation of the checkout is found.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    programs = folder / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", distributions[0]]
    subprocess.run(install, check=True, env=clean_environment())
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (folder / "work").mkdir()

    def call(program, *words):
        done = subprocess.run([programs / program, *map(str, words)], capture_output=True, text=True,
                              cwd=folder / "work", env=clean_environment())  # fmt: skip
        for text in (done.stdout, done.stderr):
            assert "Traceback" not in text
            assert str(PROJECT) not in text
            assert "tools/" not in text
        return done

    code = "import resnest_seg.cli.train, resnest_seg; print(resnest_seg.__file__)"
    where = call("python", "-c", code).stdout.strip()
    assert Path(where) == packages / "resnest_seg" / "__init__.py"
    call.folder = folder / "work"
    return call


def test_the_command_works_from_training_to_export(installed):
    """In a folder that holds nothing, with neither the checkout nor its scripts."""
    words = ["--config", "synthetic_fcn_resnest14_tiny", *TINY, "--output", "run", "--model.output_stride=32"]
    words += ["--train.epochs=null", "--train.iterations=2", "--data.check=0"]
    done = installed("resnest-seg", "train", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert list(installed.folder.iterdir()) == []
    done = installed("resnest-seg", "train", *words)
    assert done.returncode == 0, done.stderr
    assert "done. Evaluate with: resnest-seg eval --checkpoint run" in done.stdout

    done = installed("resnest-seg", "eval", "--checkpoint", "run", "--limit", 2, "--workers", 0, "--output", "e.json")
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "e.json").is_file()

    photos = ["--split", "test", "--count", 1, "--output", "photos"]
    assert installed("python", "-m", "resnest_seg", "prepare", "synthetic", *photos).returncode == 0
    done = installed("resnest-seg", "predict", "--checkpoint", "run", "photos/images", "--output", "predictions")
    assert done.returncode == 0, done.stderr
    labels = np.array(Image.open(installed.folder / "predictions" / "test_0000_labels.png"))
    assert set(labels.flat) <= set(LabelSpace.of("synthetic").raw_ids)

    words = ["--checkpoint", "run", "--format", "torch", "--output", "model.pt2"]  # ONNX takes three times as long
    done = installed("resnest-seg", "export", *words)
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "model.pt2").is_file()

    words = ["--dataset", "synthetic", "--limit", 2, "--workers", 0]
    done = installed("resnest-seg", "check", *words)
    assert done.returncode == 0, done.stderr
    assert "ready for training" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--dataset", "camvid"], "To get it: resnest-seg prepare camvid downloads it."),
        (["train", "--config", "camvid_deplab"], "Did you mean camvid_deeplabv3_resnest50"),
        (["eval", "--checkpoint", "runs/none"], "`resnest-seg zoo` lists the names."),
        (["evaluate"], "Did you mean 'eval'?"),
    ],
)
def test_messages_name_commands_that_are_there(installed, words, says):
    done = installed("resnest-seg", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
