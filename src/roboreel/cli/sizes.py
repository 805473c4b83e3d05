"""Bytes as people read them."""

from __future__ import annotations


def shown_size(count: float) -> str:
    """Return bytes in decimal units.

    >>> shown_size(999), shown_size(20_500_000)
    ('999 B', '20.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
