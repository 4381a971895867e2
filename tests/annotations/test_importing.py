"""From any format to the one layout: the same scene comes out of each, by named rules, all or nothing."""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support import annotation_samples as samples
from support.annotation_samples import SAMPLES, scene

import resnest_seg
from resnest_seg import DatasetError, FolderDataset, LabelSpace, import_labels
from resnest_seg.annotations import importing
from resnest_seg.annotations.importing import READERS, recognise
from resnest_seg.annotations.reading import shown_size
from resnest_seg.cli.datasets import import_labels as verb
from resnest_seg.data.folder import read_classes
from resnest_seg.errors import ConfigError
from resnest_seg.io.images import read_image


def opened(folder):
    """A folder whose only image is, by the hash of its name, in one of the two splits."""
    with contextlib.suppress(DatasetError):
        return FolderDataset(folder, "train")
    return FolderDataset(folder, "val")


def labels_of(folder, *, names=samples.NAMES):
    """The labels of a folder's first image by `names`, 255 for ignored, read as training reads them."""
    dataset = opened(folder)
    sample = dataset[0]
    labels = np.full(sample.labels.shape, 255, np.uint8)
    for label in set(np.unique(sample.labels)) - {255}:
        labels[sample.labels == label] = names.index(dataset.label_space.names[label])
    return labels


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sample(tmp_path):
    def make(form):
        folder = tmp_path / "source"
        folder.mkdir()
        return SAMPLES[form](folder)

    return make


def test_every_reader_has_a_sample_and_the_command_knows_every_format():
    assert set(READERS) == set(SAMPLES) == set(verb.FORMATS)


@pytest.mark.parametrize("form", SAMPLES)
def test_the_same_scene_comes_out_of_every_format(form, sample, tmp_path):
    source = sample(form)
    assert recognise(source) == form
    if source.is_file() and form not in ("labelme",):
        assert recognise(source.parent) == form
    report = import_labels(source, "mine")
    names = samples.NAMES
    if form == "voc":
        names = ("background", "boat", "car", "person")
    full = form in ("coco-panoptic", "voc", "datasets")
    expected = scene(hole=form != "yolo")
    if form == "coco-panoptic":
        expected[expected == 0] = 255  # void
    assert np.array_equal(labels_of("mine", names=names), expected)
    assert opened("mine")[0].image.std() > 50  # it is the photo, no mask
    assert report.format == form
    assert sum(report.images.values()) == 1
    assert report.conflicting_pixels == (0 if full else int((scene() == 2)[8:].sum()))
    assert json.loads(Path("mine/import_report.json").read_text()) == {**json.loads(json.dumps(report.__dict__))}
    assert names_in("mine") == ["classes.csv", "images", "import_report.json", "masks"]
    assert [name for name in names_in(".") if name.startswith(".")] == []


def test_geopackages_and_other_reference_systems_are_laid_over_the_raster(tmp_path):
    for number, crs in enumerate(("EPSG:32633", "EPSG:4326", "EPSG:3857")):
        folder = tmp_path / str(number)
        folder.mkdir()
        import_labels(samples.geopackage(folder, crs=crs), f"mine{number}")
        assert np.array_equal(labels_of(f"mine{number}"), scene())


@pytest.mark.parametrize(
    ("crs", "origin"),
    [("EPSG:3857", (15_550_000.0, 4_257_000.0)), ("EPSG:4527", (39_500_000.0, 4_430_000.0))],
    ids=["tokyo", "zone 39"],
)
def test_metres_far_from_the_origin_of_their_system_are_positions(crs, origin, tmp_path):
    samples.raster(tmp_path / "source" / "ortho.tif", crs=crs, origin=origin)
    ring = [[origin[0] + x * 0.5, origin[1] - y * 0.5] for x, y in [*samples.outline(samples.CAR), samples.CAR[:2]]]
    feature = {"type": "Feature", "properties": {"class": "car"},
               "geometry": {"type": "Polygon", "coordinates": [ring]}}  # fmt: skip
    system = {"type": "name", "properties": {"name": crs}}
    content = {"type": "FeatureCollection", "crs": system, "features": [feature]}
    samples.save(tmp_path / "source" / "a.geojson", content)
    import_labels("source", "mine")
    expected = np.zeros((16, 24), np.uint8)
    expected[6:12, 4:12] = 1
    assert np.array_equal(labels_of("mine", names=("background", "car")), expected)


