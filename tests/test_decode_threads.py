"""Decoding in threads: what is decoded together, who runs it, what is kept; the same bytes however many there are."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2
from roboreel.columns.base import Decoding
from roboreel.columns.decode_parts import parts
from roboreel.columns.decoder_pool import DecoderPool
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.kept_tables import KeptTables
from roboreel.columns.threads import Threads
from roboreel.errors import InvalidArgumentError, MissingDependencyError, VideoError
from roboreel.format.threads import available_cores
from tests.test_video_decode import FRAMES, VIDEOS
from tests.video_files import X264_B, painted_frames, read_number, read_numbers, write_video

TOP, WRIST = "observation.images.top", "observation.images.wrist"


class TestParts:
    @pytest.mark.parametrize(
        ("indices", "keys", "most", "expected"),
        [
            ([5], [0], 4, [[5]]),
            ([0, 1, 2, 3], [0], 4, [[0, 1, 2, 3]]),  # one key frame: a second part would decode the first one's again
            ([0, 1, 2, 3], [0, 2], 1, [[0, 1, 2, 3]]),
            ([0, 1, 2, 3], [0, 2], 2, [[0, 1], [2, 3]]),
            ([0, 1, 2, 3], [0, 2], 9, [[0, 1], [2, 3]]),
            ([1, 3, 5, 7], [0, 2, 4, 6], 2, [[1, 3], [5, 7]]),
            ([9, 10, 12, 14], [0, 10, 12, 14], 2, [[9], [10, 12, 14]]),  # frame 9 costs ten
            ([0, 2, 9], [0, 2, 4], 3, [[0, 2], [9]]),
            ([3, 7], [], 2, [[3, 7]]),
            ([3, 7], [5], 2, [[3], [7]]),
        ],
    )
    def test_cuts(self, indices: list[int], keys: list[int], most: int, expected: list[list[int]]) -> None:
        wanted = np.array(indices)
        cut = parts(wanted, np.array(keys, np.int64), most, fewest=1)
        assert [wanted[part].tolist() for part in cut] == expected

    def test_a_few_frames_are_not_worth_a_second_decoder(self) -> None:
        assert list(parts(np.arange(20), np.arange(0, 20, 2), most=4)) == [slice(0, 20)]
        assert len(list(parts(np.arange(40), np.arange(0, 40, 2), most=4))) == 2

    @given(
        st.sets(st.integers(0, 300), min_size=1),
        st.sets(st.integers(0, 300)),
        st.integers(1, 8),
        st.integers(1, 40),
    )
    def test_every_frame_is_in_one_part_and_no_group_in_two(
        self, indices: set[int], keys: set[int], most: int, fewest: int
    ) -> None:
        wanted, at = np.array(sorted(indices)), np.array(sorted(keys), np.int64)
        cut = [wanted[part] for part in parts(wanted, at, most, fewest)]
        np.testing.assert_array_equal(np.concatenate(cut), wanted)
        assert len(cut) <= most
        groups = [set(np.searchsorted(at, part, side="right").tolist()) for part in cut]
        assert sum(map(len, groups)) == len(set.union(*groups))


class TestThreads:
    def test_each_job_runs_once_and_side_by_side(self) -> None:
        meet = threading.Barrier(3, timeout=60)
        ran: list[int] = []

        def job(k: int) -> Callable[[], None]:
            def run() -> None:
                meet.wait()
                ran.append(k)

            return run

        Threads().run([job(k) for k in range(6)], limit=3)  # a barrier of three breaks where fewer run at once
        assert sorted(ran) == list(range(6))

    def test_jobs_have_jobs_of_their_own_and_few_threads_do(self) -> None:
        threads = Threads(helpers=1)
        ran: list[int] = []

        def inner(k: int) -> Callable[[], None]:
            return partial(ran.append, k)

        def outer(k: int) -> Callable[[], None]:
            return lambda: threads.run([inner(10 * k + j) for j in range(4)], limit=4)

        threads.run([outer(k) for k in range(4)], limit=4)
        assert sorted(ran) == [10 * k + j for k in range(4) for j in range(4)]

    @pytest.mark.parametrize("limit", [1, 2, 4])
    def test_the_first_error_comes_when_nothing_runs_any_more(self, limit: int) -> None:
        ran: list[int] = []

        def job(k: int) -> Callable[[], None]:
            def run() -> None:
                if k == 3:
                    raise KeyError(k)
                ran.append(k)

            return run

        with pytest.raises(KeyError, match="3"):
            Threads().run([job(k) for k in range(200)], limit)
        seen = list(ran)
        assert set(range(3)) >= set(seen) if limit == 1 else 3 not in seen
        assert ran == seen

    def test_limits(self) -> None:
        assert Decoding(threads=3, workers=2).limit == 3
        assert Decoding(workers=10**6).limit == 1
        assert Decoding().limit == available_cores()
        if hasattr(os, "sched_getaffinity"):
            assert available_cores() == len(os.sched_getaffinity(0))


def test_frame_tables_are_kept_within_a_bound(tmp_path: Path) -> None:
    table = FrameTable(np.arange(1000), np.arange(1000) % 2 == 0, (1, 10), 96, 64, "av1", "yuv420p")
    for k in range(60):
        (tmp_path / f"{k}.frames").write_bytes(table.to_bytes())
    kept = KeptTables(max_bytes=300_000)
    for k in [*range(60), 0, 59]:
        assert kept.read(tmp_path / f"{k}.frames") == table
        assert len(kept) <= 20
    assert kept.read(tmp_path / "59.frames") is kept.read(tmp_path / "59.frames")
    shorter = FrameTable(np.arange(9), np.arange(9) == 0, (1, 10), 96, 64, "av1", "yuv420p")
    (tmp_path / "59.frames").write_bytes(shorter.to_bytes())
    assert len(kept.read(tmp_path / "59.frames")) == 9
    (tmp_path / "59.frames").unlink()
    with pytest.raises(FileNotFoundError):
        kept.read(tmp_path / "59.frames")


def test_two_threads_read_one_file_at_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(FRAMES), options=X264_B)
    table, pool = FrameTable.from_video(path), DecoderPool(max_files=1)
    out = np.zeros((FRAMES, *table.shape), np.uint8)
    halves = [np.arange(0, 30), np.arange(30, FRAMES)]
    meet = threading.Barrier(2, timeout=60)

    def job(half: NDArray[np.int64]) -> Callable[[], None]:
        def run() -> None:
            meet.wait()
            pool.read(path, table, half, half, out)

        return run

    Threads().run([job(half) for half in halves], limit=2)
    assert read_numbers(out) == list(range(FRAMES))
    assert len(pool) == 1  # the second one is let go when it has done


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 40 frames; the wrist shows 1000 more than the top."""
    root = tmp_path_factory.mktemp("two") / "ds"
    with LeRobotDatasetV2(root, fps=10) as dataset:
        for first in (0, 40, 80):
            numbers = range(first, first + 40)
            dataset.add_episodes(
                {TOP: painted_frames(numbers), WRIST: painted_frames(number + 1000 for number in numbers)}
            )
    return root


