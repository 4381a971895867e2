"""What each format has besides the common scene: other shapes, layouts, files and rules of its own tool."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from PIL import Image, ImageDraw
from support import annotation_samples as samples
from support.annotation_samples import HEIGHT, WIDTH, scene

from resnest_seg import DatasetError, FolderDataset, import_labels
from resnest_seg.annotations.reading import Photos, split_in
from resnest_seg.data.folder import read_classes
from resnest_seg.io.masks import decode_mask


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()


SOURCE = Path("source")


def mask(name="a", output="mine"):
    path = Path(output) / "masks" / f"{name}.png"
    return decode_mask(path.read_bytes(), str(path))


def change(path, edit):
    document = json.loads(Path(path).read_text())
    edit(document)
    Path(path).write_text(json.dumps(document))


def test_coco_in_roboflows_layout_drops_the_project_and_keeps_its_splits():
    for split in ("train", "valid"):
        source = samples.coco(SOURCE / "work" / split)
        content = json.loads(source.read_text())
        content["categories"] = [{"id": 0, "name": "cars", "supercategory": "none"}] + [
            {**one, "supercategory": "cars"} for one in content["categories"]
        ]
        content["images"][0]["file_name"] = f"{split}.png"
        samples.save(SOURCE / "set" / split / "_annotations.coco.json", content)
        samples.photo(SOURCE / "set" / split / f"{split}.png", seed=len(split) * 10 + (split == "train"))
    report = import_labels(SOURCE / "set", "mine")
    assert report.images == {"train": 1, "val": 1}
    assert report.classes == ["background", "road", "car", "tree"]


def test_coco_keeps_a_class_that_is_called_like_what_it_is_under():
    """As COCO's own person is, also in a file in which nobody is."""
    source = samples.coco(SOURCE)
    change(source, lambda content: content["categories"].insert(0, {"id": 0, "name": "x", "supercategory": "x"}))
    assert import_labels(source, "mine").classes == ["background", "x", "road", "car", "tree"]


def coco_splits(categories, *, used):
    """A data set of two files with these categories; `used` are the ids of their objects, two each."""
    for split, ids in zip(("train", "val"), used, strict=True):
        content = json.loads(samples.coco(SOURCE / "work" / split).read_text())
        content["categories"] = categories
        content["annotations"] = content["annotations"][: len(ids)]
        for one, number in zip(content["annotations"], ids, strict=True):
            one["category_id"] = number
        content["images"][0]["file_name"] = f"{split}.png"
        samples.save(SOURCE / "set" / "annotations" / f"instances_{split}.json", content)
        samples.photo(SOURCE / "set" / "images" / f"{split}.png", seed=len(split))
    return SOURCE / "set"


@pytest.mark.parametrize("used", [((1, 2), (3, 3)), ((2, 3), (1, 2)), ((2, 3), (3, 3))])
def test_coco_keeps_a_class_above_others_whoever_uses_it(used):
    """Of two files, or of each alone, the classes are the same."""
    categories = [
        {"id": 1, "name": "vehicle", "supercategory": "thing"},
        {"id": 2, "name": "car", "supercategory": "vehicle"},
        {"id": 3, "name": "bus", "supercategory": "vehicle"},
    ]
    source = coco_splits(categories, used=used)
    for number, part in enumerate((source, *sorted(source.glob("annotations/*.json")))):
        photos = None if part is source else source / "images"
        report = import_labels(part, f"mine{number}", photos=photos)
        assert report.classes == ["background", "vehicle", "car", "bus"]
    import_labels(source, "again")
    (file,) = Path("again/masks/train").rglob("*.png")
    drawn = decode_mask(file.read_bytes(), "mask")
    assert set(np.unique(drawn)) == {0, *used[0]}


@pytest.mark.parametrize(
    ("used", "names"),
    [(((2, 3), (3, 3)), ["car", "bus"]), (((2, 3), (1, 3)), ["cars", "car", "bus"])],
    ids=["unused", "used"],
)
def test_coco_drops_roboflows_project_only_if_no_file_uses_it(used, names):
    categories = [{"id": 1, "name": "cars", "supercategory": "none"}] + [
        {"id": number, "name": name, "supercategory": "cars"} for number, name in ((2, "car"), (3, "bus"))
    ]
    assert import_labels(coco_splits(categories, used=used), "mine").classes == ["background", *names]


def test_panoptic_images_without_an_annotation_are_counted():
    source = samples.SAMPLES["coco-panoptic"](SOURCE)
    file = SOURCE / "panoptic.json" if source.is_dir() else source
    change(file, lambda content: content["images"].append({"id": 99, "file_name": "b.jpg", "height": 4, "width": 4}))
    assert import_labels(source, "mine").left_out == {"images without a panoptic annotation": 1}


