"""Bad input to `LeRobotDatasetV2`: one error that says what came and what would do, and nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import roboreel
from roboreel import LeRobotDatasetV2, RoboreelError, UnreadableImageError
from roboreel.format.files import observed
from tests.damage import flip
from tests.recordings import CAMERA, made, numbers_of, pictures, recording, several
from tests.video_files import painted_frames, read_numbers

THREE = np.zeros(3, np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "dataset"


# The constructor


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "holds no dataset yet; a new one needs fps"),
        ({"fps": 0}, ValueError, "fps=0; a positive number"),
        ({"fps": -10.0}, ValueError, "fps=-10.0"),
        ({"fps": float("nan")}, ValueError, "fps=nan"),
        ({"fps": float("inf")}, ValueError, "fps=inf"),
        ({"fps": "10"}, ValueError, "fps='10'"),
        ({"fps": True}, ValueError, "fps=True"),
        ({"fps": 10, "buffer_capacity": 0}, ValueError, "buffer_capacity=0; "),
        ({"fps": 10, "buffer_capacity": 1.5}, ValueError, "buffer_capacity=1.5; "),
        ({"fps": 10, "buffer_capacity": "many"}, ValueError, "buffer_capacity='many'; "),
        ({"fps": 10, "use_as_fifo_buffer": True}, ValueError, "use_as_fifo_buffer=True needs buffer_capacity"),
        ({"fps": 10, "image_mode": "jpeg"}, ValueError, "'jpeg' is none of the image modes: 'memmap', 'png', 'video'"),
        ({"fps": 10, "image_dtype": "uint16"}, ValueError, "image_dtype='uint16'"),
        ({"fps": 10, "delta_timestamps": ["action"]}, ValueError, "a dict {key: .* would do"),
        ({"fps": 10, "delta_timestamps": {"action": "soon"}}, ValueError, "'soon' is not a list of numbers"),
        ({"fps": 10, "delta_timestamps": {"action": 0.1}}, ValueError, "0.1 is not a list"),
        ({"fps": 10, "delta_timestamps": {"action": [float("nan")]}}, ValueError, "finite"),
        ({"fps": 10, "readonly": True}, FileNotFoundError, "nothing to read"),
        ({"fps": 10, "episodes": [0]}, IndexError, "holds no episode yet"),
    ],
)
def test_arguments_that_cannot_be(root: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        LeRobotDatasetV2(root, **options)
    assert isinstance(caught.value, roboreel.RoboreelError)
    assert not root.parent.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 30}, "fps=30, but .* was made with 10; leave it out"),
        ({"use_as_fifo_buffer": False}, "use_as_fifo_buffer=False, but .* was made with True; leave it out"),
        ({"buffer_capacity": 9}, "buffer_capacity=9 is less than the 10 frames .*: leave it out, or give more"),
        ({"image_mode": "png"}, "image_mode='png', but the cameras .* are stored as 'memmap'; leave image_mode out"),
        ({"delta_timestamps": {"actoin": [0]}}, r"the keys \['actoin'\]; the dataset has \['action', "),
        ({"episodes": [1]}, r"episodes \[1\] are not in the dataset, which holds 1 episodes: 0 to 0"),
    ],
)
def test_arguments_that_contradict_what_is_stored(root: Path, options: Any, message: str) -> None:
    made(root, [4], camera=True, buffer_capacity=10, use_as_fifo_buffer=True).close()
    with pytest.raises(roboreel.RoboreelError, match=message) as caught:
        LeRobotDatasetV2(root, **options)
    assert isinstance(caught.value, (ValueError, KeyError, IndexError))
    same = {"fps": 10.0, "use_as_fifo_buffer": True, "buffer_capacity": 10, "image_mode": "memmap"}
    choices: list[Any] = [{}, same]
    for kept in choices:
        dataset = LeRobotDatasetV2(root, **kept)
        for first in (4, 8, 12):
            dataset.add_episodes(recording(4, first, camera=True))
        assert len(dataset) == 8  # a ring, left out or said again: 4 + 4, and the third goes over the first
        dataset.close()


def test_a_dataset_that_is_no_ring_does_not_become_one(root: Path) -> None:
    made(root, [4], buffer_capacity=10).close()
    with pytest.raises(ValueError, match=r"use_as_fifo_buffer=True, but .* was made with False"):
        LeRobotDatasetV2(root, use_as_fifo_buffer=True)


def test_numpy_numbers_do_as_arguments(root: Path) -> None:
    numbers: Any = {"fps": np.float32(10), "buffer_capacity": np.int64(5)}
    dataset = LeRobotDatasetV2(root, **numbers)
    dataset.add_episodes(recording(5))
    same: Any = np.int64(10)
    assert LeRobotDatasetV2(root, fps=same).fps == 10


def test_a_directory_with_other_things_in_it_is_left_alone(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "thesis.txt").write_text("mine")
    dataset = LeRobotDatasetV2(root, fps=10)
    with pytest.raises(ValueError, match=r"holds other things \(thesis.txt\); give an empty or a new directory"):
        dataset.add_episodes(recording(3))
    assert [path.name for path in root.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file; give a directory"):
        LeRobotDatasetV2(root / "thesis.txt", fps=10)
    with pytest.raises(roboreel.StorageDirCorruptError, match="is not a roboreel dataset"):
        LeRobotDatasetV2.check_storage_dir_integrity(root)


# What is added


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "was given NoneType; give a dict"),
        ([{"action": THREE}], "was given list; give a dict"),
        ({1: THREE}, "give a dict"),
        ({}, "no data was given"),
        ({"task": "push"}, "no data was given"),
        ({"action": np.zeros((0, 2))}, "0 frames; give at least one"),
        ({"action": THREE, "episode_index": np.zeros(0, int)}, "different numbers of frames"),
        ({"action": THREE, "state": np.zeros((4, 2))}, "different numbers of frames: {'action': 3, 'state': 4}"),
        ({"action": THREE, "reward": 1.0}, r"\['reward'\] are single values; give one for each frame"),
        ({"action": np.zeros(3, complex)}, "'action' has dtype complex128, which cannot be stored"),
        ({"action": [object()] * 3}, "'action' has dtype object"),
        ({"action": [[1], [1, 2], []]}, "'action' cannot be made a numpy array"),
        ({"action": np.zeros(3, "M8[s]")}, "'action' has dtype datetime64"),
        ({"": THREE}, "must have a name"),
        ({"x" * 300: THREE}, "too long for a file name"),
        ({"task": [["a", "b"]] * 3}, "'task' .* has more than one string a frame"),
        ({"action": THREE, "task": "\ud800"}, "'task': .* stored as UTF-8"),
        ({"action": THREE, "timestamp": ["a", "b", "c"]}, "'timestamp' .* must be numbers"),
        ({"action": THREE, "timestamp": np.zeros((3, 2))}, "'timestamp' must be 3 numbers"),
        ({"action": THREE, "timestamp": [0, 0.2, 0.1]}, "'timestamp' goes back at frame 2, from 0.2 s to 0.1 s"),
        ({"action": THREE, "timestamp": [0, np.nan, 0.1]}, "'timestamp' of frame 1 is not finite"),
        ({"action": THREE, "frame_index": [0, 2, 1]}, r"'frame_index' must be 0, 1, 2, … 2 .* begins \[0, 2, 1\]"),
        ({"action": THREE, "frame_index": [3, 4, 5]}, "'frame_index' must be 0, 1, 2"),
        ({"action": THREE, "episode_index": [0.5, 0.5, 1]}, "'episode_index' is float64 .*one integer a frame"),
        ({"action": THREE, "episode_index": [[0], [0], [0]]}, r"'episode_index' is int64 of shape \(3, 1\)"),
        ({"action": THREE, "episode_index": [0, 1, 0]}, r"episodes \[0\] do not stand together; sort by episode"),
        ({CAMERA: np.zeros((3, 8, 8, 3), np.float32)}, "must hold images: uint8 .*; it is float32"),
        (
            {CAMERA: np.zeros((3, 3, 8, 8), np.uint8)},
            r"it is uint8 of shape \(3, 3, 8, 8\); type np.moveaxis\(.*, 1, -1\)$",
        ),
        ({CAMERA: np.zeros((3, 8, 8), np.uint8)}, r"channels last.*; type data\['observation.image'\]\[..., None\]"),
        ({CAMERA: np.zeros((8, 8, 3), np.uint8)}, r"type data\['observation.image'\]\[None\] for one frame"),
        ({CAMERA: np.full((3, 3, 8, 8), 0.5)}, r"\(np.moveaxis\(.*, 1, -1\) \* 255\).round\(\).astype\('uint8'\) for"),
        ({CAMERA: np.full((3, 8, 8, 3), 200.0)}, r"type data\['observation.image'\].round\(\).astype\('uint8'\)"),
        ({CAMERA: np.zeros((3, 8, 8, 3), np.int64)}, r"type data\['observation.image'\].astype\('uint8'\) for"),
        ({CAMERA: np.zeros((3, 8, 8, 2), np.uint8)}, r"it is uint8 of shape \(3, 8, 8, 2\)$"),
        ({CAMERA: np.zeros((3, 8), np.uint8)}, r"it is uint8 of shape \(3, 8\)$"),
        ({CAMERA: [np.zeros((8, 8, 3)), np.zeros((9, 8, 3))]}, r"give frames of one size, as np.stack\(images\)"),
        ({CAMERA: np.array([object(), None])}, r"dtype object, .*give frames of one size, as np.stack\(images\)"),
        ({CAMERA: torch.zeros((3, 8, 8, 3), device="meta")}, r"'observation.image' cannot be made .* of the CPU"),
    ],
)
def test_data_that_cannot_be_stored(root: Path, data: Any, message: str) -> None:
    dataset = LeRobotDatasetV2(root, fps=10, image_mode="memmap" if data and CAMERA in data else None)
    with pytest.raises(ValueError, match=message) as caught:
        dataset.add_episodes(data)
    assert isinstance(caught.value, roboreel.RoboreelError)
    assert not root.parent.exists()
    dataset.add_episodes(recording(3))
    assert len(dataset) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, r"lacks the keys \['action'\], which every episode of this dataset has"),
        ({"reward": THREE}, r"the keys \['reward'\], which the dataset has not: .* leave them out"),
        ({"action": np.zeros((3, 2), np.float32)}, r"'action': frames of shape \(2,\), where the dataset has \(\)"),
        ({"action": ["a", "b", "c"]}, r"\['action'\] came as strings; the dataset holds numbers there"),
        ({"task": THREE}, r"\['task'\] came as numbers; the dataset holds strings"),
        ({"action": np.array([0, 1e300, 0])}, r"'action': 1e\+300 is beyond the dataset's float32"),
        ({"next.done": np.array([0, 1, 2])}, r"'next.done': int64 does not go into .* bool; type data\['next.done'\]"),
        ({CAMERA: np.zeros((3, 8, 8, 3), np.uint8)}, r"frames of shape \(8, 8, 3\), where .* \(16, 24, 3\)"),
    ],
)
def test_an_episode_unlike_the_others_is_refused_whole(root: Path, change: dict[str, Any], message: str) -> None:
    dataset = made(root, [4], camera=True, task="push")
    changed = {**recording(3, 4, camera=True, task="push"), **change}
    with pytest.raises(roboreel.InvalidEpisodeError, match=message):
        dataset.add_episodes({key: value for key, value in changed.items() if value is not None})
    assert len(dataset) == 4
    dataset.add_episodes(recording(3, 4, camera=True, task="pull"))
    assert numbers_of(dataset.get_batch(range(7))) == list(range(7))
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_integers_go_into_floats_and_wider_ones_into_narrower_where_they_fit(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    dataset.add_episodes({"action": THREE, "code": np.arange(3, dtype=np.uint8)})
    dataset.add_episodes({"action": np.arange(2), "code": np.array([254, 255], np.uint16)})
    assert dataset.get_batch([3, 4])["action"].tolist() == [0, 1]
    assert dataset.get_batch([3, 4])["code"].tolist() == [254, 255]
    with pytest.raises(ValueError, match="'code': 256 is beyond the dataset's uint8"):
        dataset.add_episodes({"action": np.arange(2), "code": np.array([0, 256], np.uint16)})


def test_of_several_episodes_those_before_the_bad_one_stay_and_are_counted(root: Path) -> None:
    data = several([2, 3, 2, 4])
    data["timestamp"] = np.concatenate([np.arange(length) / 10 for length in (2, 3, 2, 4)])
    data["timestamp"][6] = -5.0
    dataset = LeRobotDatasetV2(root, fps=10)
    with pytest.raises(roboreel.InvalidEpisodeError, match="goes back at frame 1") as caught:
        dataset.add_episodes(data)
    assert caught.value.__notes__ == ["2 episodes before it were added and stay"]
    assert (dataset.num_episodes, numbers_of(dataset.get_batch(range(5)))) == (2, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("offsets", [{"actoin": [0]}, {"action": [0], "task": [0]}])
def test_windows_of_unknown_keys_are_found_before_the_first_episode_is_stored(root: Path, offsets: Any) -> None:
    dataset = LeRobotDatasetV2(root, fps=10, delta_timestamps=offsets)
    with pytest.raises(KeyError, match="delta_timestamps has the keys"):
        dataset.add_episodes(recording(3))
    assert not root.parent.exists()
    made(root, [3])  # as another process might
    with pytest.raises(KeyError, match="delta_timestamps has the keys"):
        dataset[0]


def test_windows_longer_than_the_first_episode_do_not_stop_a_recording(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10, delta_timestamps={"action": [0.5]})
    dataset.add_episodes(recording(3))
    dataset.add_episodes(recording(9, 3))
    assert dataset[3]["action"].tolist() == [4]
    assert dataset[0]["action_is_pad"].tolist() == [True]


def test_windows_asked_for_before_another_process_made_the_dataset_hold(root: Path) -> None:
    early = LeRobotDatasetV2(root, fps=10, delta_timestamps={"action": [0, 0.1]})
    made(root, [3])
    assert early[0]["action"].tolist() == [0, 0.5]


def test_holes_of_episodes_that_are_not_chosen_do_not_matter(root: Path) -> None:
    dataset = made(root, [3])
    dataset.add_episodes({**recording(4, 3), "timestamp": np.array([0, 0.1, 0.5, 0.6])})
    assert len(LeRobotDatasetV2(root, episodes=[0], delta_timestamps={"action": [0, 0.1]})) == 3
    with pytest.raises(roboreel.TimestampOutsideToleranceError, match=": 1;"):
        LeRobotDatasetV2(root, episodes=[1], delta_timestamps={"action": [0, 0.1]})


def test_a_mask_does_not_hide_a_key_of_the_same_name(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    dataset.add_episodes({"action": THREE, "action_is_pad": np.ones((3, 7), bool)})
    with pytest.raises(roboreel.InvalidArgumentError, match="the mask would be called 'action_is_pad'"):
        dataset.set_delta_timestamps({"action": [0, 0.1]})
    assert dataset[2]["action_is_pad"].shape == (7,)


def test_a_capacity_beyond_the_disk_is_refused_before_anything_is_made(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10, buffer_capacity=10**15)
    with pytest.raises(roboreel.DiskSpaceError, match=r"this needs [\d,]+ bytes and [\d,]+ are free") as caught:
        dataset.add_episodes(recording(3))
    assert isinstance(caught.value, OSError)
    assert not root.parent.exists()


def test_a_failed_flush_says_that_the_episodes_are_in(root: Path) -> None:
    dataset = made(root, [3], buffer_capacity=8)

    def fail(kind: str, path: Path) -> None:
        if kind == "sync":
            raise OSError(5, "Input/output error")

    with observed(fail), pytest.raises(roboreel.StorageError, match=r"sync of .*: Input/output error") as caught:
        dataset.add_episodes(recording(2, 3))
    assert "the episodes were added and stay" in caught.value.__notes__[0]
    assert len(dataset) == 5
    dataset.flush()


def test_a_damaged_episode_column_is_told_and_not_waited_for(root: Path) -> None:
    made(root, [3, 2]).close()
    flip(root / "columns" / "episode_index.bin", 8, 1)
    with pytest.raises(roboreel.StorageDirCorruptError, match=r"'frame_index' do not agree .* roboreel verify"):
        LeRobotDatasetV2(root, readonly=True).get_episode(0)


@pytest.mark.parametrize("bits", [1, 0x80], ids=["too large", "negative"])
def test_a_damaged_code_gives_no_other_string(root: Path, bits: int) -> None:
    made(root, [3], task="push").close()
    flip(root / "columns" / "task.bin", 3, bits)
    dataset = LeRobotDatasetV2(root, readonly=True, delta_timestamps={"action": [0]})
    for read in (lambda: dataset[0], lambda: dataset.get_episode(0), lambda: dataset.get_data_by_key("task")):
        with pytest.raises(roboreel.StorageDirCorruptError, match=r"task.bin has codes from .* there are 1 strings"):
            read()
    assert dataset.get_data_by_key("action").tolist() == [0, 0.5, 1]


def test_images_may_come_as_tensors_lists_and_views(root: Path) -> None:
    images = pictures(np.arange(6))
    dataset = LeRobotDatasetV2(root, fps=10, image_mode="memmap")
    for given in (torch.from_numpy(images), list(images), np.asfortranarray(images), images[::-1][::-1]):
        dataset.add_episodes({CAMERA: given})
    assert np.array_equal(dataset.get_data_by_key(CAMERA), np.concatenate([images] * 4))


@pytest.mark.parametrize("mode", ["video", "png"])
@pytest.mark.parametrize("options", [{}, {"decoded_cache": "1MB"}])
def test_an_image_that_cannot_be_decoded_is_named_by_episode_frame_and_camera(
    root: Path, mode: str, options: dict[str, Any]
) -> None:
    with LeRobotDatasetV2(root, fps=10, image_mode=mode) as writer:
        for first in (0, 8, 16):
            numbers = range(first, first + 8)
            writer.add_episodes(
                {key: painted_frames(numbers) for key in ("observation.images.a", "observation.images.b")}
            )
    folder = root / ("images" if mode == "png" else "videos") / "observation.images.b"
    damaged = folder / ("000000001/000005.png" if mode == "png" else "000001.mp4")
    if mode == "png":
        damaged.write_bytes(damaged.read_bytes()[:-40])
    else:
        with av.open(str(damaged)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        with damaged.open("r+b") as file:
            file.seek(packets[4].pos or 0)
            file.write(b"\xff" * (packets[5].size + packets[4].size))
    dataset = LeRobotDatasetV2(root, image_dtype="uint8", **options)
    said = (
        r"^episode 1, frame [45] of 'observation.images.b': .*00000[15].(mp4|png).*; type roboreel verify .*; restore"
    )
    for indices in (range(24), [13, 12], [12, 13]):
        with pytest.raises(UnreadableImageError, match=said):
            dataset.get_batch(indices)
    others = LeRobotDatasetV2(root, episodes=[0, 2], image_dtype="uint8")  # as the error advises
    batch = others.get_batch(range(16))["observation.images.b"].movedim(-3, -1).numpy()
    assert read_numbers(batch) == [*range(8), *range(16, 24)]
    with pytest.raises(RoboreelError, match=r"observation.images.b|000005.png"):
        dataset.convert("memmap")
