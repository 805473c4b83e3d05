"""The files of a repository at one commit, here in a folder as far as they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from roboreel.errors import HubError, SourceError
from roboreel.hub.client import HubClient, HubFile
from roboreel.store import make_dir, remove

_READ_BYTES = 1 << 20
_MOST_NAME_BYTES = 240
"""255, less what the client adds while it downloads."""


class HubFiles:
    """A `Remote`: files come when they are needed, and go when what was made of them is there.

    With `kept`, they go into the Hub's own cache, where other programs find them, and have a second name here.
    """

    def __init__(self, client: HubClient, commit: str, folder: Path, *, kept: bool) -> None:
        self._client, self._commit, self._kept = client, commit, kept
        self.folder = folder
        self._files = {file.path: file for file in client.files(commit)}
        self._checked: set[str] = set()
        """Files that are here and are what the Hub lists."""
        _check_names(client.repo_id, self._files)

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
        if file is None or (name in self._checked and path.is_file()):
            return
        if path.is_file() and _flaw(path, file) is None:  # of an earlier try, which may have ended before its check
            self._checked.add(name)
            return
        for last in (False, True):
            found = self._client.download(name, self._commit, None if self._kept else self.folder)
            flaw = _flaw(found, file)
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
        self._checked.add(name)

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


def _flaw(path: Path, file: HubFile) -> str | None:
    """How a file is not what the Hub lists; None where it is."""
    here = path.stat().st_size
    if here != file.size:
        return f"with {here} bytes of {file.size}"
    if file.sha256 is None and not file.git_oid:
        return None
    digest = hashlib.sha256() if file.sha256 is not None else hashlib.sha1(b"blob %d\0" % here)
    with path.open("rb") as opened:
        while block := opened.read(_READ_BYTES):
            digest.update(block)
    wanted = file.git_oid if file.sha256 is None else file.sha256
    return None if digest.hexdigest() == wanted else "with another hash than it is listed with"


def _check_names(repo_id: str, names: Collection[str]) -> None:
    """Refuse what no folder can hold: names that lead out of it or are too long, a file that is a folder as well."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise SourceError(f"{repo_id}: lists the file {name!r:.80}, which leads out of its folder")
        if any(len(part.encode(errors="replace")) > _MOST_NAME_BYTES for part in path.parts):
            raise SourceError(f"{repo_id}: lists the file {name!r:.80}…, whose name is too long for a file here")
        if above := next((str(one) for one in path.parents if str(one) in names), None):
            raise SourceError(f"{repo_id}: lists the file {above!r:.80}, and {name!r:.80} as if that were a folder")
