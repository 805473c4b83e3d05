"""Write the README's table of speed, docs/benchmarks.md and its chart from benchmarks/results; `--check` compares.

make bench && python -m scripts.write_benchmarks
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.benchmark import OURS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks.svg"
BEGIN, END = "<!-- speed: scripts/write_benchmarks.py -->", "<!-- end of speed -->"
CHARTED = ("state_windows", "image_windows", "video_two_cameras", "video_pusht")
"""What peers do too."""

Results = dict[str, dict[str, Any]]


def number(value: float) -> str:
    """Three digits that count, thousands with a comma.

    >>> [number(value) for value in (0.01234, 2.5, 31.26, 1784.3)]
    ['0.0123', '2.50', '31.3', '1,784']
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def in_order(found: Results) -> Results:
    """The results in the order of the suite; what is no longer in it goes."""
    from benchmarks.suite import SUITE

    return {benchmark.name: found[benchmark.name] for benchmark in SUITE if benchmark.name in found}


def table(found: Results) -> str:
    """Return the README's table: a row a goal."""
    if not found:
        return "No run is recorded yet; `make bench` measures."
    lines = ["| work | roboreel | compared | measured | goal | reached |", "| --- | ---: | --- | ---: | ---: | --- |"]
    for result in found.values():
        ours = result["contenders"].get(OURS, {})
        shown = f"{number(ours['ms'])} ms" if "ms" in ours else ""
        title = f"{result['title']}, batch {result['batch_size']}" if ours else result["title"]
        for goal in result["goals"]:
            measured = "–" if goal["figure"] is None else f"{number(goal['figure'])} {goal['unit']}".strip()
            reached = {None: "–", True: "yes", False: "**no**"}[goal["reached"]]
            lines.append(f"| {title} | {shown} | {goal['text']} | {measured} | {_wanted(goal)} | {reached} |")
            title = shown = ""
    return "\n".join([*lines, "", *(f"- {line}" for line in _runs(found))])


def _wanted(goal: dict[str, Any]) -> str:
    sign, limit = ("≤", goal["at_most"]) if goal["at_most"] is not None else ("≥", goal["at_least"])
    return "–" if limit is None else f"{sign} {limit:,g} {goal['unit']}".strip()


def _runs(found: Results) -> list[str]:
    """Where, when and with what; one line a run."""
    runs: dict[str, list[str]] = {}
    for name, result in found.items():
        run = result["run"]
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
        told = f"`{run['command']}`, {run['date']}, {run['machine']}, {run['processor']}, {run['memory_gb']} GB"
        runs.setdefault(f"{told}, Python {run['python']}, {versions}", []).append(name)
    if len(runs) == 1:
        return list(runs)
    return [f"{', '.join(names)}: {run}" for run, names in runs.items()]


PREFACE = """# Speed and memory

Nothing here is typed in: `python -m scripts.write_benchmarks` writes this page, its chart and the README's table from
`benchmarks/results`, which `make bench` fills. Every contender is a process of its own; they take turns (A B A B …),
reading the same recorded batches, the first of which is compared key by key. A ratio is the median over the turns of
the ratios within each: another process on the machine slows all of them. Milliseconds are medians. Except where a row
says otherwise everything is in the page cache. RSS and USS are of the process and its workers after its last turn;
pages of mapped files count in RSS, and the system takes those back when it needs them. torchrl draws its own slices,
as many frames as the others' windows. The floor of float32 images is `numpy.take` into a ready uint8 array, then
`copy_` into a ready float32 tensor and `mul_(1 / 255)` in place.

![samples a second, beside floors and peers](benchmarks.svg)
"""


