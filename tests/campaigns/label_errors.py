"""Proof of `audit`: plant label errors of four kinds, train models on folds, and count what the audit finds.

    nice -n 19 python tests/campaigns/label_errors.py --output runs/label_errors

In 5 % of the drawn scenes for each kind, one object of at least 80 pixels is labelled wrongly: with another class of
the scene, shifted by 40 % of its size, left out, or with an edge that is ragged by some pixels. Training takes half an
hour on one CPU core, and goes on where it was stopped. The figures are at the planted count n: of the n images that
are ranked first, how many have an error (precision and recall are equal then); of the n regions that are ranked first,
how many lie on an error with at least half of their pixels (precision), and how many errors are hit (recall).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.planted_errors import KINDS, PlantedErrors

import resnest_seg
from resnest_seg.data.datasets import assign_folds
from resnest_seg.evaluation import label_audit

RECIPE = "synthetic_fcn_resnest14_tiny"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/label_errors")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-area", type=int, default=label_audit.MIN_AREA)
    options = parser.parse_args()
    data = PlantedErrors(resnest_seg.Synthetic("train"), share=options.share, seed=options.seed)
    results = resnest_seg.fit_folds(
        RECIPE, options.folds, train=data, validation=resnest_seg.Synthetic("val"), output=options.output, resume="auto"
    )
    if len(results) < options.folds or not results[-1].finished:
        return 1
    models = (resnest_seg.load_checkpoint(result.output) for result in results)
    fold_of = assign_folds(data, options.folds)
    label_audit.MOST_REGIONS = 10**9  # all, for an order at random
    report = resnest_seg.audit(models, data, fold_of=fold_of, min_area=options.min_area)
    wrong = {index: data.wrong_pixels(index) for index in data.kinds}
    pixels = sum(int(mask.sum()) for mask in wrong.values())
    print(report.table(most=4).title, report.table(most=4).caption, sep="\n")
    print(f"mIoU of the folds: {', '.join(f'{result.best_score:.3f}' for result in results)}")
    issues = sum(int((report.kept.issues(index)[0] & mask).sum()) for index, mask in wrong.items())
    print(f"{len(wrong)} errors in {len(data)} images: {100 * pixels / report.pixels:.2f} % of the pixels")
    print(f"of the wrong pixels, {100 * issues / pixels:.0f} % are issues")
    show("images by soft minimum", [image.index for image in report.images[: len(wrong)]], data)
    by_issues = sorted(report.images, key=lambda image: -image.issues / max(image.pixels, 1))
    show("images by share of issues", [image.index for image in by_issues[: len(wrong)]], data)
    show("images at random", np.random.default_rng(1).permutation(len(data))[: len(wrong)].tolist(), data)
    for name, score in (
        ("regions by log odds times area", lambda region: region.score),
        ("regions by issues", lambda region: region.issues),
        ("regions by area", lambda region: region.area),
        ("regions at random", lambda region: hash((region.box, 7))),
    ):
        ranked = sorted(report.regions, key=lambda entry: -score(entry.region))
        hits = [entry.index for entry in ranked if on_error(entry, data, wrong, report)]
        first = [entry.index for entry in ranked[: len(wrong)] if on_error(entry, data, wrong, report)]
        show(name, first, data, of=len(wrong), ever=len(set(hits)))
    for count in (10, 20, 50, len(wrong), 2 * len(wrong)):
        right = sum(on_error(entry, data, wrong, report) for entry in report.regions[:count])
        print(f"  of the first {count} regions, {right} lie on an error")
    return 0


def on_error(entry, data, wrong, report):
    """True if at least half of the pixels of a region are labelled wrongly."""
    if entry.index not in wrong:
        return False
    (judged,) = report.kept[entry.index]
    left, top, width, height = entry.region.box
    here = slice(top, top + height), slice(left, left + width)
    mask = (judged.given[here] == entry.region.given) & (judged.predicted[here] == entry.region.predicted)
    return bool(wrong[entry.index][here][mask].mean() >= 0.5)


def show(name, found, data, *, of=None, ever=None):
    """Print how many errors of each kind are among the indices that were found."""
    right = [index for index in found if index in data.kinds]
    errors, planted = Counter(data.kinds[index] for index in set(right)), Counter(data.kinds.values())
    kinds = ", ".join(f"{kind} {errors[kind]}/{planted[kind]}" for kind in KINDS)
    total = of if of is not None else len(found)
    recall = sum(errors.values()) / sum(planted.values())
    more = "" if ever is None else f"; {ever} errors have a region at all"
    print(f"{name}: precision {len(right) / total:.2f}, recall {recall:.2f} ({kinds}){more}")


if __name__ == "__main__":
    sys.exit(main())
