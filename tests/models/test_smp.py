"""The bridge to segmentation-models-pytorch, in both directions."""

import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders._base import EncoderMixin

from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.resnest import ResNeSt
from resnest_seg.models.smp import DECODERS, ResNeStSMPEncoder, SMPEncoder


@torch.inference_mode()
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_our_encoder_keeps_smps_contract(output_stride):
    encoder = ResNeStSMPEncoder(ModelConfig("resnest14_tiny", output_stride=output_stride, in_channels=4)).eval()
    assert isinstance(encoder, EncoderMixin)
    images = torch.randn(2, 4, 64, 96)
    features = encoder(images)
    assert encoder.out_channels == [feature.shape[1] for feature in features]
    strides = [1, 2, 4, 8, min(16, output_stride), output_stride]
    assert [feature.shape[2:] for feature in features] == [(64 // s, 96 // s) for s in strides]
    assert encoder.output_stride == output_stride
    assert torch.equal(features[0], images)
    encoder.make_dilated(output_stride)
    with pytest.raises(ConfigError, match="built with output stride"):
        encoder.make_dilated(4)


@torch.inference_mode()
def test_our_encoder_under_smp_is_our_encoder():
    plain = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="timm")).eval()
    bridge = ResNeStSMPEncoder(ModelConfig("resnest14_tiny", output_stride=8, dilation="timm")).eval()
    bridge.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 33, 47)
    for ours, theirs in zip(plain(images), bridge(images)[2:], strict=True):
        assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_a_whole_smp_model_runs_on_our_encoder():
    """Put into SMP's own model class, whose encoder of the same channels it replaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = smp.UPerNet("resnet50", encoder_weights=None, classes=4)
    model.encoder = ResNeStSMPEncoder(ModelConfig("resnest14", output_stride=32))
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4, 64, 64)


@pytest.mark.long
@pytest.mark.parametrize(
    ("head", "output_stride"), [(head, stride) for head, (_, strides) in DECODERS.items() for stride in strides]
)
def test_every_decoder_segments_on_our_encoder(head, output_stride):
    """Any size, with the auxiliary head, and with a gradient for every parameter."""
    segmenter = build_segmenter("resnest14_tiny", head=f"smp:{head}", num_classes=3, output_stride=output_stride)
    output = segmenter(torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8))
    assert output.logits.shape == output.aux_logits.shape == (2, 3, 45, 70)
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 8), ("se_resnet50", 16), ("timm-skresnet18", 16), ("efficientnet-b0", 8), ("mit_b0", 32),
     ("densenet121", 32), ("vgg11", 32), ("tu-resnest14d", 8), ("tu-hrnet_w18_small", 32)],
)  # fmt: skip
def test_smps_encoders_segment_under_our_heads(name, output_stride):
    segmenter = build_segmenter(f"smp:{name}", head="fcn", num_classes=3, output_stride=output_stride).eval()
    assert segmenter(torch.zeros(1, 3, 45, 70, dtype=torch.uint8)).logits.shape == (1, 3, 45, 70)
    features = segmenter.encoder(torch.zeros(1, 3, 64, 96))
    assert [feature.shape[1] for feature in features[-4:]] == list(segmenter.encoder.channels)
    assert features[-1].shape[2:] == (64 // output_stride, 96 // output_stride)
    output = segmenter.train()(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    trained = [(key, parameter) for key, parameter in segmenter.named_parameters() if parameter.requires_grad]
    assert [key for key, parameter in trained if parameter.grad is None] == []  # or DistributedDataParallel stops


def test_what_no_head_reads_is_frozen_and_nothing_else():
    """By another way: what moves when a parameter does. HRNet's last fusion feeds levels that FCN passes over."""
    torch.manual_seed(0)
    segmenter = build_segmenter("smp:tu-hrnet_w18_small", head="fcn", num_classes=2, output_stride=32, aux_head=False)
    assert segmenter.training
    frozen = [name for name, parameter in segmenter.named_parameters() if not parameter.requires_grad]
    assert frozen
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    parameters = dict(segmenter.eval().named_parameters())
    with torch.inference_mode():
        for module in segmenter.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1)  # timm begins some with 0, behind which nothing moves yet
        before = segmenter(images).logits
        trained = [name for name in parameters if name not in frozen]
        for name in [*frozen[::5], *trained[::20]]:
            parameters[name].add_(0.5)
            changed = not torch.equal(segmenter(images).logits, before)
            parameters[name].sub_(0.5)
            assert changed == (name not in frozen), name
    read = build_segmenter("smp:tu-hrnet_w18_small", head="smp:unet", num_classes=2, output_stride=32, aux_head=False)
    assert all(parameter.requires_grad for parameter in read.parameters())


ARCHITECTURES = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "deeplabv3": smp.DeepLabV3,
    "pan": smp.PAN,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
}


