"""The chunks of an HDF5 dataset that gzip has packed: HDF5 unpacks one whole, whatever it was said to hold."""

from __future__ import annotations

import zlib
from typing import Any

from roboreel.errors import SourceError

_GZIP = 1
"""HDF5's number of the filter."""
_TIMES = 1032
"""By which it packs at most."""
_SLACK_BYTES = 1 << 16
_WORTH_UNPACKING_BYTES = 1 << 30


def check_gzip(dataset: Any, chunk_bytes: int, where: str) -> None:
    """Refuse a dataset of h5py with a chunk that would unpack to far more than the `chunk_bytes` that it declares.

    Raises:
        SourceError: there is one; the message begins with `where`.
    """
    properties = dataset.id.get_create_plist()
    if dataset.chunks is None or _GZIP not in [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]:
        return
    if dataset.id.get_storage_size() * _TIMES < _WORTH_UNPACKING_BYTES:
        return
    most = chunk_bytes + chunk_bytes // 64 + _SLACK_BYTES  # what cannot be packed grows a little
    stored: list[tuple[tuple[int, ...], int]] = []
    dataset.id.chunk_iter(lambda chunk: stored.append((chunk.chunk_offset, chunk.size)))
    for offset, size in stored:
        if size > most or (size * _TIMES > _WORTH_UNPACKING_BYTES and _unpacks_beyond(dataset, offset, most)):
            raise SourceError(
                f"{where}: the chunk at {tuple(offset)} holds more than the {chunk_bytes:,} bytes of a chunk; copy the "
                "file again"
            )


def _unpacks_beyond(dataset: Any, offset: tuple[int, ...], most: int) -> bool:
    _, data = dataset.id.read_direct_chunk(offset)
    try:
        return len(zlib.decompressobj().decompress(data, most + 1)) > most
    except zlib.error:
        return False  # the library will say so
