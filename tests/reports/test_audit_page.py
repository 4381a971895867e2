"""The page of an audit: what it holds, and what it does in a browser."""

from html.parser import HTMLParser

import numpy as np
import pytest
from support import browser
from support.scripted_backend import ScriptedBackend
from support.scripted_data import NAMES, SPACE, Scripted, said

import resnest_seg
from resnest_seg.data.datasets import Subset, TaskView
from resnest_seg.evaluation.label_audit import audit
from resnest_seg.reports.audit_page import write_audit_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of an audit of `Scripted`."""
    path = tmp_path_factory.mktemp("page") / "audit [1] ü.html"
    report = audit(ScriptedBackend(SPACE, said), Scripted(), min_area=20)
    write_audit_page(path, report, Scripted(), count=4, mark=lambda index: f"/photos/{NAMES[index]}",
                     warnings=["it <i>was</i> trained on them"])  # fmt: skip
    return path


def test_names_are_text_and_nothing_else(page):
    found, text = [], page.read_text(encoding="utf-8")
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(text)
    assert not [attribute for _, attributes in found for attribute in attributes if attribute.startswith("on")]
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in found if tag == "img")
    scripts = [attributes for tag, attributes in found if tag == "script"]
    assert [attributes.get("type") for attributes in scripts].count(None) == 2  # page.js and marks.js
    assert not {"b", "i"} & {tag for tag, _ in found}
    marks = [attributes["value"] for _, attributes in found if attributes.get("class") == "mark"]
    assert len(marks) == 5  # four images and a region
    assert set(marks) <= {f"/photos/{name}" for name in NAMES}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_an_audit_without_a_doubt_has_a_page(tmp_path):
    data = Scripted(2)
    labels = {data[index].image.tobytes(): data[index].labels for index in range(2)}

    def right(image):
        return np.stack([labels[image.tobytes()] == label for label in range(3)]).astype(np.float32) + 1e-9

    report = audit(ScriptedBackend(SPACE, right), data)
    assert report.flagged(10) == []
    write_audit_page(tmp_path / "audit.html", report, data, count=4, mark=str)
    assert "No label is doubtful" in (tmp_path / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_have_a_page(tmp_path, task):
    data = TaskView(
        Subset(resnest_seg.Synthetic("val", size=(48, 64)), [0, 1]), task, ["car"] if task == "binary" else ()
    )
    scores = len(data.label_space.score_names)
    model = ScriptedBackend(data.label_space, lambda image: np.full((scores, *image.shape[:2]), 0.7, np.float32))
    report = audit(model, data, min_area=5)
    maps = report.maps(0)
    assert maps.given.dtype == maps.suggested.dtype == data[0].labels.dtype
    np.testing.assert_array_equal(maps.given, data[0].labels)
    known = data[0].labels != data.label_space.ignore_value
    assert (maps.predicted[known] == (1 if task == "binary" else 1023)).all()
    assert (maps.suggested[~known] == data.label_space.ignore_value).all()
    write_audit_page(tmp_path / "audit.html", report, data, count=2, mark=str)
    assert (tmp_path / "audit.html").read_text(encoding="utf-8").count('class="mark"') == 2 + min(2, report.found)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_images_are_ticked_listed_and_downloaded(page, chromium, width):
    with browser.visit(chromium, page.as_uri(), width=width) as visit:
        found = visit.page
        assert found.evaluate("document.documentElement.scrollWidth") <= width
        worst = found.locator("#regions .card").first
        assert NAMES[2] in worst.inner_text()
        worst.get_by_role("checkbox").focus()
        found.keyboard.press("Space")
        ticked = found.locator("input.mark:checked").evaluate_all("boxes => boxes.map(box => box.value)")
        assert set(ticked) == {f"/photos/{NAMES[2]}"}
        assert len(ticked) >= 2  # its regions and the image
        assert found.get_by_label("the ticked images").input_value() == f"/photos/{NAMES[2]}\n"
        assert "1 of 4 images" in found.locator(".count-of-marks").inner_text()
        with found.expect_download() as download:
            found.get_by_role("button", name="download").click()
        assert download.value.suggested_filename == "relabel.txt"
        assert download.value.path().read_text(encoding="utf-8") == f"/photos/{NAMES[2]}\n"
        found.reload()
        assert found.get_by_label("the ticked images").input_value() == f"/photos/{NAMES[2]}\n"
        found.get_by_role("button", name="tick all", exact=True).click()
        assert len(found.get_by_label("the ticked images").input_value().splitlines()) == 4
        found.get_by_role("button", name="untick all").click()
        assert found.get_by_label("the ticked images").input_value() == ""
        assert browser.accessibility(found) == []
    assert visit.errors == visit.outside() == []


@pytest.mark.slow
def test_the_slider_and_the_classes_change_what_is_painted(page, chromium):
    doubtful = '#regions .card canvas[aria-label^="doubtful"]'
    with browser.visit(chromium, page.as_uri()) as visit:
        found = visit.page
        found.locator("#regions").scroll_into_view_if_needed()
        found.locator(doubtful).first.wait_for()
        found.locator("#regions .card[data-drawn]").first.wait_for()
        before = browser.pixels(found, doubtful)
        card = found.locator("#regions .card")
        count = card.get_attribute("data-drawn")
        found.locator("#regions-opacity").fill("100")
        found.locator(f"#regions .card:not([data-drawn='{count}'])").wait_for()
        painted = browser.pixels(found, doubtful)
        changed = (before != painted).any(axis=2)
        assert 20 <= changed.sum() <= 100  # the region alone, at most the square that is wrong
        count = card.get_attribute("data-drawn")
        found.locator("#regions button.none").click()
        found.locator(f"#regions .card:not([data-drawn='{count}'])").wait_for()
        plain = browser.pixels(found, doubtful)
        assert ((plain != painted).any(axis=2) == changed).all()
    assert [error for error in visit.errors if "willReadFrequently" not in error] == []  # what this test does itself
    assert visit.outside() == []
