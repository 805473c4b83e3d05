"""`repair` saves what it can, drops what it cannot, says so, and changes no byte of a good episode."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2, StorageDirCorruptError
from roboreel.cli.main import main
from roboreel.format import paths
from roboreel.format.files import observed
from roboreel.store import Store, repair, verify
from tests.damage import LENGTHS, MODES, dataset, depended, episodes, flip, media
from tests.recordings import recording
from tests.test_durability import Failing


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {mode: dataset(folder / mode, mode) for mode in MODES}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("os.fdatasync", lambda _: None, raising=False)


def repaired(root: Path) -> tuple[list[str], set[int]]:
    """Repair, check that all is well after it, and return the lines and the episodes that were dropped."""
    source = root.parent / "source"
    before = episodes(source)
    result = repair(root)
    assert result.remaining == []
    assert verify(root).problems == []
    after = episodes(root)
    for episode, parts in after.items():
        assert parts == before[episode], result.done
    dataset = LeRobotDatasetV2(root, readonly=True)
    assert len(dataset) == sum(LENGTHS)
    assert set(dataset.get_unique_episode_indices().tolist()) == set(after)
    return result.done, set(before) - set(after)


@pytest.fixture
def root(whole: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy that may be spoiled, of the image mode that the test names, else of raw pixels."""
    source = whole[getattr(request, "param", "memmap")]
    shutil.copytree(source, tmp_path / "source")
    return shutil.copytree(source, tmp_path / "copy")


@pytest.mark.parametrize("root", MODES, indirect=True)
def test_after_random_damage_all_other_episodes_are_identical(root: Path) -> None:
    source = root.parent / "source"
    random = np.random.default_rng(2)
    for path, offsets in depended(source).items():
        if path.suffix == ".png" and random.random() < 0.8:
            continue  # they are all alike
        name = path.relative_to(source)
        several = name.name not in (paths.METADATA, paths.STRINGS)  # of those a single bit can be put right, no more
        shutil.rmtree(root)
        shutil.copytree(source, root)
        flip(root / name, int(random.choice(offsets)), int(random.integers(1, 256)) if several else 4)
        assert verify(root).problems
        done, dropped = repaired(root)
        assert done
        assert len(dropped) <= 1
        assert dropped == {int(one) for line in done for one in re.findall(r"^episode (\d): dropped", line)} or (
            name.name == paths.EPISODES
        )
        if name.parts[0] == paths.OWNERS or name.name in ("index.bin", "frame_index.bin", "episode_index.bin"):
            assert not dropped


@pytest.mark.parametrize("root", MODES, indirect=True)
def test_files_cut_short_or_gone(root: Path) -> None:
    source = root.parent / "source"
    images = set(media(source))
    for path in depended(source):
        name = path.relative_to(source)
        if images and path not in images and name.name != paths.EPISODES:
            continue  # the same as where no image is a file
        if name.name in (paths.METADATA, paths.STRINGS) or (path.suffix == ".png" and name.name != "000001.png"):
            continue
        raw = path.read_bytes()
        for kept in (-1, len(raw) // 2):
            shutil.rmtree(root)
            shutil.copytree(source, root)
            if kept < 0:
                (root / name).unlink()
            else:
                (root / name).write_bytes(raw[:kept])
            if name.name == paths.EPISODES and kept < 0:
                assert repair(root).remaining == []
                continue
            done, dropped = repaired(root)
            assert done
            if name.parts[0] == paths.CHECKSUMS or name.name == paths.OWNERS:
                assert not dropped
            if name.parts[0] in (paths.IMAGES, paths.VIDEOS) and path.suffix != ".frames":
                assert len(dropped) == 1


def test_a_good_dataset_is_left_alone(root: Path) -> None:
    assert repair(root).done == []
    assert episodes(root) == episodes(root.parent / "source")


def test_several_spoiled_rows_drop_their_episodes_and_later_ones_stay(root: Path) -> None:
    for row in (1, 2):
        flip(root / paths.EPISODES, row * 128 + 20, 0xFF)
    done, dropped = repaired(root)
    assert dropped == {1, 2}
    assert [line for line in done if "row" in line] == [
        "episodes.bin: row 1 cannot be read: its episode, of 3 frames, is dropped",
        "episodes.bin: row 2 cannot be read: its episode, of 5 frames, is dropped",
    ]
    assert (root / "episodes.bin.bak").exists()


def test_a_dropped_episode_leaves_a_dataset_that_goes_on(root: Path) -> None:
    flip(root / "columns" / "action.bin", 5 * 4, 1)
    done, dropped = repaired(root)
    assert dropped == {1}
    assert done == [
        "episode 1: dropped, 3 frames. columns/action.bin: episode 1: frame 1: "
        "not matching the checksum in checksums/action.bin"
    ]
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(4, 50, camera=True, task="again"))
        assert sorted(dataset.get_unique_episode_indices().tolist()) == [2, 3, 4, 5]
    assert verify(root).problems == []


