"""One of LeRobot's policies for a dataset: its config, its features, its processors."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from roboreel._optional import require
from roboreel.errors import ConfigError

ACTION, REWARD, STATE = "action", "next.reward", "observation.state"
NEEDED = {"act": (ACTION,), "diffusion": (ACTION, STATE), "vqbet": (ACTION, STATE), "tdmpc": (ACTION, STATE, REWARD)}
"""Keys that a policy does not do without."""
OURS = {
    "device": "here it is --device",
    "use_amp": "here it is --amp",
    "type": "here it is --policy",
    "pretrained_path": "a run is gone on with by --resume",
    "push_to_hub": "a run stays here; `hf upload` puts a checkpoint up",
    "use_peft": "only whole policies are trained",
}
"""Options of LeRobot's configs that are none here, and what is instead."""


def lerobot(module: str, *, or_else: str | None = None) -> Any:
    """Import a module of lerobot's, which other versions have by another name."""
    require("lerobot", extra="lerobot", purpose="LeRobot's policies")
    if or_else is not None and importlib.util.find_spec(f"lerobot.{module}") is None:
        module = or_else
    return require(f"lerobot.{module}", extra="lerobot", purpose="LeRobot's policies")


def config_class(policy: str) -> Any:
    lerobot("policies.factory")  # which registers all of them
    return lerobot("configs.policies").PreTrainedConfig.get_choice_class(policy)


def make_config(policy: str, options: Sequence[str], device: torch.device, *, amp: bool) -> Any:
    """Parse "chunk_size=20" and the like as LeRobot would.

    Raises:
        ConfigError: there is no such option, or no such value.
    """
    kind = config_class(policy)
    names = [option.partition("=")[0].partition(".")[0] for option in options]
    known = kind.__dataclass_fields__
    for name in names:
        if name in OURS:
            raise ConfigError(f"--policy.{name}: {OURS[name]}")
        if name not in known:
            raise ConfigError(f"--policy.{name}: {policy} has no such option; it has {', '.join(sorted(known))}")
    arguments = [f"--{option}" for option in options]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            config = require("draccus", extra="lerobot", purpose="LeRobot's policies").parse(
                kind, args=[*arguments, f"--device={device}", f"--use_amp={str(amp).lower()}", "--push_to_hub=false"]
            )
    except SystemExit as error:
        raise ConfigError(f"--policy: {told.getvalue().strip().splitlines()[-1]}") from error
    except Exception as error:  # the parser's own errors, and whatever a config refuses with
        why = error.__cause__ or error  # why a config refuses; around it the parser says only that it does
        raise ConfigError(f"--policy.{', --policy.'.join(options)}: {why}") from error
    return config


def defaults_of(policy: str) -> dict[str, Any]:
    """Return the options of a policy that are not ours by another name, with their defaults."""
    config = make_config(policy, (), torch.device("cpu"), amp=False)
    return {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in OURS}


def windows(config: Any, keys: Sequence[str], fps: float) -> dict[str, list[float]]:
    """Return what a policy learns from: key -> seconds from a frame, as LeRobot derives them."""
    steps = {
        key: config.action_delta_indices
        if key == ACTION
        else config.reward_delta_indices
        if key == REWARD
        else config.observation_delta_indices
        if key.startswith("observation.")
        else None
        for key in keys
    }
    return {key: [step / fps for step in wanted] for key, wanted in steps.items() if wanted is not None}


