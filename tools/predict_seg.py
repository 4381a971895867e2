"""Segment photos: label PNGs, and overlays with a legend.

python tools/predict_seg.py --checkpoint runs/my_run photo.jpg folder/ --output predictions
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.errors import ConfigError, DatasetError, run_tool


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="predict_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a photo, or a folder of photos with its subfolders")
    parser.add_argument("--checkpoint", required=True, help="a run folder (its best checkpoint), a checkpoint file, or "
                        "the name of a published checkpoint (tools/zoo_seg.py lists them)")  # fmt: skip
    parser.add_argument("--output", default="predictions", help="folder to write to (default: predictions)")
    parser.add_argument("--protocol", default="whole", help="inference protocol (default: whole)")
    parser.add_argument("--ids", choices=("raw", "train"), default="raw", help="values in the label PNGs: the data "
                        "set's own ids, or positions in the list of classes (default: raw)")  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0..1 (default: 0.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser.parse_args(argv)


def plan(inputs: Sequence[str], output: Path, suffixes: Sequence[str]) -> dict[Path, Path]:
    """Photo -> where its results go, without ending; a folder's photos keep their subfolders.

    Raises:
        DatasetError: An input does not exist, a folder holds no photo, or two photos would write the same file.
    """
    places: dict[Path, Path] = {}
    for word in inputs:
        if not word:
            raise ConfigError("an input is empty: is a shell variable not set?")
        path = Path(word)
        if path.is_dir():
            photos = (photo for photo in path.rglob("*") if photo.suffix.lower() in suffixes and photo.is_file())
            found = sorted(photo for photo in photos if output.resolve() not in photo.resolve().parents)
            if not found:
                raise DatasetError(f"folder {path} holds no image ({', '.join(suffixes)}).")
            places |= {photo: output / photo.relative_to(path).with_suffix("") for photo in found}
        elif path.is_file():
            places[path] = output / path.stem
        else:
            raise DatasetError(f"no file or folder {path}.")
    writers: dict[Path, Path] = {}
    for photo, place in places.items():
        if place in writers:
            raise DatasetError(
                f"{writers[place]} and {photo} would both be written to {place}_labels.png. Do one at a time."
            )
        writers[place] = photo
    return places


def main(argv: Sequence[str] | None = None) -> int:
    """Segment every input; returns the exit code."""
    options = parse(argv)
    if not 0 <= options.alpha <= 1:
        raise ConfigError(f"--alpha must lie in 0..1, not {options.alpha}.")

    from rich.progress import track

    from resnest_seg.datasets import IMAGE_SUFFIXES
    from resnest_seg.predictor import Predictor
    from resnest_seg.visualize import write_png

    places = plan(options.inputs, Path(options.output), IMAGE_SUFFIXES)
    for place in places.values():
        for ending in ("labels", "overlay"):
            path = place.with_name(f"{place.name}_{ending}.png")
            if path.exists() and not options.overwrite:
                raise ConfigError(f"{path} already exists. Choose another --output, or pass --overwrite.")
    predictor = Predictor.from_checkpoint(options.checkpoint, device=options.device, protocol=options.protocol)
    bad: list[str] = []
    for photo, place in track(places.items(), description="segmenting", transient=True):
        try:
            prediction = predictor(photo)
        except DatasetError as error:  # the others are done all the same
            bad.append(str(error))
            continue
        prediction.save(place.with_name(f"{place.name}_labels.png"), ids=options.ids)
        write_png(place.with_name(f"{place.name}_overlay.png"), prediction.overlay(options.alpha))
    if bad:
        raise DatasetError(f"{len(places) - len(bad)} photos segmented, {len(bad)} not:\n  " + "\n  ".join(bad))
    print(f"{len(places)} photos segmented into {options.output}/*_labels.png and *_overlay.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
