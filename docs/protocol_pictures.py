"""Draw the pictures of protocols.md and dilation.md into docs/pictures/, from the protocols themselves.

python docs/protocol_pictures.py
"""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import cv2
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from resnest_seg import Synthetic
from resnest_seg.inference.protocols import PROTOCOLS, Protocol, Setting, protocol

FOLDER = Path(__file__).with_name("pictures")
SIZE = (590, 790)
"""Height and width of the photo."""
SETTING = Setting()
STRIDE = 8
COLORS = ("#c2185b", "#00695c", "#1565c0", "#ef6c00", "#6a1b9a", "#2e7d32")
CLASSES = ("car", "bus", "truck")
MERGED_VIEWS = np.array([[-1.0, 2.5, -1.0], [3.0, -4.0, 4.5], [-1.0, -2.0, -1.5], [1.5, 4.0, -3.5]])
"""Logits of one pixel for `CLASSES`: two scales, each as it is and mirrored."""


def drawn_photo() -> np.ndarray:
    """A drawn street scene, RGB [590, 790, 3]."""
    return cv2.bilateralFilter(
        Synthetic("val", size=SIZE)[2].image, 7, 40, 5
    )  # without noise, which is what takes bytes


def windows_of(axes: Axes, photo: np.ndarray, plan: Protocol, scale: float) -> None:
    """Draw a view, what is added to it in black, and its windows."""
    height, width = plan.size(*photo.shape[:2], scale)
    windows = plan.windows(height, width, stride=STRIDE)
    bottom = max(window.top + window.height for window in windows)
    right = max(window.left + window.width for window in windows)
    canvas = np.zeros((max(bottom, height), max(right, width), 3), np.uint8)
    canvas[:height, :width] = cv2.resize(photo, (width, height))
    axes.imshow(canvas)
    for number, window in enumerate(windows):
        inset = 4 + 7 * (number % 3)
        axes.add_patch(
            Rectangle((window.left + inset, window.top + inset), window.width - 2 * inset, window.height - 2 * inset,
                      fill=False, linewidth=2.2, edgecolor=COLORS[number % len(COLORS)])
        )  # fmt: skip
    added = "" if canvas.shape[:2] == (height, width) else f", black to {canvas.shape[0]} x {canvas.shape[1]}"
    count = f"{len(windows)} window{'s' if len(windows) > 1 else ''}"
    axes.set_title(f"{plan.name}, scale {scale:g}: {height} x {width}{added}; {count}", fontsize=10)
    axes.axis("off")


def draw_windows(path: Path) -> None:
    """Windows and padding of whole, slide and encoding."""
    figure, grid = pyplot.subplots(2, 2, figsize=(11, 8.6))
    photo = drawn_photo()
    for axes, (name, scale) in zip(
        grid.flat, (("whole", 1.0), ("slide", 1.0), ("encoding", 0.5), ("encoding", 1.75)), strict=True
    ):
        windows_of(axes, photo, protocol(name, setting=SETTING), scale)
    save(figure, path)


def draw_sizes(path: Path) -> None:
    """The sizes of the views of each protocol that has several, to one scale."""
    names = [name for name in PROTOCOLS if len(protocol(name).scales) > 1]
    figure, axes = pyplot.subplots(1, len(names), figsize=(11, 3.3), sharex=True, sharey=True)
    for place, name in zip(axes, names, strict=True):
        plan = protocol(name, setting=SETTING)
        for color, scale in zip(COLORS, plan.scales, strict=False):
            height, width = plan.size(*SIZE, scale)
            place.add_patch(Rectangle((0, 0), width, height, fill=False, linewidth=2, edgecolor=color))
            place.text(width - 6, height - 8, f"{scale:g}", ha="right", va="bottom", fontsize=8, color=color)
        place.add_patch(Rectangle((0, 0), SIZE[1], SIZE[0], facecolor="#bbbbbb", alpha=0.45))
        place.set_title(f"{name}\n{len(plan.scales)} scales, mirrored: {2 * len(plan.scales)} views", fontsize=10)
    axes[0].set_xlim(-20, 1420)
    axes[0].set_ylim(1060, -20)
    axes[0].set_ylabel("pixels")
    for place in axes:
        place.set_aspect("equal")
    figure.suptitle(f"views of a photo of {SIZE[0]} x {SIZE[1]} (grey)", fontsize=11)
    save(figure, path)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def merged() -> dict[str, np.ndarray]:
    """What three ways of merging make of `MERGED_VIEWS`, each summing to 1 to be drawn alike."""
    summed = np.exp(MERGED_VIEWS[0::2] + MERGED_VIEWS[1::2]).sum(axis=0)
    return {
        "mean of logits (slide, paddle)": softmax(MERGED_VIEWS.mean(axis=0)),
        "mean of softmax (mmseg, mmseg0)": softmax(MERGED_VIEWS).mean(axis=0),
        "exp of the sum of both flips, summed over scales (encoding)": summed / summed.sum(),
    }


