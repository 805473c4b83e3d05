"""`verify` finds every flipped bit and every cut in what a committed frame depends on, and nothing in what is whole."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.cli.main import main
from roboreel.format import paths
from roboreel.format.records import DURABLE_OFFSETS, State, sealed
from roboreel.store import Store, repair, verify
from roboreel.store.slots import frame_checksums
from tests.damage import MODES, dataset, depended, episodes, flip, media
from tests.make_golden import GOLDEN
from tests.recordings import CAMERA, made, recording


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {mode: dataset(folder / mode, mode) for mode in MODES}


def lines(root: Path) -> list[str]:
    return [str(problem) for problem in verify(root).problems]


def assert_named(name: Path, found: list[str]) -> None:
    """The file is named, or a frame of which the checksum is in it; and the episode where it is one's own."""
    assert found
    assert all("\n" not in line for line in found)
    assert any(name.as_posix() in line for line in found), found
    if name.parts[0] in (paths.COLUMNS, paths.CHECKSUMS, paths.IMAGES, paths.VIDEOS, paths.EPISODES, paths.OWNERS):
        assert any(re.search(r": episode \d: ", line) for line in found), found


@pytest.mark.parametrize("mode", MODES)
def test_what_is_whole_has_no_problem(whole: dict[str, Path], mode: str) -> None:
    before = {path: path.read_bytes() for path in whole[mode].rglob("*") if path.is_file()}
    report = verify(whole[mode])
    assert (report.problems, report.notes) == ([], [])
    assert report.frames == sum(path.stat().st_size for path in [whole[mode] / "columns/index.bin"]) // 8 - 1
    assert before == {path: path.read_bytes() for path in whole[mode].rglob("*") if path.is_file()}


def test_the_golden_dataset_is_whole() -> None:
    assert verify(GOLDEN).problems == []


def test_fields_of_the_metadata_that_nobody_reads_count_too(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "copy")
    path = root / paths.METADATA
    raw = path.read_bytes()
    for old, new in ((b'"0.1"', b'"0.3"'), (b'"compatible"', b'"compatable"')):
        path.write_bytes(raw.replace(old, new))
        assert [line.split(":")[0] for line in lines(root)] in (["metadata.json"], [str(root)])


