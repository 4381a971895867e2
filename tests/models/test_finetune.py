"""Start from any checkpoint: of other classes, another head, another format."""

import dataclasses
import re

import pytest
import torch
from support.reference import fill, filled_state, original_keys
from support.small_models import shrink_mask2former

from resnest_seg.config import ClassifierConfig, ModelConfig, PretrainConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import TrainingState
from resnest_seg.models.loading import (
    build_segmenter,
    classifier_for,
    load_checkpoint,
    load_classifier,
    load_fitting,
    segmenter_for,
)
from resnest_seg.models.segmenter import Segmenter

LAST = {
    ("encoding", "fcn"): ("head.conv5.4.", "aux_head.conv5.4."),
    ("encoding", "deeplabv3"): ("head.block.4.", "aux_head.conv5.4."),
    ("mmseg", "fcn"): ("head.conv_seg.", "aux_head.conv_seg."),
    ("mmseg", "deeplabv3plus"): ("head.conv_seg.", "aux_head.conv_seg."),
}


def model(space, **options):
    config = RunConfig(model=ModelConfig(**({"encoder": "resnest14_tiny", "head": "fcn"} | options)))
    return segmenter_for(config, space, pretrained=False)


CLASSIFIER = PretrainConfig(model=ClassifierConfig(encoder="resnest14_tiny"))


def saved(segmenter, path):
    fill(segmenter).to_checkpoint().save(path)
    return segmenter.state_dict()


def moved(before, segmenter):
    return {key for key, value in segmenter.state_dict().items() if not torch.equal(value, before[key])}


def copy(segmenter):
    return {key: value.clone() for key, value in segmenter.state_dict().items()}


def assert_loaded_but(segmenter, theirs, before, prefixes):
    for key, value in segmenter.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        expected = before[key] if key.startswith(prefixes) else theirs[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize(("family", "head"), LAST)
@pytest.mark.parametrize("count", [3, 11])
def test_other_classes_leave_the_last_layers_fresh(family, head, count, tiny_space, tmp_path):
    """Also when there are as many of them: class 2 of one data set is not class 2 of another."""
    theirs = saved(model(LabelSpace.of("camvid"), family=family, head=head), tmp_path / "a.safetensors")
    space = tiny_space if count == 3 else LabelSpace.numbered(11)
    segmenter = model(space, family=family, head=head)
    before = copy(segmenter)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    assert_loaded_but(segmenter, theirs, before, LAST[family, head])
    assert {name for name, _ in report.skipped} == set(report.kept)
    assert all(name.startswith(LAST[family, head]) for name in report.kept)
    assert len(report.kept) == 4
    assert "it decides between other classes: left fresh" in str(report)


def test_the_same_classes_are_loaded_whole(tiny_space, tmp_path):
    theirs = saved(model(tiny_space), tmp_path / "a.safetensors")
    segmenter = model(tiny_space)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    assert_loaded_but(segmenter, theirs, {}, ("nothing",))
    assert (report.skipped, report.kept, report.assumed) == ((), (), ())


def test_another_head_and_another_dilation_are_reported(tiny_space, tmp_path):
    theirs = saved(model(tiny_space, head="deeplabv3", dilation="timm"), tmp_path / "a.safetensors")
    segmenter = model(tiny_space, aux_head=False)
    before = copy(segmenter)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    assert_loaded_but(segmenter, theirs, before, ("head.",))
    assert ("head.aspp.b0.0.weight", "this model has no such part") in report.skipped
    assert "this model has no such part" in str(report)
    assert "assumed dilation encoding is meant, where the file's network has timm" in str(report)


def test_a_classifier_of_ours_and_another_number_of_channels(tmp_path):
    theirs = saved(classifier_for(CLASSIFIER, num_classes=7), tmp_path / "a.safetensors")
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, in_channels=1)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    stem = "encoder.conv1.0.weight"
    assert torch.equal(segmenter.state_dict()[stem], theirs[stem].sum(1, keepdim=True))
    assert torch.equal(segmenter.encoder.layer4[0].conv3.weight, theirs["encoder.layer4.0.conv3.weight"])
    assert {name for name, _ in report.skipped} >= {"head.fc.weight", "head.fc.bias"}


