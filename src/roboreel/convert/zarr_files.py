"""What a zarr directory or `.zarr.zip` says it holds, read from its JSON alone: judged before any library decodes it.

zarr's own library decodes a fill value when it opens an array, and chunks by whatever codec is named, `pickle` among
them; here only arrays of plain numbers in known codecs pass.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from roboreel._optional import require
from roboreel.convert.lerobot_info import shown
from roboreel.errors import SourceError

METADATA = (".zarray", "zarr.json")
_MAX_METADATA_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 1 << 30
"""Decoded. A chunk is decoded whole, and any number can be declared."""
_CODECS = frozenset(
    ("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma", "shuffle", "delta", "bytes", "transpose", "crc32c", "crc32")
    # in shards, codecs lie within codecs
) | {"sharding_indexed", "fletcher32", "adler32", "packbits", "fixedscaleoffset", "quantize", "astype", "bitround"}


@dataclass(frozen=True)
class ZarrArray:
    """One array, as its metadata declares it."""

    name: str
    """Its path in the store, as `data/img`."""
    version: int
    """Of the format: 2 or 3."""
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    flaw: str | None
    """Why it is not read; None where it can be. Then `dtype` says nothing."""
    stored_chunks: int
    """Files of chunks that are there."""
    codecs: tuple[str, ...]
    """What has coded the files, the last of them last."""

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk that is decoded."""
        size = self.dtype.itemsize
        for side in self.chunks:
            size *= side
        return size

    @property
    def declared_chunks(self) -> int:
        count = 1
        for side, chunk in zip(self.shape, self.chunks, strict=True):
            count *= -(-side // chunk)
        return count


class ZarrFiles(ABC):
    """The files of a store, wherever they lie."""

    path: Path

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Every file, by its path in the store, with slashes."""

    @abstractmethod
    def read(self, name: str, count: int = _MAX_METADATA_BYTES + 1) -> bytes:
        """The first bytes of a file; by default one more than metadata may have at most."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def open_array(self, array: ZarrArray) -> Any:
        """Open an array by zarr's library."""

    def arrays(self) -> dict[str, ZarrArray]:
        """Every array, by its path."""
        counts: dict[str, int] = {}
        metadata: dict[str, str] = {}
        for name in self.names():
            folder, _, file = name.rpartition("/")
            if file in METADATA:
                # zarr.json wins over .zarray, as in zarr's library
                metadata[folder] = max(metadata.get(folder, ""), file)
            elif not file.startswith("."):
                for parent in (folder, *map(str, PurePosixPath(folder).parents)):
                    counts[parent] = counts.get(parent, 0) + 1
        found = {}
        for folder, file in sorted(metadata.items()):
            content = self._json(f"{folder}/{file}" if folder else file)
            if file == ".zarray" or content.get("node_type") == "array":
                found[folder] = _parse(folder, content, counts.get(folder, 0), f"{self.path}, array {folder!r}")
        return found

    def attributes(self) -> Mapping[str, Any]:
        """Those of the root group."""
        names = set(self._root_names())
        content = self._json(".zattrs") if ".zattrs" in names else {}
        inner = self._json("zarr.json").get("attributes") if "zarr.json" in names else content
        return inner if isinstance(inner, dict) else {}

    def _root_names(self) -> Iterator[str]:
        return (name for name in self.names() if "/" not in name)

    def _json(self, name: str) -> dict[str, Any]:
        data = self.read(name)
        if len(data) > _MAX_METADATA_BYTES:
            raise SourceError(
                f"{self.path}: {name} has more than {_MAX_METADATA_BYTES:,} bytes, which is no real metadata"
            )
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.path}: {name} is not valid JSON ({error}); copy it again") from None
        if not isinstance(content, dict):
            raise SourceError(f"{self.path}: {name} holds {shown(content)} where an object must be; copy it again")
        return content


class ZarrFolder(ZarrFiles):
    """A zarr directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.path):
            relative = Path(folder).relative_to(self.path).as_posix()
            yield from files if relative == "." else (f"{relative}/{file}" for file in files)

    def _root_names(self) -> Iterator[str]:
        return (entry.name for entry in self.path.iterdir())

    def size(self, name: str) -> int:
        found = (self.path / name).stat()
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{self.path}: {name} is no plain file; copy it again")  # a pipe would be waited for
        return found.st_size

    def read(self, name: str, count: int = _MAX_METADATA_BYTES + 1) -> bytes:
        self.size(name)
        try:
            with (self.path / name).open("rb") as file:
                return file.read(count)
        except OSError as error:
            raise SourceError(f"{self.path}: {name} cannot be read ({error.strerror})") from None

    def open_array(self, array: ZarrArray) -> Any:
        return _open(str(self.path), array, self.path)


class ZarrZip(ZarrFiles):
    """A `.zarr.zip`. Nothing is unpacked: members are read by their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise SourceError(f"{path}: not a whole zip file ({error}); copy it again") from None
        for name in self._zip.namelist():
            if name.startswith(("/", "\\")) or "\\" in name or ".." in PurePosixPath(name).parts:
                raise SourceError(f"{path}: member {shown(name)} leads out of the archive; it is not read")
        self._store: Any = None

    def names(self) -> Iterator[str]:
        return (name for name in self._zip.namelist() if not name.endswith("/"))

    def size(self, name: str) -> int:
        return self._zip.getinfo(name).file_size

    def read(self, name: str, count: int = _MAX_METADATA_BYTES + 1) -> bytes:
        try:
            with self._zip.open(name) as file:
                return file.read(count)
        except Exception as error:  # noqa: BLE001 - zipfile raises what its codecs raise
            raise SourceError(f"{self.path}: member {name} cannot be read ({error}); copy it again") from None

    def open_array(self, array: ZarrArray) -> Any:
        if self._store is None:
            self._store = require("zarr.storage", extra="formats", purpose="reading zarr").ZipStore(
                str(self.path), mode="r"
            )
        return _open(self._store, array, self.path)


