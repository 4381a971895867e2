"""Export a model for other runtimes: ONNX, torch.export or AOTInductor (.pt2), OpenVINO.

Every file takes pixels RGB 0..255 of any batch and size, carries normalisation and resizing inside and an `ExportInfo`
as metadata. It is written under another name, loaded into its own runtime and compared with its source; only if it
agrees does it take its place, with `NAME.report.json` beside it. A file that was there before stays if it does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.exportable import exportable, first_line, info_of, smallest_for_torch, trace
from resnest_seg.exported import EXTRA_FILE, KEY, ExportInfo, open_exported
from resnest_seg.files import atomic_write
from resnest_seg.proof import Evidence, Proof, prove
from resnest_seg.quantization import quantize
from resnest_seg.segmenter import Segmenter

OPSET = 20
"""Of ONNX: what torch's exporter writes by itself, and runtimes have read for years."""

LARGEST = 2_000_000_000
"""Bytes that one ONNX file can have."""

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
"""Format -> the end of its files' names."""


def export_onnx(
    segmenter: Segmenter,
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
        segmenter: The model, which stays as it is.
        path: The file, .onnx.
        pixels: Type of the images, "uint8" or "float32".
        layout: "nchw" for images [N, C, H, W], "nhwc" for [N, H, W, C].
        output: "logits", "softmax", or "labels" (uint8 [N, H, W]).
        precision: "float32", "half" (weights and arithmetic of the network), or "int8".
        calibration: For int8: training images, uint8 [H, W, 3], whose values decide the ranges.
        evidence: What the file and its source are compared on.
        on_image: Called after every image of the evidence's data set.

    Raises:
        ExportError: The network cannot be exported, or the file does not predict what the model predicts.
        ConfigError: An option that does not exist, or a package that is not installed.
        CheckpointError: An image classifier, or a data set with other classes.
    """
    info = info_of(segmenter, pixels=pixels, layout=layout, output=output, precision=precision)
    target = _target(path, "onnx", info, calibration)

    def write(draft: Path) -> None:
        _write_onnx(segmenter, info, draft, calibration)

    return _publish(target, write, segmenter, evidence, on_image)


def export_torch(
    segmenter: Segmenter,
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
    info = info_of(segmenter, pixels=pixels, layout=layout, output=output, precision=precision)
    info = dataclasses.replace(info, smallest=smallest_for_torch(info))
    target = _target(path, "torch", info, ())
    if aoti:
        _need_compiler()

    def write(draft: Path) -> None:
        program = trace(exportable(segmenter, info), smallest=info.smallest)
        if aoti:
            _compile(program, info, draft)
        else:
            torch.export.save(program, draft, extra_files={EXTRA_FILE: info.to_json()})

    return _publish(target, write, segmenter, evidence, on_image)


def export_openvino(
    segmenter: Segmenter,
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
    info = info_of(segmenter, pixels=pixels, layout=layout, output=output, precision=precision)
    target = _target(path, "openvino", info, calibration)
    try:
        import openvino
    except ImportError:
        raise ConfigError("this export needs OpenVINO: pip install 'resnest-seg[export,openvino]'.") from None

    def write(draft: Path) -> None:
        plain = info if precision == "int8" else dataclasses.replace(info, precision="float32")
        between = draft.with_name("between.onnx")
        _write_onnx(segmenter, plain, between, calibration)
        try:
            model = openvino.Core().read_model(between)
            model.set_rt_info(info.to_json(), KEY)
            openvino.save_model(model, draft, compress_to_fp16=precision == "half")
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot convert this network ({first_line(error)}).") from error

    return _publish(target, write, segmenter, evidence, on_image)


EXPORTERS: dict[str, Callable[..., Proof]] = {
    "onnx": export_onnx,
    "torch": export_torch,
    "openvino": export_openvino,
}
"""Format -> what writes it."""


def report_path(path: Path) -> Path:
    """Where the proof of an exported file is kept; the files of one name in several formats share one."""
    return path.with_suffix(".report.json")


def _target(path: str | Path, kind: str, info: ExportInfo, calibration: Sequence[Any]) -> Path:
    """The file to write, after everything that can be known before is checked."""
    path, suffix = Path(path), SUFFIXES[kind]
    if path.suffix != suffix:
        raise ConfigError(f"format {kind} writes files whose names end with {suffix}, not {path.name}.")
    if info.precision == "int8" and kind == "torch":
        raise ConfigError("format torch has no int8 here: choose onnx or openvino.")
    if info.precision == "int8" and not len(calibration):
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


def _write_onnx(segmenter: Segmenter, info: ExportInfo, path: Path, calibration: Sequence[NDArray[np.uint8]]) -> None:
    """Write an ONNX file of the model, checked, in 8 bits if that is its precision."""
    import onnx

    # Beyond tracing, nothing asks how many pixels a feature map has, so the file takes images of every size.
    program = trace(exportable(segmenter, info), smallest=smallest_for_torch(info))
    try:
        with _silence():
            converted = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=[info.output]
            )
        assert converted is not None
        model = converted.model_proto
    except Exception as error:  # it raises whatever comes up in it
        raise ExportError(
            f"torch.onnx cannot convert this network ({type(error).__name__}: {first_line(error)})."
        ) from error
    if model.ByteSize() > LARGEST:
        raise ExportError(
            f"the model has {model.ByteSize() / 1e9:.1f} GB, and one ONNX file holds 2. Try half precision, or format "
            "torch."
        )
    _tidy(model, info)
    if info.precision != "int8":
        _save_onnx(model, path)
        return
    plain = path.with_name("plain.onnx")
    _save_onnx(model, plain)
    quantize(plain, path, [_calibration_image(photo, info) for photo in calibration])
    quantized = onnx.load(path)
    _describe(quantized, info)
    _save_onnx(quantized, path)


def _tidy(model: Any, info: ExportInfo) -> None:
    """Name the free dimensions, describe the model, and drop what the exporter notes of this machine's files."""
    height, width = (("height", 1), ("width", 2)) if info.layout == "nhwc" else (("height", 2), ("width", 3))
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[0].dim_param: "batch", dims[height[1]].dim_param: height[0], dims[width[1]].dim_param: width[0]}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
        value.ClearField("metadata_props")
    size = graph.output[0].type.tensor_type.shape.dim  # written out as what it is: the input's
    for dim, name in zip((size[0], size[-2], size[-1]), ("batch", "height", "width"), strict=True):
        dim.Clear()
        dim.dim_param = name
    for part in (*graph.node, *graph.initializer, graph, model):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _describe(model, info)


