"""Our encoders under torchvision's detectors, and the files of detectron2-ResNeSt."""

import io
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import resnest_seg
from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.detection import DetectionBackbone, detection_backbone
from resnest_seg.models.loading import build_encoder, load_checkpoint
from resnest_seg.models.resnest import SPECS, ResNeSt

TINY = "resnest14_tiny"
SIZE = (64, 96)


def settle(module):
    """Give batch norms statistics and weights that matter."""
    generator = torch.Generator().manual_seed(1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.copy_(0.1 * torch.randn(each.num_features, generator=generator))
            each.running_var.copy_(0.5 + torch.rand(each.num_features, generator=generator))
            with torch.no_grad():
                each.weight.copy_(0.5 + torch.rand(each.num_features, generator=generator))
    return module


def saved(weights, path, *, key=None):
    torch.save(weights if key is None else {key: weights, "iteration": 90000}, path)
    return path


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A segmentation checkpoint of ours, at output stride 8."""
    torch.manual_seed(3)
    model = settle(resnest_seg.build_segmenter(TINY, head="fcn", num_classes=4)).eval()
    path = tmp_path_factory.mktemp("detection [1] ü") / "best.safetensors"
    model.to_checkpoint().save(path)
    return path


def plain_pyramid(pyramid, features):
    """Lin et al.: 1x1 convolutions, added from coarse to fine, then 3x3 convolutions and a pool."""
    lateral = [block(feature) for block, feature in zip(pyramid.inner_blocks, features, strict=True)]
    for level in range(len(lateral) - 2, -1, -1):
        lateral[level] = lateral[level] + F.interpolate(lateral[level + 1], lateral[level].shape[2:], mode="nearest")
    found = [block(feature) for block, feature in zip(pyramid.layer_blocks, lateral, strict=True)]
    return [*found, found[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize("encoder", [TINY, "resnet50", "smp:resnet18"])
def test_levels_are_a_pyramid_of_the_encoders_features_at_stride_32(encoder, images):
    torch.manual_seed(0)
    backbone = detection_backbone(encoder, channels=8).eval()
    levels = backbone(images)
    assert type(levels) is OrderedDict
    assert list(levels) == ["0", "1", "2", "3", "pool"]
    assert [tuple(level.shape[1:]) for level in levels.values()] == [(8, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [
        (8, 1, 2)
    ]
    assert backbone.out_channels == 8
    alone = build_encoder(encoder, output_stride=32).eval()
    alone.load_state_dict(backbone.encoder.state_dict())
    for mine, plain in zip(levels.values(), plain_pyramid(backbone.pyramid, alone(images)[-4:]), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_returned_stages_and_extra_blocks_are_torchvisions(images):
    backbone = detection_backbone(TINY, channels=8, returned_stages=(2, 3, 4), extra_block="p6p7")
    assert list(backbone(images)) == ["0", "1", "2", "p6", "p7"]
    assert isinstance(backbone.pyramid.extra_blocks, LastLevelP6P7)
    short = detection_backbone(TINY, channels=8, returned_stages=[1, 3], extra_block=None)
    assert [tuple(level.shape[2:]) for level in short(images).values()] == [(16, 24), (4, 6)]
    assert not [name for name, _ in short.named_parameters() if "layer4" in name]  # what nothing reads is left out
    assert list(detection_backbone(TINY, channels=8, extra_block=LastLevelMaxPool())(images))[-1] == "pool"
    norms = list(detection_backbone(TINY, pyramid_norms=True).pyramid.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in norms) == 8


def trained_parts(backbone):
    return {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        (4, {"layer1", "layer2", "layer3", "layer4"}),
        (3, {"layer2", "layer3", "layer4"}),
        (1, {"layer4"}),
        (0, set()),
    ],
)
def test_stages_are_frozen_with_their_norms_as_torchvision_counts_them(trainable, parts, images):
    backbone = detection_backbone(TINY, trainable_stages=trainable, frozen_norms=False)
    assert trained_parts(backbone) == parts | {"inner_blocks", "layer_blocks"}
    norms = {name.split(".")[0] for name, m in backbone.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == parts | ({"conv1"} if trainable == 5 else set())
    before = {key: value.clone() for key, value in backbone.encoder.state_dict().items()}
    backbone.train()(images)
    after = backbone.encoder.state_dict()
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(before[key], value)}
    assert changed == norms


def test_stages_of_other_encoders_are_found_by_what_features_depend_on():
    backbone = detection_backbone("smp:resnet18", trainable_stages=2, frozen_norms=False)
    trained = {name.split(".")[2] for name, p in backbone.encoder.named_parameters() if p.requires_grad and "." in name}
    names = {name.split(".")[1] for name, p in backbone.encoder.named_parameters() if p.requires_grad}
    assert names == {"layer3", "layer4"}, trained
    whole = detection_backbone("smp:tu-mobilenetv3_small_100", trainable_stages=5)
    unread = [name for name, parameter in whole.encoder.named_parameters() if not parameter.requires_grad]
    features = whole.encoder(torch.zeros(2, 3, 64, 64))[-4:]
    sum(feature.sum() for feature in features).backward()
    assert unread == [name for name, parameter in whole.encoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("encoder", [TINY, "smp:tu-mobilenetv3_small_100"])
def test_frozen_norms_compute_what_norms_in_eval_mode_do_and_stay(encoder, images):
    """timm's norms contain an activation."""
    torch.manual_seed(0)
    free = detection_backbone(encoder, channels=8)
    settle(free.encoder)
    torch.manual_seed(0)
    frozen = detection_backbone(encoder, channels=8, frozen_norms=True)
    weights = {key: value for key, value in free.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert not [m for m in frozen.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen.load_state_dict(weights)
    expected = free.eval()(images)
    for level, value in frozen.train()(images).items():  # in training mode, too
        torch.testing.assert_close(value, expected[level], rtol=1e-4, atol=1e-5)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, weights[key])


def test_without_weights_everything_is_trained_and_with_them_three_stages_are(checkpoint):
    fresh, loaded = detection_backbone(TINY), detection_backbone(TINY, weights=checkpoint)
    assert {"conv1", "layer1"} <= trained_parts(fresh)
    assert any(isinstance(module, nn.BatchNorm2d) for module in fresh.modules())
    assert trained_parts(loaded) == {"layer2", "layer3", "layer4", "inner_blocks", "layer_blocks"}
    assert not [module for module in loaded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert any(isinstance(module, FrozenBatchNorm2d) for module in loaded.modules())


def test_a_state_dict_goes_round(images):
    torch.manual_seed(0)
    first = detection_backbone(TINY, frozen_norms=True, channels=8)
    torch.manual_seed(9)
    second = detection_backbone(TINY, frozen_norms=True, channels=8)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for mine, other in zip(first(images).values(), second(images).values(), strict=True):
        assert torch.equal(mine, other)


# ---------------------------------------------------------------------------------------------------- weights


def test_the_encoder_of_a_checkpoint_of_ours_is_loaded_with_its_statistics(checkpoint, images, tmp_path):
    model = load_checkpoint(checkpoint)
    backbone = detection_backbone(TINY, weights=checkpoint, channels=8).eval()
    alone = ResNeSt(ModelConfig(TINY, output_stride=32)).eval()
    alone.load_state_dict(model.encoder.state_dict())
    for mine, other in zip(backbone.encoder(images), alone(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert backbone.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert backbone.image_std == pytest.approx((0.229, 0.224, 0.225))
    skipped = {name.split(".")[0] for name, _ in backbone.load_report.skipped}
    assert {"head", "aux_head"} <= skipped
    assert "encoder" not in skipped
    assert backbone.load_report.loaded == len(alone.state_dict())
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(checkpoint.read_bytes())
    again = detection_backbone(TINY, weights=run, channels=8)
    assert torch.equal(again.encoder.conv1[0].weight, backbone.encoder.conv1[0].weight)
    model.pixel_mean.fill_(0.25 * 255)
    model.to_checkpoint().save(tmp_path / "own.safetensors")
    assert detection_backbone(TINY, weights=tmp_path / "own.safetensors").image_mean == pytest.approx((0.25,) * 3)


def test_an_imagenet_file_loads(tmp_path):
    encoder = settle(ResNeSt(ModelConfig(TINY, output_stride=32)))
    weights = {**encoder.state_dict(), "fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    backbone = detection_backbone(TINY, weights=saved(weights, tmp_path / "resnest14-0123.pth"))
    for key, value in backbone.encoder.state_dict().items():
        assert torch.equal(value, weights[key])


def test_a_checkpoint_with_an_encoder_of_smp_loads(tmp_path, images):
    torch.manual_seed(0)
    model = settle(resnest_seg.build_segmenter("smp:resnet18", head="smp:fpn", num_classes=3, output_stride=32))
    model.eval().to_checkpoint().save(tmp_path / "smp.safetensors")
    backbone = detection_backbone("smp:resnet18", weights=tmp_path / "smp.safetensors").eval()
    for mine, other in zip(backbone.encoder(images), model.encoder(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


class Conv(nn.Conv2d):
    """detectron2's convolution: with its norm as a child."""

    def __init__(self, *sizes, bias=False, **options):
        super().__init__(*sizes, bias=bias, **options)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class Splat(nn.Module):
    """Split attention with two splits in one group, written out."""

    def __init__(self, width):
        super().__init__()
        inner = max(width // 2, 32)
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2, bias=False)
        self.bn0, self.bn1 = nn.BatchNorm2d(2 * width), nn.BatchNorm2d(inner)
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, 2 * width, 1)

    def forward(self, x):
        first, second = F.relu(self.bn0(self.conv(x))).chunk(2, dim=1)
        scores = self.fc2(F.relu(self.bn1(self.fc1(F.adaptive_avg_pool2d(first + second, 1)))))
        a, b = scores.chunk(2, dim=1)
        share = torch.sigmoid(a - b)  # the softmax of two
        return share * first + (1 - share) * second


class Block(nn.Module):
    def __init__(self, channels, out, width, stride):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(channels, width, 1), Splat(width), Conv(width, out, 1)
        self.shortcut = Conv(channels, out, 1) if channels != out else None
        self.stride = stride

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        if self.stride > 1:
            y = F.avg_pool2d(y, 3, self.stride, padding=1)
        short = x
        if self.shortcut is not None:
            if self.stride > 1:
                short = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
            short = self.shortcut(short)
        return F.relu(self.conv3(y) + short)


class Detectron2(nn.Module):
    """The feature pyramid of detectron2-ResNeSt on a ResNeSt of the widths of ours, built from its definition."""

    def __init__(self, encoder, channels):
        super().__init__()
        spec = SPECS[encoder]
        stem, out = nn.Module(), 4 * spec.planes
        stem.conv1_1 = Conv(3, spec.stem_width, 3, stride=2, padding=1)
        stem.conv1_2 = Conv(spec.stem_width, spec.stem_width, 3, padding=1)
        stem.conv1_3 = Conv(spec.stem_width, 2 * spec.stem_width, 3, padding=1)
        self.bottom_up = nn.Module()
        self.bottom_up.stem, width = stem, 2 * spec.stem_width
        for stage in range(4):
            blocks = []
            for place in range(spec.depths[stage]):
                stride = 2 if place == 0 and stage else 1
                blocks.append(Block(width, out * 2**stage, spec.planes * 2**stage, stride))
                width = out * 2**stage
            self.bottom_up.add_module(f"res{stage + 2}", nn.Sequential(*blocks))
            self.add_module(f"fpn_lateral{stage + 2}", Conv(width, channels, 1))
            self.add_module(f"fpn_output{stage + 2}", Conv(channels, channels, 3, padding=1))

    def stages(self, x):
        stem, found = self.bottom_up.stem, []
        for conv in (stem.conv1_1, stem.conv1_2, stem.conv1_3):
            x = F.relu(conv(x))
        x = F.max_pool2d(x, 3, 2, padding=1)
        for stage in (2, 3, 4, 5):
            x = getattr(self.bottom_up, f"res{stage}")(x)
            found.append(x)
        return found

    def forward(self, x):
        above, found = None, []
        for stage, feature in zip((5, 4, 3, 2), self.stages(x)[::-1], strict=True):
            lateral = getattr(self, f"fpn_lateral{stage}")(feature)
            above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2, mode="nearest")
            found.insert(0, getattr(self, f"fpn_output{stage}")(above))
        return [*found, F.max_pool2d(found[-1], kernel_size=1, stride=2)]


@pytest.fixture(scope="module")
def theirs():
    """Two blocks in one stage, so that one has no shortcut."""
    torch.manual_seed(5)
    return settle(Detectron2("resnest26", 8)).eval()


def test_a_detector_of_detectron2_resnest_gives_its_levels(theirs, images, tmp_path):
    weights = {f"backbone.{key}": value for key, value in theirs.state_dict().items()}
    weights |= {"proposal_generator.rpn_head.conv.weight": torch.zeros(8, 8, 3, 3),
                "roi_heads.box_head.fc1.weight": torch.zeros(2, 2)}  # fmt: skip
    path = saved(weights, tmp_path / "faster_rcnn_ResNeSt.pth", key="model")
    backbone = detection_backbone("resnest26", weights=path, channels=8, pyramid_norms=True).eval()
    assert backbone.load_report.format == "detectron2"
    for mine, other in zip(backbone(images).values(), theirs(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert backbone.image_mean == pytest.approx((123.68 / 255, 116.779 / 255, 103.939 / 255))
    assert "part of the detector" in str(backbone.load_report)
    other = detection_backbone("resnest26", weights=path, channels=8, pyramid_norms=False)
    assert "the file's pyramid, with norms, is another than this one" in str(other.load_report)
    coarse = detection_backbone("resnest26", weights=path, channels=8, pyramid_norms=True, returned_stages=(2, 3, 4))
    for mine, expected in zip(list(coarse.eval()(images).values())[1:3], theirs(images)[2:4], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "bottom_up.", "backbone.bottom_up."])
def test_a_backbone_of_detectron2_resnest_loads_also_for_segmentation(prefix, theirs, images, tmp_path):
    weights = {prefix + key: value for key, value in theirs.bottom_up.state_dict().items()}
    path = saved(weights, tmp_path / "resnest26_detectron.pth")
    backbone = detection_backbone("resnest26", weights=path, channels=8).eval()
    for mine, other in zip(backbone.encoder(images), theirs.stages(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    encoder = build_encoder("resnest26", output_stride=32, encoder_weights=str(path)).eval()
    torch.testing.assert_close(encoder(images)[-1], theirs.stages(images)[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"no known head .* pass the file as encoder_weights"):
        load_checkpoint(path)


def test_files_that_would_mean_another_network_are_refused(theirs, tmp_path):
    weights = {f"backbone.bottom_up.{key}": value for key, value in theirs.bottom_up.state_dict().items()}
    path = saved(weights, tmp_path / "some.pth")
    with pytest.raises(CheckpointError, match=r"some\.pth does not hold the weights of this encoder: missing layer"):
        detection_backbone("resnest50", weights=path)
    offset = {"backbone.bottom_up.res3.0.conv2_offset.weight": torch.zeros(18, 8, 3, 3)}
    with pytest.raises(
        CheckpointError, match=r"dcn\.pth: its network has deformable convolutions .*res3\.0\.conv2_off"
    ):
        detection_backbone("resnest26", weights=saved(weights | offset, tmp_path / "dcn.pth"))
    plain = {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(CheckpointError, match=r"plain ResNet of detectron2.* torchvision"):
        detection_backbone("resnet50", weights=saved(plain, tmp_path / "R-50.pth"))
    key = "backbone.bottom_up.res2.0.conv1.weight"
    with pytest.raises(CheckpointError, match=r"are not finite"):
        detection_backbone("resnest26", weights=saved(weights | {key: weights[key] * np.nan}, tmp_path / "nan.pth"))


def test_detectron2s_resnest50_is_not_the_fast_one(tmp_path):
    """Their keys and shapes are equal; detectron2-ResNeSt pools after split attention."""
    names = Detectron2("resnest50", 8).bottom_up.state_dict()
    path = saved(names, tmp_path / "faster_rcnn_ResNeSt_50_FPN.pth")
    with pytest.raises(
        CheckpointError, match="weights of encoder 'resnest50', and this model has encoder 'resnest50_f"
    ):
        detection_backbone("resnest50_fast_2s1x64d", weights=path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoder": "resnest51"}, "unknown encoder 'resnest51'. Did you mean 'resnest50'"),
        ({"trainable_stages": 6}, "trainable_stages must be a whole number from 0 to 5, not 6"),
        ({"trainable_stages": True}, "trainable_stages must be a whole number, not True"),
        ({"returned_stages": (2, 1)}, r"returned_stages must be some of 1, 2, 3, 4, ascending, not \(2, 1\)"),
        ({"returned_stages": ()}, "returned_stages must be some of"),
        ({"returned_stages": (0, 1)}, "returned_stages must be some of"),
        ({"channels": 0}, "channels must be a whole number at least 1, not 0"),
        ({"extra_block": "pol"}, "unknown extra_block 'pol'. Did you mean 'pool'"),
        ({"weights": True}, "Give 'imagenet'"),
        ({"weights": "imagnet"}, "no such file, run folder or name"),
        ({"weights": "a" * 5000}, "weights 'a+' cannot be read: File name too long"),
    ],
)
def test_what_a_person_may_get_wrong(options, says):
    with pytest.raises(ConfigError, match=says):
        detection_backbone(**{"encoder": TINY} | options)


# ---------------------------------------------------------------------------------------------- torchvision's


def faster(backbone, **options):
    return FasterRCNN(
        backbone, 3, min_size=64, max_size=96, image_mean=backbone.image_mean, image_std=backbone.image_std,
        rpn_post_nms_top_n_train=64, rpn_post_nms_top_n_test=64, box_detections_per_img=10,
        box_batch_size_per_image=32, **options,
    )  # fmt: skip


def mask(backbone):
    return MaskRCNN(
        backbone, 3, min_size=64, max_size=96, rpn_post_nms_top_n_train=64, rpn_post_nms_top_n_test=64,
        box_detections_per_img=10, box_batch_size_per_image=32,
    )  # fmt: skip


def retina(backbone):
    anchors = AnchorGenerator(tuple((side,) for side in (16, 24, 32, 48, 64)), ((0.5, 1.0, 2.0),) * 5)
    return RetinaNet(backbone, 3, min_size=64, max_size=96, anchor_generator=anchors)


def targets():
    boxes = torch.tensor([[4.0, 8.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0]])
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    for each, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        each[top:bottom, left:right] = 1
    return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks} for _ in range(2)]


@pytest.mark.parametrize(("kind", "frozen"), [("faster", False), ("faster", True), ("mask", True), ("retina", False)])
def test_a_detector_of_torchvision_trains(kind, frozen):
    """The same two images: some steps must lower the loss, and what is frozen must keep its values."""
    torch.manual_seed(0)
    extra = {"returned_stages": (2, 3, 4), "extra_block": "p6p7"} if kind == "retina" else {}
    backbone = detection_backbone(TINY, channels=16, frozen_norms=frozen, trainable_stages=3, **extra)
    detector = {"faster": faster, "mask": mask, "retina": retina}[kind](backbone).train()
    images = list(torch.rand(2, 3, *SIZE))
    before = {key: value.clone() for key, value in backbone.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)  # the same sampled proposals
        loss = sum(detector(images, targets()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    for key, value in backbone.encoder.state_dict().items():
        if key.startswith(("conv1.", "bn1.", "layer1.")) or (frozen and "running" in key):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(backbone.encoder.layer4[0].conv1.weight, before["layer4.0.conv1.weight"])
    found = detector.eval()(images)
    assert {"boxes", "labels", "scores"} <= set(found[0])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_boxes_and_masks_export_to_onnx_as_torchvisions_do(kind, tmp_path):
    """By the exporter that traces: torchvision's detectors ask tensors for their values, which the other cannot."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    detector = {"faster": faster, "mask": mask}[kind](detection_backbone(TINY, channels=16, frozen_norms=True)).eval()
    path = tmp_path / "detector.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about torchvision
        torch.onnx.export(
            detector, ([torch.rand(3, *SIZE)],), path, opset_version=17, dynamo=False, input_names=["image"],
            dynamic_axes={"image": {1: "height", 2: "width"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (SIZE, (96, 64)):
        image = torch.rand(3, *size)
        with torch.inference_mode():
            expected = detector([image])[0]
        found = session.run(None, {"image": image.numpy()})
        assert len(expected["boxes"]) > 0
        for value, name in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


def test_it_is_public_and_has_torchvisions_pyramid():
    backbone = resnest_seg.detection_backbone(TINY)
    assert isinstance(backbone, DetectionBackbone)
    assert isinstance(backbone.pyramid, FeaturePyramidNetwork)
