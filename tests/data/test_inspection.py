"""Fingerprints, near duplicates, and scans that broken files do not stop."""

import cv2
import numpy as np
import pytest
from support import fake_data

from resnest_seg.data.build import build_dataset
from resnest_seg.data.inspection import fingerprint, near_duplicates, scan
from resnest_seg.data.synthetic import Synthetic


def test_copies_are_near_and_other_photos_are_far():
    photos = [Synthetic("train")[index].image for index in range(12)]
    prints = np.stack([fingerprint(photo) for photo in photos])
    quality = [cv2.IMWRITE_JPEG_QUALITY, 60]
    copies = [cv2.imdecode(cv2.imencode(".jpg", photo, quality)[1], cv2.IMREAD_COLOR) for photo in photos[:3]]
    copies.append(cv2.resize(photos[3], (120, 80), interpolation=cv2.INTER_AREA))
    copies.append(np.clip(photos[4].astype(int) + 12, 0, 255).astype(np.uint8))
    others = [Synthetic("val")[index].image for index in range(8)]
    seconds = np.stack([fingerprint(photo) for photo in copies + others])
    pairs = near_duplicates(prints, seconds)
    assert {(a, b) for a, b, _ in pairs} == {(place, place) for place in range(5)}
    assert [bits for _, _, bits in pairs] == sorted(bits for _, _, bits in pairs)
    slow = [
        (a, b, bits)
        for a, one in enumerate(prints)
        for b, other in enumerate(seconds)
        if (bits := int(np.unpackbits((one ^ other).view(np.uint8)).sum())) <= 28
    ]
    assert sorted(pairs) == sorted(slow)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_goes_past_what_is_broken(workers, tmp_path):
    root = fake_data.make("camvid", tmp_path)
    (root / "train" / "0001TP_000001.png").write_bytes(b"")
    (root / "trainannot" / "0001TP_000002.png").unlink()
    dataset = build_dataset("camvid", root=root, allow_missing=True)
    facts = list(scan(dataset, range(4), workers=workers))
    assert [fact.kind for fact in facts] == [None, "unreadable photo", "missing mask", None]
    assert facts[0].size == fake_data.SIZE
    assert facts[0].labels.sum() == facts[0].raw_ids.sum() == 72 * 96
    assert facts[0].labels[-1] == 4 * 96  # the ignored border
