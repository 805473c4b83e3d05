"""Make environments by name: those that roboreel knows, and any that gymnasium has."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from roboreel._optional import require
from roboreel.envs.spaces import observation_keys
from roboreel.envs.vector import VectorEnvs
from roboreel.envs.xarm import bridge
from roboreel.errors import ConfigError, MissingDependencyError


@dataclass(frozen=True)
class Known:
    """A package of environments, and how they are made where nothing else is said."""

    id: str
    """Of the environment that the short name stands for."""
    extra: str
    """What installs it: `pip install 'roboreel[extra]'`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    fps: float | None = None
    """Steps a second (Hz) where the environments' metadata do not tell."""
    signals: Sequence[str] = ()

    @property
    def package(self) -> str:
        return self.id.partition("/")[0]


PICTURES = {"obs_type": "pixels_agent_pos"}
KNOWN = {
    "pusht": Known("gym_pusht/PushT-v0", "sim", PICTURES, fps=10, signals=("coverage",)),
    "xarm": Known("gym_xarm/XarmLift-v0", "sim-xarm", PICTURES, fps=25),
    "aloha": Known("gym_aloha/AlohaTransferCube-v0", "sim-aloha", PICTURES, fps=50),
}
"""Short name -> what it stands for; its options, rate and signals count for every environment of the package."""


def make_envs(
    name: str,
    n_envs: int = 1,
    *,
    options: Mapping[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
    fps: float | None = None,
    max_steps: int | None = None,
    in_processes: bool = True,
    draw: bool = False,
) -> VectorEnvs:
    """Make `n_envs` environments that are stepped together; close them when done.

    >>> with make_envs("Pendulum-v1", in_processes=False) as envs:
    ...     observation, _ = envs.reset({0: 7})
    ...     envs.shapes, observation["observation.state"].dtype
    ({'observation.state': (3,), 'action': (1,)}, dtype('float32'))

    Args:
        name: "pusht", "xarm", "aloha", or an id of gymnasium's, as "Pendulum-v1", "gym_aloha/AlohaInsertion-v0" or
            "module:Id-v0", of which the module is imported first.
        n_envs: How many are stepped at once.
        options: The environment's own, as obs_type="state".
        keys: {data key: path in the observation}, of those to keep; None: all, named as LeRobot names them.
        fps: Steps a second (Hz); None: as the environment tells.
        max_steps: Steps after which an episode is truncated; None: as the environment is registered.
        in_processes: Step each in a process of its own (where there are several); else one after the other in this one.
        draw: Make them so that `render` gives pictures.

    Raises:
        MissingDependencyError: a package is not installed.
        ConfigError: there is no such environment, or it cannot be recorded; it tells no rate, or its episodes no end.
    """
    purpose = f"rolling out in {name}"
    gymnasium = require("gymnasium", extra="sim", purpose=purpose)
    known = next((each for short, each in KNOWN.items() if name == short or name.startswith(f"{each.package}/")), None)
    if known is not None:
        prepare(known, purpose)
    chosen = {**(known.options if known else {}), **(options or {})}
    if draw:
        chosen = {"render_mode": "rgb_array", **chosen}
    env_id = KNOWN[name].id if name in KNOWN else name
    make = partial(_make_one, env_id, chosen, max_steps, os.getpid())
    vector = gymnasium.vector
    how: dict[str, Any] = {"autoreset_mode": vector.AutoresetMode.DISABLED}
    kind = vector.SyncVectorEnv
    if in_processes and n_envs > 1:
        kind = vector.AsyncVectorEnv
        # A process that is forked from one which has drawn with OpenGL waits for ever for locks that nobody holds.
        how["context"] = "spawn" if "mujoco" in sys.modules else None
    with refusals(name, gymnasium):
        # Without autoreset the observation after the last step is the episode's own, not the next one's first; and the
        # next seed can be chosen.
        envs = kind([make] * n_envs, **how)
    try:
        rate = fps or (known and known.fps) or envs.metadata.get("render_fps")
        if not rate:
            raise ConfigError(f"{name} does not tell how many steps a second has: give them, as --env-fps 20")
        found = observation_keys(envs.single_observation_space, keys)
        limit = max_steps or gymnasium.spec(env_id.rpartition(":")[2]).max_episode_steps  # its module is imported
        signals = known.signals if known else ()
        return VectorEnvs(envs, found, fps=float(rate), signals=signals, max_steps=limit, name=name)
    except BaseException:
        envs.close()
        raise


def prepare(known: Known, purpose: str) -> None:
    """Import a package of environments, which registers them; again in each process that is spawned."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # one greeting a process
    if known.extra != "sim" and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # its default wants a display
    require(known.package, extra=known.extra, purpose=purpose)
    if known.package == "gym_xarm":
        bridge()


@contextlib.contextmanager
def refusals(name: str, gymnasium: Any) -> Iterator[None]:
    """Say what would do where gymnasium does not make an environment."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"{name}: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(
            f"gymnasium makes no environment {name!r} ({error}); {', '.join(KNOWN)}, an id such as Pendulum-v1, or "
            "MODULE:ID of an installed package would do"
        ) from error
    except (TypeError, ValueError) as error:  # what an environment has to say of its options
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} cannot be made so ({error}); see --env-options") from error


def _make_one(env_id: str, options: Mapping[str, Any], max_steps: int | None, asked_by: int) -> Any:
    import gymnasium

    if os.getpid() != asked_by:  # Ctrl-C reaches every process of a terminal: who asked ends the others
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    package = env_id.partition("/")[0]
    for known in KNOWN.values():
        if known.package == package:
            prepare(known, f"rolling out in {env_id}")
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    env: Any = gymnasium.make(env_id, disable_env_checker=True, **limit, **options)
    if env.spec.max_episode_steps is None:
        env.close()
        raise ConfigError(f"episodes of {env_id} may never end: give the steps after which one is cut, --max-steps 200")
    return _with_initial_coverage(env) if package == "gym_pusht" else env


def _with_initial_coverage(env: Any) -> Any:
    gymnasium: Any = importlib.import_module("gymnasium")

    class WithInitialCoverage(gymnasium.Wrapper):  # type: ignore[misc] # a class of Any
        """Tells the coverage at the start, which gym-pusht tells from the first step on only."""

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(**options)
            return observation, {**info, "coverage": self.unwrapped._get_coverage()}

    return WithInitialCoverage(env)
