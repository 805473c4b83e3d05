"""What cameras in video files and cameras in Parquet rows have in common: their spec, and advice for a user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lerobot_info import Feature
from roboreel.convert.lerobot_layout import Warnings
from roboreel.errors import InvalidArgumentError, SourceError
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode, is_depth_dtype, natural_depth_unit

UINT8 = np.dtype(np.uint8)


def camera_spec(
    feature: Feature,
    shape: tuple[int, int, int],
    mode: LeRobotDatasetV2ImageMode,
    warnings: Warnings,
    dtype: np.dtype[Any] = UINT8,
) -> KeySpec:
    if feature.shape and feature.shape != shape:
        height, width, channels = shape
        chw = feature.shape == (channels, height, width)
        how = "channels first, which is taken as" if chw else "and its frames are"
        warnings.add(f"camera {feature.name!r} is declared as {feature.shape}, {how} {shape}")
    names = feature.names if feature.shape == shape else None
    try:
        unit = natural_depth_unit(dtype) if is_depth_dtype(dtype) else None
        return KeySpec(feature.name, dtype, shape, "camera", mode, names=names, unit=unit)
    except InvalidArgumentError as error:
        raise SourceError(str(error)) from None


def advised(blocks: Iterator[NDArray[Any]], advice: str, whose: str = "") -> Iterator[NDArray[Any]]:
    """Yield the blocks; an error of the decoders, which know nothing of episodes, then says `whose` frames they are."""
    try:
        yield from blocks
    except SourceError as error:
        told = type(error)(f"{whose}: {error}") if whose else error
        raise with_advice(told, advice) from None


def with_advice(error: SourceError, advice: str) -> SourceError:
    """An error of the decoders, which cannot know that their file was downloaded; most do not say what would do."""
    return error if "; " in str(error) else type(error)(f"{error}; {advice}")
