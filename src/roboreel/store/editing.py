"""Edits in place: found by comparison, written down whole, then applied; applying twice is applying once."""

from __future__ import annotations

import contextlib
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError, StorageError, UnknownKeyError
from roboreel.format import files, paths
from roboreel.format.files import storage_error
from roboreel.format.records import OWNER_DTYPE, OWNER_EDIT
from roboreel.format.redo import Redo, redo_hash
from roboreel.store.slots import SlotFiles, frame_checksums
from roboreel.store.store import Store

_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which Python names from 3.13 on: without it, a column larger than the memory cannot be mapped so."""


def check_editable(store: Store, key: str) -> None:
    """Refuse keys that an edit would make disagree with the episode table, or that have no column."""
    if key not in store.manifest.keys:
        raise UnknownKeyError(f"no key {key!r}; the dataset has {sorted(store.manifest.keys)}")
    spec = store.manifest.keys[key]
    if spec.role == "index":
        raise InvalidArgumentError(f"{key!r} cannot be edited: episodes and windows are found by it")
    if spec.is_string:
        raise InvalidArgumentError(f"{key!r} cannot be edited as an array: it holds strings")
    if spec.needs_decoding:
        raise InvalidArgumentError(
            f"{key!r} is stored as {spec.to_dict()['stored']} files, which are not changed in place"
        )


def changed_rows(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows whose bytes differ, ascending: (n, *shape) twice to (k,).

    >>> changed_rows(np.array([1.0, np.nan, 0.0]), np.array([1.0, np.nan, -0.0])).tolist()
    [2]
    """
    width = old.dtype.itemsize * int(np.prod(old.shape[1:]))
    if not width or not len(old):
        return np.zeros(0, np.int64)
    step = max(1, (16 << 20) // width)
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(old), step):  # in blocks: a camera's column may be larger than the memory
        a, b = (np.ascontiguousarray(part[start : start + step]).reshape(-1).view(np.uint8) for part in (old, new))
        found.append(start + np.flatnonzero(np.any((a != b).reshape(-1, width), axis=1)))
    return np.concatenate(found)


def make_draft(store: Store, key: str) -> NDArray[Any]:
    """A key's values, (frames, *shape), in a mapping whose changes stay in this process.

    Raises:
        StorageError: the file cannot be mapped.
    """
    spec, frames = store.manifest.keys[key], store.state.frames
    size = frames * spec.frame_bytes
    if not size:
        return np.zeros((frames, *spec.shape), spec.dtype)
    path = paths.column_path(store.root, key)
    try:
        with open(path, "rb") as file:
            pages = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise storage_error(f"mapping {path} for an edit", error) from error
    return np.frombuffer(pages, spec.dtype).reshape(frames, *spec.shape)


def make_redo(store: Store, key: str, slots: NDArray[np.int64], values: NDArray[Any]) -> tuple[bytes, int]:
    """Return the bytes of `redo.bin` for an edit, and what the record keeps of them."""
    words = store.words_at(slots) + np.uint64(OWNER_EDIT)  # wraps around: it must differ, not count
    raw = Redo(key, slots, words, frame_checksums(values), values).to_bytes()
    return raw, redo_hash(raw)


def drop_redo(root: Path) -> None:
    """Remove the file of an edit that no record refers to; where that fails, the next writer tries again."""
    for name in (paths.REDO, paths.REDO + paths.TEMPORARY):
        with contextlib.suppress(StorageError):
            if (root / name).exists():
                files.remove(root / name)


def apply_redo(redo: Redo, files: SlotFiles) -> None:
    """Write an edit's values, run by run of neighbouring slots. While an owner is 0, readers wait."""
    cuts = np.flatnonzero(np.diff(redo.slots) != 1) + 1
    runs = np.split(np.arange(len(redo.slots)), cuts)
    for run in runs:
        files.write_owners(int(redo.slots[run[0]]), np.zeros(len(run), OWNER_DTYPE))
    for run in runs:
        slot = int(redo.slots[run[0]])
        files.columns[redo.key].write(slot, redo.values[run])
        files.write_checksums(redo.key, slot, redo.checksums[run])
    for run in runs:
        files.write_owners(int(redo.slots[run[0]]), redo.words[run])
