"""Several models as one: the mean of their probabilities, against means by hand."""

import copy
import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import small_onnx
from support.scripted_backend import ScriptedBackend
from support.small_models import noise, small_segmenter

from resnest_seg import LabelSpace, PairDataset, Predictor, evaluate
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.backends import Block, FileBackend, RunOptions
from resnest_seg.inference.ensemble import EnsembleBackend, checkpoints_of
from resnest_seg.inference.predictor import OnnxPredictor, open_backend
from resnest_seg.inference.protocols import Protocol, with_tiles
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.io.bands import BandReader

SPACE = LabelSpace.numbered(3, names=["sky", "road", "car"])
PROTOCOLS = ("whole", "slide", "encoding", "mmseg", "paddle")
SPACES = {
    "multiclass": SPACE,
    "binary": LabelSpace.numbered(2, names=["background", "car"]).for_task("binary", positive=["car"]),
    "multilabel": LabelSpace.numbered(3, names=["a", "b", "c"]).for_task("multilabel"),
}


def member(seed=0, space=SPACE):
    """A small model; its weights and its normalisation depend on the seed."""
    segmenter = small_segmenter(space, classes=len(space.score_names))
    segmenter.take_task(space.task)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=random)
        segmenter.pixel_mean += 5 * seed
        if space.task != "multiclass":
            drawn = 0.4 + 0.1 * torch.rand(len(space.score_names), generator=random)
            segmenter.thresholds.copy_(drawn.round(decimals=2))  # thousandths, as those of validations
    return segmenter


def opened(*segmenters):
    return EnsembleBackend([TorchBackend(each, RunOptions("cpu", fuse=False)) for each in segmenters])


def whole_scores(backend, image, protocol="whole", **options):
    """Probabilities [K, H, W], put together from blocks that must cover the image once."""
    method = backend.protocol(protocol)
    found = np.full((len(backend.label_space.score_names), *image.shape[:2]), np.nan, np.float32)
    labels = np.zeros(image.shape[:2], backend.decision.dtype)
    for block in backend.blocks(image, method, **options):
        assert np.isnan(found[:, block.rows, block.columns]).all()
        found[:, block.rows, block.columns] = block.probabilities(method.merge)
        labels[block.rows, block.columns] = block.labels()
    return found, labels


@pytest.mark.parametrize("task", SPACES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_members_are_the_member(task, protocol):
    segmenter, image = member(1, SPACES[task]), noise(45, 70, 3)
    alone = TorchBackend(segmenter, RunOptions("cpu", fuse=False))
    scores, labels = whole_scores(alone, image, protocol)
    for count in (1, 2, 3):
        found, same = whole_scores(opened(*[copy.deepcopy(segmenter) for _ in range(count)]), image, protocol)
        assert np.array_equal(labels, same)
        assert np.abs(found - scores).max() < 1e-6
    assert len(np.unique(labels)) > 1


class Nearly(ScriptedBackend):
    """Gives logits whose best two are neighbouring numbers of float32."""

    def blocks(self, image, protocol, *, memory=None):
        random = np.random.default_rng(0)
        scores = random.uniform(0, 0.1, (3, *image.shape[:2])).astype(np.float32)
        scores[0] = random.uniform(0.1, 0.11, image.shape[:2])
        scores[2] = np.nextafter(scores[0], np.float32(1))
        scores[2, ::2] += 3  # far apart there
        yield Block(slice(0, image.shape[0]), slice(0, image.shape[1]), scores, decision=self.decision)


def test_equal_members_are_the_member_where_two_classes_are_nearly_equal():
    backend, image = Nearly(SPACE, None), noise(40, 50, 3)
    assert (whole_scores(backend, image)[1] == 2).all()
    for count in (1, 2, 3):
        assert (whole_scores(EnsembleBackend([backend] * count), image)[1] == 2).all()


def logits_by_hand(segmenter, view):
    """Logits [K, H, W] of pixels [H, W, 3], which are padded with black to multiples of the stride."""
    height, width = view.shape[:2]
    x = torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)[None].float()
    stride = segmenter.output_stride
    with torch.inference_mode():
        return segmenter(F.pad(x, (0, -width % stride, 0, -height % stride))).logits[0, :, :height, :width].double()