@pytest.mark.long
@torch.inference_mode()
@pytest.mark.parametrize("head", ARCHITECTURES)
def test_heads_are_those_of_smps_own_models(head):
    """The same weights in SMP's model and in ours, on a size that needs no padding: the same logits."""
    stride = 8 if head == "deeplabv3" else 32
    options = (
        {"encoder_output_stride": 8} if head == "deeplabv3" else {"encoder_output_stride": 32} if head == "pan" else {}
    )
    theirs = ARCHITECTURES[head]("resnet18", encoder_weights=None, classes=3, **options).eval()
    ours = build_segmenter(
        "smp:resnet18", head=f"smp:{head}", num_classes=3, output_stride=stride, aux_head=False
    ).eval()
    state = {key.replace("encoder.", "encoder.encoder.", 1) if key.startswith("encoder.") else f"head.{key}": value
             for key, value in theirs.state_dict().items()}  # fmt: skip
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert (sorted(missing), unexpected) == (["pixel_mean", "pixel_std"], [])
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    expected = theirs(ours.normalise(images))
    assert torch.allclose(ours(images).logits, expected, atol=1e-4 * expected.abs().max())


@torch.inference_mode()
def test_the_timm_variant_is_what_smp_users_get():
    """SMP's tu-resnest14d at output stride 8 and ours with dilation="timm", on the same weights."""
    theirs = SMPEncoder("tu-resnest14d", output_stride=8, in_channels=3).eval()
    ours = ResNeSt(ModelConfig("resnest14", output_stride=8, dilation="timm")).eval()
    weights = {key.removeprefix("encoder.model."): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    images = torch.randn(1, 3, 64, 96)
    for a, b in zip(ours(images), theirs(images)[2:], strict=True):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max())


@torch.inference_mode()
def test_both_ends_may_be_smps():
    segmenter = build_segmenter("smp:resnet18", head="smp:unet", num_classes=2, output_stride=32, in_channels=1).eval()
    assert segmenter(torch.zeros(1, 1, 40, 40)).logits.shape == (1, 2, 40, 40)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"encoder": "smp:densenet121"},
            "smp:densenet121 cannot be built with output_stride 8: DenseNet encoders do not",
        ),
        ({"encoder": "smp:resnet19"}, "unknown encoder 'smp:resnet19'. Did you mean 'smp:resnet1"),
        ({"encoder": "smp:tu-nothing"}, "smp:tu-nothing cannot be built"),
        ({"encoder": "smp:resnet18", "drop_block": 0.1}, "encoder smp:resnet18 is not ours"),
        ({"encoder": "smp:resnet18", "encoder_weights": "imagenot"}, "Wrong pretrained weights `imagenot`"),
        ({"head": "smp:unetz"}, "unknown head 'smp:unetz'. Did you mean 'smp:unet'?"),
        ({"head": "smp:fpn"}, "head smp:fpn works with output_stride 32, not 8"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(values, says):
    with pytest.raises(ConfigError) as error:
        build_segmenter(**({"encoder": "resnest14_tiny", "head": "fcn"} | values))
    assert says in str(error.value)


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoders_of_smp_are_suggested_by_their_names(name):
    """In every spelling of smp's own models; of those that are ours as well, ours is."""
    ours = name in ("pspnet", "deeplabv3", "deeplabv3plus")
    classes = {"unetplusplus": "UnetPlusPlus", "manet": "MAnet", "upernet": "UPerNet", "fpn": "FPN", "pan": "PAN"}
    for spelling in {name, classes.get(name, name.capitalize())} - ({name} if ours else set()):
        with pytest.raises(ConfigError) as error:
            build_segmenter("resnest14_tiny", spelling)
        assert f"unknown head '{spelling}'. Did you mean '{name if ours else f'smp:{name}'}'?" in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet34", "smp:resnet34"),
        ("efficientnet-b0", "smp:efficientnet-b0"),
        ("efficientnet_b0", "smp:efficientnet-b0"),
        ("MobileNet_V2", "smp:mobilenet_v2"),
        ("mit_b0", "smp:mit_b0"),
        ("tu-convnext_tiny", "smp:tu-convnext_tiny"),
        ("resnest51", "resnest50"),
        ("ResNet50", "resnet50"),
    ],
)
def test_encoders_of_smp_are_suggested_by_their_names(name, meant):
    with pytest.raises(ConfigError) as error:
        build_segmenter(name)
    assert f"unknown encoder '{name}'. Did you mean '{meant}'?" in str(error.value)


def test_an_encoder_that_only_says_it_is_dilated_is_refused(monkeypatch):
    """What counts is the size of the features, not an attribute."""
    real = smp.encoders.get_encoder

    def pretender(name, *, output_stride, **options):
        encoder = real(name, output_stride=32, **options)
        encoder._output_stride = output_stride
        return encoder

    monkeypatch.setattr(smp.encoders, "get_encoder", pretender)
    with pytest.raises(ConfigError, match="smp:resnet18 cannot be dilated: asked for output stride 8"):
        SMPEncoder("resnet18", output_stride=8, in_channels=3)


