"""docs/lerobot.md says what the committed figures say, and those are what is promised."""

from __future__ import annotations

from scripts.drop_in import POLICIES, read_results
from scripts.write_drop_in import PAGE, page


def test_the_page_is_the_one_that_the_figures_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read_results()), "type python -m scripts.write_drop_in"


def test_losses_of_all_four_policies_are_equal_and_data_comes_sooner() -> None:
    results = read_results()
    assert list(results) == list(POLICIES)
    for found in results.values():
        assert found["equal"] == {"video": True, "pixels": True}
        assert len(set(found["losses"])) == found["steps"]
        assert found["data_s"]["pixels"] < found["data_s"]["video"] < found["data_s"]["lerobot"]
