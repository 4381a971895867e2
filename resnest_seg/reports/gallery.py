"""Pictures of images with their labels, on a page: thumbnails, class toggles, an opacity slider, an order by any score.

A mask becomes a small palette PNG in the colours of its classes, so it is a picture without a script as well. No two
of its labels share a colour, and the page lists the colours: so the script reads the labels back from the pixels, and
paints those that are chosen.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from resnest_seg.io.visualize import Image, Labels, colourise
from resnest_seg.labels import LabelSpace, ignored_pixels
from resnest_seg.reports.page import Section, data_uri, element

SIDE = 320
"""Long edge of a thumbnail in pixels."""

QUALITY = 80
"""JPEG quality of photos."""

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Card:
    """One image on a page.

    Attributes:
        name: Its name, such as the path below the root of its data set.
        caption: A line below the name.
        photo: RGB, uint8 [H, W, 3]; of other bands, what `resnest_seg.io.visualize.picture_of` makes of them.
        truth: Its labels [H, W], uint8, of a multi-label task bits, uint16; None where there are none.
        prediction: Those of the model, likewise.
        scores: Name -> value by which images can be sorted; None for one that the image does not have.
        tags: Names of the groups that it is in, such as "worst", by which images can be chosen.
        others: Name -> labels of further models.
        mark: What a tick box puts on the page's list, see `assets/marks.js`; None for no tick box.
        prediction_name: What the prediction is called.
    """

    name: str
    caption: str
    photo: Image
    truth: Labels | None
    prediction: Labels | None
    scores: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    others: Mapping[str, Labels] = dataclasses.field(default_factory=dict)
    mark: str | None = None
    prediction_name: str = "prediction"


def gallery(
    cards: Iterable[Card],
    space: LabelSpace,
    *,
    sort: str = "",
    anchor: str = "images",
    title: str = "Images",
    limit: int = 8_000_000,
    lead: Sequence[Element] = (),
) -> Section:
    """Make the section of a page that shows images; each card is shrunk before the next one is taken.

    Args:
        cards: The images, in their first order.
        space: The classes of their labels.
        sort: The score that the page offers first.
        anchor: See `Section`.
        title: Its heading.
        limit: Bytes; further cards are left out, and the page says so.
        lead: Elements above the images.
    """
    made: list[Element] = []
    scores: dict[str, None] = {}
    tags: dict[str, None] = {}
    values: list[list[float | None]] = []
    groups: list[list[str]] = []
    size, left_out = 0, 0
    for card in cards:
        figures, taken = _figures(card, space)
        if size + taken > limit:
            left_out += 1
            continue
        size += taken
        made.append(_article(card, figures, place=len(made)))
        scores |= dict.fromkeys(card.scores)
        tags |= dict.fromkeys(card.tags)
        values.append([_finite(card.scores.get(name)) for name in scores])
        groups.append(list(card.tags))
    names, colors = shown_classes(space)
    data = {
        "scores": list(scores),
        "values": [row + [None] * (len(scores) - len(row)) for row in values],
        "tags": groups,
        "colors": [list(color) for color in colors],
    }
    if not made:
        return Section(anchor, title, [*lead, element("p", None, "There is no image to show.")])
    note = [element("p", None, f"{left_out} more images would make this page too large.")] if left_out else []
    controls = _controls(anchor, list(scores), list(tags), names, colors, sort=sort)
    grid = element("div", {"class": "cards"}, *made)
    status = element("p", {"class": "status", "role": "status"}, f"{len(made)} shown")
    body = element("div", {"class": "gallery", "data-from": f"{anchor}-data"}, controls, status, grid)
    return Section(anchor, title, [*lead, *note, body], data)


def shown_classes(space: LabelSpace) -> tuple[list[str], list[Color]]:
    """Names and colours of what can be painted: all classes, or of a binary task the object."""
    first = 1 if space.task == "binary" else 0
    return list(space.names[first:]), list(space.colors[first:])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def thumbnail(photo: Image, *, side: int = SIDE) -> bytes:
    """Encode a photo as a JPEG of at most `side` pixels a side."""
    file = io.BytesIO()
    picture = cv2.resize(photo, thumbnail_size(photo, side), interpolation=cv2.INTER_AREA)
    Pictures.fromarray(picture).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def mask_png(labels: Labels, space: LabelSpace, *, side: int = SIDE) -> tuple[bytes, dict[int, int]]:
    """Encode labels as a palette PNG of at most `side` pixels a side, whose colours tell them apart.

    Args:
        labels: [H, W].
        space: Their classes.
        side: Long edge.

    Returns:
        The file, and its colours 0xRRGGBB -> label: a class, bits, or the ignored value. A thumbnail of a multi-label
        task holds the 256 most frequent sets of labels; pixels of others are ignored.
    """
    small = cv2.resize(labels, thumbnail_size(labels, side), interpolation=cv2.INTER_NEAREST_EXACT)
    values, counts = np.unique(small, return_counts=True)
    if len(values) > 256:
        kept = values[np.argsort(-counts, kind="stable")[:255]]
        small = np.where(np.isin(small, kept), small, small.dtype.type(space.ignore_value))
        values = np.unique(small)
    colors = colourise(_colourable(values[None], space), space)[0]
    key: dict[int, int] = {}
    palette: list[int] = []
    for value, color in zip(values.tolist(), colors.tolist(), strict=True):
        code = _free_code(color[0] << 16 | color[1] << 8 | color[2], key)
        key[code] = value
        palette += [code >> 16, code >> 8 & 255, code & 255]
    file = io.BytesIO()
    picture = Pictures.fromarray(np.searchsorted(values, small).astype(np.uint8))
    picture.putpalette(palette)
    picture.save(file, "PNG", optimize=True)
    return file.getvalue(), key


def _colourable(values: NDArray[Any], space: LabelSpace) -> NDArray[Any]:
    """Labels that the palette of a space has colours for; what is none of its classes is painted as ignored."""
    if space.task == "multilabel":
        return values
    return np.where(values < len(space), values, space.ignore_value).astype(np.uint8)


def _free_code(code: int, taken: Mapping[int, int]) -> int:
    """The nearest colour after one that is not taken, in steps of blue that nobody sees."""
    while code in taken:
        code = code + 1 if code & 255 < 255 else code - 255
    return code


def thumbnail_size(picture: NDArray[Any], side: int = SIDE) -> tuple[int, int]:
    """Return (W, H) of a thumbnail; smaller pictures keep their size."""
    height, width = picture.shape[:2]
    share = min(side / max(height, width), 1)
    return max(round(width * share), 1), max(round(height * share), 1)


def _meaning(value: int, space: LabelSpace) -> str:
    """What the script knows of a label: "-" if it is ignored, else its classes by their places, with dots between."""
    if value == space.ignore_value or bool(ignored_pixels(np.array([value], _type(space)))[0]):
        return "-"
    if space.task == "multilabel":
        return ".".join(str(label) for label in range(len(space)) if value >> label & 1)
    if space.task == "binary":
        return "0" if value else ""
    return str(value)


def _type(space: LabelSpace) -> type[np.uint8 | np.uint16]:
    return np.uint16 if space.task == "multilabel" else np.uint8


def _figures(card: Card, space: LabelSpace) -> tuple[list[Element], int]:
    """The pictures of a card, and their bytes."""
    photo = data_uri(thumbnail(card.photo), "image/jpeg")
    made, size = [_figure("photo", photo, "photo", card.name)], len(photo)
    masks = [("truth", "truth", card.truth), ("prediction", card.prediction_name, card.prediction)]
    masks += [("prediction", name, labels) for name, labels in card.others.items()]
    for kind, name, labels in masks:
        if labels is None:
            continue
        content, key = mask_png(labels, space)
        uri = data_uri(content, "image/png")
        meanings = " ".join(f"{code}:{_meaning(value, space)}" for code, value in key.items())
        made.append(_figure(kind, uri, name, card.name, key=meanings))
        size += len(uri)
    return made, size


def _figure(kind: str, uri: str, name: str, image: str, *, key: str | None = None) -> Element:
    picture = {"class": kind, "src": uri, "alt": f"{name} of {image}", "data-key": key, "decoding": "async"}
    caption = element("figcaption", None, name)
    return element("figure", {"class": "panel", "data-kind": kind}, element("img", picture), caption)


def _article(card: Card, figures: Sequence[Element], *, place: int) -> Element:
    head = [element("h3", None, card.name), element("p", None, card.caption)]
    if card.mark is not None:
        box = element("input", {"type": "checkbox", "class": "mark", "value": card.mark})
        head.append(element("label", {"class": "marked"}, box, "label again"))
    attributes = {"class": "card", "data-place": place}
    return element("article", attributes, *head, element("div", {"class": "panels"}, *figures))


def _controls(
    anchor: str, scores: Sequence[str], tags: Sequence[str], names: Sequence[str], colors: Sequence[Color], *, sort: str
) -> Element:
    """The order, the choice, the slider and the toggles."""
    orders = [element("option", {"value": "", "selected": sort not in scores}, "as listed")]
    orders += [element("option", {"value": place, "selected": name == sort}, name) for place, name in enumerate(scores)]
    groups = [element("option", {"value": ""}, "all")]
    groups += [element("option", {"value": tag}, tag) for tag in tags]
    ways = [element("option", {"value": "up"}, "lowest first"), element("option", {"value": "down"}, "highest first")]
    slider = {"class": "opacity", "id": f"{anchor}-opacity", "type": "range", "min": 0, "max": 100, "value": 60}
    row = [
        _labelled("sort by", element("select", {"class": "sort", "id": f"{anchor}-sort"}, *orders)),
        _labelled("order", element("select", {"class": "way", "id": f"{anchor}-way"}, *ways)),
        _labelled("show", element("select", {"class": "group", "id": f"{anchor}-group"}, *groups)),
        _labelled("opacity", element("input", slider)),
    ]
    toggles = [
        element("label", None, _toggle("class", place), swatch(color), name)
        for place, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    buttons = [
        element("button", {"type": "button", "class": "every"}, "all classes"),
        element("button", {"type": "button", "class": "none"}, "no class"),
    ]
    legend = element("legend", None, "classes")
    toggled = element("fieldset", {"class": "toggles"}, legend, *buttons, element("div", {"class": "list"}, *toggles))
    return element("div", {"class": "controls"}, element("div", {"class": "row"}, *row), toggled)


def _labelled(text: str, control: Element) -> Element:
    label = element("label", {"for": control.get("id")}, text)
    return element("span", {"class": "field"}, label, control)


def swatch(color: Color) -> Element:
    """A small square of a colour."""
    fill = "#{:02x}{:02x}{:02x}".format(*color)
    square = element("rect", {"width": 12, "height": 12, "rx": 2, "fill": fill, "stroke": "#555"})
    frame = {"class": "swatch", "viewBox": "-1 -1 14 14", "width": 14, "height": 14, "aria-hidden": "true"}
    return element("svg", frame, square)


def _toggle(kind: str, place: int) -> Element:
    return element("input", {"type": "checkbox", "class": kind, "value": place, "checked": True})
