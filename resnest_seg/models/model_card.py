"""The card of a model, README.md of a folder of `save_pretrained`, from its checkpoint and an evaluation of it.

The metadata at its top are the Hugging Face hub's. Names of classes and data sets are shown verbatim.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import resnest_seg
from resnest_seg.config import CUSTOM, RunConfig
from resnest_seg.errors import ConfigError, printable
from resnest_seg.models.checkpoint import HUB_FILE, Checkpoint
from resnest_seg.models.published_weights import published

TAGS = ("model_hub_mixin", "pytorch", "semantic-segmentation")
"""Tags of every model on the hub."""

HUB_DATASETS = {"ade20k": "zhoubolei/scene_parse_150"}
"""Data set -> its repository on the hub."""

TERMS = {
    "ade20k": "ADE20K's terms allow research and education, not commercial use.",
    "cityscapes": "Cityscapes' terms allow research, not commercial use, and no redistribution of the images.",
    "camvid": "CamVid's photos and labels are under CC BY-NC 4.0: no commercial use.",
    "synthetic": "The scenes were drawn by a program: nothing is known about photos.",
}
"""Data set -> what its terms say about models trained on it."""

PATHS = (
    "data.root", "data.images", "data.masks", "data.classes", "data.cache", "data.samples", "model.weights",
    "model.encoder_weights", "train.unlabelled", "distill.teacher", "output",
)  # fmt: skip
"""Keys of a config that may be paths or addresses of the author's, of which the last part is published."""

BELOW_ROOT = ("data.images", "data.masks")
"""Those of them that are patterns below data.root, without which the files of a data set are not found."""

NOT_FOLLOWED = ("data.classes", "data.cache", "data.samples")
"""Those of them that a saved model leaves out: in another's current folder the last part may name another file."""

MAIN_KEYS = (
    "model.encoder", "model.encoder_weights", "model.weights", "model.head", "model.task", "data.dataset",
    "data.recipe", "data.crop_size", "data.bands", "train.epochs", "train.iterations", "train.batch_size",
    "train.loss", "train.class_weights", "train.ema", "optim.optimizer", "optim.lr", "optim.schedule", "seed",
)  # fmt: skip
"""Keys of a config that the recipe begins with."""

MOST_CLASSES = 30
"""Rows of classes that a card shows without folding them."""

_SEAL = "<!-- As it was written, sha256 "
"""Begin of the last line of a card, which Markdown does not show, and which tells whether anybody edited the card."""

