"""Several checkpoints on the command line: predict, eval, jobs, serve and export."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_models import noise, save_scenes_model

from resnest_seg import Predictor
from resnest_seg.bulk.job import Job, from_the_root
from resnest_seg.cli import eval as evaluating
from resnest_seg.cli import export, predict, serve
from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.export.export import EXPORTERS
from resnest_seg.models.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """The folder of two folds, whose models differ."""
    folder = tmp_path_factory.mktemp("ensemble") / "f ü [1]"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_1").mkdir()
    first = Checkpoint.load(save_scenes_model(folder / "fold_0"))
    random = torch.Generator().manual_seed(0)
    weights = {
        key: value + 0.3 * value.std() * torch.randn(value.shape, generator=random) if value.dim() == 4 else value
        for key, value in first.weights.items()
    }
    dataclasses.replace(first, weights=weights).save(folder / "fold_1" / "best.safetensors")
    record = {"format": "resnest_seg folds", "samples": "x", "folds": 2, "group_by": None}
    (folder / "folds.json").write_text(json.dumps(record))
    Image.fromarray(noise(40, 50, 3)).save(folder / "photo.png")
    return folder


def members(folds):
    return [word for fold in range(2) for word in ("--checkpoint", str(folds / f"fold_{fold}"))]


def test_predict_takes_the_mean_of_members_or_of_a_folder_of_folds(folds, tmp_path):
    words = [str(folds / "photo.png"), "--device", "cpu", "--write", "labels", "scores", "--output"]
    assert predict.main([*members(folds), *words, str(tmp_path / "two")]) == 0
    assert predict.main(["--checkpoint", str(folds), *words, str(tmp_path / "folds")]) == 0
    image = noise(40, 50, 3)
    alone = [Predictor.from_checkpoint(folds / f"fold_{fold}", device="cpu").scores(image) for fold in range(2)]
    for name in ("two", "folds"):
        found = np.load(tmp_path / name / "photo_scores.npz")
        scores = found[found.files[0]].astype(np.float32)
        assert np.abs(scores - np.mean(alone, axis=0)).max() < 1e-3  # half precision
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    assert (tmp_path / "two" / "photo_labels.png").read_bytes() == (
        tmp_path / "folds" / "photo_labels.png"
    ).read_bytes()


def test_a_job_goes_on_with_the_same_members_alone(folds, tmp_path):
    words = [str(folds / "photo.png"), "--device", "cpu", "--shard", "0/1", "--output", str(tmp_path / "job")]
    assert predict.main(["--checkpoint", str(folds), *words]) == 0
    record = json.loads((tmp_path / "job" / "job.json").read_text())
    files = [folds / f"fold_{fold}" / "best.safetensors" for fold in range(2)]
    assert record["checkpoint"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert predict.main([*members(folds), *words]) == 0
    with pytest.raises(ConfigError, match="checkpoint has another content"):
        predict.main([*members(folds)[:2], *words])
    with pytest.raises(ConfigError, match="fold_0 is named twice"):
        predict.main([*members(folds), "--checkpoint", str(folds / "fold_0"), *words])
    one = Job(str(folds / "fold_0"), "out")
    assert one.decides()["checkpoint"] == record["checkpoint"][0]  # as ever
    assert from_the_root(("no such name", str(folds))) == ("no such name", str(folds))


def test_eval_scores_the_mean_and_names_all_members(folds, capsys):
    words = ["--split", "val", "--limit", "2", "--workers", "0", "--device", "cpu"]
    assert evaluating.main(["--checkpoint", str(folds), *words]) == 0
    report = json.loads((folds / "eval_synthetic_val_first2.json").read_text())
    for fold in range(2):
        file = folds / f"fold_{fold}" / "best.safetensors"
        assert f"{file} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})" in report["checkpoint"]
    assert report["model"].startswith("mean of 2 models: 2 x resnest14_tiny")
    assert report["images"] == 2
    assert (folds / "eval_synthetic_val_first2.images.jsonl").is_file()


def test_serve_takes_the_exported_files_of_all_members(folds, monkeypatch):
    opened = []

    class Opened(Exception):  # noqa: N818  # it ends the test before a server starts
        pass

    def predictor(paths, **options):
        opened.append(paths)
        raise Opened

    monkeypatch.setattr(serve, "exported", lambda checkpoint, network: f"{checkpoint}/best.serve.onnx")
    monkeypatch.setattr("resnest_seg.inference.predictor.OnnxPredictor", predictor)
    with pytest.raises(Opened):
        serve.main(["--checkpoint", str(folds), "--checkpoint", "third.onnx"])
    assert opened == [[*(f"{folds}/fold_{fold}/best.serve.onnx" for fold in range(2)), "third.onnx"]]
    with pytest.raises(ConfigError, match=r"third\.onnx is an exported file, which holds its network"):
        serve.main(["--checkpoint", str(folds), "--checkpoint", "third.onnx", "--model", "x.py:f"])


def test_export_writes_one_file_of_all_members_beside_the_folds(folds, monkeypatch):
    """What the file computes is in tests/export/test_ensemble_export.py."""
    asked = []

    def exporter(members, path, **options):
        asked.append((members, path))
        raise ExportError("not now")

    monkeypatch.setitem(EXPORTERS, "onnx", exporter)
    assert export.main(["--checkpoint", str(folds)]) == export.EXIT_NOT_PROVEN
    ((found, path),) = asked
    assert path == folds / "model.onnx"
    assert [member.load_report.path for member in found] == [
        folds / f"fold_{fold}" / "best.safetensors" for fold in range(2)
    ]
    with pytest.raises(ConfigError, match="writes the weights of one model"):
        export.main(["--checkpoint", str(folds), "--format", "hub"])
    with pytest.raises(ConfigError, match=r"model\.onnx is an exported file"):
        export.main([*members(folds), "--checkpoint", str(folds / "model.onnx")])
