"""The memory of a step, against real steps and a published figure; and how a batch is divided."""

import dataclasses
import functools
import itertools
import math
import re

import pytest
import torch
from support.small_models import shrink_mask2former

from resnest_seg.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from resnest_seg.errors import ConfigError
from resnest_seg.models.loading import segmenter_for
from resnest_seg.training import cpu_speed as convolution
from resnest_seg.training.losses import MaskLoss, SegmentationLoss
from resnest_seg.training.memory import (
    ENOUGH_STATISTICS,
    GIB,
    Devices,
    LiveBytes,
    MemoryModel,
    choose,
    devices_here,
    divide,
    machine_memory,
    measure,
    plan,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

TINY = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn"), data=DataConfig(crop_size=64))


def changed(config, **groups):
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **values) for group, values in groups.items()}
    )


@functools.cache
def counted(config=TINY, *, half=False, processes=1):
    """What `measure` finds, which several tests compare."""
    return measure(config, num_classes=10, half=half, processes=processes)


def step(segmenter, images, *, context):
    loss = SegmentationLoss(0.2, align_corners=segmenter.align_corners)
    with context:
        pixels = torch.zeros(images, 3, 64, 64, dtype=torch.uint8)
        labels = torch.zeros(images, 64, 64, dtype=torch.int64)
        output = segmenter(pixels, coarse=True)  # as the trainer does
        total = loss(output.logits, output.aux_logits, labels, pixels=torch.tensor(9))
        del output
        total.backward()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_count_what_a_real_step_takes(checkpointing, monkeypatch):
    monkeypatch.setattr(convolution, "MIN_CHANNELS", math.inf)  # torch's own convolutions, as on a GPU
    config = changed(TINY, model={"checkpointing": checkpointing})
    model = counted(config)
    segmenter = segmenter_for(config, None, num_classes=10)
    step(segmenter, 3, context=(real := LiveBytes()))
    trained = sum(p.nbytes for p in segmenter.parameters())
    everything = sum(value.nbytes for value in segmenter.state_dict().values())
    assert model(3) == pytest.approx(real.peak + everything + 2 * trained, rel=0.02)


