"""Make `tests/golden/v0.1`: a tiny ring with every kind of file of the format; `v0.1-depth`: depth, and a size.

    .venv/bin/python -m tests.make_golden

Run it for a new version of the format only, into a new directory: the old ones say what must stay readable. The clip
of an existing golden dataset is taken along, because every encoder makes other bytes of the same frames.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.encode import encode_video
from roboreel.columns.frames import ArrayFrames, VideoFrames
from roboreel.format import paths
from roboreel.format.manifest import Manifest
from roboreel.format.records import DURABLE_OFFSETS, LIVE_OFFSET, STATE_RECORD_BYTES, State
from roboreel.schema import LeRobotDatasetV2ImageMode, VideoOptions
from roboreel.store import CameraStorage, Episode, Writer, infer_keys
from roboreel.store.records import newest

GOLDEN = Path(__file__).parent / "golden" / "v0.1"
GOLDEN_DEPTH = GOLDEN.with_name("v0.1-depth")

FPS = 10
CAPACITY = 6
LENGTHS = (3, 2, 2)
"""The third goes to the start of the ring, over the first two frames of the first: 5 frames are left."""
TASKS = ("push the T", "push the T", 'Größer, "schneller"\n')
SPECIAL_KEY = "observation.Gripper/left"
RAW, PNG, VIDEO = "observation.image", "observation.image.png", "observation.images.top"
MODES = {
    RAW: LeRobotDatasetV2ImageMode.MEMMAP,
    PNG: LeRobotDatasetV2ImageMode.PNG,
    VIDEO: LeRobotDatasetV2ImageMode.VIDEO,
}
CLIP_SHAPE = (64, 64, 3)
DEAD_BOOT = bytes(range(16))


def values(number: int) -> dict[str, NDArray[np.generic]]:
    """The numeric columns of one episode, each value telling episode and frame."""
    frame = np.arange(LENGTHS[number])
    columns: dict[str, NDArray[np.generic]] = {
        "action": (100 * number + frame[:, None] + np.array([0, 0.5])).astype("<f4"),
        SPECIAL_KEY: (10 * number + frame).astype("<i2"),
        "next.done": frame == LENGTHS[number] - 1,
    }
    if number == 1:
        columns["timestamp"] = np.array([0.0, 0.25])  # half a step or more from 0.1: windows by time
    return columns


def images(number: int) -> NDArray[np.uint8]:
    """(frames, 4, 5, 3): what the cameras that keep their pixels see."""
    frame = np.arange(LENGTHS[number], dtype=np.uint8)[:, None, None, None]
    pixel = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    return (pixel + 20 * frame + 70 * np.uint8(number)).astype(np.uint8)


def grey_levels() -> NDArray[np.uint8]:
    """Of each frame of the clip."""
    return (30 + 30 * np.arange(sum(LENGTHS))).astype(np.uint8)


def encode_clip(path: Path) -> None:
    frames = np.broadcast_to(grey_levels()[:, None, None, None], (sum(LENGTHS), *CLIP_SHAPE))
    encode_video(path, [np.ascontiguousarray(frames)], fps=FPS, options=VideoOptions(preset="10"))


def episode(number: int, clip: Path) -> Episode:
    length = LENGTHS[number]
    return Episode(
        length,
        values(number),
        {"task": [TASKS[number]] * length},
        {
            RAW: ArrayFrames(images(number)),
            PNG: ArrayFrames(images(number)),
            VIDEO: VideoFrames(clip, sum(LENGTHS[:number]), length, CLIP_SHAPE),
        },
        source="a/b@0123abcd",
        source_episode=10 + number,
        wall_start=1.7e9 + number,
    )


def _fixed_uuids() -> Callable[[], uuid.UUID]:
    numbers = iter(range(1, 100))
    return lambda: uuid.UUID(int=next(numbers))


def make(root: Path, clip: Path) -> None:
    """Write the dataset to `root`, as it is found after another boot: only the durable record counts."""
    episodes = [episode(number, clip) for number in range(len(LENGTHS))]
    with mock.patch("uuid.uuid4", _fixed_uuids()):
        provenance = {"made_by": "tests/make_golden.py"}
        keys = infer_keys(episodes[0], MODES)
        manifest = Manifest(FPS, keys, CAPACITY, fixed_capacity=True, ring=True, provenance=provenance)
        writer = Writer.create(root, manifest, episodes[0])
        for one in episodes[1:]:
            writer.add(one)
        writer.close()
    _take_the_machine_out(root)


DEPTH_MM, DEPTH_M, SMALL = "observation.images.depth", "observation.images.depth_m", "observation.images.small"


def depth_cameras() -> dict[str, NDArray[np.generic]]:
    """Two frames of each camera as they come: 0 and the farthest that 16 bits can say are among the distances."""
    millimetres = np.arange(2 * 4 * 6, dtype="<u2").reshape(2, 4, 6, 1) * np.uint16(1394)
    millimetres[-1, -1, -1] = 65535
    colours = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    return {DEPTH_MM: millimetres, DEPTH_M: millimetres.astype("<f4") / np.float32(1000), SMALL: colours}


def make_depth(root: Path) -> None:
    """Write the dataset with depth to `root`; the camera `SMALL` and millimetres are brought to (2, 3) pixels."""
    one = Episode(2, cameras={key: ArrayFrames(frames) for key, frames in depth_cameras().items()})
    asked = CameraStorage.parse({DEPTH_M: "memmap", SMALL: "memmap"}, None, {DEPTH_MM: (2, 3), SMALL: (2, 3)})
    with mock.patch("uuid.uuid4", _fixed_uuids()):
        manifest = Manifest(FPS, asked.applied(infer_keys(one)), 2, fixed_capacity=True, ring=False)
        Writer.create(root, manifest, one).close()
    _take_the_machine_out(root)


def _take_the_machine_out(root: Path) -> None:
    (root / paths.LOCK).unlink()
    _fix_state(root / paths.STATE)


def _fix_state(path: Path) -> None:
    """Take boot and process out of the records; let the live one, of a boot long gone, count more than is there.

    The older durable record, of the empty dataset, is taken out: it must not step in where a test spoils the newer.
    """
    raw = bytearray(path.read_bytes())
    found = (State.from_bytes(bytes(raw[offset:][:STATE_RECORD_BYTES])) for offset in DURABLE_OFFSETS)
    state = newest([state for state in found if state is not None])
    durable = replace(state, boot_id=DEAD_BOOT, writer_pid=1234)
    live = replace(durable, generation=durable.generation + 1, seq=durable.seq + 2, rows=durable.rows + 1)
    for offset, record in ((LIVE_OFFSET, live), (DURABLE_OFFSETS[0], durable)):
        raw[offset : offset + STATE_RECORD_BYTES] = record.to_bytes()
    raw[DURABLE_OFFSETS[1] :] = bytes(len(raw) - DURABLE_OFFSETS[1])
    path.write_bytes(raw)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        clip = Path(temporary) / "clip.mp4"
        known = paths.video_path(GOLDEN, VIDEO, 0)
        if known.exists():
            shutil.copyfile(known, clip)
        else:
            encode_clip(clip)
        shutil.rmtree(GOLDEN, ignore_errors=True)
        make(GOLDEN, clip)
    shutil.rmtree(GOLDEN_DEPTH, ignore_errors=True)
    make_depth(GOLDEN_DEPTH)


if __name__ == "__main__":
    main()