def draw_merges(path: Path) -> None:
    """One pixel, four views, three winners."""
    figure, axes = pyplot.subplots(1, 4, figsize=(11, 3.4), width_ratios=(1.5, 1, 1, 1))
    places = np.arange(len(CLASSES))
    labels = ("scale 1", "scale 1, mirrored", "scale 1.5", "scale 1.5, mirrored")
    for number, (name, logits) in enumerate(zip(labels, MERGED_VIEWS, strict=True)):
        axes[0].bar(places + (number - 1.5) * 0.2, logits, 0.19, label=name, color=COLORS[number])
    axes[0].axhline(0, color="black", linewidth=0.7)
    axes[0].set_title("logits of one pixel", fontsize=10)
    axes[0].legend(fontsize=7)
    for place, (name, shares) in zip(axes[1:], merged().items(), strict=True):
        best = int(shares.argmax())
        place.bar(places, shares, color=["#00695c" if label == best else "#b0bec5" for label in places])
        short, _, users = name.partition(" (")
        short = short.replace(" of both flips, ", "\nof both flips, ")
        place.set_title(f"{short}\n({users}: {CLASSES[best]}", fontsize=9)
        place.set_yticks([])
    for place in axes:
        place.set_xticks(places, CLASSES)
    save(figure, path)


def draw_absent(path: Path) -> None:
    """A class that neither the masks nor the predictions have, in two means."""
    names, ious = ("sky", "road", "car", "bus"), (0.9, 0.8, 0.6, 0.0)
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    for place, kept, title in zip(axes, (3, 4), ("skipped", "counts as 0"), strict=True):
        place.bar(names, ious, color=["#1565c0"] * 3 + ["#b0bec5"])
        place.text(3, 0.05, "absent", ha="center", fontsize=9)
        mean = sum(ious[:kept]) / kept
        place.axhline(mean, color="#c2185b", linewidth=2)
        place.set_title(f"absent class {title}: mIoU {100 * mean:.1f}", fontsize=10)
    axes[0].set_ylabel("IoU")
    save(figure, path)


def pooled(values: np.ndarray, variant: str) -> np.ndarray:
    """A row of pixels after the two places in which the variants differ, with weights that only pass pixels on.

    Args:
        values: [W].
        variant: "encoding" keeps a mean over 3 pixels (with stride 1) behind the convolution and the shortcut as it is;
            "mmseg" drops it; "timm" drops it and takes the mean of 2 pixels in the shortcut.

    Returns:
        Main path and shortcut added up, [W].
    """
    padded = np.pad(values, 1)
    main = (padded[:-2] + padded[1:-1] + padded[2:]) / 3 if variant == "encoding" else values
    shortcut = (values + np.append(values[1:], 0)) / 2 if variant == "timm" else values
    return main + shortcut


def draw_dilation(path: Path) -> None:
    """What one block makes of an edge, by variant."""
    edge = (np.arange(16) == 5).astype(float) * 2 + (np.arange(16) > 9)
    figure, axes = pyplot.subplots(1, 4, figsize=(11, 2.7), sharey=True)
    axes[0].step(range(16), edge, where="mid", color="black", linewidth=2)
    axes[0].set_title("a row of a feature:\na line and an edge", fontsize=10)
    for color, place, variant in zip(COLORS, axes[1:], ("encoding", "mmseg", "timm"), strict=False):
        place.step(range(16), pooled(edge, variant), where="mid", color=color, linewidth=2)
        place.step(range(16), 2 * edge, where="mid", color="#90a4ae", linewidth=0.8, linestyle="--")
        place.set_title(variant, fontsize=10)
    save(figure, path)


def save(figure: pyplot.Figure, path: Path) -> None:
    """Write a figure as a small PNG, of 96 colours."""
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, facecolor="white")
    pyplot.close(figure)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


DRAWINGS = {
    "protocol_windows": draw_windows,
    "protocol_sizes": draw_sizes,
    "protocol_merges": draw_merges,
    "protocol_absent": draw_absent,
    "dilation": draw_dilation,
}
"""Name of a picture -> what draws it."""


def main(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
