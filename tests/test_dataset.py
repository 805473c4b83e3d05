"""`LeRobotDatasetV2` through its public face: made, read, windowed, grown, opened again."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import roboreel
from roboreel import LeRobotDatasetV2
from tests.recordings import CAMERA, HEIGHT, WIDTH, made, numbers_of, pictures, recording, several


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


# Made, and opened again


def test_a_new_dataset_is_empty_until_the_first_episode_makes_it(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    assert not root.exists()
    assert (len(dataset), dataset.num_episodes, dataset.data_keys, dataset.camera_keys) == (0, 0, [], [])
    assert dataset.get_unique_episode_indices().tolist() == []
    assert dataset.episode_data_index["from"].tolist() == []
    with pytest.raises(IndexError, match="holds no episode yet; add one with add_episodes"):
        dataset[0]
    dataset.add_episodes(recording(5))
    assert (len(dataset), dataset.num_frames, dataset.num_samples, dataset.num_episodes) == (5, 5, 5, 1)
    assert dataset.storage_dir == root
    assert dataset.fps == 10
    assert dataset.tolerance_s == pytest.approx(0.0999)
    always = {"index", "episode_index", "frame_index", "timestamp"}
    assert set(dataset.data_keys) == always | {"observation.state", "action", "next.done"}
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_another_process_that_opened_it_empty_sees_it_come_into_being(root: Path) -> None:
    early = LeRobotDatasetV2(root, fps=10)
    made(root, [4])
    assert (len(early), numbers_of(early[3])) == (4, 3)


@pytest.mark.parametrize("close", [True, False])
def test_opened_again_it_holds_the_same(root: Path, close: bool) -> None:
    first = made(root, [5, 3, 4], camera=True, task="push the T")
    items = [first[i] for i in range(len(first))]
    if close:
        first.close()
    again = LeRobotDatasetV2(root)
    assert (len(again), again.num_episodes, again.fps) == (12, 3, 10)
    for i, item in enumerate(items):
        assert_same(again[i], item)
    assert_same(first[0], items[0])  # closed is not gone: reading opens it again


def test_items_are_tensors_of_the_given_dtype_and_shape(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    dataset.add_episodes(
        {
            "scalar": np.arange(3.0),
            "one": np.zeros((3, 1), np.float32),
            "matrix": np.zeros((3, 2, 4), np.int16),
            "flag": np.array([True, False, True]),
            "code": np.arange(3, dtype=np.uint8),
            "nothing": np.zeros((3, 0), np.float32),
            "big endian": np.arange(3, dtype=">f4"),
            "list": [[1, 2], [3, 4], [5, 6]],
            "tensor": torch.ones(3, 2),
            "weird/../Key": np.arange(3),
        }
    )
    item = dataset[1]
    found = {key: (tuple(value.shape), value.dtype) for key, value in item.items()}
    assert found == {
        "index": ((), torch.int64),
        "episode_index": ((), torch.int64),
        "frame_index": ((), torch.int64),
        "timestamp": ((), torch.float32),
        "scalar": ((), torch.float64),
        "one": ((1,), torch.float32),
        "matrix": ((2, 4), torch.int16),
        "flag": ((), torch.bool),
        "code": ((), torch.uint8),
        "nothing": ((0,), torch.float32),
        "big endian": ((), torch.float32),
        "list": ((2,), torch.int64),
        "tensor": ((2,), torch.float32),
        "weird/../Key": ((), torch.int64),
    }
    assert (item["big endian"].item(), item["list"].tolist(), item["weird/../Key"].item()) == (1, [3, 4], 1)
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_new_episodes_continue_the_count_whatever_the_caller_put_there(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    data = several([2, 3])
    dataset.add_episodes({**data, "episode_index": np.array([7, 7, 3, 3, 3]), "index": np.full(5, 99)})
    dataset.add_episodes({**recording(2, 5), "episode_index": np.zeros(2, int), "frame_index": np.arange(2)})
    batch = dataset.get_batch(range(7))
    assert batch["index"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch["episode_index"].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch["frame_index"].tolist() == [0, 1, 0, 1, 2, 0, 1]
    np.testing.assert_allclose(batch["timestamp"], [0, 0.1, 0, 0.1, 0.2, 0, 0.1])
    assert numbers_of(batch) == list(range(7))
    assert dataset.get_unique_episode_indices().tolist() == [0, 1, 2]


def test_timestamps_are_kept_in_full_and_given_as_float32(root: Path) -> None:
    times = np.array([1000.0, 1000.1, 1000.2000001])
    dataset = LeRobotDatasetV2(root, fps=10)
    dataset.add_episodes({"action": np.zeros(3), "timestamp": times})
    assert dataset[2]["timestamp"].dtype == torch.float32
    dataset.set_delta_timestamps({"action": [0.1]})
    assert [dataset[i]["action_is_pad"].item() for i in range(3)] == [False, False, True]


def test_strings_come_as_str_one_a_frame_or_one_an_episode(root: Path) -> None:
    dataset = made(root, [2], task="push")
    dataset.add_episodes({**recording(2, 2), "task": ["pull", "näher ☃\n\"'"]})
    dataset.close()
    again = LeRobotDatasetV2(root)
    assert [again[i]["task"] for i in range(4)] == ["push", "push", "pull", "näher ☃\n\"'"]
    assert again.get_batch([3, 0])["task"] == ["näher ☃\n\"'", "push"]
    assert again.get_data_by_key("task") == ["push", "push", "pull", "näher ☃\n\"'"]
    again.set_delta_timestamps({"task": [0, 0.1]})
    assert again[2]["task"] == ["pull", "näher ☃\n\"'"]


# Reading


@pytest.mark.parametrize("capacity", [None, 20])
def test_indices_count_from_both_ends_of_what_is_stored(root: Path, capacity: int | None) -> None:
    dataset = made(root, [5, 4], buffer_capacity=capacity)
    assert [numbers_of(dataset[i]) for i in (0, 8, -1, -9, np.int64(3))] == [0, 8, 8, 0, 3]
    for beyond in (9, -10, 10**12, 2**70, -(2**70)):
        with pytest.raises(IndexError, match=rf"index {beyond} is beyond the ends: the dataset has 9 frames"):
            dataset[beyond]
    with pytest.raises(roboreel.FrameIndexError, match="index 9 "):
        dataset.get_batch([0, 9])
    with pytest.raises(roboreel.FrameIndexError, match="index 10 "):
        dataset.get_batch([0, 10, 12])
    for huge in ([0, 2**64 - 1], np.array([0, 2**64 - 1], np.uint64)):
        with pytest.raises(roboreel.FrameIndexError, match=f"index {2**64 - 1} "):
            dataset.get_batch(huge)
    assert [numbers_of(item) for item in dataset] == list(range(9))  # iteration ends with the IndexError


@pytest.mark.parametrize("index", [1.5, "1", None, True, slice(0, 2), [1, 2]])
def test_an_index_that_is_no_integer_is_a_type_error(root: Path, index: Any) -> None:
    with pytest.raises(TypeError, match="integers"):
        made(root, [5])[index]


@pytest.mark.parametrize("windowed", [False, True])
def test_a_batch_equals_its_items_in_the_order_asked_for(root: Path, windowed: bool) -> None:
    dataset = made(root, [5, 3, 4], camera=True, task="push")
    if windowed:
        dataset.set_delta_timestamps({CAMERA: [-0.1, 0], "action": [0, 0.1, 0.3], "observation.state": [-0.1, 0]})
    indices = [3, 11, 0, 0, -1, 7, 4]
    batch = dataset.get_batch(indices)
    assert_same(batch, torch.utils.data.default_collate([dataset[i] for i in indices]))
    lazily = dataset.__getitems__(indices)
    assert len(lazily) == 7
    for i, sample in zip(indices, lazily, strict=True):
        assert_same(sample, dataset[i])
    assert_same(lazily[-1], dataset[4])
    assert len(lazily[2:4]) == 2
    with pytest.raises(IndexError):
        lazily[7]
    assert_same(torch.utils.data.default_collate(lazily), batch)
    assert_same(torch.utils.data.default_collate(list(lazily)), batch)  # who takes it apart can still collate it


def test_an_empty_batch_has_no_rows(root: Path) -> None:
    assert made(root, [5]).get_batch([])["observation.state"].shape == (0, 2)


def test_what_is_given_is_the_callers_own(root: Path) -> None:
    dataset = made(root, [5], camera=True, image_dtype="uint8")
    item, batch = dataset[1], dataset.get_batch([1, 1])
    item["observation.state"].fill_(77)
    batch["observation.state"][0] = 77
    item[CAMERA].fill_(0)
    assert numbers_of(dataset.get_batch([1, 1])) == [1, 1]
    assert dataset[1][CAMERA].max() > 0


def test_get_episode_gives_arrays_and_get_data_by_key_aligns_with_the_items(root: Path) -> None:
    dataset = made(root, [5, 3, 4], camera=True, task="push")
    episode = dataset.get_episode(1)
    assert numbers_of(episode) == [5, 6, 7]
    assert episode["frame_index"].tolist() == [0, 1, 2]
    assert episode["task"] == ["push"] * 3
    assert np.array_equal(episode[CAMERA], pictures(np.arange(5, 8)))
    for missing in (-1, 3, 99):
        with pytest.raises(IndexError, match=rf"episode {missing} .*3 episodes: 0 to 2"):
            dataset.get_episode(missing)
    assert np.array_equal(dataset.get_data_by_key("action"), np.arange(12) * np.float32(0.5))
    assert dataset.get_data_by_key(CAMERA).shape == (12, HEIGHT, WIDTH, 3)
    with pytest.raises(KeyError, match=r"no key 'actoin'; the dataset has .*'action'"):
        dataset.get_data_by_key("actoin")
    assert {key: ends.tolist() for key, ends in dataset.episode_data_index.items()} == {
        "from": [0, 5, 8],
        "to": [5, 8, 12],
        "episode_index": [0, 1, 2],
        "index": [0, 5, 8],
    }


def test_only_the_chosen_episodes_are_there_in_the_order_chosen(root: Path) -> None:
    made(root, [5, 3, 4]).close()
    dataset = LeRobotDatasetV2(root, episodes=[2, 0], delta_timestamps={"action": [-0.1, 0, 0.1]})
    assert (len(dataset), dataset.num_episodes) == (9, 2)
    assert dataset.get_unique_episode_indices().tolist() == [0, 2]
    assert numbers_of(dataset.get_batch(range(9))) == [8, 9, 10, 11, 0, 1, 2, 3, 4]
    assert dataset[3]["action_is_pad"].tolist() == [False, False, True]
    assert {key: ends.tolist() for key, ends in dataset.episode_data_index.items()} == {
        "from": [0, 4],
        "to": [4, 9],
        "episode_index": [2, 0],
        "index": [8, 0],
    }
    assert dataset.get_data_by_key("action")[0] == 4
    assert dataset.stats["action"]["count"].tolist() == [9]
    with pytest.raises(IndexError, match="episode 1 is not in the dataset"):
        dataset.get_episode(1)
    with pytest.raises(IndexError, match=r"episodes \[3\] are not in the dataset, which holds 3"):
        LeRobotDatasetV2(root, episodes=[0, 3])
    with pytest.raises(ValueError, match="twice"):
        LeRobotDatasetV2(root, episodes=[0, 0])
    assert len(LeRobotDatasetV2(root, episodes=[])) == 0


def test_statistics_follow_the_data(root: Path) -> None:
    dataset = made(root, [5, 3], camera=True, task="push")
    values = dataset.get_data_by_key("observation.state").astype(np.float64)
    stats = dataset.stats
    assert "task" not in stats
    np.testing.assert_allclose(stats["observation.state"]["mean"], values.mean(axis=0))
    np.testing.assert_allclose(stats["observation.state"]["std"], values.std(axis=0))
    assert stats[CAMERA]["mean"].shape == (3, 1, 1)
    np.testing.assert_allclose(
        stats[CAMERA]["mean"].ravel(), pictures(np.arange(8)).mean(axis=(0, 1, 2)) / 255, atol=1e-6
    )
    dataset.add_episodes(recording(4, 8, camera=True, task="push"))
    assert dataset.stats["observation.state"]["max"].tolist() == [11, 0]


# Images


def test_images_are_channel_first_floats_or_raw_bytes(root: Path) -> None:
    dataset = made(root, [4], camera=True)
    image = dataset[3][CAMERA]
    wanted = torch.from_numpy(pictures(np.array(3))).movedim(-1, 0)
    assert (image.shape, image.dtype) == ((3, HEIGHT, WIDTH), torch.float32)
    assert torch.equal(image, wanted / 255)
    raw = LeRobotDatasetV2(root, image_dtype="uint8")[3][CAMERA]
    assert raw.dtype == torch.uint8
    assert torch.equal(raw, wanted)
    with pytest.raises(ValueError, match=r"image_dtype='float16'; 'float32' and 'uint8' would do"):
        LeRobotDatasetV2(root, image_dtype="float16")


def test_image_transform_is_given_each_samples_images(root: Path) -> None:
    seen = []

    def halve(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images[..., ::2, ::2] * 0.5

    dataset = made(root, [4], camera=True, image_transform=halve)
    assert dataset[1][CAMERA].shape == (3, HEIGHT // 2, WIDTH // 2)
    dataset.set_delta_timestamps({CAMERA: [-0.1, 0]})
    assert dataset.get_batch([1, 2, 3])[CAMERA].shape == (3, 2, 3, HEIGHT // 2, WIDTH // 2)
    assert seen == [(3, HEIGHT, WIDTH)] + [(2, 3, HEIGHT, WIDTH)] * 3
    dataset.image_transform = None
    assert dataset[1][CAMERA].shape == (2, 3, HEIGHT, WIDTH)


# Capacity and growth


def test_storage_grows_until_everything_fits_and_keeps_what_was_there(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    reader = LeRobotDatasetV2(root, fps=10)
    first = 0
    for length in (3, 1, 2, 7, 20, 1, 40):
        dataset.add_episodes(recording(length, first))
        first += length
        assert numbers_of(dataset.get_batch(range(first))) == list(range(first))
        assert numbers_of(reader.get_batch(range(len(reader)))) == list(range(first))
    assert (root / "columns" / "action.bin").stat().st_size == 96 * 4  # doubled from 3
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_a_fixed_capacity_that_is_full_refuses_the_next_episode_whole(root: Path) -> None:
    dataset = made(root, [4, 3], buffer_capacity=8)
    with pytest.raises(ValueError, match=r"exceeds buffer_capacity=8 by 1: 7 frames are stored"):
        dataset.add_episodes(recording(2, 7))
    with pytest.raises(roboreel.CapacityError, match="9 frames is longer than buffer_capacity=8"):
        dataset.add_episodes(recording(9))
    dataset.add_episodes(recording(1, 7))
    assert numbers_of(dataset.get_batch(range(8))) == list(range(8))


def test_a_fixed_capacity_can_be_raised_on_reopening(root: Path) -> None:
    made(root, [4], buffer_capacity=4).close()
    dataset = LeRobotDatasetV2(root, buffer_capacity=6)
    dataset.add_episodes(recording(2, 4))
    with pytest.raises(roboreel.CapacityError, match="buffer_capacity=6"):
        dataset.add_episodes(recording(1, 6))
    dataset.close()
    with pytest.raises(roboreel.CapacityError, match="buffer_capacity=6"):  # it is stored
        LeRobotDatasetV2(root).add_episodes(recording(1, 6))


# Sharing


def test_a_pickled_dataset_opens_the_same_directory(root: Path) -> None:
    dataset = made(root, [5], camera=True, delta_timestamps={"action": [0, 0.1]})
    copy = pickle.loads(pickle.dumps(dataset))
    assert_same(copy[4], dataset[4])
    dataset.add_episodes(recording(2, 5, camera=True))
    assert (len(copy), numbers_of(copy[-1])) == (7, 6)


def test_readonly_reads_beside_a_writer_and_refuses_changes(root: Path) -> None:
    writer = made(root, [5])
    reader = LeRobotDatasetV2(root, readonly=True)
    with pytest.raises(PermissionError, match="opened with readonly=True; open it without"):
        reader.add_episodes(recording(2))
    writer.add_episodes(recording(3, 5))
    assert numbers_of(reader.get_batch(range(8))) == list(range(8))
    reader.flush()
    reader.close()
    with pytest.raises(FileNotFoundError, match="holds no dataset, so there is nothing to read"):
        LeRobotDatasetV2(root.parent / "other", readonly=True)


def test_reload_takes_what_is_in_the_directory_now(root: Path) -> None:
    dataset = made(root, [5], delta_timestamps={"action": [0]})
    dataset.close()
    root.rename(root.parent / "old")
    made(root, [2, 2]).close()
    dataset.reload()
    assert (len(dataset), dataset.num_episodes, dataset[3]["action"].tolist()) == (4, 2, [1.5])


def test_leaving_a_with_block_lets_go_of_the_lock(root: Path) -> None:
    with made(root, [2]) as dataset:
        assert "1 episodes, 2 frames, 10 Hz" in repr(dataset)
    with LeRobotDatasetV2(root) as other:
        other.add_episodes(recording(2, 2))
    assert len(dataset) == 4


def assert_same(left: Any, right: Any) -> None:
    assert set(left) == set(right)
    for key, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[key].dtype
            assert torch.equal(value, right[key]), key
        else:
            assert value == right[key], key


@pytest.mark.parametrize("as_given", [list, tuple, lambda texts: np.array(texts, object)])
def test_strings_come_in_whole_whatever_they_hold(root: Path, as_given: Any) -> None:
    texts = ["ends with zeros\0\0", "", "x" * 200_000, "\0", "\n"] * 200  # as long as the longest, they would be 800 MB
    dataset = LeRobotDatasetV2(root, fps=10)
    dataset.add_episodes({"action": np.arange(1000), "task": as_given(texts), "note": "one for all\0"})
    assert dataset.get_data_by_key("task") == texts
    assert dataset.get_batch([0, 3])["task"] == [texts[0], texts[3]]
    assert set(dataset.get_data_by_key("note")) == {"one for all\0"}
