"""LeRobot's `meta/info.json` parsed into frozen values, and its path templates filled in safely."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import numpy as np

from roboreel.convert.lfs import how_to_get
from roboreel.convert.remote import Remote
from roboreel.errors import InvalidArgumentError, NotADatasetError, SourceError
from roboreel.store import encode_key

KNOWN_VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_JSON_BYTES = 64 << 20
"""Beyond any real `info.json` (kilobytes) or line of a JSON Lines file; a larger one is refused unread."""

MIN_FPS, MAX_FPS = 1e-6, 1e6
"""Beyond any sensor, and near enough that times of frames stay apart and finite."""

_MAX_DEPTH = 32
"""Of lists and objects in what info.json declares; it is written to JSON again, which deeper nesting would break."""

_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_INTEGER_SPEC = re.compile(r"(0?\d{1,2})?d?")


@dataclass(frozen=True)
class Feature:
    """What info.json declares of one key; of a camera in v1.x, what its column is, without a shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of one frame: LeRobot declares scalars as (1,) and gives them as ()."""
        return () if self.shape == (1,) else self.shape

    @property
    def number_dtype(self) -> np.dtype[Any] | None:
        """The declared dtype, little-endian; None where it is no number."""
        if not re.fullmatch(r"[a-z]+\d{0,3}", self.dtype):  # numpy's own grammar has much that is no plain dtype
            return None
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            return None
        return dtype.newbyteorder("<") if dtype.kind in "biuf" and dtype.itemsize <= 8 else None


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, as far as importing needs it."""

    path: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    data_path: str | None = None
    video_path: str | None = None
    chunks_size: int = 1000
    claims: Mapping[str, Any] = field(default_factory=dict)
    """`total_*` and `splits`, not trusted: compared with what is there."""
    robot_type: str | None = None
    remote: Remote | None = field(default=None, compare=False)
    """Where the files are that are not here; None: all are here."""

    def has_file(self, path: Path) -> bool:
        return path.is_file() if self.remote is None else self.remote.has(path)

    def file_size(self, path: Path) -> int:
        return path.stat().st_size if self.remote is None else self.remote.size(path)

    def fetch(self, path: Path) -> None:
        if self.remote is not None:
            self.remote.fetch(path)

    def release(self, path: Path) -> None:
        if self.remote is not None:
            self.remote.release(path)

    @property
    def folder(self) -> Path:
        return self.path.parent.parent

    @property
    def cameras(self) -> list[Feature]:
        return [feature for feature in self.features.values() if feature.is_camera]

    def data_file(self, layout: str, fields: Mapping[str, int | str]) -> Path:
        """The path of a data file, by the layout's own template where info.json's is missing or of another layout."""
        template = _template_for(layout, self.data_path, _V2_DATA if layout == "v2" else _V3_DATA)
        return fill_template(self.folder, template, fields, f"{self.path}: data_path")

    def video_file(self, layout: str, fields: Mapping[str, int | str]) -> Path:
        """The path of a video file, likewise."""
        template = _template_for(layout, self.video_path, _V2_VIDEO if layout == "v2" else _V3_VIDEO)
        return fill_template(self.folder, template, fields, f"{self.path}: camera {fields['video_key']!r}, video_path")


def _template_for(layout: str, template: str | None, default: str) -> str:
    other = "{chunk_index" if layout == "v2" else "{episode_"
    return default if template is None or other in template else template


def read_info(folder: Path) -> Info:
    """Read `folder/meta/info.json`.

    `NotADatasetError` for a folder without it, `SourceError` for one of another version or not what LeRobot writes.
    """
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise _not_a_dataset(folder)
    content = read_json(path)
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds a {type(content).__name__} where a JSON object must be; download it again")
    for key in ("robot_type", "data_path", "video_path", "features"):
        _check_storable(path, key, content.get(key))
    return Info(
        path=path,
        version=_parse_version(path, content),
        fps=parse_fps(path, content),
        features=_parse_features(path, content),
        data_path=_parse_optional_string(path, content, "data_path"),
        video_path=_parse_optional_string(path, content, "video_path"),
        chunks_size=_parse_chunks_size(path, content),
        claims={key: content[key] for key in content if key.startswith("total_") or key == "splits"},
        robot_type=content["robot_type"] if isinstance(content.get("robot_type"), str) else None,
    )


def _not_a_dataset(folder: Path) -> Exception:
    if folder.exists() and not folder.is_dir():
        return NotADatasetError(f"{folder}: is a file; give the folder that holds meta/info.json")
    if not folder.is_dir():
        return NotADatasetError(f"{folder}: no such folder; give the folder that holds meta/info.json")
    found = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "nothing"
    return NotADatasetError(
        f"{folder}: not a LeRobot dataset: meta/info.json is missing (found: {shown}); "
        "give the folder that holds meta/, data/ and videos/"
    )


def read_json(path: Path) -> Any:
    """Parse a JSON file of bounded size; `SourceError` names it where that fails."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise SourceError(
                f"{path}: {size} bytes, which is no real metadata (at most {MAX_JSON_BYTES}); download it again"
            )
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); download it again") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON ({error}); {how_to_get(path)}") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON Lines file; `SourceError` names a line that is no object."""
    if not path.is_file():
        raise SourceError(f"{path}: this file is missing; complete the download")
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_JSON_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{path}, line {number}: not valid JSON ({error}); {how_to_get(path)}") from None
            if not isinstance(content, dict):
                raise SourceError(
                    f"{path}, line {number}: a {type(content).__name__} where an object must be; download it again"
                )
            yield number, content


