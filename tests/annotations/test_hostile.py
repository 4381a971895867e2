"""Ten damaged or hostile files for every importer: one clear error with file, object and value, and nothing written."""

import base64
import functools
import json
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.annotation_samples import SAMPLES, brush, geopackage, png, raster

from resnest_seg import DatasetError, import_labels

GONE = object()
BOMB = base64.b64encode(zlib.compress(bytes(200 << 20), 9)).decode()
"""Packs 200 MiB of zeros into 270 KB."""


def edit(name, keys, value):
    """A change of one value of a JSON file below the sample's folder; `GONE` removes it."""

    def change(folder):
        path = folder / name
        document = json.loads(path.read_text())
        *outer, last = keys
        place = functools.reduce(lambda inner, key: inner[key], outer, document)
        if value is GONE:
            del place[last]
        elif isinstance(last, int) and last == len(place):
            place.append(value)
        else:
            place[last] = value
        path.write_text(json.dumps(document))

    return change


def text(name, old, new):
    """A replacement in a text file."""

    def change(folder):
        path = folder / name
        before = path.read_text(encoding="utf-8-sig")
        assert old in before
        path.write_text(before.replace(old, new))

    return change


def content(name, data):
    """Another content of a file."""
    return lambda folder: (folder / name).write_bytes(data(folder / name) if callable(data) else data)


def cut(path):
    return path.read_bytes()[: len(path.read_bytes()) // 2]


def huge_png(path=None):
    """A PNG whose header announces 60000 x 60000 pixels."""
    data = bytearray(png(np.zeros((2, 2), np.uint8)))
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def laughs(path):
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE a [<!ENTITY l0 "ha">{entities}]>'.encode() + path.read_bytes().partition(b"?>")[2].replace(
        b"<version>1.1", b"<version>&l9;")  # fmt: skip


def table(rows):
    def change(folder):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")

    return change


def row(**cells):
    return [{"image": {"bytes": png(np.zeros((16, 24, 3), np.uint8)), "path": "a.png"}, **cells}]


def mask_of(data):
    return {"bytes": data, "path": None}


def sql(statement, *values):
    def change(folder):
        base = sqlite3.connect(folder / "areas.gpkg")
        base.execute(statement, values)
        base.commit()
        base.close()

    return change


def blob(*rings, head=b"GP\0\1\5\0\0\0", kind=3, counts=None):
    data = head + struct.pack("<BII", 1, kind, len(rings))
    for ring in rings:
        data += struct.pack("<I", len(ring) if counts is None else counts)
        data += b"".join(struct.pack("<dd", *point) for point in ring)
    return data


NESTED = b'{"shapes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ANNOTATIONS = ("annotations.json", "annotations")

