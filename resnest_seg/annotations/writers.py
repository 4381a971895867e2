"""Label maps as annotations that open in the tools: COCO, labelme, CVAT for images, YOLO segmentation.

Every region of pixels of one class that are joined by their sides becomes an object. Where a format cannot cut holes
out of outlines, a region with holes is written as the format's mask (COCO: run lengths; CVAT and labelme: mask), so
that nothing is lost. YOLO has no masks: there the regions in a hole are drawn over it, as its own tool does, and
ignored pixels in a hole are lost. Background is not written where pixels without an object mean it, except for YOLO.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnest_seg.annotations.objects import BACKGROUND_NAMES, Patch, Ring, Rings
from resnest_seg.annotations.raster import draw, format_runs, mask_to_runs
from resnest_seg.annotations.yolo import labels_beside
from resnest_seg.errors import ConfigError, printable, unknown_name
from resnest_seg.files import atomic_write
from resnest_seg.io.outlines import check_polygon_options, regions_of
from resnest_seg.labels import LabelSpace

TOLERANCE = 1.0
"""Default of `tolerance`, in pixels."""

FAITHFUL = 0.995
"""IoU of a region with its simplified outline, at least: small and thin regions are simplified less."""


class Region(NamedTuple):
    """A region of pixels of one class.

    Attributes:
        label: Its train id.
        rings: Its simplified outline, then its holes, in pixels from the upper left corner of the image.
        patch: Its pixels, without simplification.
    """

    label: int
    rings: list[Ring]
    patch: Patch


def regions(labels: NDArray[Any], space: LabelSpace, *, tolerance: float, background: bool) -> Iterator[Region]:
    """Yield the regions of a label map [H, W], by class; ignored pixels are in none.

    Args:
        labels: Train ids, or bits of several labels, whose regions may overlap.
        space: Their label space.
        tolerance: Of the simplification, in pixels; 0 keeps every corner.
        background: Yield the regions of a class called background, too.
    """
    check_polygon_options(labels, space, simplify=0, min_area=0)
    height, width = labels.shape
    for label, _, rings in sorted(regions_of(labels, space), key=lambda region: region[0]):
        if not background and space.names[label].lower() in BACKGROUND_NAMES:
            continue
        exact = [ring.astype(np.float64) for ring in rings]
        patch = draw([Rings(tuple(exact))], height, width)
        assert patch is not None, "a region has pixels"
        yield Region(label, [simplified(exact[0], tolerance, patch), *exact[1:]], patch)


def simplified(ring: Ring, tolerance: float, patch: Patch, *, closed: bool = False) -> Ring:
    """Simplify the outline of a patch by Douglas and Peucker's rule, as far as it stays the outline of that patch.

    Args:
        ring: The outline; its corners are pixel indices if `closed`, else points between pixels.
        tolerance: At most, in pixels; it is halved until the area drawn again agrees (IoU) to `FAITHFUL`.
        patch: The pixels; holes of it are not looked at.
        closed: See `Rings`.
    """
    shift = 0.5 if closed else 0.0
    rows, columns = patch.mask.shape
    origin = np.array([patch.left, patch.top]) - shift
    whole = draw([Rings((ring - origin,), closed)], rows, columns)
    if whole is None:
        return ring
    size = int(whole.mask.sum())
    while tolerance >= 0.25:
        fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True).reshape(-1, 2).astype(np.float64)
        again = draw([Rings((fewer - origin,), closed)], rows, columns) if len(fewer) >= 3 else None
        if again is not None and _agreement(whole, again, size) >= FAITHFUL:
            return fewer
        tolerance /= 2
    return ring


def _agreement(one: Patch, two: Patch, size: int) -> float:
    """Return the IoU of two patches, the first of `size` pixels."""
    canvas = np.zeros((max(one.top + one.mask.shape[0], two.top + two.mask.shape[0]),
                       max(one.left + one.mask.shape[1], two.left + two.mask.shape[1])), bool)  # fmt: skip
    canvas[one.top : one.top + one.mask.shape[0], one.left : one.left + one.mask.shape[1]] = one.mask
    window = canvas[two.top : two.top + two.mask.shape[0], two.left : two.left + two.mask.shape[1]]
    both = int((window & two.mask).sum())
    return both / (size + int(two.mask.sum()) - both)


class AnnotationWriter:
    """Writes label maps of many images in one or several formats; a context manager, on whose exit the files are whole.

    An exception leaves files of all images (COCO, CVAT, data.yaml) as they were before: half of the images would look
    like all of them.

    Below the folder: `coco/annotations.json`, `labelme/PLACE.json`, `cvat/annotations.xml`, and `yolo/` with data.yaml,
    labels/ and links to the photos in images/. Memory does not grow with the number of images.

    Args:
        folder: The folder to write into.
        formats: Of coco, labelme, cvat, yolo.
        space: The label space of all images.
        tolerance: Of the simplification of outlines, in pixels; 0 keeps every corner.

    Raises:
        ConfigError: A format is unknown.
    """

    def __init__(
        self, folder: str | Path, formats: Sequence[str], space: LabelSpace, *, tolerance: float = TOLERANCE
    ) -> None:
        self.space, self.tolerance, self.folder = space, tolerance, Path(folder)
        for name in formats:
            if name not in _WRITERS:
                raise unknown_name("format", name, _WRITERS)
        if not 0 <= tolerance <= 100:
            raise ConfigError(f"the tolerance of outlines, in pixels, must be from 0 to 100, not {tolerance}.")
        self._formats, self._writers = list(dict.fromkeys(formats)), list[_Writer]()

    def add(
        self, name: str, labels: NDArray[Any], *, photo: str | Path | None = None, place: str | None = None
    ) -> None:
        """Add one image.

        Args:
            name: The photo's name: a path below some folder of photos, with `/`, unique.
            labels: Train ids, uint8 [H, W], or bits of several labels, uint16 [H, W].
            photo: The photo's file, to which labelme and YOLO refer.
            place: Path without ending of the files that labelme and YOLO have for each image, unique; None takes the
                name without its suffix.
        """
        place = str(PurePosixPath(name).with_suffix("")) if place is None else place
        self._writers = self._writers or [
            _WRITERS[form](self.folder / form, self.space, self.tolerance) for form in self._formats
        ]
        found = list(regions(labels, self.space, tolerance=self.tolerance, background=True))
        for writer in self._writers:
            some = found if writer.background else [
                one for one in found if self.space.names[one.label].lower() not in BACKGROUND_NAMES
            ]  # fmt: skip
            writer.add(_Photo(name, place, labels.shape, None if photo is None else Path(photo)), some)

    def __enter__(self) -> AnnotationWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.forget()
        with contextlib.ExitStack() as each:  # the others are completed where one fails
            for writer in self._writers:
                each.callback(writer.close)

    def forget(self) -> None:
        """Leave the files of all images as they were before, whatever was added."""
        for writer in self._writers:
            writer.forget()
        self._writers = []


class _Photo(NamedTuple):
    name: str
    place: str
    size: tuple[int, ...]
    file: Path | None


class _Writer:
    """One format."""

    background = False

    def __init__(self, folder: Path, space: LabelSpace, tolerance: float) -> None:
        self.folder, self.space, self.tolerance = folder, space, tolerance

    def add(self, photo: _Photo, found: Sequence[Region]) -> None:
        """Add one image and its regions."""
        raise NotImplementedError

    def close(self) -> None:
        """Complete the files."""

    def forget(self) -> None:
        """Leave the files of all images as they were."""

    def color(self, label: int) -> str:
        """Return a class's colour as #rrggbb."""
        return "#{:02x}{:02x}{:02x}".format(*self.space.colors[label])


