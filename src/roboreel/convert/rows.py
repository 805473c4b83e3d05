"""Rows of a table that lies in one file or in several: what every reader of columns needs of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from roboreel._optional import require
from roboreel.convert.parquet import MAX_BLOCK_ROWS, ColumnType
from roboreel.errors import SourceError


class Rows(Protocol):
    """An open reader of some columns; cheapest forwards."""

    def read(self, start: int, length: int) -> Any:
        """Rows `start` to `start + length` as an Arrow table; `SourceError` where they cannot be read."""

    def read_block(self, start: int) -> Any:
        """Some rows from `start` on, at least one, as an Arrow record batch."""

    def close(self) -> None: ...


class RowFile(Protocol):
    """A table of which the columns are known and the rows are read when they are asked for."""

    @property
    def path(self) -> Path: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def columns(self) -> Mapping[str, ColumnType]: ...

    def rows(self, names: Sequence[str], *, max_rows: int = MAX_BLOCK_ROWS) -> Rows: ...


@dataclass(frozen=True)
class ShardedFile:
    """Files whose rows follow each other, as one: an episode may begin in one of them and end in the next."""

    path: Path
    """The folder that they are in."""
    shards: tuple[RowFile, ...]

    def __post_init__(self) -> None:
        first = self.shards[0]
        for shard in self.shards[1:]:
            odd = sorted(set(first.columns).symmetric_difference(shard.columns))
            odd = odd or sorted(name for name in first.columns if first.columns[name] != shard.columns[name])
            if odd:
                raise SourceError(
                    f"{shard.path}: column {odd[0]!r} is not as in {first.path}; download both again: files of one "
                    "recording have the same columns"
                )

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return self.shards[0].columns

    def rows(self, names: Sequence[str], *, max_rows: int = MAX_BLOCK_ROWS) -> Rows:
        return (
            self.shards[0].rows(names, max_rows=max_rows) if len(self.shards) == 1 else _Joined(self, names, max_rows)
        )


def shards_of(file: RowFile) -> list[Path]:
    """The files that the rows lie in."""
    return [shard.path for shard in file.shards] if isinstance(file, ShardedFile) else [file.path]


class _Joined:
    """Rows across the files, one of which is open at a time."""

    def __init__(self, file: ShardedFile, names: Sequence[str], max_rows: int) -> None:
        self._file = file
        self._names = names
        self._max_rows = max_rows
        self._ends = np.cumsum([shard.num_rows for shard in file.shards], dtype=np.int64)
        self._open: tuple[int, Rows] | None = None

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def read(self, start: int, length: int) -> Any:
        stop = start + length
        parts: list[Any] = []
        while start < stop or not parts:
            rows, first, end = self._shard_with(start)
            count = min(stop, end) - start
            parts.append(rows.read(start - first, count))
            start += count
        return require("pyarrow", purpose="reading a recording's rows").concat_tables(parts)

    def read_block(self, start: int) -> Any:
        rows, first, _ = self._shard_with(start)
        return rows.read_block(start - first)

    def _shard_with(self, row: int) -> tuple[Rows, int, int]:
        """Return the file that holds a row, its first row and the one after its last."""
        at = int(np.searchsorted(self._ends, row, side="right"))
        if at >= len(self._ends):
            raise SourceError(f"{self._file.path}: row {row} is asked for, and it has only {self._file.num_rows} rows")
        if self._open is None or self._open[0] != at:
            self.close()
            self._open = at, self._file.shards[at].rows(self._names, max_rows=self._max_rows)
        return self._open[1], int(self._ends[at]) - self._file.shards[at].num_rows, int(self._ends[at])
