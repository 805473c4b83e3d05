"""gym-pusht: push a T-shaped block onto its outline in the plane."""

from __future__ import annotations

from typing import Any

from roboreel.envs.making import make_envs
from roboreel.envs.vector import VectorEnvs


def make_pusht(n_envs: int, *, max_steps: int = 300, in_processes: bool = True, **options: Any) -> VectorEnvs:
    """Make `n_envs` PushT environments at 10 Hz; close them when done.

    Observations: `observation.image` (96, 96, 3) uint8 and `observation.state` (2,) float32, the agent's position in
    0 … 512. Actions: the position to go to, in the same units. An episode succeeds, and ends, once the block covers
    95 % of its outline; otherwise it is cut after `max_steps`. Signals: `coverage`, 0 … 1, told at the start too.

    Args:
        n_envs: How many are stepped at once.
        max_steps: Steps after which an episode is truncated.
        in_processes: Step each in a process of its own; otherwise one after the other in this one.
        options: gym-pusht's own, e.g. obs_type="environment_state_agent_pos".

    Raises:
        MissingDependencyError: gymnasium or gym-pusht is not installed.
    """
    return make_envs("pusht", n_envs, options=options, max_steps=max_steps, in_processes=in_processes)
