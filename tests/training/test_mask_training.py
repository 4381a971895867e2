"""Training of a head that predicts masks: resumed to the same bits, the same whatever the division of the batch."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PROJECT

from resnest_seg import evaluate, fit, load_checkpoint
from resnest_seg.config import OptimConfig, RunConfig
from resnest_seg.data.build import build_dataset
from resnest_seg.errors import ConfigError
from resnest_seg.evaluation.evaluator import Measures
from resnest_seg.export.export import export_onnx
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.mask2former import DeformablePixelDecoder
from resnest_seg.training.assembly import Parts
from resnest_seg.training.losses import MaskLoss
from resnest_seg.training.optim import build_optimizer, clip_gradients
from resnest_seg.training.rehearsal import dry_run

pytestmark = pytest.mark.slow

CONFIG = {
    "model": {"encoder": "resnest14_tiny", "head": "mask2former", "family": "mmseg", "output_stride": 32,
              "aux_head": False, "pixel_decoder": "fpn"},
    "data": {"dataset": "synthetic", "crop_size": 60, "base_size": 64, "check": 0, "workers": 0},
    "optim": {"optimizer": "adamw", "lr": 1e-5, "reference_batch": None, "decay": "no_norms", "clip_norm": 0.01},
    "train": {"epochs": None, "iterations": 2, "batch_size": 2, "save_every": 1, "trackers": "none",
              "mask_points": 1000},
    "eval": {"limit": 2, "sheet": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(CONFIG, output=tmp_path_factory.mktemp("runs") / "run")


def test_a_resumed_run_has_the_same_bits(trained, tmp_path):
    """The random points of a step are those of its number."""
    assert not fit(CONFIG, output=tmp_path / "part", until=1).finished
    found = fit(CONFIG, output=tmp_path / "part", resume="yes").segmenter.state_dict()
    assert all(torch.equal(found[key], value) for key, value in trained.segmenter.state_dict().items())


def test_the_division_of_a_batch_does_not_matter(tmp_path):
    """Divisors are those of the effective batch, and an image's random points its own."""
    logged = []
    for parts in (1, 2):
        changes = {"optim": CONFIG["optim"] | {"freeze": "bn"},
                   "train": CONFIG["train"] | {"batch_size": 4, "accumulation": parts}}  # fmt: skip
        fit(CONFIG | changes, output=tmp_path / str(parts), until=1)
        logged.append(json.loads((tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()[0]))
    for key in ("loss", "grad_norm"):
        assert logged[1][key] == pytest.approx(logged[0][key], rel=5e-6), key


def test_masks_are_compared_at_as_many_points_as_the_config_says(trained, tmp_path):
    """Few points are an estimate of the loss of many, with chance in it."""
    fit(CONFIG | {"train": CONFIG["train"] | {"mask_points": 100}}, output=tmp_path / "few", until=1)
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (tmp_path / "few", trained.best.parent)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_two_processes_are_one(tmp_path):
    """Images with one to three classes: each process divides by the masks of both."""
    done = subprocess.run(
        [sys.executable, "-m", "support.many_processes", tmp_path, "masks"],
        capture_output=True, text=True, cwd=PROJECT / "tests",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (
        [line for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
         if line["kind"] == "train"] for name in ("one", "ddp")
    )  # fmt: skip
    assert len(one) == 2
    for ours, theirs in zip(two, one, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-5), key


def test_what_was_trained_is_evaluated_and_predicts(trained):
    segmenter = load_checkpoint(trained.best)
    assert "mmseg mask2former, output stride 32" in segmenter.description
    report = evaluate(
        segmenter, build_dataset("synthetic", split="val"), indices=range(2), protocols=["whole", "slide"]
    )
    assert report.scores["whole"].mean_iou == pytest.approx(trained.best_score)
    scene = build_dataset("synthetic", split="val")[0]
    prediction = Predictor(segmenter, device="cpu", protocol="encoding")(scene.image)
    assert prediction.labels.shape == scene.labels.shape


def test_labels_are_padded_with_ignored_pixels_as_the_model_pads_images():
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=5, output_stride=32,
                                aux_head=False, pixel_decoder="fpn")  # fmt: skip
    loss, labels = MaskLoss(segmenter), torch.zeros(2, 33, 47, dtype=torch.uint8)
    padded = torch.full((2, 64, 64), 255, dtype=torch.uint8)
    padded[:, :33, :47] = labels
    predictions = segmenter.masks(torch.zeros(2, 3, 33, 47))
    values = []
    for each in (labels, padded):
        values.append(loss(predictions, each, total=loss.weight_of(labels), seeds=[1, 2]).item())
    assert values[0] == values[1]
    assert loss.weight_of(labels).tolist() == pytest.approx([2 + 0.1 * 198, 2])


def test_decay_spares_norms_and_embeddings_but_no_biases():
    segmenter = build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=5, output_stride=32,
                                aux_head=False)  # fmt: skip
    groups = build_optimizer(
        segmenter, OptimConfig(optimizer="adamw", decay="no_norms", weight_decay=0.05)
    ).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in segmenter.named_parameters():
        spared = any(word in name for word in (".gn.", "norm", ".bn", "embed.weight", "query_feat", "encoding.weight"))
        spared = spared and "cls_embed" not in name and "mask_embed" not in name
        if name.startswith("head."):
            assert decays[id(parameter)] == (0 if spared else 0.05), name
    by_name = {name: decays[id(parameter)] for name, parameter in segmenter.named_parameters()}
    assert by_name["encoder.layer1.0.bn1.weight"] == 0
    assert by_name["encoder.layer1.0.conv1.weight"] == 0.05
    assert by_name["head.transformer_decoder.layers.0.cross_attn.attn.in_proj_bias"] == 0.05


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(limit):
    random = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(size)) for size in ((3, 4), (5,), (2,))] for _ in range(2))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):  # the third has no gradient
        mine.grad = torch.randn(mine.shape, generator=random)
        other.grad = mine.grad.clone()
    norm = torch.stack([parameter.grad.norm() for parameter in ours[:2]]).norm().item()
    clip_gradients(ours, norm=norm, limit=limit)
    if limit:
        torch.nn.utils.clip_grad_norm_(theirs, limit)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.allclose(mine.grad, other.grad)


