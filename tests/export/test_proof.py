"""What a proof finds, with exports whose mistakes are known."""

import dataclasses
import hashlib
import io
import json

import cv2
import numpy as np
import pytest
import torch
from support.small_models import logits_of, noise, small_segmenter

from resnest_seg.errors import CheckpointError, ExportError
from resnest_seg.export.graph import ExportOptions, info_of
from resnest_seg.export.verify import PHOTOS, SIZES, Evidence, _batches, prove
from resnest_seg.inference.exported import ExportedModel

pytestmark = pytest.mark.slow


@pytest.fixture
def segmenter(tiny_space):
    return small_segmenter(tiny_space)


@pytest.fixture
def export(segmenter, tmp_path):
    """An export of the segmenter whose logits go through a function; None gives them as they are."""

    def make(change=None, smallest=1, **options):
        values = {"pixels": "uint8", "layout": "nchw", "output": "logits", "precision": "float32"} | options
        (tmp_path / "model.onnx").write_bytes(b"the file")

        def run(images):
            logits = logits_of(segmenter, images if values["layout"] == "nchw" else images.transpose(0, 3, 1, 2).copy())
            logits = logits if change is None else change(logits)
            scores = torch.from_numpy(logits)
            if values["output"] == "labels":
                return scores.argmax(dim=1).to(torch.uint8).numpy()
            return (scores.softmax(dim=1) if values["output"] == "softmax" else scores).numpy()

        info = dataclasses.replace(info_of(segmenter, ExportOptions(**values)), smallest=smallest)
        return ExportedModel(info, run, path=tmp_path / "model.onnx", runtime="numpy")

    return make


@pytest.mark.parametrize("output", ["logits", "softmax", "labels"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_perfect_export_is_proven_at_all_sizes(export, segmenter, output, layout):
    segmenter.train()
    proof = prove(export(output=output, layout=layout), segmenter)
    assert segmenter.training
    assert [((row.height, row.width), row.batch) for row in proof.comparisons] == list(SIZES)
    assert {row.agreement for row in proof.comparisons} == {1.0}
    errors = {row.max_error for row in proof.comparisons}
    assert errors == ({None} if output == "labels" else {0.0})
    assert proof.agreement == 1
    assert (proof.breaches, proof.mean_iou, proof.images) == ([], None, "drawn street scenes")
    assert (proof.file, proof.sha256) == ("model.onnx", hashlib.sha256(b"the file").hexdigest())


def test_the_numbers_are_those_of_the_difference(export, segmenter):
    photo = noise(50, 70, 3)
    found = []

    def change(logits):
        changed = logits.copy()
        changed[:, 0, 0, 0] += 3e-4 * np.abs(logits).max()
        found.append((logits, changed))
        return changed

    proof = prove(export(change), segmenter, evidence=Evidence(photos=[photo]))
    assert len(proof.comparisons) == len(found) == len(SIZES) + 1  # and at its own size
    same = pixels = 0
    for row, (logits, changed) in zip(proof.comparisons, found, strict=True):
        assert row.max_error == pytest.approx(np.abs(changed - logits).max())
        assert row.mean_error == pytest.approx(np.abs(changed - logits).mean(), rel=1e-4)
        assert row.relative_error == pytest.approx(3e-4, rel=1e-3)
        same += (changed.argmax(1) == logits.argmax(1)).sum()
        pixels += row.batch * row.height * row.width
    assert (proof.comparisons[-1].height, proof.comparisons[-1].width) == (50, 70)
    assert np.array_equal(found[-1][0], logits_of(segmenter, photo.transpose(2, 0, 1)[None].copy()))
    assert proof.agreement == pytest.approx(same / pixels, abs=1e-12)
    assert proof.relative_error == pytest.approx(3e-4, rel=1e-3)


def flip_some(share):
    """Turn the lowest score of a share of the pixels, spread evenly, into the highest."""

    def change(logits):
        changed = logits.transpose(0, 2, 3, 1).reshape(-1, logits.shape[1]).copy()
        places = np.arange(0, len(changed), round(1 / share))
        changed[places, changed[places].argmin(axis=1)] = logits.max() + 1
        batch, classes, height, width = logits.shape
        return changed.reshape(batch, height, width, classes).transpose(0, 3, 1, 2).copy()

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda logits: logits + 2e-3 * np.abs(logits).max(), {}, r"off by 0\.002 of its largest value"),
        (lambda logits: -logits, {}, r"% of the labels agree \(at least 99\.99%\)"),
        (lambda logits: -logits, {"output": "labels"}, r"% of the labels agree"),
        (lambda logits: np.full_like(logits, np.nan), {}, "off by nan"),
        (lambda logits: np.where(np.indices(logits.shape)[3] == 5, np.nan, logits).astype("f4"), {}, "off by nan"),
        (flip_some(0.02), {"precision": "half"}, r"\(at least 99\.50%\).*needs float32"),
        (lambda logits: logits[:, :, 1:], {}, "its size is wrong"),
        (flip_some(0.2), {"precision": "int8"}, r"source's own labels.*drops by .* points \(at most 1\)"),
    ],
)  # fmt: skip
def test_an_export_that_differs_is_refused(export, segmenter, change, options, message):
    with pytest.raises(ExportError, match=message):
        prove(export(change, **options), segmenter)
    assert not segmenter.training


