"""Roll a policy out in a simulator: rewards, success and their spread, and some videos.

roboreel eval --checkpoint outputs/pusht --output-dir outputs/pusht/eval
roboreel eval --policy random --output-dir outputs/random
"""

from roboreel.evaluate.options import EvalConfig
from roboreel.evaluate.running import EVAL, EpisodeResult, EvalResult, evaluate, paired_difference, read_result
from roboreel.evaluate.spread import Spread, describe, student_95

__all__ = [
    "EVAL",
    "EpisodeResult",
    "EvalConfig",
    "EvalResult",
    "Spread",
    "describe",
    "evaluate",
    "paired_difference",
    "read_result",
    "student_95",
]
