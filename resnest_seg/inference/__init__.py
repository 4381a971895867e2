"""From a model or an exported file to predictions: protocols, engines, backends, predictor, server."""

from resnest_seg import lazy_exports

_HOMES = {
    "Backend": "backends",
    "EnsembleBackend": "ensemble",
    "ExportInfo": "exported",
    "ExportedModel": "exported",
    "Input": "inputs",
    "Limits": "http_server",
    "OnnxPredictor": "predictor",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "Protocol": "protocols",
    "RunOptions": "backends",
    "Setting": "protocols",
    "app": "http_server",
    "fetch_image": "inputs",
    "is_exported": "exported",
    "multiscale": "torch_engine",
    "open_exported": "exported",
    "open_backend": "predictor",
    "plan": "inputs",
    "protocol": "protocols",
    "server": "http_server",
    "sliding_window": "torch_engine",
    "whole": "torch_engine",
    "with_options": "protocols",
    "with_tiles": "protocols",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
