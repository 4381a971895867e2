"""The verb suggest: lists, labelled photos, what cannot be read, and pre-annotations that import again."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support import small_onnx
from support.small_models import noise, small_segmenter

from resnest_seg.annotations import import_labels
from resnest_seg.cli.review import suggest
from resnest_seg.data.class_lists import read_classes
from resnest_seg.errors import run_tool
from resnest_seg.evaluation.acquisition import image_uncertainty, k_centre, pooled_features
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.io.images import read_image
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.visualize import write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import build_segmenter, load_checkpoint

FOLDER = "photos [1] ü"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, output_stride=8).eval()
    segmenter.label_space = LabelSpace.numbered(3, names=["sky", "road", "car"], name="tiny")
    folder = tmp_path_factory.mktemp("model")
    segmenter.save_pretrained(folder)
    return folder


@pytest.fixture
def call(checkpoint, tmp_path, monkeypatch):
    """suggest in a folder with 9 photos: 3 frames each of 3 pictures."""
    monkeypatch.chdir(tmp_path)
    for scene in range(3):
        small = noise(5, 6, 3, seed=scene)
        picture = cv2.resize(small, (48, 40), interpolation=cv2.INTER_CUBIC)
        for frame in range(3):
            place = tmp_path / FOLDER / ("sub" if scene == 2 else "") / f"scene {scene} <b>,{frame}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_png(place, np.clip(picture.astype(int) + frame, 0, 255).astype(np.uint8))
    return lambda *words: run_tool(
        lambda: suggest.main([*map(str, words), "--checkpoint", str(checkpoint), "--device", "cpu"])
    )


def rows(folder="suggestions"):
    with open(Path(folder) / "suggestions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_is_that_of_scores_and_distances(call, checkpoint, capsys):
    assert call(FOLDER, "--count", "3", "--by", "entropy") == 0
    assert "3 of 9 photos suggested: suggestions/suggestions.csv and .txt" in capsys.readouterr().out
    found = rows()
    assert [row["rank"] for row in found] == ["1", "2", "3"]
    segmenter = load_checkpoint(checkpoint)
    backend = TorchBackend(segmenter, RunOptions("cpu"))
    paths = sorted(map(str, Path(FOLDER).rglob("*.png")), key=Path)
    images = {path: read_image(path) for path in paths}
    scores = {
        path: image_uncertainty(backend, image, backend.protocol("whole"), measure="entropy")
        for path, image in images.items()
    }
    order = sorted(paths, key=lambda path: -scores[path])
    features = np.array([pooled_features(segmenter, images[path]) for path in order])
    chosen, distances = k_centre(features, 3)
    assert [row["path"] for row in found] == [order[place] for place in chosen]
    assert [float(row["score"]) for row in found] == pytest.approx([scores[row["path"]] for row in found], abs=1e-6)
    assert found[0]["distance"] == ""
    assert [float(row["distance"]) for row in found[1:]] == pytest.approx(distances[1:], abs=1e-6)
    assert Path("suggestions/suggestions.txt").read_text(encoding="utf-8").splitlines() == [
        row["path"] for row in found
    ]
    assert len({Path(row["path"]).name[:7] for row in found}) == 3  # one frame of each picture
    assert call(FOLDER, "--count", "3", "--by", "entropy") == 0  # a second time beside it, and the same
    assert rows("suggestions-2") == found
    assert call(FOLDER, "--count", "3", "--by", "entropy", "--no-diversity", "--output", "plain") == 0
    assert [row["path"] for row in rows("plain")] == order[:3]


def test_labelled_photos_are_neither_suggested_nor_are_photos_like_them(call, tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
    twin = next((tmp_path / FOLDER).glob("scene 1*"))
    (tmp_path / "mine" / "images" / "a.png").symlink_to(twin)
    (tmp_path / "mine" / "masks" / "a.png").write_bytes(b"never read")
    assert call(FOLDER, "--count", "2", "--labelled", "mine") == 0
    assert "1 of 9 photos are labelled and left out" in capsys.readouterr().err
    assert sorted(Path(row["path"]).name[:7] for row in rows()) == ["scene 0", "scene 2"]
    assert all(float(row["distance"]) > 0 for row in rows())
    assert call(FOLDER, "--labelled", "nowhere") == 2
    assert "--labelled: no file or folder nowhere." in capsys.readouterr().err
    assert call(FOLDER, "--labelled", FOLDER) == 0
    assert "all photos are labelled: nothing to suggest" in capsys.readouterr().err
    assert not Path("suggestions-2").exists()


def test_photos_that_cannot_be_read_are_named_and_the_others_suggested(call, tmp_path, capsys):
    (tmp_path / FOLDER / "broken.jpg").write_bytes(b"\xff\xd8no")
    (tmp_path / FOLDER / "drive.mp4").write_bytes(b"x")
    assert call(FOLDER, "missing.png", "https://127.0.0.1/photo.jpg", "--count", "99") == 1
    errors = capsys.readouterr().err
    assert "error: 4 not scored:" in errors
    assert f"cannot read {FOLDER}/broken.jpg" in errors
    assert "drive.mp4 is no photo: suggest takes image files; cut videos into frames first." in errors
    assert "no file or folder missing.png" in errors
    assert "https://127.0.0.1/photo.jpg is not on this machine" in errors
    assert len(rows()) == 9
    assert call("missing.png", "--output", "none") == 1
    assert not Path("none").exists()


def test_a_photo_that_is_named_twice_counts_once(call, tmp_path, capsys):
    photo = next((tmp_path / FOLDER / "sub").iterdir())
    (tmp_path / "link.png").symlink_to(photo)
    assert call(photo, FOLDER, f"{FOLDER.replace('[1]', '[[]1]')}/**/*.png", "link.png", "--by", "random") == 0
    assert "9 of 9 photos suggested" in capsys.readouterr().out
    assert str(photo) in [row["path"] for row in rows()]


def test_a_name_with_a_line_break_is_one_line(call):
    Path(FOLDER, "two\nlines.png").write_bytes(next(Path(FOLDER).glob("*.png")).read_bytes())
    assert call(FOLDER, "--count", "100", "--by", "random") == 0
    lines = Path("suggestions/suggestions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [row["path"].replace("\n", "\\n") for row in rows()]
    assert f"{FOLDER}/two\\nlines.png" in lines


def test_random_photos_need_no_scores_and_follow_the_seed(call):
    for output, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call(FOLDER, "--count", "4", "--by", "random", "--seed", seed, "--output", output) == 0
    assert rows("a") == rows("b")
    assert {row["path"] for row in rows("a")} != {row["path"] for row in rows("c")} or rows("a") != rows("c")


def test_an_exported_file_gives_uncertainty_alone(call, tmp_path, capsys):
    path = small_onnx.write(tmp_path / "model.onnx")
    assert run_tool(lambda: suggest.main([FOLDER, "--count", "2", "--checkpoint", str(path)])) == 0
    assert "which gives no features: photos are chosen by uncertainty alone" in capsys.readouterr().err
    assert [row["distance"] for row in rows()] == ["", ""]
    labels = small_onnx.write(tmp_path / "labels.onnx", output="labels")
    assert run_tool(lambda: suggest.main([FOLDER, "--checkpoint", str(labels)])) == 2
    assert "it gives labels only, no scores" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["labelme", "coco", "cvat", "yolo"])
def test_pre_annotations_import_again(form, call, tmp_path, checkpoint):
    assert call(FOLDER, "--count", "2", "--write", form, "--output", "next one") == 0
    source = {"coco": "coco/annotations.json", "cvat": "cvat/annotations.xml"}.get(form, form)
    # the tools' formats name the photos; for yolo they lie beside the labels
    photos = {} if form == "yolo" else {"photos": tmp_path / FOLDER}
    import_labels(tmp_path / "next one" / source, tmp_path / "again", **photos)
    masks = {path.stem: path for path in (tmp_path / "again" / "masks").rglob("*.png")}
    assert set(masks) == {Path(row["path"]).stem for row in rows("next one")}
    backend = TorchBackend(load_checkpoint(checkpoint), RunOptions("cpu"))
    space = read_classes(tmp_path / "again" / "classes.csv")
    for row in rows("next one"):
        blocks = backend.blocks(read_image(row["path"]), backend.protocol("whole"))
        names = np.array(["sky", "road", "car"])[np.vstack([block.labels() for block in blocks])]
        again = space.encode(decode_mask(masks[Path(row["path"]).stem].read_bytes(), "mask"))
        assert (np.array([*space.names, "none"])[np.minimum(again, len(space))] == names).mean() > 0.97  # simplified


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--count", "0"), "--count must be from 1"),
        (("--top-share", "0"), "--top-share must be above 0 and at most 1, not 0"),
        (("--factor", "0.5"), "--factor must be from 1"),
        (("--by", "entrop"), "argument --by: invalid choice: 'entrop'"),
        (("--write", "labels"), "argument --write: invalid choice: 'labels'"),
        (("--protocol", "hole"), "unknown protocol 'hole'"),
        (
            ("--output", "full"),
            "list full/suggestions.csv already exists. Choose another --output, or pass --overwrite",
        ),
        (("--output", "full/suggestions.csv"), "full/suggestions.csv is not a folder. Choose another --output."),
        (("--write", "coco", "--output", "noted"), "coco/annotations.json already exists"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(words, says, call, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "suggestions.csv").write_text("")
    (tmp_path / "noted" / "coco").mkdir(parents=True)
    (tmp_path / "noted" / "coco" / "annotations.json").write_text(json.dumps({}))
    assert call("nothing here", *words) == 2
    assert says in capsys.readouterr().err


def test_photos_that_vanish_while_they_are_compared_are_named(call, tmp_path, capsys, monkeypatch):
    def vanish(*arguments):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(suggest, "features", vanish)
    assert call(FOLDER, "--count", "2") == 1
    assert "error: 9 not scored:" in capsys.readouterr().err
    assert not Path("suggestions").exists()


def test_a_network_of_one_convolution_has_features_too():
    assert pooled_features(small_segmenter(), noise(20, 20, 3)).shape == (16,)
