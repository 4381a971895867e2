"""Binary and multi-label models in every runtime: merging by sigmoid, thresholds, label maps, pictures."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_models import logits_of, small_segmenter

from resnest_seg import LabelSpace, PairDataset, Predictor, build_segmenter, evaluate
from resnest_seg.bulk.job import Job
from resnest_seg.bulk.outputs import protocol_for
from resnest_seg.data.build import build_dataset
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.backends import Decision
from resnest_seg.inference.predictor import OnnxPredictor
from resnest_seg.inference.protocols import protocol, with_options
from resnest_seg.inference.torch_engine import Runner, score_rows
from resnest_seg.io.outlines import polygons
from resnest_seg.io.visualize import class_shares, colourise, contact_sheet, overlay
from resnest_seg.labels import bits_to_labels

LABELS = {"binary": ("background", "car"), "multilabel": ("a", "b", "c", "d")}
TASKS = pytest.mark.parametrize("task", LABELS)


def model(task):
    """A model whose thresholds part the pixels of `photo()` in halves."""
    torch.manual_seed(3)
    count = len(space_of(task).score_names)
    return parting(build_segmenter("resnest14_tiny", "fcn", count, aux_head=False, task=task).eval(), task)


def small(task):
    """Likewise, of one convolution, for exports."""
    space = space_of(task)
    segmenter = small_segmenter(space, classes=len(space.score_names), task=task)
    with torch.no_grad():
        logits = logits_of(segmenter, photo().transpose(2, 0, 1)[None])
        last = segmenter.head.conv5[-1]
        last.bias -= torch.from_numpy(logits.mean(axis=(0, 2, 3)))
        last.weight /= float(logits.std())
        last.bias /= float(logits.std())
    return parting(segmenter, task)


def space_of(task):
    return LabelSpace.numbered(len(LABELS[task]), names=LABELS[task]).for_task(task, positive=LABELS[task][1:2])


def parting(segmenter, task):
    """The model with classes and thresholds."""
    segmenter.label_space = space_of(task)
    with torch.inference_mode():
        logits = segmenter(torch.from_numpy(photo()).permute(2, 0, 1)[None]).logits[0]
    segmenter.thresholds.copy_((logits.sigmoid().flatten(1).median(dim=1).values * 1000).round() / 1000)
    return segmenter


def photo(height=45, width=61):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_labels(segmenter, image):
    """The labels by the definition: sigmoid of the full-size logits of the padded image, against the thresholds."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    height, width = image.shape[:2]
    with torch.inference_mode():
        logits = segmenter(F.pad(x, (0, -width % 8, 0, -height % 8))).logits[0, :, :height, :width]
    present = logits.sigmoid().numpy() >= np.array(segmenter.decision_thresholds, np.float32)[:, None, None]
    if segmenter.task == "binary":
        return present[0].astype(np.uint8)
    return sum((plane.astype(np.uint16) << k for k, plane in enumerate(present)), np.zeros((height, width), np.uint16))


@TASKS
def test_labels_are_those_whose_probability_reaches_the_threshold(task):
    segmenter, image = model(task), photo()
    prediction = Predictor(segmenter, device="cpu")(image)
    want = plain_labels(segmenter, image)
    assert prediction.labels.dtype == want.dtype
    assert (prediction.labels == want).mean() > 0.998  # a probability on the threshold may fall on either side
    assert len(np.unique(want)) > 1
    scores = prediction.scores()
    assert scores.shape == (segmenter.num_classes, *image.shape[:2])
    decided = scores >= np.array(segmenter.decision_thresholds, np.float32)[:, None, None]
    if task == "binary":
        np.testing.assert_array_equal(prediction.labels, decided[0])
    else:
        np.testing.assert_array_equal(bits_to_labels(prediction.labels, 4).present, decided)