def test_pretrained_weights_bring_their_pixel_statistics(monkeypatch):
    real = smp.encoders.get_encoder
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "input_range": [0, 1]}
    monkeypatch.setattr(
        smp.encoders, "get_encoder", lambda name, *, weights, **options: real(name, weights=None, **options)
    )
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda name, weights: settings)
    segmenter = build_segmenter("smp:resnet18", head="fcn", encoder_weights="imagenet")
    assert segmenter.pixel_mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])
    assert segmenter.pixel_std.flatten().tolist() == pytest.approx([51, 51, 25.5])


def test_weights_that_cannot_be_fetched_are_one_error(monkeypatch):
    def offline(name, *, weights, **options):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    with pytest.raises(DownloadError, match="cannot download the 'imagenet' weights of encoder smp:resnet18"):
        build_segmenter("smp:resnet18", head="fcn", encoder_weights="imagenet")


def random_tensors(module):
    """The state dict with other values, as if trained."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator).to(value.dtype) for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize(("encoder", "timm_name"), [("tu-resnet10t", "resnet10t"), ("resnet18", "resnet18")])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.encoder."])
def test_a_file_of_timm_is_the_encoders(tmp_path, encoder, timm_name, prefix):
    """With its classifier, which is left out; the features are timm's own."""
    theirs = timm.create_model(timm_name, num_classes=3)
    theirs.load_state_dict(random_tensors(theirs))
    file = tmp_path / "weights [1].pth"
    torch.save({prefix + key: value for key, value in theirs.state_dict().items()}, file)
    ours = build_segmenter(f"smp:{encoder}", head="fcn", output_stride=32, encoder_weights=file).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.eval().forward_features(images)
        assert torch.allclose(ours.encoder(images)[-1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_file_of_timm_brings_timms_pixel_statistics_and_its_stem_is_adapted(tmp_path):
    theirs = timm.create_model("tf_efficientnet_lite0")
    torch.save(theirs.state_dict(), tmp_path / "lite0.pth")
    options = {"head": "smp:deeplabv3plus", "output_stride": 16, "num_classes": 2, "aux_head": False}
    options |= {"encoder_weights": str(tmp_path / "lite0.pth")}
    segmenter = build_segmenter("smp:timm-tf_efficientnet_lite0", **options)
    assert segmenter.pixel_mean.flatten().tolist() == [127.5] * 3  # timm's default_cfg: 0.5
    assert segmenter.pixel_std.flatten().tolist() == [127.5] * 3
    grey = build_segmenter("smp:timm-tf_efficientnet_lite0", in_channels=1, **options)
    assert torch.equal(grey.encoder.encoder.conv_stem.weight, theirs.conv_stem.weight.sum(dim=1, keepdim=True))


def test_a_file_of_another_encoder_is_refused(tmp_path):
    """Every tensor of a ResNet-18 is in a ResNet-34's file, by the same name and shape."""
    deeper = timm.create_model("resnet34").state_dict()
    torch.save(deeper, tmp_path / "resnet34.pth")
    with pytest.raises(CheckpointError, match=r"resnet34.pth does not hold .* smp:resnet18: unexpected layer1.2.conv1"):
        build_segmenter("smp:resnet18", head="fcn", encoder_weights=tmp_path / "resnet34.pth")
    shallow = timm.create_model("resnet18").state_dict()
    del shallow["layer4.1.bn2.bias"]
    torch.save(shallow, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing layer4.1.bn2.bias \(1 problem\)"):
        build_segmenter("smp:resnet18", head="fcn", encoder_weights=tmp_path / "part.pth")
    shallow["layer4.1.bn2.bias"] = torch.full((512,), torch.nan)
    torch.save(shallow, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"nan.pth.*not finite"):
        build_segmenter("smp:resnet18", head="fcn", encoder_weights=tmp_path / "nan.pth")
    with pytest.raises(ConfigError, match=r"Wrong pretrained weights `nofile.pth`.*no file of that name"):
        build_segmenter("smp:resnet18", head="fcn", encoder_weights="nofile.pth")


def test_a_file_of_ours_brings_the_statistics_that_it_was_trained_with_and_no_average(tmp_path):
    """timm's default for this encoder are others; a training state holds the average of the weights as well."""
    options = {"head": "fcn", "output_stride": 32, "num_classes": 2, "aux_head": False}
    source = build_segmenter("smp:timm-tf_efficientnet_lite0", **options)
    source.to_checkpoint().save(tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
    averages = {
        key.replace("model.", "average.", 1): value + 1 for key, value in held.items() if value.is_floating_point()
    }
    for order in (held | averages, averages | held):
        save_file(order, tmp_path / "last.safetensors")
        found = build_segmenter(
            "smp:timm-tf_efficientnet_lite0", encoder_weights=str(tmp_path / "last.safetensors"), **options
        )
        assert torch.equal(found.pixel_mean, source.pixel_mean)
        assert torch.equal(found.pixel_std, source.pixel_std)
        for key, value in source.encoder.state_dict().items():
            assert torch.equal(found.encoder.state_dict()[key], value), key
    assert source.pixel_mean.flatten().tolist() != [127.5] * 3
