"""Keeping libav's messages out of Python while it decodes or encodes in threads of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from roboreel._optional import require

_lock = threading.Lock()
_within = 0
_level_before: int | None = None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Have PyAV hand no message of libav to Python's logging until the last such block is left.

    Who has switched those on (importing `torchvision.io` does) makes libav's threads ask for the GIL whenever they have
    something to say. PyAV holds it while it ends them: each waits for the other, for ever.
    """
    global _within, _level_before  # noqa: PLW0603 - the level is libav's, and so the process's
    logging = require("av.logging", purpose="video")
    with _lock:
        if not _within:
            _level_before = logging.get_level()
            logging.set_level(None)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                logging.set_level(_level_before)
