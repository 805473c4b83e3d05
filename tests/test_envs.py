"""Rollouts: each episode whole, with its own last observation, whatever its neighbours do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from roboreel import InvalidArgumentError, LeRobotDatasetV2, MissingDependencyError
from roboreel.envs import Episode, RandomActor, VectorEnvs, make_pusht, rollout
from roboreel.envs.rollout import Observation


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps, and ends after 1 + seed % 4 of them: a success for an even seed, else cut at the limit."""

    observation_space = gymnasium.spaces.Dict({"told": gymnasium.spaces.Box(-1, 1e6, (2,), np.float64)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        assert seed is not None, "an episode was begun without a seed"
        self.number, self.steps = seed, 0
        return self._told(), {"height": float(seed)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        self.steps += 1
        over = self.steps > self.number % 4
        success = over and self.number % 2 == 0
        info = {"is_success": success, "height": self.steps / 10}
        return self._told(), float(self.steps), success, over and not success, info

    def _told(self) -> dict[str, NDArray[np.float64]]:
        return {"told": np.array([self.number, self.steps], np.float64)}


class Bold:
    """An actor that asks for more than the action space has, and remembers what it saw."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []

    def begin(self, env: int, seed: int) -> None:
        self.begun.append((env, seed))

    def act(self, observation: Observation) -> NDArray[np.float32]:
        return np.full((len(observation["observation.state"]), 1), 7, np.float32)


def counters(n_envs: int) -> VectorEnvs:
    envs = gymnasium.vector.SyncVectorEnv([Counter] * n_envs, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
    return VectorEnvs(envs, {"observation.state": "told"}, fps=10, signals=("height",))


@pytest.mark.parametrize("n_envs", [1, 2, 3, 9])
def test_every_seed_gives_one_whole_episode(n_envs: int) -> None:
    seeds = [4, 7, 5, 6, 8, 3, 13]
    actor = Bold()
    with counters(n_envs) as envs:
        episodes = list(rollout(envs, actor, seeds))
    assert sorted(episode.seed for episode in episodes) == sorted(seeds)
    assert [seed for _, seed in actor.begun] == seeds
    for episode in episodes:
        steps = 1 + episode.seed % 4
        assert episode.initial == {"height": episode.seed}
        state = episode.data["observation.state"]
        assert state.dtype == np.float32
        # The last frame is what came after the last step, not the first frame of another episode.
        assert state.tolist() == [[episode.seed, k] for k in range(steps + 1)]
        assert episode.rewards.tolist() == list(range(1, steps + 1))
        assert episode.data["next.reward"][-1] == steps
        assert episode.data["next.done"].tolist() == [False] * (steps - 1) + [True, True]
        assert episode.data["action"].tolist() == [[1.0]] * (steps + 1)
        assert (episode.success, episode.truncated) == (episode.seed % 2 == 0, episode.seed % 2 == 1)
        assert episode.signals["height"].tolist() == [k / 10 for k in range(1, steps + 1)]


def test_no_seeds_is_an_error() -> None:
    with counters(1) as envs, pytest.raises(InvalidArgumentError, match="no seeds to roll out"):
        list(rollout(envs, Bold(), []))


def random_episodes(n_envs: int, *, in_processes: bool, seeds: list[int]) -> list[Episode]:
    with make_pusht(n_envs, max_steps=6, in_processes=in_processes) as envs:
        actor = RandomActor(envs.action_low, envs.action_high, envs.n_envs)
        return sorted(rollout(envs, actor, seeds), key=lambda episode: episode.seed)


def test_pusht_episodes_depend_on_their_seeds_alone() -> None:
    alone = random_episodes(1, in_processes=False, seeds=[3, 4, 5])
    together = random_episodes(2, in_processes=True, seeds=[5, 4, 3])
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed
        assert one.data.keys() == other.data.keys()
        assert all(np.array_equal(one.data[key], other.data[key]) for key in one.data)
        assert np.array_equal(one.signals["coverage"], other.signals["coverage"])
    assert not np.array_equal(alone[0].data["observation.state"], alone[1].data["observation.state"])


def test_pusht_looks_like_the_recordings(sample_dir: Path, tmp_path: Path) -> None:
    (episode,) = random_episodes(1, in_processes=False, seeds=[0])
    recorded = LeRobotDatasetV2.from_lerobot(sample_dir, tmp_path / "sample", image_dtype="uint8")[0]
    image = episode.data["observation.image"]
    assert image.shape == (7, 96, 96, 3)
    assert image.dtype == np.uint8
    assert recorded["observation.image"].shape == (3, 96, 96)
    # A corner holds nothing but the wall and the ground: the same picture in both.
    corner = recorded["observation.image"].movedim(0, -1).numpy()[:12, :12].astype(int)
    assert np.abs(image[0, :12, :12].astype(int) - corner).mean() < 3
    for key in ("observation.state", "action"):
        assert episode.data[key].shape[1:] == tuple(recorded[key].shape)
        assert str(recorded[key].numpy().dtype) == str(episode.data[key].dtype)


def test_an_episode_goes_into_a_dataset(tmp_path: Path) -> None:
    (episode,) = random_episodes(1, in_processes=False, seeds=[1])
    with LeRobotDatasetV2(tmp_path / "recorded", fps=10, image_mode="memmap") as dataset:
        dataset.add_episodes(episode.data)
        stored = dataset.get_episode(0)
    assert all(np.array_equal(stored[key], values) for key, values in episode.data.items())


def test_a_missing_simulator_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'roboreel\[sim\]'"):
        make_pusht(1)
