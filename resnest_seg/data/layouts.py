"""Which mask belongs to which photo: patterns of file names, and the layouts that public data sets have.

A pattern is a path below the root of a data set with `*` and `?` (within a name), `**/` (any folders) and `{split}` (a
word for a split). A mask belongs to the photo whose wildcards match the same text. All else, such as `[1]`, is literal.
"""

from __future__ import annotations

import dataclasses
import itertools
import posixpath
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import PurePosixPath

from resnest_seg.errors import ConfigError, DatasetError, command, printable
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_mask
from resnest_seg.storage.sources import Source

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
"""Suffixes of mask files; GIF holds a palette without loss."""

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
"""Suffixes of photos; arrays are read with `data.bands`."""

SPLIT_WORDS = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val",
               "testing": "test", "test": "test"}  # fmt: skip
"""Word that `{split}` matches, in lower case -> split."""

_WORD = f"(?i:{'|'.join(SPLIT_WORDS)})"
_ALONE = re.compile(rf"(?<![^\W_]){_WORD}(?![^\W_])")
_TOKENS = re.compile(r"(\*\*/|\*|\?|\{split\})")
_MASK_WORDS = re.compile(r"(?i)mask|label|lbl|annot|ann(?![a-z])|gt(?![a-z])|gtf|seg|semantic|manual|trimap|truth|_L\b")
_PHOTO_WORDS = re.compile(r"(?i)image|img|rgb|photo|raw|still|(?<![a-z])sat(?![a-z])|jpeg|jpg|left")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places of photos and masks.

    Attributes:
        title: Its name in words.
        images: Pattern of the photos, or their folder.
        masks: Pattern of the masks, or their folder.
        base: Folder below the root that the patterns begin in: "" or "top/".
    """

    title: str
    images: str
    masks: str
    base: str = ""

    def options(self) -> str:
        """The two options that say the same."""
        return " ".join(f"--data.{key} {shlex.quote(printable(self.base + text))}"
                        for key, text in (("images", self.images), ("masks", self.masks)))  # fmt: skip


LAYOUTS = (
    Layout("images and masks", "images", "masks"),
    Layout("images and labels", "images", "labels"),
    Layout("images and annotations", "images", "annotations"),
    Layout("Oxford-IIIT pets", "images", "annotations/trimaps"),
    Layout("Pascal VOC", "JPEGImages", "SegmentationClass"),
    Layout("mmsegmentation", "img_dir", "ann_dir"),
    Layout("images and masks by split", "{split}/images", "{split}/masks"),
    Layout("images and labels by split", "{split}/images", "{split}/labels"),
    Layout("Mapillary Vistas 1.2", "{split}/images", "{split}/v1.2/labels"),
    Layout("KITTI semantics", "{split}/image_2", "{split}/semantic"),
    Layout("LoveDA", "{split}/**/images_png/*", "{split}/**/masks_png/*"),
    Layout("SegNet's CamVid", "{split}", "{split}annot"),
    Layout("Indian Driving Dataset Lite", "leftImg8bit/{split}/**/*_image", "gtFine/{split}/**/*_label"),
    Layout("Cityscapes", "leftImg8bit/{split}/**/*_leftImg8bit", "gtFine/{split}/**/*_gtFine_labelIds"),
)
"""Layouts that are recognised by their folders."""

SUFFIXES = ("_mask", "_label", "_gt")
"""Endings of mask names, before the suffix, that are recognised in folders of their own and beside the photos."""


class Pattern:
    """A compiled pattern.

    Args:
        text: The pattern; without a suffix of images at its end it accepts all of `suffixes`.
        base: Folder that it begins in, "" or "top/".
        suffixes: Suffixes that a file may have where the pattern names none.
    """

    def __init__(self, text: str, *, base: str = "", suffixes: Sequence[str] = PHOTO_SUFFIXES) -> None:
        self.text, self.base = text, unicodedata.normalize("NFC", base)
        low = text.lower()
        self.suffix = next((text[-len(end) :] for end in suffixes if low.endswith(end)), "")
        body = unicodedata.normalize("NFC", text.removesuffix(self.suffix or ".*"))
        self.tokens = [token for token in _TOKENS.split(body) if token]
        self.wildcards = sum(token in ("**/", "*", "?") for token in self.tokens)
        self.splits = "{split}" in self.tokens
        self.literals = sum(len(token) for token in self.tokens if not _TOKENS.fullmatch(token))
        ending = re.escape(self.suffix) if self.suffix else f"(?:{'|'.join(re.escape(end) for end in suffixes)})"
        self._regex = re.compile(f"{re.escape(self.base)}{self._body()}(?i:{ending})", re.DOTALL)
        first = self.tokens[0] if self.tokens else ""
        self._begins = self.base + ("" if _TOKENS.fullmatch(first) else first)

    def _body(self) -> str:
        said, parts = False, []
        for token in self.tokens:
            if token == "{split}":
                parts.append("(?P=split)" if said else f"(?P<split>{_WORD})")
                said = True
            else:
                named = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
                parts.append(named.get(token, re.escape(token)))
        return "".join(parts)

    def match(self, name: str) -> tuple[tuple[str, ...], str | None] | None:
        """The texts of the wildcards and the word of the split, if the pattern has one; None if a name does not fit."""
        name = unicodedata.normalize("NFC", name)  # macOS decomposes accents
        if not name.startswith(self._begins):
            return None
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        word = found.group("split") if self.splits else None
        place = self._regex.groupindex.get("split", 0)
        texts = (text.rstrip("/") for number, text in enumerate(found.groups(), 1) if number != place)
        return tuple(texts), word

    def fill(self, texts: Sequence[str], word: str | None) -> str:
        """The name that fits these texts and this word; a PNG where the suffix is open."""
        rest, parts = iter(texts), []
        for token in self.tokens:
            if token in ("*", "?"):
                parts.append(next(rest))
            elif token == "**/":
                text = next(rest)
                parts.append(f"{text}/" if text else "")
            else:
                parts.append((word or "train") if token == "{split}" else token)
        return f"{self.base}{''.join(parts)}{self.suffix or '.png'}"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo and its mask.

    Attributes:
        name: The texts of its wildcards, joined by `/`: what list files name, and what the hash split depends on.
        split: "train", "val" or "test" where the pattern has `{split}`, else None.
        image: Its file.
        mask: The file of its mask, None if there is none.
        wanted: The file in which its mask is expected.
    """

    name: str
    split: str | None
    image: str
    mask: str | None
    wanted: str


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The photos that a layout finds, and the masks that belong to none.

    Attributes:
        layout: The layout, with `{split}` where folders of splits were found below a plain folder.
        photos: Sorted by split and name.
        orphans: Masks without a photo, with the split that their pattern names, if it does.
        masks: Number of masks.
    """

    layout: Layout
    photos: tuple[Photo, ...]
    orphans: tuple[tuple[str | None, str], ...]
    masks: int

    @property
    def pairs(self) -> int:
        """Number of photos with a mask."""
        return sum(photo.mask is not None for photo in self.photos)

    @property
    def splits(self) -> list[str]:
        """The splits of the photos with folders or names of splits, in order; empty if there are none."""
        found = {photo.split for photo in self.photos}
        return [split for split in ("train", "val", "test") if split in found]


def visible(names: Iterable[str]) -> list[str]:
    """The images among files, without hidden ones and those of macOS's archives (`__MACOSX`)."""
    shown = (name for name in names if name.lower().endswith((*MASK_SUFFIXES, *PHOTO_SUFFIXES)))
    return [name for name in shown if not any(part.startswith((".", "__")) for part in name.split("/"))]


