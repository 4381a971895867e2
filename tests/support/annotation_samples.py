"""The same drawn scene as a small data set in every format that `resnest_seg.annotations` reads.

A photo of 24 x 16 pixels: below row 8 a road; on it a car, rows 6 to 11, columns 4 to 11; a tree, rows 1 to 6, columns
15 to 19, with a hole in rows 3 and 4, column 17.
"""

import base64
import io
import json
import sqlite3
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 24
NAMES = ("background", "road", "car", "tree")
ROAD, CAR, TREE = (0, 8, 24, 16), (4, 6, 12, 12), (15, 1, 20, 7)
"""left, top, right, bottom."""


def scene(*, hole=True):
    """The labels, indices of `NAMES`."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[8:, :], labels[6:12, 4:12], labels[1:7, 15:20] = 1, 2, 3
    if hole:
        labels[3:5, 17] = 0
    return labels


def photo(path, *, size=(HEIGHT, WIDTH), seed=0):
    """Write a photo of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    done, data = cv2.imencode(path.suffix, noise)
    assert done
    path.write_bytes(data.tobytes())
    return path


def save(path, value):
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def outline(box):
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def flat(box):
    return [coordinate for point in outline(box) for coordinate in point]


def indices(box):
    """The corners as pixel indices."""
    left, top, right, bottom = box
    return outline((left, top, right - 1, bottom - 1))


def png(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


def runs(mask, order):
    values, counts, last = mask.ravel(order=order), [], False
    count = 0
    for value in values:
        if value != last:
            counts.append(count)
            count, last = 0, value
        count += 1
    return [*counts, count]


def tree_mask():
    return (scene() == 3)[1:7, 15:20]


def coco(folder):
    photo(folder / "images" / "a.png")
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [flat(ROAD)]},
        {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 0, "segmentation": [flat(CAR)]},
        {"id": 3, "image_id": 7, "category_id": 9, "iscrowd": 0,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(scene() == 3, "F")}},
    ]  # fmt: skip
    return save(folder / "annotations.json", {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}], "annotations": annotations,
        "categories": [{"id": 9, "name": "tree"}, {"id": 1, "name": "road"}, {"id": 4, "name": "car"}]})  # fmt: skip


def coco_panoptic(folder):
    photo(folder / "images" / "a.png")
    ids = np.select([scene() == label for label in (1, 2, 3)], [1, 256 * 3 + 5, 65536 * 2 + 1], 0)
    picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    (folder / "panoptic").mkdir()
    (folder / "panoptic" / "a.png").write_bytes(png(picture))
    segments = [{"id": number, "category_id": category, "iscrowd": 0}
                for number, category in ((1, 1), (256 * 3 + 5, 4), (65536 * 2 + 1, 9))]  # fmt: skip
    return save(folder / "panoptic.json", {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 9, "name": "tree"}, {"id": 1, "name": "road"}, {"id": 4, "name": "car"}]})  # fmt: skip


def yolo(folder):
    photo(folder / "images" / "train" / "a.png")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: road\n  1: car\n  2: tree\n")
    labels = folder / "labels" / "train" / "a.txt"
    labels.parent.mkdir(parents=True)
    lines = [" ".join(map(str, [number, *(np.array(outline(box)) / (WIDTH, HEIGHT)).ravel()]))
             for number, box in ((1, CAR), (0, ROAD), (2, TREE))]  # fmt: skip
    labels.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")  # some tools write a byte order mark
    return folder / "data.yaml"


def labelme(folder):
    photo(folder / "a.png")
    left, top, right, bottom = TREE
    mask = base64.b64encode(png(tree_mask())).decode()
    shapes = [
        {"label": "road", "points": indices(ROAD), "shape_type": "polygon", "group_id": None, "flags": {}},
        {"label": "car", "points": indices(CAR)[::2], "shape_type": "rectangle", "group_id": None, "flags": {}},
        {"label": "tree", "points": [[left, top], [right - 1, bottom - 1]], "shape_type": "mask", "mask": mask},
    ]
    save(folder / "a.json", {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None,
                             "imageHeight": HEIGHT, "imageWidth": WIDTH})  # fmt: skip
    return folder


