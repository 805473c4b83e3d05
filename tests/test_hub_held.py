"""What a place holds is what is asked of it, and what comes is what the Hub lists; tags follow what is pushed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.errors import HubError, InvalidArgumentError, RoboreelWarning, SourceError
from roboreel.hub.files import HubFiles
from tests import lerobot_folders
from tests.hub_state import Hub
from tests.recordings import made
from tests.test_hub import REPO, pulled, shown

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lerobot_folders.write_v2(tmp_path / "source")


def renamed(folder: Path, task: str) -> Path:
    tasks = folder / "meta" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace(lerobot_folders.TASKS[0], task))
    return folder


def test_a_part_is_not_taken_for_the_whole(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    assert pulled(tmp_path / "dataset", episodes=np.array([1])).num_episodes == 1
    with pytest.raises(InvalidArgumentError, match=r"holds"):
        pulled(tmp_path / "dataset")
    assert pulled(tmp_path / "dataset", episodes=[1]).num_episodes == 1
    assert pulled(None, episodes=[1, 0]).storage_dir == pulled(None, episodes=(0, 1, 1)).storage_dir


@pytest.mark.parametrize("given", [1, ["a"], [1.5], []])
def test_episodes_that_are_no_numbers_are_refused(hub: Hub, tmp_path: Path, folder: Path, given: Any) -> None:
    hub.add(REPO, folder)
    with pytest.raises(InvalidArgumentError, match="give the numbers of some"):
        pulled(tmp_path / "dataset", episodes=given)
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == ["source"]


def test_a_revision_that_is_named_is_the_one_that_is_given(hub: Hub, tmp_path: Path, folder: Path) -> None:
    repo = hub.add(REPO, folder)
    old = repo.commits[0][0]
    hub.add(REPO, renamed(folder, "a new task"))
    assert "a new task" in pulled(tmp_path / "dataset").get_episode(0)["task"]
    with pytest.raises(InvalidArgumentError, match=rf"revision '{old}' is {old[:12]}: give another storage_dir"):
        pulled(tmp_path / "dataset", revision=old)
    repo.tags |= {"a/b": old, "a-b": repo.commits[1][0]}
    first, second = pulled(None, revision="a/b"), pulled(None, revision="a-b")
    assert first.storage_dir != second.storage_dir
    assert "a new task" not in first.get_episode(0)["task"]
    assert "a new task" in second.get_episode(0)["task"]
    hub.add(REPO, renamed(folder, "another"))
    with pytest.warns(RoboreelWarning, match="has a newer revision"):
        pulled(tmp_path / "dataset")


@pytest.mark.parametrize("name", ["meta/tasks.jsonl", "data/chunk-000/episode_000000.parquet"])
def test_other_bytes_of_the_same_length_are_no_file_of_the_hubs(
    hub: Hub, tmp_path: Path, folder: Path, name: str
) -> None:
    hub.add(REPO, folder)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    hub.lies[name] = bytes(raw)
    with pytest.raises(HubError, match=f"{Path(name).name} came with another hash than it is listed with, twice"):
        pulled(tmp_path / "dataset")
    hub.lies.clear()
    assert len(pulled(tmp_path / "dataset")) == 15


def test_what_an_earlier_try_left_is_looked_at(
    hub: Hub, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    fetch_all = HubFiles.fetch_all

    def killed(files: HubFiles, names: Any) -> None:
        fetch_all(files, names)
        raise KeyboardInterrupt

    monkeypatch.setattr(HubFiles, "fetch_all", killed)
    with pytest.raises(KeyboardInterrupt):
        pulled(tmp_path / "dataset")
    monkeypatch.setattr(HubFiles, "fetch_all", fetch_all)
    [tasks] = tmp_path.glob(".dataset.download/meta/tasks.jsonl")
    raw = bytearray(tasks.read_bytes())
    raw[-4] ^= 1
    tasks.write_bytes(raw)  # a kill between download and check
    dataset = pulled(tmp_path / "dataset")
    assert set(dataset.get_data_by_key("task")) == set(lerobot_folders.TASKS)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["meta/" + "n" * 250 + ".json"], "whose name is too long for a file here"),
        (["meta/info.json/y.json"], r"lists the file 'meta/info\.json', and .* as if that were a folder"),
    ],
)
def test_names_that_no_folder_can_hold_are_refused(
    hub: Hub, tmp_path: Path, folder: Path, names: list[str], said: str
) -> None:
    hub.add(REPO, folder).commits[-1][1].update(dict.fromkeys(names, b"{}"))
    with pytest.raises(SourceError, match=said):
        pulled(tmp_path / "dataset")


def test_a_file_that_is_shorter_than_the_hub_says_is_one_clear_error(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    name = "data/chunk-000/episode_000000.parquet"
    hub.fail(rf"GET .*{name}", times=100, cut_after=10)
    with pytest.raises(HubError, match="episode_000000"):
        pulled(tmp_path / "dataset")


def test_the_tag_follows_what_is_pushed(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4, 3], task="push")
    first = dataset.push_to_hub("me/arm", token="hf_right")
    with dataset.edit("action") as actions:
        actions[2] = 9
    second = dataset.push_to_hub("me/arm", token="hf_right")
    assert first.commit != second.commit == hub.repos["me/arm"].tags["v3.0"]


def test_a_push_that_ended_before_its_tag_is_ended_by_the_next(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4, 3], task="push")
    hub.fail("POST .*tag", times=100, status=500)
    with pytest.raises(HubError):
        dataset.push_to_hub("me/arm", token="hf_right")
    assert not hub.repos["me/arm"].tags
    hub.faults.clear()
    report = dataset.push_to_hub("me/arm", token="hf_right")
    assert (report.files_changed, hub.repos["me/arm"].tags) == (0, {"v3.0": report.commit})


def test_a_mac_s_files_beside_the_listing_are_left_alone(tmp_path: Path) -> None:
    source = lerobot_folders.write_v3(tmp_path / "source")
    listing = source / lerobot_folders.V3_EPISODES
    listing.with_name("._file-000.parquet").write_bytes(b"\0\5\x16\7")
    assert len(LeRobotDatasetV2.from_lerobot(source, tmp_path / "dataset")) == 15


def test_processes_that_ask_at_once_take_turns_and_one_downloads(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    code = f"from roboreel import LeRobotDatasetV2 as D; print(len(D.from_huggingface_hub({REPO!r}, storage_dir='d')))"
    told = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore::roboreel.errors.RoboreelWarning", "-c", code]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ends = [process.communicate() for process in processes]
    assert [out for out, _ in ends] == ["15\n"] * 3, ends
    downloads = [request for request in hub.requests if request.startswith("GET /datasets/")]
    assert len(downloads) == len(set(downloads)) > 5
    assert not list(tmp_path.glob(".d*"))


def test_who_waits_for_another_process_is_told_so(hub: Hub, tmp_path: Path, folder: Path) -> None:
    hub.add(REPO, folder)
    lock = tmp_path / ".dataset.pull.lock"

    def let_go() -> None:
        lock.unlink()
        fcntl.flock(held, fcntl.LOCK_UN)

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, let_go).start()
        with pytest.warns(RoboreelWarning, match="another process is at `roboreel pull`, and is waited for"):
            dataset = pulled(tmp_path / "dataset")
    assert len(dataset) == 15
    assert not lock.exists()


def test_what_is_there_is_opened_where_nothing_can_be_written(
    hub: Hub, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, folder)
    pulled(tmp_path / "dataset").close()
    open_ = os.open

    def on_a_read_only_disk(path: Any, *given: Any, **options: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open_(path, *given, **options)

    monkeypatch.setattr(os, "open", on_a_read_only_disk)
    assert len(pulled(tmp_path / "dataset", readonly=True)) == 15


def test_images_that_rows_name_are_fetched_with_them(hub: Hub, tmp_path: Path) -> None:
    folder = lerobot_folders.write_v2(tmp_path / "source", camera="image")
    number = 0
    for episode, length in enumerate(lerobot_folders.LENGTHS):
        names = [f"images/{lerobot_folders.CAMERA}/episode_{episode:06d}/frame_{k:06d}.png" for k in range(length)]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(lerobot_folders.png(number))
            number += 1
        cells = pa.array([{"bytes": None, "path": name} for name in names], IMAGE)
        lerobot_folders.set_column(folder / lerobot_folders.V2_DATA.format(episode), lerobot_folders.CAMERA, cells)
    hub.add(REPO, folder)
    assert shown(pulled(tmp_path / "dataset")) == list(range(15))
    assert not list(tmp_path.glob(".dataset*"))