def test_reduced_labels_keep_what_is_ignored_already():
    """As Hugging Face's image processors do: 0 and 255 are 255, and i is i - 1."""
    samples.photo(SOURCE / "a.jpg")
    labels = scene()
    labels[0] = 255
    (SOURCE / "m.png").write_bytes(samples.png(labels))
    (SOURCE / "metadata.csv").write_text("file_name,mask_file_name\na.jpg,m.png\n")
    import_labels(SOURCE, "mine", reduce_labels=True, classes=["road", "car", "tree"])
    expected = labels.copy()
    expected[labels == 0] = 255
    expected = expected - 1
    expected[expected == 254] = 255
    assert np.array_equal(mask("a"), expected)


def table_of(*, id2label):
    """A table of one row, whose mask holds 0, 1, 2, 7 and 255 in its first row, and 0 else."""
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[0, :5] = 0, 1, 2, 7, 255
    samples.photo(SOURCE / "JPEGImages" / "a.jpg")
    (SOURCE / "SegmentationClass").mkdir()
    (SOURCE / "SegmentationClass" / "a.png").write_bytes(samples.png(numbers))
    if id2label is None:  # then it is a data set of VOC's
        return SOURCE
    (SOURCE / "metadata.csv").write_text("file_name,mask_file_name\nJPEGImages/a.jpg,SegmentationClass/a.png\n")
    if id2label:
        samples.save(SOURCE / "id2label.json", id2label)
    return SOURCE / "metadata.csv"


def named_by(rows, source):
    """The names of the first five pixels after an import with a class list; None for ignored."""
    Path("classes.csv").write_text(rows)
    import_labels(source, "mine", classes=read_classes("classes.csv"))
    space = read_classes("mine/classes.csv")
    (file,) = Path("mine/masks").rglob("*.png")
    found = space.encode(decode_mask(file.read_bytes(), "mask"))[0, :5].tolist()
    return [None if label == 255 else space.names[label] for label in found]


def test_numbers_keep_the_names_that_the_table_gives_them_whatever_the_order_of_a_class_list():
    source = table_of(id2label={"0": "background", "1": "road", "2": "car", "7": "tree"})
    assert named_by("name\nbackground\ncar\nroad\ntree\n", source) == ["background", "road", "car", "tree", None]
    samples.save(SOURCE / "id2label.json", {"0": "background", "1": "road", "7": "tree"})
    shutil.rmtree("mine")
    with pytest.raises(DatasetError, match=r"holds the number 2, and .*: give it a name in source/id2label.json"):
        named_by("name\nbackground\ncar\nroad\ntree\n", source)


@pytest.mark.parametrize("id2label", [None, {}], ids=["voc", "table"])
@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("name,id\nbackground,0\ncar,2\nroad,1\ntree,7\n", ["background", "road", "car", "tree", None]),
        ("name,id,ignore\nnothing,0,yes\ncar,1,\nroad,2,\ntree,7,\n", [None, "car", "road", "tree", None]),
        ("name,id\nborder,255\ncar,7\nroad,1\na,0\nb,2\n", ["a", "road", "b", "car", "border"]),
    ],
    ids=["order", "ignored", "255"],
)
def test_a_class_list_names_numbers_by_their_ids(rows, names, id2label):
    source = table_of(id2label=id2label)
    assert named_by(rows, source) == names
    shutil.rmtree("mine")
    with pytest.raises(DatasetError, match=r"holds the number 7, .*--classes FILE"):
        named_by("name,id\nbackground,0\ncar,2\nroad,1\n", source)


@pytest.mark.parametrize(
    "rows", ["name\nroad\ncar\ntree\n", "name,id,ignore\nother,0,yes\nroad,1,\ncar,2,\ntree,3,\n"], ids=["0..2", "1..3"]
)
def test_a_class_list_for_reduced_labels_counts_from_0_or_as_the_masks_do(rows):
    samples.datasets(SOURCE)
    (SOURCE / "id2label.json").unlink()
    Path("classes.csv").write_text(rows)
    space = read_classes("classes.csv")
    import_labels(SOURCE, "mine", classes=space, reduce_labels=True)
    expected = np.array([255, 0, 1, 2])[scene()]
    assert np.array_equal(space.encode(mask("train/a")), expected)


def test_coco_has_boxes_without_outlines_and_objects_too_thin_or_outside():
    source = samples.coco(SOURCE)

    def more(content):
        for number, segmentation in enumerate(([], [[2, 2, 6, 2, 6, 2.3, 2, 2.3]], [[-9, -9, -5, -9, -5, -5]],
                                               [[20, 2, 30, 2, 30, 5, 20, 5]])):  # fmt: skip
            content["annotations"].append(
                {"id": 50 + number, "image_id": 7, "category_id": 4, "segmentation": segmentation}
            )

    change(source, more)
    report = import_labels(source, "mine")
    assert report.dropped == {
        "no segmentation, only a box": 1,
        "too thin to cover a pixel's centre": 1,
        "outside of the photo": 1,
    }
    assert report.clipped == 1
    assert (mask()[2:5, 20:] == 2).all()
    change(source, lambda content: [one.update(segmentation=[]) for one in content["annotations"]])
    with pytest.raises(DatasetError, match=r"none of the 1 images has an object .*7 no segmentation, only a box"):
        import_labels(source, "none")


