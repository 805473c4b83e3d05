"""`roboreel eval`: the options are those of `roboreel.evaluate.EvalConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from roboreel._optional import require


def run(arguments: Sequence[str]) -> None:
    require("torch", extra="torch", purpose="evaluating a policy")
    from roboreel.evaluate import EvalConfig, describe, evaluate

    print(describe(evaluate(tyro.cli(EvalConfig, prog="roboreel eval", args=arguments)).summary))
