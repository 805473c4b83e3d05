"""A folder in a foreign format, built beside the place where it will be: there whole, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from roboreel.errors import StorageError
from roboreel.format import files
from roboreel.format.files import DataFile
from roboreel.store.conversion_place import DATASET, claimed, clear, parse_dest, place_of


@contextlib.contextmanager
def built_beside(root: Path, dest: Path) -> Iterator[Path]:
    """Give a new folder, which takes the place `dest` when the block is left; what is made of the dataset in `root`.

    After a failure nothing is left; what a killed process leaves lies in `.NAME.conversion`, and the next one clears
    it.

    Raises:
        InvalidArgumentError: `dest` holds anything, or overlaps with `root`. DatasetLockedError: another process
        builds there.
    """
    dest = parse_dest(root, dest)
    place = place_of(dest)
    with claimed(place):
        try:
            clear(place)
            build = place / DATASET
            files.make_dir(build)
            yield build
            made = sorted(build.rglob("*"))
            files.sync_all((), [*(path for path in made if path.is_file()), *(path for path in made if path.is_dir())])
            files.rename(build, dest)
            try:
                files.sync_path(dest.parent)
            except StorageError as error:
                error.add_note(f"{dest} is there all the same; that it survives a power cut is what failed")
                raise
        finally:
            files.remove(place)


class GrowingFile:
    """A new file that is written from its beginning to its end, as pyarrow writes one."""

    def __init__(self, path: Path) -> None:
        files.make_dir(path.parent)
        self.path = path
        self._file: DataFile | None = DataFile(path, create=True)
        self._size = 0
        self._abandoned = False

    def write(self, data: bytes) -> int:
        assert self._file is not None
        data = bytes(data)
        if not self._abandoned:
            self._file.write_at(self._size, data)
        self._size += len(data)
        return len(data)

    def abandon(self) -> None:
        """Take nothing more: whoever writes ends what it has begun, and that is removed."""
        self._abandoned = True

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def closed(self) -> bool:
        return self._file is None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_file(path: Path, data: bytes) -> None:
    """Write a whole new file, its directory too."""
    files.make_dir(path.parent)
    files.write_new(path, data)
