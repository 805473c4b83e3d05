"""Roll an actor out in several environments at once; each episode comes back as a dataset would take it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.envs.spaces import ActionSpace
from roboreel.envs.vector import Observation, Step, VectorEnvs
from roboreel.errors import InvalidArgumentError, RoboreelError, RolloutError


class Actor(Protocol):
    """What decides: it is told where episodes begin, and gives an action for every environment."""

    def begin(self, env: int, seed: int) -> None:
        """A new episode begins in environment `env`: forget the last one there."""

    def act(self, observation: Observation) -> NDArray[Any]:
        """Return actions (environments, *shape) for an observation of all environments."""


class RandomActor:
    """Draws each action uniformly from the action space; what it draws depends on the episode's seed alone."""

    def __init__(self, actions: ActionSpace, n_envs: int) -> None:
        self._actions = actions
        self._generators = [np.random.default_rng(env) for env in range(n_envs)]

    def begin(self, env: int, seed: int) -> None:
        self._generators[env] = np.random.default_rng(seed)

    def act(self, observation: Observation) -> NDArray[Any]:  # noqa: ARG002 - blind
        return np.stack([self._actions.draw(generator) for generator in self._generators])


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    seed: int
    data: dict[str, NDArray[Any]]
    """What `LeRobotDatasetV2.add_episodes` takes: T + 1 frames. Frame k has the observation before step k with its
    action and outcome; the last frame has the true final observation, and the other keys of step T - 1 again, but a
    `frame_index` and a `timestamp` of its own. `next.done`: the episode was over after this step; `next.truncated`: as
    it was cut there, without an end of its own."""
    signals: dict[str, NDArray[np.float64]]
    """What else the environment told after each step, (T,)."""
    initial: dict[str, float]
    """What of it the environment told at the start already."""
    truncated: bool
    """Whether it was cut at the step limit, without an end of its own."""
    tells_success: bool = True
    """Whether the environment told at all if it succeeded; `next.success` is False throughout where not."""
    film: NDArray[np.uint8] | None = None
    """Pictures of the environment, (T + 1, height, width, 3), where they were asked for."""

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

    def __init__(self, envs: VectorEnvs, env: int, seed: int, initial: dict[str, float]) -> None:
        self._envs, self._env, self.seed, self._initial = envs, env, seed, initial
        self._frames: list[dict[str, Any]] = []
        self._signals: list[dict[str, float]] = []
        self._tells_success = False
        self.film: list[NDArray[np.uint8]] | None = None

    @property
    def steps(self) -> int:
        return len(self._frames)

    def add(self, before: Observation, actions: NDArray[Any], step: Step) -> Episode | None:
        """Take one step; the whole episode, once this was its last."""
        env = self._env
        truncated = bool(step.truncated[env]) and not step.terminated[env]
        done = bool(step.terminated[env]) or truncated
        self._tells_success |= step.success is not None
        outcome = {
            "action": actions[env].copy(),
            "next.reward": step.reward[env],
            "next.done": np.bool_(done),
            "next.truncated": np.bool_(truncated),
            "next.success": np.bool_(False) if step.success is None else step.success[env],
        }
        self._frames.append({key: value[env].copy() for key, value in before.items()} | outcome)
        self._signals.append({name: float(values[env]) for name, values in step.signals.items()})
        if not done:
            return None
        self._frames.append({key: value[env].copy() for key, value in step.observation.items()} | outcome)
        data = {key: np.stack([frame[key] for frame in self._frames]) for key in self._frames[0]}
        data["frame_index"] = np.arange(len(self._frames))
        data["timestamp"] = data["frame_index"] / self._envs.fps
        signals = {name: np.array([values[name] for values in self._signals]) for name in step.signals}
        film = None if self.film is None else np.stack(self.film)
        return Episode(self.seed, data, signals, self._initial, truncated, self._tells_success, film)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Say where an environment, which raises what it likes, has failed."""
    try:
        yield
    except RoboreelError:
        raise
    except Exception as error:
        raise RolloutError(f"{what}: {type(error).__name__}: {error}") from error


def rollout(envs: VectorEnvs, actor: Actor, seeds: Sequence[int], *, filmed: Collection[int] = ()) -> Iterator[Episode]:
    """Yield one episode a seed, in the order in which they end; an environment that is done takes the next seed.

    The same seeds, actor and number of environments give the same episodes. Those of the seeds in `filmed` bring
    pictures of the environment, which must have been made with `draw=True`.

    >>> from roboreel.envs import RandomActor, make_envs
    >>> with make_envs("Pendulum-v1", max_steps=5, in_processes=False) as envs:
    ...     (episode,) = rollout(envs, RandomActor(envs.actions, envs.n_envs), [7])
    >>> episode.data["observation.state"].shape, episode.data["frame_index"].tolist(), episode.truncated
    ((6, 3), [0, 1, 2, 3, 4, 5], True)

    Raises:
        InvalidArgumentError: no seeds.
        RolloutError: an environment has failed; the message says with which seed and where.
    """
    if not seeds:
        raise InvalidArgumentError("no seeds to roll out; give one an episode")
    waiting = deque(seeds)
    recorders: dict[int, _Recorder] = {}

    def begin(free: Sequence[int]) -> Observation:
        chosen = {env: waiting.popleft() for env in free if waiting}
        # all environments are stepped, also those with nothing left to do
        with _telling(f"{envs.name} cannot begin the episodes of the seeds {list(chosen.values())}"):
            observation, initial = envs.reset({env: chosen.get(env, seeds[0]) for env in free})
        for env, seed in chosen.items():
            told = {name: float(values[env]) for name, values in initial.items()}
            recorders[env] = _Recorder(envs, env, seed, told)
            recorders[env].film = [] if seed in filmed else None
            actor.begin(env, seed)
        shoot(chosen)
        return observation

    def shoot(those: Collection[int]) -> None:
        films = {env: recorders[env].film for env in those if env in recorders}
        pictures = envs.render() if any(film is not None for film in films.values()) else []
        for env, film in films.items():
            if film is not None:
                film.append(pictures[env])

    observation = begin(range(envs.n_envs))
    while recorders:
        actions = envs.clip(actor.act(observation))
        told = ", ".join(f"step {one.steps + 1} of seed {one.seed}" for one in recorders.values())
        with _telling(f"{envs.name} has failed in {told}"):
            step = envs.step(actions)
        shoot(recorders)
        for env, recorder in list(recorders.items()):
            if (episode := recorder.add(observation, actions, step)) is not None:
                del recorders[env]
                yield episode
        observation = step.observation
        over = np.flatnonzero(step.terminated | step.truncated).tolist()
        if over and (recorders or waiting):
            observation = begin(over)
