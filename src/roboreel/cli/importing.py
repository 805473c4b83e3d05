"""`roboreel import FOLDER DEST`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from roboreel.cli.info import describe
from roboreel.dataset import LeRobotDatasetV2
from roboreel.errors import ConfigError, InvalidArgumentError
from roboreel.schema import VideoOptions
from roboreel.store import Store, is_dataset, payoff_text, source_window_seconds, window_seconds

_EPISODES_TIMED = 8
"""Of the folder, the first ones."""


@dataclass(frozen=True)
class ImportConfig:
    """Take a LeRobot folder (v2.0, v2.1 or v3.0) in as a roboreel dataset. The folder is only read."""

    folder: tyro.conf.Positional[Path]
    """The folder that holds meta/info.json."""
    dest: tyro.conf.Positional[Path]
    """Where the dataset goes: a new or an empty directory."""
    decode_images: bool = False
    """Decode video and PNG into raw pixels once: fastest to read, largest on disk. Otherwise kept as they are."""
    image_mode: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """How cameras are stored: memmap, png or video; or, once for each of some cameras, as
    observation.images.wrist=png. Cameras of which nothing is said are kept as they are."""
    video: VideoOptions = field(default_factory=VideoOptions)
    """How frames are coded as video that do not come so, and those of later episodes."""
    buffer_capacity: str | None = None
    """Room in frames, or as 20GB; more than the folder holds if episodes are to be added. None: grows as needed."""
    use_as_fifo_buffer: bool = False
    """Make it a ring: when the capacity is reached, the oldest episodes are overwritten."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels to bring the frames of every camera to: colours by Pillow's antialiased bilinear
    filter, depth by the nearest pixel. Not given: as they are."""
    camera_size: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same for some cameras only: KEY HEIGHT WIDTH, and more of them."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ImportConfig, prog="roboreel import", args=arguments)
    is_new, began = not is_dataset(config.dest), time.perf_counter()
    with LeRobotDatasetV2.from_lerobot(
        config.folder,
        config.dest,
        config.decode_images,
        image_mode=parse_modes(config.image_mode),
        video_options=None if config.video == VideoOptions() else config.video,
        buffer_capacity=_frames_or_size(config.buffer_capacity),
        use_as_fifo_buffer=config.use_as_fifo_buffer,
        image_size=_sizes(config),
        progress=not config.quiet,
    ):
        pass
    seconds = time.perf_counter() - began
    if not config.quiet:
        print(describe(config.dest))
        if is_new:
            print("\n".join([f"imported in {seconds:.1f} s", *_payoff(config.folder, config.dest, seconds)]))


def _payoff(folder: Path, dest: Path, seconds: float) -> list[str]:
    """Say when decoding the cameras once has paid for itself, against reading them as they lie in the folder."""
    from roboreel.convert import open_lerobot  # brings Parquet in

    store = Store.open(dest)
    try:
        decoded = [key for key, spec in store.manifest.keys.items() if spec.is_camera and not spec.needs_decoding]
        if not decoded:
            return []
        episodes = [
            {key: episode.cameras[key] for key in decoded}
            for episode in itertools.islice(open_lerobot(folder).episodes(), _EPISODES_TIMED)
        ]
        frames = store.state.frames
        before, after = source_window_seconds(episodes), window_seconds(store, decoded)
        return [payoff_text(seconds, frames * before, frames * after)]
    finally:
        store.close()


def parse_modes(typed: Sequence[str]) -> str | dict[str, str] | None:
    """Return `image_mode` for what was typed: one mode, or KEY=MODE once or more.

    >>> parse_modes(["png"]), parse_modes(["observation.images.wrist=memmap"]), parse_modes([])
    ('png', {'observation.images.wrist': 'memmap'}, None)
    """
    if not typed:
        return None
    if len(typed) == 1 and "=" not in typed[0]:
        return typed[0]
    pairs = [text.rpartition("=") for text in typed]
    if not all(key for key, _, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise InvalidArgumentError(
            f"--image-mode {' '.join(typed)}; one mode would do, or CAMERA=MODE for each of some cameras"
        )
    return {key: mode for key, _, mode in pairs}


def _sizes(config: ImportConfig) -> tuple[int, int] | dict[str, tuple[int, int]] | None:
    if config.image_size is not None and config.camera_size:
        raise ConfigError("--image-size is for every camera and --camera-size for some; give one of them")
    return config.camera_size or config.image_size


def _frames_or_size(typed: str | None) -> int | str | None:
    return int(typed) if typed is not None and typed.isdecimal() else typed