def _spool() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")


class _Coco(_Writer):
    def __init__(self, folder: Path, space: LabelSpace, tolerance: float) -> None:
        super().__init__(folder, space, tolerance)
        self._images, self._annotations, self._count, self._number = _spool(), _spool(), 0, 0

    def add(self, photo: _Photo, found: Sequence[Region]) -> None:
        height, width = photo.size
        self._count += 1
        image = {"id": self._count, "file_name": photo.name, "height": height, "width": width}
        self._images.write((",\n" if self._count > 1 else "") + json.dumps(image))
        for one in found:
            self._number += 1
            rows, columns = one.patch.mask.shape
            segmentation: Any = [one.rings[0].ravel().tolist()]
            if len(one.rings) > 1:
                whole = np.zeros((height, width), bool)
                whole[one.patch.top : one.patch.top + rows, one.patch.left : one.patch.left + columns] = one.patch.mask
                segmentation = {"size": [height, width], "counts": format_runs(mask_to_runs(whole, by_columns=True))}
            annotation = {
                "id": self._number, "image_id": self._count, "category_id": one.label + 1, "iscrowd": 0,
                "area": int(one.patch.mask.sum()), "bbox": [one.patch.left, one.patch.top, columns, rows],
                "segmentation": segmentation,
            }  # fmt: skip
            self._annotations.write((",\n" if self._number > 1 else "") + json.dumps(annotation))

    def forget(self) -> None:
        self._images.close()
        self._annotations.close()

    def close(self) -> None:
        """Write the images, then the annotations, into one file."""
        categories = [{"id": label + 1, "name": name, "supercategory": "", "color": list(self.space.colors[label])}
                      for label, name in enumerate(self.space.names)]  # fmt: skip
        with (
            atomic_write(self.folder / "annotations.json") as temporary,
            open(temporary, "w", encoding="utf-8") as file,
        ):
            file.write('{"images": [\n')
            _append(self._images, file)
            file.write('\n], "annotations": [\n')
            _append(self._annotations, file)
            file.write(f'\n], "categories": {json.dumps(categories)}}}\n')


