"""Every binary record as an explicit little-endian packed layout.

`docs/format.md` says what each field means and what must hold; `tests/test_format.py` pins the bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from roboreel.errors import StorageDirCorruptError

STATE_MAGIC = b"RRSTATE\x01"
STATE_RECORD_BYTES = 256
LIVE_OFFSET = 0
DURABLE_OFFSETS = (4096, 8192)
"""Two places in turn, a page apart: a torn write of one leaves the other."""
STATE_BYTES = 12288

_STATE_FIELDS = struct.Struct("<8s2Q16s16Q")
_CHECKSUM_BYTES = 8
_SHORTEST_STRING = len('""\n')
MAX_CAPACITY = (1 << 48) - 1
"""Slots."""
MAX_COUNT = 1 << 62
"""Of anything: with room for a sum."""


@dataclass(frozen=True, slots=True)
class State:
    """What is committed, in one record. Fields in the order of the bytes; integers are unsigned, 8 bytes each."""

    generation: int = 0
    """Grows by one with every commit."""
    seq: int = 0
    """Grows by one with every write of the live record, so also when a write begins."""
    boot_id: bytes = bytes(16)
    """Of the machine when this was written: after another boot a live record does not count, it was never synced."""
    writer_pid: int = 0
    rows: int = 0
    """Rows of the episode table."""
    frames: int = 0
    """Slots that hold or held a frame: the length of the dataset."""
    capacity: int = 0
    """Slots for which every column file has room."""
    next_slot: int = 0
    next_index: int = 0
    next_episode_index: int = 0
    busy_start: int = 0
    """The slots that are being written just now; none where both ends are equal."""
    busy_stop: int = 0
    strings: int = 0
    string_bytes: int = 0
    metadata_hash: int = 0
    """xxh3-64 of `metadata.json`."""
    at_risk_start: int = 0
    """In a durable record: slots that are overwritten after it, and hold nothing certain after a power cut. They begin
    here and go on around the ring for `at_risk_length`."""
    at_risk_length: int = 0
    redo: int = 0
    """xxh3-64 of `redo.bin` while an edit is committed and not wholly applied; otherwise 0."""
    strings_hash: int = 0
    """`strings_hash` of the committed bytes of `strings.jsonl`."""

    def with_busy(self, start: int, stop: int) -> State:
        """Return the state with slots [start, stop) published as being written; none where both are equal."""
        return replace(self, busy_start=start, busy_stop=stop)

    def to_bytes(self) -> bytes:
        """Return the 256 bytes of the record: magic, fields, zeros, checksum.

        >>> State.from_bytes(State(rows=3).to_bytes()).rows
        3
        """
        body = _STATE_FIELDS.pack(STATE_MAGIC, *astuple(self))
        return sealed(body.ljust(STATE_RECORD_BYTES - _CHECKSUM_BYTES, b"\0"))

    def problem(self) -> str | None:
        """Return what cannot be about it, whatever the files hold, or None.

        >>> State(capacity=4, frames=5).problem()
        'frames is 5, and at most 4 can be'
        """
        limits = {
            "generation": MAX_COUNT,
            "seq": MAX_COUNT,
            "rows": OWNER_ROW_MASK - 1,
            "capacity": MAX_CAPACITY,
            "frames": self.capacity,
            "next_slot": self.frames,
            "next_index": MAX_COUNT,
            "next_episode_index": MAX_COUNT,
            "busy_stop": self.capacity,
            "busy_start": self.busy_stop,
            "string_bytes": MAX_COUNT,
            "strings": min(self.string_bytes // _SHORTEST_STRING, np.iinfo(np.int32).max),
            "at_risk_start": self.capacity,
            "at_risk_length": self.capacity,
        }
        if not self.capacity:
            return "capacity is 0"
        for name, limit in limits.items():
            if getattr(self, name) > limit:
                return f"{name} is {getattr(self, name)}, and at most {limit} can be"
        return None

    @classmethod
    def from_bytes(cls, raw: bytes) -> State | None:
        """Return the record in `raw`, or None where there is none that is whole."""
        if len(raw) != STATE_RECORD_BYTES or not is_sealed(raw):
            return None
        magic, *values = _STATE_FIELDS.unpack_from(raw)
        return cls(*values) if magic == STATE_MAGIC else None


assert _STATE_FIELDS.size == 8 + 8 * (len(fields(State)) - 1) + 16

FLAG_INTEGER_WINDOWS = 1
"""The episode counts as regular in time: its windows are made from frame numbers, not from timestamps."""
FLAG_LOST = 2
"""Not an episode: its slots were being overwritten when a writer died, and hold nothing."""

NO_STRING = -1
"""The string code that means: none."""

_EPISODE_FIELDS: list[Any] = [
    ("uuid", "V16"),
    ("start", "<i8"),  # first slot
    ("length", "<i8"),  # frames
    ("first_index", "<i8"),  # `index` of its first frame
    ("episode_index", "<i8"),
    ("flags", "<u4"),
    ("task", "<i4"),  # string code of the first frame's task
    ("source", "<i4"),  # string code: where it was taken from
    ("source_episode", "<i4"),  # its number there; -1: none
    ("max_gap", "<f8"),  # longest time between neighbouring frames, s
    ("wall_start", "<f8"),  # time of recording, s since 1970; 0: not known
    ("reserved", "V40"),
]

OWNER_DTYPE = np.dtype("<u8")
"""One word a slot, so that it is never torn: episode row + 1 in the low 40 bits, edit counter above; 0: no frame."""
OWNER_ROW_MASK = (1 << 40) - 1
OWNER_EDIT = 1 << 40
"""Added to an owner word by each edit of its slot."""

CHECKSUM_DTYPE = np.dtype("<u8")
"""One xxh3-64 a frame and key."""

STRING_SUM_DTYPE = np.dtype("<u8")
"""One `strings_hash` a string, after its line."""

CACHE_MAGIC = b"RRCACHE\x01"
CACHE_HEADER_DTYPE = np.dtype(
    [
        ("magic", "V8"),
        ("frame_bytes", "<u8"),
        ("places", "<u8"),  # frames for which the file of pixels has room
        ("used", "<u8"),  # places that were given to a slot
        ("retired", "<u8"),  # 1: cleared; who has the file mapped opens the new one
        ("reserved", "V472"),
    ]
)
"""Begins a table of decoded frames; then one `CACHE_SLOT_DTYPE` a slot of the dataset."""
CACHE_SLOT_DTYPE = np.dtype(
    [
        ("place", "<u8"),  # 1 + where the slot's pixels lie; 0: it has no place
        ("identity", "<u8"),  # of the image that they were decoded from; 0: they are being written
        ("checksum", "<u8"),  # xxh3-64 of the pixels, the identity its seed
    ]
)


def episode_dtype(video_cameras: int) -> np.dtype[Any]:
    """The row of the episode table of a dataset in which so many cameras are stored as video.

    >>> episode_dtype(0).itemsize, episode_dtype(2).itemsize
    (128, 160)
    """
    clips: list[Any] = []
    if video_cameras:
        clip = np.dtype([("file", "<i8"), ("first", "<i8")])  # number of the video file, first frame in it
        clips = [("clips", clip, (video_cameras,))]
    return np.dtype([*_EPISODE_FIELDS, *clips, ("checksum", "<u8")])


def sealed(body: bytes) -> bytes:
    """Return the bytes followed by their xxh3-64."""
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(_CHECKSUM_BYTES, "little")


def is_sealed(raw: bytes) -> bool:
    """Whether the last eight bytes are the checksum of those before."""
    return xxhash.xxh3_64_intdigest(raw[:-_CHECKSUM_BYTES]) == int.from_bytes(raw[-_CHECKSUM_BYTES:], "little")


def seal_row(row: NDArray[np.void]) -> bytes:
    """Return the bytes of one episode row with its checksum in place."""
    return sealed(row.tobytes()[:-_CHECKSUM_BYTES])


def parse_rows(raw: bytes, dtype: np.dtype[Any], first_row: int) -> NDArray[np.void]:
    """Return the episode rows in `raw`; `StorageDirCorruptError` names the row whose checksum is wrong."""
    rows = np.frombuffer(raw, dtype)
    size, digest, view = dtype.itemsize, xxhash.xxh3_64_intdigest, memoryview(raw)
    body = size - _CHECKSUM_BYTES
    # Nothing but the hash in the loop: there may be a million rows, and who opens waits for all of them.
    sums = np.fromiter((digest(view[at : at + body]) for at in range(0, len(raw), size)), CHECKSUM_DTYPE, len(rows))
    wrong = sums != rows["checksum"]
    if np.any(wrong):
        raise StorageDirCorruptError(
            f"row {first_row + int(np.argmax(wrong))} of the episode table (episodes.bin) does not match its checksum; "
            "restore the file from a copy"
        )
    return rows


def strings_hash(raw: bytes, before: int = 0) -> int:
    r"""Return the hash of lines that follow others, of which `before` is the hash: each line seeds that of the next.

    >>> strings_hash(b'"a"\n"b"\n') == strings_hash(b'"b"\n', strings_hash(b'"a"\n'))
    True
    """
    return [before, *line_hashes(raw, before)][-1]


def line_hashes(raw: bytes, before: int = 0) -> list[int]:
    """Return `strings_hash` after each of the lines, which follow others of which `before` is the hash."""
    *lines, rest = raw.split(b"\n")
    found = []
    for line in [*(line + b"\n" for line in lines), *([rest] if rest else [])]:
        before = xxhash.xxh3_64_intdigest(line, seed=before)
        found.append(before)
    return found


def parse_strings(raw: bytes, count: int) -> list[str]:
    r"""Return the `count` strings in `raw`, one JSON string a line; `StorageDirCorruptError` for anything else.

    >>> parse_strings(b'"push the T"\n"grasp"\n', 2)
    ['push the T', 'grasp']
    """
    lines = raw.split(b"\n")
    try:
        strings = [json.loads(line) for line in (lines if lines[-1] else lines[:-1])]
        "".join(text for text in strings if isinstance(text, str)).encode()
    except (ValueError, RecursionError) as error:
        raise StorageDirCorruptError(f"strings.jsonl cannot be read: {error}; restore the file from a copy") from None
    is_whole = raw.endswith(b"\n") or not raw
    if (
        len(strings) != count
        or len(set(map(str, strings))) != count
        or not is_whole
        or not all(isinstance(text, str) for text in strings)
    ):
        raise StorageDirCorruptError(
            f"strings.jsonl does not hold the {count} strings, all different, that are committed; "
            "restore the file from a copy"
        )
    return strings
