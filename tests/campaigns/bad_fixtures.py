"""The files that the campaign of bad inputs feeds to the tools: made from seeds, in a few seconds, below one folder.

photos/    photos of every damaged and unusual kind, and two good ones
data/      folders of photos and masks: `good`, and copies of it with one thing wrong each
lists/     lists of classes
configs/   run configs
weights/   files that are no checkpoints, damaged ones, and ones that do not fit
zips/      for datasets/prepare_*.py
classes/   a folder of images by class, for tools/pretrain_cls.py
run/       a run on data/good that was trained for two steps
model.onnx an exported file
"""

import io
import itertools
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 48)
"""Height and width of the photos."""

CLASSES = "name,id,red,green,blue,ignore\nsky,0,10,20,200,\nroad,1,90,90,90,\ncar,2,200,30,30,\nvoid,9,0,0,0,true\n"

CONFIG = """
model: {encoder: resnest14_tiny, head: fcn, output_stride: 32, encoder_weights: null}
data: {dataset: folder, crop_size: 32, base_size: 48, workers: 0}
optim: {reference_batch: null}
train: {epochs: null, iterations: 2, batch_size: 2, trackers: none, log_every: 1}
eval: {sheet: 0}
"""
"""A run of two steps; `data.root` is the caller's to name."""

CLASSIFIER = """
model: {encoder: resnest14_tiny, encoder_weights: null}
data: {dataset: imagenet, crop_size: 32, workers: 0}
optim: {reference_batch: null}
train: {epochs: null, iterations: 1, batch_size: 2, trackers: none}
"""


