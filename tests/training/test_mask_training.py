"""Training of a head that predicts masks: resumed to the same bits, the same whatever the division of the batch.

In many processes: see test_sharding.py.
"""

import json
import re

import numpy as np
import pytest
import torch
from support.small_models import shrink_mask2former

from resnest_seg import evaluate, fit, load_checkpoint
from resnest_seg.config import OptimConfig, RunConfig
from resnest_seg.data.build import build_dataset
from resnest_seg.errors import ConfigError
from resnest_seg.evaluation.evaluator import Measures
from resnest_seg.export.export import export_onnx
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.mask2former import DeformablePixelDecoder
from resnest_seg.training import assembly
from resnest_seg.training.losses import MaskLoss
from resnest_seg.training.optim import build_optimizer, clip_gradients

pytestmark = [pytest.mark.slow, pytest.mark.long]

CONFIG = {
    "model": {"encoder": "resnest14_tiny", "head": "mask2former", "family": "mmseg", "output_stride": 32,
              "aux_head": False, "pixel_decoder": "fpn"},
    "data": {"dataset": "synthetic", "crop_size": 60, "base_size": 64, "check": 0, "workers": 0},
    "optim": {"optimizer": "adamw", "lr": 1e-5, "reference_batch": None, "decay": "no_norms", "clip_norm": 0.01},
    "train": {"epochs": None, "iterations": 2, "batch_size": 2, "save_every": 1, "trackers": "none",
              "mask_points": 1000},
    "eval": {"limit": 2, "sheet": 0},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_heads():
    """What is tested here does not depend on how many like layers and queries there are."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_mask2former(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(CONFIG, output=tmp_path_factory.mktemp("runs") / "run")


def test_a_resumed_run_has_the_same_bits(trained, tmp_path):
    """The random points of a step are those of its number."""
    assert not fit(CONFIG, output=tmp_path / "part", until=1).finished
    found = fit(CONFIG, output=tmp_path / "part", resume="yes").segmenter.state_dict()
    assert all(torch.equal(found[key], value) for key, value in trained.segmenter.state_dict().items())


@pytest.mark.parametrize("network", [None, "own"])
@pytest.mark.parametrize(
    "given", [{"loss": "cross_entropy+dice"}, {"class_weights": "median_frequency"}, {"label_smoothing": 0.1}], ids=str
)
def test_options_of_losses_of_pixels_are_refused_when_a_run_begins(given, network, tmp_path):
    ((key, value),) = given.items()
    values = CONFIG | {"train": CONFIG["train"] | given}
    own = None if network is None else lambda classes: build_segmenter(num_classes=classes, **CONFIG["model"])
    with pytest.raises(ConfigError, match=rf"train\.{key} {re.escape(str(value))} is for losses of pixels"):
        fit(values, output=tmp_path / "run", segmenter=own)
    assert not (tmp_path / "run").exists()


def test_a_run_that_begun_with_an_option_of_another_loss_goes_on(tmp_path, monkeypatch):
    values = CONFIG | {"train": CONFIG["train"] | {"label_smoothing": 0.1}}
    with monkeypatch.context() as before:
        before.setattr(assembly, "_check_mask_loss", lambda config: None)
        fit(values, output=tmp_path / "run", until=1)
    assert fit(values, output=tmp_path / "run", resume="yes").finished


def test_the_division_of_a_batch_does_not_matter(tmp_path):
    """Divisors are those of the effective batch, and an image's random points its own."""
    logged = []
    for parts in (1, 2):
        changes = {"optim": CONFIG["optim"] | {"freeze": "bn"},
                   "train": CONFIG["train"] | {"batch_size": 4, "accumulation": parts}}  # fmt: skip
        fit(CONFIG | changes, output=tmp_path / str(parts), until=1)
        logged.append(steps(tmp_path / str(parts))[0])
    for key in ("loss", "grad_norm"):
        assert logged[1][key] == pytest.approx(logged[0][key], rel=5e-6), key


def steps(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def test_keys_of_masks_and_of_clipping_reach_the_trainer(trained, tmp_path):
    """Few points are an estimate of the loss of many, with chance in it; with a tiny limit, SGD hardly moves."""
    moved = []
    for limit in (0.0, 1e-4):
        optim = {"optimizer": "sgd", "lr": 0.01, "head_lr_factor": 1, "weight_decay": 0.0, "clip_norm": limit}
        changes = {"optim": {"reference_batch": None} | optim, "train": CONFIG["train"] | {"mask_points": 100}}
        run = fit(CONFIG | changes, output=tmp_path / f"{limit}", until=1)
        start = Checkpoint.load(run.output / "step_00000000.safetensors").weights["head.query_feat.weight"]
        moved.append((run.segmenter.head.query_feat.weight.detach() - start).abs().max().item())
    assert 0 < moved[1] <= 1e-4 * 0.01 < moved[0]  # the limit times the learning rate
    losses = [steps(folder)[0]["loss"] for folder in (tmp_path / "0.0", trained.output)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


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
    assert loss.weight_of(labels).tolist() == pytest.approx([2 + 0.1 * 38, 2])


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


def test_eight_bits_are_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match="int8 is not for a head that predicts masks"):
        export_onnx(trained.segmenter, tmp_path / "m.onnx", precision="int8", calibration=[np.zeros((64, 64, 3), "u1")])
    assert not list(tmp_path.iterdir())


def test_it_is_judged_at_boundaries_and_teaches(trained, tmp_path):
    """What other heads can: an evaluation of everything, distillation into a model with logits; see test_dry_run.py."""
    report = evaluate(load_checkpoint(trained.best), build_dataset("synthetic", split="val"), indices=range(1),
                      measures=Measures(boundaries=True))  # fmt: skip
    assert 0 <= report.boundaries["whole"].mean_boundary_iou <= 1
    student = {"model": {"encoder": "resnest14_tiny", "head": "fcn"}, "optim": {}, "distill": {
        "teacher": [str(trained.output)], "method": "both"}}  # fmt: skip
    fit(CONFIG | student, output=tmp_path / "student", until=1)
    line = steps(tmp_path / "student")[0]
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
