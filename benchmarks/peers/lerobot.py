"""LeRobotDataset, through torch's DataLoader, in the main process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

from benchmarks.benchmark import Run, Setup
from benchmarks.recorded import Endless, drain, drain_workers


def version_0_4(setup: Setup) -> Iterator[Run]:
    """Of the package lerobot-dataset 0.4.4, which carries the class of lerobot 0.4.4 as `ledataset`."""
    yield _loader(_dataset("ledataset.datasets.lerobot_dataset", setup), setup)


def version_0_6(setup: Setup) -> Iterator[Run]:
    yield _loader(_dataset("lerobot.datasets.lerobot_dataset", setup), setup)


def lance(setup: Setup) -> Iterator[Run]:
    """LanceDBDataset of lerobot-lancedb, over the folder converted by its own command."""
    from pathlib import Path

    from lerobot_lancedb import LanceDBDataset
    from lerobot_lancedb.convert import convert

    place = Path(setup["cache"]) / "lance" / Path(setup["folder"]).name
    if not (place / "done").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        convert(place, root=Path(setup["folder"]))
        (place / "done").touch()
    yield _loader(LanceDBDataset(root=place, delta_timestamps=setup["deltas"] or None), setup)


def _dataset(module: str, setup: Setup) -> Any:
    os.environ["HF_HOME"] = os.environ["HF_LEROBOT_HOME"] = str(setup["cache"]) + "/hf"
    made = importlib.import_module(module)
    return made.LeRobotDataset("benchmarks/local", root=setup["folder"], delta_timestamps=setup["deltas"] or None)


def _loader(dataset: Any, setup: Setup) -> Run:
    from torch.utils.data import DataLoader

    workers = setup.get("workers", 0)
    loader: Any = DataLoader(dataset, batch_sampler=Endless(setup), num_workers=workers)
    return drain_workers(iter(loader), workers) if workers else drain(iter(loader))