def test_coco_run_lengths_may_be_compressed():
    source = samples.coco(SOURCE)
    from pycocotools import mask as cocomask

    runs = cocomask.encode(np.asfortranarray((scene() == 3).astype(np.uint8)))
    change(source, lambda content: content["annotations"][2].update(
        segmentation={"size": runs["size"], "counts": runs["counts"].decode()}))  # fmt: skip
    import_labels(source, "mine")
    assert np.array_equal(mask(), scene())


def test_yolo_lists_of_photos_and_masks_of_the_semantic_task():
    samples.yolo(SOURCE)
    (SOURCE / "train.txt").write_text("./images/train/a.png\n\n")
    (SOURCE / "data.yaml").write_text("path: /somewhere/else\ntrain: train.txt\nnames: [road, car, tree]\n")
    import_labels(SOURCE, "listed")
    assert np.array_equal(mask("train/images/train/a", "listed"), scene(hole=False))
    ids = np.where(scene() == 0, 255, scene() + 10).astype(np.uint8)
    (SOURCE / "masks" / "train").mkdir(parents=True)
    (SOURCE / "masks" / "train" / "a.png").write_bytes(samples.png(ids))
    (SOURCE / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [road, car, tree]\n"
                                      "masks_dir: masks\nlabel_mapping: {11: 0, 12: 1, 13: 2}\n")  # fmt: skip
    import_labels(SOURCE, "semantic")
    assert np.array_equal(mask(output="semantic"), np.where(scene() == 0, 255, scene() - 1))


@pytest.mark.parametrize("rule", ["background", "ignore"])
def test_yolo_boxes_alone_are_no_labels(rule):
    samples.yolo(SOURCE)
    (SOURCE / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DatasetError, match=r"data.yaml: none of the 1 images has an object .*1 only a box"):
        import_labels(SOURCE, "mine", unlabelled=rule)
    assert not Path("mine").exists()


def test_yolo_draws_the_smaller_on_top_and_a_photo_without_a_file_is_background():
    samples.yolo(SOURCE)
    samples.photo(SOURCE / "images/train/b.png", seed=3)
    report = import_labels(SOURCE, "mine")
    assert report.images_without_objects == 1
    assert not mask("train/b").any()
    assert (mask("train/a")[8:12, 4:12] == 2).all()  # the car is listed before the road


def pillow(draw):
    picture = Image.new("1", (WIDTH, HEIGHT))
    draw(ImageDraw.Draw(picture))
    return np.array(picture)


@pytest.mark.parametrize(
    ("kind", "points", "draw", "off"),
    [
        ("polygon", [[3, 2], [14, 4], [9, 12]], lambda d: d.polygon([(3, 2), (14, 4), (9, 12)], fill=1, outline=1), 8),
        ("rectangle", [[9, 9], [3, 2]], lambda d: d.rectangle([(3, 2), (9, 9)], fill=1), 0),
        ("circle", [[10, 8], [10, 3]], lambda d: d.ellipse([(5, 3), (15, 13)], fill=1), 0),
        ("line", [[4, 7], [18, 7]], lambda d: d.line([(4, 7), (18, 7)], fill=1, width=10), 17),
        ("linestrip", [[4, 7], [18, 7]], lambda d: d.line([(4, 7), (18, 7)], fill=1, width=10), 17),
        ("linestrip", [[4, 7], [4, 7], [18, 7]], lambda d: d.line([(4, 7), (18, 7)], fill=1, width=10), 17),
        ("point", [[11, 7]], lambda d: d.ellipse([(6, 2), (16, 12)], fill=1), 0),
        ("oriented_rectangle", samples.indices((3, 2, 9, 9)), lambda d: d.rectangle([(3, 2), (8, 8)], fill=1), 0),
    ],
)
def test_labelme_shapes_are_those_of_pillow_but_for_their_border(kind, points, draw, off):
    samples.labelme(SOURCE)
    shape = {"label": "thing", "points": points, "shape_type": kind}
    change(SOURCE / "a.json", lambda content: content.update(shapes=[shape]))
    import_labels(SOURCE, "mine")
    expected = pillow(draw)
    assert (mask().astype(bool) != expected).sum() <= off
    assert expected.sum() > 40


@pytest.mark.parametrize("kind", ["line", "linestrip"])
def test_labelme_lines_without_length_are_counted(kind):
    samples.labelme(SOURCE)
    shape = {"label": "road", "points": [[4, 7], [4, 7]], "shape_type": kind}
    change(SOURCE / "a.json", lambda content: content["shapes"].append(shape))
    assert import_labels(SOURCE, "mine").dropped == {"a line without length": 1}
    assert np.array_equal(mask(), np.array([0, 2, 1, 3])[scene()])


