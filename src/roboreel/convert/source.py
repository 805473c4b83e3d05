"""`Source`: a recording in a format of one's own, and what it takes to have it taken in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any


class Source(ABC):
    """A recording in a format of your own, which `LeRobotDatasetV2.from_source` takes in episode by episode.

    Set `fps` and `lengths`, and say in `read_episode` what an episode holds. Only one episode is asked for at a time,
    so that memory holds no more than that; `roboreel.image_files` has images read one by one.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2, Source
    >>> class Ramps(Source):
    ...     fps = 10
    ...     lengths = [3, 2]
    ...
    ...     def read_episode(self, number):
    ...         return {"action": np.arange(self.lengths[number], dtype=np.float32), "task": f"ramp {number}"}
    >>> dataset = LeRobotDatasetV2.from_source(Ramps(), tempfile.mkdtemp(), progress=False)
    >>> dataset.num_episodes, dataset[4]["action"].item(), dataset[4]["task"]
    (2, 1.0, 'ramp 1')
    """

    fps: float
    """Frames a second (Hz)."""
    lengths: Sequence[int] = ()
    """Frames of each episode, at least one each."""
    files: Sequence[str | Path] = ()
    """Files or folders that it is read from. Their names, sizes and contents tell this recording from others: called
    again with the same, `from_source` opens what is there. Where none is named, the rest must tell it."""
    provenance: Mapping[str, Any] = MappingProxyType({})
    """What is known of where it comes from, for the metadata: any JSON object."""
    warnings: Sequence[str] = ()
    """What was found wrong and worked around, a sentence each."""

    @property
    def format(self) -> str:
        """What errors and the metadata call it; by default the name of the class."""
        return type(self).__name__

    @property
    def episode_numbers(self) -> Sequence[int]:
        """What the source itself calls each episode, in errors and for `skip_episodes`; by default 0, 1, 2, and on."""
        return range(len(self.lengths))

    @abstractmethod
    def read_episode(self, number: int) -> Mapping[str, Any]:
        """Return what episode `number` (of `lengths`, from 0) holds, as `LeRobotDatasetV2.add_episodes` takes it.

        {key: array (length, *shape)}; strings as a list, or one str for all frames. Keys that begin with
        `observation.image` are cameras: arrays, or what `roboreel.image_files` gives. `timestamp` (s) may be left out.
        Every episode has the same keys, shapes and dtypes. Raise `roboreel.SourceError` for what cannot be read.
        """
