"""The pages for users of other toolkits: every key, default, value and command in their tables, and whole recipes."""

import re
import runpy
from typing import NamedTuple

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
import yaml
from conftest import PROJECT
from support import pages
from support.reference import fill

import resnest_seg
from resnest_seg.config import RunConfig, load_run_config
from resnest_seg.config_reading import flatten, kinds_of
from resnest_seg.errors import ConfigError
from resnest_seg.training.tasks import check_choices

PAGES = {path.stem: path for path in sorted((PROJECT / "docs" / "migrate").glob("*.md"))}
KINDS = kinds_of(RunConfig)
DEFAULTS = flatten(RunConfig())
KEY = re.compile(
    rf"(?:{'|'.join(dict.fromkeys(key.partition('.')[0] for key in KINDS))})(?:\.(?!txt|json|py)\w+)?(?:: .+)?"
)
SPAN = re.compile(r"`([^`]+)`")
BUILT_IN = ("ade20k", "cityscapes", "camvid", "synthetic")
COMMANDS = ("resnest-seg ", "torchrun ", "sbatch ", "python tools/")


class Row(NamedTuple):
    """A row of a table: what the other toolkit has, what is here, the defaults, and what is said about it."""

    theirs: list[str]
    here: list[str]
    default: str
    remark: str


def spans(cell):
    return [span.replace(r"\|", "|") for span in SPAN.findall(cell)]


def tables(page):
    """Header and rows of every table: lists of cells."""
    found, table = [], None
    for line in [*PAGES[page].read_text().splitlines(), ""]:
        if not line.startswith("|"):
            table = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if table is None:
            table = (cells, [])
            found.append(table)
        elif set(line) - set("|-: "):
            assert len(cells) == len(table[0]), f"{page}: {line}"
            table[1].append(cells)
    return found


def rows(page, *, with_defaults):
    """The rows of the tables of keys, which have a column of defaults, or of the others."""
    for header, lines in tables(page):
        if ("default here" in header) == with_defaults:
            where, default = header.index("here"), header.index("default here") if with_defaults else None
            for cells in lines:
                before = [span for cell in cells[:where] for span in spans(cell)]
                yield Row(before, spans(cells[where]), "" if default is None else cells[default], cells[-1])


def keys_of(row):
    """The config keys in a row, each with the text of its value or None."""
    return [
        (key, value or None) for key, _, value in (span.partition(": ") for span in row.here if KEY.fullmatch(span))
    ]


def fits(key, value):
    """Check a value by the type and the range of its key, and by what a whole config that has it says of it."""
    KINDS[key].check(key, value)
    others = {"train.iterations": 100} if key == "train.epochs" and value is None else {}
    if key == "train.iterations":
        others = {"train.epochs": None}
    if key == "train.pos_weight":
        others = {"model.task": "binary"}
    if key == "model.head":
        others = {"model.family": "encoding" if value in ("fcn", "deeplabv3") else "mmseg", "model.output_stride": 16}
        if value == "mask2former" or value in ("smp:unetplusplus", "smp:manet", "smp:linknet", "smp:fpn"):
            others |= {"model.output_stride": 32, "model.aux_head": False}
    check_choices(RunConfig.from_dict({**others, key: value}))
    if key == "data.dataset":
        assert value in (*BUILT_IN, "folder"), value


def check_command(command, monkeypatch):
    """The verb exists and parses the words; a training begins with one thing."""
    pages.check_line(command, monkeypatch)
    words = pages.ours(command)
    if words[0] == "train" and "--resume" not in words:
        begins = [word for word in words if word in ("--dataset", "--config")]
        assert len(begins) == 1, f"{command}: give one of --dataset and --config"


def test_there_are_pages():
    assert set(PAGES) == {"mmsegmentation", "pytorch_encoding", "smp", "torchvision", "ultralytics"}
    for page in PAGES:
        assert len(list(rows(page, with_defaults=True))) >= 10, page
        assert len(list(rows(page, with_defaults=False))) >= 8, page


@pytest.mark.parametrize("page", PAGES)
def test_every_key_exists_with_the_default_that_is_given(page):
    for row in rows(page, with_defaults=True):
        known = keys_of(row)
        assert row.theirs, row
        assert len(known) == len(row.here), f"{row.here} are not all keys"
        for key, value in known:
            assert key in KINDS, f"{row.theirs}: there is no key {key}"
            if value is not None:
                fits(key, KINDS[key].read(value))
        if known:
            defaults = [KINDS[key].read(word) for (key, _), word in zip(known, row.default.split(", "), strict=True)]
            assert defaults == [DEFAULTS[key] for key, _ in known], row.here
        else:
            assert row.default == "-", row


