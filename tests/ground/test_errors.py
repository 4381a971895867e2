"""How mistakes reach the user."""

import io
import os
import sys
import tempfile

import pytest

from resnest_seg.errors import (
    ConfigError,
    DatasetError,
    ResNeStSegError,
    load_extra,
    printable,
    run_tool,
    unknown_name,
)


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys):
    def main():
        raise DatasetError("no such folder.")

    assert run_tool(main) == 2
    assert capsys.readouterr().err == "error: no such folder.\n"


@pytest.mark.parametrize("error", [AssertionError("rows\nand columns"), OSError("no number"), RuntimeError("\udce9")])
def test_our_mistakes_are_one_line_and_a_file_with_the_traceback(error, tmp_path, monkeypatch, capsys):
    def main():
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_tool(main) == 70
    line = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert line.count("\n") == 1
    assert line.startswith(f"error: unexpected {type(error).__name__}: ")
    assert str(file) in line
    assert "report" in line
    text = file.read_text(encoding="utf-8")
    assert text.startswith("Traceback")
    assert "in main" in text


def test_a_traceback_for_which_there_is_no_room_is_printed(tmp_path, monkeypatch, capsys):
    def main():
        raise AssertionError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert run_tool(main) == 70
    assert "Traceback" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_printed_escaped(monkeypatch):
    """On a stream as strict as a terminal's: the file system gives such names."""
    name = os.fsdecode(b"caf\xe9 \xff\x1b[31m.png") + "\ud800 \u00e9\n"
    assert printable(name) == "caf\\xe9 \\xff\\x1b[31m.png\\ud800 \u00e9\n"
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main():
        print(os.fsdecode(b"caf\xe9"))
        raise DatasetError(os.fsdecode(b"cannot read caf\xe9.png."))

    assert run_tool(main) == 2
    out.flush()
    err.flush()
    assert out.buffer.getvalue() == b"caf\\udce9\n"
    assert err.buffer.getvalue() == b"error: cannot read caf\\xe9.png.\n"


def test_a_file_that_the_system_refuses_is_named(capsys):
    def main():
        raise PermissionError(13, "Permission denied", "/locked/report.json")

    assert run_tool(main) == 2
    assert capsys.readouterr().err == "error: /locked/report.json: Permission denied\n"


def test_a_full_standard_output_is_named(capsys):
    def main():
        raise OSError(28, "No space left on device")

    assert run_tool(main) == 2
    assert capsys.readouterr().err == ("error: standard output or an unnamed file: No space left on device\n")


def test_ctrl_c_and_success():
    def interrupted():
        raise KeyboardInterrupt

    assert run_tool(interrupted) == 130
    assert run_tool(lambda: 0) == 0


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    error = unknown_name("head", "fcm", ["fcn", "deeplabv3"])
    assert isinstance(error, ConfigError)
    assert isinstance(error, ResNeStSegError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown head 'fcm'. Did you mean 'fcn'? Known: fcn, deeplabv3."
    assert "Did you mean" not in str(unknown_name("head", "zzz", ["fcn"]))


def test_a_library_that_an_extra_installs(monkeypatch):
    assert load_extra("json.decoder", "plot") is sys.modules["json.decoder"]
    for missing, module in (("no_such_library", "no_such_library.part"), ("matplotlib.pyplot", "matplotlib.pyplot")):
        monkeypatch.setitem(sys.modules, missing, None)
        name = module.partition(".")[0]
        with pytest.raises(ConfigError, match=f"needs {name}, .* pip install 'resnest-seg\\[plot\\]'"):
            load_extra(module, "plot")


def test_the_nearest_name_is_looked_for_whatever_its_case():
    assert "Did you mean 'Cityscapes'?" in str(unknown_name("data set", "CITYSCAPES", ["ade20k", "Cityscapes"]))
    assert "Did you mean 'b'?" in str(unknown_name("letter", "a", ["a1", "b"], meant="b"))
    assert "Did you mean" not in str(unknown_name("letter", "xyz", ["a1", "b"]))