def test_readers_follow_into_the_files_that_a_repair_has_put_there(tmp_path: Path) -> None:
    for name in ("strings.jsonl", "strings.bin", "metadata.json"):
        root = dataset(tmp_path / name, "memmap")
        reader = LeRobotDatasetV2(root, readonly=True)
        reader[0]
        flip(root / name, 3, 1)
        assert repair(root).remaining == []
        with LeRobotDatasetV2(root) as writer:
            writer.add_episodes(recording(3, 50, camera=True, task="quite new"))
        assert "quite new" in reader.get_data_by_key("task")
        assert reader.get_data_by_key("task") == LeRobotDatasetV2(root, readonly=True).get_data_by_key("task")


def test_a_reader_takes_the_string_that_a_repair_has_put_right(tmp_path: Path) -> None:
    root = dataset(tmp_path / "dataset", "memmap")
    flip(root / "strings.jsonl", 3, 1)
    reader = LeRobotDatasetV2(root, readonly=True)
    wrong = reader.get_data_by_key("task")
    assert repair(root).remaining == []
    assert reader.get_data_by_key("task") == LeRobotDatasetV2(root, readonly=True).get_data_by_key("task") != wrong
    assert {reader[index]["task"] for index in range(len(reader))} == {"task 0", "task 1", "task 2"}