def test_areas_on_the_map_are_those_of_rasterio(tmp_path):
    import rasterio
    from rasterio import features

    random = np.random.default_rng(0)
    samples.raster(tmp_path / "source" / "ortho.tif", size=(300, 400))
    rings = [(200 + random.uniform(20, 140) * np.stack([np.cos(a), np.sin(a)], 1)) for a in
             (np.sort(random.uniform(0, 2 * np.pi, 12)) for _ in range(5))]  # fmt: skip
    world = [[[500000 + x * 0.5, 5400000 - y * 0.5] for x, y in [*ring, ring[0]]] for ring in rings]
    areas = [{"type": "Polygon", "coordinates": [one]} for one in world]
    entries = [{"type": "Feature", "properties": {"kind": number}, "geometry": one} for number, one in enumerate(areas)]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    samples.save(tmp_path / "source" / "a.geojson", {"type": "FeatureCollection", "crs": crs, "features": entries})
    import_labels("source", "mine", field="kind")
    transform = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5400000)
    shapes = [(one, number + 1) for number, one in enumerate(areas)]
    expected = features.rasterize(shapes, (300, 400), transform=transform)
    found = labels_of("mine", names=("background", *map(str, range(5))))
    assert (found != expected).mean() < 1e-4  # a centre on an edge, to the last bit


@pytest.mark.parametrize(("rule", "on_road", "elsewhere"), [("tool", 2, 2), ("ignore", 255, 2)], ids=["tool", "ignore"])
def test_overlaps(rule, on_road, elsewhere, sample):
    report = import_labels(sample("cvat"), "mine", overlap=rule)
    labels = labels_of("mine")
    car = scene() == 2
    assert set(labels[8:][car[8:]]) == {on_road}
    assert set(labels[:8][car[:8]]) == {elsewhere}
    assert report.overlapping_pixels == report.conflicting_pixels == int(car[8:].sum())


