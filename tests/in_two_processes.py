"""What `tests/test_processes.py` has two processes do, each: `torchrun … -m tests.in_two_processes FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import distributed

from roboreel.errors import RoboreelError
from roboreel.policies import BCPolicy
from roboreel.train import train
from tests.test_processes import config_of


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except RoboreelError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")  # as a program of somebody's own may have done
    rank = distributed.get_rank()
    config = config_of(folder / "data", folder / "resumed")
    told: dict[str, Any] = {"resumed": train(replace(config, resume=True)).steps}
    odd = replace(config, output_dir=folder / "odd", batch_size=9)
    told["odd"] = error_of(lambda: train(odd))
    if rank == 1:
        forward = BCPolicy.forward
        BCPolicy.forward = lambda *args: forward(*args) * float("nan")  # type: ignore[method-assign]
    told["nan"] = error_of(lambda: train(replace(config, output_dir=folder / "nan")))
    (folder / f"told by {rank}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
