"""The page at `/` of the service, in a real browser: what it shows is what the predictor and the service say."""

import contextlib
import io
import json
import re
import struct
import threading
import time
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from support import browser, rasters, small_onnx
from support.photo_service import PHOTO, ask, encoded, error, picture, running

from resnest_seg.inference.prediction import Prediction
from resnest_seg.inference.predictor import OnnxPredictor
from resnest_seg.io.bands import BandReader
from resnest_seg.io.images import decode_image
from resnest_seg.io.visualize import class_shares, overlay, picture_of
from resnest_seg.labels import LabelSpace

pytestmark = [pytest.mark.slow, pytest.mark.long]

HOSTILE = LabelSpace(
    "hostile",
    ('<img src=x onerror="alert(1)">', "</script><script>alert(2)</script>", "ü & \"'`${alert(3)} \u202eevil"),
    ((200, 30, 30), (200, 30, 30), (30, 30, 200)),  # two share a colour
    (1, 5, 7),
)
FILE_NAME = "straße [1] <img src=x onerror=alert(4)> 100%.jpg"


class Fixed:
    """A predictor that always finds the same labels, resized."""

    def __init__(self, labels, space, **parts):
        self.labels, self.label_space = labels, space
        if parts:
            self.backend = SimpleNamespace(**parts)

    def __call__(self, pixels):
        labels = cv2.resize(self.labels, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return Prediction(picture_of(pixels), labels, self.label_space, lambda: None)


@contextlib.contextmanager
def opened(chromium, port, *, but="nothing", **options):
    """The page, which must cause no error (`but` of the browser's on lost connections) and ask for nothing outside."""
    with browser.visit(chromium, f"http://127.0.0.1:{port}/", **options) as visit:
        visit.page.get_by_text("It takes").wait_for()
        yield visit.page
    assert [line for line in visit.errors if but not in line] == []
    assert visit.outside() == []


def box(page, name):
    return page.get_by_role("checkbox", name=name)


def choose(page, body, name="photo.png", *, done="is labelled"):
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": body})
    page.get_by_text(f"{name} {done}").wait_for()


def shown(page, shape):
    """The canvas, reduced from its whole number of pixels a pixel: RGB uint8 of a shape [H, W]."""
    pixels = browser.pixels(page, "#picture")
    scale = pixels.shape[0] // shape[0]
    assert pixels.shape == (shape[0] * scale, shape[1] * scale, 4)
    assert (pixels[..., 3] == 255).all()
    first = pixels[::scale, ::scale, :3]
    assert np.array_equal(first.repeat(scale, 0).repeat(scale, 1), pixels[..., :3])
    return first.astype(int)


def close(found, expected):
    return np.abs(found - expected.astype(int)).max() <= 2


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return OnnxPredictor(small_onnx.write(tmp_path_factory.mktemp("m") / "a.onnx", weights=None), threads=1)


@pytest.fixture(scope="module")
def port(predictor):
    with running(predictor, max_bytes=100_000, max_pixels=50_000) as port:
        yield port


def test_the_page_is_for_those_who_ask_for_html(port):
    for address, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, content = ask(port, None, address, method="GET", kind=None, Accept="text/html,*/*;q=0.8")
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        policy = [part.split() for part in headers["Content-Security-Policy"].split("; ")]
        assert policy[0] == ["default-src", "'none'"]
        assert {source for _, *sources in policy for source in sources} == {"'none'", "'self'", "data:", "blob:"}
        assert [name for name, *sources in policy if {"data:", "blob:"} & {*sources}] == ["img-src"]
        assert b"http:" not in content
        assert b"https:" not in content
    answer = ask(port, None, "/", method="GET", kind=None, Accept="*/*")
    assert error(answer, 404).startswith("GET /: Not Found")
    assert "POST /: Method Not Allowed" in error(ask(port, path="/"), 405)


def test_the_service_describes_its_model(port, predictor):
    found = json.loads(ask(port, None, "/model", method="GET")[2])
    assert found["classes"] == json.loads(ask(port, None, "/classes", method="GET")[2])
    assert (found["max_bytes"], found["max_pixels"], found["ignored_raw_id"]) == (100_000, 50_000, 0)
    assert (found["task"], found["protocol"], found["bands"], found["channels"]) == ("multiclass", "whole", None, 3)
    assert found["description"] == predictor.backend.description
    assert found["types"] == ["image/jpeg", "image/png", "image/webp", "application/octet-stream"]


def test_answers_say_how_long_their_steps_took(port):
    timing = ask(port)[1]["Server-Timing"]
    assert re.fullmatch(r"queue;dur=[\d.]+, decode;dur=[\d.]+, model;dur=[\d.]+, encode;dur=[\d.]+", timing)


def test_a_photo_its_labels_and_what_is_shown_of_them(chromium, port, predictor):
    photo, prediction = picture(), predictor(picture())
    with opened(chromium, port) as page:
        assert page.locator("#model").inner_text() == (
            f"{predictor.backend.description}; protocol whole; 3 classes. It takes JPEG, PNG, WebP files of at most "
            "98 KiB and 0.05 megapixels."
        )
        choose(page, PHOTO)
        assert close(shown(page, photo.shape), prediction.overlay(0.5, legend=False))
        assert [text.replace("\n", " ") for text in page.locator("#classes li").all_inner_texts()] == list(
            class_shares(prediction.labels, small_onnx.SPACE).values()
        )
        page.get_by_label("Opacity").fill("25")
        assert close(shown(page, photo.shape), prediction.overlay(0.25, legend=False))
        box(page, "road").uncheck()
        expected = np.where((prediction.labels == 1)[..., None], photo, prediction.overlay(0.25, legend=False))
        assert close(shown(page, photo.shape), expected)
        page.get_by_role("button", name="Show none").click()
        assert close(shown(page, photo.shape), photo)
        assert not box(page, "car").is_checked()
        choose(page, encoded(picture(30, 50, seed=1)), "next.png")  # what is not to be shown stays so
        assert close(shown(page, (30, 50)), picture(30, 50, seed=1))
        page.get_by_role("button", name="Show all").click()
        assert close(shown(page, (30, 50)), predictor(picture(30, 50, seed=1)).overlay(0.25, legend=False))
        text = page.locator("#timing").inner_text()
        assert re.fullmatch(
            r"\d+ ms in all: server \d+ ms \(waiting \d+, decoding \d+, model \d+, encoding \d+\), transfer \d+ ms",
            text,
        )


def test_outlines_lie_on_the_borders_of_regions(chromium, port, predictor):
    labels = predictor(picture()).labels
    scale = 13
    large = np.pad(labels.astype(int), 1, constant_values=-1).repeat(scale, 0).repeat(scale, 1)
    distance = np.zeros(large.shape, bool)
    for axis in (0, 1):
        edge = np.diff(large, axis=axis) != 0
        distance |= np.pad(edge, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    near = cv2.dilate(distance.astype(np.uint8), np.ones((7, 7)))[scale:-scale, scale:-scale] > 0
    with opened(chromium, port) as page:
        choose(page, PHOTO)
        before = browser.pixels(page, "#picture")
        box(page, "Outlines of").check()
        page.get_by_role("status").get_by_text("Fetching").wait_for(state="detached")
        after = browser.pixels(page, "#picture")
        changed = (before != after).any(axis=2)
        assert changed.any()
        assert not (changed & ~near).any()
        assert (changed & near).sum() > 0.3 * near.sum()
        page.get_by_role("button", name="Show none").click()  # whose outlines are hidden, too
        assert close(shown(page, (40, 60)), picture())


def test_downloads_are_the_answers_of_the_service(chromium, port):
    with opened(chromium, port) as page:
        choose(page, PHOTO, "tür 1.2.png")
        page.get_by_label("Opacity").fill("25")
        box(page, "road").uncheck()
        for button, ending, query in (
            ("Labels (PNG)", "_labels.png", "output=labels"),
            ("Overlay (PNG)", "_overlay.png", "output=overlay&alpha=0.25"),
            ("Outlines (GeoJSON)", ".geojson", "output=polygons"),
        ):
            with page.expect_download() as download:
                page.get_by_role("button", name=button).click()
            assert download.value.suggested_filename == f"tür 1.2{ending}"
            assert download.value.path().read_bytes() == ask(port, path=f"/segment?{query}")[2]


HUGE = encoded(np.zeros((1000, 1000, 3), np.uint8))


NO_PHOTOS = {
    "broken": PHOTO[:-40],
    "text": b"I am no photo",
    "empty": b"",
    "pixels": HUGE,
    "bytes": bytes(1_000_000),
}


def test_what_is_no_photo_is_told_in_the_words_of_the_service(chromium, port):
    sent = []
    with opened(chromium, port) as page:
        page.on("requestfinished", lambda request: sent.append(request))
        for name, body in NO_PHOTOS.items():
            answer = ask(port, body[:100_001], kind="application/octet-stream")
            choose(page, PHOTO)
            page.set_input_files("#file", {"name": f"{name}.png", "mimeType": "", "buffer": body})
            page.get_by_role("alert").get_by_text(f"{name}.png: ").wait_for()
            assert page.get_by_role("alert").inner_text() == f"{name}.png: {error(answer, answer[0])}"
            assert not page.locator("#picture").is_visible()
            assert not page.get_by_role("button", name="Try again").is_visible()
        choose(page, PHOTO)
        assert page.get_by_role("alert").inner_text() == ""
        # no more than the service needs to see that it is too much: it would cut the page off
        assert max(int(request.all_headers().get("content-length", 0)) for request in sent) == 100_001


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_anybody_can_use_it(chromium, port, width, scheme):
    """By axe's rules, and no line is wider than the screen."""
    with opened(chromium, port, width=width, color_scheme=scheme) as page:
        assert browser.accessibility(page) == []
        choose(page, PHOTO, f"{'long' * 40}.png")
        assert browser.accessibility(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.set_input_files("#file", {"name": "bad.png", "mimeType": "", "buffer": b"x"})
        page.get_by_role("alert").get_by_text("bad.png").wait_for()
        assert browser.accessibility(page) == []


def test_names_are_text_whatever_they_hold(chromium):
    labels = np.repeat(np.arange(3, dtype=np.uint8), 8)[None].repeat(10, 0)
    with running(Fixed(labels, HOSTILE)) as port, opened(chromium, port) as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        choose(page, encoded(picture(10, 24), "JPEG"), FILE_NAME)
        assert page.locator("#name").text_content() == FILE_NAME
        assert page.locator("#classes bdi").all_text_contents() == list(HOSTILE.names)
        assert page.locator("main img, main script").count() == 0
        said = page.get_by_role("status").text_content()
        assert said.endswith("${alert(3)} evil 33.3%.")  # nothing is written backwards
        page.locator("#picture").hover(position={"x": 10, "y": 10})
        assert page.locator("#under").text_content().startswith(f"{HOSTILE.names[0]} at 0, 0")
        page.locator("#classes input").nth(1).uncheck()  # of two classes of one colour
        painted = np.abs(shown(page, (10, 24)) - shown_photo(FILE_NAME, encoded(picture(10, 24), "JPEG"))).max(axis=2)
        assert (painted[:, 8:16] <= 2).all()
        assert (painted[:, :8] > 2).mean() > 0.9
        page.set_input_files("#file", {"name": FILE_NAME, "mimeType": "", "buffer": b"<b>x</b>"})
        page.get_by_role("alert").get_by_text("is no JPEG").wait_for()
        assert page.get_by_role("alert").text_content().startswith(FILE_NAME)


def shown_photo(name, body):
    return decode_image(body, name).astype(int)


def dropped(page, files):
    """Drop files {name: content} on the page, as the browser would."""
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) transfer.items.add(new File([Uint8Array.from(content)], name));
            for (const kind of ["dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [[name, list(content)] for name, content in files.items()],
    )


def test_photos_are_dropped_and_pasted(chromium, port, predictor):
    with opened(chromium, port, permissions=["clipboard-read", "clipboard-write"]) as page:
        dropped(page, {"dropped.png": PHOTO})
        page.get_by_text("dropped.png is labelled").wait_for()
        assert close(shown(page, (40, 60)), predictor(picture()).overlay(0.5, legend=False))
        dropped(page, {})
        page.get_by_text("What was dropped is no file.").wait_for()
        other = picture(30, 50, seed=3)
        page.evaluate(
            """async content => navigator.clipboard.write(
                   [new ClipboardItem({"image/png": new Blob([Uint8Array.from(content)], {type: "image/png"})})])""",
            list(encoded(other)),
        )
        page.keyboard.press("Control+V")
        page.get_by_text("image.png is labelled").wait_for()
        assert close(shown(page, (30, 50)), predictor(other).overlay(0.5, legend=False))
        page.evaluate("navigator.clipboard.writeText('some words')")
        page.keyboard.press("Control+V")
        page.get_by_text("What was pasted is no photo.").wait_for()
        assert page.locator("#picture").is_visible()


def test_the_keyboard_is_enough(chromium, port):
    with opened(chromium, port) as page:
        page.on("filechooser", lambda chooser: None)  # Playwright now catches it, in time before it opens
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files({"name": "photo.png", "mimeType": "image/png", "buffer": PHOTO})
        page.get_by_text("photo.png is labelled").wait_for()
        page.keyboard.press("Tab")  # the camera
        before = shown(page, (40, 60))
        page.keyboard.press("Tab")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.locator("#percent").inner_text() == "65 %"
        slid = shown(page, (40, 60))
        assert not close(slid, before)
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert box(page, "Outlines of").is_checked()
        page.keyboard.press("Space")
        order = []
        for _ in range(8):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate("(e => e.id || e.closest('label').innerText.split('\\n')[0])(document.activeElement)")
            )
        classes = page.locator("#classes bdi").all_inner_texts()
        assert order == ["all", "none", *classes, "save-labels", "save-overlay", "save-outlines"]
        page.keyboard.press("Shift+Tab")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "photo_overlay.png"
        for _ in range(2):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Space")
        assert not box(page, classes[-1]).is_checked()
        assert not close(shown(page, (40, 60)), slid)


def test_a_turned_photo_and_its_labels_lie_on_each_other(chromium, port, predictor):
    exif = Image.Exif()
    with opened(chromium, port) as page:
        for kind in ("JPEG", "PNG", "WEBP"):
            exif[274] = 3  # upside down: the size is that of the stored pixels
            body = encoded(picture(), kind, exif=exif)
            upright = decode_image(body, "x")
            assert np.abs(upright.astype(int) - picture()[::-1, ::-1]).mean() < 20
            choose(page, body, kind)
            expected = predictor(upright).overlay(0.5, legend=False)
            assert np.abs(shown(page, (40, 60)) - expected.astype(int)).mean() < 2, kind
            assert page.locator("#note").is_visible() == (kind == "WEBP")
            exif[274] = 6
            choose(page, encoded(picture(), kind, exif=exif), f"{kind} quarter")
            assert shown(page, (60, 40)).shape == (60, 40, 3)


def test_labels_only_exports(chromium, tmp_path):
    found = OnnxPredictor(small_onnx.write(tmp_path / "l.onnx", weights=None, output="labels"), threads=1)
    with running(found) as port, opened(chromium, port) as page:
        choose(page, PHOTO)
        assert close(shown(page, (40, 60)), found(picture()).overlay(0.5, legend=False))


def test_an_object_is_painted_and_its_background_is_not(chromium):
    space = small_onnx.SPACE.for_task("binary", positive=["car"])
    labels = np.random.default_rng(0).integers(0, 2, (40, 60), dtype=np.uint8)
    with running(Fixed(labels, space)) as port, opened(chromium, port) as page:
        choose(page, PHOTO)
        assert close(shown(page, (40, 60)), overlay(picture(), labels, space, alpha=0.5))
        assert not box(page, "background").is_checked()
        box(page, "background").check()
        assert close(shown(page, (40, 60))[labels == 0], picture()[labels == 0] / 2)


def test_labels_that_overlap(chromium):
    space = small_onnx.SPACE.for_task("multilabel")
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, (40, 60)).astype(np.uint16)
    labels[:5] = 1 << 15
    with running(Fixed(labels, space)) as port, opened(chromium, port) as page:
        assert "3 labels, any of them at a pixel" in page.locator("#model").inner_text()
        assert json.loads(ask(port, None, "/model", method="GET")[2])["ignored_raw_id"] == 1 << 15
        choose(page, PHOTO)
        assert close(shown(page, (40, 60)), overlay(picture(), labels, space, alpha=0.5))
        assert sorted(text.replace("\n", " ") for text in page.locator("#classes li").all_inner_texts()) == sorted(
            class_shares(labels, space).values()
        )
        box(page, "car").uncheck()
        without = np.where(labels == 1 << 15, labels, labels & ~np.uint16(4)).astype(np.uint16)
        assert close(shown(page, (40, 60)), overlay(picture(), without, space, alpha=0.5))


def png_of(values, filters):
    """A PNG whose row y has the filter filters[y % n], by the book: 8 bits of palette, or 16 of grey."""
    data = values.astype(">u2" if values.dtype == np.uint16 else np.uint8)
    step, rows = data.itemsize, data.view(np.uint8).reshape(len(values), -1).astype(int)
    lines = []
    for y, row in enumerate(rows):
        kind, line = filters[y % len(filters)], []
        for x, value in enumerate(row):
            left = row[x - step] if x >= step else 0
            up = rows[y - 1][x] if y else 0
            corner = rows[y - 1][x - step] if y and x >= step else 0
            nearest = min((left, up, corner), key=lambda one: abs(left + up - corner - one))  # the first of equals
            line.append((value - (0, left, up, (left + up) // 2, nearest)[kind]) % 256)
        lines.append(bytes([kind, *line]))
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * step, 3 if step == 1 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    chunks = [chunk for chunk in chunks if step == 1 or chunk[0] != b"PLTE"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_labels_are_read_from_pngs_with_any_filter(chromium, task):
    space = small_onnx.SPACE.for_task(task)
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, (40, 60)) if task == "multiclass" else random.integers(0, 8, (40, 60))
    labels = labels.astype(np.uint8 if task == "multiclass" else np.uint16)
    body = png_of(space.decode(labels), (0, 1, 2, 3, 4))
    stored = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    with running(Fixed(labels, space)) as port, opened(chromium, port) as page:
        page.route("**/segment?output=labels", lambda route: route.fulfill(body=body, content_type="image/png"))
        choose(page, PHOTO)
        assert close(shown(page, (40, 60)), overlay(picture(), labels, space, alpha=0.5))


def test_images_of_many_bands(chromium, tmp_path):
    bands = rasters.values("uint16", 40, 60, 4)
    body = rasters.write_raster(tmp_path / "four.tif", bands, names=rasters.NAMES).read_bytes()
    labels = np.random.default_rng(0).integers(0, 3, (40, 60), dtype=np.uint8)
    model = Fixed(labels, small_onnx.SPACE, bands=BandReader((4, "red", 2)), channels=3, description="a model")
    with running(model) as port, opened(chromium, port) as page:
        text = page.locator("#model").inner_text()
        assert "It takes TIFF, JPEG, PNG, WebP files with the bands 4, red, 2, of at most" in text
        assert "No browser shows files of many bands" in text
        assert not page.locator("#camera").is_visible()
        choose(page, body, "four.tif")
        found = BandReader((4, "red", 2)).decode(body, "x").pixels
        assert close(shown(page, (40, 60)), overlay(picture_of(found.astype(np.float32)), labels, small_onnx.SPACE))
        assert page.locator("#note").is_visible()


def test_a_large_photo_is_drawn_scaled_and_downloaded_whole(chromium):
    photo, labels = picture(3000, 4000), np.random.default_rng(0).integers(0, 3, (30, 40), dtype=np.uint8)
    model = Fixed(labels, small_onnx.SPACE)
    with running(model) as port, opened(chromium, port) as page:
        choose(page, encoded(photo, "JPEG", quality=90))
        found = browser.pixels(page, "#picture")[..., :3]
        assert found.shape == (1200, 1600, 3)
        small = cv2.resize(photo, (1600, 1200), interpolation=cv2.INTER_AREA)
        expected = overlay(small, labels.repeat(40, 0).repeat(40, 1), small_onnx.SPACE)
        assert np.abs(found - expected.astype(int)).max() <= 8  # the photo is JPEG, and scaled otherwise
        with page.expect_download() as download:
            page.get_by_role("button", name="Labels (PNG)").click()
        stored = np.array(Image.open(io.BytesIO(download.value.path().read_bytes())))
        assert np.array_equal(stored, small_onnx.SPACE.decode(labels.repeat(100, 0).repeat(100, 1)))


def test_a_service_that_ends_and_comes_again(chromium, predictor):
    with contextlib.ExitStack() as first:
        port = first.enter_context(running(predictor))
        with opened(chromium, port, but="ERR_CONNECTION_REFUSED") as page:
            choose(page, PHOTO)
            first.close()
            page.get_by_role("button", name="Overlay").click()
            page.get_by_role("alert").get_by_text("photo.png: The server does not answer. Is it still").wait_for()
            with page.expect_download():  # which need no server
                page.get_by_role("button", name="Labels (PNG)").click()
            page.set_input_files("#file", {"name": "next.png", "mimeType": "", "buffer": PHOTO})
            page.get_by_role("alert").get_by_text("next.png: The server does not answer").wait_for()
            page.get_by_role("button", name="Try again").click()
            page.get_by_role("alert").get_by_text("next.png: The server does not answer").wait_for()
            with running(predictor, port=port):
                page.get_by_role("button", name="Try again").click()
                page.get_by_text("next.png is labelled").wait_for()


def test_a_file_that_is_gone_and_an_answer_that_is_none_of_the_service(chromium, port, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(PHOTO)
    with opened(chromium, port, but="ERR_FILE_NOT_FOUND") as page:
        page.set_input_files("#file", photo)
        page.get_by_text("photo.png is labelled").wait_for()
        photo.unlink()
        box(page, "Outlines of").check()
        page.get_by_role("alert").get_by_text("photo.png: The file cannot be read: it is a folder, or was").wait_for()
        assert page.locator("#picture").is_visible()
        box(page, "Outlines of").uncheck()
        page.route("**/segment*", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
        page.set_input_files("#file", {"name": "next.png", "mimeType": "", "buffer": PHOTO})
        page.get_by_role("alert").get_by_text("next.png: the server answers 502").wait_for()


def test_another_service_at_the_same_address_is_another_model(chromium, predictor):
    """A page stays open while a person tries one model after the other."""
    with contextlib.ExitStack() as first:
        port = first.enter_context(running(predictor))
        with opened(chromium, port) as page:
            choose(page, PHOTO)
            box(page, "road").uncheck()
            first.close()
            space = LabelSpace.numbered(3, names=["road", "b", "c"])
            with running(Fixed(np.tile(np.arange(3, dtype=np.uint8), (8, 4)), space), port=port):
                choose(page, PHOTO, "again.png")
                assert page.locator("#classes bdi").all_inner_texts() == list(space.names)
                assert box(page, "road").is_checked()
                strange = png_of(np.full((40, 60), 77, np.uint8), [0])
                page.route("**/segment*", lambda route: route.fulfill(body=strange, content_type="image/png"))
                page.set_input_files("#file", {"name": "strange.png", "mimeType": "", "buffer": PHOTO})
                page.get_by_role("alert").get_by_text("strange.png: The server gives the label 77, which is").wait_for()


def test_the_photo_that_comes_last_is_shown(chromium):
    """The first is given up, by the page and by the service."""
    opened_gate, entered, finished = threading.Event(), threading.Semaphore(0), []
    answering = Fixed(np.zeros((8, 8), np.uint8), small_onnx.SPACE)

    def slow(pixels):
        entered.release()
        if pixels.shape[0] == 40:
            assert opened_gate.wait(30)
        finished.append(pixels.shape[0])
        return answering(pixels)

    slow.label_space = small_onnx.SPACE
    with running(slow, workers=2) as port, opened(chromium, port) as page:
        page.set_input_files("#file", {"name": "first.png", "mimeType": "", "buffer": PHOTO})
        page.get_by_role("status").get_by_text("Labelling first.png ...").wait_for()
        assert entered.acquire(timeout=30)
        choose(page, encoded(picture(30, 50)), "second.png")
        opened_gate.set()
        page.get_by_role("button", name="Show none").click()
        assert close(shown(page, (30, 50)), picture(30, 50))
        assert page.get_by_role("alert").inner_text() == ""
    assert sorted(finished) == [30, 40]


def test_the_camera(chromium, predictor):
    with running(predictor, max_pixels=5_000_000) as port:
        with opened(chromium, port, permissions=["camera"]) as page:
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            box(page, "Camera").check()
            page.get_by_role("status").get_by_text("camera's frames").wait_for()
            page.locator("#name").get_by_text("camera.jpg").wait_for()
            page.locator("#classes input").first.focus()
            more = len(asked) + 3
            until = time.monotonic() + 60
            while len(asked) < more and time.monotonic() < until:
                page.wait_for_timeout(20)
            assert len(asked) >= more
            assert page.evaluate("document.activeElement.type") == "checkbox"  # the list keeps its focus
            choose(page, PHOTO)  # which ends it
            assert not box(page, "Camera").is_checked()
            count = len(asked)
            page.wait_for_timeout(200)
            assert len(asked) == count
            box(page, "Camera").check()
            page.locator("#name").get_by_text("camera.jpg").wait_for()
            box(page, "Camera").uncheck()
        with opened(chromium, port) as page:  # without the permission
            box(page, "Camera").click()
            page.get_by_role("alert").get_by_text("The camera cannot be used: Permission denied").wait_for()
            assert not box(page, "Camera").is_checked()
