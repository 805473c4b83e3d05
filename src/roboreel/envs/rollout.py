"""Roll an actor out in several environments at once; each episode comes back as a dataset would take it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError

Observation = dict[str, NDArray[Any]]
"""Data key -> array (environments, *shape); images uint8, channels last."""


class Actor(Protocol):
    """What decides: it is told where episodes begin, and gives an action for every environment."""

    def begin(self, env: int, seed: int) -> None:
        """A new episode begins in environment `env`: forget the last one there."""

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """Return actions (environments, *shape) for an observation of all environments."""


class RandomActor:
    """Draws each action uniformly from the action space; what it draws depends on the episode's seed alone."""

    def __init__(self, low: NDArray[np.float32], high: NDArray[np.float32], n_envs: int) -> None:
        self._low, self._high = low, high
        self._generators = [np.random.default_rng(env) for env in range(n_envs)]

    def begin(self, env: int, seed: int) -> None:
        self._generators[env] = np.random.default_rng(seed)

    def act(self, observation: Observation) -> NDArray[np.float32]:  # noqa: ARG002 - blind
        drawn = [generator.uniform(self._low, self._high) for generator in self._generators]
        return np.stack(drawn).astype(np.float32)


@dataclass(frozen=True)
class Step:
    """What came of one action in each environment, arrays (environments, …)."""

    observation: Observation
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    signals: dict[str, NDArray[np.float64]]


class VectorEnvs:
    """A gymnasium vector environment without autoreset, its observations under data keys."""

    def __init__(self, envs: Any, keys: Mapping[str, str], *, fps: float, signals: Sequence[str] = ()) -> None:
        """Wrap `envs`; `keys` is {data key: name in the observation}, `signals` names entries of `info` to keep."""
        self._envs, self._keys, self._signals, self.fps = envs, dict(keys), tuple(signals), fps
        space = envs.single_action_space
        self.n_envs: int = envs.num_envs
        self.action_low: NDArray[np.float32] = np.asarray(space.low, np.float32)
        self.action_high: NDArray[np.float32] = np.asarray(space.high, np.float32)
        self.shapes: dict[str, tuple[int, ...]] = {
            key: tuple(envs.single_observation_space[name].shape) for key, name in keys.items()
        }
        self.shapes["action"] = tuple(space.shape)

    def reset(self, seeds: Mapping[int, int]) -> tuple[Observation, dict[str, NDArray[np.float64]]]:
        """Begin a new episode in each environment of {environment: seed}; return the observation of all.

        Beside it the signals that are told at the start already, {name: (environments,)}; they count where one began.
        """
        mask = np.isin(np.arange(self.n_envs), list(seeds))
        options = None if mask.all() else {"reset_mask": mask}
        raw, info = self._envs.reset(seed=[seeds.get(env) for env in range(self.n_envs)], options=options)
        initial = {name: np.asarray(info[name], np.float64) for name in self._signals if name in info}
        return self._renamed(raw), initial

    def clip(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the nearest actions within the action space."""
        return np.clip(actions, self.action_low, self.action_high)

    def step(self, actions: NDArray[np.float32]) -> Step:
        """Step all environments."""
        raw, reward, terminated, truncated, info = self._envs.step(actions)
        none = np.zeros(self.n_envs)
        return Step(
            self._renamed(raw),
            np.asarray(reward, np.float32),
            np.asarray(terminated, np.bool_),
            np.asarray(truncated, np.bool_),
            np.asarray(info.get("is_success", none), np.bool_),
            {name: np.asarray(info.get(name, none), np.float64) for name in self._signals},
        )

    def close(self) -> None:
        self._envs.close()

    def __enter__(self) -> VectorEnvs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _renamed(self, raw: Mapping[str, NDArray[Any]]) -> Observation:
        # Simulators give positions as float64; datasets and policies have float32.
        arrays = {key: np.asarray(raw[name]) for key, name in self._keys.items()}
        return {key: a.astype(np.float32) if a.dtype == np.float64 else a for key, a in arrays.items()}


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    seed: int
    data: dict[str, NDArray[Any]]
    """What `LeRobotDatasetV2.add_episodes` takes: T + 1 frames. Frame k has the observation before step k with its
    action and outcome; the last frame has the true final observation, and the other keys of step T - 1 again."""
    signals: dict[str, NDArray[np.float64]]
    """What else the environment told after each step, (T,)."""
    initial: dict[str, float]
    """What of it the environment told at the start already."""
    truncated: bool
    """Whether it was cut at the step limit, without an end of its own."""

    @property
    def rewards(self) -> NDArray[np.float32]:
        """The reward of each step, (T,)."""
        rewards: NDArray[np.float32] = self.data["next.reward"][:-1]
        return rewards

    @property
    def success(self) -> bool:
        return bool(self.data["next.success"].any())


class _Recorder:
    """The episode that one environment is in."""

    def __init__(self, env: int, seed: int, initial: dict[str, float]) -> None:
        self._env, self.seed, self._initial = env, seed, initial
        self._frames: list[dict[str, Any]] = []
        self._signals: list[dict[str, float]] = []

    def add(self, before: Observation, actions: NDArray[np.float32], step: Step) -> Episode | None:
        """Take one step; the whole episode, once this was its last."""
        env = self._env
        truncated = bool(step.truncated[env]) and not step.terminated[env]
        done = bool(step.terminated[env]) or truncated
        outcome = {
            "action": actions[env].copy(),
            "next.reward": step.reward[env],
            "next.done": np.bool_(done),
            "next.success": step.success[env],
        }
        self._frames.append({key: value[env].copy() for key, value in before.items()} | outcome)
        self._signals.append({name: float(values[env]) for name, values in step.signals.items()})
        if not done:
            return None
        self._frames.append({key: value[env].copy() for key, value in step.observation.items()} | outcome)
        data = {key: np.stack([frame[key] for frame in self._frames]) for key in self._frames[0]}
        signals = {name: np.array([values[name] for values in self._signals]) for name in step.signals}
        return Episode(self.seed, data, signals, self._initial, truncated)


def rollout(envs: VectorEnvs, actor: Actor, seeds: Sequence[int]) -> Iterator[Episode]:
    """Yield one episode a seed, in the order in which they end; an environment that is done takes the next seed.

    The same seeds, actor and number of environments give the same episodes.

    Raises:
        InvalidArgumentError: no seeds.
    """
    if not seeds:
        raise InvalidArgumentError("no seeds to roll out; give one an episode")
    waiting = deque(seeds)
    recorders: dict[int, _Recorder] = {}

    def begin(free: Sequence[int]) -> Observation:
        chosen = {env: waiting.popleft() for env in free if waiting}
        # all environments are stepped, also those with nothing left to do
        observation, initial = envs.reset({env: chosen.get(env, seeds[0]) for env in free})
        for env, seed in chosen.items():
            recorders[env] = _Recorder(env, seed, {name: float(values[env]) for name, values in initial.items()})
            actor.begin(env, seed)
        return observation

    observation = begin(range(envs.n_envs))
    while recorders:
        actions = envs.clip(actor.act(observation))
        step = envs.step(actions)
        for env, recorder in list(recorders.items()):
            if (episode := recorder.add(observation, actions, step)) is not None:
                del recorders[env]
                yield episode
        observation = step.observation
        over = np.flatnonzero(step.terminated | step.truncated).tolist()
        if over and (recorders or waiting):
            observation = begin(over)
