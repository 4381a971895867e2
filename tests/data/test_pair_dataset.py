"""`PairDataset`: tensors, arrays and pictures in tuples or mappings give the samples of the masks' numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

import resnest_seg
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.images import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
MASK = np.random.default_rng(1).integers(0, 3, (6, 8))
MASK[0] = 255


def sample(item, **options):
    return resnest_seg.PairDataset([item], ["a", "b", "c"], **options)[0]


@pytest.mark.parametrize(
    "item",
    [
        (IMAGE, MASK),
        [IMAGE, MASK.astype(np.uint8)],
        (Image.fromarray(IMAGE), Image.fromarray(MASK.astype(np.uint8))),
        (Image.fromarray(IMAGE), Image.fromarray(MASK.astype(np.int32))),
        (torch.from_numpy(IMAGE).permute(2, 0, 1), torch.from_numpy(MASK)),
        (torch.from_numpy(IMAGE).permute(2, 0, 1), torch.from_numpy(MASK)[None]),
        {"image": Image.fromarray(IMAGE), "mask": Image.fromarray(MASK.astype(np.uint8))},
    ],
    ids=lambda item: type(item[0] if not isinstance(item, dict) else item["image"]).__name__,
)
def test_every_kind_of_pair_gives_the_same_sample(item):
    image, labels, name = sample(item)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(labels, MASK)
    assert (image.dtype, labels.dtype, name) == (np.uint8, np.uint8, "train sample 0")


def test_grey_images_are_repeated_and_other_channels_kept():
    assert np.array_equal(sample((IMAGE[..., 0], MASK)).image, np.repeat(IMAGE[..., :1], 3, axis=2))
    bands = np.concatenate([IMAGE, IMAGE], axis=2)
    assert np.array_equal(sample((bands, MASK)).image, bands)
    assert np.array_equal(sample((torch.from_numpy(bands).permute(2, 0, 1), MASK)).image, bands)


def test_ignored_values_of_any_size_and_raw_ids_of_a_label_space():
    mask = np.where(MASK == 255, -1, np.where(MASK == 2, 70_000, MASK))
    expected = np.where(MASK == 2, 255, MASK)
    assert np.array_equal(sample((IMAGE, mask), ignore=(-1, 70_000)).labels, expected)
    space = resnest_seg.LabelSpace("own", ("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), (7, 9, 11))
    raw = np.where(MASK == 255, 255, np.array([7, 9, 11])[MASK % 255 % 3])
    assert np.array_equal(resnest_seg.PairDataset([(IMAGE, raw)], space)[0].labels, MASK)


def test_a_class_may_have_the_raw_id_255():
    """As in black and white masks; then only what `ignore` names is not labelled."""
    space = resnest_seg.LabelSpace("x", ("ground", "object"), ((0, 0, 0), (9, 9, 9)), (0, 255), task="binary")
    mask = np.where(MASK == 1, 255, np.where(MASK == 2, 7, 0))
    labels = resnest_seg.PairDataset([(IMAGE, mask)], space, ignore=[7])[0].labels
    assert np.array_equal(labels, np.where(MASK == 1, 1, np.where(MASK == 2, 255, 0)))


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        ((IMAGE / 255, MASK), DatasetError, "float64 from 0 to 0.97.*ToTensor"),
        ((torch.rand(3, 6, 8), MASK), DatasetError, "float32 from 0"),
        ((IMAGE[:3], MASK), DatasetError, r"\(3, 8\).*\(6, 8\)"),
        ((IMAGE, MASK + 1), DatasetError, r"sample 0.*ignore="),
        ((IMAGE, -MASK), DatasetError, r"holds -255.*ignore="),
        ((IMAGE, MASK / 2), DatasetError, "float64 of shape"),
        ((IMAGE, IMAGE), DatasetError, "shape"),
        ((IMAGE, Image.fromarray(IMAGE)), DatasetError, "RGB picture"),
        ((Image.fromarray(IMAGE).convert("CMYK"), MASK), DatasetError, "CMYK"),
        ((IMAGE[None], MASK), DatasetError, r"\(1, 6, 8, 3\)"),
        ({"image": IMAGE, "annotation": MASK}, ConfigError, "no 'mask', only 'image', 'annotation'.*keys="),
        ((IMAGE,), ConfigError, "pair"),
        (IMAGE, ConfigError, "pair.*ndarray"),
    ],
)
def test_what_has_no_sure_meaning_is_refused(item, error, words):
    with pytest.raises(error, match=words):
        sample(item)


def test_a_table_of_other_keys_and_a_text_for_classes():
    assert np.array_equal(sample({"x": IMAGE, "y": MASK}, keys=("x", "y")).labels, MASK)
    with pytest.raises(ConfigError, match="list of names"):
        resnest_seg.PairDataset([], "abc")
    with pytest.raises(IndexError):
        resnest_seg.PairDataset([(IMAGE, MASK)], ["a", "b", "c"])[1]


def test_batches_of_pairs(tmp_path):
    dataset = resnest_seg.PairDataset([(IMAGE, MASK), (IMAGE[:, ::-1].copy(), MASK)], ["a", "b", "c"])
    (batch,) = resnest_seg.build_loader(dataset, batch_size=2)
    assert torch.equal(batch.labels, torch.from_numpy(np.stack([MASK, MASK]).astype(np.uint8)))
    small = resnest_seg.PairDataset([(IMAGE, MASK), (IMAGE[:4], MASK[:4])], ["a", "b", "c"])
    with pytest.raises(DatasetError, match="different sizes"):
        list(resnest_seg.build_loader(small, batch_size=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_as_a_file_is(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    expected = read_image(tmp_path / "a.png")
    mask = np.zeros(expected.shape[:2], np.uint8)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(sample((picture, mask)).image, expected)
