"""Frame-exact reading: a frame asked for by number is the one painted with it, byte for byte, however it is read."""

from __future__ import annotations

import gc
import io
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from roboreel.columns.decode import VideoDecoder, decode_range
from roboreel.columns.decoder_pool import DecoderPool, default_pool
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import InvalidArgumentError, VideoError
from tests.video_files import (
    HEIGHT,
    WIDTH,
    X264_B,
    painted_frames,
    read_number,
    read_numbers,
    replace_edit_list,
    write_video,
)

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
FRAMES = 60

VFR = list(itertools.accumulate(1 + i % 3 for i in range(FRAMES)))

VIDEOS: dict[str, dict[str, Any]] = {
    "svtav1-gop2": {"codec": "libsvtav1", "options": {"g": "2", "crf": "30"}},
    "svtav1-gop30": {"codec": "libsvtav1", "options": {"g": "30", "crf": "30"}},
    "x264-gop1": {"options": {"g": "1"}},
    "x264-gop2": {"options": {"g": "2"}},
    "x264-gop12-b": {"options": X264_B},
    "x264-one-key": {"options": {**X264_B, "g": "250", "keyint_min": "250"}},
    "x264-open-gop": {"options": {**X264_B, "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}},
    "x264-intra-refresh": {"options": {"g": "12", "x264-params": "intra-refresh=1"}},
    "x264-yuv444p": {"pix_fmt": "yuv444p", "options": X264_B},
    "x264-full-range": {"pix_fmt": "yuvj420p", "options": X264_B},
    "x265-open-gop": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12:open-gop=1:pools=1"}},
    "mpeg4-b": {"codec": "mpeg4", "options": {"g": "12", "bf": "2", "qscale": "3"}},
    "vp9-altref": {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "lag-in-frames": "10"}},
    "first-pts-7": {"pts": range(7, 7 + FRAMES), "options": X264_B},
    "variable-rate": {"pts": VFR, "options": X264_B},
    "edit-list-delay": {"packet_shift": 9, "options": X264_B},
    "edit-list-cut": {"packet_shift": -17, "options": X264_B},
    "fragmented": {"options": X264_B, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.fixture(scope="module", params=VIDEOS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    return write_video(path, range(FRAMES), **VIDEOS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "plain.mp4", range(FRAMES), options=X264_B)


def all_frames(path: Path) -> NDArray[np.uint8]:
    """The file decoded from end to end by nothing but PyAV, converted as LeRobot does."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def read(pool: DecoderPool, path: Path, indices: Any, table: FrameTable | None = None) -> NDArray[np.uint8]:
    table = table or FrameTable.from_video(path)
    out = np.zeros((len(indices), *table.shape), np.uint8)
    distinct, rows, inverse = np.unique(np.asarray(indices, np.int64), return_index=True, return_inverse=True)
    pool.read(path, table, distinct, rows, out)
    return out[rows[inverse]]


class TestEveryKindOfVideo:
    def test_each_frame_alone_in_any_order_is_the_one_painted(self, video: Path) -> None:
        table, expected = FrameTable.from_video(video), all_frames(video)
        first = 17 if video.stem == "edit-list-cut" else 0
        assert read_numbers(expected) == list(range(first, FRAMES))
        assert len(table) == len(expected)
        decoder = VideoDecoder(video, table)
        out = np.zeros((1, *table.shape), np.uint8)
        for index in np.random.default_rng(0).permutation(np.repeat(np.arange(len(table)), 3)):
            decoder.read(np.array([index]), np.array([0]), out)
            assert read_number(out[0]) == first + index
            np.testing.assert_array_equal(out[0], expected[index])
        decoder.close()

    def test_windows_batches_and_ranges_give_the_same_bytes(self, video: Path) -> None:
        expected = all_frames(video)
        n = len(expected)
        pool = DecoderPool()
        for indices in (
            [0],
            [n - 1],
            [n - 1, 0, n - 1],
            range(n),
            range(n - 1, -1, -1),
            [5, 6, 7, 8, 9, 10],
            range(0, n, 5),
        ):
            np.testing.assert_array_equal(read(pool, video, indices), expected[list(indices)])
        np.testing.assert_array_equal(np.concatenate(list(decode_range(video, 0, n, block=7))), expected)
        np.testing.assert_array_equal(np.concatenate(list(decode_range(video, 13, 21, block=8))), expected[13:34])
        pool.close()

    def test_table_survives_its_record(self, video: Path) -> None:
        table = FrameTable.from_video(video)
        again = FrameTable.from_bytes(table.to_bytes())
        assert again == table
        assert (again.codec, again.pix_fmt, again.shape) == (table.codec, table.pix_fmt, (HEIGHT, WIDTH, 3))


@pytest.mark.parametrize("parts", [[(0, 10), (30, 20)], [(7, 30)], [(0, 10), (24, 12), (48, 8)], [(0, 8), (0, 8)]])
def test_an_edit_list_that_shows_parts_of_the_file(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    path = replace_edit_list(write_video(tmp_path / "a.mp4", range(FRAMES), options=X264_B), parts)
    shown = read_numbers(all_frames(path))
    assert shown == [first + k for first, length in parts for k in range(length)]
    assert len(FrameTable.from_video(path)) == len(shown)
    pool = DecoderPool()
    for index in np.random.default_rng(0).permutation(np.repeat(np.arange(len(shown)), 2)).tolist():
        assert read_number(read(pool, path, [index])[0]) == shown[index]
    assert read_numbers(read(pool, path, range(len(shown)))) == shown


class TestWrongFiles:
    def test_a_table_of_another_file(self, tmp_path: Path, plain: Path) -> None:
        table = FrameTable.from_video(plain)
        short = write_video(tmp_path / "short.mp4", range(20), options=X264_B)
        pool = DecoderPool()
        assert read_numbers(read(pool, short, [19, 3], table)) == [19, 3]
        with pytest.raises(VideoError, match=r"short.mp4: frame 40 of 60 .* not the one that its frame table"):
            read(pool, short, [40], table)
        assert read_numbers(read(pool, short, [5], table)) == [5]  # still usable

    def test_a_damaged_packet_is_named_and_others_still_read(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", range(30), codec="libsvtav1", options={"g": "2"})
        table = FrameTable.from_video(path)
        with av.open(str(path)) as container:
            packet = [packet for packet in container.demux(video=0) if packet.size][20]
            start, size = packet.pos or 0, packet.size
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\xff" * size)
        pool = DecoderPool()
        with pytest.raises(VideoError, match=r"a.mp4: frame 2[01] "):
            read(pool, path, [20, 21], table)
        assert read_numbers(read(pool, path, [24, 3, 10], table)) == [24, 3, 10]

    def test_more_frames_than_there_are(self, plain: Path) -> None:
        with pytest.raises(VideoError, match=r"plain.mp4: holds 60 frames, but frames 50 to 60 are wanted"):
            list(decode_range(plain, 50, 11, block=4))
        with pytest.raises(VideoError, match="frame 60 asked for, but the file has 60"):
            read(DecoderPool(), plain, [3, 60])

    def test_a_frame_of_another_size_is_named(self, plain: Path) -> None:
        table = FrameTable.from_video(plain)
        decoder = VideoDecoder(plain, table)
        with pytest.raises(VideoError, match=r"frame 7 is .* pixels, where 8x6 was expected") as caught:
            decoder.read(np.array([7]), np.array([0]), np.zeros((1, 6, 8, 3), np.uint8))
        decoder.close()
        assert caught.value.frame == 7


class TestPool:
    def test_open_files_are_bounded(self, tmp_path: Path, plain: Path) -> None:
        paths = [tmp_path / f"{k}.mp4" for k in range(40)]
        for path in paths:
            path.write_bytes(plain.read_bytes())
        table, pool = FrameTable.from_video(plain), DecoderPool(max_files=4)
        before = open_files()
        for path in paths * 2:
            assert read_numbers(read(pool, path, [11], table)) == [11]
            assert len(pool) <= 4
            assert open_files() <= before + 4
        pool.close()
        assert open_files() == before

    def test_bytes_are_bounded_but_one_file_is_always_open(self, tmp_path: Path, plain: Path) -> None:
        (tmp_path / "b.mp4").write_bytes(plain.read_bytes())
        pool = DecoderPool(max_bytes=1)
        for path in (plain, tmp_path / "b.mp4", plain):
            assert read_numbers(read(pool, path, [1, 2])) == [1, 2]
            assert len(pool) == 1

    def test_a_path_used_again_for_another_video(self, tmp_path: Path) -> None:
        path, pool = tmp_path / "a.mp4", DecoderPool()
        write_video(path, range(10))
        assert read_numbers(read(pool, path, [3])) == [3]
        write_video(tmp_path / "b.mp4", range(100, 110)).replace(path)
        assert read_numbers(read(pool, path, [3])) == [103]
        path.unlink()
        with pytest.raises(VideoError, match=r"a.mp4: cannot be opened \(No such file"):
            read(pool, path, [3], FrameTable(np.array([0]), np.array([True]), (1, 1), 8, 8, "av1", ""))
        assert len(pool) <= 1

    def test_rows_of_a_larger_array(self, plain: Path) -> None:
        table = FrameTable.from_video(plain)
        batch = np.full((6, 2, *table.shape), 7, np.uint8)
        DecoderPool().read(plain, table, np.array([2, 40]), np.array([1, 2]), batch[::2, 1])
        assert read_numbers(batch[2::2, 1]) == [2, 40]
        assert (batch[0] == 7).all()
        assert (batch[:, 0] == 7).all()
        assert (batch[1::2] == 7).all()

    def test_wrong_array(self, plain: Path) -> None:
        table = FrameTable.from_video(plain)
        with pytest.raises(
            InvalidArgumentError, match=r"array of uint8 \(n, 64, 96, 3\); got float32 \(2, 64, 96, 3\)"
        ):
            DecoderPool().read(plain, table, np.array([1]), np.array([0]), np.zeros((2, *table.shape), np.float32))

    def test_many_threads(self, tmp_path: Path, plain: Path) -> None:
        paths = [tmp_path / f"{k}.mp4" for k in range(6)]
        for path in paths:
            path.write_bytes(plain.read_bytes())
        table, pool = FrameTable.from_video(plain), DecoderPool(max_files=3)
        wrong: list[Any] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for _ in range(15):
                    indices = rng.integers(0, FRAMES, 6)
                    got = read_numbers(read(pool, paths[rng.integers(len(paths))], indices, table))
                    wrong.extend([(got, indices)] if got != indices.tolist() else [])
            except Exception as error:  # noqa: BLE001 - a thread's error would be lost
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(pool) <= 3

    def test_a_pickled_pool_is_an_empty_one_with_the_same_limits(self, plain: Path) -> None:
        pool = DecoderPool(max_files=2)
        read(pool, plain, [1])
        assert len(pickle.loads(pickle.dumps(pool))) == 0


FORK = """
import os, sys, threading
import numpy as np
from roboreel.columns.decode import VideoDecoder, decode_range
from roboreel.columns.decoder_pool import default_pool
from roboreel.columns.threads import shared
from roboreel.columns.frame_table import FrameTable

path, table = sys.argv[1], FrameTable.from_video(sys.argv[1])
expected = np.concatenate(list(decode_range(path, 0, len(table), block=16)))

def right():
    indices = np.random.default_rng(0).integers(0, len(table), 50)
    out = np.empty((50, *table.shape), np.uint8)
    rows = np.argsort(indices)

    def half(which):
        return lambda: default_pool().read(path, table, indices[which], which, out)

    shared.run([half(rows[:25]), half(rows[25:])], limit=2)
    return np.array_equal(out, expected[indices])

assert right()
running = decode_range(path, 0, len(table), block=4)      # threads in the background at the time of the fork
threaded = VideoDecoder(path, table, threads="AUTO")
next(running)
out = np.empty((1, *table.shape), np.uint8)
threaded.read(np.array([9]), np.array([0]), out)
default_pool()._lock.acquire()                            # as another thread of the parent might just then
child = os.fork()
if child:
    default_pool()._lock.release()
else:
    ok = right() and right()
    threaded.read(np.array([10]), np.array([0]), out)     # inherited: opens the file anew
    ok = ok and np.array_equal(out[0], expected[10]) and np.array_equal(next(running), expected[4:8])
    sys.exit(0 if ok else 3)                              # not os._exit: everything inherited is torn down
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert right() and np.array_equal(next(running), expected[4:8]), "the child moved the parent's file position"
print("done")
"""


def _child(path: Path, indices: list[int]) -> bytes:
    return read(default_pool(), path, indices).tobytes()


class TestOtherProcesses:
    @pytest.mark.parametrize("name", ["svtav1-gop30", "x264-gop12-b", "vp9-altref"])
    def test_fork_after_the_parent_decoded_in_threads(self, tmp_path: Path, name: str) -> None:
        path = write_video(tmp_path / "a.mp4", range(FRAMES), **VIDEOS[name])
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

    def test_spawned_process_gives_the_same_bytes(self, plain: Path) -> None:
        indices = [40, 3, 59, 12, 13]
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            there = workers.apply(_child, (plain, indices))
        assert there == _child(plain, indices) == all_frames(plain)[indices].tobytes()


REAL = {
    "v2.1_cr5_sub8/videos/chunk-000/observation.images.top/episode_000000.mp4": (197, 99),
    "v3.0_piper_two_obj_rebuilt/videos/observation.images.global_rgb/chunk-000/file-000.mp4": (2126, 10),
    "v2.0_gr00t_robot_sim_picknplace/videos/chunk-000/observation.images.ego_view/episode_000001.mp4": (470, 2),
    "v1.2_pusht/videos/observation.image_episode_000000.mp4": (161, 81),
    "v1.2_xarm_lift_medium/videos/observation.image_episode_000000.mp4": (25, 13),
}


class TestRealRecordings:
    @pytest.mark.parametrize("name", REAL)
    def test_random_frames_equal_a_linear_decode(self, name: str) -> None:
        path = SHARED / name
        if not path.exists():
            pytest.skip("the real recordings are not here")
        table = FrameTable.from_video(path)
        assert (len(table), len(table.keys)) == REAL[name]
        n = min(len(table), 260)  # beyond the first group of piper (198) and gr00t (250)
        with av.open(str(path)) as container:
            frames = itertools.islice(container.decode(video=0), n)
            expected = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        pool, rng = DecoderPool(), np.random.default_rng(1)
        for indices in ([n - 1], [0], rng.integers(0, n, 12), [n - 3, n - 2, n - 1]):
            np.testing.assert_array_equal(read(pool, path, indices, table), expected[indices])

    def test_pusht_video_shows_the_images_it_was_made_from(self) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        pil = pytest.importorskip("PIL.Image")
        path = SHARED / "v1.2_pusht/videos/observation.image_episode_000000.mp4"
        files = sorted((SHARED / "v3.0_pusht_image_slice" / "data").rglob("*.parquet"))
        if not path.exists() or not files:
            pytest.skip("the real recordings are not here")
        rows = pq.read_table(files[0], columns=["observation.image"]).slice(0, 161).to_pylist()
        images = np.stack([np.asarray(pil.open(io.BytesIO(row["observation.image"]["bytes"]))) for row in rows])
        frames = read(DecoderPool(), path, range(161))
        error = ((frames.astype(float) - images) ** 2).mean(axis=(1, 2, 3))
        assert (10 * np.log10(255**2 / error)).min() > 38


def test_painted_frames_read_back() -> None:
    assert read_numbers(painted_frames([0, 1, 255, 256, 65535])) == [0, 1, 255, 256, 65535]


def test_a_file_that_fails_between_opening_and_reading_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    table = FrameTable(np.array([0]), np.array([True]), (1, 10), 16, 16, "h264", "yuv420p")
    with pytest.raises(VideoError, match="no video stream"):
        VideoDecoder(path, table)
    gc.collect()  # what __del__ raises is a warning, and that an error here
