"""`Prediction`: the labels of one image, independent of the backend. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, load_extra
from resnest_seg.files import atomic_write
from resnest_seg.io.georeference import Georeference
from resnest_seg.io.large_images import LargeLabels
from resnest_seg.io.map_polygons import polygons_on_map, write_map_polygons
from resnest_seg.io.outlines import polygons, write_polygons
from resnest_seg.io.visualize import class_shares, overlay, png_bytes, with_legend, write_labels
from resnest_seg.labels import LabelSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Prediction of one image, independent of the backend.

    Attributes:
        image: The photo, RGB, uint8 [H, W, 3]; of an image of other channels its first three, or its first as grey; of
            named bands a stretched picture.
        labels: Train ids, uint8 [H, W]; positions in `label_space.names`, or `IGNORE_LABEL` where an image of named
            bands has no data. Of a multi-label model uint16 [H, W], of which bit k says that label k is present.
        label_space: The classes.
        compute_scores: Runs the model again for class probabilities, float32 [K, H, W], which are 4 K times as large as
            the labels and so are not kept.
        place: Where the image lies on the map; None for photos. Pixels without data are then ignored ones.
        confidence: Mean over its pixels of the probability of what was predicted (of binary and multi-label tasks the
            mean over labels); None if the `Predictor` was not asked for it, or the model gives labels only.
    """

    image: NDArray[np.uint8]
    labels: NDArray[Any]
    label_space: LabelSpace
    compute_scores: Callable[[], NDArray[np.float32]] = dataclasses.field(repr=False, compare=False)
    place: Georeference | None = None
    confidence: float | None = None

    def scores(self) -> NDArray[np.float32]:
        """Class probabilities, float32 [K, H, W]; the model runs once more for them.

        Of a binary model those of the object, [1, H, W]; of a multi-label model one for each label.
        """
        return self.compute_scores()

    def overlay(self, alpha: float = 0.5, *, legend: bool = True) -> NDArray[np.uint8]:
        """The photo with `alpha` (0..1) of the class colours blended in, with a legend below it; RGB uint8."""
        picture = overlay(self.image, self.labels, self.label_space, alpha=alpha)
        return with_legend(picture, self.labels, self.label_space) if legend else picture

    def _repr_png_(self) -> bytes:
        """Show the overlay with its legend in a notebook, of at most 1024 pixels a side."""
        image, labels = self._small(1024)
        return png_bytes(with_legend(overlay(image, labels, self.label_space), self.labels, self.label_space))

    def plot(self, *, ax: Axes | None = None, alpha: float = 0.5) -> Axes:
        """Draw the overlay by matplotlib, with a legend of the classes and their shares, and return the axes.

        Args:
            ax: Where to draw; None makes a new figure with `matplotlib.pyplot`.
            alpha: Opacity of the class colours, 0..1.

        Raises:
            ConfigError: matplotlib is not installed: pip install 'resnest-seg[plot]'.
        """
        if ax is None:
            _, ax = load_extra("matplotlib.pyplot", "plot").subplots(layout="constrained")
        assert ax is not None
        height, width = self.labels.shape
        picture = overlay(*self._small(2048), self.label_space, alpha=alpha)
        ax.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # in pixels of the photo
        texts = class_shares(self.labels, self.label_space)
        self.label_space.add_legend(ax, texts, columns=max(-(-len(texts) // 20), 1), beside=True)
        return ax

    def _small(self, longest: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Image and labels with edges of at most `longest` pixels."""
        height, width = self.labels.shape
        share = min(longest / max(height, width), 1)
        size = (max(round(width * share), 1), max(round(height * share), 1))
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        labels = cv2.resize(self.labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return image, labels.astype(self.labels.dtype, copy=False)

    def polygons(self, *, simplify: float = 0.0, min_area: int = 0) -> dict[str, Any]:
        """The regions as a GeoJSON FeatureCollection.

        That of a photo is in pixels, see `resnest_seg.io.outlines.polygons`; that of an image on the map in longitude
        and latitude, see `resnest_seg.io.map_polygons.polygons_on_map`.
        """
        if self.place is not None:
            return polygons_on_map(self.labels, self.label_space, self.place, simplify=simplify, min_area=min_area)
        return polygons(self.labels, self.label_space, simplify=simplify, min_area=min_area)

    def save(self, path: str | Path, *, ids: str = "raw", cog: bool = False) -> None:
        """Write the labels as a palette PNG of "raw" or "train" ids, or as a TIFF, which keeps its place on the map.

        Args:
            path: A .png file, see `resnest_seg.io.visualize.write_labels`; or .tif, see
                `resnest_seg.io.large_images.LargeLabels`.
            ids: See there.
            cog: Make a TIFF a Cloud Optimized GeoTIFF.
        """
        if cog or Path(path).suffix.lower() in (".tif", ".tiff"):
            height, width = self.labels.shape
            with LargeLabels(path, height, width, self.label_space, ids=ids, place=self.place, cog=cog) as file:
                file.write(0, self.labels)
        else:
            write_labels(path, self.labels, self.label_space, ids=ids)

    def save_polygons(self, path: str | Path, *, simplify: float = 0.0, min_area: int = 0) -> None:
        """Write `polygons` as .geojson or .json; those of an image on the map also as a GeoPackage, .gpkg, in its CRS.

        Raises:
            ConfigError: Another ending, or a GeoPackage of a photo.
        """
        if self.place is not None:
            write_map_polygons(path, self.labels, self.label_space, self.place, simplify=simplify, min_area=min_area)
        elif Path(path).suffix.lower() == ".gpkg":
            raise ConfigError(
                f"a GeoPackage needs a place on the map, which the image has not (a TIFF with CRS and transform has): "
                f"save the polygons as .geojson, in pixels, not as {path}."
            )
        else:
            write_polygons(path, self.labels, self.label_space, simplify=simplify, min_area=min_area)

    def save_scores(self, path: str | Path) -> None:
        """Write class probabilities in half precision as `scores` [K, H, W], and class `names`, into an .npz file."""
        found = self.compute_scores().astype(np.float16)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, scores=found, names=np.array(self.label_space.score_names))
