"""From any format to the one layout: images/, masks/, classes.csv, and a report of what was decided on the way.

A data set is written all or nothing: into a hidden folder beside the output, which is renamed at the end. If the
process is stopped in between, the same call goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations import (
    coco,
    cvat,
    geo,
    label_studio,
    labelme,
    supervisely,
    tables,
    voc,
    yolo,
)
from resnest_seg.annotations.objects import (
    BACKGROUND_NAMES,
    IGNORE_NAMES,
    AnnotatedImage,
    AnnotatedSet,
    ReadOptions,
)
from resnest_seg.annotations.raster import IGNORED_CLASS, Facts, Rules, draw_labels
from resnest_seg.annotations.reading import SPLITS as SPLIT_WORDS
from resnest_seg.annotations.reading import forget, json_files, read_json, shown, shown_size
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.files import FULL, atomic_write, check_output_folder, check_outside, result_places
from resnest_seg.io.images import IMAGE_SUFFIXES, MOST_PIXELS, PalettePng
from resnest_seg.labels import IGNORE_LABEL, MAX_LABELS, MULTILABEL_IGNORE, LabelSpace

READERS: Mapping[str, Callable[[Path, ReadOptions], AnnotatedSet]] = {
    "coco": coco.read,
    "coco-panoptic": coco.read_panoptic,
    "yolo": yolo.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "label-studio": label_studio.read,
    "supervisely": supervisely.read,
    "voc": voc.read,
    "datasets": tables.read,
    "geo": geo.read,
}
"""Format -> its reader."""

CHOICES = {
    "photos_as": ("link", "copy"),
    "crowd": ("ignore", "class", "background"),
    "overlap": ("tool", "ignore", "multilabel"),
    "unlabelled": ("background", "ignore"),
}
"""Option of `import_labels` -> its values."""

REPORT = "import_report.json"

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """Report of an import: counts, and the rules that were applied.

    Attributes:
        format: The format, as recognised or given.
        classes: Class names in the order of their ids.
        images: Images by split; "" for those without one.
        objects: Drawn objects by class; with crowds, if they are drawn as their class.
        pixels: Pixels by class, "ignored" for those that are not trained on; of bits, a pixel counts for each label.
        images_without_objects: Images without an object or a crowd that is drawn.
        overlapping_pixels: Pixels of two or more objects.
        conflicting_pixels: Those of them whose objects are of different classes.
        crowds: Regions that stand for many objects.
        clipped: Objects that lie partly outside of their photo, by more than half a pixel.
        dropped: Reason -> objects that were not drawn for it.
        left_out: Reason -> images that were left out for it.
        rules: The options that decided.
        ignored_objects: Class whose name means ignored pixels, such as void -> its objects.
    """

    format: str
    classes: list[str]
    images: dict[str, int]
    objects: dict[str, int]
    pixels: dict[str, int]
    images_without_objects: int
    overlapping_pixels: int
    conflicting_pixels: int
    crowds: int
    clipped: int
    dropped: dict[str, int]
    left_out: dict[str, int]
    rules: dict[str, Any]
    ignored_objects: dict[str, int] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report in sentences."""
        splits = ", ".join(f"{count} {split}" if split else str(count) for split, count in self.images.items())
        found = [
            f"{self.format}: {splits} images, {sum(self.objects.values())} objects of {len(self.classes)} classes."
        ]
        if self.conflicting_pixels:
            share = f" ({100 * self.conflicting_pixels / max(sum(self.pixels.values()), 1):.2g} %)"
            if self.rules["overlap"] == "multilabel":  # whose pixels count for each of their labels
                share = ""
            rule = {
                "tool": "the order of the tool decides",
                "ignore": "they are ignored",
                "multilabel": "all labels are kept",
            }
            found.append(
                f"{self.conflicting_pixels} pixels{share} belong to objects of several classes: "
                f"{rule[str(self.rules['overlap'])]} (--overlap)."
            )
        if self.crowds:
            found.append(f"{self.crowds} crowd regions are treated by --crowd {self.rules['crowd']}.")
        if self.images_without_objects:
            found.append(
                f"{self.images_without_objects} images have no object: all {self.rules['unlabelled']} (--unlabelled)."
            )
        if self.clipped:
            found.append(f"{self.clipped} objects reach beyond their photo and were cut.")
        found += [
            f"{count} objects of the class {name!r} are ignored pixels: to make it a class, list it in --classes FILE."
            for name, count in self.ignored_objects.items()
        ]
        found += [f"{count} objects were not drawn: {reason}." for reason, count in self.dropped.items()]
        found += [f"{count} {reason} were left out." for reason, count in self.left_out.items()]
        return found


