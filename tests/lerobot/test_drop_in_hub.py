"""`roboreel lerobot-train` on a repository of the Hub: taken in once, then without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts.drop_in import policy_options

from tests import hub_server

SLICE = Path(__file__).parents[1] / "data" / "v3.0_pusht_image_slice"
REPO = "some/pusht"


def _refs(handler: Any, repo_id: str) -> None:
    """Branches and tags, which LeRobot looks its revision up in."""
    repo = handler.hub.repos[repo_id]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repo.tags.items()]
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}
    handler._answer(200, {"branches": [main], "tags": tags, "converts": []})


def train(home: Path, out: str, endpoint: str, *, offline: bool) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "roboreel", "lerobot-train", f"--dataset.repo_id={REPO}", "--steps=1"),
            *("--batch_size=2", "--num_workers=0", "--save_checkpoint=false", f"--output_dir={home / out}"),
            *policy_options("tdmpc"),
        ],
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": str(int(offline)),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.timeout(250)
def test_a_repository_is_taken_in_once_and_then_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = (re.compile(r"GET /api/datasets/([^/]+/[^/]+)/refs"), _refs)
    monkeypatch.setattr(hub_server, "ROUTES", [route, *hub_server.ROUTES])
    with hub_server.Running() as hub:
        repo = hub.add(REPO, SLICE)
        repo.tags["v3.0"] = repo.commits[-1][0]
        hub.repos[REPO].commit({"README.md": b"a later commit, which is not what LeRobot asks for"})
        assert "num_frames=420" in train(tmp_path, "first", hub.endpoint, offline=False)
        rows = [name for name in hub.sent if name.startswith("data/")]
        assert rows == ["data/chunk-000/file-000.parquet"]
        assert [path.name for path in (tmp_path / "roboreel" / "some").glob("[!.]*")] == ["pusht@v3.0"]
        hub.forget_counts()
        assert "num_frames=420" in train(tmp_path, "again", hub.endpoint, offline=True)
        assert hub.requests == []