def given(images: str | None, masks: str | None) -> Layout | None:
    """The layout of the keys data.images and data.masks; None if neither is given.

    Raises:
        ConfigError: Only one of them is given, a pattern is not a path below data.root, or they do not fit together.
    """
    if images is None and masks is None:
        return None
    if images is None or masks is None:
        missing, other = ("data.images", masks) if images is None else ("data.masks", images)
        raise ConfigError(
            f"{missing} is missing: with '{printable(str(other))}' in its partner both patterns are needed, such as "
            '--data.images "photos/*.jpg" --data.masks "labels/*_mask.png".'
        )
    layout = Layout("the patterns given", _clean(images, "data.images"), _clean(masks, "data.masks"))
    photos, labels = patterns(layout)
    if photos.wildcards != labels.wildcards:
        raise ConfigError(
            f"data.images '{printable(images)}' has {photos.wildcards} wildcards and data.masks '{printable(masks)}' "
            f"has {labels.wildcards} (** / counts as one; a plain folder stands for FOLDER/**/*): a mask belongs to "
            "the photo whose wildcards match the same text, so both need as many.".replace("** /", "**/")
        )
    if labels.splits and not photos.splits:
        raise ConfigError(
            f"data.masks '{printable(masks)}' has {{split}}, and data.images '{printable(images)}' has not: put "
            "{split} where the path of the photos names the split, or write the folder itself."
        )
    if (photos.text, photos.suffix) == (labels.text, labels.suffix):
        raise ConfigError(
            f"data.images and data.masks are the same pattern '{printable(images)}': masks need their own."
        )
    return layout


