"""A port for a server that another process starts later."""

import itertools
import os
import socket

FIRST, LAST = 15_000, 30_000
"""Below the ports that systems give to whoever asks for any (from 32768 on), so that none of these takes one first."""

_drawn = itertools.count()


def free_port():
    """A port of 127.0.0.1 that nobody uses; another one at each call, and in each process from another place."""
    while True:
        port = FIRST + (os.getpid() * 37 + next(_drawn)) % (LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
