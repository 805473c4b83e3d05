"""How many frames a second a policy has learned from, where LeRobot wrote its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roboreel.train.lerobot.checkpoints import frames_per_second
from tests.recordings import made


@pytest.mark.parametrize("meta", ["meta", "meta_data"])
def test_a_checkpoint_of_lerobots_own_is_of_the_rate_of_its_dataset(tmp_path: Path, meta: str) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (theirs / meta).mkdir(parents=True)
    (theirs / meta / "info.json").write_text('{"fps": 30}')
    made(ours, [3], fps=10).close()
    for root, rate in ((theirs, 30), (ours, 10), (tmp_path / "gone", None)):
        told = {"dataset": {"repo_id": "someone/something", "root": str(root)}}
        (tmp_path / "train_config.json").write_text(json.dumps(told))
        assert frames_per_second(tmp_path) == rate
