"""How mistakes reach the user."""

import pytest

from resnest_seg.errors import ConfigError, DatasetError, ResNeStSegError, run_tool, unknown_name


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys):
    def main():
        raise DatasetError("no such folder.")

    assert run_tool(main) == 2
    assert capsys.readouterr().err == "error: no such folder.\n"


def test_our_mistakes_keep_their_traceback():
    def main():
        raise AssertionError

    with pytest.raises(AssertionError):
        run_tool(main)


def test_a_file_that_the_system_refuses_is_named(capsys):
    def main():
        raise PermissionError(13, "Permission denied", "/locked/report.json")

    assert run_tool(main) == 2
    assert capsys.readouterr().err == "error: /locked/report.json: Permission denied\n"


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