def test_several_labels_become_bits(sample):
    report = import_labels(sample("cvat"), "mine", overlap="multilabel")
    mask = cv2.imread("mine/masks/a.png", cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint16
    expected = np.zeros((16, 24), np.uint16)
    expected[8:] |= 1
    expected[6:12, 4:12] |= 2
    expected[scene() == 3] |= 4
    assert np.array_equal(mask, expected)
    with contextlib.suppress(DatasetError):  # in the one split or in the other
        assert np.array_equal(FolderDataset("mine", "train", task="multilabel")[0].labels, expected)
    with contextlib.suppress(DatasetError):
        assert np.array_equal(FolderDataset("mine", "val", task="multilabel")[0].labels, expected)
    assert report.classes == ["road", "car", "tree"]
    assert report.pixels == {"road": 8 * 24, "car": 48, "tree": 28}
    assert "ignored" not in Path("mine/classes.csv").read_text()
    import_labels(next(Path().glob("source/*.xml")), "again", overlap="multilabel", unlabelled="ignore")
    mask = cv2.imread("again/masks/a.png", cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask, np.where(expected == 0, 1 << 15, expected))


def test_a_list_of_classes_gives_bits_in_its_order(sample):
    space = LabelSpace("own", ("background", "tree", "car", "road"), tuple((k, k, k) for k in range(4)), (0, 9, 7, 255))
    report = import_labels(sample("cvat"), "mine", overlap="multilabel", classes=space)
    mask = cv2.imread("mine/masks/a.png", cv2.IMREAD_UNCHANGED)
    assert [(mask >> bit & 1).sum() for bit in range(4)] == [28, 48, 8 * 24, 0]
    assert report.classes == ["tree", "car", "road"]
    assert "pixels belong to objects of several classes: all labels are kept" in "\n".join(report.lines())
    rows = [row.split(",")[:2] for row in Path("mine/classes.csv").read_text().splitlines()]
    assert rows == [["name", "id"], ["tree", "0"], ["car", "1"], ["road", "2"]]


def test_ignored_pixels_of_a_list_with_255_are_no_class(sample):
    names = ("background", "road", "car", "tree")
    space = LabelSpace("own", names, tuple((k, k, k) for k in range(4)), (0, 255, 7, 9))
    import_labels(sample("cvat"), "mine", overlap="ignore", classes=space)
    mask, car = np.array(Image.open("mine/masks/a.png")), scene() == 2
    assert set(mask[8:][car[8:]]) == {254}
    assert read_classes("mine/classes.csv").ignored_raw_ids == (254,)


def test_more_labels_than_bits_are_refused(tmp_path):
    source = samples.coco(tmp_path)
    content = json.loads(source.read_text())
    content["categories"] += [{"id": 100 + number, "name": f"thing {number}"} for number in range(13)]
    samples.save(source, content)
    with pytest.raises(DatasetError, match="16 classes, and masks of several labels hold 15"):
        import_labels(source, "mine", overlap="multilabel")


@pytest.mark.parametrize(("rule", "free", "pixels"), [("ignore", 255, 0), ("class", 2, 1), ("background", 0, 0)])
def test_crowds(rule, free, pixels, tmp_path):
    source = samples.coco(tmp_path)
    content = json.loads(source.read_text())
    runs = {"size": [16, 24], "counts": samples.runs(np.indices((16, 24))[1] < 10, "F")}
    content["annotations"].append({"id": 9, "image_id": 7, "category_id": 4, "iscrowd": 1, "segmentation": runs})
    samples.save(source, content)
    report = import_labels(source, "mine", crowd=rule)
    labels = labels_of("mine")
    objects = scene() > 0
    assert np.array_equal(labels[objects], scene()[objects])  # a crowd is below every object
    assert set(labels[:, :10][~objects[:, :10]]) == {free}
    assert report.crowds == 1
    assert report.objects == {"road": 1, "car": 2 if rule == "class" else 1, "tree": 1}
    assert report.overlapping_pixels == 32  # the car on the road, as before


@pytest.mark.parametrize("rule", ["ignore", "class", "background"])
def test_images_of_crowds_alone(rule, tmp_path):
    """They have what --crowd makes of them, and a set of them alone has no object unless they are of their class."""
    source = many(tmp_path, ["a.png", "b.png"])
    content = json.loads(source.read_text())
    crowd = [one | {"iscrowd": 1} for one in content["annotations"] if one["image_id"] == 1 and one["category_id"] == 9]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 0] + crowd
    report = import_labels(samples.save(source, content), "mixed", crowd=rule)
    found = np.array(Image.open("mixed/masks/b.png"))
    label = {"ignore": 255, "class": 3, "background": 0}[rule]
    assert np.array_equal(found, np.where(scene() == 3, label, 0))
    assert report.images_without_objects == (1 if rule == "background" else 0)
    content["annotations"] = crowd
    samples.save(source, content)
    if rule == "class":
        assert import_labels(source, "crowds", crowd=rule).objects == {"tree": 1}
        return
    with pytest.raises(DatasetError, match=r"none of the 2 images .*1 crowd regions, which --crowd class draws"):
        import_labels(source, "crowds", crowd=rule)


def test_unlabelled_pixels_and_classes_of_the_users(sample, tmp_path):
    source = sample("coco")
    import_labels(source, "mine", unlabelled="ignore")
    assert np.array_equal(labels_of("mine"), np.where(scene() == 0, 255, scene()))
    space = LabelSpace("own", ("car", "tree", "road", "background"), ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 0, 0)),
                       (9, 7, 5, 3), (255,))  # fmt: skip
    import_labels(source, "ordered", classes=space)
    mask = np.array(Image.open("ordered/masks/a.png"))
    assert np.array_equal(mask, np.array([3, 5, 9, 7])[scene()])
    assert np.array_equal(labels_of("ordered"), scene())
    assert FolderDataset("ordered").label_space.colors == space.colors
    with pytest.raises(DatasetError, match=r"has the class 'car', which the list of 3 classes does not .* 'cart'"):
        import_labels(source, "x", classes=["road", "cart", "tree"])
    with pytest.raises(DatasetError, match="no 'background' for pixels without an object"):
        import_labels(source, "x", classes=["road", "car", "tree"])
    assert not Path("x").exists()


