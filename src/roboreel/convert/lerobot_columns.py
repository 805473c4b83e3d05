"""Which Parquet columns of a LeRobot folder become which keys, and their values, cast to what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lerobot_info import Feature, Info, shown
from roboreel.convert.lerobot_layout import EpisodeEntry, Warnings
from roboreel.convert.parquet import ColumnType, parse_numbers, parse_strings
from roboreel.convert.rows import RowFile
from roboreel.errors import InvalidArgumentError, SourceError
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    FRAME_INDEX_KEY,
    INDEX_KEY,
    STRING_CODE_DTYPE,
    TASK_KEY,
    TIMESTAMP_KEY,
    KeySpec,
)
from roboreel.store import encode_key

TASK_INDEX_KEY = "task_index"
_DTYPE, _WHOLE = "correct the dtype in info.json", "it must be a whole number: correct it, or convert it again"
ROW_KEYS = (INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY, TIMESTAMP_KEY)
"""They say where a row belongs; every dataset makes its own."""

TEXT_DTYPES = ("string", "str", "large_string", "utf8", "language")
"""Names under which writers declare a column of strings."""

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def plan_columns(info: Info, entries: Sequence[EpisodeEntry], warnings: Warnings) -> list[KeySpec]:
    """The keys that are read from Parquet columns, cameras not among them.

    What is declared must be readable as declared in every file (`SourceError`); what is only there comes along where
    every row agrees, and is left out with a warning otherwise.
    """
    files = list({entry.file.path: entry.file for entry in entries}.values())
    specs = []
    for feature in info.features.values():
        if feature.is_camera:
            continue
        if feature.name in ROW_KEYS:
            _compare_row_key(feature, files[0], warnings)
            continue
        spec = _plan_declared(feature, files, info, warnings)
        if spec is not None:
            specs.append(spec)
    for name in files[0].columns:
        if name in ROW_KEYS or name in info.features or _PANDAS_INDEX.fullmatch(name):
            continue
        spec = _plan_undeclared(name, files, info, warnings)
        if spec is not None:
            specs.append(spec)
    return specs


def _compare_row_key(feature: Feature, file: RowFile, warnings: Warnings) -> None:
    column = file.columns.get(feature.name)
    if column is not None and column.dtype != feature.number_dtype:
        warnings.add(
            f"column {feature.name!r} holds {column.text} where info.json declares {feature.dtype}: read as it is"
        )


def _plan_declared(feature: Feature, files: Sequence[RowFile], info: Info, warnings: Warnings) -> KeySpec | None:
    name = feature.name
    holders = [file for file in files if name in file.columns]
    if not holders:
        raise SourceError(
            f"{info.path}: declares {name!r}, which no data file has as a column, {files[0].path} for one; "
            "download the data again, or take the key out of info.json"
        )
    if len(holders) < len(files):
        path = next(file.path for file in files if name not in file.columns)
        raise SourceError(
            f"{path}: has no column {name!r}, which info.json declares and {holders[0].path} has; "
            "get the file again, or take the key out of info.json"
        )
    column = holders[0].columns[name]
    for file in files:
        if file.columns[name].kind != column.kind:
            raise SourceError(
                f"{file.path}: column {name!r} holds {file.columns[name].text}, and {holders[0].path} has "
                f"{column.text}; download them again, or convert the recording again"
            )
    if name == TASK_KEY and column.kind != "string":
        _leave_task_out(column, warnings)
        return None
    if column.kind != "number" and feature.number_dtype is not None:
        raise SourceError(
            f"{holders[0].path}: column {name!r} holds {column.text} where info.json declares {feature.dtype}; "
            f"correct the declaration in {info.path}, or take the column out"
        )
    if _is_left_out(name, column, warnings):
        return None
    if feature.dtype not in TEXT_DTYPES if column.kind == "string" else feature.number_dtype is None:
        raise SourceError(
            f"{info.path}: declares {name!r} as {shown(feature.dtype)}, and {holders[0].path} holds {column.text}; "
            f"correct the dtype there, for example to {_suggested(column)!r}"
        )
    if column.kind == "string":
        return _spec(name, STRING_CODE_DTYPE, (), info.path, role="string", names=feature.names)
    return _number_spec(feature, [file.columns[name] for file in files], info, warnings)


def _suggested(column: ColumnType) -> str:
    return "string" if column.dtype is None else column.dtype.name


def _leave_task_out(column: ColumnType, warnings: Warnings) -> None:
    warnings.leave_out(f"column {TASK_KEY!r} holds {column.text}, and that key is the task's string: left out")


def _number_spec(feature: Feature, columns: Sequence[ColumnType], info: Info, warnings: Warnings) -> KeySpec:
    name, declared = feature.name, feature.number_dtype
    assert declared is not None  # `_plan_declared` has refused what is no dtype
    held = next((column.dtype for column in columns if column.dtype != declared), None)
    if held is not None:
        warnings.add(f"column {name!r} holds {held} where info.json declares {declared}: cast to {declared}")
    source_dtype = None if held is None else str(held)
    return _spec(name, declared, feature.frame_shape, info.path, names=feature.names, source_dtype=source_dtype)


def _spec(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], path: Path, **more: Any) -> KeySpec:
    try:
        encode_key(name)
        return KeySpec(name, dtype, shape, **more)
    except InvalidArgumentError as error:
        raise SourceError(f"{path}: {error}; correct it there") from None


def _common_dtype(columns: Iterable[ColumnType]) -> np.dtype[Any]:
    return np.result_type(*{column.dtype for column in columns if column.dtype is not None}).newbyteorder("<")


def _without_common_dtype(columns: Sequence[ColumnType]) -> str:
    """The dtypes of a column's files, where some value of one may be none of their common dtype; else nothing."""
    dtypes = {column.dtype for column in columns if column.dtype is not None}
    common = np.result_type(*dtypes)
    is_lossy = common.kind == "f" and any(dtype.kind in "iu" and dtype.itemsize >= common.itemsize for dtype in dtypes)
    return ", ".join(sorted(map(str, dtypes))) if is_lossy else ""


