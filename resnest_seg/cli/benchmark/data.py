"""Training samples of the ADE20K recipe (decode, random long edge, pad, crop 480, flip, to tensor) on one core."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.measuring import interleave

if TYPE_CHECKING:
    from torch import Tensor


def drawn_photos(folder: Path, count: int) -> None:
    """Write street scenes in ADE20K's layout and usual size, for a machine without the data set."""
    import cv2
    import numpy as np

    from resnest_seg.data.synthetic import Synthetic

    scenes = Synthetic("train", size=(512, 683))
    for index in range(count):
        sample, stem = scenes[index], f"ADE_train_{index:08d}"
        for kind, ending, picture in (
            ("images", ".jpg", sample.image[..., ::-1]),
            ("annotations", ".png", np.where(sample.labels == 255, 0, sample.labels + 1)),
        ):
            path = folder / "ADEChallengeData2016" / kind / "training" / f"{stem}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)


def pil_sample(image_path: str, mask_path: str, seed: int) -> tuple[Tensor, Tensor]:
    """One sample as PyTorch-Encoding's loader makes it, with the random numbers of ours: float image, int64 labels."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import normalize, to_tensor

    base_size, crop = 520, 480
    image: Image.Image = Image.open(image_path).convert("RGB")
    mask: Image.Image = Image.open(mask_path)
    random = np.random.default_rng(seed)
    flip, long = random.random() < 0.5, int(random.integers(base_size // 2, 2 * base_size + 1))
    if flip:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    w, h = image.size
    ow, oh = (int(1.0 * w * long / h + 0.5), long) if h > w else (long, int(1.0 * h * long / w + 0.5))
    image = image.resize((ow, oh), Image.Resampling.BILINEAR)
    mask = mask.resize((ow, oh), Image.Resampling.NEAREST)
    border = (0, 0, max(crop - ow, 0), max(crop - oh, 0))
    if any(border):
        image, mask = ImageOps.expand(image, border=border, fill=0), ImageOps.expand(mask, border=border, fill=0)
    top, left = int(random.integers(image.size[1] - crop + 1)), int(random.integers(image.size[0] - crop + 1))
    image, mask = (part.crop((left, top, left + crop, top + crop)) for part in (image, mask))
    pixels = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return pixels, torch.from_numpy(np.array(mask).astype("int64") - 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--data.root", dest="root", help="folder of ADE20K (default: drawn photos of 683 x 512)")
    parser.add_argument("--photos", type=int, default=32, help="photos to use (default: 32)")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """Samples a second on one core, ours and PIL's interleaved; where our time goes."""
    import tempfile

    import cv2
    import torch

    from resnest_seg.config import DataConfig
    from resnest_seg.config_types import check_option
    from resnest_seg.data.datasets import ADE20K
    from resnest_seg.data.transforms import TrainTransform
    from resnest_seg.io.images import decode_image
    from resnest_seg.io.masks import decode_mask

    check_option("--photos", options.photos, 1, 512)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        if options.root is None:
            drawn_photos(Path(temporary), options.photos)
        dataset = ADE20K(options.root or temporary, "train")
        paths = [
            (dataset.source.locate(image), dataset.source.locate(str(mask)))
            for image, mask in dataset.pairs[: options.photos]
        ]
        transform = TrainTransform.from_config(DataConfig(base_size=520, crop_size=480))
        contents = [(Path(image).read_bytes(), Path(mask).read_bytes()) for image, mask in paths]
        decoded = [(decode_image(a, ""), decode_mask(b, "")) for a, b in contents]
        seeds = range(len(paths))

        def ours(place: int) -> tuple[Tensor, Tensor]:
            sample = dataset[place]
            image, labels = transform(sample.image, sample.labels, seed=place)
            return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)

        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        for place in seeds:
            (image, labels), (pixels, theirs) = ours(place), pil_sample(paths[place][0], paths[place][1], place)
            assert ((image / 255 - mean) / std - pixels).abs().mean() < 0.02, "our samples and PIL's are not the same"
            assert bool((labels[theirs >= 0] == theirs[theirs >= 0]).float().mean() > 0.999)
        calls = {
            "ours": lambda: [ours(place) for place in seeds],
            "PIL, as PyTorch-Encoding": lambda: [
                pil_sample(paths[place][0], paths[place][1], place) for place in seeds
            ],
            "ours: decoding the photo": lambda: [decode_image(a, "") for a, _ in contents],
            "ours: decoding the mask": lambda: [decode_mask(b, "") for _, b in contents],
            "ours: resize, pad, crop, flip": lambda: [transform(a, b, seed=s) for s, (a, b) in enumerate(decoded)],
        }
        times = interleave(list(calls.values()), options.rounds)
    medians = [statistics.median(taken) / len(paths) for taken in times]
    return [
        {"name": name, "milliseconds": 1e3 * taken, "images_per_second": 1 / taken, "times_ours": taken / medians[0]}
        for name, taken in zip(calls, medians, strict=True)
    ]
