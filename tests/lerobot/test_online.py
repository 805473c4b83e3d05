"""Online training: from nothing and beside a dataset, stopped and resumed, with rollouts here and apart."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from roboreel import ConfigError, LeRobotDatasetV2, RolloutError
from roboreel.cli import training
from roboreel.envs import RandomActor, make_envs, rollout
from roboreel.train import LeRobotTrainConfig, train
from roboreel.train.metrics import describe
from roboreel.train.online.apart import RolloutProcess
from roboreel.train.online.options import OnlineOptions, Scene
from roboreel.train.online.training import train_online
from roboreel.train.options import LeRobotPolicy

TINY = ("mlp_dim=16", "horizon=2", "cem_iterations=1", "n_gaussian_samples=8", "n_pi_samples=2", "n_elites=4")
SCENE = Scene("pusht", {"obs_type": "environment_state_agent_pos"}, max_steps=5)
OPTIONS = OnlineOptions(
    online_steps=8,
    online_rollout_n_episodes=2,
    online_steps_between_rollouts=3,
    online_buffer_capacity="30",
    online_buffer_seed_size=12,
)


def config_of(out: Path, dataset: Path = Path("none"), **others: Any) -> LeRobotTrainConfig:
    given: dict[str, Any] = {"steps": 8, "save_every": 4, "num_workers": 1, "device": "cpu", **others}
    policy: LeRobotPolicy = "tdmpc"
    return LeRobotTrainConfig(dataset, out, batch_size=8, policy=policy, policy_options=TINY, **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spawned() -> list[Any]:
    return [child for child in multiprocessing.active_children() if "Spawn" in child.name]  # no loader's workers


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out / "metrics.jsonl")]


def record(folder: Path, seeds: Sequence[int]) -> Path:
    with make_envs("pusht", options=SCENE.options, max_steps=6) as envs, LeRobotDatasetV2(folder, fps=10) as dataset:
        for episode in rollout(envs, RandomActor(envs.actions, 1), seeds):
            dataset.add_episodes(episode.data)
    return folder


@pytest.mark.parametrize(("between", "at"), [(3, [0, 0, 3, 3, 6, 6]), (4, [0, 0, 4, 4])])
def test_from_nothing_stopped_and_resumed(tmp_path: Path, between: int, at: list[int]) -> None:
    """Also where a rollout comes at the step of a checkpoint, after it."""
    out, again = tmp_path / "run", tmp_path / "again"
    options = replace(OPTIONS, online_steps_between_rollouts=between, online_buffers_kept=2)
    result = train_online(config_of(out), options, SCENE)
    assert result.steps == 8
    assert result.rollout_s > 0
    assert "\nrolling out  " in describe(result)
    rolled = lines(out / "rollouts.jsonl")
    assert [line["step"] for line in rolled] == at
    assert len({line["seed"] for line in rolled}) == len(at)
    buffer = LeRobotDatasetV2(out / "online_buffer", readonly=True)
    assert len(buffer) == 30
    assert buffer[-1]["observation.environment_state"].shape == (16,)

    shutil.copytree(out, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "000008")
    shutil.rmtree(again / "online_buffer")  # of a later time, or gone with the machine
    train_online(replace(config_of(again), resume=True), options, SCENE)
    assert losses(again) == losses(out)
    assert lines(again / "rollouts.jsonl") == rolled
    other = LeRobotDatasetV2(again / "online_buffer", readonly=True)
    for key in buffer.data_keys:
        assert np.array_equal(other.get_data_by_key(key), buffer.get_data_by_key(key)), key
    snapshot = LeRobotDatasetV2(again / "checkpoints" / "000004" / "online_buffer", readonly=True)
    assert snapshot.generation < other.generation


def test_a_dataset_first_and_then_both(tmp_path: Path) -> None:
    recorded = record(tmp_path / "recorded", [1, 2, 3])
    config = config_of(tmp_path / "run", recorded, steps=6)
    train_online(config, replace(OPTIONS, online_steps=4), SCENE)
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 7))
    assert {line["step"] for line in lines(tmp_path / "run" / "rollouts.jsonl")} == {2, 5}
    assert len(LeRobotDatasetV2(recorded, readonly=True)) == 21, "the recorded dataset was written to"
    assert [path.parent.name for path in (tmp_path / "run").glob("checkpoints/0*/online_buffer")] == ["000006"]
    train_online(replace(config, steps=7, resume=True), replace(OPTIONS, online_steps=5), SCENE)
    assert len(losses(tmp_path / "run")) == 7
    assert [path.parent.name for path in (tmp_path / "run").glob("checkpoints/0*/online_buffer")] == ["000007"]
    rolled, longer = (tmp_path / "run" / "rollouts.jsonl").read_text(), replace(config, steps=20, resume=True)
    said = r"went online after step 2[;:] give .*--online-steps 18"
    with pytest.raises(ConfigError, match=said):
        train_online(longer, replace(OPTIONS, online_steps=5), SCENE)
    with pytest.raises(ConfigError, match=said):
        train(longer)
    assert (tmp_path / "run" / "rollouts.jsonl").read_text() == rolled
    assert len(LeRobotDatasetV2(tmp_path / "run" / "online_buffer", readonly=True))


def test_a_run_goes_online_after_what_it_has_done_offline(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", record(tmp_path / "recorded", [1, 2]), steps=3)
    train(config)
    longer = replace(config, steps=6, resume=True)
    with pytest.raises(ConfigError, match="has done 3 steps offline; give --online-steps 3 or fewer"):
        train_online(longer, replace(OPTIONS, online_steps=5), SCENE)
    train_online(longer, replace(OPTIONS, online_steps=3), SCENE)
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 7))


def test_rollouts_in_a_process_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, close, ended = tmp_path / "run", RolloutProcess.close, []

    def closed(process: RolloutProcess) -> None:
        close(process)
        ended.append(process._process.exitcode)

    monkeypatch.setattr(RolloutProcess, "close", closed)
    options = replace(OPTIONS, online_rollouts_apart=True, online_rollout_batch_size=2)
    train_online(config_of(out, num_workers=2), options, SCENE)
    assert ended == [0], "it was not told that this is the end"
    assert len(lines(out / "rollouts.jsonl")) == 6
    assert len(LeRobotDatasetV2(out / "online_buffer", readonly=True)) == 30
    assert not spawned()


class Elsewhere(gymnasium.Env[Any, Any]):
    """An environment that no other process knows."""

    metadata: dict[str, Any] = {"render_fps": 10}  # noqa: RUF012 - gymnasium's
    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(-1, 1, (3,), np.float32) for name in ("agent_pos", "environment_state")}
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        return self.observation_space.sample(), 1.0, False, False, {}


def test_what_fails_in_the_process_apart_is_told(tmp_path: Path) -> None:
    gymnasium.register("tests/Elsewhere-v0", f"{__name__}:Elsewhere", max_episode_steps=4)
    try:
        options = replace(OPTIONS, online_rollouts_apart=True)
        with pytest.raises(RolloutError, match=r"has failed:(.|\n)*tests/Elsewhere-v0"):
            train_online(config_of(tmp_path / "run"), options, Scene("tests/Elsewhere-v0"))
    finally:
        del gymnasium.registry["tests/Elsewhere-v0"]
    assert not spawned()


def test_what_does_not_go_together_is_refused_before_the_first_step(tmp_path: Path) -> None:
    out, recorded = tmp_path / "run", record(tmp_path / "recorded", [1])
    for capacity, said in (
        ("5", " 5: an episode has up to 6 frames; give --online-buffer-capacity 6 at least"),
        ("200B", r" 200B \(room for 0 frames\): an episode has up to 6 frames"),
        ("600B", r" 600B \(room for . frames\): an episode has up to 6 frames"),
        ("900TB", r": this needs 900,000,000,000,000 bytes and .* are free"),
        ("twenty", ": buffer_capacity='twenty'; a positive number of frames would do, or a size such as '20GB'"),
    ):
        for dataset, steps in ((recorded, 4), (Path("none"), 8)):
            options = replace(OPTIONS, online_steps=steps, online_buffer_capacity=capacity)
            with pytest.raises(ConfigError, match="--online-buffer-capacity" + said):
                train_online(config_of(out, dataset), options, SCENE)
    with pytest.raises(ConfigError, match="--dataset none has nothing for 4 offline steps"):
        train_online(config_of(out), replace(OPTIONS, online_steps=4), SCENE)
    with pytest.raises(ConfigError, match="--online-steps 9 of --steps 8"):
        train_online(config_of(out), replace(OPTIONS, online_steps=9), SCENE)
    with pytest.raises(ConfigError, match=r"environment_state: \(16,\) in the policy, None in the environment"):
        train_online(config_of(out, recorded), OPTIONS, Scene("pusht", max_steps=5))
    with pytest.raises(ConfigError, match=r"of data of 10 Hz, and the environment runs at 20 Hz: .* give --env-fps 10"):
        train_online(config_of(out, recorded), OPTIONS, replace(SCENE, fps=20))
    assert {path.name for path in out.iterdir()} <= {"online_buffer", "train.lock"}
    with pytest.raises(ConfigError, match="give --env, as --env pusht"):
        training.run(["--policy", "tdmpc", "--dataset", str(recorded), "--output-dir", str(out), "--online-steps", "1"])


def test_other_options_are_refused_on_resuming(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_online(config_of(out, steps=2), replace(OPTIONS, online_steps=2), SCENE)
    config = config_of(out, steps=3, resume=True)
    with pytest.raises(ConfigError, match=r"online_sampling_ratio was 0\.5 and is now 0\.9"):
        train_online(config, replace(OPTIONS, online_steps=3, online_sampling_ratio=0.9), SCENE)
    with pytest.raises(ConfigError, match="max_steps was 5 and is now 4"):
        train_online(config, replace(OPTIONS, online_steps=3), replace(SCENE, max_steps=4))