_MARKUP = re.compile(r"[\\`*{}\[\]|~#!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # what some Markdown reads as markup


class ClassScores(Protocol):
    """The scores of a protocol, as `resnest_seg.evaluation.metrics.Scores` has them; shares 0..1."""

    @property
    def class_iou(self) -> Sequence[float | None]:
        """IoU by class; None for an absent one."""

    @property
    def class_share(self) -> Sequence[float]:
        """Share of the pixels by class."""

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels with the right label."""


class Method(Protocol):
    """The settings of a protocol."""

    @property
    def absent(self) -> str:
        """Policy for absent classes: "skipped" or "zero"."""

    @property
    def description(self) -> str:
        """Scales, windows and merging in one line."""


class Report(Protocol):
    """An evaluation, as `resnest_seg.EvalReport` has it."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def split(self) -> str:
        """Its split."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names."""

    @property
    def scores(self) -> Mapping[str, ClassScores]:
        """Protocol name -> scores."""

    @property
    def methods(self) -> Mapping[str, Method]:
        """Protocol name -> its settings."""

    def mean_iou(self, name: str) -> float:
        """Return the mean IoU of a protocol."""


def published_config(config: RunConfig, *, shown: bool = False) -> RunConfig:
    """Return a config as it is published with a model: of paths and addresses of its author's, the last part alone.

    Patterns below the root of the data and names of published checkpoints stay as they are. What is `NOT_FOLLOWED` is
    left out, unless the config is only `shown`.
    """
    tree = config.to_dict()
    for key in PATHS:
        group, _, name = key.rpartition(".")
        keys = tree[group] if group else tree
        value = keys[name]
        if key in NOT_FOLLOWED and not shown:
            keys[name] = None
        elif isinstance(value, str) and not (key in BELOW_ROOT and _is_relative(value)):
            keys[name] = _last_part(value)
        elif isinstance(value, list | tuple):
            parts = [_last_part(each) for each in value]
            twins = [parts[:place].count(part) for place, part in enumerate(parts)]  # a list names nothing twice
            keys[name] = [f"{part} ({twin + 1})" if twin else part for part, twin in zip(parts, twins, strict=True)]
    return RunConfig.from_dict(tree)


def _is_relative(pattern: str) -> bool:
    return (
        not re.match(r"/|~|[A-Za-z][A-Za-z0-9+.-]*:", pattern)
        and "\\" not in pattern
        and ".." not in pattern.split("/")
    )


def _last_part(path: str) -> str:
    """The last part of a path or an address, without the keys that an address may hold."""
    if published(path) is not None:
        return path
    if "://" in path:  # s3://key:secret@bucket/mine, https://host/mine.zip?signature=...
        path = re.split(r"[?#]", path, maxsplit=1)[0].rstrip("/").rpartition("@")[2]
    return PurePath(path.replace("\\", "/")).name or "."


def model_card(
    checkpoint: Checkpoint, *, description: str, report: Report | None = None, picture: str | None = None
) -> str:
    """Write the card of a segmentation model: Markdown below YAML metadata.

    Args:
        checkpoint: The model.
        description: Its network in one line, `Segmenter.description`.
        report: An evaluation of it, an `EvalReport`, whose figures the card shows.
        picture: Name of an image file beside the card, to be shown where the terms of the data allow it.

    Raises:
        ConfigError: The report is of other classes, or the checkpoint is a classifier's.
    """
    config, space = checkpoint.config, checkpoint.label_space
    if not isinstance(config, RunConfig):
        raise ConfigError("a model card is for segmentation models, and this is an image classifier's checkpoint.")
    if report is not None and space is not None and tuple(report.classes) != space.score_names:
        raise ConfigError(
            f"the report is of {len(report.classes)} classes, {', '.join(report.classes[:3])} ..., and the model has "
            f"{len(space.score_names)}, {', '.join(space.score_names[:3])} ...: give a report of this model."
        )
    name = "_".join((config.model.head, config.model.encoder, config.data.dataset)).replace(":", "-")
    parts = [
        f"# {_text(name)}",
        f"A model for semantic segmentation: {_text(description)}. It gives every pixel "
        f"{_answer(checkpoint)}, and takes images of any size.",
        *([f"![photo, labels, prediction, errors]({picture})"] if picture else []),
        _usage(checkpoint, config),
        *([_results(report)] if report is not None else []),
        _classes(checkpoint, report),
        _training(checkpoint, config),
        _limits(config, report),
        f"This card was written by resnest_seg {resnest_seg.__version__}.",
    ]
    card = f"---\n{_metadata(name, config, report).to_yaml().rstrip()}\n---\n\n" + "\n\n".join(parts)
    return f"{card}\n\n{_SEAL}{_digest(card)} -->\n"


def make_way_for_card(path: Path) -> None:
    """Remove the card of a model that was saved there before, if nobody edited it; else warn that it stays as it is.

    Args:
        path: README.md, beside which another model was just saved; it need not exist.
    """
    if not path.is_file():
        return
    card, _, seal = path.read_text(encoding="utf-8", errors="replace").rstrip().rpartition(f"\n{_SEAL}")
    try:
        unedited = bool(card) and seal == f"{_digest(card)} -->"
    except (ValueError, TypeError, yaml.YAMLError):  # its metadata are no longer any
        unedited = False
    if unedited:
        path.unlink()
        return
    warnings.warn(
        f"{path} was edited, or written by another program or version, and stays as it is: its figures may be those of "
        "other weights. Delete it and save the model again to have a card written for it.",
        stacklevel=4,
    )


def _digest(card: str) -> str:
    """SHA-256 of the metadata and the text of a card, however its metadata are laid out in YAML."""
    parts = ModelCard(card)
    content = json.dumps([yaml.safe_load(parts.data.to_yaml()), parts.text.strip()], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _metadata(name: str, config: RunConfig, report: Report | None) -> ModelCardData:
    """What the hub reads."""
    known = HUB_DATASETS.get(config.data.dataset)
    results = None
    if report is not None:
        results = [
            EvalResult(
                task_type="image-segmentation",
                task_name="Semantic segmentation",
                dataset_type=printable(report.dataset),
                dataset_name=printable(report.dataset),
                dataset_split=report.split,
                metric_type=kind,
                metric_value=round(value, 6),
                metric_name=f"{title} (protocol {protocol})",
                metric_args={"protocol": _description(report, protocol)},
            )
            for protocol, scores in report.scores.items()
            for kind, title, value in (
                ("mean_iou", "mean IoU", report.mean_iou(protocol)),
                ("accuracy", "pixel accuracy", scores.pixel_accuracy),
            )
        ]
    return ModelCardData(
        library_name="resnest_seg",
        pipeline_tag="image-segmentation",
        tags=[*TAGS, *(["resnest"] if "resnest" in config.model.encoder else [])],
        datasets=[known] if known else None,
        metrics=["mean_iou", "accuracy"],
        model_name=printable(name),
        eval_results=results,
    )


def _description(report: Report, protocol: str) -> str:
    return report.methods[protocol].description if protocol in report.methods else protocol


def _answer(checkpoint: Checkpoint) -> str:
    """What the model says of a pixel, in words."""
    space, count = checkpoint.label_space, checkpoint.num_classes
    if space is not None and space.task == "binary":
        return f"one of two labels, {_text(space.names[1])} or not"
    return f"any of {count} labels" if space is not None and space.task == "multilabel" else f"one of {count} classes"


def _usage(checkpoint: Checkpoint, config: RunConfig) -> str:
    """How it is loaded and used, in code that runs where the card lies."""
    own = CUSTOM in (config.model.encoder, config.model.head)
    names, lines = ["Segmenter"], ['segmenter = Segmenter.from_pretrained(".")  # this folder, or its repository']
    if own:
        names = ["load_checkpoint"]
        lines = ["# build(num_classes) is the author's function: a checkpoint holds no code",
                 f'segmenter = load_checkpoint("{HUB_FILE}", into=build)']  # fmt: skip
    channels = config.model.in_channels
    if checkpoint.label_space is None:
        lines += [f"logits = segmenter(images).logits  # images [N, {channels}, H, W], 0..255"]
    else:
        names.append("Predictor")
        photos = channels == 3 and config.data.bands is None
        lines += [
            'prediction = Predictor(segmenter)("photo.jpg")'
            if photos
            else f"prediction = Predictor(segmenter)(image)  # an array [H, W, {channels}]",
            'prediction.save("labels.png")',
        ]
    imports = f"from resnest_seg import {', '.join(sorted(names))}"
    code = "\n".join([imports, "", *lines])
    return f"## How to use\n\n```\npip install resnest-seg\n```\n\n```python\n{code}\n```"


def _results(report: Report) -> str:
    """The means by protocol."""
    rows = [
        (
            _text(protocol),
            _percent(report.mean_iou(protocol)),
            "count 0" if protocol in report.methods and report.methods[protocol].absent == "zero" else "are skipped",
            _percent(scores.pixel_accuracy),
            _text(_description(report, protocol)),
        )
        for protocol, scores in report.scores.items()
    ]
    head = ("protocol", "mean IoU, %", "absent classes", "pixel accuracy, %", "settings")
    where = f"On {_text(report.dataset)} {_text(report.split)}, {report.images} images:"
    return f"## Results\n\n{where}\n\n{_table(head, rows)}"


def _classes(checkpoint: Checkpoint, report: Report | None) -> str:
    """The classes with values, colours and scores; long lists are folded."""
    space = checkpoint.label_space
    if space is None:
        return f"## Classes\n\nThe checkpoint does not name its {checkpoint.num_classes} classes."
    scores = None if report is None else next(iter(report.scores.values()))
    places = {name: place for place, name in enumerate(space.score_names)}
    rows = []
    for label, name in enumerate(space.names):
        row = [str(label), str(space.raw_ids[label]), _text(name), "#{:02x}{:02x}{:02x}".format(*space.colors[label])]
        if scores is not None:
            place = places.get(name)
            row += ["-", "-"] if place is None else [
                _percent(scores.class_iou[place]), _percent(scores.class_share[place])
            ]  # fmt: skip
        rows.append(row)
    extra = () if scores is None else ("IoU, %", "share of pixels, %")
    table = _table(("index", "value in label PNGs", "class", "colour", *extra), rows)
    thresholds = checkpoint.weights.get("thresholds")
    if thresholds is not None:
        names = zip(space.score_names, thresholds.float().tolist(), strict=True)
        table += f"\n\nDecided from these probabilities on: {', '.join(f'{_text(n)} {t:.3f}' for n, t in names)}."
    if len(rows) > MOST_CLASSES:
        table = f"<details><summary>{len(rows)} classes</summary>\n\n{table}\n\n</details>"
    return f"## Classes\n\n{table}"


def _training(checkpoint: Checkpoint, config: RunConfig) -> str:
    """The recipe: its main keys, where in the run the weights come from, and the whole config, folded."""
    tree = published_config(config, shown=True).to_dict()
    flat = {f"{group}.{key}": value for group, values in tree.items() if isinstance(values, Mapping)
            for key, value in values.items()} | tree  # fmt: skip
    rows = [(f"`{key}`", _text(_plain(flat[key]))) for key in MAIN_KEYS if flat[key] is not None]
    whole = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", whole)), default=0))
    folded = f"<details><summary>Every key of the config</summary>\n\n{fence}yaml\n{whole}{fence}\n\n</details>"
    step = checkpoint.origin.get("step")
    origin = "" if step is None else f"The weights are those of step {_text(step)}, the best of its validations.\n\n"
    return f"## Training\n\n{origin}{_table(('key', 'value'), rows)}\n\n{folded}"


def _limits(config: RunConfig, report: Report | None) -> str:
    """What the model was not made for, and the terms of its data."""
    known = TERMS.get(config.data.dataset, "The terms of its training data apply.")
    lines = [
        f"It was trained on the data set {_text(config.data.dataset)} alone: other cameras, places and weather may "
        "give worse labels, without a warning.",
        "Every pixel gets one of the labels above, also where none fits.",
        known,
        "This card names no licence of the weights: that is for their author to choose (`license` in the metadata)."
    ]  # fmt: skip
    lines += [line for line in _initial_weights(config) if line not in lines]
    if report is None:
        lines.append("This card shows no evaluation.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _initial_weights(config: RunConfig) -> list[str]:
    """What is known of the weights that training began from, and of their terms."""
    whole, encoder = config.model.weights, config.model.encoder_weights
    name = whole if whole is not None else encoder
    if name is None:
        return []
    known, file = published(name), published(PurePath(name).stem)
    if known is None and file is not None and file.name == PurePath(name).stem:  # with its hash; a run has short names
        known = file
    lines = []
    if known is not None or name == "imagenet":  # published segmentation models began from its classifiers, too
        lines.append("The encoder was pre-trained on ImageNet, whose images are for non-commercial research.")
    if known is not None and known.dataset in TERMS:
        lines.append(TERMS[known.dataset])
    if whole is not None or not lines:
        what = "Training" if whole is not None else "The encoder"
        lines.append(f"{what} began from other weights, named below Training, whose terms apply as well.")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """A value that Markdown shows verbatim, on one line."""
    plain = " ".join(printable(str(value)).split())
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", html.escape(plain, quote=False))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