def bomb_text(start=""):
    """Nine anchors, each nine times the one before: a billion values; of a list, or of a mapping."""
    letters = "abcdefghi"
    lines = [f"{start or 'a: '}&a [x, x, x, x, x, x, x, x, x]"]
    for before, now in itertools.pairwise(letters):
        lines.append(f"{start or f'{now}: '}&{now} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines) + "\n"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mask_of(seed, classes=3):
    """Blocks of ids 0..classes-1, and a strip of 9, which the list of classes ignores."""
    ids = np.random.default_rng(seed).integers(0, classes, (SIZE[0] // 8, SIZE[1] // 8)).astype(np.uint8)
    ids = ids.repeat(8, axis=0).repeat(8, axis=1)
    ids[:2] = 9
    return ids


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def png(width, height, depth, kind, rows):
    """A PNG file with this header and these packed rows (a filter byte first), which Pillow would not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png_of_ids(ids, depth):
    """Greyscale of 2 or 4 bits a pixel."""
    bits = np.unpackbits(ids[..., None], axis=2)[..., 8 - depth :].reshape(len(ids), -1)
    rows = np.packbits(bits, axis=1)
    return png(ids.shape[1], ids.shape[0], depth, 0, b"".join(b"\0" + row.tobytes() for row in rows))


def webp_vp8x(picture):
    """Lossy WebP in the extended container, which begins with VP8X and not with VP8."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=40, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert buffer.getvalue()[12:16] == b"VP8X"
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cut(source, target, share=0.5):
    data = source.read_bytes()
    return put(target, data[: int(len(data) * share)])


def photos(folder):
    import cv2
    import rasterio

    picture = noise(*SIZE, 3)
    for ending in ("jpg", "png", "webp"):
        cut(save(folder / f"good.{ending}", picture), folder / f"cut.{ending}")
    put(folder / "empty.jpg", b"")
    put(folder / "text.jpg", "this is a text\n" * 40)
    put(folder / "text.txt", "this is a text\n")
    put(folder / "bomb.png", png(30000, 30000, 1, 0, bytes((1 + 3750) * 30000)))
    put(folder / "liar.png", png(48, 40, 8, 2, bytes(10)))
    cv2.imwrite(str(folder / "rgb16.png"), picture.astype(np.uint16) * 16)  # 12 bits of values, as cameras have
    cv2.imwrite(str(folder / "grey16.png"), picture[..., 0].astype(np.uint16) * 16)
    profile = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1]}
    for name, bands, kind in (("nir", 4, "uint8"), ("float", 3, "float32"), ("int16", 3, "int16"),
                              ("uint16", 3, "uint16"), ("bands7", 7, "uint8")):  # fmt: skip
        shape = (bands, *SIZE)
        content = noise(*shape).astype(kind) * {"float32": 1 / 255, "int16": -30, "uint16": 16}.get(kind, 1)
        # four bands of one kind, red, green, blue, near infrared: none of them is opacity
        with rasterio.open(
            folder / f"{name}.tif", "w", count=bands, dtype=kind, photometric="MINISBLACK", **profile
        ) as f:
            f.write(content.astype(kind))
    frames = [Image.fromarray(noise(*SIZE, 3, seed=seed)) for seed in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    Image.fromarray(picture).convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(folder / "turned.jpg", exif=exif)
    save(folder / "one_pixel.png", picture[:1, :1])
    save(folder / "thin.png", noise(1, 5000, 3))
    for name in ("with [brackets] and spaces.png", "[bold red]x[/bold red].png", "emoji 🌲.png", "line\nbreak.png",
                 "n" * 250 + ".png"):  # fmt: skip
        save(folder / "names" / name, picture)
    shutil.copy(folder / "good.jpg", os.fsencode(folder / "names") + b"/caf\xe9.jpg")
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").mkdir()


def good_data(folder):
    for place, count in (("train", 4), ("val", 2)):
        for index in range(count):
            seed = index + 10 * (place == "val")
            save(folder / "images" / place / f"{index}.png", noise(*SIZE, 3, seed=seed))
            save(folder / "masks" / place / f"{index}.png", mask_of(seed))
    put(folder / "classes.csv", CLASSES)


def photo_for(name):
    """Put photos/NAME in the place of the first training photo."""

    def change(folder, root):
        (folder / "images/train/0.png").unlink()
        shutil.copy(root / "photos" / name, folder / "images/train" / f"0{Path(name).suffix}")

    return change


def mask_for(make, ending=".png"):
    """Write what `make(ids)` returns, an array or a file's content, in the place of the first training mask."""

    def change(folder, root):
        path = folder / "masks/train/0.png"
        path.unlink()
        made = make(mask_of(0))
        path = path.with_suffix(ending)
        put(path, made) if isinstance(made, bytes) else save(path, made)

    return change


def every_mask(make, ending=".png", classes=CLASSES):
    """The same for all masks, and the list of classes (None for no list)."""

    def change(folder, root):
        for path in sorted(folder.glob("masks/*/*.png")):
            made = make(np.array(Image.open(path)))
            path.unlink()
            path = path.with_suffix(ending)
            put(path, made) if isinstance(made, bytes) else save(path, made)
        (folder / "classes.csv").unlink()
        if classes is not None:
            put(folder / "classes.csv", classes)

    return change


def write(place, content):
    def change(folder, root):
        put(folder / place, content)

    return change


def classes_are(content, name="classes.csv"):
    def change(folder, root):
        (folder / "classes.csv").unlink()
        put(folder / name, content)

    return change


def lists_are(train, val=b"4\n5\n"):
    """No folders train and val, but lists of names."""

    def change(folder, root):
        for kind in ("images", "masks"):
            for place, first in (("train", 0), ("val", 4)):
                for path in sorted((folder / kind / place).iterdir()):
                    path.rename(folder / kind / f"{int(path.stem) + first}.png")
                (folder / kind / place).rmdir()
        put(folder / "train.txt", train)
        if val is not None:
            put(folder / "val.txt", val)

    return change


def remove(place):
    def change(folder, root):
        path = folder / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def turned(folder, root):
    """A photo that its EXIF data turn, of the mask's size as it is stored: square, so that sizes tell nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "images/train/0.png").unlink()
    Image.fromarray(noise(40, 40, 3)).save(folder / "images/train/0.jpg", exif=exif)
    save(folder / "masks/train/0.png", mask_of(0)[:, :40])


def folder_named_list(folder, root):
    (folder / "classes.csv").unlink()
    (folder / "classes.csv").mkdir()


def bytes_in_name(folder, root):
    for kind in ("images", "masks"):
        (folder / kind / "train/0.png").rename(folder / kind / "train" / os.fsdecode(b"caf\xe9.png"))


def brackets(folder, root):
    """Names that would be markup in a table."""
    put(folder / "classes.csv", CLASSES.replace("sky", "[red]sky[/red]").replace("road", "[/] road"))
    bracket_names(folder, root)


def bracket_names(folder, root):
    for kind in ("images", "masks"):
        (folder / kind / "train/0.png").rename(folder / kind / "train/[bold] 0 [x].png")


def encoded(kind):
    """Save an array in a format of Pillow's, in memory."""

    def make(ids):
        buffer = io.BytesIO()
        Image.fromarray(ids * 20).save(buffer, kind)
        return buffer.getvalue()

    return make


def tiff_by_jpeg(ids):
    buffer = io.BytesIO()
    Image.fromarray(ids * 20).save(buffer, "TIFF", compression="jpeg")
    return buffer.getvalue()


def on_off(ids):
    return np.where(ids == 2, 255, 0).astype(np.uint8)


def zero_or_one(ids):
    return (ids == 2).astype(np.uint8)


def colours(ids):
    palette = np.zeros((256, 3), np.uint8)
    palette[:3], palette[9] = [(10, 20, 200), (90, 90, 90), (200, 30, 30)], (0, 0, 0)
    return palette[ids]


TWO = "name,id\nbackground,0\nobject,1\n"
NAMES = "name\nbackground\nobject\n"

VARIANTS = {
    **{f"photo_{name}": photo_for(name)
       for name in ("empty.jpg", "text.jpg", "cut.jpg", "cut.png", "cut.webp", "liar.png",
                                                     "bomb.png", "rgb16.png", "grey16.png", "nir.tif", "float.tif",
                                                     "int16.tif", "uint16.tif", "bands7.tif", "animated.webp",
                                                     "cmyk.jpg", "one_pixel.png")},
    "mask_jpeg": mask_for(encoded("JPEG"), ".jpg"),
    "mask_webp": mask_for(encoded("WEBP"), ".webp"),
    "mask_vp8x": mask_for(lambda ids: webp_vp8x(ids * 20), ".webp"),
    "mask_tiff_jpeg": mask_for(tiff_by_jpeg, ".tif"),
    "mask_size": mask_for(lambda ids: ids[:-1]),
    "mask_empty": mask_for(lambda ids: b""),
    "mask_text": mask_for(lambda ids: b"this is a text"),
    "mask_cut": mask_for(lambda ids: encoded("PNG")(noise(*SIZE))[:300]),
    "mask_bomb": mask_for(lambda ids: png(30000, 30000, 1, 0, bytes((1 + 3750) * 30000))),
    "mask_ids16": mask_for(lambda ids: ids.astype(np.uint16) + 1000),
    "mask_range": mask_for(lambda ids: ids + np.uint8(40)),
    "mask_ignored": mask_for(lambda ids: np.full_like(ids, 9)),
    "mask_rgb": mask_for(colours),
    "mask_alpha": mask_for(lambda ids: np.dstack([ids, ids])),
    "masks_jpeg": every_mask(encoded("JPEG"), ".jpg", None),
    "masks_ids16": every_mask(lambda ids: ids.astype(np.uint16) + 1000, classes=None),
    "masks_bits2": every_mask(lambda ids: png_of_ids(ids % 4, 2), classes="name,id\na,0\nb,1\nc,2\nd,3\n"),
    "masks_bits4": every_mask(lambda ids: png_of_ids(ids, 4)),
    "masks_bits4_inferred": every_mask(lambda ids: png_of_ids(ids, 4), classes=None),
    "masks_onoff": every_mask(on_off, classes=None),
    "masks_onoff_names": every_mask(on_off, classes=NAMES),
    "masks_onoff_ids": every_mask(on_off, classes=TWO),
    "masks_absent_class": every_mask(zero_or_one, classes="name,id\nbackground,0\nobject,1\nghost,2\n"),
    "masks_ignored": every_mask(lambda ids: np.full_like(ids, 9)),
    "masks_void": every_mask(lambda ids: np.full_like(ids, 255), classes=None),
    "masks_rgb_noise": every_mask(lambda ids: noise(*SIZE, 3), classes=None),
    "masks_mixed": every_mask(lambda ids: colours(ids) if ids[8, 8] else ids, classes=None),
    "masks_missing": remove("masks"),
    "mask_missing": remove("masks/train/0.png"),
    "images_missing": remove("images"),
    "val_missing": remove("images/val"),
    "photos_beside": lambda folder, root: shutil.copy(folder / "images/train/0.png", folder / "images/stray.png"),
    "twin": lambda folder, root: shutil.copy(root / "photos/good.jpg", folder / "images/train/0.jpg"),
    "turned": turned,
    "brackets": brackets,
    "bracket_names": bracket_names,
    "bytes_in_name": bytes_in_name,
    "list_folder": folder_named_list,
    "list_empty": classes_are(""),
    "list_header": classes_are("name,id\n"),
    "list_rows": classes_are("name,id\nsky,0\n,\nroad,1\n\n,\ncar,2\nvoid,9\n"),
    "list_blank_name": classes_are("name,id\nsky,0\n   ,1\ncar,2\nvoid,9\n"),
    "list_doubled_names": classes_are("name,id\nsky,0\nsky,1\ncar,2\nvoid,9\n"),
    "list_doubled_ids": classes_are("name,id\nsky,0\nroad,0\ncar,2\n"),
    "list_nul": classes_are(b"name,id\nsky\0dark,0\nroad,1\ncar,2\nvoid,9\n"),
    "list_latin": classes_are("name,id\nstraße,0\nroad,1\n".encode("latin-1")),
    "list_binary": classes_are(bytes(range(256))),
    "list_ids": classes_are("name,id\nsky,0\nroad,256\n"),
    "list_negative": classes_are("name,id\nsky,-1\nroad,1\n"),
    "list_words": classes_are("name,id\nsky,zero\nroad,1\n"),
    "list_float": classes_are("name,id\nsky,0\nroad,1.7\n"),
    "list_colour": classes_are("name,id,red,green,blue\nsky,0,300,0,0\nroad,1,0,0,0\n"),
    "list_half_colour": classes_are("name,id,red\nsky,0,10\nroad,1,20\n"),
    "list_columns": classes_are("label,number\nsky,0\nroad,1\n"),
    "list_ignore": classes_are("name,id,ignore\nsky,0,maybe\nroad,1,\ncar,2,\nvoid,9,true\n"),
    "list_all_ignored": classes_are("name,id,ignore\nsky,0,yes\nroad,1,yes\n"),
    "list_huge": classes_are("name,id\n" + "".join(f"class {k},{k % 255}\n" for k in range(5000))),
    "list_quotes": classes_are('name,id\n"sky,0\nroad,1\ncar,2\n'),
    "yaml_boolean": classes_are("- no\n- yes\n- {name: void, id: 9, ignore: true}\n", "classes.yaml"),
    "yaml_float": classes_are("- {name: sky, id: 1.7}\n- {name: road, id: 2}\n", "classes.yaml"),
    "yaml_float_name": classes_are("- 1.7\n- 2.5\n", "classes.yaml"),
    "yaml_null": classes_are("-\n- road\n", "classes.yaml"),
    "yaml_repeated": classes_are("- {name: sky, id: 0, name: road}\n- {name: car, id: 2}\n", "classes.yaml"),
    "yaml_mapping": classes_are("sky: 0\nroad: 1\n", "classes.yaml"),
    "yaml_nested": classes_are("[" * 5000, "classes.yaml"),
    "yaml_tag": classes_are("!!python/object/apply:os.system ['touch hacked']\n", "classes.yaml"),
    "yaml_bomb": classes_are(bomb_text("- "), "classes.yaml"),
    "split_missing": lists_are(b"0\n1\n77\n"),
    "split_latin": lists_are("0\nstraße\n".encode("latin-1")),
    "split_binary": lists_are(bytes(range(256)) * 4),
    "split_absolute": lists_are(b"/etc/passwd\n0\n"),
    "split_upward": lists_are(b"../../photos/good\n0\n"),
    "split_empty": lists_are(b"\n\n"),
    "split_no_val": lists_are(b"0\n1\n2\n3\n", None),
    "split_both": lists_are(b"0\n1\n4\n"),
    "split_doubled": lists_are(b"0\n0\n1\n"),
    "split_folder": lambda folder, root: (lists_are(b"0\n1\n")(folder, root), (folder / "train.txt").unlink(),
                                          (folder / "train.txt").mkdir()),
}  # fmt: skip
"""Name below data/ -> what is changed in a copy of data/good."""


def data(folder, root):
    good_data(folder / "good")
    for name, change in VARIANTS.items():
        shutil.copytree(folder / "good", folder / name)
        change(folder / name, root)
    with zipfile.ZipFile(folder / "good.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "good").rglob("*.*")):
            archive.write(path, path.relative_to(folder / "good"))
    cut(folder / "good.zip", folder / "cut.zip", 0.7)
    put(folder / "text.zip", "this is a text\n" * 10)
    put(folder / "empty.zip", b"")
    encrypt(folder / "good.zip", folder / "encrypted.zip")
    broken = bytearray((folder / "good.zip").read_bytes())
    broken[200:260] = bytes(60)
    put(folder / "damaged.zip", bytes(broken))


def encrypt(source, target):
    """The same zip with the bit that says that its members are encrypted."""
    content = bytearray(source.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(sign)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(sign, start + 4)
    put(target, bytes(content))


def lists(folder):
    put(folder / "good.csv", CLASSES)
    put(folder / "four.csv", "name,id\na,0\nb,1\nd,9\n")
    put(folder / "text.txt", "sky\nroad\n")


def configs(folder):
    put(folder / "good.yaml", CONFIG)
    put(folder / "classifier.yaml", CLASSIFIER)
    texts = {
        "empty": "",
        "scalar": "42\n",
        "list": "- model\n- data\n",
        "unknown": CONFIG + "optimizer: sgd\n",
        "unknown_key": CONFIG.replace("reference_batch: null", "learning_rate: 0.1"),
        "repeated_group": CONFIG + "optim: {lr: 0.5}\n",
        "repeated_key": CONFIG.replace("crop_size: 32", "crop_size: 32, crop_size: 64"),
        "group_null": CONFIG.replace("{sheet: 0}", ""),
        "group_list": CONFIG.replace("{sheet: 0}", "[sheet]"),
        "type": CONFIG.replace("crop_size: 32", "crop_size: big"),
        "float": CONFIG.replace("crop_size: 32", "crop_size: 32.5"),
        "boolean": CONFIG.replace("crop_size: 32", "crop_size: true"),
        "nan": CONFIG.replace("reference_batch: null", "lr: .nan"),
        "infinite": CONFIG.replace("reference_batch: null", "lr: .inf"),
        "exponent": CONFIG.replace("reference_batch: null", "lr: 1e-2x"),
        "deep": CONFIG + "extra: " + "[" * 3000 + "]" * 3000 + "\n",
        "deep_mapping": "".join(" " * depth + f"k{depth}:\n" for depth in range(2000)),
        "bomb": bomb_text(),
        "tag": "model: !!python/object/apply:os.system ['touch hacked']\n",
        "tab": "model:\n\tencoder: resnest50\n",
        "colon": "model: encoder: resnest50\n",
        "anchor": "model: *nothing\n",
        "key_number": CONFIG + "1: 2\n",
        "key_null": CONFIG + "~: 2\n",
        "key_list": CONFIG + "? [a, b]\n: 2\n",
        "documents": CONFIG + "---\n" + CONFIG,
        "huge_number": CONFIG.replace("crop_size: 32", "crop_size: " + "9" * 5000),
    }
    for name, text in texts.items():
        put(folder / f"{name}.yaml", text)
    put(folder / "binary.yaml", bytes(range(256)) * 8)
    put(folder / "latin.yaml", (CONFIG + "# straße\n").encode("latin-1"))
    put(folder / "nul.yaml", CONFIG.replace("fcn", "f\0cn"))
    (folder / "folder.yaml").mkdir()
    (folder / "loop.yaml").symlink_to("loop.yaml")


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch hacked",)


def train(words):
    """Run tools/train_seg.py here; its output goes nowhere unless it fails."""
    import contextlib

    from resnest_seg.errors import run_tool

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run_tool(lambda: sys.modules["train_seg"].main([str(word) for word in words]))
    assert status == 0, said.getvalue()


def weights(folder, root):
    import torch
    from safetensors.torch import load_file, save_file

    from resnest_seg.config import ClassifierConfig, PretrainConfig
    from resnest_seg.labels import LabelSpace
    from resnest_seg.models.checkpoint import Checkpoint
    from resnest_seg.models.loading import build_segmenter, classifier_for

    run = root / "run"
    train(["--config", root / "configs/good.yaml", "--data.root", root / "data/good", "--output", run])
    last, best = run / "last.safetensors", run / "best.safetensors"
    for share in (10, 60):
        cut(best, folder / f"cut{share}.safetensors", share / 100)
    put(folder / "text.pth", "this is a text\n" * 10)
    put(folder / "text.safetensors", "this is a text\n" * 10)
    put(folder / "empty.pth", b"")
    put(folder / "liar.safetensors", struct.pack("<Q", 1 << 60) + best.read_bytes()[8:])
    put(folder / "short.safetensors", struct.pack("<Q", 2) + b"{}")
    damaged = bytearray(best.read_bytes())
    damaged[-1000] ^= 255
    put(folder / "damaged.safetensors", bytes(damaged))
    put(folder / "evil.pth", pickle.dumps({"state_dict": Evil()}))
    torch.save({"state_dict": {"a": Evil()}}, folder / "evil_zip.pth")
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save({"some.weight": torch.zeros(3)}, folder / "stranger.pth")
    save_file({"some.weight": torch.zeros(3)}, folder / "stranger.safetensors")
    checkpoint = Checkpoint.load(best)
    poisoned = {key: value.clone() for key, value in checkpoint.weights.items()}
    poisoned["encoder.layer3.0.conv1.weight"][0] = float("nan")
    Checkpoint(checkpoint.config, checkpoint.label_space, poisoned).save(folder / "nan.safetensors")
    torch.save({key.removeprefix("encoder."): value for key, value in poisoned.items() if key.startswith("encoder.")},
               folder / "nan_encoder.pth")  # fmt: skip
    lacking = {key: value for key, value in checkpoint.weights.items() if "layer2" not in key}
    Checkpoint(checkpoint.config, checkpoint.label_space, lacking).save(folder / "lacking.safetensors")
    tensors = load_file(best)
    with_other = {"format": "resnest_seg/99", "config": "{}", "label_space": "null", "num_classes": "3"}
    save_file(tensors, folder / "future.safetensors", with_other)
    save_file(tensors, folder / "no_config.safetensors", {"format": "resnest_seg/1"})
    network = PretrainConfig(model=ClassifierConfig(encoder="resnest14_tiny"))
    classifier = classifier_for(network, num_classes=5)
    classifier.to_checkpoint().save(folder / "classifier.safetensors")
    many = build_segmenter("resnest14_tiny", head="fcn", num_classes=7, output_stride=32)
    many.label_space = LabelSpace.numbered(7)
    many.to_checkpoint().save(folder / "seven.safetensors")
    state = Checkpoint.load(last)
    assert state.training is not None
    bare = type(state.training)(state.training.values, {})
    Checkpoint(state.config, state.label_space, state.weights, bare).save(folder / "no_optimizer.safetensors")
    zipped(folder / "two.zip", {"a.pth": b"x", "b.pth": b"y"})
    (folder / "nothing").mkdir()
    (folder / "loop").mkdir()
    (folder / "loop" / "best.safetensors").symlink_to("best.safetensors")
    (folder / "best_is_folder" / "best.safetensors").mkdir(parents=True)


def zipped(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def zips(folder):
    """Pairs of Cityscapes' zip files, the second with something wrong, and one of CamVid's."""
    photo = b"photo"
    first = {f"leftImg8bit/train/ulm/ulm_{k:06d}_000019_leftImg8bit.png": photo for k in range(3)}
    second = {f"gtFine/train/ulm/ulm_{k:06d}_000019_gtFine_labelIds.png": photo for k in range(3)}
    link = zipfile.ZipInfo("gtFine/link")
    link.external_attr = 0o120777 << 16
    for name, more in {
        "upward": {"gtFine/../../evil.txt": b"x"},
        "absolute": {"/tmp/evil.txt": b"x"},
        "windows": {"C:/evil.txt": b"x"},
        "backslash": {"..\\..\\evil.txt": b"x"},
        "small": {},
        "nested": {"gtFine/inner.zip": b"PK"},
        "bomb": {"gtFine/zeros.bin": bytes(100 << 20)},
        "clash": {"gtFine/train": b"x"},
        "long": {"gtFine/" + "n" * 300 + ".png": b"x"},
    }.items():
        zipped(folder / name / "leftImg8bit_trainvaltest.zip", first)
        zipped(folder / name / "gtFine_trainvaltest.zip", second | more)
    zipped(folder / "link" / "leftImg8bit_trainvaltest.zip", first)
    with zipfile.ZipFile(zipped(folder / "link" / "gtFine_trainvaltest.zip", second), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    for name in ("cut", "text", "encrypted", "foreign"):
        zipped(folder / name / "leftImg8bit_trainvaltest.zip", first)
    whole = zipped(folder / "whole.zip", second)
    cut(whole, folder / "cut" / "gtFine_trainvaltest.zip", 0.6)
    put(folder / "text" / "gtFine_trainvaltest.zip", "this is a text\n" * 10)
    encrypt(whole, folder / "encrypted" / "gtFine_trainvaltest.zip")
    zipped(folder / "foreign" / "gtFine_trainvaltest.zip", {"readme.txt": b"x"})


def class_folders(folder):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for index in range(2):
                seed = 100 * (name == "dog") + 10 * (split == "val") + index
                save(folder / "good" / split / name / f"{index}.png", noise(*SIZE, 3, seed=seed))
    for name in ("broken", "one", "other_val", "empty_class"):
        shutil.copytree(folder / "good", folder / name)
    put(folder / "broken/train/cat/0.png", "this is a text")
    shutil.rmtree(folder / "one/train/dog")
    (folder / "other_val/val/dog").rename(folder / "other_val/val/horse")
    for path in (folder / "empty_class/train/cat").iterdir():
        path.unlink()


def reports(folder, root):
    """Reports of an evaluation that --compare may be given."""
    put(folder / "text.json", "no json")
    put(folder / "empty.json", "")
    put(folder / "list.json", "[1, 2]")
    put(folder / "other.json", json.dumps({"format": "something else"}))
    put(folder / "deep.json", "[" * 100_000)


def make(root):
    """Make everything below `root`, an empty folder; needs the tools as modules, see `bad_inputs.load_tools`."""
    from support.small_onnx import write as write_onnx

    photos(root / "photos")
    data(root / "data", root)
    lists(root / "lists")
    configs(root / "configs")
    zips(root / "zips")
    class_folders(root / "classes")
    reports(root / "reports", root)
    write_onnx(root / "model.onnx")
    cut(root / "model.onnx", root / "cut.onnx")
    put(root / "text.onnx", "this is a text")
    put(root / "text.xml", "this is a text")
    put(root / "text.pt2", "this is a text")
    put(root / "empty.onnx", b"")
    weights(root / "weights", root)
