"""Which file system a path lies on, because a ring on some of them cannot keep what it promises."""

from __future__ import annotations

import re
from pathlib import Path

from roboreel.errors import InvalidArgumentError

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def read_mountinfo() -> str:
    """The mounts that this process sees; empty where the system does not tell (macOS)."""
    try:
        return _MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:
        return ""


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """Return the type of the file system on which an absolute path lies; None where no mount is named.

    Of mounts that hold the path the innermost counts, of several at one place the last.

    >>> lines = "22 1 8:1 / / rw - ext4 /dev/sda1 rw" + chr(10) + "40 22 0:50 / /mnt/a rw shared:7 - nfs4 host:/a rw"
    >>> filesystem_type(Path("/mnt/a/ring"), lines), filesystem_type(Path("/mnt/ab"), lines)
    ('nfs4', 'ext4')
    """
    best: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        place = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(place) and (best is None or len(place.parts) >= best[0]):
            best = (len(place.parts), after.split(" ")[0])
    return None if best is None else best[1]


def remote_type(path: Path) -> str | None:
    """Return the type of the file system of a path if it is NFS or FUSE; None where it is another one.

    There a mapping may go on showing what another machine, or the daemon behind it, has long overwritten.
    """
    kind = filesystem_type(path.resolve(), read_mountinfo())
    return kind if kind in ("nfs", "nfs4", "fuseblk") or (kind or "").split(".")[0] == "fuse" else None


def check_ring_place(root: Path) -> None:
    """Refuse a ring on NFS or FUSE: readers could be given a mixture of two episodes.

    Besides, a lock there need not hold between machines.
    """
    kind = remote_type(root)
    if kind is not None:
        raise InvalidArgumentError(
            f"{root} is on {kind}, and a ring (use_as_fifo_buffer=True) needs a local file system: on NFS and FUSE "
            "readers may be shown a mixture of old and new frames; put it on a local disk, or leave the ring out"
        )