def _describe(model: Any, info: ExportInfo) -> None:
    """Put the description into a model, as one JSON and, for people who look into it, by the parts most asked for."""
    from onnx import helper

    model.producer_name, model.producer_version = "resnest_seg", info.version
    helper.set_model_props(
        model,
        {
            KEY: info.to_json(),
            "names": json.dumps(info.label_space.names),
            "colors": json.dumps(info.label_space.colors),
            "raw_ids": json.dumps(info.label_space.raw_ids),
            "description": info.description,
            "dataset": info.label_space.name,
        },
    )


def _save_onnx(model: Any, path: Path) -> None:
    import onnx

    onnx.save(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX file is not valid ({first_line(error)}).") from error


def _calibration_image(photo: NDArray[np.uint8], info: ExportInfo) -> NDArray[Any]:
    """The middle of a photo, of the training crop's size, as the graph takes it."""
    (tall, wide), (height, width) = info.setting.crop, photo.shape[:2]
    top, left = max(height - tall, 0) // 2, max(width - wide, 0) // 2
    middle = photo[None, top : top + tall, left : left + wide]
    return (middle if info.layout == "nhwc" else middle.transpose(0, 3, 1, 2)).astype(info.pixels)


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
            f"AOTInductor needs a C++ compiler, and there is none here{problem}. Install g++ or clang, name it in $CXX, "
            "or leave aoti (--aoti) out."
        )


def _compile(program: ExportedProgram, info: ExportInfo, path: Path) -> None:
    """Write an AOTInductor package of a program."""
    import torch._inductor
    from torch.export.pt2_archive._package import package_pt2

    try:
        with _silence(), torch.no_grad():
            files = torch._inductor.aot_compile(
                program.module(check_guards=False),  # type: ignore[arg-type]  # it is a graph module
                *program.example_inputs,
                options={"aot_inductor.package": True},
            )
            package_pt2(path, aoti_files={"model": files}, extra_files={EXTRA_FILE: info.to_json()})  # type: ignore[dict-item]
    except Exception as error:  # it raises whatever comes up in it
        raise ExportError(
            f"AOTInductor cannot compile this network ({type(error).__name__}: {first_line(error)})."
        ) from error


@contextlib.contextmanager
def _silence() -> Any:
    """Within this context, torch's exporters keep their progress and their deprecations to themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _publish(
    target: Path,
    write: Callable[[Path], None],
    segmenter: Segmenter,
    evidence: Evidence,
    on_image: Callable[[], object] | None,
) -> Proof:
    """Write a file beside its target, prove it, and put it into its place with its report."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as folder:
        draft = Path(folder) / target.name
        write(draft)
        proof = prove(open_exported(draft), segmenter, evidence=evidence, on_image=on_image)
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
