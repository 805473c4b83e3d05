"""HDF5 files: what is in them by its declaration, but for links that lead elsewhere and types that are no numbers.

An HDF5 file may name other files (external links, virtual datasets, data kept outside), and declare any size for data
that was never written. All of that is judged here, before a row is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.convert.hdf5_chunks import check_gzip
from roboreel.convert.lerobot_info import shown
from roboreel.errors import RoboreelError, SourceError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".hdf5", ".h5", ".hdf")
_MAX_DEPTH = 12
_MAX_ITEMS = 100_000
_MAX_CHUNK_BYTES = 1 << 30
"""Decoded: a chunk is decoded whole."""


@dataclass(frozen=True)
class Hdf5Array:
    """One dataset of a file, of which rows are read when they are asked for, the file opened for it."""

    path: Path
    name: str
    """Its path in the file."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    flaw: str | None = None
    """Why it is not read; None where it can be. Then `dtype` says nothing."""

    @property
    def where(self) -> str:
        return f"{self.path}, dataset {self.name!r}"

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`; `SourceError` where they cannot be read."""
        with opened(self.path) as file:
            try:
                block = np.asarray(file[self.name][start:stop])
            except Exception as error:  # what HDF5's filters raise, for want of memory too
                raise SourceError(
                    f"{self.where}: rows {start} to {stop} cannot be read ({error!r:.200}); copy the file again"
                ) from error
        return block.astype(self.dtype, copy=False)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading; `SourceError` where it is no whole HDF5 file, or what is asked of it cannot be read."""
    h5py = require("h5py", extra="formats", purpose="reading HDF5")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: not a whole HDF5 file ({error}); copy it again") from None
    with file:
        try:
            yield file
        except RoboreelError:
            raise
        except (KeyError, OSError, RuntimeError, ValueError) as error:  # h5py's, of a file that is damaged within
            raise SourceError(f"{path}: damaged ({error!r:.200}); copy it again") from error


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5; needs no package."""
    try:
        with path.open("rb") as file:
            return file.read(8) == _SIGNATURE
    except OSError:
        return False


def hdf5_files(path: Path) -> list[Path]:
    """The HDF5 files of a folder, `episode_2` before `episode_10`; or the file itself."""
    if not path.is_dir():
        return [path]
    found = [file for file in path.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith(".")]
    return sorted(found, key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them.

    >>> sorted(["demo_10", "demo_2"], key=natural)
    ['demo_2', 'demo_10']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def is_aloha(path: Path) -> bool:
    """Whether a file is an episode of ALOHA's rather than anything else."""
    with opened(path) as file:
        return "data" not in file and "observations" in file


def arrays_in(path: Path, group: Any) -> dict[str, Hdf5Array]:
    """Every dataset under a group of an open file, by its path there, judged by its declaration alone.

    Raises:
        SourceError: a link that is no plain one, groups within groups without an end, chunks that memory may not hold.
    """
    found: dict[str, Hdf5Array] = {}
    h5py = require("h5py", extra="formats", purpose="reading HDF5")
    seen = 0

    def walk(inner: Any, prefix: str, depth: int) -> None:
        nonlocal seen
        if depth > _MAX_DEPTH:
            raise SourceError(f"{path}: {inner.name[:80]!r} lies more than {_MAX_DEPTH} groups deep; mend the file")
        for name in inner:
            seen += 1
            if seen > _MAX_ITEMS:
                raise SourceError(f"{path}: more than {_MAX_ITEMS:,} things are in {group.name!r}; mend the file")
            check_link(path, inner, name)
            item = inner[name]
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{name}/", depth + 1)
            elif isinstance(item, h5py.Dataset):
                found[f"{prefix}{name}"] = _judged(path, item)

    walk(group, "", 0)
    return found


def check_link(path: Path, group: Any, name: str) -> None:
    """Refuse a link that leads elsewhere: out of the file, or to what may not be there."""
    h5py = require("h5py", extra="formats", purpose="reading HDF5")
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise SourceError(
            f"{path}: {group.name.rstrip('/')}/{name} is a link into another file, {shown(link.filename)}, which is "
            "not followed; copy what it leads to into this file"
        )
    if not isinstance(link, h5py.HardLink):
        raise SourceError(
            f"{path}: {group.name.rstrip('/')}/{name} is a soft link, to {shown(getattr(link, 'path', '?'))}, which is "
            "not followed; copy what it leads to to its place"
        )


def _judged(path: Path, dataset: Any) -> Hdf5Array:
    name, shape = dataset.name, dataset.shape
    where = f"{path}, dataset {name!r}"
    if dataset.is_virtual or dataset.external:
        raise SourceError(f"{where}: its data lie in other files, which are not read; copy them into this file")
    if shape is None:
        return Hdf5Array(path, name, (), np.dtype(np.uint8), "is empty")
    dtype = dataset.dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.subdtype is not None:
        what = "variable lengths or objects" if dtype.kind == "O" else f"{shown(dtype)}"
        return Hdf5Array(path, name, shape, np.dtype(np.uint8), f"holds {what}, and only plain numbers are stored")
    if dataset.chunks is not None and math.prod(dataset.chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise SourceError(
            f"{where}: one chunk of {dataset.chunks} is more than {_MAX_CHUNK_BYTES:,} bytes; write it in smaller "
            "chunks"
        )
    if math.prod(shape) and not dataset.id.get_storage_size():
        raise SourceError(f"{where}: declares {shape} and was never written; record it again, or take it out")
    check_gzip(dataset, math.prod(dataset.chunks or ()) * dtype.itemsize, where)
    return Hdf5Array(path, name, shape, dtype.newbyteorder("<"))


def attribute(item: Any, name: str) -> Any:
    """Return an attribute as a Python value, text as `str`; None where it is not there or cannot be read."""
    try:
        value = item.attrs.get(name)
    except Exception:  # noqa: BLE001 - of a type that h5py has no numpy one for
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
