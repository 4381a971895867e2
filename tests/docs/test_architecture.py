"""The drawing of the wings agrees with the rule that the house holds."""

import runpy
import xml.etree.ElementTree as ElementTree

import pytest
from test_house import GROUND, MAY_IMPORT, PROJECT, WINGS

DRAWING = PROJECT / "docs" / "architecture.svg"


@pytest.fixture(scope="module")
def arrows():
    """(from, to) of every arrow."""
    paths = ElementTree.fromstring(DRAWING.read_text(encoding="utf-8")).iter("{http://www.w3.org/2000/svg}path")
    return {(path.get("data-from"), path.get("data-to")) for path in paths if path.get("data-from")}


def test_the_drawing_is_what_its_script_draws():
    script = runpy.run_path(str(PROJECT / "docs" / "architecture_drawing.py"))
    assert script["drawing"]() == DRAWING.read_text(encoding="utf-8"), "python docs/architecture_drawing.py"


def test_a_wing_may_import_what_it_reaches_along_the_arrows(arrows):
    def reached(wing):
        following = {end for start, end in arrows if start == wing}
        return following.union(*(reached(other) for other in following))

    for wing in WINGS:
        left_out = {"teachers"} if wing == "combining" else set()  # as the page says
        assert reached(wing) == MAY_IMPORT[wing] | left_out, wing


def test_every_wing_has_a_box_and_the_page_shows_the_drawing():
    texts = [text.text for text in ElementTree.parse(DRAWING).iter("{http://www.w3.org/2000/svg}text")]
    assert {text.strip("/") for text in texts if text.endswith("/")} == set(WINGS)
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "](architecture.svg)" in page
    assert "a ground of eight files" in page
    assert len(GROUND) == 8
