"""Tables, bars and consoles of rich, for names that other people chose: text is shown as it is, never read as markup.

rich takes `[bold]` in a string for a style and `[/x]` for a mistake, so that a class or a file of such a name would
vanish from a table, or end the program. Nothing else of the package makes these objects.
"""

from __future__ import annotations

from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnest_seg.errors import printable


def plain_text(text: str) -> Text:
    """A string as it is, without bytes that no terminal takes."""
    return Text(printable(text))


class PlainTable(Table):
    """A table of plain strings, whatever console it is printed by.

    Args:
        title: Above it.
        caption: Below it.
        show_footer: Whether columns have footers.
        compact: Without lines, for tables that have to fit 80 columns; the title stands left.
    """

    def __init__(self, *, title: str = "", caption: str = "", show_footer: bool = False, compact: bool = False) -> None:
        super().__init__(
            title=Text(printable(title), style="table.title") if title else None,
            caption=Text(printable(caption), style="table.caption") if caption else None,
            show_footer=show_footer,
        )
        if compact:
            self.box, self.padding, self.title_justify = None, (0, 1, 0, 0), "left"

    def column(self, heading: str, *, footer: str = "", right: bool = False, no_wrap: bool = False) -> None:
        """Add a column; `right` is for numbers."""
        justify: Literal["left", "right"] = "right" if right else "left"
        self.add_column(plain_text(heading), plain_text(footer), justify=justify, no_wrap=no_wrap)

    def row(self, *cells: str, style: str = "") -> None:
        """Add a row, a string a column."""
        self.add_row(*map(plain_text, cells), style=style or None)


def console(*, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False, width: int | None = None) -> Console:
    """A console that prints strings as they are: no markup, no emoji, no colours by content."""
    return Console(
        stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False
    )


class ShownText(ProgressColumn):
    """A field of a task as plain text.

    Args:
        field: "description", or a name that was given to `add_task`.
    """

    def __init__(self, field: str = "description") -> None:
        super().__init__()
        self.field = field

    def render(self, task: Task) -> Text:
        """The field of one task."""
        return plain_text(str(task.description if self.field == "description" else task.fields[self.field]))


def progress_bars(
    *columns: ProgressColumn, shown: bool = False, on: Console | None = None, disable: bool = False
) -> Progress:
    """Bars that vanish at the end.

    Args:
        columns: Instead of description, bar, count and the time that remains.
        shown: Show the field `shown` of a task as well.
        on: The console; None is standard output.
        disable: Show nothing.
    """
    usual = [ShownText(), BarColumn(), MofNCompleteColumn(), *([ShownText("shown")] if shown else []),
             TimeRemainingColumn()]  # fmt: skip
    chosen: list[Any] = list(columns) or usual
    return Progress(*chosen, console=on or console(), transient=True, disable=disable)
