"""Cut the power many times, as tests/test_power_loss.py does a few times, and record how often.

python -m scripts.power_cuts --histories 100
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import tyro
from tests.test_power_loss import cut_often, machine

from scripts.reliability import record

KINDS = [(mode, capacity) for mode in ("memmap", "png") for capacity in (None, 17, 40)]


@dataclass
class Args:
    """How much is tried."""

    histories: int = 100
    """Random histories of each kind: memmap and png, growing and two sizes of ring."""
    videos: int = 10
    """The same for video, which takes an encoder some time."""
    seed: int = 1000
    into: str | None = None
    """Record the figures under this name in docs/results/reliability.json."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    cuts = 0
    plan = [(kind, seed) for seed in range(args.histories) for kind in KINDS]
    plan += [(("video", capacity), seed) for seed in range(args.videos) for capacity in (None, 17)]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="roboreel-power-") as folder:
        boots = machine(patch)
        for (mode, capacity), seed in plan:
            try:
                cuts += cut_often(Path(folder), boots, mode, capacity, args.seed + seed, steps=10, cuts=10)
            except BaseException:
                print(f"history {args.seed + seed} in {mode}, capacity {capacity}, after {cuts} cuts:")
                raise
    print(f"{cuts} cuts in {len(plan)} histories, nothing lost that was flushed")
    if args.into:
        record("power cuts", args.into, {**asdict(args), "histories": len(plan), "cuts": cuts, "lost": 0})


if __name__ == "__main__":
    main()
