"""The engine in torch: protocols against the originals' numbers and plain re-implementations; slabs; memory."""

import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plain_protocols
from support.reference import GOLDEN, reference_segmenter
from support.small_networks import MEAN, STD, full_size, local, network, photo

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.protocols import SCALES, Protocol, Setting, protocol, with_options
from resnest_seg.inference.torch_engine import (
    Runner,
    View,
    labels,
    multiscale,
    preload,
    probabilities,
    resized_columns,
    resized_rows,
    score_rows,
    scores,
    sliding_window,
    views_of,
    whole,
)
from resnest_seg.models.loading import build_segmenter

pytestmark = pytest.mark.slow


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


# The originals' numbers


def assert_golden(found, golden):
    values = found.flatten().numpy()[golden["idx"]]
    assert np.abs(values - golden["val"]).max() / np.abs(golden["val"]).max() < 1e-4
    assert (found.argmax(dim=0).numpy() == golden["pred"]).mean() > 0.999


@torch.inference_mode()
def test_encoding_gives_the_originals_scores():
    golden, model = np.load(GOLDEN / "ms_a.npz"), reference_segmenter("deeplab_resnest50")
    size = (1, 3, int(golden["h"]), int(golden["w"]))
    values = torch.from_numpy(np.random.RandomState(int(golden["seed"])).standard_normal(size).astype(np.float32))
    image = (values * model.pixel_std + model.pixel_mean)[0]
    crop = int(golden["crop_size"])
    method = protocol("encoding", setting=Setting(base_size=int(golden["base_size"]), crop=(crop, crop)))
    method = with_options(method, scales=[float(scale) for scale in golden["scales"]], flip=bool(golden["flip"]))
    found = {}

    def logits(images):  # asked for twice, and computed once
        key = images.numpy().tobytes()
        if key not in found:
            found[key] = model(images, coarse=True).logits
        return found[key].clone()

    run = Runner(logits)
    assert_golden(scores(run, image, method), golden)
    assert (labels(run, image, method).numpy() == golden["pred"]).mean() > 0.999


@torch.inference_mode()
def test_mmseg_gives_the_originals_scores():
    golden, model = np.load(GOLDEN / "mmseg_ms_fcn_city.npz"), reference_segmenter("mmseg_fcn_city")
    height, width = int(golden["h"]), int(golden["w"])
    blocks = np.random.RandomState(int(golden["seed"])).randint(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    image = np.kron(blocks.astype(np.uint8), np.ones((8, 8, 1), np.uint8))[:height, :width]
    run = Runner(lambda images: model(images, coarse=True).logits, align_corners=model.align_corners)
    method = with_options(protocol("mmseg"), scales=[float(scale) for scale in golden["scales"]])
    assert_golden(scores(run, torch.from_numpy(image).permute(2, 0, 1), method), golden)


# Plain re-implementations


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (30, 31), (96, 40), (20, 100), (1, 9)])
@pytest.mark.parametrize("flip", [True, False])
def test_encoding_equals_the_plain_loop(size, flip):
    image, fn = photo(*size), network()
    method = protocol("encoding", setting=Setting(base_size=64, crop=(48, 48)))
    ours = scores(Runner(fn), image, with_options(method, flip=flip))
    plain = plain_protocols.encoding(
        lambda x: full_size(fn, align_corners=True)(x * STD + MEAN),
        (image[None] - MEAN) / STD,
        base_size=64,
        crop_size=48,
        scales=SCALES,
        flip=flip,
    )
    assert_close(ours, plain[0])


@pytest.mark.parametrize("size", [(50, 70), (31, 30), (1, 9)])
def test_mmseg_equals_the_plain_loop(size):
    image, fn = photo(*size), network()
    ours = scores(Runner(fn, align_corners=False), image, protocol("mmseg"))
    plain = plain_protocols.mmseg(
        lambda x: full_size(fn, align_corners=False)(x * STD + MEAN), image.permute(1, 2, 0).numpy(), scales=SCALES
    )
    assert_close(ours, plain[0])


