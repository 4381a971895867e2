"""`python -m resnest_seg` is the command `resnest-seg`."""

from resnest_seg.cli.main import run

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(run())
