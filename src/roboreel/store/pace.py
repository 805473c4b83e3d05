"""How often long work is synced: seldom enough to cost little, often enough for a power cut to take back little."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_SYNC_S, _WORK_A_SYNC = 5.0, 10
"""How much work (s) a power cut may take back, and at least how many times what a sync costs; a kill takes back the
episode it meets."""


class Pace:
    """Begins with the work."""

    def __init__(self) -> None:
        self._synced = time.monotonic()
        self._pause = _SYNC_S

    def is_due(self) -> bool:
        return time.monotonic() - self._synced > self._pause

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """What is done inside is the sync."""
        began = time.monotonic()
        yield
        self._synced = time.monotonic()
        self._pause = max(_SYNC_S, _WORK_A_SYNC * (self._synced - began))
