"""What goes into the encoder comes out of the file: as many frames, at their times, and near to the pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from roboreel import LeRobotDatasetV2
from roboreel.columns.decode import decode_range
from roboreel.columns.encode import encode_video
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import InvalidArgumentError, StorageError
from roboreel.format.files import observed
from roboreel.schema import VideoOptions
from tests.recordings import CAMERA
from tests.test_durability import Failing
from tests.video_files import painted_frames, read_numbers


def decoded(path: Path, n: int) -> NDArray[np.uint8]:
    return np.concatenate(list(decode_range(path, 0, n, block=16)))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="not told which threads are real-time ones")
@pytest.mark.parametrize("codec", ["av1", "h264", "hevc"])
def test_no_thread_becomes_a_real_time_one(tmp_path: Path, codec: Any) -> None:
    """SVT-AV1 would make so its own, and whoever calls it, wherever it may: as root."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir()}

    seen = [os.sched_getscheduler(0)]

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for _ in range(2):  # the second one is asked for by an encoder that runs
            yield painted_frames(range(4))
            seen.append(os.sched_getscheduler(0))
            seen.extend(policies())

    encode_video(tmp_path / "video.mp4", blocks(), fps=10, options=VideoOptions(codec=codec))
    assert {*seen, os.sched_getscheduler(0)} == {os.SCHED_OTHER}


OPTIONS = {
    "default": VideoOptions(),
    "av1-gop30": VideoOptions(gop=30, crf=40, preset="10"),
    "h264": VideoOptions(codec="h264"),
    "h264-gop250": VideoOptions(codec="h264", gop=250, preset="veryfast"),
    "hevc": VideoOptions(codec="hevc"),
    "hevc-gop30": VideoOptions(codec="hevc", gop=30, crf=20, preset="veryfast"),
    "hevc-yuv444p": VideoOptions(codec="hevc", pix_fmt="yuv444p", gop=5),
    "h264-yuv444p": VideoOptions(codec="h264", pix_fmt="yuv444p", gop=1),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_frames_come_back_in_order_and_near(tmp_path: Path, name: str) -> None:
    frames, options = painted_frames(range(500, 537)), OPTIONS[name]
    table = encode_video(tmp_path / "a.mp4", [frames[:20], frames[20:21], frames[21:]], fps=10, options=options)
    assert table == FrameTable.from_video(tmp_path / "a.mp4")
    np.testing.assert_array_equal(table.times, np.arange(37) / 10)
    assert np.diff(table.keys, append=37).max() <= options.gop
    assert (table.codec, table.pix_fmt, table.shape) == (options.codec, options.pix_fmt, frames.shape[1:])
    out = decoded(tmp_path / "a.mp4", 37)
    assert read_numbers(out) == list(range(500, 537))
    assert np.abs(out.astype(int) - frames).mean() < 12  # chroma of hard colour edges; the wrong frame is beyond 40


def test_default_is_what_lerobot_writes(tmp_path: Path) -> None:
    table = encode_video(tmp_path / "a.mp4", [painted_frames(range(6))], fps=30)
    assert (table.codec, table.pix_fmt, table.key.tolist()) == ("av1", "yuv420p", [True, False] * 3)


@pytest.mark.parametrize("fps", [1, 5, 29.97, 30000 / 1001, 50.0, 120, 0.5, 12.5])
def test_frame_k_is_at_k_over_fps(tmp_path: Path, fps: float) -> None:
    table = encode_video(tmp_path / "a.mp4", [painted_frames(range(9))], fps=fps, options=VideoOptions(codec="h264"))
    np.testing.assert_allclose(table.times, np.arange(9) / fps, rtol=1e-5)
    assert table.nearest_all(np.arange(9) / fps).tolist() == list(range(9))


@pytest.mark.parametrize(("height", "width"), [(65, 97), (84, 84), (64, 161)])
@pytest.mark.parametrize(
    "options",
    [VideoOptions(), *(VideoOptions(codec=codec, pix_fmt="yuv444p") for codec in ("h264", "hevc"))],
)
def test_any_size(tmp_path: Path, height: int, width: int, options: VideoOptions) -> None:
    frames = painted_frames(range(5), height, width)
    assert encode_video(tmp_path / "a.mp4", [frames], fps=10, options=options).shape == (height, width, 3)
    assert read_numbers(decoded(tmp_path / "a.mp4", 5)) == list(range(5))


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([], "at least one frame"),
        ([np.zeros((0, 64, 96, 3), np.uint8)], "at least one frame"),
        ([np.zeros((2, 64, 96, 3), np.float32)], r"must be uint8 \(k, height, width, 3\).*float32"),
        ([np.zeros((2, 3, 64, 96), np.uint8)], r"got uint8 \(2, 3, 64, 96\)"),
        ([np.zeros((2, 64, 96, 3), np.uint8), np.zeros((2, 64, 98, 3), np.uint8)], r"got uint8 \(2, 64, 98, 3\)"),
        ([np.zeros((2, 65, 96, 3), np.uint8)], r"96x65: take codec='av1', or pix_fmt='yuv444p'"),
    ],
    ids=["none", "empty", "float", "channels-first", "two-sizes", "odd"],
)
def test_refused_frames_leave_no_file(tmp_path: Path, blocks: list[Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        encode_video(tmp_path / "a.mp4", blocks, fps=10, options=VideoOptions(codec="h264"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(3, 64), (64, 3), (1, 1)])
def test_frames_too_small_for_av1_are_refused_with_what_would_do(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"av1 needs sides of 4 pixels or more.*codec='h264'"):
        encode_video(tmp_path / "a.mp4", [np.zeros((2, *size, 3), np.uint8)], fps=10, options=VideoOptions())
    assert list(tmp_path.iterdir()) == []
    small = encode_video(tmp_path / "b.mp4", [np.zeros((2, 4, 4, 3), np.uint8)], fps=10, options=VideoOptions())
    assert small.shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": "vp9"}, "video codec 'vp9' is none of"),
        ({"codec": ["h264"]}, r"video codec \['h264'\] is none of"),
        ({"pix_fmt": "yuv444p"}, r"'yuv444p' cannot be written as av1; these can: \('yuv420p',\)"),
        ({"gop": 0}, "gop=0 is no whole number from 1 to 65536"),
        ({"gop": 2.0}, "gop=2.0 is no whole number"),
        ({"crf": True}, "crf=True is no whole number from 0 to 63"),
        ({"preset": "veryfast"}, "preset 'veryfast' is none that av1 has: '0', '1', "),
        ({"preset": 8}, "preset 8 is none that av1 has"),
        ({"codec": "hevc", "preset": "8"}, "preset '8' is none that hevc has: 'ultrafast', "),
        ({"codec": "h264", "crf": 60}, "^crf=60 is no whole number from 0 to 51, which h264 would take"),
    ],
)
def test_refused_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        VideoOptions(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    options = VideoOptions(gop=np.int64(4), crf=np.uint8(20))  # type: ignore[arg-type]
    assert options == VideoOptions(gop=4, crf=20)
    assert json.dumps(options.to_dict()) == json.dumps(VideoOptions(gop=4, crf=20).to_dict())


@pytest.mark.parametrize(
    ("options", "side", "fps", "says"),
    [
        ({"codec": "hevc"}, 14, 10, "hevc needs sides of 16 pixels or more, and the frames are 14x14"),
        ({"codec": "hevc", "pix_fmt": "yuv444p"}, 15, 10, "hevc needs sides of 16 pixels or more"),
        ({"codec": "hevc"}, 16, 10, None),
        ({}, 3, 10, "av1 needs sides of 4 pixels or more"),
        ({}, 64, 240.5, "av1 takes at most 240 frames a second, and the dataset has fps=240.5"),
        ({}, 64, 240, None),
        ({"codec": "h264"}, 6, 1000, None),
        ({"codec": "h264", "pix_fmt": "yuv444p"}, 7, 0.0004, None),
        ({}, 64, 0.0004, None),
    ],
)
def test_sizes_and_rates_that_an_encoder_takes(
    tmp_path: Path, options: dict[str, Any], side: int, fps: float, says: str | None
) -> None:
    frames = np.zeros((3, side, side, 3), np.uint8)
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=fps, image_mode="video", video_options=VideoOptions(**options))
    if says is None:
        dataset.add_episodes({CAMERA: frames})
        assert len(dataset.get_episode(0)[CAMERA]) == 3
        return
    with pytest.raises(InvalidArgumentError, match=says):
        dataset.add_episodes({CAMERA: frames})
    assert not (tmp_path / "dataset").exists()
    dataset = LeRobotDatasetV2(tmp_path / "png", fps=fps, image_mode="png")
    dataset.add_episodes({CAMERA: frames})
    with pytest.raises(InvalidArgumentError, match=says):
        dataset.convert("video", video_options=VideoOptions(**options))