def page(found: Results) -> str:
    """Return docs/benchmarks.md: every contender of every benchmark."""
    parts = [PREFACE]
    for name, result in found.items():
        parts.append(f'## {result["title"]}\n\n`make bench ARGS="--only {name}"`, batches of {result["batch_size"]}\n')
        if result["contenders"]:
            parts.append("| | ms a batch | samples/s | RSS, MB | USS, MB |\n| --- | ---: | ---: | ---: | ---: |")
            parts[-1] += "".join(f"\n{_contender(key, value)}" for key, value in result["contenders"].items()) + "\n"
        if result["figures"]:
            parts.append("| | |\n| --- | ---: |")
            parts[-1] += "".join(f"\n| {key} | {number(value)} |" for key, value in result["figures"].items()) + "\n"
        for goal in result["goals"]:
            measured = "not measured" if goal["figure"] is None else f"{number(goal['figure'])} {goal['unit']}".strip()
            reached = {None: "", True: ", reached", False: ", **not reached**"}[goal["reached"]]
            parts.append(f"- {goal['text']}: {measured} (goal {_wanted(goal)}{reached})")
        parts.append("")
    parts += ["## Where and when\n", *(f"- {line}" for line in _runs(found)), "", "Versions of the peers:", ""]
    parts += [f"- {line}" for line in _peers(found)]
    return "\n".join(parts).rstrip() + "\n"


def _contender(name: str, found: dict[str, Any]) -> str:
    if "ms" not in found:
        return f"| {name} | {'failed' if 'failed' in found else 'not installed'} | | | |"
    figures = (
        number(found["ms"]),
        f"{found['samples_per_s']:,.0f}",
        f"{found['rss_mb']:,.0f}",
        f"{found['uss_mb']:,.0f}",
    )
    return f"| {name} | {' | '.join(figures)} |"


def _peers(found: Results) -> list[str]:
    seen = {
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in contender["versions"].items())
        for result in found.values()
        for name, contender in result["contenders"].items()
        if "versions" in contender and "roboreel" not in contender["versions"]
    }
    return sorted(seen)


def labels(found: Results) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return for each charted benchmark its title and samples a second of each contender, fastest last."""
    charted = []
    for name in CHARTED:
        if name in found:
            rates = {key: value.get("samples_per_s") for key, value in found[name]["contenders"].items()}
            present = [(key, rate) for key, rate in rates.items() if rate]
            charted.append((found[name]["title"], sorted(present, key=lambda pair: pair[1])))
    return charted


def draw(found: Results, path: Path) -> None:
    """Draw the chart: a panel a benchmark, samples a second on a logarithmic scale, their number beside each bar."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain: Any = {"svg.fonttype": "none", "svg.hashsalt": "roboreel", "font.family": "sans-serif", "font.size": 9}
    charted = labels(found)
    with mpl.rc_context(plain):
        heights = [len(bars) for _, bars in charted]
        figure, axes = plt.subplots(
            len(charted), 1, figsize=(8, 0.9 * len(charted) + 0.28 * sum(heights)), height_ratios=heights, squeeze=False
        )
        for axis, (title, bars) in zip(axes[:, 0], charted, strict=True):
            names, rates = [name for name, _ in bars], [rate for _, rate in bars]
            colours = ["tab:orange" if name == OURS else "tab:gray" for name in names]
            drawn = axis.barh(names, rates, color=colours)
            axis.bar_label(drawn, [number(rate) for rate in rates], padding=3)
            axis.set_xscale("log")
            axis.set_xlim(min(rates) / 3, max(rates) * 5)
            axis.set_title(title, loc="left", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        axes[-1, 0].set_xlabel("samples a second")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def with_table(readme: str, found: Results) -> str:
    """Return the README with the part between the two marks written anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def main() -> None:
    found = in_order(results.read())
    readme = README.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        same = with_table(readme, found) == readme and (not found or PAGE.read_text(encoding="utf-8") == page(found))
        sys.exit(not same)
    README.write_text(with_table(readme, found), encoding="utf-8")
    if found:
        PAGE.write_text(page(found), encoding="utf-8")
        if labels(found):
            draw(found, CHART)


if __name__ == "__main__":
    main()