@pytest.mark.parametrize("rule", ["tool", "multilabel"])
def test_classes_that_the_list_ignores_are_ignored(rule, sample):
    source = sample("coco")
    Path("list.csv").write_text("name,id,ignore\nbackground,0,\nroad,3,\ncar,4,yes\ntree,5,\n")
    space = read_classes("list.csv")
    report = import_labels(source, "mine", classes=space, overlap=rule)
    mask = cv2.imread("mine/masks/a.png", cv2.IMREAD_UNCHANGED)
    if rule == "multilabel":
        road = np.indices((16, 24))[0] >= 8  # below the car as well
        ignored = np.where(scene() == 2, 1 << 15, 0)
        assert np.array_equal(mask, np.where(road, 1, np.where(scene() == 3, 2, ignored)))
        return
    assert np.array_equal(labels_of("mine"), np.where(scene() == 2, 255, scene()))
    assert np.array_equal(np.array(Image.open("mine/masks/a.png")), np.array([0, 3, 4, 5])[scene()])
    assert (report.objects, report.overlapping_pixels) == ({"road": 1, "tree": 1}, 0)
    assert verb.main([str(source), "--output", "again", "--classes", "list.csv"]) == 0
    assert Path("again/masks/a.png").read_bytes() == Path("mine/masks/a.png").read_bytes()


@pytest.mark.parametrize("name", ["void", "Ignore", "__ignore__"])
@pytest.mark.parametrize("overlap", ["tool", "multilabel"])
def test_a_class_whose_name_means_ignored_pixels_is_one_if_the_list_has_it(name, overlap, tmp_path):
    source = samples.coco(tmp_path)
    content = json.loads(source.read_text())
    content["categories"][2]["name"] = name  # car
    samples.save(source, content)
    report = import_labels(source, "plain", overlap=overlap)
    assert report.classes == ["background", "road", "tree"][overlap == "multilabel" :]
    assert report.ignored_objects == {name: 1}
    assert f"1 objects of the class {name!r} are ignored pixels: to make it a class, list it in" in "\n".join(
        report.lines()
    )
    assert (report.objects, report.pixels["ignored"] > 0) == ({"road": 1, "tree": 1}, True)
    listed = import_labels(source, "listed", overlap=overlap, classes=["background", "road", name, "tree"])
    assert listed.objects == {"road": 1, name: 1, "tree": 1}
    assert listed.ignored_objects == {}
    if overlap == "tool":
        assert np.array_equal(labels_of("listed", names=("background", "road", name, "tree")), scene())
        assert np.array_equal(labels_of("plain"), np.where(scene() == 2, 255, scene()))


def test_photos_are_links_or_copies_and_are_found_elsewhere(sample, tmp_path):
    source = sample("coco")
    import_labels(source, "linked")
    assert Path("linked/images/a.png").is_symlink()
    shutil.move("source/images", "elsewhere")
    with pytest.raises(DatasetError, match=r"names the photo 'a.png', which is not below .*--photos FOLDER"):
        import_labels(source, "x")
    import_labels(source, "copied", photos="elsewhere", photos_as="copy")
    assert not Path("copied/images/a.png").is_symlink()
    assert Path("copied/images/a.png").read_bytes() == Path("elsewhere/a.png").read_bytes()
    with pytest.raises(ConfigError, match="there is no folder of photos nowhere"):
        import_labels(source, "x", photos="nowhere")


def many(tmp_path, names):
    """A COCO file with the scene in several images."""
    source = samples.coco(tmp_path / "many")
    content = json.loads(source.read_text())
    first, annotations = content["images"][0], content["annotations"]
    content["images"] = [{**first, "id": number, "file_name": name} for number, name in enumerate(names)]
    content["annotations"] = [{**one, "id": 10 * number + one["id"], "image_id": number}
                              for number in range(len(names)) for one in annotations]  # fmt: skip
    for number, name in enumerate(names):
        samples.photo(tmp_path / "many" / "images" / name, seed=number)
    return samples.save(source, content)


def test_names_are_kept_safe_and_unique(tmp_path):
    names = ["sub dir/ü [1] 100%.png", "sub dir/a.png", "a.png", "b.png", "b.jpg", ".hidden.png", "__x/y.png"]
    report = import_labels(many(tmp_path, names), "mine")
    photos = sorted(path.relative_to("mine/images").as_posix() for path in Path("mine/images").rglob("*.*g"))
    assert photos == sorted(["sub dir/ü [1] 100%.png", "sub dir/a.png", "a.png", "b.png.png", "b.jpg.jpg",
                             "p.hidden.png", "p__x/y.png"])  # fmt: skip
    assert report.images == {"": 7}
    assert len(FolderDataset("mine", "train")) + len(FolderDataset("mine", "val")) == 7