def open_files(path: Path) -> ZarrFiles:
    return ZarrFolder(path) if path.is_dir() else ZarrZip(path)


def _open(store: Any, array: ZarrArray, path: Path) -> Any:
    zarr = require("zarr", extra="formats", purpose="reading zarr")
    is_old = int(zarr.__version__.split(".")[0]) < 3
    if is_old and array.version == 3:
        raise SourceError(
            f"{path}: is of zarr format 3, and zarr {zarr.__version__} is installed; pip install 'zarr>=3'"
        )
    try:
        # the version is given, so that what is opened is what was judged
        return zarr.open_array(store, mode="r", path=array.name, **({} if is_old else {"zarr_format": array.version}))
    except Exception as error:
        raise SourceError(f"{path}, array {array.name!r}: cannot be opened ({error!r:.200})") from error


def _parse(name: str, content: Mapping[str, Any], stored: int, where: str) -> ZarrArray:
    version = content.get("zarr_format")
    if version not in (2, 3):
        raise SourceError(f"{where}: zarr_format is {shown(version)}; 2 and 3 are read")
    try:
        shape, chunks, dtype, codecs = (_parts_v2 if version == 2 else _parts_v3)(content)
    except (KeyError, TypeError) as error:
        raise SourceError(f"{where}: its metadata lack {error}, or have something else there; copy it again") from None
    for sides, what, least in ((shape, "shape", 0), (chunks, "chunk shape", 1)):
        if not isinstance(sides, list) or any(type(side) is not int or not least <= side < 1 << 62 for side in sides):
            raise SourceError(f"{where}: its {what} is {shown(sides)}; whole numbers from {least} on must be there")
    if len(shape) != len(chunks):
        raise SourceError(f"{where}: a shape of {len(shape)} sides, and chunks of {len(chunks)}; copy it again")
    numbers, flaw = _judge_dtype(dtype)
    flaw = flaw or next((found for codec in codecs if (found := _judge_codec(codec))), None)
    names = tuple(map(_codec_name, codecs))
    array = ZarrArray(name, version, tuple(shape), tuple(chunks), numbers, flaw, stored, names)
    if flaw is None and array.chunk_bytes > _MAX_CHUNK_BYTES:
        raise SourceError(
            f"{where}: one chunk of {tuple(chunks)} is {array.chunk_bytes:,} bytes, and at most {_MAX_CHUNK_BYTES:,} "
            "are decoded at once; write it again in smaller chunks"
        )
    return array


def _parts_v2(content: Mapping[str, Any]) -> tuple[Any, Any, Any, list[Any]]:
    codecs = [*(content.get("filters") or []), content["compressor"]]
    return content["shape"], content["chunks"], content["dtype"], [codec for codec in codecs if codec is not None]


def _parts_v3(content: Mapping[str, Any]) -> tuple[Any, Any, Any, list[Any]]:
    grid = content["chunk_grid"]
    return content["shape"], grid["configuration"]["chunk_shape"], content["data_type"], list(content["codecs"])


def _judge_dtype(declared: Any) -> tuple[np.dtype[Any], str | None]:
    """The dtype, or why it is none of plain numbers."""
    nothing = np.dtype(np.uint8)
    if not isinstance(declared, str):
        return nothing, f"holds {shown(declared)}, which are no plain numbers"
    if declared.lstrip("<>|=")[:1] == "O" or declared in ("object", "vlen-bytes"):
        return nothing, "holds Python objects, which are never unpickled"
    try:
        dtype = np.dtype(declared)
    except TypeError:
        return nothing, f"holds {shown(declared)}, which are no plain numbers"
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return nothing, f"holds {shown(declared)}, and only booleans, integers and floats are stored"
    return dtype, None


def _codec_name(codec: Any) -> str:
    name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
    return name.removeprefix("numcodecs.") if isinstance(name, str) else shown(name)


def _judge_codec(codec: Any) -> str | None:
    """Why a codec is not used; None where it is."""
    name = _codec_name(codec)
    if name not in _CODECS:
        return f"is coded by {shown(name)}, " + (
            "which is never unpickled" if "pickle" in name else "which is not read: write it by blosc, zstd or gzip"
        )
    inner = codec.get("configuration", {}).get("codecs", ()) if isinstance(codec, dict) else ()
    inner = [*inner, *(codec.get("configuration", {}).get("index_codecs", ()) if isinstance(codec, dict) else ())]
    return next((found for one in inner if (found := _judge_codec(one))), None)
