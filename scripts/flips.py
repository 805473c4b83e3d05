"""Flip bits and cut files that a committed frame depends on, and count those that `verify` does not find.

python -m scripts.flips --flips 2000 --cuts 500
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tyro
from tests.damage import MODES, dataset, depended, flip

from roboreel.format import paths
from roboreel.format.records import DURABLE_OFFSETS, STATE_RECORD_BYTES
from roboreel.store import verify
from scripts.reliability import record


@dataclass
class Args:
    """How much is tried."""

    flips: int = 2000
    """Bits flipped, one at a time, of each image mode: files in turn, bytes at random."""
    cuts: int = 500
    """Files cut short, one at a time, of each image mode."""
    seed: int = 0
    into: str | None = None
    """Record the figures under this name in docs/results/reliability.json."""


@dataclass
class Figures:
    """What was counted."""

    flipped: int = 0
    cut: int = 0
    files: int = 0
    """Files of the three datasets that frames depend on."""
    missed: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0


def try_mode(root: Path, args: Args, figures: Figures) -> None:
    """Damage a dataset and mend it, again and again."""
    assert verify(root).problems == []
    rng, bytes_of = np.random.default_rng(args.seed), list(depended(root).items())
    figures.files += len(bytes_of)

    def look(what: str) -> None:
        if not verify(root).problems:
            figures.missed += 1
            figures.examples += [what][: 5 - len(figures.examples)]

    for number in range(args.flips):
        path, offsets = bytes_of[number % len(bytes_of)]
        if len(offsets):
            offset, bit = int(rng.choice(offsets)), 1 << int(rng.integers(8))
            flip(path, offset, bit)
            look(f"{path.name}, byte {offset}, bit {bit}")
            flip(path, offset, bit)
            figures.flipped += 1
    for number in range(args.cuts):
        path, offsets = bytes_of[number % len(bytes_of)]
        if not len(offsets):
            continue
        raw = path.read_bytes()
        end = max(DURABLE_OFFSETS) + STATE_RECORD_BYTES if path.name == paths.STATE else len(raw)
        kept = int(rng.integers(end))
        path.write_bytes(raw[:kept])
        look(f"{path.name} cut to {kept} of {len(raw)} bytes")
        path.write_bytes(raw)
        figures.cut += 1
    assert verify(root).problems == []


def main() -> None:
    args, figures, began = tyro.cli(Args, description=__doc__), Figures(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="roboreel-flips-") as folder:
        for mode in MODES:
            try_mode(dataset(Path(folder) / mode, mode), args, figures)
    figures.seconds = round(time.monotonic() - began, 1)
    print(asdict(figures))
    if args.into:
        record("flips", args.into, {**asdict(args), **asdict(figures)})
    if figures.missed:
        raise SystemExit(f"{figures.missed} not found")


if __name__ == "__main__":
    main()