def test_splits_are_folders_and_can_be_chosen(tmp_path):
    folder = tmp_path / "coco"
    for number, split in enumerate(("train", "val")):
        content = json.loads(samples.coco(tmp_path / split).read_text())
        content["images"][0]["file_name"] = f"{split}.png"
        samples.save(folder / "annotations" / f"instances_{split}2017.json", content)
        samples.photo(folder / f"{split}2017" / f"{split}.png", seed=number)
    samples.save(folder / "annotations" / "captions_val2017.json", {"images": [], "annotations": []})
    report = import_labels(folder, "mine")
    assert report.images == {"train": 1, "val": 1}
    assert [FolderDataset("mine", split).sample_name(0) for split in ("train", "val")] == [
        "images/train/train.png", "images/val/val.png"]  # fmt: skip
    assert import_labels(folder, "some", splits=["val"]).images == {"val": 1}
    with pytest.raises(DatasetError, match="no image of the split test"):
        import_labels(folder, "x", splits=["test"])


def test_splits_in_the_names_of_photos_are_splits():
    """labelme, CVAT and COCO name photos with their folders; `extra` is in no split."""
    for folder in ("train", "valid", "extra"):
        samples.photo(samples.labelme(Path("source", folder)) / "a.png", seed=len(folder))
    with pytest.raises(DatasetError, match=r"extra/a.json belongs to none of the splits .* --split train val"):
        import_labels("source", "mine")
    assert import_labels("source", "mine", splits=["train", "val"]).images == {"train": 1, "val": 1}
    assert [FolderDataset("mine", split).sample_name(0) for split in ("train", "val")] == [
        "images/train/a.png", "images/val/a.png"]  # fmt: skip
    assert import_labels("source", "some", splits=["val"]).images == {"val": 1}
    shutil.rmtree("source/extra")
    assert import_labels("source", "all").images == {"train": 1, "val": 1}
    shutil.rmtree("source/train")
    assert import_labels("source", "named").images == {"": 1}  # without a split to train on, a folder is a name
    assert Path("named/images/valid/a.png").exists()