def cvat(folder):
    photo(folder / "images" / "a.png")
    left, top, right, bottom = TREE
    points = ";".join(f"{x}.00,{y}.00" for x, y in outline(ROAD))
    rle = ", ".join(map(str, runs(tree_mask(), "C")))
    (folder / "annotations.xml").write_text(f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>road</name><color>#804080</color></label><label><name>car</name><color>#00008e</color></label>
<label><name>tree</name><color>#6b8e23</color></label></labels></task></meta>
<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
<box label="car" source="manual" occluded="0" xtl="4" ytl="6" xbr="12" ybr="12" z_order="1"></box>
<polygon label="road" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
<mask label="tree" source="manual" occluded="0" rle="{rle}" left="{left}" top="{top}" width="{right - left}"
 height="{bottom - top}" z_order="0"></mask>
</image></annotations>""")
    return folder / "annotations.xml"


def brush(mask):
    """Label Studio's bit stream, of literals only."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    values = values.ravel()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for start in range(0, len(values), 1 << 16):
        some = values[start : start + (1 << 16)]
        bits += f"0{3:02b}{len(some) - 1:016b}" + "".join(f"{value:08b}" for value in some)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def label_studio(folder):
    photo(folder / "images" / "0f3b9c2d-a.png")
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    percent = (np.array(outline(ROAD)) / (WIDTH, HEIGHT) * 100).tolist()
    left, top, right, bottom = CAR
    box = {"x": left / WIDTH * 100, "y": top / HEIGHT * 100, "width": (right - left) / WIDTH * 100,
           "height": (bottom - top) / HEIGHT * 100, "rotation": 0}  # fmt: skip
    strokes = brush(scene() == 3)
    result = [
        {"type": "polygonlabels", **size, "value": {"points": percent, "polygonlabels": ["road"], "closed": True}},
        {"type": "rectanglelabels", **size, "value": {**box, "rectanglelabels": ["car"]}},
        {
            "type": "brushlabels",
            **size,
            "value": {"format": "rle", "rle": strokes, "brushlabels": ["tree"]},
        },
    ]
    task = {"id": 1, "data": {"image": "/data/upload/1/0f3b9c2d-a.png"},
            "annotations": [{"id": 5, "was_cancelled": True, "result": [{"type": "none"}]},
                            {"id": 4, "was_cancelled": False, "result": result}]}  # fmt: skip
    return save(folder / "export.json", [task])


def supervisely(folder):
    photo(folder / "ds" / "img" / "a.png")
    colors = {"road": "#804080", "car": "#00008E", "tree": "#6B8E23"}
    classes = [{"title": title, "shape": "polygon", "color": color} for title, color in colors.items()]
    save(folder / "meta.json", {"classes": classes})
    left, top, _, _ = CAR
    data = base64.b64encode(zlib.compress(png(np.full((6, 8), True)))).decode()
    objects = [
        {"classTitle": "road", "geometryType": "rectangle", "points": {"exterior": indices(ROAD)[::2], "interior": []}},
        {"classTitle": "car", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [left, top]}},
        {"classTitle": "tree", "geometryType": "polygon",
         "points": {"exterior": indices(TREE), "interior": [[[17, 3], [17, 4], [17, 3]]]}},
    ]  # fmt: skip
    save(
        folder / "ds" / "ann" / "a.png.json",
        {"size": {"height": HEIGHT, "width": WIDTH}, "tags": [], "objects": objects},
    )
    return folder


def voc(folder):
    photo(folder / "JPEGImages" / "a.jpg")
    (folder / "SegmentationClass").mkdir()
    numbers = np.array([0, 4, 7, 15], np.uint8)[scene()]  # boat, car and person stand for road, car and tree
    picture = Image.fromarray(numbers)
    picture.putpalette(list(range(256)) * 3)
    picture.save(folder / "SegmentationClass" / "a.png")
    return folder