@pytest.mark.parametrize("page", PAGES)
def test_every_key_in_the_text_exists(page):
    for span in SPAN.findall(re.sub(r"^```.*?^```", "", PAGES[page].read_text(), flags=re.M | re.S)):
        if KEY.fullmatch(span) and "." in span.partition(":")[0]:
            key, _, value = span.partition(": ")
            assert key in KINDS, f"there is no key {key}"
            if value:
                fits(key, KINDS[key].read(value))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_tables_is_one(page, monkeypatch):
    commands = [
        span
        for header, lines in tables(page)
        for cells in lines
        for span in spans(cells[header.index("here")])
        if span.startswith(COMMANDS)
    ]
    assert len(commands) >= 8
    for command in dict.fromkeys(commands):
        check_command(command, monkeypatch)


def yaml_blocks(page):
    text = PAGES[page].read_text()
    return {match[1]: match[2] for match in re.finditer(r"^```yaml\n# (\S+)\.yaml\n(.*?)^```", text, re.M | re.S)}


@pytest.mark.parametrize("page", PAGES)
def test_every_config_is_one(page, tmp_path):
    """As a file, as `train --config` reads it; and its encoder, head and data set can be chosen together."""
    assert len(yaml_blocks(page)) == PAGES[page].read_text().count("```yaml")
    for name, text in yaml_blocks(page).items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        check_choices(load_run_config(path))


# Real recipes of the other toolkits: what they say -> what our table says that it means. Names and numbers alone.
MMSEG_ADE20K = {
    "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)": None,
    "pretrained='open-mmlab://resnest101'": None,
    "align_corners=False": None,
    "auxiliary_head.loss_decode.loss_weight": 0.4,
    "RandomResize.scale": (2048, 512),
    "RandomResize.ratio_range": (0.5, 2.0),
    "crop_size": (512, None),
    "cat_max_ratio=0.75": None,
    "PhotoMetricDistortion": None,
    "RandomFlip.prob": 0.5,
    "train_dataloader.batch_size": 4 * 4,
    "optimizer.type='SGD'": None,
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "paramwise_cfg.custom_keys.head.lr_mult": 1,
    "PolyLR": None,
    "PolyLR.power": 0.9,
    "PolyLR.eta_min": 1e-4,
    "max_iters": 160000,
    "loss_decode.type='CrossEntropyLoss'": None,
    "LoggerHook.interval": 50,
    "test_cfg.mode='whole'": None,
    "backbone=ResNeSt, depth=101": None,
    "decode_head.type='DepthwiseSeparableASPPHead'": None,
    "dataset_type='ADE20KDataset'": None,
}
MMSEG_CITYSCAPES = {
    key: value for key, value in MMSEG_ADE20K.items() if "DepthwiseS" not in key and "ADE20K" not in key
}
MMSEG_CITYSCAPES |= {
    "RandomResize.scale": (2048, 1024),
    "crop_size": (512, 1024),
    "train_dataloader.batch_size": 4 * 2,
    "max_iters": 80000,
    "decode_head.type='FCNHead'": None,
    "dataset_type='CityscapesDataset'": None,
}
PSPNET = {key: value for key, value in MMSEG_CITYSCAPES.items() if "FCNHead" not in key and "ResNeSt" not in key}
PSPNET |= {
    "backbone=ResNetV1c, depth=50": None,
    "decode_head.type='PSPHead'": None,
    "max_iters": 40000,
    "val_interval": 4000,
    "CheckpointHook.interval": 4000,
    "train_dataloader.num_workers": 2,
}
ENCODING = {
    "--dataset ade20k": None,
    "--model deeplab": None,
    "--backbone resnest101": None,
    "--aux": None,
    "--aux-weight": 0.2,
    "--epochs": 180,
    "--batch-size": 8 * 2,
    "--base-size": 520,
    "--crop-size": 480,
    "--lr": 0.01,
    "--lr-scheduler poly": None,
    "--momentum": 0.9,
    "--weight-decay": 1e-4,
    "heads' rate": 10,
}
TORCHVISION = {
    "--model deeplabv3_resnet50": None,
    "--aux-loss": None,
    "--batch-size": 8 * 4,
    "--epochs": 30,
    "--lr": 0.02,
    "--momentum": 0.9,
    "--weight-decay": 1e-4,
    "base_size": 520,
    "crop_size": 480,
    "auxiliary loss": 0.5,
    "heads' rate": 1,
    "--print-freq": 10,
    "PolynomialLR": None,
}


