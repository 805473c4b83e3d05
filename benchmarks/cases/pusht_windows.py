"""Windows of PushT through a plain `DataLoader`, beside `numpy.take` and the peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import recordings
from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of, times_of
from benchmarks.floors import Columns, Gather
from benchmarks.recorded import Endless, drain, drain_workers, record
from benchmarks.recordings import CAMERA, FPS, IMAGE_WINDOWS, STATE_WINDOWS
from roboreel import LeRobotDatasetV2

# Setups


def states(scene: Scene) -> dict[str, Any]:
    folder = recordings.pusht_states(scene)
    return _setup(scene, folder, recordings.imported(scene, folder), STATE_WINDOWS)


def images(scene: Scene) -> dict[str, Any]:
    dataset = recordings.imported(scene, recordings.pusht(scene), decode=True)
    return _setup(scene, recordings.pusht_images(scene), dataset, IMAGE_WINDOWS)


def frames(scene: Scene) -> dict[str, Any]:
    return images(scene) | {"deltas": {}}


def _setup(scene: Scene, folder: Path, dataset: Path, deltas: dict[str, list[float]]) -> dict[str, Any]:
    num_frames = len(LeRobotDatasetV2(dataset, readonly=True))
    batch_size = scene.pick(16, 256, 256)
    return {
        "folder": str(folder),
        "dataset": str(dataset),
        "deltas": deltas,
        "fps": FPS,
        "batch_size": batch_size,
        "batches": record(scene, num_frames, batch_size, scene.pick(4, 200, 200)),
        "image_dtype": "uint8",
    }


# Contenders


def ours(setup: Setup) -> Iterator[Run]:
    """The default DataLoader, with nothing said but which batches and how many workers."""
    deltas, image_dtype = setup["deltas"] or None, setup["image_dtype"]
    dataset = LeRobotDatasetV2(setup["dataset"], delta_timestamps=deltas, image_dtype=image_dtype, readonly=True)
    workers = setup.get("workers", 0)
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup), num_workers=workers)
    yield drain_workers(iter(loader), workers) if workers else drain(iter(loader))


class ByHand:
    """The frames of a batch as a script would gather them: the same numpy and torch calls, and nothing around."""

    def __init__(self, setup: Setup) -> None:
        self._columns = Columns(Path(setup["dataset"]))
        self._offsets = {key: tuple(round(delta * setup["fps"]) for delta in ds) for key, ds in setup["deltas"].items()}

    def __len__(self) -> int:
        return int(self._columns.stops[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        columns, now = self._columns, np.array(indices)
        episodes = columns.starts.searchsorted(now, side="right") - 1
        first, last = columns.starts[episodes][:, None], columns.stops[episodes][:, None] - 1
        windows: dict[tuple[int, ...], Any] = {}
        found = {}
        for key, array in columns.arrays.items():
            offsets = self._offsets.get(key)
            if offsets is None:
                found[key] = torch.from_numpy(array.take(now, 0, None, "clip"))
                continue
            if offsets not in windows:
                wanted = now[:, None] + np.array(offsets)
                windows[offsets] = wanted.clip(first, last), (wanted < first) | (wanted > last)
            rows, is_pad = windows[offsets]
            found[key] = torch.from_numpy(array.take(rows, 0, None, "clip"))
            found[key + "_is_pad"] = torch.from_numpy(is_pad.copy())
        return found


class Ready(ByHand):
    """The same tensors over arrays that are there already: nothing is read, nothing computed."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        first = next(iter(Endless(setup)))
        self._ready = {key: tensor.numpy() for key, tensor in super().__getitems__(first).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        return {key: torch.from_numpy(array) for key, array in self._ready.items()}


def nothing_read(setup: Setup) -> Iterator[Run]:
    """What the default DataLoader and the making of tensors take by themselves."""
    loader: Any = DataLoader(Ready(setup), batch_sampler=Endless(setup), collate_fn=as_it_is)  # type: ignore[arg-type]
    yield drain(iter(loader))


def by_hand(setup: Setup) -> Iterator[Run]:
    """The default DataLoader over that, which it is told to take as it is."""
    loader: Any = DataLoader(ByHand(setup), batch_sampler=Endless(setup), collate_fn=as_it_is)  # type: ignore[arg-type]
    yield drain(iter(loader))


def as_it_is(batch: Any) -> Any:
    return batch


def take(setup: Setup) -> Iterator[Run]:
    yield Gather(setup).run


def take_images(setup: Setup) -> Iterator[Run]:
    yield Gather(setup, [CAMERA]).run


def take_images_as_float(setup: Setup) -> Iterator[Run]:
    """The take, and one conversion to [0, 1] into a ready buffer.

    By `copy_` and `mul_`, which take a fifth of the time of `torch.mul(bytes, 1 / 255, out=floats)`.
    """
    gather = Gather(setup, [CAMERA])
    raw = torch.from_numpy(gather.out[CAMERA])
    floats = torch.empty(raw.shape, dtype=torch.float32)

    def run(count: int) -> dict[str, Any]:
        for _ in range(count):
            gather.step()
            floats.copy_(raw).mul_(1 / 255)
        return {CAMERA: floats}

    yield run


LEROBOT = "benchmarks.peers.lerobot"
TORCHRL = "benchmarks.peers.torchrl_memmap"

STATE = Benchmark(
    "state_windows",
    "PushT, 6 states, 5 actions, 5 rewards",
    states,
    (
        Contender("roboreel", ours),
        Contender("numpy", take),
        Contender("by hand", by_hand),
        Contender("nothing read", nothing_read, own_batches=True),
        Contender("torchrl", f"{TORCHRL}:slices", "torchrl", own_batches=True),
        Contender("lerobot 0.4.4", f"{LEROBOT}:version_0_4", "lerobot04"),
        Contender("lerobot 0.6.1", f"{LEROBOT}:version_0_6", "lerobot06"),
    ),
    (
        times_of("numpy", 3),
        times_of("by hand"),
        times_of("nothing read"),
        rate_of("torchrl", 2),
        rate_of("lerobot 0.4.4", 1000),
    ),
)

IMAGE = Benchmark(
    "image_windows",
    "PushT, the same with 6 images 96×96, uint8",
    images,
    (
        Contender("roboreel", ours),
        Contender("numpy", take_images),
        Contender("torchrl", f"{TORCHRL}:slices", "torchrl", own_batches=True),
        Contender("lerobot 0.4.4", f"{LEROBOT}:version_0_4", "lerobot04"),
        Contender("lerobot 0.6.1", f"{LEROBOT}:version_0_6", "lerobot06"),
    ),
    (times_of("numpy", 1.3), rate_of("torchrl", 15), rate_of("lerobot 0.4.4", 250)),
)

IMAGE_FLOAT = Benchmark(
    "image_windows_float",
    "PushT, the same, float32 in [0, 1], channel-first",
    images,
    (
        Contender("roboreel", ours, options={"image_dtype": "float32"}),
        Contender("numpy + torch", take_images_as_float),
    ),
    (times_of("numpy + torch", 1.3),),
)

FRAMES = Benchmark(
    "frames",
    "PushT, single frames, all keys, uint8",
    frames,
    (Contender("roboreel", ours), Contender("numpy", take)),
    (times_of("numpy", 1.5),),
)
