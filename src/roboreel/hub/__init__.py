"""The Hugging Face Hub: datasets taken in from it, and put up."""

from roboreel.hub.pull import PullOptions, default_place, pull
from roboreel.hub.push import PushReport, push_folder
from roboreel.hub.turns import push_place

__all__ = ["PullOptions", "PushReport", "default_place", "pull", "push_folder", "push_place"]
