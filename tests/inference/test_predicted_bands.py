"""Prediction on images of many bands, by checkpoints and exported files: the same labels for every form of an image."""

import contextlib
import http.client
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support import exported_once
from support.rasters import NAMES, scene, values, write_raster
from support.small_models import FCNHead, OneConvolution, used

from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.export.export import export_onnx, export_torch
from resnest_seg.inference.decoding import PhotoDecoder
from resnest_seg.inference.exported import ExportInfo, open_exported
from resnest_seg.inference.http_server import Limits, app, server
from resnest_seg.inference.predictor import OnnxPredictor, Predictor
from resnest_seg.io.bands import BandReader
from resnest_seg.labels import LabelSpace
from resnest_seg.models.segmenter import Segmenter

SPACE = LabelSpace.numbered(3)
MEAN, STD = (1366.0, 1367.5, 1366.25, 1500.0), (239.0, 239.0, 239.0, 426.0)


def model_of(bands=NAMES):
    data = DataConfig(bands=bands, pixel_mean=MEAN, pixel_std=STD, crop_size=32, base_size=48)
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn", in_channels=4), data=data)
    return used(Segmenter(OneConvolution(4), FCNHead(16, 3), config=config, num_classes=3, label_space=SPACE))


def test_every_form_of_an_image_gives_the_same_labels(tmp_path):
    pixels, _ = scene(0)
    predictor = Predictor(model_of())
    path = write_raster(tmp_path / "Größe [1] 5%.tif", pixels, names=NAMES)
    expected = predictor(path).labels
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (str(path), pixels, pixels.astype(np.float32), pixels.astype(np.int16), pixels[:, ::-1][:, ::-1],
                  tensor,
                  tensor.float(), pixels.astype(np.int64)):  # fmt: skip
        assert np.array_equal(predictor(image).labels, expected)
    for several in (pixels[None].repeat(2, axis=0), [path, tensor], tensor[None]):
        assert all(np.array_equal(found.labels, expected) for found in predictor(several))
    shuffled = write_raster(tmp_path / "b.tif", pixels[..., [3, 1, 0, 2]], names=[NAMES[band] for band in (3, 1, 0, 2)])
    assert np.array_equal(predictor(shuffled).labels, expected)


@pytest.mark.parametrize("protocol", ["whole", "slide", "encoding", "mmseg"])
def test_padding_is_the_mean_not_zero(protocol):
    """Shifting pixels and means alike changes nothing, also at the border of an image that is padded."""
    pixels = scene(1)[0][:41, :37].astype(np.float32)
    plain, shifted = model_of((1, 2, 3, 4)), model_of((1, 2, 3, 4))
    shifted.pixel_mean += 5000
    shifted.config = RunConfig(
        model=shifted.config.model,
        data=DataConfig(bands=(1, 2, 3, 4), pixel_mean=tuple(mean + 5000 for mean in MEAN), pixel_std=STD, crop_size=32,
                        base_size=48),
    )  # fmt: skip
    one, other = Predictor(plain, protocol=protocol), Predictor(shifted, protocol=protocol)
    assert np.allclose(one.scores(pixels), other.scores(pixels + 5000), atol=1e-3)


