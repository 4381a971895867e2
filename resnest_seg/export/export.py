"""Export a model for other runtimes: ONNX, torch.export or AOTInductor (.pt2), OpenVINO.

Every file takes pixels RGB 0..255 of any batch and size, carries normalisation and resizing inside and an `ExportInfo`
as metadata. It is written under another name, loaded into its own runtime and compared with its source; only if it
agrees does it take its place, with `NAME.report.json` beside it. A file that was there before stays if it does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.export.graph import (
    ExportOptions,
    exportable,
    first_line,
    info_of,
    members_of,
    smallest_for_torch,
    trace,
)
from resnest_seg.export.onnx import quiet, write_onnx
from resnest_seg.export.verify import Evidence, Proof, prove
from resnest_seg.files import FULL, atomic_write
from resnest_seg.inference.exported import EXTRA_FILE, KEY, ExportInfo, open_exported, openvino_core, silent_openvino
from resnest_seg.models.segmenter import Segmenter

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
"""Format -> the end of its files' names."""


def export_onnx(
    segmenter: Segmenter | Sequence[Segmenter],
    path: str | Path,
    *,
    pixels: str = "uint8",
    layout: str = "nchw",
    output: str = "logits",
    precision: str = "float32",
    calibration: Sequence[NDArray[np.uint8]] = (),
    evidence: Evidence = Evidence(),  # noqa: B008  # a constant
    on_image: Callable[[], object] | None = None,
) -> Proof:
    """Write an ONNX file, which runs in onnxruntime, TensorRT and elsewhere; needs the extra `export`.

    Args:
        segmenter: The model, which stays as it is; or several, whose mean probabilities become one file (see
            `resnest_seg.export.graph.MeanGraph`; not in 8 bits).
        path: The file, .onnx.
        pixels: Type of the images, "uint8" or "float32".
        layout: "nchw" for images [N, C, H, W], "nhwc" for [N, H, W, C].
        output: "logits", "softmax" (or "sigmoid" of a binary or multi-label model), or "labels" (uint8 [N, H, W], of a
            multi-label model bits, int32).
        precision: "float32", "half" (weights and arithmetic of the network), or "int8".
        calibration: For int8: training images, uint8 [H, W, 3], whose values decide the ranges.
        evidence: What the file and its source are compared on.
        on_image: Called after every image of the evidence's data set.

    Raises:
        ExportError: The network cannot be exported, or the file does not predict what the model predicts.
        ConfigError: An option that does not exist, or a package that is not installed.
        CheckpointError: A data set with other classes.
    """
    options = ExportOptions(pixels, layout, output, precision, calibration)

    def write(info: ExportInfo, draft: Path) -> None:
        write_onnx(segmenter, info, draft, calibration)

    return _export("onnx", segmenter, path, options, write, evidence, on_image)


def export_torch(
    segmenter: Segmenter | Sequence[Segmenter],
    path: str | Path,
    *,
    pixels: str = "uint8",
    layout: str = "nchw",
    output: str = "logits",
    precision: str = "float32",
    aoti: bool = False,
    evidence: Evidence = Evidence(),  # noqa: B008  # a constant
    on_image: Callable[[], object] | None = None,
) -> Proof:
    """Write a .pt2 file that torch loads without this package.

    Images must be larger than the output stride (than 32 x 32 pixels for networks of segmentation-models-pytorch).

    Args:
        segmenter: See `export_onnx`.
        path: The file, .pt2.
        pixels: See `export_onnx`.
        layout: See `export_onnx`.
        output: See `export_onnx`.
        precision: "float32" or "half".
        aoti: Machine code for processors like this one, by AOTInductor, which needs a C++ compiler, for
            `torch._inductor.aoti_load_package`; False writes a program for `torch.export.load`.
        evidence: See `export_onnx`.
        on_image: See `export_onnx`.

    Raises:
        ExportError: See `export_onnx`; or there is no C++ compiler.
        ConfigError: See `export_onnx`.
        CheckpointError: See `export_onnx`.
    """
    options = ExportOptions(pixels, layout, output, precision)
    if aoti:
        _need_compiler()

    def write(info: ExportInfo, draft: Path) -> None:
        program = trace(exportable(segmenter, info), smallest=info.smallest)
        if aoti:
            _compile(program, info, draft)
        else:
            torch.export.save(program, draft, extra_files={EXTRA_FILE: info.to_json()})

    return _export("torch", segmenter, path, options, write, evidence, on_image)


def export_openvino(
    segmenter: Segmenter | Sequence[Segmenter],
    path: str | Path,
    *,
    pixels: str = "uint8",
    layout: str = "nchw",
    output: str = "logits",
    precision: str = "float32",
    calibration: Sequence[NDArray[np.uint8]] = (),
    evidence: Evidence = Evidence(),  # noqa: B008  # a constant
    on_image: Callable[[], object] | None = None,
) -> Proof:
    """Write an OpenVINO model, .xml and .bin, through its own converter from ONNX; needs `export` and `openvino`.

    Args:
        segmenter: See `export_onnx`.
        path: The file, .xml; the weights go into the .bin beside it.
        pixels: See `export_onnx`.
        layout: See `export_onnx`.
        output: See `export_onnx`.
        precision: See `export_onnx`; "half" stores weights in half precision, and the device decides how it computes.
        calibration: See `export_onnx`.
        evidence: See `export_onnx`.
        on_image: See `export_onnx`.

    Raises:
        ExportError: See `export_onnx`.
        ConfigError: See `export_onnx`.
        CheckpointError: See `export_onnx`.
    """
    options = ExportOptions(pixels, layout, output, precision, calibration)
    try:
        silent_openvino()
    except ImportError:
        raise ConfigError("this export needs OpenVINO: pip install 'resnest-seg[export,openvino]'.") from None

    def write(info: ExportInfo, draft: Path) -> None:
        plain = info if precision == "int8" else dataclasses.replace(info, precision="float32")
        between = draft.with_name("between.onnx")
        write_onnx(segmenter, plain, between, calibration)
        write_openvino(between, info, draft)

    return _export("openvino", segmenter, path, options, write, evidence, on_image)


