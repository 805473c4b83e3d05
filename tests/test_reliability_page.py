"""docs/reliability.md says what the committed figures say, and those are what is promised."""

from __future__ import annotations

from scripts.reliability import read_results
from scripts.write_reliability import PAGE, page


def test_the_page_is_the_one_that_the_figures_make() -> None:
    assert PAGE.read_text() == page(read_results()), "type python -m scripts.write_reliability"


def test_the_figures_are_of_a_million_windows_and_hundreds_of_kills_and_nothing_lost() -> None:
    results = read_results()
    windows = [run for name, run in results["windows"].items() if not run["broken"]]
    assert sum(run["windows"] for run in windows) >= 1_000_000
    assert sum(run["torn"] for run in windows) == 0
    assert all(run["torn"] > 0 for run in results["windows"].values() if run["broken"])
    assert sum(run["kills"] for run in results["kills"].values()) >= 500
    assert sum(run["lost"] for run in results["kills"].values()) == 0
    assert sum(run["lost"] for run in results["power cuts"].values()) == 0
    assert all(min(run["kills"], run["growths"], run["edits"], run["times_round"]) >= 1 for run in windows)
    assert sum(run["faults"] for run in results["faults"].values()) >= 500
    assert sum(run["neither"] for run in results["faults"].values()) == 0
    assert sum(run["flipped"] + run["cut"] for run in results["flips"].values()) >= 5_000
    assert sum(run["missed"] for run in results["flips"].values()) == 0
