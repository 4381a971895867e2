"""Tables, progress bars and consoles of rich that show text verbatim and never parse it as markup.

rich reads `[bold]` in a string as a style and raises on `[/x]`: a class or a file of such a name would vanish from a
table or end the program. All tables, bars and consoles of the package are made here.
"""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnest_seg.errors import printable


def plain_text(text: str) -> Text:
    """Return the string verbatim, with unprintable characters escaped."""
    return Text(printable(text))


class PlainTable(Table):
    """A table whose cells are plain text on any console.

    Args:
        title: Text above the table.
        caption: Text below the table.
        show_footer: Show the columns' footers.
        compact: Draw no lines and align the title left, so that the table fits 80 columns.
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
        """Add a column; `right` aligns it right, for numbers."""
        justify: Literal["left", "right"] = "right" if right else "left"
        self.add_column(plain_text(heading), plain_text(footer), justify=justify, no_wrap=no_wrap)

    def row(self, *cells: str, style: str = "") -> None:
        """Add a row with one string per column."""
        self.add_row(*map(plain_text, cells), style=style or None)


def table_html(table: PlainTable) -> str:
    """Convert a table to HTML for a notebook; all text is escaped, and lines of the title stay lines."""

    def row(kind: str, cells: Iterable[object]) -> str:
        pairs = zip(cells, table.columns, strict=True)
        sides = [f'<{kind} style="text-align:{column.justify}">{_escaped(cell)}</{kind}>' for cell, column in pairs]
        return f"<tr>{''.join(sides)}</tr>"

    columns = table.columns
    rows = [row("td", cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    foot = f"<tfoot>{row('th', (column.footer for column in columns))}</tfoot>" if table.show_footer else ""
    head = row("th", (column.header for column in columns))
    caption = f"<p>{_escaped(table.caption)}</p>" if table.caption else ""
    return (
        f"<table><caption>{_escaped(table.title or '')}</caption><thead>{head}</thead>"
        f"<tbody>{''.join(rows)}</tbody>{foot}</table>{caption}"
    )


def _escaped(text: object) -> str:
    return html.escape(str(text)).replace("\n", "<br/>")


def console(*, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False, width: int | None = None) -> Console:
    """Make a console that prints strings verbatim: without markup, emoji codes and highlighting."""
    return Console(
        stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False
    )


class ShownText(ProgressColumn):
    """A progress column that shows a field of a task as plain text.

    Args:
        field: "description", or a keyword of `add_task`.
    """

    def __init__(self, field: str = "description") -> None:
        super().__init__()
        self.field = field

    def render(self, task: Task) -> Text:
        """Return the field of one task."""
        return plain_text(str(task.description if self.field == "description" else task.fields[self.field]))


def progress_bars(
    *columns: ProgressColumn, shown: bool = False, on: Console | None = None, disable: bool = False
) -> Progress:
    """Make progress bars that are erased at the end.

    Args:
        columns: Replace the default columns: description, bar, count and remaining time.
        shown: Add a column with the field `shown` of a task.
        on: The console; None for standard output.
        disable: Display nothing.
    """
    usual = [ShownText(), BarColumn(), MofNCompleteColumn(), *([ShownText("shown")] if shown else []),
             TimeRemainingColumn()]  # fmt: skip
    chosen: list[Any] = list(columns) or usual
    target = on or console()
    # Elsewhere rich writes an empty line for each bar, and in a notebook without ipywidgets a warning.
    watched = target.is_terminal or (target.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)
    return Progress(*chosen, console=target, transient=True, disable=disable or not watched)
