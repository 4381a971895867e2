"""The bad inputs: what is given to which tool, and what has to come of it. Importing this imports nothing heavy."""

from campaigns import bad_inference, bad_services, bad_training
from campaigns.bad_case import CASES, add
from campaigns.bad_python import PYTHON

QUICK = (
    "train config list",
    "train config nan",
    "train config tag",
    "train config repeated_group",
    "train config deep",
    "train option unknown",
    "train number data.crop_size=-1",
    "train huge data.crop_size=1000000",
    "train name train.trackers=wandb",
    "train budget 0.001",
    "train data photo_cut.jpg",
    "train dry-run masks_onoff_names",
    "train encoder_weights nan.safetensors",
    "train output below file",
    "train output named brackets",
    "train resume states cut",
    "train resume weights only",
    "train resume rate changed",
    "check data photo_nir.tif",
    "check data mask_vp8x",
    "check data mask_ids16",
    "check data masks_onoff_names",
    "check data list_doubled_names",
    "check data yaml_boolean",
    "check data split_upward",
    "check data encrypted.zip",
    "check data turned",
    "check data brackets",
    "check data bytes_in_name",
    "check output exists",
    "eval checkpoint liar.safetensors",
    "eval checkpoint classifier.safetensors",
    "eval boundary 0",
    "eval compare list",
    "eval output below file",
    "eval predictions of bytes_in_name",
    "eval predictions over photos",
    "predict photo cut.png",
    "predict photo bomb.png",
    "predict photo rgb16.png",
    "predict name of 250 letters",
    "predict names that are not there",
    "predict scales 1e6",
    "predict overlap = tile",
    "predict simplify inf",
    "predict address file.jpg",
    "predict checkpoint evil_zip.pth",
    "predict checkpoint nan.safetensors",
    "predict without onnxruntime",
    "predict existing results",
    "export output exists",
    "zoo fetch unknown",
    "budget devices half",
    "pretrain photo broken",
    "serve --memory 0",
    "benchmark rounds 1",
    "prepare cityscapes upward",
    "prepare cityscapes windows",
    "prepare synthetic count 0",
    "python load_checkpoint evil",
    "python predict floats 0..1",
    "python predict 5 channels",
    "python evaluate other classes",
    "python LabelSpace doubled names",
)
"""Names of those that `make test` runs: some of every tool and kind."""


def in_python():
    for name, function, says, details in PYTHON:
        add(f"python {name}", "python", says=says, **({"run": function} | details))


bad_training.fill()
bad_inference.fill()
bad_services.fill()
in_python()
assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
assert {case.name for case in CASES} >= set(QUICK), "no case has such a name"
