"""Every error roboreel raises on purpose: what came, what would do, and what to type.

Each is a `RoboreelError` and also the builtin that a caller would expect, so both of these work:

    except roboreel.RoboreelError: ...
    except IndexError: ...
"""

from __future__ import annotations


class RoboreelError(Exception):
    """The base of every error that roboreel raises on purpose."""


class InvalidArgumentError(RoboreelError, ValueError):
    """An argument that cannot be used as it is."""


class InvalidEpisodeError(RoboreelError, ValueError):
    """Episode data that cannot be stored as it is; nothing of it was written."""


class CapacityError(RoboreelError, ValueError):
    """A capacity that contradicts the storage, or an episode that does not fit into it."""


class TimestampOutsideToleranceError(RoboreelError, ValueError):
    """A window asks for a time inside an episode where no frame is near enough."""


class FrameIndexError(RoboreelError, IndexError):
    """An index beyond the ends of the dataset."""


class EpisodeNotFoundError(RoboreelError, IndexError):
    """An episode index that the dataset does not hold (any more)."""


class UnknownKeyError(RoboreelError, KeyError):
    """A data key that the dataset does not have."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class ReadOnlyError(RoboreelError, PermissionError):
    """A change asked of a dataset that was opened with `readonly=True`."""


class EditOpenError(RoboreelError, RuntimeError):
    """A change of the dataset inside an `edit` block, which must be left first."""


class StorageError(RoboreelError, OSError):
    """A file operation that failed; what was committed before is untouched."""


class DiskSpaceError(StorageError):
    """The disk has no room for what was asked; nothing was changed."""


class DatasetLockedError(StorageError):
    """Another process is writing this dataset."""


class DatasetBusyError(StorageError):
    """A writer kept changing the wanted frames for longer than a reader waits."""


class DatasetReplacedError(StorageError):
    """The directory is not the one that was opened: a snapshot or a conversion took its place, or it was removed."""


class StorageDirCorruptError(RoboreelError, ValueError):
    """A directory whose files contradict each other or the format."""

    slot: int | None = None
    """Of a frame that cannot be read for it."""


class NotADatasetError(RoboreelError, FileNotFoundError):
    """A directory that holds no roboreel dataset."""


class SourceError(RoboreelError, ValueError):
    """A foreign dataset, or an image, that cannot be read as what it says it is."""

    slot: int | None = None
    """Of the frame, where it is one of a dataset."""


class UnreadableImageError(StorageDirCorruptError, SourceError):
    """An image of a dataset that is damaged or gone; the message says its episode and its camera."""


class VideoError(SourceError):
    """A video file that cannot be opened, or that does not hold the frames it should."""

    def __init__(self, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.frame = frame
        """Its number in the file, where one is to blame."""


class HubError(RoboreelError, OSError):
    """The Hub cannot be reached, or has not what is asked for, or will not give or take it."""


class MissingDependencyError(RoboreelError, ImportError):
    """An optional package is needed here and is not installed."""


class ConfigError(RoboreelError, ValueError):
    """Options of a command that do not go together, or do not fit the dataset."""


class RolloutError(RoboreelError, RuntimeError):
    """An environment has failed in the middle of an episode, or a process that rolls out for a training run."""


class LossNotFiniteError(RoboreelError, ArithmeticError):
    """The loss or its gradient is NaN or infinite; the run stopped and the batch's indices were saved."""


class RoboreelWarning(UserWarning):
    """Something found wrong in a source and worked around; the data taken in is what was really there."""


__all__ = [
    "CapacityError",
    "ConfigError",
    "DatasetBusyError",
    "DatasetLockedError",
    "DatasetReplacedError",
    "DiskSpaceError",
    "EditOpenError",
    "EpisodeNotFoundError",
    "FrameIndexError",
    "HubError",
    "InvalidArgumentError",
    "InvalidEpisodeError",
    "LossNotFiniteError",
    "MissingDependencyError",
    "NotADatasetError",
    "ReadOnlyError",
    "RoboreelError",
    "RoboreelWarning",
    "RolloutError",
    "SourceError",
    "StorageDirCorruptError",
    "StorageError",
    "TimestampOutsideToleranceError",
    "UnknownKeyError",
    "UnreadableImageError",
    "VideoError",
]
