"""Write the README's table of figures from the committed results.

make train && cp outputs/pusht/summary.json docs/results/train_pusht.json
python scripts/write_readme_figures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "train_pusht.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: scripts/write_readme_figures.py -->", "<!-- end of figures -->"


def table(result: dict[str, Any]) -> str:
    """Return the Markdown of one run of `make train`."""
    waited = result["data_s"] / (result["data_s"] + result["update_s"])
    seconds = result["seconds"]
    rows = [
        ("frames, episodes", f"{result['frames']:,}, {result['episodes']}"),
        (", ".join(seconds), " + ".join(f"{value:.0f} s" for value in seconds.values())),
        ("training steps, final loss", f"{result['steps']:,}, {result['final_loss']:.3f}"),
        ("waiting for data, computing", f"{result['data_s']:.1f} s ({waited:.1%}), {result['update_s']:.0f} s"),
        ("mean coverage that the seeds begin with", told(result["coverage_initial"])),
        ("mean maximum coverage, trained", told(result["coverage_trained"])),
        ("mean maximum coverage, random", told(result["coverage_random"])),
        (f"difference over {result['seeds']} paired seeds", told(result["coverage_difference"])),
        ("success, trained", told(result["success_trained"])),
        ("success, random", told(result["success_random"])),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = ["| `make train` | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(
        [
            *lines,
            "",
            f"Means with their 95 % intervals; {result['date']}, {result['machine']}, Python {result['python']}, "
            f"{versions}. Another machine rounds otherwise and trains another policy.",
        ]
    )


def told(spread: dict[str, float]) -> str:
    return f"{spread['mean']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})"


def with_figures(readme: str, result: dict[str, Any]) -> str:
    """Return the README with the part between the two marks written anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(result)}\n{END}{after}"


def main() -> None:
    readme = README.read_text(encoding="utf-8")
    written = with_figures(readme, json.loads(RESULTS.read_text(encoding="utf-8")))
    if "--check" in sys.argv[1:]:
        sys.exit(written != readme)
    README.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
