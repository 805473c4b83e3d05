"""Environments to roll policies out in: several at once, their observations under the dataset's keys."""

from roboreel.envs.pusht import make_pusht
from roboreel.envs.rollout import Actor, Episode, RandomActor, VectorEnvs, rollout

__all__ = ["Actor", "Episode", "RandomActor", "VectorEnvs", "make_pusht", "rollout"]
