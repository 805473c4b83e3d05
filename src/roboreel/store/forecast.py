"""How many bytes a dataset will take, a key and an image mode at a time, before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError
from roboreel.format.manifest import Manifest
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE
from roboreel.schema import (
    IMAGE_KEY_PREFIX,
    STRING_CODE_DTYPE,
    KeySpec,
    LeRobotDatasetV2ImageMode,
    VideoOptions,
    index_keys,
    is_depth_dtype,
    natural_depth_unit,
    natural_image_mode,
    parse_image_mode,
)
from roboreel.store.cameras import AskedMode, AskedOptions, CameraStorage

MAX_SAMPLE = 64
"""So many frames of a camera are encoded at most."""

_PNG_SHARE = Fraction(1, 2)
_VIDEO_SHARE = Fraction(1, 20)
"""Of the raw pixels, where no frame was given to be encoded: guesses, good to a factor of a few."""
_VIDEO_INDEX_BYTES = 24
"""A frame's share of the tables in the MP4 file and beside it."""
_TABLE_BYTES, _TABLE_FRAME_BYTES = 88, 9
"""Of the table beside a video file, besides and for each frame."""
_VIDEO_FILE_BYTES = 1000
"""What a video file has once, where none was encoded."""
_MODES = tuple(mode.value for mode in LeRobotDatasetV2ImageMode)


@dataclass(frozen=True)
class KeyForecast:
    """Bytes of one key; the same in every image mode unless it is a camera."""

    memmap: int
    png: int
    video: int
    measured: int = 0
    """Frames that were really encoded for `png` and `video`; 0: those are assumed, unless the key is no camera."""
    encoding: VideoOptions | None = None
    """How they are coded in `video`; None for what is no camera or cannot be stored so."""


