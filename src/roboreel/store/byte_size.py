"""Sizes as people write them: "8GB", "500MB", "20GiB"."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)(i?)b", re.IGNORECASE)
_MAX_BYTES = 1 << 62


def parse_bytes(text: str) -> int | None:
    """Return the bytes of a size with a unit, or None for anything else.

    >>> parse_bytes("1.5kB"), parse_bytes("20GiB"), parse_bytes("8"), parse_bytes("0B")
    (1500, 21474836480, None, None)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    number, unit, binary = found.groups()
    if len(number) > 100:  # Python refuses to read numbers of thousands of digits
        return None
    amount = int(Fraction(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])
    return amount if 0 < amount <= _MAX_BYTES and not (binary and not unit) else None
