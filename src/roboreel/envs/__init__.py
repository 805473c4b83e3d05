"""Environments to roll policies out in: several at once, their observations under the dataset's keys."""

from roboreel.envs.making import make_envs
from roboreel.envs.pusht import make_pusht
from roboreel.envs.rollout import Actor, Episode, RandomActor, rollout
from roboreel.envs.vector import Observation, VectorEnvs

__all__ = ["Actor", "Episode", "Observation", "RandomActor", "VectorEnvs", "make_envs", "make_pusht", "rollout"]
