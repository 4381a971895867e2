"""The browser that other tests look at pages with: it sees what is wrong with a page."""

import pytest
from support import browser
from support.local_server import serve

pytestmark = pytest.mark.slow

GOOD = b"""<!doctype html><html lang=en><title>t</title><link rel=icon href="data:,"><main><h1>A page</h1>
<canvas width=3 height=2></canvas><script>
const context = document.querySelector("canvas").getContext("2d");
context.fillStyle = "rgb(1, 2, 3)"; context.fillRect(0, 0, 1, 2);
</script></main>"""

BAD = b"""<!doctype html><html lang=en><title>t</title><main><h1>A page</h1><img src="/missing.png">
<img alt=x src="http://elsewhere.invalid/x.png">
<script>console.error("it says"); undefinedFunction();</script></main>"""


def test_a_page_without_fault(chromium):
    with serve({"/": GOOD}) as site, browser.visit(chromium, site.url, width=400) as visit:
        found = browser.pixels(visit.page, "canvas")
        assert found.shape == (2, 3, 4)
        assert found[:, 0].tolist() == [[1, 2, 3, 255]] * 2
        assert not found[:, 1:].any()
        assert visit.page.evaluate("innerWidth") == 400
        assert browser.accessibility(visit.page) == []
    assert visit.errors == visit.refused == visit.outside() == []


def test_faults_of_a_page_are_seen(chromium):
    with serve({"/": BAD}) as site, browser.visit(chromium, site.url) as visit:
        assert any("image-alt" in finding for finding in browser.accessibility(visit.page))
    assert "it says" in visit.errors
    assert any("undefinedFunction is not defined" in error for error in visit.errors)
    assert visit.outside() == ["http://elsewhere.invalid/x.png"]
    assert (404, f"{site.url}/missing.png") in visit.refused


def test_without_a_browser_tests_are_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"), browser.launched():
        pass
