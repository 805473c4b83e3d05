"""Several environments stepped at once, their observations under data keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.envs.spaces import ActionSpace, leaves
from roboreel.errors import ConfigError

Observation = dict[str, NDArray[Any]]
"""Data key -> array (environments, *shape); images uint8, channels last."""
SUCCESS = ("is_success", "success")
"""What environments call it in `info`."""


@dataclass(frozen=True)
class Step:
    """What came of one action in each environment, arrays (environments, …)."""

    observation: Observation
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_] | None
    """None where the environments do not tell: `info` has none of the entries `SUCCESS`."""
    signals: dict[str, NDArray[np.float64]]


class VectorEnvs:
    """A gymnasium vector environment without autoreset, its observations under data keys."""

    def __init__(
        self,
        envs: Any,
        keys: Mapping[str, str],
        *,
        fps: float,
        signals: Sequence[str] = (),
        max_steps: int | None = None,
        name: str = "the environment",
    ) -> None:
        """Wrap `envs`.

        Args:
            envs: Made with `AutoresetMode.DISABLED`, so that a last observation is the episode's own.
            keys: {data key: path in the observation}, "pixels/top" for a nested one, "" for one that is an array.
            fps: Steps a second (Hz).
            signals: Entries of `info`, numbers, that are kept.
            max_steps: Steps after which an episode is cut, where that is known.
            name: What it is called in errors.

        Raises:
            ConfigError: they reset themselves: what follows a last step would be another episode's first observation.
        """
        mode = getattr(envs.metadata.get("autoreset_mode"), "value", None)
        if mode != "Disabled":
            raise ConfigError(
                f"environments with autoreset_mode {mode!r}; the true last observation of an episode is there without: "
                "make them with autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
            )
        self._envs, self._keys, self._signals, self.fps = envs, dict(keys), tuple(signals), fps
        self.name = name
        self.n_envs: int = envs.num_envs
        self.max_steps = max_steps
        self.actions = ActionSpace.of(envs.single_action_space)
        spaces = dict(leaves(envs.single_observation_space))
        self.shapes: dict[str, tuple[int, ...]] = {key: tuple(spaces[path].shape) for key, path in keys.items()}
        self.shapes["action"] = self.actions.low.shape

    @property
    def camera_keys(self) -> list[str]:
        """The keys under which pictures come."""
        return [key for key in self._keys if key.startswith("observation.image")]

    def reset(self, seeds: Mapping[int, int]) -> tuple[Observation, dict[str, NDArray[np.float64]]]:
        """Begin a new episode in each environment of {environment: seed}; return the observation of all.

        Beside it the signals that are told at the start already, {name: (environments,)}; they count where one began.
        """
        mask = np.isin(np.arange(self.n_envs), list(seeds))
        options = None if mask.all() else {"reset_mask": mask}
        raw, info = self._envs.reset(seed=[seeds.get(env) for env in range(self.n_envs)], options=options)
        initial = {name: np.asarray(info[name], np.float64) for name in self._signals if name in info}
        return self._renamed(raw), initial

    def clip(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the nearest actions within the action space."""
        return self.actions.fit(actions)

    def step(self, actions: NDArray[Any]) -> Step:
        """Step all environments."""
        raw, reward, terminated, truncated, info = self._envs.step(actions)
        none = np.zeros(self.n_envs)
        return Step(
            self._renamed(raw),
            np.asarray(reward, np.float32),
            np.asarray(terminated, np.bool_),
            np.asarray(truncated, np.bool_),
            next((np.asarray(info[name], np.bool_) for name in SUCCESS if name in info), None),
            {name: np.asarray(info.get(name, none), np.float64) for name in self._signals},
        )

    def render(self) -> list[NDArray[np.uint8]]:
        """Return a picture of each environment, (height, width, 3); they must have been made for it.

        Raises:
            ConfigError: they give none.
        """
        why = "render mode rgb_array"
        try:
            pictures = self._envs.render()
        except Exception as error:  # noqa: BLE001 - environments raise what they like, as where there is no display
            pictures, why = None, f"{type(error).__name__}: {error}".strip(": ")
        if pictures is None or any(np.ndim(picture) != 3 for picture in pictures):
            raise ConfigError(
                f"{self.name} draws no pictures ({why}): give --n-videos 0, or to roboreel train --eval-videos 0"
            )
        return [np.asarray(picture, np.uint8) for picture in pictures]

    def close(self) -> None:
        self._envs.close()

    def __enter__(self) -> VectorEnvs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _renamed(self, raw: Any) -> Observation:
        # Simulators give positions as float64; datasets and policies have float32.
        arrays = {key: np.asarray(_at(raw, path)) for key, path in self._keys.items()}
        return {key: a.astype(np.float32) if a.dtype == np.float64 else a for key, a in arrays.items()}


def _at(raw: Any, path: str) -> Any:
    for name in path.split("/") if path else ():
        raw = raw[name]
    return raw
