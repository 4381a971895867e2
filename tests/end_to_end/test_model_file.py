"""`--model FILE.py:FUNCTION`: what is imported, and what is refused in words."""

import sys

import pytest

from resnest_seg.errors import ConfigError
from resnest_seg.inference.own_network import network_builder


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_import_its_neighbour_and_takes_no_modules_place(tmp_path, monkeypatch):
    write(tmp_path / "neighbour_of_own.py", "WIDTH = 7\n")
    write(
        tmp_path / "json.py", "from neighbour_of_own import WIDTH\n\ndef build(classes):\n    return classes + WIDTH\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = list(sys.path)
    assert network_builder("json.py:build")(3) == 10
    assert network_builder(f"{tmp_path / 'json.py'}:build")(3) == 10
    assert sys.path == before
    assert {path.name for path in tmp_path.iterdir()} == {"json.py", "neighbour_of_own.py"}  # no __pycache__
    import json

    assert hasattr(json, "dumps")
    sys.modules.pop("neighbour_of_own")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("own.py", r"FILE\.py:FUNCTION"),
        ("own:build", r"FILE\.py:FUNCTION"),
        ("own.py:", r"FILE\.py:FUNCTION"),
        ("own.py:a-b", r"FILE\.py:FUNCTION"),
        ("nowhere.py:build", "there is no file nowhere.py"),
        ("own.py:biuld", "unknown function of own.py 'biuld'.*'build'"),
        ("own.py:CLASSES", "unknown function"),
        ("broken.py:build", "running broken.py, line 2, failed: ZeroDivisionError"),
        ("syntax.py:build", "running syntax.py failed: SyntaxError"),
    ],
)
def test_what_cannot_be_built_is_refused(spec, words, tmp_path, monkeypatch):
    write(tmp_path / "own.py", "CLASSES = 3\n\ndef build(classes):\n    return classes\n")
    write(tmp_path / "broken.py", "\n1 / 0\n")
    write(tmp_path / "syntax.py", "def build(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        network_builder(spec)
