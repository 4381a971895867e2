"""Pages of reports: well-formed, without a request, and whatever text is in them stays text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from support.fake_runs import HOSTILE

from resnest_seg.reports.page import Cell, Section, asset, element, markup, page_html, table, write_page

VOID = {"meta", "input", "img", "br", "col", "hr", "link"}


class Reader(HTMLParser):
    """Reads a page as a browser does, and refuses what is not nested."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []  # titles of SVG are not those of the page
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        place = self.open[-1] if self.open else ""
        self.texts.append((f"svg {place}" if "svg" in self.open else place, data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag):
        return "".join(data for name, data in self.texts if name == tag)


def hostile_page():
    rows = [[name, Cell("1", 1.0, number=True)] for name in HOSTILE]
    body = [
        table(["class", HOSTILE[0]], rows, label=HOSTILE[1], sortable=True),
        element("p", {"title": HOSTILE[1]}, "x"),
    ]
    names = [*HOSTILE, "</script ", "<!--<script>"]
    sections = [Section("one", HOSTILE[2], body, {"names": names}), Section("two", "Two", [])]
    return page_html(HOSTILE[0], sections, lead=[element("p", None, "control \x00\x1b and \udcff")])


def test_text_of_strangers_stays_text():
    page = Reader(hostile_page())
    assert page.text("title") == page.text("h1") == HOSTILE[0]
    assert page.all("img") == []
    assert [a["class"] for a in page.all("th") if a.get("scope") == "row" and "class" in a] == []
    data = next(text for name, text in page.texts if name == "script")
    assert json.loads(data) == {"names": [*HOSTILE, "</script ", "<!--<script>"]}
    assert not set("<>") & set(data)
    for name in HOSTILE:
        assert name in [data for _, data in page.texts]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, tag  # which the policy would refuse
    assert r"control \x00\x1b and \xff" in page.text("p")


def test_a_page_may_load_nothing_and_run_nothing_but_its_script():
    text = hostile_page()
    page = Reader(text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["img-src"] == "data:"
    for kind, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        (inline,) = re.findall(pattern, text, re.DOTALL)
        assert parts[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert not page.all("link")


def test_the_script_and_the_style_are_those_of_the_package():
    """They lie in the wheel: a page cannot be made without them."""
    for name in ("page.js", "page.css"):
        assert len(asset(name)) > 1000
        assert "</" not in asset(name).replace("</", "", 0) or "</script" not in asset(name)


def test_cells_sort_by_numbers_and_columns_of_numbers_are_aligned():
    made = table(["a", "b"], [["x", Cell("10", 10.0, number=True)], ["y", Cell("-", None, number=True)]], label="t")
    page = Reader(markup(made))
    cells = page.all("td")
    assert [(cell.get("data-value"), cell["class"]) for cell in cells] == [("10.0", "number"), (None, "number")]
    assert [head.get("class") for head in page.all("th") if head["scope"] == "col"] == [None, "number"]
    assert page.all("div")[0]["tabindex"] == "0"  # a table that scrolls can be reached by keyboard


def test_numbers_that_are_none_do_not_become_json_that_browsers_refuse():
    with pytest.raises(ValueError, match="not JSON compliant"):
        page_html("t", [Section("a", "A", [], {"x": float("nan")})])


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="JSON"):
        write_page(path, "t", [Section("a", "A", [], {"x": float("inf")})])
    assert path.read_text() == "before"
    write_page(path, "Ü", [])
    assert "<h1>Ü</h1>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]
