"""`roboreel eval`: the options are those of `roboreel.evaluate.EvalConfig`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from roboreel.evaluate import EvalConfig, evaluate


def run(arguments: Sequence[str]) -> None:
    evaluate(tyro.cli(EvalConfig, prog="roboreel eval", args=arguments))