def test_the_authors_file_for_eleven_classes(tmp_path):
    path = tmp_path / "fcn_resnest50_ade.pth"
    state = filled_state(original_keys()["fcn_resnest50"])
    torch.save(state, path)
    segmenter = model(LabelSpace.of("camvid"), encoder="resnest50")
    report = load_fitting(segmenter, path)
    assert torch.equal(segmenter.head.conv5[0].weight, state["head.conv5.0.weight"])
    assert torch.equal(segmenter.encoder.layer1[0].conv1.weight, state["pretrained.layer1.0.conv1.weight"])
    assert set(report.kept) == {f"{part}.conv5.4.{kind}" for part in ("head", "aux_head")
                                            for kind in ("weight", "bias")}  # fmt: skip
    whole = model(LabelSpace.of("ade20k"), encoder="resnest50")
    assert load_fitting(whole, path).kept == ()
    assert torch.equal(whole.head.conv5[4].weight, state["head.conv5.4.weight"])
    fast = model(LabelSpace.of("camvid"), encoder="resnest50_fast_2s1x64d")
    with pytest.raises(CheckpointError, match="holds weights of encoder 'resnest50', and this model has"):
        load_fitting(fast, path)


def test_another_encoder_is_refused_and_nothing_is_changed(tiny_space, tmp_path):
    saved(model(tiny_space), tmp_path / "a.safetensors")
    segmenter = model(tiny_space, encoder="resnest14")
    before = copy(segmenter)
    with pytest.raises(CheckpointError, match=r"weights of encoder 'resnest14': encoder.conv1.0.weight has the shape"):
        load_fitting(segmenter, tmp_path / "a.safetensors")
    assert not moved(before, segmenter)


def test_a_deeper_encoder_is_refused_although_all_of_ours_is_in_it(tiny_space, tmp_path):
    deep = fill(model(tiny_space, encoder="resnest14"))
    state = deep.state_dict()
    more = {key.replace("layer4.0.", "layer4.1."): value for key, value in state.items() if "layer4.0." in key}
    torch.save({**state, **more}, tmp_path / "deeper.pth")
    with pytest.raises(CheckpointError, match=r"of encoder 'resnest14': encoder\.layer4\.1\..* is no part of it"):
        load_fitting(model(tiny_space, encoder="resnest14"), tmp_path / "deeper.pth")


def test_encoder_weights_from_a_state_with_an_average(tiny_space, tmp_path):
    saved = fill(model(tiny_space)).to_checkpoint()
    average = {f"average.{key}": torch.zeros_like(value) for key, value in saved.weights.items()}
    dataclasses.replace(saved, training=TrainingState({"step": 1}, average)).save(tmp_path / "last.safetensors")
    segmenter = build_segmenter("resnest14_tiny", head="fcn", encoder_weights=str(tmp_path / "last.safetensors"))
    key = "encoder.layer4.0.conv3.weight"
    assert torch.equal(segmenter.state_dict()[key], saved.weights[key])


@pytest.mark.parametrize("encoder", ["resnest14_tiny", "smp:tu-resnet10t"])
def test_encoder_weights_from_a_run_folder(encoder, tiny_space, tmp_path):
    """Those of the best checkpoint; `here` is a folder without one, and a name that nobody published."""
    run, here = tmp_path / "run [1]", tmp_path / "here"
    here.mkdir()
    run.mkdir()
    trained = fill(model(tiny_space, encoder=encoder, output_stride=32))
    model(tiny_space, encoder=encoder, output_stride=32).to_checkpoint().save(run / "last.safetensors")
    trained.to_checkpoint().save(run / "best.safetensors")
    segmenter = build_segmenter(encoder, head="fcn", output_stride=32, encoder_weights=run)
    found = segmenter.encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in trained.encoder.state_dict().items())
    for wrong in (str(here), "x" * 5000):
        with pytest.raises(ConfigError, match=r"no such file, run folder or name|no file of th|cannot be read"):
            build_segmenter(encoder, head="fcn", output_stride=32, encoder_weights=wrong)


