"""Somebody's own data: every layout, every kind of mask, splits that stay."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from resnest_seg.config import DataConfig
from resnest_seg.data.build import build_dataset, dataset_for
from resnest_seg.data.folder import FolderDataset
from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL

COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90))
CLASSES = "name,id,red,green,blue\nsky,0,10,20,30\nroad,1,40,50,60\ncar,2,70,80,90\n"


def labels_of(number):
    return np.random.default_rng(number).integers(0, 3, (12, 16), dtype=np.uint8)


def make(root, names, *, kind="ids", images=".jpg", masks=".png"):
    for number, name in enumerate(names):
        photo, mask = root / "images" / f"{name}{images}", root / "masks" / f"{name}{masks}"
        for path in (photo, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        labels = labels_of(number)
        Image.fromarray(np.array(COLORS, np.uint8)[labels]).save(photo)
        picture = Image.fromarray(np.array(COLORS, np.uint8)[labels] if kind == "colours" else labels)
        if kind == "palette":
            picture = picture.convert("P")
            picture.putpalette([channel for color in COLORS for channel in color])
        picture.save(mask)
    return root


NAMES = [f"photo{number:02d}" for number in range(40)]


@pytest.mark.parametrize("kind", ["ids", "palette", "colours"])
@pytest.mark.parametrize("classes", ["file", "given", "inferred"])
def test_kinds_of_masks(kind, classes, tmp_path):
    root = make(tmp_path / "data", NAMES, kind=kind)
    path = (root if classes == "file" else tmp_path) / "classes.csv"
    if classes != "inferred":
        path.write_text(CLASSES)
    dataset = FolderDataset(root, "train", classes=path if classes == "given" else None)
    assert len(dataset.label_space) == 3
    for index, (photo, _) in enumerate(dataset.pairs):
        assert np.array_equal(dataset[index].labels, labels_of(NAMES.index(photo[7:-4])))
    if classes != "inferred":
        assert dataset.label_space.names == ("sky", "road", "car")


@pytest.mark.parametrize("images", [".png", ".jpeg", ".webp", ".tif", ".bmp", ".JPG"])
@pytest.mark.parametrize("masks", [".png", ".tiff", ".bmp"])
def test_endings(images, masks, tmp_path):
    make(tmp_path, NAMES, images=images, masks=masks)
    dataset = FolderDataset(tmp_path, "train")
    assert dataset[0].image.shape == (12, 16, 3)


def test_a_hash_decides_and_does_not_change(tmp_path):
    names = [f"street/{number}" for number in range(400)]
    make(tmp_path / "small", names[:200])
    make(tmp_path / "large", names)

    def photos(size):
        return {
            split: {photo for photo, _ in FolderDataset(tmp_path / size, split).pairs} for split in ("train", "val")
        }

    small, large = photos("small"), photos("large")
    assert not small["train"] & small["val"]
    assert len(small["train"] | small["val"]) == 200
    assert small["val"] <= large["val"]
    assert 25 <= len(large["val"]) <= 55  # one in ten
    with pytest.raises(DatasetError, match="there is no test split"):
        FolderDataset(tmp_path / "small", "test")


def test_splits_by_folder(tmp_path):
    make(tmp_path, ["train/a", "train/deep/b", "val/c", "test/d"])
    assert [photo for photo, _ in FolderDataset(tmp_path, "train").pairs] == [
        "images/train/a.jpg",
        "images/train/deep/b.jpg",
    ]
    assert [photo for photo, _ in FolderDataset(tmp_path, "test").pairs] == ["images/test/d.jpg"]


def test_splits_by_list(tmp_path):
    make(tmp_path, ["a", "b", "c.d"])
    (tmp_path / "train.txt").write_text("c.d\n\na.jpg\n")
    assert [photo for photo, _ in FolderDataset(tmp_path, "train").pairs] == ["images/c.d.jpg", "images/a.jpg"]
    with pytest.raises(DatasetError, match=r"there is a train.txt but no .*val.txt"):
        FolderDataset(tmp_path, "val")
    (tmp_path / "val.txt").write_text("zebra")
    with pytest.raises(DatasetError, match=r"val.txt lists 'zebra', and there is no such photo"):
        FolderDataset(tmp_path, "val")


def odd(name):
    """As the system hands on a name whose bytes are no UTF-8."""
    return os.fsdecode(name.encode("latin-1"))


def test_names_that_are_not_utf_8(tmp_path, tool, monkeypatch, capsys):
    root = make(tmp_path / "data", [odd(f"caf\u00e9{number}") for number in range(4)])
    (root / "train.txt").write_bytes("caf\u00e91\ncaf\u00e92.jpg\n".encode("latin-1"))
    (root / "val.txt").write_bytes("caf\u00e90".encode("latin-1"))
    dataset = FolderDataset(root, "train")
    assert [os.fsencode(photo) for photo, _ in dataset.pairs] == [b"images/caf\xe91.jpg", b"images/caf\xe92.jpg"]
    assert dataset[0].name == f"{root}/images/caf\\xe91.jpg"
    assert np.array_equal(dataset[0].labels, labels_of(1))
    assert len(dataset.identity()) == 64
    (root / "val.txt").write_bytes("stra\u00dfe".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"val.txt lists 'stra\\xdfe', .* The line is not UTF-8: save the list as"):
        FolderDataset(root, "val")
    for listed in (root / "train.txt", root / "val.txt"):
        listed.unlink()
    for path in (root / "masks").iterdir():
        path.write_bytes(b"no mask")
    (root / "classes.csv").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "folder", "--data.root", root, "--workers", 0, "--output", "check_folder.json"]
    assert tool("check_dataset")(*words) == 1
    assert "masks/caf\\xe9" in capsys.readouterr().out.encode("utf-8").decode()
    report = json.loads((tmp_path / "check_folder.json").read_text(encoding="utf-8"))
    assert any("caf\\xe9" in finding["message"] for finding in report["findings"])


def test_a_root_that_a_config_cannot_hold_is_refused(tmp_path):
    root = make(tmp_path / odd("caf\u00e9"), NAMES)
    assert len(build_dataset("folder", root=root)) > 0
    with pytest.raises(DatasetError, match=r"data.root '.*caf\\xe9' has bytes that are not UTF-8"):
        dataset_for(DataConfig(dataset="folder", root=str(root)), "train")


def test_a_list_in_another_encoding_is_named(tmp_path):
    make(tmp_path, ["a", "b"])
    (tmp_path / "train.txt").write_text("a\nb\n", encoding="utf-16")
    with pytest.raises(DatasetError, match=r"train.txt is UTF-16: save it as UTF-8"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("name", ["classes.csv", "classes.yml", "train.txt", "val.txt"])
@pytest.mark.parametrize("kind", ["folder", "dead link", "zip"])
def test_what_is_no_file_is_not_passed_over(name, kind, tmp_path):
    root = make(tmp_path / "data", ["a", "b"])
    (root / "train.txt").write_text("a\n")
    if kind == "dead link":
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to("nowhere")
    else:
        (root / name).unlink(missing_ok=True)
        (root / name).mkdir()
        (root / name / "file").touch()
    if kind == "zip":
        root = shutil.make_archive(tmp_path / "packed", "zip", root)
    with pytest.raises(DatasetError, match=rf"{name} must be a file"):
        FolderDataset(root, "val" if name == "val.txt" else "train")


@pytest.mark.parametrize(("masks", "cause"), [(".png", "ids up to 400"), (".jpg", "lossy compression")])
def test_masks_that_cannot_be_read_are_the_cause(masks, cause, tmp_path):
    """And not that they hold no class."""
    make(tmp_path, NAMES[:12], masks=masks, images=".png")
    for path in (tmp_path / "masks").glob("*.png"):
        Image.fromarray(np.full((12, 16), 400, np.uint16)).save(path)
    with pytest.raises(DatasetError, match=f"none of the 12 masks can be read. The first: .*photo.*{cause}"):
        FolderDataset(tmp_path, allow_missing=True)


def test_a_zip_file_of_it(tmp_path):
    root = make(tmp_path / "data", NAMES)
    (root / "classes.csv").write_text(CLASSES)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(root).as_posix())
    packed, plain = FolderDataset(tmp_path / "data.zip", "val"), FolderDataset(root, "val")
    assert packed.label_space == plain.label_space
    assert np.array_equal(packed[0].labels, plain[0].labels)
    assert f"{tmp_path}/data.zip!images/" in packed[0].name


def test_255_is_ignored_and_other_ids_are_not(tmp_path):
    root = make(tmp_path, NAMES)
    (root / "classes.csv").write_text(CLASSES)
    Image.fromarray(np.full((12, 16), 255, np.uint8)).save(root / "masks" / "photo00.png")
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(root / "masks" / "photo01.png")
    dataset = FolderDataset(root, "train")
    by_name = {photo: index for index, (photo, _) in enumerate(dataset.pairs)}
    assert (dataset[by_name["images/photo00.jpg"]].labels == IGNORE_LABEL).all()
    with pytest.raises(DatasetError, match=r"photo01.png: label out of range: raw id 7 is not in label space 'folder'"):
        dataset[by_name["images/photo01.jpg"]]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no images found: .*/images is missing or holds no image"):
        FolderDataset(tmp_path)
    make(tmp_path, NAMES)
    (tmp_path / "masks" / "photo05.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of .* images of the (train|val) split have no mask.*photo05"):
        [FolderDataset(tmp_path, split) for split in ("train", "val")]
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "photo06.png")
    with pytest.raises(DatasetError, match=r"photo06.jpg and .*photo06.png have the same name except for the suffix"):
        FolderDataset(tmp_path)
    with pytest.raises(DatasetError, match="unknown split 'dev'"):
        FolderDataset(tmp_path, "dev")


def test_a_palette_of_the_classes_colours_tells_what_its_indices_mean(tmp_path):
    """Image tools turn masks of colours into palettes, with indices of their own."""
    root = make(tmp_path, NAMES, kind="colours")
    (root / "classes.csv").write_text(CLASSES)
    for path in (root / "masks").iterdir():
        Image.open(path).convert("RGB").quantize(8).save(path)
    dataset = FolderDataset(root, "train")
    for index, (photo, _) in enumerate(dataset.pairs):
        assert np.array_equal(dataset[index].labels, labels_of(NAMES.index(photo[7:-4])))


def test_palettes_that_differ_are_no_classes(tmp_path):
    make(tmp_path, NAMES, kind="palette")
    mask = Image.fromarray(labels_of(0)).convert("P")
    mask.putpalette([channel for color in reversed(COLORS) for channel in color])
    mask.save(tmp_path / "masks" / "photo07.png")
    with pytest.raises(DatasetError, match=r"the palettes of .* differ: the same index has another colour"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("values", [(0, 255), (0, 128, 255), (0, 85, 170, 255)])
def test_brightness_is_no_class(values, tmp_path):
    """Black and white masks: 255 is the foreground and not ignored."""
    make(tmp_path, NAMES)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.array(values, np.uint8)[np.arange(192).reshape(12, 16) % len(values)]).save(path)
    with pytest.raises(DatasetError, match="as if 255 were a class") as error:
        FolderDataset(tmp_path)
    assert ("--model.task binary" in str(error.value)) == (len(values) == 2)
    (tmp_path / "classes.csv").write_text("name,id\n" + "\n".join(f"c{value},{value}" for value in values))
    assert len(FolderDataset(tmp_path).label_space) == len(values)


def test_lossy_masks_are_refused(tmp_path):
    make(tmp_path, NAMES, masks=".jpg", images=".png")
    with pytest.raises(DatasetError, match="lossy compression"):
        FolderDataset(tmp_path)


def test_inferred_colours_are_their_own_names(tmp_path):
    make(tmp_path, NAMES, kind="colours")
    assert FolderDataset(tmp_path).label_space.names == ("#0a141e", "#28323c", "#46505a")


def test_photos_beside_the_splits_are_not_dropped_silently(tmp_path):
    make(tmp_path, ["train/a", "val/b", "stray"])
    with pytest.raises(DatasetError, match=r"1 photos are beside the folders train, val and test .*images/stray"):
        FolderDataset(tmp_path)


def test_accents_pair_however_they_are_written(tmp_path):
    make(tmp_path, ["caf\u00e9"])
    (tmp_path / "masks" / "caf\u00e9.png").rename(tmp_path / "masks" / "cafe\u0301.png")
    assert len(FolderDataset(tmp_path, "train" if _in_train(tmp_path) else "val")) == 1


def _in_train(root):
    try:
        return bool(FolderDataset(root, "train"))
    except DatasetError:
        return False


def test_a_zip_with_a_folder_of_its_own(tmp_path):
    root = make(tmp_path / "mine", NAMES)
    (root / "classes.csv").write_text(CLASSES)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path).as_posix())
    assert FolderDataset(tmp_path / "data.zip").label_space.names == ("sky", "road", "car")


def test_a_photo_that_a_list_names_twice_is_refused(tmp_path):
    make(tmp_path, ["a", "b"])
    (tmp_path / "val.txt").write_text("b")
    for lines in ("a\nb\na\n", "a\nimages/a.jpg\n", "a\na.jpg"):
        (tmp_path / "train.txt").write_text(lines)
        with pytest.raises(DatasetError, match=r"train.txt lists 'a' and '\S+', which are one photo"):
            FolderDataset(tmp_path, "train")
