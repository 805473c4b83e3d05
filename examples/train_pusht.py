"""From recordings to a policy that was tried: import the PushT sample, train on it, roll the policy out.

    make train
    python examples/train_pusht.py --force

A second run goes on where the first one stopped, and only prints the summary where nothing is left to do. Evaluations
are taken from an earlier run where they are of the very same weights.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import tyro

from roboreel import LeRobotDatasetV2, RoboreelError
from roboreel.checkpoint import steps_done, write_json
from roboreel.evaluate import EVAL, EvalConfig, EvalResult, Spread, evaluate, paired_difference, read_result
from roboreel.train import TrainConfig, TrainResult, train

SAMPLE = Path(__file__).parent / "data" / "pusht"


@dataclass(frozen=True)
class Options:
    """Options of the example; the defaults take about five minutes on two cores."""

    output_dir: Path = Path("outputs/pusht")
    """Where everything goes."""
    source: Path = SAMPLE
    """Episodes of PushT: a folder in LeRobot format."""
    steps: int = 2500
    """Optimiser steps."""
    batch_size: int = 64
    """Frames a step."""
    n_episodes: int = 50
    """Episodes to try the policy, and chance, on."""
    max_steps: int = 300
    """Steps after which an episode is cut."""
    n_envs: int = 10
    """Environments at once."""
    force: bool = False
    """Begin anew, whatever an earlier run left in `output_dir`."""


DATASET, IMPORT, TRAIN, SUMMARY = "dataset", "import.json", "train", "summary.json"
EVAL_TRAINED, EVAL_RANDOM = "eval_trained", "eval_random"


def main(options: Options) -> None:
    """Import, train, evaluate, and print the summary."""
    began = time.perf_counter()
    if options.force:
        remove_earlier(options.output_dir)
    dataset, import_s = imported(options)
    # In memory-mapped form a batch is read in a millisecond or two: no worker processes are needed.
    config = TrainConfig(
        dataset=dataset.storage_dir,
        output_dir=options.output_dir / TRAIN,
        steps=options.steps,
        batch_size=options.batch_size,
        num_workers=0,
    )
    done = steps_done(config.output_dir)
    trained = train(replace(config, resume=done > 0))
    configs = eval_configs(options, config.output_dir)
    known = [read_result(each) for each in configs]
    ours, chance = (found or evaluate(each) for found, each in zip(known, configs, strict=True))
    if done == options.steps and all(known):
        print(f"{options.output_dir} holds the finished run already; --force begins anew")
    print(summary(dataset, trained, ours, chance))
    print(f"this took {time.perf_counter() - began:.0f} s")
    # Of all parts of the run, where it was interrupted: of the steps that count, and of the evaluations shown.
    seconds = {"training": trained.data_s + trained.update_s, "evaluation": ours.seconds + chance.seconds}
    if import_s is not None:
        seconds = {"import": import_s, **seconds}
    record(options.output_dir, dataset, trained, ours, chance, seconds)


def remove_earlier(output_dir: Path) -> None:
    """Remove what a run of this example makes; what else is there stays."""
    for name in (DATASET, TRAIN, EVAL_TRAINED, EVAL_RANDOM):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    for name in (IMPORT, SUMMARY):
        (output_dir / name).unlink(missing_ok=True)


def imported(options: Options) -> tuple[LeRobotDatasetV2, float | None]:
    """Import the episodes, or open what an earlier run imported; with the seconds that took, where they are known."""
    folder, note = options.output_dir / DATASET, options.output_dir / IMPORT
    there = folder.exists()
    began = time.perf_counter()
    dataset = LeRobotDatasetV2.from_lerobot(options.source, folder, decode_images=True, progress=True, readonly=True)
    if not there:
        write_json(note, {"uuid": dataset.uuid, "seconds": time.perf_counter() - began})
    known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return dataset, known["seconds"] if known.get("uuid") == dataset.uuid else None


def eval_configs(options: Options, checkpoint: Path) -> tuple[EvalConfig, EvalConfig]:
    """Return how to evaluate the policy, and chance: on the same seeds."""
    ours = EvalConfig(
        options.output_dir / EVAL_TRAINED,
        checkpoint,
        n_episodes=options.n_episodes,
        n_envs=options.n_envs,
        max_steps=options.max_steps,
    )
    chance = replace(ours, output_dir=options.output_dir / EVAL_RANDOM, checkpoint=None, policy="random")
    return ours, chance


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
        "coverage, at first": told(ours.summary["initial_coverage"]),
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
    output_dir: Path,
    dataset: LeRobotDatasetV2,
    trained: TrainResult,
    ours: EvalResult,
    chance: EvalResult,
    seconds: dict[str, float],
) -> None:
    """Write the figures that the README shows, with the machine and the versions that gave them."""
    content = {
        "command": "make train",
        "date": dt.date.fromtimestamp((output_dir / EVAL_TRAINED / EVAL).stat().st_mtime).isoformat(),
        "machine": f"{platform.machine()}, {cores()} cores, {platform.system()}",
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
        "coverage_initial": ours.summary["initial_coverage"].to_dict(),
        "coverage_trained": ours.summary["max_coverage"].to_dict(),
        "coverage_random": chance.summary["max_coverage"].to_dict(),
        "coverage_difference": paired_difference(ours, chance, "coverage").to_dict(),
        "success_trained": ours.summary["success"].to_dict(),
        "success_random": chance.summary["success"].to_dict(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    write_json(output_dir / SUMMARY, content)


def cores() -> int:
    """Return how many cores this process may use; where the system does not tell (macOS), how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told(spread: Spread) -> str:
    """Return a mean and its interval as text."""
    return f"{spread.mean:.3f} (95 % {spread.low:.3f} to {spread.high:.3f})"


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except RoboreelError as error:
        sys.exit(f"error: {error}")