@pytest.mark.parametrize(("decoder", "points"), [("deformable", 12544), ("fpn", 300)])
def test_a_step_of_masks_is_counted_with_its_own_loss(decoder, points, monkeypatch):
    """Of crops with as many classes as are counted, here all ten."""
    shrink_mask2former(monkeypatch)
    head = {"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False, "pixel_decoder": decoder}
    config = changed(TINY, model=head, train={"mask_points": points})
    model = counted(config)
    segmenter = segmenter_for(config, None, num_classes=10).train()
    loss, bands = MaskLoss(segmenter, points=points), torch.arange(64) // 7
    labels = bands.expand(3, 64, 64)
    with LiveBytes() as real:
        predictions = segmenter.masks(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
        loss(predictions, labels.contiguous(), total=loss.weight_of(labels), seeds=[0, 1, 2]).backward()
    trained = sum(p.nbytes for p in segmenter.parameters())
    everything = sum(value.nbytes for value in segmenter.state_dict().values())
    assert model(3) == pytest.approx(real.peak + everything + 2 * trained, rel=0.05)


def test_it_is_at_least_what_autograd_says_it_keeps():
    """torch's own hooks see every tensor that is kept for the backward pass."""
    segmenter, kept = segmenter_for(TINY, None, num_classes=10), {}
    own = {p.untyped_storage().data_ptr() for p in [*segmenter.parameters(), *segmenter.buffers()]}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    step(segmenter, 8, context=torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
    per_image = sum(kept.values()) / 8
    assert per_image <= counted().per_image <= 1.5 * per_image


def test_mmsegmentations_published_memory():
    """14.6 GB for DeepLabV3 on ResNeSt-101, 4 images of 512 x 512 on each of 4 GPUs, in float32.

    That holds three full-size tensors that the lean loss does not: log-probabilities of both heads, and a gradient.
    """
    config = changed(
        RunConfig(),
        model={"encoder": "resnest101", "family": "mmseg", "dilation": "mmseg"},
        data={"crop_size": 512},
    )
    full_size = 4 * 150 * 512 * 512 * 4
    lean = measure(config, num_classes=150, half=False, processes=4)(4)
    assert lean + 3 * full_size == pytest.approx(14.6e9, rel=0.1)


@pytest.mark.parametrize("loss", ["ohem", "dice", "focal", "lovasz", "tversky"])
def test_losses_that_cannot_be_counted_are_refused(loss):
    if loss == "ohem":
        assert counted(changed(TINY, train={"loss": loss})) == counted()
    else:
        config = changed(TINY, train={"loss": f"cross_entropy+{loss}"})
        with pytest.raises(ConfigError, match=rf"the memory of train.loss {loss} cannot be counted"):
            counted(config)


def test_what_saves_memory_and_what_does_not():
    plain = counted()
    assert counted(half=True).per_image < 0.8 * plain.per_image
    twice = counted(changed(TINY, model={"checkpointing": True}))
    assert twice.per_image < 0.8 * plain.per_image
    frozen = counted(changed(TINY, optim={"freeze": "encoder"}))
    assert frozen.per_image < 0.7 * plain.per_image
    trained = sum(p.nbytes for p in segmenter_for(TINY, None, num_classes=10).parameters())
    adamw = counted(changed(TINY, optim={"optimizer": "adamw"}))
    assert adamw.fixed - plain.fixed == trained
    assert counted(processes=2).fixed - plain.fixed == trained
    wide = counted(changed(TINY, data={"crop_width": 128}))
    assert wide.per_image == pytest.approx(2 * plain.per_image, rel=0.02)


def test_live_bytes():
    with LiveBytes() as bytes_:
        a = torch.zeros(1000)
        view = a[10:].reshape(-1, 10)
        assert bytes_.live == 4000
        b = a + 1
        assert (bytes_.live, bytes_.peak) == (8000, 8000)
        del b
        assert (bytes_.live, bytes_.peak) == (4000, 8000)
        del a
        assert bytes_.live == 4000
        del view
        assert (bytes_.live, bytes_.peak) == (0, 8000)


MODELS = {False: MemoryModel(2 * GIB, GIB), True: MemoryModel(2 * GIB, GIB // 2)}


@pytest.mark.parametrize(
    ("count", "gib", "shared", "expected"),
    [
        # (micro-batch, accumulation, checkpointing) that a person would choose for 16 images
        (1, 80, False, (16, 1, False)),
        (1, 16, False, (8, 2, False)),  # 11.5 GiB of 13.5 usable
        (1, 11, False, (8, 2, True)),  # 10 do not fit into 9, 6 do, with blocks computed twice
        (1, 7, False, (4, 4, True)),
        (4, 16, True, (4, 1, False)),
        (4, 6, True, (2, 2, False)),  # eight images are seen by the shared norms
        (8, 6, False, (2, 1, False)),
        (16, 6, True, (1, 1, False)),  # one image each is enough where statistics are shared
        (16, 80, False, None),
        (1, 2, False, None),
    ],
)
def test_what_is_chosen(count, gib, shared, expected):
    options = divide(16, Devices(count, gib * GIB, "cuda"), MODELS, shared_statistics=shared)
    chosen = choose(options)
    assert expected == (chosen and (chosen.micro_batch, chosen.accumulation, chosen.checkpointing))


def test_every_option_is_the_same_effective_batch():
    for batch, count, shared in itertools.product((2, 12, 16), (1, 2), (False, True)):
        devices = Devices(count, 9 * GIB, "cuda")
        options = divide(batch, devices, MODELS, shared_statistics=shared)
        assert {option.micro_batch * option.accumulation * count for option in options} == {batch}
        for option in options:
            assert option.statistics == option.micro_batch * (count if shared else 1)
            fits = option.memory <= devices.usable and option.statistics >= 2
            assert bool(option.problem) == (not fits)
        chosen = choose(options)
        better = [option for option in options if not option.problem and option.statistics >= ENOUGH_STATISTICS]
        assert not better or chosen.statistics >= ENOUGH_STATISTICS


def test_a_plan_keeps_the_recipe_and_says_so():
    from rich.console import Console

    config = changed(TINY, train={"accumulation": 5, "precision": "fp32"}, distill={"teacher": ("runs/large",)})
    whole = counted(config)
    devices = Devices(1, int((whole(8) + 1000) / 0.9 + GIB), "cpu")
    found = plan(config, num_classes=10, devices=devices)
    assert found.config == changed(config, train={"accumulation": 2}, model={"checkpointing": False})
    assert found.words == ["--train.accumulation=2", "--model.checkpointing=false"]
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    text = " ".join(console.export_text().split())
    console.file.close()
    assert "The recipe holds: 16 images a step (micro-batch x accumulate x devices), 120 epochs, lr 0.01." in text
    assert "chosen: the most without checkpointing" in text
    assert re.search(r"[GM]iB too much", text)
    assert "batch norm needs two images" in text
    assert "Not counted: what runs/large (distill.teacher) takes, which --dry-run measures." in text


def test_what_cannot_be_planned():
    with pytest.raises(ConfigError, match=r"does not fit into 1 x cpu with 0.5 GiB .*Lower data.crop_size \(64\)"):
        plan(TINY, num_classes=10, devices=Devices(1, GIB // 2, "cpu"))
    with pytest.raises(
        ConfigError, match=r"cannot be shared equally by 3 devices. Use other devices, or a batch of 15 or"
    ):
        plan(TINY, num_classes=10, devices=Devices(3, GIB, "cpu"))
    alone = changed(TINY, train={"batch_size": 1})
    with pytest.raises(ConfigError, match="is too small: batch norm needs two images"):
        plan(alone, num_classes=10, devices=Devices(1, GIB, "cpu"))


def test_encoders_of_others_are_counted_too():
    config = changed(TINY, model={"encoder": "smp:resnet18", "output_stride": 32}, train={"batch_size": 4})
    found = plan(config, num_classes=10, devices=Devices(1, 4 * GIB, "cpu"))
    assert {option.checkpointing for option in found.options} == {False}
    assert found.chosen.micro_batch == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_devices_here(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("12345\n")
    assert machine_memory(str(tmp_path / "max")) == 12345
    (tmp_path / "max").write_text("max\n")
    whole = machine_memory(str(tmp_path / "max"))
    assert whole == machine_memory(str(tmp_path / "no")) > GIB // 2
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert devices_here() == Devices(4, machine_memory() // 2, "cpu")
    assert OptimConfig().reference_batch == TrainConfig().batch_size  # the default run needs no scaling


def test_an_average_and_the_copy_that_is_judged_are_counted():
    plain, averaged = (counted(changed(TINY, train={"ema": ema})) for ema in (0.0, 0.9))
    model = segmenter_for(TINY, None, num_classes=10, pretrained=False)
    assert averaged.fixed - plain.fixed == 2 * sum(value.nbytes for value in model.state_dict().values())
    assert averaged.per_image == plain.per_image


def test_little_memory_is_told_in_mebibytes():
    config = RunConfig(
        model=ModelConfig(encoder="resnest14_tiny", head="fcn"),
        data=DataConfig(crop_size=64, base_size=64),
        train=TrainConfig(batch_size=4),
    )
    with pytest.raises(ConfigError) as raised:
        plan(config, num_classes=10, devices=Devices(1, 2**20, "cpu"))
    assert "with 1.0 MiB (nothing usable, as 1.0 GiB is kept free)" in str(raised.value)
    assert "0.0 GiB" not in str(raised.value)
