"""Distillation's losses against torch's plain forms, and the places at which maps of different sizes are compared."""

import pytest
import torch
import torch.nn.functional as F

from resnest_seg.teachers import distillation
from resnest_seg.teachers.distillation import divergence
from resnest_seg.teachers.teacher import Grid, at_places


def plain(logits, teachers, *, over, temperature):
    """The published forms: F.kl_div of a log_softmax over classes, or over the pixels of each channel."""
    dim = {"classes": 1, "pixels": 2, "labels": 3}[over]

    def scores(values):
        values = values.flatten(2) / temperature
        return torch.stack([values, torch.zeros_like(values)], dim=3) if over == "labels" else values

    target = torch.stack([scores(each).softmax(dim) for each in teachers]).mean(dim=0)
    total = F.kl_div(scores(logits).log_softmax(dim), target, reduction="sum") * temperature**2
    _, classes, height, width = logits.shape
    return total / {"classes": height * width, "pixels": classes, "labels": height * width * classes}[over]


def maps(*shape, count=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(*shape, generator=random) for _ in range(count)]


@pytest.mark.parametrize("over", ["classes", "pixels", "labels"])
@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize("chunk", [1, 50, 2**22])
def test_divergence_and_its_gradient_are_those_of_the_plain_form(monkeypatch, over, teachers, chunk):
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    logits, *said = maps(3, 5, 6, 7, count=1 + teachers)
    found = []
    for form in (plain, divergence):
        leaf = logits.clone().to(memory_format=torch.channels_last).requires_grad_()
        value = form(leaf, said, over=over, temperature=2.5)
        (2 * value).backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])
    assert found[0][0] > 0.1


@pytest.mark.parametrize("over", ["classes", "pixels", "labels"])
def test_a_teacher_of_the_same_opinion_teaches_nothing(over):
    (logits,) = maps(2, 4, 3, 5)
    leaf = logits.requires_grad_()
    value = divergence(leaf, [logits.detach()], over=over, temperature=4.0)
    value.backward()
    assert value == 0
    assert not leaf.grad.any()


@pytest.mark.parametrize("over", ["classes", "pixels", "labels"])
def test_equal_teachers_are_one(over):
    logits, teacher = maps(2, 4, 3, 5, count=2)
    one, three = (divergence(logits, [teacher] * count, over=over, temperature=1.0) for count in (1, 3))
    torch.testing.assert_close(one, three)


@pytest.mark.parametrize("over", ["classes", "pixels"])
def test_logits_in_half_precision_are_compared_in_float32(over):
    logits, teacher = maps(2, 4, 6, 6, count=2)
    leaf = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = divergence(leaf, [teacher], over=over, temperature=1.0)
    value.backward()
    exact = leaf.detach().float().requires_grad_()
    expected = divergence(exact, [teacher], over=over, temperature=1.0)
    expected.backward()
    assert value.dtype == torch.float32
    assert value == expected
    assert torch.equal(leaf.grad, exact.grad.bfloat16())


def test_an_extreme_teacher_gives_finite_numbers():
    logits = torch.tensor([[[[300.0, -300.0]], [[-300.0, 300.0]]]], requires_grad=True)
    for over in ("classes", "pixels", "labels"):
        value = divergence(logits, [-logits.detach()], over=over, temperature=1.0)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("small", "large"), [((5, 7), (33, 49)), ((1, 1), (4, 6)), ((6, 4), (6, 4)), ((1, 3), (2, 9))])
def test_the_places_of_pixels_are_those_of_interpolate(align_corners, small, large):
    (logits,) = maps(2, 3, *small)
    expected = F.interpolate(logits, large, mode="bilinear", align_corners=align_corners)
    own = Grid.of(logits, large, align_corners=align_corners)
    for convention in (True, False):  # on pixels they are one
        torch.testing.assert_close(at_places(logits, own, Grid(*large, convention, large)), expected)


def test_enlarged_logits_come_back_as_they_were():
    """With aligned corners, where the places lie on pixels: 63 / 7 is whole."""
    (logits,) = maps(2, 3, 8, 8)
    fine = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=True)
    found = at_places(fine, Grid(64, 64, True, (64, 64)), Grid(8, 8, True, (64, 64)))
    torch.testing.assert_close(found, logits)


def test_places_of_another_convention_and_of_padded_images_are_where_they_say():
    """Logits that are linear in the pixels' coordinates are the coordinates of the places."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    pixels = torch.stack([rows, columns])[None]
    padded = F.pad(pixels, (0, 16, 0, 0))[:, :, :, :64]
    aligned, centres = Grid(8, 7, True, (64, 48)), Grid(8, 6, False, (64, 48))
    whole = Grid(64, 48, False, (64, 48))
    at_aligned, at_centres = at_places(pixels, whole, aligned), at_places(pixels, whole, centres)
    torch.testing.assert_close(at_aligned[0, 0, :, 0], torch.arange(8.0) * 9)
    torch.testing.assert_close(at_aligned[0, 1, 0], torch.arange(7.0) * 47 / 6)
    torch.testing.assert_close(at_centres[0, 1, 0], torch.arange(6.0) * 8 + 3.5)
    # From one coarse grid to the other: linear, too, but for the border beyond the outermost centres.
    torch.testing.assert_close(at_places(at_aligned, aligned, centres), at_centres)
    inner = at_places(at_centres, centres, aligned)
    torch.testing.assert_close(inner[:, :, 1:-1, 1:-1], at_aligned[:, :, 1:-1, 1:-1])
    # A map of the image as it was padded to 64 columns.
    torch.testing.assert_close(at_places(padded, Grid(64, 64, False, (64, 64)), centres), at_centres)


def test_the_gradient_passes_to_all_places():
    (logits,) = maps(1, 2, 12, 12)
    leaf = logits.requires_grad_()
    at_places(leaf, Grid(12, 12, False, (12, 12)), Grid(6, 6, False, (12, 12))).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 0.25))
