"""gym-xarm and gym-aloha, which hold MuJoCo to versions of their own: rolled out and stored as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.envs import RandomActor, VectorEnvs, make_envs, rollout

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("gym_xarm", exc_type=ImportError)
pytest.importorskip("gym_aloha", exc_type=ImportError)


def roll(envs: VectorEnvs, seeds: list[int], **options: Any) -> list[Any]:
    with envs:
        episodes = list(rollout(envs, RandomActor(envs.actions, envs.n_envs), seeds, **options))
    return sorted(episodes, key=lambda episode: episode.seed)


@pytest.mark.parametrize("in_processes", [False, True])
def test_xarm_draws_what_it_shows(tmp_path: Path, in_processes: bool) -> None:
    envs = make_envs("xarm", 2, max_steps=3, in_processes=in_processes)
    assert envs.shapes == {"observation.image": (84, 84, 3), "observation.state": (4,), "action": (4,)}
    assert envs.fps == 25
    episodes = roll(envs, [7, 8])
    for episode in episodes:
        image = episode.data["observation.image"]
        assert (image.shape, image.dtype) == ((4, 84, 84, 3), np.uint8)
        assert len(np.unique(image[0])) > 20, "a picture of nothing"
        assert not np.array_equal(image[0], image[-1])
        assert episode.tells_success
    with LeRobotDatasetV2(tmp_path / "xarm", fps=25, image_mode="png") as dataset:
        for episode in episodes:
            dataset.add_episodes(episode.data)
        assert np.array_equal(dataset.get_episode(1)["observation.image"], episodes[1].data["observation.image"])


def test_xarm_from_states_and_drawn() -> None:
    episodes = []
    for _ in range(2):
        envs = make_envs("xarm", options={"obs_type": "state"}, max_steps=2, draw=True)
        assert envs.shapes == {"observation.state": (28,), "action": (4,)}
        episodes += roll(envs, [3], filmed=[3])
    first, again = (episode.data["observation.state"] for episode in episodes)
    assert np.array_equal(first, again)
    film = episodes[0].film
    assert film is not None
    assert (film.shape[0], film.shape[-1]) == (3, 3)


def test_an_xarm_episode_is_what_its_seed_says_whatever_came_before() -> None:
    options = {"obs_type": "state"}
    alone = roll(make_envs("xarm", 1, max_steps=3, options=options), [5, 6, 7])
    together = roll(make_envs("xarm", 2, max_steps=3, options=options, in_processes=False), [7, 6, 5])
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed
        for key in one.data:
            assert np.array_equal(one.data[key], other.data[key]), f"{key} of seed {one.seed}"


@pytest.mark.parametrize("name", ["aloha", "gym_aloha/AlohaInsertion-v0"])
def test_aloha_has_its_camera_in_a_dict(name: str) -> None:
    envs = make_envs(name, max_steps=1)
    assert envs.shapes == {"observation.images.top": (480, 640, 3), "observation.state": (14,), "action": (14,)}
    assert envs.fps == 50
    (episode,) = roll(envs, [1])
    assert episode.data["observation.images.top"].shape == (2, 480, 640, 3)
    assert len(np.unique(episode.data["observation.images.top"][0])) > 20
    assert episode.truncated