def test_labelme_has_its_own_classes_embedded_photos_and_photos_elsewhere():
    samples.labelme(SOURCE)
    photo = (SOURCE / "a.png").read_bytes()
    (SOURCE / "a.png").unlink()

    def embedded(content):
        content.update(imagePath="..\\photos\\a.png", imageData=base64.b64encode(photo).decode())
        content["shapes"] += [
            {"label": "__ignore__", "points": [[0, 0], [3, 3]], "shape_type": "rectangle"},
            {"label": "_background_", "points": [[2, 2], [3, 3]], "shape_type": "rectangle"},
            {"label": "road", "points": [[1, 1], [2, 2]], "shape_type": "points"},
        ]

    change(SOURCE / "a.json", embedded)
    (SOURCE / "labels.txt").write_text("__ignore__\n_background_\ntree\ncar\nroad\n")
    report = import_labels(SOURCE, "mine")
    assert report.classes == ["background", "tree", "car", "road"]
    assert report.dropped == {"a set of points": 1}
    expected = np.array([0, 3, 2, 1])[scene()]
    expected[:4, :4] = 255
    expected[2:4, 2:4] = 0
    assert np.array_equal(mask(), expected)
    assert Path("mine/images/a.png").read_bytes() == photo
    samples.photo(Path("elsewhere/a.png"))
    import_labels(SOURCE, "again", photos="elsewhere")
    assert Path("again/images/a.png").is_symlink()
    (SOURCE / "labels.txt").write_text("tree\ncar\n")
    with pytest.raises(DatasetError, match=r"labels.txt does not list the label '__ignore__'"):
        import_labels(SOURCE, "x")


def test_labelme_files_in_subfolders_have_their_photos_in_the_same_ones_elsewhere():
    for site in ("site1", "site2"):
        samples.labelme(SOURCE / site)
        (SOURCE / site / "a.png").unlink()
        samples.photo(Path("photos") / site / "a.png", seed=int(site[-1]))
    samples.photo(Path("photos/a.png"), seed=3)
    samples.labelme(SOURCE / "site3")  # of which there is no folder of photos
    (SOURCE / "site3" / "a.png").unlink()
    import_labels(SOURCE, "mine", photos="photos")
    found = {path.relative_to("mine/images").as_posix(): path for path in Path("mine/images").rglob("*.png")}
    assert set(found) == {"site1/a.png", "site2/a.png", "a.png"}
    for name, path in found.items():
        assert os.path.realpath(path) == os.path.realpath(Path("photos") / name)
        assert np.array_equal(mask(name.removesuffix(".png")), np.array([0, 2, 1, 3])[scene()])
    for site in ("site2", "site3"):
        shutil.rmtree(SOURCE / site)
    change(SOURCE / "site1" / "a.json", lambda content: content.update(imagePath="../../photos/a.png"))
    import_labels(SOURCE, "again", photos="photos")  # which says where the photo is
    assert [path.as_posix() for path in Path("again/images").rglob("*.png")] == ["again/images/a.png"]


def test_cvat_turns_boxes_and_ellipses_and_draws_by_level():
    source = samples.cvat(SOURCE)
    text = source.read_text()
    head, _, _ = text.partition("<image")
    shapes = """<image id="0" name="a.png" width="24" height="16" subset="Validation">
<box label="car" xtl="4" ytl="6" xbr="12" ybr="10" rotation="90" z_order="3"></box>
<ellipse label="tree" cx="16" cy="8" rx="6" ry="3" rotation="90" z_order="-1"></ellipse>
<box label="road" xtl="0" ytl="8" xbr="24" ybr="16" z_order="2"></box>
<box label="tree" xtl="0" ytl="15" xbr="24" ybr="16" z_order="2"></box>
<polyline label="road" points="1,1;2,2" z_order="0"></polyline>
<box label="car" xtl="0" ytl="15" xbr="1" ybr="16"></box></image></annotations>"""
    source.write_text(head + shapes)
    report = import_labels(source, "mine")
    expected = np.zeros((16, 24), int)
    rows, columns = np.indices((16, 24)) + 0.5
    expected[((columns - 16) / 3) ** 2 + ((rows - 8) / 6) ** 2 < 1] = 3
    expected[8:] = 1
    expected[15:] = 3  # the later one of a level
    expected[4:12, 6:10] = 2
    assert np.array_equal(mask("val/a"), expected)
    assert report.dropped == {"a line": 1}
    assert report.images == {"val": 1}
    assert FolderDataset("mine", "train").label_space.colors[1:] == ((128, 64, 128), (0, 0, 142), (107, 142, 35))


