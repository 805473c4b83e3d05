"""`roboreel forecast DIR --frames N`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from roboreel.cli.modes import parse_modes
from roboreel.cli.sizes import shown_size
from roboreel.dataset.reading import gather
from roboreel.schema import KeySpec, VideoOptions
from roboreel.store import AskedMode, CameraStorage, Store, forecast, free_bytes, is_dataset

_RUN = 16
"""Frames that follow each other, so that video can be coded as in a recording."""
_RUNS = 3


@dataclass(frozen=True)
class ForecastConfig:
    """Say how many bytes a recording like this one will take, per key and image mode. Nothing is written."""

    dir: tyro.conf.Positional[Path]
    """A roboreel dataset, a LeRobot folder (v1.1 to v3.0), or a recording in zarr or HDF5, for its keys and a few of
    its images."""
    frames: int
    """Number of frames to come."""
    episode_length: int | None = None
    """Frames an episode. Left out: of a dataset, the mean of its episodes; of anything else, one long episode."""
    image_mode: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """How cameras would be stored: memmap, png or video; or, once for each of some cameras, as
    observation.images.wrist=png. Cameras of which nothing is said count as they are."""
    video: VideoOptions = field(default_factory=VideoOptions)
    """How frames would be coded as video. Left as it is: as the dataset codes its own."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ForecastConfig, prog="roboreel forecast", args=arguments)
    options = None if config.video == VideoOptions() else config.video
    found = collect(config.dir, config.frames, config.episode_length, parse_modes(config.image_mode), options)
    print(json.dumps(found, indent=1) if config.json else describe(found))


def collect(
    root: Path,
    frames: int,
    episode_length: int | None = None,
    image_mode: AskedMode = None,
    video_options: VideoOptions | None = None,
) -> dict[str, Any]:
    """Return what `roboreel forecast` shows, as JSON values."""
    keys, fps, sample, length = _from_dataset(root) if is_dataset(root) else _from_foreign(root)
    cameras = {key: spec.image_mode for key, spec in keys.items() if spec.image_mode is not None}
    asked = CameraStorage.parse(image_mode)
    asked.check_known(cameras)
    modes = {key: asked.mode_of(key) or mode for key, mode in cameras.items()}
    episode_length = episode_length or length
    found = forecast(keys, frames, fps=fps, episode_length=episode_length, sample=sample, video_options=video_options)
    return {
        **found.to_dict(),
        "image_mode": {key: mode.value for key, mode in modes.items()},
        "total_so": found.total(modes),
        "free_bytes": free_bytes(root),
    }


Found = tuple[Mapping[str, KeySpec], float, dict[str, NDArray[Any]], int | None]


def _from_dataset(root: Path) -> Found:
    store = Store.open(root)
    try:
        cameras = [key for key, spec in store.manifest.keys.items() if spec.is_camera]
        starts = np.linspace(0, max(0, store.state.frames - _RUN), _RUNS).astype(np.int64)
        slots = np.unique((starts[:, None] + np.arange(_RUN)).clip(max=store.state.frames - 1))
        sample = gather(store, slots, cameras) if cameras and store.state.frames else {}
        rows = store.table.rows["length"][store.table.live]
        length = max(1, round(float(rows.mean()))) if len(rows) else None
        return store.manifest.keys, store.manifest.fps, sample, length
    finally:
        store.close()


def _from_foreign(path: Path) -> Found:
    from roboreel.convert import (  # brings Parquet in
        ForeignDataset,
        OpenedSource,
        detect_format,
        open_lerobot,
        open_source,
    )

    source: ForeignDataset
    source = open_lerobot(path) if detect_format(path) == "lerobot" else OpenedSource(open_source(path))
    keys = {spec.name: spec for spec in source.keys}
    runs: dict[str, list[NDArray[Any]]] = {key: [] for key, spec in keys.items() if spec.is_camera}
    for episode in itertools.islice(source.episodes(), _RUNS if runs else 0):
        for key, found in runs.items():
            found.append(next(episode.cameras[key].blocks())[:_RUN])
    return keys, source.fps, {key: np.concatenate(found) for key, found in runs.items() if found}, None


def describe(found: Mapping[str, Any]) -> str:
    """Return what `roboreel forecast` prints."""
    width = max(len(key) for key in (*found["keys"], "growing"))
    lines = [
        f"{found['frames']:,} frames, {shown_size(found['free_bytes'])} free",
        f"  {'':<{width}}  {'memmap':>10} {'png':>10} {'video':>10}",
    ]
    rows = {**found["keys"], "owners": dict.fromkeys(found["total"], found["owners"]), "total": found["total"]}
    rows["growing"] = found["growing"]
    for key, sizes in rows.items():
        shown = " ".join(f"{shown_size(sizes[mode]):>10}" for mode in ("memmap", "png", "video"))
        lines.append(f"  {key:<{width}}  {shown}")
    if found["image_mode"]:
        modes = ", ".join(f"{key} as {mode}" for key, mode in found["image_mode"].items())
        lines.append(f"  {shown_size(found['total_so'])} with {modes}")
    return "\n".join([*lines, *(f"  {note}" for note in found["notes"])])
