"""LeRobot videos that go at another rate than their dataset: timestamps say which frame is whose row."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.errors import SourceError
from tests import lerobot_folders as made
from tests.lerobot_folders import CAMERA, FPS, LENGTHS, V2_DATA, V2_VIDEO, V3_EPISODES, V3_VIDEO
from tests.video_files import X264_B, read_numbers, write_video

ROWS = sum(LENGTHS)
PICKED = "for each row the frame nearest to its timestamp is taken"


def _imported(folder: Path, out: Path, says: str, **options: Any) -> list[int]:
    """The numbers that the rows show; one of the import's warnings must say `says`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = LeRobotDatasetV2.from_lerobot(folder, out, image_dtype="uint8", progress=False, **options)
    assert any(says in str(warning.message) for warning in caught)
    LeRobotDatasetV2.check_storage_dir_integrity(out)
    return read_numbers(dataset.get_batch(range(ROWS))[CAMERA].movedim(-3, -1).numpy())


def _nearest(rate: float, length: int) -> list[int]:
    """Frame j is at j / rate; of two equally near ones the earlier: without rounding, ceil(k rate / FPS - 1 / 2)."""
    return [max(0, -int((FPS - 2 * k * rate) // (2 * FPS))) for k in range(length)]


def test_the_expectation() -> None:
    assert _nearest(30, 4) == [0, 3, 6, 9]
    assert _nearest(5, 5) == [0, 0, 1, 1, 2]
    assert _nearest(25, 5) == [0, 2, 5, 7, 10]


@pytest.mark.parametrize("decode_images", [False, True])
@pytest.mark.parametrize("rate", [5, 25, 30])
class TestAnotherRate:
    def test_a_file_an_episode(self, tmp_path: Path, rate: int, decode_images: bool) -> None:
        folder = made.write_v2(tmp_path / "folder")
        expected = []
        for episode, length in enumerate(LENGTHS):
            first = 100 * episode
            count = -(-length * rate // FPS)
            write_video(folder / V2_VIDEO.format(episode), range(first, first + count), fps=rate, options=X264_B)
            expected += [first + j for j in _nearest(rate, length)]
        assert _imported(folder, tmp_path / "out", PICKED, decode_images=decode_images) == expected

    def test_all_episodes_in_one_file(self, tmp_path: Path, rate: int, decode_images: bool) -> None:
        folder = made.write_v3(tmp_path / "folder")
        write_video(folder / V3_VIDEO, range(-(-ROWS * rate // FPS)), fps=rate, options=X264_B)
        assert _imported(folder, tmp_path / "out", PICKED, decode_images=decode_images) == _nearest(rate, ROWS)


def test_uneven_timestamps_are_followed(tmp_path: Path) -> None:
    folder = made.write_v2(tmp_path / "folder")
    expected = []
    for episode, length in enumerate(LENGTHS):
        taken = np.cumsum([0, 2, 4, 3, 2, 4][:length])  # frames of the video between two rows
        made.set_column(folder / V2_DATA.format(episode), "timestamp", (taken / 30).tolist())
        write_video(folder / V2_VIDEO.format(episode), range(100 * episode, 100 * episode + 20), fps=30)
        expected += [100 * episode + k for k in taken.tolist()]
    assert _imported(folder, tmp_path / "out", PICKED) == expected


def test_a_video_that_is_as_long_in_frames_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = made.write_v2(tmp_path / "folder")
    for episode, length in enumerate(LENGTHS):
        write_video(folder / V2_VIDEO.format(episode), range(length), fps=30)
    shown = _imported(folder, tmp_path / "out", "by number where there are as many")
    assert shown == [k for length in LENGTHS for k in range(length)]


class TestARateNearby:
    """A rate that is close to the dataset's, but exact: over a recording it moves frames all the same."""

    @pytest.mark.parametrize(("rate", "frames"), [(10.5, 16), (9.5, 14)])
    def test_all_episodes_in_one_file(self, tmp_path: Path, rate: float, frames: int) -> None:
        folder = made.write_v3(tmp_path / "folder")
        write_video(folder / V3_VIDEO, range(frames), fps=int(2 * rate), pts=range(0, 2 * frames, 2))
        assert _nearest(rate, ROWS) != list(range(ROWS))
        assert _imported(folder, tmp_path / "out", PICKED) == _nearest(rate, ROWS)

    def test_one_episode_in_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(made, "LENGTHS", (ROWS,))
        folder = made.write_v2(tmp_path / "folder")
        write_video(folder / V2_VIDEO.format(0), range(16), fps=21, pts=range(0, 32, 2))
        assert _imported(folder, tmp_path / "out", PICKED) == _nearest(10.5, ROWS)

    @pytest.mark.parametrize("kind", ["a frame a row", "no steady rate", "no regular rows"])
    def test_is_no_reason_where_frames_are_numbered_as_rows_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.setattr(made, "LENGTHS", (ROWS,))
        folder = made.write_v2(tmp_path / "folder")
        frames = ROWS if kind == "a frame a row" else 16
        pts = [21 * k // 10 if kind == "no steady rate" else 2 * k for k in range(frames)]
        write_video(folder / V2_VIDEO.format(0), range(frames), fps=21, pts=pts)
        if kind == "no regular rows":  # of a clock that went slower: more than half a step off in the end
            made.set_column(folder / V2_DATA.format(0), "timestamp", (np.arange(ROWS) / FPS * 1.05).tolist())
        says = "taken by number" if frames == ROWS else "the later ones are not used"
        assert _imported(folder, tmp_path / "out", says) == list(range(ROWS))


class TestALateStart:
    """As after B-frames without an edit list, or in a file that was cut out of another one."""

    @pytest.mark.parametrize("one_episode", [True, False])
    def test_a_file_with_the_frames_of_all_its_rows_begins_with_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_episode: bool
    ) -> None:
        if one_episode:
            monkeypatch.setattr(made, "LENGTHS", (ROWS,))
        folder = made.write_v3(tmp_path / "folder")
        write_video(folder / V3_VIDEO, range(ROWS), pts=range(7, 7 + ROWS))
        dataset = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "out", image_dtype="uint8", progress=False)
        assert read_numbers(dataset.get_batch(range(ROWS))[CAMERA].movedim(-3, -1).numpy()) == list(range(ROWS))

    def test_also_at_another_rate(self, tmp_path: Path) -> None:
        folder = made.write_v3(tmp_path / "folder")
        write_video(folder / V3_VIDEO, range(3 * ROWS), fps=30, pts=range(21, 21 + 3 * ROWS))
        assert _imported(folder, tmp_path / "out", PICKED) == _nearest(30, ROWS)

    def test_one_without_them_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        folder = made.write_v3(tmp_path / "folder")
        write_video(folder / V3_VIDEO, range(ROWS - 3), pts=range(7, 4 + ROWS))
        with pytest.raises(
            SourceError, match=r"its first frame is shown at 0\.700 s, and from_timestamp .* at 0\.000 s"
        ):
            LeRobotDatasetV2.from_lerobot(folder, tmp_path / "out", progress=False)


@pytest.mark.parametrize("kind", ["v2", "v3"])
def test_a_video_that_ends_before_its_rows(tmp_path: Path, kind: str) -> None:
    folder = made.write_v2(tmp_path / "folder") if kind == "v2" else made.write_v3(tmp_path / "folder")
    if kind == "v2":
        write_video(folder / V2_VIDEO.format(0), range(8), fps=30)
        said = rf"episode_000000\.mp4: episode 0, camera '{CAMERA}': the rows go on until 0\.400 s, .* ends at 0\.250 s"
    else:
        write_video(folder / V3_VIDEO, range(3 * ROWS), fps=30)
        made.set_cell(folder / V3_EPISODES, f"videos/{CAMERA}/to_timestamp", 1, 0.7)
        said = rf"file-000\.mp4: episode 1, camera '{CAMERA}': the rows go on until 0\.800 s, .* ends at 0\.700 s"
    with pytest.raises(SourceError, match=said):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_video_cut_short_is_named_with_episode_and_camera(tmp_path: Path, kept: float) -> None:
    folder = made.write_v2(tmp_path / "folder")
    path = folder / V2_VIDEO.format(1)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(SourceError, match=rf"episode 1, camera '{CAMERA}': .*episode_000001\.mp4: .*; "):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
