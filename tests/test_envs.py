"""Rollouts: each episode whole, with its own last observation, whatever its neighbours do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from roboreel import ConfigError, InvalidArgumentError, LeRobotDatasetV2, MissingDependencyError, RolloutError
from roboreel.envs import Episode, Observation, RandomActor, VectorEnvs, make_envs, make_pusht, rollout


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
        actor = RandomActor(envs.actions, envs.n_envs)
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
    for key, values in episode.data.items():
        given = values.astype(np.float32) if key == "timestamp" else values
        assert np.array_equal(stored[key], given), key


@pytest.mark.parametrize("mode", [gymnasium.vector.AutoresetMode.NEXT_STEP, gymnasium.vector.AutoresetMode.SAME_STEP])
def test_environments_that_reset_themselves_are_refused(mode: Any) -> None:
    envs = gymnasium.vector.SyncVectorEnv([Counter], autoreset_mode=mode)
    with pytest.raises(ConfigError, match=r"the true last observation .*AutoresetMode\.DISABLED"):
        VectorEnvs(envs, {"observation.state": "told"}, fps=10)


def test_cut_episodes_are_told_from_those_that_ended(tmp_path: Path) -> None:
    with counters(2) as envs:
        by_seed = {episode.seed: episode.data for episode in rollout(envs, Bold(), [2, 3])}
    assert by_seed[2]["next.truncated"].tolist() == [False] * 4
    assert by_seed[3]["next.truncated"].tolist() == [False] * 3 + [True, True]
    for data in by_seed.values():
        assert data["frame_index"].tolist() == list(range(len(data["next.done"])))
        assert data["timestamp"].tolist() == [k / 10 for k in range(len(data["next.done"]))]
    with LeRobotDatasetV2(tmp_path / "online", fps=10, buffer_capacity=12, use_as_fifo_buffer=True) as buffer:
        for data in by_seed.values():
            buffer.add_episodes(data)
        assert buffer[3]["observation.state"].tolist() == [2, 3]
        assert buffer[3]["timestamp"].item() == pytest.approx(0.3)


class Gripper(gymnasium.Env[Any, Any]):
    """Two cameras, a state, a goal of its own, and buttons to press; says `success`; never ends by itself."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium's
    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Dict(
                {
                    "top": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
                    "wrist": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
                }
            ),
            "agent_pos": gymnasium.spaces.Box(-1, 1, (2,), np.float64),
            "environment_state": gymnasium.spaces.Box(-1, 1, (4,), np.float32),
            "goal": gymnasium.spaces.Discrete(3),
        }
    )
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])

    def __init__(self, render_mode: str | None = None, bright: int = 1) -> None:
        self.render_mode, self.bright = render_mode, bright

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._seen(), float(action[1]), False, False, {"success": self.steps == 3}

    def render(self) -> NDArray[np.uint8]:
        return np.full((16, 24, 3), self.steps, np.uint8)

    def _seen(self) -> dict[str, Any]:
        pixels = {name: np.full((8, 8, 3), self.steps * self.bright, np.uint8) for name in ("top", "wrist")}
        return {
            "pixels": pixels,
            "agent_pos": np.full(2, self.steps / 10),
            "environment_state": np.full(4, self.steps / 20, np.float32),
            "goal": self.steps % 3,
        }


@pytest.fixture
def gripper_id() -> Iterator[str]:
    gymnasium.register("tests/Gripper-v0", f"{__name__}:Gripper")
    yield "tests/Gripper-v0"
    del gymnasium.registry["tests/Gripper-v0"]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_any_environment_by_id(gripper_id: str, tmp_path: Path, n_envs: int) -> None:
    with make_envs(gripper_id, n_envs, options={"bright": 9}, max_steps=4, draw=True) as envs:
        assert (envs.fps, envs.camera_keys) == (20, ["observation.images.top", "observation.images.wrist"])
        actor = RandomActor(envs.actions, envs.n_envs)
        (episode,) = rollout(envs, actor, [5], filmed=[5])
    data = episode.data
    assert [np.unique(image).item() for image in data["observation.images.wrist"]] == [0, 9, 18, 27, 36]
    assert data["observation.images.top"].dtype == np.uint8
    assert data["observation.environment_state"][:, 0].tolist() == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert data["observation.goal"].tolist() == [0, 1, 2, 0, 1]
    assert data["action"].dtype == np.int64
    assert data["next.reward"].tolist() == data["action"][:, 1].tolist()
    assert set(data["action"][:, 0].tolist()) <= {0, 1}
    assert (episode.success, episode.tells_success, episode.truncated) == (True, True, True)
    assert episode.film is not None
    assert [np.unique(picture).item() for picture in episode.film] == [0, 1, 2, 3, 4]
    with LeRobotDatasetV2(tmp_path / "recorded", fps=20, image_mode="memmap") as dataset:
        dataset.add_episodes(data)
        assert dataset.camera_keys == ["observation.images.top", "observation.images.wrist"]
        assert torch.equal(dataset[2]["action"], torch.from_numpy(data["action"][2]))


