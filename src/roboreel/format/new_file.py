"""A file in the making, for a library that writes into what behaves as a Python file."""

from __future__ import annotations

import os
from pathlib import Path

from roboreel.format.files import DataFile


class NewFile:
    """Written in order, and again where the library goes back to.

    Such libraries lose what is raised while they write, or raise it somewhere else: an error is kept for `check`, and
    nothing is written any more.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)  # which libraries tell in their errors
        self._file = DataFile(path, create=True)
        self._file.truncate(0)
        self._at = self._size = 0
        self._error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self._error is None:
            try:
                self._file.write_at(self._at, data)
            except BaseException as error:  # noqa: BLE001 - raised by `check`
                self._error = error
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def check(self) -> None:
        """Raise what a write has met."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()
