"""Reading the tensors of a weight file of any origin without running code that it may carry."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnest_seg.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training scripts put the state dict, in the order in which they are looked for."""

_SCALAR = np.float64(0).__reduce__()[0]

PLAIN_NUMPY: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]
"""Numbers of numpy, which training scripts save as their best score; building them runs nothing."""

ARRAY_GLOBALS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0] for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): lambda text, coding: text.encode("latin-1"),
}
"""What a pickle of arrays needs, as detectron2 publishes models; building them runs nothing. Bytes come as text, which
is encoded by the coding that pickles use."""

TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"
"""The first bytes of what torch wrote before it took to zip files: its magic number as a pickle."""

WEIGHT_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".safetensors", ".params", ".ckpt")
"""Endings of weight files inside a zip."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """Content of a weight file.

    Attributes:
        path: The file.
        tensors: Name -> tensor, on the CPU. Those of a safetensors file are read when they are asked for.
        metadata: What lies beside them: a safetensors file's strings, an mmsegmentation file's `meta`.
        skipped: Names of entries that are no tensors, and of what lies beside the state dict.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


def read_weights(path: Path) -> WeightFile:
    """Read a safetensors file, a torch file, a pickle of arrays, or a zip with one of them inside.

    Torch files are pickles: they are read with `weights_only=True`, which builds tensors and plain values and refuses
    everything else. So is what detectron2 publishes (.pkl), with arrays of numpy: nothing but those is built.

    Raises:
        CheckpointError: There is no such file, it is damaged, it holds no tensors, or it wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no weight file {path}.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if not any(name.endswith("data.pkl") for name in archive.namelist()):  # else torch's own format
                    return _read(path, io.BytesIO(archive.read(weight_member(path, archive))))
        with open(path, "rb") as file:
            return _read(path, file)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None


def check_finite(weights: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that would make every prediction garbage, before a model takes them.

    Args:
        weights: Name -> tensor; what has no floating point is passed over.
        own: Those that a model is about to take, and its tensors by the same names, into whose type they must fit: in
            half precision, 65520 is infinity.

    Raises:
        CheckpointError: NaN or infinity; names the first tensor.
    """
    bad = {}
    for key, value in weights.items():
        if own is not None:
            if key not in own:
                continue
            value = value.to(own[key].dtype)
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            bad[key] = int(value.numel() - finite.sum())
    if bad:
        key = next(iter(bad))
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{bad[key]} of {weights[key].numel()} values of {key}{more} are not finite (NaN or infinity). The file is "
            "damaged, or was saved when its training had diverged: take another checkpoint."
        )


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Within this context, a `CheckpointError` names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _tail(file: BinaryIO) -> bytes:
    """The last bytes of a file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 200, 0))
    return file.read()


def _forbidden(message: str) -> str | None:
    """Name of a class that a pickle needs beyond tensors and plain values, from torch's message; None if corrupt."""
    # the last is of Python's built-in functions, which torch names without their module
    wordings = r"GLOBAL ([\w.]+\.\w+)", r"(\w+(?:\.\w+)+) was not an allowed", r"GLOBAL (\w+) was not an allowed"
    wanted = next(filter(None, (re.search(wording, message) for wording in wordings)), None)
    if wanted is not None:
        return wanted[1]
    return "a pickle that torch does not write" if "Unsupported operand" in message else None


def weight_member(path: Path, archive: zipfile.ZipFile) -> str:
    """Name of the one weight file inside a zip; folders, notes and what macOS adds do not count.

    Raises:
        CheckpointError: There is none, or more than one.
    """
    inside = [name for name in archive.namelist() if name.endswith(WEIGHT_SUFFIXES) and "__MACOSX" not in name]
    if len(inside) != 1:
        found = ", ".join(inside[:4]) or "none"
        raise CheckpointError(f"{path} should hold one weight file, but holds {len(inside)} ({found}).")
    return inside[0]