def translated(page, recipe):
    """The keys of ours that a page's tables give for a recipe: what a careful reader would write."""
    table = [*rows(page, with_defaults=True), *rows(page, with_defaults=False)]
    said = {}
    for theirs, value in recipe.items():
        row = next((row for row in table if theirs in row.theirs), None)
        assert row is not None, f"{page} does not say what {theirs} is here"
        known = keys_of(row)
        assert known, f"{page} has no key for {theirs}"
        values = value if isinstance(value, tuple) else (value,) * len(known)
        for (key, text), number in zip(known, values, strict=True):
            said[key] = KINDS[key].read(text) if text is not None else True if value is None else number
    return said


@pytest.mark.parametrize(
    ("page", "recipe", "ours"),
    [
        ("mmsegmentation", MMSEG_ADE20K, "ade20k_deeplabv3plus_resnest101_mmseg"),
        ("mmsegmentation", MMSEG_CITYSCAPES, "cityscapes_fcn_resnest101_mmseg"),
        ("mmsegmentation", PSPNET, "pspnet_r50-d8"),
        ("pytorch_encoding", ENCODING, "ade20k_deeplabv3_resnest101"),
        ("torchvision", TORCHVISION, "deeplabv3_resnet50"),
    ],
)
def test_a_recipe_by_the_tables_is_the_recipe_that_is_shipped_or_shown(page, recipe, ours):
    """The shipped config was made from the original, the table by hand: they must say the same."""
    shown = yaml_blocks(page)
    config = RunConfig.from_dict(yaml.safe_load(shown[ours])) if ours in shown else load_run_config(ours)
    whole = flatten(config)
    said = translated(page, recipe)
    assert len(said) >= 12
    assert {key: whole[key] for key in said} == said


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page].read_text(), re.M | re.S)


@pytest.mark.slow
@torch.inference_mode()
def test_torchvisions_network_in_the_file_of_the_page_has_torchvisions_logits(tmp_path, monkeypatch):
    """Its weights, as torchvision would publish them, through `python tv.py` and `load_checkpoint(into=)`."""
    theirs = fill(
        torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None, num_classes=21, aux_loss=True)
    )
    monkeypatch.chdir(tmp_path)
    torch.save(theirs.state_dict(), "deeplabv3_resnet50_coco-cd0a2569.pth")
    (block,) = python_blocks("torchvision")
    (tmp_path / "tv.py").write_text(block)
    build = runpy.run_path("tv.py", run_name="__main__")["build"]
    ours = resnest_seg.load_checkpoint("deeplabv3_coco", into=build)
    assert ours.label_space.names[15] == "person"
    assert_same_logits(ours, theirs, lambda images: theirs(images)["out"])


@pytest.mark.slow
@torch.inference_mode()
def test_smps_network_under_the_names_of_the_page_has_smps_logits(tmp_path, monkeypatch):
    """The page's script with filled weights; what it saves is loaded by nothing but its name."""
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("smp")
    made = []
    monkeypatch.setattr(
        smp, "Unet", lambda *words, plain=smp.Unet, **named: made.append(fill(plain(*words, **named))) or made[0]
    )
    exec(block, {})
    ours = resnest_seg.load_checkpoint("from_smp")
    assert ours.label_space.names == ("road", "tree", "car", "sky")
    assert_same_logits(ours, made[0], made[0])


def assert_same_logits(ours, theirs, call):
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    want = call((images / 255 - mean) / std)
    assert not theirs.training
    assert want.std() > 0
    assert (ours(images).logits - want).abs().max() < 1e-4 * want.abs().max()


def test_what_is_no_key_is_found():
    """The checks of this file fail where they should."""
    with pytest.raises(ConfigError):
        fits("optim.lr", "fast")
    with pytest.raises(ConfigError):
        fits("train.iterations", 0)
    assert keys_of(Row([], ["optim.lr: 0.1", "resnest-seg train", "seed"], "", "")) == [
        ("optim.lr", "0.1"),
        ("seed", None),
    ]