def recognise(source: Path) -> str:
    """Return the format of a file or folder by its content.

    Raises:
        DatasetError: There is nothing, or it is none of the formats; the message says what would be one.
    """
    name = printable(str(source))
    if source.is_dir():
        found = _of_folder(source)
    elif source.is_file():
        found = _of_file(source)
    else:
        raise DatasetError(f"there is no file or folder {name}.")
    if found is None:
        packed = source.suffix.lower() in (".zip", ".tar", ".gz", ".rar", ".7z")
        hint = (
            " Unpack it, and give the folder." if packed else " Name the file or folder itself, or say --format NAME."
        )
        raise DatasetError(f"{name} is in none of the known formats ({', '.join(READERS)}).{hint}")
    return found


def _of_file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "yolo" if yolo.is_description(path) else None
    if suffix == ".xml":
        return "cvat" if cvat.is_cvat(path) else None
    if suffix in (".parquet", ".arrow", ".jsonl", ".csv"):
        return "datasets"
    if suffix == ".gpkg":
        return "geo"
    return _of_json(path) if suffix in (".json", ".geojson") else None


def _of_json(path: Path) -> str | None:
    value = read_json(path).value
    tests = {
        "coco-panoptic": coco.is_panoptic,
        "coco": coco.is_instances,
        "labelme": labelme.is_labelme,
        "label-studio": label_studio.is_label_studio,
        "geo": geo.is_geojson,
    }
    if path.name == "meta.json" and isinstance(value, Mapping) and "classes" in value:
        return "supervisely"
    return next((name for name, test in tests.items() if test(value)), None)


def _of_folder(folder: Path) -> str | None:
    if yolo.description_in(folder) is not None:
        return "yolo"
    if (folder / "meta.json").is_file():
        return "supervisely"
    if cvat.is_cvat(folder / "annotations.xml"):
        return "cvat"
    if voc.folder_of(folder) is not None:
        return "voc"
    if tables.tables_in(folder):
        return "datasets"
    named = sorted(json_files(folder), key=lambda path: not path.name.startswith(("instances_", "_annotations.coco")))
    for path in named[:50]:
        if (found := _of_json(path)) is not None:
            return found
    return "geo" if any(folder.rglob("*.geojson")) or any(folder.rglob("*.gpkg")) else None