CASES = {
    "coco": [
        (r"annotations\[1\].category_id is null", edit("annotations.json", ["annotations", 1, "category_id"], None)),
        ("is not valid JSON: .* truncated", content("annotations.json", cut)),
        ("is nested too deep", content("annotations.json", NESTED)),
        ("holds the number NaN", text("annotations.json", "[0, 8,", "[NaN, 8,")),
        (
            r"annotations\[1\].segmentation\[0\] holds the coordinate inf",
            text("annotations.json", "[4, 6,", "[1e999, 6,"),
        ),
        ("a number of too many digits", text("annotations.json", '"id": 7', f'"id": {"9" * 5000}')),
        (
            r"annotations\[2\].segmentation.counts: the runs cover 12 pixels, and the area has 16 x 24",
            edit("annotations.json", ["annotations", 2, "segmentation", "counts"], [5, 7]),
        ),
        (
            r"annotations\[2\].segmentation.size: the size \[99999, 99999\] is not that of the photo",
            edit(
                "annotations.json", ["annotations", 2, "segmentation"], {"size": [99999, 99999], "counts": [9999800001]}
            ),
        ),
        (
            r"annotations\[2\].segmentation.counts: a run before character 8 is longer than any image",
            edit("annotations.json", ["annotations", 2, "segmentation", "counts"], "oooooooooooooooo"),
        ),
        (
            r"annotations\[1\].category_id: there is no category with the id 5",
            edit("annotations.json", ["annotations", 1, "category_id"], 5),
        ),
        (r"annotations\[1\].id: the id 1 is used twice", edit("annotations.json", ["annotations", 1, "id"], 1)),
        (
            r"annotations\[0\].image_id: there is no image with the id 8",
            edit("annotations.json", ["annotations", 0, "image_id"], 8),
        ),
        (
            r"images\[0\] names the photo '../../../etc/passwd', which is not below",
            edit("annotations.json", ["images", 0, "file_name"], "../../../etc/passwd"),
        ),
        (
            r"images\[0\].height must be a whole number from 1 to 1048576, not 'tall'",
            edit("annotations.json", ["images", 0, "height"], "tall"),
        ),
        (
            r"annotations\[0\].segmentation\[0\]: 4 numbers are a box",
            edit("annotations.json", ["annotations", 0, "segmentation"], [[1, 2, 3, 4]]),
        ),
        (
            r"annotations\[0\].segmentation must be a list, not 7",
            edit("annotations.json", ["annotations", 0, "segmentation"], 7),
        ),
    ],
    "coco-panoptic": [
        ("is not valid JSON", content("panoptic.json", cut)),
        (
            r"annotations\[0\].segments_info\[0\].id: no pixel of .*a.png has the id 2",
            edit("panoptic.json", ["annotations", 0, "segments_info", 0, "id"], 2),
        ),
        (
            r"annotations\[0\].segments_info: .*a.png holds the id 1, which is not listed",
            edit("panoptic.json", ["annotations", 0, "segments_info", 0], GONE),
        ),
        (
            r"segments_info\[1\].category_id: there is no category with the id 77",
            edit("panoptic.json", ["annotations", 0, "segments_info", 1, "category_id"], 77),
        ),
        (
            r"segments_info\[1\].id must be a whole number from 1 to",
            edit("panoptic.json", ["annotations", 0, "segments_info", 1, "id"], 1e300),
        ),
        ("panoptic/a.png: a mask of 60000 x 60000 pixels in a photo of 24 x 16", content("panoptic/a.png", huge_png())),
        ("panoptic/a.png: not a picture, or a corrupt one", content("panoptic/a.png", cut)),
        ("panoptic/a.png is a L picture of 24 x 16", content("panoptic/a.png", png(np.zeros((16, 24), np.uint8)))),
        (
            r"annotations\[0\] names the photo '/etc/hosts', which is not below",
            edit("panoptic.json", ["annotations", 0, "file_name"], "/etc/hosts"),
        ),
        (
            r"categories\[1\].name: the name 'tree' is used twice",
            edit("panoptic.json", ["categories", 1, "name"], "tree"),
        ),
        (
            r"annotations\[0\] has no 'segments_info'",
            lambda folder: (edit("panoptic.json", ["annotations", 0, "segments_info"], GONE)(folder),),
        ),
        (
            r"annotations\[1\].image_id: the image 7 has two annotations",
            edit("panoptic.json", ["annotations", 1], {"image_id": 7, "file_name": "a.png", "segments_info": []}),
        ),
    ],
    "yolo": [
        ("a.txt, line 2: the class 9 is not one of 0..2", text("labels/train/a.txt", "\n0 0.0", "\n9 0.0")),
        ("a.txt, line 2: the class 0.5 is not one of", text("labels/train/a.txt", "\n0 0.0", "\n0.5 0.0")),
        ("a.txt, line 2: could not convert string to float: 'zero'", text("labels/train/a.txt", "\n0 0.0", "\n0 zero")),
        ("a.txt, line 2: the coordinate nan is not a share", text("labels/train/a.txt", "\n0 0.0", "\n0 nan")),
        (
            "a.txt, line 2: the coordinate 640 is not a share .* are these pixels",
            text("labels/train/a.txt", "\n0 0.0", "\n0 640"),
        ),
        ("a.txt, line 2: 9 numbers are no outline", text("labels/train/a.txt", "\n0 0.0", "\n0 0.0 0.0")),
        ("byte 0 is not UTF-8", content("labels/train/a.txt", b"\xff\xfe0 0 0 1 1")),
        (r"names.* a name is used twice", text("data.yaml", "car", "road")),
        (r"names: the numbers \[0, 1, 7\] are not 0, 1, 2", text("data.yaml", "2: tree", "7: tree")),
        ("'../../../etc' is not below", text("data.yaml", "images/train", "../../../etc")),
        ("is not valid YAML", text("data.yaml", "path: .", "path: !!python/object/apply:os.system ['false']")),
        ("is not valid YAML: .* nested more than 50", text("data.yaml", "path: .", "path: " + "[" * 99 + "]" * 99)),
        ("1 label files have no photo. The first: .*b.txt", content("labels/train/b.txt", b"")),
        ("nc is 5, and there are 3 names", text("data.yaml", "path: .", "nc: 5")),
    ],
    "labelme": [
        ("a.json is not valid JSON", content("a.json", cut)),
        ("a.json is nested too deep", content("a.json", NESTED)),
        ("a.json is empty", content("a.json", b"")),
        (r"a.json: shapes\[0\].points must be a list of numbers", edit("a.json", ["shapes", 0, "points", 1, 0], "x")),
        (r"shapes\[0\].points must be a list of numbers", edit("a.json", ["shapes", 0, "points", 1], [1])),
        (r"shapes\[0\].points holds the coordinate 1e\+300", edit("a.json", ["shapes", 0, "points", 1, 0], 1e300)),
        (
            r"shapes\[0\].shape_type must be one of polygon, .* not 'blob'",
            edit("a.json", ["shapes", 0, "shape_type"], "blob"),
        ),
        (r"shapes\[0\].label is null, and a value is needed", edit("a.json", ["shapes", 0, "label"], None)),
        (r"shapes\[1\].points: a rectangle has 2 points, not 1", edit("a.json", ["shapes", 1, "points"], [[1, 2]])),
        (
            r"shapes\[2\].mask: a mask of 60000 x 60000",
            edit("a.json", ["shapes", 2, "mask"], base64.b64encode(huge_png()).decode()),
        ),
        (r"shapes\[2\].mask: not base64", edit("a.json", ["shapes", 2, "mask"], "%%%%")),
        (
            r"shapes\[2\].points: the corners span 2 x 2 pixels, and the mask has 5 x 6",
            edit("a.json", ["shapes", 2, "points"], [[1, 1], [2, 2]]),
        ),
        ("the annotation is for 99 x 16 pixels", edit("a.json", ["imageWidth"], 99)),
        (
            r"names the photo '\.\.\\\\\.\.\\\\secret.png', which is not below",
            edit("a.json", ["imagePath"], "..\\..\\secret.png"),
        ),
    ],
    "cvat": [
        ("line 1: declares the entity 'l0'", content("annotations.xml", laughs)),
        (
            "declares the entity 'x'",
            lambda folder: content(
                "annotations.xml",
                lambda path: (
                    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + path.read_bytes().partition(b"?>")[2]
                ),
            )(folder),
        ),
        ("is not valid XML", content("annotations.xml", cut)),
        ("more than 40 elements in each other", text("annotations.xml", "<meta>", "<meta>" + "<a>" * 99)),
        ("line 6: xtl must be a number .* not 'nan'", text("annotations.xml", 'xtl="4"', 'xtl="nan"')),
        ("line 6: xtl must be a number .* not '9{28}", text("annotations.xml", 'xtl="4"', f'xtl="{"9" * 28}"')),
        ("line 7: points must be at least three", text("annotations.xml", 'points="0.00,8.00;', 'points="0.00;')),
        ("line 7: points hold the coordinate inf", text("annotations.xml", 'points="0.00,8.00;', 'points="inf,8.00;')),
        (
            "line 8: width must be a number from 1 to 9, not '99999999'",
            text("annotations.xml", 'width="5"', 'width="99999999"'),
        ),
        ("line 8: the rle '3, .* is no mask of 6 x 5", text("annotations.xml", 'rle="', 'rle="3, ')),
        ("the label 'lorry' is not one of", text("annotations.xml", '<box label="car"', '<box label="lorry"')),
        ("the element box has no attribute ybr", text("annotations.xml", 'ybr="12"', "")),
        (
            r"the image 'a.png' is listed twice",
            text("annotations.xml", "</image>", '</image><image name="a.png" width="1" height="1"/>'),
        ),
        (
            "names the photo '../../../../etc/passwd', which",
            text("annotations.xml", 'name="a.png"', 'name="../../../../etc/passwd"'),
        ),
        ("this is 'CVAT for video'", text("annotations.xml", "</annotations>", '<track id="0"/></annotations>')),
        (
            "colour of the label 'car' must be a colour such as #ff8000, not 'red'",
            text("annotations.xml", "#00008e", "red"),
        ),
    ],
    "label-studio": [
        ("is not valid JSON", content("export.json", cut)),
        (r"\[0\].annotations must be a list", edit("export.json", [0, "annotations"], 5)),
        (
            r"result\[0\].value.points must be a list of at least 3 points",
            edit("export.json", [0, "annotations", 1, "result", 0, "value", "points"], [[1, 2]]),
        ),
        (
            r"result\[1\].value.width must be a number from -1e\+06 to 1e\+06, not 1e\+300",
            edit("export.json", [0, "annotations", 1, "result", 1, "value", "width"], 1e300),
        ),
        ("holds the number Infinity", text("export.json", '"rotation": 0', '"rotation": Infinity')),
        (
            r"result\[2\].value.rle: it has 4294967295 values of 8 bits in place of 1536",
            edit("export.json", [0, "annotations", 1, "result", 2, "value", "rle"], [255, 255, 255, 255, 56, 0, 0, 0]),
        ),
        (
            r"result\[2\].value.rle: it is truncated",
            edit(
                "export.json", [0, "annotations", 1, "result", 2, "value", "rle"], brush(np.zeros((16, 24), bool))[:40]
            ),
        ),
        (
            r"result\[2\].value.rle must be a list of bytes",
            edit("export.json", [0, "annotations", 1, "result", 2, "value", "rle"], [1, 999]),
        ),
        (
            r"original_width: the region is for 240 x 16 pixels|for 240 x 16 pixels",
            edit("export.json", [0, "annotations", 1, "result", 1, "original_width"], 240),
        ),
        (
            r"image_rotation: the photo was turned by 90 degrees",
            edit("export.json", [0, "annotations", 1, "result", 0, "image_rotation"], 90),
        ),
        (
            r"\[0\] names the photo '/../../etc/shadow', which is not below",
            edit("export.json", [0, "data", "image"], "http://x/../../etc/shadow"),
        ),
        (
            r"imageDataURL: a mask of 60000 x 60000",
            edit(
                "export.json",
                [0, "annotations", 1, "result", 2],
                {
                    "type": "bitmasklabels",
                    "value": {
                        "bitmasklabels": ["tree"],
                        "imageDataURL": "data:image/png;base64," + base64.b64encode(huge_png()).decode(),
                    },
                },
            ),
        ),
    ],
    "supervisely": [
        ("meta.json is not valid JSON", content("meta.json", cut)),
        (r"classes\[1\].title: the class 'road' is listed twice", edit("meta.json", ["classes", 1, "title"], "road")),
        (
            r"classes\[0\].color must be a colour such as #ff8000, not 'pink'",
            edit("meta.json", ["classes", 0, "color"], "pink"),
        ),
        (
            r"objects\[0\].classTitle: the class 'lorry' is not in meta.json",
            edit("ds/ann/a.png.json", ["objects", 0, "classTitle"], "lorry"),
        ),
        (
            r"objects\[1\].bitmap.data: it unpacks to more than",
            edit("ds/ann/a.png.json", ["objects", 1, "bitmap", "data"], BOMB),
        ),
        (
            r"objects\[1\].bitmap.data: a mask of 60000 x 60000",
            edit(
                "ds/ann/a.png.json",
                ["objects", 1, "bitmap", "data"],
                base64.b64encode(zlib.compress(huge_png())).decode(),
            ),
        ),
        (
            r"objects\[1\].bitmap.data: neither a PNG nor packed by zlib",
            edit("ds/ann/a.png.json", ["objects", 1, "bitmap", "data"], "AAAA"),
        ),
        (
            r"objects\[1\].bitmap.origin\[0\] must be a whole number",
            edit("ds/ann/a.png.json", ["objects", 1, "bitmap", "origin"], [10**30, 0]),
        ),
        (
            r"objects\[2\].points.exterior must be a list of at least 3 points",
            edit("ds/ann/a.png.json", ["objects", 2, "points", "exterior"], [[1, 2]]),
        ),
        (
            r"objects\[2\].geometryType must be polygon, rectangle or bitmap, not 'blob'",
            edit("ds/ann/a.png.json", ["objects", 2, "geometryType"], "blob"),
        ),
        (r"a.png.json: the annotation is for 24 x 99 pixels", edit("ds/ann/a.png.json", ["size", "height"], 99)),
        (r"a.png.json names the photo 'a.png', which is not below", lambda folder: (folder / "ds/img/a.png").unlink()),
    ],
    "voc": [
        (
            "a.png holds the number 77, and there are 21 classes",
            content("SegmentationClass/a.png", png(np.full((16, 24), 77, np.uint8))),
        ),
        ("a.png is a mask of colours", content("SegmentationClass/a.png", png(np.zeros((16, 24, 3), np.uint8)))),
        (
            "a.png has 30 x 20 pixels .* its photo has 24 x 16",
            content("SegmentationClass/a.png", png(np.zeros((20, 30), np.uint8))),
        ),
        ("cannot read .*a.png", content("SegmentationClass/a.png", cut)),
        ("a.png: it has 60000 x 60000 pixels|a.png has 60000", content("SegmentationClass/a.png", huge_png())),
        (
            "is not a mask: lossy",
            lambda folder: Image.new("L", (24, 16)).save(folder / "SegmentationClass" / "a.png", "JPEG"),
        ),
        ("labelmap.txt, line 1 must be name:red,green,blue", content("labelmap.txt", b"car:12,x,3::\n")),
        (
            "labelmap.txt, line 2: the name or the colour is used twice",
            content("labelmap.txt", b"a:1,2,3::\nb:1,2,3::\n"),
        ),
        (
            r"holds the colour \(9, 9, 9\), which labelmap.txt does not list",
            lambda folder: (
                content("labelmap.txt", b"a:0,0,0::\nb:1,2,3::\n")(folder),
                content("SegmentationClass/a.png", png(np.full((16, 24, 3), 9, np.uint8)))(folder),
            ),
        ),
        ("names the photo 'a.jpg', which is not below", lambda folder: (folder / "JPEGImages/a.jpg").unlink()),
        (
            "train.txt, line 1: there is no mask '../../etc/passwd'",
            lambda folder: (
                (folder / "ImageSets/Segmentation").mkdir(parents=True),
                content("ImageSets/Segmentation/train.txt", b"../../etc/passwd\n")(folder),
            ),
        ),
        ("a.jpg is not an image, or a corrupt one", content("JPEGImages/a.jpg", b"nothing")),
    ],
    "datasets": [
        ("cannot read .*train-00000", content("train-00000-of-00001.parquet", cut)),
        ("cannot read .*train-00000", content("train-00000-of-00001.parquet", b"PAR1 or not")),
        ("has no column of masks", table(row())),
        ("the column label holds 'int64', not pictures", table(row(label=3))),
        (
            "row 0: the column annotation is empty|neither bytes",
            table(row(annotation={"bytes": None, "path": None}) + row(annotation=mask_of(b"x"))),
        ),
        (
            "row 0, column annotation: not an image|cannot read .*row 0, column annotation",
            table(row(annotation=mask_of(b"nothing"))),
        ),
        (
            "row 0: number 200|holds the number 200",
            table(row(annotation=mask_of(png(np.full((16, 24), 200, np.uint8))))),
        ),
        ("60000 x 60000", table(row(annotation=mask_of(huge_png())))),
        (
            "row 0: the mask has 3 x 2 pixels, and the photo has 24 x 16",
            table(row(annotation=mask_of(png(np.zeros((2, 3), np.uint8))))),
        ),
        (
            "row 0 names the photo '../../etc/passwd', which",
            table(
                [
                    {
                        "image": mask_of(png(np.zeros((16, 24, 3), np.uint8))),
                        "annotation": {"bytes": None, "path": "../../etc/passwd"},
                    }
                ]
            ),
        ),
        ("id2label.json: 'x': 'x' is no class number|'x' is no class number", edit("id2label.json", ["x"], "car")),
        ("id2label.json: two classes have the same name", edit("id2label.json", ["1"], "car")),
        (
            "the mask is of colours",
            table(
                row(annotation=mask_of(png(np.eye(24, dtype=np.uint8)[:16, :, None] * np.array([1, 2, 3], np.uint8))))
            ),
        ),
    ],
    "geo": [
        ("is not valid JSON", content("areas.geojson", cut)),
        (
            r"features\[0\].geometry.coordinates\[0\] must be a list of numbers",
            edit("areas.geojson", ["features", 0, "geometry", "coordinates", 0, 1], ["x", "y"]),
        ),
        (
            r"features\[0\].geometry.coordinates\[0\] holds the coordinate 1e\+300",
            edit("areas.geojson", ["features", 0, "geometry", "coordinates", 0, 1], [1e300, 2]),
        ),
        (
            r"features\[1\].geometry.type must be a geometry of GeoJSON, not 'Blob'",
            edit("areas.geojson", ["features", 1, "geometry", "type"], "Blob"),
        ),
        (
            r"features\[0\].geometry.coordinates\[0\] must be a ring of at least 4 positions",
            edit("areas.geojson", ["features", 0, "geometry", "coordinates", 0], [[1, 2], [3, 4]]),
        ),
        (
            "unknown reference system 'EPSG:99999999'",
            edit("areas.geojson", ["crs"], {"properties": {"name": "EPSG:99999999"}}),
        ),
        (
            "it is not clear which property holds the class; there are",
            lambda folder: [
                edit("areas.geojson", ["features", number, "properties"], {"area": 5})(folder) for number in range(3)
            ],
        ),
        (
            r"features\[2\]: the property 'class' must be a class, not None",
            edit("areas.geojson", ["features", 2, "properties"], {}),
        ),
        ("ortho.tif has no coordinate reference system", lambda folder: raster(folder / "ortho.tif", crs=None)),
        ("ortho.tif.* is not an image|cannot read .*ortho.tif", content("ortho.tif", b"nothing")),
        ("holds no raster", lambda folder: (folder / "ortho.tif").unlink()),
        (
            "a position is not on the map of .*ortho.tif: .*latitude",
            edit("areas.geojson", ["features", 2, "geometry", "coordinates", 0, 1, 1], 255),
        ),
        (
            r"more than 8 geometries in each other",
            edit(
                "areas.geojson",
                ["features", 0, "geometry"],
                functools.reduce(
                    lambda inner, _: {"type": "GeometryCollection", "geometries": [inner]}, range(20), {"type": "Point"}
                ),
            ),
        ),
    ],
}