def _clean(text: str, key: str) -> str:
    """A pattern without `./` and a closing `/`."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts or not parts:
        raise ConfigError(
            f"{key} must be a path below data.root, such as photos or \"photos/**/*.jpg\", not '{printable(text)}'. "
            "Set --data.root to a folder that holds photos and masks."
        )
    if any("**" in part and part != "**" for part in parts):
        raise ConfigError(
            f"{key} '{printable(text)}': ** stands for whole folders: write folder/**/name, or * for a name."
        )
    return "/".join([*parts, "*"] if parts[-1] == "**" else parts)


def patterns(layout: Layout) -> tuple[Pattern, Pattern]:
    """Compile a layout's patterns; a plain folder stands for all images in it and below."""
    plain = [_is_folder(text) for text in (layout.images, layout.masks)]
    images, masks = (
        Pattern(f"{text}/**/*" if folder else text, base=layout.base, suffixes=suffixes)
        for text, folder, suffixes in zip(
            (layout.images, layout.masks), plain, (PHOTO_SUFFIXES, MASK_SUFFIXES), strict=True
        )
    )
    if plain[0] and not plain[1] and masks.wildcards == 1:
        images = Pattern(f"{layout.images}/*", base=layout.base)
    if plain[1] and not plain[0] and images.wildcards == 1:
        masks = Pattern(f"{layout.masks}/*", base=layout.base, suffixes=MASK_SUFFIXES)
    return images, masks


def _is_folder(text: str) -> bool:
    return not re.search(r"[*?]", text) and not text.lower().endswith((*MASK_SUFFIXES, *PHOTO_SUFFIXES))


def pair(names: Sequence[str], layout: Layout) -> Pairing:
    """Find photos and masks, and pair them.

    Args:
        names: The `visible` files.
        layout: Their layout.

    Raises:
        DatasetError: Photos are beside the folders of the splits, or two files match the same wildcards.
    """
    layout = _with_splits(names, layout)
    images, masks = patterns(layout)
    photos: dict[tuple[str | None, tuple[str, ...]], tuple[str, str | None]] = {}
    labels: dict[tuple[str | None, tuple[str, ...]], str] = {}
    for name in names:
        photo, mask = images.match(name), masks.match(name)
        if photo is not None and mask is not None:  # the more specific pattern has it
            photo, mask = (photo, None) if images.literals > masks.literals else (None, mask)
        if photo is not None:
            key = (SPLIT_WORDS[photo[1].lower()] if photo[1] else None, photo[0])
            _once(photos[key][0] if key in photos else None, name)
            photos[key] = (name, photo[1])
        elif mask is not None:
            key = (SPLIT_WORDS[mask[1].lower()] if mask[1] else None, mask[0])
            _once(labels.get(key), name)
            labels[key] = name
    found, used = [], set[str]()
    for (split, texts), (name, word) in photos.items():
        own = labels.get((split if masks.splits else None, texts))
        used |= {own} if own is not None else set()
        title = "/".join(text for text in texts if text) or PurePosixPath(name).stem
        found.append(Photo(title, split, name, own, masks.fill(texts, word)))
    found.sort(key=lambda photo: (photo.split or "", photo.name))
    orphans = sorted(
        ((split, name) for (split, _), name in labels.items() if name not in used), key=lambda pair: pair[1]
    )
    return Pairing(layout, tuple(found), tuple(orphans), len(labels))


def pair_below(names: Sequence[str], layout: Layout) -> Pairing:
    """Pair as `pair` does, below the root or else below the folder that holds everything, as in many zip files."""
    for base in _bases(names):
        found = pair(names, dataclasses.replace(layout, base=base))
        if found.photos:
            return found
    return pair(names, layout)


