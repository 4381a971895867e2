"""Which sample comes when, and that workers change nothing."""

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from resnest_seg.config import DataConfig
from resnest_seg.data.loader import build_loader, load_batches, training_batches
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import ConfigError, DatasetError


def test_every_epoch_holds_every_sample_once():
    batches = list(training_batches(10, seed=0, batch_size=4, steps=range(10)))
    places = [place for batch in batches for place in batch]
    assert len(places) == 40
    for epoch in range(4):
        indices = [index for of_epoch, index in places if of_epoch == epoch]
        assert sorted(indices) == list(range(10))
    assert [i for e, i in places if e == 0] != [i for e, i in places if e == 1]


def test_starting_late_is_the_same_as_skipping():
    every = list(training_batches(7, seed=3, batch_size=2, steps=range(20)))
    assert list(training_batches(7, seed=3, batch_size=2, steps=range(13, 20))) == every[13:]


@pytest.mark.parametrize(("parts", "processes"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_effective_batch_does_not_depend_on_how_it_is_divided(parts, processes):
    whole = list(training_batches(9, seed=1, batch_size=4, steps=range(6)))
    shares = [
        list(training_batches(9, seed=1, batch_size=4, steps=range(6), parts=parts, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for step in range(6):
        together = [place for part in range(parts) for share in shares for place in share[step * parts + part]]
        assert together == whole[step]


def test_a_data_set_smaller_than_a_batch_goes_round():
    batch = next(training_batches(3, seed=0, batch_size=8, steps=range(1)))
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_batches_do_not_depend_on_the_number_of_workers(small_dataset):
    transform = TrainTransform.from_config(DataConfig(base_size=48, crop_size=32))
    order = list(training_batches(6, seed=0, batch_size=3, steps=range(5)))
    runs = [list(load_batches(small_dataset, order, transform=transform, seed=7, workers=n)) for n in (0, 1, 2)]
    assert len(runs[0]) == 5
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            assert first.names == second.names
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.labels, second.labels)


def test_whole_images_in_channels_last_memory(small_dataset):
    batch = next(load_batches(small_dataset, [[(0, 2)]]))
    sample = small_dataset[2]
    assert batch.images.shape == (1, 3, 42, 56)
    assert batch.images.dtype == batch.labels.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), sample.image)
    assert np.array_equal(batch.labels[0].numpy(), sample.labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_arrives_as_one_clear_message(small_dataset, workers):
    class Broken(type(small_dataset)):
        def __getitem__(self, index):
            if index == 4:
                raise DatasetError("cannot read photo_4.png: damaged.")
            return super().__getitem__(index)

    loader = load_batches(Broken(), [[(0, 1)], [(0, 4)], [(0, 2)]], workers=workers)
    assert next(loader).names == ["sample 1"]
    with pytest.raises(DatasetError) as error:
        next(loader)
    assert str(error.value) == "cannot read photo_4.png: damaged."


def test_probabilities_decide_how_often_a_sample_comes():
    probabilities = np.array([0.1, 0.0, 0.6, 0.3])
    batches = list(training_batches(4, seed=1, batch_size=4, steps=range(500), probabilities=probabilities))
    counts = np.bincount([index for batch in batches for _, index in batch], minlength=4) / 2000
    assert np.abs(counts - probabilities).max() < 0.04
    assert counts[1] == 0
    places = [place for batch in batches for place in batch]
    assert len(set(places)) == len(places)  # drawn again, a photo is cut in another way
    late = list(training_batches(4, seed=1, batch_size=4, steps=range(300, 302), probabilities=probabilities))
    assert late == batches[300:302]  # a resumed run continues in the same row


@pytest.mark.parametrize("workers", [0, 2])
def test_class_mix_depends_on_the_place_alone(small_dataset, workers):
    plain = TrainTransform.from_config(DataConfig(base_size=56, crop_size=32))
    mixing = TrainTransform.from_config(DataConfig(base_size=56, crop_size=32, class_mix=1.0))
    batches = [[(3, index)] for index in range(6)]
    once, twice, without = (
        [batch.images for batch in load_batches(small_dataset, batches, transform=transform, seed=5, workers=count)]
        for transform, count in ((mixing, workers), (mixing, 0), (plain, 0))
    )
    assert all((a == b).all() for a, b in zip(once, twice, strict=True))
    assert not all((a == b).all() for a, b in zip(once, without, strict=True))


@pytest.mark.parametrize("workers", [-1, 257])
def test_a_number_of_workers_that_makes_no_sense(workers, small_dataset):
    with pytest.raises(ConfigError, match=f"workers must be from 0 to 256, not {workers}"):
        next(load_batches(small_dataset, [[(0, 0)]], workers=workers))


CROP = TrainTransform.from_config(DataConfig(base_size=48, crop_size=32))


def seen(loader):
    """Everything that a pass gives, to be compared."""
    return [(batch.names, batch.images.numpy().tobytes(), batch.labels.numpy().tobytes()) for batch in loader]


def test_a_pass_of_a_loader_is_one_epoch_in_order(small_dataset):
    loader = build_loader(small_dataset, batch_size=4, transform=CROP)
    batches = list(loader)
    assert [len(batch.names) for batch in batches] == [4, 2]
    assert len(loader) == 2
    assert [name for batch in batches for name in batch.names] == [f"sample {index}" for index in range(6)]
    assert batches[0].images.shape == (4, 3, 32, 32)
    assert batches[0].labels.shape == (4, 32, 32)
    assert len(build_loader(small_dataset, batch_size=4, transform=CROP, drop_last=True)) == 1
    assert [len(b.names) for b in build_loader(small_dataset, batch_size=4, transform=CROP, drop_last=True)] == [4]
    assert [b.images.shape[2] for b in build_loader(small_dataset)] == [40 + index for index in range(6)]


def test_passes_are_epochs_that_differ_and_can_be_repeated(small_dataset):
    options = {"batch_size": 3, "transform": CROP, "shuffle": True, "seed": 5}
    loader = build_loader(small_dataset, **options)
    first, second = seen(loader), seen(loader)
    assert first != second
    assert {name for names, *_ in first for name in names} == {f"sample {index}" for index in range(6)}
    assert [names for names, *_ in first] != [names for names, *_ in second]
    assert seen(build_loader(small_dataset, **options, workers=2)) == first
    assert seen(build_loader(small_dataset, **options, epoch=1)) == second
    loader.epoch = 0
    assert seen(loader) == first
    assert seen(build_loader(small_dataset, **options | {"seed": 6})) != first


def test_an_epoch_of_a_shuffled_loader_is_the_trainers(small_dataset):
    """Wherever the batch divides the data set, so that no batch of training spans two epochs."""
    order = training_batches(6, seed=5, batch_size=3, steps=range(2, 4))
    trainers = seen(load_batches(small_dataset, order, transform=CROP, seed=5))
    assert seen(build_loader(small_dataset, batch_size=3, transform=CROP, shuffle=True, seed=5, epoch=1)) == trainers


def test_leaving_a_pass_early_ends_it(small_dataset):
    loader = build_loader(small_dataset, batch_size=1, workers=1)
    for batch in loader:
        assert batch.names == ["sample 0"]
        break
    assert next(iter(loader)).names == ["sample 0"]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_different_sizes_do_not_form_a_batch(small_dataset, workers):
    with pytest.raises(DatasetError, match=r"sample 0 is 40 x 56, and sample 1 41 x 56. Give a transform that crops"):
        list(build_loader(small_dataset, batch_size=2, workers=workers))


def test_a_function_and_albumentations_are_transforms(small_dataset):
    def mirrored_crop(image, labels, random):
        left = int(random.integers(8))
        window = (slice(0, 40), slice(left, left + 40))
        return cv2.flip(image[window], 1), cv2.flip(labels[window], 1)

    (batch,) = build_loader(small_dataset, batch_size=6, transform=mirrored_crop)
    sample, shown = small_dataset[3], batch.images[3].permute(1, 2, 0).numpy()
    assert any(np.array_equal(shown[:, ::-1], sample.image[:40, left : left + 40]) for left in range(8))
    pipeline = A.Compose([A.RandomCrop(32, 32, p=1), A.HorizontalFlip(p=0.5)])
    options = {"batch_size": 2, "transform": pipeline, "shuffle": True}
    first = seen(build_loader(small_dataset, **options))
    assert seen(build_loader(small_dataset, **options, workers=2)) == first
    assert seen(build_loader(small_dataset, **options, epoch=1)) != first


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (
            A.Compose([A.RandomCrop(32, 32), A.Normalize()]),
            r"uint8 image .* ndarray float32 \[32, 32, 3\].*leave out ToTensor",
        ),
        (lambda image, labels, random: (torch.from_numpy(image.copy()), labels), r"image .* Tensor torch.uint8"),
        (lambda image, labels, random: (image, labels[:30]), r"image of \(40, 56\) and labels of \(30, 56\)"),
        (lambda image, labels, random: (image, labels.astype(int)), r"labels .* int64 \[40, 56\]"),
    ],
)
def test_a_transform_that_returns_something_else(small_dataset, transform, says):
    with pytest.raises(ConfigError, match=f"(?i){says}"):
        list(build_loader(small_dataset, transform=transform))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 65536, not 0"),
        ({"batch_size": "4"}, "batch_size must be a whole number, not '4'"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"epoch": 0.5}, "epoch must be a whole number, not 0.5"),
        ({"workers": 257}, "workers must be a whole number from 0 to 256, not 257"),
        ({"transform": "crop"}, "transform must be an albumentations pipeline, .* not str"),
    ],
)
def test_options_of_a_loader_are_checked_when_it_is_made(small_dataset, options, says):
    with pytest.raises(ConfigError, match=says):
        build_loader(small_dataset, **options)