GEOPACKAGES = [
    ("is not a GeoPackage, or a damaged one", content("areas.gpkg", b"no database at all, whatever its name says")),
    ("is not a GeoPackage, or a damaged one", content("areas.gpkg", cut)),
    ("areas.gpkg has changes that are in areas.gpkg-wal only: another program", content("areas.gpkg-wal", b"changes")),
    ("row 0: no geometry of a GeoPackage", sql('UPDATE "my areas" SET geom = ?', b"XX")),
    ("row 0: no geometry of a GeoPackage", sql('UPDATE "my areas" SET geom = 7')),
    (
        "row 0: a damaged geometry .* 4294967295 points",
        sql('UPDATE "my areas" SET geom = ?', blob([(0, 0)] * 4, counts=0xFFFFFFFF)),
    ),
    ("row 0: a damaged geometry .* not finite", sql('UPDATE "my areas" SET geom = ?', blob([(float("nan"), 0)] * 4))),
    ("row 0: a damaged geometry .* unknown kind 99", sql('UPDATE "my areas" SET geom = ?', blob(kind=99))),
    (
        "row 0: a damaged geometry",
        sql('UPDATE "my areas" SET geom = ?', b"GP\0\1\5\0\0\0" + struct.pack("<BII", 1, 7, 1) * 5000),
    ),
    ("has the unknown reference system 77", sql("UPDATE gpkg_geometry_columns SET srs_id = 77")),
    ("'sqlite_master' is not a plain table", sql("UPDATE gpkg_geometry_columns SET table_name = 'sqlite_master'")),
    (
        "is not a plain table",
        sql(
            "CREATE VIEW endless AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i AS geom FROM n"
        ),
        sql("UPDATE gpkg_geometry_columns SET table_name = 'endless'"),
    ),
    ("has no column 'shape'", sql("UPDATE gpkg_geometry_columns SET column_name = 'shape'")),
]


