"""Export to ONNX, torch.export and OpenVINO, with verification of every file."""

from resnest_seg import lazy_exports

_HOMES = {
    "Bounds": "verify",
    "ExportGraph": "graph",
    "ExportOptions": "graph",
    "Proof": "verify",
    "export_onnx": "export",
    "export_openvino": "export",
    "export_torch": "export",
    "exportable": "graph",
    "prove": "verify",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
