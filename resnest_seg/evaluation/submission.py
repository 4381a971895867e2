"""Submission files for the servers of Cityscapes and ADE20K: a zip file of PNGs, validated before it gets its name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.files import atomic_write, check_output_file
from resnest_seg.labels import LabelSpace


def cityscapes_name(photo: str) -> str:
    """Return Cityscapes' name of a prediction: city, sequence and frame of the photo, then _pred_labelIds.png.

    Raises:
        DatasetError: The photo's name does not end with _leftImg8bit.png.
    """
    if not photo.endswith("_leftImg8bit.png"):
        raise DatasetError(f"{photo} cannot be submitted to Cityscapes: its name does not end with _leftImg8bit.png.")
    return f"{PurePosixPath(photo).name.removesuffix('_leftImg8bit.png')}_pred_labelIds.png"


def ade20k_name(photo: str) -> str:
    """Return ADE20K's name of a prediction: the photo's with the suffix .png."""
    return f"{PurePosixPath(photo).stem}.png"


NAMES: dict[str, Callable[[str], str]] = {"cityscapes": cityscapes_name, "ade20k": ade20k_name}
"""Data set -> function from a photo's name to the name in the zip. Pixels are raw ids: the 34 label ids of Cityscapes,
1..150 of ADE20K."""


class Submission:
    """A context manager that collects predictions in a zip file, validates it on exit and then gives it its name.

    Args:
        path: The zip file.
        label_space: The classes; its name selects the server.
        photos: All photos of the split; each needs a prediction.
        overwrite: Replace the file if it exists.

    Raises:
        ConfigError: There is no server for this data set or for its classes as another task, or the file exists.
        DatasetError: Two photos would get the same name, or a name is invalid in zip files.
    """

    def __init__(
        self, path: str | Path, label_space: LabelSpace, photos: Sequence[str], *, overwrite: bool = False
    ) -> None:
        if label_space.name not in NAMES:
            raise unknown_name("submission format: data set", label_space.name, NAMES)
        if label_space.task != "multiclass":  # a view keeps the data set's name, and 0 and 1 are ids of classes too
            raise ConfigError(
                f"the server of {label_space.name} takes one of its classes a pixel, and this model is "
                f"{label_space.task}: leave --submission out, or name a model of all classes."
            )
        self.path, self.label_space = Path(path), label_space
        check_output_file(self.path, what="submission", overwrite=overwrite, option="--submission")
        self.expected: set[str] = set()
        for photo in photos:
            name = self._name(photo)
            if name in self.expected:
                raise DatasetError(f"two photos would both be submitted as {name}, the second is {photo}.")
            self.expected.add(name)
        self.sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Submission:
        self._writing = atomic_write(self.path)
        self._temporary = self._writing.__enter__()
        self._zip = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED)  # PNGs are compressed already
        return self

    def _name(self, photo: str) -> str:
        name = NAMES[self.label_space.name](photo)
        if printable(name) != name or any(letter in name for letter in ":\\\n\t"):
            raise DatasetError(
                f"{photo} cannot be submitted: its name is not safe in a zip file (bytes that are not UTF-8, control "
                "characters, colons, backslashes). Rename it."
            )
        return name

    def add(self, photo: str, labels: NDArray[np.uint8], *, size: tuple[int, int]) -> None:
        """Add the prediction of a photo.

        Args:
            photo: The photo's path or name.
            labels: Train ids 0..K-1 at the photo's size, [H, W].
            size: The photo's (H, W).
        """
        name = self._name(photo)
        if name in self.sizes:
            raise DatasetError(f"two photos would both be submitted as {name}, the second is {photo}.")
        buffer = io.BytesIO()
        Image.fromarray(self.label_space.decode(labels)).save(buffer, "PNG")
        self._zip.writestr(name, buffer.getvalue())
        self.sizes[name] = size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._zip.close()
            if kind is None:
                lacking = sorted(self.expected - set(self.sizes))
                _require(not lacking, f"{len(lacking)} of {len(self.expected)} photos are missing, first {lacking[:1]}")
                validate(self._temporary, self.label_space, self.sizes)
        except BaseException as problem:
            self._writing.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._writing.__exit__(kind, error, trace)


def validate(path: Path, label_space: LabelSpace, sizes: dict[str, tuple[int, int]]) -> None:
    """Validate a submission as a server would.

    Args:
        path: The zip file.
        label_space: The classes.
        sizes: Expected names and their (H, W).

    Raises:
        DatasetError: A file is missing, unexpected, or of another size or type, or has an id that is not a class.
    """
    allowed = np.zeros(256, bool)
    allowed[list(label_space.raw_ids)] = True
    with zipfile.ZipFile(path) as content:
        names = content.namelist()
        _require(sorted(names) == sorted(sizes), "it does not have one file for each photo")
        _require(bool(names), "it is empty")
        for name in names:
            with Image.open(io.BytesIO(content.read(name))) as picture:
                ids = np.array(picture)
                _require(picture.mode == "L" and picture.format == "PNG", f"{name} is not an 8-bit greyscale PNG")
            _require(ids.shape == sizes[name], f"{name} is {ids.shape}, its photo {sizes[name]} (height, width)")
            strangers = np.unique(ids[~allowed[ids]])
            _require(not len(strangers), f"{name} has ids that are not classes: {_listed(strangers)}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DatasetError(f"the submission is not valid: {otherwise}.")


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in list(values)[:8])
