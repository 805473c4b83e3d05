"""`make torture` in short: writers are killed at random instants in all image modes, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import torture

from roboreel import LeRobotDatasetV2
from tests.recordings import recording


@pytest.mark.parametrize(
    ("setup", "kills"), [(("memmap", 30), 12), (("memmap", None), 6), (("png", 30), 8), (("video", 30), 3)]
)
def test_a_killed_writer_loses_at_most_what_it_was_replacing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: tuple[str, int | None], kills: int
) -> None:
    monkeypatch.setattr(torture, "SETUPS", [setup])
    operations = 0
    for again in range(10):  # on a busy machine most writers are killed before they have done anything
        (tmp_path / str(again)).mkdir()
        figures = torture.run(torture.Args(kills=kills, seed=7 + 100 * again), tmp_path / str(again))
        assert (figures.kills, figures.lost) == (kills, 0)
        operations += figures.operations
        if operations > kills // 2:
            break
    assert operations > kills // 2


def test_the_judge_sees_a_frame_that_is_missing_one_too_many_and_one_that_is_wrong(tmp_path: Path) -> None:
    """The comparison can fail: what it is given is true of another history."""
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap")
    dataset.add_episodes(recording(3, camera=True, task="push"))
    dataset.close()
    frames = {number: [0, number * 0.5] for number in range(3)}
    assert torture.judge(tmp_path / "dataset", torture.Told(dict(frames)), ring=False) == (frames, 0)
    for lie in ({**frames, 3: [1, 1.5]}, {0: frames[0], 1: frames[1]}, {**frames, 2: [0, -1.0]}):
        with pytest.raises(AssertionError, match="expected"):
            torture.judge(tmp_path / "dataset", torture.Told(lie), ring=False)
