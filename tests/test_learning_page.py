"""docs/learning.md says what the committed runs say, and they show that the policy learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.learning import TASKS, gain_of, read_results
from scripts.write_learning import CHART, PAGE, draw, page

from roboreel.evaluate.spread import Spread


def test_the_page_is_the_one_that_the_runs_make(tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read_results()), "type python -m scripts.write_learning"
    draw(read_results(), tmp_path / "again.svg")
    assert CHART.is_file()
    assert (tmp_path / "again.svg").stat().st_size > 1000


@pytest.mark.parametrize("name", list(TASKS))
def test_the_last_fifth_of_a_run_gets_more_than_the_first(name: str) -> None:
    found = read_results()[name]
    gains = [gain_of(run["returns"]) for run in found["runs"]]
    spread = Spread.of(gains)
    assert len(gains) >= 5
    assert spread.low > 0, f"{name}: the interval of the mean gain, {spread}, holds 0"
    assert (found["mean_gain"], *found["interval"]) == pytest.approx((spread.mean, spread.low, spread.high), abs=1e-4)