def _once(first: str | None, second: str) -> None:
    """Raise `DatasetError` if two files match the same wildcards."""
    if first is None:
        return
    one, two = printable(first), printable(second)
    if PurePosixPath(first).with_suffix("") == PurePosixPath(second).with_suffix(""):
        raise DatasetError(f"{one} and {two} have the same name except for the suffix.")
    raise DatasetError(f"{one} and {two} match the same wildcards: which belongs to the other file is ambiguous.")


def _with_splits(names: Sequence[str], layout: Layout) -> Layout:
    """Put `{split}` behind plain folders that hold folders train, val and test.

    Raises:
        DatasetError: There are photos beside these folders.
    """
    if not _is_folder(layout.images) or "{split}" in layout.images:
        return layout
    top = f"{layout.base}{layout.images}/"
    inner = [name for name in names if name.startswith(top)]
    words = {
        name: SPLIT_WORDS.get(name[len(top) :].partition("/")[0].lower()) for name in inner if "/" in name[len(top) :]
    }
    if "train" not in words.values():
        return layout
    outside = [name for name in inner if words.get(name) is None and name.lower().endswith(PHOTO_SUFFIXES)]
    if outside:
        raise DatasetError(
            f"{len(outside)} photos are beside the folders train, val and test and would not be used, the first is "
            f"{printable(outside[0])}. Move them into one of these folders, or remove them."
        )
    below = f"{layout.base}{layout.masks}/"
    split = _is_folder(layout.masks) and any(
        name.startswith(below) and name[len(below) :].partition("/")[0].lower() in SPLIT_WORDS for name in names
    )
    masks = f"{layout.masks}/{{split}}" if split else layout.masks
    return dataclasses.replace(layout, images=f"{layout.images}/{{split}}", masks=masks)


def recognise(names: Sequence[str]) -> Pairing | None:
    """Recognise the layout of `visible` files; None if no layout pairs any of them.

    Raises:
        DatasetError: Several layouts pair photos and masks, or the only one does so ambiguously.
    """
    for base in _bases(names):
        for rows in _tiers(names, base):
            fits = _distinct([pairing for row in rows if _trains(pairing := pair(names, row))])
            if len(fits) > 1:
                lines = "".join(
                    f"\n    {fit.layout.options()}  # {fit.layout.title}: {fit.pairs} pairs" for fit in fits
                )
                raise DatasetError(f"{len(fits)} layouts fit these files: say which is meant.{lines}")
            if fits:
                return fits[0]
    return None


def _trains(pairing: Pairing) -> bool:
    """True if there are pairs for training."""
    return any(photo.mask is not None and photo.split in (None, "train") for photo in pairing.photos)


def _bases(names: Sequence[str]) -> list[str]:
    """The root, and the folders that hold everything: "", "VOCdevkit/", "VOCdevkit/VOC2012/"."""
    if not names:
        return []
    shared = posixpath.commonpath([posixpath.dirname(min(names)), posixpath.dirname(max(names))])
    parts = shared.split("/") if shared else []
    return ["", *("/".join(parts[:depth]) + "/" for depth in range(1, len(parts) + 1))]


def _tiers(names: Sequence[str], base: str) -> Iterator[list[Layout]]:
    """Layouts whose folders exist: first masks of the photos' names, then names with an ending, then one folder."""
    folders = {"/".join(name[len(base) :].split("/")[:depth]) for name in names if name.startswith(base)
               for depth in range(1, name.count("/") + 1)}  # fmt: skip
    tops = {folder.partition("/")[0].lower() for folder in folders}
    split = bool(tops & set(SPLIT_WORDS))
    rows = [
        dataclasses.replace(row, base=base)
        for row in LAYOUTS
        if all(split if text.startswith("{split}") else _head(text) in folders for text in (row.images, row.masks))
    ]
    yield rows
    plain = [_with_splits(names, row) for row in rows if _is_folder(row.images)]
    yield [
        dataclasses.replace(
            row, title=f"{row.title}, ending {end}", images=f"{row.images}/**/*", masks=f"{row.masks}/**/*{end}"
        )
        for row in plain
        for end in SUFFIXES
    ]
    endings = [end for end in SUFFIXES if any(f"{end}." in name for name in names)]
    yield [
        Layout(f"masks beside photos, ending {end}", text, f"{text}{end}", base)
        for text in (["{split}/**/*", "**/*"] if split else ["**/*"])
        for end in endings
    ]