def test_the_result_is_all_or_nothing_and_resumes(tmp_path, monkeypatch):
    source = many(tmp_path, [f"{number}.png" for number in range(6)])
    drawn, draw = [], importing.draw_labels

    def interrupted(image, *rest):
        if len(drawn) == 3:
            drawn.append("stop")
            raise KeyboardInterrupt
        drawn.append(image.name)
        return draw(image, *rest)

    monkeypatch.setattr(importing, "draw_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_labels(source, "mine")
    assert not Path("mine").exists()
    with open(".mine.importing/progress.jsonl", "a") as file:
        file.write('{"place": "5.p')  # a line that was being written
    Path(".mine.importing/masks/.5.123.tmp.png").touch()  # and a file
    report = import_labels(source, "mine")
    assert drawn == ["0.png", "1.png", "2.png", "stop", "3.png", "4.png", "5.png"]
    monkeypatch.setattr(importing, "draw_labels", draw)
    fresh = import_labels(source, "fresh")
    assert report == fresh
    assert {path.relative_to("mine") for path in Path("mine").rglob("*")} == {
        path.relative_to("fresh") for path in Path("fresh").rglob("*")}  # fmt: skip
    for path in Path("fresh").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (Path("mine") / path.relative_to("fresh")).read_bytes()
    assert [name for name in names_in(".") if name.startswith(".")] == []


def test_what_is_drawn_is_kept_if_the_folder_cannot_be_renamed(sample, monkeypatch):
    source = sample("coco")

    def refused(path, target):
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(ConfigError, match=r"cannot rename .*\.mine\.importing to mine: Device or resource busy"):
            import_labels(source, "mine")
    monkeypatch.setattr(importing, "draw_labels", lambda *rest: pytest.fail("drawn again"))
    assert import_labels(source, "mine").objects == {"road": 1, "car": 1, "tree": 1}
    assert names_in("mine") == ["classes.csv", "images", "import_report.json", "masks"]


def test_an_empty_mount_point_is_no_output(sample, tmp_path, monkeypatch):
    """Nothing can be renamed to it, which would be found out when all is drawn."""
    Path("mine").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mine")
    with pytest.raises(ConfigError, match=r"mine is a mount point, .*: choose a folder in it, such as mine/imported"):
        import_labels(sample("coco"), "mine")
    assert names_in(".") == ["mine", "source"]


@pytest.mark.parametrize("change", ["options", "source"])
def test_another_import_does_not_go_on_with_what_is_there(change, tmp_path, monkeypatch):
    source = many(tmp_path, ["0.png", "1.png"])
    draw = importing.draw_labels

    def interrupted(image, *rest):
        if image.name == "1.png":
            raise KeyboardInterrupt
        return draw(image, *rest)

    monkeypatch.setattr(importing, "draw_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_labels(source, "mine")
    monkeypatch.setattr(importing, "draw_labels", draw)
    if change == "source":
        content = json.loads(source.read_text())
        content["annotations"] = content["annotations"][1:]
        samples.save(source, content)
    report = import_labels(source, "mine", **({"unlabelled": "ignore"} if change == "options" else {}))
    labels = np.array(Image.open("mine/masks/0.png"))
    assert (255 in labels) == (change == "options")
    assert report.objects["road"] == (2 if change == "options" else 1)


@pytest.mark.parametrize("change", ["reduced", "mask"])
def test_nor_with_masks_that_were_made_otherwise(change, tmp_path, monkeypatch):
    """A table's masks of before, when the numbers mean others now, or a mask was mended."""
    source = tmp_path / "table"
    for name, label in (("a", 1), ("b", 2)):
        samples.photo(source / f"{name}.jpg")
        (source / f"{name}.png").write_bytes(samples.png(np.full((16, 24), label, np.uint8)))
    (source / "metadata.csv").write_text("file_name,mask_file_name\na.jpg,a.png\nb.jpg,b.png\n")
    draw = importing.draw_labels

    def interrupted(image, *rest):
        if image.name == "b.jpg":
            raise KeyboardInterrupt
        return draw(image, *rest)

    given = {"classes": ["x", "y", "z"]}
    monkeypatch.setattr(importing, "draw_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_labels(source, "mine", **given)
    monkeypatch.setattr(importing, "draw_labels", draw)
    if change == "mask":
        (source / "a.png").write_bytes(samples.png(np.zeros((16, 24), np.uint8)))
    import_labels(source, "mine", **given, reduce_labels=change == "reduced")
    assert [np.unique(np.array(Image.open(f"mine/masks/{name}.png"))).tolist() for name in "ab"] == (
        [[0], [1]] if change == "reduced" else [[0], [2]]
    )


def test_outputs_that_cannot_be_are_refused(sample, tmp_path):
    source = sample("coco")
    Path("full").mkdir()
    Path("full/file").touch()
    with pytest.raises(ConfigError, match=r"full already exists. Choose another --output"):
        import_labels(source, "full")
    with pytest.raises(ConfigError, match="lies within"):
        import_labels(source.parent, source.parent / "mine")
    Path("empty").mkdir()
    import_labels(source, "empty")
    assert Path("empty/classes.csv").is_file()
    if os.geteuid():
        Path("locked").mkdir(mode=0o555)
        with pytest.raises(ConfigError, match="no permission"):
            import_labels(source, "locked/mine")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("crowd", "drop", "unknown crowd 'drop'"),
        ("unlabelled", "void", "unknown unlabelled 'void'"),
        ("overlap", "last", "unknown overlap 'last'"),
        ("photos_as", "move", "unknown photos_as 'move'"),
        ("format", "cocco", "unknown format 'cocco'. Did you mean 'coco'"),
        ("splits", ["valid"], "unknown split 'valid'. Did you mean 'val'"),
        ("classes", "car", "classes must be a list"),
    ],
)
def test_unknown_options_name_the_nearest(option, value, says, sample):
    with pytest.raises(ConfigError, match=says):
        import_labels(sample("coco"), "mine", **{option: value})


@pytest.mark.parametrize("inner", ["annotations", "any"])
def test_an_export_of_label_studio_is_read_where_it_is_recognised(inner, sample):
    sample("label-studio")
    shutil.move("source", inner)
    Path("source").mkdir()
    shutil.move(inner, "source")
    samples.save(Path("source/settings.json"), {"some": "thing"})
    assert recognise(Path("source")) == "label-studio"
    import_labels("source", "mine")
    assert np.array_equal(labels_of("mine"), scene())


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_an_export_of_label_studio_is_named(made):
    if made:
        samples.save(Path("folder/a.json"), {"some": "thing"})
    with pytest.raises(DatasetError, match=r"folder holds no export of Label Studio"):
        import_labels("folder", "mine", format="label-studio")


@pytest.mark.parametrize("form", SAMPLES)
def test_options_of_some_formats_are_refused_for_all_others(form, sample):
    source = sample(form)
    if form != "datasets":
        with pytest.raises(ConfigError, match=f"--reduce-labels is for tables .*datasets.*, and .* is {form}"):
            import_labels(source, "mine", reduce_labels=True)
    if form != "geo":
        for field in ("class", ""):
            with pytest.raises(ConfigError, match=f"--field is for .*geo.*, and .* is {form}"):
                import_labels(source, "mine", field=field)
    assert not Path("mine").exists()


def test_what_is_no_format_is_said(tmp_path):
    with pytest.raises(DatasetError, match="there is no file or folder nothing"):
        import_labels("nothing", "mine")
    Path("a.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"none of the known formats .* Unpack it"):
        import_labels("a.zip", "mine")
    Path("b").mkdir()
    with pytest.raises(DatasetError, match=r"none of the known formats .coco, coco-panoptic, yolo"):
        import_labels("b", "mine")
    samples.save(Path("c.json"), {"some": "thing"})
    with pytest.raises(DatasetError, match="say --format NAME"):
        import_labels("c.json", "mine")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_photo_turned_by_its_tag_is_told_from_one_of_another_size(kind, sample, tmp_path):
    source = sample("coco")
    samples.photo(Path("source/images/a.png"), size=(20, 30))
    with pytest.raises(DatasetError, match=r"images\[0\]: the annotation is for 24 x 16 pixels .* has 30 x 20"):
        import_labels(source, "mine")
    tag = Image.Exif()
    tag[274] = 6
    Image.new("RGB", (24, 16)).save(f"source/images/a.{kind}", exif=tag)
    content = json.loads(source.read_text())
    content["images"][0]["file_name"] = f"a.{kind}"
    samples.save(source, content)
    with pytest.raises(DatasetError, match=r"has 16 x 24. The photo is turned by its orientation tag"):
        import_labels(source, "mine")


@pytest.mark.parametrize("place", ["before the pixels", "behind the pixels", "without"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_png_is_measured_as_training_reads_it(place, in_memory, tmp_path):
    tag, path = Image.Exif(), tmp_path / "a.png"
    tag[274] = 8
    Image.new("RGB", (24, 16)).save(path, exif=tag)
    data = path.read_bytes()
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    last = data.index(b"IEND") - 4
    moved = {"before the pixels": data, "behind the pixels": data[:at] + data[end:last] + data[at:end] + data[last:],
             "without": data[:at] + data[end:]}  # fmt: skip
    path.write_bytes(moved[place])
    stored, seen = shown_size(path.read_bytes() if in_memory else path)
    assert (stored, seen) == ((16, 24), read_image(path).shape[:2])
    assert seen == ((16, 24) if place == "without" else (24, 16))


def test_the_command(sample, capsys):
    source = sample("cvat")
    Path("names.csv").write_text("name\nbackground\ncar\ntree\nroad\n")
    words = [str(source), "--output", "mine", "--classes", "names.csv", "--photos-as", "copy"]
    assert verb.main(words) == 0
    said = capsys.readouterr().out
    assert "cvat: 1 images, 3 objects of 4 classes." in said
    assert "32 pixels (8.3 %) belong to objects of several classes: the order of the tool decides" in said
    assert "--dataset folder --data.root mine" in said
    assert FolderDataset("mine").label_space.names == ("background", "car", "tree", "road")
    assert np.array_equal(labels_of("mine"), scene())


@pytest.mark.parametrize(
    ("form", "package", "extra"), [("datasets", "pyarrow", "import"), ("geo", "rasterio", "large")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(form, package, extra, sample, monkeypatch):
    source = sample(form)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConfigError, match=rf"needs {package}, which is not installed: pip install 'resnest-seg.{extra}.'"
    ):
        import_labels(source, "mine")


@pytest.mark.parametrize("color", [(224, 224, 192), (255, 255, 255), (0, 0, 0)])
def test_ignored_pixels_have_a_colour_of_their_own_in_the_palette(color, sample):
    """Else a reader that goes by colours would take them for the class of the same colour."""
    names = ("road", "car", "tree")
    space = LabelSpace("own", names, (color, (1, 2, 3), (4, 5, 6)), (0, 1, 2), (255,))
    import_labels(sample("coco"), "mine", classes=space, unlabelled="ignore")
    assert np.array_equal(labels_of("mine"), np.where(scene() == 0, 255, scene()))


def test_the_function_is_public():
    assert resnest_seg.import_labels is importing.import_labels
