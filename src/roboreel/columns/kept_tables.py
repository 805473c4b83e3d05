"""Frame tables that have been read, kept within a bound of bytes, however many videos there are."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from roboreel.columns.frame_table import FrameTable
from roboreel.format import files

MAX_BYTES = 64 << 20
"""Room for the tables of 10,000 episodes of 300 frames."""
_FIXED_BYTES = 3 << 10
"""About what the objects of one table take beside its arrays."""

_Identity = tuple[int, int, int]


class KeptTables:
    """Reads frame tables; the least recently used are let go where together they take over `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Path, tuple[_Identity, FrameTable]] = OrderedDict()
        self._bytes = 0
        self.renew_lock()

    def renew_lock(self) -> None:
        """In a forked child: a thread that held it is not there."""
        self._lock = threading.Lock()

    def read(self, path: Path) -> FrameTable:
        """Return the frame table in the file `path`, as it is now.

        Raises:
            FileNotFoundError: there is none (any more).
            StorageDirCorruptError: it is not whole.
        """
        try:
            with files.looking_at(path):
                status = os.stat(path)  # a directory may be removed and made again
        except NotADirectoryError as error:
            raise files.not_regular(path) from error
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None and kept[0] == identity:
                self._kept.move_to_end(path)
                return kept[1]
        table = FrameTable.from_bytes(files.read_file(path), str(path))
        with self._lock:
            self._forget(path)
            self._kept[path] = (identity, table)
            self._bytes += _bytes(table)
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                self._forget(next(iter(self._kept)))
        return table

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, path: Path) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            self._bytes -= _bytes(kept[1])


def _bytes(table: FrameTable) -> int:
    # pts and key flags, and the numbers of the key frames, which come to be when they are asked for
    return _FIXED_BYTES + table.pts.nbytes + table.key.nbytes + 8 * int(table.key.sum())


_shared = KeptTables()
kept_table = _shared.read
"""Read through the tables that this process keeps."""

os.register_at_fork(after_in_child=_shared.renew_lock)
