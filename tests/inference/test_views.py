"""Views are tested with the protocols that they carry out, in test_inference.py; here is what only they do."""

import torch

from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_engine import Runner, preload, views_of


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
