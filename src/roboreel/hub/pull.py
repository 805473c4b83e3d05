"""Taking a dataset in from the Hub, episode by episode."""

from __future__ import annotations

import hashlib
import operator
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roboreel._optional import require
from roboreel.convert import (
    IngestOptions,
    IngestReport,
    Told,
    check_free,
    ingest,
    is_there,
    listed_episodes,
    open_lerobot,
)
from roboreel.convert.lerobot_info import MAX_JSON_BYTES
from roboreel.errors import DiskSpaceError, HubError, InvalidArgumentError, RoboreelWarning, SourceError
from roboreel.hub.client import HubClient, HubUnreachableError
from roboreel.hub.files import HubFiles
from roboreel.hub.turns import my_turn
from roboreel.store import Store, free_bytes, is_dataset, is_unfinished, make_dir, remove, write_file

_COMMIT = ".commit"
"""In the folder of what was downloaded: of which commit it is."""
_METADATA = re.compile(r"(meta|meta_data)/.*\.(json|jsonl|parquet|safetensors)")
_ROWS = re.compile(r"(data/.*\.parquet|train/.*\.(arrow|json))")


@dataclass(frozen=True)
class PullOptions:
    """What is taken of a repository, and how."""

    revision: str | None = None
    """A branch, a tag or a commit; None: the default branch."""
    episodes: Sequence[int] | None = None
    """By their `episode_index`; None: all."""
    token: str | bool | None = None
    """None: the one that is logged in with, if any."""
    keep_source: bool = False
    """Leave what is downloaded in the Hub's cache, for other programs."""


def default_place(repo_id: str, options: PullOptions, *, decoded: bool) -> Path:
    """Where a dataset goes that is given no place: beside the Hub's own cache, where HF_HOME says."""
    constants = require("huggingface_hub.constants", extra="hub", purpose="the Hugging Face Hub")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id) or ".." in repo_id:
        raise HubError(f"{repo_id!r} is no name of a dataset; 'user/name' would do")
    parts = [repo_id]
    if options.revision is not None:
        parts.append("@" + re.sub(r"[^\w.-]", lambda found: f"%{ord(found[0]):02X}", options.revision))  # no two alike
    if decoded:
        parts.append("-decoded")
    if options.episodes is not None:
        chosen = parse_episodes(options.episodes)
        digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]
        parts.append(f"-{len(chosen)}-episodes-{digest}")
    home = os.environ.get("HF_HOME") or constants.HF_HOME or f"{constants.default_home}/huggingface"
    return Path(home).expanduser() / "roboreel" / "".join(parts)


def pull(
    repo_id: str, storage_dir: Path, options: PullOptions, ingest_options: IngestOptions, told: Told | None = None
) -> IngestReport | None:
    """Take a dataset in; None where `storage_dir` holds it already.

    Metadata and rows are downloaded first, video files one by one as they are taken in, of which the dataset then has
    the only copy. Interrupted anywhere, the same call goes on. Where another process takes it in meanwhile, that is
    waited for.

    Raises:
        HubError: the Hub has it not, or will not give it, or cannot be reached.
        SourceError: it cannot be read as what it says it is. DiskSpaceError: there is no room for it.
    """
    storage_dir = storage_dir.resolve()
    episodes = None if options.episodes is None else parse_episodes(options.episodes)
    options = replace(options, episodes=episodes, revision=options.revision or None)
    client = HubClient(repo_id, options.token)
    with my_turn(storage_dir, "pull"), client.bars(shown=ingest_options.progress):
        return _pulled(client, storage_dir, options, ingest_options, told)


def _pulled(
    client: HubClient, storage_dir: Path, options: PullOptions, ingest_options: IngestOptions, told: Told | None
) -> IngestReport | None:
    repo_id = client.repo_id
    held = _held(storage_dir)
    asked = {"repo_id": repo_id, "episodes": options.episodes}
    is_held = held is not None and all(held.get(key) == value for key, value in asked.items())
    try:
        commit = client.commit_of(options.revision)
    except HubUnreachableError as error:
        if not is_held or held is None or options.revision not in (None, held.get("revision"), held.get("commit")):
            raise
        warnings.warn(f"{error}; what is in {storage_dir} is used as it is", RoboreelWarning, stacklevel=4)
        commit = str(held["commit"])
    if is_held and held is not None:
        ingest_options.cameras.check_stored(_keys(storage_dir), storage_dir)
        if held["commit"] != commit:
            if options.revision not in (None, held.get("revision")):
                raise InvalidArgumentError(
                    f"{storage_dir} holds {repo_id} at {held['commit'][:12]} (revision {held.get('revision')!r}), and "
                    f"revision {options.revision!r} is {commit[:12]}: give another storage_dir, or remove this one"
                )
            warnings.warn(
                f"{repo_id} has a newer revision, {commit[:12]}; {storage_dir} holds {held['commit'][:12]}, which is "
                "used: to get the newer one, give another storage_dir, or remove this one",
                RoboreelWarning,
                stacklevel=4,
            )
        return None
    pinned = {"repo_id": repo_id, "revision": options.revision or "main", "commit": commit, **asked}
    known = {key: value for key, value in pinned.items() if value is not None}
    if is_there(storage_dir, pinned, ingest_options.cameras):
        return None
    check_free(storage_dir)  # before anything is downloaded
    folder = _prepared(storage_dir, commit)
    try:
        files = HubFiles(client, commit, folder, kept=options.keep_source)
        return _taken_in(files, storage_dir, options, ingest_options, known, told)
    except (SourceError, InvalidArgumentError, DiskSpaceError) as error:
        if not is_unfinished(storage_dir):  # what was downloaded is of no use to another try
            remove(folder)
            _name_by_repository(error, folder, f"{repo_id}@{commit[:12]}")
        raise


