"""Every command and snippet of the site runs, or is marked as needing data and at least parses."""

import importlib
import re
import shutil

import pytest
from support.page_setups import SETUPS
from support.pages import PAGES, PROJECT, Block, Runner, check_block, check_line, lines, ours, read

from resnest_seg.cli.main import MODULES, VERBS

NAMES = [str(page.relative_to(PROJECT)) for page in PAGES]


def page_of(name):
    return read((PROJECT / name).read_text(encoding="utf-8"))


RUNNING = "bash", "python"
RUN = [name for name in NAMES if any(block.runs and block.language in RUNNING for block in page_of(name).blocks)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of each setup, made when it is first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[name])
                SETUPS[name](made[name])
        return made[name]

    return folder


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_snippets_of_a_page_run(name, prepared, tmp_path, monkeypatch, capsys):
    page, folder = page_of(name), tmp_path / "page"
    if page.setup:
        shutil.copytree(prepared(page.setup), folder, symlinks=True)
    else:
        folder.mkdir()
    runner = Runner(folder, monkeypatch, capsys)
    for block in page.blocks:
        if block.runs:
            try:
                runner.run(block)
            except BaseException as error:
                error.add_note(f"{name}, line {block.line}")
                raise


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_parses(name, monkeypatch):
    for block in page_of(name).blocks:
        try:
            check_block(block, monkeypatch)
        except (AssertionError, SyntaxError) as error:
            error.add_note(f"{name}, line {block.line}")
            raise


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_in_the_help_of_a_verb_parses(verb, monkeypatch):
    module = importlib.import_module(f"resnest_seg.cli.{MODULES.get(verb, verb)}")
    for line in module.__doc__.splitlines():
        if re.match(r"(python (tools|datasets)/|resnest-seg |torchrun )", line):
            check_line(line, monkeypatch)


PAGE = """<!-- setup: photos -->
# A page

```bash
resnest-seg check --dataset folder \\
    --data.root mine   # a comment
```

<!-- needs data -->
```python
import resnest_seg
```

```python
# my_head.py
```
"""


def test_a_page_is_read_in_order():
    page = read(PAGE)
    assert page.setup == "photos"
    assert [(block.language, block.line, block.runs, block.file) for block in page.blocks] == [
        ("bash", 4, True, None),
        ("python", 10, False, None),
        ("python", 14, True, "my_head.py"),
    ]
    (line,) = lines(page.blocks[0].text)
    assert ours(line) == ["check", "--dataset", "folder", "--data.root", "mine"]


def test_a_mark_that_marks_nothing_is_an_error():
    with pytest.raises(AssertionError, match="line 3: 'needs data' is not followed by a block"):
        read("<!-- needs data -->\n\nText\n\n```bash\nls\n```\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [("torchrun --nproc-per-node 8 tools/train_seg.py --dataset ade20k", ["train", "--dataset", "ade20k"]),
     ("torchrun --nproc-per-node 8 -m resnest_seg train --dataset ade20k", ["train", "--dataset", "ade20k"]),
     ("sbatch --nodes 2 tools/slurm_train.sh --dataset ade20k", ["train", "--dataset", "ade20k"]),
     ("sbatch --array 0-9 examples/cluster/predict_array.sh photos", ["predict", "photos"]),
     ("RAY_ADDRESS=local resnest-seg predict photos", ["predict", "photos"]),
     ("python datasets/prepare_ade20k.py --root x", ["prepare", "ade20k", "--root", "x"]), ("ls runs", None)],
)  # fmt: skip
def test_our_commands_are_found_behind_their_launchers(line, words):
    assert ours(line) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [("resnest-seg trian --dataset folder", "unknown verb"),
     ("resnest-seg eval --checkpoint x --protokoll whole", "unknown option"),
     ("resnest-seg eval --checkpoint x --memory", "expected one argument"),
     ("resnest-seg predict --checkpoint x", "the following arguments are required"),
     ("resnest-seg predict --checkpoint x --write lables photo.jpg", "invalid choice"),
     ("resnest-seg train --dataset folder --data.crop 480", "unknown option"),
     ("resnest-seg train --dataset folder --data.crop_size big", "crop_size"),
     ("resnest-seg train --dataset folder --train.loss dise", "dise"),
     ("resnest-seg train --dataset fodler", "unknown data set"),
     ("resnest-seg benchmark trian", "invalid choice|unknown"),
     ("pip install 'resnest-seg[exprot]'", "exprot"), ("make tset", "tset")],
)  # fmt: skip
def test_a_wrong_command_is_found_without_running_it(line, message, monkeypatch, capsys):
    with pytest.raises(AssertionError) as error:
        check_line(line, monkeypatch)
    assert re.search(message, str(error.value) + capsys.readouterr().err)


def test_python_that_does_not_compile_is_found(monkeypatch):
    with pytest.raises(SyntaxError):
        check_block(Block("python", "import resnest_seg as\n", 1, False), monkeypatch)


@pytest.mark.parametrize(
    ("block", "error"),
    [(Block("bash", "resnest-seg check --dataset folder --data.root nowhere\n", 1, True), "nowhere"),
     (Block("bash", "cat nowhere\n", 1, True), "nowhere"),
     (Block("python", "assert 1 == 2, 'not one'\n", 1, True), "not one")],
)  # fmt: skip
def test_a_block_that_fails_is_found(block, error, tmp_path, monkeypatch, capsys):
    with pytest.raises(AssertionError, match=error):
        Runner(tmp_path, monkeypatch, capsys).run(block)


def test_blocks_share_their_folder_and_names(tmp_path, monkeypatch, capsys):
    runner = Runner(tmp_path, monkeypatch, capsys)
    for language, text in (
        ("python", "# part.py\nVALUE = 3\n"),
        ("python", "import pathlib\nfrom part import VALUE\n"),
        ("python", "pathlib.Path('out').write_text(str(VALUE))\n"),
        ("bash", "grep -q 3 out | cat\n"),
        ("bash", "cat > in <<END\n3\nEND\ndiff <(cat in) <(cat out && echo)\n"),
    ):
        runner.run(Block(language, text, 1, True))
    assert (tmp_path / "in").read_text() == "3\n"
