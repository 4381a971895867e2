"""Training of a head that predicts masks: resumed to the same bits, the same whatever the division of the batch."""

import dataclasses

import numpy as np
import pytest
import torch

from resnest_seg import evaluate, fit, load_checkpoint
from resnest_seg.config import OptimConfig, RunConfig
from resnest_seg.data.build import build_dataset
from resnest_seg.errors import ConfigError
from resnest_seg.export.export import export_onnx
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.loading import build_segmenter
from resnest_seg.training.losses import MaskLoss
from resnest_seg.training.optim import build_optimizer, clip_gradients

pytestmark = pytest.mark.slow

CONFIG = {
    "model": {"encoder": "resnest14_tiny", "head": "mask2former", "family": "mmseg", "output_stride": 32,
              "aux_head": False, "pixel_decoder": "fpn"},
    "data": {"dataset": "synthetic", "crop_size": 60, "base_size": 64, "check": 0, "workers": 0},
    "optim": {"optimizer": "adamw", "lr": 1e-5, "reference_batch": None, "decay": "no_norms", "clip_norm": 0.01},
    "train": {"epochs": None, "iterations": 2, "batch_size": 2, "save_every": 1, "trackers": "none"},
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
        torch.manual_seed(1)
        values.append(loss(predictions, each, total=loss.weight_of(labels)).item())
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
