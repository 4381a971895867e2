"""The pictures of the site are those that their script draws, and show what the package does."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import PROJECT
from PIL import Image

import resnest_seg


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("protocol_pictures", PROJECT / "docs" / "protocol_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_draws_the_pictures_that_are_there(script, tmp_path):
    script.main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in script.FOLDER.iterdir())
    for name in drawn:  # the sizes alone: fonts differ by their release
        with Image.open(tmp_path / name) as new, Image.open(script.FOLDER / name) as kept:
            assert max(abs(a - b) for a, b in zip(new.size, kept.size, strict=True)) <= 30, name


def test_every_picture_is_on_a_page_and_is_described(script):
    text = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "docs").glob("*.md"))
    for name in script.DRAWINGS:
        assert f"](pictures/{name}.png)" in text, name
    assert "![](" not in text


def test_three_ways_of_merging_have_three_winners(script):
    """By the engine's words: softmax and exp of logits written out here."""
    views = torch.from_numpy(script.MERGED_VIEWS)
    logits = views.mean(dim=0).argmax()
    softmax = views.softmax(dim=1).mean(dim=0).argmax()
    exp = (views[:2].sum(dim=0).exp() + views[2:].sum(dim=0).exp()).argmax()
    drawn = [int(shares.argmax()) for shares in script.merged().values()]
    assert drawn == [int(logits), int(softmax), int(exp)] == [0, 1, 2]


@pytest.mark.parametrize("variant", ["encoding", "mmseg", "timm"])
def test_the_row_of_a_dilated_block_is_that_of_our_modules(variant, script):
    """The pool and the shortcut of the first dilated block, on an image whose rows are all alike."""
    block = resnest_seg.build_encoder("resnest14_tiny", output_stride=8, dilation=variant).layer3[0]
    values = np.random.default_rng(0).standard_normal(12)
    image = torch.from_numpy(values).float().expand(1, 1, 9, 12)
    mean = block.downsample[0]
    found = block.avd_last(image) + mean(image)
    assert np.allclose(found[0, 0, 4].numpy(), script.pooled(values, variant), atol=1e-6)