def set_features(config: Any, shapes: Mapping[str, tuple[int, ...]], cameras: Sequence[str]) -> None:
    """Tell a config what there is to see and to do: the shape of one frame by key, of cameras (C, H, W).

    Raises:
        ConfigError: it cannot do with that.
    """
    if missing := [key for key in NEEDED[config.type] if key not in shapes]:
        raise ConfigError(
            f"--policy {config.type} learns from {missing}, which the dataset lacks; it has {list(shapes)}"
        )
    types = lerobot("configs.types")

    def kind(key: str) -> Any:
        if key in cameras:
            return types.FeatureType.VISUAL
        if key == "observation.environment_state":
            return types.FeatureType.ENV
        return types.FeatureType.ACTION if key == ACTION else types.FeatureType.STATE

    found = {
        key: types.PolicyFeature(kind(key), tuple(shape) or (1,))
        for key, shape in shapes.items()
        if key == ACTION or key.startswith("observation.")
    }
    config.output_features = {ACTION: found.pop(ACTION)}
    for key, feature in (config.input_features or {}).items():  # where it was asked for
        if key not in found or tuple(feature.shape) != found[key].shape:
            raise ConfigError(f"--policy.input_features: {key} {feature.shape}; the dataset has {_told(found)}")
    config.input_features = config.input_features or found
    if config.type == "tdmpc" and not config.image_features and not config.env_state_feature:  # it would fail at a step
        raise ConfigError(
            f"--policy tdmpc learns from a camera or from observation.environment_state beside {STATE}; the dataset "
            f"has {_told(found)}. An environment's state can be both: "
            f"--env-keys observation.state= observation.environment_state="
        )
    with refusals(config.type, config.input_features):
        config.validate_features()


@contextlib.contextmanager
def refusals(policy: str, features: Mapping[str, Any]) -> Iterator[None]:
    """Say what the dataset has where a policy will have none of it."""
    try:
        yield
    except (ValueError, AssertionError, TypeError, IndexError, KeyError, RuntimeError) as error:
        raise ConfigError(f"--policy {policy} cannot be trained on {_told(features)}: {error}") from error


def _told(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {tuple(feature.shape)}" for key, feature in features.items())


def make_policy(config: Any) -> Any:
    """Make the policy with fresh weights, on its device."""
    with refusals(config.type, config.input_features):
        policy = lerobot("policies.factory").get_policy_class(config.type)(config).to(config.device)
    if config.use_amp and config.type == "vqbet":
        # Its codebook is changed in place, by averages of what the encoder gives, and takes nothing but float32.
        codes = policy.vqbet.action_head.vqvae_model
        for module in (codes.encoder, codes.vq_layer, codes.decoder):
            stay_float32(module, torch.device(config.device).type)
    return policy


def stay_float32(module: torch.nn.Module, device_type: str) -> None:
    """Have a module take, compute and give float32, also where autocast is on around it."""
    forward = module.forward

    def in_float32(*values: Any, **options: Any) -> Any:
        wide = (value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in values)
        with torch.autocast(device_type, enabled=False):
            return forward(*wide, **options)

    module.forward = in_float32


def make_processors(config: Any, stats: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """Return what comes before and what comes after a policy: normalisation by `stats`, and back."""
    usable = {
        key: {name: torch.as_tensor(np.atleast_1d(value), dtype=torch.float32) for name, value in found.items()}
        for key, found in stats.items()
        if key in {**config.input_features, **config.output_features}
    }
    before, after = lerobot("policies.factory").make_pre_post_processors(config, dataset_stats=usable)
    return before, after


def as_floats(batch: Mapping[str, torch.Tensor], features: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a batch, already on the device, in the types and shapes that LeRobot's processors take.

    Bytes of images become float32 in [0, 1], other numbers float32; a scalar an observation gets an axis of its own.
    """
    made = {}
    for key, value in batch.items():
        if value.dtype == torch.uint8 and key in features:
            # Contiguous, as LeRobot's are: convolutions round otherwise where channels lie last.
            value = value.contiguous().float() / 255
        elif value.is_floating_point():
            value = value.float()
        if key in features and features[key].shape == (1,) and value.shape[-1:] != (1,):
            value = value.unsqueeze(-1)
        if key == REWARD and value.ndim == 3:
            value = value.squeeze(-1)
        made[key] = value
    return made
