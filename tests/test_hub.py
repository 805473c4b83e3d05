"""Datasets taken in from the Hub: the real client against a hub on loopback, whole, interrupted and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.cli.main import main
from roboreel.errors import HubError, InvalidArgumentError, RoboreelWarning, SourceError
from roboreel.store import Writer, is_unfinished
from tests import lerobot_folders
from tests.hub_state import Hub
from tests.lerobot_folders import CAMERA, TASKS
from tests.test_lerobot_export import assert_same
from tests.video_files import read_numbers

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

REPO = "lerobot/small"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lerobot_folders.write_v2(tmp_path / "source")


def pulled(place: Path | None, **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2.from_huggingface_hub(REPO, storage_dir=place, progress=False, **options)


def shown(dataset: LeRobotDatasetV2) -> list[int]:
    """The numbers that the pictures of all episodes show."""
    return read_numbers(np.concatenate([dataset.get_episode(episode)[CAMERA] for episode in range(3)]))


def _files(hub: Hub) -> list[str]:
    """What was downloaded, in order."""
    return [request.split("/", 6)[-1] for request in hub.requests if request.startswith("GET /datasets/")]


@pytest.mark.parametrize("kind", ["v2.1", "v3.0", "v3-images", "v1"])
def test_a_repository_becomes_a_dataset_and_nothing_else_stays(hub: Hub, tmp_path: Path, kind: str) -> None:
    writer = lerobot_folders.write_v1 if kind == "v1" else lerobot_folders.WRITERS[kind]
    folder = writer(tmp_path / "source")
    repo = hub.add(REPO, folder)
    dataset = pulled(tmp_path / "dataset")
    wanted = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "wanted", progress=False)
    assert_same(wanted, dataset)
    provenance = json.loads((tmp_path / "dataset/metadata.json").read_text())["provenance"]
    assert (provenance["repo_id"], provenance["revision"], provenance["commit"]) == (REPO, "main", repo.commits[-1][0])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["dataset", "source", "wanted"]
    for video in (tmp_path / "dataset").rglob("*.mp4"):
        assert video.stat().st_nlink == 1  # the only copy


def test_called_again_it_asks_for_the_revision_alone(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    pulled(tmp_path / "dataset").close()
    hub.forget_counts()
    assert len(pulled(tmp_path / "dataset")) == 15
    assert len(hub.requests) == 1


def test_the_default_place_is_beside_the_hubs_cache(hub: Hub, tmp_path: Path, folder: Path) -> None:
    repo = hub.add(REPO, folder)
    repo.tags["v2.1"] = repo.commits[-1][0]
    home = tmp_path / "hf" / "roboreel" / "lerobot"
    assert pulled(None).storage_dir == home / "small"
    assert pulled(None, revision="v2.1").storage_dir == home / "small@v2.1"
    decoded = LeRobotDatasetV2.from_huggingface_hub(REPO, True, progress=False)
    assert decoded.storage_dir == home / "small-decoded"
    assert pulled(None, episodes=[1]).storage_dir.name.startswith("small-1-episodes-")


def test_a_new_revision_is_told_and_taken_where_it_is_asked_for(hub: Hub, tmp_path: Path, folder: Path) -> None:
    old = hub.add(REPO, folder).commits[-1][0]
    pulled(tmp_path / "dataset").close()
    lerobot_folders.write_lines(
        folder / "meta" / "tasks.jsonl", [{"task_index": i, "task": f"new {i}"} for i in range(2)]
    )
    new = hub.add(REPO, folder).commits[-1][0]
    with pytest.warns(RoboreelWarning, match=rf"has a newer revision, {new[:12]}; .* holds {old[:12]}, which is used"):
        assert pulled(tmp_path / "dataset")[0]["task"] == TASKS[0]
    assert pulled(tmp_path / "new")[0]["task"] == "new 0"
    assert pulled(tmp_path / "old", revision=old)[0]["task"] == TASKS[0]


@pytest.mark.parametrize("kind", ["v2.1", "v3.0"])
def test_chosen_episodes_are_all_that_is_downloaded(hub: Hub, tmp_path: Path, kind: str) -> None:
    dataset = LeRobotDatasetV2.from_lerobot(
        lerobot_folders.write_v2(tmp_path / "source"), tmp_path / "whole", progress=False
    )
    limits: dict[str, Any] = {} if kind == "v2.1" else {"data_files_size_in_mb": 1e-3, "video_files_size_in_mb": 1e-3}
    version: Any = kind
    dataset.to_lerobot(tmp_path / "out", version, **limits)  # a file an episode
    hub.add(REPO, tmp_path / "out")
    some = pulled(tmp_path / "dataset", episodes=[1])
    assert (some.num_episodes, len(some)) == (1, 4)
    assert read_numbers(some.get_episode(0)[CAMERA]) == [5, 6, 7, 8]
    got = [name for name in _files(hub) if name.startswith(("data", "videos"))]
    assert len(got) == 2
    assert all("1" in name.rsplit("/", 1)[1] for name in got)
    with pytest.raises(InvalidArgumentError, match="episodes names 7, and there are 3 episodes, from 0 to 2"):
        pulled(tmp_path / "another", episodes=[7])


def test_interrupted_it_goes_on_and_fetches_no_video_twice(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    hub.fail(r"GET .*episode_000002\.mp4", times=100, status=500)
    with pytest.raises(HubError, match=r"episode_000002\.mp4: no answer from the Hub"):
        pulled(tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists() or is_unfinished(tmp_path / "dataset")
    hub.faults.clear()
    hub.forget_counts()
    dataset = pulled(tmp_path / "dataset")
    videos = [name for name in _files(hub) if name.endswith(".mp4")]
    assert len(videos) == len(set(videos))
    assert shown(dataset) == list(range(15))
    assert not list(tmp_path.glob(".dataset*"))


def test_killed_half_way_it_takes_up_what_is_done(
    hub: Hub, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    from roboreel.hub.files import HubFiles

    fetch = HubFiles.fetch

    def interrupted(self: HubFiles, path: Path) -> None:
        if path.name == "episode_000002.mp4":
            raise KeyboardInterrupt
        fetch(self, path)

    with monkeypatch.context() as context:
        context.setattr(HubFiles, "fetch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pulled(tmp_path / "dataset")
    assert is_unfinished(tmp_path / "dataset")
    hub.forget_counts()
    dataset = pulled(tmp_path / "dataset")
    assert _files(hub) == ["videos/chunk-000/observation.images.top/episode_000002.mp4"]
    assert shown(dataset) == list(range(15))


def test_a_process_that_is_killed_while_it_downloads_leaves_what_the_next_goes_on_with(
    hub: Hub, tmp_path: Path, folder: Path
) -> None:
    hub.add(REPO, folder)
    code = f"from roboreel import LeRobotDatasetV2 as D; D.from_huggingface_hub({REPO!r}, storage_dir='dataset')"
    code = f"import faulthandler; faulthandler.dump_traceback_later(60, exit=True); {code}"  # hung, it says where
    told = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    with (tmp_path / "stderr").open("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=told, stderr=said)
        while process.poll() is None and not any(request.endswith("episode_000001.mp4") for request in hub.requests):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text() + str(hub.requests)
    assert shown(pulled(tmp_path / "dataset")) == list(range(15))
    assert not list(tmp_path.glob(".dataset*"))


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("GET .*mp4", {"cut_after": 100}),
    ("GET .*parquet", {"cut_after": 10}),
    ("GET /api", {"status": 429, "Retry_After": "0"}),
    ("(GET|HEAD) /datasets", {"status": 500}),
    ("GET .*tree", {"status": 503}),
]


@pytest.mark.parametrize(("pattern", "fault"), FAULTS, ids=[pattern for pattern, _ in FAULTS])
def test_faults_that_pass_are_sat_out(
    hub: Hub, tmp_path: Path, folder: Path, pattern: str, fault: dict[str, Any]
) -> None:
    hub.add(REPO, folder)
    hub.fail(pattern, times=2, **fault)
    assert len(pulled(tmp_path / "dataset")) == 15
    assert all(one.left == 0 for one in hub.faults)


def test_private_and_restricted_repositories_want_a_token(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder, private=True)
    with pytest.raises(HubError, match=r"no such dataset on the Hub, or it is private; .* give a token"):
        pulled(tmp_path / "dataset")
    assert len(pulled(tmp_path / "dataset", token="hf_right")) == 15
    hub.repos[REPO].private, hub.repos[REPO].gated = False, True
    with pytest.raises(HubError, match="access is restricted; ask for it on its page"):
        pulled(tmp_path / "another")
    assert not (tmp_path / "another").exists()


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("no such repository", "lerobot/nothing", {}, "no such dataset on the Hub"),
    ("no such revision", REPO, {"revision": "v9"}, "has no revision 'v9'"),
    ("no name", "lerobot/small/more", {}, "is no name of a dataset"),
]


@pytest.mark.parametrize(("name", "repo_id", "options", "said"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_is_not_there_is_one_clear_error(
    hub: Hub, tmp_path: Path, folder: Path, name: str, repo_id: str, options: dict[str, Any], said: str
) -> None:
    hub.add(REPO, folder)
    with pytest.raises(HubError, match=said):
        LeRobotDatasetV2.from_huggingface_hub(repo_id, storage_dir=tmp_path / "dataset", **options)
    assert not (tmp_path / "dataset").exists()


def test_without_a_network_what_is_there_is_opened(
    hub: Hub, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    pulled(tmp_path / "dataset").close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(RoboreelWarning, match=r"offline mode is on \(HF_HUB_OFFLINE\).*used as it is"):
        assert len(pulled(tmp_path / "dataset")) == 15
    with pytest.raises(HubError, match="offline mode is on"):
        pulled(tmp_path / "another")


def _half_uploaded(files: dict[str, bytes]) -> None:
    del files["videos/chunk-000/observation.images.top/episode_000001.mp4"]


def _no_metadata(files: dict[str, bytes]) -> None:
    del files["meta/info.json"]


def _way_out(files: dict[str, bytes]) -> None:
    files["../../evil.py"] = b"x"


def _huge_info(files: dict[str, bytes]) -> None:
    files["meta/info.json"] = b" " * (65 << 20)


def _template(files: dict[str, bytes]) -> None:
    info = json.loads(files["meta/info.json"])
    files["meta/info.json"] = json.dumps(info | {"video_path": "/etc/{video_key}.mp4"}).encode()


BROKEN: list[tuple[Any, str]] = [
    (
        _half_uploaded,
        r"^lerobot/small@[0-9a-f]{12}/videos/.*episode_000001\.mp4: camera .* has frames for other ep",
    ),
    (_no_metadata, r"holds no meta/info\.json, so it is no LeRobot dataset, or its upload was not finished"),
    (_way_out, r"lists the file '\.\./\.\./evil\.py', which leads out of its folder"),
    (_huge_info, r"meta/info\.json has 68,157,440 bytes, which is no real metadata; it is not downloaded"),
    (_template, r"^lerobot/small@[0-9a-f]{12}/meta/info\.json: camera .* leads out of the dataset's folder"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_a_broken_repository_is_one_clear_error(hub: Hub, tmp_path: Path, folder: Path, change: Any, said: str) -> None:
    repo = hub.add(REPO, folder)
    change(repo.commits[-1][1])
    with pytest.raises(SourceError, match=said) as refused:
        pulled(tmp_path / "dataset")
    assert str(tmp_path) not in str(refused.value)  # what was downloaded is gone
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["source"]


def test_what_is_found_wrong_is_told_by_names_on_the_hub(hub: Hub, tmp_path: Path, folder: Path) -> None:
    lerobot_folders.edit_info(folder, total_frames=99)
    hub.add(REPO, folder)
    with pytest.warns(RoboreelWarning, match=r"LeRobot v2\.1: meta/info\.json: total_frames is 99"):
        pulled(tmp_path / "dataset").close()


def test_a_place_that_holds_other_things_is_refused_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, folder: Path
) -> None:
    hub.add(REPO, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"holds other things \(notes\.txt\)"):
        pulled(tmp_path / "mine")
    assert not _files(hub)
    (tmp_path / ".theirs.download").mkdir()
    (tmp_path / ".theirs.download" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="where downloads would go, holds other things; move it away"):
        pulled(tmp_path / "theirs")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert (tmp_path / ".theirs.download" / "notes.txt").read_text() == "mine"


def test_no_network_is_told_after_a_second_try(
    tmp_path: Path, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    pulled(tmp_path / "dataset").close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    waits: list[float] = []
    monkeypatch.setattr("roboreel.hub.client.time.sleep", waits.append)
    with pytest.raises(HubError, match="no answer from the Hub"):
        pulled(tmp_path / "another")
    assert len([wait for wait in waits if wait]) == 1
    with pytest.warns(RoboreelWarning, match="used as it is"):
        assert len(pulled(tmp_path / "dataset")) == 15


def test_rows_with_images_go_once_they_are_taken_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, lerobot_folders.WRITERS["v2-images"](tmp_path / "source"))
    add, here = Writer.add, []

    def counted(self: Writer, episode: Any) -> None:
        here.append(len(list((tmp_path / ".dataset.download" / "data").rglob("*.parquet"))))
        if len(here) == 2:
            raise KeyboardInterrupt
        add(self, episode)

    with monkeypatch.context() as context:
        context.setattr(Writer, "add", counted)
        with pytest.raises(KeyboardInterrupt):
            pulled(tmp_path / "dataset")
    assert here == [2, 1]  # the first episode came in as the dataset was made
    dataset = pulled(tmp_path / "dataset")
    wanted = LeRobotDatasetV2.from_lerobot(tmp_path / "source", tmp_path / "wanted", progress=False)
    assert_same(wanted, dataset)
    assert not list(tmp_path.glob(".dataset*"))


def test_a_file_of_another_size_or_hash_is_never_taken_in(hub: Hub, tmp_path: Path, folder: Path) -> None:
    files = hub.add(REPO, folder).commits[-1][1]
    name = "videos/chunk-000/observation.images.top/episode_000001.mp4"
    hub.lies[name] = bytes(reversed(files[name]))
    with pytest.raises(HubError, match=r"episode_000001\.mp4 came with another hash than it is listed with, twice"):
        pulled(tmp_path / "dataset")
    hub.lies[name] = files[name][:-5]
    with pytest.raises(HubError, match=r"episode_000001\.mp4"):
        pulled(tmp_path / "dataset")
    hub.lies.clear()
    assert len(pulled(tmp_path / "dataset")) == 15


def test_kept_sources_lie_in_the_hubs_cache(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    pulled(tmp_path / "dataset", keep_source=True).close()
    hub.forget_counts()
    assert huggingface_hub.snapshot_download(REPO, repo_type="dataset", endpoint=hub.endpoint)
    assert not [name for name in _files(hub) if name.startswith(("data", "videos"))]
    assert len(LeRobotDatasetV2(tmp_path / "dataset", readonly=True)) == 15


def test_a_pulled_dataset_is_the_first_content_of_a_ring(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    ring = pulled(tmp_path / "ring", buffer_capacity=18, use_as_fifo_buffer=True)
    episode = ring.get_episode(0)
    ring.add_episodes({key: value for key, value in episode.items() if key not in ("index", "episode_index")})
    assert len(ring) == 15
    assert ring.get_unique_episode_indices().tolist() == [1, 2, 3]


def test_the_commands_pull_and_push(
    hub: Hub, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    main(["pull", REPO, str(tmp_path / "dataset"), "--episodes", "0", "2"])
    assert "11" in capsys.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    main(["push", str(tmp_path / "dataset"), "me/copy", "--license", "apache-2.0", "--leave-out", CAMERA])
    assert "me/copy: commit" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "dataset")
    back = LeRobotDatasetV2.from_huggingface_hub("me/copy", storage_dir=tmp_path / "dataset", progress=False)
    assert back.get_data_by_key("action")[:, 0].tolist() == [*range(5), *range(9, 15)]
