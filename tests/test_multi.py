"""Several datasets read as one: whose frame an index is, what items have, and a ring among them that is written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import roboreel
from roboreel import LeRobotDatasetV2, MultiLeRobotDatasetV2, RoboreelWarning
from tests.recordings import CAMERA, assorted, made, numbers_of, recording, ring

RENUMBERED = ("index", "episode_index")
WINDOWS: dict[str, list[float]] = {"observation.state": [-0.1, 0, 0.1], CAMERA: [0, 0.1], "task": [-0.1, 0]}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LeRobotDatasetV2]:
    return assorted(tmp_path_factory.mktemp("members"))


def flat(datasets: list[LeRobotDatasetV2], grows: int | None) -> list[tuple[int, int]]:
    """The model: place in the list, and index there, of each index; what grows comes last."""
    order = [place for place in range(len(datasets)) if place != grows] + ([] if grows is None else [grows])
    return [(place, i) for place in order for i in range(len(datasets[place]))]


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@settings(max_examples=40)
@given(data=st.data())
def test_items_are_those_of_the_datasets(members: dict[str, LeRobotDatasetV2], data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.sampled_from(list(members)), min_size=1, max_size=4).filter(lambda n: n.count("ring") < 2)
    )
    dtype = data.draw(st.sampled_from(["uint8", "float32"]))
    windows = data.draw(st.sampled_from([None, WINDOWS]))
    datasets = [members[name].images_as(dtype) for name in names]
    for dataset in datasets:
        dataset.set_delta_timestamps(windows)
    joined = MultiLeRobotDatasetV2(datasets)
    where = flat(datasets, names.index("ring") if "ring" in names else None)
    assert len(joined) == joined.num_frames == len(where)
    count = len(where)
    if not count:
        assert joined.get_batch([])["dataset_index"].shape == (0,)
        return
    indices = data.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=12))
    batch = joined.get_batch(indices)
    for row, index in enumerate(indices):
        place, i = where[index]
        own, item = datasets[place][i], joined[index]
        assert (
            list(item)
            == list(batch)
            == [*(k for k in own if "_is_pad" not in k), "dataset_index", *(k for k in own if "_is_pad" in k)]
        )
        assert item["dataset_index"].item() == place
        for key, value in item.items():
            assert equal(value, batch[key][row])
            assert key in ("dataset_index", *RENUMBERED) or equal(value, own[key])
    check_numbers(joined, datasets, where)


def check_numbers(
    joined: MultiLeRobotDatasetV2, datasets: list[LeRobotDatasetV2], where: list[tuple[int, int]]
) -> None:
    """No two frames, and no two episodes, have one number; all that tells of them agrees."""
    ranges = joined.episode_data_index
    numbers, episodes, places = (joined.get_data_by_key(key) for key in (*RENUMBERED, "dataset_index"))
    assert places.tolist() == [place for place, _ in where]
    assert len(np.unique(ranges["episode_index"])) == joined.num_episodes == len(ranges["from"])
    assert len(np.unique(numbers)) == len(numbers)
    assert joined.get_unique_episode_indices().tolist() == sorted(ranges["episode_index"].tolist())
    for k, episode in enumerate(ranges["episode_index"].tolist()):
        shown = slice(ranges["from"][k], ranges["to"][k])
        found = joined.get_episode(episode)
        assert (
            found["index"].tolist()
            == numbers[shown].tolist()
            == list(range(ranges["index"][k], ranges["index"][k] + len(found["index"])))
        )
        assert set(found["episode_index"]) == set(episodes[shown]) == {episode}
        assert set(found["dataset_index"]) == {ranges["dataset_index"][k]}
        assert numbers_of(found) == numbers_of(
            {"observation.state": joined.get_data_by_key("observation.state")[shown]}
        )
    tasks = joined.get_data_by_key("task")
    assert tasks == [datasets[place].get_data_by_key("task")[i] for place, i in where]


def test_numbers_of_plain_datasets_are_their_indices(tmp_path: Path) -> None:
    joined = MultiLeRobotDatasetV2([made(tmp_path / "a", [3, 2]), made(tmp_path / "b", [1, 4])])
    assert joined.get_data_by_key("index").tolist() == list(range(10))
    assert joined.get_data_by_key("episode_index").tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert joined.delta_timestamps is None
    assert joined.fps == 10
    assert joined.tolerance_s == pytest.approx(0.0999)
    assert "10 frames" in repr(joined)
    assert "2 episodes, 5 frames" in repr(joined)


# Keys


def test_one_warning_names_the_keys_that_are_left_out_and_why(tmp_path: Path) -> None:
    one = made(tmp_path / "a", [3], task="push", delta_timestamps={"observation.state": [0, 0.1]})
    other = LeRobotDatasetV2(tmp_path / "b", fps=10)
    other.add_episodes(
        {"action": np.zeros((2, 7), np.float32), "observation.state": np.zeros((2, 2), np.float32), "grip": [0, 1]}
    )
    with pytest.warns(RoboreelWarning) as caught:
        joined = MultiLeRobotDatasetV2([one, other])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message).splitlines() == [
        "keys that the datasets do not have alike are left out (datasets by their place):",
        "  'observation.state': 2 frames from 0 s to 0.1 s in 0, single frames in 1",
        "  'action': float32 () in 0, float32 (7,) in 1",
        "  'next.done': not in 1",
        "  'task': not in 1",
        "  'grip': not in 0",
    ]
    common = ["index", "episode_index", "frame_index", "timestamp", "dataset_index"]
    assert sorted(joined[0]) == sorted(joined.data_keys) == sorted(joined.get_episode(1)) == sorted(common)
    assert sorted(joined.stats) == sorted(common)
    with pytest.raises(KeyError, match=r"no key 'action'; what the datasets have alike is \['index', 'episode_index'"):
        joined.get_data_by_key("action")
    joined.set_delta_timestamps({"observation.state": [0]})  # warns no more
    assert joined[4]["observation.state"].shape == (1, 2)
    assert one[0]["observation.state"].shape == (2, 2)
    again = pickle.loads(pickle.dumps(joined))  # warns no more
    assert list(again[4]) == list(joined[4])


def test_the_same_values_stored_in_other_ways_are_alike(tmp_path: Path) -> None:
    millimetres = np.full((2, 4, 4, 1), 1500, np.uint16)
    datasets = []
    for name, depth in (("a", millimetres), ("b", (millimetres / 1000).astype(np.float32))):
        datasets.append(LeRobotDatasetV2(tmp_path / name, fps=10))
        datasets[-1].add_episodes({"observation.images.depth": depth, "action": np.arange(2.0)})
    joined = MultiLeRobotDatasetV2(datasets)
    assert joined.get_batch([3, 0, 2])["observation.images.depth"].unique().tolist() == [1.5]
    assert joined.stats["observation.images.depth"]["mean"].tolist() == [[[1.5]]]
    raw = [LeRobotDatasetV2(dataset.storage_dir, depth_unit="raw") for dataset in datasets]
    with pytest.warns(RoboreelWarning, match=r"depth': uint16 \(4, 4, 1\) in mm in 0, float32 \(4, 4, 1\) in m in 1"):
        assert MultiLeRobotDatasetV2(raw).camera_keys == []


def test_windows_for_all_datasets_at_once(members: dict[str, LeRobotDatasetV2]) -> None:
    joined = MultiLeRobotDatasetV2([members["pushed"], members["pulled"]])
    joined.set_delta_timestamps({"action": [0, 0.1]})
    assert joined.delta_timestamps is not None
    assert joined.delta_timestamps["action"].tolist() == [0, 0.1]
    assert joined[9]["action"].tolist() == [0.5, 0.5]
    assert joined[9]["action_is_pad"].tolist() == [False, True]
    assert members["pushed"].delta_timestamps is None
    with pytest.raises(KeyError, match=r"delta_timestamps has the keys \['velocity'\]"):
        joined.set_delta_timestamps({"action": [0], "velocity": [0]})
    with pytest.raises(ValueError, match="matches no frame"):
        joined.set_delta_timestamps({"action": [99]})
    assert joined[0]["action"].shape == (2,)
    joined.set_delta_timestamps(None)
    assert joined[0]["action"].shape == ()


def test_windows_of_a_key_that_is_not_alike_are_refused(tmp_path: Path) -> None:
    other = LeRobotDatasetV2(tmp_path / "b", fps=10)
    other.add_episodes({"action": np.zeros((2, 7), np.float32)})
    with pytest.warns(RoboreelWarning):
        joined = MultiLeRobotDatasetV2([made(tmp_path / "a", [3]), other])
    with pytest.raises(KeyError, match=r"the keys \['action'\]; what the datasets have alike is \['index'"):
        joined.set_delta_timestamps({"action": [0]})
    assert joined.delta_timestamps is None


def test_several_frame_rates_are_warned_of_and_windows_stay_in_seconds(tmp_path: Path) -> None:
    slow, fast = made(tmp_path / "slow", [4]), made(tmp_path / "fast", [8], fps=20)
    with pytest.warns(RoboreelWarning, match=r"several frame rates \(10 Hz in 0, 20 Hz in 1\)"):
        joined = MultiLeRobotDatasetV2([slow, fast])
    joined.set_delta_timestamps({"observation.state": [0, 0.1]})
    assert (joined.fps, joined.tolerance_s) == (None, None)
    assert numbers_of(joined.get_batch([1, 5])) == [[1, 2], [1, 3]]


def test_statistics_are_those_of_all_frames(members: dict[str, LeRobotDatasetV2]) -> None:
    joined = MultiLeRobotDatasetV2([members["ring"], members["pushed"], members["view"]])
    for key in ("observation.state", "action", "dataset_index", "index"):
        values, stats = joined.get_data_by_key(key), joined.stats[key]
        for name in ("mean", "std", "min", "max"):
            assert stats[name] == pytest.approx(getattr(values, name)(axis=0)), (key, name)
        assert stats["count"].tolist() == [len(joined)]
    pixels = joined.get_batch(range(len(joined)))[CAMERA]
    assert joined.stats[CAMERA]["mean"] == pytest.approx(pixels.mean(dim=(0, 2, 3), keepdim=True)[0].numpy(), abs=1e-6)
    assert "task" not in joined.stats
    with_nothing = MultiLeRobotDatasetV2([members["nothing"], members["pushed"]])
    assert with_nothing.stats["dataset_index"]["min"] == 1
    assert with_nothing.stats["action"]["count"].tolist() == [8]
    assert MultiLeRobotDatasetV2([members["nothing"]]).stats == {}


# What grows


def test_indices_stay_while_a_ring_grows_wherever_it_stands_in_the_list(tmp_path: Path) -> None:
    turning, plain = ring(tmp_path / "ring", [2], 6), made(tmp_path / "a", [3])
    joined = MultiLeRobotDatasetV2([turning, plain])
    before = joined.generation
    batch = joined.get_batch(range(5))
    assert (batch["dataset_index"].tolist(), numbers_of(batch)) == ([1, 1, 1, 0, 0], [0, 1, 2, 0, 1])
    for first in (2, 5, 8):
        turning.add_episodes(recording(3, first))
    plain.add_episodes(recording(2, 3))  # not shown: it would stand where the ring's frames are
    assert joined.generation >= before + 4
    assert joined.get_batch(range(len(joined)))["index"].tolist() == [0, 1, 2, 8, 9, 10, 11, 12, 13]
    assert joined.get_data_by_key("dataset_index").tolist() == [1] * 3 + [0] * 6
    assert joined.get_unique_episode_indices().tolist() == [0, 3, 4]
    assert joined.stats["observation.state"]["count"].tolist() == [9]
    assert joined.stats["observation.state"]["max"].tolist() == [10, 0]
    with pytest.raises(IndexError, match="index 9 is beyond the ends: the joined datasets have 9 frames"):
        joined[9]
    with pytest.raises(IndexError, match="episode 1 is not in the dataset, which holds 3 episodes: 0 to 4"):
        joined.get_episode(1)


def test_without_a_ring_the_last_one_grows(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", [2]), made(tmp_path / "b", [1])
    joined, views = MultiLeRobotDatasetV2([one, other]), MultiLeRobotDatasetV2([one, other.view([0])])
    for dataset in (one, other):
        dataset.add_episodes(recording(2, 5))
    assert numbers_of(joined.get_batch(range(5))) == [0, 1, 0, 5, 6]
    assert (len(joined), len(views), joined.num_episodes, views.num_episodes) == (5, 3, 3, 2)


def test_a_buffer_that_holds_nothing_yet(tmp_path: Path) -> None:
    offline = made(tmp_path / "offline", [3], task="push")
    online = LeRobotDatasetV2(tmp_path / "online", 10, 8, use_as_fifo_buffer=True)
    joined = MultiLeRobotDatasetV2([offline, online])
    assert joined.get_batch([2])["task"] == ["push"]
    online.add_episodes({key: value for key, value in recording(2, 50, task="pull").items() if key != "next.done"})
    with pytest.warns(RoboreelWarning, match="'next.done': not in 1"):
        assert joined.get_batch([4, 0])["task"] == ["pull", "push"]
    assert numbers_of(joined.get_batch([4, 0])) == [51, 0]
    nothing = MultiLeRobotDatasetV2([LeRobotDatasetV2(tmp_path / "nothing", 10)])
    assert (len(nothing), nothing.num_episodes, nothing.generation, nothing.stats) == (0, 0, 0, {})
    assert nothing.get_data_by_key("dataset_index").tolist() == []


def test_what_cannot_be_joined(members: dict[str, LeRobotDatasetV2], tmp_path: Path) -> None:
    pushed, turning = members["pushed"], members["ring"]
    many: dict[str, Any] = {
        "no dataset to join; type MultiLeRobotDatasetV2([one, other])": [],
        "dataset 1 is 'outputs/arm'; a LeRobotDatasetV2 would do: type LeRobotDatasetV2(storage_dir)": [
            pushed,
            "outputs/arm",
        ],
        "is no list of datasets; type MultiLeRobotDatasetV2([one, other])": pushed,
        "dataset 0 is joined datasets itself; give those: [*joined.datasets, …]": [MultiLeRobotDatasetV2([pushed])],
        "2 of the datasets grow (rings, and such as hold nothing yet)": [turning, pushed, turning],
        "ring.view(ring.get_unique_episode_indices())": [turning, LeRobotDatasetV2(tmp_path / "new", 10)],
        "the image_dtype of one dataset is 'float32', that of another 'uint8'; give dataset.images_as(\"uint8\")": [
            pushed,
            turning.images_as("uint8"),
        ],
    }
    for message, datasets in many.items():
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            MultiLeRobotDatasetV2(datasets)
        assert isinstance(caught.value, roboreel.InvalidArgumentError)
    view = pushed.view([0])
    view.image_transform = torch.neg
    with pytest.raises(ValueError, match="the image_transform of one dataset is None, that of another <built-in"):
        MultiLeRobotDatasetV2([pushed, view])


def test_one_transform_for_all_images(members: dict[str, LeRobotDatasetV2]) -> None:
    joined = MultiLeRobotDatasetV2([members["pushed"], members["pulled"]])
    plain = joined.get_batch([9, 0])[CAMERA]
    joined.image_transform = torch.neg
    assert torch.equal(joined.get_batch([9, 0])[CAMERA], -plain)
    assert torch.equal(joined[9][CAMERA], -plain[0])
    assert joined.images_as("uint8")[9][CAMERA].dtype == torch.uint8
