"""Import labels of annotation tools as photos and masks that every other verb reads with --dataset folder.

python tools/import_labels.py annotations/instances_val2017.json --photos val2017 --output mine
python tools/import_labels.py labelme_folder --output mine
python tools/import_labels.py buildings.gpkg --photos ortho/ --field class --output mine

writes mine/images (links to the photos), mine/masks, mine/classes.csv and mine/import_report.json, all or nothing;
after Ctrl-C, the same command goes on. Then: python tools/check_dataset.py --dataset folder --data.root mine
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from resnest_seg.cli.parsing.options import Parser
from resnest_seg.errors import command

FORMATS = ("coco", "coco-panoptic", "yolo", "labelme", "cvat", "label-studio", "supervisely", "voc", "datasets", "geo")
"""Names of the formats, as in `resnest_seg.annotations.READERS`."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("import", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="the annotation file, or the folder of the data set")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(FORMATS)} (default: recognised)")
    parser.add_argument("--photos", metavar="FOLDER", help="where the photos are (default: where the format has them)")
    parser.add_argument("--photos-as", default="link", metavar="HOW", help="link or copy (default: link)")
    parser.add_argument(
        "--split", nargs="+", default=[], metavar="SPLIT", help="import these splits only: train val test"
    )
    parser.add_argument("--classes", metavar="FILE", help="class list, CSV or YAML, that sets the ids (default: the "
                        "source's classes in its order)")  # fmt: skip
    parser.add_argument("--field", metavar="NAME", help="property with the class, of GeoJSON and GeoPackage; '' for "
                        "one class (default: class, label, name ...)")  # fmt: skip
    parser.add_argument("--reduce-labels", action="store_true", help="in tables: 0 is ignored, i is class i - 1")
    rules = parser.add_argument_group("rules")
    rules.add_argument("--crowd", default="ignore", metavar="RULE", help="regions of many objects: ignore, class or "
                       "background (default: ignore)")  # fmt: skip
    rules.add_argument("--unlabelled", metavar="RULE", help="pixels without an object: background or ignore (default: "
                       "ignore for formats that label every pixel, else background)")  # fmt: skip
    rules.add_argument("--overlap", default="tool", metavar="RULE", help="pixels of several objects: tool (the order "
                       "of the format's own tool), ignore, or multilabel (16-bit masks) (default: tool)")  # fmt: skip
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Import labels; returns the exit code."""
    options = parse(argv)

    from resnest_seg.annotations.importing import import_labels
    from resnest_seg.data.class_lists import read_classes
    from resnest_seg.io.display import progress_bars

    classes = None if options.classes is None else read_classes(options.classes)
    try:
        with progress_bars() as progress:
            bar = progress.add_task("importing", total=None)
            report = import_labels(
                options.source,
                options.output,
                format=options.format,
                photos=options.photos,
                photos_as=options.photos_as,
                crowd=options.crowd,
                unlabelled=options.unlabelled,
                overlap=options.overlap,
                splits=options.split,
                classes=classes,
                field=options.field,
                reduce_labels=options.reduce_labels,
                on_image=lambda done, total: progress.update(bar, completed=done, total=total),
            )
    except KeyboardInterrupt:
        print("the same command goes on where it was stopped", file=sys.stderr)
        raise
    print("\n".join(report.lines()))
    check = f"{command('check')} --dataset folder --data.root {shlex.quote(options.output)}"
    check += " --model.task multilabel" * (options.overlap == "multilabel")
    print(f"written to {options.output}. Next: {check}")
    return 0
