"""The table of published checkpoints: addresses, hashes, and what is done without a network."""

import dataclasses
import errno
import hashlib
import re
import zipfile

import pytest
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from support.local_server import serve

from resnest_seg.config import ClassifierConfig, PretrainConfig
from resnest_seg.errors import ConfigError, DownloadError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import build_segmenter, classifier_for
from resnest_seg.models.published_weights import PUBLISHED, imagenet_checkpoint, published
from resnest_seg.models.resnest import SPECS
from resnest_seg.models.segmenter import Segmenter


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


def test_names_are_unique_and_known_under_their_short_form():
    names = [entry.name for entry in PUBLISHED]
    aliases = [entry.alias for entry in PUBLISHED]
    assert len(set(names)) == len(names)
    assert len(set(aliases)) == len(aliases)
    assert all(alias not in names or names[place] == alias for place, alias in enumerate(aliases))
    for entry in PUBLISHED:
        assert published(entry.name) is entry
        assert published(entry.alias) is entry
        assert entry.encoder in SPECS
        if entry.head != "classifier":
            assert len(LabelSpace.of(entry.dataset)) in (19, 59, 150)
    assert published("deeplab_resnest50_ade").name == "deeplab_resnest50_ade-2225f09d"
    assert published("fcn_s101-d8_512x512_160k_ade20k").digest.prefix == "d3160329"
    assert published("nothing") is None


@pytest.mark.long
def test_parameters_are_counted():
    counted = {}
    for entry in PUBLISHED:
        classes = 1000 if entry.dataset == "imagenet" else len(LabelSpace.of(entry.dataset))
        network = (entry.encoder, entry.head, "mmseg" if entry.source == "mmseg" else "encoding", classes)
        if network not in counted:
            encoder, head, family, classes = network
            with torch.device("meta"):
                if head == "classifier":
                    model = classifier_for(PretrainConfig(model=ClassifierConfig(encoder)), num_classes=classes)
                else:
                    needed = {"output_stride": 32, "aux_head": False} if head == "mask2former" else {}
                    model = build_segmenter(encoder, head=head, family=family, num_classes=classes, **needed)
            counted[network] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert entry.millions == pytest.approx(counted[network], abs=0.006), entry.name


def test_every_family_is_complete():
    count = {
        source: sum(entry.source == source for entry in PUBLISHED)
        for source in ("resnest", "timm", "encoding", "mmseg")
    }
    assert count == {"resnest": 11, "timm": 10, "encoding": 10, "mmseg": 12}


def test_addresses():
    mmseg = "deeplabv3plus_s101-d8_512x1024_80k_cityscapes"
    assert published("resnest50_fast_1s1x64d").url == (
        "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/resnest50_fast_1s1x64d-d8fbf808.pth"
    )
    mask2former = "mask2former_r50_8xb2-160k_ade20k-512x512"
    assert published(mask2former).url == (
        f"https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/{mask2former}/"
        f"{mask2former}_20221204_000055-2d1f55f1.pth"
    )
    assert published(mmseg).url == (
        f"https://download.openmmlab.com/mmsegmentation/v0.5/resnest/{mmseg}/{mmseg}_20200807_144429-1239eb43.pth"
    )
    assert published("deeplab_resnest269_pcontext").url.endswith(
        "/encoding/models/deeplab_resnest269_pcontext-b661fd26.zip"
    )
    assert published("timm/resnest14d.gluon_in1k").url == (
        "https://huggingface.co/timm/resnest14d.gluon_in1k/resolve/main/model.safetensors"
    )


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"])
def test_torchvisions_own_table_agrees(name):
    theirs, ours = torchvision.models.get_model_weights(name).IMAGENET1K_V1, imagenet_checkpoint(name)
    assert ours.url == theirs.url
    assert ours.single_scale == pytest.approx(theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.006)


def test_timms_own_table_agrees():
    import timm

    for entry in PUBLISHED:
        if entry.source == "timm":
            config = timm.models.get_pretrained_cfg(entry.name.removeprefix("timm/"))
            assert config.hf_hub_id == entry.name
            assert config.input_size[1] == entry.size


def test_hashes():
    for entry in PUBLISHED:
        assert (entry.digest is None) == (entry.source == "timm")
        if entry.digest is not None:
            assert entry.digest.algorithm == ("sha1" if entry.source == "encoding" else "sha256")
            assert re.search(rf"-{entry.digest.prefix}$", entry.name)