def test_where_no_episode_is_left_no_frame_is(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    with LeRobotDatasetV2(root, fps=10) as one:
        one.add_episodes({"action": np.arange(9.0)})
    flip(root / "columns/action.bin", 5, 1)
    repair(root)
    assert (verify(root).problems, verify(root).frames) == ([], 0)


def test_no_record_whole(root: Path) -> None:
    (root / paths.STATE).write_bytes(b"\1" * 12288)
    done, dropped = repaired(root)
    assert not dropped
    assert done[0] == "state.bin: no record was whole; made anew from episodes.bin: 5 episodes"


def test_no_record_whole_and_strings_gone(root: Path) -> None:
    os.truncate(root / paths.STATE, 220)
    raw = (root / paths.STRINGS).read_bytes()
    (root / paths.STRINGS).write_bytes(raw[:12] + bytes(len(raw) - 12))
    result = repair(root)
    assert result.remaining == []
    assert "1 proved themselves, the others are ['lost string 1', 'lost string 2" in result.done[1]
    tasks = {LeRobotDatasetV2(root, readonly=True).get_episode(number)["task"][0] for number in (1, 2, 3)}
    assert sorted(text.partition(" (")[0] for text in tasks) == ["lost string 1", "lost string 2", "task 0"]


@pytest.mark.parametrize("root", MODES, indirect=True)
def test_checksums_that_are_gone_cost_no_episode(root: Path) -> None:
    paths_of = sorted((root / paths.CHECKSUMS).iterdir())
    for path in paths_of:
        raw = path.read_bytes()
        path.write_bytes(raw[:4] + bytes(len(raw) - 4))  # as of a write that ended within a word, too
    done, dropped = repaired(root)
    assert not dropped
    assert sum("checksums were gone and made anew from the data" in line for line in done) >= len(paths_of) - 3


def test_strings_that_are_lost_are_named_so(root: Path) -> None:
    raw = (root / paths.STRINGS).read_bytes()
    (root / paths.STRINGS).write_bytes(raw[:-4])
    result = repair(root)
    assert result.remaining == []
    store = Store.open(root)
    assert store.strings == ["task 0", "task 1", "lost string 2"]
    store.close()
    assert (root / "strings.jsonl.bak").read_bytes() == raw[:-4]


@pytest.mark.parametrize(
    ("raw", "strings"),
    [
        (
            b'"fask 0"\n"tusk 1"\n"task 2"\n',
            ['lost string 0 (read as "fask 0")', 'lost string 1 (read as "tusk 1")', "task 2"],
        ),
        (b'"task 0"\n"tax 1"\n"task 2"\n', ["task 0", 'lost string 1 (read as "tax 1")', "task 2"]),
        (b'"task 1"\n"task 2"\n', ['lost string 0 (read as "task 1")', "task 1", "task 2"]),
        (b'"task 0"\n"task 1"\n', ["task 0", "task 1", 'lost string 2 (read as "task 1")']),
        (b"", ["lost string 0", "lost string 1", "lost string 2"]),
        (b'"task 2"\n"task 0"\n"task 1"\n', [f'lost string {n} (read as "task {(n + 2) % 3}")' for n in range(3)]),
    ],
)
def test_only_strings_that_prove_themselves_are_kept(root: Path, raw: bytes, strings: list[str]) -> None:
    (root / paths.STRINGS).write_bytes(raw)
    assert [str(problem).split(":")[0] for problem in verify(root).problems] == ["strings.jsonl"]
    assert repair(root).remaining == []
    dataset = LeRobotDatasetV2(root, readonly=True)
    assert [dataset.get_episode(episode)["task"][0] for episode in (3, 1, 2)] == strings


@pytest.mark.parametrize(
    "raw", [b'"fask 0"\n"task 1"\n"task 2"\n', b'"task 1"\n"task 2"\n', b'"task 0"\n"tax 1"\n"task 2"\n']
)
def test_a_repair_of_strings_that_was_cut_off_is_done_again_and_loses_no_more(root: Path, raw: bytes) -> None:
    def strings(root: Path) -> list[str]:
        return [LeRobotDatasetV2(root, readonly=True).get_episode(episode)["task"][0] for episode in (3, 1, 2)]

    (root / paths.STRINGS).write_bytes(raw)
    counting = Failing()
    with observed(counting):
        repair(shutil.copytree(root, root.parent / "whole"))
    wanted = strings(root.parent / "whole")
    assert sum(text.startswith("task") for text in wanted) == 2
    for at in counting.moments:
        copy = shutil.copytree(root, root.parent / f"fails at {at}")
        with Failing(at, half=True).observing(), contextlib.suppress(roboreel.StorageError):
            repair(copy)
        assert repair(copy).remaining == []
        assert strings(copy) == wanted
        assert (copy / (paths.STRINGS + paths.BACKUP)).read_bytes() == raw


def test_what_a_killed_repair_was_writing_goes_with_the_next(root: Path) -> None:
    left = [root / name for name in ("strings.jsonl.tmp", "strings.bin.bak.tmp", "metadata.json.tmp")]
    for path in left:
        path.write_bytes(b"half")
    assert len(repair(root).done) == 3
    assert not any(path.exists() for path in left)


def test_a_string_and_the_hash_of_another_are_mended_at_once(root: Path) -> None:
    before = (root / paths.STRINGS).read_bytes(), (root / paths.STRING_SUMS).read_bytes()
    flip(root / paths.STRINGS, 3, 1)
    flip(root / paths.STRING_SUMS, 8, 1)
    assert repair(root).remaining == []
    assert ((root / paths.STRINGS).read_bytes(), (root / paths.STRING_SUMS).read_bytes()) == before


def test_hashes_of_strings_are_made_anew_from_the_strings(root: Path) -> None:
    raw = (root / paths.STRING_SUMS).read_bytes()
    flip(root / paths.STRING_SUMS, 8, 1)
    assert [str(problem) for problem in verify(root).problems] == [
        "strings.bin: 1 hashes are not those of their lines; no string is lost by it"
    ]
    assert repair(root).done == ["strings.bin: made anew from strings.jsonl"]
    assert (root / paths.STRING_SUMS).read_bytes() == raw
    assert verify(root).problems == []


def test_a_dataset_without_hashes_of_strings_goes_on(root: Path) -> None:
    (root / paths.STRING_SUMS).unlink()
    assert repair(root).done == []
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(2, 30, camera=True, task="new"))
        dataset.snapshot(root.parent / "snapshot")
    assert verify(root).problems == []
    assert verify(root.parent / "snapshot").problems == []
    raw = (root / paths.STRINGS).read_bytes()
    (root / paths.STRINGS).write_bytes(raw.replace(b"task", b"fask"))
    repair(root)
    dataset = LeRobotDatasetV2(root, readonly=True)
    assert dataset.get_episode(5)["task"][0] == 'lost string 3 (read as "new")'  # its hash needs that of the one before


