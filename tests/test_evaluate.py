"""`roboreel eval`: the numbers, their spread, the files, and the comparison with chance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
import torch

from roboreel import ConfigError, LeRobotDatasetV2
from roboreel.evaluate import (
    EvalConfig,
    Spread,
    evaluate,
    paired_difference,
    read_result,
    student_95,
)
from roboreel.policies import BCConfig, BCPolicy

TINY = BCConfig(chunk_size=3, n_action_steps=2, width=8, keypoints=8, hidden=16, blocks=1)
SHAPES: dict[str, tuple[int, ...]] = {"observation.image": (3, 96, 96), "observation.state": (2,), "action": (2,)}


def write_policy(file: Path, shapes: dict[str, tuple[int, ...]], fps: float = 10) -> Path:
    torch.manual_seed(0)
    stats = {key: {"mean": np.array(256.0), "std": np.array(100.0)} for key in shapes}
    torch.save(BCPolicy(TINY, shapes, fps=fps, stats=stats).to_dict(), file)
    return file


@pytest.fixture
def config(tmp_path: Path) -> EvalConfig:
    policy = write_policy(tmp_path / "policy.pt", SHAPES)
    return EvalConfig(tmp_path / "eval", policy, n_episodes=3, n_envs=2, max_steps=5, n_videos=1)


def chance(config: EvalConfig) -> EvalConfig:
    return replace(config, checkpoint=None, policy="random", output_dir=config.output_dir / "random")


def test_numbers_and_files(config: EvalConfig) -> None:
    result = evaluate(config)
    assert [episode.seed for episode in result.episodes] == [100_000, 100_001, 100_002]
    assert [episode.steps for episode in result.episodes] == [5, 5, 5]
    for episode in result.episodes:
        assert 0 <= episode.signals["coverage"] <= 1
        # The reward is the coverage, over the 95 % that count as success.
        assert episode.max_reward == pytest.approx(min(1, episode.signals["coverage"] / 0.95), abs=1e-6)
    content = json.loads((config.output_dir / "eval.json").read_text())
    assert set(content["summary"]) == {"sum_reward", "max_reward", "success", "max_coverage", "initial_coverage"}
    mean = np.mean([episode.sum_reward for episode in result.episodes])
    assert content["summary"]["sum_reward"]["mean"] == pytest.approx(mean)
    assert content["videos"] == ["videos/seed_100000_observation.image_no_success.mp4"]
    with av.open(str(result.videos[0])) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", Fraction(10))
        assert sum(1 for _ in video.decode(video=0)) == 6
    assert read_result(config) == result
    assert read_result(replace(config, n_episodes=4)) is None


def test_a_result_is_of_the_very_same_weights(config: EvalConfig) -> None:
    config = replace(config, n_videos=0, max_steps=1)
    evaluate(config)
    assert config.checkpoint is not None
    content = torch.load(config.checkpoint)
    torch.save({**content, "step": 8}, config.checkpoint)
    assert read_result(config) is None
    again = evaluate(config)
    weights = json.loads((config.output_dir / "eval.json").read_text())["weights"]
    assert weights == {"sha256": hashlib.sha256(config.checkpoint.read_bytes()).hexdigest(), "step": 8}
    assert read_result(config) == again
    evaluate(chance(config))
    assert read_result(chance(config)) is not None
    # As versions wrote it that did not know what they had evaluated.
    path = config.output_dir / "eval.json"
    path.write_text(json.dumps({"config": json.loads(path.read_text())["config"], "episodes": [], "videos": []}))
    assert read_result(config) is None


def test_a_single_episode_has_no_interval_and_its_file_is_json(config: EvalConfig) -> None:
    result = evaluate(replace(config, n_episodes=1, n_videos=0, max_steps=1))
    text = (config.output_dir / "eval.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["summary"]["max_reward"]["low"] is None
    assert content["summary"]["max_reward"]["high"] is None
    assert result.summary["max_reward"].high == np.inf


def test_an_earlier_evaluation_is_replaced_and_files_of_others_stay(config: EvalConfig) -> None:
    evaluate(replace(config, n_videos=3))
    videos = config.output_dir / "videos"
    (videos / "mine.mp4").touch()
    (videos / "seed_7_observation.image_success.mp4").touch()  # of an evaluation that was killed
    result = evaluate(replace(config, seed=100_001))
    assert sorted(videos.iterdir()) == sorted([videos / "mine.mp4", *result.videos])


def test_what_the_seeds_begin_with_is_told_beside_what_was_reached(config: EvalConfig) -> None:
    ours, random = evaluate(replace(config, n_videos=0)), evaluate(chance(config))
    assert [episode.initial for episode in ours.episodes] == [episode.initial for episode in random.episodes]
    # In five steps hardly anything is pushed: where the block lies is where it was put.
    for episode in ours.episodes:
        assert episode.initial["coverage"] == pytest.approx(episode.signals["coverage"], abs=0.05)
    mean = np.mean([episode.initial["coverage"] for episode in ours.episodes])
    assert ours.summary["initial_coverage"].mean == pytest.approx(mean)


def test_the_same_seeds_give_the_same_episodes(config: EvalConfig) -> None:
    first = evaluate(replace(config, n_videos=0))
    again = evaluate(replace(config, n_videos=0, n_envs=1))
    rewards = [[episode.sum_reward for episode in result.episodes] for result in (first, again)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-3)  # a batch of another size rounds otherwise
    assert not first.videos


def test_chance_is_compared_on_the_same_beginnings(config: EvalConfig) -> None:
    # Without a step's difference: the block lies where it lay, so one step covers the same in both.
    config = replace(config, max_steps=1, n_videos=0)
    ours, random = evaluate(config), evaluate(chance(config))
    difference = paired_difference(ours, random, "coverage")
    pairs = zip(ours.episodes, random.episodes, strict=True)
    gaps = [one.signals["coverage"] - other.signals["coverage"] for one, other in pairs]
    assert difference == Spread.of(gaps)
    assert abs(difference.mean) < 0.05
    other = evaluate(replace(chance(config), seed=5))
    with pytest.raises(ConfigError, match="different seeds; give both the same --seed"):
        paired_difference(ours, other, "coverage")


def test_spread() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12).tolist()
    spread = Spread.of(values)
    assert (spread.mean, spread.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread.high - spread.mean == pytest.approx(2.201 * spread.std / 12**0.5, rel=1e-3)
    assert spread.mean - spread.low == pytest.approx(spread.high - spread.mean)
    assert Spread.of([2.0]).low == -np.inf


# The 97.5 % quantiles of Student's t, as in any table.
@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (49, 2.0096)])
def test_students_quantile(freedom: int, quantile: float) -> None:
    assert student_95(freedom) == pytest.approx(quantile, rel=6e-3)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 1, (2000, 6))
    covered = [spread.low <= 0 <= spread.high for spread in (Spread.of(row.tolist()) for row in samples)]
    assert 0.935 < np.mean(covered) < 0.965
    flips = rng.random((2000, 50)) < 0.1
    covered = [spread.low <= 0.1 <= spread.high for spread in (Spread.of_rate(row.tolist()) for row in flips)]
    assert 0.93 < np.mean(covered) < 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_episodes": 0}, "--n-episodes 0: give 1 or more"),
        ({"n_videos": -1}, "--n-videos -1: give 0 or more"),
        ({"seed": 2**70}, f"--seed {2**70}: give one so that the last episode's is less than"),
        ({"checkpoint": None}, "give either --checkpoint FOLDER or --policy random"),
        ({"policy": "random"}, "give either --checkpoint FOLDER or --policy random"),
        ({"max_steps": 0}, "--max-steps 0: give 1 or more"),
        ({"env_fps": 0}, "--env-fps 0: give steps a second, more than 0"),
        ({"env_options": ("state",)}, "--env-options state: give NAME=VALUE"),
        ({"env_keys": ("=agent_pos",)}, "--env-keys =agent_pos: give NAME=VALUE"),
        ({"env_keys": ("a=pixels", "a=agent_pos")}, "--env-keys names a twice, for pixels and for agent_pos"),
    ],
)
def test_options_that_cannot_be_are_refused(config: EvalConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": (7,)}, r"does not fit the environment: action: \(7,\) in the policy, \(2,\) in the environment"),
        ({"observation.images.wrist": (3, 96, 96)}, r"observation\.images\.wrist: .* None in the environment"),
        ({"fps": 50}, "of data of 50 Hz, and the environment runs at 10 Hz: .* give --env-fps 50"),
    ],
)
def test_a_policy_for_something_else_is_refused(config: EvalConfig, options: dict[str, Any], message: str) -> None:
    shapes = {**SHAPES, **{key: value for key, value in options.items() if key != "fps"}}
    file = write_policy(config.output_dir.with_name("other.pt"), shapes, fps=options.get("fps", 10))
    with pytest.raises(ConfigError, match=message):
        evaluate(replace(config, checkpoint=file))
    assert not config.output_dir.exists()


def test_from_states_with_films_and_kept_as_a_dataset(config: EvalConfig) -> None:
    kept = config.output_dir.with_name("kept")
    config = replace(
        chance(config),
        env_options=("obs_type=environment_state_agent_pos",),
        env_keys=("observation.state=environment_state",),
        save_dataset=kept,
        max_steps=2,
    )
    result = evaluate(config)
    assert [path.name for path in result.videos] == ["seed_100000_film_no_success.mp4"]
    with av.open(str(result.videos[0])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
    told = json.loads((config.output_dir / "eval.json").read_text())["dataset"]
    assert told["folder"] == str(kept.resolve())
    with LeRobotDatasetV2(kept, readonly=True) as dataset:
        assert (dataset.num_episodes, len(dataset), dataset.fps) == (3, 9, 10)
        by_seed = {seed: dataset.get_episode(number) for number, seed in enumerate(told["seeds"])}
    for episode in result.episodes:
        stored = by_seed[episode.seed]
        assert stored["observation.state"].shape == (3, 16)
        assert stored["next.reward"][:-1].sum() == pytest.approx(episode.sum_reward)
        assert stored["next.truncated"].tolist() == [False, True, True]
    with pytest.raises(ConfigError, match=r"--save-dataset .*kept is there already: remove it, or give another"):
        evaluate(config)
    assert (config.output_dir / "eval.json").is_file(), "refused, and yet the earlier evaluation is gone"


def test_pictures_are_kept_as_asked(config: EvalConfig) -> None:
    kept = config.output_dir.with_name("kept")
    config = replace(config, n_episodes=2, max_steps=1, n_videos=0, save_dataset=kept, save_image_mode="png")
    evaluate(config)
    with LeRobotDatasetV2(kept, readonly=True, image_dtype="uint8") as dataset:
        assert len(list(kept.glob("images/**/*.png"))) == len(dataset) == 4
        assert dataset[3]["observation.image"].shape == (3, 96, 96)


def test_a_simulator_that_tells_no_success(config: EvalConfig) -> None:
    result = evaluate(replace(chance(config), env="CartPole-v1", n_videos=0))
    assert [episode.success for episode in result.episodes] == [None] * 3
    assert set(result.summary) == {"sum_reward", "max_reward"}
    assert result.summary["sum_reward"].mean == 5


def test_an_unknown_simulator_is_refused(config: EvalConfig) -> None:
    with pytest.raises(ConfigError, match="gymnasium makes no environment 'pushed'"):
        evaluate(replace(config, env="pushed"))
    assert not config.output_dir.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(config: EvalConfig) -> None:
    with pytest.raises(ConfigError, match="cuda"):
        evaluate(replace(config, device="cuda"))
    assert not config.output_dir.exists()


class Lucky(gymnasium.Env[Any, Any]):
    """Draws nothing; succeeds in its second step where the seed is even, and tells nothing where it does not."""

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 10}  # noqa: RUF012 - gymnasium's
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        assert seed is not None
        self.even, self.steps = seed % 2 == 0, 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        self.steps += 1
        over = self.steps == 2
        return np.zeros(2, np.float32), 1.0, over, False, {"is_success": True} if over and self.even else {}


@pytest.fixture
def lucky(tmp_path: Path) -> Iterator[EvalConfig]:
    gymnasium.register("tests/Lucky-v0", f"{__name__}:Lucky", max_episode_steps=5)
    yield EvalConfig(tmp_path / "eval", policy="random", env="tests/Lucky-v0", n_episodes=4, n_envs=1, n_videos=0)
    del gymnasium.registry["tests/Lucky-v0"]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_where_only_successes_are_told_the_others_were_none(lucky: EvalConfig, n_envs: int) -> None:
    assert evaluate(replace(lucky, n_envs=n_envs)).summary["success"].mean == 0.5


@pytest.mark.filterwarnings("ignore:.*is not in the possible render_modes")  # gymnasium's own word on it
def test_without_pictures_there_are_no_videos(lucky: EvalConfig) -> None:
    with pytest.raises(ConfigError, match=r"no pictures for videos; --n-videos 0, .*--eval-videos 0, would do without"):
        evaluate(replace(lucky, n_videos=1))
    assert not lucky.output_dir.exists()
