"""torchrl's replay buffer over `LazyMemmapStorage`, giving slices of episodes.

It draws its own frames, as many of them as the others' windows of 6; it has no windows of different lengths, so every
key comes with 6 frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark import Run, Setup


def slices(setup: Setup) -> Iterator[Run]:
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

    columns = _columns(Path(setup["dataset"]))
    frames = len(next(iter(columns.values())))
    length = max(map(len, setup["deltas"].values()))
    scratch = Path(setup["cache"]) / "torchrl" / Path(setup["dataset"]).name
    buffer: Any = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(frames, scratch_dir=str(scratch), existsok=True),
        sampler=SliceSampler(  # each of these was the faster choice
            slice_len=length, traj_key="episode_index", strict_length=False, cache_values=True, truncated_key=None
        ),
        batch_size=setup["batch_size"] * length,
    )
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in columns.items()}
    buffer.extend(TensorDict(tensors, batch_size=[frames]))

    def run(count: int) -> Any:
        for _ in range(count):
            batch = buffer.sample()
        return batch

    yield run


def _columns(folder: Path) -> dict[str, Any]:
    """Our columns, opened as docs/format.md says: numpy and `metadata.json` are enough."""
    import json

    metadata = json.loads((folder / "metadata.json").read_text())
    found = {}
    for key, spec in metadata["keys"].items():
        path = folder / metadata["paths"]["column"].format(key=key)
        if path.exists():
            found[key] = np.memmap(path, spec["dtype"], "r", shape=(metadata["capacity"], *spec["shape"]))
    return found
