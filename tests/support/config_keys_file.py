"""The golden list of config keys with their defaults; `make golden` rewrites it after a deliberate change of keys."""

from pathlib import Path

from resnest_seg.config import PretrainConfig, RunConfig
from resnest_seg.config_reading import flatten

FILE = Path(__file__).parents[1] / "golden" / "config_keys.txt"


def lines() -> str:
    """One line a key, `key = default`, of a segmentation run and of a classifier's run."""
    parts = []
    for name, config in (("train", RunConfig()), ("pretrain", PretrainConfig())):
        parts += [f"[{name}]", *(f"{key} = {value!r}" for key, value in flatten(config).items()), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    FILE.write_text(lines(), encoding="utf-8")