def shown(value: object) -> str:
    """A value as it is printed in a message, at a bearable length.

    >>> shown(10**90)
    '100000000000000000000000000000000000000000000000000000000000…'
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"


def check_text(text: str, where: str) -> None:
    """Refuse half a surrogate pair: JSON can hold it, and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: {shown(text)} cannot be stored as UTF-8 ({error.reason}); correct it") from None


def _check_storable(path: Path, key: str, value: Any) -> None:
    """Refuse what JSON can bring in and cannot take out again: half surrogate pairs, NaN, endless nesting."""
    left = [(value, 0)]
    while left:
        item, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise SourceError(f"{path}: {key} is nested more than {_MAX_DEPTH} deep; correct it")
        if isinstance(item, str):
            check_text(item, f"{path}: {key}")
        elif isinstance(item, float) and not math.isfinite(item):
            raise SourceError(f"{path}: {key} holds {item}, which is no JSON number; correct it")
        elif isinstance(item, list):
            left += [(inner, depth + 1) for inner in item]
        elif isinstance(item, dict):
            left += [(inner, depth + 1) for pair in item.items() for inner in pair]


def _parse_version(path: Path, content: Mapping[str, Any]) -> str:
    said = content.get("codebase_version")
    version = said if isinstance(said, str) and said.startswith("v") else f"v{said}"
    if version not in KNOWN_VERSIONS:
        raise SourceError(
            f"{path}: codebase_version {shown(said)} is none that roboreel reads ({', '.join(KNOWN_VERSIONS)}); "
            "convert the dataset with LeRobot to one of them"
        )
    return version


def parse_fps(path: Path, content: Mapping[str, Any]) -> float:
    """The `fps` of an info.json, which every version has."""
    fps = content.get("fps")
    # NaN compares false; a boolean is an integer to isinstance
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not MIN_FPS <= fps <= MAX_FPS:
        raise SourceError(f"{path}: fps is {shown(fps)}; it must be a positive number of frames a second, such as 30")
    return float(fps)


def _parse_optional_string(path: Path, content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise SourceError(f"{path}: {key} is {shown(value)}; it must be a path template or null")
    return value


def _parse_chunks_size(path: Path, content: Mapping[str, Any]) -> int:
    size = content.get("chunks_size", 1000)
    if type(size) is not int or size < 1:
        raise SourceError(f"{path}: chunks_size is {shown(size)}; it must be a positive integer, such as 1000")
    return size


def _parse_features(path: Path, content: Mapping[str, Any]) -> dict[str, Feature]:
    declared = content.get("features")
    if not isinstance(declared, dict) or not declared:
        raise SourceError(f"{path}: features is {shown(declared)}; it must declare each key's dtype and shape")
    features = {}
    for name, fields in declared.items():
        dtype = fields.get("dtype") if isinstance(fields, dict) else None
        shape = fields.get("shape", ()) if isinstance(fields, dict) else None
        if not isinstance(dtype, str) or not isinstance(shape, list | tuple):
            raise SourceError(
                f"{path}: feature {shown(name)} is {shown(fields)}; it needs a dtype and a shape (a list)"
            )
        if any(type(side) is not int or side < 0 for side in shape):
            raise SourceError(f"{path}: feature {name!r} has shape {shape!r:.80}; it must be a list of integers")
        try:
            encode_key(name)
        except InvalidArgumentError as error:
            raise SourceError(f"{path}: {error}; shorten it there and in the data") from None
        features[name] = Feature(name, dtype, tuple(shape), fields.get("names"))
    return features


def fill_template(folder: Path, template: str, fields: Mapping[str, int | str], where: str) -> Path:
    """Fill a path template and return the path, which lies inside `folder`; errors begin with `where`.

    Only the plain names in `fields` are replaced: no attributes, no items, no conversions, so that a template from the
    network can reach neither other files nor the process. `SourceError` for anything else.

    >>> str(fill_template(Path("d"), "data/{episode_index:06d}.parquet", {"episode_index": 7}, "info.json: data_path"))
    'd/data/000007.parquet'
    """
    where = f"{where} {shown(template)}"
    parts = []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise SourceError(f"{where}: is no path template ({error}); correct it there") from None
    for literal, name, spec, conversion in parsed:
        parts.append(literal)
        if name is None:
            continue
        if name not in fields or conversion:
            raise SourceError(f"{where}: unknown field {name!r}; known are {', '.join(fields)}")
        value = fields[name]
        if spec and not (isinstance(value, int) and _INTEGER_SPEC.fullmatch(spec)):
            raise SourceError(f"{where}: cannot format {name} as {spec!r}; integers take e.g. '06d'")
        parts.append(format(value, spec or ""))
    return inside(folder, "".join(parts), where)


def inside(folder: Path, relative: str, where: str) -> Path:
    """Return `folder / relative`; `SourceError` where that leads out of the folder by its text.

    Links are followed: the Hub's cache is made of links to where its files lie.
    """
    path = PurePosixPath(relative)
    windows_like = "\\" in relative or re.match(r"[A-Za-z]:", relative)
    too_long = any(len(part.encode()) > 255 for part in path.parts)  # the system would not say which name it was
    if too_long:
        raise SourceError(f"{where}: {shown(relative)} has a name of more than 255 bytes; shorten it")
    if path.is_absolute() or ".." in path.parts or windows_like or "\0" in relative or not path.parts:
        raise SourceError(
            f"{where}: {shown(relative)} leads out of the dataset's folder; it must be a relative path inside"
        )
    return folder / path
