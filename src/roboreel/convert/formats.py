"""Which format a file or folder is in, and opening it, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from roboreel.convert.hdf5_aloha import AlohaHdf5
from roboreel.convert.hdf5_files import hdf5_files, is_aloha, is_hdf5
from roboreel.convert.hdf5_robomimic import RobomimicHdf5
from roboreel.convert.lerobot_layout import Warnings
from roboreel.convert.lerobot_v1 import is_v1
from roboreel.convert.source import Source
from roboreel.convert.zarr_replay import ENDS, ZarrReplay
from roboreel.errors import InvalidArgumentError, NotADatasetError
from roboreel.schema import EPISODE_INDEX_KEY, FRAME_INDEX_KEY, INDEX_KEY

Format = Literal["lerobot", "zarr", "robomimic", "aloha"]
_COUNTED = frozenset({INDEX_KEY, EPISODE_INDEX_KEY, FRAME_INDEX_KEY})
_ZARR_SIGNS = (".zgroup", "zarr.json", ENDS)


def open_source(
    path: str | Path,
    format: Format | None = None,  # noqa: A002 - what everyone calls it
    *,
    fps: float | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Source:
    """Open a diffusion-policy zarr, a robomimic HDF5 file, or ALOHA's HDF5 files, for `LeRobotDatasetV2.from_source`.

    What can be told without reading the frames is checked. Needs the packages of `pip install 'roboreel[formats]'`.

        source = roboreel.open_source("pusht_cchi_v7_replay.zarr", fps=10)
        source.format, len(source.lengths), source.lengths[0]
        -> ("diffusion-policy zarr", 206, 161)

    Args:
        path: A zarr directory or `.zarr.zip`; an HDF5 file; for ALOHA also the folder of its episodes' files.
        format: "zarr", "robomimic" or "aloha". None: found out.
        fps: Frames a second (Hz). None: what the recording says, or what is usual for its format, with a warning.
        rename: {data key as it would be: as it is to be}, e.g. {"observation.joint_pos": "observation.state"}.
        strict: Refuse what would be left out with a warning.

    Raises:
        SourceError: it cannot be read as what it is. NotADatasetError: it is nothing of this.
        InvalidArgumentError: a LeRobot folder, for which there is `from_lerobot`; a key to rename that is not there.
        MissingDependencyError: the packages are not installed.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise InvalidArgumentError(f"fps={fps!r}; a positive number of frames a second would do")
    path = Path(path)
    found = detect_format(path) if format is None else parse_format(format)
    if found == "lerobot":
        raise InvalidArgumentError(f"{path} is a LeRobot folder; LeRobotDatasetV2.from_lerobot takes it in")
    if not path.exists():
        raise NotADatasetError(f"{path}: no such file or folder")
    warnings = Warnings(strict=strict)
    source: Source
    if found == "zarr":
        source = ZarrReplay(path, fps, warnings)
    elif found == "robomimic":
        source = RobomimicHdf5(path, fps, warnings)
    else:
        source = AlohaHdf5(path, fps, warnings)
    return RenamedSource(source, rename) if rename else source


def parse_format(name: str) -> Format:
    """Return one of the formats; `InvalidArgumentError` for anything else."""
    for known in get_args(Format):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise InvalidArgumentError(f"format {name!r} is none of those that are read: {', '.join(get_args(Format))}")


def detect_format(path: Path) -> Format:
    """Return the format of a file or folder; a folder that is nothing else counts as LeRobot's, whose errors say more.

    Raises:
        NotADatasetError: a file that is none of the formats.
    """
    if path.is_dir():
        if (path / "meta" / "info.json").is_file() or is_v1(path):
            return "lerobot"
        if any((path / sign).exists() for sign in _ZARR_SIGNS):
            return "zarr"
        files = hdf5_files(path)
        return "lerobot" if not files else "aloha" if is_aloha(files[0]) else "robomimic"
    if not path.exists():
        return "lerobot"
    if is_hdf5(path):
        return "aloha" if is_aloha(path) else "robomimic"
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return "zarr"
    raise NotADatasetError(
        f"{path}: neither a zip archive (.zarr.zip) nor an HDF5 file; those, zarr directories and LeRobot folders are "
        "read"
    )


class RenamedSource(Source):
    """A source of which some keys have other names."""

    def __init__(self, source: Source, rename: Mapping[str, str]) -> None:
        self._source = source
        self._rename = dict(rename)
        self.fps = source.fps
        self.lengths = source.lengths
        self.files = source.files

    @property
    def format(self) -> str:
        return self._source.format

    @property
    def provenance(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self._source.provenance, "renamed": self._rename}

    @property
    def warnings(self) -> Sequence[str]:  # type: ignore[override]
        return self._source.warnings

    @property
    def episode_numbers(self) -> Sequence[int]:
        return self._source.episode_numbers

    def read_episode(self, number: int) -> Mapping[str, Any]:
        data = self._source.read_episode(number)
        if unknown := sorted(set(self._rename).difference(data)):
            raise InvalidArgumentError(f"rename names {unknown}; the keys are {sorted(data)}")
        if counted := sorted(_COUNTED.intersection(self._rename.values())):
            raise InvalidArgumentError(f"rename makes {counted} of other keys; every dataset counts those itself")
        named = [self._rename.get(key, key) for key in data]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise InvalidArgumentError(f"rename makes {twice} of two keys; the keys are {sorted(data)}")
        return dict(zip(named, data.values(), strict=True))