def test_mmseg0_is_mmseg_on_scales_of_a_canvas():
    image, fn = photo(60, 100), network()
    method = with_options(
        protocol("mmseg0", setting=Setting(recipe="mmseg", base_size=90, long_edge=200)), scales=(0.5, 1.0)
    )
    assert [method.size(60, 100, scale) for scale in method.scales] == [(45, 75), (90, 150)]
    views = []
    for height, width in ((45, 75), (90, 150)):
        resized = torch.from_numpy(cv2.resize(image.permute(1, 2, 0).numpy(), (width, height))).permute(2, 0, 1)[None]
        for flip in (False, True):
            logits = full_size(fn, align_corners=False)(resized.flip(3) if flip else resized)
            logits = logits.flip(3) if flip else logits
            views.append(F.interpolate(logits, size=(60, 100), mode="bilinear", align_corners=False).softmax(dim=1))
    assert_close(scores(Runner(fn, align_corners=False), image, method), (sum(views) / 4)[0])


def slide_plainly(fn, image, window, step):
    """mmsegmentation's slide mode: windows shifted inward, logits divided by counts."""
    height, width = image.shape[1:]
    tall, wide = min(window, height), min(window, width)
    total, count = 0, torch.zeros(height, width)
    for row in range(max(height - window + step - 1, 0) // step + 1):
        for column in range(max(width - window + step - 1, 0) // step + 1):
            bottom, right = min(row * step + window, height), min(column * step + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = fn(image[None, :, top:bottom, left:right])[0]
            total = total + F.pad(part, (left, width - left - wide, top, height - top - tall))
            count[top:bottom, left:right] += 1
    return total / count


@pytest.mark.parametrize("size", [(50, 70), (48, 48), (30, 100), (20, 20), (49, 111)])
def test_slide_equals_the_plain_loop(size):
    image, fn = photo(*size), network()
    ours = scores(Runner(fn), image, protocol("slide", setting=Setting(crop=(48, 48))))
    assert_close(ours, slide_plainly(full_size(fn, align_corners=True), image, 48, 32))


@pytest.mark.parametrize("window", [None, 48])
def test_paddle_averages_raw_logits(window):
    image, fn = photo(50, 70), network()
    method = with_options(protocol("paddle"), scales=(0.5, 1.5), window=window, overlap=window and 16)
    views = []
    for size in ((25, 35), (75, 105)):
        resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        for flip in (False, True):
            x, plain = resized.flip(2) if flip else resized, full_size(fn, align_corners=False)
            logits = slide_plainly(plain, x, window, 32)[None] if window else plain(x[None])
            logits = logits.flip(3) if flip else logits
            views.append(F.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=False)[0])
    assert_close(scores(Runner(fn, align_corners=False), image, method), sum(views) / 4)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.data())
def test_resized_rows_are_rows_of_the_resized_map(h, w, height, width, align_corners, data):
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first + 1, height))
    whole_map = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=align_corners)
    ours = resized_rows(x, (height, width), range(first, last), align_corners=align_corners)
    assert torch.allclose(ours, whole_map[:, :, first:last], atol=1e-5)
    rows = whole_map[:, :, first:last]
    for as_image in (False, True):  # a CPU's form and a GPU's
        columns = resized_columns(rows, w, align_corners=align_corners, as_image=as_image)
        plain = F.interpolate(rows, size=(last - first, w), mode="bilinear", align_corners=align_corners)
        assert torch.allclose(columns, plain, atol=1e-6)


# Laws


def test_whole_pads_with_black_to_the_stride_and_crops_back():
    seen = []

    def logits_fn(images):
        seen.append(images)
        return images.float()

    image = photo(13, 21)
    assert torch.equal(whole(logits_fn, image, stride=8), image.float())
    assert seen[0].shape == (1, 3, 16, 24)
    assert seen[0][0, :, 13:].max() == seen[0][0, :, :, 21:].max() == 0
    assert whole(logits_fn, photo(16, 24)).shape == (3, 16, 24)


BATCHED = [
    (whole, {"stride": 8}),
    (sliding_window, {"window": 24, "overlap": 8, "blend": "hann"}),
    (multiscale, {"scales": (0.75, 1.5)}),
    (multiscale, {"scales": (1.0, 1.25), "merge": "exp", "window": 24}),
    (multiscale, {"scales": (1.0,), "merge": "logits", "flip": False}),
]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize(("function", "options"), BATCHED)
def test_a_batch_gives_what_its_images_give_one_by_one(function, options, limit):
    fn, calls = network(), []

    def counted(images):
        calls.append(len(images))
        return fn(images)

    images = torch.stack([photo(30, 44), photo(30, 44).flip(-1), photo(30, 44).flip(1)])
    batch = {} if function is whole else {"batch": limit}
    together = function(counted, images, **options, **batch)
    shared = len(calls)
    single = [function(counted, image, **options, **batch) for image in images]
    assert together.shape == (3, *single[0].shape)
    for found, expected in zip(together, single, strict=True):
        assert_close(found, expected, 1e-5)
    assert (shared < len(calls) - shared) == ("batch" not in batch or limit is None)