def _head(text: str) -> str:
    """The folder before the first wildcard of a pattern."""
    head = re.split(r"[*?{]", text)[0]
    return head.rpartition("/")[0] if head != text else text


def _distinct(fits: Sequence[Pairing]) -> list[Pairing]:
    """Pairings without those whose pairs are all in another one."""
    sets = [{(photo.image, photo.mask) for photo in fit.photos if photo.mask is not None} for fit in fits]
    return [
        fit
        for index, fit in enumerate(fits)
        if not any(sets[index] < other or (sets[index] == other and place < index) for place, other in enumerate(sets))
    ]


def suggest(names: Sequence[str], *, count: int = 3) -> list[Pairing]:
    """Find the patterns that pair most files: by common parts of names and folders.

    Args:
        names: The `visible` files.
        count: Number of pairings, at most.

    Returns:
        Pairings, the best first; none if no two files share a part of their names.
    """
    votes = Counter[Layout]()
    for first, second in _neighbours(names):
        for layout in set(_generalised(first, second)):
            votes[layout] += 1
    scored: dict[Layout, tuple[tuple[int, ...], Pairing]] = {}
    for layout, _ in votes.most_common(40):
        try:
            pairing = pair(names, layout)
            narrow = pair(names, _concrete(pairing))
        except (DatasetError, ConfigError):  # ambiguous: no suggestion
            continue
        places = [{SPLIT_WORDS[word.lower()] for word in _ALONE.findall(text)} for text in
                  (narrow.layout.images, narrow.layout.masks)]  # fmt: skip
        if narrow.pairs and not (all(places) and places[0] != places[1]):  # photos of test and masks of train
            roles = _role(narrow.layout.masks) - _role(narrow.layout.images)
            wild = sum(pattern.wildcards + pattern.splits for pattern in patterns(narrow.layout))
            missing = len(narrow.photos) - narrow.pairs + len(narrow.orphans)
            key = (narrow.pairs * (2 if roles > 0 else 1 if roles == 0 else 0), roles, -missing, -wild)
            scored.setdefault(narrow.layout, (key, narrow))
    ranked = sorted(scored.values(), key=lambda item: item[0], reverse=True)
    return [pairing for key, pairing in ranked if key[0] * 2 >= ranked[0][0][0] and key[0]][:count]


def explained(source: Source, names: Sequence[str], root: str, pairing: Pairing | None) -> str:
    """Show some photos and masks that do not pair, and the command with the patterns that pair most of them.

    Args:
        source: The storage.
        names: The `visible` files in it.
        root: The root of the data set, for the command.
        pairing: What the patterns found, if there are any.
    """
    best = suggest(names)
    photos = [photo.image for photo in pairing.photos if photo.mask is None] if pairing else []
    masks = [name for _, name in pairing.orphans] if pairing else []
    if best and not (photos and masks):
        photos = [photo.image for photo in best[0].photos if photo.mask is not None]
        masks = [photo.mask for photo in best[0].photos if photo.mask is not None]
    shown = [f"{what}: {', '.join(printable(name) for name in some[:3])}" for what, some in
             (("photos", photos), ("masks", masks), ("files", [] if photos or masks else names)) if some]  # fmt: skip
    lines = ["".join(f"\n  {line}" for line in shown)]
    if not best:
        lines.append(
            "\nNo two of them share a part of their names. Masks are found by patterns with equal wildcards, such as "
            '--data.images "photos/*.jpg" --data.masks "labels/*_mask.png".'
        )
    for number, found in enumerate(best):
        count = f"{found.pairs} of {len(found.photos)} photos"
        lines.append(f"\n{'or' if number else 'This would pair'} {count}:\n    {command('check')} --dataset folder ")
        lines.append(f"--data.root {shlex.quote(printable(root))} {found.layout.options()}")
    if best and _is_painted(source, next(photo.mask for photo in best[0].photos if photo.mask is not None)):
        lines.append("\nThe masks are RGB pictures: the same command with --write-classes lists their colours.")
    return "".join(lines)


def _is_painted(source: Source, mask: str) -> bool:
    """True if a mask holds colours."""
    try:
        return decode_mask(source.read(mask), mask).ndim == 3
    except DatasetError:
        return False


