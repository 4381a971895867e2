"""Which images of an evaluation a page shows, and their predictions, which are made again."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.errors import DatasetError
from resnest_seg.evaluation.evaluator import EvaluatedImage, evaluate
from resnest_seg.evaluation.image_scores import ImageScores, ImageScoresFile
from resnest_seg.inference.backends import Backend
from resnest_seg.io.visualize import Image, Labels
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.reports.gallery import Card, thumbnail_size

WHOLE = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou": "boundary IoU",
    "confidence": "mean confidence",
    "entropy": "mean entropy",
}
"""Key of the scores of an image -> its name on the page."""


CHANGED = 0.02
"""Share of the pixels that may be predicted otherwise than in the evaluation, by rounding; to bfloat16 it changed 0.001
of an untrained network's."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """An image that a page shows.

    Attributes:
        index: Its place in the data set.
        name: Its name there.
        tags: Why it was chosen.
        scores: Name -> value of the first run; None where the image does not have it.
    """

    index: int
    name: str
    tags: tuple[str, ...]
    scores: Mapping[str, float | None]


class Model(NamedTuple):
    """A model whose predictions a page shows.

    Attributes:
        name: Of its run.
        model: Ready to run.
        protocol: How it is asked.
        images: The scores by image of its evaluation, which its predictions must have again; None asks nothing.
    """

    name: str
    model: Segmenter | Backend
    protocol: str
    images: Path | None = None


class Predicted(NamedTuple):
    """What a model predicts for the chosen images.

    Attributes:
        name: Of its run.
        images: Photo, truth and prediction of each, as thumbnails.
    """

    name: str
    images: Sequence[tuple[Image, Labels, Labels]]


def choose(
    runs: Sequence[tuple[str, Path]], protocol: str, *, classes: Sequence[str], count: int, seed: int = 0
) -> list[Chosen]:
    """Choose the images with the lowest and the highest mean IoU, some at random, and those that changed most.

    Args:
        runs: Name and file of scores by image of each run; the choice is by the first, changes are those to the last.
        protocol: The one whose scores count.
        classes: Names of the classes.
        count: Of each kind, at most.
        seed: Of the random choice.

    Raises:
        DatasetError: A file cannot be read.
    """
    means = [
        {
            (image.index, image.name): image.mean_iou
            for image in ImageScoresFile(path)
            if image.protocol == protocol and image.mean_iou is not None
        }
        for _, path in runs
    ]
    order = sorted(means[0], key=lambda image: (means[0][image], image))
    kinds = {"worst": order[:count], "best": order[::-1][:count]}
    kinds["random"] = random.Random(seed).sample(sorted(order), min(count, len(order)))
    if len(runs) > 1:
        changes = {image: means[-1][image] - means[0][image] for image in order if image in means[-1]}
        gains = sorted(changes, key=lambda image: (-changes[image], image))
        kinds[f"better in {runs[-1][0]}"] = [image for image in gains[:count] if changes[image] > 0]
        kinds[f"worse in {runs[-1][0]}"] = [image for image in gains[::-1][:count] if changes[image] < 0]
    tags: dict[tuple[int, str], tuple[str, ...]] = {}
    for kind, images in kinds.items():
        for image in images:
            tags[image] = (*tags.get(image, ()), kind)
    scored = (image for image in ImageScoresFile(runs[0][1]) if image.protocol == protocol)
    found = {key: _scores_of(image, classes) for image in scored if (key := (image.index, image.name)) in tags}
    for key, scores in found.items():
        for (name, _), values in zip(runs[1:], means[1:], strict=True):
            scores[f"mean IoU of {name}"] = values.get(key)
            if key in values:
                scores[f"change of mean IoU in {name}"] = values[key] - means[0][key]
    return [Chosen(*key, why, found[key]) for key, why in tags.items()]


def _scores_of(image: ImageScores, classes: Sequence[str]) -> dict[str, float | None]:
    scores = {text: value for key, text in WHOLE.items() if (value := getattr(image, key)) is not None}
    return {**scores, **{f"IoU of {name}": image.iou(label) for label, name in enumerate(classes)}}


def predict(
    model: Model, dataset: SegmentationDataset, chosen: Sequence[Chosen], *, memory: int | None = None
) -> Predicted:
    """Predict the chosen images again.

    Args:
        model: The model.
        dataset: Where the images are.
        chosen: The images.
        memory: Bytes that scores may take.

    Raises:
        DatasetError: The data set holds other images or labels than those that were evaluated, or one cannot be read;
            or the model is another one than was evaluated.
        CheckpointError: The model has other classes.
        ConfigError: The model cannot segment these images.
    """
    for image in chosen:
        there = dataset.sample_name(image.index) if image.index < len(dataset) else None
        if there != image.name:
            what = f"has {len(dataset)} images" if there is None else f"is {there} here"
            raise DatasetError(
                f"the {dataset.split} split of {dataset.label_space.name} is not what was evaluated: image "
                f"{image.index} was {image.name}, and {what}."
            )
    found: list[tuple[Image, Labels, Labels]] = []

    def keep(image: EvaluatedImage) -> None:
        size = thumbnail_size(image.image)
        photo = cv2.resize(image.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        labels, predictions = (
            cv2.resize(each, size, interpolation=cv2.INTER_NEAREST_EXACT) for each in (image.labels, image.predictions)
        )
        found.append((photo, labels, predictions))

    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, "again.jsonl")
        evaluate(
            model.model,
            dataset,
            protocols=(model.protocol,),
            indices=[image.index for image in chosen],
            on_image=keep,
            require_labels=False,
            memory=memory,
            images=again,
        )
        if model.images is not None:
            _check_same(model.name, model.images, again, dataset, model.protocol)
    return Predicted(model.name, found)


def _check_same(name: str, before: Path, again: Path, dataset: SegmentationDataset, protocol: str) -> None:
    """Refuse images whose labels or predictions are not those that were evaluated: their captions would be wrong.

    A pixel that is predicted otherwise changes the counts of two classes by one: their hits, or their false pixels. So
    the differences of these tell the least number of such pixels.

    Args:
        name: Of the run.
        before: Its file of scores by image.
        again: That of the images that were just predicted again.
        dataset: Where they are.
        protocol: By which.
    """
    here = {(image.index, image.name): image for image in ImageScoresFile(again)}
    changed = pixels = 0
    for image in ImageScoresFile(before):
        now = here.get((image.index, image.name))
        if now is None or image.protocol != protocol:
            continue
        counts = [
            (image.counts.get(k, (0, 0, 0)), now.counts.get(k, (0, 0, 0))) for k in {**image.counts, **now.counts}
        ]
        if image.pixels != now.pixels or any(one[1] != other[1] for one, other in counts):
            raise DatasetError(
                f"{image.name} has other labels here than when {before} was written: name the data that were evaluated "
                f"by --data.root, or evaluate {name} again."
            )
        pixels += image.pixels
        for (hits, _, predicted), (hits_now, _, predicted_now) in counts:
            changed += abs(hits_now - hits) + abs((predicted_now - hits_now) - (predicted - hits))
    space = dataset.label_space
    share = changed / max(pixels * (2 if space.task == "multiclass" else len(space.score_names)), 1)
    if share > CHANGED:
        raise DatasetError(
            f"{100 * share:.0f} % of the pixels or more are predicted otherwise than when {before} was written: the "
            f"weights or the photos are others now. Evaluate {name} again, or name the data that were evaluated by "
            "--data.root."
        )


def pictures(models: Sequence[Predicted], chosen: Sequence[Chosen]) -> Iterator[Card]:
    """Make the cards of the chosen images.

    Args:
        models: What they predict; the first one's scores are those of the images.
        chosen: The images.
    """
    several = len(models) > 1
    for place, image in enumerate(chosen):
        photo, truth, prediction = models[0].images[place]
        others = {model.name: model.images[place][2] for model in models[1:]}
        whole = [f"{name} {image.scores[name]:.3f}" for name in WHOLE.values() if image.scores.get(name) is not None]
        caption = f"{', '.join(image.tags)}; {', '.join(whole)}" + (f" ({models[0].name})" if several else "")
        yield Card(
            image.name, caption, photo, truth, prediction, image.scores, image.tags, others,
            prediction_name=models[0].name if several else "prediction",
        )  # fmt: skip
