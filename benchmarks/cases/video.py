"""Windows of video frames, beside PyAV alone and the peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import recordings
from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of
from benchmarks.cases.pusht_windows import LEROBOT, ours
from benchmarks.libav import libav
from benchmarks.recorded import batches, record
from benchmarks.recordings import CAMERA, FPS, IMAGE_WINDOWS
from roboreel import LeRobotDatasetV2


def vga(scene: Scene) -> dict[str, Any]:
    """640×480, one camera, 5 episodes."""
    lengths = [scene.pick(8, 60, 200)] * scene.pick(2, 5, 5)
    return _setup(scene, recordings.made_up(scene, "vga", lengths, (480, 640)), cameras=1)


def two_cameras(scene: Scene) -> dict[str, Any]:
    """424×240, two cameras, 5 episodes; images as LeRobot gives them, float32."""
    lengths = [scene.pick(8, 60, 200)] * scene.pick(2, 5, 5)
    folder = recordings.made_up(scene, "two_cameras", lengths, (240, 424), cameras=2)
    return _setup(scene, folder, cameras=2) | {"image_dtype": "float32"}


def sparse_keys(scene: Scene) -> dict[str, Any]:
    """424×240, a key frame every 250 frames, 4 episodes; single frames."""
    lengths = [scene.pick(8, 250, 250)] * scene.pick(2, 4, 4)
    folder = recordings.made_up_sparse_keys(scene, "gop250", lengths, (240, 424))
    return _setup(scene, folder, cameras=1) | {"deltas": {}}


def pusht(scene: Scene) -> dict[str, Any]:
    """All of PushT in one AV1 file; TD-MPC's windows of 6 frames."""
    folder = recordings.pusht_av1(scene)
    dataset = recordings.imported(scene, folder)
    batch_size = scene.pick(8, 256, 256)
    return {
        **_about(folder, dataset, [CAMERA]),
        "deltas": IMAGE_WINDOWS,
        "batch_size": batch_size,
        "batches": _batches(scene, dataset, batch_size),
        "image_dtype": "float32",
    }


def _setup(scene: Scene, folder: Path, cameras: int) -> dict[str, Any]:
    keys = [f"observation.images.cam{k}" for k in range(cameras)]
    dataset = recordings.imported(scene, folder)
    batch_size = scene.pick(4, 64, 64)
    return {
        **_about(folder, dataset, keys),
        "deltas": {key: [-1 / FPS, 0] for key in keys},
        "batch_size": batch_size,
        "batches": _batches(scene, dataset, batch_size),
    }


def _about(folder: Path, dataset: Path, cameras: list[str]) -> dict[str, Any]:
    where = {"folder": str(folder), "dataset": str(dataset), "cameras": cameras}
    return {**where, "fps": FPS, "image_dtype": "uint8"}


def _batches(scene: Scene, dataset: Path, batch_size: int) -> str:
    num_frames = len(LeRobotDatasetV2(dataset, readonly=True))
    return record(scene, num_frames, batch_size, scene.pick(3, 50, 50))


def sorted_batches(setup: Setup) -> Iterator[Run]:
    yield _reading(setup, one_by_one=False)


def one_by_one(setup: Setup) -> Iterator[Run]:
    yield _reading(setup, one_by_one=True)


def _reading(setup: Setup, *, one_by_one: bool) -> Run:
    dataset = LeRobotDatasetV2(setup["dataset"], image_dtype="uint8", readonly=True)
    wanted = batches(setup)
    at = 0

    def run(count: int) -> Any:
        nonlocal at
        for _ in range(count):
            indices = wanted[at % len(wanted)].tolist()
            at += 1
            read = [dataset[index] for index in indices] if one_by_one else dataset.get_batch(sorted(indices))
        return len(read)

    return run


WINDOWS = Benchmark(
    "video_windows",
    "video, 2 frames of 640×480, AV1 with GOP 2, uint8",
    vga,
    (Contender("roboreel", ours), Contender("libav", libav)),
    (rate_of("libav", 0.85),),
)

TWO_CAMERAS = Benchmark(
    "video_two_cameras",
    "video, 2 frames of 2 cameras of 424×240, AV1 with GOP 2",
    two_cameras,
    (
        Contender("roboreel", ours),
        Contender("libav", libav),
        Contender("lerobot 0.4.4", f"{LEROBOT}:version_0_4", "lerobot04"),
        Contender("lerobot 0.6.1", f"{LEROBOT}:version_0_6", "lerobot06"),
    ),
    (rate_of("lerobot 0.4.4", 4),),
)

PUSHT = Benchmark(
    "video_pusht",
    "video, PushT in one AV1 file, 6 frames of 96×96",
    pusht,
    (
        Contender("roboreel", ours),
        Contender("libav", libav),
        Contender("lancedb 0.3.1", f"{LEROBOT}:lance", "lerobot06"),
        Contender("lerobot 0.6.1", f"{LEROBOT}:version_0_6", "lerobot06"),
    ),
    (rate_of("lancedb 0.3.1", 2), rate_of("lerobot 0.6.1", 5)),
)

SPARSE_KEYS = Benchmark(
    "video_gop250",
    "video, single frames of 424×240, H.264 with GOP 250",
    sparse_keys,
    (Contender("roboreel", sorted_batches), Contender("one by one, unsorted", one_by_one)),
    (rate_of("one by one, unsorted", 3),),
)