def test_no_data_is_ignored_and_pictures_are_stretched(tmp_path):
    pixels, _ = scene(0)
    pixels[:10] = 0
    predictor = Predictor(model_of(), overlay_bands=("nir", "red", "green"))
    prediction = predictor(write_raster(tmp_path / "a.tif", pixels, names=NAMES, nodata=0))
    assert (prediction.labels[:10] == 255).all()
    assert (prediction.labels[10:] < 3).all()
    assert (prediction.image[:10] == 255).all()
    assert (prediction.image[10:].min(), prediction.image[10:].max()) == (0, 255)
    prediction.save(tmp_path / "labels.png")
    holes = pixels.astype(np.float32)
    holes[:10] = np.nan
    assert np.array_equal(predictor(holes).labels, prediction.labels)
    assert prediction.overlay().shape[2] == 3
    for bands, message in ((("swir",) * 3, "no band swir among those of the model: red, green, blue, nir"),
                           ((1, 2), "three bands, or one as grey, not 2")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Predictor(model_of(), overlay_bands=bands)


def test_what_does_not_fit_the_bands_is_told(tmp_path):
    predictor = Predictor(model_of())
    pixels, _ = scene(0)
    for image, error, message in (
        (pixels[..., :3], ConfigError, r"takes images of 4 bands \(red, green, blue, nir\)"),
        (pixels.astype(np.uint8), ConfigError, "8-bit values, and the bands of the model have means up to 1500"),
        (write_raster(tmp_path / "a.tif", pixels), DatasetError, "4 bands without names"),
        (write_raster(tmp_path / "b.tif", pixels[..., :2], names=NAMES[:2]), DatasetError, "unknown band .* 'blue'"),
        (tmp_path / "none.tif", DatasetError, "No such file"),
    ):
        with pytest.raises(error, match=message):
            predictor(image)
    with pytest.warns(UserWarning, match="bands with means from 1366 to 1500: pass the values of the files"):
        predictor(np.random.default_rng(0).random((40, 40, 4), dtype=np.float32))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("exports"), model_of()
    with pytest.MonkeyPatch.context() as patch:
        exported_once.keep(patch, {})
        export_onnx(model, folder / "deep.onnx", pixels="uint16")
        export_onnx(model, folder / "floats.onnx", pixels="float32", layout="nhwc")
        export_torch(model, folder / "deep.pt2", pixels="uint16")
    return folder


@pytest.mark.parametrize("name", ["deep.onnx", "floats.onnx", "deep.pt2"])
def test_exported_files_give_the_labels_of_their_source(exports, tmp_path, name):
    pixels, _ = scene(2)
    pixels[:6] = 9
    path = write_raster(tmp_path / "a.tif", pixels, names=NAMES, nodata=9)
    source, exported = Predictor(model_of()), OnnxPredictor(exports / name)
    assert exported.backend.bands == BandReader(NAMES, None, exported.backend.mean)
    assert np.allclose(exported.backend.mean, MEAN)
    for image in (path, pixels, pixels.astype(np.float32)):
        assert np.array_equal(exported(image).labels, source(image).labels)
    assert (exported(path).labels[:6] == 255).all()
    tiled = OnnxPredictor(exports / name, protocol="slide", tile=32)
    assert np.mean(tiled(path).labels == Predictor(model_of(), protocol="slide", tile=32)(path).labels) > 0.999


def test_floats_by_windows_are_rounded_as_floats_at_once(exports, tmp_path):
    pixels, _ = scene(3)
    path = write_raster(tmp_path / "a.tif", pixels.astype(np.float32) + np.float32(0.3), names=NAMES)
    predictor = OnnxPredictor(exports / "deep.onnx", tile=32)
    predictor.segment_file(path, tmp_path / "labels.png", ids="train")
    assert np.array_equal(np.array(Image.open(tmp_path / "labels.png")), predictor(path).labels)
    assert np.array_equal(predictor(path).labels, predictor(pixels).labels)
    below = write_raster(tmp_path / "b.tif", pixels.astype(np.float32) - 5000, names=NAMES)
    with pytest.raises(ConfigError, match=r"the image has values from .*--pixels float32"):
        predictor.segment_file(below, tmp_path / "c.png")


def test_exports_that_cannot_hold_the_values_are_refused(exports, tmp_path):
    with pytest.raises(
        ConfigError, match=r"means from 1366 to 1500, which uint8 pixels cannot hold: .*--pixels float32"
    ):
        export_onnx(model_of(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    file = open_exported(exports / "deep.onnx")
    with pytest.raises(ConfigError, match="takes uint16 bands in the units of the files, not float32"):
        file(np.zeros((1, 4, 32, 32), np.float32))
    with pytest.raises(ConfigError, match=r"values from -5 to -5.*--pixels float32"):
        OnnxPredictor(exports / "deep.onnx")(np.full((32, 32, 4), -5.0))


def test_descriptions_of_older_files_are_of_photos(exports):
    info = open_exported(exports / "deep.onnx").info
    assert ExportInfo.from_json(info.to_json()) == info
    old = info.to_json().replace(
        '"bands": ["red", "green", "blue", "nir"], "nodata": null', '"bands": [], "nodata": null'
    )
    assert '"bands": []' in old
    assert ExportInfo.from_json(old.replace(', "bands": [], "nodata": null', "")).bands == ()
    with pytest.raises(CheckpointError, match="different lengths"):
        ExportInfo.from_json(old.replace('"bands": []', '"bands": [1, 2]'))


@pytest.fixture
def decoder():
    found = PhotoDecoder(max_pixels=60 * 60, seconds=20, bands=BandReader(NAMES))
    yield found
    found.close()


@pytest.mark.slow
def test_bodies_of_a_service_are_decoded_in_a_process_of_their_own(decoder, tmp_path):
    pixels, _ = scene(0)
    path = write_raster(tmp_path / "a.tif", pixels, names=NAMES)
    assert np.array_equal(decoder(path.read_bytes()), pixels)
    pixels[:5] = 3
    holes = decoder(write_raster(tmp_path / "b.tif", pixels, names=NAMES, nodata=3).read_bytes())
    assert np.isnan(holes[:5]).all()
    assert np.array_equal(holes[5:], pixels[5:])
    large = write_raster(tmp_path / "c.tif", values("uint16", 61, 60, 4), names=NAMES)
    with pytest.raises(ConfigError, match="61 x 60 pixels, 3600 are allowed"):
        decoder(large.read_bytes())
    for body in (b"II*\0", b"words", path.read_bytes()[:200], write_raster(tmp_path / "d.tif", pixels).read_bytes()):
        with pytest.raises(DatasetError):
            decoder(body)
    assert np.array_equal(decoder(path.read_bytes()), scene(0)[0])


@pytest.mark.slow
def test_a_service_takes_tiff_bodies_of_models_of_bands(tmp_path):
    predictor, limits = Predictor(model_of()), Limits(max_bytes=100_000, max_pixels=50_000)
    own, listening = server(app(predictor, limits=limits), limits=limits, port=0)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listening]})
    thread.start()

    def ask(body, kind="image/tiff"):
        connection = http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/segment", body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()

    try:
        pixels, _ = scene(4)
        pixels[:7] = 5
        path = write_raster(tmp_path / "a.tif", pixels, names=NAMES, nodata=5)
        status, content = ask(path.read_bytes())
        assert status == 200
        shown = np.array(Image.open(io.BytesIO(content)))
        assert np.array_equal(shown, SPACE.decode(predictor(path).labels))
        assert (shown[:7] == 255).all()
        for body, kind, code, message in (
            (path.read_bytes()[:300], "image/tiff", 422, b"TIFF"),
            (
                write_raster(tmp_path / "b.tif", pixels[..., :2]).read_bytes(),
                "image/tiff",
                422,
                b"2 bands without names",
            ),
            (b"words", "text/plain", 415, b"image/tiff"),
        ):
            status, content = ask(body, kind)
            assert (status, message in content) == (code, True), content
    finally:
        own.should_exit = True
        thread.join()
        listening.close()
