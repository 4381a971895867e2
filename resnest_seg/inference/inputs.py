"""Inputs of a prediction as the user names them: files, folders, patterns, addresses, videos and cameras."""

from __future__ import annotations

import dataclasses
import errno
import glob
import http.client
import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.files import result_places
from resnest_seg.io.downloads import Pace, paced_handlers
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.storage.remote import Store, read_address
from resnest_seg.storage.retries import without_secrets

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Endings of files that are taken for videos."""

LIMIT = 256 << 20
"""Bytes that an image at an address has at most: more than a photo of 200 megapixels."""

PACE = Pace(rate=4096)
"""Minimum rate of a fetched image: more than a file that is fetched once, as others wait for it."""

_CHUNK = 1 << 20
_CAMERA = re.compile(r"(?:camera:|/dev/video)?(\d{1,3})")
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_NO_STORES = ("http", "https", "ftp", "file", "local")  # which fsspec would read, too


@dataclasses.dataclass(frozen=True)
class Input:
    """One thing to segment.

    Attributes:
        kind: What it is, and with that how it is read: an image or a video file, a camera, an image at an address.
        source: The file's path, the address, or "camera:0".
        place: Where its results go: a relative path without ending, below the output folder.
    """

    kind: Literal["image", "video", "camera", "address"]
    source: str
    place: Path

    @property
    def shown(self) -> str:
        """The source for messages: an address without passwords and signatures."""
        return without_secrets(self.source) if self.kind == "address" else self.source

    @property
    def identity(self) -> str:
        """What `result_places` knows it by: a file by any of its paths, and the place that it is meant for."""
        return f"{self.place} {os.path.realpath(self.source) if self.kind in ('image', 'video') else self.source}"


def plan(
    words: Sequence[str],
    output: str | Path,
    *,
    suffixes: Sequence[str],
    endings: Sequence[str] = (".png",),
    earlier: Sequence[Path] = (),
) -> tuple[list[Input], list[str]]:
    """Resolve the words of a command line to inputs, in their order; and describe each problem in a sentence.

    A word is, whatever fits first:

    - a file that exists: a video by its ending (`VIDEO_SUFFIXES`), an image otherwise, whatever its ending;
    - a folder: its images and videos, with those in subfolders, sorted; their places keep the subfolders. Names that
      begin with a dot and `__MACOSX` are left out, and so is the output folder where it lies inside;
    - an http or https address of an image; an address of a store, such as s3://bucket/photos: an image or a folder;
    - a camera: `0`, `camera:0` or `/dev/video0`;
    - a pattern with `*`, `?`, `[...]`, or `**` for any subfolders: the images and videos that match. Their places are
      relative to the part of the pattern before its first wildcard. The output folder is left out as above.

    The same file for the same place counts once. Places are made by `resnest_seg.files.result_places`: no two inputs
    are written to the same file. No image is opened here.

    Args:
        words: The inputs as the user gave them.
        output: The folder that results go to; it need not exist.
        suffixes: Lower-case endings of image files, with dots.
        endings: Of the files that results are written to.
        earlier: Folders with results of before, which are left out like the output folder.

    Returns:
        Inputs with different places, and the problems.
    """
    found: dict[str, Input] = {}
    problems: list[str] = []
    for word in words:
        for item in named(word, [Path(output), *earlier], suffixes, problems):
            found.setdefault(item.identity, item)
    places = result_places({key: item.place.as_posix() for key, item in found.items()}, endings=endings)
    return [dataclasses.replace(item, place=places[key]) for key, item in found.items()], problems


def named(word: str, results: Sequence[Path], suffixes: Sequence[str], problems: list[str]) -> list[Input]:
    """The inputs that one word names, see `plan`; their places may be those of other inputs, too.

    Args:
        word: The input as the user gave it.
        results: The output folder, and others that hold results.
        suffixes: Lower-case endings of image files, with dots.
        problems: Gets a sentence on each problem.
    """
    try:
        return _named(word, results, (*suffixes, *VIDEO_SUFFIXES), problems)
    except OSError as error:
        problems.append(f"cannot read {error.filename or word}: {error.strerror}.")
        return []


def _named(word: str, results: Sequence[Path], known: Sequence[str], problems: list[str]) -> list[Input]:
    """Inputs that one word names; an OSError of a file system that refuses is the caller's to report."""
    if not word.strip():
        problems.append("an input is empty: is a shell variable not set?")
        return []
    if "\0" in word:
        problems.append(f"no file or folder {word}: names hold no zero byte.")
        return []
    mode = _mode(word)
    if mode is not None and stat.S_ISDIR(mode):
        return _in_folder(Path(word), results, known, problems)
    if mode is not None and (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        return [_file(Path(word), Path(Path(word).name))]
    if address := _ADDRESS.match(word):
        if address[1].lower() not in _NO_STORES:
            return _in_store(word, known, problems)
        return _at_address(word, problems)
    if camera := _CAMERA.fullmatch(word):
        return [Input("camera", f"camera:{int(camera[1])}", Path(f"camera_{int(camera[1])}"))]
    if mode is not None:
        problems.append(f"{word} is neither a file nor a folder.")
        return []
    if glob.has_magic(word):
        return _matching(word, results, known, problems)
    problems.append(f"no file or folder {word}.")
    return []


def _mode(word: str) -> int | None:
    """File mode of a path, None if it does not exist."""
    try:
        return Path(word).stat().st_mode
    except OSError as error:
        # an address or a pattern may be longer than a name can be, and Windows knows names that cannot exist
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL):
            return None
        raise


