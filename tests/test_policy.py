"""The behaviour-cloning policy: what it learns, what it ignores, and how it acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from roboreel import ConfigError, LeRobotDatasetV2, SourceError
from roboreel.policies import BCConfig, BCPolicy
from roboreel.policies.networks import random_shift
from tests.tiny_data import FPS, episode, make_dataset

TINY = BCConfig(chunk_size=4, n_action_steps=2, width=8, keypoints=8, hidden=32, blocks=2, noises=4)


def opened(folder: Path, **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(folder, readonly=True, image_dtype="uint8", **options)


def batch_of(policy: BCPolicy, dataset: LeRobotDatasetV2, indices: list[int]) -> dict[str, Tensor]:
    dataset.set_delta_timestamps(policy.delta_timestamps())
    return {key: value for key, value in dataset.get_batch(indices).items() if torch.is_tensor(value)}


def seeded_loss(policy: BCPolicy, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(7)
    loss: Tensor = policy(batch)
    return loss


def test_it_learns_actions_from_states(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / "data", cameras=0))
    torch.manual_seed(0)
    policy = BCPolicy.for_dataset(replace(TINY, chunk_size=1, n_action_steps=1, hidden=64, noises=16), dataset)
    batch = batch_of(policy, dataset, list(range(len(dataset))))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        policy(batch).backward()
        optimizer.step()
    policy.eval()
    errors = policy.select_action(batch) - batch["action"][:, 0]
    # Actions spread over 0 … 200: whoever ignores the state is off by 50 on average.
    assert errors.abs().mean() < 15


@pytest.mark.parametrize("cameras", [1, 2])
def test_images_reach_the_loss_of_every_camera(tmp_path: Path, cameras: int) -> None:
    dataset = opened(make_dataset(tmp_path / "data", cameras=cameras))
    policy = BCPolicy.for_dataset(TINY, dataset).eval()
    batch = batch_of(policy, dataset, [0, 3, 5])
    assert all(batch[key].dtype == torch.uint8 for key in dataset.camera_keys)
    loss = seeded_loss(policy, batch)
    for key in dataset.camera_keys:
        assert seeded_loss(policy, {**batch, key: 255 - batch[key]}) != loss


def test_padded_actions_do_not_count(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / "data"))
    policy = BCPolicy.for_dataset(TINY, dataset).eval()
    batch = batch_of(policy, dataset, [7, 8])  # the first episode has 9 frames
    assert batch["action_is_pad"].sum(dim=1).tolist() == [2, 3]
    loss = seeded_loss(policy, batch)
    repeated = batch["action_is_pad"][..., None]
    assert torch.equal(seeded_loss(policy, {**batch, "action": torch.where(repeated, 1e3, batch["action"])}), loss)
    assert not torch.isclose(
        seeded_loss(policy, {**batch, "action": torch.where(repeated, batch["action"], 1e3)}), loss
    )


def test_statistics_are_in_the_checkpoint(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / "data"))
    policy = BCPolicy.for_dataset(TINY, dataset).eval()
    file = tmp_path / "policy.pt"
    torch.save(policy.to_dict(), file)
    loaded = BCPolicy.load(file, torch.device("cpu"))
    observation = batch_of(policy, dataset, [0, 1, 2])
    assert torch.equal(policy.select_action(observation), loaded.select_action(observation))
    assert loaded.fps == FPS
    # Untrained, its actions are noise, on the scale of the data all the same.
    actions = torch.cat([loaded.select_action(observation) for _ in range(100)])
    assert 40 < actions.mean() < 160


def test_offsets_from_the_state_are_learned_where_it_has_an_actions_shape(tmp_path: Path) -> None:
    data = episode(30, cameras=0)
    data["observation.state"] *= 100
    data["action"] = data["observation.state"] + np.float32(5)
    with LeRobotDatasetV2(tmp_path / "data", fps=FPS) as dataset:
        dataset.add_episodes(data)
    dataset = opened(tmp_path / "data")
    one = replace(TINY, chunk_size=1, n_action_steps=1)
    for relative in (True, False):
        policy = BCPolicy.for_dataset(replace(one, relative=relative), dataset).eval()
        errors = policy.select_action(batch_of(policy, dataset, list(range(30)))) - torch.from_numpy(data["action"])
        # Untrained: as offsets, all equal here, the actions are right already but for noise on a scale of 1.
        assert (errors.abs().mean() < 10) == relative


def test_each_environment_has_its_own_queue(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / "data"))
    policy = BCPolicy.for_dataset(TINY, dataset).eval()
    first, other = batch_of(policy, dataset, [0, 1]), batch_of(policy, dataset, [2, 3])
    for env in (0, 1):
        policy.begin(env, seed=env)
    policy.select_action(first)
    planned = policy.select_action(other)  # the second action of chunks of two: what is seen now does not matter
    for env in (0, 1):
        policy.begin(env, seed=env)
    policy.select_action(first)
    policy.begin(1, seed=1)
    mixed = policy.select_action(other)
    assert torch.equal(mixed[0], planned[0])
    assert not torch.equal(mixed[1], planned[1])


def test_a_seed_fixes_what_is_drawn(tmp_path: Path) -> None:
    dataset = opened(make_dataset(tmp_path / "data"))
    policy = BCPolicy.for_dataset(TINY, dataset).eval()
    one = {key: value[:1] for key, value in batch_of(policy, dataset, [0]).items()}

    def act(seed: int) -> Tensor:
        policy.begin(0, seed)
        return policy.select_action(one)

    assert torch.equal(act(5), act(5))
    assert not torch.equal(act(5), act(6))


@pytest.mark.parametrize("shape", [(3, 3, 8, 6), (1, 1, 5, 5)])
def test_a_shift_moves_every_image_by_whole_pixels(shape: tuple[int, ...]) -> None:
    images = torch.arange(int(np.prod(shape)), dtype=torch.int32).view(shape)
    torch.manual_seed(3)
    shifted = random_shift(images, 2)
    torch.manual_seed(3)
    dy, dx = torch.randint(-2, 3, (2, shape[0], 1))[..., 0]
    for k in range(shape[0]):
        rows = np.clip(np.arange(shape[2]) + int(dy[k]), 0, shape[2] - 1)
        columns = np.clip(np.arange(shape[3]) + int(dx[k]), 0, shape[3] - 1)
        assert np.array_equal(shifted[k].numpy(), images[k].numpy()[:, rows][:, :, columns])
    assert random_shift(images, 0) is images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "--policy.chunk-size 0 is too small"),
        ({"n_action_steps": 17}, "a chunk has only 16 actions"),
        ({"width": 12}, "--policy.width 12: give a multiple of 8"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BCConfig(**options)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (["observation.state"], "has no key 'action' to learn"),
        (["action"], "has no camera and no state"),
    ],
)
def test_a_dataset_without_the_keys_is_refused(tmp_path: Path, kept: list[str], message: str) -> None:
    with LeRobotDatasetV2(tmp_path / "data", fps=FPS) as dataset:
        dataset.add_episodes({key: value for key, value in episode(4).items() if key in kept})
        with pytest.raises(ConfigError, match=message):
            BCPolicy.for_dataset(TINY, dataset)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no frames to train on"):
        BCPolicy.for_dataset(TINY, LeRobotDatasetV2(tmp_path / "data", fps=FPS))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no checkpoint: give a run's output folder"):
        BCPolicy.load(tmp_path, torch.device("cpu"))
    file = tmp_path / "policy.pt"
    file.write_bytes(b"damaged")
    with pytest.raises(SourceError, match="cannot be read as a checkpoint"):
        BCPolicy.load(tmp_path, torch.device("cpu"))
    torch.save({"policy": "act"}, file)
    with pytest.raises(ConfigError, match="checkpoint of the policy 'act'"):
        BCPolicy.load(tmp_path, torch.device("cpu"))
