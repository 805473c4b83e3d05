"""`image_size`: to how many pixels cameras are brought on their way in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roboreel.errors import InvalidArgumentError
from roboreel.schema import KeySpec

Size = tuple[int, int]
AskedSize = Size | Mapping[str, Size] | None
"""What `image_size` may be."""

_WOULD_DO = "(height, width) in pixels would do, or {camera: (height, width)}"


@dataclass(frozen=True)
class ImageSizes:
    """What was asked for: one size (height, width) for every camera, or some of their own; others stay as they come."""

    every: Size | None = None
    cameras: Mapping[str, Size] = field(default_factory=dict)

    def of(self, camera: str) -> Size | None:
        return self.cameras.get(camera, self.every)

    def applied(self, keys: Mapping[str, KeySpec]) -> dict[str, KeySpec]:
        """Return the keys of a new dataset with its cameras at the sizes asked for.

        Raises:
            InvalidArgumentError: a size is for a camera that is not there.
        """
        cameras = [key for key, spec in keys.items() if spec.is_camera]
        if unknown := sorted(set(self.cameras).difference(cameras)):
            raise InvalidArgumentError(f"image_size is given for {unknown}; the cameras are {cameras}")
        sizes = {key: self.of(key) for key in cameras}
        return {
            key: spec if (size := sizes.get(key)) is None else spec.with_image_size(size) for key, spec in keys.items()
        }

    def check_stored(self, keys: Mapping[str, KeySpec], where: object) -> None:
        """Refuse what contradicts the keys of a dataset that is there."""
        self.applied(keys)
        for key, spec in keys.items():
            size = self.of(key) if spec.is_camera else None
            if size is not None and spec.shape[:2] != size:
                as_what = "as they came" if spec.resized is None else "resized"
                raise InvalidArgumentError(
                    f"image_size={size}, but the frames of {key!r} in {where} are stored {as_what}, of (height, width) "
                    f"{spec.shape[:2]}; leave image_size out"
                )


def parse_image_size(given: Any) -> ImageSizes:
    """Return what `image_size` asks for; None asks for nothing.

    >>> parse_image_size((96, 128)).of("observation.image")
    (96, 128)
    >>> parse_image_size({"observation.images.top": [96, 128]}).of("observation.image") is None
    True
    """
    if given is None:
        return ImageSizes()
    if not isinstance(given, Mapping):
        return ImageSizes(every=_parse_size(given, given))
    return ImageSizes(cameras={str(camera): _parse_size(size, given) for camera, size in given.items()})


def _parse_size(size: Any, given: Any) -> Size:
    sides = list(size) if isinstance(size, Iterable) and not isinstance(size, str) else []
    sides = [int(side) for side in sides if isinstance(side, (int, np.integer)) and not isinstance(side, bool)]
    if len(sides) != 2 or len(sides) != len(size) or min(sides) <= 0:
        raise InvalidArgumentError(f"image_size={given!r}; {_WOULD_DO}")
    return sides[0], sides[1]