def test_label_studio_has_ellipses_turned_boxes_bit_masks_and_several_annotations():
    source = samples.label_studio(SOURCE)
    opaque = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    opaque[scene() == 3, 3] = 255  # black on transparent
    data = "data:image/png;base64," + base64.b64encode(samples.png(opaque)).decode()

    def more(content):
        old = content[0]["annotations"][1]
        result = [
            {"type": "rectanglelabels", "value": {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90,
                                                  "rectanglelabels": ["car"]}},
            {"type": "ellipselabels", "value": {"x": 75, "y": 75, "radiusX": 12.5, "radiusY": 12.5, "rotation": 0,
                                                "ellipselabels": ["road"]}},
            {"type": "bitmasklabels", "value": {"imageDataURL": data, "bitmasklabels": ["tree"]}},
            {"type": "choices", "value": {"choices": ["good"]}},
            {"type": "rectangle", "value": {"x": 50, "y": 25, "width": 25, "height": 25}},
        ]  # fmt: skip
        content[0]["annotations"] = [
            {**old, "updated_at": "2026-05-01T10:00:00Z"},
            {"id": 9, "result": result, "updated_at": "2026-06-01T10:00:00Z"},
            {"id": 10, "result": [], "updated_at": "2026-05-03T10:00:00Z"},
        ]
        content.append({"id": 2, "data": {"image": "b.png"}, "annotations": []})

    change(source, more)
    report = import_labels(source, "mine")
    names = {name: number for number, name in enumerate(report.classes)}
    expected = np.zeros((16, 24), int)
    rows, columns = np.indices((16, 24)) + 0.5
    expected[((columns - 18) / 3) ** 2 + ((rows - 12) / 2) ** 2 < 1] = names["road"]
    expected[4:10, 8:12] = names["car"]  # about its upper left corner, (12, 4)
    expected[scene() == 3] = names["tree"]
    assert np.array_equal(mask("0f3b9c2d-a"), expected)
    assert report.left_out == {"tasks without annotation": 1}
    assert report.dropped == {"a choice": 1, "no class": 1}
    change(source, lambda content: content[0]["annotations"][0].update(ground_truth=True))
    import_labels(source, "truth")
    labels = mask("0f3b9c2d-a", "truth")
    assert ((labels > 0) == (scene() > 0)).all()


def test_supervisely_has_splits_and_lines():
    samples.supervisely(SOURCE)
    (SOURCE / "ds").rename(SOURCE / "training")
    line = {"classTitle": "car", "geometryType": "line", "points": {"exterior": [[0, 0], [5, 5]], "interior": []}}
    change(SOURCE / "training/ann/a.png.json", lambda content: content["objects"].append(line))
    report = import_labels(SOURCE, "mine")
    assert report.images == {"train": 1}
    assert report.dropped == {"a line": 1}
    assert np.array_equal(mask("train/a"), scene())


def test_voc_has_lists_borders_and_the_colours_of_a_label_map():
    samples.voc(SOURCE)
    samples.photo(SOURCE / "JPEGImages" / "b.jpg", seed=2)
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]], np.uint8)
    (SOURCE / "SegmentationClass" / "b.png").write_bytes(samples.png(colors[scene()]))
    lines = ("# label:color_rgb:parts:actions", "background:0,0,0::", "road:128,0,0::", "car:0,128,0::")
    (SOURCE / "labelmap.txt").write_text("\n".join(lines))
    lists = SOURCE / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    report = import_labels(SOURCE, "mine")
    assert report.images == {"train": 1}
    assert report.left_out == {"masks that no list of ImageSets names": 1}
    assert np.array_equal(mask("train/b"), np.where(scene() == 3, 255, scene()))
    assert report.classes == ["background", "road", "car"]


def rows_of(count=2):
    picture = samples.photo(Path("work/a.jpg")).read_bytes()
    return [{"pixel_values": {"bytes": picture, "path": None}, "label": {"bytes": samples.png(scene()), "path": None}}
            for _ in range(count)]  # fmt: skip


def test_tables_saved_to_disk_as_arrow():
    import pyarrow
    import pyarrow.ipc

    table = pyarrow.Table.from_pylist(rows_of())
    for split in ("train", "validation"):
        (SOURCE / split).mkdir()
        with pyarrow.ipc.new_stream(SOURCE / split / "data-00000-of-00001.arrow", table.schema) as file:
            file.write_table(table)
    report = import_labels(SOURCE, "mine")
    assert report.images == {"train": 2, "val": 2}
    assert report.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert np.array_equal(mask("train/000000"), scene())
    import_labels(SOURCE, "reduced", reduce_labels=True, classes=["road", "car", "tree"])
    assert np.array_equal(mask("train/000000", "reduced"), np.where(scene() == 0, 255, scene() - 1))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_of_an_imagefolder(kind):
    samples.photo(SOURCE / "train" / "a b.jpg")
    (SOURCE / "train" / "m.png").write_bytes(samples.png(np.repeat(scene()[..., None], 3, axis=2)))  # grey as RGB
    row = {"file_name": "a b.jpg", "mask_file_name": "m.png"}
    lines = json.dumps(row) + "\n" if kind == "jsonl" else "file_name,mask_file_name\na b.jpg,m.png\n"
    (SOURCE / "train" / f"metadata.{kind}").write_text(lines)
    samples.save(SOURCE / "id2label.json", {"0": "ground", "1": "road", "2": "car", "3": "tree"})
    report = import_labels(SOURCE, "mine")
    assert report.images == {"train": 1}
    assert report.classes == ["ground", "road", "car", "tree"]
    assert np.array_equal(mask("train/a b"), scene())


