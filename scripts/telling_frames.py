"""Frames that say in every key which episode and which frame they are, and the check of windows over them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CAMERA = "observation.image"
EPISODE_FRAMES = (2, 40)
FPS = 10
PIXELS = {"memmap": (48, 64), "png": (16, 24), "video": (32, 64)}
DELTAS = {
    "tag": [-0.9, -0.3, -0.1, 0.0, 0.1, 0.4],
    "wide": [-0.2, -0.1, 0.0],
    CAMERA: [-0.1, 0.0, 0.2],
    "note": [-0.3, 0.0, 0.3],
}
BITS = 16
"""That a video's picture spells in black and white tiles: lossy coding leaves those readable."""
FRAME_BITS = 6

Mode = Literal["memmap", "png", "video", "none"]
"""How the camera is stored; none: there is none, and batches of numbers go a shorter way while nobody writes."""
Array = NDArray[Any]


def tokens(episode: Array, frame: Array) -> Array:
    """One number for each (episode, frame), all its bits depending on both: int64 arrays to uint64."""
    mixed = episode.astype(np.uint64) << np.uint64(20) | frame.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    result: Array = mixed ^ mixed >> np.uint64(31)
    return result


def pictures(episode: Array, frame: Array, mode: Mode) -> Array:
    """The image that belongs to each (episode, frame): (n,) twice to (n, height, width, 3) uint8."""
    height, width = PIXELS[mode]
    token = tokens(episode, frame)
    if mode == "video":
        bits = (spelling(episode, frame)[:, None] >> np.arange(BITS) & 1).astype(np.uint8) * 255
        tiles = bits.reshape(-1, 2, BITS // 2).repeat(height // 2, axis=1).repeat(width // (BITS // 2), axis=2)
        result: Array = np.broadcast_to(tiles[..., None], (*tiles.shape, 3))
        return result
    pixel = np.arange(height * width * 3, dtype=np.uint64) * np.uint64(0x9E3779B1)
    flat = ((token[:, None] + pixel) >> np.uint64(13)).astype(np.uint8)
    flat[:, :2] = frame[:, None] >> np.array([0, 8])  # what to compare the rest with
    images: Array = flat.reshape(-1, height, width, 3)
    return images


def spelling(episode: Array, frame: Array) -> Array:
    """What a video's picture says: the frame in the low bits, and bits that depend on the episode."""
    of_episode = tokens(episode, np.zeros_like(episode)).astype(np.int64) & ((1 << BITS) - 1 >> FRAME_BITS)
    spelled: Array = of_episode << FRAME_BITS | frame
    return spelled


def deltas_of(mode: Mode) -> dict[str, list[float]]:
    """The windows (s) of each key."""
    return {key: deltas for key, deltas in DELTAS.items() if key != CAMERA or mode != "none"}


def episode_data(number: int, length: int, mode: Mode) -> dict[str, Array]:
    """Episode `number`, of `length` frames, as `add_episodes` takes it."""
    frame = np.arange(length)
    token = tokens(np.full(length, number), frame)
    data = {
        "tag": np.stack([np.full(length, number), frame, np.full(length, length), token.view(np.int64)], axis=1),
        "wide": token[:, None] + np.arange(128, dtype=np.uint64),
        "note": np.stack([np.zeros(length, np.uint64), token], axis=1),
    }
    if mode != "none":
        data[CAMERA] = np.ascontiguousarray(pictures(np.full(length, number), frame, mode))
    return data


def problems(batch: dict[str, Array], mode: Mode) -> list[str]:
    """A line for each torn window of a collated batch."""
    tag = batch["tag"]  # (B, T, 4): episode, frame, frames of the episode, token
    now = DELTAS["tag"].index(0.0)
    episode, frame, length = (tag[:, now, k] for k in range(3))
    survives_from = np.full(len(tag), -1)  # the first frame of the episode that is left, where a window tells it
    lines = []
    for key, deltas in deltas_of(mode).items():
        offset = np.round(np.array(deltas) * FPS).astype(int)
        got = window_frames(batch, key, mode, episode)
        pad = batch[f"{key}_is_pad"]
        wanted = frame[:, None] + offset
        right = np.where(wanted > length[:, None] - 1, got == length[:, None] - 1, got == wanted)
        right &= pad == (wanted > length[:, None] - 1)
        before = pad & (offset < 0)  # those show the first frame that is left, the same one wherever it shows
        first = np.where(before, got, -1).max(axis=1, initial=-1)
        known = np.where(first >= 0, first, survives_from)
        agree = (survives_from < 0) | (first < 0) | (first == survives_from)
        survives_from = known
        right |= before & (got == first[:, None]) & (got > wanted) & (got <= frame[:, None]) & (got >= 0)
        bad = ~(right.all(axis=1) & agree)
        lines += [
            f"{key}: frames {got[k].tolist()}, padding {pad[k].astype(int).tolist()} around frame {frame[k]} of "
            f"{length[k]} of episode {episode[k]}"
            for k in np.flatnonzero(bad).tolist()
        ]
    if not np.array_equal(batch["frame_index"], frame):
        lines.append("frame_index is not that of the frame")
    too_early = (survives_from > 0) & (frame < survives_from)
    return lines + [f"episode {episode[k]}: frame {frame[k]} before the first" for k in np.flatnonzero(too_early)]


def window_frames(batch: dict[str, Array], key: str, mode: Mode, episode: Array) -> Array:
    """Which frame of `episode` (B,) each entry of a window is, (B, T); -2 where it is of none, or not whole."""
    tag, values = batch["tag"], batch[key]
    if key == "tag":
        whole = tokens(tag[..., 0], tag[..., 1]).view(np.int64) == tag[..., 3]
        whole &= tag[..., 0] == episode[:, None]
        whole &= tag[..., 2] == tag[:, :1, 2]
        return np.where(whole, tag[..., 1], -2)
    if key == CAMERA:
        return picture_frames(np.moveaxis(values, 2, -1), mode, episode)
    frames = np.arange(EPISODE_FRAMES[1])
    known = tokens(np.repeat(episode, len(frames)), np.tile(frames, len(episode))).reshape(len(episode), -1)
    if key == "wide":
        token = values[..., 0]
        whole = np.all(values == token[..., None] + np.arange(128, dtype=np.uint64), axis=-1)
    else:
        token = values[..., 1] - values[..., 0] * np.uint64(0x9E3779B97F4A7C15)
        whole = values[..., 0] == values[:, :1, 0]
    at = np.argmax(known[:, None, :] == token[..., None], axis=-1)
    return np.where((np.take_along_axis(known, at, axis=1) == token) & whole, at, -2)


def picture_frames(images: Array, mode: Mode, episode: Array) -> Array:
    """As `window_frames`, for images (B, T, height, width, 3)."""
    shape = images.shape[:2]
    episodes = np.repeat(episode, shape[1])
    if mode != "video":
        flat = images.reshape(len(episodes), -1)
        frame = flat[:, 0] + flat[:, 1].astype(np.int64) * 256
        whole = np.all(pictures(episodes, frame, mode).reshape(flat.shape) == flat, axis=1)
        return np.where(whole, frame, -2).reshape(shape)
    height, width = PIXELS[mode]
    tiles = images.mean(axis=-1).reshape(-1, 2, height // 2, BITS // 2, width * 2 // BITS)
    level = tiles.mean(axis=(2, 4)).reshape(-1, BITS)
    spelled = ((level > 127).astype(np.int64) << np.arange(BITS)).sum(axis=-1)
    frame = spelled & ((1 << FRAME_BITS) - 1)
    whole = np.all((level < 60) | (level > 195), axis=-1) & (spelling(episodes, frame) == spelled)
    return np.where(whole, frame, -2).reshape(shape)
