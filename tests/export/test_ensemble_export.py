"""Several models as one exported file: proven against the mean of the models, and equal to the ensemble in torch."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from support.small_models import noise, small_segmenter

from resnest_seg import LabelSpace, Predictor
from resnest_seg.errors import CheckpointError, ConfigError, ExportError
from resnest_seg.export.export import export_onnx, export_openvino
from resnest_seg.export.graph import ExportOptions, MeanGraph, exportable, info_of
from resnest_seg.export.verify import prove
from resnest_seg.files import sha256
from resnest_seg.inference.exported import ExportInfo, open_exported
from resnest_seg.inference.predictor import OnnxPredictor
from resnest_seg.models.loading import load_checkpoint

pytestmark = pytest.mark.slow

NAMES = ("sky", "road", "car")
SPACES = {
    "multiclass": LabelSpace.numbered(3, names=NAMES),
    "binary": LabelSpace.numbered(2, names=["background", "car"]).for_task("binary", positive=["car"]),
    "multilabel": LabelSpace.numbered(3, names=NAMES).for_task("multilabel"),
}


def member(seed, task="multiclass"):
    space = SPACES[task]
    segmenter = small_segmenter(space, classes=len(space.score_names))
    segmenter.take_task(task)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=random)
        segmenter.pixel_mean += 5 * seed  # each normalises by itself
        if task != "multiclass":
            segmenter.thresholds.copy_(0.4 + 0.1 * torch.rand(len(space.score_names), generator=random))
    return segmenter


def turned(segmenter):
    """The same model with its classes in another order."""
    order, other = [2, 0, 1], copy.deepcopy(segmenter)
    last = [module for module in other.head.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.copy_(segmenter.head.state_dict()[weight_of(other.head, last)][order])
        last.bias.copy_(last.bias[order].clone())
    other.label_space = LabelSpace.numbered(3, names=[NAMES[place] for place in order])
    return other


def weight_of(head, module):
    return next(f"{name}.weight" for name, each in head.named_modules() if each is module)


@pytest.mark.parametrize("task", SPACES)
@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
def test_the_graph_is_the_ensemble_in_torch(task, output):
    members, image = [member(seed, task) for seed in (1, 2)], noise(48, 64, 3)
    if task == "multiclass":
        members[1] = turned(members[1])
    predictor = Predictor(copy.deepcopy(members), device="cpu")
    result = {"probabilities": "softmax" if task == "multiclass" else "sigmoid"}.get(output, output)
    info = info_of(members, ExportOptions(output=result))
    with torch.inference_mode():
        found = exportable(members, info)(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    want = predictor(image)
    thresholds = predictor.backend.decision.thresholds
    assert np.allclose(info.thresholds, thresholds)
    assert len(np.unique(want.labels)) > 1
    if output == "labels":
        assert (found.numpy() == want.labels).mean() > 0.9995
        assert task == "multiclass" or thresholds not in [each.decision_thresholds for each in members]
        return
    if output == "logits":
        found = found.softmax(dim=0) if task == "multiclass" else found.sigmoid()
    assert np.abs(found.numpy() - want.scores()).max() < 1e-5


@pytest.mark.long
def test_one_file_is_the_ensemble_and_the_proof_sees_a_member_that_is_missing(tmp_path):
    members, image = [member(1), turned(member(2))], noise(45, 62, 3)
    proof = export_onnx(members, tmp_path / "mean.onnx")
    assert proof.agreement > 0.9999
    want, found = (Predictor(members, device="cpu"), OnnxPredictor(tmp_path / "mean.onnx"))
    assert (found(image).labels == want(image).labels).mean() > 0.9995
    assert np.abs(found.scores(image) - want.scores(image)).max() < 1e-5
    assert found.label_space.names == NAMES
    for others in (members[:1], [*members, member(3)]):
        with pytest.raises(ExportError, match="does not predict what its source predicts"):
            prove(open_exported(tmp_path / "mean.onnx"), others)
    # Views are resized as logarithms of the mean in the file, and member by member in torch.
    one = Predictor(members, device="cpu", protocol="mmseg").scores(image)
    other = OnnxPredictor(tmp_path / "mean.onnx", protocol="mmseg").scores(image)
    assert np.abs(one - other).max() < 0.02


@pytest.mark.long
def test_openvino_runs_it_too_and_file_and_report_name_all_members(tmp_path):
    paths = [tmp_path / name / "best.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        member(seed, "binary").to_checkpoint().save(path)
    members = [load_checkpoint(path, into=lambda classes: small_segmenter(classes=classes)) for path in paths]
    proof = export_openvino(members, tmp_path / "mean.xml")
    assert proof.agreement > 0.9999
    assert proof.relative_error < 1e-4
    report = json.loads((tmp_path / "mean.report.json").read_text())["files"]["mean.xml"]["info"]
    info = open_exported(tmp_path / "mean.xml").info
    assert info.source == "best.safetensors + best.safetensors"
    assert list(info.members) == report["members"]
    assert report["members"] == [f"{path.parent.name}/best.safetensors sha256:{sha256(path)}" for path in paths]
    assert info.description.startswith("mean of 2 models: 2 x ")
    assert ExportInfo.from_json(info.to_json()) == info
    old = json.loads(info.to_json())
    del old["members"]  # of a file that an older version wrote
    assert ExportInfo.from_json(json.dumps(old)).members == ()


@pytest.mark.parametrize("task", SPACES)
def test_probabilities_that_vanish_stay_numbers(task):
    """Members that are sure of different things: exponentials of their logits are 0 or infinite in float32."""
    members = [member(1, task), member(2, task)]
    for sign, each in zip((-1, 1), members, strict=True):
        last = [module for module in each.head.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        with torch.no_grad():
            last.weight.mul_(sign * 1000)
    graph = exportable(members, info_of(members, ExportOptions()))
    assert isinstance(graph, MeanGraph)
    with torch.inference_mode():
        logits = graph(torch.from_numpy(noise(1, 3, 40, 40)))
    assert bool(logits.isfinite().all())
    assert float(logits.abs().max()) > 100


def test_models_that_do_not_fit_into_one_file_are_refused():
    other = member(2)
    other.label_space = LabelSpace.numbered(3, names=["sky", "road", "van"])
    with pytest.raises(CheckpointError, match=re.escape("model 1 is without 'car' and with 'van'")):
        info_of([member(1), other], ExportOptions())
    with pytest.raises(ConfigError, match="not exported as one file in 8 bits"):
        info_of([member(1), member(2)], ExportOptions(precision="int8"))
    with pytest.raises(ConfigError, match="no model to export"):
        info_of([], ExportOptions())
    with pytest.raises(ConfigError, match="need the same bands"):
        info_of([member(1), small_segmenter(SPACES["multiclass"], channels=4)], ExportOptions())
    assert info_of([member(1)], ExportOptions()) == info_of(member(1), ExportOptions())
