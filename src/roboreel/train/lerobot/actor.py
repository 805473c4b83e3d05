"""One of LeRobot's policies acting in environments, from a checkpoint in LeRobot's layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from roboreel import checkpoint
from roboreel.errors import ConfigError, SourceError
from roboreel.train.lerobot.checkpoints import frames_per_second, load_weights
from roboreel.train.lerobot.policy import ACTION, as_floats, config_class, lerobot
from roboreel.train.lerobot.randomness import seeded
from roboreel.train.seeds import step_seed


class Surroundings(Protocol):
    """What an actor must know of the environments it acts in."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """One frame's shape for each observation key, of cameras (H, W, C), and for "action"."""

    @property
    def fps(self) -> float:
        """Steps a second (Hz)."""


class LeRobotActor:
    """A policy among environments: arrays in, arrays out. What it does in an episode depends on its seed alone."""

    def __init__(self, policy: Any, before: Any, after: Any) -> None:
        self._policy, self._before, self._after = policy, before, after
        self._cameras = list(policy.config.image_features)
        self._features = policy.config.input_features
        self._device = next(policy.parameters()).device
        self._playing: dict[int, Any] = {}
        self._drawn: dict[int, tuple[int, int]] = {}

    def begin(self, env: int, seed: int) -> None:
        """A new episode begins in environment `env`: forget the last one there."""
        # A policy remembers one batch of episodes that begin and end together. These do not: a memory for each, but
        # the same weights.
        memory = copy.copy(self._policy)
        if hasattr(memory, "temporal_ensembler"):  # ACT's, which resets in place
            memory.temporal_ensembler = copy.copy(memory.temporal_ensembler)
        memory.reset()
        self._playing[env] = memory
        self._drawn[env] = (seed, 0)

    def load(self, weights: Mapping[str, Any]) -> None:
        """Go on with newer weights of the same policy, those in the middle of an episode too."""
        self._policy.load_state_dict(weights)

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return actions (environments, *shape) for an observation of all environments."""
        self._policy.eval()  # it may be in training meanwhile
        count = len(next(iter(observation.values())))
        return np.stack([self._act(env, observation) for env in range(count)])

    def _act(self, env: int, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        if env not in self._playing:
            self.begin(env, seed=env)
        tensors = {}
        for key in self._features:
            value = torch.from_numpy(np.ascontiguousarray(observation[key][env : env + 1]))
            tensors[key] = value.movedim(-1, -3) if key in self._cameras else value  # stored channels last
        seed, step = self._drawn[env]
        self._drawn[env] = (seed, step + 1)
        with seeded(step_seed(seed, step), self._device):
            action = self._playing[env].select_action(self._before(as_floats(tensors, self._features)))
        chosen: NDArray[np.float32] = self._after(action)[0].float().cpu().numpy()
        return chosen


def actor_from(path: Path, envs: Surroundings, device: torch.device) -> LeRobotActor:
    """Return the policy of a run, of one of its checkpoints or of a `pretrained_model`, ready to act in `envs`.

    Raises:
        ConfigError: there is no such checkpoint, or its policy sees or does something else than `envs` have.
        SourceError: the checkpoint is damaged.
    """
    folder = checkpoint.pretrained_folder(path)
    if folder is None:
        raise ConfigError(f"{path} holds no checkpoint of one of LeRobot's policies")
    config = _config(folder, device)
    check_fits(config, frames_per_second(folder), envs)
    factory = lerobot("policies.factory")
    try:
        policy = factory.get_policy_class(config.type)(config).to(device)
        load_weights(policy, folder)
        before, after = factory.make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": str(device)}},
        )
    except Exception as error:  # a damaged file: json, safetensors and torch have half a dozen types for it
        raise SourceError(f"{folder} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    return LeRobotActor(policy, before, after)


def _config(folder: Path, device: torch.device) -> Any:
    config_class(checkpoint.policy_name(folder))  # which registers it
    config = lerobot("configs.policies").PreTrainedConfig.from_pretrained(
        str(folder), cli_overrides=[f"--device={device}"]
    )
    if getattr(config, "pretrained_backbone_weights", None) is not None:
        config.pretrained_backbone_weights = None  # they would be downloaded, and then overwritten
    return config


def check_fits(config: Any, fps: float | None, envs: Surroundings) -> None:
    """Raise `ConfigError` where a policy sees or does something else than the environments have."""
    given = dict(envs.shapes)
    wanted = {**config.input_features, ACTION: config.output_features[ACTION]}
    wrong = []
    for key, feature in wanted.items():
        have = given.get(key)
        if have is not None and key in config.image_features:
            have = (have[-1], *have[:-1])
        if have is None or (tuple(have) or (1,)) != tuple(feature.shape):
            wrong.append(f"{key}: {tuple(feature.shape)} in the policy, {have} in the environment")
    if wrong:
        raise ConfigError(
            f"the policy {config.type!r} does not fit the environment: {'; '.join(wrong)}. "
            "Evaluate it where its data came from"
        )
    if fps is not None:
        checkpoint.check_rate(fps, envs.fps)
