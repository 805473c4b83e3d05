"""What an environment shows and takes, under the dataset's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import ConfigError

TAKEN = ("action", "task", "index", "episode_index", "frame_index", "timestamp")
"""What else an episode has, beside all that begins with "next."."""
WHOLE = ""
"""The path of an observation that is one array, and no dict."""

_ROOTS = {
    "pixels": "observation.image",
    "agent_pos": "observation.state",
    "state": "observation.state",
    "observation": "observation.state",
    "environment_state": "observation.environment_state",
}


def leaves(space: Any, path: str = WHOLE) -> Iterator[tuple[str, Any]]:
    """Yield path and space of each array in an observation space; the parts of a path are joined by "/"."""
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Mapping):
        for name, each in inner.items():
            yield from leaves(each, f"{path}/{name}" if path else str(name))
    else:
        yield path, space


def data_key(path: str, *, image: bool) -> str:
    """Return the data key of an observation by its path, as LeRobot's environments name them.

    >>> data_key("pixels", image=True), data_key("pixels/top", image=True), data_key("", image=False)
    ('observation.image', 'observation.images.top', 'observation.state')
    >>> data_key("agent_pos", image=False), data_key("goal/place", image=False)
    ('observation.state', 'observation.goal.place')
    """
    name = path.removeprefix("pixels/").replace("/", ".")
    if image:
        return "observation.image" if path in (WHOLE, "pixels") else f"observation.images.{name}"
    if path == WHOLE:
        return "observation.state"
    # what is no picture must not be called one: the key would make a camera of it
    return f"observation.{name}" if path.startswith("pixels") else _ROOTS.get(path, f"observation.{name}")


def is_image(space: Any) -> bool:
    """Whether an observation is a picture: uint8 (height, width, 1 or 3)."""
    shape: tuple[int, ...] = tuple(space.shape or ())
    return space.dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3)


def observation_keys(space: Any, asked: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return {data key: path} of what is kept of an observation: what was `asked` for, or everything.

    Raises:
        ConfigError: an observation that is no array of numbers; two of one name, or one named as something else of an
            episode is; a path that is not there.
    """
    found = dict(leaves(space))
    if asked is not None:
        if taken := [key for key in asked if key in TAKEN or key.startswith("next.")]:
            raise ConfigError(
                f"{taken}: names that an episode has for something else; names such as observation.state would do"
            )
        if missing := sorted(set(asked.values()) - found.keys()):
            raise ConfigError(f"the environment has no observation {missing}; it has {sorted(found)}")
        found = {path: found[path] for path in asked.values()}
    odd = [path or "the observation" for path, each in found.items() if not _is_numeric(each)]
    if odd:
        raise ConfigError(
            f"{', '.join(odd)}: no array of numbers, which is what a dataset stores; name those to keep: "
            "--env-keys observation.state=NAME"
        )
    if asked is not None:
        return dict(asked)
    keys: dict[str, str] = {}
    for path, each in found.items():
        key = data_key(path, image=is_image(each))
        if key in keys:
            raise ConfigError(
                f"{keys[key]!r} and {path!r} of the environment would both be {key!r}; name them yourself: "
                f"--env-keys {key}={keys[key]} observation.other={path}"
            )
        keys[key] = path
    return keys


def _is_numeric(space: Any) -> bool:
    return getattr(space, "shape", None) is not None and np.dtype(space.dtype or object).kind in "buif"


@dataclass(frozen=True)
class ActionSpace:
    """The actions of one environment: a box of numbers, or integers from `low` to `high`."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    dtype: np.dtype[Any]

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind in "iub"

    @classmethod
    def of(cls, space: Any) -> ActionSpace:
        """Take one of gymnasium's spaces.

        Raises:
            ConfigError: a space of another kind than Box, Discrete, MultiDiscrete and MultiBinary.
        """
        kind = type(space).__name__
        if kind == "Box":
            low, high = space.low, space.high
        elif kind == "Discrete":
            low, high = space.start, space.start + space.n - 1
        elif kind == "MultiDiscrete":
            low, high = space.start, space.start + space.nvec - 1
        elif kind == "MultiBinary":
            low, high = np.zeros(space.shape), np.ones(space.shape)
        else:
            raise ConfigError(
                f"actions of the kind {kind} cannot be recorded; Box, Discrete, MultiDiscrete and MultiBinary would do"
            )
        return cls(np.asarray(low, np.float64), np.asarray(high, np.float64), np.dtype(space.dtype))

    def fit(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the nearest actions (environments, *shape) that there are, in the space's dtype.

        A policy may give one number as an array of it, (environments, 1).

        >>> ActionSpace(np.array(0.0), np.array(2.0), np.dtype(np.int64)).fit(np.array([-3.0, 0.7, 9.0])).tolist()
        [0, 1, 2]
        """
        shaped = np.reshape(actions, (len(actions), *self.low.shape))
        rounded = np.rint(shaped) if self.is_integer else shaped
        fitted: NDArray[Any] = np.clip(rounded, self.low, self.high).astype(self.dtype)
        return fitted

    def draw(self, generator: np.random.Generator) -> NDArray[Any]:
        """Draw an action uniformly; what has no bounds, as a box may, from a normal or exponential distribution."""
        if self.is_integer:
            return np.asarray(generator.integers(self.low.astype(np.int64), self.high.astype(np.int64) + 1), self.dtype)
        bounded_below, bounded_above = np.isfinite(self.low), np.isfinite(self.high)
        low, high = np.where(bounded_below, self.low, 0), np.where(bounded_above, self.high, 0)
        drawn = generator.uniform(low, np.maximum(high, low))
        if not (np.all(bounded_below) and np.all(bounded_above)):
            tail, normal = generator.exponential(size=self.low.shape), generator.normal(size=self.low.shape)
            drawn = np.where(bounded_below, np.where(bounded_above, drawn, low + tail), high - tail)
            drawn = np.where(bounded_below | bounded_above, drawn, normal)
        return np.asarray(drawn, self.dtype)
