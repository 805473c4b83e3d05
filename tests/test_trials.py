"""`roboreel train --env`: checkpoints tried while the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import ConfigError, LeRobotDatasetV2
from roboreel.cli import training

gymnasium: Any = pytest.importorskip("gymnasium")
PendulumEnv: Any = pytest.importorskip("gymnasium.envs.classic_control").PendulumEnv

SMALL = ("chunk-size=2", "n-action-steps=1", "width=8", "keypoints=8", "hidden=16", "blocks=1", "noises=1")
PENDULUM_HZ = 30


def arguments(folder: Path, *more: str, fps: float = PENDULUM_HZ, **values: Any) -> list[str]:
    rng = np.random.default_rng(0)
    data = {"observation.state": rng.normal(size=(12, 3)), "action": rng.normal(size=(12, 1)), **values}
    with LeRobotDatasetV2(folder / "data", fps=fps) as dataset:
        dataset.add_episodes({key: value.astype(np.float32) for key, value in data.items()})
    run = ["--dataset", str(folder / "data"), "--output-dir", str(folder / "run")]
    run += ["--steps", "4", "--batch-size", "4", "--save-every", "2"]
    where = ["--env", "Pendulum-v1", "--eval-episodes", "2", "--eval-envs", "1", "--eval-max-steps", "3"]
    here = ["--num-workers", "0", "--device", "cpu"]
    return [*run, *where, *here, *(f"--policy.{option}" for option in SMALL), *more]


def test_each_checkpoint_is_tried_on_the_same_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.run(arguments(tmp_path))
    trials = sorted((tmp_path / "run" / "eval").iterdir())
    assert [trial.name for trial in trials] == ["000002", "000004"]
    told = [json.loads((trial / "eval.json").read_text()) for trial in trials]
    assert [each["weights"]["step"] for each in told] == [2, 4]
    seeds = [[episode["seed"] for episode in each["episodes"]] for each in told]
    assert seeds[0] == seeds[1]
    assert {episode["steps"] for each in told for episode in each["episodes"]} == {3}
    assert str(trials[1] / "eval.json") in capsys.readouterr().out


def test_trials_change_nothing_of_the_run(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    training.run(given)
    without = [*given[: given.index("--env")], *given[given.index("--num-workers") :]]
    without[without.index("--output-dir") + 1] = str(tmp_path / "plain")
    training.run(without)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "plain")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 10}, "of data of 10 Hz, and the environment runs at 30 Hz: .* give --env-fps 10"),
        (
            {"observation.state": np.zeros((12, 4))},
            r"observation\.state: \(4,\) in the policy, \(3,\) in the environment",
        ),
        ({"action": np.zeros((12, 2))}, r"action: \(2,\) in the policy, \(1,\) in the environment"),
    ],
)
def test_an_environment_that_disagrees_is_refused_before_the_first_step(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        training.run(arguments(tmp_path, **options))
    assert not (tmp_path / "run").exists()


def test_an_environment_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gymnasium makes no environment 'Nowhere-v0'"):
        training.run([*arguments(tmp_path), "--env", "Nowhere-v0"])
    assert not (tmp_path / "run").exists()


class Unseen(PendulumEnv):  # type: ignore[misc] # a class of Any
    """Lacks what it would draw with."""

    def render(self) -> Any:
        raise NotImplementedError("no display")


def test_an_environment_that_cannot_draw_is_refused_before_the_first_step(tmp_path: Path) -> None:
    gymnasium.register("tests/Unseen-v0", f"{__name__}:Unseen", max_episode_steps=5)
    try:
        given = [*arguments(tmp_path), "--env", "tests/Unseen-v0"]
        with pytest.raises(
            ConfigError, match=r"draws no pictures \(NotImplementedError: no display\): .* --eval-videos 0"
        ):
            training.run(given)
        assert not (tmp_path / "run").exists()
        training.run([*given, "--eval-videos", "0"])
    finally:
        del gymnasium.registry["tests/Unseen-v0"]


def test_no_dataset_is_for_online_steps_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--dataset none: all steps are online then, .* --online-steps 4"):
        training.run([*arguments(tmp_path), "--dataset", "none"])


def test_a_policys_options_are_the_same_in_any_order() -> None:
    given = ["--policy.b=1", "--policy.a", "2", "--policy.b=3"]
    assert training.take_policy_options(given) == (("a=2", "b=3"), [])
