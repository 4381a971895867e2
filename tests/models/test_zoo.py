"""Any checkpoint by path or name, all the way to predictions."""

import io
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from support.local_server import serve
from support.reference import GOLDEN, fill_fast, filled_state, golden_images, original_keys
from support.small_models import noise

from resnest_seg.errors import CheckpointError, ConfigError, DownloadError
from resnest_seg.inference.predictor import Predictor
from resnest_seg.io.visualize import png_bytes
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import build_segmenter, load_checkpoint, load_classifier
from resnest_seg.models.published_weights import PublishedCheckpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """PyTorch-Encoding's FCN ResNeSt-50 by the fill rule, as its authors would publish it."""
    path = tmp_path_factory.mktemp("authors") / "fcn_resnest50_ade.pth"
    torch.save(filled_state(original_keys()["fcn_resnest50"]), path)
    return path


def assert_golden(segmenter):
    golden = np.load(GOLDEN / "fcn_resnest50.npz")
    with torch.inference_mode():
        logits = segmenter(golden_images(segmenter, golden)).logits
    values = logits.contiguous().flatten().numpy()[golden["main_idx"]]
    assert np.abs(values - golden["main_val"]).max() / np.abs(golden["main_val"]).max() < 1e-4


@pytest.mark.parametrize("inside", [False, True])
def test_the_authors_file_in_its_zip_and_out_of_it(authors, inside, tmp_path):
    path = authors
    if inside:
        path = tmp_path / "fcn_resnest50_ade-4aba491a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(authors, "fcn_resnest50_ade-4aba491a.pth")
    segmenter = load_checkpoint(path)
    assert not segmenter.training
    assert_golden(segmenter)
    assert segmenter.label_space == LabelSpace.of("ade20k")
    assert segmenter.description == "resnest50 fcn, output stride 8, dilation encoding"
    assert segmenter.config.data.dataset == "ade20k"
    report = segmenter.load_report
    assert (report.path, report.format) == (path, "PyTorch-Encoding")
    assert report.loaded == len(original_keys()["fcn_resnest50"])
    assert "150 classes (ade20k)" in str(report)
    assert "assumed output stride 8: no key determines it" in str(report)


def test_a_published_name_is_fetched_recognised_and_loaded(authors, tmp_path, monkeypatch):
    import hashlib

    content = authors.read_bytes()
    entry = PublishedCheckpoint(
        f"fcn_resnest50_ade-{hashlib.sha1(content).hexdigest()[:8]}", "encoding", 37.3, "resnest50", "fcn", "ade20k"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:  # noise has no shorter form
        archive.writestr(f"{entry.name}.pth", content)
    monkeypatch.setattr("resnest_seg.models.published_weights.PUBLISHED", (entry,))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with serve({f"/{entry.name}.zip": buffer.getvalue()}) as site:
        monkeypatch.setattr("resnest_seg.models.published_weights.ENCODING_BUCKET", site.url)
        site.cut_after = [1_000_000]
        assert_golden(load_checkpoint("fcn_resnest50_ade"))
        assert len(site.asked) == 2
    assert_golden(load_checkpoint(entry.name))  # without the server
    monkeypatch.setattr("resnest_seg.io.downloads.TRIES", 1)
    (tmp_path / "checkpoints" / f"{entry.name}.zip").unlink()
    with pytest.raises(DownloadError, match="Without a network, fetch the file"):
        load_checkpoint(entry.name)


def test_mmsegmentations_file_with_its_own_classes(tmp_path):
    """Thirteen classes of somebody's own, trained with mmsegmentation at output stride 16."""
    shapes = {key: [13, *shape[1:]] if "conv_seg" in key else shape
              for key, shape in original_keys()["mmseg_fcn_ade"].items()}  # fmt: skip
    meta = {"CLASSES": tuple(f"kind {k}" for k in range(13)), "PALETTE": [[k, k, k] for k in range(13)], "epoch": 7}
    torch.save(
        {"meta": meta, "state_dict": filled_state(shapes, np.random.default_rng), "optimizer": {"lr": 0.1}},
        tmp_path / "mine.pth",
    )
    segmenter = load_checkpoint(tmp_path / "mine.pth", output_stride=16)
    assert segmenter.description == "resnest101 mmseg fcn, output stride 16, dilation mmseg"
    assert segmenter.label_space.names[12] == "kind 12"
    assert not segmenter.align_corners
    assert [name for name, _ in segmenter.load_report.skipped] == ["optimizer"]
    prediction = Predictor(segmenter, device="cpu")(np.zeros((40, 50, 3), np.uint8))
    assert prediction.overlay(legend=False).shape == (40, 50, 3)


@pytest.mark.parametrize("original", ["timm", "torchvision"])
@torch.inference_mode()
def test_an_imagenet_classifier_scores_as_the_live_original(original, tmp_path):
    """At output stride 32 and, for timm, dilated."""
    create = {"timm": lambda: timm.create_model("resnest14d"), "torchvision": torchvision.models.resnet50}[original]
    model = fill_fast(create())
    path = tmp_path / "model.safetensors"
    if original == "timm":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        path = tmp_path / "resnet50.pth"
        torch.save(model.state_dict(), path)
    images = torch.randint(0, 256, (2, 3, 65, 90), dtype=torch.uint8)
    classifier = load_classifier(path)
    scores = classifier(images)
    expected = model(classifier.normalise(images))
    assert scores.shape == (2, 1000)
    assert torch.allclose(scores, expected, atol=1e-4 * expected.abs().max())
    assert "ImageNet classifier, " in str(classifier.load_report)
    if original == "timm":
        for stride in (8, 16):
            dilated = load_classifier(path, output_stride=stride, dilation="timm")
            live = timm.create_model("resnest14d", output_stride=stride).eval()
            live.load_state_dict(model.state_dict())
            want = live(classifier.normalise(images))
            assert torch.allclose(dilated(images), want, atol=1e-4 * want.abs().max())


def test_a_classifier_cannot_segment(tmp_path):
    torch.save(fill_fast(timm.create_model("resnest14d")).state_dict(), tmp_path / "resnest14.pth")
    with pytest.raises(CheckpointError, match="this is an image classifier, it cannot segment"):
        Predictor.from_checkpoint(tmp_path / "resnest14.pth", device="cpu")


def test_a_bare_state_dict_of_ours(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=19, aux_head=False).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in segmenter.state_dict().items()}}, tmp_path / "s.pt"
    )
    loaded = load_checkpoint(tmp_path / "s.pt")
    assert loaded.label_space.name == "cityscapes"
    assert loaded.aux_head is None
    images = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(images).logits, segmenter(images).logits)


