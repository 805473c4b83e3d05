"""Options of training online, and where the episodes come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from roboreel.envs import VectorEnvs, make_envs
from roboreel.errors import ConfigError


@dataclass(frozen=True)
class OnlineOptions:
    """Options of the part of a run that learns from what its policy does."""

    online_steps: int = 0
    """Of the --steps, so many, the last ones, learn online: from the dataset and from what the policy does in --env."""
    online_rollout_n_episodes: int = 1
    """Episodes a rollout."""
    online_rollout_batch_size: int = 1
    """Environments that are stepped at once; 1: in the process that rolls out."""
    online_steps_between_rollouts: int = 50
    """Steps from one rollout to the next."""
    online_sampling_ratio: float = 0.5
    """Share of online frames in a batch, 0 to 1, on average."""
    online_buffer_capacity: str = "10000"
    """Of the buffer, in frames, or in bytes, as 20GB; the oldest episodes make room."""
    online_buffers_kept: int = 1
    """Of the checkpoints, the newest so many keep a copy of the buffer, from which alone a run can be resumed."""
    online_buffer_seed_size: int = 0
    """Frames that the buffer has at least before the first online step; without a dataset of random actions."""
    online_drop_n_last_frames: int = 1
    """Of each online episode, not drawn: the last one repeats what was done before it."""
    online_image_mode: Literal["memmap", "png", "video"] = "memmap"
    """How the buffer stores cameras."""
    online_rollouts_apart: bool = False
    """Roll out in a process of its own while training goes on; losses then depend on who was faster."""

    FREE_TO_CHANGE = ("online_steps", "online_buffers_kept")
    """Options that may differ when a run is resumed."""

    def __post_init__(self) -> None:
        least = {
            "online_steps": 0,
            "online_rollout_n_episodes": 1,
            "online_rollout_batch_size": 1,
            "online_steps_between_rollouts": 1,
            "online_buffers_kept": 1,
            "online_buffer_seed_size": 0,
            "online_drop_n_last_frames": 0,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {smallest} or more")
        if not 0 <= self.online_sampling_ratio <= 1:
            raise ConfigError(f"--online-sampling-ratio {self.online_sampling_ratio}: give a number from 0 to 1")

    @property
    def capacity(self) -> int | str:
        """As `LeRobotDatasetV2` takes it.

        >>> (
        ...     OnlineOptions(online_buffer_capacity="10_000").capacity,
        ...     OnlineOptions(online_buffer_capacity="1GB").capacity,
        ... )
        (10000, '1GB')
        """
        try:
            return int(self.online_buffer_capacity)
        except ValueError:
            return self.online_buffer_capacity


@dataclass(frozen=True)
class Scene:
    """The environments that a policy learns in, to be made where they are wanted."""

    env: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] | None = None
    fps: float | None = None
    max_steps: int | None = None

    def make(self, n_envs: int) -> VectorEnvs:
        return make_envs(self.env, n_envs, options=self.options, keys=self.keys, fps=self.fps, max_steps=self.max_steps)