def write_openvino(onnx: Path, info: ExportInfo, path: Path) -> None:
    """Convert an ONNX file of ours by OpenVINO's own converter; nothing is compared.

    Raises:
        ExportError: It cannot be converted.
    """
    try:
        model = openvino_core().read_model(onnx)
        model.set_rt_info(info.to_json(), KEY)
        silent_openvino().save_model(model, path, compress_to_fp16=info.precision == "half")
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert this network ({first_line(error)}).") from error


EXPORTERS: dict[str, Callable[..., Proof]] = {
    "onnx": export_onnx,
    "torch": export_torch,
    "openvino": export_openvino,
}
"""Format -> what writes it."""


def report_path(path: Path) -> Path:
    """Return the path of an exported file's proof; files of one name in several formats share it."""
    return path.with_suffix(".report.json")


def _target(path: str | Path, kind: str, options: ExportOptions) -> Path:
    """The file to write, after everything that can be known before is checked."""
    path, suffix = Path(path), SUFFIXES[kind]
    if path.suffix != suffix:
        raise ConfigError(f"format {kind} writes files whose names end with {suffix}, not {path.name}.")
    if options.precision == "int8" and kind == "torch":
        raise ConfigError("format torch has no int8 here: choose onnx or openvino.")
    if options.precision == "int8" and not len(options.calibration):
        raise ConfigError("int8 needs training images to calibrate with: give a data set.")
    if kind != "torch":
        try:
            import onnx
            import onnxruntime
            import onnxscript

            assert onnx
            assert onnxruntime
            assert onnxscript
        except ImportError as error:
            raise ConfigError(
                f"this export needs {error.name}, which is not installed: pip install 'resnest-seg[export]'."
            ) from None
    return path


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except Exception as error:  # its class has moved between releases
        compiler, problem = "", f" ({first_line(error)})"
    else:
        problem = f" ({compiler!r} is not found)"
    if not compiler or shutil.which(compiler) is None:
        raise ExportError(
            f"AOTInductor needs a C++ compiler, and there is none here{problem}. Install g++ or clang, name it in "
            "$CXX, or leave aoti (--aoti) out."
        )


def _compile(program: ExportedProgram, info: ExportInfo, path: Path) -> None:
    """Write an AOTInductor package of a program."""
    import torch._inductor
    from torch.export.pt2_archive._package import package_pt2

    try:
        with quiet(), torch.no_grad():
            files = torch._inductor.aot_compile(
                program.module(check_guards=False),
                *program.example_inputs,
                options={"aot_inductor.package": True},
            )
            package_pt2(path, aoti_files={"model": files}, extra_files={EXTRA_FILE: info.to_json()})  # type: ignore[dict-item]
    except Exception as error:  # it raises whatever comes up in it
        raise ExportError(
            f"AOTInductor cannot compile this network ({type(error).__name__}: {first_line(error)})."
        ) from error


def _export(
    kind: str,
    segmenter: Segmenter | Sequence[Segmenter],
    path: str | Path,
    options: ExportOptions,
    write: Callable[[ExportInfo, Path], None],
    evidence: Evidence,
    on_image: Callable[[], object] | None,
) -> Proof:
    """Write a file beside its target, prove it, and put it into its place with its report."""
    if options.precision == "int8" and any(member.predicts_masks for member in members_of(segmenter)):
        raise ConfigError(
            "int8 is not for a head that predicts masks: which pixels a query attends to hangs on thresholds, which 8 "
            "bits move. Choose precision float32 or half."
        )
    info = info_of(segmenter, options)
    if kind == "torch":
        info = dataclasses.replace(info, smallest=smallest_for_torch(info))
    target = _target(path, kind, options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as folder:
        draft = Path(folder) / target.name
        with _full_disk(target):
            write(info, draft)
        try:
            proof = prove(open_exported(draft), segmenter, evidence=evidence, on_image=on_image)
        except RuntimeError as error:  # a runtime's; out of memory is one, too
            raise ExportError(
                f"{target} was not written: its runtime cannot run it ({first_line(error)}). Try another "
                "format, or another version of the runtime."
            ) from error
        moves = [(draft, target)]
        if target.suffix == SUFFIXES["openvino"]:
            weights = draft.with_suffix(".bin")
            moves.insert(0, (weights, target.with_suffix(".bin")))
            target.unlink(missing_ok=True)  # a crash must leave no description beside the weights of another model
        for source, place in moves:
            with open(source, "rb+") as file:
                os.fsync(file.fileno())
            source.replace(place)
    _report(target, proof)
    return proof


@contextlib.contextmanager
def _full_disk(target: Path) -> Iterator[None]:
    """A full disk is the system's error and names the file; the writers of torch and OpenVINO say it in other words."""
    try:
        yield
    except (OSError, RuntimeError, ExportError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
        if shutil.disk_usage(target.parent).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


def _report(target: Path, proof: Proof) -> None:
    """Add the proof to the report beside the file, in which files of other formats keep theirs."""
    path = report_path(target)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        files = {name: values for name, values in files.items() if (path.parent / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or none of ours
        files = {}
    with atomic_write(path) as temporary:
        text = json.dumps({"files": files | {target.name: proof.to_dict()}}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
