"""gym-pusht: push a T-shaped block onto its outline in the plane."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from roboreel._optional import require
from roboreel.envs.rollout import VectorEnvs

OBSERVATIONS: Mapping[str, str] = {"observation.image": "pixels", "observation.state": "agent_pos"}
"""Data key -> the environment's own name, as in the recorded PushT dataset."""


def make_pusht(n_envs: int, *, max_steps: int = 300, in_processes: bool = True) -> VectorEnvs:
    """Make `n_envs` PushT environments at 10 Hz; close them when done.

    Observations: `observation.image` (96, 96, 3) uint8 and `observation.state` (2,) float32, the agent's position in
    0 … 512. Actions: the position to go to, in the same units. An episode succeeds, and ends, once the block covers
    95 % of its outline; otherwise it is cut after `max_steps`. Signals: `coverage`, 0 … 1, told at the start too.

    Args:
        n_envs: How many are stepped at once.
        max_steps: Steps after which an episode is truncated.
        in_processes: Step each in a process of its own; otherwise one after the other in this one.

    Raises:
        MissingDependencyError: gymnasium or gym-pusht is not installed.
    """
    purpose = "rolling out in PushT"
    gymnasium = require("gymnasium", extra="sim", purpose=purpose)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # one greeting a process
    require("gym_pusht", extra="sim", purpose=purpose)
    make = partial(_make_one, max_steps)
    vector = gymnasium.vector
    # Without autoreset the observation after the last step is the episode's own, not the next one's first; and the
    # next seed can be chosen.
    options: dict[str, Any] = {"autoreset_mode": vector.AutoresetMode.DISABLED}
    kind = vector.AsyncVectorEnv if in_processes and n_envs > 1 else vector.SyncVectorEnv
    return VectorEnvs(kind([make] * n_envs, **options), OBSERVATIONS, fps=10, signals=("coverage",))


def _make_one(max_steps: int) -> Any:
    import gym_pusht  # noqa: F401 - registers the environment; again in each process that is spawned
    import gymnasium

    class WithInitialCoverage(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Tells the coverage at the start, which gym-pusht tells from the first step on only."""

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(**options)
            pusht: Any = self.unwrapped
            return observation, {**info, "coverage": pusht._get_coverage()}

    return WithInitialCoverage(
        gymnasium.make(
            "gym_pusht/PushT-v0",
            obs_type="pixels_agent_pos",
            max_episode_steps=max_steps,
            disable_env_checker=True,
        )
    )
