"""The language strings of a LeRobot folder: tasks.jsonl or tasks.parquet, or what the episodes themselves list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lerobot_columns import TASK_INDEX_KEY
from roboreel.convert.lerobot_info import Info, check_text, read_json_lines, shown
from roboreel.convert.lerobot_layout import EpisodeEntry, Warnings
from roboreel.convert.parquet import ParquetFile
from roboreel.errors import SourceError
from roboreel.schema import KeySpec

_INSTRUCTION = "language_instruction"


@dataclass(frozen=True)
class Tasks:
    """Task strings by `task_index`, or None: then each episode lists its one task itself, or a column has them."""

    path: Path | None
    by_index: Mapping[int, str] | None
    column: str | None = None
    """Another column of strings, which are the tasks."""

    def of_episode(
        self, entry: EpisodeEntry, columns: Mapping[str, NDArray[Any]], strings: Mapping[str, Sequence[str]]
    ) -> Sequence[str]:
        """One string a frame; `SourceError` names a task index without a task."""
        if self.column is not None:
            return strings[self.column]
        if self.by_index is None:
            return [entry.tasks[0]] * entry.length
        task_index = columns[TASK_INDEX_KEY]
        unknown = sorted(set(np.unique(task_index).tolist()) - set(self.by_index))
        if unknown:
            raise SourceError(
                f"{entry.where}: task index {unknown[0]} has no task in {self.path}; add a line for it there"
            )
        return [self.by_index[index] for index in task_index.tolist()]


def read_tasks(
    info: Info, entries: Sequence[EpisodeEntry], specs: Sequence[KeySpec], warnings: Warnings
) -> Tasks | None:
    """How each frame's task is found, `specs` being the columns that are read; None where nothing says it."""
    if info.version < "v2":  # they had no tasks, and the conversions of other sets brought theirs as a column
        told = any(spec.name == _INSTRUCTION and spec.is_string for spec in specs)
        return Tasks(None, None, _INSTRUCTION) if told else None
    has_column = any(spec.name == TASK_INDEX_KEY and spec.shape == () and not spec.is_string for spec in specs)
    path = _task_file(info)
    if path is not None and has_column:
        by_index = _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)
        claimed = info.claims.get("total_tasks")
        if claimed is not None and claimed != len(by_index):
            warnings.add(f"{info.path}: total_tasks is {shown(claimed)}, and {path.name} has {len(by_index)}")
        return Tasks(path, by_index)
    if path is None and (has_column or _claims_tasks(info)):
        why = f"the data has a column {TASK_INDEX_KEY!r}" if has_column else f"{info.path} counts tasks"
        name = "tasks.parquet" if info.version >= "v3" else "tasks.jsonl"
        raise SourceError(f"{info.folder / 'meta' / name}: this file is missing, and {why}; complete the download")
    if all(len(entry.tasks) == 1 for entry in entries):
        why = f"there is no column {TASK_INDEX_KEY!r}" if path is not None else "there is no file of tasks"
        warnings.add(f"{info.folder}: {why}; the one task that each episode lists is taken")
        return Tasks(None, None)
    if path is not None:
        warnings.leave_out(
            f"{info.folder}: there is no column {TASK_INDEX_KEY!r}, and not every episode lists one task: "
            "imported without"
        )
    return None


def _claims_tasks(info: Info) -> bool:
    claimed = info.claims.get("total_tasks")
    return type(claimed) is int and claimed > 0


def _task_file(info: Info) -> Path | None:
    names = ["tasks.parquet", "tasks.jsonl"]
    if info.version < "v3":
        names.reverse()
    paths = [info.folder / "meta" / name for name in names]
    return next((path for path in paths if path.is_file()), None)


def _read_json_lines(path: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for number, content in read_json_lines(path):
        _add(tasks, content.get(TASK_INDEX_KEY), content.get("task"), f"{path}, line {number}")
    return tasks


def _read_parquet(path: Path) -> dict[int, str]:
    file = ParquetFile.open(path)
    strings = [name for name, column in file.columns.items() if column.kind == "string" and column.depth == 0]
    # Writers differ in the name under which pandas puts its index of task strings.
    preferred = [name for name in ("task", "__index_level_0__") if name in strings] or strings[:1]
    if TASK_INDEX_KEY not in file.columns or not preferred:
        raise SourceError(
            f"{path}: has the columns {sorted(file.columns)}; it needs {TASK_INDEX_KEY!r} and "
            "a column of strings, 'task'; download it again"
        )
    tasks: dict[int, str] = {}
    for number, row in enumerate(file.records([TASK_INDEX_KEY, preferred[0]])):
        _add(tasks, row[TASK_INDEX_KEY], row[preferred[0]], f"{path}, row {number}")
    return tasks


def _add(tasks: dict[int, str], index: object, task: object, where: str) -> None:
    if type(index) is not int or not isinstance(task, str):
        raise SourceError(
            f"{where}: task_index {shown(index)} with task {shown(task)}; it must be an integer and a string"
        )
    check_text(task, where)
    if tasks.setdefault(index, task) != task:
        raise SourceError(
            f"{where}: task index {index} stands for {shown(tasks[index])} already; give each task its own index"
        )
