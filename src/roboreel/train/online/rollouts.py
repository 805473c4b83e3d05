"""Episodes of a policy in training, into the buffer that it learns from."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from roboreel import LeRobotDatasetV2
from roboreel.envs import Actor, RandomActor, VectorEnvs, rollout
from roboreel.errors import CapacityError, ConfigError, DiskSpaceError, InvalidArgumentError, RoboreelError
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
            with naming("--online-buffer-capacity", InvalidArgumentError):
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

    @property
    def capacity(self) -> int:
        """Frames for which the buffer has room; 0 before it has held an episode."""
        return self._buffer.buffer_capacity or 0

    def random_actor(self) -> Actor:
        return RandomActor(self.envs.actions, self.envs.n_envs)

    def roll(self, actor: Actor, seeds: Sequence[int]) -> list[Rolled]:
        """Roll out one episode a seed, into the buffer; returns them in the order of the seeds.

        Raises:
            ConfigError: an episode is longer than the buffer.
        """
        found = {}
        for episode in rollout(self.envs, actor, seeds):
            with naming("--online-buffer-capacity", CapacityError, DiskSpaceError):
                self._buffer.add_episodes(episode.data, no_flush=True)
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


@contextlib.contextmanager
def naming(option: str, *kinds: type[RoboreelError]) -> Iterator[None]:
    """Say by which option what is refused was given."""
    try:
        yield
    except kinds as error:
        raise ConfigError(f"{option}: {error}") from error


def check_capacity(options: OnlineOptions, scene: Scene, longest: int, beside: Path) -> None:
    """Refuse a buffer that no whole episode, of up to `longest` steps, would fit in.

    How many frames a size in bytes is, an episode of one step tells, put into such a buffer in a folder `beside`.

    Raises:
        ConfigError: it is too small, or no capacity.
    """
    one_step, few = replace(scene, max_steps=1), replace(options, online_rollout_batch_size=1)
    needed, frames = longest + 1, options.capacity
    if not isinstance(frames, int) or frames > needed:
        trial = tempfile.TemporaryDirectory(dir=beside, prefix=".trial-")
        with trial as folder, Rollouts(one_step, few, Path(folder) / "buffer") as tried:
            try:
                tried.roll(tried.random_actor(), [0])
            except ConfigError as error:  # too small even for that one
                if not isinstance(error.__cause__, CapacityError):
                    raise
            frames = tried.capacity
    if frames < needed:
        is_in_bytes = not isinstance(options.capacity, int)
        told = f" (room for {frames} frames)" if is_in_bytes else ""
        raise ConfigError(
            f"--online-buffer-capacity {options.online_buffer_capacity}{told}: an episode has up to {needed} frames; "
            f"give --online-buffer-capacity {needed} at least, which is in frames, or a smaller --eval-max-steps"
        )


def told(rolled: Rolled, step: int, frames: int) -> dict[str, Any]:
    """Return a line of `rollouts.jsonl`."""
    return {"step": step, **rolled.__dict__, "buffer_frames": frames}
