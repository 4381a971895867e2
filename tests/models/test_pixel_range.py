"""Float images in 0..1 are warned of once, wherever they enter; nothing else is, and nothing is looked at twice."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.predictor import Predictor
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.inference.torch_engine import multiscale
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.pixel_range import PixelRange

pytestmark = pytest.mark.slow

RANGE = r"the images are floats from \S+ to \S+, and this model takes RGB 0\.\.255.*Multiply images in 0\.\.1 by 255"


@pytest.fixture
def segmenter(tiny_space):
    torch.manual_seed(0)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).eval()
    segmenter.label_space = tiny_space
    return segmenter


def pixels(*size):
    return torch.randint(2, 256, size, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_images_in_0_to_1_are_warned_of_once(kind):
    known, images = PixelRange(), (pixels(1, 3, 8, 8) / 255).to(kind)
    with pytest.warns(UserWarning, match=RANGE) as caught:
        known.check(images)
    assert len(caught) == 1
    known.check(images)
    assert f"to {float(images.max()):.4g}," in str(caught[0].message)


@pytest.mark.parametrize(
    "images",
    [
        pixels(1, 3, 8, 8),  # integers are 0..255
        pixels(1, 3, 8, 8).float(),
        pixels(1, 3, 8, 8) - 128.0,
        torch.zeros(1, 3, 8, 8),
        torch.tensor([0.0, 1.0]).expand(3, 2),  # a photo with the lid on
        torch.ones(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8),
        torch.rand(1, 3, 8, 8, device="meta"),
    ],
)
def test_other_images_are_not(images):
    PixelRange().check(images)  # a warning is an error here


def test_black_images_settle_nothing_and_bright_ones_all():
    known = PixelRange()
    known.check(torch.zeros(3, 8, 8))
    with pytest.warns(UserWarning, match=RANGE):
        known.check(torch.full((3, 8, 8), 0.5))
    known = PixelRange()
    known.check(torch.full((3, 8, 8), 1.5))
    known.check(torch.full((3, 8, 8), 0.5))


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_settled_range_computes_nothing():
    """Each value that is read would make a GPU wait."""
    known, images = PixelRange(), pixels(3, 8, 8).float()
    with Operations() as operations:
        known.check(images.to(torch.uint8))
        integers = operations.count
        known.check(images)
        looked = operations.count
        known.check(images)
    assert integers == 1  # the conversion
    assert integers < looked == operations.count


def test_a_model_warns_once_in_eval_and_training(segmenter):
    images = pixels(2, 3, 32, 40) / 255
    for mode in (False, True):
        model = copy.deepcopy(segmenter).train(mode)
        with pytest.warns(UserWarning, match=RANGE) as caught:
            model(images, coarse=mode)
        assert len(caught) == 1
        model(images)


def test_a_function_to_logits_warns_by_its_model(segmenter):
    with pytest.warns(UserWarning, match=RANGE), torch.inference_mode():
        multiscale(lambda images: segmenter(images, coarse=True).logits, pixels(3, 40, 40) / 255, scales=(1.0,))


class Floats(SegmentationDataset):
    split = "train"

    def __init__(self, space, values):
        self.label_space, self.values = space, values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return Sample(self.values[index], np.zeros((40, 48), np.uint8), f"sample {index}")


@pytest.mark.parametrize("protocol", ["whole", "encoding"])
def test_an_evaluation_warns_once(protocol, segmenter, tiny_space):
    photos = [pixels(40, 48, 3).numpy() for _ in range(2)]
    small = Floats(tiny_space, [(photo / 255).astype(np.float32) for photo in photos])
    with pytest.warns(UserWarning, match=RANGE) as caught:
        evaluate(copy.deepcopy(segmenter), small, protocols=[protocol])
    assert len(caught) == 1
    as_float = Floats(tiny_space, [photo.astype(np.float32) for photo in photos])
    assert evaluate(segmenter, as_float).scores == evaluate(segmenter, Floats(tiny_space, photos)).scores


def test_a_nearly_black_photo_is_no_mistake_at_any_scale(segmenter, tiny_space):
    """Resized as floats, its pixels of 0 and 1 become values between."""
    black = Floats(tiny_space, [np.random.default_rng(0).integers(0, 2, (40, 48, 3), dtype=np.uint8)])
    evaluate(segmenter, black, protocols=["encoding"])
    with pytest.warns(UserWarning, match=RANGE):  # and nothing is settled by it
        segmenter(pixels(1, 3, 32, 32) / 255)


def test_arrays_of_floats_are_warned_of_by_predictors(segmenter):
    predictor = Predictor(segmenter, device="cpu")
    with pytest.warns(UserWarning, match=RANGE):
        predictor(np.full((8, 8, 3), 0.5))


def test_what_has_no_values_is_left_alone(segmenter):
    images = pixels(1, 3, 32, 32) / 255
    program = torch.export.export(segmenter, (images,))
    assert not any("aminmax" in str(node.target) for node in program.graph.nodes)
    compiled = torch.compile(segmenter, backend="eager", fullgraph=True)
    compiled(images)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        segmenter(mode.from_tensor(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        torch.jit.trace(lambda traced: (segmenter.pixel_range.check(traced), traced + 1)[1], images, check_trace=False)
    with pytest.warns(UserWarning, match=RANGE):  # and after all that it still sees
        segmenter(images)


def test_a_model_behind_a_runner_looks_at_the_image_and_not_at_its_views(segmenter):
    backend = TorchBackend(segmenter, RunOptions("cpu", fuse=False))
    with pytest.warns(UserWarning, match=RANGE) as caught:
        list(backend.blocks((pixels(40, 48, 3) / 255).numpy(), backend.protocol("mmseg")))
    assert len(caught) == 1
