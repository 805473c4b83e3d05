"""Measure everything, or what `--only` names, beside its floors and the peers that are installed.

make bench
make bench ARGS="--only video_windows --quick"
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import results
from benchmarks.benchmark import Scene
from benchmarks.suite import SUITE
from benchmarks.turns import ROOT, measure


@dataclass
class Args:
    """What is measured, and how long."""

    only: tuple[str, ...] = ()
    """The benchmarks to run, by name; all where left out."""
    quick: bool = False
    """Little data and a second a contender: to see that it works. Written to outputs/benchmarks."""
    seconds: float | None = None
    """Seconds a contender; 6, or 1 when quick."""
    cache: Path = ROOT / "outputs" / "benchmarks" / "data"
    """Where made data is kept for the next run."""
    output: Path | None = None
    """Where the results go; benchmarks/results where left out."""
    list: bool = False
    """Name the benchmarks and stop."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.list:
        for benchmark in SUITE:
            print(f"{benchmark.name:20} {benchmark.title}")
        return
    if unknown := sorted(set(args.only) - {benchmark.name for benchmark in SUITE}):
        raise SystemExit(f"no benchmarks {unknown}; there are {[benchmark.name for benchmark in SUITE]}")
    output = args.output or (ROOT / "outputs" / "benchmarks" / "quick" if args.quick else results.COMMITTED)
    scene = Scene(args.cache / ("quick" if args.quick else "full"), "quick" if args.quick else "full")
    seconds = args.seconds or (1.0 if args.quick else 6.0)
    run = results.about_this_run(results.command_line())
    failed: list[str] = []
    for benchmark in SUITE:
        if args.only and benchmark.name not in args.only:
            continue
        print(f"\n{benchmark.name}: {benchmark.title}", flush=True)
        try:
            result = measure(benchmark, scene, seconds)
        except Exception:  # noqa: BLE001 - told, and counted at the end: the others took minutes
            traceback.print_exc()
            failed.append(benchmark.name)
            continue
        results.write(output, benchmark.name, {**result, "run": run})
        show(result)
    print(f"\n{output}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def show(result: dict[str, Any]) -> None:
    for name, found in result["contenders"].items():
        if "ms" not in found:
            print(f"  {name:22} {found.get('failed') or found['missing']}")
            continue
        memory = f"{found['rss_mb']:8.0f} MB RSS {found['uss_mb']:8.0f} MB USS"
        other = f"  READS OTHER {', '.join(found['other'])}" if found["other"] else ""
        print(f"  {name:22} {found['ms']:10.3f} ms {found['samples_per_s']:12,.0f} samples/s {memory}{other}")
    for name, value in result["figures"].items():
        print(f"  {name:22} {value:10.3f}")
    for goal in result["goals"]:
        told = "not measured" if goal["figure"] is None else f"{goal['figure']:.3g} {goal['unit']}"
        limits = [f"{sign} {limit:g}" for sign, limit in (("≤", goal["at_most"]), ("≥", goal["at_least"])) if limit]
        verdict = {None: "", True: ": reached", False: ": NOT REACHED"}[goal["reached"]]
        print(f"    {goal['text']}: {told} ({', '.join(limits) or 'no goal'}){verdict}", flush=True)


if __name__ == "__main__":
    main()