def test_what_does_not_fit_is_refused(authors, tmp_path):
    state = torch.load(authors, weights_only=True)
    del state["pretrained.layer2.1.bn1.weight"]
    state["head.conv5.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "damaged.pth")
    for part in (f"{tmp_path}/damaged.pth: ", "1 missing, first encoder.layer2.1.bn1.weight",
                 "head.conv5.0.weight [1] instead of [512, 2048, 3, 3]"):  # fmt: skip
        assert part in str(error.value)


def test_counters_that_old_files_lack_are_expected(authors, tmp_path):
    state = {key: value for key, value in torch.load(authors, weights_only=True).items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    segmenter = load_checkpoint(tmp_path / "old.pth")
    assert_golden(segmenter)
    assert "not in the file, kept as built: " in str(segmenter.load_report)


def test_unknown_names_and_needless_options(tmp_path):
    with pytest.raises(CheckpointError, match=r"no published checkpoint of that name. `python tools/zoo_seg.py` lists"):
        load_checkpoint("deeplab_resnest50_adee")
    build_segmenter("resnest14_tiny", num_classes=3).to_checkpoint().save(tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="says itself which output stride and dilation"):
        load_checkpoint(tmp_path / "own.safetensors", output_stride=16)
    torch.save(build_segmenter("resnest14_tiny", head="fcn", num_classes=3).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match="output_stride must be 8, 16 or 32, not 7"):
        load_checkpoint(tmp_path / "bare.pth", output_stride=7)


def test_a_published_timm_file_is_of_timms_variant(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    save_file(fill_fast(timm.create_model("resnest14d")).state_dict(), tmp_path / "m.safetensors")
    monkeypatch.setattr(
        "resnest_seg.models.published_weights.hf_hub_download", lambda repository, file: tmp_path / "m.safetensors"
    )
    monkeypatch.setattr("resnest_seg.models.published_weights.try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    classifier = load_classifier("timm/resnest14d.gluon_in1k", output_stride=8)
    assert classifier.encoder.dilation == "timm"
    assert classifier.config.data.dataset == "imagenet"
    assert "assumed dilation encoding" in str(load_classifier(tmp_path / "m.safetensors", output_stride=8).load_report)


def test_a_saved_model_is_a_checkpoint(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    segmenter.save_pretrained(tmp_path / "saved")
    assert load_checkpoint(tmp_path / "saved").num_classes == 3


def test_a_model_for_other_channels_cannot_read_photos(tool, tmp_path, capsys):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, in_channels=1)
    segmenter.label_space = LabelSpace.numbered(3)
    segmenter.to_checkpoint().save(tmp_path / "grey.safetensors")
    predictor = Predictor.from_checkpoint(tmp_path / "grey.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="for images of 1 channels, and photos have 3"):
        predictor.check_photos()
    (tmp_path / "photo.png").write_bytes(png_bytes(noise(32, 40, 3)))
    words = ("--checkpoint", tmp_path / "grey.safetensors", "--output", tmp_path / "out", tmp_path / "photo.png")
    assert tool("predict_seg")(*words) == 2
    assert "for images of 1 channels, and photos have 3" in capsys.readouterr().err


def test_a_checkpoint_of_ours_needs_its_pixel_statistics(tmp_path):
    import dataclasses

    whole = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).to_checkpoint()
    weights = {key: value for key, value in whole.weights.items() if not key.startswith("pixel_")}
    dataclasses.replace(whole, weights=weights).save(tmp_path / "lost.safetensors")
    with pytest.raises(CheckpointError, match="lacks pixel_mean and pixel_std"):
        load_checkpoint(tmp_path / "lost.safetensors")


def test_a_checkpoint_of_a_data_set_without_loader_says_so(tool, tmp_path, capsys):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=59)
    torch.save(segmenter.state_dict(), tmp_path / "context.pth")
    assert tool("eval_seg")("--checkpoint", tmp_path / "context.pth") == 2
    assert "is for data set 'pascal_context', for which there is no loader here" in capsys.readouterr().err
