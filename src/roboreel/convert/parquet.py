"""Parquet files, read a block of rows at a time: what the columns are, rows in order, columns as numpy arrays.

What is held is a block of decoded rows, and what Arrow itself holds of the open row group: at least a page of each
column, and its dictionary. Writers decide how large these are. With row groups of megabytes it is little; one giant row
group of images of 230 kB each was measured to take 600 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.convert.lfs import how_to_get
from roboreel.convert.parquet_bombs import check_unfolding
from roboreel.errors import SourceError

BLOCK_BYTES = 16 << 20
"""About how many decoded bytes one block of rows takes; Arrow's own pages come on top of that."""

MAX_BLOCK_ROWS = 65536
_READ_AHEAD_BYTES = 1 << 20

ColumnKind = Literal["number", "string", "image", "video", "binary", "other"]
"""`image` and `video` are structures of `bytes` and `path`, and of `path` and `timestamp`."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What a column really holds: `depth` levels of lists around a leaf."""

    kind: ColumnKind
    depth: int
    dtype: np.dtype[Any] | None
    """Of the numbers; None for every other kind."""
    text: str
    """As Arrow prints it, for messages."""


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file whose footer could be read; the rows are read when they are asked for."""

    path: Path
    num_rows: int
    columns: Mapping[str, ColumnType]

    @classmethod
    def open(cls, path: Path) -> ParquetFile:
        """Read the footer; `SourceError` names a file that is missing, truncated or not Parquet."""
        handle = _open(path)
        columns = parse_columns(handle.schema_arrow, path)
        num_rows = handle.metadata.num_rows
        handle.close()
        return cls(path, num_rows, columns)

    def rows(self, names: Sequence[str], *, max_rows: int = MAX_BLOCK_ROWS) -> RowReader:
        """A reader of the columns `names`, at most `max_rows` decoded rows of which are held between reads."""
        return RowReader(self, names, max_rows)

    def records(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield each row of the columns `names` as Python values: for small files."""
        reader, row = self.rows(names), 0
        while row < self.num_rows:
            block = reader.read_block(row)
            try:
                yield from block.to_pylist()
            except UnicodeDecodeError as error:
                raise SourceError(f"{self.path}: a string is not UTF-8 ({error}); download it again") from None
            row += block.num_rows
        reader.close()


