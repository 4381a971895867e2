"""A page that is one HTML file: its style, its script and its pictures are inside, and it may load nothing else.

The content security policy in its head allows no request at all, and no script but ours, which it names by hash: text
from file names, class names and config values cannot become one. Elements are made by `element`, which escapes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from resnest_seg.errors import printable
from resnest_seg.files import atomic_write

Child = Element | str
"""What an element holds: other elements, and text."""


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        anchor: Its id, a word of letters and dashes.
        title: Its heading.
        body: Its elements.
        data: What its script reads, as JSON; None for nothing.
    """

    anchor: str
    title: str
    body: Sequence[Element]
    data: Any = None


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it shows, unless it has children.
        value: What rows are sorted by, a number; None sorts by the text, or for a number that is missing last.
        children: Elements in place of the text.
        number: It is aligned right.
    """

    text: str
    value: float | None = None
    children: Sequence[Child] = ()
    number: bool = False


def element(tag: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """Make an element of HTML or SVG; all text in it is escaped when the page is written.

    Args:
        tag: Its name.
        attributes: Name -> value; True for an attribute without a value, None and False for none.
        children: Elements and text, in their order.
    """
    made = Element(tag)
    for name, value in (attributes or {}).items():
        if value is not None and value is not False:
            made.set(name, "" if value is True else printable(str(value)))
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + printable(child)
        else:
            made.text = (made.text or "") + printable(child)
    return made


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, label: str, sortable: bool = False) -> Element:
    """Make a table that scrolls where it is wider than the screen; the first cell of a row is its heading.

    Args:
        heads: Text above the columns.
        rows: Cells, as many as heads.
        label: What it is, for those who hear the page.
        sortable: The headings are buttons that sort the rows.
    """
    numbers = [False] * len(heads)
    body = []
    for row in rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        numbers = [before or cell.number for before, cell in zip(numbers, cells, strict=True)]
        columns = []
        for place, cell in enumerate(cells):
            attributes = {
                "scope": None if place else "row",
                "class": "number" if cell.number else None,
                "data-value": cell.value,
            }
            columns.append(element("td" if place else "th", attributes, *(cell.children or (cell.text,))))
        body.append(element("tr", None, *columns))
    top = [
        element(
            "th",
            {"scope": "col", "class": "number" if number else None},
            element("button", {"type": "button"}, head) if sortable else head,
        )
        for head, number in zip(heads, numbers, strict=True)
    ]
    made = element(
        "table",
        {"class": "sortable" if sortable else None},
        element("caption", {"class": "hidden"}, label),
        element("thead", None, element("tr", None, *top)),
        element("tbody", None, *body),
    )
    return element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}, made)


def page_html(
    title: str, sections: Sequence[Section], *, lead: Sequence[Element] = (), scripts: Sequence[str] = ()
) -> str:
    """Write a page as HTML.

    Args:
        title: Its title and first heading.
        sections: Its parts, each with an entry in the contents.
        lead: Elements above the contents.
        scripts: Assets that run after that of every page.
    """
    style, own = asset("page.css"), [asset(name) for name in ("page.js", *scripts)]
    hashes = " ".join(f"'{_hash(script)}'" for script in own)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    contents = [element("li", None, element("a", {"href": f"#{part.anchor}"}, part.title)) for part in sections]
    parts = [element("section", {"id": part.anchor}, element("h2", None, part.title), *part.body) for part in sections]
    header = element("header", None, element("h1", None, title), *lead)
    nav = element("nav", {"aria-label": "contents"}, element("ul", None, *contents))
    data = [
        f'<script type="application/json" id="{part.anchor}-data">{_json(part.data)}</script>'
        for part in sections
        if part.data is not None
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            markup(element("title", None, title)),
            f"<style>{style}</style></head><body>",
            markup(header),
            markup(nav),
            markup(element("main", None, *parts)),
            *data,
            *(f"<script>{script}</script>" for script in own),
            "</body></html>",
            "",
        ]
    )


def write_page(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    lead: Sequence[Element] = (),
    scripts: Sequence[str] = (),
) -> None:
    """Write the file of a page, atomically; see `page_html`.

    Raises:
        OSError: It cannot be written.
    """
    text = page_html(title, sections, lead=lead, scripts=scripts)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markup(made: Element) -> str:
    """Write an element as HTML."""
    return ElementTree.tostring(made, encoding="unicode", method="html")


def data_uri(content: bytes, kind: str) -> str:
    """Return the address of a picture that is inside the page: `kind` is "image/png" or "image/jpeg"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def asset(name: str) -> str:
    """Read a file of `assets/`."""
    return (resources.files("resnest_seg.reports") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash by which a policy allows an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(data: Any) -> str:
    """JSON that ends no script element, and is no HTML whatever its texts are."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
