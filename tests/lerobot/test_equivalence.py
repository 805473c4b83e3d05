"""Items of ours are LeRobotDataset's, bit for bit; and where they are not, it is as docs/equivalence.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from scripts.equivalence import Windows, compare, converted, in_seconds, open_theirs, windows_of

from roboreel import LeRobotDatasetV2
from tests.lerobot import lerobot_writer
from tests.lerobot.lerobot_writer import CAMERAS, FPS, LENGTHS, TASKS, TOP

SHOWN = {**dict.fromkeys(CAMERAS, "video"), TOP: "image"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of LeRobot's own writer."""
    return lerobot_writer.write(tmp_path_factory.mktemp("written") / "theirs")


@pytest.fixture
def ours(folder: Path, tmp_path: Path) -> LeRobotDatasetV2:
    return imported(folder, tmp_path / "ours")


def imported(folder: Path, place: Path, **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2.from_lerobot(folder, place, progress=False, **options)


def assert_equal(folder: Path, dataset: LeRobotDatasetV2, windows: Windows | None, **options: Any) -> None:
    found = compare(folder, dataset, windows, **options)
    assert (found.different, found.refused, found.differ, found.said) == (0, 0, [], [])
    assert found.items == len(range(0, len(dataset), options.get("every", 1)))
    assert found.frames_there == len(dataset)


@pytest.mark.parametrize("kind", ["single", "policy", "wide"])
def test_every_item_of_a_recording_of_lerobots_writer(folder: Path, ours: LeRobotDatasetV2, kind: str) -> None:
    assert len(ours) == sum(LENGTHS)
    assert {ours[i]["task"] for i in range(len(ours))} == set(TASKS)
    windows = windows_of(ours, SHOWN)[kind]
    if windows is not None:
        windows = {key: steps for key, steps in windows.items() if key != "said"}  # LeRobot has no windows of strings
    assert_equal(folder, ours, windows)


def test_with_torchcodec_too(folder: Path, tmp_path: Path) -> None:
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not load, it wants FFmpeg's libraries: {str(error)[:80]}")
    imported(folder, tmp_path / "ours").close()
    ours = LeRobotDatasetV2(tmp_path / "ours", video_decoder="torchcodec")
    assert_equal(folder, ours, {CAMERAS[0]: [2, 0, -5], "action": [0, 1]}, decoder="torchcodec")


@pytest.mark.parametrize("kind", ["single", "policy"])
def test_items_all_over_the_sample(sample_dir: Path, tmp_path: Path, kind: str) -> None:
    dataset = imported(sample_dir, tmp_path / "ours")
    assert_equal(sample_dir, dataset, windows_of(dataset, {"observation.image": "video"})[kind], every=997)


def test_a_v21_folder_as_lerobots_converter_makes_it_v30(ours: LeRobotDatasetV2, tmp_path: Path) -> None:
    ours.to_lerobot(tmp_path / "v21", "v2.1")
    given = converted(tmp_path / "v21", tmp_path / "converted")
    dataset = imported(tmp_path / "v21", tmp_path / "again")
    for kind in ("single", "policy"):
        assert_equal(given, dataset, _without_strings(windows_of(dataset, SHOWN)[kind]))


def _without_strings(windows: Windows | None) -> Windows | None:
    return None if windows is None else {key: steps for key, steps in windows.items() if key != "said"}


def test_chosen_episodes_are_lerobots_chosen_episodes(folder: Path, tmp_path: Path) -> None:
    windows = {"action": [-1, 0], CAMERAS[0]: [0, 1]}
    ours = imported(folder, tmp_path / "ours", episodes=[1, 2])
    assert len(ours) == sum(LENGTHS[1:])
    assert_equal(folder, ours, windows, episodes=[1, 2])


def test_a_default_data_loader_gives_the_same_batches(folder: Path, ours: LeRobotDatasetV2) -> None:
    windows = {"action": [-1, 0, 1], CAMERAS[1]: [0, 1]}
    ours.set_delta_timestamps(in_seconds(windows, FPS))
    loaders = [torch.utils.data.DataLoader(one, batch_size=4) for one in (open_theirs(folder, windows, FPS), ours)]
    batches = 0
    for theirs, mine in zip(*loaders, strict=True):
        assert set(theirs) == set(mine)
        for key, value in theirs.items():
            same = torch.equal(value, mine[key]) if isinstance(value, torch.Tensor) else value == mine[key]
            assert same, key
        batches += 1
    assert batches == 4


# Where we differ on purpose


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8"])
def test_a_column_keeps_its_type_and_lerobots_is_that_cast(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(12).reshape(4, 3) / 7).astype(dtype)
    features = {"action": {"dtype": dtype, "shape": (3,), "names": None}}
    writer = LeRobotDataset.create("local/typed", FPS, features, root=tmp_path / "typed")
    for row in values:
        writer.add_frame({"action": row, "task": "push"})
    writer.save_episode()
    writer.finalize()
    theirs, ours = open_theirs(tmp_path / "typed", None, FPS), imported(tmp_path / "typed", tmp_path / "ours")
    for i in range(4):
        got, wanted = ours[i]["action"], theirs[i]["action"]
        assert got.numpy().dtype == dtype
        assert wanted.dtype == (torch.float32 if values.dtype.kind == "f" else torch.int64)
        assert torch.equal(got.to(wanted.dtype), wanted)
        np.testing.assert_array_equal(got.numpy(), values[i])


def test_offsets_between_two_frames_are_ours_alone(folder: Path, ours: LeRobotDatasetV2) -> None:
    deltas = {"action": [0.04, 0.06]}
    with pytest.raises(ValueError, match="multiples"):
        LeRobotDataset("local/theirs", root=folder, delta_timestamps=deltas)
    ours.set_delta_timestamps({"index": deltas["action"]})
    assert ours[1]["index"].tolist() == [1, 2]


def test_windows_of_time_task_and_strings_are_ours_alone(folder: Path, ours: LeRobotDatasetV2) -> None:
    refused: list[tuple[str, type[Exception]]] = [
        ("timestamp", RuntimeError),
        ("task_index", RuntimeError),
        ("said", TypeError),
    ]
    for key, error in refused:
        with pytest.raises(error):
            open_theirs(folder, {key: [-1, 0]}, FPS)[1]
        ours.set_delta_timestamps(in_seconds({key: [-1, 0]}, FPS))
        item = ours[1]
        assert len(item[key]) == 2
        assert item[f"{key}_is_pad"].tolist() == [False, False]
