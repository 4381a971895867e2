"""Predictors of exported files against the functions in torch, on files whose logits are known; what they import."""

import dataclasses
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from support import small_onnx
from support.small_models import small_segmenter
from support.small_networks import photo

from resnest_seg.config import DataConfig
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.export.export import export_onnx
from resnest_seg.export.verify import Evidence
from resnest_seg.inference.predictor import OnnxPredictor, Predictor
from resnest_seg.inference.protocols import protocol, with_tiles
from resnest_seg.inference.torch_engine import Runner, probabilities, scores
from resnest_seg.io.masks import decode_mask
from resnest_seg.labels import LabelSpace

pytestmark = pytest.mark.slow

SETTING = small_onnx.INFO.setting
SMALL_CANVAS = SETTING._replace(recipe="mmseg", base_size=64)
PROTOCOLS = ["whole", "slide", "encoding", "mmseg", "mmseg0", "paddle"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each form."""
    folder = tmp_path_factory.mktemp("files")
    kinds = [(output, layout, pixels) for output in ("logits", "softmax", "labels") for layout in ("nchw", "nhwc")
             for pixels in ("float32", "uint8")]  # fmt: skip
    return {
        kind: small_onnx.write(folder / f"{'_'.join(kind)}.onnx", output=kind[0], layout=kind[1], pixels=kind[2])
        for kind in kinds
    }


def expected(pixels, method):
    """Probabilities [K, H, W] by torch."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return probabilities(scores(Runner(small_onnx.convolution), image, method), method.merge).numpy()


@pytest.mark.parametrize(
    ("name", "tile", "layout"),
    [*((name, None, "nchw") for name in PROTOCOLS), ("whole", 24, "nhwc"), ("encoding", 24, "nhwc"),
     ("mmseg", 24, "nchw")],
)  # fmt: skip
def test_every_protocol_is_that_of_the_predictor(files, name, tile, layout):
    pixels = photo(50, 70).permute(1, 2, 0).numpy()
    named = protocol(name, setting=SMALL_CANVAS if name == "mmseg0" else SETTING)
    predictor = OnnxPredictor(
        files["logits", layout, "float32"], protocol=named if name == "mmseg0" else name, tile=tile, threads=1
    )
    prediction = predictor(pixels)
    assert predictor.protocol == with_tiles(named, tile, None)
    theirs = expected(pixels, predictor.protocol)
    assert prediction.labels.dtype == np.uint8
    assert (prediction.labels == theirs.argmax(axis=0)).mean() >= 0.9999
    assert np.abs(prediction.scores() - theirs).max() < 1e-4
    assert len(np.unique(prediction.labels)) == 3


@pytest.mark.parametrize("name", ["whole", "slide", "mmseg", "paddle"])
def test_probabilities_do_where_logits_are_averaged(files, name):
    pixels = photo(50, 70, seed=1).permute(1, 2, 0).numpy()
    prediction = OnnxPredictor(files["softmax", "nchw", "float32"], protocol=name)(pixels)
    assert np.abs(prediction.scores() - expected(pixels, protocol(name, setting=SETTING))).max() < 1e-4


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_labels_do_for_the_whole_image(files, layout):
    pixels = photo(37, 51).permute(1, 2, 0).numpy()
    prediction = OnnxPredictor(files["labels", layout, "uint8"])(pixels)
    assert np.array_equal(prediction.labels, expected(pixels, protocol("whole")).argmax(axis=0))
    assert prediction.labels.flags.c_contiguous
    with pytest.raises(ConfigError, match="gives labels only, no scores"):
        prediction.scores()


def test_the_padding_is_that_of_protocol_whole(tmp_path):
    """A file that answers with the size of what it was shown."""
    seen = []
    predictor = OnnxPredictor(small_onnx.write(tmp_path / "a.onnx", output="labels"))
    file = predictor.backend.file
    run, file._run = file._run, lambda images: seen.append(images.shape) or run(images)
    assert predictor(np.zeros((13, 21, 3), np.uint8)).labels.shape == (13, 21)
    assert seen == [(1, 3, 16, 24)]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (("labels", "nchw", "uint8"), {"protocol": "mmseg"}, "gives labels only, and protocol mmseg has scores"),
        (("labels", "nchw", "uint8"), {"tile": 16}, "without tiles, scales and flip, or export"),
        (("softmax", "nchw", "float32"), {"protocol": "encoding"}, "merges exponentials of logits. Export the model"),
        (("logits", "nchw", "uint8"), {"protocol": "encoding"}, "with float32 pixels"),
        (("logits", "nchw", "uint8"), {"protocol": "paddle"}, "fractions of grey levels"),
        (("logits", "nchw", "uint8"), {"protocol": "encodin"}, "Did you mean 'encoding'"),
        (("logits", "nchw", "uint8"), {"tile": 0}, "at least 1 pixel"),
        (("logits", "nchw", "uint8"), {"batch": 0}, "at least 1 image"),
        (("logits", "nchw", "uint8"), {"threads": 0}, "threads must be at least 1"),
    ],
)
def test_what_a_file_cannot_do_is_refused_at_once(files, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        OnnxPredictor(files[kind], **options)


def test_files_that_are_no_models_of_photos(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        OnnxPredictor(tmp_path / "no.onnx")
    with pytest.raises(CheckpointError, match="for images of 4 channels"):
        OnnxPredictor(small_onnx.write(tmp_path / "four.onnx", mean=(0.0,) * 4, std=(1.0,) * 4)).check_photos()
    broken = small_onnx.write(tmp_path / "nan.onnx", weights=np.full((3, 3, 1, 1), np.nan, np.float32))
    with pytest.raises(CheckpointError, match=r"outputs of .*nan.onnx are not all finite"):
        OnnxPredictor(broken)(np.ones((4, 4, 3), np.uint8))


def test_photos_are_what_the_predictor_takes_and_results_what_it_gives(files, tmp_path):
    predictor = OnnxPredictor(files["logits", "nchw", "uint8"])
    pixels = photo(37, 51).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    predictions = [predictor(pixels), *predictor([image, tmp_path / "a.png", str(tmp_path / "a.png")])]
    for prediction in predictions:
        assert np.array_equal(prediction.labels, predictions[0].labels)
        assert np.array_equal(prediction.image, pixels)
    first = predictions[0]
    first.save(tmp_path / "labels.png")
    first.save_scores(tmp_path / "scores.npz")
    assert np.array_equal(
        decode_mask((tmp_path / "labels.png").read_bytes(), "x"), first.label_space.decode(first.labels)
    )
    with np.load(tmp_path / "scores.npz") as file:
        assert file["scores"].dtype == np.float16
        assert (file["scores"].argmax(axis=0) == first.labels).mean() > 0.99
        assert list(file["names"]) == ["sky", "road", "car"]
    assert np.array_equal(first.overlay(0.0, legend=False), pixels)
    assert sum(feature["properties"]["area"] for feature in first.polygons()["features"]) == 37 * 51
    assert predictor([]) == []
    with pytest.raises(DatasetError, match="cannot read"):
        predictor(tmp_path / "gone.jpg")
    with pytest.raises(ConfigError, match=r"numpy.ndarray int64 \[3, 4\]"):
        predictor(np.zeros((3, 4), int))
    with pytest.raises(
        ConfigError, match=r"logits of an image of 2000 x 3000 pixels .* allowed .memory=1000.: give a tile"
    ):
        OnnxPredictor(files["logits", "nchw", "uint8"], memory=1000)(np.zeros((2000, 3000, 3), np.uint8))


def test_threads_share_a_predictor(tmp_path):
    predictor = OnnxPredictor(small_onnx.write(tmp_path / "a.onnx", weights=None), threads=1)
    random = np.random.default_rng(0)
    photos = [random.integers(0, 256, (20 + n, 30, 3), dtype=np.uint8) for n in range(40)]
    found = {}

    def work(numbers):
        for number in numbers:
            found[number] = predictor(photos[number]).labels

    threads = [threading.Thread(target=work, args=(range(start, 40, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, pixels in enumerate(photos):
        assert np.array_equal(found[number], pixels.argmax(axis=2)), number


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small model whose classes are all about as frequent, and its export."""
    segmenter = small_segmenter(LabelSpace.numbered(5), classes=5)
    segmenter.config = dataclasses.replace(segmenter.config, data=DataConfig(base_size=80, crop_size=64))
    images = torch.stack([photo(64, 64, seed=seed) for seed in range(4)])
    with torch.inference_mode():
        logits = segmenter(images).logits
    last = segmenter.head.conv5[-1]
    last.bias.data -= logits.mean(dim=(0, 2, 3))
    last.weight.data /= (scale := logits.std(dim=(0, 2, 3)))[:, None, None, None]
    last.bias.data /= scale
    path = tmp_path_factory.mktemp("export") / "a.onnx"
    few = Evidence(photos=[photo(40 + seed, 50, seed=seed).permute(1, 2, 0).numpy() for seed in range(5)])
    export_onnx(segmenter, path, pixels="float32", evidence=few)
    return segmenter, path


@pytest.mark.parametrize(
    ("name", "tile"), [("whole", None), ("whole", 64), ("encoding", None), ("mmseg", None), ("paddle", 48)]
)
def test_an_export_predicts_what_its_checkpoint_predicts(exported, name, tile):
    segmenter, path = exported
    ours = OnnxPredictor(path, protocol=name, tile=tile, threads=1)
    theirs = Predictor(segmenter, device="cpu", protocol=name, tile=tile)
    assert ours.protocol == theirs.protocol
    for seed, size in enumerate(((97, 130), (33, 47))):
        pixels = photo(*size, seed=seed).permute(1, 2, 0).numpy()
        found, expected = ours(pixels), theirs(pixels)
        assert len(np.unique(expected.labels)) >= 3
        assert (found.labels == expected.labels).mean() >= 0.9999
        assert np.abs(found.scores() - expected.scores()).max() < 1e-4


ALONE = """
import builtins, sys
allowed = {"numpy", "cv2", "onnxruntime", "resnest_seg", "__main__"} | set(sys.stdlib_module_names)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith(("flatbuffers", "google", "packaging")):
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
for name in list(sys.modules):
    assert name.partition(".")[0] not in ("torch", "PIL", "yaml"), name
from resnest_seg.inference.predictor import OnnxPredictor
prediction = OnnxPredictor("a.onnx", tile=16)("photo.png")
prediction.save("labels.png")
prediction.save_scores("scores.npz")
prediction.overlay(), prediction.polygons()
print([name for name in ("torch", "PIL", "yaml", "rich", "scipy") if name in sys.modules])
"""


def test_numpy_opencv_and_onnxruntime_are_all_it_needs(tmp_path):
    """In an interpreter that refuses to import anything else, transparent photos and label PNGs included."""
    small_onnx.write(tmp_path / "a.onnx", weights=None)
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    labels = decode_mask((tmp_path / "labels.png").read_bytes(), "labels")
    assert (labels == small_onnx.SPACE.decode(pixels[..., :3].argmax(axis=2).astype(np.uint8))).mean() > 0.99


def test_a_long_list_holds_no_more_logits_than_a_short_one(files):
    """Counted while the network runs: arrays of logits that are still alive."""
    predictor = OnnxPredictor(files["logits", "nchw", "float32"])
    alive, most = weakref.WeakSet(), []
    backend = predictor.backend
    logits_fn = backend.network.logits_fn

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def counted(images):
        logits = logits_fn(images).view(Counted)
        alive.add(logits)
        most.append(len(alive))
        return logits

    backend.network = dataclasses.replace(backend.network, logits_fn=counted)
    photos = [np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8) for seed in range(12)]
    assert len(predictor(photos)) == 12
    assert len(most) == 12
    assert max(most[2:]) <= max(most[:2])
