"""`state.bin`, open for writing: the live record that readers follow, and the durable ones that a power cut leaves."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from roboreel.errors import StorageDirCorruptError, StorageError
from roboreel.format import paths
from roboreel.format.files import DataFile
from roboreel.format.lock import boot_id
from roboreel.format.records import DURABLE_OFFSETS, LIVE_OFFSET, STATE_BYTES, STATE_RECORD_BYTES, State
from roboreel.store.ring import Place, at_risk_length


class StateFile:
    def __init__(self, root: Path, *, create: bool = False) -> None:
        self._file = DataFile(root / paths.STATE, create=create)
        if create:
            self._file.allocate(STATE_BYTES)

    def put_live(self, state: State) -> None:
        """Make `state` what readers see, in one write that is not synced. Where it fails, the former record stays.

        Raises:
            StorageDirCorruptError: no reader would take it, as where a counter that lies is at its bound already.
        """
        raw = self._raw(state)
        former = self._file.read_at(LIVE_OFFSET, STATE_RECORD_BYTES)
        try:
            self._file.write_at(LIVE_OFFSET, raw)
        except BaseException:
            there = self._file.read_at(LIVE_OFFSET, STATE_RECORD_BYTES)
            if State.from_bytes(there) is None and State.from_bytes(former) is not None:  # a part of ours is no record
                with contextlib.suppress(StorageError):
                    self._file.write_at(LIVE_OFFSET, former)
            raise

    def durable(self) -> State:
        """The durable record that counts: the one with the higher generation, of two the one written later."""
        return newest([state for state in map(self._read, DURABLE_OFFSETS) if state is not None])

    def put_durable(self, state: State) -> None:
        """Have `state` be what counts after a power cut; everything that it counts must be synced already."""
        raw = self._raw(state)
        ages = {offset: _age(self._read(offset)) for offset in DURABLE_OFFSETS}
        self._file.write_at(min(DURABLE_OFFSETS, key=ages.__getitem__), raw)
        self._file.sync()

    def put_at_risk(self, place: Place, seq: int) -> None:
        """Before slots that the durable record counts are overwritten, have that record say so."""
        durable = self.durable()
        if place.start >= durable.frames:
            return
        length = at_risk_length(durable.next_slot, durable.at_risk_length, place)
        if length != durable.at_risk_length:
            later = max(durable.seq, seq) + 1  # of two records of one generation the later counts
            self.put_durable(replace(durable, seq=later, at_risk_start=durable.next_slot, at_risk_length=length))

    def sync(self) -> None:
        self._file.sync()

    def _read(self, offset: int) -> State | None:
        state = State.from_bytes(self._file.read_at(offset, STATE_RECORD_BYTES))
        return None if state is None or state.problem() else state  # what cannot be is written anew by the next flush

    def _raw(self, state: State) -> bytes:
        if what := state.problem():
            raise StorageDirCorruptError(
                f"{self._file.path}: after this change {what}, and nothing could open the dataset any more; the record "
                "stays as it was, restore the file from a copy"
            )
        return replace(state, boot_id=boot_id(), writer_pid=os.getpid()).to_bytes()

    def close(self) -> None:
        self._file.close()


def newest(states: list[State]) -> State:
    """Return the record that counts among the durable ones; an empty dataset's where there is none."""
    return max(states, key=_age, default=State())


def _age(state: State | None) -> tuple[int, int]:
    return (-1, -1) if state is None else (state.generation, state.seq)
