"""Small safetensors files: 8 bytes of length, a JSON header, then the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.lfs import how_to_get
from roboreel.errors import SourceError

MAX_BYTES = 256 << 20
"""Where each of ten million episodes begins and ends takes less."""

_DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of a file; `SourceError` for one that is too large, cut off or not of this format."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SourceError(f"{path}: {size} bytes, which is no real metadata (at most {MAX_BYTES})")
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); download it again") from None
    try:
        header_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_bytes])
        return {
            name: _array(fields, data[8 + header_bytes :]) for name, fields in header.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise SourceError(f"{path}: not a whole safetensors file ({error!r:.80}); {how_to_get(path)}") from None


def _array(fields: Any, data: bytes) -> NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[fields["dtype"]]), fields["shape"]
    start, stop = fields["data_offsets"]
    if not (type(start) is int and type(stop) is int and 0 <= start <= stop <= len(data)):
        raise ValueError(f"offsets {start} to {stop} of {len(data)} bytes")
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return np.frombuffer(data[start:stop], dtype).reshape(shape)
