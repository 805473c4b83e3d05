"""Options of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from roboreel.errors import ConfigError


@dataclass(frozen=True)
class EvalConfig:
    """Options of an evaluation."""

    output_dir: Path
    """Where `eval.json` and `videos/` go; those of an earlier evaluation there are replaced."""
    checkpoint: Path | None = None
    """A run's output folder (its last checkpoint), one checkpoint, a `policy.pt` or a `pretrained_model`."""
    policy: Literal["checkpoint", "random"] = "checkpoint"
    """"random" draws every action uniformly: what a policy must be better than."""
    env: str = "pusht"
    """pusht, xarm, aloha, or an id of gymnasium's, as gym_aloha/AlohaInsertion-v0 or MODULE:Id-v0."""
    env_options: tuple[str, ...] = ()
    """The environment's own, NAME=VALUE each, as obs_type=state; values are JSON, or else text."""
    env_keys: tuple[str, ...] = ()
    """What is kept of its observations, KEY=NAME each, as observation.images.wrist=pixels/wrist; default: all."""
    env_fps: float | None = None
    """Steps a second (Hz), where the environment does not tell, or tells another rate."""
    n_episodes: int = 50
    """Episodes, each with a seed of its own."""
    n_envs: int = 10
    """Environments that are stepped at once, each in a process of its own; 1: in this process."""
    seed: int = 100_000
    """The first episode's seed; the next ones follow it. It fixes where all begins and what the policy draws."""
    max_steps: int | None = None
    """Steps after which an episode is cut; default: as the environment is registered, 300 in PushT."""
    n_videos: int = 4
    """Videos to write, of the first seeds."""
    save_dataset: Path | None = None
    """Keep the episodes as a dataset in this folder, which must not be there yet."""
    save_image_mode: Literal["video", "png", "memmap"] | None = None
    """How its cameras are stored; default: as video."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps"; auto is cuda where there is an NVIDIA or AMD GPU, else cpu."""

    def __post_init__(self) -> None:
        least = {"n_episodes": 1, "n_envs": 1, "n_videos": 0, "seed": 0}
        for name, smallest in least.items() if self.max_steps is None else {**least, "max_steps": 1}.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {smallest} or more")
        if self.env_fps is not None and not 0 < self.env_fps < float("inf"):
            raise ConfigError(f"--env-fps {self.env_fps}: give steps a second, more than 0")
        if self.seed + self.n_episodes > 1 << 63:
            raise ConfigError(f"--seed {self.seed}: give one so that the last episode's is less than 2**63")
        if (self.policy == "random") != (self.checkpoint is None):
            raise ConfigError("give either --checkpoint FOLDER or --policy random")
        parse_options(self.env_options)
        parse_keys(self.env_keys)


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of an environment.

    >>> parse_options(("obs_type=state", "observation_width=64", "fog=true"))
    {'obs_type': 'state', 'observation_width': 64, 'fog': True}
    """
    options: dict[str, Any] = {}
    for name, text in (_parts("--env-options", each) for each in given):
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def parse_keys(given: tuple[str, ...]) -> dict[str, str] | None:
    """Return {data key: path in the observation}; None where none is given.

    >>> parse_keys(("observation.image=pixels/top",))
    {'observation.image': 'pixels/top'}
    """
    keys: dict[str, str] = {}
    for key, path in (_parts("--env-keys", each) for each in given):
        if key in keys:
            both = f"{keys[key]} and for {path}"
            raise ConfigError(f"--env-keys names {key} twice, for {both}; give each a key of its own")
        keys[key] = path
    return keys or None


def _parts(option: str, given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise ConfigError(f"{option} {given}: give NAME=VALUE")
    return name, value