@pytest.mark.parametrize("merge", ["logits", "softmax"])
def test_one_scale_without_flip_is_whole(merge):
    image, fn = photo(48, 64), network()
    expected = whole(fn, image)
    expected = expected.softmax(dim=0) if merge == "softmax" else expected
    assert_close(multiscale(fn, image, scales=[1.0], flip=False, merge=merge), expected, 1e-6)
    assert torch.equal(sliding_window(fn, image, window=64, overlap=0), whole(fn, image))


@pytest.mark.parametrize("name", ["whole", "slide", "mmseg", "paddle", "encoding"])
@pytest.mark.parametrize("coarse", [True, False])
def test_slabs_of_any_height_give_the_same_scores(name, coarse):
    image, fn = photo(50, 70), network()
    fn = fn if coarse else full_size(fn, align_corners=True)
    method = protocol(name, setting=Setting(base_size=64, crop=(48, 48)))
    at_once = list(score_rows(Runner(fn), image, method, slab_rows=50))
    assert [first for first, _ in at_once] == [0]
    for rows in (1, 7, 32):
        slabs = list(score_rows(Runner(fn), image, method, slab_rows=rows))
        assert [first for first, _ in slabs] == list(range(0, 50, rows))
        assert_close(torch.cat([slab for _, slab in slabs], dim=1), at_once[0][1], 1e-6)


def test_blended_tiles_equal_whole_for_a_function_of_small_view():
    """A window's outermost pixels lack their neighbours, and blending takes these from the window beside it."""
    image, blur = photo(100, 130), torch.ones(3, 1, 3, 3) / 9

    def fn(images):
        return F.conv2d(images.float(), blur, padding=1, groups=3)

    errors = {}
    for blend in ("none", "hann", "distance"):
        assert_close(sliding_window(local, image, window=40, overlap=24, blend=blend), local(image[None])[0], 1e-5)
        tiled = sliding_window(fn, image, window=40, overlap=24, blend=blend)
        errors[blend] = float((tiled - whole(fn, image))[:, 1:-1, 1:-1].abs().max())
    assert errors["hann"] < 1 < errors["distance"] < errors["none"] / 2  # grey levels


def test_windows_are_forgotten_once_they_lie_above():
    view = View(Runner(lambda images: images.float()), photo(400, 30), (400, 30),
                Protocol(window=(40, 40), step=(30, 30)))  # fmt: skip
    held = []
    for first in range(0, 400, 10):
        view.rows(first, first + 10)
        held.append(len(view._logits))
    assert max(held) == 2


# Numbers at their limits


@pytest.mark.parametrize("gain", [1, 100, 1000, 20000])
def test_exponentials_neither_overflow_nor_vanish(gain):
    image, fn = photo(50, 70), network(gain=gain)
    method = protocol("encoding", setting=Setting(base_size=64, crop=(48, 48)))
    found = scores(Runner(fn), image, method)
    assert found.isfinite().all()
    peak = fn(image[None]).abs().max() * 2
    assert found.dtype == (torch.float32 if peak < 80 else torch.float64)
    if peak < 300:  # what double precision can check plainly
        plain = plain_protocols.encoding(
            lambda x: full_size(fn, align_corners=True)(x * STD + MEAN).double(),
            (image[None] - MEAN) / STD, base_size=64, crop_size=48, scales=SCALES, flip=True)  # fmt: skip
        assert (found.argmax(dim=0) == plain[0].argmax(dim=0)).float().mean() > 0.999
    assert torch.allclose(probabilities(found, "exp").sum(dim=0), torch.ones(50, 70), atol=1e-5) or peak > 1400


@pytest.mark.parametrize("offset", [-70, -200, -5000, 5000])
def test_what_is_added_to_all_logits_changes_no_label(offset):
    """As for a softmax; in float32 the exponentials of all classes would vanish, or overflow, together."""
    image, fn = photo(50, 70), network()
    method = protocol("encoding", setting=Setting(base_size=64, crop=(48, 48)))
    moved = scores(Runner(lambda images: fn(images).double() + offset), image, method)
    assert moved.amax(dim=0).min() > 0
    assert moved.isfinite().all()
    assert (
        moved.argmax(dim=0) == labels(Runner(fn), image, method)
    ).float().mean() > 0.99  # float32 keeps 1e-4 of 5000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["whole", "encoding"])
