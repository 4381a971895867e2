"""`Prediction`: the labels of one image, independent of the backend. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.files import atomic_write
from resnest_seg.io.polygons import polygons
from resnest_seg.io.visualize import overlay, with_legend, write_labels
from resnest_seg.labels import LabelSpace


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Prediction of one image, independent of the backend.

    Attributes:
        image: The photo, RGB, uint8 [H, W, 3]; of an image of other channels its first three, or its first as grey.
        labels: Train ids, uint8 [H, W]; positions in `label_space.names`.
        label_space: The classes.
        compute_scores: Runs the model again for class probabilities, float32 [K, H, W], which are 4 K times as large as
            the labels and so are not kept.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    label_space: LabelSpace
    compute_scores: Callable[[], NDArray[np.float32]] = dataclasses.field(repr=False, compare=False)

    def scores(self) -> NDArray[np.float32]:
        """Class probabilities, float32 [K, H, W]; the model runs once more for them."""
        return self.compute_scores()

    def overlay(self, alpha: float = 0.5, *, legend: bool = True) -> NDArray[np.uint8]:
        """The photo with `alpha` (0..1) of the class colours blended in, with a legend below it; RGB uint8."""
        picture = overlay(self.image, self.labels, self.label_space, alpha=alpha)
        return with_legend(picture, self.labels, self.label_space) if legend else picture

    def polygons(self, *, simplify: float = 0.0, min_area: int = 0) -> dict[str, Any]:
        """The regions as a GeoJSON FeatureCollection in pixels, see `resnest_seg.io.polygons.polygons`."""
        return polygons(self.labels, self.label_space, simplify=simplify, min_area=min_area)

    def save(self, path: str | Path, *, ids: str = "raw") -> None:
        """Write the labels as a palette PNG of "raw" or "train" ids; see `resnest_seg.io.visualize.write_labels`."""
        write_labels(path, self.labels, self.label_space, ids=ids)

    def save_scores(self, path: str | Path) -> None:
        """Write class probabilities in half precision as `scores` [K, H, W], and class `names`, into an .npz file."""
        found = self.compute_scores().astype(np.float16)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, scores=found, names=np.array(self.label_space.names))
