"""`huggingface_hub`, asked again where that helps, its errors told in our words."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from roboreel._optional import require
from roboreel.errors import HubError

Answer = TypeVar("Answer")

TRIES = 6
FIRST_WAIT_S = 1.0
"""Before the second try; it doubles with each, and some chance is added, so that many clients do not come at once."""
_LONGEST_WAIT_S = 60.0
_FIRST_TRIES = 2


class HubFile(NamedTuple):
    """A file of a repository, as the Hub lists it."""

    path: str
    size: int
    sha256: str | None
    """Of what is kept in LFS."""
    git_oid: str = ""
    """Of what is not: git's hash of it."""


class HubUnreachableError(HubError):
    """No network, offline mode, or a Hub that does not answer."""


class HubClient:
    """One dataset repository, asked with one token."""

    def __init__(self, repo_id: str, token: str | bool | None = None) -> None:
        self.repo_id = repo_id
        self._token = token
        self.hub = require("huggingface_hub", extra="hub", purpose="the Hugging Face Hub")
        self._errors = require("huggingface_hub.errors", extra="hub", purpose="the Hugging Face Hub")
        # read now: the package reads it once, when it is imported
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self.api = self.hub.HfApi(endpoint=self._endpoint, token=token)

    @contextlib.contextmanager
    def bars(self, *, shown: bool) -> Iterator[None]:
        """Have the client show its progress bars or not until the block is left."""
        utils = self.hub.utils
        if shown or utils.are_progress_bars_disabled():
            yield
            return
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.enable_progress_bars()

    def commit_of(self, revision: str | None) -> str:
        """The commit that a branch, a tag or a commit stands for; the default branch where None."""
        info = self.ask(
            lambda: self.api.repo_info(self.repo_id, repo_type="dataset", revision=revision),
            f"revision {revision!r}" if revision else "the default branch",
            first=True,
        )
        return str(info.sha)

    def files(self, commit: str) -> list[HubFile]:
        """Every file at a commit."""

        def listed() -> list[HubFile]:
            tree = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=commit, recursive=True)
            return [
                HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
                for entry in tree
                if hasattr(entry, "size")
            ]

        return self.ask(listed, "the list of files")

    def download(self, path: str, commit: str, folder: Path | None) -> Path:
        """Download a file into `folder`, going on with an earlier try; into the Hub's cache where it is None."""

        def download() -> Path:
            place = self.hub.hf_hub_download(
                self.repo_id,
                path,
                repo_type="dataset",
                revision=commit,
                local_dir=folder,
                token=self._token,
                endpoint=self._endpoint,
            )
            return Path(place)

        return self.ask(download, path)

    def ask(self, call: Callable[[], Answer], what: str, *, first: bool = False) -> Answer:
        """Return what the call gives; tried again while the Hub says "later", is broken, or cuts the connection.

        Where nothing was answered yet (`first`), no connection at all is taken for no network after a second try.

        Raises:
            HubError: it has not what is asked for, or will not give it, or does not answer.
        """
        wait_s = FIRST_WAIT_S
        for tried in range(1, TRIES + 1):
            try:
                return call()
            except Exception as error:
                told = self._told(self._cause(error), what)
                if told is None:
                    raise
                is_last = tried == TRIES or (first and tried == _FIRST_TRIES and _status(self._cause(error)) is None)
                if is_last or not self._passes(self._cause(error)):
                    try:
                        raise told from error
                    finally:
                        del told  # an error that its own frame holds would keep all frames above, and what they hold
                asked_s = _retry_after_s(self._cause(error))
                time.sleep(min(_LONGEST_WAIT_S, max(wait_s * (1 + random.random()), asked_s)))
                wait_s *= 2
        raise AssertionError("the loop returns or raises")

    def _passes(self, error: BaseException) -> bool:
        """Whether asking again may help."""
        status = _status(error)
        if status is not None:
            return status == 429 or status >= 500
        is_cut = isinstance(error, OSError) and "Consistency check failed" in str(error)
        return is_cut or (not self._is_offline(error) and _is_of_network(error))

    def _is_offline(self, error: BaseException) -> bool:
        return isinstance(error, self._errors.OfflineModeIsEnabled)

    def _cause(self, error: Exception) -> BaseException:
        """What an error is due to: the client says "not in the cache", or "uploading", of any failed connection."""
        wrapped = isinstance(error, self._errors.LocalEntryNotFoundError | RuntimeError)
        return error.__cause__ if wrapped and error.__cause__ is not None else error

    def _told(self, error: BaseException, what: str) -> HubError | None:
        """The error in our words; None for what is not the Hub's."""
        errors, name = self._errors, self.repo_id
        if isinstance(error, errors.GatedRepoError):
            return HubError(
                f"{name}: access is restricted; ask for it on its page, then give a token (token=, HF_TOKEN)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"{name}: has no {what}; its page lists branches and tags")
        if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
            return HubError(
                f"{name}: no such dataset on the Hub, or it is private; check the name, and give a token that may see "
                "it (token=, HF_TOKEN, or type: hf auth login)"
            )
        if isinstance(error, errors.HFValidationError):
            return HubError(f"{name!r} is no name of a dataset; 'user/name' would do")
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return HubError(f"{name}: {what} is listed and not there: the upload was not finished? try again later")
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            return HubUnreachableError(f"{name}: {what} came with another size than the Hub says; try again later")
        if self._is_offline(error):
            return HubUnreachableError(f"{name}: offline mode is on (HF_HUB_OFFLINE); unset it to download")
        if isinstance(error, errors.HfHubHTTPError) or _is_of_network(error):
            return self._unreachable(error, what)
        return None

    def _unreachable(self, error: BaseException, what: str) -> HubError:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return HubUnreachableError(f"{self.repo_id}: {what}: no answer from the Hub ({said}); try again later")


def _is_of_network(error: BaseException) -> bool:
    """Whether an error is one of a connection: the client has changed the package that it asks with, and may again."""
    packages = {kind.__module__.partition(".")[0].rstrip("0123456789") for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(packages & {"httpx", "httpcore", "requests"})


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _retry_after_s(error: BaseException) -> float:
    """How long (s) the Hub asks to wait; 0 where it does not say."""
    response = getattr(error, "response", None)
    said = "" if response is None else response.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0