@pytest.mark.parametrize(("row", "line"), [("first", 2), ("second", 3)])
def test_rows_with_more_values_than_columns_are_named_unless_they_are_empty(row, line):
    """A comma in a name without quotes shifts all that follows."""
    (SOURCE / "m.png").write_bytes(samples.png(scene()))
    for name in ("a.jpg", "b.jpg"):
        samples.photo(SOURCE / name)
    rows = {"first": "a.jpg,m.png", "second": "b.jpg,m.png"}
    for more in (",", ",,extra"):
        text = "".join(f"{words}{more if name == row else ''}\n" for name, words in rows.items())
        (SOURCE / "metadata.csv").write_text(f"file_name,mask_file_name\n{text}")
        if more == ",":
            assert import_labels(SOURCE, "mine").images == {"": 2}
            continue
        with pytest.raises(DatasetError, match=rf"metadata.csv, line {line} has 4 values, and the header 2 columns"):
            import_labels(SOURCE, "again")


@pytest.mark.parametrize("beside", [(), ("trees.geojson",)], ids=["alone", "beside others"])
def test_geojson_called_json_is_read_in_a_folder(beside):
    source = samples.geo(SOURCE)
    content = json.loads(source.read_text())
    source.unlink()
    trees = [one for one in content["features"] if beside and one["properties"]["class"] == "tree"]
    areas = [one for one in content["features"] if one not in trees]
    for name in beside:
        samples.save(SOURCE / name, content | {"features": trees})
    samples.save(SOURCE / "areas.json", content | {"features": areas})
    samples.save(SOURCE / "settings.json", {"some": "thing"})
    (SOURCE / "other").mkdir()
    (SOURCE / "other/notes.json").write_bytes(b"\xff no JSON")  # of another program
    import_labels(SOURCE, "mine", format="geo")
    assert np.array_equal(mask("ortho"), np.array([0, 2, 1, 3])[scene()])


def test_masks_of_an_imagefolder_are_no_photos_and_lie_beside_the_metadata():
    samples.photo(SOURCE / "a.png")
    (SOURCE / "masks").mkdir()
    (SOURCE / "masks" / "a.png").write_bytes(samples.png(scene()))
    table = SOURCE / "metadata.csv"
    table.write_text("file_name,mask_file_name\na.png,mask/a.png\n")  # the folder is called masks
    with pytest.raises(DatasetError, match=r"metadata.csv, row 0: mask_file_name: 'mask/a.png' leads to the photo"):
        import_labels(SOURCE, "mine")
    table.write_text("file_name,mask_file_name\na.png,masks/a.png\n")
    import_labels(SOURCE, "mine")
    assert np.array_equal(mask("a"), scene())
    Path("pics").mkdir()
    (SOURCE / "a.png").rename("pics/a.png")
    import_labels(table, "again", photos="pics")  # where the masks are not
    assert np.array_equal(mask("a", "again"), scene())
    (SOURCE / "masks").rename("pics/masks")
    import_labels(table, "both", photos="pics")
    assert np.array_equal(mask("a", "both"), scene())
    (Path("pics") / "masks").rename("elsewhere")
    with pytest.raises(DatasetError, match=r"'masks/a.png' leads to the photo"):
        import_labels(table, "none", photos="pics")


def test_geojson_of_one_class_and_of_points():
    source = samples.geo(SOURCE)

    def plain(content):
        for feature in content["features"]:
            feature["properties"] = {"height": 3.5}
        content["features"].append({"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates":
                                    samples.on_the_map((1, 1, 2, 2), crs="OGC:CRS84")[0]}})  # fmt: skip

    change(source, plain)
    report = import_labels(source, "mine", field="")
    assert report.classes == ["background", "areas"]
    assert np.array_equal(mask("ortho"), (scene() > 0).astype(np.uint8))
    assert report.dropped == {"a Point": 1}
    assert report.overlapping_pixels == 32
    assert report.conflicting_pixels == 0