def test_logits_that_are_no_numbers_are_refused(value, name):
    def broken(images):
        logits = network()(images)
        logits[0, 1, 0, 0] = value
        return logits

    with pytest.raises(CheckpointError, match="not all finite numbers"):
        labels(Runner(broken), photo(50, 70), protocol(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_accumulated_in_float32(dtype):
    image, fn = photo(50, 70), network(gain=20)
    for name in ("encoding", "mmseg", "paddle", "whole"):
        method = protocol(name, setting=Setting(base_size=64, crop=(48, 48)))
        found = scores(Runner(lambda images: fn(images).to(dtype)), image, method)
        rounded = scores(Runner(lambda images: fn(images).to(dtype).double()), image, method)
        assert found.dtype in (torch.float32, torch.float64)
        assert torch.equal(found, rounded)
        assert found.isfinite().all()


def test_a_batch_that_does_not_fit_is_halved_and_remembered():
    image, fn, sizes = photo(90, 120), network(), []

    def small_gpu(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fn(images)

    method = protocol("encoding", setting=Setting(base_size=128, crop=(48, 48)))
    run = Runner(small_gpu, batch=16)
    assert_close(scores(run, image, method), scores(Runner(fn, batch=1), image, method), 1e-5)
    assert max(sizes) > 3
    sizes.clear()
    scores(run, image, method)
    assert max(sizes) <= 3

    def no_gpu(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        scores(Runner(no_gpu), image, method)


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match="at least 1 image, not 0"):
        Runner(local, batch=0)


@pytest.mark.parametrize("shape", [(32, 40), (0, 3, 32, 40), (1, 1, 3, 32, 40)])
def test_what_is_neither_an_image_nor_a_batch_is_refused(shape):
    for function in (multiscale, sliding_window, whole):
        with pytest.raises(ConfigError, match=rf"not.* {re.escape(str(list(shape)))}"):
            function(network(), torch.zeros(shape))


# Views


class Lazy:
    """Pixels that are read by windows, as of a file; remembers which."""

    shape = (3, 100, 60)

    def __init__(self):
        self.pixels = torch.randint(0, 256, self.shape, dtype=torch.uint8)
        self.read = []

    def __getitem__(self, window):
        self.read.append((window[1].start, window[2].start))
        return self.pixels[window]


def test_windows_are_read_when_their_rows_are_asked_for():
    image = Lazy()
    (view,) = views_of(Runner(lambda images: images.float()), image, Protocol(window=(40, 40), step=(30, 30)))
    assert image.read == []
    assert torch.equal(view.rows(0, 10)[0], image.pixels[:, :10].float())
    assert set(image.read) == {(0, 0), (0, 20)}
    view.rows(30, 40)
    assert set(image.read[2:]) == {(30, 0), (30, 20)}


def test_the_mirrored_view_is_read_from_the_same_file():
    image = Lazy()
    method = Protocol(window=(40, 40), step=(30, 30), flip=True)
    (view,) = views_of(Runner(lambda images: images.float()), image, method)
    both = view.rows(0, 100)
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[0], image.pixels.float())


def test_windows_of_several_images_share_calls():
    calls = []

    def logits_fn(images):
        calls.append(len(images))
        return images.float()

    run, method = Runner(logits_fn, batch=100), Protocol(window=(40, 40), step=(30, 30))
    images = [torch.randint(0, 256, (3, 100, 60), dtype=torch.uint8) for _ in range(3)]
    groups = [views_of(run, image, method) for image in images]
    preload([view for group in groups for view in group])
    assert calls == [3 * 3 * 2]
    for image, (view,) in zip(images, groups, strict=True):
        assert torch.equal(view.rows(0, 100)[0], image.float())
    assert len(calls) == 1


def test_a_model_may_be_given_as_it_is_and_another_output_is_refused():
    segmenter = build_segmenter("resnest14_tiny", "fcn", 5).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        expected = segmenter(images).logits
        assert_close(whole(segmenter, images, align_corners=True), expected, 1e-5)
        assert multiscale(segmenter, images, scales=[1.0]).shape == (2, 5, 64, 64)
    for output, said in (({"out": expected}, "not dict"), (expected[0], r"not a tensor of shape \(5, 64, 64\)")):
        with pytest.raises(ConfigError, match=said):
            whole(lambda _, output=output: output, images)
