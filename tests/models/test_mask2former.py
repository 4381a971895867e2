"""Mask2Former against the transformers library, which builds the same network with random weights."""

import copy
import logging
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnest_seg.errors import ConfigError
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.inference.torch_engine import scores
from resnest_seg.models.conversion import from_mask2former, to_mask2former
from resnest_seg.models.loading import build_segmenter, load_checkpoint
from resnest_seg.models.mask2former import (
    MaskPrediction,
    SetLoss,
    packed,
    semantic_scores,
    unpacked,
)

pytestmark = pytest.mark.slow

CLASSES, POINTS = 7, 500


@pytest.fixture(scope="module")
def original():
    """Their network on ResNet-50, every weight random, also those that start at zero."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = Mask2FormerConfig(backbone_config=ResNetConfig(out_features=stages), num_labels=CLASSES)
    config.train_num_points = POINTS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights" in name:
                parameter.normal_(std=0.05)
            elif "pixel_level_module.encoder" not in name and parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def ours(original, tmp_path_factory):
    """What `load_checkpoint` makes of their weights."""
    path = tmp_path_factory.mktemp("weights") / "mask2former.pth"
    torch.save(original.state_dict(), path)
    segmenter = load_checkpoint(path)
    assert "resnet50 mmseg mask2former, output stride 32" in segmenter.description
    assert segmenter.num_classes == CLASSES
    return segmenter


def normalised(size, seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 96), (97, 130), (33, 47)])
def test_every_feature_query_and_mask_is_the_originals(size, original, ours):
    x = normalised(size)
    with torch.no_grad():
        theirs = original(x, output_auxiliary_logits=True, output_hidden_states=True)
        level = original.model.pixel_level_module(x, output_hidden_states=True)
        features = ours.encoder(x)
        mine, (mask_features, levels) = ours.head(features), ours.head.pixel_decoder(features[-4:])
    for found, expected in zip(levels, level.decoder_hidden_states, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(mask_features, level.decoder_last_hidden_state, atol=1e-4)
    last = {"masks_queries_logits": theirs.masks_queries_logits, "class_queries_logits": theirs.class_queries_logits}
    outputs = [*theirs.auxiliary_logits, last]
    assert len(outputs) == len(mine) == 10
    for found, expected in zip(mine, outputs, strict=True):
        assert torch.allclose(found.masks, expected["masks_queries_logits"], atol=1e-4)
        assert torch.allclose(found.classes, expected["class_queries_logits"], atol=1e-4)


def labels_of_three():
    """Labels [3, 64, 96]: three classes, none at all, and many with ignored pixels."""
    labels = torch.full((3, 64, 96), 255, dtype=torch.uint8)
    labels[0, :30], labels[0, 30:, :50], labels[0, 30:, 50:80] = 2, 5, 0
    coarse = torch.randint(0, CLASSES, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[2] = coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)
    labels[2, :9, :9] = 255
    return labels


def test_every_loss_and_gradient_is_the_originals_on_the_same_points(original, ours, monkeypatch):
    from transformers.models.mask2former import modeling_mask2former

    labels, x = labels_of_three(), torch.cat([normalised((64, 96)), normalised((64, 96), 1)[:1]])
    present = [classes[classes != 255].long() for classes in (image.unique() for image in labels)]
    masks = [(image == each.view(-1, 1, 1)).float() for image, each in zip(labels, present, strict=True)]
    drawn, uniform, generator = [], torch.rand, torch.Generator().manual_seed(3)

    def recorded(*shape, device=None):
        drawn.append(uniform(*shape, generator=generator, dtype=torch.float64))
        return drawn[-1]

    # In double precision, or rounding decides which points are the least sure.
    original, ours = copy.deepcopy(original).double(), copy.deepcopy(ours).double()
    masks, x = [mask.double() for mask in masks], x.double()
    theirs = original(x, output_auxiliary_logits=True)
    monkeypatch.setattr(modeling_mask2former.torch, "rand", recorded)
    losses = original.criterion(
        theirs.masks_queries_logits, theirs.class_queries_logits, masks, present, theirs.auxiliary_logits
    )
    monkeypatch.undo()

    # Theirs draws by output, the last one first: points of the matching of each image, then those of all masks.
    counts = [len(each) for each in present]
    queues, calls = {0: [None] * 10, 1: [None] * 10, 2: [None] * 10}, iter(drawn)
    for output in (9, *range(9)):
        matching = [next(calls)[0] for _ in labels]
        many, few = next(calls).split(counts), next(calls).split(counts)
        for image, points in enumerate(matching):
            of_masks = [many[image], few[image]] if counts[image] else []
            queues[image][output] = [points, *of_masks]
    queues = {image: iter([points for output in outputs for points in output]) for image, outputs in queues.items()}

    def draw(image, shape):
        points = next(queues[image])
        assert tuple(points.shape) == tuple(shape)
        return points

    loss = SetLoss(CLASSES, num_points=POINTS)
    total = loss.weight_of(labels, queries=100)
    assert total.tolist() == pytest.approx([sum(counts) + 0.1 * (300 - sum(counts)), sum(counts)])
    with torch.no_grad():
        features = ours.encoder(x)
    parts = loss.parts(ours.head(features), labels, total=total, draw=draw)
    names = ("loss_cross_entropy", "loss_mask", "loss_dice")
    expected = torch.stack([
        torch.stack([losses[name + suffix] for name in names]) for suffix in (*(f"_{n}" for n in range(9)), "")
    ])  # fmt: skip
    assert torch.allclose(parts, expected, atol=1e-6)

    weights = torch.tensor([2.0, 5.0, 5.0])
    (parts * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: value.grad for name, value in original.named_parameters() if value.grad is not None}
    named = from_mask2former(gradients, "transformers")
    for name, parameter in ours.head.named_parameters():
        assert torch.isfinite(parameter.grad).all()
        difference = (parameter.grad - named[f"head.{name}"]).abs().max()
        assert difference <= 1e-4 * named[f"head.{name}"].abs().max(), name


def test_losses_of_parts_add_up_to_that_of_the_whole(ours):
    """However the effective batch is divided, each image has its own points."""
    labels = labels_of_three()
    with torch.no_grad():
        predictions = ours.head(ours.encoder(torch.cat([normalised((64, 96)), normalised((64, 96), 1)[:1]])))

    def drawing(first):
        generators = [torch.Generator().manual_seed(first + image) for image in range(3)]
        return lambda image, shape: torch.rand(*shape, generator=generators[image])

    loss = SetLoss(CLASSES, num_points=POINTS)
    total = loss.weight_of(labels, queries=100)
    whole = loss(predictions, labels, total=total, draw=drawing(0))
    split = [
        loss([MaskPrediction(*(value[image : image + 1] for value in one)) for one in predictions],
             labels[image : image + 1], total=total, draw=drawing(image))
        for image in range(3)
    ]  # fmt: skip
    assert whole.item() == pytest.approx(sum(part.item() for part in split), rel=1e-6)
    assert torch.equal(total, torch.stack([loss.weight_of(image[None], queries=100) for image in labels]).sum(dim=0))


def test_a_batch_without_labels_has_finite_gradients_of_every_parameter(ours):
    ours.zero_grad()
    labels = torch.full((2, 64, 96), 255, dtype=torch.uint8)
    loss = SetLoss(CLASSES, num_points=POINTS)
    with torch.no_grad():
        features = ours.encoder(normalised((64, 96)))
    value = loss(ours.head(features), labels, total=loss.weight_of(labels, queries=100),
                 draw=lambda image, shape: torch.rand(*shape))  # fmt: skip
    value.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in ours.head.parameters())


@pytest.mark.parametrize("form", ["detectron2", "transformers"])
def test_names_are_translated_both_ways(form, original, ours):
    weights = ours.state_dict()
    theirs = to_mask2former(weights, form)
    back = from_mask2former(theirs, form)
    assert back.keys() == {key for key in weights if not key.startswith("pixel_")}
    assert all(torch.equal(back[key], weights[key]) for key in back)
    if form == "transformers":
        assert theirs.keys() == original.state_dict().keys() - {"criterion.empty_weight"}
    else:
        for key, shape in {
            "backbone.res4.5.conv2.norm.running_mean": [256],
            "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.self_attn.sampling_offsets.weight": [192, 256],
            "sem_seg_head.pixel_decoder.transformer.level_embed": [3, 256],
            "sem_seg_head.pixel_decoder.adapter_1.norm.weight": [256],
            "sem_seg_head.pixel_decoder.layer_1.weight": [256, 256, 3, 3],
            "sem_seg_head.predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_weight": [768, 256],
            "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.out_proj.bias": [256],
            "sem_seg_head.predictor.transformer_ffn_layers.3.linear1.weight": [2048, 256],
            "sem_seg_head.predictor.decoder_norm.weight": [256],
            "sem_seg_head.predictor.mask_embed.layers.2.weight": [256, 256],
            "sem_seg_head.predictor.class_embed.weight": [CLASSES + 1, 256],
        }.items():
            assert list(theirs[key].shape) == shape
        assert all(key.startswith(("backbone.", "sem_seg_head.")) for key in theirs)


@pytest.mark.long
@pytest.mark.parametrize("form", ["detectron2", "mmsegmentation"])
def test_files_of_others_are_recognised(form, ours, tmp_path):
    weights = {key: value for key, value in ours.state_dict().items() if not key.startswith("pixel_")}
    if form == "detectron2":
        weights = to_mask2former(weights, form)
    else:
        starts = {"encoder.": "backbone.", "head.": "decode_head."}
        weights = {starts[key.partition(".")[0] + "."] + key.partition(".")[2]: value for key, value in weights.items()}
    if form == "detectron2":  # which publishes arrays
        path = tmp_path / "file.pkl"
        path.write_bytes(
            pickle.dumps({"model": {key: value.numpy() for key, value in weights.items()}, "__author__": ""})
        )
    else:
        path = tmp_path / "file.pth"
        torch.save({"state_dict": weights}, path)
    loaded = load_checkpoint(path)
    assert loaded.description == ours.description
    assert loaded.load_report.format == ("Mask2Former" if form == "detectron2" else form)
    assert ("CC-BY-NC 4.0, not for commercial use" in str(loaded.load_report)) == (form == "detectron2")
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.fixture(scope="module", params=["deformable", "fpn"])
def small(request):
    torch.manual_seed(0)
    return build_segmenter("resnest14_tiny", head="mask2former", family="mmseg", num_classes=5, output_stride=32,
                           aux_head=False, pixel_decoder=request.param).eval()  # fmt: skip


def photo(height, width):
    return torch.from_numpy(np.random.default_rng(height * width).integers(0, 256, (3, height, width), dtype=np.uint8))


def plainly(segmenter, image):
    """Scores by the published formula: masks of the padded image at its size, all of them at once."""
    height, width = image.shape[1:]
    with torch.no_grad():
        classes, masks = segmenter.masks(image[None])[-1]
        size = (height + -height % 32, width + -width % 32)
        masks = torch.nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        found = torch.einsum("qk,qhw->khw", classes[0].softmax(-1)[:, :-1], masks[0].sigmoid())
    return found[:, :height, :width]


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 96), (31, 100)])
def test_slabs_of_rows_are_the_published_formula_at_any_size(size, small):
    image = photo(*size)
    expected = plainly(small, image)
    with torch.no_grad():
        full, coarse = small(image[None]), small(image[None], coarse=True)
    assert torch.allclose(full.logits[0].exp(), expected, rtol=1e-4)
    assert full.aux_logits is None
    assert coarse.logits.shape[1] == 5
    run = TorchBackend(small, RunOptions(fuse=False)).run
    for merge in ("logits", "exp"):
        with torch.no_grad():
            found = scores(run, image, Protocol("one view", padding="stride", merge=merge), memory=1)  # a row a time
        assert torch.allclose(found.exp() if merge == "logits" else found, expected, rtol=1e-4)


def test_windows_scales_and_flips_are_merged_as_probabilities(small):
    """The mean of the scores of all views, as in the originals; softmax gives each pixel's scores the sum 1 first."""
    image = photo(70, 90)
    run = TorchBackend(small, RunOptions(fuse=False)).run
    mirrored = plainly(small, image.flip(-1)).flip(-1)
    views = [plainly(small, image), mirrored]
    with torch.no_grad():
        summed = scores(run, image, Protocol("flip", flip=True, merge="exp"))
        mean = scores(run, image, Protocol("flip", flip=True, merge="softmax"))
    assert torch.allclose(summed, sum(views), rtol=1e-4)
    assert torch.allclose(mean, sum(view / view.sum(0) for view in views) / 2, rtol=1e-4)
    left, right = (plainly(small, image[:, :, part]) for part in (slice(0, 64), slice(26, 90)))
    with torch.no_grad():
        slid = scores(run, image, Protocol("windows", window=(70, 64), step=(70, 26), merge="exp"))
    both = slice(26, 64)
    assert torch.allclose(slid[:, :, :26], left[:, :, :26], rtol=1e-4)
    assert torch.allclose(slid[:, :, both], (left[:, :, both] + right[:, :, :38]) / 2, rtol=1e-4)