def _is_left_out(name: str, column: ColumnType, warnings: Warnings) -> bool:
    if column.kind == "number" or (column.kind == "string" and column.depth == 0):
        return False
    what = "binary data, which is never unpickled" if column.kind == "binary" else f"{column.text}, which is no array"
    warnings.leave_out(f"column {name!r} holds {what}: left out")
    return True


def _plan_undeclared(name: str, files: Sequence[RowFile], info: Info, warnings: Warnings) -> KeySpec | None:
    said = f"column {name!r}" + (" is not declared, and" if info.version >= "v2" else ":")  # v1.x declares nothing
    missing = next((file.path for file in files if name not in file.columns), None)
    if missing is not None:
        warnings.leave_out(f"{said} {missing} does not have it: left out")
        return None
    columns = [file.columns[name] for file in files]
    if name == TASK_KEY and columns[0].kind != "string":
        _leave_task_out(columns[0], warnings)
        return None
    odd = next((column for column in columns if column.kind != columns[0].kind), None)
    if odd is not None:
        warnings.leave_out(f"{said} holds {columns[0].text} and {odd.text}: left out")
        return None
    if _is_left_out(name, columns[0], warnings):
        return None
    try:
        shape = _agreed_shape(name, files)
    except _RowsDisagreeError as error:
        warnings.leave_out(f"{said} its rows do not agree ({error}): left out")
        return None
    if columns[0].kind != "string" and (odd_dtypes := _without_common_dtype(columns)):
        warnings.leave_out(f"{said} holds {odd_dtypes} in its files, and no type holds all of them: left out")
        return None
    try:
        if columns[0].kind == "string":
            return _spec(name, STRING_CODE_DTYPE, (), files[0].path, role="string")
        return _spec(name, _common_dtype(columns), () if shape == (1,) else shape, files[0].path)
    except SourceError as error:
        warnings.leave_out(f"{said} cannot be a key ({error}): left out")
        return None


class _RowsDisagreeError(SourceError):
    """A column that is no array: lists of several lengths, nulls."""


def _shape_of_rows(column: Any, held: ColumnType, where: str) -> tuple[int, ...]:
    try:
        if held.kind == "string":
            parse_strings(column, where)
            return ()
        return parse_numbers(column, where).shape[1:]
    except SourceError as error:
        raise _RowsDisagreeError(str(error)) from None


def _agreed_shape(name: str, files: Sequence[RowFile]) -> tuple[int, ...]:
    """The shape of every row of a column, found by reading it whole, block by block."""
    agreed: tuple[int, ...] | None = None
    for file in files:
        reader, row, where = file.rows([name]), 0, f"{file.path}, key {name!r}"
        while row < file.num_rows:
            block = reader.read_block(row)  # damage is no disagreement
            shape = _shape_of_rows(block.column(0), file.columns[name], where)
            if agreed is not None and shape != agreed:
                raise _RowsDisagreeError(f"{where}: shape {shape} where other rows have {agreed}")
            agreed, row = shape, row + block.num_rows
        reader.close()
    return agreed or ()