def import_labels(
    source: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    photos: str | Path | None = None,
    photos_as: str = "link",
    crowd: str = "ignore",
    unlabelled: str | None = None,
    overlap: str = "tool",
    splits: Sequence[str] = (),
    classes: LabelSpace | Sequence[str] | None = None,
    field: str | None = None,
    reduce_labels: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import labels of any format as a folder that `FolderDataset` reads: images/, masks/, classes.csv, a report.

    Args:
        source: The annotation file, or the folder of the data set.
        output: The folder to make; all or nothing. A call that was stopped goes on when it is repeated.
        format: One of `READERS`; None recognises it.
        photos: The folder of the photos, if they are not where the format has them.
        photos_as: "link" (symbolic links) or "copy".
        crowd: Regions that stand for many objects are "ignore"d where no object is, are their "class", or "background".
        unlabelled: Pixels without an object: "background" or "ignore"; None takes what the format means by them.
        overlap: Pixels of several objects: "tool" draws in the order of the format's own tool, "ignore" ignores them
            (torchvision's rule), "multilabel" keeps all labels, as bits of 16-bit masks, for at most 15 classes.
        splits: Import these splits only.
        classes: The classes, in the order of their ids, or a label space; None takes those of the source but for void,
            ignore and __ignore__, whose pixels are ignored.
        field: The property that holds the class (GeoJSON, GeoPackage); "" for one class.
        reduce_labels: In tables, 0 is ignored and i is class i - 1.
        on_image: Called with the number of finished images and of all.

    Raises:
        DatasetError: The source is damaged or incomplete; the message names file, object and value.
        ConfigError: An option is unknown, or has no effect in the format, or the output exists.
    """
    settings = {"photos_as": photos_as, "crowd": crowd, "overlap": overlap, "unlabelled": unlabelled}
    _check_settings(settings, splits)
    source, output, where = Path(source), Path(output), None if photos is None else Path(photos)
    if where is not None and not where.exists():
        raise ConfigError(f"there is no folder of photos {printable(str(where))}.")
    _check_output(output, [folder for folder in (source, where) if folder is not None and folder.is_dir()])
    form = format or recognise(source)
    if form not in READERS:
        raise unknown_name("format", form, READERS)
    _check_effect(form, source, field=field, reduce_labels=reduce_labels)
    try:
        found = READERS[form](source, ReadOptions(where, _numbered(classes), field, reduce_labels))
        settings["unlabelled"] = unlabelled or found.unlabelled
        rules = _rules(found, classes, unlabelled or found.unlabelled, overlap, crowd)
        images = _places(found.images, splits)
        work = _Work(output, form, found, images, rules, settings)
        asked = settings | {"field": field, "reduce_labels": reduce_labels}
        return work.run(_fingerprint(form, found, images, rules, asked), photos_as == "link", on_image)
    finally:
        forget()


def _check_settings(settings: Mapping[str, str | None], splits: Sequence[str]) -> None:
    for name, value in settings.items():
        if value is not None and value not in CHOICES[name]:
            raise unknown_name(name, value, CHOICES[name])
    for split in splits:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)


def _check_effect(form: str, source: Path, *, field: str | None, reduce_labels: bool) -> None:
    """Reject options that have no effect in the format."""
    for option, given, kind, what in (
        ("--reduce-labels", reduce_labels, "datasets", "tables"),
        ("--field", field is not None, "geo", "GeoJSON and GeoPackage"),
    ):
        if given and form != kind:
            raise ConfigError(
                f"{option} is for {what} (--format {kind}), and {printable(str(source))} is {form}: leave it out."
            )


def _numbered(classes: LabelSpace | Sequence[str] | None) -> dict[int, str | None]:
    """Return what a list of classes calls the numbers in masks; None for those that it ignores."""
    if isinstance(classes, str):
        raise ConfigError(f"classes must be a list of names or a LabelSpace, not the text {classes!r}.")
    if isinstance(classes, LabelSpace):
        return {**dict.fromkeys(classes.ignored_raw_ids), **dict(zip(classes.raw_ids, classes.names, strict=True))}
    return dict(enumerate(classes or ()))


def _check_output(output: Path, inputs: Iterable[Path]) -> None:
    check_output_folder(output.absolute().parent)
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{printable(str(output))} already exists. Choose another --output.")
    if os.path.ismount(output):
        raise ConfigError(
            f"{printable(str(output))} is a mount point, and no folder can be renamed to it: choose a folder in it, "
            f"such as {printable(str(output / 'imported'))}."
        )
    check_outside(output, inputs)


def _rules(
    found: AnnotatedSet, classes: LabelSpace | Sequence[str] | None, unlabelled: str, overlap: str, crowd: str
) -> Rules:
    """Decide the classes, and the id of every class of the source."""
    bits = overlap == "multilabel"
    listed = () if classes is None else classes.names if isinstance(classes, LabelSpace) else classes
    named = {name: name for name in found.classes if name in listed or name.lower() not in IGNORE_NAMES}
    named |= {name: "background" for name in named if name.lower() in BACKGROUND_NAMES}
    where, ignored = printable(str(found.files[0])), set[str]()
    if classes is None:
        space = _space(found, named, bits, unlabelled, where)
    else:
        space = classes if isinstance(classes, LabelSpace) else LabelSpace.numbered(len(classes), names=classes)
        ignored = {name for name, meant in named.items() if {name, meant} & set(space.ignored_names)}
        known = {*space.names, "background"} if bits else {*space.names}
        strangers = [meant for name, meant in named.items() if meant not in known and name not in ignored]
        if strangers:
            near = difflib.get_close_matches(strangers[0], space.names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DatasetError(
                f"{where} has the class {strangers[0]!r}, which the list of {len(space)} classes does not have.{hint} "
                f"All of its classes: {', '.join(map(repr, list(named)[:20]))}."
            )
        if unlabelled == "background" and not bits and "background" not in space.names:
            raise DatasetError(
                "the list of classes has no 'background' for pixels without an object: add it, or say "
                "--unlabelled ignore."
            )
        if bits:
            space = _labels_of(space)
    if bits and len(space) > MAX_LABELS:
        raise DatasetError(f"{where} has {len(space)} classes, and masks of several labels hold {MAX_LABELS} at most.")
    train_ids = {name: label for label, name in enumerate(space.names)}
    ids = dict.fromkeys(ignored) | {name: train_ids[meant] for name, meant in named.items() if meant in train_ids}
    background = train_ids.get("background", IGNORE_LABEL)
    fill = IGNORE_LABEL if unlabelled == "ignore" else background
    if bits:
        fill = MULTILABEL_IGNORE if unlabelled == "ignore" else 0
    return Rules(space, ids, fill, found.order, crowd, overlap)


def _labels_of(space: LabelSpace) -> LabelSpace:
    """The classes of a list as labels: their ids are bits, and the background is a pixel without any."""
    kept = [label for label, name in enumerate(space.names) if name != "background"]
    names, colors = tuple(space.names[label] for label in kept), tuple(space.colors[label] for label in kept)
    return LabelSpace(space.name, names, colors, tuple(range(len(kept))))


def _space(found: AnnotatedSet, named: Mapping[str, str], bits: bool, unlabelled: str, where: str) -> LabelSpace:
    names = [name for name in dict.fromkeys(named.values()) if name != "background"]
    if not bits and (unlabelled == "background" or "background" in named.values()):
        names = ["background", *names]
    if not names:
        raise DatasetError(f"{where} has no class.")
    if len(names) > 253:
        raise DatasetError(f"{where} has {len(names)} classes, and 253 are allowed: {shown(names)}.")
    given = {meant: found.classes[name] for name, meant in named.items()}
    colors = [given.get(name) or ((0, 0, 0) if name == "background" else None) for name in names]
    if None in colors or len(set(colors)) < len(colors):
        backed = names[0] == "background"
        drawn = list(LabelSpace.numbered(len(names)).colors)
        colors = [(0, 0, 0), *drawn[: len(names) - 1]] if backed else list(drawn)
    try:
        return LabelSpace.numbered(len(names), names=names, colors=[color for color in colors if color is not None],
                                   name="imported")  # fmt: skip
    except ConfigError as error:
        raise DatasetError(f"{where}: {error}") from None


def _places(images: Sequence[AnnotatedImage], splits: Sequence[str]) -> dict[Path, AnnotatedImage]:
    """Choose where each image goes: its path below images/, with the photo's suffix."""
    images = _with_splits(images, splits)
    if splits:
        images = [image for image in images if image.split in splits]
        if not images:
            raise DatasetError(f"there is no image of the split {' or '.join(splits)}.")
    photos: dict[str, AnnotatedImage] = {}
    for image in images:
        suffix = Path(image.name).suffix
        if suffix.lower() not in IMAGE_SUFFIXES:
            raise DatasetError(
                f"{image.place}: the photo {shown(image.name)} is not of a known kind: {', '.join(IMAGE_SUFFIXES)}."
            )
        if isinstance(image.photo, Path):
            twin = photos.setdefault(os.path.realpath(image.photo), image)
            if twin is not image:
                raise DatasetError(
                    f"{image.place} and {twin.place} are of the same photo, {printable(str(image.photo))}."
                )
    wanted = {str(number): "/".join([*([image.split] if image.split else []), *map(_visible, Path(image.name).parts)])
              for number, image in enumerate(images)}  # fmt: skip
    tops = {place.partition("/")[0] for place in wanted.values() if "/" in place}
    outside = [number for number, place in wanted.items() if "/" not in place or place.partition("/")[0] not in SPLITS]
    if "train" in tops and outside:
        raise DatasetError(
            f"{images[int(outside[0])].place} belongs to none of the splits train, val and test, and others do: say "
            "which ones to import, --split train val."
        )
    places = result_places(wanted, endings=(".png",))
    return {
        place.with_name(place.name + Path(images[int(number)].name).suffix): images[int(number)]
        for number, place in places.items()
    }


def _with_splits(images: Sequence[AnnotatedImage], splits: Sequence[str]) -> Sequence[AnnotatedImage]:
    """Where the format has no splits, take them from the first folder of names, if some are to be told apart."""
    found = []
    for image in images:
        first, _, rest = image.name.partition("/")
        split = SPLIT_WORDS.get(first.lower()) if rest and image.split is None else None
        found.append(image if split is None else dataclasses.replace(image, name=rest, split=split))
    return found if splits or any(image.split == "train" for image in found) else images


def _visible(part: str) -> str:
    """A name that is not taken for a hidden file."""
    return f"p{part}" if part.startswith((".", "__")) else part


def _fingerprint(
    form: str, found: AnnotatedSet, images: Mapping[Path, AnnotatedImage], rules: Rules, settings: Mapping[str, Any]
) -> str:
    """Return a hash of all that the result depends on but the photos."""
    masks = [image.mask for image in images.values() if image.mask is not None]
    files = [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in (*found.files, *masks)]
    names = [(str(place), str(image.photo) if isinstance(image.photo, Path) else "") for place, image in images.items()]
    text = json.dumps([form, files, names, rules.space.to_dict(), rules.fill, dict(settings)])
    return hashlib.sha256(text.encode()).hexdigest()


class _Work:
    """One import: where it is written, and how far it is."""

    def __init__(
        self,
        output: Path,
        form: str,
        found: AnnotatedSet,
        images: Mapping[Path, AnnotatedImage],
        rules: Rules,
        settings: dict[str, Any],
    ) -> None:
        self.output, self.form, self.found, self.images = output, form, found, images
        self.rules, self.settings = rules, settings
        place = Path(os.path.abspath(output))  # noqa: PTH100, a name is needed, whatever `..` is in it
        self.folder = place.with_name(f".{place.name}.importing")
        self.facts = Facts()

    def run(self, fingerprint: str, link: bool, on_image: Callable[[int, int], None] | None) -> ImportReport:
        """Draw what is not drawn yet, and publish the folder."""
        from filelock import FileLock, Timeout

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.folder}.lock")
        Path(lock.lock_file).touch()  # FileLock would wait for a folder to become writable
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"another import is writing {printable(str(self.output))}: wait for it.") from None
        try:
            done = self._earlier(fingerprint)
            with open(self.folder / "progress.jsonl", "a", encoding="utf-8") as log:
                for number, (place, image) in enumerate(self.images.items(), 1):
                    if str(place) not in done:
                        facts = self._one(place, image, link)
                        self.facts.add(facts)
                        log.write(json.dumps({"place": str(place), "facts": facts}) + "\n")
                        log.flush()
                    if on_image is not None:
                        on_image(number, len(self.images))
            return self._publish()
        except DatasetError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def _earlier(self, fingerprint: str) -> set[str]:
        """Return what an import that was stopped has finished; what belongs to another one is removed."""
        mark = self.folder / "fingerprint"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            if os.path.lexists(self.folder):
                shutil.rmtree(self.folder)
            self.folder.mkdir()
            with atomic_write(mark) as temporary:
                temporary.write_text(fingerprint, encoding="utf-8")
            return set()
        for path in self.folder.rglob(".*.tmp*"):  # that were being written
            path.unlink()
        done: set[str] = set()
        log = self.folder / "progress.jsonl"
        whole = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
        lines = [line for line in whole if line.endswith("\n")]
        for line in lines:
            entry = json.loads(line)
            done.add(entry["place"])
            self.facts.add(entry["facts"])
        if len(lines) < len(whole):
            with atomic_write(log) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
        return done

    def _one(self, place: Path, image: AnnotatedImage, link: bool) -> dict[str, dict[str, int]]:
        content = None if isinstance(image.photo, Path) else image.photo()
        height, width = _checked_size(image, content)
        facts = Facts()
        labels = draw_labels(image, height, width, self.rules, facts)
        self._write_mask(self.folder / "masks" / place.with_suffix(".png"), labels)
        target = self.folder / "images" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if content is not None:
            with atomic_write(target) as temporary:
                temporary.write_bytes(content)
        else:
            assert isinstance(image.photo, Path)
            _bring(image.photo, target, link)
        facts.numbers[f"images {image.split or ''}"] += 1
        return {field.name: dict(getattr(facts, field.name)) for field in dataclasses.fields(facts)}

    def _write_mask(self, path: Path, labels: NDArray[Any]) -> None:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            if self.rules.bits:
                done, data = cv2.imencode(".png", labels)
                assert done, labels.shape
                file.write(data.tobytes())
                return
            space, palette = self.rules.space, np.zeros((256, 3), np.uint8)
            palette[list(space.ignored_raw_ids or (space.ignored_raw_id,))] = _ignored_color(space)
            palette[list(space.raw_ids)] = space.colors
            height, width = labels.shape
            with PalettePng(file, height, width, palette) as picture:
                picture.write(space.decode(labels))

    def _publish(self) -> ImportReport:
        facts, space = self.facts, self.rules.space
        if not facts.objects:
            counts = dict(facts.dropped)
            if facts.numbers["crowds"]:
                counts["crowd regions, which --crowd class draws"] = facts.numbers["crowds"]
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise DatasetError(
                f"{printable(str(self.found.files[0]))}: none of the {len(self.images)} images has an object that can "
                f"be drawn{f' ({reasons})' if reasons else ''}."
            )
        images = {
            split: facts.numbers[f"images {split}"] for split in ("", *SPLITS) if facts.numbers[f"images {split}"]
        }
        report = ImportReport(
            self.form, list(space.names), images,
            {name: facts.objects[name] for name in space.names if facts.objects[name]},
            {name: facts.pixels[name] for name in (*space.names, "ignored") if facts.pixels[name]},
            facts.numbers["empty"], facts.numbers["overlapping"], facts.numbers["conflicting"], facts.numbers["crowds"],
            facts.numbers["clipped"], dict(sorted(facts.dropped.items())), dict(self.found.left_out), self.settings,
            {key.removeprefix(IGNORED_CLASS): count for key, count in sorted(facts.numbers.items())
             if key.startswith(IGNORED_CLASS)},
        )  # fmt: skip
        with atomic_write(self.folder / "classes.csv") as temporary:
            temporary.write_text(_class_list(space, self.rules.bits), encoding="utf-8")
        with atomic_write(self.folder / REPORT) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # an empty folder may stand there
            self.output.rmdir()
        try:
            self.folder.rename(self.output)
        except OSError as error:
            raise ConfigError(f"cannot rename {self.folder} to {self.output}: {error.strerror}.") from None
        for name in ("fingerprint", "progress.jsonl"):  # not before: by them, the same call goes on
            (self.output / name).unlink()
        return report


