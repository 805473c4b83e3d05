"""Episodes of a policy in training, into the buffer that it learns from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from roboreel import LeRobotDatasetV2
from roboreel.envs import Actor, RandomActor, VectorEnvs, rollout
from roboreel.errors import CapacityError, ConfigError, InvalidArgumentError
from roboreel.train.online.options import OnlineOptions, Scene


@dataclass(frozen=True)
class Rolled:
    """One episode in numbers."""

    seed: int
    steps: int
    sum_reward: float
    success: bool | None
    """None where the environment does not tell."""


class Rollouts:
    """Environments, and the buffer that their episodes go into; whoever has it open is the buffer's writer."""

    def __init__(self, scene: Scene, options: OnlineOptions, buffer: Path) -> None:
        n_envs = min(options.online_rollout_batch_size, options.online_rollout_n_episodes)
        self.envs: VectorEnvs = scene.make(n_envs)
        try:
            mode = options.online_image_mode if self.envs.camera_keys else None
            self._buffer = LeRobotDatasetV2(
                buffer,
                fps=self.envs.fps,
                buffer_capacity=options.capacity,
                use_as_fifo_buffer=True,
                image_mode=mode,
            )
        except BaseException:
            self.envs.close()
            raise

    @property
    def frames(self) -> int:
        return len(self._buffer)

    def random_actor(self) -> Actor:
        return RandomActor(self.envs.actions, self.envs.n_envs)

    def roll(self, actor: Actor, seeds: Sequence[int]) -> list[Rolled]:
        """Roll out one episode a seed, into the buffer; returns them in the order of the seeds.

        Raises:
            ConfigError: an episode is longer than the buffer.
        """
        found = {}
        for episode in rollout(self.envs, actor, seeds):
            try:
                self._buffer.add_episodes(episode.data, no_flush=True)
            except (CapacityError, InvalidArgumentError) as error:
                raise ConfigError(f"--online-buffer-capacity: {error}") from error
            rewards = episode.rewards
            success = episode.success if episode.tells_success else None
            found[episode.seed] = Rolled(episode.seed, len(rewards), float(rewards.sum()), success)
        return [found[seed] for seed in seeds]

    def snapshot(self, dest: Path) -> None:
        self._buffer.snapshot(dest)

    def close(self) -> None:
        self._buffer.close()
        self.envs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def restore(snapshot: Path, buffer: Path) -> None:
    """Put the buffer back as a checkpoint's snapshot left it."""
    shutil.rmtree(buffer, ignore_errors=True)
    LeRobotDatasetV2(snapshot, readonly=True).snapshot(buffer)


def check_capacity(options: OnlineOptions, envs: VectorEnvs) -> None:
    """Refuse a buffer that no whole episode would fit in.

    Raises:
        ConfigError: it is too small.
    """
    capacity = options.capacity
    if envs.max_steps is None or not isinstance(capacity, int):
        return
    if capacity < envs.max_steps + 1:
        raise ConfigError(
            f"--online-buffer-capacity {capacity}: an episode has up to {envs.max_steps + 1} frames; give so many at "
            "least, or a smaller --eval-max-steps"
        )


def told(rolled: Rolled, step: int, frames: int) -> dict[str, Any]:
    """Return a line of `rollouts.jsonl`."""
    return {"step": step, **rolled.__dict__, "buffer_frames": frames}
