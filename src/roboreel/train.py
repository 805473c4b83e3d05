"""Train a policy on a dataset: options, data, model, loop.

    roboreel train --dataset data/pusht --output-dir outputs/pusht
    roboreel train --dataset data/pusht --output-dir outputs/pusht --resume

A run's folder holds `config.json`, a line of `metrics.jsonl` every `log_every` steps, `curves.png`, and `checkpoints/`.
Everything random in a step (its frames, its augmentation, its noise) is a function of the seed and the step alone, so
a run that was stopped and resumed gives the losses of one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from roboreel import LeRobotDatasetV2, checkpoint
from roboreel.errors import ConfigError, LossNotFiniteError, NotADatasetError, TimestampOutsideToleranceError
from roboreel.policies import BCConfig, BCPolicy
from roboreel.sampling.order import EpochOrder
from roboreel.store import check_no_lerobot
from roboreel.view import plot_curves, read_metrics


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    dataset: Path
    """Folder of a roboreel dataset; `roboreel import FOLDER DEST` makes one."""
    output_dir: Path
    """Where the run goes; with --resume, where it is."""
    steps: int = 2500
    """Optimiser steps in all."""
    batch_size: int = 64
    """Frames a step."""
    lr: float = 3e-3
    """Peak learning rate; rises over `warmup_steps`, then falls along a cosine to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 1e-4
    """AdamW's decay of the weights."""
    grad_clip: float = 1.0
    """Greatest norm of the gradient; a longer one is scaled down to it."""
    ema_decay: float = 0.995
    """How slowly the averaged weights, which are the ones evaluated, follow those in training."""
    skip_episodes: tuple[int, ...] = ()
    """Numbers of episodes to leave out."""
    on_hole: Literal["raise", "nearest", "pad"] = "raise"
    """Where an episode has no frame near a wanted time: "raise" before training, take the "nearest", or "pad" there."""
    num_workers: int = 2
    """Processes that read batches ahead; 0: read between the steps."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", "mps"; auto is cuda where there is an NVIDIA or AMD GPU, else cpu."""
    seed: int = 0
    """0 to 2**63 - 1, of the first weights, of the order of frames and of everything else that is drawn."""
    log_every: int = 1
    """Steps a line of metrics: loss and gradient norm are means over them, seconds are sums."""
    save_every: int = 1000
    """Steps between checkpoints; there is one at the end in any case."""
    resume: bool = False
    """Continue the run in `output_dir` from its last checkpoint."""
    policy: BCConfig = field(default_factory=BCConfig)
    """Options of the policy."""

    FREE_TO_CHANGE = ("dataset", "output_dir", "steps", "num_workers", "device", "log_every", "save_every", "resume")
    """Options that may differ when a run is resumed; another `steps` bends the rest of the learning rate's curve."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        for name in ("num_workers", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")
        for name in ("lr", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a number above 0")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"--seed {self.seed}: give a number from 0 to 2**63 - 1")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema-decay {self.ema_decay}: give at least 0 and less than 1")
        if self.save_every % self.log_every:
            raise ConfigError(
                f"--save-every {self.save_every} is no multiple of --log-every {self.log_every}: "
                "a resumed run would begin in the middle of a line"
            )


@dataclass(frozen=True)
class TrainResult:
    """What a run did, over all its parts."""

    checkpoint: Path
    steps: int
    frames_seen: int
    """Frames drawn, repetitions counted."""
    final_loss: float
    """Mean over the last twentieth of the run."""
    data_s: float
    """Seconds that the loop waited for data, in the steps that count: what was lost to a kill is not in it."""
    update_s: float
    """Seconds that it computed, in the same steps."""


def train(config: TrainConfig) -> TrainResult:
    """Train a policy, or go on training it; returns when `config.steps` are done.

    Raises:
        ConfigError: the options contradict each other, the dataset, this machine or what is in `output_dir`.
        LossNotFiniteError: a loss was not a number; `bad_batch.json` names the frames.
    """
    # Refused before anything is written: another run's folder, a device or a dataset that is not there.
    device = pick_device(config.device)
    find_start(config)
    dataset = open_dataset(config)
    torch.manual_seed(config.seed)
    policy = BCPolicy.for_dataset(config.policy, dataset).to(device)
    set_windows(dataset, policy, config)
    with checkpoint.run_lock(config.output_dir):
        run(config, dataset, policy, device)
    return result_of(config)


def run(config: TrainConfig, dataset: LeRobotDatasetV2, policy: BCPolicy, device: torch.device) -> None:
    """Train the policy from where the run stands to `config.steps`."""
    # Where: a new run, or the last checkpoint of one.
    out, last = config.output_dir, find_start(config)
    start = 0 if last is None else int(last.name)

    # Data: uint8 until it is on the device; a window of actions for each frame.
    data = data_identity(dataset)
    order = EpochOrder(data["frames"], config.batch_size, config.seed, start, config.steps)
    loader = DataLoader(dataset, batch_sampler=order, num_workers=config.num_workers, pin_memory=device.type == "cuda")

    # Model: the weights in training, and their running average, which is what gets evaluated.
    average = copy.deepcopy(policy).eval()
    betas = (0.9, 0.99)  # the usual 0.999 looks back over a thousand steps: too long for runs of a few thousand
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    parts: dict[str, Any] = {"policy": policy, "average": average, "optimizer": optimizer}
    if last is not None:
        state = checkpoint.load_training(last, device)
        check_same_run(config, state, data)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    checkpoint.begin_run(out, config, start)

    # Loop.
    policy.train()
    line = Line()
    clock = time.perf_counter()
    progress = tqdm(loader, "train", initial=start, total=config.steps, unit="step", mininterval=bar_interval_s())
    for step, batch in enumerate(progress, start + 1):
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)}
        data_s, clock = since(clock)

        torch.manual_seed(step_seed(config.seed, step))
        lr = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip)
        check_finite(out, step, order, loss.item(), grad_norm.item())
        optimizer.step()
        follow(average, policy, config.ema_decay)
        update_s, clock = since(clock)

        line.add(loss=loss.item(), grad_norm=grad_norm.item(), data_s=data_s, update_s=update_s)
        if step % config.log_every == 0 or step == config.steps:
            progress.set_postfix(line.write(out, step, lr), refresh=False)
        if step % config.save_every == 0 or step == config.steps:
            training = {name: part.state_dict() for name, part in parts.items()}
            training |= {"config": checkpoint.plain(config), "dataset": data}
            checkpoint.save_checkpoint(out, step, average.to_dict(), training)
            plot_curves(out / checkpoint.METRICS, out / "curves.png")
            clock = time.perf_counter()  # saving is neither waiting nor computing


def bar_interval_s() -> float:
    """Return how often (s) a progress bar is drawn: seldom where it goes into a log."""
    return 0.2 if sys.stderr.isatty() else 30.0


def find_start(config: TrainConfig) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run."""
    out = config.output_dir
    last = checkpoint.latest(out)
    if config.resume and last is None:
        raise ConfigError(f"--resume: {out} holds no checkpoint; leave --resume out to begin there")
    if not config.resume and last is not None:
        raise ConfigError(f"{out} holds a run already: add --resume to go on with it, or give another --output-dir")
    if last is not None:
        if (done := int(last.name)) > config.steps:
            raise ConfigError(f"--steps {config.steps}: the run in {out} has done {done} already; give more")
        checkpoint.check_metrics(out, done)
    return last