@pytest.mark.parametrize("codec", ["av1", "h264", "hevc"])
def test_packets_come_in_the_order_in_which_they_are_shown(tmp_path: Path, codec: Any) -> None:
    options = VideoOptions(codec=codec, gop=30)
    encode_video(tmp_path / "a.mp4", [painted_frames(range(60))], fps=30, options=options)
    with av.open(str(tmp_path / "a.mp4")) as container:
        pts = [packet.pts or 0 for packet in container.demux(video=0) if packet.size]
    assert pts == sorted(pts)


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"create of .*a\.mp4 failed: No such file"):
        encode_video(tmp_path / "no" / "a.mp4", [painted_frames([1])], fps=10)


def test_whichever_write_fails_no_file_is_left_and_it_can_be_done_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 128, 192, 3), np.uint8)  # more than is written in one go
    options, path = VideoOptions(codec="h264", crf=1, preset="ultrafast"), tmp_path / "a.mp4"
    counting = Failing()
    with observed(counting):
        encode_video(path, [noise], fps=10, options=options)
    assert counting.seen >= 4
    for at in range(counting.seen):
        path.unlink()
        for_good = at % 2 == 1
        with pytest.raises(StorageError, match=r"a\.mp4 failed: "), observed(Failing(at, for_good=for_good)):
            encode_video(path, [noise], fps=10, options=options)
        assert path.exists() == for_good  # then it cannot be removed either
        assert len(encode_video(path, [noise], fps=10, options=options)) == 12


def test_encoders_say_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from roboreel import VideoOptions; from roboreel.columns.encode import encode_video\n"
        "for codec in ('av1', 'h264', 'hevc'):\n"
        "    frames = np.zeros((5, 64, 96, 3), np.uint8)\n"
        "    encode_video(sys.argv[1] + codec, [frames], fps=10, options=VideoOptions(codec=codec))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")
