"""Every codec with every spacing of key frames, clock and pixel format that it has; colours as they are tagged."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from roboreel.columns.decode import decode_range
from roboreel.columns.decoder_pool import DecoderPool
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.scheduling import ordinary_threads
from tests.video_files import read_numbers, write_video

FRAMES = 40
VFR = list(itertools.accumulate(1 + i % 3 for i in range(FRAMES)))

CODECS: dict[str, dict[str, str]] = {
    "libsvtav1": {"preset": "12", "crf": "35"},
    "libx264": {"bf": "3", "x264-params": "b-adapt=0:scenecut=0"},
    "libx265": {"x265-params": "log-level=none:pools=1:scenecut=0:b-adapt=0:bframes=3"},
    "mpeg4": {"bf": "2", "qscale": "3"},
    "libvpx-vp9": {"deadline": "realtime", "lag-in-frames": "8"},
}
KINDS: dict[str, dict[str, Any]] = {
    "first pts 7": {"pts": range(7, 7 + FRAMES)},
    "variable rate": {"pts": VFR},
    "edit list, delayed": {"packet_shift": 9},
    "edit list, cut": {"packet_shift": -7},
    "fragmented": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "full range": {"pix_fmt": "yuvj420p"},
    "yuv444p": {"pix_fmt": "yuv444p"},
}
NOT_WRITTEN = {
    ("libsvtav1", "yuv444p"),
    ("libsvtav1", "full range"),  # by pixel format; by tag: below
    ("libvpx-vp9", "full range"),
    ("mpeg4", "yuv444p"),
    ("mpeg4", "full range"),
}
"""By the encoders that there are."""


def _options(codec: str, gop: int) -> dict[str, str]:
    options = {**CODECS[codec], "g": str(gop)}
    if codec == "libx265":
        options["x265-params"] += f":keyint={gop}:min-keyint={gop}" + (":bframes=0" if gop == 1 else "")
    if gop == 1 and "bf" in options:
        options["bf"] = "0"
    return options


def _check(path: Path, first: int = 0) -> FrameTable:
    """Read the file in several ways; each must give what PyAV alone gives from end to end, and show its numbers."""
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert read_numbers(expected) == list(range(first, FRAMES))
    table, n = FrameTable.from_video(path), len(expected)
    assert len(table) == n
    pool, rng = DecoderPool(), np.random.default_rng(0)
    for indices in ([n - 1], [0], *([k] for k in rng.permutation(n)[:12]), [5, 6], [3, 9, 30], rng.permutation(n)[:15]):
        wanted = np.sort(np.asarray(indices))
        out = np.zeros((len(wanted), *table.shape), np.uint8)
        pool.read(path, table, wanted, np.arange(len(wanted)), out)
        np.testing.assert_array_equal(out, expected[wanted])
    np.testing.assert_array_equal(np.concatenate(list(decode_range(path, 0, n, block=16))), expected)
    pool.close()
    return table


@pytest.mark.parametrize("gop", [1, 2, 12, 250])
@pytest.mark.parametrize("codec", CODECS)
def test_key_frames(tmp_path: Path, codec: str, gop: int) -> None:
    path = write_video(tmp_path / "a.mp4", range(FRAMES), codec=codec, options=_options(codec, gop))
    table = _check(path)
    if gop == 1:
        assert len(table.keys) == FRAMES
    elif gop == 250:
        assert len(table.keys) == 1
    else:
        assert 1 < len(table.keys) < FRAMES


@pytest.mark.parametrize(
    ("codec", "kind"), [pair for pair in itertools.product(CODECS, KINDS) if pair not in NOT_WRITTEN]
)
def test_clocks_and_pixels(tmp_path: Path, codec: str, kind: str) -> None:
    path = write_video(tmp_path / "a.mp4", range(FRAMES), codec=codec, options=_options(codec, 12), **KINDS[kind])
    table = _check(path, first=7 if kind == "edit list, cut" else 0)
    if kind == "variable rate":
        np.testing.assert_allclose(np.diff(table.times), np.diff(VFR) / 10, atol=1e-3)


def test_a_key_frame_every_250(tmp_path: Path) -> None:
    options = {**CODECS["libx264"], "g": "250", "preset": "ultrafast", "bf": "3"}
    path = write_video(tmp_path / "a.mp4", range(620), options=options)
    table = FrameTable.from_video(path)
    assert table.keys.tolist() == [0, 250, 500]
    wanted = np.array([0, 1, 249, 250, 251, 498, 499, 500, 619])
    pool, out = DecoderPool(), np.zeros((1, *table.shape), np.uint8)
    for number in [*wanted[::-1].tolist(), *wanted.tolist()]:
        pool.read(path, table, np.array([number]), np.array([0]), out)
        assert read_numbers(out) == [number]


# Colours

_RED = {"bt709": 0.2126, "smpte170m": 0.299}
_BLUE = {"bt709": 0.0722, "smpte170m": 0.114}
_MATRIX = {"bt709": 1, "smpte170m": 6}  # as H.273 numbers them
_RANGE = {"limited": 1, "full": 2}


def _yuv(rgb: NDArray[np.uint8], matrix: str, signal: str) -> NDArray[np.uint8]:
    """(3, height, width) uint8 of (height, width, 3) RGB, by the definition."""
    red, green, blue = np.moveaxis(rgb.astype(float) / 255, -1, 0)
    kr, kb = _RED[matrix], _BLUE[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scale, offset, chroma = (255, 0, 255) if signal == "full" else (219, 16, 224)
    return np.stack([scale * luma + offset, chroma * cb + 128, chroma * cr + 128]).round().clip(0, 255).astype(np.uint8)


def _colours() -> NDArray[np.uint8]:
    """Bars of saturated and plain colours, (64, 96, 3)."""
    bars = [(200, 30, 40), (30, 180, 60), (40, 50, 210), (230, 220, 30), (20, 20, 20), (240, 240, 240)]
    return np.repeat(np.repeat(np.array(bars, np.uint8)[None], 16, axis=1), 64, axis=0)


@pytest.mark.parametrize(
    ("matrix", "signal"),
    [*itertools.product(["smpte170m", "bt709"], ["limited", "full"]), ("untagged", "limited")],
)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_colours_are_those_that_were_filmed(tmp_path: Path, codec: str, matrix: str, signal: str) -> None:
    colours, is_tagged = _colours(), matrix != "untagged"
    planes = _yuv(colours, matrix if is_tagged else "smpte170m", signal)
    path = tmp_path / "a.mp4"
    quality = {"libsvtav1": {"crf": "10", "preset": "12"}, "libvpx-vp9": {"crf": "4", "b": "0"}}
    options = quality.get(codec, {"crf": "5", "x265-params": "log-level=none:pools=1"})
    if codec == "libx264":
        options.pop("x265-params", None)
    with ordinary_threads(), av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(10), options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if is_tagged:
            stream.codec_context.colorspace = _MATRIX[matrix]
            stream.codec_context.color_range = _RANGE[signal]
        packed = np.concatenate([planes[0].reshape(-1), *(plane[::2, ::2].reshape(-1) for plane in planes[1:])])
        for k in range(4):
            frame = av.VideoFrame.from_ndarray(packed.reshape(96, 96), format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            if is_tagged:
                frame.colorspace, frame.color_range = _MATRIX[matrix], _RANGE[signal]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    table = FrameTable.from_video(path)
    out = np.zeros((1, *table.shape), np.uint8)
    DecoderPool().read(path, table, np.array([2]), np.array([0]), out)
    inner = np.arange(96) % 16 // 2 % 7 > 1  # away from the bars' borders, over which colour is shared
    error = np.abs(out[0].astype(int) - colours)[8:-8, inner]
    assert error.max() <= 6