def test_a_clipped_step_is_smaller(tmp_path):
    """The key reaches the trainer: with a tiny limit, SGD hardly moves."""
    config = RunConfig.from_dict(CONFIG)
    train = dataclasses.replace(config.train, iterations=1)
    moved = []
    for limit in (0.0, 1e-4):
        segmenter = build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=10,
                                    output_stride=32, aux_head=False, pixel_decoder="fpn")  # fmt: skip
        start = segmenter.head.query_feat.weight.detach().clone()
        optim = dataclasses.replace(config.optim, optimizer="sgd", lr=0.01, weight_decay=0.0, clip_norm=limit)
        run = dataclasses.replace(config, optim=optim, train=train)
        trained = fit(run, output=tmp_path / f"{limit}", segmenter=segmenter).segmenter
        moved.append((trained.head.query_feat.weight.detach() - start).abs().max().item())
    assert 0 < moved[1] <= 1e-4 * 0.01 < moved[0]  # the limit times the learning rate


def test_eight_bits_are_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match="int8 is not for a head that predicts masks"):
        export_onnx(trained.segmenter, tmp_path / "m.onnx", precision="int8", calibration=[np.zeros((64, 64, 3), "u1")])
    assert not list(tmp_path.iterdir())


def test_it_is_tried_out_judged_at_boundaries_and_teaches(trained, tmp_path, monkeypatch):
    """What other heads can: a dry run, an evaluation of everything, distillation into a model with logits."""
    monkeypatch.chdir(tmp_path)
    assert re.search(r"passed: trained, saved, resumed, validated", str(dry_run(RunConfig.from_dict(CONFIG), Parts())))
    AcceleratorState._reset_state(reset_partial_state=True)
    report = evaluate(load_checkpoint(trained.best), build_dataset("synthetic", split="val"), indices=range(1),
                      measures=Measures(boundaries=True))  # fmt: skip
    assert 0 <= report.boundaries["whole"].mean_boundary_iou <= 1
    student = {"model": {"encoder": "resnest14_tiny", "head": "fcn"}, "optim": {}, "distill": {
        "teacher": [str(trained.output)], "method": "both"}}  # fmt: skip
    fit(CONFIG | student, output=tmp_path / "student", until=1)
    line = json.loads((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["kl_loss"] > 0
    assert line["cwd_loss"] > 0


def test_it_is_no_student(trained, tmp_path):
    config = RunConfig.from_dict(CONFIG | {"distill": {"teacher": [str(trained.output)]}})
    with pytest.raises(ConfigError, match="head mask2former predicts masks"):
        fit(config, output=tmp_path / "run")


def test_deformable_attention_is_in_float32_within_autocast():
    """Levels of half-precision features are those that the decoder makes of them in float32, to the bit."""
    torch.manual_seed(0)
    decoder = DeformablePixelDecoder([8, 16, 24, 32])
    sides = zip([8, 16, 24, 32], [16, 8, 4, 2], strict=True)
    features = [torch.randn(1, channels, side, side).bfloat16().requires_grad_() for channels, side in sides]
    with torch.autocast("cpu", torch.bfloat16):
        masks, levels = decoder(features)
    _, expected = decoder([feature.float() for feature in features])
    assert all(torch.equal(level, other) for level, other in zip(levels, expected, strict=True))
    assert {level.dtype for level in levels} == {torch.float32}
    assert masks.dtype == torch.bfloat16
    (masks.float().square().mean() + sum(level.square().mean() for level in levels)).backward()
    assert all(feature.grad.isfinite().all() and feature.grad.any() for feature in features)


def test_layers_that_are_computed_again_have_the_same_gradients():
    torch.manual_seed(0)
    decoder, gradients = DeformablePixelDecoder([8, 16, 24, 32]), []
    for layer in decoder.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    sides = zip([8, 16, 24, 32], [16, 8, 4, 2], strict=True)
    features = [torch.randn(2, channels, side, side) for channels, side in sides]
    for training in (True, False):  # in eval mode, everything is kept
        decoder.train(training).zero_grad()
        masks, levels = decoder(features)
        (masks.square().sum() + sum(level.square().sum() for level in levels)).backward()
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters()])
    assert all(torch.equal(ours, other) for ours, other in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])