def test_the_bounds_are_those_of_the_precision(export, segmenter):
    few = flip_some(0.001)
    assert 0.995 < prove(export(few, precision="half"), segmenter).agreement < 0.9999
    proof = prove(export(flip_some(1e-4), precision="int8"), segmenter)
    assert proof.source_mean_iou == 1
    assert 0.99 < proof.mean_iou < 1
    with pytest.raises(ExportError, match="% of the labels agree"):
        prove(export(few, output="labels"), segmenter)


def test_with_a_data_set_both_get_a_mean_iou(export, segmenter, small_dataset):
    seen = []
    evidence = Evidence(dataset=small_dataset, limit=4)
    proof = prove(
        export(flip_some(0.003), precision="half"), segmenter, evidence=evidence, on_image=lambda: seen.append(1)
    )
    assert len(seen) == 4
    assert proof.images == "photos of tiny"
    assert proof.scored == "on 4 images of tiny (train)"

    def mean_iou(labels_of):
        counts = np.zeros((3, 3))
        for index in range(4):
            sample = small_dataset[index]
            labels = labels_of(logits_of(segmenter, sample.image.transpose(2, 0, 1)[None].copy()))[0]
            known = sample.labels != 255
            np.add.at(counts, (sample.labels[known], labels[known]), 1)
        return np.mean([counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(3)])

    assert proof.source_mean_iou == pytest.approx(mean_iou(lambda logits: logits.argmax(1)))
    assert proof.mean_iou == pytest.approx(mean_iou(lambda logits: flip_some(0.003)(logits).argmax(1)))
    text = json.loads(json.dumps(proof.to_dict()))
    assert text["agrees"]
    assert text["info"]["label_space"]["names"] == ["sky", "road", "car"]


def test_a_data_set_is_read_as_the_source_was_trained(export, segmenter, small_dataset):
    data = dataclasses.replace(segmenter.config.data, bands=(3, 2, 1), pixel_mean=(100.0,) * 3, pixel_std=(50.0,) * 3)
    segmenter.config = dataclasses.replace(segmenter.config, data=data)
    prove(export(), segmenter, evidence=Evidence(dataset=small_dataset, limit=1))
    assert small_dataset.bands.bands == (3, 2, 1)


def test_8_bits_are_judged_by_real_labels_where_there_are_some(export, segmenter, small_dataset):
    """An export that knows better than its source has nothing in common with it, and may stay."""

    def change(logits):
        return np.roll(logits, 1, axis=1)

    class Known(type(small_dataset)):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            logits = change(logits_of(segmenter, sample.image.transpose(2, 0, 1)[None].copy()))
            return sample._replace(labels=logits[0].argmax(0).astype(np.uint8))

    proof = prove(export(change, precision="int8"), segmenter, evidence=Evidence(dataset=Known()))
    assert proof.agreement < 0.5
    assert proof.mean_iou == 1
    assert proof.source_mean_iou < 0.5

    class Own(Known):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            logits = logits_of(segmenter, sample.image.transpose(2, 0, 1)[None].copy())
            return sample._replace(labels=logits[0].argmax(0).astype(np.uint8))

    with pytest.raises(ExportError, match=r"on 6 images of tiny \(train\) drops by .* points \(at most 1\)"):
        prove(export(lambda logits: -logits, precision="int8"), segmenter, evidence=Evidence(dataset=Own()))
    with pytest.raises(ExportError, match="source's own labels"):
        prove(export(lambda logits: -logits, precision="int8"), segmenter)


def test_a_data_set_of_other_classes_is_refused(export, segmenter):
    from resnest_seg.data.synthetic import Synthetic

    with pytest.raises(CheckpointError, match="wrong classes"):
        prove(export(), segmenter, evidence=Evidence(dataset=Synthetic("test")))


def test_photos_are_used_up_to_a_number_and_small_ones_enlarged(export, segmenter):
    photos = [noise(20, 30 + index, 3, seed=index) for index in range(PHOTOS + 5)]
    proof = prove(export(smallest=33), segmenter, evidence=Evidence(photos=photos))
    assert proof.images == f"{PHOTOS} given photos"
    assert len(proof.comparisons) == len(SIZES)  # their own sizes are too small
    assert min(row.height for row in proof.comparisons) == 33


def test_models_of_other_channels_are_proven_as_well(tmp_path):
    segmenter = small_segmenter(channels=5)
    info = info_of(segmenter, ExportOptions())
    (tmp_path / "model.onnx").write_bytes(b"")
    model = ExportedModel(info, lambda x: logits_of(segmenter, x), path=tmp_path / "model.onnx", runtime="numpy")
    assert prove(model, segmenter).agreement == 1


def test_the_table_fits_a_terminal(export, segmenter):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(prove(export(), segmenter).table())
    text = console.export_text()
    assert "512 x 683" in text
    assert "100.0000%" in text
    assert "same labels" in text


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_images_of_many_bands_are_brought_to_all_sizes(kind):
    image = (np.random.default_rng(0).random((70, 90, 6)) * 200).astype(kind)
    found = list(_batches([image], 1, smallest=1))
    assert [batch.shape for batch in found] == [*((count, *size, 6) for size, count in SIZES), (1, 70, 90, 6)]
    assert {batch.dtype for batch in found} == {image.dtype}
    band = cv2.resize(np.ascontiguousarray(image[..., 4]), (47, 33), interpolation=cv2.INTER_AREA)
    assert np.allclose(found[0][0, ..., 4], band, atol=1e-3)
