"""Public data sets as their authors lay them out: recognised as they are, or paired by what is suggested."""

import re
import shlex
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import settings, strategies
from PIL import Image

from resnest_seg.config import DataConfig, RunConfig
from resnest_seg.data.build import build_dataset, dataset_for
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.layouts import Pattern
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.training.rehearsal import data_or_stand_in

PUBLIC = {
    # name: (photos, masks in their order, other files, title if it is recognised, splits by folders)
    "Kvasir-SEG": (["images/{}.jpg"], ["masks/{}.jpg"], ["kavsir_bboxes.json"], "images and masks", ()),
    "images and masks": (["images/{}.jpg"], ["masks/{}.png"], [], "images and masks", ()),
    "images and labels": (["images/{}.jpg"], ["labels/{}.png"], [], "images and labels", ()),
    "Pascal VOC": (
        ["VOCdevkit/VOC2012/JPEGImages/{}.jpg"],
        ["VOCdevkit/VOC2012/SegmentationClass/{}.png"],
        ["VOCdevkit/VOC2012/SegmentationObject/{}.png"],
        "Pascal VOC",
        (),
    ),
    "mmsegmentation": (["img_dir/train/{}.jpg", "img_dir/val/{}.jpg"], ["ann_dir/train/{}.png", "ann_dir/val/{}.png"],
                       [], "mmsegmentation", ("train", "val")),
    "Roboflow": (
        ["train/{}_jpg.rf.5a.jpg", "valid/{}_jpg.rf.5a.jpg", "test/{}_jpg.rf.5a.jpg"],
        ["train/{}_jpg.rf.5a_mask.png", "valid/{}_jpg.rf.5a_mask.png", "test/{}_jpg.rf.5a_mask.png"],
        [], "masks beside photos", ("train", "val", "test"),
    ),
    "suffix _label": (["{}.tif"], ["{}_label.tif"], [], "masks beside photos", ()),
    "suffix _gt in a folder": (["images/{}.jpg"], ["masks/{}_gt.png"], [], "images and masks, ending _gt", ()),
    "IDD Lite": (
        ["leftImg8bit/train/0/{}_image.jpg", "leftImg8bit/val/119/{}_image.jpg"],
        ["gtFine/train/0/{}_label.png", "gtFine/val/119/{}_label.png"],
        ["gtFine/train/0/{}_inst_label.png", "gtFine/val/119/{}_inst_label.png", "leftImg8bit/test/5/{}_image.jpg"],
        "Indian Driving Dataset Lite", ("train", "val"),
    ),
    "Cityscapes": (
        ["leftImg8bit/train/ulm/ulm_{}_000019_leftImg8bit.png", "leftImg8bit/val/bonn/bonn_{}_000019_leftImg8bit.png"],
        ["gtFine/train/ulm/ulm_{}_000019_gtFine_labelIds.png", "gtFine/val/bonn/bonn_{}_000019_gtFine_labelIds.png"],
        ["gtFine/train/ulm/ulm_{}_000019_gtFine_color.png", "gtFine/train/ulm/ulm_{}_000019_gtFine_instanceIds.png"],
        "Cityscapes", ("train", "val"),
    ),
    "Mapillary": (["training/images/{}.jpg", "validation/images/{}.jpg"], ["training/labels/{}.png",
                  "validation/labels/{}.png"], ["testing/images/{}.jpg", "training/instances/{}.png"],
                  "images and labels by split", ("train", "val")),
    "KITTI": (["training/image_2/{}_10.png"], ["training/semantic/{}_10.png"],
              ["training/semantic_rgb/{}_10.png", "training/instance/{}_10.png", "testing/image_2/{}_10.png"],
              "KITTI semantics", ("train", "test")),
    "LoveDA": (["Train/Rural/images_png/{}.png", "Train/Urban/images_png/1{}.png", "Val/Rural/images_png/2{}.png"],
               ["Train/Rural/masks_png/{}.png", "Train/Urban/masks_png/1{}.png", "Val/Rural/masks_png/2{}.png"], [],
               "LoveDA", ("train", "val")),
    "Oxford pets": (["images/Abyssinian_{}.jpg"], ["annotations/trimaps/Abyssinian_{}.png"],
                    ["annotations/trimaps/._Abyssinian_{}.png", "annotations/xmls/Abyssinian_{}.xml"],
                    "Oxford-IIIT pets", ()),
    "SegNet's CamVid": (["train/{}.png", "val/{}.png"], ["trainannot/{}.png", "valannot/{}.png"], [], "SegNet's CamVid",
                        ("train", "val")),
    # not recognised: the patterns that the message suggests pair them
    "CamVid": (["701_StillsRaw_full/0001TP_{}.png"], ["LabeledApproved_full/0001TP_{}_L.png"], [], None, ()),
    "Carvana": (["train/fff9{}_01.jpg"], ["train_masks/fff9{}_01_mask.gif"], ["test/0a{}_01.jpg"], None, ()),
    "DRIVE": (["training/images/2{}_training.tif", "test/images/0{}_test.tif"],
              ["training/1st_manual/2{}_manual1.gif", "test/1st_manual/0{}_manual1.gif"], [], None,
              ("train", "test")),
    "CHASE": (["Image_{}L.jpg"], ["Image_{}L_1stHO.png"], [], None, ()),
    "ISPRS Potsdam": (["2_Ortho_RGB/top_potsdam_{}_10_RGB.tif"], ["5_Labels_all/top_potsdam_{}_10_label.tif"], [], None,
                      ()),
    "CVPPP": (["A1/plant{}_rgb.png"], ["A1/plant{}_label.png"], ["A1/plant{}_centers.png"], None, ()),
    "DeepGlobe": (["train/{}_sat.jpg"], ["train/{}_mask.png"], ["valid/9{}_sat.jpg"], None, ()),
    "SUIM": (["train_val/images/d_r_{}_.jpg", "TEST/images/d_r_9{}_.jpg"], ["train_val/masks/d_r_{}_.bmp",
             "TEST/masks/d_r_9{}_.bmp"], [], None, ()),
    "Massachusetts": (["png/train/{}_15.png", "png/val/2{}_15.png"], ["png/train_labels/{}_15.png",
                      "png/val_labels/2{}_15.png"], [], None, ("train", "val")),
    "ISIC": (["ISIC2018_Task1-2_Training_Input/ISIC_00{}.jpg"],
             ["ISIC2018_Task1_Training_GroundTruth/ISIC_00{}_segmentation.png"], [], None, ()),
    "SpaceNet-like": (["AOI/PS-RGB/SN_AOI_2_PS-RGB_img{}.tif"], ["AOI/masks/SN_AOI_2_geojson_buildings_img{}.tif"], [],
                      None, ()),
    "WoodScape-like": (["rgb_images/{}_FV.png"], ["semantic_annotations/gtLabels/{}_FV.png"],
                       ["semantic_annotations/rgbLabels/{}_FV.png"], None, ()),
}  # fmt: skip


