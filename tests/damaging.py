"""Bytes of files, damaged as disks, networks and people damage them."""

from __future__ import annotations

import random


def damaged(raw: bytes, draw: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at = draw.randrange(len(out) + 1)
        new = draw.choice(
            [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1", bytes(4), draw.randbytes(1), draw.randbytes(99)]
        )
        out[at : at + draw.choice([0, len(new), len(new), 100, len(out)])] = new
    return bytes(out)