@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_bit_anywhere_is_found(whole: dict[str, Path], tmp_path: Path, mode: str) -> None:
    root = shutil.copytree(whole[mode], tmp_path / "copy")
    random = np.random.default_rng(1)
    for path, offsets in depended(root).items():
        for offset in random.choice(offsets, 2, replace=False).tolist():
            bits = 1 << int(random.integers(8))
            flip(path, offset, bits)
            found = lines(root)
            assert_named(path.relative_to(root), found)
            flip(path, offset, bits)
    assert lines(root) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_anywhere_is_found(whole: dict[str, Path], tmp_path: Path, mode: str) -> None:
    root = shutil.copytree(whole[mode], tmp_path / "copy")
    for path in depended(root):
        raw = path.read_bytes()
        for kept in (0, len(raw) // 2, len(raw) - 1):
            if path.name == paths.STATE and kept > max(DURABLE_OFFSETS) + 256:
                continue  # beyond the records nothing depends on it
            path.write_bytes(raw[:kept])
            assert any(path.name in line for line in lines(root)), (path, kept)
        path.unlink()
        assert any(path.name in line for line in lines(root)), path
        path.write_bytes(raw)
    assert lines(root) == []


def test_contradictions_with_right_checksums_are_found(tmp_path: Path) -> None:
    """As a fault of ours would leave them, not one of the disk."""
    made(tmp_path / "a", [3, 2], task="push").close()
    root, changes = tmp_path / "a", {"frame_index": 7, "index": 9, "episode_index": 3, "task": 5, "timestamp": np.nan}
    store = Store.open(root)
    dtypes = {key: store.manifest.keys[key].dtype for key in changes}
    store.close()
    for key, value in changes.items():
        raw = {path: path.read_bytes() for path in (paths.column_path(root, key), paths.checksum_path(root, key))}
        for path, array in zip(raw, (np.array([value], dtypes[key]), None), strict=True):
            data = bytearray(raw[path])
            new = frame_checksums(np.array([value], dtypes[key])) if array is None else array
            data[4 * new.itemsize : 5 * new.itemsize] = new.tobytes()
            path.write_bytes(data)
        assert lines(root) == [f"columns/{key}.bin: episode 1: frame 1: not what the episode table allows there"]
        for path, old in raw.items():
            path.write_bytes(old)


def test_notes_are_no_problems(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "copy")
    (root / "README.md").write_text("mine")
    (root / "images" / CAMERA / "000000009").mkdir()
    report = verify(root)
    assert report.problems == []
    assert report.notes == [
        "README.md: not a part of the dataset",
        f"images/{CAMERA}/000000009: left by a writer that ended early",
    ]


def test_while_a_writer_goes_round_the_ring_nothing_looks_wrong(tmp_path: Path) -> None:
    ring = made(tmp_path / "a", [5, 6], camera=True, image_mode="png", buffer_capacity=12, use_as_fifo_buffer=True)
    reports = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            reports.append(verify(tmp_path / "a").problems)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(60):
        ring.add_episodes(recording(3 + number % 4, number, camera=True), no_flush=True)
    stop.set()
    thread.join()
    assert len(reports) > 1
    assert not any(reports)


def test_after_a_writer_was_killed_in_mid_overwrite_nothing_is_wrong(tmp_path: Path) -> None:
    ring = made(tmp_path / "a", [4, 4], buffer_capacity=8, use_as_fifo_buffer=True)
    ring.close()
    path = tmp_path / "a" / paths.STATE
    raw = bytearray(path.read_bytes())
    state = State.from_bytes(bytes(raw[:256]))
    assert state is not None
    raw[:256] = state.with_busy(0, 3).to_bytes()
    path.write_bytes(raw)
    owners = (tmp_path / "a" / paths.OWNERS).read_bytes()
    (tmp_path / "a" / paths.OWNERS).write_bytes(bytes(16) + owners[16:])
    assert lines(tmp_path / "a") == []
    repair(tmp_path / "a")
    assert lines(tmp_path / "a") == []
    assert sorted(episodes(tmp_path / "a")) == [0, 1]


def test_the_quick_check_names_images_and_owners(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "copy")
    next(media(root)).unlink()
    flip(root / paths.OWNERS, 40, 3)
    with pytest.raises(ValueError, match=r"2 problems:\nowners\.bin: episode 1: frame 1: .*\nimages/.*000000\.png"):
        LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_the_command(whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(whole["memmap"], tmp_path / "copy")
    main(["verify", str(root)])
    assert capsys.readouterr().out == f"{root}: 15 frames, all as they were written\n"
    flip(root / "columns" / "action.bin", 5 * 4, 1)
    with pytest.raises(SystemExit) as code:
        main(["verify", str(root)])
    out, err = capsys.readouterr()
    assert code.value.code == 1
    what = "not matching the checksum in checksums/action.bin"
    assert out == f"columns/action.bin: episode 1: frame 1: {what}\n"
    assert err == f"1 problem; type: roboreel repair {root}\n"
    with pytest.raises(SystemExit) as code:
        main(["verify", str(tmp_path / "nothing")])
    assert code.value.code == 1
    assert "does not exist" in capsys.readouterr().out


def test_a_frame_table_that_tells_of_another_size_is_told_of(tmp_path: Path) -> None:
    root = dataset(tmp_path / "dataset", "video")
    path = next(path for path in media(root) if path.suffix == ".frames")
    raw = bytearray(path.read_bytes())
    raw[24:28] = (int.from_bytes(raw[24:28], "little") * 2).to_bytes(4, "little")  # its width
    path.write_bytes(sealed(bytes(raw[:-8])))
    assert any("pixels, which is not what the key has" in str(problem) for problem in verify(root).problems)
