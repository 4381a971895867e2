"""Names are never markup: tables, consoles and bars show them as they are."""

import io
import os
import re
import sys

import pytest
from rich.console import Console

from resnest_seg.config import RunConfig
from resnest_seg.data.checks import Diagnosis
from resnest_seg.evaluation.metrics import Confusion, Scores
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.io.display import PlainTable, console, progress_bars
from resnest_seg.training.memory import Devices, Option, Plan

HOSTILE = ("[bold]car", "[/road]", "[red]", ":smiley:", os.fsdecode(b"caf\xe9[/]"))
SHOWN = (*HOSTILE[:4], "caf\\xe9[/]")


def text_of(thing, terminal=None):
    """As any console prints it, also one that reads markup."""
    terminal = terminal or Console(width=200)
    terminal.file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    terminal.print(thing)
    terminal.file.flush()
    return terminal.file.buffer.getvalue().decode()


def test_a_table_shows_every_name():
    table = PlainTable(title="[title]", caption="[/caption]", show_footer=True)
    table.column("[head]", footer="[/foot]")
    for name in HOSTILE:
        table.row(name)
    text = text_of(table)
    for part in (*SHOWN, "[title]", "[/caption]", "[head]", "[/foot]"):
        assert part in text


def test_a_console_shows_every_name(capsys):
    for name in HOSTILE[:4]:
        console(soft_wrap=True).print(f"run folder {name}")
    assert capsys.readouterr().out.splitlines() == [f"run folder {name}" for name in HOSTILE[:4]]


def test_bars_show_every_name(capsys):
    with progress_bars(shown=True, on=Console(force_terminal=True, width=120)) as progress:
        for name in HOSTILE:
            progress.add_task(name, total=2, shown=f"of {name}")
        progress.refresh()
    text = capsys.readouterr().out
    for name in SHOWN:
        assert f"of {name}" in text


def test_a_notebook_without_ipywidgets_has_no_bars_instead_of_rich_warning_of_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with progress_bars(on=Console(force_jupyter=True)) as progress:
        progress.advance(progress.add_task("photos", total=2))
        progress.refresh()  # warnings are errors here
    assert capsys.readouterr().out == ""


def report():
    shares = (0.2,) * len(HOSTILE)
    scores = Scores(**{field: shares if field.startswith("class_") else 0.5 for field in Scores.__dataclass_fields__})
    return EvalReport(
        "[model]", "[data]", "val", 1, HOSTILE, {"whole": scores}, confusions={"whole": (Confusion(1, 2, 5, 0.5),)}
    )


def test_the_tables_of_an_evaluation():
    found = report()
    for table in (found.table(), found.comparison(found)):
        for part in (*SHOWN, "[model]"):
            assert part in text_of(table)
    assert "[data]" in text_of(found.summary())
    text = text_of(found.confusion_table())
    assert "[/road]" in text
    assert "[red]" in text


def test_the_tables_of_the_doctor_and_the_budget():
    weights = [1.0] * len(HOSTILE)
    diagnosis = Diagnosis("[mine]", HOSTILE, {"train": 1}, (), {"train": weights}, {"train": 0.0}, {}, {}, weights,
                          weights, 64)  # fmt: skip
    text = text_of(diagnosis.table())
    for part in (*SHOWN, "[mine]"):
        assert part in text
    option = Option(2, 1, False, 0, 2, "[/x]")
    assert "[/x]" in text_of(Plan(RunConfig(), Option(1, 2, False, 0, 2), (option,), Devices(1, 0, "cpu")).table())


@pytest.mark.parametrize("kind", ["Console", "Table", "Progress", "track"])
def test_nothing_else_makes_objects_of_rich(kind):
    """So that the rule cannot be forgotten in a new tool."""
    from test_house import FILES, OTHERS

    for path in [*FILES, *OTHERS]:
        if path.stem != "display":
            assert not re.search(rf"\b{kind}\(", path.read_text(encoding="utf-8")), path.name