def test_observations_are_chosen_and_named(gripper_id: str) -> None:
    keys = {"observation.image": "pixels/wrist", "observation.state": "environment_state"}
    with make_envs(gripper_id, keys=keys, max_steps=1, fps=5) as envs:
        assert envs.shapes == {"observation.image": (8, 8, 3), "observation.state": (4,), "action": (2,)}
        observation, _ = envs.reset({0: 1})
        assert envs.fps == 5
        assert {key: array.shape for key, array in observation.items()} == {
            "observation.image": (1, 8, 8, 3),
            "observation.state": (1, 4),
        }


@pytest.mark.parametrize("key", ["action", "frame_index", "next.reward"])
def test_no_observation_takes_the_name_of_what_an_episode_has(gripper_id: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{key}'\]: names that an episode has for something else"):
        make_envs(gripper_id, keys={key: "agent_pos"}, max_steps=1)


def test_states_of_pusht_instead_of_pictures() -> None:
    options = {"obs_type": "environment_state_agent_pos"}
    with make_envs("pusht", options=options, max_steps=2) as envs:
        assert envs.shapes == {"observation.environment_state": (16,), "observation.state": (2,), "action": (2,)}
        (episode,) = rollout(envs, RandomActor(envs.actions, 1), [3])
    assert episode.data["observation.environment_state"].dtype == np.float32
    assert episode.initial.keys() == {"coverage"}


def test_an_environment_that_tells_no_success() -> None:
    with make_envs("CartPole-v1", max_steps=3) as envs:
        (episode,) = rollout(envs, RandomActor(envs.actions, 1), [3])
    assert not episode.tells_success
    assert episode.data["action"].shape == (4,)
    assert envs.fps == 50


class Left:
    """Gives its one number as an array of it, as LeRobot's policies do."""

    def begin(self, env: int, seed: int) -> None: ...

    def act(self, observation: Observation) -> NDArray[np.float32]:
        return np.zeros((len(observation["observation.state"]), 1), np.float32)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_id_with_its_module_and_actions_that_are_one_number(n_envs: int) -> None:
    with make_envs("gymnasium:CartPole-v1", n_envs, in_processes=False) as envs:
        assert envs.max_steps == 500
        for episode in rollout(envs, Left(), [3, 4]):
            assert episode.data["action"].shape == (len(episode.rewards) + 1,)
            assert not episode.data["action"].any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Pendulum-v77", {}, r"no environment 'Pendulum-v77' .*; pusht, xarm, aloha, an id such as Pendulum-v1"),
        ("nowhere:Thing-v0", {}, r"no environment 'nowhere:Thing-v0' \(No module named 'nowhere'"),
        ("Pendulum-v1", {"colour": "red"}, r"Pendulum-v1 cannot be made so .*colour"),
        ("tests/Gripper-v0", {}, r"episodes of tests/Gripper-v0 may never end: .* --max-steps 200"),
    ],
)
def test_what_cannot_be_made(gripper_id: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_envs(name, options=options)


def test_observations_that_are_no_numbers_are_named() -> None:
    with pytest.raises(ConfigError, match="the observation: no array of numbers, which is what a dataset stores"):
        make_envs("Blackjack-v1", max_steps=5)  # a tuple


def test_a_missing_simulator_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'roboreel\[sim\]'"):
        make_pusht(1)


class Fragile(Counter):
    """Breaks on the third step of an episode, and cannot begin with seed 13."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed == 13:
            raise OSError("no licence for this seed")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.steps == 2:
            raise FloatingPointError("the arm went through the table")
        return super().step(action)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([3, 7], "Arm has failed in step 3 of seed 3, step 3 of seed 7: FloatingPointError: the arm went through"),
        ([13], r"Arm cannot begin the episodes of the seeds \[13\]: OSError: no licence for this seed"),
    ],
)
def test_an_environment_that_fails_is_named_with_seed_and_step(seeds: list[int], said: str) -> None:
    disabled = gymnasium.vector.AutoresetMode.DISABLED
    envs = gymnasium.vector.SyncVectorEnv([Fragile] * len(seeds), autoreset_mode=disabled)
    arms = VectorEnvs(envs, {"observation.state": "told"}, fps=10, name="Arm")
    with pytest.raises(RolloutError, match=said):
        list(rollout(arms, RandomActor(arms.actions, len(seeds)), seeds))


def test_ctrl_c_ends_all_processes_without_a_word_of_theirs(tmp_path: Path) -> None:
    options = [
        "--policy",
        "random",
        "--env",
        "Pendulum-v1",
        "--n-envs",
        "2",
        "--n-videos",
        "0",
        "--n-episodes",
        "100000",
    ]
    command = [sys.executable, "-m", "roboreel", "eval", "--output-dir", str(tmp_path / "eval"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    seen = process.stderr.read(1)  # of the progress bar: it is at work
    os.killpg(process.pid, signal.SIGINT)
    told = seen + process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "roboreel eval: interrupted" in told
    assert "Traceback" not in told
