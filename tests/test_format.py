"""The bytes on disk are those of docs/format.md: pinned literally, and read back from a golden dataset."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from roboreel import InvalidArgumentError, LeRobotDatasetV2
from roboreel.columns.cache_file import CacheFile
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.frames import decode_png
from roboreel.format import files, paths
from roboreel.format.manifest import Manifest, metadata_hash
from roboreel.format.records import (
    DURABLE_OFFSETS,
    OWNER_DTYPE,
    State,
    episode_dtype,
    line_hashes,
    parse_rows,
    seal_row,
)
from roboreel.schema import KeySpec, index_keys
from roboreel.store import Writer
from tests.make_golden import CLIP_SHAPE, GOLDEN, PNG, RAW, SPECIAL_KEY, TASKS, VIDEO, grey_levels, images, make

DOCUMENT = Path(__file__).parents[1] / "docs" / "format.md"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


# Bytes


def test_state_record() -> None:
    state = State(1, 2, bytes(range(16)), 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0xFEDCBA9876543210)
    raw = state.to_bytes()
    assert raw[:136].hex(" ", 8) == (
        "5252535441544501 0100000000000000 0200000000000000 0001020304050607 08090a0b0c0d0e0f 0300000000000000 "
        "0400000000000000 0500000000000000 0600000000000000 0700000000000000 0800000000000000 0900000000000000 "
        "0a00000000000000 0b00000000000000 0c00000000000000 0d00000000000000 1032547698badcfe"
    )
    assert raw[136:248] == bytes(112)
    assert raw[248:].hex() == "505ed55cd0a6e406"
    assert State.from_bytes(raw) == state


def test_cache_table(tmp_path: Path) -> None:
    """What is in `cache/` is no part of the data, and one process writes what another one reads."""
    file = CacheFile(tmp_path, "observation.image", 4)
    file.resize(3, 2)
    file.fill(np.array([2]), np.array([9], np.uint64), np.array([[1, 2, 3, 4]], np.uint8))
    raw = paths.cache_slots_path(tmp_path, "observation.image").read_bytes()
    assert raw[:40].hex(" ", 8) == (
        "5252434143484501 0400000000000000 0200000000000000 0100000000000000 0000000000000000"
    )
    assert raw[40:512] == bytes(472)
    assert raw[512:560] == bytes(48)
    assert (
        raw[560:].hex(" ", 8)
        == "0100000000000000 0900000000000000 " + xxhash.xxh3_64(bytes([1, 2, 3, 4]), seed=9).digest()[::-1].hex()
    )
    pixels = paths.cache_pixels_path(tmp_path, "observation.image")
    assert (pixels.name, pixels.read_bytes()) == ("observation.image.pixels", bytes([1, 2, 3, 4, 0, 0, 0, 0]))


def test_episode_row() -> None:
    dtype = episode_dtype(video_cameras=2)
    offsets = {name: field[1] for name, field in (dtype.fields or {}).items()}
    assert offsets == {
        "uuid": 0, "start": 16, "length": 24, "first_index": 32, "episode_index": 40, "flags": 48, "task": 52,
        "source": 56, "source_episode": 60, "max_gap": 64, "wall_start": 72, "reserved": 80, "clips": 120,
        "checksum": 152,
    }  # fmt: skip
    row = np.zeros(1, dtype)
    row["uuid"] = np.void(bytes(range(16)))
    row["start"], row["length"], row["first_index"], row["episode_index"] = 1, 2, 3, 4
    row["flags"], row["task"], row["source"], row["source_episode"] = 5, 6, 7, -1
    row["max_gap"], row["wall_start"] = 0.5, 1.0
    row["clips"] = [[(8, 9), (10, 11)]]
    raw = seal_row(row)
    assert raw[:80].hex(" ", 8) == (
        "0001020304050607 08090a0b0c0d0e0f 0100000000000000 0200000000000000 0300000000000000 0400000000000000 "
        "0500000006000000 07000000ffffffff 000000000000e03f 000000000000f03f"
    )
    assert raw[80:120] == bytes(40)
    assert raw[120:].hex(" ", 8) == (
        "0800000000000000 0900000000000000 0a00000000000000 0b00000000000000 f2c8e54041178628"
    )
    assert parse_rows(raw, dtype, 0)["clips"]["first"].tolist() == [[9, 11]]


def test_owner_word() -> None:
    row, edits = 0x0102030405, 0x0A0B0C
    word = np.array([(edits << 40) | (row + 1)], OWNER_DTYPE)
    assert word.tobytes().hex() == "06040302010c0b0a"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("observation.state", "observation.state"),
        ("observation.images.Top/left", "observation.images.%54op%2Fleft"),
        ("action", "action"),
        ("Action", "%41ction"),
        ("..", "%2E."),
        ("../../evil", "%2E.%2F..%2Fevil"),
        ("a%2Fb", "a%252%46b"),
        ("größe 1", "gr%C3%B6%C3%9Fe%201"),
        ("\0", "%00"),
        ("a\\b:c", "a%5Cb%3Ac"),
    ],
)
def test_key_encoding(key: str, name: str) -> None:
    assert paths.encode_key(key) == name


@pytest.mark.parametrize(("key", "words"), [("x" * 241, "too long for a file name"), ("\ud800", "not valid Unicode")])
def test_keys_that_no_file_can_be_called(key: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        paths.encode_key(key)


def test_metadata() -> None:
    keys = {spec.name: spec for spec in (*index_keys(), KeySpec("action", np.dtype("<f4"), (2,), names=["x", "y"]))}
    uuid = "00000000-0000-0000-0000-000000000001"
    raw = Manifest(10.0, keys, 8, fixed_capacity=False, ring=False, uuid=uuid).to_bytes()
    integer = '{"dtype": "<i8", "shape": [], "role": "index", "stored": "column"}'
    one_line = re.sub(r"(?<=[\[{]) | (?=[\]}])", "", re.sub(r"\s+", " ", raw.decode()))
    assert one_line == (
        '{"format": "roboreel", "version": "0.1", "incompatible": [], "compatible": [], '
        '"uuid": "00000000-0000-0000-0000-000000000001", "fps": 10.0, "capacity": 8, "fixed_capacity": false, '
        '"ring": false, "paths": {"column": "columns/{key}.bin", "checksum": "checksums/{key}.bin", '
        '"png": "images/{key}/{row:09d}/{frame:06d}.png", '
        '"video": "videos/{key}/{file:06d}.mp4", "frame_table": "videos/{key}/{file:06d}.frames"}, '
        f'"keys": {{"index": {integer}, "episode_index": {integer}, "frame_index": {integer}, '
        '"timestamp": {"dtype": "<f8", "shape": [], "role": "index", "stored": "column", "unit": "s"}, '
        '"action": {"dtype": "<f4", "shape": [2], "role": "value", "stored": "column", "names": ["x", "y"]}}, '
        '"provenance": {}}'
    )
    assert f"{metadata_hash(raw):016x}" == "60c9ad020d5fded7"


def test_frame_table() -> None:
    table = FrameTable(np.array([-1, 512]), np.array([True, False]), (1, 5120), 96, 64, "av1", "yuv420p", 7, 8)
    assert table.to_bytes().hex(" ", -8) == (
        "5252465402000000 0200000000000000 0100000000140000 6000000040000000 "
        "6176310000000000 0000000000000000 7975763432307000 0000000000000000 "
        "0700000000000000 0800000000000000 ffffffffffffffff 0002000000000000 0100d8f9c84be92e 6370"
    )


def test_places_in_state_bin() -> None:
    raw = (GOLDEN / paths.STATE).read_bytes()
    assert (len(raw), DURABLE_OFFSETS) == (12288, (4096, 8192))
    live, durable = State.from_bytes(raw[:256]), State.from_bytes(raw[4096:4352])
    assert live is not None
    assert durable is not None
    assert live.rows == durable.rows + 1  # it was never synced: another boot must not believe it
    assert not any(raw[256:4096] + raw[4352:])


# The golden dataset

FOLLOWED = (paths.OWNERS, paths.EPISODES, paths.STRINGS, paths.STRING_SUMS)

SLOTS: dict[str, list[Any]] = {
    "index": [5, 6, 2, 3, 4],
    "episode_index": [2, 2, 0, 1, 1],
    "frame_index": [0, 1, 2, 0, 1],
    "timestamp": [0.0, 0.1, 0.2, 0.0, 0.25],
    "action": [[200, 200.5], [201, 201.5], [2, 2.5], [100, 100.5], [101, 101.5]],
    SPECIAL_KEY: [20, 21, 2, 10, 11],
    "next.done": [False, True, True, False, True],
}


def test_golden_dataset_opens_item_by_item() -> None:
    before = {path: path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    dataset = LeRobotDatasetV2(GOLDEN, image_dtype="uint8", readonly=True)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (5, 3, 10)
    assert set(dataset.data_keys) == {*SLOTS, "task", RAW, PNG, VIDEO}
    pictures = np.concatenate([images(2), images(0)[2:], images(1)]).transpose(0, 3, 1, 2)
    for i in range(5):
        item = dataset[i]
        for key, values in SLOTS.items():
            assert np.asarray(item[key]).tolist() == pytest.approx(np.float32(values[i]).tolist(), abs=0), key
        assert item["task"] == TASKS[SLOTS["episode_index"][i]]
        for key in (RAW, PNG):
            np.testing.assert_array_equal(np.asarray(item[key]), pictures[i], err_msg=key)
        assert item[VIDEO].shape == (3, *CLIP_SHAPE[:2])
        grey = int(grey_levels()[SLOTS["index"][i]])
        assert abs(np.asarray(item[VIDEO]).astype(int) - grey).max() <= 10
    LeRobotDatasetV2.check_storage_dir_integrity(GOLDEN)
    assert before == {path: path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}


def test_golden_columns_open_with_numpy_and_json_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["action"][:5].tolist() == SLOTS["action"]
    metadata = json.loads(Path("metadata.json").read_text())
    for key, values in SLOTS.items():
        fields = metadata["keys"][key]
        path = {SPECIAL_KEY: "columns/observation.%47ripper%2Fleft.bin"}.get(key, f"columns/{key}.bin")
        column = np.memmap(path, fields["dtype"], "r", shape=(metadata["capacity"], *fields["shape"]))
        assert column[:5].tolist() == pytest.approx(values, abs=0) if key != "action" else True
    owners = np.memmap("owners.bin", "<u8", "r", shape=(metadata["capacity"],))
    assert owners.tolist() == [3, 3, 1, 2, 2, 0]
    strings = [json.loads(line) for line in Path("strings.jsonl").read_bytes().splitlines()]
    assert np.memmap("strings.bin", "<u8", "r").tolist() == line_hashes(Path("strings.jsonl").read_bytes())
    codes = np.memmap("columns/task.bin", "<i4", "r")
    assert [strings[code] for code in codes[:5]] == [TASKS[2], TASKS[2], TASKS[0], TASKS[1], TASKS[1]]


def test_golden_dataset_is_what_is_written_today(tmp_path: Path) -> None:
    make(tmp_path / "new", paths.video_path(GOLDEN, VIDEO, 0))
    names = sorted(path.relative_to(GOLDEN) for path in GOLDEN.rglob("*") if path.is_file())
    made = tmp_path / "new"
    assert names == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    for name in names:
        old, new = (GOLDEN / name).read_bytes(), (made / name).read_bytes()
        if name.suffix == ".png":  # other versions of zlib compress otherwise
            np.testing.assert_array_equal(decode_png(new, (4, 5, 3), str(name)), decode_png(old, (4, 5, 3), str(name)))
        else:
            assert new == old, name


def test_golden_dataset_takes_another_episode(golden: Path) -> None:
    dataset = LeRobotDatasetV2(golden, image_dtype="uint8")
    arrays: dict[str, Any] = {
        "action": np.ones((2, 2), np.float32),
        SPECIAL_KEY: np.ones(2, np.int16),
        "next.done": np.zeros(2, bool),
        "task": ["grasp"] * 2,
        RAW: images(1),
        PNG: images(1),
        VIDEO: np.full((2, *CLIP_SHAPE), 77, np.uint8),
    }
    dataset.add_episodes(arrays)
    dataset.close()
    dataset = LeRobotDatasetV2(golden, image_dtype="uint8", readonly=True)
    assert dataset.get_data_by_key("index").tolist() == [5, 6, 7, 8, 4]
    assert [dataset[i]["task"] for i in range(5)] == [TASKS[2], TASKS[2], "grasp", "grasp", TASKS[1]]
    assert not paths.image_dir(golden, PNG, 0).exists()  # of this episode nothing is left
    assert paths.image_dir(golden, PNG, 1).exists()


def test_flush_syncs_what_another_writer_has_left(golden: Path) -> None:
    """That one may have been killed before it could."""
    synced: set[Path] = set()
    writer = Writer.open(golden)
    with files.observed(lambda kind, path: synced.add(path) if kind == "sync" else None):
        writer.flush()
    writer.close()
    assert synced >= {*(golden / paths.COLUMNS).iterdir(), *(golden / name for name in FOLLOWED)}
