"""docs/equivalence.md says what the committed figures say, and those are what is promised."""

from __future__ import annotations

from scripts.equivalence import RESULTS
from scripts.reliability import read_results
from scripts.write_equivalence import PAGE, page


def test_the_page_is_the_one_that_the_figures_make() -> None:
    assert PAGE.read_text() == page(read_results(RESULTS)), "type python -m scripts.write_equivalence"


def test_the_figures_are_of_pusht_whole_and_of_real_folders_and_nothing_differs() -> None:
    compared = list(read_results(RESULTS)["compared"].values())
    for run in compared:  # LeRobot gives another row's picture, and that is all that differs
        assert run["different"] == len(run["taken_from"])
        assert -1 not in run["taken_from"].values()
    whole = {
        (run["decoder"], run["windows"]) for run in compared if run["folder"] == "pusht" and run["items"] == 25_650
    }
    assert whole == {(decoder, kind) for decoder in ("pyav", "torchcodec") for kind in ("single", "policy", "wide")}
    assert all(run["items"] + run["refused"] == run["frames"] for run in compared if run["decoder"] != "pyav")
    for folder in ("v3.0_pusht_image_slice", "v2.1_baboon_dual_camera_torque"):
        kinds = {run["windows"] for run in compared if run["folder"] == folder and run["items"]}
        assert kinds == {"single", "policy", "wide"}
    assert sum(run["pads"] for run in compared) > 100_000
    assert {run["folder"] for run in compared if run["refused"] or run["different"]} == {"v2.1_cr5_sub8"}