def _file(path: Path, place: Path) -> Input:
    return Input("video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", str(path), place)


def _in_folder(folder: Path, results: Sequence[Path], known: Sequence[str], problems: list[str]) -> list[Input]:
    if folder.resolve() == results[0].resolve():
        problems.append(f"folder {folder} is the output folder too: its results would be taken for photos next time. "
                        "Choose another --output.")  # fmt: skip
        return []
    found = [
        _file(path, path.relative_to(folder))
        for path in _walk(folder, _left_out(folder, results), problems)
        if path.suffix.lower() in known
    ]
    if not found:
        problems.append(f"folder {folder} holds no image or video ({', '.join(known)}).")
    return sorted(found, key=lambda item: Path(item.source))


def _left_out(root: Path, results: Sequence[Path]) -> set[Path]:
    """The folders of results that lie inside `root`; not `root` itself, for who names his results wants them."""
    return {path.resolve() for path in results if root.resolve() in path.resolve().parents}


def _walk(folder: Path, left_out: set[Path], problems: list[str]) -> Iterator[Path]:
    """Files below a folder; links to folders are not followed, which could lead round in circles."""

    def refused(error: OSError) -> None:
        problems.append(f"cannot read folder {error.filename}: {error.strerror}.")

    for parent, folders, files in os.walk(folder, onerror=refused):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__MACOSX")) and (Path(parent) / name).resolve() not in left_out
        ]
        yield from (path for name in files if not name.startswith(".") and (path := Path(parent, name)).is_file())


def _matching(pattern: str, results: Sequence[Path], known: Sequence[str], problems: list[str]) -> list[Input]:
    parts = Path(pattern).parts
    root = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    left_out = _left_out(root, results)
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207, Path.glob takes no absolute patterns
    files = [
        path
        for path in matches
        if path.suffix.lower() in known and path.is_file() and not left_out & set(path.resolve().parents)
    ]
    if not files:
        what = f"only folders and other files, among {len(matches)}" if matches else "nothing"
        problems.append(f"pattern {pattern} matches {what}: it must match images or videos ({', '.join(known)}).")
    return [_file(path, path.relative_to(root)) for path in files]


