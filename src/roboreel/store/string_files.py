"""The strings of a dataset: JSON lines for everybody, and beside them a hash a line, by which each proves itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from roboreel.format import paths
from roboreel.format.files import DataFile
from roboreel.format.records import STRING_SUM_DTYPE, State, line_hashes
from roboreel.store.room import size_of

_SUM_BYTES = STRING_SUM_DTYPE.itemsize


class StringFiles:
    """`strings.jsonl` and `strings.bin`, open for appending."""

    def __init__(self, root: Path) -> None:
        self._lines = DataFile(root / paths.STRINGS)
        sums = root / paths.STRING_SUMS
        self._sums = DataFile(sums, create=not sums.exists())

    def append(self, new: Sequence[str], state: State) -> State:
        """Write strings after those that the record counts; return the record that counts them too."""
        if not new:
            return state
        raw = encoded(new)
        sums = line_hashes(raw, state.strings_hash)
        self._lines.write_at(state.string_bytes, raw)
        self._sums.truncate(size_of(self._sums.path) // _SUM_BYTES * _SUM_BYTES)  # half a hash would be a wrong one
        self._sums.write_at(state.strings * _SUM_BYTES, np.array(sums, STRING_SUM_DTYPE))
        return replace(
            state,
            strings=state.strings + len(new),
            string_bytes=state.string_bytes + len(raw),
            strings_hash=sums[-1],
        )

    @property
    def files(self) -> list[DataFile]:
        return [self._lines, self._sums]

    def close(self) -> None:
        self._lines.close()
        self._sums.close()


def encoded(strings: Sequence[str]) -> bytes:
    r"""Return the lines of `strings.jsonl`.

    >>> encoded(["grasp", "a\nb"])
    b'"grasp"\n"a\\nb"\n'
    """
    return b"".join(json.dumps(text, ensure_ascii=False).encode() + b"\n" for text in strings)


def unlike_sums(raw: bytes, sums: Sequence[int]) -> list[int]:
    """Return the lines of `strings.jsonl` that are not what their hash was taken of; 0 is no hash."""
    wanted = enumerate(zip(line_hashes(raw), sums, strict=False))
    return [number for number, (found, told) in wanted if told not in (0, found)]


def surviving_strings(raw: bytes, sums: Sequence[int], count: int) -> list[str]:
    r"""Return `count` different strings: those that prove themselves, in their places, others named by their number.

    Lines are counted from the front and from the back, because some may be gone. A line is proved by its hash, of which
    that of the line before is the seed.

    >>> surviving_strings(b'"q"\n"b"\n', line_hashes(b'"a"\n"b"\n'), 2)
    ['lost string 0 (read as "q")', 'b']
    """
    lines = raw.split(b"\n")
    lines = [line + b"\n" for line in (lines if lines[-1] else lines[:-1])]
    sums = [*sums, *[0] * (count - len(sums))]
    found: dict[str, None] = {}
    for number in range(count):
        places = {number, len(lines) - count + number}
        nearby = [lines[place] for place in sorted(places) if 0 <= place < len(lines)]
        before = sums[number - 1] if number else 0
        proved = [line for line in nearby if line_hashes(line, before) == [sums[number]]]
        text = read_line(proved[0]) if proved and (before or not number) else None
        if text is None or text in found:
            read = next((text for line in nearby if (text := read_line(line)) is not None), None)
            named = f"lost string {number}"
            is_named = read is not None and read.startswith(named)  # by a repair that was cut off
            text = str(read) if is_named else named + ("" if read is None else f" (read as {json.dumps(read)})")
        while text in found:  # no two codes for one string
            text += "'"
        found[text] = None
    return list(found)


def read_line(line: bytes) -> str | None:
    """Return the string on a line; None where there is none."""
    try:
        text = json.loads(line)
        str(text).encode()
    except (ValueError, RecursionError):
        return None
    return text if isinstance(text, str) else None
