"""Laws of the protocols."""

import pytest
import torch

from resnest_seg.errors import ConfigError
from resnest_seg.inference import protocol, whole


@pytest.mark.parametrize("size", [(8, 16), (9, 17), (1, 1), (33, 47)])
def test_whole_of_the_identity_is_the_image(size):
    image = torch.rand(3, *size)
    assert torch.equal(whole(lambda images: images, image, stride=8), image)


def test_whole_pads_right_and_below_with_black_to_the_stride_and_no_further():
    seen = []

    def logits_fn(images):
        seen.append(images.clone())
        return images

    image = torch.full((3, 9, 16), 7.0)
    whole(logits_fn, image, stride=8)
    assert seen[0].shape == (1, 3, 16, 16)
    assert (seen[0][:, :, :9] == 7).all()
    assert (seen[0][:, :, 9:] == 0).all()


def test_an_unknown_protocol():
    with pytest.raises(ConfigError, match=r"unknown protocol 'hole'. Did you mean 'whole'"):
        protocol("hole")