def _append(spool: IO[str], file: IO[str]) -> None:
    spool.seek(0)
    shutil.copyfileobj(spool, file)
    spool.close()


class _Labelme(_Writer):
    def add(self, photo: _Photo, found: Sequence[Region]) -> None:
        path = self.folder / f"{photo.place}.json"
        where = photo.name if photo.file is None else os.path.relpath(photo.file, path.parent)
        largest_first = sorted(found, key=lambda one: -int(one.patch.mask.sum()))
        content: dict[str, Any] = {
            "version": "5.5.0", "flags": {}, "shapes": [self._shape(one) for one in largest_first],
            "imagePath": Path(where).as_posix(), "imageData": None,
            "imageHeight": photo.size[0], "imageWidth": photo.size[1],
        }  # fmt: skip
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _shape(self, one: Region) -> dict[str, Any]:
        """An outline through the centres of the pixels on the border, from which labelme draws exactly the region."""
        shape: dict[str, Any] = {"label": self.space.names[one.label], "group_id": None, "description": "", "flags": {}}
        if len(one.rings) == 1:
            outline = simplified(_through_centres(one.patch), self.tolerance, one.patch, closed=True)
            if len(outline) >= 3:
                return shape | {"shape_type": "polygon", "points": outline.tolist(), "mask": None}
        rows, columns = one.patch.mask.shape
        data = io.BytesIO()
        Image.fromarray(one.patch.mask).save(data, "PNG")
        left, top = one.patch.left, one.patch.top
        return shape | {
            "shape_type": "mask",
            "points": [[left, top], [left + columns - 1, top + rows - 1]],
            "mask": base64.b64encode(data.getvalue()).decode(),
        }


