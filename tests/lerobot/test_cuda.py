"""LeRobot's policies on a GPU: a run that is stopped and resumed, one that goes online, an evaluation of each."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roboreel import LeRobotDatasetV2
from roboreel.evaluate import EvalConfig, evaluate
from roboreel.train import LeRobotTrainConfig, train
from roboreel.train.online.training import train_online
from tests.lerobot import test_online as online
from tests.lerobot import test_training as offline

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of PushT's state and environment state."""
    return online.record(tmp_path_factory.mktemp("data") / "pushed", [1, 2, 3])


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def config_of(policy: Any, out: Path, dataset: Path, **more: Any) -> LeRobotTrainConfig:
    return offline.config_of(policy, dataset, out, **{"device": "cuda", "num_workers": 2, **more})


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("policy", list(offline.OPTIONS))
def test_a_policy_learns_what_it_learns_on_a_cpu_and_resumes(policy: str, amp: bool, tmp_path: Path) -> None:
    dataset = offline.write_episodes(tmp_path / "pushing")
    on_gpu, resumed = tmp_path / "gpu", tmp_path / "resumed"
    config = config_of(policy, on_gpu, dataset, amp=amp)
    train(config)
    assert all(loss == loss for loss in losses(on_gpu))  # not NaN
    shutil.copytree(on_gpu, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "000004")
    train(replace(config, output_dir=resumed, resume=True))
    assert losses(resumed) == pytest.approx(losses(on_gpu), rel=1e-2)
    # The checkpoint of one device goes on on another.
    shutil.rmtree(resumed / "checkpoints" / "000004")
    train(replace(config, output_dir=resumed, resume=True, device="cpu"))
    assert len(losses(resumed)) == 4


@pytest.mark.parametrize("apart", [False, True])
def test_online_with_rollouts_of_a_policy_on_the_gpu(apart: bool, tmp_path: Path) -> None:
    options = replace(online.OPTIONS, online_rollouts_apart=apart)
    out = tmp_path / "run"
    train_online(online.config_of(out, device="cuda"), options, online.SCENE)
    assert len(losses(out)) == 8
    assert len(LeRobotDatasetV2(out / "online_buffer", readonly=True)) == 30


def test_a_checkpoint_is_evaluated_on_the_gpu(pushed: Path, tmp_path: Path) -> None:
    run = online.config_of(tmp_path / "run", pushed, device="cuda", steps=4)
    train_online(run, replace(online.OPTIONS, online_steps=2), online.SCENE)
    config = EvalConfig(tmp_path / "eval", run.output_dir, n_episodes=2, n_envs=1, n_videos=0, max_steps=5)
    state = replace(config, env_options=("obs_type=environment_state_agent_pos",), device="cuda")
    assert evaluate(state).summary["sum_reward"].mean >= 0
