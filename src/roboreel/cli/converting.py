"""`roboreel convert DIR --image-mode MODE`."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from roboreel.cli.modes import parse_modes
from roboreel.cli.sizes import shown_size
from roboreel.dataset import LeRobotDatasetV2
from roboreel.schema import LeRobotDatasetV2ImageMode, VideoOptions
from roboreel.store import AskedOptions, ConversionForecast, ConversionReport, Store, put_back


@dataclass(frozen=True)
class ConvertConfig:
    """Store the cameras of a dataset in another image mode: in place, or as a copy.

    Says first what it will take, and refuses what would not fit. The new dataset is built beside the old one and
    exchanged with it at the end: killed anywhere, the old or the new one is there, and the same command goes on where
    it was. Readers in other processes follow by themselves.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""
    image_mode: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """memmap, png or video; or CAMERA=MODE for each of some cameras, as observation.images.wrist=memmap."""
    to: Path | None = None
    """A new or an empty directory for a converted copy; the dataset then stays as it is."""
    codec: Annotated[str | None, tyro.conf.arg(metavar="{av1,h264,hevc}")] = None
    """How video is coded. Where one of these five is given, video of other options is coded anew."""
    crf: int | None = None
    """Quality, 0 (best) to 63 for AV1, 51 for the others."""
    gop: int | None = None
    """Frames from one key frame to the next."""
    preset: str | None = None
    """The encoder's own speed setting."""
    pix_fmt: str | None = None
    """yuv420p, or, but for AV1, yuv444p."""
    forecast: bool = False
    """Only say what it would take."""
    force: bool = False
    """Go on where the forecast says that it does not fit."""
    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """No progress bar, no summary."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(ConvertConfig, prog="roboreel convert", args=arguments)
    if not config.forecast:
        put_back(config.dir)
    mode = parse_modes([*itertools.chain.from_iterable(config.image_mode)])
    given = {name: getattr(config, name) for name in ("codec", "crf", "gop", "preset", "pix_fmt")}
    options = _options({name: value for name, value in given.items() if value is not None}, mode, config.dir)
    with LeRobotDatasetV2(config.dir, readonly=config.forecast) as dataset:
        quiet = config.quiet or config.json
        found = None
        if config.forecast or not quiet:
            found = dataset.forecast_conversion(mode, to=config.to, video_options=options)
        if found is not None and not config.json:
            print(describe_forecast(config.dir, found, config.to), flush=True)
        if config.forecast:
            if config.json and found is not None:
                print(json.dumps(found.to_dict(), indent=1))
            return
        report = dataset.convert(mode, to=config.to, video_options=options, force=config.force, progress=not quiet)
    if config.json:
        print(json.dumps(_values(report), indent=1))
    elif not config.quiet:
        print(describe_report(report, config.to))


def describe_forecast(root: Path, found: ConversionForecast, to: Path | None = None) -> str:
    """Return what `roboreel convert --forecast` prints."""
    already = f"{root}: the cameras are stored so already"
    if not found.cameras and to is None:
        return already
    lines = [f"{root}:" if found.cameras else f"{already}; {to} becomes a copy"]
    for key, camera in found.cameras.items():
        how = f"by {camera.measured_frames} of its frames" if camera.measured_frames else "exactly"
        lines.append(
            f"  {key}: {camera.before} {shown_size(camera.bytes_before)} -> {camera.after} "
            f"{shown_size(camera.bytes_after)} ({how})"
        )
    lines += [
        f"  the whole: {shown_size(found.bytes_before)} -> {shown_size(found.bytes_after)}",
        f"  needed meanwhile, beside the old one: {shown_size(found.bytes_needed)}, of {shown_size(found.bytes_free)} "
        + ("free" if found.fits else "free: does not fit"),
    ]
    return "\n".join(lines)


def describe_report(report: ConversionReport, to: Path | None = None) -> str:
    """Return what `roboreel convert` prints at the end."""
    if not report.cameras:
        return f"{report.storage_dir}: {'' if to is None else 'copied; '}nothing was converted"
    again = f", {report.episodes_resumed:,} by an earlier try" if report.episodes_resumed else ""
    return "\n".join(
        [
            f"{report.storage_dir}: {', '.join(f'{key} {a} -> {b}' for key, (a, b) in report.cameras.items())} in "
            f"{report.seconds:.1f} s{again}",
            f"{shown_size(report.bytes_before)} -> {shown_size(report.bytes_after)} on disk",
            report.payoff,
        ]
    )


def _values(report: ConversionReport) -> dict[str, Any]:
    return {**asdict(report), "break_even_epochs": report.break_even_epochs}


def _options(given: dict[str, Any], mode: str | dict[str, str] | None, root: Path) -> AskedOptions:
    """Return what the cameras are to be coded with: where nothing was typed, as they are, if the codec stays."""
    if not given:
        return None
    with contextlib.closing(Store.open(root)) as store:
        cameras = {spec.name: spec.video_options for spec in store.manifest.keys.values() if spec.is_camera}
    modes = mode if isinstance(mode, dict) else dict.fromkeys(cameras, mode or "")
    videos = [name for name in cameras if modes.get(name, "").lower() == LeRobotDatasetV2ImageMode.VIDEO.value]
    if not videos:
        return VideoOptions(**given)  # which is then refused
    return {name: _changed(cameras[name], given) for name in videos}


def _changed(stored: VideoOptions | None, given: dict[str, Any]) -> VideoOptions:
    if stored is None or given.get("codec", stored.codec) != stored.codec:
        return VideoOptions(**given)
    return replace(stored, **given)
