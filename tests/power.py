"""A disk that loses power: what reached it for certain, what may have, and one of the states it may come up in.

A file's content is certain only after the file was synced, an entry of a directory only after the directory was. Of
what was written since, each sector (512 or 4096 bytes) comes up as any of the states that it went through; each change
to a directory has happened or not, whatever came before or after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from roboreel.format.files import Effect


@dataclass(eq=False)
class File:
    synced: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """(offset, data) since the last sync, in order."""
    sizes: list[int] = field(default_factory=list)
    """The file's length after each effect since the last sync."""

    @property
    def size(self) -> int:
        return self.sizes[-1] if self.sizes else len(self.synced)

    def write(self, offset: int, data: bytes) -> None:
        self.writes.append((offset, data))
        self.sizes.append(max(self.size, offset + len(data)))

    def resize(self, size: int) -> None:
        self.sizes.append(size)

    def sync(self) -> None:
        content = bytearray(self.synced.ljust(max([self.size, *(at + len(data) for at, data in self.writes)]), b"\0"))
        for offset, data in self.writes:
            content[offset : offset + len(data)] = data
        self.synced, self.writes, self.sizes = bytes(content[: self.size]), [], []

    def after_cut(self, rng: np.random.Generator, share: float, sector: int) -> bytes:
        """The content that the file may come up with; `share` is how likely a sector was written back."""
        sizes = [len(self.synced), *self.sizes]
        size = sizes[-1] if rng.random() < share else sizes[int(rng.integers(len(sizes)))]
        content = bytearray(self.synced.ljust(max([*sizes, *(at + len(data) for at, data in self.writes)]), b"\0"))
        versions: dict[int, list[tuple[int, bytes]]] = {}
        for offset, data in self.writes:
            for number in range(offset // sector, (offset + len(data) - 1) // sector + 1 if data else 0):
                versions.setdefault(number, []).append((offset, data))
        for number, writes in versions.items():
            count = len(writes) if rng.random() < share else int(rng.integers(len(writes)))
            start, stop = number * sector, (number + 1) * sector
            for offset, data in writes[:count]:
                a, b = max(start, offset), min(stop, offset + len(data))
                content[a:b] = data[a - offset : b - offset]
        return bytes(content[:size])


@dataclass(eq=False)
class Folder:
    synced: dict[str, File | Folder] = field(default_factory=dict)
    entries: dict[str, File | Folder] = field(default_factory=dict)
    """As a process sees them now."""
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)
    """Since the last sync: the entries that each effect set, or removed (None)."""

    def change(self, change: dict[str, File | Folder | None]) -> None:
        self.changes.append(change)
        _apply(self.entries, change)

    def sync(self) -> None:
        self.synced, self.changes = dict(self.entries), []

    def after_cut(self, rng: np.random.Generator, share: float) -> dict[str, File | Folder]:
        entries = dict(self.synced)
        for change in self.changes:
            if rng.random() < share:
                _apply(entries, change)
        return entries


def _apply(entries: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, entry in change.items():
        entries.pop(name, None)
        if entry is not None:
            entries[name] = entry


class Disk:
    """Follows the effects on everything under `base`, which itself is there for certain. A recorder for `recorded`."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._top = Folder()

    def __call__(self, effect: Effect) -> None:
        path = effect.path
        if not path.is_relative_to(self._base):
            return
        if effect.kind == "mkdir":
            self._folder(path)
        elif effect.kind == "remove":
            self._remove(path)
        elif effect.kind == "rename":
            assert effect.source is not None
            self._rename(effect.source, path)
        elif effect.kind == "sync":
            (self._folder(path) if path.is_dir() else self._file(path)).sync()
        elif effect.kind == "write":
            self._write(effect)
        elif effect.kind in ("allocate", "truncate"):
            self._file(path).resize(effect.offset)
        else:
            assert effect.kind == "create", effect.kind
            self._file(path)

    def _write(self, effect: Effect) -> None:
        file = self._file(effect.path)
        if effect.whole:
            file.resize(0)
        data = bytes(effect.data) if effect.source is None else effect.source.read_bytes()
        file.write(effect.offset, data)

    def _folder(self, path: Path) -> Folder:
        folder = self._top
        for name in path.relative_to(self._base).parts:
            if name not in folder.entries:
                folder.change({name: Folder()})
            entry = folder.entries[name]
            assert isinstance(entry, Folder)
            folder = entry
        return folder

    def _file(self, path: Path) -> File:
        folder = self._folder(path.parent)
        if path.name not in folder.entries:
            folder.change({path.name: File()})
        entry = folder.entries[path.name]
        assert isinstance(entry, File)
        return entry

    def _rename(self, source: Path, target: Path) -> None:
        folder = self._folder(target.parent)
        assert source.parent == target.parent, "a rename between directories is two changes that a cut may part"
        entry = self._folder(source) if source.is_dir() else self._file(source)
        folder.change({source.name: None, target.name: entry})

    def _remove(self, path: Path) -> None:
        folder = self._folder(path.parent)
        entry = folder.entries.get(path.name)
        if entry is None:
            return
        if isinstance(entry, Folder):
            for name in list(entry.entries):
                self._remove(path / name)
        folder.change({path.name: None})

    def cut(self, seed: int, into: Path) -> None:
        """Write a state that the disk may be in when power comes back, as the directory `into`."""
        rng = np.random.default_rng(seed)
        share = float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))
        _materialise(self._top, into, rng, share, int(rng.choice([512, 4096])))


def _materialise(folder: Folder, path: Path, rng: np.random.Generator, share: float, sector: int) -> None:
    path.mkdir()
    for name, entry in folder.after_cut(rng, share).items():
        if isinstance(entry, Folder):
            _materialise(entry, path / name, rng, share, sector)
        else:
            (path / name).write_bytes(entry.after_cut(rng, share, sector))