def test_an_encoder_without_imagenet_weights_names_those_with():
    assert imagenet_checkpoint("resnest50").name == "resnest50-528c19ca"
    assert imagenet_checkpoint("resnest14").name == "timm/resnest14d.gluon_in1k"
    with pytest.raises(ConfigError, match=r"no published ImageNet weights for encoder 'resnest14_tiny'.* resnest101"):
        imagenet_checkpoint("resnest14_tiny")


@pytest.mark.parametrize("name", ["resnest50-528c19ca", "deeplab_resnest50_ade", "pspnet_s101-d8_512x512_160k_ade20k"])
def test_offline_the_error_names_file_hash_and_folder(name, monkeypatch):
    with serve({}) as gone:
        monkeypatch.setattr("resnest_seg.models.published_weights.RESNEST_RELEASE", gone.url)
        monkeypatch.setattr("resnest_seg.models.published_weights.ENCODING_BUCKET", gone.url)
        monkeypatch.setattr("resnest_seg.models.published_weights.MMSEG_BUCKET", gone.url)
    monkeypatch.setattr("resnest_seg.io.downloads.TRIES", 1)
    entry = published(name)
    assert entry.local_path is None
    with pytest.raises(DownloadError) as error:
        entry.fetch()
    for part in (entry.name, str(entry.path), str(entry.digest)):
        assert part in str(error.value)


def test_the_hub_offline(monkeypatch):
    def offline(repository, file):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("resnest_seg.models.published_weights.hf_hub_download", offline)
    entry = published("timm/resnest50d.in1k")
    with pytest.raises(DownloadError, match=r"cannot download https://huggingface.co/timm/resnest50d.in1k") as error:
        entry.fetch()
    assert str(entry.path) in str(error.value)
    entry.path.parent.mkdir(parents=True)
    entry.path.write_bytes(b"put by hand")
    assert entry.fetch() == entry.path == entry.local_path


def test_a_full_disk_is_not_called_a_network_problem(monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("resnest_seg.models.published_weights.hf_hub_download", full)
    monkeypatch.setattr("resnest_seg.io.downloads._fetch", full)
    for name, variable in (("timm/resnest50d.in1k", "HF_HOME"), ("resnest50-528c19ca", "TORCH_HOME")):
        with pytest.raises(
            DownloadError, match=rf"cannot write into .*: Disk quota exceeded\. .*variable {variable}\."
        ):
            published(name).fetch()


@pytest.mark.parametrize("error", ["ConnectError", "ReadError", "ProxyError", "RemoteProtocolError", "ReadTimeout"])
def test_a_connection_to_the_hub_that_breaks_is_no_bug(error, monkeypatch):
    """The client's errors are no `OSError`s: a proxy that refuses and a line that is cut raise them as they are."""
    broken = getattr(pytest.importorskip("httpx2"), error)

    def cut(repository, file, **options):
        raise broken("")

    monkeypatch.setattr("resnest_seg.models.published_weights.hf_hub_download", cut)
    monkeypatch.setattr("resnest_seg.models.segmenter.hf_hub_download", cut)
    entry = published("timm/resnest50d.in1k")
    with pytest.raises(
        DownloadError, match=rf"\({error}\)\. Without a network, .* put it at {re.escape(str(entry.path))}"
    ):
        entry.fetch()
    with pytest.raises(DownloadError, match=rf"'someone/model' is no folder, .* fetched from the hub \({error}\)"):
        Segmenter.from_pretrained("someone/model")


@pytest.fixture
def entry():
    """One of the authors' files, with a hash that a test can meet."""
    name = f"deeplab_resnest50_ade-{hashlib.sha1(b'weights').hexdigest()[:8]}"
    entry = dataclasses.replace(published("deeplab_resnest50_ade"), name=name)
    entry.path.parent.mkdir(parents=True)
    return entry


def test_the_authors_zip_is_checked_by_what_is_inside(entry):
    with zipfile.ZipFile(entry.path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{entry.name}.pth", b"weights")
    assert entry.fetch() == entry.path
    whole = entry.path.read_bytes()
    with zipfile.ZipFile(entry.path, "w") as archive:
        archive.writestr(f"{entry.name}.pth", b"other weights")
    for damage in (entry.path.read_bytes(), whole[:-5], b"no zip"):
        entry.path.write_bytes(damage)
        with pytest.raises(DownloadError, match=r"is not the published file: its hash is not SHA1 .* inside the zip"):
            entry.fetch()


def test_an_unpacked_file_counts_for_the_zip(entry):
    unpacked = entry.path.with_suffix(".pth")
    unpacked.write_bytes(b"weights")
    assert entry.fetch() == unpacked
    unpacked.write_bytes(b"others")
    with pytest.raises(DownloadError, match="is not the published file"):
        entry.fetch()
