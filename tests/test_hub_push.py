"""Datasets put up on the Hub: the real client against a hub on loopback, of which only changes travel."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from roboreel import LeRobotDatasetV2
from roboreel.errors import HubError, InvalidArgumentError
from tests.hub_state import Hub
from tests.recordings import made, recording
from tests.test_lerobot_export import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


def test_what_is_pushed_comes_back_and_a_second_push_sends_only_what_changed(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4, 3], camera=True, image_mode="video", task="push")
    first = dataset.push_to_hub("me/arm", private=True, license="mit", token="hf_right")
    assert hub.repos["me/arm"].private
    assert hub.repos["me/arm"].tags["v3.0"] == first.commit
    card = hub.repos["me/arm"].commits[-1][1]["README.md"].decode()
    assert "license: mit" in card
    assert "2 episodes of 1 tasks: 7 frames at 10 Hz" in card
    assert "`observation.image` | video | 16 × 24 × 3" in card
    back = LeRobotDatasetV2.from_huggingface_hub(
        "me/arm", storage_dir=tmp_path / "back", token="hf_right", progress=False
    )
    assert_same(dataset, back)
    hub.forget_counts()
    again = dataset.push_to_hub("me/arm", license="mit", token="hf_right")
    assert (again.commit, again.files_changed, hub.received) == (first.commit, 0, 0)
    with dataset.edit("action") as actions:
        actions[2] = 9
    changed = dataset.push_to_hub("me/arm", license="mit", token="hf_right")
    assert changed.commit != first.commit
    [video] = [data for name, data in hub.repos["me/arm"].commits[-1][1].items() if name.endswith(".mp4")]
    sent = [request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("PUT")]
    assert len(sent) == 2  # rows and episodes
    assert hashlib.sha256(video).hexdigest() not in sent
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == ["back", "dataset"]


def test_an_upload_that_was_cut_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4, 3], camera=True, image_mode="video")
    hub.fail("POST .*commit", times=100, status=400)
    with pytest.raises(HubError):
        dataset.push_to_hub("me/arm", token="hf_right")
    sent = hub.received
    assert sent > 0
    hub.faults.clear()
    dataset.push_to_hub("me/arm", token="hf_right")
    assert not [data for name, data in hub.repos["me/arm"].commits[-1][1].items() if not data]
    uploads = [request for request in hub.requests if request.startswith("PUT")]
    assert len(uploads) == len(set(uploads))


def test_pushing_wants_a_token(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="give a token"):
        made(tmp_path / "dataset", [4]).push_to_hub("me/arm")
    assert not hub.repos


def test_what_was_to_be_private_is_not_shown(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4])
    dataset.push_to_hub("me/arm", token="hf_right")
    before = len(hub.repos["me/arm"].commits)
    with pytest.raises(HubError, match="me/arm is there already, and public: make it private in its settings"):
        dataset.push_to_hub("me/arm", private=True, token="hf_right")
    assert len(hub.repos["me/arm"].commits) == before
    dataset.push_to_hub("me/hidden", private=True, token="hf_right")
    dataset.push_to_hub("me/hidden", private=True, token="hf_right")


def card(hub: Hub) -> str:
    return hub.repos["me/arm"].commits[-1][1]["README.md"].decode()


def test_of_a_card_only_what_is_between_the_marks_is_replaced(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4])
    dataset.push_to_hub("me/arm", license="mit", token="hf_right")
    (tmp_path / "here").mkdir()
    edited = card(hub).replace("- robotics\n", "- robotics\nlanguage: en\n").replace("# me/arm", "# My arm\n\nmine")
    edited = edited.replace("<!-- roboreel: what", "Before.\n<!-- roboreel: what") + "\nAfter.\n"
    for name, data in hub.repos["me/arm"].commits[-1][1].items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(data)
    (tmp_path / "here" / "README.md").write_text(edited)
    (tmp_path / "here" / "videos").mkdir()
    (tmp_path / "here" / "videos" / "old.mp4").write_bytes(b"of an earlier version")
    (tmp_path / "here" / "plots").mkdir()
    (tmp_path / "here" / "plots" / "reward.svg").write_text("<svg/>")
    hub.add("me/arm", tmp_path / "here")
    dataset.add_episodes(recording(3, 4))
    dataset.push_to_hub("me/arm", token="hf_right")
    told = card(hub)
    assert told.startswith("---\nlicense: mit\ntask_categories:\n- robotics\nlanguage: en\n")
    assert told.index("\nBefore.\n") < told.index("2 episodes of 1 tasks: 7 frames") < told.index("\nAfter.\n")
    assert "Licence: mit." in told
    assert "mine" not in told
    assert told.count("## Load it") == 1
    assert {"plots/reward.svg"} == {
        name for name in hub.repos["me/arm"].commits[-1][1] if "plots" in name or "old" in name
    }
    dataset.push_to_hub("me/arm", license="apache-2.0", token="hf_right")
    assert card(hub).count("license: ") == 1
    assert "license: apache-2.0\n" in card(hub)


@pytest.mark.parametrize("text", ["# By hand\n\nWords.\n", "---\nlicense: mit\n---\nWords.\r\n", "\xff", ""])
def test_a_card_by_others_stays_and_ours_follows_it(hub: Hub, tmp_path: Path, text: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "README.md").write_bytes(text.encode("latin-1"))
    hub.add("me/arm", tmp_path / "here")
    dataset = made(tmp_path / "dataset", [4])
    for _ in range(2):
        dataset.push_to_hub("me/arm", token="hf_right")
        assert card(hub).startswith("---\n" + ("license: mit\n---\nWords." if "---" in text else "task_categories:"))
        assert card(hub).count("## Load it") == 1
        assert ("Words." in card(hub)) == ("Words." in text)


def test_what_a_killed_push_left_goes_with_the_next(hub: Hub, tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4])
    place = tmp_path / ".dataset.push"
    (place / "lerobot" / "meta").mkdir(parents=True)
    (place / "lerobot" / "meta" / "info.json").write_text("{")
    dataset.push_to_hub("me/arm", token="hf_right")
    assert {path.name for path in tmp_path.iterdir()} - {"hf"} == {"dataset"}
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"\.dataset\.push, where .* holds other things; move it away"):
        dataset.push_to_hub("me/arm", token="hf_right")
    assert (place / "thesis.tex").read_text() == "mine"


def test_a_dataset_in_a_place_that_is_only_read_is_pushed_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "dataset", [4]).close()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)  # root may write anywhere
    with LeRobotDatasetV2(tmp_path / "dataset", readonly=True) as dataset:
        dataset.push_to_hub("me/arm", token="hf_right")
    assert "meta/info.json" in hub.repos["me/arm"].commits[-1][1]
    assert {path.name for path in tmp_path.iterdir()} - {"hf"} == {"dataset"}