def write(path, *, mask=False, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".jpg", ".png", ".tif", ".gif", ".bmp"):
        path.write_text("{}")
        return
    random = np.random.default_rng(number)
    shape = (6, 8) if mask else (6, 8, 3)
    Image.fromarray(random.integers(0, 3 if mask else 256, shape, dtype=np.uint8)).save(path)


def make(root, public, scenes=12):
    """Write a data set; returns photo -> mask as its README says."""
    photos, masks, others, *_ = public
    for number in range(scenes):
        for pattern in photos + others:
            write(root / pattern.format(f"{number:06d}"), number=number)
        for pattern in masks:
            write(root / pattern.format(f"{number:06d}"), mask=True, number=number)
    return {
        photo.format(f"{number:06d}"): mask.format(f"{number:06d}")
        for photo, mask in zip(photos, masks, strict=True)
        for number in range(scenes)
    }


def files_below(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def found_in(root, names, options=()):
    """All pairs of a folder, over its splits; `options` are those that a message suggests."""
    words = shlex.split(" ".join(options))
    given = dict(zip((word.removeprefix("--data.") for word in words[::2]), words[1::2], strict=True))
    pairs = {}
    for split in ("val", "train", *(["test"] if "test" in names else [])):
        try:
            dataset = FolderDataset(root, split, classes=SPACE, **given)
        except DatasetError as error:
            if str(error).startswith("the val split of custom is empty: "):  # no hash of a few names is below a tenth
                continue
            raise
        assert not pairs.keys() & {image for image, _ in dataset.pairs}
        pairs |= {image: mask for image, mask in dataset.pairs if mask is not None}
    return pairs, dataset


SPACE = LabelSpace.numbered(3)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_layouts(name, tmp_path):
    truth = make(tmp_path, PUBLIC[name])
    *_, title, splits = PUBLIC[name]
    if title is not None:
        pairs, dataset = found_in(tmp_path, splits)
        assert pairs == truth
        assert dataset.layout.startswith(title)
        assert all(word in dataset.layout for word in splits)
        # the options that the line shows say the same as no options
        shown = dataset.layout.partition(": ")[2].partition("; splits")[0]
        assert found_in(tmp_path, splits, [shown])[0] == truth
        return
    with pytest.raises(DatasetError, match="no known layout of photos and masks") as caught:
        FolderDataset(tmp_path, classes=SPACE)
    text = str(caught.value)
    assert all(sum(f" {file}" in text for file in files) >= 3 for files in (truth.keys(), truth.values()))
    offered = re.search(rf"--data.root {re.escape(shlex.quote(str(tmp_path)))} (.*)", text)
    assert found_in(tmp_path, splits, [offered.group(1)])[0] == truth


def test_a_zip_and_a_folder_around_it_are_recognised(tmp_path):
    truth = make(tmp_path / "data" / "idd20k_lite", PUBLIC["IDD Lite"])
    expected = {f"idd20k_lite/{image}": f"idd20k_lite/{mask}" for image, mask in truth.items()}
    assert found_in(tmp_path / "data", ("train", "val"))[0] == expected
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in files_below(tmp_path / "data"):
            archive.write(tmp_path / "data" / name, name)
            archive.writestr(f"__MACOSX/{name}", b"junk")
    assert found_in(tmp_path / "data.zip", ("train", "val"))[0] == expected
    options = ["--data.images 'leftImg8bit/{split}/**/*_image.jpg' --data.masks 'gtFine/{split}/**/*_label.png'"]
    assert found_in(tmp_path / "data.zip", ("train", "val"), options)[0] == expected


def test_masks_without_a_photo_are_those_of_the_split(tmp_path):
    make(tmp_path, PUBLIC["IDD Lite"], scenes=3)
    for split, drive in (("train", 0), ("val", 119)):
        orphans = [f"gtFine/{split}/{drive}/{number:06d}_inst_label.png" for number in range(3)]
        assert FolderDataset(tmp_path, split).orphans == orphans


def test_roboflow_lists_its_classes(tmp_path):
    make(tmp_path, PUBLIC["Roboflow"])
    for word in ("train", "valid"):
        (tmp_path / word / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    dataset = FolderDataset(tmp_path, "val")
    assert dataset.listed
    assert dataset.label_space.names == ("background", "cat", "dog")
    (tmp_path / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, dog\n2, cat\n")
    with pytest.raises(DatasetError, match=r"train/_classes.csv and .*valid/_classes.csv differ"):
        FolderDataset(tmp_path, "train")


def test_lists_of_pascal_voc_leave_photos_without_masks_out(tmp_path):
    make(tmp_path, PUBLIC["Pascal VOC"])
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write(root / "JPEGImages" / "unlabelled.jpg")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("000001\n000002\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("JPEGImages/000003.jpg\n")
    assert [FolderDataset(tmp_path, split).pairs for split in ("train", "val")] == [
        [
            (f"VOCdevkit/VOC2012/JPEGImages/00000{n}.jpg", f"VOCdevkit/VOC2012/SegmentationClass/00000{n}.png")
            for n in some
        ]
        for some in ((1, 2), (3,))
    ]
    assert "lists (ImageSets/Segmentation/train.txt" in FolderDataset(root, "val").layout


def test_two_layouts_that_fit_are_both_named(tmp_path):
    make(tmp_path, PUBLIC["images and masks"])
    make(tmp_path, PUBLIC["images and labels"])
    with pytest.raises(DatasetError, match="2 layouts fit") as caught:
        FolderDataset(tmp_path)
    offered = re.findall(r"--data.images \S+ --data.masks \S+", str(caught.value))
    assert [found_in(tmp_path, (), [options])[0] for options in offered] == [
        make(tmp_path, PUBLIC[f"images and {word}"]) for word in ("masks", "labels")
    ]


def plain(pattern, name):
    """What a pattern's wildcards match, by trying all ways to cut a name: slow and obvious."""
    if not pattern:
        return [()] if not name else []
    if pattern.startswith("**/"):
        cuts = [0, *(place + 1 for place, letter in enumerate(name) if letter == "/")]
        return [(name[:cut].rstrip("/"), *rest) for cut in reversed(cuts) for rest in plain(pattern[3:], name[cut:])]
    if pattern[0] in "*?":
        longest = len(name.partition("/")[0])
        sizes = range(longest, -1, -1) if pattern[0] == "*" else [1] * (longest > 0)
        return [(name[:size], *rest) for size in sizes for rest in plain(pattern[1:], name[size:])]
    return plain(pattern[1:], name[1:]) if name[:1] == pattern[0] else []


@settings(max_examples=400, deadline=None)
@given_values(
    strategies.lists(strategies.sampled_from(["a", "b", "[1]", "/", "*", "?", "**/", "."]), min_size=1, max_size=6),
    strategies.text("ab[1]/.", max_size=8),
)
def test_a_pattern_matches_what_an_obvious_matcher_matches(tokens, name):
    text = "".join(tokens)
    if "//" in f"/{name}" or "***" in text or re.search(r"[^/]\*\*/", text) or text.endswith(("**", ".*")):
        return
    ways = plain(f"{text}.png", f"{name}.png")
    found = Pattern(f"{text}.png").match(f"{name}.png")
    assert (found is None) == (not ways)
    if found is not None:
        assert found[0] == ways[0]  # the first is the longest match of each wildcard
        assert Pattern(f"{text}.png").match(Pattern(f"{text}.png").fill(*found)) == found


@pytest.mark.parametrize(
    ("pattern", "name", "texts", "word"),
    [
        ("photos", "photos/a/b.JPG", ("a", "b"), None),
        ("photos/*", "photos/b.jpeg", ("b",), None),
        ("photos/*.*", "photos/b.v1.tif", ("b.v1",), None),
        ("photos [1]/*_rgb.png", "photos [1]/ü%_rgb.PNG", ("ü%",), None),
        ("photos [1]/*_rgb.png", "photos 1/a_rgb.png", None, None),
        ("{split}/*.jpg", "Training/a.jpg", ("a",), "Training"),
        ("{split}/*.jpg", "trainings/a.jpg", None, None),
        ("x/*_{split}.jpg", "x/a_valid.jpg", ("a",), "valid"),
        ("{split}/**/{split}_*", "test/q/test_1.png", ("q", "1"), "test"),
        ("{split}/**/{split}_*", "test/q/train_1.png", None, None),
        ("img?.png", "img7.png", ("7",), None),
        ("img?.png", "img/.png", None, None),
    ],
)
def test_wildcards(pattern, name, texts, word):
    pattern = f"{pattern}/**/*" if pattern == "photos" else pattern
    found = Pattern(pattern).match(unicodedata.normalize("NFD", name))
    assert found == (None if texts is None else (texts, word))


def tree(root, photos, masks):
    for number, name in enumerate((*photos, *masks)):
        write(root / name, mask=name in masks, number=number)
    return root


def test_splits_by_a_word_in_the_name_and_names_with_brackets(tmp_path):
    photos = [f"ph [1]/{word}_{number} ü%.jpg" for word in ("train", "valid", "test") for number in range(2)]
    masks = [name.replace("ph [1]", "m").replace(".jpg", "_x.png") for name in photos]
    tree(tmp_path, photos, masks)
    for word, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        dataset = FolderDataset(tmp_path, split, images="ph [1]/{split}_*", masks="./m//{split}_*_x.png")
        assert dataset.pairs == [pair for pair in zip(photos, masks, strict=True) if word in pair[0]]
        assert dataset[0].labels.shape == (6, 8)
        assert not dataset.orphans


def test_without_a_val_folder_a_tenth_of_train_is_val(tmp_path):
    tree(tmp_path, [f"images/train/{n}.jpg" for n in range(60)], [f"masks/train/{n}.png" for n in range(60)])
    train, val = (FolderDataset(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert not set(train) & set(val)
    assert 1 <= len(val) <= 15
    tree(tmp_path, ["images/val/9.jpg"], ["masks/val/9.png"])
    assert FolderDataset(tmp_path, "val").pairs == [("images/val/9.jpg", "masks/val/9.png")]
    assert len(FolderDataset(tmp_path, "train")) == 60


def test_a_test_split_without_masks_has_no_labels(tmp_path):
    tree(
        tmp_path,
        ["images/train/a.jpg", "images/val/b.jpg", "images/test/c.jpg"],
        ["masks/train/a.png", "masks/val/b.png"],
    )
    dataset = FolderDataset(tmp_path, "test")
    assert dataset.pairs == [("images/test/c.jpg", None)]
    assert (dataset[0].labels == 255).all()


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("p/**/*.jpg", "m/*.png", r"data.images 'p/\*\*/\*.jpg' has 2 wildcards and data.masks 'm/\*.png' has 1"),
        ("p/*.jpg", None, r"data.masks is missing: with 'p/\*.jpg' in its partner"),
        (None, "m/*.png", r"data.images is missing: with 'm/\*.png' in its partner"),
        ("/abs/*.jpg", "m/*.png", r"data.images must be a path below data.root, .* not '/abs/\*.jpg'"),
        ("p/*.jpg", "../m/*.png", r"data.masks must be a path below data.root, .* not '../m/\*.png'"),
        ("p**/a", "m/*", r"data.images 'p\*\*/a': \*\* stands for whole folders"),
        ("p/*.jpg", "{split}/*.png", r"data.masks '{split}/\*.png' has {split}, and data.images"),
        ("p/*.png", "p/*.png", r"the same pattern 'p/\*.png'"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(images, masks, message, tmp_path):
    tree(tmp_path, ["p/a.jpg"], ["m/a.png"])
    with pytest.raises(ConfigError, match=message):
        FolderDataset(tmp_path, images=images, masks=masks)


def test_files_that_match_the_same_wildcards_are_named(tmp_path):
    tree(tmp_path, ["train/x/a.jpg", "training/x/a.jpg"], ["m/a.png"])
    with pytest.raises(DatasetError, match=r"train/x/a.jpg and training/x/a.jpg match the same wildcards"):
        FolderDataset(tmp_path, images="{split}/x/*", masks="m/*")
    with pytest.raises(DatasetError, match="have the same name except for the suffix"):
        FolderDataset(tree(tmp_path, ["p/b.jpg", "p/b.png"], []), images="p", masks="m")


def test_patterns_that_pair_nothing_are_answered_with_some_that_do(tmp_path):
    tree(tmp_path, [f"raw/{n}_rgb.png" for n in range(9)], [f"gt files/{n}_L.png" for n in range(9)])
    with pytest.raises(
        DatasetError, match=r"9 photos match data.images 'raw/\*', 9 masks data.masks 'gt files/\*'"
    ) as caught:
        FolderDataset(tmp_path, images="raw/*", masks="gt files/*")
    text = str(caught.value)
    assert "photos: raw/0_rgb.png, raw/1_rgb.png, raw/2_rgb.png\n" in text
    assert "masks: gt files/0_L.png, gt files/1_L.png, gt files/2_L.png\n" in text
    assert "pair 9 of 9 photos" in text
    assert "--data.images 'raw/*_rgb.png' --data.masks 'gt files/*_L.png'" in text
    for number in range(3, 9):
        (tmp_path / f"gt files/{number}_L.png").unlink()
    with pytest.raises(DatasetError, match=r"images of the train split have no mask. The first: .*raw/3_rgb.png needs"):
        FolderDataset(tmp_path, images="raw/*_rgb.png", masks="gt files/*_L.png")


def test_files_without_a_common_name_are_shown(tmp_path):
    tree(tmp_path, ["x/dog.jpg", "x/cat.jpg"], ["y/house.png"])
    with pytest.raises(DatasetError, match=r"files: x/cat.jpg, x/dog.jpg, y/house.png\nNo two of them share"):
        FolderDataset(tmp_path)


def test_masks_of_colours_are_said_to_be_listed(tmp_path):
    tree(tmp_path, [f"raw/{n}.jpg" for n in range(9)] + [f"painted/{n}_L.png" for n in range(9)], [])
    with pytest.raises(DatasetError, match="masks are RGB pictures: the same command with --write-classes lists"):
        FolderDataset(tmp_path)


def test_other_data_sets_take_no_patterns(tmp_path):
    with pytest.raises(ConfigError, match=r"data.images is for --dataset folder: camvid has its own layout"):
        build_dataset("camvid", root=tmp_path, images="x", masks="y")


@pytest.mark.parametrize("name", ["camvid", "ade20k", "cityscapes", "synthetic"])
@pytest.mark.parametrize("there", [True, False])
def test_data_sets_with_classes_of_their_own_take_no_list(name, there, tmp_path):
    """Neither where they are opened nor in a rehearsal without them; the classes of a checkpoint are no list."""
    root = tmp_path if there else tmp_path / "nowhere"
    config = RunConfig(data=DataConfig(dataset=name, root=str(root), classes="mine.csv"))
    said = f"data.classes is for --dataset folder: {name} has its own classes. Leave out 'mine.csv'."
    for opened in (lambda: dataset_for(config.data, "train"), lambda: data_or_stand_in(config, "train")):
        with pytest.raises(ConfigError, match=re.escape(said)):
            opened()
    assert len(build_dataset("synthetic", classes=LabelSpace.of("synthetic"))) > 0


def test_the_config_names_the_patterns(tmp_path):
    tree(tmp_path, ["p/train/a.jpg"], ["m/train/a_y.png"])
    config = DataConfig(dataset="folder", root=str(tmp_path), images="p/{split}/*.jpg", masks="m/{split}/*_y.png")
    assert dataset_for(config, "train").pairs == [("p/train/a.jpg", "m/train/a_y.png")]
