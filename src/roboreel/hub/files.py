"""The files of a repository at one commit, here in a folder as far as they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from roboreel.errors import HubError, SourceError
from roboreel.hub.client import HubClient
from roboreel.store import make_dir, remove

_READ_BYTES = 1 << 20


class HubFiles:
    """A `Remote`: files come when they are needed, and go when what was made of them is there.

    With `kept`, they go into the Hub's own cache, where other programs find them, and have a second name here.
    """

    def __init__(self, client: HubClient, commit: str, folder: Path, *, kept: bool) -> None:
        self._client, self._commit, self._kept = client, commit, kept
        self.folder = folder
        self._files = {file.path: file for file in client.files(commit)}
        for name in self._files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
                raise SourceError(f"{client.repo_id}: lists the file {name!r:.80}, which leads out of its folder")

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._files)

    def has(self, path: Path) -> bool:
        return self._name(path) in self._files

    def size(self, path: Path) -> int:
        file = self._files.get(self._name(path))
        return 0 if file is None else file.size

    def listed(self, folder: Path) -> Sequence[Path]:
        start = f"{self._name(folder)}/"
        return [self.folder / name for name in self.names if name.startswith(start)]

    def fetch(self, path: Path) -> None:
        name = self._name(path)
        file = self._files.get(name)
        if file is None or (path.is_file() and path.stat().st_size == file.size):
            return
        for last in (False, True):
            found = self._client.download(name, self._commit, None if self._kept else self.folder)
            flaw = _flaw(found, file.size, file.sha256)
            if flaw is None:
                break
            remove(found.resolve())
            remove(found)
            if last:
                raise HubError(f"{self._client.repo_id}: {name} came {flaw}, twice; try again later")
        if self._kept:
            make_dir(path.parent)
            remove(path)
            path.symlink_to(found.resolve())

    def fetch_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.fetch(self.folder / name)

    def release(self, path: Path) -> None:
        remove(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of those files that are not here."""
        return sum(self._files[name].size for name in names if not (self.folder / name).exists())


def _flaw(path: Path, size: int, sha256: str | None) -> str | None:
    """How a file is not what the Hub lists; None where it is."""
    here = path.stat().st_size
    if here != size:
        return f"with {here} bytes of {size}"
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return None if digest.hexdigest() == sha256 else "with another hash than it is listed with"