def fails(folder, source, form, says, monkeypatch):
    monkeypatch.chdir(folder.parent)
    before = sorted(str(path) for path in folder.parent.rglob("*"))
    with pytest.raises(DatasetError, match=says) as caught:
        import_labels(source, "mine", format=form)
    assert "source" in str(caught.value)  # the file is named
    assert len(str(caught.value)) < 700
    assert sorted(str(path) for path in folder.parent.rglob("*")) == before  # nothing is left
    assert not Path("mine").exists()


@pytest.mark.parametrize(("form", "number"), [(form, number) for form in CASES for number in range(len(CASES[form]))])
def test_a_hostile_file_is_one_clear_error(form, number, tmp_path, monkeypatch):
    says, damage = CASES[form][number]
    folder = tmp_path / "source"
    folder.mkdir()
    source = SAMPLES[form](folder)
    damage(folder)
    fails(folder, source, form, says, monkeypatch)


@pytest.mark.parametrize("number", range(len(GEOPACKAGES)))
def test_a_hostile_geopackage_is_one_clear_error(number, tmp_path, monkeypatch):
    says, *damages = GEOPACKAGES[number]
    folder = tmp_path / "source"
    folder.mkdir()
    source = geopackage(folder)
    for damage in damages:
        damage(folder)
    fails(folder, source, "geo", says, monkeypatch)