@pytest.mark.parametrize("name", ["whole", "mmseg", "encoding", "paddle"])
def test_every_protocol_averages_sigmoids(name):
    """Against the mean over views, each by `F.interpolate` of the view's logits and a sigmoid."""
    segmenter = model("multilabel")
    backend = Predictor(segmenter, device="cpu").backend
    assert backend.protocol(name).merge == "sigmoid"
    method = with_options(protocol("whole"), scales=[1.0, 1.5], flip=True, merge="sigmoid")
    image = torch.from_numpy(photo(48, 64)).permute(2, 0, 1)
    found = torch.cat([rows for _, rows in score_rows(Runner(lambda x: segmenter(x).logits), image, method)], dim=1)
    views = []
    for scale in (1.0, 1.5):
        size = (int(64 * scale), int(48 * scale))
        view = cv2.resize(image.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(view).permute(2, 0, 1)[None]
        for flip in (False, True):
            with torch.inference_mode():
                logits = segmenter(x.flip(-1) if flip else x).logits
            logits = logits.flip(-1) if flip else logits
            views.append(F.interpolate(logits, size=(48, 64), mode="bilinear", align_corners=True).sigmoid()[0])
    torch.testing.assert_close(found, torch.stack(views).mean(0), rtol=1e-4, atol=1e-5)


@TASKS
def test_a_merge_that_would_be_replaced_is_refused(task):
    backend, job = Predictor(model(task), device="cpu").backend, Job(checkpoint="x", output="y", merge="logits")
    with pytest.raises(ConfigError, match=f"--merge logits is for multiclass models, and this one is {task}: .*Leave"):
        protocol_for(job, backend)
    assert protocol_for(dataclasses.replace(job, merge=None), backend).name == "whole"


def test_a_multi_label_task_of_disjoint_labels_is_the_argmax():
    """Where exactly one label reaches 0.5, the bits are those of the class with the highest logit."""
    scores = torch.randn(6, 40, 40)
    best = scores.argmax(0)
    disjoint = torch.where(torch.arange(6)[:, None, None] == best, scores.abs() + 0.1, -scores.abs() - 0.1)
    for kind in (disjoint.sigmoid(), disjoint.sigmoid().numpy()):
        bits = np.asarray(Decision("multilabel", (0.5,) * 6).labels(kind))
        np.testing.assert_array_equal(bits, 1 << disjoint.argmax(0).numpy())
        np.testing.assert_array_equal(Decision().labels(kind), best)


def test_a_binary_model_is_a_multiclass_model_of_logits_0_and_z():
    """sigmoid(z) is the softmax of (0, z), so that at a threshold of 0.5 both decide alike."""
    logits = torch.randn(1, 30, 30)
    two = torch.cat([torch.zeros_like(logits), logits]).softmax(0)
    torch.testing.assert_close(two[1:], logits.sigmoid())
    assert torch.equal(Decision("binary", (0.5,)).labels(logits.sigmoid()), Decision().labels(two))


@pytest.mark.long
@pytest.mark.parametrize("result", ["logits", "sigmoid", "labels"])
@TASKS
def test_an_export_decides_as_its_source(task, result, tmp_path):
    pytest.importorskip("onnxruntime")
    from resnest_seg.export import export_onnx

    segmenter, image = small(task), photo()
    export_onnx(segmenter, tmp_path / "model.onnx", output=result)
    ours = Predictor(segmenter, device="cpu")(image)
    theirs = OnnxPredictor(tmp_path / "model.onnx")(image)
    assert theirs.labels.dtype == ours.labels.dtype
    assert (theirs.labels == ours.labels).mean() > 0.998
    if result != "labels":
        np.testing.assert_allclose(theirs.scores(), ours.scores(), atol=2e-5)
        several = OnnxPredictor(tmp_path / "model.onnx", protocol="mmseg")(image).scores()
        np.testing.assert_allclose(
            several, Predictor(segmenter, device="cpu", protocol="mmseg")(image).scores(), atol=1e-4
        )


@TASKS
def test_the_mean_iou_of_a_proof_is_that_of_an_evaluation(task, tmp_path):
    pytest.importorskip("onnxruntime")
    from resnest_seg.export import export_onnx
    from resnest_seg.export.verify import Evidence

    segmenter, random = small(task), np.random.default_rng(4)
    highest = 2 if task == "binary" else 1 << len(LABELS[task])
    pairs = [(photo(48, 64), random.integers(0, highest, (48, 64))) for _ in range(2)]
    pairs[0][1][:9] = segmenter.label_space.ignore_value
    dataset = PairDataset(pairs, segmenter.label_space, split="val")
    proof = export_onnx(segmenter, tmp_path / "model.onnx", evidence=Evidence(dataset=dataset))
    expected = evaluate(segmenter, dataset).scores["whole"].mean_iou
    assert 0.1 < expected < 0.6
    assert proof.source_mean_iou == pytest.approx(expected, abs=1e-3)
    assert proof.mean_iou == pytest.approx(expected, abs=1e-3)


def test_the_probabilities_of_another_task_are_refused(tmp_path):
    from resnest_seg.export import export_onnx

    with pytest.raises(ConfigError, match="its sigmoid, not softmax"):
        export_onnx(model("binary"), tmp_path / "model.onnx", output="softmax")
    with pytest.raises(ConfigError, match="its softmax, not sigmoid"):
        export_onnx(build_segmenter("resnest14_tiny", "fcn", 3), tmp_path / "model.onnx", output="sigmoid")
    multiclass = build_segmenter("resnest14_tiny", "fcn", 3)
    multiclass.label_space = LabelSpace.numbered(3)
    with pytest.raises(ConfigError, match="binary and multi-label"):
        Predictor(multiclass, device="cpu", protocol=with_options(protocol("whole"), merge="sigmoid"))


@TASKS
def test_a_checkpoint_keeps_task_and_thresholds(task, tmp_path):
    from resnest_seg import load_checkpoint

    segmenter = model(task)
    segmenter.to_checkpoint().save(tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.task == task
    assert loaded.decision_thresholds == segmenter.decision_thresholds
    assert loaded.label_space == segmenter.label_space


@TASKS
def test_a_model_of_another_task_is_refused(task):
    dataset = build_dataset("synthetic", split="val", task=task, positive="car" if task == "binary" else None)
    with pytest.raises(CheckpointError, match=f"wrong task: the model's is multiclass, and that .* is {task}"):
        evaluate(build_segmenter("resnest14_tiny", "fcn", 10), dataset)


def test_pictures_of_overlapping_labels():
    space = LabelSpace.numbered(3, colors=[(255, 0, 0), (0, 0, 255), (0, 255, 0)]).for_task("multilabel")
    bits = np.array([[0, 1], [3, 1 << 15]], np.uint16)
    np.testing.assert_array_equal(colourise(bits, space), [[(0, 0, 0), (255, 0, 0)], [(128, 0, 128), (0, 0, 0)]])
    image = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(image, bits, space, alpha=1.0)
    np.testing.assert_array_equal(shown, [[(100,) * 3, (255, 0, 0)], [(128, 0, 128), (100,) * 3]])
    assert class_shares(bits, space) == {0: "class 0 50.0%", 1: "class 1 25.0%"}
    features = polygons(bits, space)["features"]
    assert {f["properties"]["name"]: f["properties"]["area"] for f in features} == {"class 0": 2, "class 1": 1}
    page = contact_sheet([(image, bits, bits)], space, width=64)
    assert page.ndim == 3
