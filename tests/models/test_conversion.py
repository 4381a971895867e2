"""From the originals' state dicts to ours: parity with their numbers, one-to-one keys, and what is recognised."""

import dataclasses
import functools

import numpy as np
import pytest
import timm
import torch
import torchvision
from support import plain_protocols
from support.reference import GOLDEN, fill_fast, filled_state, golden_images, original_keys, reference_segmenter

from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.conversion import encoder_spec, label_space, recognise, rename
from resnest_seg.models.heads import resize_logits
from resnest_seg.models.loading import load_checkpoint, segmenter_for
from resnest_seg.models.resnest import SPECS, ResNeSt

pytestmark = pytest.mark.slow


def on_meta(shapes):
    """A state dict of shapes without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def reference():
    """Entry -> its model by the rule; the evaluators take the two that the parity builds last once more."""
    built = functools.lru_cache(maxsize=2)(reference_segmenter)
    yield built
    built.cache_clear()


@pytest.mark.parametrize("entry", ["mmseg_deeplabv3_ade", "fcn_resnest50", "deeplab_resnest50", "mmseg_fcn_city"])
@torch.inference_mode()
def test_parity_with_the_originals(entry, reference):
    """All four stages, both heads at feature size and at image size, against numbers from the originals."""
    golden = np.load(GOLDEN / f"{entry}.npz")
    segmenter = reference(entry)
    images = golden_images(segmenter, golden)
    size = tuple(images.shape[2:])
    features = segmenter.encoder(segmenter.normalise(images))
    outputs = dict(zip(("c1", "c2", "c3", "c4"), features, strict=True))
    outputs |= {"low": segmenter.head(features), "aux_low": segmenter.aux_head(features)}
    outputs |= {
        "main": segmenter(images).logits,
        "aux": resize_logits(outputs["aux_low"], size, align_corners=segmenter.align_corners),
    }
    compared = {name for name in outputs if f"{name}_val" in golden}
    assert compared >= {"c1", "c2", "c3", "c4", "main"}
    assert compared & {"aux", "aux_low"}
    for name in compared:
        output, expected = outputs[name], golden[f"{name}_val"]
        assert output.shape == tuple(golden[f"{name}_shape"]), name
        values = output.contiguous().flatten().numpy()[golden[f"{name}_idx"]]
        assert np.abs(values - expected).max() / np.abs(expected).max() < 1e-4, name
        assert abs(float(output.mean()) - golden[f"{name}_mean"]) < 1e-4 * golden[f"{name}_std"], name
        assert abs(float(output.std()) / golden[f"{name}_std"] - 1) < 1e-4, name


def logits_of(segmenter):
    """The logits of a model for normalised images."""
    return lambda x: segmenter(x * segmenter.pixel_std + segmenter.pixel_mean).logits


def assert_scores(scores, golden):
    values = scores.contiguous().flatten().numpy()[golden["idx"]]
    assert np.abs(values - golden["val"]).max() / np.abs(golden["val"]).max() < 1e-4
    assert (scores.argmax(dim=1)[0].numpy() == golden["pred"]).mean() > 0.999


@torch.inference_mode()
def test_our_network_in_the_authors_evaluator_gives_their_scores(reference):
    golden = np.load(GOLDEN / "ms_a.npz")
    size = (1, 3, int(golden["h"]), int(golden["w"]))
    image = np.random.RandomState(int(golden["seed"])).standard_normal(size).astype(np.float32)
    scores = plain_protocols.encoding(
        logits_of(reference("deeplab_resnest50")),
        torch.from_numpy(image),
        base_size=int(golden["base_size"]),
        crop_size=int(golden["crop_size"]),
        scales=golden["scales"],
        flip=bool(golden["flip"]),
    )
    assert_scores(scores, golden)


@torch.inference_mode()
def test_our_network_in_mmsegmentations_evaluator_gives_their_scores(reference):
    golden = np.load(GOLDEN / "mmseg_ms_fcn_city.npz")
    height, width = int(golden["h"]), int(golden["w"])
    blocks = np.random.RandomState(int(golden["seed"])).randint(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    image = np.kron(blocks.astype(np.uint8), np.ones((8, 8, 1), np.uint8))[:height, :width]
    assert_scores(plain_protocols.mmseg(logits_of(reference("mmseg_fcn_city")), image, scales=golden["scales"]), golden)


ENTRIES = {
    # entry -> encoder, head, classes, data set; the format follows from the name
    "fcn_resnest50": ("resnest50", "fcn", 150, "ade20k"),
    "fcn_resnest101": ("resnest101", "fcn", 19, "cityscapes"),
    "fcn_resnet50s": ("resnet50s", "fcn", 150, "ade20k"),
    "deeplab_resnest50": ("resnest50", "deeplabv3", 150, "ade20k"),
    "deeplab_resnest101": ("resnest101", "deeplabv3", 150, "ade20k"),
    "deeplab_resnest200": ("resnest200", "deeplabv3", 150, "ade20k"),
    "deeplab_resnest269": ("resnest269", "deeplabv3", 59, "pascal_context"),
    "deeplab_resnet101s": ("resnet101s", "deeplabv3", 19, "cityscapes"),
    "deeplab_resnext50_32x4d": ("resnext50_32x4d", "deeplabv3", 19, "cityscapes"),
    "mmseg_fcn_ade": ("resnest101", "fcn", 150, "ade20k"),
    "mmseg_fcn_city": ("resnest101", "fcn", 19, "cityscapes"),
    "mmseg_pspnet_ade": ("resnest101", "pspnet", 150, "ade20k"),
    "mmseg_deeplabv3_ade": ("resnest101", "deeplabv3", 150, "ade20k"),
    "mmseg_deeplabv3_city": ("resnest101", "deeplabv3", 19, "cityscapes"),
    "mmseg_deeplabv3plus_ade": ("resnest101", "deeplabv3plus", 150, "ade20k"),
}


def test_every_original_is_expected():
    assert set(ENTRIES) == set(original_keys())


@pytest.mark.parametrize("entry", ENTRIES)
def test_keys_and_shapes_convert_one_to_one(entry):
    """Told from keys and shapes alone, and nothing is left over on either side."""
    encoder, head, classes, dataset = ENTRIES[entry]
    family = "mmseg" if entry.startswith("mmseg") else "encoding"
    known = recognise(on_meta(original_keys()[entry]))
    model = known.model
    assert (model.encoder, model.head, known.num_classes, known.dataset) == (encoder, head, classes, dataset)
    assert (model.family, model.dilation, model.output_stride, model.aux_head) == (family, family, 8, True)
    assert known.format == {"mmseg": "mmsegmentation", "encoding": "PyTorch-Encoding"}[family]
    assert known.skipped == ()
    assert len(known.weights) == len(original_keys()[entry])
    with torch.device("meta"):
        segmenter = segmenter_for(RunConfig(model=model), None, num_classes=classes)
    own = {key: value.shape for key, value in segmenter.state_dict().items() if not key.startswith("pixel_")}
    assert own == {key: value.shape for key, value in known.weights.items()}
    assert segmenter.align_corners == (family == "encoding")


@torch.inference_mode()
def test_mmsegmentations_resnet_is_timms_resnet50c(tmp_path):
    """The file of an R-50-D8: its ResNetV1c has timm's numbers, its head the keys of the ResNeSt's."""
    original = fill_fast(timm.create_model("resnet50c", output_stride=8, num_classes=0))
    state = {key.replace("conv1.", "stem.", 1) if key.startswith("conv1.") else key.replace("bn1.", "stem.7.", 1)
             if key.startswith("bn1.") else key: value for key, value in original.state_dict().items()}  # fmt: skip
    heads = {key: shape for key, shape in original_keys()["mmseg_pspnet_ade"].items() if not key.startswith("backbone")}
    theirs = {f"backbone.{key}": value for key, value in state.items()} | filled_state(heads, np.random.default_rng)
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "pspnet_r50-d8.pth")
    segmenter = load_checkpoint(tmp_path / "pspnet_r50-d8.pth")
    assert segmenter.description == "resnet50c mmseg pspnet, output stride 8, dilation mmseg"
    assert segmenter.load_report.loaded == len(theirs)
    images = torch.randn(1, 3, 75, 91, generator=torch.Generator().manual_seed(0))
    expected = original.forward_intermediates(images)[1][-4:]
    for ours, want in zip(segmenter.encoder(images), expected, strict=True):
        assert (ours - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("name", SPECS)
def test_every_encoder_is_told_from_its_shapes(name):
    with torch.device("meta"):
        state = ResNeSt(ModelConfig(name, output_stride=32, dilation="encoding")).state_dict()
    spec = encoder_spec({f"encoder.{key}": value for key, value in state.items()})
    assert spec == dataclasses.replace(SPECS[name], pool_first=False, stem_width=spec.stem_width)
    assert spec.stem_width == (SPECS[name].stem_width if SPECS[name].deep_stem else 64)


@pytest.mark.parametrize(
    ("original", "encoder"),
    [
        (lambda: timm.create_model("resnest50d_4s2x40d"), "resnest50_fast_4s2x40d"),
        (lambda: timm.create_model("resnest26d"), "resnest26"),
        (lambda: timm.create_model("resnet50d", in_chans=5), "resnet50d"),
        (torchvision.models.resnext101_32x8d, "resnext101_32x8d"),
    ],
)
def test_classifiers_are_recognised(original, encoder):
    with torch.device("meta"):
        state = original().state_dict()
    known = recognise(state)
    assert (known.model.encoder, known.model.head, known.num_classes) == (encoder, "classifier", 1000)
    assert (known.model.output_stride, known.model.aux_head, known.dataset) == (32, False, None)
    assert known.model.in_channels == state[next(iter(state))].shape[1]
    assert label_space(known, {}) is None
    assert len(known.weights) == len(state)


def test_the_files_name_decides_where_keys_cannot():
    """resnest50 and its fast ablation 2s1x64d have the same keys and shapes."""
    state = on_meta(original_keys()["fcn_resnest50"])
    assert recognise(state).model.encoder == "resnest50"
    assert any("resnest50_fast_2s1x64d has the same keys" in sentence for sentence in recognise(state).assumed)
    told = recognise(state, hint="resnest50_fast_2s1x64d-44938639.pth").assumed
    assert not any("has the same keys" in sentence for sentence in told)
    assert recognise(state, hint="resnest50_fast_2s1x64d-44938639.pth").model.encoder == "resnest50_fast_2s1x64d"
    assert recognise(state, hint="deeplab_resnest50_ade-2225f09d.zip").model.encoder == "resnest50"


def test_what_the_keys_do_not_tell_can_be_said():
    known = recognise(on_meta(original_keys()["mmseg_fcn_ade"]), output_stride=16, dilation="encoding")
    assert (known.model.output_stride, known.model.dilation) == (16, "encoding")
    assert known.assumed == ("data set ade20k: it also has 150 classes",)
    silent = recognise(on_meta(original_keys()["mmseg_fcn_ade"])).assumed
    assert {"output stride 8: no key determines it", "dilation mmseg: no key determines it"} <= set(silent)


def test_data_parallel_prefixes_and_the_unused_classifier():
    shapes = {f"module.{key}": shape for key, shape in original_keys()["fcn_resnest50"].items()}
    shapes |= {"module.pretrained.fc.weight": [1000, 2048], "module.pretrained.fc.bias": [1000]}
    known = recognise(on_meta(shapes))
    assert len(known.weights) == len(original_keys()["fcn_resnest50"])
    assert [name for name, _ in known.skipped] == ["pretrained.fc.weight", "pretrained.fc.bias"]
    assert all("ImageNet classifier" in why for _, why in known.skipped)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."])
def test_wrapped_models_are_read_in_whatever_order_they_were_wrapped(prefix):
    """Such as torch.compile(DDP(model)) and DDP(torch.compile(model))."""
    shapes = original_keys()["fcn_resnest50"]
    known = recognise(on_meta({f"{prefix}{key}": shape for key, shape in shapes.items()}))
    assert known.weights.keys() == recognise(on_meta(shapes)).weights.keys()


def without_auxiliary_head(shapes):
    return {key: shape for key, shape in shapes.items() if not key.startswith("aux")}


def test_a_file_without_auxiliary_head():
    assert not recognise(on_meta(without_auxiliary_head(original_keys()["fcn_resnest50"]))).model.aux_head
    assert not recognise(on_meta(without_auxiliary_head(original_keys()["mmseg_fcn_ade"]))).model.aux_head


def test_classes_of_a_file_of_somebodys_own():
    shapes = dict(original_keys()["mmseg_fcn_ade"])
    shapes |= {"decode_head.conv_seg.weight": [3, 512, 1, 1], "decode_head.conv_seg.bias": [3]}
    known = recognise(on_meta(shapes))
    assert known.dataset is None
    assert label_space(known, {}) == LabelSpace.numbered(3)
    named = label_space(known, {"CLASSES": ("a", "b", "c"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]})
    assert (named.names, named.colors) == (("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    assert label_space(known, {"CLASSES": ("a", "b")}) == LabelSpace.numbered(3)
    modern = {"dataset_meta": {"classes": ["a", "b", "c"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}}
    assert label_space(known, modern) == named
    for palette in ([[1, 2, 3]], "random", [[1, 2, 300]] * 3, [[1, 2]] * 3, 7):  # no palette for three classes
        space = label_space(known, {"CLASSES": ("a", "b", "c"), "PALETTE": palette})
        assert (space.names, space.colors) == (("a", "b", "c"), LabelSpace.numbered(3).colors)


def test_what_a_file_lists_wins_over_the_number_of_classes():
    """Nineteen classes need not be those of Cityscapes."""
    city = recognise(on_meta(original_keys()["mmseg_fcn_city"]))
    official = LabelSpace.of("cityscapes")
    assert label_space(city, {}) == official
    assert label_space(city, {"CLASSES": official.names}) == official
    assert label_space(city, {"CLASSES": [name.title() for name in official.names]}) == official
    other = label_space(city, {"CLASSES": [f"mine {k}" for k in range(19)]})
    assert (other.name, other.names[3]) == ("custom", "mine 3")
    assert "data set cityscapes: it also has 19 classes" in city.assumed


def changed(entry, **changes):
    shapes = dict(original_keys()[entry])
    for key, shape in changes.items():
        key = key.replace("__", ".")
        if shape is None:
            del shapes[key]
        else:
            shapes[key] = shape
    return on_meta(shapes)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (on_meta({"a.weight": [1], "b.weight": [1]}), "the keys do not match a known network, the first"),
        (changed("mmseg_fcn_ade", neck__conv__weight=[1]), "1 keys match no part of a known mmsegmentation network"),
        (
            changed("fcn_resnest50", pretrained__layer1__0__conv3__weight=None),
            "no fitting weight 'encoder.layer1.0.conv3",
        ),
        (changed("fcn_resnest50", pretrained__conv1__0__weight=[48, 3, 3, 3]), "none of our encoders has these shapes"),
        (
            changed("fcn_resnest50", head__conv5__4__weight=None),
            "no known head (its head has keys",
        ),
        (on_meta({k: v for k, v in original_keys()["fcn_resnest50"].items() if k.startswith("pre")}), "it has no head"),
    ],
)
def test_what_is_not_known_is_refused_with_a_reason(state, says):
    with pytest.raises(CheckpointError) as error:
        recognise(state)
    assert says in str(error.value)


def test_the_encoder_of_anybodys_file():
    keys = original_keys()["mmseg_fcn_ade"]
    _, renamed, _ = rename(on_meta(keys))
    weights = {key.removeprefix("encoder.") for key in renamed if key.startswith("encoder.")}
    with torch.device("meta"):
        own = ResNeSt(ModelConfig("resnest101", output_stride=8, dilation="mmseg")).state_dict()
    assert weights == set(own)
