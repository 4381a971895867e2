"""What the verb `benchmark` measures, one subject a file: ours beside what else one would pick, interleaved.

`options.py`, `timing.py`, `memory.py` and `limits.py` are shared; `plain.py` is the authors' form of a network. Peers
are imported when they are measured, and a missing one is one message.
"""

__all__: list[str] = []