def read_values(spec: KeySpec, column: Any, where: str) -> NDArray[Any]:
    """The rows of one key as an array (rows, *shape) of the key's dtype; `SourceError` where they are not that."""
    where = f"{where}, key {spec.name!r}"
    values = parse_numbers(column, where)
    rows, shape = len(values), values.shape[1:]
    if shape != spec.shape and not (spec.shape == () and shape == (1,)):
        raise SourceError(f"{where}: holds rows of shape {shape} where the key has {spec.shape}; correct info.json")
    whole = spec.name == TASK_INDEX_KEY
    return parse_exact(values.reshape(rows, *spec.shape), spec.dtype, where, _WHOLE if whole else _DTYPE)


def parse_exact(values: NDArray[Any], dtype: np.dtype[Any], where: str, advice: str) -> NDArray[Any]:
    """Cast to `dtype`; `SourceError` where a value would become another one, floats rounding as they always do.

    The error ends in `advice`.

    >>> parse_exact(np.array([0.1, 2.0]), np.dtype("<f4"), "action", "correct it")
    array([0.1, 2. ], dtype=float32)
    """
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
        if values.dtype.kind == "f" and dtype.kind == "f":
            lost = np.isfinite(values) & ~np.isfinite(cast)
        else:
            lost = (cast.astype(values.dtype) != values) | ((cast < 0) != (values < 0))
    if lost.any():
        first = tuple(np.argwhere(lost)[0].tolist())
        raise SourceError(
            f"{where}: row {first[0]} holds {values[first].item()!r}, which {dtype} cannot hold; {advice}"
        )
    return cast


def read_time_and_order(table: Any, entry: EpisodeEntry, fps: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (frame_index, timestamp) of an episode's rows, int64 and float64 seconds, each (length,).

    `SourceError` where the rows are not this episode's, or not in order.
    """
    found: Mapping[str, NDArray[Any]] = {
        name: _scalars(table.column(name), f"{entry.where}, key {name!r}", name)
        for name in ROW_KEYS
        if name in entry.file.columns
    }
    frames = np.arange(entry.length, dtype=np.int64)
    _check_counting(found, entry, frames)
    seconds = found.get(TIMESTAMP_KEY)
    if seconds is None:
        return frames, frames / fps
    bad = np.flatnonzero(~np.isfinite(seconds))
    if len(bad):
        raise SourceError(
            f"{entry.where}: the timestamp of row {bad[0]} is {seconds[bad[0]]}; it must be in seconds; correct it"
        )
    back = np.flatnonzero(np.diff(seconds) < 0)
    if len(back):
        row = int(back[0])
        raise SourceError(
            f"{entry.where}: timestamps decrease from {seconds[row]} s in row {row} to {seconds[row + 1]} s; "
            "sort the rows by time"
        )
    return frames, seconds


def _scalars(column: Any, where: str, name: str) -> NDArray[Any]:
    values = parse_numbers(column, where)
    if values.size != len(values):
        raise SourceError(
            f"{where}: holds rows of shape {values.shape[1:]}; it must be one number a row; convert it again"
        )
    dtype = np.dtype(np.float64 if name == TIMESTAMP_KEY else np.int64)
    return parse_exact(values.reshape(-1), dtype, where, _WHOLE)


def _check_counting(found: Mapping[str, NDArray[Any]], entry: EpisodeEntry, frames: NDArray[Any]) -> None:
    indices = found.get(INDEX_KEY)
    expected = {
        EPISODE_INDEX_KEY: np.full_like(frames, entry.index),
        FRAME_INDEX_KEY: frames,
        INDEX_KEY: frames + (indices[0] if indices is not None else 0),
    }
    for name, wanted in expected.items():
        if name not in found:
            continue
        wrong = np.flatnonzero(found[name] != wanted)
        if len(wrong):
            row = int(wrong[0])
            raise SourceError(
                f"{entry.where}: row {row} has {name} {found[name][row]} where {wanted[row]} must follow; "
                + _counting_advice(name, found[name])
            )


def _counting_advice(name: str, values: NDArray[Any]) -> str:
    if name == EPISODE_INDEX_KEY:
        if (values == values[0]).all():
            return f"the file is that of episode {values[0]} (swapped or copied?): download both again"
        return "rows of several episodes are in it: convert the recording again"
    if (np.diff(values) == 1).all():
        return f"the rows before are missing ({values[0]}): download the file again, or count its rows from 0"
    return f"the rows are out of order: sort them by {name}, or convert the recording again"


def read_timestamps(entry: EpisodeEntry) -> NDArray[Any] | None:
    """The timestamps of an episode as they are, (length,) float64 seconds; None where it has none."""
    if TIMESTAMP_KEY not in entry.file.columns:
        return None
    reader = entry.file.rows([TIMESTAMP_KEY])
    column = reader.read(entry.first_row, entry.length).column(0)
    reader.close()
    return _scalars(column, f"{entry.where}, key {TIMESTAMP_KEY!r}", TIMESTAMP_KEY)