def _through_centres(patch: Patch) -> Ring:
    """Return the outline of a patch of one region without holes through the centres of its border pixels."""
    found, _ = cv2.findContours(patch.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline: Ring = max(found, key=len).reshape(-1, 2) + np.array([patch.left, patch.top], float)
    return outline


class _Cvat(_Writer):
    def __init__(self, folder: Path, space: LabelSpace, tolerance: float) -> None:
        super().__init__(folder, space, tolerance)
        self._images, self._count = _spool(), 0

    def add(self, photo: _Photo, found: Sequence[Region]) -> None:
        lines = [f'<image id="{self._count}" name={_quoted(photo.name)} '
                 f'width="{photo.size[1]}" height="{photo.size[0]}">']  # fmt: skip
        self._count += 1
        for one in found:
            head = f'label={_quoted(self.space.names[one.label])} source="auto" occluded="0"'
            if len(one.rings) == 1:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in one.rings[0].tolist())
                lines.append(f'  <polygon {head} points="{points}" z_order="0"></polygon>')
                continue
            rows, columns = one.patch.mask.shape
            runs = ", ".join(map(str, mask_to_runs(one.patch.mask, by_columns=False)))
            lines.append(f'  <mask {head} rle="{runs}" left="{one.patch.left}" top="{one.patch.top}" width="{columns}" '
                         f'height="{rows}" z_order="0"></mask>')  # fmt: skip
        self._images.write("\n".join([*lines, "</image>", ""]))

    def forget(self) -> None:
        self._images.close()

    def close(self) -> None:
        """Write the labels, then the images."""
        labels = "".join(
            f"<label><name>{escape(name)}</name><color>{self.color(label)}</color><type>any</type></label>\n"
            for label, name in enumerate(self.space.names)
        )
        with atomic_write(self.folder / "annotations.xml") as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            file.write(f"<meta><task><labels>\n{labels}</labels></task></meta>\n")
            _append(self._images, file)
            file.write("</annotations>\n")


def _quoted(text: str) -> str:
    return quoteattr(printable(text), {"\n": "&#10;", "\t": "&#9;"})


def yolo_files(folder: Path, place: str, photo: Path | None) -> tuple[Path, Path]:
    """Return where the labels of an image lie in a data set of YOLO's, and its photo.

    Args:
        folder: The data set's, with data.yaml.
        place: Path without ending of the image's files, with `/`.
        photo: The photo's file, if it has one.
    """
    image = folder / "images" / f"{place}.png"
    return labels_beside(image), image if photo is None else image.with_suffix(photo.suffix)


class _Yolo(_Writer):
    background = True  # a region in the hole of another must be drawn over it

    def add(self, photo: _Photo, found: Sequence[Region]) -> None:
        height, width = photo.size
        text, target = yolo_files(self.folder, photo.place, photo.file)
        lines = []
        for one in found:
            shares = np.clip(one.rings[0] / (width, height), 0, 1).ravel().tolist()
            lines.append(" ".join([str(one.label), *(f"{share:.7g}" for share in shares)]))
        with atomic_write(text) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if photo.file is None or (target.exists() and target.samefile(photo.file)):
            return  # a photo that lies there already would be replaced by a link to itself
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.symlink_to(os.path.realpath(photo.file))
        except (OSError, NotImplementedError):
            with atomic_write(target) as temporary:
                shutil.copyfile(photo.file, temporary)

    def close(self) -> None:
        """Write the description."""
        names = "".join(
            f"  {label}: {json.dumps(name, ensure_ascii=False)}\n" for label, name in enumerate(self.space.names)
        )
        with atomic_write(self.folder / "data.yaml") as temporary:
            temporary.write_text(f"train: images\nval: images\nnames:\n{names}", encoding="utf-8")


_WRITERS: Mapping[str, type[_Writer]] = {"coco": _Coco, "labelme": _Labelme, "cvat": _Cvat, "yolo": _Yolo}

FORMATS = tuple(_WRITERS)
"""Formats that can be written."""