ODD = [None, True, -1, 2**70, 1e300, -0.5, "", "../../x", [], {}, [[]], [None], [[1, 2]], {"a": 1}, "\0", "é" * 300]


def places(value, path=()):
    """Where the values of a document are."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inner)[:8]:
        yield from places(one, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("form", [*SAMPLES, "geopackage"])
def test_random_damage_is_an_error_of_the_data_or_harmless(form, tmp_path, monkeypatch):
    """Odd values in JSON, and bytes that are changed, lost or doubled in any file: no other exception, nothing left."""
    monkeypatch.chdir(tmp_path)
    random, refused = np.random.default_rng(0), 0
    for number in range(24):
        folder = tmp_path / f"source{number}"
        folder.mkdir()
        source = geopackage(folder) if form == "geopackage" else SAMPLES[form](folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jpg", ".tif"))
        path = files[random.integers(len(files))]
        if path.suffix in (".json", ".geojson") and random.random() < 0.8:
            where = [place for place in places(json.loads(path.read_text())) if place]
            edit(path.name, where[random.integers(len(where))], ODD[random.integers(len(ODD))])(path.parent)
        else:
            data = bytearray(path.read_bytes())
            for _ in range(random.integers(1, 6)):
                at, size = random.integers(len(data)), random.integers(1, 30)
                new = (bytes([random.integers(256)]), b"", 2 * bytes(data[at : at + size]))[random.integers(3)]
                data[at : at + size] = new
            path.write_bytes(data)
        try:
            import_labels(source, "mine", format="geo" if form == "geopackage" else form)
            shutil.rmtree("mine")
        except DatasetError:
            refused += 1
        assert not [one for one in tmp_path.iterdir() if not one.name.startswith("source")]
    assert refused > 5


def test_every_importer_has_ten_cases_and_every_sample_is_whole_without_them(tmp_path):
    assert set(CASES) == set(SAMPLES)
    assert min(map(len, [*CASES.values(), GEOPACKAGES])) >= 10
