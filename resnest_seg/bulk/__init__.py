"""Prediction of many inputs by many processes: what is done is written down, so that a killed job continues.

A `Job` says everything that decides results, `list_inputs` makes items of folders, manifests and addresses, a `Worker`
segments some of them and writes each into the manifest of finished outputs. Engines hand the items out.
"""

from resnest_seg import lazy_exports

_HOMES = {
    "BulkItem": "listing",
    "Destination": "destination",
    "Job": "job",
    "Ledger": "ledger",
    "Outcome": "ledger",
    "Summary": "engines",
    "Worker": "worker",
    "begin": "job",
    "finish": "engines",
    "list_inputs": "listing",
    "open_destination": "destination",
    "remaining": "engines",
    "run_plain": "engines",
    "run_ray": "ray_engine",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
