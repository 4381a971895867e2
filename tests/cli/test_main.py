"""The command `resnest-seg`: verbs, help, versions, completion; and what commands are called."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

import resnest_seg
from resnest_seg.cli import main as cli
from resnest_seg.errors import SCRIPTS, command, program, run_tool, usage
from resnest_seg.files import shipped_configs

MODULE = str(PROJECT / "resnest_seg" / "__main__.py")


def resnest_seg_command(*words):
    return run_tool(lambda: cli.main([str(word) for word in words]))


def process(*words, folder=None, **environment):
    """`python -m resnest_seg` in a process of its own."""
    return subprocess.run([sys.executable, "-m", "resnest_seg", *map(str, words)], capture_output=True, text=True,
                          cwd=folder, env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment)  # fmt: skip


def test_every_verb_has_a_module_and_every_module_is_a_verb():
    folder = PROJECT / "resnest_seg" / "cli"
    files = {path.stem for path in folder.iterdir() if not path.name.startswith("_")}
    for inner in ("datasets", "review"):
        files |= {f"{inner}.{path.stem}" for path in (folder / inner).glob("*.py") if not path.name.startswith("_")}
    files = {{module: verb for verb, module in cli.MODULES.items()}.get(name, name) for name in files}
    files -= {"main", "parsing", "datasets", "review"}
    assert set(cli.VERBS) == files
    assert {verb.split()[0] for verb in SCRIPTS} == files
    assert all((PROJECT / script).is_file() for script in SCRIPTS.values())
    scripts = {f"{path.parent.name}/{path.name}" for folder in ("tools", "datasets")
               for path in (PROJECT / folder).glob("*.py")}  # fmt: skip
    assert scripts == set(SCRIPTS.values())


def test_the_help_fits_a_terminal_and_names_every_verb(capsys):
    assert resnest_seg_command("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 36
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == [*cli.VERBS, "--version"]
    assert resnest_seg_command() == 2
    assert capsys.readouterr().err.splitlines() == lines


def test_the_version_is_that_of_the_package(capsys):
    assert resnest_seg_command("--version") == 0
    assert capsys.readouterr().out.startswith(f"resnest-seg {resnest_seg.__version__} (Python 3.")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "error: unknown verb 'trian'. Did you mean 'train'? Known: prepare, import, check, "),
        ("evaluate", "error: unknown verb 'evaluate'. Did you mean 'eval'?"),
        ("--verson", "error: unknown option '--verson'. Did you mean '--version'?"),
    ],
)
def test_an_unknown_verb_is_one_line_with_the_nearest(word, says, capsys):
    assert resnest_seg_command(word) == 2
    error = capsys.readouterr().err
    assert error.startswith(says)
    assert error.count("\n") == 1


def test_a_package_that_is_missing_is_named_but_a_bug_of_ours_is_a_bug(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resnest_seg.cli.zoo", None)  # as if our own file were missing
    with pytest.raises(ModuleNotFoundError):
        cli.main(["zoo"])
    for name in ("cli.train", "config", "config_reading", "yaml_files"):
        monkeypatch.delitem(sys.modules, f"resnest_seg.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert resnest_seg_command("train", "--dataset", "synthetic", "--dry-run") == 2
    assert "train needs the package yaml, which is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom resnest_seg.cli.main import main\nmain(['--help'])\n"
        "print(sorted({'torch', 'numpy', 'yaml', 'argparse', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    code = """
import contextlib, sys
import resnest_seg.cli.main as cli
for verb in cli.VERBS:  # all in one process, which the first that imports torch has it of
    with contextlib.suppress(SystemExit):
        cli.main([verb, "--help"])
    assert "torch" not in sys.modules, verb
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HELPS = """
import contextlib, io, json, runpy, sys
printed = []
for start, *words in json.loads(sys.argv[1]):
    sys.argv[:] = [start, *words]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            if start.endswith(".py"):
                runpy.run_path(start, run_name="__main__")
            else:
                runpy.run_module(start, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (start, words)
    printed.append(text.getvalue())
print(json.dumps(printed))
"""
"""Starts modules and scripts as python does, one after another in one process, and prints what each printed."""