@pytest.mark.parametrize(("count", "kind"), [(4, np.uint16), (7, np.float32), (2, np.int16)])
def test_areas_over_rasters_of_bands(count, kind):
    """Pillow does not know their headers."""
    source = samples.geo(SOURCE)
    with rasterio.open(SOURCE / "ortho.tif") as file:
        profile = file.profile | {"count": count, "dtype": kind, "photometric": "minisblack"}
    with rasterio.open(SOURCE / "ortho.tif", "w", **profile) as file:
        file.write(np.zeros((count, HEIGHT, WIDTH), kind))
    report = import_labels(source, "mine")
    assert report.classes == ["background", "car", "road", "tree"]
    assert np.array_equal(mask("ortho"), np.array([0, 2, 1, 3])[scene()])


def on_raster(path, *, crs, transform):
    """Write a raster; returns a function of boxes of its pixels -> rings in OGC:CRS84."""
    with rasterio.open(path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8", crs=crs,
                       transform=transform) as file:  # fmt: skip
        file.write(np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))

    def ring(box):
        corners = [(transform.c + transform.a * x, transform.f + transform.e * y) for x, y in samples.outline(box)]
        xs, ys = rasterio.warp.transform(crs, "OGC:CRS84", *zip(*corners, strict=True))
        points = [list(point) for point in zip(xs, ys, strict=True)]
        return [*points, points[0]]

    return ring


def areas(boxes, ring):
    features = [{"type": "Feature", "properties": {"class": name}, "geometry": {"type": "Polygon", "coordinates":
                 [ring(box)]}} for name, box in boxes]  # fmt: skip
    return samples.save(SOURCE / "areas.geojson", {"type": "FeatureCollection", "features": features})


@pytest.mark.parametrize(
    ("crs", "step", "longitude"), [("EPSG:32701", 5, 180), ("EPSG:4326", 5e-5, 180), ("EPSG:4326", 5e-5, -180)]
)
def test_areas_on_both_sides_of_the_180th_meridian(crs, step, longitude):
    """Of a raster in the zone 1 of UTM, whose west lies in zone 60; and of longitudes beyond 180 degrees."""
    x, y = longitude, -17
    if crs != "EPSG:4326":
        (x,), (y,) = rasterio.warp.transform("OGC:CRS84", crs, [x], [y])
    transform = rasterio.Affine(step, 0, x - 12 * step, 0, -step, y + 8 * step)
    raw = on_raster(SOURCE / "fiji.tif", crs=crs, transform=transform)

    def ring(box):
        return [[(x + 180) % 360 - 180, y] for x, y in raw(box)]

    west, east, far = (0, 2, 8, 14), (16, 2, 23, 14), (4000, 2, 4010, 14)
    source = areas([("west", west), ("east", east), ("far", far)], ring)
    longitudes = [point[0] for feature in json.loads(source.read_text())["features"]
                  for point in feature["geometry"]["coordinates"][0]]  # fmt: skip
    assert min(longitudes) < -179 < 179 < max(longitudes)
    report = import_labels(SOURCE, "mine")
    assert report.objects == {"east": 1, "west": 1}
    assert report.dropped == {}  # what is far away is not looked at
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:14, 16:23], expected[2:14, 0:8] = 1, 3
    assert np.array_equal(mask("fiji"), expected)


@pytest.mark.parametrize("crs", ["OGC:CRS84", "EPSG:32633"])
@pytest.mark.parametrize(("right", "down"), [(1, 1), (-1, -1), (-1, 1)])
def test_rasters_whose_rows_go_north_or_columns_west(crs, right, down):
    origin, step = ((15.0, 48.75), 1e-5) if crs == "OGC:CRS84" else ((500000.0, 5400000.0), 0.5)
    transform = rasterio.Affine(right * step, 0, origin[0], 0, down * step, origin[1])
    boxes = [("road", samples.ROAD), ("car", samples.CAR), ("tree", samples.TREE)]
    areas(boxes, on_raster(SOURCE / "ortho.tif", crs=crs, transform=transform))
    import_labels(SOURCE, "mine")
    assert np.array_equal(mask("ortho"), np.array([0, 2, 1, 3])[scene(hole=False)])


def test_rasters_without_a_reference_system_beside_those_with_one_are_named():
    samples.geo(SOURCE)
    samples.raster(SOURCE / "b.tif", crs=None)
    with pytest.raises(DatasetError, match=r"b.tif has no coordinate reference system"):
        import_labels(SOURCE, "mine")


