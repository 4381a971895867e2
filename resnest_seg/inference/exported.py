"""Exported models: the metadata that such a file carries, and running it in its own runtime.

A file carries an `ExportInfo` as JSON: an ONNX file in its metadata under "resnest_seg", a .pt2 archive as the extra
file resnest_seg.json, an OpenVINO model in its runtime information. With it, the pixels of an image are all that a
caller needs to know. Importing this module imports no runtime and no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import CheckpointError, ConfigError, command, unknown_name
from resnest_seg.inference.protocols import Setting
from resnest_seg.labels import LabelSpace

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Number of the format of `ExportInfo`'s JSON."""

KEY = "resnest_seg"
"""Key of the JSON in ONNX metadata and in OpenVINO's runtime information."""

EXTRA_FILE = "resnest_seg.json"
"""Path of the JSON in a .pt2 archive."""

PIXELS = ("uint8", "uint16", "float32")
LAYOUTS = ("nchw", "nhwc")
OUTPUTS = ("logits", "softmax", "sigmoid", "labels")
PRECISIONS = ("float32", "half", "int8")
_CHOICES = {"pixels": PIXELS, "layout": LAYOUTS, "output": OUTPUTS, "precision": PRECISIONS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """Metadata of an exported file.

    The graph takes "images", RGB 0..255 or the bands of its training data, of any batch, height and width, and
    normalises, pads and resizes by itself.

    Attributes:
        label_space: The classes, in the order of the logits.
        mean: Of the pixels, 0..255, one a channel: it is in the graph already, as is `std`.
        std: Standard deviation, likewise.
        description: The network in one line.
        encoder: Its name.
        head: Its name.
        family: "encoding" or "mmseg".
        dilation: The dilation variant.
        output_stride: Input pixels per step of the last features.
        align_corners: How the logits are resized.
        size_divisor: What the graph pads images to multiples of, inside; 1 pads nothing.
        min_size: And at least to this size.
        smallest: Height and width that images must have at least.
        setting: The sizes that the model was trained with, for the named protocols.
        pixels: Type of the images, one of `PIXELS`.
        layout: Their shape, [N, C, H, W] or [N, H, W, C], one of `LAYOUTS`.
        output: What comes out and its name: "logits", "softmax" or "sigmoid" float32 [N, K, H, W], or "labels" uint8
            [N, H, W], of a multi-label model bits, int32.
        precision: Of weights and arithmetic, one of `PRECISIONS`.
        source: Name of the file that the model came from; empty if it came from memory.
        source_sha256: The file's hash, or that of the weights in memory.
        version: Of this package.
        thresholds: Of a binary or multi-label model, one for each score: labels whose sigmoid reaches it are present.
        bands: The bands of files in the order of the channels, as `data.bands` of a config; empty for photos.
        nodata: The value of pixels without data, as `data.nodata`.
        members: Of the mean of several models: "NAME sha256:HASH" of each one's file; empty for one model.
        predicts_masks: The logits are logarithms of scores that were made of masks, as of Mask2Former, and the graph
            pads by itself what its features need.
    """

    label_space: LabelSpace
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str
    encoder: str
    head: str
    family: str
    dilation: str
    output_stride: int
    align_corners: bool
    size_divisor: int
    min_size: int
    smallest: int = 1
    setting: Setting
    pixels: str
    layout: str
    output: str
    precision: str
    source: str
    source_sha256: str
    version: str
    thresholds: tuple[float, ...] = ()
    bands: tuple[int | str, ...] = ()
    nodata: float | None = None
    members: tuple[str, ...] = ()
    predicts_masks: bool = False

    def __post_init__(self) -> None:
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise unknown_name(f"export option {key}", getattr(self, key), known)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    def to_json(self) -> str:
        """One line of JSON, the inverse of `from_json`."""
        values = dataclasses.asdict(self) | {"setting": self.setting._asdict()}
        return json.dumps({"format": FORMAT} | values)

    @classmethod
    def from_json(cls, text: str) -> ExportInfo:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: It is something else, damaged, or of a newer version.
        """
        try:
            values = dict(json.loads(text))
            number = values.pop("format", None)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"its description is damaged ({error})") from None
        if number != FORMAT:
            by = values.get("version", "an unknown version")
            raise CheckpointError(
                f"its description has format {number!r} (written by {by}), this version reads {FORMAT}"
            )
        # which files of older versions lack
        values = {"bands": (), "nodata": None, "thresholds": (), "members": (),
                  "predicts_masks": values.get("head") == "mask2former"} | values  # fmt: skip
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            raise CheckpointError(f"its description lacks {', '.join(missing)}")
        try:
            return cls(**_typed(values))
        except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise CheckpointError(f"its description is damaged ({type(error).__name__}: {error})") from None


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's values as those of `ExportInfo`; whatever does not fit raises."""
    setting = Setting(**values["setting"])
    tall, wide = (int(edge) for edge in setting.crop)
    found: dict[str, Any] = {
        "label_space": LabelSpace.from_dict(values["label_space"]),
        "setting": setting._replace(
            base_size=int(setting.base_size), crop=(tall, wide), long_edge=int(setting.long_edge)
        ),
        "bands": tuple(band if isinstance(band, int) else str(band) for band in values["bands"]),
        "nodata": None if values["nodata"] is None else float(values["nodata"]),
        "members": tuple(map(str, values["members"])),
    }
    for field in dataclasses.fields(ExportInfo):
        value, kind = values[field.name], str(field.type)
        if field.name in found:
            continue
        if kind.startswith("tuple"):
            found[field.name] = tuple(float(number) for number in value)
        elif type(value).__name__ != kind:
            raise TypeError(f"{field.name} is {value!r}, no {kind}")
        else:
            found[field.name] = value
    if not len(found["mean"]) == len(found["std"]) > 0:
        raise ValueError("mean and std have different lengths")
    space = found["label_space"]
    if len(found["thresholds"]) != (0 if space.task == "multiclass" else len(space.score_names)):
        raise ValueError("not one threshold for each score")
    if found["bands"] and len(found["bands"]) != len(found["mean"]):
        raise ValueError("mean and bands have different lengths")
    return found


class ExportedModel:
    """A loaded file: images to logits, probabilities or labels, in NumPy arrays.

    Args:
        info: What the file says about itself.
        run: Images as the graph takes them -> its only output.
        path: The file.
        runtime: Name and version of what runs it.
    """

    def __init__(
        self, info: ExportInfo, run: Callable[[NDArray[Any]], NDArray[Any]], *, path: Path, runtime: str
    ) -> None:
        self.info, self.path, self.runtime = info, path, runtime
        self._run = run

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the graph: RGB 0..255, [N, C, H, W] or [N, H, W, C] as `info.layout` says, to what `info.output` says.

        A model of other bands takes them in the units of its training data.

        Raises:
            ConfigError: Images of another shape, or of a type that the file's does not hold.
        """
        count, last = self.info.channels, self.info.layout == "nhwc"
        if images.ndim != 4 or images.shape[3 if last else 1] != count or not images.size:
            shape = f"[N, H, W, {count}]" if last else f"[N, {count}, H, W]"
            raise ConfigError(f"{self.path} takes images of the shape {shape}, not {list(images.shape)}.")
        if min(images.shape[1:3] if last else images.shape[2:]) < self.info.smallest:
            raise ConfigError(
                f"{self.path} takes images of at least {self.info.smallest} x {self.info.smallest} pixels, not "
                f"{list(images.shape)}. Enlarge them, or take the .onnx form of the model."
            )
        plain = images.dtype == np.uint8 or (images.dtype.kind == "f" and self.info.pixels == "float32")
        deep = images.dtype in (np.uint16, np.int16) and np.can_cast(images.dtype, self.info.pixels)
        if not plain and not (self.info.bands and deep):
            unit = "pixels 0..255" if not self.info.bands else "bands in the units of the files"
            raise ConfigError(f"{self.path} takes {self.info.pixels} {unit}, not {images.dtype}.")
        images = np.ascontiguousarray(images, dtype=self.info.pixels)
        return self._run(images.copy() if min(images.strides) < 0 else images)  # a mirrored axis of one pixel


def open_exported(path: str | Path, *, device: str = "cpu", threads: int | None = None) -> ExportedModel:
    """Load an exported file into its own runtime: .onnx, .pt2 (torch) or .xml (OpenVINO).

    A .pt2 file may hold code, as torch's format does: open only those that you trust.

    Args:
        path: The file.
        device: "cpu", "cuda", "cuda:1" ... or "auto"; for .onnx also "tensorrt", for .xml names of OpenVINO, as "GPU".
            Without a number, each process that torchrun started takes a GPU of its own.
        threads: Of the runtime; None leaves them to it. torch's are those of the whole process.

    Raises:
        CheckpointError: There is no such file, it is damaged, or this package has not exported it.
        ConfigError: The runtime is not installed, or has no such device.
    """
    path = Path(path)
    if path.suffix not in RUNTIMES:
        raise CheckpointError(f"{path} is no exported model: their names end with {', '.join(RUNTIMES)}.")
    if not path.is_file():
        raise CheckpointError(f"no exported model {path}: there is no such file.")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}.")
    return RUNTIMES[path.suffix](path, device, threads)


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU if there is one, and of several processes each takes its own.

    Raises:
        ConfigError: No such device, here or anywhere.
    """
    import torch

    place = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    number = own_gpu() if place == "cuda" else None
    try:
        device = torch.device(place if number is None else f"cuda:{number}")
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def own_gpu() -> int | None:
    """The number of the GPU of a process that torchrun started (LOCAL_RANK), else None: the default one.

    Processes beyond the last GPU begin again with the first, as accelerate's do, and it is said once. A launcher that
    shows each process a GPU of its own has them all take number 0.
    """
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdecimal():
        return None
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:  # none that torch can count: the runtime says what it thinks of the number
        return int(rank)
    started = os.environ.get("LOCAL_WORLD_SIZE", "")
    if started.isdecimal() and int(started) > gpus and rank == "0":
        _say_shared(int(started), gpus)
    return int(rank) % gpus


@functools.cache
def _say_shared(processes: int, gpus: int) -> None:
    print(
        f"note: {processes} processes were started on this machine, and they see {gpus} GPU{'s' * (gpus > 1)}: unless "
        f"each sees one of its own, some share one. Start as many as there are GPUs (--nproc-per-node {gpus}).",
        file=sys.stderr,
    )


def is_exported(path: str | Path) -> bool:
    """True if a file name has the suffix of an exported model."""
    return Path(path).suffix in RUNTIMES


def _open_onnx(path: Path, device: str, threads: int | None) -> ExportedModel:
    try:
        import onnxruntime
    except ImportError:
        raise _missing(path, "onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = _providers(onnxruntime.get_available_providers(), device)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its errors have no other base
        raise _damaged(path, error) from None
    info = _info(path, session.get_modelmeta().custom_metadata_map.get(KEY))

    def run(images: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = session.run(None, {"images": images})[0]
        return result

    return ExportedModel(info, run, path=path, runtime=f"onnxruntime {onnxruntime.__version__}")


def _providers(available: list[str], device: str) -> list[Any]:
    """onnxruntime's providers for a device, the fastest first."""
    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if "CUDAExecutionProvider" in available else "cpu"
    chains = {"cpu": (), "cuda": ("CUDA",), "tensorrt": ("Tensorrt", "CUDA")}
    if kind not in chains or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise ConfigError(f"device {device!r} is none that onnxruntime runs on here: cpu, cuda, cuda:1 ..., tensorrt.")
    names = [f"{name}ExecutionProvider" for name in chains[kind]]
    missing = [name for name in names if name not in available]
    if missing:
        raise ConfigError(
            f"device {device!r}: this onnxruntime lacks {missing[0]} (it has {', '.join(available)}). Install the "
            "package onnxruntime-gpu in place of onnxruntime."
        )
    if names and not number:
        number = str(own_gpu() or 0)
    return [(name, {"device_id": number}) for name in names] + ["CPUExecutionProvider"]


def _open_torch(path: Path, device: str, threads: int | None) -> ExportedModel:
    """Both kinds of .pt2: an exported program, and the machine code that AOTInductor made of one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            place = next((name for name in names if name.endswith(f"/extra/{EXTRA_FILE}")), None)
            info = _info(path, None if place is None else archive.read(place).decode())
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None
    try:
        import torch
    except ImportError:
        raise _missing(path, "torch") from None
    compiled = any("/data/aotinductor/" in name for name in names)
    if compiled and device not in ("cpu", "auto"):
        raise ConfigError(f"{path} is compiled for the CPU: export it without --aoti to run it on device {device!r}.")
    place_of = choose_device("cpu" if compiled else device)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        if compiled:
            from torch._inductor import aoti_load_package

            module: Any = aoti_load_package(str(path))
        else:
            with warnings.catch_warnings():  # it reads weights without copying them, and warns about that
                warnings.simplefilter("ignore")
                program = torch.export.load(path)
            if place_of.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, place_of)
            module = program.module()
    except Exception as error:  # whatever unpickling and linking may raise
        raise _damaged(path, error) from None

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            result: NDArray[Any] = module(torch.from_numpy(images).to(place_of)).cpu().numpy()
        return result

    kind = "AOTInductor" if compiled else "torch.export"
    return ExportedModel(info, run, path=path, runtime=f"{kind} {torch.__version__}")


def _open_openvino(path: Path, device: str, threads: int | None) -> ExportedModel:
    try:
        version, core = silent_openvino().__version__, openvino_core()
    except ImportError:
        raise _missing(path, "openvino") from None
    name = {"cpu": "CPU", "auto": "CPU"}.get(device, device)
    if name.partition(".")[0] not in {known.partition(".")[0] for known in core.available_devices}:
        raise ConfigError(f"device {device!r} is none that OpenVINO has here: {', '.join(core.available_devices)}.")
    try:
        model = core.read_model(path)
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    except RuntimeError as error:
        raise _damaged(path, error) from None
    info = _info(path, text)
    # Some processors have matrix units for bfloat16, which it takes for float32 unless it is told not to.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = core.compile_model(model, name, settings)

    lock = threading.Lock()  # it has one set of buffers

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with lock:
            result: NDArray[Any] = model([images])[0]
        return result

    return ExportedModel(info, run, path=path, runtime=f"openvino {version.split('-')[0]}")


@functools.cache
def openvino_core() -> Any:
    """The one `openvino.Core` of the process; it needs OpenVINO.

    Each core sets a stack for signal handlers and puts the one before back when it ends. When a second core outlives
    the first, that stack is gone by then, and the next signal that Python handles (Ctrl-C, a child's end) is a
    segmentation fault: seen with OpenVINO 2026.4.1.
    """
    return silent_openvino().Core()


def silent_openvino() -> Any:
    """The module `openvino`, imported without its telemetry; raises ImportError where it is not installed.

    The import of OpenVINO writes an identifier to ~/intel and reports the import to a server. Without the package
    `openvino_telemetry`, which it takes for optional, it does neither.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
    import openvino

    return openvino


RUNTIMES: Mapping[str, Callable[[Path, str, int | None], ExportedModel]] = {
    ".onnx": _open_onnx,
    ".pt2": _open_torch,
    ".xml": _open_openvino,
}
"""Ending of a file -> what opens it."""


def _info(path: Path, text: str | None) -> ExportInfo:
    if text is None:
        raise CheckpointError(
            f"{path} was not exported by this package: it does not say which classes it has. Use `{command('export')}`."
        )
    try:
        return ExportInfo.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}. Export the model again.") from None


def _missing(path: Path, package: str) -> ConfigError:
    return ConfigError(f"{path} needs {package}, which is not installed: pip install {package}")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return CheckpointError(f"{path} is no model, or a damaged one ({type(error).__name__}: {line}).")
