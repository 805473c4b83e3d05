"""Refuses a Parquet file whose columns unfold to what no recording has: runs of one value take no room in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboreel.errors import SourceError

_MOST_UNFOLDING, _WORTH_REFUSING_BYTES = 1000, 64 << 20
_VALUE_BYTES = {"BOOLEAN": 4, "INT32": 8, "FLOAT": 8}
"""Of a decoded value, with the two levels of lists beside it that Arrow decodes; of others 12."""


def check_unfolding(path: Path, metadata: Any, names: Sequence[str]) -> None:
    """Refuse a column of `names` that takes over a thousand times the whole file, and is not small.

    Raises:
        SourceError: it does; nothing of it was decoded.
    """
    most = max(_WORTH_REFUSING_BYTES, _MOST_UNFOLDING * path.stat().st_size)
    wanted, prefixes = set(names), tuple(f"{name}." for name in names)
    sizes: dict[str, int] = {}
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            name = column.path_in_schema
            if name in wanted or name.startswith(prefixes):
                sizes[name] = sizes.get(name, 0) + column.num_values * _VALUE_BYTES.get(column.physical_type, 12)
    for name, size in sizes.items():
        if size > most:
            raise SourceError(
                f"{path}: its column {name!r} would unfold to {size:,} bytes, from a file of {path.stat().st_size:,}: "
                "no recording has such; take the column out, or download the file again"
            )