def test_mistakes(tiny_space, tmp_path):
    segmenter = model(tiny_space)
    with pytest.raises(
        ConfigError, match=re.escape("no such file, run folder or name 'deeplab_resnest50_ad'. Did you")
    ):
        load_fitting(segmenter, "deeplab_resnest50_ad")
    with pytest.raises(CheckpointError, match="is no run folder"):
        load_fitting(segmenter, tmp_path)
    torch.save({"a.b": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth: the keys do not match a known network"):
        load_fitting(segmenter, tmp_path / "x.pth")


def own_file(path, value):
    segmenter = fill(model(LabelSpace.of("camvid")))
    with torch.no_grad():
        segmenter.encoder.layer2[0].conv1.weight[0, 0] = value
    segmenter.to_checkpoint().save(path)


def foreign_file(path, value):
    """An image classifier, under the names that timm and torchvision use."""
    state = fill(classifier_for(CLASSIFIER, num_classes=1000)).state_dict()
    state["encoder.layer2.0.conv1.weight"][0, 0] = value
    prefixes = ("encoder.", "head.")
    torch.save({key.removeprefix(p): v for key, v in state.items() for p in prefixes if key.startswith(p)}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_wherever_they_are_loaded(value, tiny_space, tmp_path):
    """Not by the loss of the first step, which would blame the learning rate and the photos."""
    own, foreign = tmp_path / "own.safetensors", tmp_path / "foreign.pth"
    own_file(own, value)
    foreign_file(foreign, value)
    tensor = r"layer2\.0\.conv1\.weight are not finite"
    for path, load in (
        (own, lambda: load_fitting(model(tiny_space), own)),
        (own, lambda: load_checkpoint(own)),
        (own, lambda: Segmenter.from_pretrained(own)),
        (own, lambda: build_segmenter("resnest14_tiny", head="fcn", encoder_weights=str(own))),
        (foreign, lambda: load_classifier(foreign)),
        (foreign, lambda: load_fitting(model(tiny_space), foreign)),
        (foreign, lambda: build_segmenter("resnest14_tiny", head="fcn", encoder_weights=str(foreign))),
    ):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .* values of .*{tensor}"):
            load()


def test_what_is_not_taken_need_not_be_finite(tiny_space, tmp_path):
    segmenter = fill(model(LabelSpace.of("camvid")))
    with torch.no_grad():
        segmenter.head.conv5[4].bias.fill_(float("nan"))
    segmenter.to_checkpoint().save(tmp_path / "a.safetensors")
    load_fitting(model(tiny_space), tmp_path / "a.safetensors")  # other classes: the last layer stays fresh


def test_a_file_of_nobodys_keys_is_named_as_encoder_weights(tmp_path):
    torch.save({"some.weight": torch.ones(3)}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"foreign\.pth: the keys do not match a known network"):
        build_segmenter("resnest14", head="fcn", encoder_weights=str(tmp_path / "foreign.pth"))


@pytest.mark.parametrize("count", [3, 11])
def test_the_classes_of_a_head_that_predicts_masks_are_left_fresh(count, tiny_space, tmp_path, monkeypatch):
    """It has one output more than there are classes: for no object."""
    shrink_mask2former(monkeypatch)
    options = {"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False}
    theirs = saved(model(LabelSpace.of("camvid"), **options), tmp_path / "a.safetensors")
    segmenter = model(tiny_space if count == 3 else LabelSpace.numbered(11), **options)
    before = copy(segmenter)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    assert_loaded_but(segmenter, theirs, before, ("head.cls_embed.",))
    assert set(report.kept) == {"head.cls_embed.weight", "head.cls_embed.bias"}


def test_of_a_head_without_a_known_last_layer_the_shapes_decide(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.shared, self.weight = torch.nn.Conv2d(128, 8, 1), torch.nn.Parameter(torch.ones(classes, 8, 1, 1))

        def forward(self, features):
            return torch.nn.functional.conv2d(self.shared(features[-1]), self.weight)

    def build(classes):
        plain = model(LabelSpace.numbered(classes), output_stride=32)
        width = plain.encoder.channels[-1]
        head = Own(classes)
        head.shared = torch.nn.Conv2d(width, 8, 1)
        return Segmenter(plain.encoder, head, num_classes=classes, label_space=LabelSpace.numbered(classes))

    theirs = saved(build(5), tmp_path / "a.safetensors")
    segmenter = build(4)
    report = load_fitting(segmenter, tmp_path / "a.safetensors")
    assert torch.equal(segmenter.head.shared.weight, theirs["head.shared.weight"])
    assert "head.weight" in report.kept
