"""The report of runs in a real browser, from a file: what a person sees, sets and reads."""

import re
import shutil

import numpy as np
import pytest
import torch
from support import browser
from support.fake_runs import HOSTILE, Blocks, fake_run, space

from resnest_seg.models.loading import build_segmenter
from resnest_seg.reports.run_report import Pictures, write_report

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of two runs with class names that are HTML, in a folder of such a name."""
    folder = tmp_path_factory.mktemp("runs") / "a <b> & ü"
    dataset = Blocks(space(("sky", *HOSTILE[:2])), size=(60, 80))
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        model = build_segmenter("resnest14_tiny", "fcn", 3).eval()
        fake_run(folder / name, model, dataset, model={"encoder": "resnest14_tiny", "head": "fcn"}, save=True)
    path = folder / "report.html"
    images = Pictures(count=4, dataset=dataset, device="cpu")
    write_report([folder / "first", folder / "second"], path, images=images)
    return path


def look_at_images(page):
    """Scroll to the images, which are painted when they come into sight."""
    page.locator(".cards").scroll_into_view_if_needed()
    page.locator(".card[data-drawn]").first.wait_for()


@pytest.fixture
def visit(chromium, report):
    """The page at 1280 pixels; nothing may go wrong on it, and nothing is asked for but the file itself."""
    with browser.visit(chromium, report.as_uri()) as found:
        look_at_images(found.page)
        yield found
    assert found.errors == []
    assert [address for address in found.requests if not address.startswith("data:")] == [report.as_uri()]


def drawn(page, kind, *, card=0):
    """Pixels of a panel of a card, and wait until what was asked for has been drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    names = page.locator(".card").nth(card).locator("figcaption").all_inner_texts()
    place = page.locator(".card").nth(card).get_attribute("data-place")
    canvas = [name for name in names if name != "photo"].index(kind)
    marked = """([place, canvas]) => {
        document.querySelectorAll(".probe").forEach(one => one.classList.remove("probe"));
        document.querySelectorAll(`.card[data-place="${place}"] canvas`)[canvas].classList.add("probe");
    }"""
    page.evaluate(marked, [place, canvas])
    return browser.pixels(page, ".probe")[..., :3].astype(int)


def test_the_page_loads_and_text_stays_text(visit):
    assert visit.page.title() == "first / second"
    assert visit.page.locator("img[src='x']").count() == 0
    assert visit.page.get_by_text(HOSTILE[0]).count() > 3
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_axe_finds_nothing_serious(visit):
    assert browser.accessibility(visit.page) == []


def test_the_page_fits_a_telephone(chromium, report):
    with browser.visit(chromium, report.as_uri(), width=400, height=800) as found:
        look_at_images(found.page)
        assert found.page.evaluate("document.documentElement.scrollWidth") == 400
        assert browser.accessibility(found.page) == []
    assert found.errors == []


def test_opacity_and_classes_change_what_is_painted(visit):
    page = visit.page
    slider, sky = page.get_by_label("opacity"), page.locator(".gallery").get_by_role("checkbox", name="sky")
    slider.scroll_into_view_if_needed()
    before = drawn(page, "truth")
    slider.fill("0")
    photo = drawn(page, "truth")
    assert np.abs(before - photo).max() > 30
    slider.fill("100")
    full = drawn(page, "truth")
    place = int(page.locator(".card").first.get_attribute("data-place"))
    name = page.locator(".card h3").first.inner_text()
    dataset = Blocks(space(("sky", *HOSTILE[:2])), size=(60, 80))
    labels = dataset[int(re.search(r"<(\d+)>", name)[1])].labels
    assert place == 0
    for label, color in enumerate(dataset.label_space.colors):  # the colours of the classes, exactly where they are
        assert np.abs(full[labels == label] - color).max() <= 2
    assert np.abs(full - photo)[labels == 255].max() == 0  # ignored pixels show the photo
    sky.uncheck()
    without = drawn(page, "truth")
    assert np.abs(without - photo)[labels == 0].max() == 0
    assert np.abs(without - full)[labels != 0].max() == 0
    sky.check()
    page.get_by_role("button", name="no class").click()
    assert np.abs(drawn(page, "truth") - photo).max() == 0