def shown(batch: dict[str, Any], key: str) -> list[int]:
    return read_numbers(batch[key].movedim(-3, -1).reshape(-1, 64, 96, 3).numpy())


class TestDatasets:
    @pytest.mark.parametrize("threads", [None, 1, 2, 5])
    def test_any_number_of_threads_gives_the_same_frames(self, two_cameras: Path, threads: int | None) -> None:
        indices = np.random.default_rng(3).integers(0, 120, 50).tolist()
        deltas = {TOP: [-0.1, 0.0], WRIST: [0.0]}
        options: dict[str, Any] = {"image_dtype": "uint8", "delta_timestamps": deltas}
        plain = LeRobotDatasetV2(two_cameras, **options, decode_threads=1).get_batch(indices)
        batch = LeRobotDatasetV2(two_cameras, **options, decode_threads=threads).get_batch(indices)
        assert shown(batch, WRIST) == [i + 1000 for i in indices]
        assert shown(batch, TOP) == [n for i in indices for n in (i - (i % 40 > 0), i)]
        for key in (TOP, WRIST):
            np.testing.assert_array_equal(batch[key], plain[key])

    def test_png_files_too(self, tmp_path: Path) -> None:
        large = painted_frames(range(30)).repeat(2, axis=1).repeat(2, axis=2)
        LeRobotDatasetV2(tmp_path / "ds", fps=10, image_mode="png").add_episodes({TOP: large})
        for threads in (None, 1, 2, 5):
            options: dict[str, Any] = {"image_dtype": "uint8", "delta_timestamps": {TOP: [-0.1, 0.0]}}
            dataset = LeRobotDatasetV2(tmp_path / "ds", **options, decode_threads=threads)
            for indices in ([4], [7, 7, 8], np.random.default_rng(3).integers(0, 30, 50).tolist()):
                given = dataset.get_batch(indices)[TOP].movedim(-3, -1).numpy()
                wanted = [n for i in indices for n in (max(i - 1, 0), i)]
                np.testing.assert_array_equal(given.reshape(-1, *large.shape[1:]), large[wanted])

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_workers_share_the_cores(self, two_cameras: Path, start: str) -> None:
        data = pytest.importorskip("torch.utils.data")
        dataset = LeRobotDatasetV2(two_cameras, image_dtype="uint8")
        assert shown(dataset.get_batch([7, 100]), TOP) == [7, 100]  # threads and decoders are there before the fork
        limit = Limit(dataset)
        loader = data.DataLoader(dataset, 20, num_workers=2, multiprocessing_context=start, collate_fn=limit)
        batches = list(loader)
        assert [n for _, batch in batches for n in shown(batch, WRIST)] == list(range(1000, 1120))
        assert [told for told, _ in batches] == [max(1, available_cores() // 2)] * 6

    @pytest.mark.parametrize("threads", [0, -1, 1.5, True])
    def test_a_number_of_threads_that_cannot_be(self, tmp_path: Path, threads: Any) -> None:
        with pytest.raises(InvalidArgumentError, match=r"decode_threads=.*; a number of at least 1, or None, would do"):
            LeRobotDatasetV2(tmp_path / "ds", fps=10, decode_threads=threads)


class Limit:
    """A collate function that tells how many threads its dataset uses where it runs, too."""

    def __init__(self, dataset: LeRobotDatasetV2) -> None:
        self.dataset = dataset

    def __call__(self, batch: Any) -> tuple[int, Any]:
        from torch.utils.data import default_collate

        return self.dataset._need_store().decoding.limit, default_collate(batch)


class TestTorchcodec:
    def test_an_unknown_decoder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match="video_decoder='opencv'; 'pyav' and 'torchcodec' would do"):
            LeRobotDatasetV2(tmp_path / "ds", fps=10, video_decoder="opencv")  # type: ignore[arg-type]

    def test_not_installed(self, two_cameras: Path) -> None:
        if importlib.util.find_spec("torchcodec"):
            pytest.skip("torchcodec is installed")
        with pytest.raises(MissingDependencyError, match=r"type: pip install 'roboreel\[torchcodec\]'"):
            LeRobotDatasetV2(two_cameras, video_decoder="torchcodec")

    @pytest.mark.parametrize("name", VIDEOS)
    def test_the_same_numbers_give_the_same_frames(self, tmp_path: Path, name: str) -> None:
        pytest.importorskip("torchcodec")
        path = write_video(tmp_path / "a.mp4", range(FRAMES), **VIDEOS[name])
        table = FrameTable.from_video(path)
        out = np.zeros((len(table), *table.shape), np.uint8)
        pool, every = DecoderPool(), np.arange(len(table))
        refused: list[str] = []
        for index in np.random.default_rng(0).permutation(every):
            try:
                pool.read(path, table, np.array([index]), np.array([0]), out, "torchcodec")
            except VideoError as error:
                refused.append(str(error))
            else:
                assert read_number(out[0]) == index + (17 if name == "edit-list-cut" else 0)
        assert all("leave video_decoder out" in said for said in refused)
        assert not refused or name in ("x264-intra-refresh", "edit-list-cut")  # it cannot jump in these

    def test_a_dataset(self, two_cameras: Path) -> None:
        pytest.importorskip("torchcodec")
        dataset = LeRobotDatasetV2(two_cameras, image_dtype="uint8", video_decoder="torchcodec")
        assert shown(dataset.get_batch([99, 3, 40, 3]), WRIST) == [1099, 1003, 1040, 1003]
