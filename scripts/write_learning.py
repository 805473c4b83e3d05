"""Write docs/learning.md and its chart from docs/results/learning.json.

python -m scripts.write_learning
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from scripts.learning import RESULTS, TASKS, gain_of, read_results

PAGE = RESULTS.parents[1] / "learning.md"
CHART = PAGE.with_suffix(".svg")

HEAD = """# Does it learn?

Nothing here is typed in: `python -m scripts.write_learning` writes this page and its chart from
`docs/results/learning.json`, which `python -m scripts.learning` records in the environment of `make test-lerobot`:

    PYTHONPATH=src ~/.cache/roboreel/lerobot-*/bin/python -m scripts.learning

LeRobot's TD-MPC learns from states and from nothing but what it does: its episodes go into a ring, the batches come out
of it. A seed's gain is the mean return of the last fifth of its episodes less that of the first fifth; the interval is
Student's over the seeds.

![return of each episode](learning.svg)

| task | steps, episodes | return, first fifth | last fifth | gain of each seed | mean gain, 95 % | minutes a seed |
| --- | --- | ---: | ---: | --- | --- | ---: |
"""


def page(results: dict[str, Any]) -> str:
    """Return docs/learning.md."""
    rows, told = [], []
    for name, found in results.items():
        runs = found["runs"]
        fifth = len(runs[0]["returns"]) // 5
        first = statistics.fmean(value for run in runs for value in run["returns"][:fifth])
        last = statistics.fmean(value for run in runs for value in run["returns"][-fifth:])
        low, high = found["interval"]
        cells = (
            TASKS[name].title,
            f"{TASKS[name].steps:,}, {len(runs[0]['returns'])}",
            number(first),
            number(last),
            ", ".join(number(gain_of(run["returns"])) for run in runs),
            f"{number(found['mean_gain'])} [{number(low)}, {number(high)}]",
            f"{statistics.fmean(run['minutes'] for run in runs):.0f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        told += [
            f"{TASKS[name].title}, one core a seed, {found['date']}, {found['machine']}, {versions}:\n",
            f"    {found['command']}\n",
        ]
    return HEAD + "\n".join([*rows, "", *told])


def number(value: float) -> str:
    """Three digits that count.

    >>> [number(value) for value in (-1234.56, 0.02561, 7.128)]
    ['-1235', '0.0256', '7.13']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw each seed's returns, averaged over a tenth of its episodes, and the mean of the seeds."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "roboreel", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2))
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(results), squeeze=False)[0]
        for axes, (name, found) in zip(panels, results.items(), strict=True):
            returns = np.array([run["returns"] for run in found["runs"]])
            width = returns.shape[1] // 10
            smooth = np.stack([np.convolve(row, np.full(width, 1 / width), "valid") for row in returns])
            episode = np.arange(width, returns.shape[1] + 1)
            axes.plot(episode, smooth.T, color="tab:gray", alpha=0.5, linewidth=0.8)
            axes.plot(episode, smooth.mean(0), color="tab:orange", linewidth=2)
            axes.set_title(f"{TASKS[name].title}, {len(returns)} seeds", loc="left", fontsize=9)
            axes.set_xlabel(f"episode (mean of {width})")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("return")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    results = read_results()
    PAGE.write_text(page(results), encoding="utf-8")
    draw(results, CHART)


if __name__ == "__main__":
    main()
