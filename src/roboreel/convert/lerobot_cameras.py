"""The cameras of a LeRobot folder: video files, or images inside the Parquet rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from roboreel.convert.foreign import DecodedImages
from roboreel.convert.image_form import image_form, is_png
from roboreel.convert.lerobot_camera import advised, camera_spec
from roboreel.convert.lerobot_columns import ROW_KEYS
from roboreel.convert.lerobot_info import Feature, Info, inside
from roboreel.convert.lerobot_layout import EpisodeEntry, Warnings
from roboreel.convert.lerobot_videos import VideoCamera
from roboreel.convert.rows import RowFile, Rows
from roboreel.errors import SourceError
from roboreel.schema import TASK_KEY, LeRobotDatasetV2ImageMode
from roboreel.store import CameraFrames, PngFrames

_BLOCK_IMAGES = 64
"""Rows of images held at a time at most: equal images are stored once, and are small until they are decoded."""


@dataclass(frozen=True)
class _SourceImages(PngFrames):
    def blocks(self) -> Iterator[NDArray[Any]]:
        return advised(super().blocks(), "download the file again, or leave the episode out")


class ImageCamera:
    """A camera whose images are in a Parquet column, as bytes or as paths beside it."""

    def __init__(self, feature: Feature, entries: Sequence[EpisodeEntry], info: Info, warnings: Warnings) -> None:
        self._info = info
        self._name = feature.name
        self._reader: tuple[RowFile, Rows] | None = None
        data = self._read(entries[0], 0)
        shape, dtype = image_form(data, f"{entries[0].where}, camera {feature.name!r}, frame 0")
        self.spec = camera_spec(feature, shape, LeRobotDatasetV2ImageMode.PNG, warnings, dtype)
        self._is_png = is_png(data)
        if not self._is_png:
            warnings.add(f"camera {feature.name!r} holds images that are not PNG: they are decoded")
        if self.spec.is_depth:
            warnings.add(f"camera {feature.name!r} holds grey images of 16 bits: taken as depth in millimetres")

    def frames(self, entry: EpisodeEntry) -> CameraFrames:
        """The episode's images, read one by one when they are asked for, cheapest in order."""
        source = f"{entry.where}, camera {self._name!r}"

        def read(i: int) -> bytes:
            data = self._read(entry, i)
            shape, dtype = image_form(data, f"{source}, frame {i}")
            if (shape, dtype) != (self.spec.shape, self.spec.dtype) or is_png(data) != self._is_png:
                kind = "a PNG image" if is_png(data) else "an image that is not PNG,"
                raise SourceError(
                    f"{source}, frame {i}: {kind} of {dtype} {shape}, where the first is of {self.spec.dtype} "
                    f"{self.spec.shape}; "
                    "record or convert it again, or leave the episode out"
                )
            return data

        files = _SourceImages(entry.length, self.spec.shape, read, source, self.spec.dtype)
        return files if self._is_png else DecodedImages(files)

    def _read(self, entry: EpisodeEntry, i: int) -> bytes:
        if not 0 <= i < entry.length:
            raise IndexError(i)
        if self._reader is None or self._reader[0].path != entry.file.path:
            if self._reader is not None:
                self._reader[1].close()
            self._reader = (entry.file, entry.file.rows([self._name], max_rows=_BLOCK_IMAGES))
        value = self._reader[1].read(entry.first_row + i, 1).column(0)[0].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        where = f"{entry.where}, camera {self._name!r}, frame {i}"
        if data is None and path:
            place = inside(self._info.folder, path, where)
            self._info.fetch(place)
            data = _read_file(place, where)
            self._info.release(place)
        if not data:
            raise SourceError(f"{where}: neither the image's bytes nor its path are there; download the file again")
        return bytes(data)


def _read_file(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{where}: the image {path} cannot be read ({error.strerror}); download it again") from None


def open_cameras(info: Info, entries: Sequence[EpisodeEntry], warnings: Warnings) -> list[VideoCamera | ImageCamera]:
    """Every declared camera that has frames, by what is really there; `SourceError` where it has only some of them."""
    cameras: list[VideoCamera | ImageCamera] = []
    for feature in info.cameras:
        if feature.name in (*ROW_KEYS, TASK_KEY):
            raise SourceError(f"{info.path}: declares {feature.name!r} as {feature.dtype!r}; correct its dtype there")
        missing = [entry for entry in entries if not info.has_file(entry.videos[feature.name].path)]
        with_images = [entry for entry in entries if _has_images(entry, feature.name)]
        if not missing:
            cameras.append(VideoCamera(feature, entries, info, warnings))
        elif len(with_images) == len(entries):
            cameras.append(ImageCamera(feature, entries, info, warnings))
        elif len(missing) == len(entries) and not with_images:
            _check_no_images(feature, entries, info)
            what = "video file" if feature.dtype == "video" else "column of images"
            warnings.leave_out(f"camera {feature.name!r} is declared and has no {what}: left out")
        else:
            lacks = missing[0].videos[feature.name].path if not with_images else _without(entries, feature.name)
            raise SourceError(
                f"{lacks}: camera {feature.name!r} has frames for other episodes and not here; complete the download, "
                "or take the camera out of info.json"
            )
    return cameras


def _has_images(entry: EpisodeEntry, key: str) -> bool:
    column = entry.file.columns.get(key)
    return column is not None and column.kind in ("image", "binary") and column.depth == 0


def _check_no_images(feature: Feature, entries: Sequence[EpisodeEntry], info: Info) -> None:
    """Refuse a column of something else where images are declared: that is no missing camera."""
    for entry in entries:
        column = entry.file.columns.get(feature.name)
        # some writers keep a path and a time of the video in a column: that is no image, and nothing else either
        if column is not None and (feature.dtype == "image" or column.kind not in ("other", "video")):
            raise SourceError(
                f"{entry.file.path}: column {feature.name!r} holds {column.text} where images must be, which "
                f"info.json declares as {feature.dtype!r}; correct its dtype in {info.path}"
            )


def _without(entries: Sequence[EpisodeEntry], key: str) -> Path:
    return next(entry.file.path for entry in entries if not _has_images(entry, key))
