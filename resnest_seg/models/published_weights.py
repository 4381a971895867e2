"""Published checkpoints of ResNeSt and other ResNets: name, URL, hash, network and scores of each.

Sources: the release of the ResNeSt repository (ImageNet), PyTorch-Encoding (ADE20K, Pascal Context), mmsegmentation
v0.5 (ADE20K, Cityscapes), timm's repositories on the Hugging Face hub, torchvision (ResNet and ResNeXt, ImageNet).
Files are kept in torch.hub's folder, so that downloads by other packages are reused.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from resnest_seg.errors import ConfigError, DownloadError
from resnest_seg.io.downloads import UNWRITABLE, Digest, download, unwritable
from resnest_seg.models.weight_files import weight_member

RESNEST_RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"
ENCODING_BUCKET = "https://s3.us-west-1.wasabisys.com/encoding/models"
MMSEG_BUCKET = "https://download.openmmlab.com/mmsegmentation/v0.5"
TORCHVISION_BUCKET = "https://download.pytorch.org/models"

HUB_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,  # of its transfers by chunks (xet)
    HFValidationError,  # of what cannot be the name of a repository
    *(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)),
)
"""What a failing download from the Hugging Face hub raises. Most errors of its HTTP client are no `OSError`s (a broken
connection, a proxy that refuses); their base is found without naming the client, which is requests, httpx or httpx2 by
the version of the hub's package."""


@dataclasses.dataclass(frozen=True)
class PublishedCheckpoint:
    """A published weight file.

    Attributes:
        name: The name for `load_checkpoint`: the file's name without suffix, or the hub's repository.
        source: The publisher.
        millions: Parameters in millions, including an auxiliary head; a file has four bytes for each.
        encoder: Our name of its encoder.
        head: Its head, "classifier" for ImageNet.
        dataset: The training data.
        single_scale: Published single-scale mIoU, or top-1 accuracy for ImageNet, in percent.
        multi_scale: Published mIoU with several scales and flip, by the source's protocol, in percent.
        pixel_accuracy: Published pixel accuracy of the multi-scale protocol, in percent.
        size: Side in pixels of the images or crops in that evaluation.
    """

    name: str
    source: Literal["resnest", "encoding", "mmseg", "timm", "torchvision"]
    millions: float
    encoder: str
    head: str = "classifier"
    dataset: str = "imagenet"
    single_scale: float | None = None
    multi_scale: float | None = None
    pixel_accuracy: float | None = None
    size: int = 224

    @property
    def url(self) -> str:
        """The URL of the file."""
        match self.source:
            case "resnest":
                return f"{RESNEST_RELEASE}/{self.name}.pth"
            case "encoding":
                return f"{ENCODING_BUCKET}/{self.name}.zip"
            case "mmseg":
                folder = "mask2former" if self.head == "mask2former" else "resnest"
                return f"{MMSEG_BUCKET}/{folder}/{self.alias}/{self.name}.pth"
            case "torchvision":
                return f"{TORCHVISION_BUCKET}/{self.name}.pth"
            case "timm":
                return f"https://huggingface.co/{self.name}/resolve/main/model.safetensors"

    @property
    def alias(self) -> str:
        """The name without date and hash; also accepted."""
        return re.sub(r"(_\d{8}_\d{6})?-[0-9a-f]{8}$", "", self.name)

    @property
    def digest(self) -> Digest | None:
        """The hash in the name of the weight file; None for the hub, whose client verifies its files."""
        known = re.search(r"-([0-9a-f]{8})$", self.name)
        if known is None:
            return None
        return (
            Digest("sha1", known[1], member=weight_member) if self.source == "encoding" else Digest("sha256", known[1])
        )

    @property
    def path(self) -> Path:
        """The path of the download, where the file can also be put by hand."""
        endings = {"encoding": ".zip", "timm": ".safetensors"}
        return weights_folder() / f"{self.name.replace('/', '_')}{endings.get(self.source, '.pth')}"

    @property
    def local_path(self) -> Path | None:
        """Return the file on this machine, or None."""
        candidates = [self.path]
        if self.source == "encoding":
            candidates.append(self.path.with_suffix(".pth"))
        if self.source == "timm":
            cached = try_to_load_from_cache(self.name, "model.safetensors")
            candidates += [Path(cached)] if isinstance(cached, str) else []
        return next((path for path in candidates if path.is_file()), None)

    def fetch(self) -> Path:
        """Return the file on this machine, downloading it if it is missing.

        Raises:
            DownloadError: The download failed, or the hash differs; the message says where to put the file by hand. Or
                the folder cannot be written.
        """
        digest, path = self.digest, self.local_path or self.path
        if self.source == "timm" and path.is_file():
            return path  # verified by the hub's client, or put there by the user
        if digest is not None and path.suffix != ".zip":
            digest = dataclasses.replace(digest, member=None)
        if self.source != "timm":
            return download(self.url, path, digest=digest, moved_by="the variable TORCH_HOME")
        try:
            return Path(hf_hub_download(self.name, "model.safetensors"))
        except HUB_ERRORS as error:
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise unwritable(Path(HF_HUB_CACHE), error, moved_by="the variable HF_HOME") from None
            reason = type(error).__name__
            raise DownloadError(
                f"cannot download {self.url} ({reason}). Without a network, fetch the file elsewhere and put it at "
                f"{path}."
            ) from None