def open_dataset(config: TrainConfig) -> LeRobotDatasetV2:
    """Open the dataset, without the episodes to be left out."""
    try:
        dataset = LeRobotDatasetV2(config.dataset, readonly=True, image_dtype="uint8")
    except NotADatasetError as error:
        check_no_lerobot(config.dataset)  # the advice for such a folder names it
        raise ConfigError(
            f"--dataset {config.dataset} is no roboreel dataset; make one of a folder in LeRobot format: "
            "roboreel import FOLDER DEST"
        ) from error
    if not config.skip_episodes:
        return dataset
    held, skipped = dataset.get_unique_episode_indices().tolist(), set(config.skip_episodes)
    if unknown := sorted(skipped.difference(held)):
        raise ConfigError(f"--skip-episodes: {config.dataset} has no episodes {unknown[:10]}; it holds {len(held)}")
    kept = [number for number in held if number not in skipped]
    return LeRobotDatasetV2(config.dataset, readonly=True, image_dtype="uint8", episodes=kept)


def set_windows(dataset: LeRobotDatasetV2, policy: BCPolicy, config: TrainConfig) -> None:
    """Choose the windows that the policy learns from."""
    try:
        dataset.set_delta_timestamps(policy.delta_timestamps(), on_hole=config.on_hole)
    except TimestampOutsideToleranceError as error:
        found = str(error).partition("; type ")[0]  # what follows is advice for those who write Python
        raise ConfigError(f"{found}; add --on-hole nearest or --on-hole pad to take them all the same") from error