def problem_of_address(address: str) -> str | None:
    """Say why no image can be read at an address, as far as the address shows it; None if one may be there."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError as error:  # "http://[": no address of a machine
        return f"{without_secrets(address)} is no address: {error}."
    if parts.scheme in _NO_STORES and (parts.scheme not in ("http", "https") or not parts.hostname):
        shown = without_secrets(address)
        return f"{shown} is no address of an image: http, https, or of a store such as s3://bucket/photos."
    return None


def _at_address(word: str, problems: list[str]) -> list[Input]:
    if (problem := problem_of_address(word)) is not None:
        problems.append(problem)
        return []
    address = urllib.parse.urlsplit(word)
    name = Path(urllib.parse.unquote(address.path)).name
    if Path(name).suffix.lower() in VIDEO_SUFFIXES:
        problems.append(f"{without_secrets(word)} is a video: fetch the file, then give its path.")
        return []
    # a stranger's name becomes one plain file name, wherever its slashes and dots would lead
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem).lstrip(".")[:100]
    plain = stem or re.sub(r"[^\w.-]+", "_", address.hostname or "")
    return [Input("address", word, Path(plain + (re.sub(r"[^\w.]+", "", Path(name).suffix)[:10] or ".image")))]


def _in_store(word: str, known: Sequence[str], problems: list[str]) -> list[Input]:
    """The images at an address of a store."""
    images = tuple(suffix for suffix in known if suffix not in VIDEO_SUFFIXES)
    found: list[Input] = []
    store, count = Store(word.rstrip("/")), 0
    try:
        for entry in store.entries():
            count += 1
            _, folder = store.opened()
            name = Path(entry.path).name if entry.path == folder else entry.path[len(folder) :].lstrip("/")
            if entry.path != folder and not entry.path.lower().endswith(images):
                continue
            if (entry.size or 0) > LIMIT:
                problems.append(f"{store.locate(entry.path)} has {entry.size} bytes, and an image may have {LIMIT}.")
                continue
            found.append(Input("address", store.address_of(entry.path), Path(name)))
    except DatasetError as error:
        problems.append(str(error))
        return []
    if not count:
        problems.append(f"no files at {store.shown}: is the address right?")
    elif not found:
        problems.append(f"none of the {count} files at {store.shown} is an image ({', '.join(images)}).")
    return found


def address_place(address: str) -> str:
    """Where the results of an image at an address go, if it is one of a list: by the parts of its path."""
    parts = urllib.parse.urlsplit(without_secrets(address))
    path = urllib.parse.unquote(parts.path) if parts.scheme in ("http", "https") else address.partition("://")[2]
    return (f"{parts.hostname or ''}/{path}" if parts.scheme in ("http", "https") else path).strip("/")


def photo_names(items: Sequence[Input]) -> list[str]:
    """Name the images of a plan for annotations: paths below the folder that the user named, unique, with `/`.

    They are those of the files, whatever the places of their results; where two are the same, more of their paths tells
    them apart. An image at an address whose name has no known ending, or that nothing else tells apart, has its place
    and ".png".
    """
    paths, depths = list[tuple[str, ...]](), [len(item.place.parts) for item in items]
    for item in items:
        if item.kind == "image":
            paths.append(Path(os.path.abspath(item.source)).parts[1:])  # noqa: PTH100, a name without `..` is needed
        else:
            path = PurePosixPath(address_place(item.source))
            paths.append(path.parts if path.suffix.lower() in IMAGE_SUFFIXES else ())
    while True:
        names = ["/".join(path[-depth:]) for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(names)
        twins = [at for at, name in enumerate(names) if counts[name] > 1 and depths[at] < len(paths[at])]
        if not twins:
            break
        for at in twins:
            depths[at] += 1
    return [
        name if name and counts[name] == 1 else f"{item.place.as_posix()}.png"
        for name, item in zip(names, items, strict=True)
    ]


def image_at(address: str) -> bytes:
    """Read an image's file at an address: http or https, or of a store such as s3://bucket/photo.jpg.

    Raises:
        DatasetError: It cannot be read, or is too large.
        ConfigError: The address is of another kind.
    """
    if address.partition("://")[0].lower() in _NO_STORES:
        return fetch_image(address)
    data = read_address(address)
    if len(data) > LIMIT:
        raise DatasetError(f"{without_secrets(address)} has {len(data)} bytes, and an image may have {LIMIT}.")
    return data


def fetch_image(url: str, *, limit_bytes: int = LIMIT, timeout: float = 30.0, pace: Pace = PACE) -> bytes:
    """Fetch what is at an address, in memory; whether it is an image is `resnest_seg.io.images.decode_image`'s to say.

    Redirections are followed, to http and https addresses only. Proxies are those of the environment.

    Args:
        url: http or https address.
        limit_bytes: More is refused, before or while it is read.
        timeout: Seconds of silence after which it is given up.
        pace: Speed below which it is given up as well.

    Raises:
        DatasetError: No answer, an answer that is an error, one that breaks off, or too much.
        ConfigError: The address is not of http or https.
    """
    shown = without_secrets(url)
    if urllib.parse.urlsplit(url).scheme.lower() not in ("http", "https"):
        raise ConfigError(f"only http and https addresses can be fetched, not {shown}.")
    if "@" in urllib.parse.urlsplit(url).netloc:
        raise DatasetError(
            f"cannot fetch {shown}: an address with a user's name or password is not read here. Fetch the file, then "
            "give its path."
        )
    try:
        data, length = _get(url, limit_bytes, timeout, pace)
    except urllib.error.HTTPError as error:
        error.close()
        raise DatasetError(f"cannot fetch {shown}: HTTP {error.code} {error.reason}.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no port, no host name
        reason = getattr(error, "reason", error)
        silent = isinstance(reason, TimeoutError)
        why = f"no answer for {timeout:g} s" if silent else str(reason) or type(error).__name__
        raise DatasetError(f"cannot fetch {shown}: {why}.") from None
    if max(len(data), length or 0) > limit_bytes:
        size = f"{length} bytes" if length else f"more than {limit_bytes} bytes"
        raise DatasetError(f"cannot fetch {shown}: it has {size}, and an image may have {limit_bytes}. "
                           "Fetch the file, then give its path.")  # fmt: skip
    if length is not None and len(data) < length:
        raise DatasetError(f"cannot fetch {shown}: the connection broke off after {len(data)} of {length} bytes.")
    return data


def _get(url: str, limit_bytes: int, timeout: float, pace: Pace) -> tuple[bytes, int | None]:
    """Content at the address and its length by the server; reading stops at the limit."""
    opener = urllib.request.OpenerDirector()  # knows http and https, so that no answer leads to ftp or a file
    for handler in (
        urllib.request.ProxyHandler(),
        *paced_handlers(pace),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    plain = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # blanks and letters of other scripts
    # Several public archives refuse the name that urllib gives itself.
    request = urllib.request.Request(plain, headers={"User-Agent": "resnest-seg"})
    response = opener.open(request, timeout=timeout)
    if response is None:
        raise OSError("it leads to an address of another kind than http")
    with response:
        length = response.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        data = bytearray()
        while (size or 0) <= limit_bytes >= len(data) and (chunk := response.read1(_CHUNK)):
            data += chunk
    return bytes(data), size
