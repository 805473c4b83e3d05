"""Files of a folder that are elsewhere: fetched when they are needed, and let go when they are not needed any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Remote(Protocol):
    """Where the files of a folder are before they are here; paths are those that they have here."""

    def has(self, path: Path) -> bool:
        """Whether the file is here or there."""

    def size(self, path: Path) -> int:
        """Its bytes."""

    def listed(self, folder: Path) -> Sequence[Path]:
        """Every file in a folder, here and there."""

    def fetch(self, path: Path) -> None:
        """Have the file here."""

    def release(self, path: Path) -> None:
        """Take the file away, unless it is to be kept: what was made of it stands by itself."""
