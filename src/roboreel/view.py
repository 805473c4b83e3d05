"""Looking at what a run did: the curves of its metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.errors import SourceError


def read_metrics(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a `metrics.jsonl`, {name: (lines,)}; what a line lacks is NaN.

    A last line that a kill cut short is left out.

    Raises:
        SourceError: a line that is not a JSON object of numbers.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({name: float(value) for name, value in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise SourceError(f"{path}:{number}: not a JSON object of numbers: {line.strip()[:60]!r}") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the mean of each value and up to `width` - 1 before it.

    >>> smoothed(np.array([1.0, 3.0, 5.0]), width=2).tolist()
    [1.0, 2.0, 4.0]
    """
    total = np.cumsum(np.insert(values, 0, 0.0))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    means: NDArray[np.float64] = (total[stop] - total[start]) / (stop - start)
    return means


PANELS: Sequence[tuple[str, Sequence[str], str]] = (
    ("loss", ("loss",), "log"),
    ("norm of the gradient", ("grad_norm",), "log"),
    ("learning rate", ("lr",), "linear"),
    ("seconds a line", ("update_s", "data_s", "rollout_s"), "log"),
)


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw loss, gradient norm, learning rate and where the time went, from `metrics.jsonl` into a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="view", purpose="drawing curves")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot: no display, and no global state
    from matplotlib.figure import Figure

    columns = read_metrics(metrics)
    figure = Figure(figsize=(10, 6.5))
    figure.subplots_adjust(0.08, 0.08, 0.97, 0.94, wspace=0.22, hspace=0.32)  # a layout engine would take half the time
    for axes, (title, names, scale) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name in names:
            if name not in columns:
                continue
            raw = axes.plot(columns["step"], columns[name], alpha=0.35, linewidth=0.8)[0]
            mean = smoothed(columns[name], width=max(1, len(columns[name]) // 50))
            axes.plot(columns["step"], mean, color=raw.get_color(), label=name)
        axes.set(title=title, xlabel="step", yscale=scale)
        if len(names) > 1:
            axes.legend()
    FigureCanvasAgg(figure)
    figure.savefig(picture)
