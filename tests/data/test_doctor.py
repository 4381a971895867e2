"""The doctor: healthy data passes, and every kind of deliberate damage is named with its file and cause."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import fake_data

from resnest_seg.config import DataConfig, RunConfig, TrainConfig
from resnest_seg.data.build import build_dataset
from resnest_seg.data.checks import check_classes, check_samples, diagnose, spread
from resnest_seg.data.class_balance import Balance, balance
from resnest_seg.errors import DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.training.assembly import look as look_at_data


def look(name, root):
    return diagnose([build_dataset(name, root=root, split=split, allow_missing=True) for split in ("train", "val")])


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "camvid"])
def test_healthy_data_passes(name, tmp_path):
    diagnosis = look(name, fake_data.make(name, tmp_path))
    assert diagnosis.errors == []
    assert diagnosis.samples == {"train": 4, "val": 4}
    assert diagnosis.sizes["train"] == [fake_data.SIZE] * 3
    assert diagnosis.ignored["train"] == pytest.approx(4 / 72, abs=1e-6)
    assert sum(diagnosis.shares["train"]) == pytest.approx(1)
    assert json.loads(diagnosis.to_json())["dataset"] == name


@pytest.mark.parametrize(("name", "folder"), [("ade20k", "ade20k_sample"), ("cityscapes", "cityscapes_sample")])
def test_real_data_passes(name, folder, real_data):
    assert look(name, real_data / folder).errors == []


def mask_of(root, name, place=1):
    return root / fake_data.LAYOUTS[name]("train", place)[1]


def photo_of(root, name, place=1):
    return root / fake_data.LAYOUTS[name]("train", place)[0]


def every_mask(root, change):
    for path in sorted(root.rglob("*.png")):
        if "annot" in str(path) or "gtFine" in str(path):
            fake_data.write(path, change(np.array(Image.open(path))))


def shifted(raw):
    return (raw.astype(int) - 1).astype(np.uint8)  # 0 becomes 255


def train_ids(raw):
    return LabelSpace.of("cityscapes").encode(raw)


def overwrite(value, *, size=fake_data.SIZE):
    """Damage: one mask becomes an image of one value."""
    return lambda root: fake_data.write(mask_of(root, "camvid"), np.full(size, value, np.uint8))


def every_pixel(change):
    """Damage: every mask is changed."""
    return lambda root: every_mask(root, lambda raw: change(raw).astype(np.uint8))


def deep_ids(root):
    Image.fromarray(np.full((72, 96), 400, np.uint16)).save(mask_of(root, "camvid"))


def copied(root):
    shutil.copy(photo_of(root, "camvid"), root / "val" / "0001TP_000002.png")


def colours(root):
    fake_data.write(mask_of(root, "camvid"), np.zeros((72, 96, 3), np.uint8))


def write(which, data):
    return lambda root: which(root, "camvid").write_bytes(data)


def remove(which):
    return lambda root: which(root, "camvid").unlink()


P, M = "train/0001TP_000001.png", "trainannot/0001TP_000001.png"
DAMAGES = {
    # name -> data set, what is done to it, severity, kind, the file that must be named, words of the message
    "photo gone bad": ("camvid", write(photo_of, b"x" * 50), "error", "unreadable photo", P, "cannot read"),
    "photo cut off": ("camvid", write(photo_of, b""), "error", "unreadable photo", P, "0 bytes"),
    "mask gone bad": ("camvid", write(mask_of, b"x"), "error", "unreadable mask", M, "cannot read"),
    "mask missing": ("camvid", remove(mask_of), "error", "missing mask", P, "has no mask"),
    "photo missing": ("camvid", remove(photo_of), "warning", "mask without photo", M, "have no photo"),
    "other size": ("camvid", overwrite(0, size=(9, 9)), "error", "sizes differ", M, "9 x 9 pixels"),
    "unknown id": ("camvid", overwrite(99), "error", "ids outside the label space", M, "raw id 99"),
    "ids too deep": ("camvid", deep_ids, "error", "unreadable mask", M, "ids up to 400"),
    "colours": ("camvid", colours, "error", "mask of colours", M, "mask of colours (RGB)"),
    "shifted by one": ("ade20k", every_pixel(shifted), "error", "off by one", "", "shifted by one already"),
    "train ids": ("cityscapes", every_pixel(train_ids), "error", "train ids", "", "only ids up to 18"),
    "nothing labelled": ("camvid", every_pixel(lambda raw: raw * 0 + 11), "error", "nothing labelled",
                         "trainannot/0001TP_000000.png", "no pixel of the train split has a label"),
    "one without labels": ("camvid", overwrite(11), "warning", "mask without labels", M, "no labelled pixel"),
    "copies": ("camvid", copied, "warning", "near duplicates", "val/0001TP_000002.png", "1 of 4 photos of val are"),
    "unlabelled as a class": ("camvid", every_pixel(lambda raw: np.where(raw == 11, 0, raw)), "warning",
                              "nothing ignored", "", "no pixel of the train split is ignored"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_file_and_cause(damage, tmp_path):
    name, inflict, severity, kind, file, word = DAMAGES[damage]
    root = fake_data.make(name, tmp_path)
    inflict(root)
    found = {finding.kind: finding for finding in reversed(look(name, root).findings)}
    assert kind in found, found
    assert found[kind].severity == severity
    assert word in found[kind].message
    if file:
        assert any(file in offender for offender in found[kind].files)


@pytest.mark.parametrize("damage", [name for name, values in DAMAGES.items() if values[2] == "error"])
def test_the_tool_exits_with_1_and_the_trainers_look_stops_the_run(damage, tool, tmp_path, capsys, monkeypatch):
    name, inflict, _, kind, file, word = DAMAGES[damage]
    root = fake_data.make(name, tmp_path / "data")
    inflict(root)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", name, "--data.root", root, "--workers", 0, "--output", "report.json"]
    assert tool("check_dataset")(*words) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"error: {kind}: " in printed
    assert file in printed
    assert "training would go wrong" in printed
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["severity"] == "error"
    with pytest.raises(DatasetError) as error:
        check_samples(build_dataset(name, root=root, allow_missing=True), count=4)
    assert word in str(error.value)
    assert "--data.check 0" in str(error.value)


def test_the_tool_on_healthy_data(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = fake_data.make("camvid", tmp_path / "data")
    assert tool("check_dataset")("--dataset", "camvid", "--data.root", root, "--workers", 2, "--limit", 3) == 0
    printed = capsys.readouterr().out
    for part in (
        "camvid: 3 train, 3 val",
        "pavement",
        "median freq.",
        "96 x 72",
        "suggested crop: 64",
        "ready for training",
    ):
        assert part in printed
    assert tool("check_dataset")("--dataset", "camvid", "--data.root", tmp_path / "no") == 2
    assert tool("check_dataset")("--dataset", "synthetic", "--limit", 2, "--workers", 0) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # it writes nothing unless it is told to


def test_rare_class_sampling_reads_the_masks(tmp_path):
    dataset = build_dataset("camvid", root=fake_data.make("camvid", tmp_path))
    assert balance(dataset, RunConfig()) == Balance()
    found = balance(dataset, RunConfig(data=DataConfig(rare_class=0.01, workers=0)))
    assert found.probabilities.shape == (4,)
    assert found.probabilities.sum() == pytest.approx(1)
    assert found.class_weights is None


def test_class_weights_are_those_of_the_masks(tmp_path):
    dataset = build_dataset("camvid", root=fake_data.make("camvid", tmp_path))
    train = TrainConfig(class_weights="median_frequency")
    found = balance(dataset, RunConfig(data=DataConfig(workers=0), train=train))
    counts = np.array([np.bincount(dataset[i].labels.ravel(), minlength=256)[: len(dataset.label_space)]
                       for i in range(len(dataset))])  # fmt: skip
    frequency = [counts[:, k].sum() / max(counts[counts[:, k] > 0].sum(), 1) for k in range(counts.shape[1])]
    median = np.median([f for f in frequency if f])
    assert found.class_weights.tolist() == pytest.approx([median / f if f else 0 for f in frequency])
    assert found.probabilities is None


def test_spread():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == spread(3, None) == [0, 1, 2]
    assert spread(5, 5) == list(range(5))


def test_a_split_that_cannot_be_opened_is_an_error(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = fake_data.make("camvid", tmp_path / "data")
    shutil.rmtree(root / "val")
    assert tool("check_dataset")("--dataset", "camvid", "--data.root", root, "--workers", 0) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "error: the val split cannot be opened: data set camvid not found" in printed
    assert "the test split" not in printed


def test_one_mask_of_train_ids_among_others_is_noticed(tmp_path):
    root = fake_data.make("cityscapes", tmp_path)
    path = mask_of(root, "cityscapes")
    fake_data.write(path, np.minimum(train_ids(np.array(Image.open(path))), 18))
    kinds = {finding.kind: finding for finding in look("cityscapes", root).findings}
    assert str(path) in kinds["train ids"].files
    assert kinds["train ids"].severity == "warning"


def test_damaged_masks_do_not_hide_behind_inferred_classes(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(24):
        photo, _ = fake_data.picture_and_mask(LabelSpace.of("camvid"), index)
        fake_data.write(tmp_path / "mine" / "images" / f"{index}.png", photo)
        fake_data.write(tmp_path / "mine" / "masks" / f"{index}.png", np.full(fake_data.SIZE, index % 3, np.uint8))
    for index in (3, 4, 5):
        (tmp_path / "mine" / "masks" / f"{index}.png").write_bytes(b"garbage")
    words = ["--dataset", "folder", "--data.root", tmp_path / "mine", "--workers", 0, "--output", "report.json"]
    assert tool("check_dataset")(*words) == 1
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    named = [file for finding in findings if finding["kind"] == "unreadable mask" for file in finding["files"]]
    assert len(named) == 3


def own_data(root, masks, classes=None):
    """A folder data set of the given masks, the same for train and val."""
    for split in ("train", "val"):
        for number, mask in enumerate(masks):
            name = f"{split}/{number:03d}.png"
            fake_data.write(root / "images" / name, np.random.default_rng(number).integers(0, 255, (*mask.shape, 3)))
            fake_data.write(root / "masks" / name, mask)
    if classes is not None:
        (root / "classes.csv").write_text(classes)
    return root


def painted(*values):
    """A mask of 8 x 24 pixels in columns of these values."""
    return np.array(values, np.uint8).repeat(24 // len(values))[None].repeat(8, axis=0)


TRAPS = {
    # name -> masks, list, what is said (None: nothing)
    "black and white": ([painted(0, 255)] * 3, "name\nground\ncar\n", "car (id 1)"),
    "white is rare": ([painted(0)] * 25 + [painted(0, 0, 255)], "name,id\nground,0\ncar,1\n", "car (id 1)"),
    "three classes": ([painted(0, 1, 255)] * 3, "name\na\nb\nc\n", "c (id 2)"),
    "a hole on purpose": ([painted(0, 1, 255)] * 3, "name,id,ignore\na,0,\nb,1,\nc,2,\nvoid,255,yes\n", None),
    "255 is listed": ([painted(0, 255)] * 3, "name,id\nground,0\ncar,255\n", None),
    "255 is a border": ([painted(0, 255), painted(1, 255), painted(2, 255)], "name\na\nb\nc\n", None),
    "the last mask has it": ([painted(0, 1, 255)] * 25 + [painted(2)], "name\na\nb\nc\n", None),
    "inferred": ([painted(0, 1, 255)] * 3, None, None),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("check", [0, 2])
def test_255_that_is_a_class_is_refused_before_training(trap, check, tool, tmp_path, capsys, monkeypatch):
    masks, classes, says = TRAPS[trap]
    root = own_data(tmp_path / "data", masks, classes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnest_seg.data.checks.LOOK", 20)
    config = RunConfig(data=DataConfig(dataset="folder", root=str(root), check=check, workers=0))
    splits = [build_dataset("folder", root=root, split=split) for split in ("train", "val")]
    code = tool("check_dataset")("--dataset", "folder", "--data.root", root, "--workers", 0)
    told = " ".join(capsys.readouterr().out.split())
    if says is None:
        look_at_data(config, *splits)
        assert code == 0, told
        return
    assert code == 1
    assert f"error: 255 may be a class: no mask of train holds {says}, while the id 255" in told
    with pytest.raises(DatasetError) as error:
        look_at_data(config, *splits)
    assert f"no mask of train holds {says}, while the id 255" in str(error.value)
    # whoever does what the message says can train
    lines = str(error.value).partition("the list must say so:\n")[2].partition("\nIf 255")[0]
    (root / "classes.csv").write_text("\n".join(line.strip() for line in lines.splitlines()))
    fixed = [build_dataset("folder", root=root, split=split) for split in ("train", "val")]
    look_at_data(config, *fixed)
    present = {int(value) for mask in masks for value in np.unique(mask)}
    assert set(np.unique(fixed[0][len(masks) - 1].labels)) <= set(range(len(present)))
    assert set(fixed[0].label_space.raw_ids) == present


def test_the_message_for_black_and_white_masks_does_not_lead_into_the_trap(tmp_path):
    root = own_data(tmp_path, [painted(0, 255)] * 3)
    with pytest.raises(DatasetError, match=r"as if 255 were a class.* give --model.task binary") as error:
        build_dataset("folder", root=root)
    lines = str(error.value).partition("would mean the ids 0 to 1:\n")[2]
    (root / "classes.csv").write_text("\n".join(line.strip() for line in lines.splitlines()))
    dataset = build_dataset("folder", root=root)
    assert dataset.label_space.raw_ids == (0, 255)
    assert check_classes(dataset) == []
    assert np.array_equal(dataset[0].labels, painted(0, 1))


def test_a_class_of_the_list_that_no_mask_holds_is_told_before_training(tmp_path):
    root = own_data(tmp_path, [painted(0, 1)] * 3, "name\na\nb\nc\n")
    dataset = build_dataset("folder", root=root)
    (warning,) = check_classes(dataset)
    assert warning.startswith("1 of 3 classes of the list have no pixel in any of the 3 masks of train: c.")
    assert check_classes(build_dataset("folder", root=root, split="val")) == []
    assert any(finding.kind == "class without pixels" for finding in diagnose([dataset]).findings)


def test_a_right_list_is_known_from_few_masks(tmp_path, monkeypatch):
    dataset = build_dataset("folder", root=own_data(tmp_path, [painted(0, 1)] * 40, "name\na\nb\n"))
    read = []
    monkeypatch.setattr(dataset, "read_mask", lambda name: read.append(name) or painted(0, 1))
    assert check_classes(dataset) == []
    assert len(read) == 1


@pytest.mark.parametrize("side", [24, 32])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photos_that_are_turned_and_masks_that_are_not_are_counted(kind, side, tool, tmp_path, capsys, monkeypatch):
    """By the orientation tag: neither a square photo nor one upside down can be told by its size."""
    root = own_data(tmp_path / "data", [np.zeros((32, side), np.uint8)] * 5, "name\na\n")
    for number, orientation in enumerate((1, 3, 2, 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation if side == 32 or orientation < 5 else 4
        path = root / "images" / "train" / f"{number:03d}.png"
        Image.open(path).save(path, kind, exif=exif)
    train = build_dataset("folder", root=root)
    (finding,) = [found for found in diagnose([train]).findings if found.kind == "turned photos"]
    assert finding.message.startswith("3 of 5 photos of train are rotated by their orientation tag (EXIF), and masks")
    assert f"{root}/images/train/001.png, with orientation 3" in finding.message
    assert len(finding.files) == 3
    monkeypatch.chdir(tmp_path)
    config = RunConfig(data=DataConfig(dataset="folder", root=str(root), check=5, workers=0))
    look_at_data(config, train)
    assert f"warning: {finding.message}" in capsys.readouterr().err


def test_a_turned_photo_of_another_size_is_explained(tmp_path):
    root = own_data(tmp_path, [np.zeros((32, 24), np.uint8)] * 2, "name\na\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images" / "train" / "001.png"
    Image.open(path).save(path, exif=exif)
    with pytest.raises(DatasetError, match=r"mask of another size.*Width and height are swapped: masks must fit"):
        build_dataset("folder", root=root)[1]
