"""Git LFS pointers: what a clone without `git lfs` leaves in the place of every large file."""

from __future__ import annotations

from pathlib import Path

_POINTER = b"version https://git-lfs"


def how_to_get(path: Path) -> str:
    """What would do about a file that is not what its name says: `download it again`, or how to resolve a pointer."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        is_pointer = False
    if is_pointer:
        return 'it is only a Git LFS pointer: type "git lfs pull" in the dataset\'s folder, or download the file itself'
    return "download it again"