class RowReader:
    """Rows of one file. Reading forwards decodes each block once; going back starts at its row group again."""

    def __init__(self, file: ParquetFile, names: Sequence[str], max_rows: int = MAX_BLOCK_ROWS) -> None:
        self._path = file.path
        self._names = list(names)
        texts = [name for name in names if (column := file.columns[name]).kind == "string" and not column.depth]
        self._handle = _open(file.path, texts)
        metadata = self._handle.metadata
        ends = np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)
        self._group_ends = ends
        try:
            check_unfolding(file.path, metadata, self._names)
            row_bytes = _uncompressed_bytes(metadata, self._names) / max(1, metadata.num_rows)
        except UnicodeDecodeError as error:
            raise SourceError(f"{file.path}: a column's name is not UTF-8 ({error}); download it again") from None
        self._block_rows = int(np.clip(BLOCK_BYTES / max(1.0, row_bytes), 1, max_rows))
        self._blocks: Iterator[Any] = iter(())
        self._block: Any = None
        self._first = 0  # row number of the held block's first row
        self._next = -1  # row number that the iterator gives next; -1: not started

    def close(self) -> None:
        self._blocks, self._block = iter(()), None
        self._handle.close()

    def read(self, start: int, length: int) -> Any:
        """Rows `start` to `start + length` as an Arrow table; `SourceError` where they cannot be read."""
        pyarrow = require("pyarrow", purpose="reading Parquet")
        parts: list[Any] = []
        while length > 0 or not parts:
            block = self._block_with(start)
            count = min(length, self._first + block.num_rows - start)
            parts.append(block.slice(start - self._first, count))
            start, length = start + count, length - count
        return pyarrow.Table.from_batches(parts)

    def read_block(self, start: int) -> Any:
        """Rows from `start` to the end of the block that holds it, as an Arrow record batch of one or more rows."""
        block = self._block_with(start)
        return block.slice(start - self._first)

    def _block_with(self, row: int) -> Any:
        behind = self._block is not None and row < self._first
        group = int(np.searchsorted(self._group_ends, row, side="right"))
        if group >= len(self._group_ends):
            total = int(self._group_ends[-1]) if len(self._group_ends) else 0
            raise SourceError(f"{self._path}: row {row} is asked for, and it has only {total} rows; download it again")
        group_start = int(self._group_ends[group - 1]) if group else 0
        if behind or self._next < group_start:
            self._start_at(group, group_start)
        while self._block is None or row >= self._first + self._block.num_rows:
            self._advance()
        return self._block

    def _start_at(self, group: int, row: int) -> None:
        groups = list(range(group, len(self._group_ends)))
        # Blocks are decoded by one thread: the columns are small, and workers must not inherit a pool in use.
        self._blocks = self._handle.iter_batches(
            self._block_rows, row_groups=groups, columns=self._names, use_threads=False
        )
        self._block, self._first, self._next = None, row, row

    def _advance(self) -> None:
        pyarrow = require("pyarrow", purpose="reading Parquet")
        try:
            block = next(self._blocks)
        except StopIteration:
            raise SourceError(
                f"{self._path}: its rows end at {self._next}, before what its footer says; download it again"
            ) from None
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"{self._path}: cannot be read from row {self._next} on ({one_line(error)}); download it again"
            ) from None
        # Arrow takes a dot for nesting: asked for `a.b`, it also gives a column `a.b.c`.
        self._block = block.select(self._names)
        self._first, self._next = self._next, self._next + block.num_rows


def _open(path: Path, texts: Sequence[str] = ()) -> Any:
    """Open a file; the columns `texts` come as codes, so that a long text is in memory once for all of its rows."""
    pyarrow = require("pyarrow", purpose="reading Parquet")
    parquet = require("pyarrow.parquet", purpose="reading Parquet")
    if not path.is_file():
        raise SourceError(
            f"{path}: this file is missing; complete the download, or take its episodes out of the metadata"
        )
    try:
        # from the root on: of run:1/data.parquet it takes run: for the name of a file system
        return parquet.ParquetFile(
            path.absolute(), buffer_size=_READ_AHEAD_BYTES, pre_buffer=False, read_dictionary=list(texts)
        )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{path}: not a complete Parquet file ({one_line(error)}); {how_to_get(path)}") from None


def one_line(error: Exception) -> str:
    """What an error of Arrow says, which may be several lines, for the middle of a sentence."""
    return " ".join(str(error).split())


def _uncompressed_bytes(metadata: Any, names: Sequence[str]) -> int:
    wanted = tuple(names)
    prefixes = tuple(f"{name}." for name in names)
    total = 0
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            if column.path_in_schema in wanted or column.path_in_schema.startswith(prefixes):
                total += column.total_uncompressed_size
    return total


def parse_columns(schema: Any, path: Path) -> dict[str, ColumnType]:
    """What each column of an Arrow schema holds; `SourceError` for names that are there twice or are no text."""
    try:
        columns = [(field.name, parse_type(field.type)) for field in schema]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: a column's name is not UTF-8 ({error}); download it again") from None
    twice = sorted(name for name, count in Counter(name for name, _ in columns).items() if count > 1)
    if twice:
        raise SourceError(f"{path}: the columns {twice} are there twice; rename one of each")
    return dict(columns)


