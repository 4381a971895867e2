"""Draw docs/architecture.svg, the wings and their imports, from the rule that tests/test_house.py holds.

python docs/architecture_drawing.py

A wing may import every wing that it reaches along the arrows: those that follow from others are left out.
"""

import ast
import itertools
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parent
FILE = DOCS / "architecture.svg"

PLACES = {
    "cli": (1.5, 0, "a verb a file"),
    "combining": (2.5, 1, "folds, averages"),
    "training": (2.5, 2, "loop, losses, runs"),
    "bulk": (0, 3, "millions of photos"),
    "export": (1, 3, "ONNX, torch, OpenVINO"),
    "reports": (2, 3, "pages, tables of runs"),
    "teachers": (3, 3, "unlabelled, distillation"),
    "evaluation": (1.5, 4, "metrics, audits"),
    "inference": (2.2, 5, "protocols, predictor"),
    "annotations": (0, 6, "labels of other tools"),
    "data": (0.95, 6, "data sets, transforms"),
    "models": (2.3, 6, "networks, checkpoints"),
    "storage": (1, 7, "folders, zips, addresses"),
    "io": (2, 7, "photos, masks, rasters"),
}
"""Wing -> column, row, and what it is for."""

AROUND = {("inference", "storage"): (1.53, 6.1)}
"""Arrow -> a place that it passes, where a box is in its way."""

COLUMN, ROW, WIDTH, HEIGHT, LEFT, TOP = 182, 88, 164, 48, 100, 40


def may_import() -> dict[str, set[str]]:
    """Wing -> the wings that it may import, of tests/test_house.py."""
    tree = ast.parse((DOCS.parent / "tests" / "test_house.py").read_text(encoding="utf-8"))
    (found,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["MAY_IMPORT"]
    ]
    rule = {ast.literal_eval(key): found.values[number] for number, key in enumerate(found.keys)}
    rule = {wing: set() if isinstance(node, ast.Call) else ast.literal_eval(node) for wing, node in rule.items()}
    return {wing: rule[wing] for wing in rule if wing != "__main__"}


def arrows(rule: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others, as (from, to)."""
    return [
        (wing, other)
        for wing, others in rule.items()
        for other in sorted(others)
        if not any(other in rule[between] for between in others - {other})
    ]


def drawing() -> str:
    """The picture as SVG. It has a light ground of its own, so that it can be read on a dark page, too."""
    width, height = 2 * LEFT + 3 * COLUMN, TOP + 8 * ROW + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'role="img" aria-labelledby="title">',
        '<title id="title">The wings of resnest_seg, with arrows from each wing to those that it imports</title>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#57606a"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="12" fill="#f6f8fa"/>',
    ]
    for start, end in arrows(may_import()):
        stops = [PLACES[start][:2], *([AROUND[start, end]] if (start, end) in AROUND else []), PLACES[end][:2]]
        points = [(LEFT + COLUMN * x, TOP + ROW * y) for x, y in stops]
        points[0] = (points[0][0], points[0][1] + HEIGHT // 2)
        points[-1] = (points[-1][0], points[-1][1] - HEIGHT // 2 - 2)
        path = f"M{points[0][0]:.0f} {points[0][1]}"
        for (x, y), (to_x, to_y) in itertools.pairwise(points):
            middle = (y + to_y) // 2
            path += f"C{x:.0f} {middle} {to_x:.0f} {middle} {to_x:.0f} {to_y}"
        lines.append(
            f'<path data-from="{start}" data-to="{end}" d="{path}" fill="none" stroke="#57606a" stroke-width="1.5" '
            'marker-end="url(#tip)"/>'
        )
    for wing, (column, row, text) in PLACES.items():
        x, y = LEFT + COLUMN * column - WIDTH / 2, TOP + ROW * row - HEIGHT // 2
        lines += _box(x, y, WIDTH, f"{wing}/", text, "#ffffff", "#0969da")
    ground = "errors, files, labels, config: every wing may import it"
    lines += _box(
        LEFT - WIDTH / 2, TOP + 8 * ROW - 30, width - 2 * LEFT + WIDTH, "ground", ground, "#ddf4ff", "#54aeff"
    )
    return "\n".join([*lines, "</svg>", ""])


def _box(x: float, y: float, width: float, name: str, text: str, fill: str, stroke: str) -> list[str]:
    """A box with a name and a line of text."""
    middle = x + width / 2
    return [
        f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{stroke}"/>',
        f'<text x="{middle:.0f}" y="{y + 20}" font-size="16" font-weight="bold" text-anchor="middle" fill="#1f2328">'
        f"{escape(name)}</text>",
        f'<text x="{middle:.0f}" y="{y + 38}" font-size="13" text-anchor="middle" fill="#424a53">{escape(text)}</text>',
    ]


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
    print(FILE)