def probabilities_by_hand(segmenter, image, protocol):
    """Of one model, by the protocol's definition."""
    height, width = image.shape[:2]
    squash = torch.sigmoid if segmenter.task != "multiclass" else (lambda logits: logits.softmax(dim=0))
    if protocol == "whole":
        return squash(logits_by_hand(segmenter, image)).numpy()
    if protocol == "slide":
        total, count = torch.zeros(segmenter.num_classes, height, width).double(), torch.zeros(height, width)
        for top in (0, height - 32):
            for left in (0, 20, width - 32):
                place = (slice(top, top + 32), slice(left, left + 32))
                total[:, *place] += logits_by_hand(segmenter, image[place])
                count[place] += 1
        return squash(total / count).numpy()
    views = []
    for scale in (0.5, 1.0, 1.5):
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
        small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        with torch.inference_mode():
            for flip in (False, True):
                x = torch.from_numpy(small[:, ::-1].copy() if flip else small).permute(2, 0, 1)[None].float()
                logits = segmenter(x).logits
                logits = F.interpolate(logits.flip(3) if flip else logits, size=(height, width), mode="bilinear",
                                       align_corners=segmenter.align_corners)  # fmt: skip
                views.append(squash(logits[0].double()).numpy())
    return np.mean(views, axis=0)


BY_HAND = {
    "whole": Protocol("whole", padding="stride"),
    "slide": Protocol("slide", window=(32, 32), step=(20, 20)),
    "multiscale": Protocol("multiscale", scales=(0.5, 1.0, 1.5), flip=True, merge="softmax"),
}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("protocol", BY_HAND)
def test_two_members_are_the_mean_of_their_probabilities(task, protocol):
    members, image = [member(seed, SPACES[task]) for seed in (1, 2)], noise(45, 60, 3)
    method = BY_HAND[protocol]
    if task == "multilabel" and protocol == "slide":
        method = dataclasses.replace(method, window=(64, 64), padding="stride")  # sigmoids of logits of one window
        want = np.mean([probabilities_by_hand(each, image, "whole") for each in members], axis=0)
    else:
        want = np.mean([probabilities_by_hand(each, image, protocol) for each in members], axis=0)
    found, labels = whole_scores(opened(*members), image, method)
    assert np.abs(found - want).max() < 1e-5
    if task == "multiclass":
        assert (labels == want.argmax(axis=0)).mean() > 0.999
        assert (labels != whole_scores(opened(members[0]), image, method)[1]).any()  # each member matters
    else:
        thresholds = np.mean([each.decision_thresholds for each in members], axis=0)
        present = want >= thresholds[:, None, None]
        assert (labels == (present << np.arange(3)[:, None, None]).sum(axis=0)).mean() > 0.999


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_mean_thresholds_are_such_as_evaluations_count(task):
    members, image = [member(seed, SPACES[task]) for seed in (1, 2)], noise(40, 50, 3)
    for each, threshold in zip(members, (0.463, 0.466), strict=True):  # the mean is no multiple of 1/1000
        each.thresholds.fill_(threshold)
    backend = opened(*members)
    assert backend.decision.thresholds[0] in (0.464, 0.465)
    labels = whole_scores(backend, image)[1]
    report = evaluate(backend, PairDataset([(image, labels)], SPACES[task]))
    assert report.scores["whole"].mean_iou == 1