def test_metadata_that_frames_contradict_is_refused_and_nothing_changed(root: Path) -> None:
    path = root / paths.METADATA
    path.write_text(path.read_text().replace('"<f4"', '"<i4"').replace('"fps": 10', '"fps": 77'))
    path.write_text(path.read_text().replace("[\n    2\n   ]", "[\n    1\n   ]"))
    before = {one: one.read_bytes() for one in root.rglob("*") if one.is_file() and one.name != paths.LOCK_OWNER}
    with pytest.raises(StorageDirCorruptError, match=r"metadata\.json is damaged and what it said cannot be found out"):
        repair(root)
    assert all(one.read_bytes() == raw for one, raw in before.items())
    path.write_bytes((root.parent / "source" / paths.METADATA).read_bytes())
    assert episodes(root) == episodes(root.parent / "source")


def test_leftovers_are_removed_and_foreign_files_are_not(root: Path) -> None:
    (root / "mine.txt").write_text("keep")
    (root / "metadata.json.tmp").write_bytes(b"old")
    assert repair(root).done == ["metadata.json.tmp: removed, nothing refers to it"]
    assert (root / "mine.txt").exists()


@pytest.mark.parametrize("root", ["png", "video"], indirect=True)
def test_folders_of_a_user_beside_images_stay(root: Path) -> None:
    folder = next((root / name).iterdir() for name in (paths.IMAGES, paths.VIDEOS) if (root / name).is_dir())
    camera = next(folder)
    for name in ("20260101", "2026010112005", "0000004000", "12.mp4"):
        (camera / name).mkdir()
        (camera / name / "thesis.tex").write_text("chapter 1")
    assert repair(root).done == []
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(2, 90, camera=True, task="x"))
    assert len(list(camera.glob("*/thesis.tex"))) == 4


def test_a_string_after_hashes_that_were_cut_within_one_is_whole(root: Path) -> None:
    os.truncate(root / paths.STRING_SUMS, 12)
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(2, 90, camera=True, task="new"))
    assert verify(root).problems == []


def test_what_may_not_be_looked_at_is_told_of(root: Path) -> None:
    path = root / paths.OWNERS
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(roboreel.RoboreelError, match=r"owners\.bin"):
        repair(root)
    assert path.is_symlink()


def test_a_writer_is_not_disturbed(root: Path) -> None:
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(1, 90, camera=True, task="x"))
        with pytest.raises(roboreel.DatasetLockedError):
            repair(root)


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(root / paths.OWNERS, 40, 3)
    main(["repair", str(root)])
    assert capsys.readouterr().out == f"owners.bin: episode 1: 1 slots put right\n{root}: repaired\n"
    main(["repair", str(root)])
    assert capsys.readouterr().out == f"{root}: nothing was wrong\n"
    with pytest.raises(SystemExit) as code:
        main(["repair", str(root.parent / "nothing")])
    assert code.value.code == 1
