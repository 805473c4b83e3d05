"""What acts in an evaluation: chance, our own policy, or one of LeRobot's, if it fits the environments."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roboreel import checkpoint
from roboreel.envs import Actor, Observation, RandomActor, VectorEnvs
from roboreel.errors import ConfigError
from roboreel.policies import BCPolicy


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


def identity(path: Path | None) -> dict[str, Any] | None:
    """Return what tells the weights of a checkpoint from all others; None for a policy without any.

    Raises:
        ConfigError: there is no checkpoint.
    """
    if path is None:
        return None
    if (folder := checkpoint.pretrained_folder(path)) is None:
        return checkpoint.identity(checkpoint.policy_file(path))
    step = folder.resolve().parent.name
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"sha256": digest, "step": int(step) if step.isdecimal() else None}


def make_actor(path: Path | None, envs: VectorEnvs, device: torch.device) -> Actor:
    """Return what acts: the policy of a checkpoint, if it fits the environments, or chance.

    Raises:
        ConfigError: there is no checkpoint, or it sees or does something else than the environments have.
        MissingDependencyError: it is one of LeRobot's, and `lerobot` is not installed.
        SourceError: it is damaged.
    """
    if path is None:
        return RandomActor(envs.actions, envs.n_envs)
    if checkpoint.pretrained_folder(path) is not None:
        from roboreel.train.lerobot.actor import actor_from  # which wants lerobot

        return actor_from(path, envs, device)
    policy = BCPolicy.load(path, device)
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
        told = [f"{key}: {want} in the policy, {have} in the environment" for key, (want, have) in wrong.items()]
        said = "; ".join(told)
        raise ConfigError(f"the policy does not fit the environment: {said}. Evaluate it where its data came from")
    checkpoint.check_rate(policy.fps, envs.fps)