def test_the_order_of_members_does_not_matter():
    members, image = [member(seed) for seed in (1, 2, 3)], noise(45, 60, 3)
    one, labels = whole_scores(opened(*members), image)
    for order in ((2, 0, 1), (1, 0, 2)):
        other, same = whole_scores(opened(*[members[place] for place in order]), image)
        assert np.array_equal(labels, same)
        assert np.abs(one - other).max() < 1e-6


def test_classes_are_matched_by_name():
    first, second, image = member(1), member(2), noise(33, 40, 3)
    turned = copy.deepcopy(second)
    order = [2, 0, 1]  # of the second model's logits
    convolution = turned.head.classifier if hasattr(turned.head, "classifier") else list(turned.head.modules())[-1]
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight[order].clone())
        convolution.bias.copy_(convolution.bias[order].clone())
    turned.label_space = LabelSpace.numbered(3, names=[SPACE.names[place] for place in order])
    want, found = (whole_scores(opened(first, each), image) for each in (second, turned))
    assert np.abs(want[0] - found[0]).max() < 1e-6
    assert np.array_equal(want[1], found[1])
    assert opened(turned, first).label_space.names == turned.label_space.names


def refused(first, second, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        EnsembleBackend([first, second], ["runs/a", "runs/b"])
    return str(caught.value)


def backend_of(segmenter):
    return TorchBackend(segmenter, RunOptions("cpu", fuse=False))


def test_members_that_do_not_fit_are_refused_by_what_differs(tmp_path):
    first, other = backend_of(member(1)), member(2)
    other.label_space = LabelSpace.numbered(3, names=["sky", "road", "van"])
    assert refused(first, backend_of(other)) == (
        "an ensemble needs equal classes, in any order: compared with runs/a (3 classes), runs/b is without 'car' and "
        "with 'van'."
    )
    other.label_space = None
    assert "runs/b does not know its classes" in refused(first, backend_of(other))
    labels = backend_of(member(2, SPACES["multilabel"]))
    assert "one task: runs/a is multiclass, and runs/b multilabel" in refused(first, labels)
    binary = [backend_of(member(2, SPACES["binary"])) for _ in range(2)]
    binary[1].label_space = dataclasses.replace(SPACES["binary"], names=("car", "background"))
    assert "that of runs/a is 'car', of runs/b 'background'" in refused(*binary)
    wide = backend_of(small_segmenter(SPACE, channels=4))
    assert "runs/a takes 3 channels, and runs/b 4" in refused(first, wide, ConfigError)
    bands = backend_of(member(2))
    bands.bands = BandReader((3, 2, 1), 0.0)
    assert "runs/a has none, and runs/b ((3, 2, 1), 0.0)" in refused(first, bands, ConfigError)
    file = FileBackend(small_onnx.write(tmp_path / "labels.onnx", output="labels", label_space=SPACE))
    assert "gives labels only" in refused(first, file, ConfigError)
    with pytest.raises(ConfigError, match="at least one model"):
        EnsembleBackend([])
    with pytest.raises(ConfigError, match="are for open_backend"):
        Predictor([first], device="meta")


def file_member(path, seed):
    weights = np.random.default_rng(seed).standard_normal((3, 3, 5, 5)).astype(np.float32) / 3000
    return small_onnx.write(path, weights=weights, label_space=SPACE, output_stride=8 * seed)


@pytest.mark.parametrize("tile", [None, 24])
def test_files_and_checkpoints_are_mixed_at_any_tiles(tile, tmp_path):
    paths = [file_member(tmp_path / f"{seed}.onnx", seed) for seed in (1, 2)]  # strides 8 and 16: other windows
    image = noise(75, 101, 3)
    files = [FileBackend(path) for path in paths]
    for members in (files, [*files, backend_of(member(1))], [backend_of(member(1)), *files]):
        ensemble = EnsembleBackend(members)
        method = with_tiles(ensemble.protocol("whole"), tile, None)
        want = np.mean([whole_scores(each, image, method)[0] for each in members], axis=0)
        found, labels = whole_scores(ensemble, image, method)
        assert np.abs(found - want).max() < 1e-6
        assert (labels == want.argmax(axis=0)).mean() > 0.999
    predicted = OnnxPredictor(paths, tile=tile)(image).labels
    assert np.array_equal(predicted, Predictor(EnsembleBackend(files), tile=tile)(image).labels)


def test_scores_of_a_whole_image_are_never_held():
    """Slabs come as small as the memory asks, and equal those of one piece."""
    ensemble, image = opened(member(1), member(2)), noise(200, 64, 3)
    memory = 200_000
    slabs = list(ensemble.blocks(image, ensemble.protocol("whole"), memory=memory))
    assert len(slabs) >= 10
    assert max(block.scores.numel() * block.scores.element_size() for block in slabs) < memory // 2
    pieces, _ = whole_scores(ensemble, image, memory=memory)
    assert np.abs(pieces - whole_scores(ensemble, image)[0]).max() < 1e-6


def test_sums_of_files_that_exceed_the_memory_are_refused(tmp_path):
    ensemble = EnsembleBackend([FileBackend(file_member(tmp_path / f"{seed}.onnx", seed)) for seed in (1, 2)])
    image = noise(600, 500, 3)
    with pytest.raises(ConfigError, match=r"take 6 MiB, and half of the memory, 5 MiB, is allowed: give a tile"):
        list(ensemble.blocks(image, ensemble.protocol("whole"), memory=10 << 20))
    tiled = with_tiles(ensemble.protocol("whole"), 64, 16)
    assert sum(block.labels().size for block in ensemble.blocks(image, tiled, memory=10 << 20)) == 600 * 500


def test_images_that_share_calls_are_as_alone_and_reports_name_the_ensemble():
    members = [member(1), member(2)]
    predictor = Predictor(members, device="cpu")
    images = [noise(32, 40, 3, seed=seed) for seed in range(5)] + [noise(40, 32, 3)]
    for image, prediction in zip(images, predictor(images), strict=True):
        assert np.array_equal(prediction.labels, predictor(image).labels)
        assert np.abs(prediction.scores() - whole_scores(opened(*members), image)[0]).max() < 1e-6
    labels = [predictor(image).labels for image in images]
    data = PairDataset(list(zip(images, labels, strict=True)), SPACE)
    report = evaluate(predictor.backend, data, protocols=["whole", "encoding"])
    assert report.scores["whole"].mean_iou == 1
    assert report.model.startswith("mean of 2 models: 2 x ")


def test_paths_stand_for_members_and_a_folder_of_folds_for_all_its_folds(tmp_path):
    for fold in range(2):
        (tmp_path / f"fold_{fold}").mkdir()
        file_member(tmp_path / f"{fold}.onnx", fold + 1)
    assert checkpoints_of(tmp_path / "0.onnx") == [str(tmp_path / "0.onnx")]
    record = {"format": "resnest_seg folds", "samples": "x", "folds": 2, "group_by": None}
    (tmp_path / "folds.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"fold_0 has no best.safetensors: its fold was not trained"):
        checkpoints_of(tmp_path)
    for fold in range(2):
        member(fold).to_checkpoint().save(tmp_path / f"fold_{fold}" / "best.safetensors")
    folds = [str(tmp_path / "fold_0"), str(tmp_path / "fold_1")]
    assert checkpoints_of(tmp_path) == folds
    assert checkpoints_of([tmp_path, tmp_path / "0.onnx"]) == [*folds, str(tmp_path / "0.onnx")]
    with pytest.raises(ConfigError, match="fold_1 is named twice"):
        checkpoints_of([tmp_path, tmp_path / "fold_0" / ".." / "fold_1"])
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        checkpoints_of([])
    backend = open_backend([tmp_path / "0.onnx", tmp_path / "1.onnx"])
    assert backend.names == (str(tmp_path / "0.onnx"), str(tmp_path / "1.onnx"))
