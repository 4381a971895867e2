"""Average the weights of checkpoints of one network: the newest or best states of a run, or several runs.

python tools/average_weights.py runs/my_run --last 5
python tools/average_weights.py runs/my_run --best 3
python tools/average_weights.py runs/first runs/second runs/third --output mean.safetensors

The result is a checkpoint as any other, and as fast. A run keeps its newest states with --train.keep 5. Batch norms are
counted anew on the training split, with its augmentation: --images limits how many, --no-recompute leaves averages.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.options import Parser, add_dataset, add_model_option, add_workers, open_dataset
from resnest_seg.config import COUNT, RunConfig
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, command
from resnest_seg.files import check_not_inputs, check_output_file
from resnest_seg.inference.ensemble import checkpoints_of
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    from resnest_seg.models.checkpoint import Checkpoint

DEFAULT = "average.safetensors"
"""Name of the result in a run folder."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("average", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="run folders (their best checkpoints) or "
                        "checkpoint files of one network; with --last or --best one run folder")  # fmt: skip
    parser.add_argument("--last", type=int, metavar="K", help="average the newest K states of the run folder")
    parser.add_argument("--best", type=int, metavar="K", help="average the K kept states of the run folder that scored "
                        "best in its validations")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help=f"the checkpoint (default: {DEFAULT} in the run folder; "
                        "of several runs there is none)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--images", type=int, metavar="N", help="recompute batch norms on N training images (default: "
                        "on all)")  # fmt: skip
    parser.add_argument("--no-recompute", dest="recompute", action="store_false", help="leave the statistics of batch "
                        "norms as the averages of the members'")  # fmt: skip
    add_model_option(parser)
    add_dataset(parser, default="the one trained on", splits=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add_workers(parser, default=2)
    return parser.read(argv)


def members(options: argparse.Namespace) -> list[str]:
    """The files and run folders that are averaged.

    Raises:
        ConfigError: --last or --best with several folders, or with each other.
        CheckpointError: The run folder keeps fewer states.
    """
    from resnest_seg.combining.averages import best_states, newest_states

    check_option("--last", options.last, 1, 1000)
    check_option("--best", options.best, 1, 1000)
    check_option("--images", options.images, 2, COUNT)
    check_option("--workers", options.workers, 0, 256)
    if options.images is not None and not options.recompute:
        raise ConfigError("--images says on how many batch norms are recomputed, and --no-recompute does not: leave "
                          "one of them out.")  # fmt: skip
    if options.last is None and options.best is None:
        return checkpoints_of(options.checkpoints)
    if options.last is not None and options.best is not None:
        raise ConfigError("--last and --best choose states by age and by score: give one of them.")
    option, folder = "--last" if options.best is None else "--best", Path(options.checkpoints[0])
    if not folder.exists():
        raise ConfigError(f"no run folder {folder}: {option} takes the states of one.")
    if len(options.checkpoints) > 1 or not folder.is_dir():
        raise ConfigError(f"{option} takes the states of one run folder: name that alone.")
    choose, count = (newest_states, options.last) if options.best is None else (best_states, options.best)
    return [str(path) for path in choose(options.checkpoints[0], count)]


def output_of(options: argparse.Namespace, paths: Sequence[str]) -> Path:
    """The file to write, which is free.

    Raises:
        ConfigError: It exists, cannot be written, is a member; or there is no name for it.
        CheckpointError: A member does not exist.
    """
    from resnest_seg.models.checkpoint import find_checkpoint

    folder = Path(options.checkpoints[0])
    if options.output is None and (len(options.checkpoints) > 1 or not folder.is_dir()):
        raise ConfigError("--output is missing: the file of the average, such as --output average.safetensors.")
    output = Path(options.output or folder / DEFAULT)
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder: name a file in it, such as {output / DEFAULT}.")
    check_output_file(output, what="checkpoint", overwrite=options.overwrite)
    check_not_inputs([output], [find_checkpoint(path) for path in paths])
    return output


def recomputed(average: Checkpoint, path: str, options: argparse.Namespace) -> Checkpoint:
    """The average with its batch norms counted on the training split.

    Raises:
        ConfigError: It is an image classifier's, or its data set has no loader here.
    """
    from resnest_seg.combining.averages import recompute_batch_norms, with_record
    from resnest_seg.data.build import DATASETS, say_layout
    from resnest_seg.inference.exported import choose_device
    from resnest_seg.models.loading import load_checkpoint
    from resnest_seg.models.segmenter import load_own_weights

    if not isinstance(average.config, RunConfig):
        raise ConfigError("batch norms are recomputed of segmentation models, and this is an image classifier: give "
                          "--no-recompute.")  # fmt: skip
    data = average.config.data
    name = options.dataset or data.dataset
    if name not in DATASETS:
        raise ConfigError(f"batch norms are recomputed on the training split, and for data set {name!r} there is no "
                          "loader here: name one with --dataset, or give --no-recompute.")  # fmt: skip
    dataset = open_dataset(options, data, average.label_space, name=name, split="train")
    say_layout(dataset)
    segmenter = load_checkpoint(path, into=own_network(options.model))
    load_own_weights(segmenter, average.weights)
    segmenter.to(choose_device(options.device))
    count = recompute_batch_norms(segmenter, dataset, images=options.images, workers=options.workers)
    said = f"batch norms recomputed on {count} images of the training split" if count else "no batch norms to recompute"
    print(said, file=sys.stderr)
    return with_record(average, segmenter.state_dict(), recomputed=count)


def main(argv: Sequence[str] | None = None) -> int:
    """Average checkpoints; returns the exit code."""
    options = parse(argv)
    paths = members(options)
    output = output_of(options, paths)

    from resnest_seg.combining.averages import average_checkpoints

    average = average_checkpoints(paths)
    if options.recompute:
        average = recomputed(average, paths[0], options)
    output.parent.mkdir(parents=True, exist_ok=True)
    average.save(output)
    what = "average of 1 checkpoint" if len(paths) == 1 else f"average of {len(paths)} checkpoints"
    print(f"{what}: {output}. Evaluate with: {command('eval')} --checkpoint {shlex.quote(str(output))}")
    return 0
