"""What people look at, made of the files of runs: pages that are one HTML file each and ask no network for anything.

`page` makes the file, `charts` its pictures of numbers, `gallery` its pictures of images; the others are the reports.
"""

from resnest_seg import lazy_exports

_HOMES = {
    "Card": "gallery",
    "Run": "run_table",
    "Pictures": "run_report",
    "Section": "page",
    "find_runs": "run_table",
    "runs_table": "run_table",
    "write_page": "page",
    "write_report": "run_report",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
