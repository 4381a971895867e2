"""The whole model: normalisation, sizes, memory formats, auxiliary head."""

import pytest
import torch
from support.small_models import noise, used

from resnest_seg.errors import ConfigError, DownloadError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import HUB_FILE
from resnest_seg.models.loading import build_segmenter, load_checkpoint
from resnest_seg.models.resnest import DILATIONS
from resnest_seg.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return build_segmenter("resnest14_tiny", num_classes=5).eval()


def test_normalises_like_torchvision(segmenter):
    from torchvision.transforms.v2.functional import normalize

    images = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    expected = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(segmenter.normalise(images), expected, atol=1e-5)


@torch.inference_mode()
def test_uint8_and_float_pixels_are_the_same_input(segmenter):
    images = torch.randint(0, 256, (1, 3, 40, 52), dtype=torch.uint8)
    assert torch.equal(segmenter(images).logits, segmenter(images.float()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 5)])
def test_logits_have_the_input_size(segmenter, size):
    output = segmenter(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert output.logits.shape == (2, 5, *size)
    assert output.aux_logits is None


def test_the_auxiliary_head_answers_in_training_only():
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=4)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert segmenter.training
    assert segmenter(images).aux_logits.shape == (2, 4, 32, 40)
    assert segmenter.eval()(images).aux_logits is None
    assert build_segmenter("resnest14_tiny", num_classes=4, aux_head=False)(images).aux_logits is None


@torch.inference_mode()
def test_channels_last_and_contiguous_memory_agree(segmenter):
    images = torch.randint(0, 256, (1, 3, 48, 56), dtype=torch.uint8)
    assert segmenter.encoder.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain = build_segmenter("resnest14_tiny", num_classes=5).eval()
    plain.load_state_dict(segmenter.state_dict())
    plain = plain.to(memory_format=torch.contiguous_format)
    assert torch.allclose(segmenter(images).logits, plain(images).logits, atol=1e-4)


@torch.inference_mode()
def test_a_batch_is_its_images_one_by_one(segmenter):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    together = segmenter(images).logits
    for image, logits in zip(images, together, strict=True):
        assert torch.allclose(segmenter(image[None]).logits[0], logits, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    segmenter = build_segmenter("resnest14_tiny", num_classes=3)
    output = segmenter(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


NETWORKS = [
    {"head": "fcn"},
    {"head": "deeplabv3", "dilation": "timm", "output_stride": 16},
    {"head": "fcn", "family": "mmseg", "dilation": "mmseg"},
    {"head": "deeplabv3", "family": "mmseg", "output_stride": 16},
    {"head": "pspnet", "family": "mmseg", "output_stride": 32},
    {"head": "deeplabv3plus", "family": "mmseg", "dilation": "mmseg"},
    {"head": "smp:upernet", "output_stride": 16},
]


@torch.inference_mode()
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (50, 90)])
def test_every_network_takes_every_size(network, size):
    segmenter = build_segmenter("resnest14_tiny", num_classes=4, **network).eval()
    assert segmenter(torch.zeros(1, 3, *size, dtype=torch.uint8)).logits.shape == (1, 4, *size)


@torch.inference_mode()
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_half_precision_and_contiguous_memory_agree_with_float32(network):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", num_classes=4, **network).eval()
    images = torch.randint(0, 256, (2, 3, 65, 80), dtype=torch.uint8)
    expected = segmenter(images).logits
    plain = build_segmenter("resnest14_tiny", num_classes=4, **network).eval()
    plain.load_state_dict(segmenter.state_dict())
    plain = plain.to(memory_format=torch.contiguous_format)
    assert torch.allclose(plain(images).logits, expected, atol=1e-4 * expected.abs().max())
    half = segmenter.bfloat16()(images).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 4, 8, 8), (3, 8, 8)])
def test_images_of_another_shape_are_refused(segmenter, shape):
    with pytest.raises(ConfigError, match=r"images must have the shape \[N, 3, H, W\], not"):
        segmenter(torch.zeros(*shape))


def test_pixel_statistics_of_other_channels():
    grey = build_segmenter("resnest14_tiny", head="fcn", in_channels=1)
    assert grey.pixel_mean.flatten().tolist() == pytest.approx([255 * (0.485 + 0.456 + 0.406) / 3])
    five = build_segmenter("resnest14_tiny", head="fcn", in_channels=5)
    assert five.pixel_std.flatten().tolist() == pytest.approx([255 * v for v in (0.229, 0.224, 0.225, 0.229, 0.224)])


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_pretrained_round_trip_is_exact(network, tmp_path):
    torch.manual_seed(1)
    segmenter = build_segmenter("resnest14_tiny", num_classes=4, **network).eval()
    segmenter.label_space = LabelSpace.numbered(4)
    segmenter.save_pretrained(tmp_path / "saved")
    images = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    for loaded in (Segmenter.from_pretrained(tmp_path / "saved"), load_checkpoint(tmp_path / "saved" / HUB_FILE)):
        assert loaded.config == segmenter.config
        assert loaded.label_space == segmenter.label_space
        assert loaded.num_classes == 4
        for key, value in segmenter.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        with torch.inference_mode():
            assert torch.equal(loaded(images).logits, segmenter(images).logits)


