"""Checkpoints as LeRobot lays them out, so that its tools load them.

    checkpoints/000100/pretrained_model/   config.json, model.safetensors, train_config.json, both processors
    checkpoints/000100/training_state/     optimiser, scheduler, random numbers, step
    checkpoints/last -> 000100

A file of ours lies in each of the two folders, `roboreel.json`; LeRobot looks at neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboreel import LeRobotDatasetV2, checkpoint
from roboreel._optional import require
from roboreel.errors import SourceError
from roboreel.train.lerobot.policy import lerobot
from roboreel.train.options import LeRobotTrainConfig

STATE = "training_state"
TOLD = "roboreel.json"


@dataclass(frozen=True)
class Parts:
    """What is saved."""

    config: Any
    policy: Any
    before: Any
    after: Any
    optimizer: Any
    scheduler: Any


def write_checkpoint(
    folder: Path, step: int, parts: Parts, options: LeRobotTrainConfig, told: Mapping[str, Any], fps: float
) -> None:
    """Write all files of a checkpoint into an empty folder."""
    saving = lerobot("utils.train_utils", or_else="common.train_utils")  # which is 0.6's name
    saving.save_checkpoint(
        folder,
        step,
        _pipeline(parts.config, options),
        parts.policy,
        parts.optimizer,
        parts.scheduler,
        parts.before,
        parts.after,
    )
    checkpoint.write_json(folder / checkpoint.PRETRAINED / TOLD, {"fps": fps})
    checkpoint.write_json(folder / STATE / TOLD, {**told, "counters": _counters(parts.policy)})


def write_policy(parts: Parts, folder: Path, fps: float) -> None:
    """Write what acting needs into a folder, as into a checkpoint's `pretrained_model`."""
    for part in (parts.policy, parts.before, parts.after):
        part.save_pretrained(folder)
    checkpoint.write_json(folder / TOLD, {"fps": fps})


def load_processors(config: Any, folder: Path, device: str) -> tuple[Any, Any]:
    """Return what comes before and after the policy of a checkpoint, with its statistics."""
    before, after = lerobot("policies.factory").make_pre_post_processors(
        config,
        pretrained_path=str(folder / checkpoint.PRETRAINED),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return before, after


def read_told(folder: Path, policy: str) -> dict[str, Any]:
    """Return what was told to `write_checkpoint`.

    Raises:
        ConfigError: it is of another policy, or was not written here.
        SourceError: it is damaged.
    """
    checkpoint.check_policy(folder, policy)
    return checkpoint.read_json(folder / STATE / TOLD)


def frames_per_second(pretrained: Path) -> float | None:
    """Return the rate (Hz) of what the policy has learned from.

    LeRobot's own checkpoints only tell from which dataset that was; None where it is not here (any more).
    """
    path = pretrained / TOLD
    if path.is_file():
        return float(checkpoint.read_json(path)["fps"])
    told = pretrained / "train_config.json"
    data = checkpoint.read_json(told).get("dataset") if told.is_file() else None
    if not data or not data.get("repo_id"):
        return None
    home = lerobot("utils.constants").HF_LEROBOT_HOME
    folder = Path(data.get("root") or home / data["repo_id"])
    if (folder / "metadata.json").is_file():  # the drop-in's
        with LeRobotDatasetV2(folder, readonly=True) as dataset:
            return dataset.fps
    infos = [path for meta in ("meta", "meta_data") if (path := folder / meta / "info.json").is_file()]
    return float(checkpoint.read_json(infos[0])["fps"]) if infos else None


def load_checkpoint(folder: Path, parts: Parts, counters: Mapping[str, int]) -> None:
    """Put the weights, the optimiser and the scheduler in the state in which they were saved.

    Raises:
        SourceError: a file is damaged.
    """
    try:
        load_weights(parts.policy, folder / checkpoint.PRETRAINED)
        state = folder / STATE
        lerobot("optim.optimizers").load_optimizer_state(parts.optimizer, state)
        if parts.scheduler is not None:
            lerobot("optim.schedulers").load_scheduler_state(parts.scheduler, state)
    except Exception as error:  # a damaged file: json, safetensors and torch have half a dozen types for it
        raise SourceError(f"{folder} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    _set_counters(parts.policy, counters)


def load_weights(policy: Any, pretrained: Path) -> None:
    """Load the weights into a policy of the same config."""
    device = str(next(policy.parameters()).device)
    require("safetensors.torch", extra="lerobot", purpose="LeRobot's policies").load_model(
        policy, pretrained / "model.safetensors", device=device
    )


def _pipeline(config: Any, options: LeRobotTrainConfig) -> Any:
    """Return the options as those of `lerobot-train`."""
    dataset = options.dataset.resolve()
    return lerobot("configs.train").TrainPipelineConfig(
        dataset=lerobot("configs.default").DatasetConfig(
            repo_id=f"local/{dataset.name}", root=str(dataset), use_imagenet_stats=False
        ),
        policy=config,
        output_dir=options.output_dir.resolve(),
        job_name=options.output_dir.name,
        seed=options.seed,
        num_workers=options.num_workers,
        batch_size=options.batch_size,
        steps=options.steps,
        log_freq=options.log_every,
        save_freq=options.save_every,
        optimizer=config.get_optimizer_preset(),
        scheduler=config.get_scheduler_preset(),
    )


# VQ-BeT counts the steps of its first phase, and ends it, outside of its weights.


def _vqvae(policy: Any) -> Any:
    return policy.vqbet.action_head.vqvae_model if policy.name == "vqbet" else None


def _counters(policy: Any) -> dict[str, int]:
    vqvae = _vqvae(policy)
    return {} if vqvae is None else {"optimized_steps": int(vqvae.optimized_steps)}


def _set_counters(policy: Any, counters: Mapping[str, int]) -> None:
    vqvae = _vqvae(policy)
    if vqvae is not None:
        vqvae.optimized_steps = counters["optimized_steps"]
        for parameter in vqvae.vq_layer.parameters():
            parameter.requires_grad = not bool(vqvae.discretized)
