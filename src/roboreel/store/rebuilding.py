"""The files of a dataset made anew beside it, some of its cameras in another image mode, everything else as it was.

Episode by episode, noted in a journal. A frame keeps slot and position: of an episode that a ring has begun to
overwrite only what survives is converted, and its video then begins before the file does (`first` below 0).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from roboreel.format import clone, files, paths
from roboreel.format.files import DataFile
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import episode_dtype, seal_row
from roboreel.schema import KeySpec
from roboreel.store.cloning import media_files, string_files
from roboreel.store.journal import Journal
from roboreel.store.pace import Pace
from roboreel.store.records import StateFile
from roboreel.store.room import slot_files
from roboreel.store.store import Store
from roboreel.store.transcoding import CameraSource, CameraTarget, open_target


@dataclass(frozen=True)
class Rebuild:
    """What is made of a dataset, and where."""

    store: Store
    """The dataset as it is; nobody changes it meanwhile."""
    manifest: Manifest
    """Of the dataset to be."""
    changed: tuple[str, ...]
    """The cameras that are converted."""
    root: Path
    """Where it is built."""
    journal: Journal

    def cameras(self, advance: Callable[[int], object]) -> int:
        """Convert what is not noted as done; return how many episodes that were. `advance` is told of frames done."""
        count = 0
        for key in self.changed:
            count += self._camera(key, advance)
        return count

    def _camera(self, key: str, advance: Callable[[int], object]) -> int:
        table, done = self.store.table, self.journal.clips.get(key, {})
        lengths = table.stops - table.live_starts
        todo = [row for row in table.live.tolist() if row not in done]
        advance(int(sum(lengths[row] for row in done)))
        if not todo:
            return 0
        source, target = CameraSource(self.store, key), self._target(key)
        try:
            pace = Pace()
            for row in todo:
                began = time.perf_counter()
                slot = int(table.live_starts[row])
                clip = target.take(row, slot, slot - int(table.starts[row]), source.frames(row))
                self.journal.converted(key, row, clip, time.perf_counter() - began)
                advance(int(lengths[row]))
                if pace.is_due():
                    with pace.timed():
                        self._sync(target)
            self._sync(target)
        finally:
            target.close()
        return len(todo)

    def _sync(self, target: CameraTarget) -> None:
        target.sync()
        self.journal.synced()

    def _target(self, key: str) -> CameraTarget:
        taken = [file for file, _ in self.journal.clips.get(key, {}).values()]
        if key in self.store.manifest.video_keys:  # readers of the old files must never meet others of their names
            clips = self.store.table.rows["clips"]["file"][:, self.store.manifest.video_keys.index(key)]
            taken.append(int(np.max(clips, initial=-1)))
        manifest = self.manifest
        return open_target(self.root, manifest.keys[key], manifest.capacity, manifest.fps, max(taken, default=-1) + 1)

    # All the rest

    def finish(self) -> None:
        """Bring in what stays as it is, and seal the whole; it has reached the device when this returns."""
        state, capacity = self.store.state, self.manifest.capacity
        for path, width, key in slot_files(self.store.root, self.store.manifest).values():
            if key not in self.changed:
                self._copy(path.relative_to(self.store.root), state.frames * width, capacity * width)
        for name, size in string_files(self.store, state):
            self._copy(name, size)
        kept = [key for key, spec in self.store.manifest.keys.items() if spec.needs_decoding]
        for path, _ in media_files(self.store, [key for key in kept if key not in self.changed]):
            self._link(path)
        files.write_new(self.root / paths.EPISODES, self._rows())
        files.sync_path(self.root / paths.EPISODES)
        raw = self.manifest.to_bytes()
        files.write_new(self.root / paths.METADATA, raw)
        files.sync_path(self.root / paths.METADATA)
        files.remove(self.root / paths.STATE)
        records = StateFile(self.root, create=True)
        try:
            sealed = replace(
                state.with_busy(0, 0),
                generation=state.generation + 1,
                capacity=capacity,
                metadata_hash=metadata_hash(raw),
                at_risk_start=0,
                at_risk_length=0,
            )
            records.put_live(sealed)
            records.put_durable(sealed)
        finally:
            records.close()
        self._sweep()
        folders = [Path(folder) for folder, _, _ in os.walk(self.root, topdown=False)]
        files.sync_all((), folders)

    def _copy(self, name: Path, size: int, length: int | None = None) -> None:
        if name.as_posix() in self.journal.copied:
            return
        began = time.perf_counter()
        target = self.root / name
        files.make_dir(target.parent)
        files.remove(target)  # half copied
        if not clone.clone(self.store.root / name, target, size):
            clone.copy(self.store.root / name, target, size, size)
        file = DataFile(target)
        try:
            file.allocate(size if length is None else length)
            file.sync()
        finally:
            file.close()
        self.journal.was_copied(name.as_posix(), time.perf_counter() - began)

    def _link(self, name: Path) -> None:
        source, target = self.store.root / name, self.root / name
        if target.exists():
            return
        files.make_dir(target.parent)
        if clone.link(source, target):
            return
        temporary = target.with_name(target.name + paths.TEMPORARY)
        files.remove(temporary)
        clone.copy(source, temporary, (size := source.stat().st_size), size)
        files.sync_path(temporary)
        files.rename(temporary, target)

    def _rows(self) -> bytes:
        """The episode table: the same rows, with clips for the cameras that are video now."""
        old = self.store.table.rows
        rows = np.zeros(len(old), episode_dtype(len(self.manifest.video_keys)))
        for name in old.dtype.names or ():
            if name not in ("clips", "checksum"):
                rows[name] = old[name]
        before = self.store.manifest.video_keys
        for place, key in enumerate(self.manifest.video_keys):
            if key not in self.changed:
                rows["clips"][:, place] = old["clips"][:, before.index(key)]
                continue
            for row, clip in self.journal.clips.get(key, {}).items():
                rows["clips"][row, place] = clip
        return b"".join(seal_row(rows[row : row + 1]) for row in range(len(rows)))

    def _sweep(self) -> None:
        """Remove video files that a kill left between their rename and their note."""
        for key in self.changed:
            folder = paths.video_path(self.root, key, 0).parent
            used = {file for file, _ in self.journal.clips.get(key, {}).values()}
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                if paths.video_number(path.name) not in used:
                    files.remove(path)


def rebuilt_manifest(
    manifest: Manifest, keys: Mapping[str, KeySpec], told: Mapping[str, Any], *, copy: bool
) -> Manifest:
    """Return the metadata with other specs of some keys, and with what was done in its provenance."""
    conversions = manifest.provenance.get(CONVERSIONS, [])
    return replace(
        manifest,
        keys={key: keys.get(key, spec) for key, spec in manifest.keys.items()},
        provenance={**manifest.provenance, CONVERSIONS: [*conversions, dict(told)]},
        uuid=str(uuid.uuid4()) if copy else manifest.uuid,
    )


CONVERSIONS = "conversions"
"""The field of the provenance that lists what was converted: generation, and of each camera `from` and `to`."""
