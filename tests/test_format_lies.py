"""Records whose checksums are right and whose fields lie: one error, or none; never a crash, a hang or a full disk."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2, RoboreelError, StorageDirCorruptError
from roboreel.cli.main import main
from roboreel.format import paths
from roboreel.format.manifest import metadata_hash
from roboreel.format.records import State, episode_dtype, seal_row, sealed, strings_hash
from roboreel.format.redo import REDO_MAGIC, redo_hash
from roboreel.store import repair, verify
from tests.damage import dataset
from tests.recordings import recording

MODES = ("memmap", "video")
FAR, MOST = 1 << 62, (1 << 64) - 1
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {mode: dataset(folder / mode, mode) for mode in MODES}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def in_state(root: Path, fields: Mapping[str, Any]) -> None:
    path = root / paths.STATE
    raw = bytearray(path.read_bytes())
    for offset in (0, 4096, 8192):
        state = State.from_bytes(bytes(raw[offset : offset + 256]))
        if state is not None:
            raw[offset : offset + 256] = replace(state, **fields).to_bytes()
    path.write_bytes(raw)


def in_row(root: Path, row: int, videos: int, fields: Mapping[str, Any]) -> None:
    dtype, path = episode_dtype(videos), root / paths.EPISODES
    raw = bytearray(path.read_bytes())
    place = slice(row * dtype.itemsize, (row + 1) * dtype.itemsize)
    one = np.frombuffer(bytes(raw[place]), dtype).copy()
    for name, value in fields.items():
        if name in ("file", "first"):
            one["clips"][name] = value
        else:
            one[name] = value
    raw[place] = seal_row(one)
    path.write_bytes(raw)


def in_metadata(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / paths.METADATA
    document = json.loads(path.read_bytes())
    change(document)
    raw = json.dumps(document).encode()
    path.write_bytes(raw)
    in_state(root, {"metadata_hash": metadata_hash(raw)})


def in_strings(root: Path, raw: bytes, count: int) -> None:
    (root / paths.STRINGS).write_bytes(raw)
    in_state(root, {"strings": count, "string_bytes": len(raw), "strings_hash": strings_hash(raw)})


def in_redo(root: Path, body: bytes) -> None:
    raw = sealed(body)
    (root / paths.REDO).write_bytes(raw)
    in_state(root, {"redo": redo_hash(raw), "busy_start": 0, "busy_stop": 3})


def redo(slots: tuple[int, ...], key: bytes = b"action", word: int = 1, count: int | None = None) -> bytes:
    count = len(slots) if count is None else count
    header = struct.pack("<8sQQ", REDO_MAGIC, len(key), count) + key
    return header + b"".join(struct.pack("<q", slot) for slot in slots) + struct.pack("<QQ4x", word, 0) * len(slots)


STATE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("rows", "frames", "capacity", "next_slot", "strings", "string_bytes"), (0, 7, 1 << 31, MOST)),
    **dict.fromkeys(("next_index", "next_episode_index", "busy_start", "busy_stop"), (0, 7, MOST)),
    **dict.fromkeys(("generation", "seq", "at_risk_start", "at_risk_length"), (7, FAR, MOST)),
    **dict.fromkeys(("metadata_hash", "redo", "strings_hash"), (7,)),
}
ROW: dict[str, tuple[float, ...]] = {
    "start": (-1, -FAR, FAR, 100, 1),
    "length": (0, -1, -FAR, FAR, 100, 2),
    "first_index": (-1, 0, FAR, 1 << 61),
    "episode_index": (-1, 0, FAR, 1 << 61),
    "flags": (2, 3, 4, (1 << 32) - 1),
    "task": (-5, 99, (1 << 31) - 1),
    "source": (-5, 99),
    "source_episode": (-2, 5),
    "max_gap": (float("nan"), float("inf"), -1.0),
    "wall_start": (float("nan"), float("inf")),
}
CLIPS = {"file": (-1, 99, FAR), "first": (-1, -100, 100, FAR)}
METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "capacity 17": lambda m: m.update(capacity=17),
    "capacity 5": lambda m: m.update(capacity=5),
    "capacity 2^47": lambda m: m.update(capacity=1 << 47),
    "no ring": lambda m: m.update(ring=False),
    "grows": lambda m: m.update(fixed_capacity=False),
    "bytes": lambda m: m.update(byte_capacity={"bytes": 1, "frame_bytes": 1}),
    "index": lambda m: m["keys"]["action"].update(role="index"),
    "fps": lambda m: m.update(fps=5e-324),
    "camera": lambda m: m["keys"]["observation.image"].update(stored="png"),
    "deep": lambda m: m["provenance"].update(x=json.loads("[" * 500 + "]" * 500)),
}
STRINGS = {
    "deep": (b"[" * 200_000 + b'\n"b"\n"c"\n', 3),
    "surrogate": (b'"\\ud800"\n"b"\n"c"\n', 3),
    "same": (b'"a"\n"a"\n"a"\n', 3),
    "open end": (b'"a"\n"b"\n"c"', 3),
    "fewer": (b'"a"\n', 1),
    "number": (b"1" * 5000 + b'\n"b"\n"c"\n', 3),
}
REDO = {
    "short": b"x",
    "magic": b"X" + redo((0,))[1:],
    "no frame": redo(()),
    "count": redo((0,), count=FAR),
    "longer": redo((0,)) + b"\0",
    "name": struct.pack("<8sQQ", REDO_MAGIC, MOST, 1) + b"action",
    "unknown key": redo((0,), b"acXion"),
    "no text": redo((0,), b"\xff" * 6),
    "index key": redo((0,), b"index"),
    "string key": redo((0,), b"task"),
    "negative": redo((-1,)),
    "far": redo((1 << 40,)),
    "descending": redo((2, 1)),
    "wrapping around": redo((1, 2, -(1 << 63))),
    "no owner": redo((0,), word=0),
    "owner": redo((0,), word=99),
}


def lies() -> Iterator[tuple[str, str, Spoil]]:
    for name, values in STATE.items():
        for value in values:
            yield f"state {name}={value}", "memmap", partial(in_state, fields={name: value})
    for name, numbers in ROW.items():
        for number in numbers:
            for row in (1, 4) if number != FAR else (4,):
                yield f"row {row} {name}={number}", "memmap", partial(in_row, row=row, videos=0, fields={name: number})
    for name, values in CLIPS.items():
        for value in values:
            yield f"clip {name}={value}", "video", partial(in_row, row=2, videos=1, fields={name: value})
    for name, change in METADATA.items():
        yield f"metadata {name}", "memmap", partial(in_metadata, change=change)
    for name, (raw, count) in STRINGS.items():
        yield f"strings {name}", "memmap", partial(in_strings, raw=raw, count=count)
    for name, body in REDO.items():
        yield f"redo {name}", "memmap", partial(in_redo, body=body)


LIES = {name: (mode, spoil) for name, mode, spoil in lies()}


def read(root: Path) -> None:
    with LeRobotDatasetV2(root, readonly=True, image_dtype="uint8") as one:
        one.set_delta_timestamps({"action": [-0.2, 0, 0.3]}, on_hole="nearest")
        assert len(one) <= 16
        for index in range(0, len(one), 3):
            one[index]
        for episode in one.get_unique_episode_indices().tolist():
            one.get_episode(episode)
        one.get_data_by_key("task")


def add(root: Path) -> None:
    with LeRobotDatasetV2(root, image_dtype="uint8") as one:
        one.add_episodes(recording(3, 18, camera=True, task="new"))
        one.add_episodes(recording(2, 21, camera=True, task="newer"))


def contents(root: Path) -> dict[Path, bytes]:
    own = (paths.LOCK, paths.LOCK_OWNER)
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name not in own}


def mend(root: Path) -> None:
    before = contents(root)
    try:
        repair(root)
    except RoboreelError:
        assert contents(root) == before
    else:
        assert verify(root).problems == []
        read(root)


def check(root: Path) -> None:
    LeRobotDatasetV2.check_storage_dir_integrity(root)


@pytest.mark.parametrize("case", LIES)
def test_a_lie_under_a_right_checksum(whole: dict[str, Path], tmp_path: Path, case: str) -> None:
    mode, spoil = LIES[case]
    for attempt in (read, check, add, mend):
        root = shutil.copytree(whole[mode], tmp_path / "only" / attempt.__name__)
        spoil(root)
        if attempt is read:
            problems = verify(root).problems
            assert all("\n" not in str(problem) for problem in problems)
        with contextlib.suppress(RoboreelError):
            attempt(root)
            if attempt is add and not problems:
                assert verify(root).problems == []  # what verify believes can be gone on with
        assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 1 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["only"]


TOLD: dict[str, tuple[str, list[str] | None]] = {
    "state frames=2147483648": ("state.bin: frames is 2147483648, and at most 16 can be", None),
    "state rows=2147483648": ("episodes.bin holds 5 rows, 2147483648 are committed", None),
    "state next_slot=7": ("state.bin: next_slot is 7, and the last episode ends at 3", []),
    "row 1 start=-1": ("episodes.bin: row 1 covers 3 slots from -1", []),
    "row 1 flags=4": ("episodes.bin: row 1 has the flags 4, which are not known", []),
    "row 4 episode_index=-1": ("episodes.bin: row 4 has the episode_index -1", []),
    "row 1 episode_index=2305843009213693952": ("row 2 has number 2 and index 7, lower than those before it", []),
    "row 4 length=0": ("episodes.bin: row 4 covers 0 slots from 0", []),
    "metadata index": ("'action' has role 'index', which only", None),
    "metadata capacity 5": ("says capacity 5, and .*state.bin counts 16", []),
    "metadata no ring": ("row 4 begins at slot 0, where the one before ended at 15", None),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_lie_is_told_and_mended_without_a_loss_or_refused(whole: dict[str, Path], tmp_path: Path, case: str) -> None:
    words, dropped = TOLD[case]
    root = shutil.copytree(whole["memmap"], tmp_path / "copy")
    LIES[case][1](root)
    with pytest.raises(StorageDirCorruptError, match=words):
        read(root)
    assert any(re.search(words.split(": ")[-1].split(" .*")[0], str(problem)) for problem in verify(root).problems)
    if dropped is None:
        with pytest.raises(StorageDirCorruptError):
            repair(root)
        return
    done = repair(root).done
    assert [line for line in done if "dropped" in line] == dropped
    columns = {path.name: path.read_bytes() for path in (root / paths.COLUMNS).iterdir()}
    assert columns == {path.name: path.read_bytes() for path in (whole["memmap"] / paths.COLUMNS).iterdir()}


@pytest.mark.parametrize("field", ["generation", "seq"])
def test_a_change_after_which_no_reader_would_take_the_record_is_refused(
    whole: dict[str, Path], tmp_path: Path, field: str
) -> None:
    root = shutil.copytree(whole["memmap"], tmp_path / "copy")
    in_state(root, {field: FAR})
    with pytest.raises(StorageDirCorruptError, match=rf"state\.bin: after this change {field} is {FAR + 1}, and at"):
        add(root)
    assert verify(root).problems == []
    read(root)


def test_the_command_never_shows_a_traceback(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("state frames=2147483648", "metadata index", "redo unknown key", "strings deep"):
        root = shutil.copytree(whole["memmap"], tmp_path / case)
        LIES[case][1](root)
        with pytest.raises(SystemExit) as code:
            main(["verify", str(root)])
        assert code.value.code == 1
        assert capsys.readouterr().out.count("\n") in (1, 2, 3)


def test_room_that_the_metadata_promises_and_the_files_have_not(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["memmap"], tmp_path / "copy")
    LIES["metadata capacity 17"][1](root)
    read(root)
    assert "owners.bin: has 128 bytes; 17 frames need 136; no frame is lost by it" in map(str, verify(root).problems)
    assert "metadata.json: capacity 16, for which there is room, not 17" in repair(root).done
    assert verify(root).problems == []
