"""Labels in the formats of annotation tools: reading them into masks, and writing predictions for the tools.

`import_labels` recognises a format, draws its objects by one rule of pixel centres, and writes the layout that
`FolderDataset` reads. `AnnotationWriter` writes label maps as COCO, labelme, CVAT or YOLO. No torch.
"""

from resnest_seg import lazy_exports

_HOMES = {
    "AnnotationWriter": "writers",
    "ImportReport": "importing",
    "READERS": "importing",
    "import_labels": "importing",
    "recognise": "importing",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
