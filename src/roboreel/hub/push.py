"""Putting a LeRobot folder up on the Hub: in one commit, of which only what changed travels."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roboreel.errors import HubError
from roboreel.hub.card import card_of
from roboreel.hub.client import HubClient, HubFile, HubUnreachableError
from roboreel.store import write_file

_CARD = "README.md"
_MOST_CARD_BYTES = 4 << 20


@dataclass(frozen=True)
class PushReport:
    """What was put up."""

    repo_id: str
    commit: str
    files_changed: int
    """Uploaded, or taken away there."""
    bytes_changed: int


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    license_id: str | None = None,
    message: str | None = None,
    progress: bool = False,
) -> PushReport:
    """Put a LeRobot folder up as a dataset repository, which is made where there is none.

    Files that are there already as they are here stay; what is only there of `data`, `meta` and `videos` is taken away,
    for readers take all of those for the dataset's. What others have written of the card stays. Large files go up one
    by one before the commit: after an interruption, those that are there are not sent again.
    """
    client = HubClient(repo_id, token)
    with client.bars(shown=progress):
        return _pushed(client, folder, private, license_id, message)


def _pushed(client: HubClient, folder: Path, private: bool, license_id: str | None, message: str | None) -> PushReport:
    api, repo_id = client.api, client.repo_id
    client.ask(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), "the repository")
    if private:
        _check_private(client)
    there = {file.path: file for file in _files_there(client)}
    info = json.loads((folder / "meta" / "info.json").read_text())
    known = _text_of(client, there[_CARD]) if _CARD in there else None
    write_file(folder / _CARD, card_of(repo_id, info, license_id, known).encode())
    here = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    changed = [name for name, path in here.items() if not _is_same(path, there.get(name))]
    gone = [name for name in there if name not in here and name.split("/")[0] in ("data", "meta", "videos")]
    if changed or gone:
        commit = _committed(client, here, changed, gone, message or "Upload with roboreel")
    else:
        commit = client.commit_of(None)
    _tag(client, str(info["codebase_version"]), commit)
    return PushReport(repo_id, commit, len(changed) + len(gone), sum(here[name].stat().st_size for name in changed))


def _check_private(client: HubClient) -> None:
    """Refuse to show a recording that was to be private: the Hub makes no repository private by asking for it again."""
    found = client.ask(lambda: client.api.repo_info(client.repo_id, repo_type="dataset"), "the repository")
    if not found.private:
        raise HubError(
            f"{client.repo_id} is there already, and public: make it private in its settings, push to another "
            "repo_id, or push without private"
        )


def _text_of(client: HubClient, file: HubFile) -> str | None:
    """What a card says; None for one that is too large to be one, or no text."""
    if file.size > _MOST_CARD_BYTES:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return client.download(file.path, client.commit_of(None), Path(folder)).read_bytes().decode()
        except UnicodeDecodeError:
            return None


def _tag(client: HubClient, version: str, commit: str) -> None:
    """Have the tag by which LeRobot loads stand at the commit, also where an earlier push ended before it."""
    api, name = client.api, client.repo_id
    refs = client.ask(lambda: api.list_repo_refs(name, repo_type="dataset"), "the list of tags")
    at = next((tag.target_commit for tag in refs.tags if tag.name == version), None)
    if at == commit:
        return
    if at is not None:  # the Hub moves no tag
        client.ask(lambda: api.delete_tag(name, tag=version, repo_type="dataset"), f"the tag {version}")
    client.ask(
        lambda: api.create_tag(name, tag=version, revision=commit, repo_type="dataset", exist_ok=True),
        f"the tag {version}",
    )


def _files_there(client: HubClient) -> list[HubFile]:
    try:
        return client.files("main")
    except HubUnreachableError:
        raise
    except HubError:
        return []  # made just now: it has no commit


def _committed(
    client: HubClient, here: dict[str, Path], changed: Sequence[str], gone: Sequence[str], message: str
) -> str:
    hub = client.hub
    operations = [hub.CommitOperationAdd(name, str(here[name])) for name in changed]
    removals = [hub.CommitOperationDelete(name) for name in gone]

    def commit() -> str:
        found = client.api.create_commit(
            client.repo_id, [*operations, *removals], commit_message=message, repo_type="dataset"
        )
        return str(found.oid)

    return client.ask(commit, "the upload")


def _is_same(path: Path, there: HubFile | None) -> bool:
    if there is None or there.size != path.stat().st_size:
        return False
    data = path.read_bytes()
    if there.sha256 is not None:
        return hashlib.sha256(data).hexdigest() == there.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == there.git_oid
