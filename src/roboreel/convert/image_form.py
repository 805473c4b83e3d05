"""What an image file holds, from its header alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from roboreel._optional import require
from roboreel.errors import SourceError
from roboreel.store import IMAGE_FORMATS

UINT8 = np.dtype(np.uint8)


def is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def image_form(data: bytes, where: str) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """(height, width, channels) and dtype from the header alone; `SourceError` for what is cut off or does not fit."""
    if not is_png(data):
        return _foreign_shape(data, where), UINT8
    if len(data) < 45 or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND":
        raise SourceError(f"{where}: not a whole PNG file ({len(data)} bytes); download the file again")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour = data[24], data[25]
    if depth > 8 and colour != 0:
        raise SourceError(
            f"{where}: a PNG of {depth} bits a channel, and images here have 8 (depth, of one channel, has 16); "
            "take the camera out"
        )
    # palette (3) decodes to RGB; grey with alpha (4) has no form of its own
    return (height, width, {0: 1, 2: 3, 3: 3}.get(colour, 4)), np.dtype("<u2") if depth > 8 else UINT8


def _foreign_shape(data: bytes, where: str) -> tuple[int, int, int]:
    image_module = require("PIL.Image", purpose="reading images")
    try:
        with image_module.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height, mode = image.width, image.height, image.mode
    except Exception as error:  # noqa: BLE001 - Pillow raises what its many decoders raise
        raise SourceError(
            f"{where}: not a readable image ({error}); of {', '.join(IMAGE_FORMATS)}, download the file again, and "
            "convert any other"
        ) from None
    if mode.startswith(("I", "F")):
        raise SourceError(f"{where}: an image of mode {mode}, and images here have 8 bits a channel; take it out")
    return height, width, {"L": 1, "1": 1, "RGBA": 4}.get(mode, 3)