def test_half_precision_survives_the_round_trip(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).half()
    segmenter.save_pretrained(tmp_path)
    for loaded in (Segmenter.from_pretrained(tmp_path), Segmenter.from_pretrained(tmp_path / HUB_FILE)):
        for key, value in segmenter.state_dict().items():
            assert loaded.state_dict()[key].dtype == value.dtype
            assert torch.equal(loaded.state_dict()[key], value)


def test_batch_height_and_width_can_all_be_dynamic_in_an_export():
    segmenter = build_segmenter("resnest14_tiny", num_classes=3).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(segmenter, (images,), dynamic_shapes={"images": {0: auto, 2: auto, 3: auto}})
    other = torch.randint(0, 256, (3, 3, 80, 72), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(program.module()(other).logits, segmenter(other).logits, atol=1e-4)


def test_a_thousand_classes_without_a_label_space_survive(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=1000, output_stride=32)
    segmenter.save_pretrained(tmp_path)
    assert Segmenter.from_pretrained(tmp_path).num_classes == 1000


def test_push_to_hub_uploads_one_checkpoint_and_a_card(tmp_path, monkeypatch):
    """Everything up to the hub's own client, which is recorded instead of asked."""
    import huggingface_hub.hub_mixin as mixin

    uploaded = {}

    class Client:
        def __init__(self, *arguments, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repository", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id, folder_path, **options):
            uploaded[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

    monkeypatch.setattr(mixin, "HfApi", Client)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).eval()
    segmenter.push_to_hub("someone/model")
    files = uploaded["someone/model"]
    assert set(files) >= {HUB_FILE, "README.md"}
    (tmp_path / HUB_FILE).write_bytes(files[HUB_FILE])
    loaded = Segmenter.from_pretrained(tmp_path)
    assert torch.equal(loaded.head.conv5[0].weight, segmenter.head.conv5[0].weight)
    assert b"semantic-segmentation" in files["README.md"]


def test_from_pretrained_offline_is_one_error(monkeypatch):
    def offline(*arguments, **options):
        raise FileNotFoundError("no network")

    monkeypatch.setattr("resnest_seg.models.segmenter.hf_hub_download", offline)
    with pytest.raises(DownloadError, match=r"'someone/model' is no folder, and no file model.safetensors"):
        Segmenter.from_pretrained("someone/model")


def test_activation_checkpointing_and_regularisation_reach_the_encoder():
    segmenter = build_segmenter("resnest14_tiny", head="fcn", checkpointing=True, drop_block=0.2, drop_path=0.3,
                                zero_gamma=True, rectify="rectify_avg")  # fmt: skip
    encoder = segmenter.encoder
    assert encoder.checkpointing
    assert encoder.layer4[0].drop_block1.p == 0.2
    assert encoder.layer4[0].drop_path.p == pytest.approx(0.3)
    assert not encoder.layer4[0].bn3.weight.any()
    assert encoder.conv1[0].average
    assert {build_segmenter("resnest14_tiny", head="fcn", dilation=name).encoder.dilation for name in DILATIONS} == set(
        DILATIONS
    )


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (61, 33)])
def test_features_are_the_encoders_of_normalised_images(output_stride, size):
    segmenter = used(build_segmenter("resnest14_tiny", "fcn", 3, output_stride=output_stride))
    images = torch.from_numpy(noise(2, 3, *size))
    with torch.inference_mode():
        features = segmenter.features(images)
        plain = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        by_hand = segmenter.encoder(plain)
        logits = segmenter.head(features)
        assert torch.equal(segmenter(images, coarse=True).logits, logits)
    strides = (4, 8, min(16, output_stride), output_stride)
    for feature, expected, stride, channels in zip(features, by_hand, strides, segmenter.encoder.channels, strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert torch.allclose(feature, expected, atol=1e-4)
    assert features.c4 is features[3]


def test_features_of_an_smp_encoder_are_the_last_four_of_padded_images():
    segmenter = used(build_segmenter("smp:resnet18", "fcn", 3, output_stride=32))
    images = torch.from_numpy(noise(1, 3, 40, 70))
    with torch.inference_mode():
        features = segmenter.features(images)
        padded = torch.nn.functional.pad(segmenter.normalise(images), (0, 96 - 70, 0, 64 - 40))
        expected = segmenter.encoder.encoder(padded)[-4:]
    assert [tuple(feature.shape[2:]) for feature in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert all(torch.equal(one, other) for one, other in zip(features, expected, strict=True))


def test_features_can_be_trained_and_warn_of_pixels_in_0_1():
    segmenter = build_segmenter("resnest14_tiny", "fcn", 3)
    segmenter.features(torch.from_numpy(noise(2, 3, 32, 32))).c4.sum().backward()
    assert segmenter.encoder.conv1[0].weight.grad is not None
    with pytest.warns(UserWarning, match=r"takes RGB 0\.\.255"):
        segmenter.features(torch.rand(2, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"images must have the shape \[N, 3, H, W\], not \[3, 32, 32\]"):
        segmenter.features(torch.zeros(3, 32, 32))
