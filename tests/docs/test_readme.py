"""The README is short, its links lead somewhere, and its figures stand on the pages that it names."""

import re

import pytest
from test_house import PROJECT

from resnest_seg.cli.main import GROUPS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONTENTS = re.findall(r"^[a-z][\w/]+$", (PROJECT / "docs" / "index.md").read_text(encoding="utf-8"), re.M)
ROWS = [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", README, re.M)]


def test_it_is_short():
    assert len(README.splitlines()) < 200


def test_links_lead_to_files():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(targets) > 40
    assert [target for target in targets if not (PROJECT / target).exists()] == []


def test_every_page_of_the_contents_but_the_reference_is_linked():
    linked = set(re.findall(r"\]\(docs/([\w/]+)\.(?:md|ipynb)\)", README))
    assert set(CONTENTS) - {"datasets", "changelog", "reference/index"} <= linked


def test_the_verbs_are_those_of_the_command():
    rows = {row[0]: re.findall(r"`(\w+)`", row[1]) for row in ROWS if row[0] in GROUPS}
    assert rows == {group: list(verbs) for group, verbs in GROUPS.items()}


RESULTS = [row for row in ROWS if len(row) == 3 and row[0] not in ("what", "---")]


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row[0])
def test_the_figures_of_a_result_stand_on_its_page(row):
    page = (PROJECT / re.search(r"\((docs/\w+\.md)\)", row[2])[1]).read_text(encoding="utf-8")
    figures = re.findall(r"\d+(?:\.\d+)?", row[1])
    assert figures
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", page), figure


def test_the_results_are_five_rows():
    assert len(RESULTS) == 5
    between = README.partition("<!-- results -->")[2].partition("<!-- end of results -->")[0]
    assert all(row[0] in between for row in RESULTS)
