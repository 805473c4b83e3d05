"""LeRobot's policies in training, and acting: all that imports lerobot for it."""

from roboreel.train.lerobot.actor import LeRobotActor, actor_from
from roboreel.train.lerobot.learner import LeRobotLearner

__all__ = ["LeRobotActor", "LeRobotLearner", "actor_from"]
