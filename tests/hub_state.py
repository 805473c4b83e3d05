"""What the hub on loopback holds: repositories in memory, each commit with its files, what went over, what fails."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_BYTES = 1 << 15
"""Files from this size on, and those of media, go through LFS."""


@dataclass
class Repo:
    """A dataset repository."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr([len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        wanted = self.tags.get(revision, revision)
        if wanted == "main":
            return self.commits[-1] if self.commits else None
        return next((commit for commit in self.commits if commit[0] == wanted), None)


@dataclass
class Fault:
    """What goes wrong with a request; `left` counts down."""

    left: int
    matches: re.Pattern[str]
    """Of method and path: `GET /datasets/...`."""
    status: int = 0
    """Answered instead; 0: the connection is cut after `cut_after` bytes of the body."""
    cut_after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server's state; `with hub_running() as hub:` in a fixture."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.token = "hf_right"
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """Method and path of each."""
        self.sent: dict[str, int] = {}
        """Path → bytes of it that went out."""
        self.received = 0
        """Bytes of files that came in."""
        self.lies: dict[str, bytes] = {}
        """Path → what is sent in the place of a file's content, its size and hash still told."""
        self.lock = threading.Lock()
        self.endpoint = ""

    def add(self, repo_id: str, folder: Path, **options: Any) -> Repo:
        """Put a folder up as the next commit of a repository."""
        repo = self.repos.setdefault(repo_id, Repo(**options))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        repo.commit(files)
        return repo

    def fail(self, pattern: str, times: int = 1, *, status: int = 0, cut_after: int = 0, **headers: str) -> None:
        self.faults.append(Fault(times, re.compile(pattern), status, cut_after, headers))

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.left > 0 and fault.matches.search(request):
                    fault.left -= 1
                    return fault
        return None

    def forget_counts(self) -> None:
        self.requests.clear()
        self.sent.clear()
        self.received = 0


def is_lfs(name: str, size: int) -> bool:
    return size >= LFS_BYTES or name.endswith((".mp4", ".parquet", ".arrow"))


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
