"""Label maps written for annotation tools and read again: the same labels, also as the tools' own code draws them."""

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as cocomask
from pycocotools.coco import COCO
from support import small_onnx

from resnest_seg import ADE20K, Cityscapes, ConfigError, LabelSpace, Synthetic, import_labels
from resnest_seg.annotations.writers import FAITHFUL, FORMATS, AnnotationWriter, regions
from resnest_seg.cli import predict
from resnest_seg.data.folder import read_classes
from resnest_seg.errors import run_tool
from resnest_seg.inference.inputs import photo_names, plan
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.visualize import write_png

SPACE = LabelSpace.numbered(3, names=["car", "tree", "sky & <clouds>"])
FRAMES = np.array([[min(r, c, 8 - r, 8 - c) % 2 for c in range(9)] for r in range(9)], np.uint8)  # holes in holes
PINCHED = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], np.uint8)
LINES = np.array([[0, 1, 0, 2, 2], [0, 1, 0, 0, 2], [1, 1, 1, 1, 2]], np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(maps, space, formats=FORMATS, *, tolerance, photos=None):
    """Write label maps; `photos` are pictures, or black ones are made."""
    for number, labels in enumerate(maps):
        picture = np.zeros((*labels.shape, 3), np.uint8) if photos is None else photos[number]
        write_png(Path("photos") / f"{number:03d}.png", picture)
    with AnnotationWriter("out", formats, space, tolerance=tolerance) as writer:
        for number, labels in enumerate(maps):
            writer.add(f"{number:03d}.png", labels, photo=Path("photos") / f"{number:03d}.png")


def read_again(form, count, space, *, unlabelled="ignore"):
    """The labels after an import, in the order of `space`."""
    import_labels(Path("out") / form, f"mine_{form}", photos="photos", unlabelled=unlabelled)
    found = read_classes(f"mine_{form}/classes.csv")
    table = np.full(256, 255, np.uint8)
    for label, name in enumerate(found.names):
        table[label] = space.names.index(name)
    masks = [Path(f"mine_{form}/masks/{number:03d}.png") for number in range(count)]
    return [table[found.encode(decode_mask(mask.read_bytes(), str(mask)))] for mask in masks]


def size_of(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())


def ious(maps, again, classes):
    both, either = np.zeros(classes), np.zeros(classes)
    for one, two in zip(maps, again, strict=True):
        for label in range(classes):
            both[label] += ((one == label) & (two == label)).sum()
            either[label] += ((one == label) | (two == label)).sum()
    return both[either > 0] / either[either > 0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "labels", [FRAMES, PINCHED, LINES, np.eye(5, dtype=np.uint8)], ids=["frames", "pinched", "lines", "eye"]
)
def test_awkward_shapes_come_back_to_the_pixel(form, labels):
    written([labels], SPACE, [form], tolerance=0)
    (again,) = read_again(form, 1, SPACE)
    assert np.array_equal(again, labels)


label_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


@settings(deadline=None, max_examples=25)
@given(label_maps)
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_any_map_comes_back_from_coco_also_by_pycocotools(tmp_path_factory, labels):
    with contextlib.chdir(tmp_path_factory.mktemp("any")):
        written([labels], SPACE, ["coco"], tolerance=0)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO("out/coco/annotations.json")
        theirs = np.full(labels.shape, 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = cocomask.decode(coco.annToRLE(annotation)).astype(bool)
            assert annotation["area"] == mask.sum()
            box = annotation["bbox"]
            assert [*map(min, np.nonzero(mask))] == [box[1], box[0]]
            theirs[mask] = annotation["category_id"] - 1
        assert np.array_equal(theirs, labels)
        if (labels != 255).any():
            (again,) = read_again("coco", 1, SPACE)
            assert np.array_equal(again, labels)


def pillow(content):
    """Draw a labelme file as labelme's shape_to_mask and shapes_to_label do: PIL's fill and outline, later on top."""
    labels = np.full((content["imageHeight"], content["imageWidth"]), 255, np.uint8)
    for shape in content["shapes"]:
        mask = np.zeros(labels.shape, bool)
        if shape["shape_type"] == "mask":
            (left, top), (right, bottom) = np.array(shape["points"]).astype(int)
            stored = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            mask[top : bottom + 1, left : right + 1] = np.asarray(stored)
        else:
            picture = Image.new("L", labels.shape[::-1], 0)
            ImageDraw.Draw(picture).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            mask = np.array(picture, bool)
        labels[mask] = SPACE.names.index(shape["label"]) if shape["label"] in SPACE.names else int(shape["label"])
    return labels


@settings(deadline=None, max_examples=25)
@given(label_maps)
def test_any_map_comes_back_from_labelme_also_by_its_own_way_of_drawing(tmp_path_factory, labels):
    with contextlib.chdir(tmp_path_factory.mktemp("any")):
        written([labels], SPACE, ["labelme"], tolerance=0)
        assert np.array_equal(pillow(json.loads(Path("out/labelme/000.json").read_text())), labels)
        if (labels != 255).any():
            (again,) = read_again("labelme", 1, SPACE)
            assert np.array_equal(again, labels)


def test_what_yolo_cannot_say_is_lost_and_nothing_else():
    labels = np.zeros((9, 9), np.uint8)
    labels[2:5, 2:5], labels[6:8, 6:8] = 1, 255  # a hole with a class, and one that is ignored
    written([labels], SPACE, ["yolo"], tolerance=0)
    (again,) = read_again("yolo", 1, SPACE)
    assert np.array_equal(again, np.where(labels == 255, 0, labels))


def test_drawn_scenes_come_back_to_99_percent_with_few_corners():
    dataset = Synthetic("train")
    samples = [dataset[index] for index in range(2)]
    maps, photos = [one.labels for one in samples], [one.image for one in samples]
    written(maps, dataset.label_space, tolerance=0)
    sizes = {form: size_of(Path("out") / form) for form in FORMATS}
    for form in FORMATS:
        exact = read_again(form, len(maps), dataset.label_space)
        assert all(np.array_equal(one, two) for one, two in zip(maps, exact, strict=True)), form
        Path(f"mine_{form}").rename(f"mine_{form}_exact")
    Path("out").rename("out_exact")
    written(maps, dataset.label_space, tolerance=1.0, photos=photos)
    for form in FORMATS:
        assert size_of(Path("out") / form) < sizes[form], form
        again = read_again(form, len(maps), dataset.label_space)
        assert ious(maps, again, len(dataset.label_space)).min() >= 0.99, form


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_real_labels_come_back_to_99_percent(name, real_data):
    """YOLO loses the ignored pixels in holes; all else, of all formats, is half a percent of simplification."""
    data = {"ade20k": ADE20K, "cityscapes": Cityscapes}[name](real_data / f"{name}_sample", "val")
    maps = [data[index].labels for index in range(len(data))]
    written(maps, data.label_space, tolerance=1.0)
    for form in FORMATS:
        again = read_again(form, len(maps), data.label_space)
        assert ious(maps, again, len(data.label_space)).min() >= 0.99, form


def test_a_region_keeps_its_share_whatever_the_tolerance():
    labels = Synthetic("train")[3].labels
    space = Synthetic("train").label_space
    exact = list(regions(labels, space, tolerance=0, background=True))
    for tolerance in (1, 5, 100):
        rough = list(regions(labels, space, tolerance=tolerance, background=True))
        assert sum(len(one.rings[0]) for one in rough) < 0.9 * sum(len(one.rings[0]) for one in exact)
        for one, two in zip(exact, rough, strict=True):
            picture = [Image.new("1", (labels.shape[1] * 4, labels.shape[0] * 4)) for _ in range(2)]
            for image, ring in zip(picture, (one.rings[0], two.rings[0]), strict=True):  # at four times the size
                ImageDraw.Draw(image).polygon([tuple(point) for point in (ring * 4).tolist()], fill=1)
            first, second = (np.array(image)[1::4, 1::4] | np.array(image)[2::4, 2::4] for image in picture)
            assert (first & second).sum() >= (FAITHFUL - 0.05) * (first | second).sum() - 4


def test_background_is_what_has_no_object_but_for_yolo():
    space = LabelSpace.numbered(2, names=["background", "car"])
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6], labels[3, 3] = 1, 0
    written([labels], space, tolerance=0)
    assert len(json.loads(Path("out/coco/annotations.json").read_text())["annotations"]) == 1
    for form in FORMATS:
        (again,) = read_again(form, 1, space, unlabelled="background")
        assert np.array_equal(again, labels), form


@pytest.mark.parametrize("form", ["coco", "labelme", "cvat"])
def test_maps_of_several_labels_come_back_as_bits(form):
    space = dataclasses.replace(LabelSpace.numbered(3, names=["a", "b", "c"]), ignored_raw_ids=(), task="multilabel")
    labels = np.random.default_rng(0).integers(0, 8, (9, 12)).astype(np.uint16)
    labels[0, :3] = 1 << 15
    write_png("photos/a.png", np.zeros((9, 12, 3), np.uint8))
    with AnnotationWriter("out", [form], space, tolerance=0) as writer:
        writer.add("a.png", labels, photo="photos/a.png")
    import_labels(Path("out") / form, "mine", photos="photos", overlap="multilabel", unlabelled="ignore")
    again = cv2.imread("mine/masks/a.png", cv2.IMREAD_UNCHANGED)
    assert np.array_equal(again, np.where(labels == 0, 1 << 15, labels))  # none of the labels is no object


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # of the file that the test writes
def test_regions_over_an_image_of_many_bands_come_back():
    space = LabelSpace.numbered(3, names=["background", "a", "b"])
    rasterio = pytest.importorskip("rasterio")
    Path("photos").mkdir()
    with rasterio.open("photos/t.tif", "w", driver="GTiff", height=9, width=12, count=4, dtype="uint16") as file:
        file.write(np.full((4, 9, 12), 3000, np.uint16))
    labels = np.repeat([[0, 1, 2]], 36, axis=0).reshape(9, 12).astype(np.uint8)
    with AnnotationWriter("out", FORMATS, space, tolerance=0) as writer:
        writer.add("t.tif", labels, photo="photos/t.tif")
    for form in FORMATS:
        report = import_labels(Path("out") / form, f"mine_{form}", photos=None if form == "yolo" else "photos")
        assert report.classes == ["background", "a", "b"]
        again = np.array(Image.open(f"mine_{form}/masks/t.png"))
        assert np.array_equal(again, labels), form
        assert os.path.realpath(f"mine_{form}/images/t.tif") == os.path.realpath("photos/t.tif")


def test_odd_names_and_files():
    space = LabelSpace.numbered(2, names=['a "b" <c> & ä: #1', "yes"])
    name = "sub dir/ü [1] 100% & 'x'\udcff.png"
    photo = Path("photos") / name
    write_png(photo, np.zeros((4, 4, 3), np.uint8))
    with AnnotationWriter("out", FORMATS, space) as writer:
        writer.add(name, np.eye(4, dtype=np.uint8), photo=photo)
    for form in ("coco", "labelme", "yolo"):
        report = import_labels(Path("out") / form, f"mine_{form}", photos="photos")
        assert report.classes[1:] == list(space.names) or form == "labelme"
        assert set(report.classes[1:]) == set(space.names)
    assert os.path.realpath("out/yolo/images/" + name) == os.path.realpath(photo)
    assert '\\xff.png"' in Path("out/cvat/annotations.xml").read_text()  # XML has no such bytes


def test_a_photo_that_lies_where_yolo_has_photos_stays_as_it_is():
    write_png("yolo/images/a.png", np.zeros((4, 4, 3), np.uint8))
    before = Path("yolo/images/a.png").read_bytes()
    with AnnotationWriter(".", ["yolo"], SPACE) as writer:
        writer.add("a.png", np.eye(4, dtype=np.uint8), photo="yolo/images/a.png")
    assert not Path("yolo/images/a.png").is_symlink()
    assert Path("yolo/images/a.png").read_bytes() == before
    assert Path("yolo/labels/a.txt").is_file()
    for name in ("one", "two"):  # while a link is replaced, as ever
        write_png(f"{name}.png", np.zeros((4, 4, 3), np.uint8))
        with AnnotationWriter("out", ["yolo"], SPACE) as writer:
            writer.add("a.png", np.eye(4, dtype=np.uint8), photo=f"{name}.png")
        assert os.path.realpath("out/yolo/images/a.png") == os.path.realpath(f"{name}.png")


@pytest.mark.parametrize("place", ["images/train/a", "train/images/a", "images/labels/images/b.c/a.png", "images"])
def test_yolo_labels_lie_where_its_readers_look_for_them(place):
    write_png("a.png", np.zeros((4, 4, 3), np.uint8))
    labels = np.repeat([[0, 1]], 8, axis=0).reshape(4, 4).astype(np.uint8)
    with AnnotationWriter("out", ["yolo"], SPACE, tolerance=0) as writer:
        writer.add("a.png", labels, photo="a.png", place=place)
    (photo,) = Path("out/yolo/images").rglob("*.png")
    theirs = "/labels/".join(str(photo).rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"  # as ultralytics has it
    assert [str(path) for path in Path("out").rglob("*.txt")] == [theirs]
    import_labels("out/yolo", "mine")
    (mask,) = Path("mine/masks").rglob("*.png")
    found = read_classes("mine/classes.csv")
    drawn = np.array(found.names)[found.encode(decode_mask(mask.read_bytes(), "mask"))]
    assert np.array_equal(drawn, np.array(SPACE.names)[labels])


def test_an_exception_leaves_the_files_of_before():
    """Which would be taken for those of all images otherwise."""
    for count in (3, 1):
        stopped = pytest.raises(KeyboardInterrupt) if count == 1 else contextlib.nullcontext()
        with stopped, AnnotationWriter("out", ["coco", "cvat"], SPACE) as writer:
            for number in range(count):
                writer.add(f"{number}.png", np.zeros((4, 4), np.uint8))
            if count == 1:
                raise KeyboardInterrupt
    assert len(json.loads(Path("out/coco/annotations.json").read_text())["images"]) == 3
    assert Path("out/cvat/annotations.xml").read_text().count("<image ") == 3
    assert len(list(Path("out").rglob("*.*"))) == 2


def test_nothing_is_written_without_an_image_and_options_are_checked():
    with AnnotationWriter("out", FORMATS, SPACE):
        pass
    assert not Path("out").exists()
    with pytest.raises(ConfigError, match=r"unknown format 'koko'. .*Known: coco, labelme, cvat, yolo"):
        AnnotationWriter("out", ["koko"], SPACE)
    with pytest.raises(ConfigError, match="from 0 to 100, not -1"):
        AnnotationWriter("out", ["coco"], SPACE, tolerance=-1)


@pytest.fixture
def call(tmp_path):
    """predict with a model of one convolution."""
    model = small_onnx.write(tmp_path / "model.onnx")
    words = ("--checkpoint", str(model), "--device", "cpu", "--write")
    return lambda *inputs, write="yolo": run_tool(lambda: predict.main([*words, write, *inputs]))


def test_predictions_beside_the_photos_of_a_yolo_set_spare_its_photos_and_labels(call, capsys):
    """Those that it was labelled with, in the folders that the results have, too."""
    write_png("yolo/images/a.png", np.zeros((16, 24, 3), np.uint8))
    Path("yolo/labels").mkdir()
    Path("yolo/labels/a.txt").write_text("0 0 0 1 0 1 1\n")
    before = Path("yolo/images/a.png").read_bytes()
    assert call("--output", ".", "--", "yolo/images") == 2
    assert "yolo/labels already holds files. Choose another --output, or pass --overwrite." in capsys.readouterr().err
    assert Path("yolo/labels/a.txt").read_text() == "0 0 0 1 0 1 1\n"
    for _ in range(2):
        assert call("--output", ".", "--overwrite", "--", "yolo/images") == 0
        assert Path("yolo/images/a.png").read_bytes() == before
        assert not Path("yolo/images/a.png").is_symlink()
    shutil.rmtree("yolo/labels")
    Path("yolo/data.yaml").unlink()
    assert call("--output", ".", "--", "yolo/images") == 2
    assert "yolo/images already holds files" in capsys.readouterr().err
    write_png("other/a.png", np.zeros((16, 24, 3), np.uint8))  # which would be linked at the place of another input
    assert call("--output", ".", "--overwrite", "--", "other", "yolo") == 2
    assert "yolo/images/a.png is an input file, and a result would overwrite it" in capsys.readouterr().err
    assert Path("yolo/images/a.png").read_bytes() == before


def test_predictions_for_yolo_can_be_made_again(call):
    write_png("photos/a.png", np.zeros((16, 24, 3), np.uint8))
    for _ in range(2):
        assert call("--output", "out", "--overwrite", "--", "photos") == 0
        assert os.path.realpath("out/yolo/images/a.png") == os.path.realpath("photos/a.png")


def named(form):
    """The names of the photos in a file of all images."""
    if form == "coco":
        return {image["file_name"] for image in json.loads(Path("out/coco/annotations.json").read_text())["images"]}
    return set(re.findall('<image id="[0-9]+" name="([^"]*)"', Path("out/cvat/annotations.xml").read_text()))


@pytest.mark.parametrize("form", ["coco", "cvat"])
def test_predictions_name_the_photos_as_they_are_called(form, call):
    names = {"x.jpg", "x.jpg.jpg", "12:30.jpg", "sub/y.png", "at:b/y.png", "y.jpg", "y.png"}
    for number, name in enumerate(sorted(names)):
        picture = np.full((16, 24, 3), 20 * number, np.uint8)
        (Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(Path("photos") / name)
    assert call("--output", "out", "--", "photos", write=form) == 0
    assert named(form) == names
    report = import_labels(Path("out") / form, "mine", photos="photos")
    assert report.images == {"": len(names)}


def test_photos_of_the_same_name_are_told_apart_by_more_of_their_paths(call):
    names = {"photos/a/x.png", "photos/b/x.png", "photos/b/y.png"}
    for number, name in enumerate(sorted(names)):
        write_png(name, np.full((16, 24, 3), 20 * number, np.uint8))
    assert call("--output", "out", "--", *sorted(names), write="coco") == 0
    assert named("coco") == {"a/x.png", "b/x.png", "y.png"}
    import_labels("out/coco", "mine", photos="photos")
    links = {path: os.path.realpath(path) for path in Path("mine/images").rglob("*.png")}
    assert {os.path.relpath(link) for link in links.values()} == names


def test_photos_at_addresses_are_named_as_there_or_by_their_place():
    addresses = ("http://h/a/photo.jpg?size=3", "http://h/b/photo.jpg", "http://h/c/view", "http://h/c/view?page=2",
                 "http://h/z.jpg?page=1", "http://h/z.jpg?page=2")  # fmt: skip
    items, problems = plan(addresses, "out", suffixes=IMAGE_SUFFIXES)
    assert problems == []
    names = photo_names(items)
    assert names[:2] == ["a/photo.jpg", "b/photo.jpg"]
    assert len(set(names)) == len(names)
    assert {Path(name).suffix for name in names[2:]} == {".png"}


def test_the_command_knows_the_formats():
    assert tuple(predict.ANNOTATIONS) == FORMATS
