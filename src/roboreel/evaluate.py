"""Roll a policy out in a simulator: rewards, success and their spread, and some videos.

roboreel eval --checkpoint outputs/pusht --output-dir outputs/pusht/eval
roboreel eval --policy random --output-dir outputs/random
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from roboreel import checkpoint
from roboreel.columns.encode import encode_video
from roboreel.envs import Actor, Episode, Observation, RandomActor, VectorEnvs, make_pusht, rollout
from roboreel.errors import ConfigError
from roboreel.policies import BCPolicy
from roboreel.schema import VideoOptions
from roboreel.train import bar_interval_s, pick_device

ENVS = {"pusht": make_pusht}
EVAL, VIDEOS = "eval.json", "videos"


@dataclass(frozen=True)
class EvalConfig:
    """Options of an evaluation."""

    output_dir: Path
    """Where `eval.json` and `videos/` go; those of an earlier evaluation there are replaced."""
    checkpoint: Path | None = None
    """A run's output folder (its last checkpoint), one checkpoint, or a `policy.pt`."""
    policy: Literal["checkpoint", "random"] = "checkpoint"
    """"random" draws every action uniformly: what a policy must be better than."""
    env: Literal["pusht"] = "pusht"
    """The simulator."""
    n_episodes: int = 50
    """Episodes, each with a seed of its own."""
    n_envs: int = 10
    """Environments that are stepped at once, each in a process of its own; 1: in this process."""
    seed: int = 100_000
    """The first episode's seed; the next ones follow it. It fixes where all begins and what the policy draws."""
    max_steps: int = 300
    """Steps after which an episode is cut."""
    n_videos: int = 4
    """Videos to write, of the first seeds."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps"; auto is cuda where there is an NVIDIA or AMD GPU, else cpu."""

    def __post_init__(self) -> None:
        for name, least in (("n_episodes", 1), ("n_envs", 1), ("max_steps", 1), ("n_videos", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {least} or more")
        if self.seed + self.n_episodes > 1 << 63:
            raise ConfigError(f"--seed {self.seed}: give one so that the last episode's is less than 2**63")
        if (self.policy == "random") != (self.checkpoint is None):
            raise ConfigError("give either --checkpoint FOLDER or --policy random")


@dataclass(frozen=True)
class Spread:
    """A mean over episodes, and how sure it is."""

    mean: float
    std: float
    """Of the episodes (n − 1); 0 for a single one."""
    low: float
    """Lower end of the mean's 95 % interval; of a single episode's −∞, and `high` ∞."""
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return what JSON can hold: an end that is infinite becomes None, null in the file.

        >>> Spread.of([2.0]).to_dict()
        {'mean': 2.0, 'std': 0.0, 'low': None, 'high': None}
        """
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean, deviation and Student's interval; a single value has an interval without ends.

        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, std=1.0, low=-0.48..., high=4.48...)
        """
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, 0.0, -math.inf, math.inf)
        std = statistics.stdev(values)
        half = student_95(count - 1) * std / math.sqrt(count)
        return cls(mean, std, mean - half, mean + half)

    @classmethod
    def of_rate(cls, outcomes: Sequence[bool]) -> Spread:
        """Return a rate with Wilson's interval, which is right at 0 of n and n of n too.

        >>> Spread.of_rate([False] * 10)
        Spread(mean=0.0, std=0.0, low=0.0, high=0.27...)
        """
        count, z = len(outcomes), 1.959964
        rate = sum(outcomes) / count
        middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
        std = math.sqrt(rate * (1 - rate) * count / max(1, count - 1))
        return cls(rate, std, max(0.0, middle - half), min(1.0, middle + half))


def student_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: the half width of a 95 % interval in standard errors.

    >>> round(student_95(1), 2), round(student_95(49), 3)
    (12.71, 2.01)
    """
    few = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the expansion around the normal is too small
    if freedom in few:
        return few[freedom]
    z, v = 1.959964, freedom
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)


@dataclass(frozen=True)
class EpisodeResult:
    """One episode in numbers."""

    seed: int
    steps: int
    sum_reward: float
    max_reward: float
    success: bool
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
            "success": Spread.of_rate([episode.success for episode in episodes]),
        }
        for name in episodes[0].signals:
            found[f"max_{name}"] = Spread.of([episode.signals[name] for episode in episodes])
        for name in episodes[0].initial:
            found[f"initial_{name}"] = Spread.of([episode.initial[name] for episode in episodes])
        return found


def evaluate(config: EvalConfig) -> EvalResult:
    """Roll out `n_episodes` episodes; write `eval.json` and videos.

    Raises:
        ConfigError: no such checkpoint, or one that does not fit the simulator.
        MissingDependencyError: the simulator is not installed.
    """
    began = time.perf_counter()
    weights = weights_of(config)
    policy = None if config.checkpoint is None else BCPolicy.load(config.checkpoint, pick_device(config.device))
    seeds = [config.seed + k for k in range(config.n_episodes)]
    results, videos = [], []
    with ENVS[config.env](min(config.n_envs, config.n_episodes), max_steps=config.max_steps) as envs:
        actor = make_actor(policy, envs)
        remove_earlier(config.output_dir)
        episodes = rollout(envs, actor, seeds)
        for episode in tqdm(episodes, "evaluate", total=len(seeds), unit="episode", mininterval=bar_interval_s()):
            results.append(result_of(episode))
            if episode.seed < config.seed + config.n_videos:
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
    }
    checkpoint.write_json(config.output_dir / EVAL, content)
    return result


def weights_of(config: EvalConfig) -> dict[str, Any] | None:
    """Return hash and step of the weights that would be evaluated now; None for a policy without any."""
    return None if config.checkpoint is None else checkpoint.identity(checkpoint.policy_file(config.checkpoint))


def read_result(config: EvalConfig) -> EvalResult | None:
    """Return what `evaluate` wrote for the very same options and weights, or None."""
    path = config.output_dir / EVAL
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if "weights" not in content:  # written before there was such an entry
        return None
    if content["config"] != checkpoint.plain(config) or content["weights"] != weights_of(config):
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


class PolicyActor:
    """A policy among environments: arrays in, arrays out."""

    def __init__(self, policy: BCPolicy) -> None:
        self._policy = policy

    def begin(self, env: int, seed: int) -> None:
        self._policy.begin(env, seed)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        tensors = {key: torch.from_numpy(array) for key, array in observation.items()}
        for key in self._policy.cameras:
            tensors[key] = tensors[key].movedim(-1, -3)  # stored channels last, seen channels first
        actions: NDArray[np.float32] = self._policy.select_action(tensors).cpu().numpy()
        return actions


def make_actor(policy: BCPolicy | None, envs: VectorEnvs) -> Actor:
    """Return what acts: the policy, if it fits the environments, or chance."""
    if policy is None:
        return RandomActor(envs.actions, envs.n_envs)
    check_fits(policy, envs)
    return PolicyActor(policy)


def check_fits(policy: BCPolicy, envs: VectorEnvs) -> None:
    """Raise `ConfigError` where the policy sees or does something else than the environments have."""
    given: dict[str, tuple[int, ...]] = dict(envs.shapes)
    for key in policy.cameras:
        if key in given:
            given[key] = (given[key][-1], *given[key][:-1])
    wrong = {key: (shape, given.get(key)) for key, shape in policy.shapes.items() if given.get(key) != shape}
    if wrong:
        told = "; ".join(f"{key}: {want} in the policy, {have} in the simulator" for key, (want, have) in wrong.items())
        raise ConfigError(f"the policy does not fit the simulator: {told}. Evaluate it where its data came from")
    if not math.isclose(policy.fps, envs.fps, rel_tol=1e-3):
        raise ConfigError(f"the policy was trained at {policy.fps:g} Hz, and the simulator runs at {envs.fps:g} Hz")


def result_of(episode: Episode) -> EpisodeResult:
    """Return an episode in numbers."""
    rewards = episode.rewards
    return EpisodeResult(
        seed=episode.seed,
        steps=len(rewards),
        sum_reward=float(rewards.sum()),
        max_reward=float(rewards.max()),
        success=episode.success,
        signals={name: float(values.max()) for name, values in episode.signals.items()},
        initial=episode.initial,
    )


def remove_earlier(output_dir: Path) -> None:
    """Remove what an earlier evaluation left in a folder, also one that was killed; files of others stay."""
    (output_dir / EVAL).unlink(missing_ok=True)
    for path in (output_dir / VIDEOS).glob("*.mp4"):
        if re.fullmatch(VIDEO_NAME, path.name):
            path.unlink()


VIDEO_NAME = r"seed_\d+_observation\.image.*_(no_)?success\.mp4"
"""What `write_videos` calls its files."""


def write_videos(folder: Path, episode: Episode, fps: float) -> list[Path]:
    """Write a video of each camera of an episode; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # h264 and not the datasets' AV1: every browser and player shows it
    options = VideoOptions(codec="h264", gop=30, crf=20, preset="veryfast", pix_fmt="yuv420p")
    paths = []
    for key, frames in episode.data.items():
        if frames.ndim == 4:
            outcome = "success" if episode.success else "no_success"
            paths.append(folder / f"seed_{episode.seed}_{key}_{outcome}.mp4")
            encode_video(paths[-1], [frames], fps=fps, options=options)
    return paths


def describe(summary: Mapping[str, Spread]) -> str:
    """Return a summary as lines of text.

    >>> print(describe({"success": Spread(0.5, 0.51, 0.37, 0.63)}))
    success         0.500  (95 % 0.370 to 0.630; deviation 0.510)
    """
    return "\n".join(
        f"{name:14} {spread.mean:6.3f}  (95 % {spread.low:.3f} to {spread.high:.3f}; deviation {spread.std:.3f})"
        for name, spread in summary.items()
    )
