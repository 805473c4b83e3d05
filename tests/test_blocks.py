"""Blocks of episodes: every frame once an epoch, decoded once, in an order that can be taken up anywhere."""

from __future__ import annotations

import os
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from roboreel import EpisodeBlocks, InvalidArgumentError, LeRobotDatasetV2
from roboreel.columns.png import PngColumn
from roboreel.columns.video import VideoColumn
from tests.recordings import CAMERA, VIDEO_ERROR, made, numbers_of, pictures

LENGTHS = [4, 9, 1, 6, 7, 3, 8, 5]
FRAMES = sum(LENGTHS)
DELTAS = {key: [-0.2, 0, 0.1] for key in (CAMERA, "observation.state")}


@pytest.fixture(scope="module", params=["png", "video"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / str(request.param)
    lengths = LENGTHS if request.param == "png" else LENGTHS[:3]
    made(root, lengths, camera=True, image_mode=request.param).close()
    return root


@pytest.fixture(scope="module")
def numbers_only(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDatasetV2:
    dataset: LeRobotDatasetV2 = made(tmp_path_factory.mktemp("numbers") / "dataset", LENGTHS)
    return dataset


def drawn(blocks: EpisodeBlocks, workers: int) -> list[list[int]]:
    loader = DataLoader(
        blocks, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    return [batch["index"].tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_frame_is_decoded_once_an_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    log = tmp_path / "decoded"
    for column in (PngColumn, VideoColumn):
        _tell(monkeypatch, column, log)
    dataset = LeRobotDatasetV2(root, delta_timestamps=DELTAS, image_dtype="uint8")
    blocks = EpisodeBlocks(dataset, batch_size=5, episodes=2, seed=3)
    for epoch in range(2):
        log.write_text("")
        blocks.set_epoch(epoch)
        seen = []
        for batch in DataLoader(
            blocks, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
        ):
            numbers = np.asarray(numbers_of(batch))
            assert isinstance(batch[CAMERA], torch.Tensor)
            images = batch[CAMERA].movedim(-3, -1).numpy().astype(int)
            assert np.abs(images - pictures(numbers)).max() <= VIDEO_ERROR
            seen += numbers[:, 1].tolist()
        assert sorted(seen) == list(range(len(dataset)))
        decoded = Counter(map(int, log.read_text().split()))
        # by what the decoder was asked for, windows included; a process that goes on still has its last block
        assert decoded == Counter(range(len(dataset))) if workers or not epoch else max(decoded.values()) == 1
    held = dataset._need_store().held
    assert all(len(episodes) == 2 for episodes in held.values())
    assert workers or held
    dataset.close()
    assert not held


def _tell(monkeypatch: pytest.MonkeyPatch, column: Any, log: Path) -> None:
    """Have a column write down the slots of all frames that it decodes, in whatever process."""
    read = column.read

    def telling(self: Any, frames: Any, out: Any) -> None:
        line = " ".join(map(str, frames.slots.tolist())) + "\n"
        fd = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)
        read(self, frames, out)

    monkeypatch.setattr(column, "read", telling)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_it_is_taken_up_at_any_batch_as_it_would_have_gone_on(numbers_only: LeRobotDatasetV2, workers: int) -> None:
    blocks = EpisodeBlocks(numbers_only, batch_size=4, episodes=2, seed=1, epoch=5)
    whole = list(blocks.indices(max(1, workers)))
    assert sorted(chain(*whole)) == list(range(FRAMES))
    assert len(whole) == blocks.num_batches(workers)
    assert drawn(blocks, workers) == whole
    for start in range(0, len(whole) + 2, 1 if workers in (0, 1) else 3):
        assert drawn(EpisodeBlocks(numbers_only, 4, 2, 1, 5, start), workers) == whole[start:]


@pytest.mark.parametrize(("workers", "world_size"), [(1, 2), (2, 3), (4, 2), (3, 4)])
def test_workers_and_processes_share_the_frames_out(
    numbers_only: LeRobotDatasetV2, workers: int, world_size: int
) -> None:
    parts: list[list[int]] = []
    for rank in range(world_size):
        blocks = EpisodeBlocks(numbers_only, batch_size=3, episodes=1, rank=rank, world_size=world_size)
        batches = list(blocks.indices(workers))
        assert [len(batches), len(batches)] == [blocks.num_batches(workers), blocks.num_batches(workers, rank)]
        parts += batches
    assert sorted(chain(*parts)) == list(range(FRAMES))


def test_the_frames_of_a_block_are_mixed_and_epochs_differ(numbers_only: LeRobotDatasetV2) -> None:
    episode_of = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    blocks = EpisodeBlocks(numbers_only, batch_size=1, episodes=4)
    orders = []
    for epoch in range(3):
        blocks.set_epoch(epoch)
        order = [batch[0] for batch in blocks.indices()]
        assert len(set(episode_of[order[: FRAMES // 4]])) > 1
        first = len([index for index in order if episode_of[index] in set(episode_of[order[:20]])])
        assert len(set(episode_of[order[:first]])) == 4  # one block after the other
        orders.append(tuple(order))
    assert len(set(orders)) == 3
    again = EpisodeBlocks(numbers_only, batch_size=1, episodes=4, epoch=1)
    assert tuple(batch[0] for batch in again.indices()) == orders[1]


def test_incomplete_batches_can_be_left_out(numbers_only: LeRobotDatasetV2) -> None:
    blocks = EpisodeBlocks(numbers_only, batch_size=10, episodes=3, drop_last=True)
    batches = drawn(blocks, 2)
    assert [len(batch) for batch in batches] == [10] * blocks.num_batches(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, episodes=8; both must be integers, 1 or more"),
        ({"episodes": 0}, "batch_size=4, episodes=0; both must be integers, 1 or more"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2; give 0 <= rank < world_size"),
        ({"seed": -1}, "seed=-1; give one from 0"),
        (
            {"world_size": 2},
            r"8 episodes .*episodes=8 are 1 blocks, .*world_size=2 .*give episodes=4 or less",
        ),
        ({"episodes": 1, "world_size": 9}, "are 8 blocks, and world_size=9 processes want one each"),
        ({"epoch": -1}, "epoch=-1, start=0; both must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(numbers_only: LeRobotDatasetV2, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        EpisodeBlocks(numbers_only, **{"batch_size": 4, **options})


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="holds no episode yet"):
        EpisodeBlocks(LeRobotDatasetV2(tmp_path / "new", fps=10), batch_size=4)


def test_persistent_workers_are_told_of_the_epoch(numbers_only: LeRobotDatasetV2) -> None:
    blocks = EpisodeBlocks(numbers_only, batch_size=16, episodes=2)
    loader = DataLoader(blocks, batch_size=None, num_workers=2, persistent_workers=True)
    given = []
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        blocks.set_epoch(epoch, start)
        given.append([batch["index"].tolist() for batch in loader])
    for k, (epoch, start) in enumerate(((0, 0), (1, 0), (1, 2))):
        fresh = EpisodeBlocks(numbers_only, batch_size=16, episodes=2, epoch=epoch)
        assert given[k] == list(fresh.indices(workers=2))[start:]
    assert given[0] != given[1]
