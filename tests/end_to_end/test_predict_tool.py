"""tools/predict_seg.py and tools/eval_seg.py with every kind of input and output."""

import errno
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from support import fake_data, local_server
from support.small_models import save_scenes_model

from resnest_seg.annotations import import_labels
from resnest_seg.cli import predict as predict_verb
from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.data.folder import read_classes
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.io.images import read_image
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.video import write_video
from resnest_seg.io.visualize import write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A fresh model of the synthetic scenes."""
    return save_scenes_model(tmp_path_factory.mktemp("run"))


@pytest.fixture
def predict(checkpoint, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: tool("predict_seg")("--checkpoint", checkpoint, "--device", "cpu", *words)


def scene(index=0, size=(40, 60)):
    return Synthetic("test", size=size)[index].image


def test_every_output(predict, tmp_path):
    write_png(tmp_path / "a.png", scene())
    assert predict("a.png", "--write", "labels", "overlay", "scores", "polygons", "--ids", "train") == 0
    folder = tmp_path / "predictions"
    labels = np.array(Image.open(folder / "a_labels.png"))
    with np.load(folder / "a_scores.npz") as file:
        scores, names = file["scores"], file["names"]
    assert scores.dtype == np.float16
    assert scores.shape == (10, 40, 60)
    assert list(names) == list(Synthetic("test").label_space.names)
    assert (scores.argmax(axis=0) == labels).mean() > 0.99  # half precision may tie
    features = json.loads((folder / "a.geojson").read_text())["features"]
    assert {f["properties"]["train_id"]: f["properties"]["area"] for f in features} == {
        int(label): int((labels == label).sum()) for label in np.unique(labels)
    }


def test_predictions_for_annotation_tools_are_read_again(predict, tmp_path, capsys):
    """Also of photos whose names differ in their suffixes only, which share a name in YOLO and labelme."""
    write_png(tmp_path / "photos" / "in" / "a.png", scene())
    for number, suffix in enumerate((".png", ".jpg"), 1):
        Image.fromarray(scene(number)).save(tmp_path / "photos" / f"b{suffix}")
    formats = ["coco", "labelme", "cvat", "yolo"]
    words = ["photos", "--write", "labels", *formats, "--ids", "train", "--write-tolerance", "0", "--output", "out"]
    assert predict(*words) == 0
    names = ["b.jpg", "b.png", "in/a.png"]
    expected = {f"out/{stem}_labels.png" for stem in ("b.jpg", "b.png", "in/a")}
    assert {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "out").rglob("*_labels.png")} == expected
    for form in formats:
        mine, source = tmp_path / f"mine_{form}", tmp_path / "out" / form
        import_labels(source, mine, photos=None if form == "yolo" else tmp_path / "photos", unlabelled="ignore")
        space = read_classes(mine / "classes.csv")
        masks = sorted((mine / "masks").rglob("*.png"))
        assert len(masks) == 3
        for mask, name in zip(masks, names, strict=True):
            got = space.encode(decode_mask(mask.read_bytes(), name))
            stem = "in/a" if name == "in/a.png" else name
            true = np.array(Image.open(tmp_path / "out" / f"{stem}_labels.png"))
            ours = np.array([Synthetic("test").label_space.names.index(label) for label in space.names])[got]
            assert np.array_equal(ours, true), (form, name)
    capsys.readouterr()
    assert predict(*words) == 2
    assert "already exists. Choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert predict(*words, "--overwrite") == 0
    assert predict("photos/b.png", "--write", "coco", "--write-tolerance", "-1") == 2
    assert "--write-tolerance must be from 0 to 100" in capsys.readouterr().err
    assert predict("nothing.png", "--write", "coco") == 1
    assert not (tmp_path / "predictions").exists()


def test_protocols_and_their_ingredients_change_the_result(predict, tmp_path, capsys):
    write_png(tmp_path / "a.png", scene(size=(80, 120)))
    found = {}
    for number, words in enumerate(
        ([], ["--protocol", "encoding"], ["--scales", "0.75", "1.25", "--flip"], ["--tile", "40", "--overlap", "8"],
         ["--tile", "40", "--blend", "none"], ["--precision", "bf16"])
    ):  # fmt: skip
        out = tmp_path / str(number)
        assert predict("a.png", "--output", out, "--write", "scores", *words) == 0
        with np.load(out / "a_scores.npz") as file:
            found[number] = file["scores"].astype(np.float32)
        assert np.allclose(found[number].sum(axis=0), 1, atol=0.01)
        assert all(not np.array_equal(found[number], found[other]) for other in range(number))
    text = capsys.readouterr().err
    for part in ("protocol whole: scales 1 of the image", "encoding: scales 0.5, 0.75, 1, 1.25, 1.5, 1.75 and mirrored",
                 "windows 40 x 40 every 32 x 32 or less blended by hann"):  # fmt: skip
        assert part in text


def test_bad_inputs_get_a_line_each_and_the_rest_is_done(predict, tmp_path, capsys):
    write_png(tmp_path / "good.png", scene())
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("I am not a photo")
    Image.fromarray(scene()[:1, :1]).save(tmp_path / "one.png")
    Image.fromarray(np.zeros((10, 3000, 3), np.uint8)).save(tmp_path / "long.png")
    Image.fromarray(np.dstack([scene(), np.full((40, 60), 128, np.uint8)])).save(tmp_path / "alpha.png")
    Image.fromarray(scene()[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(scene()[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    whole = tmp_path / "whole.avi"
    with write_video(whole, fps=5) as writer:
        for _ in range(12):
            writer.write(scene())
    (tmp_path / "broken.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    names = ["good", "one", "long", "alpha", "grey", "deep"]
    words = [f"{name}.png" for name in names] + [
        "empty folder",
        "zero.jpg",
        "text.jpg",
        "broken.avi",
        "no.mp4",
        "gone.jpg",
    ]
    assert predict(*words) == 1
    printed = capsys.readouterr()
    assert {path.name for path in (tmp_path / "predictions").glob("*_labels.png")} == {f"{n}_labels.png" for n in names}
    for part in ("empty folder holds no image", "zero.jpg: 0 bytes", "text.jpg: 16 bytes that are not an image",
                 "broken.avi", "cannot read no.mp4", "gone.jpg"):  # fmt: skip
        assert part in printed.err
    assert "Traceback" not in printed.err
    assert np.array(Image.open(tmp_path / "predictions" / "long_labels.png")).shape == (10, 3000)
    assert np.array(Image.open(tmp_path / "predictions" / "one_labels.png")).shape == (1, 1)


def test_nothing_but_bad_inputs(predict, capsys):
    assert predict("nothing.jpg") == 1
    assert "error: 1 not segmented" in capsys.readouterr().err


def test_videos_become_videos(predict, tmp_path):
    with write_video(tmp_path / "drive.mp4", fps=5) as writer:
        for index in range(4):
            writer.write(scene(index % 2))
    assert predict("drive.mp4") == 0
    video = cv2.VideoCapture(str(tmp_path / "predictions" / "drive_overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert predict("drive.mp4", "--frames", 2, "--output", tmp_path / "two") == 0
    video = cv2.VideoCapture(str(tmp_path / "two" / "drive_overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2


def test_an_address(predict, tmp_path, capsys):
    write_png(tmp_path / "served" / "photo.png", scene())
    content = {"/photo.png": (tmp_path / "served" / "photo.png").read_bytes()}
    with local_server.serve(content) as server:
        assert predict(f"{server.url}/photo.png", f"{server.url}/gone.png") == 1
    assert "gone.png: HTTP 404" in capsys.readouterr().err
    assert (tmp_path / "predictions" / "photo_labels.png").exists()


def test_the_signature_of_an_address_is_not_shown(predict, tmp_path, capfd):
    write_png(tmp_path / "served" / "photo.png", scene())
    good, bad = "/photo.png?X-Amz-Signature=4711", "/page.png?X-Amz-Signature=4711"
    content = {good: (tmp_path / "served" / "photo.png").read_bytes(), bad: b"<html>expired</html>"}
    with local_server.serve(content) as server:
        for words, code, message in (
            ([bad, "--output", "out"], 1, "page.png?X-Amz-Signature=***: 20 bytes that are not an image"),
            ([good, "--output", "out"], 0, ""),
            ([good, "--output", "out"], 2, "photo.png?X-Amz-Signature=*** out/photo_labels.png already exists"),
            ([good, "--write", "geopackage"], 2, "photo.png?X-Amz-Signature=***: a TIFF"),
        ):
            assert predict(f"{server.url}{words[0]}", *words[1:]) == code
            shown = capfd.readouterr()
            assert "4711" not in shown.out + shown.err
            assert message in shown.err


def test_a_large_image_is_read_and_written_by_windows(predict, tmp_path, tool, monkeypatch, capsys):
    write_png(tmp_path / "large.png", scene(size=(300, 500)))
    write_png(tmp_path / "small.png", scene(size=(300, 500)))
    tiles = ["--tile", "128", "--overlap", "32"]
    assert predict("small.png", *tiles) == 0
    module = tool("predict_seg")
    monkeypatch.setattr("resnest_seg.bulk.outputs.LARGE", 1000)
    given = ("--checkpoint", checkpoint_of(predict), "--device", "cpu", "--output", "predictions")
    run = lambda *words: module(*given, *words)  # noqa: E731
    assert run("large.png") == 1
    assert "300 x 500 pixels: give --tile 1024" in capsys.readouterr().err
    assert run("large.png", *tiles) == 0
    folder = tmp_path / "predictions"
    labels = [decode_mask((folder / f"{name}_labels.png").read_bytes(), name) for name in ("large", "small")]
    assert np.array_equal(*labels)
    assert read_image(folder / "large_overlay.png").shape[1] >= 500


def checkpoint_of(predict):
    return next(cell.cell_contents for cell in predict.__closure__ if hasattr(cell.cell_contents, "suffix"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "2"], "--alpha must be from 0 to 1, not 2.0"),
        (["--tile", "0"], "--tile must be from 1 to 65536, not 0"),
        (["--overlap", "8"], "has no windows"),
        (["--tile", "8", "--overlap", "8"], "below the window's 8 pixels"),
        (["--blend", "hann"], "give --tile as well"),
        (["--scales", "0"], "scales must be 1 to 64 numbers from 0.01 to 16.0, not 0."),
        (["--scales", "1e-9"], "numbers from 0.01 to 16.0, not 1e-09."),
        (["--scales", "1", "1e6"], "numbers from 0.01 to 16.0, not 1, 1e+06."),
        (["--scales", "nan"], "numbers from 0.01 to 16.0, not nan."),
        (["--simplify", "inf"], "--simplify must be from 0 to 10000, not inf"),
        (["--simplify", "nan"], "--simplify must be from 0 to 10000, not nan"),
        (["--alpha", "nan"], "--alpha must be from 0 to 1, not nan"),
        (["--simplify", "2"], "--simplify is about polygons, geopackage, and --write labels overlay makes"),
        (["--write-tolerance", "2"], "--write-tolerance is about coco, labelme, cvat, yolo, and --write labels"),
        (["--ids", "train", "--write", "polygons", "coco"], "--ids is about labels, parquet, and --write"),
        (["--cog", "--write", "overlay", "geopackage"], "--cog is about labels, and --write overlay geopackage makes"),
        (["--overlay-bands", "4,3,2", "--write", "labels"], "--overlay-bands is about overlay, and --write labels"),
        (["--frames", "0"], "--frames must be from 1 to 1000000000, not 0"),
        (["--batch", "1000000"], "--batch must be from 1 to 65536, not 1000000"),
        (["--protocol", "hole"], "Did you mean 'whole'"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
    ],
)
def test_options_that_make_no_sense(predict, tmp_path, capsys, words, message):
    write_png(tmp_path / "a.png", scene())
    assert predict("a.png", *words) == 2
    assert message in capsys.readouterr().err


def test_options_without_effect_on_these_inputs_are_told(predict, tmp_path, capsys):
    """The opacity of overlays that are not drawn, the frames of photos; in a job as well."""
    write_png(tmp_path / "a.png", scene())
    with write_video(tmp_path / "drive.mp4", fps=5) as video:
        video.write(scene())
    job, labels = ("--shard", "0/1", "--output", "job"), ("--write", "labels", "--overwrite")
    frames, alpha = "note: --frames is about videos and cameras", "note: --alpha is about overlays, and --write labels"
    for words, said, unsaid in (
        (("a.png", "--frames", 2, "--alpha", 0.3, *labels), (frames, alpha), ()),
        (("a.png", "--frames", 2, "--alpha", 0.3, *labels, *job), (frames, alpha), ()),
        (("a.png", "--alpha", 0.3, "--overwrite"), (), (frames, alpha)),
        (("a.png", "drive.mp4", "--frames", 2, "--alpha", 0.3, *labels), (), (frames, alpha)),
    ):
        assert predict(*words) == 0
        text = capsys.readouterr().err
        assert all(part in text for part in said)
        assert not any(part in text for part in unsaid)


def test_eval_prints_protocols_side_by_side_and_writes_predictions(checkpoint, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    words = ["--checkpoint", checkpoint, "--split", "test", "--limit", 2, "--workers", 0, "--device", "cpu"]
    words += ["--protocols", "whole,encoding,mmseg", "--boundaries", "--calibration"]
    assert tool("eval_seg")(*words, "--output", "a.json", "--save-predictions", "labels") == 0
    text = capsys.readouterr().out
    for part in ("whole IoU", "encoding IoU", "mmseg IoU", "boundary F", "calibration error", "taken for", "count 0"):
        assert part in text
    assert len(list((tmp_path / "labels").rglob("*.png"))) == 2
    assert tool("eval_seg")(*words, "--output", "b.json", "--compare", "a.json", "--eval.memory", 1) == 0
    assert "+0.00" in capsys.readouterr().out
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one["scores"] == two["scores"]
    assert one["boundaries"] == two["boundaries"]
    assert tool("eval_seg")(*words, "--output", "c.json", "--save-predictions", "labels") == 2
    assert "labels exists" in capsys.readouterr().err
    assert tool("eval_seg")(*words, "--output", "c.json", "--compare", "labels") == 2


def test_a_second_prediction_takes_the_next_folder(predict, tmp_path, capsys):
    """And what was predicted before is no input, wherever it lies."""
    write_png(tmp_path / "a.png", scene())
    for folder in ("predictions", "predictions-2", "predictions-3"):
        assert predict(".") == 0
        assert f"1 of 1 inputs segmented into {folder}: " in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["a_labels.png", "a_overlay.png"]
    expected = (tmp_path / "predictions" / "a_labels.png").read_bytes()
    assert (tmp_path / "predictions-3" / "a_labels.png").read_bytes() == expected
    (tmp_path / "predictions" / "a_labels.png").write_bytes(b"")
    assert predict("a.png", "--overwrite") == 0
    assert (tmp_path / "predictions" / "a_labels.png").read_bytes() == expected
    assert predict("a.png", "--output", "predictions") == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert predict("broken.jpg") == 1
    assert len(list(tmp_path.glob("predictions*"))) == 3


def test_a_second_evaluation_takes_the_next_name(checkpoint, tool, tmp_path, capsys):
    """Whatever the spelling of the options: they mean the same."""
    (tmp_path / "best.safetensors").write_bytes(checkpoint.read_bytes())
    words = ["--checkpoint", tmp_path, "--split", "test", "--limit", 2, "--workers", 0, "--device", "cpu"]
    spellings = (["--protocol", "whole,slide"], ["--protocols", "whole,slide", "--memory", "1MiB"],
                 ["--protocols=whole,slide", "--eval.memory", 1])  # fmt: skip
    names = [f"eval_synthetic_test_first2{number}.json" for number in ("", "-2", "-3")]
    for name, extra in zip(names, spellings, strict=True):
        assert tool("eval_seg")(*words, *extra) == 0
        assert f"report: {tmp_path / name}" in capsys.readouterr().err
    one, two, three = (json.loads((tmp_path / name).read_text())["scores"] for name in names)
    assert set(one) == {"whole", "slide"}
    assert one == two == three
    (tmp_path / names[0]).write_text("old")
    assert tool("eval_seg")(*words, *spellings[0], "--overwrite") == 0
    assert json.loads((tmp_path / names[0]).read_text())["scores"] == one
    assert tool("eval_seg")(*words, "--output", tmp_path / names[0]) == 2
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_the_classes_of_a_folder_without_a_list_are_the_checkpoints(tool, tmp_path, capsys):
    """Its masks have three of the four classes: inferred from them, they would be others than the model's."""
    space = LabelSpace.numbered(4, names=("sky", "road", "car", "tree"), name="folder")
    model = ModelConfig(encoder="resnest14_tiny", head="fcn")
    config = RunConfig(model=model, data=DataConfig(dataset="folder", root="gone", classes="gone.csv"))
    weights = build_segmenter("resnest14_tiny", head="fcn", num_classes=4).state_dict()
    Checkpoint(config, space, weights).save(tmp_path / "best.safetensors")
    labels = np.repeat(np.array([0, 2, 3, 3], np.uint8), 10)[:, None] + np.zeros((1, 60), np.uint8)
    for split in ("train", "val"):
        write_png(tmp_path / "mine" / "images" / split / "a.png", scene())
        fake_data.write(tmp_path / "mine" / "masks" / split / "a.png", labels)
    words = ["--checkpoint", tmp_path, "--dataset", "folder", "--data.root", tmp_path / "mine", "--workers", 0]
    share = lambda name: json.loads((tmp_path / name).read_text())["scores"]["whole"]["class_share"]  # noqa: E731
    assert tool("eval_seg")(*words, "--output", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["classes"] == list(space.names)
    assert share("a.json") == pytest.approx([0.25, 0, 0.25, 0.5])
    rows = "".join(f"{name},{number}\n" for name, number in zip(space.names, (3, 2, 1, 0), strict=True))
    (tmp_path / "list.csv").write_text("name,id\n" + rows)
    assert tool("eval_seg")(*words, "--output", tmp_path / "b.json", "--data.classes", tmp_path / "list.csv") == 0
    assert share("b.json") == pytest.approx([0.5, 0.25, 0, 0.25])
    (tmp_path / "list.csv").rename(tmp_path / "mine" / "classes.csv")
    assert tool("eval_seg")(*words, "--output", tmp_path / "c.json") == 0
    assert share("c.json") == share("b.json")
    assert tool("eval_seg")("--checkpoint", tmp_path, "--dataset", "camvid", "--data.classes", "list.csv") == 2
    assert "--data.classes is for --dataset folder; the classes of camvid are fixed" in capsys.readouterr().err
    (tmp_path / "mine" / "classes.csv").unlink()
    assert tool("check_dataset")("--checkpoint", tmp_path, "--data.root", tmp_path / "mine", "--workers", 0) == 0
    assert "1 of 4 classes have no pixel in the scanned train masks: road." in capsys.readouterr().out


@pytest.mark.long
def test_processes_share_an_evaluation_and_count_every_image_once(checkpoint, tmp_path, tool):
    """Three images and two processes: nothing is padded, nothing counted twice."""
    words = ["--checkpoint", checkpoint, "--split", "test", "--limit", "3", "--workers", "0", "--device", "cpu"]
    words += ["--boundaries", "--calibration"]
    assert tool("eval_seg")(*words, "--output", tmp_path / "one.json") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run(
        [*command, str(PROJECT / "tools" / "eval_seg.py"), *map(str, words), "--output", str(tmp_path / "two.json")],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two["images"] == 3
    assert one["scores"] == two["scores"]
    counts = [[bin["count"] for bin in report["calibration"]["whole"]["bins"]] for report in (one, two)]
    assert counts[0] == counts[1]
    for key in ("mean_boundary_iou", "mean_boundary_f"):
        assert one["boundaries"]["whole"][key] == pytest.approx(two["boundaries"]["whole"][key])


def test_on_a_full_disk_annotations_of_before_stay(predict, tmp_path, monkeypatch, capsys):
    """And an image whose outputs cannot be written is in none of them."""
    for index in range(3):
        write_png(tmp_path / "photos" / f"{index}.png", scene(index))
    words = ("photos", "--output", "out", "--write", "labels", "coco", "--overwrite")
    assert predict(*words) == 0
    before = (tmp_path / "out" / "coco" / "annotations.json").read_bytes()
    assert len(json.loads(before)["images"]) == 3
    written = []
    real = predict_verb.write_outputs

    def full(prediction, paths, job):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/1_labels.png")
        written.append(real(prediction, paths, job))

    monkeypatch.setattr(predict_verb, "write_outputs", full)
    assert predict(*words) != 0
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "out" / "coco" / "annotations.json").read_bytes() == before