@dataclass(frozen=True)
class Forecast:
    """Bytes that `frames` frames take on disk."""

    frames: int
    keys: Mapping[str, KeyForecast]
    owners: int
    """Bytes of `owners.bin`."""
    growing: Mapping[str, int]
    """Image mode → bytes of everything where no `buffer_capacity` is given: then storage grows by doubling."""
    notes: Sequence[str]
    """What was measured, what is assumed, what is left out: a sentence each."""

    def total(self, image_mode: AskedMode) -> int:
        """Bytes of everything, with all cameras stored so, or each in its own mode and those not named as video."""
        asked = CameraStorage.parse(image_mode)
        if unknown := sorted(set(asked.modes) - set(self.keys)):
            raise InvalidArgumentError(f"image_mode names {unknown}; the keys are {sorted(self.keys)}")
        modes = {key: asked.mode_of(key) or LeRobotDatasetV2ImageMode.VIDEO for key in self.keys}
        sizes: list[int] = [getattr(value, modes[key].value) for key, value in self.keys.items()]
        return self.owners + sum(sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        >>> forecast({}, 10).to_dict()["total"]
        {'memmap': 720, 'png': 720, 'video': 720}
        """
        return {
            "frames": self.frames,
            "keys": {key: {mode: getattr(value, mode) for mode in _MODES} for key, value in self.keys.items()},
            "owners": self.owners,
            "total": {mode: self.total(mode) for mode in _MODES},
            "growing": dict(self.growing),
            "encoding": {key: value.encoding.to_dict() for key, value in self.keys.items() if value.encoding},
            "measured_frames": {key: value.measured for key, value in self.keys.items() if value.measured},
            "notes": list(self.notes),
        }


def forecast(
    keys: Mapping[str, KeySpec | NDArray[Any] | str],
    frames: int,
    *,
    fps: float = 10,
    episode_length: int | None = None,
    sample: Mapping[str, NDArray[Any]] | None = None,
    video_options: AskedOptions = None,
) -> Forecast:
    """Return how many bytes `frames` frames of these keys take, per key and image mode; nothing is written.

    Args:
        keys: What a frame holds: specs of a dataset, or one example frame a key (text for a task). The index keys are
            added.
        frames: Number of frames.
        fps: Frames a second (Hz), which the encoder is told.
        episode_length: Frames an episode: each one's video file has a beginning of its own, and the first one's length
            is what storage doubles from. None: one long episode, and twice the frames at most.
        sample: Consecutive frames of a camera, (n, height, width, channels) in its dtype, to be encoded as PNG and
            video; of more than 64 the first are taken. For a camera without, both are guessed from its pixels.
        video_options: How frames would be coded as video, as for `LeRobotDatasetV2`. None: as the specs say; AV1 as
            LeRobot writes it where they do not.

    Raises:
        InvalidArgumentError: the number of frames or a key cannot be.

    >>> found = forecast({"action": np.zeros(2, np.float32)}, 1000)
    >>> found.keys["action"].memmap, found.total("video")
    (16000, 88000)
    """
    frames = _parse_count("frames", frames)
    length = frames if episode_length is None else min(_parse_count("episode_length", episode_length), frames)
    specs = {spec.name: spec for spec in index_keys()}
    specs |= {key: value if isinstance(value, KeySpec) else _spec_of(key, value) for key, value in keys.items()}
    sample = sample or {}
    if unknown := sorted(set(sample) - {key for key, spec in specs.items() if spec.is_camera}):
        raise InvalidArgumentError(f"sample has frames of {unknown}, which are no cameras of these keys")
    Manifest(fps, specs, frames, fixed_capacity=True, ring=False)  # refuses what a dataset could not hold
    asked = CameraStorage.parse(None, video_options)
    asked.check_known([key for key, spec in specs.items() if spec.is_camera])
    measure = partial(_forecast_key, frames=frames, length=length, fps=fps)
    found = {
        key: measure(spec, sample=sample.get(key), asked=asked.video_options_of(key)) for key, spec in specs.items()
    }
    told = Forecast(frames, found, frames * OWNER_DTYPE.itemsize, {}, _notes(specs, found))
    slots = 2 * frames if episode_length is None else grown_slots(length, frames)
    return replace(
        told, growing={mode: told.total(mode) + (slots - frames) * _slot_bytes(specs, mode) for mode in _MODES}
    )


def grown_slots(first: int, frames: int) -> int:
    """Return the slots for which there is room when storage has doubled from the first episode's until all fit.

    >>> grown_slots(5, 200), grown_slots(5, 5)
    (320, 5)
    """
    slots = first
    while slots < frames:
        slots *= 2
    return slots


def _slot_bytes(specs: Mapping[str, KeySpec], mode: str) -> int:
    """Bytes of one slot in all files that are addressed by slot, with all cameras stored in this mode."""
    memmap, png, video = LeRobotDatasetV2ImageMode
    total = OWNER_DTYPE.itemsize
    for spec in specs.values():
        natural = natural_image_mode(spec.dtype, spec.shape[-1]) if spec.is_camera else memmap
        stored = min(parse_image_mode(mode), natural, key=[memmap, png, video].index)
        total += spec.frame_bytes if stored is memmap else 0
        total += CHECKSUM_DTYPE.itemsize if stored is not video else 0
    return total


def _parse_count(name: str, given: Any) -> int:
    if isinstance(given, np.integer):
        given = int(given)
    if type(given) is not int or given <= 0:
        raise InvalidArgumentError(f"{name}={given!r}; a positive number would do")
    return given


def _spec_of(key: str, example: Any) -> KeySpec:
    array = np.asarray(example)
    if array.dtype.kind in "UT" and not array.shape:
        return KeySpec(key, STRING_CODE_DTYPE, (), "string")
    if key.startswith(IMAGE_KEY_PREFIX):
        unit = natural_depth_unit(array.dtype) if is_depth_dtype(array.dtype) else None
        return KeySpec(key, array.dtype, array.shape, "camera", LeRobotDatasetV2ImageMode.MEMMAP, unit=unit)
    return KeySpec(key, array.dtype.newbyteorder("<"), array.shape)


def _forecast_key(
    spec: KeySpec,
    *,
    frames: int,
    length: int,
    fps: float,
    sample: NDArray[Any] | None,
    asked: VideoOptions | None,
) -> KeyForecast:
    checksums = frames * CHECKSUM_DTYPE.itemsize
    raw = frames * spec.frame_bytes + checksums
    natural = natural_image_mode(spec.dtype, spec.shape[-1]) if spec.is_camera else LeRobotDatasetV2ImageMode.MEMMAP
    sample = np.zeros((0, *spec.shape), spec.dtype) if sample is None else sample[:MAX_SAMPLE]
    if sample.shape[1:] != spec.shape or sample.dtype != spec.dtype:
        raise InvalidArgumentError(
            f"sample[{spec.name!r}] is {sample.dtype} of shape {sample.shape}; {spec.dtype} (n, *{spec.shape}) would do"
        )
    if natural is LeRobotDatasetV2ImageMode.MEMMAP:
        return KeyForecast(raw, raw, raw)
    one = Fraction(sum(png_sizes(sample)), len(sample)) if len(sample) else spec.frame_bytes * _PNG_SHARE
    png = round(frames * one) + checksums
    if natural is LeRobotDatasetV2ImageMode.PNG:
        return KeyForecast(raw, png, png, len(sample))
    options = asked or spec.video_options or VideoOptions()
    each, once = spec.frame_bytes * _VIDEO_SHARE, Fraction(_VIDEO_FILE_BYTES)
    if len(sample):
        each, once = video_bytes(sample, length, fps, options)
    video = round(frames * each + -(-frames // length) * once)
    return KeyForecast(raw, png, video, len(sample), options)


def png_sizes(sample: NDArray[Any]) -> list[int]:
    """Bytes of each frame's PNG file, really encoded."""
    from roboreel.columns.png import encode_png

    return [len(encode_png(image)) for image in sample]


def video_bytes(sample: NDArray[np.uint8], length: int, fps: float, options: VideoOptions) -> tuple[Fraction, Fraction]:
    """Return bytes a frame, really encoded in files of `length` frames, and bytes that a file has besides."""
    from roboreel.columns.encode import encode_video
    from roboreel.columns.ffmpeg_files import open_video

    packets = files = 0
    starts = range(0, len(sample), length)
    with tempfile.TemporaryDirectory() as folder:
        for start in starts:  # each file begins with a frame that is coded by itself
            path = Path(folder) / "sample.mp4"
            encode_video(path, [sample[start : start + length]], fps=fps, options=options)
            files += path.stat().st_size
            with open_video(path) as container:
                packets += sum(packet.size for packet in container.demux(video=0))
    index = len(sample) * (_VIDEO_INDEX_BYTES - _TABLE_FRAME_BYTES)
    once = Fraction(max(files - packets - index, 0), len(starts)) + _TABLE_BYTES
    return Fraction(packets, len(sample)) + _VIDEO_INDEX_BYTES, once


def _notes(specs: Mapping[str, KeySpec], found: Mapping[str, KeyForecast]) -> list[str]:
    notes = [
        "columns, checksums and owners are exact; memmap cameras are columns",
        "growing: without buffer_capacity, columns double whenever they are full (where free space allows it); with "
        "buffer_capacity=frames, they take the total",
    ]
    for key, spec in specs.items():
        if not spec.is_camera:
            continue
        if spec.dtype.kind == "f":
            notes.append(f"{key}: float32 depth is stored as memmap only, and counted so in every mode")
            continue
        if found[key].measured:
            coded = found[key].encoding
            how = f", as {coded.codec} with gop {coded.gop} and crf {coded.crf}" if coded else ""
            measured = f"measured on {found[key].measured} frames, encoded as a recording would"
            notes.append(f"{key}: png and video {measured}{how}")
        else:
            notes.append(
                f"{key}: png and video are guessed ({float(_PNG_SHARE):.0%} and {float(_VIDEO_SHARE):.0%} of the "
                "pixels), good to a factor of a few; give sample frames"
            )
        if natural_image_mode(spec.dtype, spec.shape[-1]) is not LeRobotDatasetV2ImageMode.VIDEO:
            what = "depth" if spec.is_depth else f"{spec.shape[-1]} channels"
            notes.append(f"{key}: {what} cannot be stored as video, and counts there as PNG")
    if any(spec.is_camera for spec in specs.values()):
        notes.append("left out: what the file system adds (a PNG takes whole blocks, half a block more on average)")
    notes.append("left out: about 16 kB of small files, the strings, and 128 bytes an episode (16 more a video camera)")
    return notes
