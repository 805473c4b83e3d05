"""libav's threads never wait for Python while Python waits for them, whoever has switched libav's messages on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av.logging

from roboreel.columns.silence import silence

PROGRAM = """
import sys, av.logging, numpy as np
from pathlib import Path
from roboreel.columns.decode import decode_range
from roboreel.columns.encode import encode_video
from roboreel.schema import VideoOptions

av.logging.set_level(av.logging.ERROR)  # as importing torchvision.io does
video, out = sys.argv[1:]
read = sum(len(block) for k in range(12) for block in decode_range(video, 100 * k, 40, block=64))
for k in range(3):
    encode_video(Path(out) / f"{k}.mp4", [np.zeros((20, 96, 96, 3), np.uint8)], fps=10, options=VideoOptions("h264"))
print(read, av.logging.get_level() == av.logging.ERROR)
"""


def test_videos_are_decoded_and_encoded_where_messages_of_libav_go_to_python(sample_dir: Path, tmp_path: Path) -> None:
    video = next(sample_dir.glob("videos/**/*.mp4"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(video), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["480", "True"], done.stderr


def test_the_level_comes_back_when_the_last_one_leaves() -> None:
    before = av.logging.get_level()
    try:
        av.logging.set_level(av.logging.WARNING)
        one, other = silence(), silence()
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert av.logging.get_level() is None
        other.__exit__(None, None, None)
        assert av.logging.get_level() == av.logging.WARNING
    finally:
        av.logging.set_level(before)