def _role(text: str) -> int:
    """How much a pattern's words say masks (above 0) or photos (below)."""
    return len(_MASK_WORDS.findall(text)) - len(_PHOTO_WORDS.findall(text))


def _neighbours(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of files with parts of their names in common, the second one no JPEG."""
    parts: dict[str, set[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        tokens = re.findall(r"[^\W\d_]+|\d+", PurePosixPath(file).stem)
        parts[name] = {
            *tokens,
            *(f"{folder}/{token}" for folder in folders for token in tokens),
        }  # frames of many videos
    by_part: dict[str, list[str]] = {}
    for name, words in parts.items():
        for word in words:
            by_part.setdefault(word, []).append(name)
    step = max(len(names) // 40, 1)
    for name in names[::step]:
        near = Counter[str]()
        for word in parts[name]:
            others = by_part[word]
            for other in others if len(others) <= 400 else ():
                near[other] += 1000 // len(others)
        folders = name.split("/")[:-1]
        ranked = sorted(near, key=lambda other: (-near[other], -len(set(folders) & set(other.split("/")))))
        for other in [other for other in ranked if other != name][:12]:
            for first, second in ((name, other), (other, name)):
                if not second.lower().endswith((".jpg", ".jpeg")) and first.lower().endswith(PHOTO_SUFFIXES):
                    yield first, second


def _generalised(first: str, second: str) -> Iterator[Layout]:
    """The patterns that match a photo and a mask by the same texts."""
    one, two = PurePosixPath(first), PurePosixPath(second)
    dirs = [list(path.parts[:-1]) for path in (one, two)]
    for block in SequenceMatcher(None, dirs[0], dirs[1], autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            dirs[0][block.a + offset] = dirs[1][block.b + offset] = f"\0{dirs[0][block.a + offset]}"
    word = next((part[1:] for part in dirs[0] if part[:1] == "\0" and part[1:].lower() in SPLIT_WORDS), None)
    if word is None:  # such as train_images and train_masks
        found = _ALONE.search("/".join(dirs[0]))
        word = found.group() if found and all(found.group() in "/".join(parts) for parts in dirs) else None

    def folder(parts: list[str]) -> str:
        texts = ("{split}" if part[1:] == word else "*" if part[:1] == "\0" else _worded(part, word) for part in parts)
        return "".join(f"{text}/" for text in texts)

    for core in _cores(one.stem, two.stem):
        names = []
        for path, parts in ((one, dirs[0]), (two, dirs[1])):
            before, _, after = path.stem.partition(core)
            names.append(f"{folder(parts)}{_worded(before, word)}*{_worded(after, word)}{path.suffix}")
        yield Layout("suggested", names[0], names[1])


def _worded(text: str, word: str | None) -> str:
    """A literal text with the split's word as `{split}`."""
    return text if word is None else re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "{split}", text)


def _cores(one: str, two: str) -> set[str]:
    """Texts that both names hold and that may be the name of the scene."""
    block = SequenceMatcher(None, one, two, autojunk=False).find_longest_match()
    longest = one[block.a : block.a + block.size]
    ahead = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    behind = "".join(
        a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], two[::-1], strict=False))
    )[::-1]
    texts = {longest.strip("_-. "), ahead.rstrip("_-. "), behind.lstrip("_-. ")}
    return {text for text in texts if text}


def _concrete(pairing: Pairing) -> Layout:
    """Replace wildcards of folders, and `{split}`, by their text where all pairs have the same."""
    images, masks = patterns(pairing.layout)
    rows = []
    for photo in pairing.photos:
        found = images.match(photo.image) if photo.mask is not None else None
        rows += [found] if found is not None else []
    if not rows:
        return pairing.layout
    same = [len({texts[index] for texts, _ in rows}) == 1 for index in range(images.wildcards)]
    same[-1] = False  # the name
    words = {word for _, word in rows}

    def text(pattern: Pattern) -> str:
        number, parts = 0, []
        for token in pattern.tokens:
            if token == "{split}" and len(words) == 1:
                parts.append(next(iter(words)) or "")
            elif token == "*":
                parts.append(rows[0][0][number] if same[number] else token)
                number += 1
            else:
                parts.append(token)
        return "".join(parts) + pattern.suffix

    return dataclasses.replace(pairing.layout, images=text(images), masks=text(masks))
