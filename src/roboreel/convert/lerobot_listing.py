"""What a LeRobot folder says of its episodes: meta/episodes and stats.json, or the JSON lines of v2.1."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roboreel._optional import require
from roboreel.convert.lerobot_stats import QUANTILES, Stats, added
from roboreel.store import GrowingFile, write_file

_BLOCK = 100
"""Episodes held before they are written."""


class Listing(ABC):
    """Takes what is to be said of each episode."""

    def __init__(self, folder: Path) -> None:
        self._meta = folder / "meta"
        self._total: dict[str, Stats] = {}

    def add(self, line: Mapping[str, Any], stats: Mapping[str, Stats]) -> None:
        for key, one in stats.items():
            self._total[key] = added(self._total[key], one) if key in self._total else one
        self._put(line, stats)

    @abstractmethod
    def _put(self, line: Mapping[str, Any], stats: Mapping[str, Stats]) -> None: ...

    def write_stats(self) -> None:
        """Write the statistics of all episodes together."""
        write_json(self._meta / "stats.json", {key: _listed(stats) for key, stats in self._total.items()})

    @abstractmethod
    def close(self) -> None:
        """Write what is held."""

    @abstractmethod
    def abandon(self) -> None:
        """Write nothing more."""


class EpisodeTable(Listing):
    """v3.0: Parquet files in meta/episodes, statistics among the columns."""

    def __init__(self, folder: Path, most_bytes: float, chunks_size: int) -> None:
        super().__init__(folder)
        self._most_bytes, self._chunks_size = most_bytes, chunks_size
        self._rows: list[dict[str, Any]] = []
        self._open: tuple[GrowingFile, Any] | None = None
        self._number = 0

    def _put(self, line: Mapping[str, Any], stats: Mapping[str, Stats]) -> None:
        flat = {f"stats/{key}/{name}": value for key, one in stats.items() for name, value in _listed(one).items()}
        chunk, file = divmod(self._number, self._chunks_size)
        self._rows.append({**line, **flat, "meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file})
        if len(self._rows) >= _BLOCK:
            self._write()

    def _write(self) -> None:
        pyarrow = require("pyarrow", purpose="writing Parquet")
        parquet = require("pyarrow.parquet", purpose="writing Parquet")
        if self._open is None:
            table = pyarrow.Table.from_pylist(self._rows)
            chunk, file = divmod(self._number, self._chunks_size)
            sink = GrowingFile(self._meta / "episodes" / f"chunk-{chunk:03d}" / f"file-{file:03d}.parquet")
            self._open = sink, parquet.ParquetWriter(sink, table.schema, compression="snappy", use_dictionary=True)
        else:
            table = pyarrow.Table.from_pylist(self._rows, schema=self._open[1].schema)
        self._open[1].write_table(table)
        self._rows = []
        if self._open[0].tell() >= self._most_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if self._open is not None:
            sink, writer = self._open
            self._open = None
            writer.close()
            sink.close()
            self._number += 1

    def close(self) -> None:
        if self._rows:
            self._write()
        self._end_file()

    def abandon(self) -> None:
        self._rows = []
        if self._open is not None:
            self._open[0].abandon()
            self._end_file()


class EpisodeLines(Listing):
    """v2.1: meta/episodes.jsonl and meta/episodes_stats.jsonl."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files = GrowingFile(self._meta / "episodes.jsonl"), GrowingFile(self._meta / "episodes_stats.jsonl")

    def _put(self, line: Mapping[str, Any], stats: Mapping[str, Stats]) -> None:
        of_v21 = {key: {n: v for n, v in _listed(one).items() if n not in QUANTILES} for key, one in stats.items()}
        said = {"episode_index": line["episode_index"], "stats": of_v21}
        for file, content in zip(self._files, (line, said), strict=True):
            file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")

    def write_stats(self) -> None:
        """Say nothing: v2.1 has statistics of episodes alone."""

    def close(self) -> None:
        for file in self._files:
            file.close()

    def abandon(self) -> None:
        self.close()


def _listed(stats: Stats) -> dict[str, Any]:
    return {name: value.tolist() for name, value in stats.items()}


def write_json(path: Path, content: Any) -> None:
    write_file(path, json.dumps(content, indent=4, ensure_ascii=False).encode())


def write_task_table(path: Path, tasks: Sequence[str]) -> None:
    """Write tasks.parquet as pandas does where the tasks are the index: LeRobot looks them up there."""
    pyarrow = require("pyarrow", purpose="writing Parquet")
    parquet = require("pyarrow.parquet", purpose="writing Parquet")
    columns = [("task_index", "int64", "int64", None), ("task", "unicode", "object", None)]
    told = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": metadata}
            for name, kind, numpy, metadata in columns
        ],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.0.0",
    }
    table = pyarrow.table({"task_index": list(range(len(tasks))), "task": list(tasks)})
    sink = GrowingFile(path)
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(told)}), sink)
    sink.close()
