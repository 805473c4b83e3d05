"""`roboreel import SOURCE DEST`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from roboreel.cli.info import collect, describe
from roboreel.cli.modes import parse_modes
from roboreel.cli.sizes import shown_size
from roboreel.convert import (
    ImportForecast,
    IngestOptions,
    IngestReport,
    Source,
    detect_format,
    forecast_import,
    forecast_lerobot,
    import_lerobot,
    import_source,
    open_lerobot,
    open_source,
)
from roboreel.dataset import LeRobotDatasetV2
from roboreel.errors import ConfigError
from roboreel.schema import VideoOptions
from roboreel.store import CameraStorage, Store, payoff_text, source_window_seconds, window_seconds

_EPISODES_TIMED = 8
"""Of the folder, the first ones."""


@dataclass(frozen=True)
class ImportConfig:
    """Take a recording in as a roboreel dataset. It is only read.

    A LeRobot folder (v1.1 to v1.6, v2.0, v2.1 or v3.0), diffusion-policy's zarr, robomimic's or ALOHA's HDF5. Says
    first what it will take, and refuses what would not fit. Killed or interrupted, the same command goes on where it
    was.
    """

    folder: tyro.conf.Positional[Path]
    """The LeRobot folder that holds meta/info.json, or before v2.0 meta_data/info.json; a zarr directory or .zarr.zip;
    an HDF5 file; a folder of ALOHA's HDF5 files, one an episode."""
    dest: tyro.conf.Positional[Path]
    """Where the dataset goes: a new or an empty directory."""
    format: Literal["lerobot", "zarr", "robomimic", "aloha"] | None = None
    """What it is, where that is not to be found out."""
    fps: float | None = None
    """Frames a second of a recording that does not say it, or says it wrongly; a LeRobot folder does."""
    rename: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A data key that is to have another name, as observation.joint_pos=observation.state; once for each. Not of a
    LeRobot folder."""
    decode_images: bool = False
    """Decode video and PNG into raw pixels once: fastest to read, largest on disk. Otherwise kept as they are, and what
    comes as arrays as PNG, without loss."""
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
    skip_episodes: tuple[int, ...] = ()
    """Episodes that are left out, by their episode_index: damaged ones, say."""
    strict: bool = False
    """Refuse what would be left out with a warning: a declared camera without frames, a column that is no array."""
    forecast: bool = False
    """Only say what it would take."""
    force: bool = False
    """Begin also where the forecast says that it does not fit."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ImportConfig, prog="roboreel import", args=arguments)
    options = _options(config)
    source = _source(config)
    if config.forecast:
        if source is None:
            found = forecast_lerobot(config.folder, config.dest, options)
        else:
            found = forecast_import(source, config.dest, options)
        print(describe_forecast(config.dest, found))
        return

    def told(found: ImportForecast) -> None:
        if not config.quiet:
            print(describe_forecast(config.dest, found), flush=True)

    if source is None:
        report = import_lerobot(config.folder, config.dest, options, told)
    else:
        report = import_source(source, config.dest, options, told)
    with LeRobotDatasetV2(  # refuses what contradicts an earlier import
        config.dest, None, options.buffer_capacity, options.ring or None, image_size=_sizes(config)
    ):
        pass
    if config.quiet:
        return
    print(describe(collect(config.dest)))
    if report is not None:
        again = f", and {report.episodes_resumed:,} episodes by an earlier try" if report.episodes_resumed else ""
        payoff = _payoff(config, report) if source is None else []  # the others are not trained from
        print("\n".join([f"imported in {report.seconds:.1f} s{again}", *payoff]))


def _source(config: ImportConfig) -> Source | None:
    """What is to be taken in; None for a LeRobot folder."""
    found = config.format or detect_format(config.folder)
    if found == "lerobot":
        if config.fps is not None or config.rename:
            raise ConfigError("--fps and --rename are for other formats: a LeRobot folder says its rate and its keys")
        return None
    return open_source(config.folder, found, fps=config.fps, rename=_renamed(config.rename), strict=config.strict)


def _renamed(typed: Sequence[str]) -> dict[str, str]:
    names = {}
    for text in typed:
        old, equals, new = text.partition("=")
        if not (old and equals and new) or old in names:
            raise ConfigError(f"--rename {text!r}: OLD=NEW would do, once for each key")
        names[old] = new
    return names


def _options(config: ImportConfig) -> IngestOptions:
    cameras = CameraStorage.parse(
        parse_modes(config.image_mode),
        None if config.video == VideoOptions() else config.video,
        _sizes(config),
        decode_images=config.decode_images,
    )
    return IngestOptions(
        cameras,
        _frames_or_size(config.buffer_capacity),
        config.use_as_fifo_buffer,
        progress=not config.quiet,
        force=config.force,
        skip_episodes=config.skip_episodes,
        strict=config.strict,
    )


def describe_forecast(dest: Path, found: ImportForecast) -> str:
    """Return what is printed before an import."""
    lines = [f"{dest}: {found.frames:,} frames"]
    for key, camera in found.cameras.items():
        how = f"by {camera.measured_frames} of its frames" if camera.measured_frames else "exactly"
        lines.append(
            f"  {key}: {camera.before} {shown_size(camera.bytes_before)} -> {camera.after} "
            f"{shown_size(camera.bytes_after)} ({how})"
        )
    lines.append(
        f"  the whole: {shown_size(found.bytes_after)}; needed: {shown_size(found.bytes_needed)}, of "
        f"{shown_size(found.bytes_free)} " + ("free" if found.fits else "free: does not fit")
    )
    return "\n".join(lines)


def _payoff(config: ImportConfig, report: IngestReport) -> list[str]:
    """Say when decoding the cameras once has paid for itself, against reading them as they lie in the folder."""
    # what an earlier try took went unmeasured: its frames have cost what those of this one did
    seconds = report.seconds * (report.frames + report.frames_resumed) / max(1, report.frames)
    store = Store.open(config.dest)
    try:
        decoded = [key for key, spec in store.manifest.keys.items() if spec.is_camera and not spec.needs_decoding]
        if not decoded:
            return []
        episodes = [
            {key: episode.cameras[key] for key in decoded}
            for episode in itertools.islice(
                open_lerobot(config.folder, config.skip_episodes).episodes(), _EPISODES_TIMED
            )
        ]
        frames = store.state.frames
        before, after = source_window_seconds(episodes), window_seconds(store, decoded)
        return [payoff_text(seconds, frames * before, frames * after)]
    finally:
        store.close()


def _sizes(config: ImportConfig) -> tuple[int, int] | dict[str, tuple[int, int]] | None:
    if config.image_size is not None and config.camera_size:
        raise ConfigError("--image-size is for every camera and --camera-size for some; give one of them")
    return config.camera_size or config.image_size


def _frames_or_size(typed: str | None) -> int | str | None:
    return int(typed) if typed is not None and typed.isdecimal() else typed