def weights_folder() -> Path:
    """Return torch.hub's folder for weights: $TORCH_HOME/hub/checkpoints, by default in ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _imagenet(
    stem: str, millions: float, encoder: str, top1: float | None = None, size: int = 224
) -> PublishedCheckpoint:
    return PublishedCheckpoint(stem, "resnest", millions, encoder, single_scale=top1, size=size)


def _encoding(
    stem: str,
    millions: float,
    encoder: str,
    head: str,
    dataset: str,
    multi: float | None = None,
    accuracy: float | None = None,
) -> PublishedCheckpoint:
    return PublishedCheckpoint(stem, "encoding", millions, encoder, head, dataset, None, multi, accuracy, 480)


def _mmseg(stem: str, millions: float, head: str, dataset: str, single: float, multi: float) -> PublishedCheckpoint:
    crop = 512 if dataset == "ade20k" else 1024
    return PublishedCheckpoint(stem, "mmseg", millions, "resnest101", head, dataset, single, multi, None, crop)


def _mask2former(stem: str, millions: float, encoder: str, dataset: str, single: float) -> PublishedCheckpoint:
    crop = 512 if dataset == "ade20k" else 1024
    return PublishedCheckpoint(f"mask2former_{stem}", "mmseg", millions, encoder, "mask2former", dataset, single,
                               size=crop)  # fmt: skip


def _timm(model: str, millions: float, encoder: str, size: int = 224) -> PublishedCheckpoint:
    return PublishedCheckpoint(f"timm/{model}", "timm", millions, encoder, size=size)


def _torchvision(stem: str, millions: float, encoder: str, top1: float) -> PublishedCheckpoint:
    return PublishedCheckpoint(stem, "torchvision", millions, encoder, single_scale=top1)


PUBLISHED: tuple[PublishedCheckpoint, ...] = (
    _imagenet("resnest50-528c19ca", 27.48, "resnest50", 81.03),
    _imagenet("resnest101-22405ba7", 48.28, "resnest101", 82.83, 256),
    _imagenet("resnest200-75117900", 70.2, "resnest200", 83.84, 320),
    _imagenet("resnest269-0cc87c48", 110.93, "resnest269", 84.54, 416),
    _imagenet("resnest50_fast_1s1x64d-d8fbf808", 26.22, "resnest50_fast_1s1x64d"),
    _imagenet("resnest50_fast_2s1x64d-44938639", 27.48, "resnest50_fast_2s1x64d"),
    _imagenet("resnest50_fast_4s1x64d-f74f3fc3", 31.91, "resnest50_fast_4s1x64d"),
    _imagenet("resnest50_fast_1s2x40d-32830b84", 25.95, "resnest50_fast_1s2x40d"),
    _imagenet("resnest50_fast_2s2x40d-9d126481", 26.94, "resnest50_fast_2s2x40d"),
    _imagenet("resnest50_fast_4s2x40d-41d14ed0", 30.42, "resnest50_fast_4s2x40d"),
    _imagenet("resnest50_fast_1s4x24d-d4a4f76f", 25.68, "resnest50_fast_1s4x24d"),
    _timm("resnest14d.gluon_in1k", 10.61, "resnest14"),
    _timm("resnest26d.gluon_in1k", 17.07, "resnest26"),
    _timm("resnest50d.in1k", 27.48, "resnest50"),
    _timm("resnest101e.in1k", 48.28, "resnest101", 256),
    _timm("resnest200e.in1k", 70.2, "resnest200", 320),
    _timm("resnest269e.in1k", 110.93, "resnest269", 416),
    _timm("resnest50d_4s2x40d.in1k", 30.42, "resnest50_fast_4s2x40d"),
    _timm("resnest50d_1s4x24d.in1k", 25.68, "resnest50_fast_1s4x24d"),
    _timm("resnet50c.gluon_in1k", 25.58, "resnet50c"),
    _timm("resnet101c.gluon_in1k", 44.57, "resnet101c"),
    _torchvision("resnet50-0676ba61", 25.56, "resnet50", 76.13),
    _torchvision("resnet101-63fe2227", 44.55, "resnet101", 77.37),
    _torchvision("resnet152-394f9c45", 60.19, "resnet152", 78.31),
    _torchvision("resnext50_32x4d-7cdf4587", 25.03, "resnext50_32x4d", 77.62),
    _torchvision("resnext101_32x8d-8ba56ff5", 88.79, "resnext101_32x8d", 79.31),
    _encoding("fcn_resnest50_ade-4aba491a", 37.35, "resnest50", "fcn", "ade20k", 42.94, 80.18),
    _encoding("deeplab_resnest50_ade-2225f09d", 44.0, "resnest50", "deeplabv3", "ade20k", 45.12, 81.17),
    _encoding("deeplab_resnest101_ade-06ca799c", 64.79, "resnest101", "deeplabv3", "ade20k", 46.91, 82.07),
    _encoding("deeplab_resnest200_ade-7b9e7d3e", 86.71, "resnest200", "deeplabv3", "ade20k", 48.36, 82.45),
    _encoding("deeplab_resnest269_ade-0074dd10", 127.44, "resnest269", "deeplabv3", "ade20k", 47.60, 82.62),
    _encoding("fcn_resnest50_pcontext-77a2161d", 37.28, "resnest50", "fcn", "pascal_context"),
    _encoding("deeplab_resnest50_pcontext-08dccbc4", 43.95, "resnest50", "deeplabv3", "pascal_context", 53.19, 80.41),
    _encoding("deeplab_resnest101_pcontext-faf58418", 64.74, "resnest101", "deeplabv3", "pascal_context", 56.49, 81.91),
    _encoding("deeplab_resnest200_pcontext-fe76a265", 86.67, "resnest200", "deeplabv3", "pascal_context", 58.37, 82.50),
    _encoding("deeplab_resnest269_pcontext-b661fd26", 127.4, "resnest269", "deeplabv3", "pascal_context", 58.92, 83.06),
    _mmseg("fcn_s101-d8_512x512_160k_ade20k_20200807_145416-d3160329", 72.3, "fcn", "ade20k", 45.62, 46.16),
    _mmseg("pspnet_s101-d8_512x512_160k_ade20k_20200807_145416-a6daa92a", 71.78, "pspnet", "ade20k", 45.44, 46.28),
    _mmseg(
        "deeplabv3_s101-d8_512x512_160k_ade20k_20200807_144503-17ecabe5", 90.91, "deeplabv3", "ade20k", 45.71, 46.59
    ),
    _mmseg(
        "deeplabv3plus_s101-d8_512x512_160k_ade20k_20200807_144503-27b26226",
        66.39,
        "deeplabv3plus",
        "ade20k",
        46.47,
        47.27,
    ),
    _mmseg("fcn_s101-d8_512x1024_80k_cityscapes_20200807_140631-f8d155b3", 72.2, "fcn", "cityscapes", 77.56, 78.98),
    _mmseg(
        "pspnet_s101-d8_512x1024_80k_cityscapes_20200807_140631-c75f3b99", 71.67, "pspnet", "cityscapes", 78.57, 79.19
    ),
    _mmseg(
        "deeplabv3_s101-d8_512x1024_80k_cityscapes_20200807_144429-b73c4270",
        90.81,
        "deeplabv3",
        "cityscapes",
        79.67,
        80.51,
    ),
    _mmseg(
        "deeplabv3plus_s101-d8_512x1024_80k_cityscapes_20200807_144429-1239eb43",
        66.29,
        "deeplabv3plus",
        "cityscapes",
        79.62,
        80.27,
    ),
    _mask2former("r50_8xb2-160k_ade20k-512x512_20221204_000055-2d1f55f1", 44.04, "resnet50", "ade20k", 47.87),
    _mask2former("r101_8xb2-160k_ade20k-512x512_20221203_233905-b7135890", 63.03, "resnet101", "ade20k", 48.60),
    _mask2former("r50_8xb2-90k_cityscapes-512x1024_20221202_140802-ffd9d750", 44.01, "resnet50", "cityscapes", 80.44),
    _mask2former("r101_8xb2-90k_cityscapes-512x1024_20221130_031628-43e68666", 63.0, "resnet101", "cityscapes", 80.80),
)


def published(name: str) -> PublishedCheckpoint | None:
    """Look up a published checkpoint by name or alias; None if there is none."""
    return next((entry for entry in PUBLISHED if name in (entry.name, entry.alias)), None)


def published_names() -> list[str]:
    """List the short names, in the order of the table."""
    return [entry.alias for entry in PUBLISHED]


def imagenet_checkpoint(encoder: str) -> PublishedCheckpoint:
    """Return the published ImageNet weights of an encoder.

    Raises:
        ConfigError: There are none for this encoder.
    """
    checkpoint = next((entry for entry in PUBLISHED if entry.encoder == encoder and entry.dataset == "imagenet"), None)
    if checkpoint is None:
        known = dict.fromkeys(entry.encoder for entry in PUBLISHED if entry.dataset == "imagenet")
        raise ConfigError(
            f"there are no published ImageNet weights for encoder {encoder!r}. Set encoder_weights to null (random "
            f"weights), to the path of a weight file, or choose one of: {', '.join(known)}."
        )
    return checkpoint


def check_encoder_weights(weights: object) -> None:
    """Refuse what other libraries take for "pre-trained", such as True: here the weights are named.

    Raises:
        ConfigError: Says which name is meant.
    """
    if isinstance(weights, bool):
        meant = "imagenet" if weights else None
    elif isinstance(weights, str) and _PRETRAINED.fullmatch(weights) and not Path(weights).exists():
        meant = "imagenet"
    else:
        return
    raise ConfigError(
        "encoder_weights must be 'imagenet', a weight file, a run folder, the name of a published checkpoint, or None "
        f"(random weights), not {weights!r}. Give {meant!r}."
    )


_PRETRAINED = re.compile(r"(?!imagenet$)(?i:true|yes|default|pre-?trained|image[-_ ]?net(-?1k)?(_v[12])?)")