def _ignored_color(space: LabelSpace) -> tuple[int, int, int]:
    """A colour that no class has: a reader may tell classes by the palette's colours."""
    return next(color for color in [(224, 224, 192), *((value,) * 3 for value in range(255, -1, -1))]
                if color not in space.colors)  # fmt: skip


def _class_list(space: LabelSpace, bits: bool) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "id", "red", "green", "blue", "ignore"])
    rows.writerows(
        [name, raw, *color, ""] for name, raw, color in zip(space.names, space.raw_ids, space.colors, strict=True)
    )
    if not bits:
        color = _ignored_color(space)
        rows.writerows(["ignored", raw, *color, "yes"] for raw in space.ignored_raw_ids or (space.ignored_raw_id,))
    return text.getvalue()


def _checked_size(image: AnnotatedImage, content: bytes | None) -> tuple[int, int]:
    photo = content if content is not None else image.photo
    assert isinstance(photo, Path | bytes)
    name = printable(str(photo)) if isinstance(photo, Path) else f"the photo of {image.place}"
    stored, seen = shown_size(photo)
    if not min(seen):
        raise DatasetError(f"{image.place}: {name} is not an image, or a corrupt one.")
    if seen[0] * seen[1] > MOST_PIXELS:
        raise DatasetError(
            f"{name} has {seen[1]} x {seen[0]} pixels, and {MOST_PIXELS:,} are allowed: cut it into tiles."
        )
    if image.size is not None and image.size != seen:
        turned = " The photo is turned by its orientation tag (EXIF): remove the tag, or turn the pixels." if (
            image.size == stored) else ""  # fmt: skip
        raise DatasetError(
            f"{image.place}: the annotation is for {image.size[1]} x {image.size[0]} pixels (width x height), and "
            f"{name} has {seen[1]} x {seen[0]}.{turned}"
        )
    return seen


def _bring(photo: Path, target: Path, link: bool) -> None:
    """Link or copy a photo; where links are not possible, it is copied."""
    if link:
        try:
            target.symlink_to(os.path.realpath(photo))
            return
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
    with atomic_write(target) as temporary:
        try:
            shutil.copyfile(photo, temporary)
        except OSError as error:
            if error.filename == str(photo):
                raise DatasetError(f"cannot read {printable(str(photo))}: {error.strerror}.") from None
            raise