def parse_type(arrow_type: Any) -> ColumnType:
    """Sort an Arrow type: numbers, strings, images (`struct<bytes, path>`), binary, or something else.

    >>> import pyarrow as pa
    >>> column = parse_type(pa.list_(pa.float32(), 6))
    >>> column.kind, column.depth, column.dtype
    ('number', 1, dtype('float32'))
    """
    pyarrow = require("pyarrow", purpose="reading Parquet")
    types = pyarrow.types
    text, depth = str(arrow_type), 0
    while True:
        if isinstance(arrow_type, pyarrow.BaseExtensionType):
            arrow_type = arrow_type.storage_type
        elif types.is_dictionary(arrow_type):
            arrow_type = arrow_type.value_type
            text = text if depth else str(arrow_type)
        elif types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
            arrow_type, depth = arrow_type.value_type, depth + 1
        else:
            break
    if types.is_boolean(arrow_type) or types.is_integer(arrow_type) or types.is_floating(arrow_type):
        return ColumnType("number", depth, np.dtype(arrow_type.to_pandas_dtype()), text)
    if types.is_decimal(arrow_type):
        return ColumnType("number", depth, np.dtype(np.float64), text)
    return ColumnType(_other_kind(types, arrow_type), depth, None, text)


def _other_kind(types: Any, arrow_type: Any) -> ColumnKind:
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return "string"
    if types.is_struct(arrow_type):
        names = {arrow_type.field(i).name for i in range(arrow_type.num_fields)}
        return "image" if names == {"bytes", "path"} else "video" if names == {"path", "timestamp"} else "other"
    if types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_fixed_size_binary(arrow_type):
        return "binary"
    return "other"


def parse_numbers(column: Any, where: str) -> NDArray[Any]:
    """Return a column of numbers as an array (rows, *shape), nested lists as dimensions.

    Lists must be of one length in every row, and nothing may be null: `SourceError` names `where` and the row.

    >>> import pyarrow as pa
    >>> parse_numbers(pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "action").shape
    (3, 2)
    """
    pyarrow = require("pyarrow", purpose="reading Parquet")
    held = parse_type(column.type)
    if held.kind != "number":
        raise SourceError(f"{where}: holds {held.text} where numbers must be; correct the column or leave it out")
    values, rows, shape = _combined(pyarrow, column), len(column), []
    while True:
        if isinstance(values.type, pyarrow.BaseExtensionType):
            values = values.storage
        _check_no_nulls(values, rows, where)
        if pyarrow.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        elif pyarrow.types.is_fixed_size_list(values.type):
            shape.append(values.type.list_size)
            values = values.flatten()
        elif pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
            shape.append(_one_length(values, rows, where))
            values = values.flatten()
        else:
            break
    if pyarrow.types.is_decimal(values.type):
        values = values.cast(pyarrow.float64())
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array.reshape(rows, *shape)


def parse_strings(column: Any, where: str) -> list[str]:
    """Return a column of strings as a list; `SourceError` for a null or what is not UTF-8."""
    _check_no_nulls(column, len(column), where)
    try:
        strings = [text for chunk in getattr(column, "chunks", [column]) for text in _texts(chunk)]
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: a string is not UTF-8 ({error}); convert it again") from None
    return strings


def _texts(chunk: Any) -> list[str]:
    """The strings of an array; those of a dictionary are the same objects wherever they stand."""
    if not hasattr(chunk, "dictionary"):
        strings: list[str] = chunk.to_pylist()
        return strings
    texts = chunk.dictionary.to_pylist()
    return [texts[code] for code in chunk.indices.to_pylist()]


def _combined(pyarrow: Any, column: Any) -> Any:
    if not isinstance(column, pyarrow.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _check_no_nulls(values: Any, rows: int, where: str) -> None:
    if values.null_count and rows:
        first = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        row = first // max(1, len(values) // rows)
        raise SourceError(f"{where}: row {row} holds a null; fill it or leave the column out")


def _one_length(values: Any, rows: int, where: str) -> int:
    lengths = require("pyarrow.compute", purpose="reading Parquet").list_value_length(values).to_numpy()
    if not len(lengths):
        return 0
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        row = int(odd[0]) // max(1, len(lengths) // rows)
        raise SourceError(
            f"{where}: row {row} is a list of {lengths[odd[0]]} values where row 0 has {lengths[0]}; "
            "record or convert it again with lists of one length"
        )
    return int(lengths[0])
