"""How cameras are to be stored, as a user asks for it: for all of them at once, or each by its name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from roboreel.errors import InvalidArgumentError
from roboreel.schema import KeySpec, LeRobotDatasetV2ImageMode, VideoOptions, parse_image_mode
from roboreel.store.image_size import AskedSize, ImageSizes, parse_image_size

AskedMode = LeRobotDatasetV2ImageMode | str | Mapping[str, LeRobotDatasetV2ImageMode | str] | None
"""What `image_mode` may be: one for all cameras, or some cameras' own; None: what is stored."""
AskedOptions = VideoOptions | Mapping[str, VideoOptions] | None
"""What `video_options` may be."""

_MEMMAP, _VIDEO = LeRobotDatasetV2ImageMode.MEMMAP, LeRobotDatasetV2ImageMode.VIDEO


@dataclass(frozen=True)
class CameraStorage:
    """`image_mode`, `video_options` and `image_size`, parsed; what is left out means what is stored, or the default."""

    mode: LeRobotDatasetV2ImageMode | None = None
    """Of every camera that `modes` does not name."""
    modes: Mapping[str, LeRobotDatasetV2ImageMode] = field(default_factory=dict)
    options: VideoOptions | None = None
    """Of every camera that `options_of` does not name."""
    options_of: Mapping[str, VideoOptions] = field(default_factory=dict)
    sizes: ImageSizes = field(default_factory=ImageSizes)

    @classmethod
    def parse(
        cls,
        image_mode: AskedMode,
        video_options: AskedOptions = None,
        image_size: AskedSize = None,
        *,
        decode_images: bool = False,
    ) -> CameraStorage:
        """Return what was asked for; `InvalidArgumentError` where it cannot be, whatever the cameras are.

        >>> CameraStorage.parse({"observation.images.wrist": "png"}).mode_of("observation.images.wrist")
        <LeRobotDatasetV2ImageMode.PNG: 'png'>
        """
        modes: dict[str, LeRobotDatasetV2ImageMode] = {}
        mode: LeRobotDatasetV2ImageMode | None = None
        if isinstance(image_mode, Mapping):
            modes = {_name(key, "image_mode"): parse_image_mode(value) for key, value in image_mode.items()}
        elif image_mode is not None:
            mode = parse_image_mode(image_mode)
        if isinstance(video_options, Mapping):
            options_of = {_name(key, "video_options"): _options(value) for key, value in video_options.items()}
            options = None
        else:
            options, options_of = None if video_options is None else _options(video_options), {}
        if decode_images:
            if any(other is not _MEMMAP for other in (mode or _MEMMAP, *modes.values())):
                raise InvalidArgumentError(
                    f"decode_images=True means image_mode='memmap', and image_mode={image_mode!r} was given too; "
                    "leave one of them out"
                )
            mode = _MEMMAP
        asked = cls(mode, modes, options, options_of, parse_image_size(image_size))
        for key in options_of:
            asked._check_video(key, asked.mode_of(key))
        if options is not None and mode not in (None, _VIDEO):
            raise InvalidArgumentError(
                f"video_options were given with image_mode={mode.value!r}, which has none; leave one of them out"
            )
        return asked

    def mode_of(self, key: str) -> LeRobotDatasetV2ImageMode | None:
        """The mode that was asked for this camera; None: none was."""
        return self.modes.get(key, self.mode)

    def video_options_of(self, key: str) -> VideoOptions | None:
        return self.options_of.get(key, self.options)

    def applied(self, keys: Mapping[str, KeySpec]) -> dict[str, KeySpec]:
        """Return the keys of a new dataset with its cameras stored as asked; where nothing was, as they come.

        Raises:
            InvalidArgumentError: a camera was named that is not among them, or options for none that is video.
        """
        self.check_known([key for key, spec in keys.items() if spec.is_camera])
        found = {}
        for key, spec in keys.items():
            mode = self.mode_of(key) or spec.image_mode
            found[key] = spec
            if spec.is_camera and mode is not None:
                self._check_video(key, mode)
                found[key] = spec.stored_as(mode, self.video_options_of(key))
        if self.options is not None and not any(spec.image_mode is _VIDEO for spec in found.values()):
            raise InvalidArgumentError("video_options were given, and no camera is stored as video; leave them out")
        return self.sizes.applied(found)

    def check_known(self, cameras: Collection[str]) -> None:
        """Refuse names that are none of the cameras."""
        for argument, named in (("image_mode", self.modes), ("video_options", self.options_of)):
            if unknown := sorted(set(named) - set(cameras)):
                raise InvalidArgumentError(
                    f"{argument} names {', '.join(map(repr, unknown))}; the cameras are {sorted(cameras)}"
                )

    def check_stored(self, specs: Iterable[KeySpec], where: object) -> None:
        """Refuse what contradicts how the cameras of a dataset are stored; naming only some of them is fine."""
        cameras = {spec.name: spec for spec in specs if spec.is_camera}
        self.check_known(cameras)
        self.sizes.check_stored(cameras, where)
        for key, spec in cameras.items():
            assert spec.image_mode is not None
            mode, options = self.mode_of(key), self.video_options_of(key)
            if mode not in (None, spec.image_mode):
                shown = f"{mode.value!r}" if key not in self.modes else f"{{{key!r}: {mode.value!r}}}"
                raise InvalidArgumentError(
                    f"image_mode={shown}, but the cameras of {where} are stored as {_modes(cameras.values())}; "
                    "leave image_mode out, or have them stored otherwise by roboreel convert"
                )
            if key in self.options_of:
                self._check_video(key, spec.image_mode)
            if options is not None and spec.image_mode is _VIDEO and options != spec.video_options:
                raise InvalidArgumentError(
                    f"video_options are {options} for {key!r}, and {where} was made with {spec.video_options}; "
                    "leave video_options out"
                )

    def _check_video(self, key: str, mode: LeRobotDatasetV2ImageMode | None) -> None:
        if key in self.options_of and mode not in (None, _VIDEO):
            raise InvalidArgumentError(
                f"video_options name {key!r}, which is stored as {mode.value!r}; leave it out of them"
            )


def _name(key: Any, argument: str) -> str:
    if not isinstance(key, str):
        raise InvalidArgumentError(f"{argument} has the name {key!r}; the key of a camera would do")
    return key


def _options(value: Any) -> VideoOptions:
    if not isinstance(value, VideoOptions):
        raise InvalidArgumentError(
            f"video_options={value!r}; roboreel.VideoOptions(codec='h264', crf=23), say, or a dict "
            "{camera key: VideoOptions(…)} would do"
        )
    return value


def _modes(cameras: Iterable[KeySpec]) -> str:
    """How cameras are stored: one mode, or each camera's own."""
    stored = {spec.name: spec.image_mode.value for spec in cameras if spec.image_mode is not None}
    return repr(next(iter(stored.values()))) if len(set(stored.values())) == 1 else str(stored)
