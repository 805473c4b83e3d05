"""Episodes rolled out, counted and written down."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from roboreel import checkpoint
from roboreel.envs import Episode, VectorEnvs, make_envs, rollout
from roboreel.errors import ConfigError
from roboreel.evaluate.acting import identity, make_actor
from roboreel.evaluate.films import VIDEOS, remove_videos, write_videos
from roboreel.evaluate.keeping import Kept
from roboreel.evaluate.options import EvalConfig, parse_keys, parse_options
from roboreel.evaluate.spread import Spread
from roboreel.train import bar_interval_s, pick_device

EVAL = "eval.json"


@dataclass(frozen=True)
class EpisodeResult:
    """One episode in numbers."""

    seed: int
    steps: int
    sum_reward: float
    max_reward: float
    success: bool | None
    """None where the simulator does not tell."""
    signals: dict[str, float]
    """The greatest value of each of the simulator's signals after a step, e.g. {"coverage": 0.93}."""
    initial: dict[str, float]
    """What of them the seed began with, before anything was done."""


@dataclass(frozen=True)
class EvalResult:
    """All episodes, in the order of their seeds."""

    episodes: list[EpisodeResult]
    videos: list[Path]
    seconds: float
    """How long it took."""

    @property
    def summary(self) -> dict[str, Spread]:
        """The spread of each number: sum_reward, max_reward, success, and max_<signal> beside initial_<signal>.

        What `max_coverage` says is worth little without `initial_coverage`, which doing nothing would keep.
        """
        episodes = self.episodes
        found = {
            "sum_reward": Spread.of([episode.sum_reward for episode in episodes]),
            "max_reward": Spread.of([episode.max_reward for episode in episodes]),
        }
        if any(episode.success is not None for episode in episodes):
            # Some simulators tell of successes alone: where this one told nothing, there was none.
            found["success"] = Spread.of_rate([bool(episode.success) for episode in episodes])
        for name in episodes[0].signals:
            found[f"max_{name}"] = Spread.of([episode.signals[name] for episode in episodes])
        for name in episodes[0].initial:
            found[f"initial_{name}"] = Spread.of([episode.initial[name] for episode in episodes])
        return found


def evaluate(config: EvalConfig) -> EvalResult:
    """Roll out `n_episodes` episodes; write `eval.json`, videos, and the episodes as a dataset where asked to.

    Raises:
        ConfigError: no such checkpoint or environment, or one that does not fit the other; before the first step.
        MissingDependencyError: the simulator, or the policy's package, is not installed.
    """
    began = time.perf_counter()
    device = pick_device(config.device)
    weights = identity(config.checkpoint)
    seeds = [config.seed + k for k in range(config.n_episodes)]
    filmed = seeds[: config.n_videos]
    results, videos = [], []
    with (
        make_simulator(config) as envs,
        Kept(config.save_dataset, envs, config.save_image_mode) as kept,
    ):
        actor = make_actor(config.checkpoint, envs, device)
        (config.output_dir / EVAL).unlink(missing_ok=True)
        remove_videos(config.output_dir)
        episodes = rollout(envs, actor, seeds, filmed=() if envs.camera_keys else filmed)
        for episode in tqdm(episodes, "evaluate", total=len(seeds), unit="episode", mininterval=bar_interval_s()):
            results.append(result_of(episode))
            kept.add(episode)
            if episode.seed in filmed:
                videos += write_videos(config.output_dir / VIDEOS, episode, envs.fps)
    results.sort(key=lambda result: result.seed)
    result = EvalResult(results, sorted(videos), time.perf_counter() - began)
    content = {
        "config": checkpoint.plain(config),
        "weights": weights,
        "seconds": result.seconds,
        "summary": {name: spread.to_dict() for name, spread in result.summary.items()},
        "episodes": [asdict(episode) for episode in results],
        "videos": [str(path.relative_to(config.output_dir)) for path in result.videos],
        "dataset": kept.told,
    }
    checkpoint.write_json(config.output_dir / EVAL, content)
    return result


def make_simulator(config: EvalConfig) -> VectorEnvs:
    """Make the environments; where they show no pictures and videos are wanted, such as draw."""

    def make(*, draw: bool) -> VectorEnvs:
        return make_envs(
            config.env,
            min(config.n_envs, config.n_episodes),
            options=parse_options(config.env_options),
            keys=parse_keys(config.env_keys),
            fps=config.env_fps,
            max_steps=config.max_steps,
            draw=draw,
        )

    envs = make(draw=False)
    if envs.camera_keys or not config.n_videos:
        return envs
    envs.close()
    try:
        return make(draw=True)
    except ConfigError as error:
        raise ConfigError(
            "there are no pictures for videos; --n-videos 0, or of roboreel train --eval-videos 0, would do without: "
            f"{error}"
        ) from error


def read_result(config: EvalConfig) -> EvalResult | None:
    """Return what `evaluate` wrote for the very same options and weights, or None."""
    path = config.output_dir / EVAL
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if "weights" not in content:  # written before there was such an entry
        return None
    if content["config"] != checkpoint.plain(config) or content["weights"] != identity(config.checkpoint):
        return None
    videos = [config.output_dir / name for name in content["videos"]]
    return EvalResult([EpisodeResult(**episode) for episode in content["episodes"]], videos, content["seconds"])


def paired_difference(first: EvalResult, second: EvalResult, signal: str) -> Spread:
    """Return by how much `first` exceeds `second` in the greatest value of a signal, seed by seed.

    Raises:
        ConfigError: the two were not evaluated on the same seeds.
    """
    if [episode.seed for episode in first.episodes] != [episode.seed for episode in second.episodes]:
        raise ConfigError("the two evaluations have different seeds; give both the same --seed and --n-episodes")
    pairs = zip(first.episodes, second.episodes, strict=True)
    return Spread.of([one.signals[signal] - other.signals[signal] for one, other in pairs])


def result_of(episode: Episode) -> EpisodeResult:
    """Return an episode in numbers."""
    rewards = episode.rewards
    return EpisodeResult(
        seed=episode.seed,
        steps=len(rewards),
        sum_reward=float(rewards.sum()),
        max_reward=float(rewards.max()),
        success=episode.success if episode.tells_success else None,
        signals={name: float(values.max()) for name, values in episode.signals.items()},
        initial=episode.initial,
    )
