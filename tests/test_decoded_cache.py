"""`decoded_cache`: each frame is decoded once, and whatever happens to the cache, no frame is ever a wrong one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from roboreel import DiskSpaceError, InvalidArgumentError, LeRobotDatasetV2, RoboreelWarning
from roboreel.cli import main
from roboreel.format import paths
from roboreel.format.files import observed
from roboreel.store import CacheReport, discard
from tests.recordings import CAMERA, HEIGHT, VIDEO_ERROR, WIDTH, made, numbers_of, pictures, recording
from tests.test_durability import Failing

MODES = ["png", "video"]
LENGTHS = [7, 5]
FRAMES = sum(LENGTHS)
FRAME_BYTES = HEIGHT * WIDTH * 3
DELTAS = {key: [-0.1, 0, 0.1] for key in (CAMERA, "observation.state")}


@pytest.fixture(scope="module", params=MODES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / str(request.param)
    made(root, LENGTHS, camera=True, image_mode=request.param, buffer_capacity=FRAMES).close()
    return root


@pytest.fixture
def root(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "dataset")


def opened(root: Path, size: Any = "1MB", **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, decoded_cache=size, image_dtype="uint8", **options)


def report(dataset: LeRobotDatasetV2) -> CacheReport:
    found = dataset.decoded_cache
    assert found is not None
    return found


def shown(dataset: LeRobotDatasetV2, indices: Any = None) -> Any:
    """Read frames, check that each shows its own number, and return the pixels."""
    batch = dataset.get_batch(range(len(dataset)) if indices is None else indices)
    images = batch[CAMERA].movedim(-3, -1).numpy()
    wanted = pictures(np.array(numbers_of(batch)))
    assert np.abs(images.astype(int) - wanted).max() <= VIDEO_ERROR
    return images


def test_the_second_epoch_decodes_nothing_and_gives_the_same_bytes(root: Path) -> None:
    without = shown(LeRobotDatasetV2(root, image_dtype="uint8", delta_timestamps=DELTAS))
    assert not (root / paths.CACHE).exists()
    dataset = opened(root, delta_timestamps=DELTAS)
    for hits in (0, 3 * FRAMES):
        assert np.array_equal(shown(dataset), without)
        assert report(dataset).hits == hits
    found = report(dataset)
    assert (found.capacity, found.frames, found.decoded) == (FRAMES, FRAMES, FRAMES)  # windows overlap: once each
    assert found.folder == root / paths.CACHE
    later = opened(root, "2MB", readonly=True)
    rng = np.random.default_rng(0)
    for _ in range(10):
        indices = rng.integers(0, FRAMES, 9)
        assert np.array_equal(shown(later, indices), without[indices, 1])
    assert (report(later).hits, report(later).decoded) == (90, 0)
    assert LeRobotDatasetV2(root).decoded_cache is None


def test_what_is_in_the_cache_needs_no_decoder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(root)
    images = shown(dataset)
    monkeypatch.setattr("roboreel.columns.video.VideoColumn.read", None)
    monkeypatch.setattr("roboreel.columns.png.PngColumn.read", None)
    assert np.array_equal(shown(dataset), images)


def test_what_does_not_fit_is_decoded_each_time_and_what_is_in_stays(root: Path) -> None:
    size = f"{5 * FRAME_BYTES + 900 + FRAMES * 24}B"
    dataset = opened(root, size)
    for epoch in range(3):
        for index in np.random.default_rng(epoch).permutation(FRAMES).tolist():
            shown(dataset, [index])
    assert (report(dataset).capacity, report(dataset).frames) == (5, 5)
    assert (report(dataset).hits, report(dataset).decoded) == (2 * 5, FRAMES + 2 * (FRAMES - 5))


def test_another_size_keeps_what_fits_and_gives_the_rest_of_the_disk_back(root: Path) -> None:
    before = shown(opened(root))
    pixels = paths.cache_pixels_path(root / paths.CACHE, CAMERA)
    length, blocks = pixels.stat().st_size, pixels.stat().st_blocks
    reader = opened(root)
    shown(reader)
    small = opened(root, f"{4 * FRAME_BYTES + 900 + FRAMES * 24}B")
    assert (report(small).capacity, report(small).frames) == (4, 4)
    assert pixels.stat().st_size == length  # somebody may have it mapped
    assert pixels.stat().st_blocks < blocks
    for dataset in (reader, small):
        assert np.array_equal(shown(dataset), before)
        assert np.array_equal(shown(dataset), before)
    assert report(reader).frames == 4
    assert report(small).hits == 2 * 4
    large = opened(root)
    assert (report(large).capacity, report(large).frames) == (FRAMES, 4)
    for dataset in (large, reader, small, opened(root)):
        assert np.array_equal(shown(dataset), before)
    assert report(large).frames == FRAMES


@pytest.mark.parametrize("with_table", [True, False])
def test_another_video_in_the_place_of_one_is_decoded(tmp_path: Path, with_table: bool) -> None:
    for name, first in (("a", 0), ("b", 100)):
        dataset = LeRobotDatasetV2(tmp_path / name, fps=10, image_mode="video")
        dataset.add_episodes(recording(6, first, camera=True))
        dataset.close()
    dataset = opened(tmp_path / "a")
    shown(dataset)
    for path_of in (paths.video_path, paths.frame_table_path)[: 1 + with_table]:
        old, new = (path_of(tmp_path / name, CAMERA, 0) for name in "ab")
        times = old.stat()
        shutil.copyfile(new, old)  # in place: the same inode
        os.utime(old, ns=(times.st_atime_ns, times.st_mtime_ns + 10**6))
    wanted = pictures(np.arange(100, 106)).astype(int)
    for reader in (dataset, opened(tmp_path / "a"), opened(tmp_path / "a")):
        images = reader.get_batch(range(6))[CAMERA].movedim(-3, -1).numpy()
        assert np.abs(images - wanted).max() <= VIDEO_ERROR
    assert report(dataset).frames == 6


@pytest.mark.parametrize(("mode", "episodes"), [("png", 40), ("video", 12)])
def test_frames_that_a_ring_has_overwritten_are_never_given(tmp_path: Path, mode: str, episodes: int) -> None:
    rng = np.random.default_rng(1)
    writer = LeRobotDatasetV2(
        tmp_path / "ring",
        fps=10,
        buffer_capacity=20,
        use_as_fifo_buffer=True,
        image_mode=mode,
        image_dtype="uint8",
        decoded_cache=f"{15 * FRAME_BYTES}B",
    )
    number = 0
    reader: LeRobotDatasetV2 | None = None
    for _ in range(episodes):
        length = int(rng.integers(1, 9))
        writer.add_episodes(recording(length, number, camera=True), no_flush=True)
        number += length
        reader = reader or opened(tmp_path / "ring", f"{15 * FRAME_BYTES}B")
        for dataset in (writer, reader):
            shown(dataset, rng.integers(0, len(dataset), 12))
            shown(dataset)
    assert reader is not None
    assert report(reader).hits > 10 * episodes
    assert report(reader).frames == report(reader).capacity < 20


def test_spoiled_bytes_anywhere_cost_a_decoding_and_no_wrong_frame(root: Path) -> None:
    wanted = shown(opened(root))
    rng = np.random.default_rng(2)
    folder = root / paths.CACHE
    table, pixels = paths.cache_slots_path(folder, CAMERA), paths.cache_pixels_path(folder, CAMERA)
    for path in (table, pixels):
        for _ in range(40):
            at = int(rng.integers(path.stat().st_size))
            with path.open("r+b") as file:
                file.seek(at)
                old = file.read(1)[0]
                file.seek(at)
                file.write(bytes([old ^ int(rng.integers(1, 256))]))
            dataset = opened(root)
            assert np.array_equal(shown(dataset), wanted)
            assert np.array_equal(shown(dataset), wanted)
    for path in (table, pixels):
        for size in (0, 10, path.stat().st_size // 2):
            os.truncate(path, size)
            assert np.array_equal(shown(opened(root)), wanted)
    table.write_bytes(b"something else" * 100)
    dataset = opened(root)
    assert np.array_equal(shown(dataset), wanted)
    assert report(dataset).frames == FRAMES


def test_a_place_that_a_power_cut_has_left_with_two_slots_is_given_for_neither_by_mistake(root: Path) -> None:
    reader = opened(root)
    shown(reader)
    wanted = shown(reader)
    table = paths.cache_slots_path(root / paths.CACHE, CAMERA)
    data = bytearray(table.read_bytes())
    begin = len(data) - 24 * FRAMES
    data[begin + 24 * 3 : begin + 24 * 3 + 8] = data[begin + 24 * 2 : begin + 24 * 2 + 8]  # slot 3 has the place of 2
    data[24:32] = (1).to_bytes(8, "little")  # and places that are given count as free
    with table.open("r+b") as file:
        file.write(data)
    for dataset, index in ((opened(root), 3), (reader, 2), (reader, 3), (opened(root), 2)):
        assert np.array_equal(shown(dataset, [index]), wanted[[index]])
    for dataset in (reader, opened(root)):
        assert np.array_equal(shown(dataset), wanted)
    assert report(reader).frames == FRAMES


def test_whatever_effect_fails_frames_are_read_and_one_warning_says_that_they_are_not_kept(root: Path) -> None:
    counting = Failing()
    with observed(counting):
        dataset = opened(root, f"{8 * FRAME_BYTES}B")
        wanted = shown(dataset)
        opened(root, f"{3 * FRAME_BYTES}B")
    assert counting.seen > 15
    for at in range(counting.seen):
        for for_good in (False, True):
            shutil.rmtree(root / paths.CACHE)
            with warnings.catch_warnings(record=True) as caught, observed(Failing(at, for_good=for_good)):
                warnings.simplefilter("always")
                dataset = opened(root, f"{8 * FRAME_BYTES}B")
                for _ in range(3):
                    assert np.array_equal(shown(dataset), wanted)
                small = opened(root, f"{3 * FRAME_BYTES}B")
                assert np.array_equal(shown(small), wanted)
            assert [warning.category for warning in caught] == [RoboreelWarning] * len(caught)
            assert len(caught) <= (2 if for_good else 1)  # one a dataset
            for _ in range(2):
                assert np.array_equal(shown(opened(root)), wanted)
            assert report(opened(root)).frames == FRAMES
            (root / paths.CACHE).mkdir(exist_ok=True)


def test_a_place_of_its_own_can_serve_several_datasets(tmp_path: Path) -> None:
    place = tmp_path / "scratch" / "frames"
    for name in ("a", "b"):
        made(tmp_path / name, LENGTHS, camera=True, image_mode="png").close()
        dataset = opened(tmp_path / name, ("1MB", place))
        shown(dataset)
        assert report(opened(tmp_path / name, ("1MB", str(place)))).frames == FRAMES
        assert not (tmp_path / name / paths.CACHE).exists()
    assert len(list(place.iterdir())) == 2
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match="is a file; give a directory"):
        opened(tmp_path / "a", ("1MB", tmp_path / "file"))


@pytest.mark.parametrize("given", ["8", "", "lots", 9, 8.5, True, ("8GB",), ("8GB", 3), "0GB", "-1GB"])
def test_a_size_that_is_none_is_refused(tmp_path: Path, given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"decoded_cache=.*a size such as '8GB' or '500MB' would do"):
        LeRobotDatasetV2(tmp_path / "new", fps=10, decoded_cache=given)


def test_too_little_or_too_much_is_refused_before_anything_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no room for one frame: 1 cameras take 1,152 bytes a frame"):
        opened(root, "1kB")
    monkeypatch.setattr("roboreel.format.files.free_bytes", lambda _: 5000)
    with pytest.raises(DiskSpaceError, match=r"decoded_cache='1MB' may come to take 14,624 bytes more in .*cache, and"):
        opened(root)
    assert not (root / paths.CACHE).exists()


def test_it_comes_with_the_first_episode_and_grows_with_the_dataset(tmp_path: Path) -> None:
    dataset = opened(tmp_path / "new", fps=10, image_mode="png")
    reader: LeRobotDatasetV2 | None = None
    for first in range(0, 40, 4):
        dataset.add_episodes(recording(4, first, camera=True))
        reader = reader or opened(tmp_path / "new", readonly=True)
        shown(dataset)
        shown(reader)
    assert reader is not None
    assert report(reader).frames == 40
    assert report(reader).decoded == 0


def test_cameras_that_need_no_decoding_have_none(tmp_path: Path) -> None:
    made(tmp_path / "dataset", [3], camera=True).close()
    dataset = opened(tmp_path / "dataset", "1kB")
    shown(dataset)
    assert (report(dataset).capacity, report(dataset).bytes) == (0, 0)
    assert not (tmp_path / "dataset" / paths.CACHE).exists()


@pytest.mark.parametrize(("root", "start"), [("png", "fork"), ("video", "fork"), ("video", "spawn")], indirect=["root"])
def test_workers_share_it(root: Path, start: str) -> None:
    dataset = opened(root, delta_timestamps=DELTAS)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=start, persistent_workers=True)
    for _ in range(2):
        numbers = []
        for batch in loader:
            images = batch[CAMERA].movedim(-3, -1).numpy().astype(int)
            assert np.abs(images - pictures(np.array(numbers_of(batch)))).max() <= VIDEO_ERROR
            numbers += np.array(numbers_of(batch))[:, 1].tolist()
        assert numbers == list(range(FRAMES))
    assert report(dataset).frames == FRAMES
    shown(dataset)
    assert report(dataset).decoded == 0
    assert report(pickle.loads(pickle.dumps(dataset))).frames == FRAMES


def test_the_rest_of_roboreel_knows_of_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = LeRobotDatasetV2(root)._need_store().bytes_on_disk()
    dataset = opened(root)
    shown(dataset)
    assert LeRobotDatasetV2(root)._need_store().bytes_on_disk() == plain
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    main(["verify", str(root)])
    assert "note" not in capsys.readouterr().out
    main(["info", str(root)])
    assert f"  decoded    {FRAMES} of {FRAMES} camera frames kept, 0.0 MB" in capsys.readouterr().out
    main(["info", str(root), "--json"])
    found = json.loads(capsys.readouterr().out)["decoded_cache"]
    assert found == report(dataset).to_dict()
    assert (found["frames"], found["capacity"]) == (FRAMES, FRAMES)
    dataset.snapshot(tmp_path / "copy")
    assert not (tmp_path / "copy" / paths.CACHE).exists()
    shown(opened(tmp_path / "copy"))
    assert dataset.snapshot(tmp_path / "copy").bytes_written == 0  # of the same generation: it stays, with its cache
    (root / paths.CACHE / "note.txt").touch()
    main(["verify", str(root)])
    assert "note: cache/note.txt: not a part of the dataset" in capsys.readouterr().out


def test_it_is_cleared_by_a_command_while_others_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = opened(root)
    wanted = shown(dataset)
    main(["cache", str(root)])
    assert f"{root / paths.CACHE}: {FRAMES} of {FRAMES} camera frames kept" in capsys.readouterr().out
    main(["cache", str(root), "--clear"])
    assert capsys.readouterr().out.endswith(", cleared\n")
    assert not (root / paths.CACHE).exists()
    assert np.array_equal(shown(dataset), wanted)
    assert (report(dataset).decoded, report(dataset).frames) == (2 * FRAMES, FRAMES)
    main(["cache", str(root), "--clear", "--json"])
    assert json.loads(capsys.readouterr().out)["cleared"]["frames"] == FRAMES
    main(["cache", str(root), "--place", str(root.parent / "nowhere"), "--clear"])
    assert capsys.readouterr().out.endswith(": there is no cache to clear\n")
    main(["cache", str(root), "--clear"])  # nothing there
    assert np.array_equal(shown(opened(root)), wanted)
    main(["cache", str(root), "--place", str(root / "elsewhere"), "--clear"])
    assert report(dataset).frames == FRAMES


@pytest.mark.parametrize("link", [paths.CACHE, "cache/observation.image.slots", "cache/observation.image.pixels"])
def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path, link: str) -> None:
    shown(opened(root))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"somebody else's")
    wanted = shown(LeRobotDatasetV2(root, image_dtype="uint8"))
    shutil.rmtree(root / link) if link == paths.CACHE else (root / link).unlink()
    (root / link).symlink_to(tmp_path / "other" / ("" if link == paths.CACHE else "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.array_equal(shown(opened(root, "800kB")), wanted)
    assert len(caught) == (link == paths.CACHE)  # a file in the directory is simply made anew
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]
    assert (tmp_path / "other" / "file").read_bytes() == b"somebody else's"
    if link == paths.CACHE:
        with pytest.raises(SystemExit):
            main(["cache", str(root), "--clear"])
    assert (tmp_path / "other" / "file").exists()


def test_a_dataset_made_anew_in_the_same_place_begins_without(root: Path) -> None:
    shown(opened(root))
    discard(root, keep_dir=True)
    assert list(root.iterdir()) == []
    made(root, [2], camera=True, image_mode="png").close()
    dataset = opened(root)
    shown(dataset)
    assert (report(dataset).hits, report(dataset).frames) == (0, 2)