def test_errors_are_where_truth_and_prediction_differ(visit):
    page = visit.page
    page.get_by_label("opacity").fill("100")
    truth, found, wrong = (drawn(page, kind) for kind in ("truth", "first", "errors of first"))
    name = page.locator(".card h3").first.inner_text()
    labels = Blocks(space(("sky", *HOSTILE[:2])), size=(60, 80))[int(re.search(r"<(\d+)>", name)[1])].labels
    differ = (np.abs(truth - found).max(axis=-1) > 3) & (labels != 255)
    marked = (np.abs(wrong - (213, 94, 0)).max(axis=-1) <= 2) & (labels != 255)
    assert differ.any()
    np.testing.assert_array_equal(marked, differ)
    assert (np.abs(wrong[labels == 255] - 128) <= 1).all()


def test_images_are_sorted_and_chosen(visit):
    page = visit.page
    listed = page.locator(".card h3").all_inner_texts()
    page.get_by_label("sort by", exact=True).select_option("mean IoU")
    rising = page.locator(".card h3").all_inner_texts()
    values = [float(text.split(": ")[1]) for text in page.locator(".card .value").all_inner_texts()]
    assert values == sorted(values)
    page.get_by_label("order", exact=True).select_option("highest first")
    falling = page.locator(".card h3").all_inner_texts()
    assert falling != rising
    assert sorted(listed) == sorted(rising) == sorted(falling)
    page.get_by_label("show", exact=True).select_option("worst")
    assert page.locator(".card:visible").count() == 4
    assert page.get_by_role("status").inner_text() == f"4 of {len(listed)} shown, by mean IoU, highest first"
    page.get_by_label("sort by", exact=True).select_option("as listed")
    page.get_by_label("show", exact=True).select_option("all")
    assert page.locator(".card h3").all_inner_texts() == listed


def test_tables_are_sorted_by_their_headings(visit):
    table = visit.page.get_by_role("region", name="IoU by class and run")
    names = table.locator("tbody th").all_inner_texts()
    assert names == ["sky", *HOSTILE[:2]]
    button = table.get_by_role("button", name="first IoU %")
    shown = []
    for _ in range(2):
        button.focus()
        visit.page.keyboard.press("Enter")
        cells = table.locator("tbody td:nth-child(2)").all_inner_texts()
        shown.append([float(text) for text in cells if text != "absent"])
    assert shown[0] == sorted(shown[0])
    assert shown[1] == shown[0][::-1]


def test_charts_and_matrices_tell_their_values_by_keyboard(visit):
    page = visit.page
    chart = page.locator("figure.lines", has_text="learning rate").first
    chart.locator("svg[data-plot]").focus()
    page.keyboard.press("End")
    assert chart.locator(".readout").inner_text() == "epoch 4: first 0.01, second 0.01"
    chart.get_by_role("checkbox", name="second").uncheck()
    chart.locator("svg[data-plot]").focus()
    page.keyboard.press("Home")
    assert chart.locator(".readout").inner_text() == "epoch 0.1: first 0.01"
    assert chart.locator("path.series:not(.off)").count() == 1
    matrix = page.locator("figure.matrix").first
    matrix.locator("svg[data-grid]").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert matrix.locator(".readout").inner_text().startswith(f"truth {HOSTILE[0]}, predicted {HOSTILE[0]}: ")
    assert matrix.locator("svg[data-grid]:visible").count() == 1
    before = matrix.locator("svg[data-grid]:visible").get_attribute("aria-label")
    matrix.get_by_role("radio", name="by prediction").check()
    assert matrix.locator("svg[data-grid]:visible").get_attribute("aria-label") != before


def test_everything_can_be_reached_with_tab(visit):
    page = visit.page
    seen = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.add(page.evaluate('document.activeElement.getAttribute("class") || document.activeElement.tagName'))
    for name in ("scroll", "sort", "way", "group", "opacity", "class", "every", "none", "A", "SUMMARY"):
        assert name in seen, seen


def test_without_scripts_the_pictures_are_there(chromium, report):
    with browser.visit(chromium, report.as_uri(), java_script_enabled=False) as found:
        assert found.page.locator("img.truth").count() == found.page.locator("img.photo").count() > 0
    assert found.errors == []


def test_a_script_that_got_into_the_page_does_not_run(chromium, report, tmp_path):
    """The policy itself, if escaping had failed somewhere."""
    path = tmp_path / "r.html"
    shutil.copy(report, path)
    text = path.read_text(encoding="utf-8")
    evil = '<script>document.title = "owned"</script><img src=x onerror="document.title = \'owned\'">'
    path.write_text(text.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    with browser.visit(chromium, path.as_uri()) as found:
        look_at_images(found.page)
        assert found.page.title() == "first / second"
    assert any("Content Security Policy" in error for error in found.errors)