def parse_episodes(given: Any) -> list[int]:
    """Return numbers of episodes in order, each once; numpy's are as good as Python's.

    >>> parse_episodes((3, 1, 3))
    [1, 3]
    """
    try:
        chosen = sorted({operator.index(one) for one in given})
    except TypeError:
        chosen = []
    if not chosen:
        raise InvalidArgumentError(f"episodes={given!r}; give the numbers of some, as [0, 3], or None for all")
    return chosen


def _name_by_repository(error: Exception, folder: Path, name: str) -> None:
    """Have an error speak of files as they are called on the Hub: those that were downloaded are gone."""

    def named(text: str) -> str:
        return text.replace(f"{folder}/", f"{name}/").replace(str(folder), name)

    error.args = tuple(named(part) if isinstance(part, str) else part for part in error.args)
    if hasattr(error, "__notes__"):
        error.__notes__ = [named(note) for note in error.__notes__]


def _taken_in(
    files: HubFiles,
    storage_dir: Path,
    options: PullOptions,
    ingest_options: IngestOptions,
    provenance: Mapping[str, Any],
    told: Told | None,
) -> IngestReport:
    folder = files.folder
    _fetch_metadata(files, provenance["repo_id"], storage_dir)
    skipped = _skipped(folder, options.episodes, ingest_options.skip_episodes)
    _fetch_rows(files, folder, skipped, storage_dir)
    source = open_lerobot(folder, skipped, strict=ingest_options.strict, remote=files)
    found = {key: value for key, value in source.provenance.items() if key != "folder"}
    report = ingest(source, storage_dir, ingest_options, {**found, **provenance}, told)
    remove(folder)
    return report


def _prepared(storage_dir: Path, commit: str) -> Path:
    """The folder for what is downloaded, beside the dataset to be; emptied where it is of another commit."""
    folder = storage_dir.with_name(f".{storage_dir.name}.download")
    mark = folder / _COMMIT
    if folder.exists() and (not mark.is_file() or mark.read_text() != commit):
        if not mark.is_file() and any(folder.iterdir()):
            raise InvalidArgumentError(f"{folder}, where downloads would go, holds other things; move it away")
        remove(folder)
    make_dir(folder)
    write_file(mark, commit.encode())
    return folder


def _fetch_metadata(files: HubFiles, repo_id: str, storage_dir: Path) -> None:
    names = [name for name in files.names if _METADATA.fullmatch(name)]
    if not any(name.endswith("/info.json") for name in names):
        raise SourceError(
            f"{repo_id}: holds no meta/info.json, so it is no LeRobot dataset, or its upload was not finished"
        )
    for name in names:
        size = files.size(files.folder / name)
        if name.endswith("info.json") and size > MAX_JSON_BYTES:
            raise SourceError(f"{repo_id}: {name} has {size:,} bytes, which is no real metadata; it is not downloaded")
    _check_room(files, names, storage_dir)
    files.fetch_all(names)


def _skipped(folder: Path, episodes: Sequence[int] | None, skipped: Any) -> frozenset[int]:
    if episodes is None:
        return frozenset(skipped)
    listed = listed_episodes(folder)
    if unknown := sorted(set(episodes) - set(listed)):
        raise InvalidArgumentError(
            f"episodes names {', '.join(map(repr, unknown[:5]))}, and there are {len(listed)} episodes, from "
            f"{min(listed, default=0)} to {max(listed, default=0)}; those would do"
        )
    return frozenset(set(listed) - set(episodes) | set(skipped))


def _fetch_rows(files: HubFiles, folder: Path, skipped: frozenset[int], storage_dir: Path) -> None:
    names = [name for name in files.names if _ROWS.fullmatch(name)]
    if skipped:
        needed = listed_episodes(folder)
        needless = {path for index, path in needed.items() if index in skipped}
        needless -= {path for index, path in needed.items() if index not in skipped}
        names = [name for name in names if name not in needless]
    _check_room(files, names, storage_dir)
    files.fetch_all(names)


def _check_room(files: HubFiles, names: Sequence[str], place: Path) -> None:
    needed, free = files.bytes_of(names), free_bytes(place)
    if needed > free:
        raise DiskSpaceError(
            f"{needed:,} bytes are to be downloaded for {place}, and {free:,} are free; free some space"
        )


def _held(storage_dir: Path) -> Mapping[str, Any] | None:
    """Where the dataset in a directory comes from; None where there is none, or only half of one."""
    if not is_dataset(storage_dir) or is_unfinished(storage_dir):
        return None
    store = Store.open(storage_dir)
    try:
        return store.manifest.provenance
    finally:
        store.close()


def _keys(storage_dir: Path) -> Any:
    store = Store.open(storage_dir)
    try:
        return store.manifest.keys.values()
    finally:
        store.close()