def helps(starts, folder):
    """The help of each, started from a folder."""
    words = json.dumps([[*map(str, start), "--help"] for start in starts])
    done = subprocess.run([sys.executable, "-c", HELPS, words], capture_output=True, text=True, cwd=folder,
                          env=os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "400"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_help_of_a_verb_names_the_command_as_it_was_called(tmp_path):
    """From another folder, as `python -m resnest_seg`: no word of scripts, which need not be there."""
    verbs = [*cli.VERBS, "prepare camvid", "benchmark loss"]
    for verb, said in zip(verbs, helps([["resnest_seg", *verb.split()] for verb in verbs], tmp_path), strict=True):
        assert f"python -m resnest_seg {verb}" in said
        assert "_seg.py" not in said, verb
        assert "tools/" not in said, verb
    scripts = [PROJECT / script for script in SCRIPTS.values()]
    for script, said in zip(scripts, helps([[script] for script in scripts], PROJECT), strict=True):
        assert script.name in said
        assert "resnest_seg " not in said.replace("resnest_seg contributors", ""), script


def test_commands_in_a_checkout_are_its_scripts(monkeypatch, tmp_path):
    monkeypatch.chdir(PROJECT)
    assert command("eval") == "python tools/eval_seg.py"
    assert command("prepare ade20k") == "python datasets/prepare_ade20k.py"
    assert command("train", launcher="torchrun --nproc-per-node 8") == "torchrun --nproc-per-node 8 tools/train_seg.py"
    assert command("prepare") == "resnest-seg prepare"  # which has no script
    assert program("check") == "check_dataset.py"
    assert usage("python tools/zoo_seg.py --json") == "python tools/zoo_seg.py --json"
    monkeypatch.chdir(tmp_path)  # from where the script has another name
    assert command("eval") == f"python {PROJECT}/tools/eval_seg.py"
    assert program("eval") == "eval_seg.py"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()  # an error message must not fail for that
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert command("eval") == f"python {PROJECT}/tools/eval_seg.py"


@pytest.mark.parametrize("started", ["/usr/bin/resnest-seg", "C:/Scripts/resnest-seg.exe", MODULE])
def test_commands_are_named_as_this_process_was_started(started, monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", [started, "train"])
    name = "python -m resnest_seg" if started == MODULE else "resnest-seg"
    assert command("eval") == program("eval") == f"{name} eval"
    assert command("train", launcher="torchrun -n 2") == "torchrun -n 2 -m resnest_seg train"
    text = "python tools/train_seg.py --resume x\ntorchrun --nproc-per-node 8 tools/train_seg.py --dataset a"
    assert usage(text) == f"{name} train --resume x\ntorchrun --nproc-per-node 8 -m resnest_seg train --dataset a"


def test_no_message_of_the_package_names_a_script_by_hand():
    """Outside of docstrings, which `usage` translates, `command` is the only place that knows the scripts' names."""
    import ast

    scripts = [Path(script).name for script in SCRIPTS.values()]
    names = re.compile("|".join(map(re.escape, (*scripts, "datasets/README", "configs/"))))
    for path in sorted((PROJECT / "resnest_seg").rglob("*.py")):
        if path.name == "errors.py":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.body[0].value) for node in nodes
                      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                      and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert not names.search(node.value), f"{path.name}: {node.value}"
    for path in shipped_configs().values():  # in the wheel, too
        assert not [name for name in (*scripts, "configs/") if name in path.read_text(encoding="utf-8")], path.name


def completions(tmp_path, line):
    """What the shell's Tab key offers after a line; argcomplete writes it to the file that it is given."""
    file = tmp_path / "completions"
    environment = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                   "_ARGCOMPLETE_STDOUT_FILENAME": str(file)}  # fmt: skip
    done = process(folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in file.read_text().split("\n")]


@pytest.mark.long
@pytest.mark.slow
def test_the_tab_key_completes_verbs_and_options(tmp_path):
    pytest.importorskip("argcomplete")
    assert set(completions(tmp_path, "resnest-seg ")) == {*cli.VERBS, "--help", "--version", "-h"}
    assert completions(tmp_path, "resnest-seg tra") == ["train"]
    assert "--optim.lr" in completions(tmp_path, "resnest-seg train --dataset camvid --optim.l")
    assert completions(tmp_path, "resnest-seg pretrain --classify.mixup") == ["--classify.mixup"]
    assert "--devices" in completions(tmp_path, "resnest-seg budget --dev")
    assert completions(tmp_path, "resnest-seg prepare c") == ["camvid", "cityscapes"]
    assert completions(tmp_path, "resnest-seg prepare ade20k --k") == ["--keep-zip"]
    assert completions(tmp_path, "resnest-seg benchmark inf") == ["infer"]
    assert completions(tmp_path, "resnest-seg benchmark infer --enc") == ["--encoder"]
    for verb in ("eval", "predict", "export"):
        assert completions(tmp_path, f"resnest-seg {verb} --check") == ["--checkpoint"]
    for verb, start, whole in (("serve", "--max-b", "--max-bytes"), ("check", "--spl", "--splits"),
                               ("zoo", "--js", "--json")):  # fmt: skip
        assert completions(tmp_path, f"resnest-seg {verb} {start}") == [whole]


def test_a_shipped_config_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    from resnest_seg.errors import ConfigError
    from resnest_seg.files import find_config

    monkeypatch.chdir(tmp_path)
    name, path = "camvid_deeplabv3_resnest50", PROJECT / "configs" / "camvid_deeplabv3_resnest50.yaml"
    assert {PROJECT / "configs" / f"{name}.yaml" for name in shipped_configs()} == set((PROJECT / "configs").glob("*"))
    for word in (name, f"{name}.yaml", f"configs/{name}.yaml", path, Path(name)):
        assert find_config(word) == path
    Path(f"{name}.yaml").write_text("mine")
    assert find_config(f"{name}.yaml") == Path(f"{name}.yaml")  # a file that is there comes first
    with pytest.raises(ConfigError, match=r"no config file other/camvid_deeplabv3_resnest50.yaml"):
        find_config(f"other/{name}.yaml")
    with pytest.raises(ConfigError, match=r"no config file camvid_deplab, .* Did you mean camvid_deeplabv3_resnest50"):
        find_config("camvid_deplab")


def test_budget_names_the_config_as_it_was_given(capsys):
    """So that its last line can be run where the budget was."""
    words = ["--config", "synthetic_fcn_resnest14_tiny", "--memory", "8", "--device", "cpu"]
    assert resnest_seg_command("budget", *words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{command('train')} --config synthetic_fcn_resnest14_tiny")


def test_the_script_of_the_project_is_declared():
    """The entry point that pip makes the command of."""
    from importlib.metadata import entry_points

    found = entry_points(group="console_scripts", name="resnest-seg")
    if not found:
        pytest.skip("the package is not installed here")
    (entry,) = found
    assert entry.load() is cli.run
