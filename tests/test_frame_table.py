"""The frame table: its record, its clock, and the files that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from roboreel.columns.decode import decode_range
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import StorageDirCorruptError, VideoError
from tests.video_files import X264_B, write_video


class TestFrameTable:
    def test_times_are_those_of_the_container(self, tmp_path: Path) -> None:
        late = write_video(tmp_path / "late.mp4", range(5), pts=range(7, 12), options=X264_B)
        uneven = write_video(tmp_path / "uneven.mp4", range(4), pts=[0, 1, 4, 6])
        np.testing.assert_allclose(FrameTable.from_video(late).times, [0.7, 0.8, 0.9, 1.0, 1.1])
        np.testing.assert_allclose(FrameTable.from_video(uneven).times, [0.0, 0.1, 0.4, 0.6])

    @pytest.mark.parametrize(
        ("seconds", "index"),
        [
            (-3, 0),
            (0, 0),
            (0.049, 0),
            (0.05, 0),
            (0.051, 1),
            (0.1, 1),
            (0.25, 1),
            (0.2500001, 2),
            (0.599999999, 3),
            (9, 3),
        ],
    )
    def test_nearest(self, seconds: float, index: int) -> None:
        table = FrameTable(
            np.array([0, 1, 4, 6]), np.array([True, False, False, False]), (1, 10), 8, 8, "av1", "yuv420p"
        )
        assert table.nearest(seconds) == index

    def test_nearest_of_one_frame(self) -> None:
        table = FrameTable(np.array([5]), np.array([True]), (1, 10), 8, 8, "av1", "yuv420p")
        assert table.nearest_all([-1.0, 0.5, 7.0]).tolist() == [0, 0, 0]

    def test_record_is_pinned(self, tmp_path: Path) -> None:
        table = FrameTable(np.array([0, 512]), np.array([True, False]), (1, 5120), 96, 64, "av1", "yuv420p")
        (tmp_path / "three bytes").write_bytes(b"abc")
        table = table.vouching_for(tmp_path / "three bytes")
        assert table.to_bytes().hex() == (
            "52524654"
            "0200"
            "0000"
            "0200000000000000"
            "01000000"
            "00140000"
            "60000000"
            "40000000"
            "61763100000000000000000000000000"
            "79757634323070000000000000000000"
            "0300000000000000"
            "50392f89945faf78"
            "0000000000000000"
            "0002000000000000"
            "0100" + table.to_bytes()[-8:].hex()
        )
        assert table.digest == int.from_bytes(table.to_bytes()[-8:], "little")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda data: data[:0], "0 bytes are too few"),
            (lambda data: data[:50], "50 bytes are too few"),
            (lambda data: b"XXXX" + data[4:], "no frame table"),
            (lambda data: data[:4] + b"\x01" + data[5:], "version 1"),
            (lambda data: data[:-1], "do not fit its 2 frames"),
            (lambda data: data[:15] + b"\xff" + data[16:], "do not fit"),
            (lambda data: data[:-12] + b"\x01" + data[-11:], "checksum"),
        ],
    )
    def test_a_lying_record_is_refused(self, change: Callable[[bytes], bytes], says: str) -> None:
        data = FrameTable(np.array([0, 9]), np.array([True, False]), (1, 10), 96, 64, "av1", "yuv420p").to_bytes()
        with pytest.raises(StorageDirCorruptError, match=f"a.table: .*{says}"):
            FrameTable.from_bytes(change(data), "a.table")


class TestBadFiles:
    @pytest.mark.parametrize("kept", [0.05, 0.3, 0.9, 0.99, 0.9995])
    @pytest.mark.parametrize("movflags", ["", "+faststart", "frag_keyframe+empty_moov"])
    @pytest.mark.parametrize("codec", ["libsvtav1", "libx264"])
    def test_cut_short_mp4(self, tmp_path: Path, codec: str, movflags: str, kept: float) -> None:
        options = {"movflags": movflags} if movflags else {}
        whole = write_video(tmp_path / "whole.mp4", range(30), codec=codec, container_options=options)
        assert len(FrameTable.from_video(whole)) == 30
        data = whole.read_bytes()
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(VideoError, match=r"cut\.mp4: "):
            FrameTable.from_video(cut)

    @pytest.mark.parametrize(
        "text",
        ["ffconcat version 1.0\nfile a.mp4\n", "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.mp4\n#EXT-X-ENDLIST\n"],
        ids=["ffconcat", "HLS"],
    )
    def test_a_list_of_other_files_is_no_video(self, tmp_path: Path, text: str) -> None:
        write_video(tmp_path / "a.mp4", range(5))
        (tmp_path / "b.mp4").write_text(text)
        with pytest.raises(VideoError, match=r"b\.mp4: "):
            FrameTable.from_video(tmp_path / "b.mp4")

    def test_cut_short_matroska(self, tmp_path: Path) -> None:
        whole = write_video(tmp_path / "whole.mkv", range(30), options=X264_B)
        assert len(FrameTable.from_video(whole)) == 30
        cut = tmp_path / "cut.mkv"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(VideoError, match=r"cut.mkv: cut short: its last frame is at .* of 3.000 s"):
            FrameTable.from_video(cut)

    @pytest.mark.parametrize("content", [b"", b"not a video\n" * 50, b"\0" * 5000])
    def test_not_a_video(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=r"a\.mp4: not readable as a video"):
            FrameTable.from_video(tmp_path / "a.mp4")

    def test_missing(self, tmp_path: Path) -> None:
        for attempt in (
            lambda: FrameTable.from_video(tmp_path / "no.mp4"),
            lambda: next(decode_range(tmp_path / "no.mp4", 0, 1, block=1)),
        ):
            with pytest.raises(VideoError, match=r"no.mp4: .*No such file"):
                attempt()

    def test_two_frames_at_one_time(self, tmp_path: Path) -> None:
        path = write_video(
            tmp_path / "fast.mkv", range(8), fps=4000, options={"bf": "0"}
        )  # Matroska counts milliseconds
        with pytest.raises(VideoError, match=r"fast.mkv: frames \d and \d have the same presentation time"):
            FrameTable.from_video(path)

    def test_blocks_that_a_power_cut_left_unwritten(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", range(30), container_options={"movflags": "+faststart"})
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size * 2 // 3)
            file.write(b"\0" * (size - size * 2 // 3))
        with pytest.raises(VideoError, match=r"a.mp4: damaged: the packet of frame \d+ is zeros"):
            FrameTable.from_video(path)


def test_a_codec_that_nobody_knows_is_one_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(4), options=X264_B)
    data = path.read_bytes()
    assert b"avc1" in data
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match=r"v\.mp4: .*(codec|video)"):
        FrameTable.from_video(path)
