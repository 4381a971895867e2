"""Pages in a real browser: Debian's chromium, driven by Playwright. Tests are skipped where one of the two is missing.

The fixture `chromium` (conftest.py) is one browser for all tests of a module:

    with browser.visit(chromium, "http://127.0.0.1:8000/", width=400) as visit:
        visit.page.get_by_text("ready").wait_for()  # wait_for_function is refused by strict content security policies
        visit.page.get_by_label("opacity").fill("0.3")
        visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert browser.accessibility(visit.page) == []
    assert visit.errors == visit.outside() == []
"""

import contextlib
import dataclasses
import shutil
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = f"none of {', '.join(NAMES)} is installed: apt-get install chromium, or make browser"
NO_PLAYWRIGHT = "playwright is not installed: pip install 'resnest-seg[dev]'"
ARGUMENTS = (
    "--no-sandbox",  # which needs rights that containers do not give; the pages are our own
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",  # a camera; a context with permissions=["camera"] may use it
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # nothing leaves this machine
)
ALLOWED_SCHEMES = ("file", "data", "blob")


@contextlib.contextmanager
def launched():
    """Start the browser; skips the test if there is none.

    While it runs, this thread has an event loop, so that asyncio.run() fails in it.
    """
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(NO_BROWSER)
    playwright = pytest.importorskip("playwright.sync_api", reason=NO_PLAYWRIGHT)
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield found
        finally:
            found.close()


@dataclasses.dataclass
class Visit:
    """An open page, and what it has said and asked for so far.

    Attributes:
        page: Playwright's page.
        errors: What went wrong on the page: exceptions, messages of the console, violations of the policy.
        requests: Address of every request, also of those that a policy refused.
        refused: (status, address) of every answer from 400 on, which a console reports as well.
    """

    page: object
    errors: list = dataclasses.field(default_factory=list)
    requests: list = dataclasses.field(default_factory=list)
    refused: list = dataclasses.field(default_factory=list)

    def outside(self):
        """Requests to other machines than this one."""
        addresses = [(urlsplit(address), address) for address in self.requests]
        return [
            address
            for parts, address in addresses
            if parts.scheme not in ALLOWED_SCHEMES and parts.hostname not in ("127.0.0.1", "localhost")
        ]


@contextlib.contextmanager
def visit(chromium, address, *, width=1280, height=900, **options):
    """Open an address in a browser context of its own; `options` are of Playwright's `new_context`.

    Nothing is waited for longer than a minute. Forgotten at the end: cookies, downloads, storage.
    """
    context = chromium.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(60_000)
    try:
        page = context.new_page()
        found = Visit(page)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.on("console", lambda message: _said(found, message))
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("response", lambda answer: _answered(found, answer))
        page.goto(address)
        yield found
    finally:
        context.close()


def _said(found, message):
    if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
        found.errors.append(message.text)


def _answered(found, answer):
    if answer.status >= 400:
        found.refused.append((answer.status, answer.url))


def accessibility(page):
    """What axe finds serious or critical on a page as it is now: one line "rule: element" each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NO_PLAYWRIGHT)
    found = axe.Axe().run(page).response
    assert found["passes"], "axe has looked at nothing"
    return [
        f"{rule['id']}: {node['html']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def pixels(page, selector):
    """The pixels of a canvas, uint8 [H, W, 4]."""
    import base64

    import numpy as np

    width, height, data = page.evaluate(
        """selector => {
            const canvas = document.querySelector(selector);
            const copy = new OffscreenCanvas(canvas.width, canvas.height);  // of which chromium does not warn
            const context = copy.getContext("2d", {willReadFrequently: true});
            context.drawImage(canvas, 0, 0);
            const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
            let text = "";
            for (let start = 0; start < bytes.length; start += 32768)
                text += String.fromCharCode(...bytes.subarray(start, start + 32768));
            return [canvas.width, canvas.height, btoa(text)];
        }""",
        selector,
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)