def _read(path: Path, file: BinaryIO) -> WeightFile:
    start = file.read(9)
    file.seek(0)
    if start[8:] == b"{":  # a safetensors file: eight bytes of length, then JSON
        return _read_safetensors(path, file)
    if start.startswith(b"\x80") and not start.startswith(TORCH_PICKLE):
        return _unwrap(path, _read_arrays(path, file))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN_NUMPY):
            warnings.simplefilter("ignore")  # about unusual pickle protocols
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _forbidden(str(error))
        # A file that ends within a name: the reader takes the last letter for the end of the line.
        broken_off = wanted is not None and _tail(file)[:-1].endswith(wanted.rpartition(".")[2].encode())
        if wanted is None or broken_off or not start.startswith((b"\x80", b"PK\x03\x04")):  # no pickle, no zip
            raise CheckpointError(
                f"{path} is no checkpoint, or a damaged one: no torch file can be read from it."
            ) from None
        raise _unsafe(path, wanted) from None
    except (KeyError, IndexError, AttributeError, TypeError, struct.error):  # the reader's own, such as a byte: "101"
        raise CheckpointError(
            f"{path} is no checkpoint, or a damaged one: no torch file can be read from it."
        ) from None
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None
    return _unwrap(path, content)


def _unsafe(path: Path, wanted: str) -> CheckpointError:
    """Return the error of a pickle with more than values, and the name of what it wants to build."""
    return CheckpointError(
        f"{path} was not loaded: besides tensors it holds objects that would run code when they are read ({wanted}). "
        "If you made it yourself, save its state dict alone: torch.save(model.state_dict(), path)."
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain values and numeric arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ARRAY_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None


def _read_arrays(path: Path, file: BinaryIO) -> Any:
    """Read a pickle of arrays, as tensors.

    Raises:
        CheckpointError: It is damaged, or wants to run code.
    """
    file.seek(0)
    try:
        content = _ArrayUnpickler(file, encoding="latin-1").load()  # what Python 2 wrote holds bytes
    except pickle.UnpicklingError as error:
        wanted = _forbidden(str(error))
        if wanted is None:
            raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None
        raise _unsafe(path, wanted) from None
    except (AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None
    return _tensors(content)


def _tensors(content: Any) -> Any:
    """Nested dictionaries with tensors in place of their arrays; arrays of other things than numbers stay."""
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        return torch.from_numpy(content.astype(content.dtype.newbyteorder("=")))
    return content


class _LazyTensors(Mapping[str, Tensor]):
    """The tensors of an opened safetensors file, each mapped into memory when it is asked for.

    The system reads a tensor from the disk as soon as it is mapped, so whoever wants a few must not ask for all.
    """

    def __init__(self, path: Path, opened: Any) -> None:
        self._path, self._opened = path, opened
        self._names: dict[str, None] = dict.fromkeys(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: Tensor = self._opened.get_tensor(name)
            return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_safetensors(path: Path, file: BinaryIO) -> WeightFile:
    try:
        if isinstance(file, io.BytesIO):
            from safetensors.torch import load

            return WeightFile(path, load(file.getvalue()), {})
        opened: Any = safe_open(path, framework="pt")
        return WeightFile(path, _LazyTensors(path, opened), opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({_first_line(error)}).") from None


def _unwrap(path: Path, content: Any) -> WeightFile:
    """Find the state dict in what a torch file held."""
    metadata: Mapping[str, Any] = {}
    skipped: list[str] = []
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        meta = content.get("meta")
        metadata = meta if isinstance(meta, Mapping) else metadata
        skipped += [str(key) for key in content if key not in (name, "meta")]
        content = content[name]
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        kind = type(content).__name__
        raise CheckpointError(f"{path} is no checkpoint: it holds no tensors under the names of a model, but a {kind}.")
    skipped += [str(key) for key in content if str(key) not in tensors]
    return WeightFile(path, tensors, metadata, tuple(skipped))


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or "it ends too early"