def data_identity(dataset: LeRobotDatasetV2) -> dict[str, Any]:
    """Return what a run's data are; taken once, as an open dataset may grow while the run lasts."""
    return {"uuid": dataset.uuid, "generation": dataset.generation, "frames": len(dataset)}


def check_same_run(config: TrainConfig, state: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse to resume with other options or other data: the losses would silently be those of another run."""
    now, then = checkpoint.plain(config), state["config"]
    changed = [name for name in now if name not in TrainConfig.FREE_TO_CHANGE and now[name] != then.get(name)]
    if changed:
        told = "; ".join(f"{name} was {then.get(name)!r} and is now {now[name]!r}" for name in changed)
        raise ConfigError(f"--resume goes on with the same options: {told}")
    begun = state.get("dataset", {})
    if data != begun:
        told = ", ".join(f"{name} {value} (then {begun.get(name)})" for name, value in data.items())
        raise ConfigError(
            f"--resume goes on with the same data, and {config.dataset} is another dataset, or has changed: {told}; "
            "begin anew with another --output-dir"
        )


def pick_device(name: str) -> torch.device:
    """Return the device asked for; for "auto" CUDA's (or ROCm's, which torch calls the same), or the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" has tensors, but nothing in them
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}); --device cpu would do") from error
    return device


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of step 1 … `config.steps`: up in a line, down along half a cosine."""
    warm = min(1.0, step / max(1, config.warmup_steps))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps))


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the running average of the weights a little towards those of the model."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def step_seed(seed: int, step: int) -> int:
    """Return the seed of all that is drawn in one step, mixed so that (1, 2) and (2, 1) have nothing in common."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


def since(clock: float) -> tuple[float, float]:
    """Return the seconds since `clock`, and the clock now."""
    now = time.perf_counter()
    return now - clock, now


def check_finite(out: Path, step: int, order: EpochOrder, loss: float, grad_norm: float) -> None:
    """Stop before a bad gradient spoils the weights, and leave behind what is needed to look into it."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    path = out / "bad_batch.json"
    content = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "indices": order.batch(step - 1)}
    checkpoint.write_json(path, content)
    raise LossNotFiniteError(
        f"step {step}: the loss is {loss} and its gradient's norm {grad_norm}; the batch's indices are in {path}. "
        "Look at those frames for values that are not finite, or lower --lr"
    )


class Line:
    """The metrics of a few steps, until they are written as one line."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        self._steps.append(values)

    def write(self, out: Path, step: int, lr: float) -> dict[str, str]:
        """Append the line to `metrics.jsonl`, begin a new one; returns what the progress bar shows."""
        sums = {name: sum(values[name] for values in self._steps) for name in self._steps[0]}
        means = {name: sums[name] / len(self._steps) for name in ("loss", "grad_norm")}
        self._steps.clear()
        values = {"step": step, **means, "lr": lr, "update_s": sums["update_s"], "data_s": sums["data_s"]}
        with (out / checkpoint.METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        share = sums["data_s"] / max(sums["data_s"] + sums["update_s"], 1e-9)
        return {"loss": f"{means['loss']:.4f}", "lr": f"{lr:.1e}", "data": f"{share:.1%}"}


def result_of(config: TrainConfig) -> TrainResult:
    """Return what the finished run in `config.output_dir` did, from its files."""
    last = checkpoint.latest(config.output_dir)
    assert last is not None
    columns = read_metrics(config.output_dir / checkpoint.METRICS)
    steps, loss = int(columns["step"][-1]), columns["loss"]
    return TrainResult(
        checkpoint=last,
        steps=steps,
        frames_seen=steps * config.batch_size,
        final_loss=float(loss[-max(1, len(loss) // 20) :].mean()),
        data_s=float(columns["data_s"].sum()),
        update_s=float(columns["update_s"].sum()),
    )
