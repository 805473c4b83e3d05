"""The training loop: data, model, steps.

    roboreel train --dataset data/pusht --output-dir outputs/pusht
    roboreel train --dataset data/pusht --output-dir outputs/pusht --resume

A run's folder holds `config.json`, a line of `metrics.jsonl` every `log_every` steps, `curves.png`, and `checkpoints/`.
Everything random in a step (its frames, its augmentation, its noise) is a function of the seed and the step alone, so
a run that was stopped and resumed gives the losses of one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from roboreel import checkpoint
from roboreel.errors import ConfigError, LossNotFiniteError
from roboreel.train.learner import Gradient, Learner, TrainingFrames, Trials
from roboreel.train.metrics import Line, TrainResult, bar_interval_s, result_of, since
from roboreel.train.options import RunConfig
from roboreel.train.order import Batches, DrawnOrder
from roboreel.train.processes import check_batches, current, joined, local_device
from roboreel.train.seeds import step_seed
from roboreel.train.trackers import Trackers, check_trackers
from roboreel.view import plot_curves

Config = TypeVar("Config", bound=RunConfig)


def run_training(
    config: Config,
    begin: Callable[[Config, torch.device], tuple[Learner, TrainingFrames]],
    trials: Trials | None = None,
) -> TrainResult:
    """Train what `begin` makes, or go on training it; returns when `config.steps` are done."""
    with joined() as processes:
        # Refused before anything is written: another run's folder, a device or a dataset that is not there.
        check_batches(config, processes)
        device = pick_device(local_device(config.device))
        find_start(config)
        check_trackers(config)
        with processes.in_turn():  # the first takes the data in, where that is yet to be done
            learner, frames = begin(config, device)
        if trials is not None and processes.is_first:
            trials.check(learner.policy, learner.fps)
        with checkpoint.run_lock(config.output_dir) if processes.is_first else contextlib.nullcontext():
            run(config, learner, frames, device, trials)
        processes.wait()  # for what the first has written
        return result_of(config)


def run(
    config: RunConfig, learner: Learner, frames: TrainingFrames, device: torch.device, trials: Trials | None
) -> None:
    """Train the policy from where the run stands to `config.steps`."""
    # Where: a new run, or the last checkpoint of one.
    processes, out, last = current(), config.output_dir, find_start(config)
    processes.wait()  # until all have looked, before the first writes
    start = 0 if last is None else int(last.name)
    told = {"config": checkpoint.plain(config), "dataset": frames.identity}

    # Data: uint8 until it is on the device.
    order = DrawnOrder(frames.indices, config, start, processes.part)
    loader = DataLoader(
        frames.dataset, batch_sampler=order, num_workers=config.num_workers, pin_memory=device.type == "cuda"
    )

    # Model.
    if last is not None:
        state = learner.read(last)
        check_offline(config, state)
        check_same_run(config, state, frames.identity)
        learner.load(state)
    processes.share([*learner.policy.parameters(), *learner.policy.buffers()])
    if processes.is_first:
        checkpoint.begin_run(out, config, start)

    # Loop.
    line = Line(config.batch_size)
    with Trackers(config, start) if processes.is_first else contextlib.nullcontext() as trackers:
        clock = time.perf_counter()
        shown: dict[str, Any] = {"mininterval": bar_interval_s(), "disable": not processes.is_first}
        progress = tqdm(loader, "train", initial=start, total=config.steps, unit="step", **shown)
        for step, batch in enumerate(progress, start + 1):
            batch = on_device(batch, device)
            data_s, clock = since(clock)

            found, lr = take_step(config, learner, batch, step, order)
            update_s, clock = since(clock)

            if trackers is None:
                continue
            line.add(loss=found.loss, grad_norm=found.norm, data_s=data_s, update_s=update_s)
            if step % config.log_every == 0 or step == config.steps:
                progress.set_postfix(line.shown(lr), refresh=False)
                trackers.write(step, line.write(out, step, lr))
            if step % config.save_every == 0 or step == config.steps:
                with checkpoint.new_checkpoint(out, step) as folder:
                    learner.write(folder, step, told)
                plot_curves(out / checkpoint.METRICS, out / "curves.png")
                if trials is not None:
                    trackers.write(step, trials.run(checkpoint.folder_of(out, step)))
                clock = time.perf_counter()  # saving and trying are neither waiting nor computing


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Return what of a batch is tensors, on the device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items() if torch.is_tensor(value)}


def take_step(
    config: RunConfig, learner: Learner, batch: Mapping[str, Tensor], step: int, order: Batches
) -> tuple[Gradient, float]:
    """Change the weights by what one batch has to say; return that, and the learning rate."""
    torch.manual_seed(step_seed(config.seed, step))
    found = learner.learn(batch, step)
    check_finite(config, step, order, found)
    return found, learner.apply()


def find_start(config: RunConfig) -> Path | None:
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


def last_offline_step(state: Mapping[str, Any]) -> int | None:
    """Return the step after which the run of a checkpoint went online; None where it has not."""
    if "online" not in state:
        return None
    return int(state["config"]["steps"] - state["online"]["options"]["online_steps"])


def check_offline(config: RunConfig, state: dict[str, Any]) -> None:
    """Refuse to go on without a buffer where a run has one already."""
    if (begun := last_offline_step(state)) is not None:
        raise ConfigError(
            f"--resume: the run in {config.output_dir} went online after step {begun}: give its --env and its online "
            f"options again, with --online-steps {config.steps - begun}"
        )


def check_same_run(config: RunConfig, state: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse to resume with other options or other data: the losses would silently be those of another run."""
    now = checkpoint.plain(config)
    defaults = {option.name: option.default for option in dataclasses.fields(config)}
    then = {**defaults, **state["config"]}  # an option that there was not yet
    changed = [name for name in now if name not in config.FREE_TO_CHANGE and now[name] != then[name]]
    if changed:
        told = "; ".join(f"{name} was {then[name]!r} and is now {now[name]!r}" for name in changed)
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


def check_finite(config: RunConfig, step: int, order: Batches, found: Gradient) -> None:
    """Stop before a bad gradient spoils the weights, and leave behind what is needed to look into it."""
    if math.isfinite(found.loss) and math.isfinite(found.norm):
        return
    path = config.output_dir / "bad_batch.json"
    rate = "--lr" if hasattr(config, "lr") else "--policy.optimizer_lr"
    content = {"step": step, "loss": str(found.loss), "grad_norm": str(found.norm), "indices": order.batch(step - 1)}
    if current().is_first:
        checkpoint.write_json(path, content)
    raise LossNotFiniteError(
        f"step {step}: the loss is {found.loss} and its gradient's norm {found.norm}; the batch's indices are in "
        f"{path}. Look at those frames for values that are not finite, or lower {rate}"
    )
