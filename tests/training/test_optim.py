"""What is trained, and how fast."""

import dataclasses

import pytest
import torch

from resnest_seg.config import OptimConfig
from resnest_seg.errors import ConfigError
from resnest_seg.models.loading import build_segmenter
from resnest_seg.training.optim import build_optimizer, freeze, hold_frozen, set_lr


def build(**options):
    return build_segmenter("resnest14_tiny", num_classes=3, **options)


def values(optimizer, key):
    """id of a parameter -> what its group says."""
    return {id(parameter): group[key] for group in optimizer.param_groups for parameter in group["params"]}


def test_heads_learn_faster_and_nothing_is_left_out():
    segmenter = build()
    optimizer = build_optimizer(segmenter, OptimConfig(head_lr_factor=10.0, weight_decay=0.5))
    set_lr(optimizer, 0.02)
    rates = values(optimizer, "lr")
    for name, parameter in segmenter.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.02 if name.startswith("encoder.") else 0.2)
    assert len(rates) == len(list(segmenter.parameters()))
    assert len(optimizer.param_groups) == 2
    assert all(group["weight_decay"] == 0.5 and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_decay_on_weights_only_spares_norms_and_biases():
    segmenter = build(head="fcn")
    decays = values(build_optimizer(segmenter, OptimConfig(decay="weights", weight_decay=0.5)), "weight_decay")
    spared = {
        id(parameter)
        for module in segmenter.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, torch.nn.BatchNorm2d) or name == "bias"
    }
    assert 0 < len(spared) < len(decays)
    assert {key for key, decay in decays.items() if decay == 0} == spared
    assert {decay for key, decay in decays.items() if key not in spared} == {0.5}


def test_layer_decay_is_geometric_from_the_head_down():
    segmenter = build()
    optimizer = build_optimizer(segmenter, OptimConfig(layer_decay=0.5, head_lr_factor=3))
    set_lr(optimizer, 1.0)
    rates = values(optimizer, "lr")
    parts = {
        "head": (segmenter.head, 3), "aux": (segmenter.aux_head, 3), "layer4": (segmenter.encoder.layer4, 1 / 2),
        "layer3": (segmenter.encoder.layer3, 1 / 4), "layer2": (segmenter.encoder.layer2, 1 / 8),
        "layer1": (segmenter.encoder.layer1, 1 / 16), "conv1": (segmenter.encoder.conv1, 1 / 32),
        "bn1": (segmenter.encoder.bn1, 1 / 32),
    }  # fmt: skip
    seen = 0
    for part, rate in parts.values():
        for parameter in part.parameters():
            assert rates[id(parameter)] == rate
            seen += 1
    assert seen == len(rates)


def test_adamw_is_torchs():
    segmenter = build()
    config = OptimConfig(optimizer="adamw", lr=1e-3, momentum=0.8, weight_decay=0.05)
    optimizer = build_optimizer(segmenter, config)
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.8, 0.999) and group["weight_decay"] == 0.05 for group in optimizer.param_groups)


def test_sgd_is_its_definition():
    """v <- m v + (g + decay p), p <- p - lr v, as the authors train; whatever the memory format of gradients."""
    segmenter = build()
    config = OptimConfig(lr=0.1, momentum=0.8, weight_decay=0.05)
    optimizer = build_optimizer(segmenter, config)
    expected = {name: p.detach().double() for name, p in segmenter.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in expected.items()}
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        for name, parameter in segmenter.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
            slope = parameter.grad.double() + 0.05 * expected[name]
            velocity[name] = 0.8 * velocity[name] + slope
            factor = 1 if name.startswith("encoder.") else config.head_lr_factor
            expected[name] = expected[name] - 0.1 * factor * velocity[name]
        set_lr(optimizer, 0.1)
        optimizer.step()
    assert all(torch.allclose(p.double(), expected[n], atol=1e-5) for n, p in segmenter.named_parameters())


def step(segmenter, config):
    """One step of training on noise, with the statistics and parameters of before it."""
    freeze(segmenter, config)
    optimizer = build_optimizer(segmenter, config)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    segmenter.train()
    hold_frozen(segmenter, config)
    output = segmenter(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    optimizer.step()
    return {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}


def is_statistic(key):
    return key.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked")


def test_frozen_stages_do_not_move():
    segmenter = build()
    moved = step(segmenter, OptimConfig(lr=0.1, freeze="layer2, stem,layer1"))
    frozen = ("encoder.conv1.", "encoder.bn1.", "encoder.layer1.", "encoder.layer2.")
    assert not {key for key in moved if key.startswith(frozen)}
    rest = {key for key in segmenter.state_dict() if not key.startswith((*frozen, "pixel_"))}
    assert {key for key in rest if "running" in key or "conv" in key.split(".")[-2]} <= moved
    assert all(
        parameter.requires_grad == (not name.startswith(frozen)) for name, parameter in segmenter.named_parameters()
    )


@pytest.mark.parametrize("names", ["bn", "head_bn", "bn,head_bn"])
def test_frozen_statistics_do_not_move_and_their_weights_do(names):
    segmenter = build()
    moved = step(segmenter, OptimConfig(lr=0.1, freeze=names))
    for key in segmenter.state_dict():
        if is_statistic(key):
            kind = "bn" if key.startswith("encoder.") else "head_bn"
            assert (key in moved) == (kind not in names.split(","))
    assert {"encoder.layer4.0.bn3.weight", "encoder.bn1.bias", "encoder.conv1.0.weight"} <= moved


def test_a_frozen_encoder_trains_its_heads():
    segmenter = build(drop_block=0.5)
    moved = step(segmenter, OptimConfig(freeze="encoder"))
    assert moved
    assert not {key for key in moved if key.startswith("encoder.")}
    assert not any(module.training for module in segmenter.encoder.modules())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adam"}, "unknown optim.optimizer 'adam'. Did you mean 'adamw'?"),
        ({"decay": "weight"}, "unknown optim.decay 'weight'. Did you mean 'weights'?"),
        ({"freeze": "layer5"}, "unknown part in optim.freeze 'layer5'. Did you mean 'layer4'?"),
    ],
)
def test_unknown_names(options, says):
    config, segmenter = dataclasses.replace(OptimConfig(), **options), build()
    with pytest.raises(ConfigError, match=says):
        freeze(segmenter, config) if "freeze" in options else build_optimizer(segmenter, config)


def test_stages_of_other_encoders_are_not_known():
    segmenter = build_segmenter("smp:resnet18", head="fcn", num_classes=3, output_stride=32)
    with pytest.raises(ConfigError, match="Use encoder or bn"):
        freeze(segmenter, OptimConfig(freeze="layer1"))
    with pytest.raises(ConfigError, match="set it to 1"):
        build_optimizer(segmenter, OptimConfig(layer_decay=0.9))
    moved = step(segmenter, OptimConfig(freeze="encoder,head_bn"))
    assert moved
    assert all(key.startswith(("head.", "aux_head.")) and not is_statistic(key) for key in moved)


def test_nothing_left_to_train():
    segmenter = build()
    segmenter.requires_grad_(False)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        build_optimizer(segmenter, OptimConfig(freeze="encoder"))
