"""TD-MPC from states and from nothing, by `roboreel train`, once a seed: does what it gets per episode rise?

    PYTHONPATH=src ~/.cache/roboreel/lerobot-*/bin/python -m scripts.learning      # two at a time; see its minutes
    PYTHONPATH=src ~/.cache/roboreel/lerobot-*/bin/python -m scripts.learning --seeds 8 --at-once 4
    python -m scripts.write_learning                                              # docs/learning.md and its chart

A seed's gain is its mean return over the last fifth of its episodes less that over the first fifth; the interval of
the mean gain is Student's, over the seeds. Runs that have ended in `--folder` are not run again.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roboreel.evaluate.spread import Spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "learning.json"
PACKAGES = ("lerobot", "torch", "gymnasium", "numpy")


@dataclass(frozen=True)
class Task:
    """What is learned, and how long."""

    title: str
    env: str
    steps: int
    options: tuple[str, ...]
    """Of `roboreel train`, beside those of every task."""


TASKS = {
    "pendulum": Task(
        "gymnasium's Pendulum-v1",
        "Pendulum-v1",
        10_000,
        (
            *("--online-buffer-capacity", "50000", "--online-buffer-seed-size", "1000"),
            *("--policy.mlp_dim=128", "--policy.cem_iterations=4", "--policy.n_gaussian_samples=128"),
            *("--policy.n_pi_samples=16", "--policy.n_elites=16"),
        ),
    ),
}


def command(task: Task, out: str, seed: int) -> list[str]:
    """Return the arguments of `roboreel`."""
    return [
        *("train", "--policy", "tdmpc", "--dataset", "none", "--output-dir", out, "--device", "cpu"),
        *("--env", task.env, "--env-keys", "observation.state=", "observation.environment_state="),
        *("--steps", str(task.steps), "--online-steps", str(task.steps), "--num-workers", "0"),
        *("--eval-episodes", "0", "--save-every", str(task.steps), *task.options, "--seed", str(seed)),
    ]


def gain_of(returns: Sequence[float]) -> float:
    """Return the mean of the last fifth less that of the first.

    >>> gain_of([0, 2, 5, 5, 5, 5, 5, 5, 9, 7])
    7.0
    """
    fifth = max(1, len(returns) // 5)
    return statistics.fmean(returns[-fifth:]) - statistics.fmean(returns[:fifth])


def learn(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train once; return the return of each episode, and the minutes."""
    out = folder / f"{name}_{seed}"
    told = folder / f"{name}_{seed}.json"
    if told.is_file():
        found: dict[str, Any] = json.loads(told.read_text())
        return found
    began = time.perf_counter()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}_{seed}.log").open("w") as log:
        arguments = [sys.executable, "-m", "roboreel", *command(TASKS[name], str(out), seed)]
        subprocess.run(arguments, env=one_thread, stdout=log, stderr=log, check=True)
    lines = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    told.write_text(
        json.dumps(
            {
                "seed": seed,
                "minutes": round((time.perf_counter() - began) / 60, 1),
                "returns": [round(line["sum_reward"], 3) for line in lines],
                "frames": sum(line["steps"] + 1 for line in lines),
            }
        )
    )
    return learn(name, folder, seed)


def record(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is kept of a task's runs."""
    gains = [gain_of(run["returns"]) for run in runs]
    spread = Spread.of(gains)
    return {
        "command": " ".join(["roboreel", *command(TASKS[name], "DIR", 0)]),
        "runs": runs,
        "gains": [round(gain, 4) for gain in gains],
        "mean_gain": round(spread.mean, 4),
        "interval": [round(spread.low, 4), round(spread.high, 4)],
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def read_results() -> dict[str, Any]:
    """Return {task: figures}."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, of one core each")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "learning")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        with ThreadPoolExecutor(asked.at_once) as pool:
            runs = list(pool.map(partial(learn, name, asked.folder), range(asked.seeds)))
        results = {**read_results(), name: record(name, runs)}
        RESULTS.write_text(json.dumps({name: results[name] for name in TASKS if name in results}) + "\n")
        print(name, results[name]["gains"], results[name]["mean_gain"], results[name]["interval"])


if __name__ == "__main__":
    main()