def test_photos_are_never_looked_up_outside_of_their_folders(tmp_path):
    inside = samples.photo(tmp_path / "photos" / "sub" / "a.png")
    samples.photo(tmp_path / "secret.png", seed=5)
    photos = Photos([tmp_path / "photos"], below=tmp_path / "photos")
    for name in ("sub/a.png", "/data/sub/a.png", "C:\\images\\sub\\a.png", "..\\x\\sub\\a.png", "a.png", "sub%2Fa.png",
                 "0123abcd-a.png"):  # fmt: skip
        assert photos.find(name, "x") == (inside, "sub/a.png")
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "/" + str(tmp_path / "secret.png"),
        "C:/" + str(tmp_path / "secret.png"),
        "%2F" + str(tmp_path / "secret.png"),
        "sub/../../secret.png",
        "%2e%2e/secret.png",
        "..",
        "\0",
    ):
        with pytest.raises(DatasetError, match="which is not below"):
            photos.find(name, "x")
    samples.photo(tmp_path / "photos" / "other" / "a.png")
    with pytest.raises(DatasetError, match="2 files are called so"):
        Photos([tmp_path / "photos"], below=tmp_path / "photos").find("a.png", "x")
    with pytest.raises(DatasetError, match="which is not below"):  # the user named no folder
        Photos([tmp_path / "photos"]).find("a.png", "x")


@pytest.mark.parametrize("subset", ["/{}/secret", "//{}/secret", "../../secret", "..", "C:/{}/secret"])
def test_a_subset_of_cvat_is_no_way_out_of_the_folders_of_photos(subset, tmp_path):
    source = samples.cvat(SOURCE)
    (SOURCE / "images/a.png").unlink()
    samples.photo(tmp_path / "secret/a.png", seed=5)
    samples.photo(tmp_path / "a.png", seed=5)
    word = subset.format(str(tmp_path)[1:])
    source.write_text(source.read_text().replace('name="a.png"', f'name="a.png" subset="{word}"'))
    with pytest.raises(DatasetError, match=r"'a.png', which is not below"):
        import_labels(source, "mine")
    inside = samples.photo(SOURCE / "images/a.png")
    import_labels(source, "mine")
    assert next(Path("mine/images").rglob("a.png")).resolve() == inside.resolve()


@pytest.mark.parametrize("root", ["/", "//"])
@pytest.mark.parametrize("where", ["photos", "base", "line"])
def test_a_description_of_yolo_is_no_way_out_of_its_folder(where, root, tmp_path):
    samples.yolo(SOURCE)
    (SOURCE / "images").rename(tmp_path / "images")
    (SOURCE / "labels").rename(tmp_path / "labels")
    outside = root + str(tmp_path)[1:]
    lines = {"photos": f"train: {outside}/images/train", "base": f"path: {outside}\ntrain: images/train",
             "line": "train: train.txt"}  # fmt: skip
    (SOURCE / "data.yaml").write_text(f"{lines[where]}\nnames: [road, car, tree]\n")
    (SOURCE / "train.txt").write_text(f"{outside}/images/train/a.png\n")
    with pytest.raises(DatasetError, match=r"is not below source|there is no photo"):
        import_labels(SOURCE, "mine")


@pytest.mark.parametrize("place", ["subset", "train", "path", "line"])
def test_folders_of_too_long_names_are_not_there(place):
    long = "é" * 200
    if place == "subset":
        source = samples.cvat(SOURCE)
        source.write_text(source.read_text().replace('name="a.png"', f'name="a.png" subset="{long}"'))
        import_labels(source, "mine")  # the photo is where it would be without a subset
        return
    samples.yolo(SOURCE)
    lines = {"train": f"train: {long}", "path": f"path: {long}\ntrain: images/val", "line": "train: train.txt"}
    (SOURCE / "data.yaml").write_text(f"{lines[place]}\nnames: [road, car, tree]\n")
    (SOURCE / "train.txt").write_text(f"{long}.png\n")
    with pytest.raises(DatasetError, match=r"is not below source|there is no photo"):
        import_labels(SOURCE, "mine")


def test_photos_of_one_folder_are_not_taken_from_another(tmp_path):
    """If the folder that a name has is there, the photo is in it, or missing."""
    root = tmp_path / "photos"
    first = samples.photo(root / "north" / "site1" / "a.png")
    samples.photo(root / "north" / "site2" / "b.png", seed=2)
    photos = Photos([root], below=root)
    with pytest.raises(DatasetError, match=r"names the photo 'site2/a.png', which is not below"):
        photos.find("site2/a.png", "x")
    assert photos.find("C:\\old\\a.png", "x") == (first, "north/site1/a.png")  # a folder that is nowhere says nothing
    assert photos.find("images/site1/a.png", "x") == (first, "north/site1/a.png")
    second = samples.photo(root / "north" / "site2" / "a.png", seed=3)
    assert Photos([root], below=root).find("site2/a.png", "x") == (second, "north/site2/a.png")
    with pytest.raises(DatasetError, match="2 files are called so"):
        Photos([root], below=root).find("old/a.png", "x")


def test_splits_in_names():
    names = ("instances_val2017", "train-00000-of-00001", "valid", "training", "test_b")
    assert [split_in(name) for name in names] == ["val", "train", "val", "train", "test"]
    assert [split_in(name) for name in ("", "trainval", "contest", "train_val")] == [None] * 4
