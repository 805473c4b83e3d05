"""Arrow files, as the `datasets` package leaves them: a stream of record batches, mapped and gone through in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboreel._optional import require
from roboreel.convert.lfs import how_to_get
from roboreel.convert.parquet import MAX_BLOCK_ROWS, ColumnType, one_line, parse_columns
from roboreel.errors import SourceError

_MAGIC = b"ARROW1\0\0"
"""Of a file with a footer: after it comes a stream like any other."""


@dataclass(frozen=True)
class ArrowFile:
    """An Arrow stream that is whole; its rows are read when they are asked for."""

    path: Path
    num_rows: int
    columns: Mapping[str, ColumnType]

    @classmethod
    def open(cls, path: Path) -> ArrowFile:
        """Go through the headers of all batches; `SourceError` names a file that is missing, cut off or no Arrow."""
        stream = _Stream(path)
        columns = parse_columns(stream.schema, path)
        num_rows = sum(batch.num_rows for batch in stream)
        return cls(path, num_rows, columns)

    def rows(self, names: Sequence[str], *, max_rows: int = MAX_BLOCK_ROWS) -> ArrowRows:
        return ArrowRows(self, names, max_rows)


class ArrowRows:
    """Rows of one file. A batch is a view of the mapped file until it is wanted; going back starts at the beginning."""

    def __init__(self, file: ArrowFile, names: Sequence[str], max_rows: int) -> None:
        self._path = file.path
        self._names = list(names)
        self._max_rows = max_rows
        self._num_rows = file.num_rows
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._first = 0
        self._checked = -1
        """First row of the batch that was found valid."""

    def close(self) -> None:
        self._batches, self._batch = iter(()), None

    def read(self, start: int, length: int) -> Any:
        parts: list[Any] = []
        while length > 0 or not parts:
            batch = self._batch_with(start)
            count = min(length, self._first + batch.num_rows - start)
            parts.append(batch.slice(start - self._first, count))
            start, length = start + count, length - count
        return require("pyarrow", purpose="reading Arrow files").Table.from_batches(parts)

    def read_block(self, start: int) -> Any:
        batch = self._batch_with(start)
        return batch.slice(start - self._first, self._max_rows)

    def _batch_with(self, row: int) -> Any:
        if row >= self._num_rows:
            raise SourceError(f"{self._path}: row {row} is asked for, and it has only {self._num_rows} rows")
        if self._batch is None or row < self._first:
            self._batches = iter(_Stream(self._path))
            self._batch, self._first = next(self._batches), 0
        while row >= self._first + self._batch.num_rows:
            self._first += self._batch.num_rows
            self._batch = next(self._batches)
        if self._checked != self._first:
            self._check()
        return self._batch

    def _check(self) -> None:
        """Take the wanted columns, after looking at every offset in them: a lying one would be read out of bounds."""
        pyarrow = require("pyarrow", purpose="reading Arrow files")
        try:
            self._batch = self._batch.select(self._names)
            self._batch.validate(full=True)
        except (pyarrow.ArrowException, ValueError) as error:
            raise SourceError(
                f"{self._path}: rows {self._first} to {self._first + self._batch.num_rows - 1} are damaged "
                f"({one_line(error)}); download it again"
            ) from None
        self._checked = self._first


class _Stream:
    """The record batches of a file; `SourceError` where it is cut off or is something else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        pyarrow = require("pyarrow", purpose="reading Arrow files")
        ipc = require("pyarrow.ipc", purpose="reading Arrow files")
        if not path.is_file():
            raise SourceError(f"{path}: this file is missing; complete the download")
        try:
            self._source = pyarrow.memory_map(str(path))
            self._source.seek(len(_MAGIC) if self._source.read(len(_MAGIC)) == _MAGIC else 0)
            self._reader = ipc.open_stream(self._source)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{path}: not an Arrow file ({one_line(error)}); {how_to_get(path)}") from None

    @property
    def schema(self) -> Any:
        return self._reader.schema

    def __iter__(self) -> Iterator[Any]:
        pyarrow = require("pyarrow", purpose="reading Arrow files")
        end = self._source.tell()
        while True:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                break
            except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
                raise SourceError(
                    f"{self._path}: is cut off or damaged ({one_line(error)}); download it again"
                ) from None
            end = self._source.tell()
            if batch.num_rows:
                yield batch
        # a stream ends with a mark of its own; one cut off between two batches reads like a shorter one
        if self._source.tell() == end:
            raise SourceError(f"{self._path}: ends without the mark of its end: it is cut off; download it again")
