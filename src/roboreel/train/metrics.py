"""What a run tells while it runs, and what its files tell afterwards."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboreel import checkpoint
from roboreel.train.options import RunConfig
from roboreel.view import read_metrics


@dataclass(frozen=True)
class TrainResult:
    """What a run did, over all its parts."""

    checkpoint: Path
    steps: int
    frames_seen: int
    """Frames drawn, repetitions counted."""
    final_loss: float
    """Mean over the last twentieth of the run."""
    data_s: float
    """Seconds that the loop waited for data, in the steps that count: what was lost to a kill is not in it."""
    update_s: float
    """Seconds that it computed, in the same steps."""
    rollout_s: float = 0.0
    """Seconds that it rolled out between them, or waited for the process that does."""


class Line:
    """The metrics of a few steps, until they are written as one line."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        self._steps.append(values)

    def shown(self, lr: float) -> dict[str, str]:
        """Return what the progress bar shows.

        >>> line = Line(batch_size=64)
        >>> line.add(loss=0.25, grad_norm=2, data_s=0.5, update_s=1.5)
        >>> line.shown(lr=3e-4)
        {'loss': '0.2500', 'lr': '3.0e-04', 'data_s': '0.500', 'update_s': '1.500', 'samples/s': '32', 'data': '25.0%'}
        """
        means = {name: sum(values[name] for values in self._steps) / len(self._steps) for name in self._steps[0]}
        seconds = max(means["data_s"] + means["update_s"], 1e-9)
        return {
            "loss": f"{means['loss']:.4f}",
            "lr": f"{lr:.1e}",
            "data_s": f"{means['data_s']:.3f}",
            "update_s": f"{means['update_s']:.3f}",
            "samples/s": f"{self._batch_size / seconds:.0f}",
            "data": f"{means['data_s'] / seconds:.1%}",
        }

    def write(self, out: Path, step: int, lr: float) -> dict[str, float]:
        """Append the line to `metrics.jsonl`, begin a new one; returns what is in it."""
        sums = {name: sum(values[name] for values in self._steps) for name in self._steps[0]}
        means = {name: sums[name] / len(self._steps) for name in ("loss", "grad_norm")}
        self._steps.clear()
        seconds: dict[str, float] = {name: sums[name] for name in sums if name.endswith("_s")}
        values = {"step": step, **means, "lr": lr, **seconds}
        with (out / checkpoint.METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        return values


def describe(result: TrainResult) -> str:
    """Return where the time of a run went, as a table.

    >>> print(describe(TrainResult(Path("run"), 10, 640, 0.25, data_s=0.5, update_s=1.5)))
    10 steps, final loss 0.2500, 320 samples/s
                        seconds   a step   share
    waiting for data        0.5   0.0500   25.0%
    computing               1.5   0.1500   75.0%
    """
    parts = {"waiting for data": result.data_s, "computing": result.update_s}
    if result.rollout_s:
        parts["rolling out"] = result.rollout_s
    total = max(sum(parts.values()), 1e-9)
    head = f"{result.steps} steps, final loss {result.final_loss:.4f}, {result.frames_seen / total:.0f} samples/s"
    rows = [
        f"{name:16} {seconds:10.1f} {seconds / result.steps:8.4f} {seconds / total:7.1%}"
        for name, seconds in parts.items()
    ]
    return "\n".join([head, f"{'':16} {'seconds':>10} {'a step':>8} {'share':>7}", *rows])


def result_of(config: RunConfig) -> TrainResult:
    """Return what the finished run in `config.output_dir` did, from its files."""
    last = checkpoint.latest(config.output_dir)
    assert last is not None
    columns = read_metrics(config.output_dir / checkpoint.METRICS)
    steps, loss = int(columns["step"][-1]), columns["loss"]
    return TrainResult(
        checkpoint=last,
        steps=steps,
        frames_seen=steps * config.batch_size,
        final_loss=float(loss[-max(1, len(loss) // 20) :].mean()),
        data_s=float(columns["data_s"].sum()),
        update_s=float(columns["update_s"].sum()),
        rollout_s=float(np.nansum(columns.get("rollout_s", 0.0))),  # the offline steps have none
    )


def since(clock: float) -> tuple[float, float]:
    """Return the seconds since `clock`, and the clock now."""
    now = time.perf_counter()
    return now - clock, now


def bar_interval_s() -> float:
    """Return how often (s) a progress bar is drawn: seldom where it goes into a log."""
    return 0.2 if sys.stderr.isatty() else 30.0