def datasets(folder):
    import pyarrow
    import pyarrow.parquet

    picture = photo(folder / "a.jpg").read_bytes()
    (folder / "a.jpg").unlink()
    rows = [{"image": {"bytes": picture, "path": "a.jpg"}, "annotation": {"bytes": png(scene()), "path": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    save(folder / "id2label.json", dict(enumerate(NAMES)))
    return folder


def raster(path, *, crs="EPSG:32633", origin=(500000.0, 5400000.0), size=(HEIGHT, WIDTH)):
    """Write a GeoTIFF of noise with pixels of half a metre."""
    import rasterio

    noise = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    transform = rasterio.Affine(0.5, 0, origin[0], 0, -0.5, origin[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", height=size[0], width=size[1], count=3, dtype="uint8", crs=crs,
                       transform=transform) as file:  # fmt: skip
        file.write(noise)
    return path


def on_the_map(box, *, crs):
    """A box of pixels as a closed ring in another reference system."""
    from rasterio import warp

    ring = [(500000 + x * 0.5, 5400000 - y * 0.5) for x, y in [*outline(box), outline(box)[0]]]
    xs, ys = warp.transform("EPSG:32633", crs, *zip(*ring, strict=True))
    return [list(point) for point in zip(xs, ys, strict=True)]


def geo(folder):
    raster(folder / "ortho.tif")
    crs = "OGC:CRS84"
    rings = {"road": [ROAD], "car": [CAR], "tree": [TREE, (17, 3, 18, 5)]}
    features = [{"type": "Feature", "properties": {"class": name},
                 "geometry": {"type": "Polygon", "coordinates": [on_the_map(box, crs=crs) for box in boxes]}}
                for name, boxes in rings.items()]  # fmt: skip
    return save(folder / "areas.geojson", {"type": "FeatureCollection", "features": features})


def wkb(rings):
    data = struct.pack("<BII", 1, 3, len(rings))
    for ring in rings:
        data += struct.pack("<I", len(ring)) + b"".join(struct.pack("<dd", *point) for point in ring)
    return data


def geopackage(folder, *, crs="EPSG:32633"):
    """The same as `geo` in tables, made with the statements of the standard."""
    raster(folder / "ortho.tif")
    path = folder / "areas.gpkg"
    base = sqlite3.connect(path)
    base.executescript("""
        CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT, srs_id INTEGER PRIMARY KEY, organization TEXT,
            organization_coordsys_id INTEGER, definition TEXT, description TEXT);
        CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT, identifier TEXT, srs_id INTEGER);
        CREATE TABLE gpkg_geometry_columns (table_name TEXT, column_name TEXT, geometry_type_name TEXT, srs_id INTEGER,
            z TINYINT, m TINYINT);
        CREATE TABLE "my areas" (fid INTEGER PRIMARY KEY, geom BLOB, class TEXT);
        INSERT INTO gpkg_contents VALUES ('my areas', 'features', 'my areas', 5);
        INSERT INTO gpkg_geometry_columns VALUES ('my areas', 'geom', 'POLYGON', 5, 0, 0);
    """)
    base.execute("INSERT INTO gpkg_spatial_ref_sys VALUES ('', 5, 'EPSG', ?, 'undefined', '')", (int(crs[5:]),))
    header = b"GP\0\1" + struct.pack("<i", 5)
    for name, boxes in {"road": [ROAD], "car": [CAR], "tree": [TREE, (17, 3, 18, 5)]}.items():
        blob = header + wkb([on_the_map(box, crs=crs) for box in boxes])
        base.execute('INSERT INTO "my areas" (geom, class) VALUES (?, ?)', (blob, name))
    base.commit()
    base.close()
    return path


SAMPLES = {
    "coco": coco,
    "coco-panoptic": coco_panoptic,
    "yolo": yolo,
    "labelme": labelme,
    "cvat": cvat,
    "label-studio": label_studio,
    "supervisely": supervisely,
    "voc": voc,
    "datasets": datasets,
    "geo": geo,
}
"""Format -> a function that writes the scene into a folder, and returns what `import_labels` is given."""
