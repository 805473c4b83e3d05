"""LeRobot's own `lerobot-train`, on our dataset: `roboreel.lerobot.install()`, or `roboreel lerobot-train`."""

from roboreel.lerobot.dropin import KNOWN_VERSIONS, Installed, install, uninstall
from roboreel.lerobot.source import SourceOptions
from roboreel.lerobot.training_data import TrainingData

__all__ = ["KNOWN_VERSIONS", "Installed", "SourceOptions", "TrainingData", "install", "uninstall"]