def test_the_post_processing_of_the_transformers_library_is_another_protocol():
    """It resizes masks to 384 x 384 before the sigmoid, whatever the image's size, and the scores after it."""
    from transformers import Mask2FormerImageProcessor

    generator = torch.Generator().manual_seed(0)
    classes, masks = (torch.randn(1, 20, *shape, generator=generator) for shape in ((6,), (120, 150)))
    output = SimpleNamespace(class_queries_logits=3 * classes, masks_queries_logits=9 * masks)
    (theirs,) = Mask2FormerImageProcessor().post_process_semantic_segmentation(output, target_sizes=[(480, 600)])
    resized = torch.nn.functional.interpolate(9 * masks, size=(384, 384), mode="bilinear", align_corners=False)
    squeezed = torch.nn.functional.interpolate(
        semantic_scores(3 * classes, resized), size=(480, 600), mode="bilinear", align_corners=False
    )
    assert torch.equal(theirs, squeezed[0].argmax(0))
    published = torch.nn.functional.interpolate(9 * masks, size=(480, 600), mode="bilinear", align_corners=False)
    assert (semantic_scores(3 * classes, published)[0].argmax(0) != theirs).float().mean() > 0.01


def test_packing_loses_nothing():
    prediction = MaskPrediction(torch.randn(2, 3, 12), torch.randn(2, 3, 4, 5))
    assert all(torch.equal(*pair) for pair in zip(unpacked(packed(prediction), 11), prediction, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_stride": 8}, "needs model.output_stride 32, not 8"),
        ({"aux_head": True}, "needs model.aux_head False, not True"),
        ({"family": "encoding"}, "exists in family 'mmseg' only"),
        ({"pixel_decoder": "deformabel"}, "Did you mean 'deformable'"),
        ({"task": "multilabel"}, "needs model.task 'multiclass'"),
        ({"head": "fcn", "pixel_decoder": "fpn"}, "head fcn has none"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    options = {"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False} | changes
    with pytest.raises(ConfigError, match=message):
        build_segmenter("resnest14_tiny", num_classes=5, **options)


def test_an_encoder_of_smp_gets_gradients_wherever_the_head_reads_it():
    segmenter = build_segmenter("smp:resnet18", head="mask2former", family="mmseg", num_classes=4, output_stride=32,
                                aux_head=False, pixel_decoder="fpn")  # fmt: skip
    assert segmenter(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 4, 64, 64)
    assert all(parameter.requires_grad for parameter in segmenter.parameters())
