"""From recordings to a policy that was tried: import the PushT sample, train on it, roll the policy out.

    make train
    python examples/train_pusht.py --force

A second run goes on where the first one stopped, and only prints the summary where nothing is left to do.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import tyro

from roboreel import LeRobotDatasetV2, RoboreelError
from roboreel.checkpoint import steps_done
from roboreel.evaluate import EvalConfig, EvalResult, Spread, evaluate, paired_difference, read_result
from roboreel.train import TrainConfig, TrainResult, train

SAMPLE = Path(__file__).parent / "data" / "pusht"


@dataclass(frozen=True)
class Options:
    """Options of the example; the defaults take about five minutes on two cores."""

    output_dir: Path = Path("outputs/pusht")
    """Where everything goes."""
    steps: int = 2500
    """Optimiser steps."""
    batch_size: int = 64
    """Frames a step."""
    n_episodes: int = 50
    """Episodes to try the policy, and chance, on."""
    n_envs: int = 10
    """Environments at once."""
    force: bool = False
    """Begin anew, whatever `output_dir` holds."""


def main(options: Options) -> None:
    """Import, train, evaluate, and print the summary."""
    began = time.perf_counter()
    if options.force:
        shutil.rmtree(options.output_dir, ignore_errors=True)
    dataset = LeRobotDatasetV2.from_lerobot(
        SAMPLE, options.output_dir / "dataset", decode_images=True, progress=True, readonly=True
    )
    imported = time.perf_counter()
    # In memory-mapped form a batch is read in a millisecond or two: no worker processes are needed.
    config = TrainConfig(
        dataset.storage_dir, options.output_dir / "train", options.steps, options.batch_size, num_workers=0
    )
    done = steps_done(config.output_dir)
    trained = train(replace(config, resume=done > 0))
    learned = time.perf_counter()
    fresh = done < options.steps
    ours = evaluated(options, config.output_dir, fresh=fresh)
    chance = evaluated(options, None, fresh=fresh)
    ended = time.perf_counter()
    if not fresh:
        print(f"{config.output_dir} holds the finished run already; --force trains anew")
    print(summary(dataset, trained, ours, chance))
    print(
        f"this took {ended - began:.0f} s: import {imported - began:.0f} s, training {learned - imported:.0f} s, "
        f"evaluation {ended - learned:.0f} s"
    )
    if fresh:
        seconds = {"import": imported - began, "training": learned - imported, "evaluation": ended - learned}
        record(options.output_dir / "summary.json", dataset, trained, ours, chance, seconds)


def evaluated(options: Options, checkpoint: Path | None, *, fresh: bool) -> EvalResult:
    """Evaluate a checkpoint, or chance; or read what an earlier run found about the same weights."""
    config = EvalConfig(
        options.output_dir / ("eval_random" if checkpoint is None else "eval_trained"),
        checkpoint,
        policy="random" if checkpoint is None else "checkpoint",
        n_episodes=options.n_episodes,
        n_envs=options.n_envs,
    )
    return (None if fresh else read_result(config)) or evaluate(config)


def summary(dataset: LeRobotDatasetV2, trained: TrainResult, ours: EvalResult, chance: EvalResult) -> str:
    """Return what came out, one line a thing."""
    difference = paired_difference(ours, chance, "coverage")
    verdict = "excludes 0" if difference.low > 0 or difference.high < 0 else "includes 0: no difference is shown"
    waiting = trained.data_s / (trained.data_s + trained.update_s)
    rows = {
        "dataset": f"{dataset.num_frames} frames in {dataset.num_episodes} episodes",
        "training": f"{trained.steps} steps, {trained.frames_seen} frames drawn",
        "waited for data": f"{trained.data_s:.1f} s ({waiting:.1%}), against {trained.update_s:.1f} s of computing",
        "final loss": f"{trained.final_loss:.4f}",
        "episodes": f"{len(ours.episodes)}, the same seeds for both",
        "coverage, trained": told(ours.summary["max_coverage"]),
        "coverage, random": told(chance.summary["max_coverage"]),
        "difference": f"{told(difference)}: the interval {verdict}",
        "success, trained": told(ours.summary["success"]),
        "success, random": told(chance.summary["success"]),
        "checkpoint": str(trained.checkpoint),
        "videos": str(ours.videos[0].parent) if ours.videos else "none",
    }
    return "\n".join(["", *(f"  {name:18} {value}" for name, value in rows.items())])


def record(
    path: Path,
    dataset: LeRobotDatasetV2,
    trained: TrainResult,
    ours: EvalResult,
    chance: EvalResult,
    seconds: dict[str, float],
) -> None:
    """Write the figures that the README shows, with the machine and the versions that gave them."""
    content = {
        "command": "make train",
        "date": dt.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "versions": {name: version(name) for name in ("roboreel", "torch", "numpy", "av", "gym-pusht")},
        "python": platform.python_version(),
        "frames": dataset.num_frames,
        "episodes": dataset.num_episodes,
        "steps": trained.steps,
        "frames_drawn": trained.frames_seen,
        "data_s": round(trained.data_s, 2),
        "update_s": round(trained.update_s, 2),
        "final_loss": round(trained.final_loss, 4),
        "seeds": len(ours.episodes),
        "coverage_trained": asdict(ours.summary["max_coverage"]),
        "coverage_random": asdict(chance.summary["max_coverage"]),
        "coverage_difference": asdict(paired_difference(ours, chance, "coverage")),
        "success_trained": asdict(ours.summary["success"]),
        "success_random": asdict(chance.summary["success"]),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def told(spread: Spread) -> str:
    """Return a mean and its interval as text."""
    return f"{spread.mean:.3f} (95 % {spread.low:.3f} to {spread.high:.3f})"


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except RoboreelError as error:
        sys.exit(f"error: {error}")
