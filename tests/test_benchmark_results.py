"""The README's table of speed, its page and its chart say what the committed results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import results
from benchmarks.benchmark import OURS
from benchmarks.suite import SUITE
from scripts.write_benchmarks import CHART, PAGE, README, draw, in_order, labels, number, page, table, with_table


def made_up() -> dict[str, dict[str, Any]]:
    """A result of each benchmark: everything but the figures is what a run writes."""
    run = {"command": "python -m benchmarks", "date": "2026-01-02", "machine": "Linux", "processor": "A", "python": "3"}
    contender = {"ms": 2.0, "samples_per_s": 500.0, "rss_mb": 300.0, "uss_mb": 100.0, "versions": {"numpy": "2"}}
    goal = {"text": "rate", "figure": 1784.3, "unit": "×", "at_most": None, "at_least": 1000, "reached": True}
    missed = {"text": "time", "figure": 4.0, "unit": "ms", "at_most": 3, "at_least": None, "reached": False}
    return {
        benchmark.name: {
            "title": benchmark.title,
            "batch_size": 256,
            "contenders": {OURS: contender, "absent": {"missing": "…"}} if benchmark.contenders else {},
            "figures": {},
            "goals": [goal, missed],
            "run": {**run, "memory_gb": 24.0, "versions": {"numpy": "2"}},
        }
        for benchmark in SUITE
    }


def test_the_readme_and_the_page_are_those_that_the_results_make() -> None:
    found = in_order(results.read())
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, found) == readme, "type python -m scripts.write_benchmarks"
    assert not found or PAGE.read_text(encoding="utf-8") == page(found), "type python -m scripts.write_benchmarks"


def test_the_chart_shows_the_committed_figures() -> None:
    found = in_order(results.read())
    told = re.findall(r"<text[^>]*>([^<]*)</text>", CHART.read_text()) if labels(found) else []
    wanted = [number(rate) for _, bars in labels(found) for _, rate in bars]
    assert sorted(set(wanted) - set(told)) == [], "type python -m scripts.write_benchmarks"


def test_every_benchmark_that_is_committed_is_one_of_the_suite_and_of_a_full_run() -> None:
    for name, result in results.read().items():
        assert name in {benchmark.name for benchmark in SUITE}
        assert "--quick" not in result["run"]["command"]
        assert not any(contender.get("other") for contender in result["contenders"].values()), "not the same work"
        assert set(result) == {"title", "batch_size", "contenders", "figures", "goals", "run"}


def test_a_goal_that_is_missed_is_told_as_missed(tmp_path: Path) -> None:
    found = made_up()
    lines = table(found).splitlines()
    first = next(number for number, line in enumerate(lines) if SUITE[0].title in line)
    assert lines[first] == f"| {SUITE[0].title}, batch 256 | 2.00 ms | rate | 1,784 × | ≥ 1,000 × | yes |"
    assert lines[first + 1] == "|  |  | time | 4.00 ms | ≤ 3 ms | **no** |"
    assert "**not reached**" in page(found)
    assert "| absent | not installed | | | |" in page(found)
    draw(found, tmp_path / "chart.svg")
    assert ">500<" in (tmp_path / "chart.svg").read_text()


def test_other_figures_would_be_seen() -> None:
    found = made_up()
    other: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    other[SUITE[0].name]["goals"][0]["figure"] = 1.0
    assert table(other) != table(found)
    assert page(other) != page(found)


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, "0"), (0.999, "0.999"), (1.0, "1.00"), (10, "10.0"), (1e6, "1,000,000")]
)
def test_numbers(value: float, told: str) -> None:
    assert number(value) == told
