"""A run that goes online: its offline steps, if it has any, and then the online ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboreel import checkpoint
from roboreel.envs import VectorEnvs
from roboreel.errors import ConfigError
from roboreel.train.learner import Trials
from roboreel.train.lerobot.actor import check_fits
from roboreel.train.lerobot.checkpoints import load_processors
from roboreel.train.lerobot.frames import Learned, open_frames
from roboreel.train.lerobot.learner import LeRobotLearner
from roboreel.train.lerobot.policy import ACTION, make_config
from roboreel.train.loop import check_same_run, find_start, last_offline_step, pick_device, run
from roboreel.train.metrics import TrainResult, result_of
from roboreel.train.online.options import OnlineOptions, Scene
from roboreel.train.online.rollouts import Rollouts, check_capacity, restore
from roboreel.train.online.stage import BUFFER, Online, Stage, begin_buffer
from roboreel.train.options import NOTHING, LeRobotTrainConfig
from roboreel.train.processes import launched
from roboreel.train.trackers import check_trackers


def train_online(
    config: LeRobotTrainConfig, options: OnlineOptions, scene: Scene, trials: Trials | None = None
) -> TrainResult:
    """Train one of LeRobot's policies, the last `online_steps` of its steps online; or go on doing so.

    Raises:
        ConfigError: the options contradict each other, the dataset, the environment or what is in `output_dir`.
        RolloutError: the process that rolls out has failed.
    """
    device = pick_device(config.device)
    last = find_start(config)
    check_trackers(config)
    check_options(config, options)
    with scene.make(1) as envs, checkpoint.run_lock(config.output_dir):
        assert envs.max_steps is not None
        if last is None or not (last / BUFFER).is_dir():  # else there was such a buffer already, and is, on this disk
            check_capacity(options, scene, envs.max_steps, config.output_dir)
        stage = begin(config, options, scene, envs, device)
        check_fits(stage.learner.parts.config, stage.learner.fps, envs)
        stage = replace(stage, trials=trials)
        if trials is not None:
            trials.check(stage.learner.policy, stage.learner.fps)
        start = 0 if last is None else int(last.name)
        state = {} if last is None else stage.learner.read(last)
        check_first(config, options, state, start)
        if start < stage.first:
            assert stage.frames is not None
            run(replace(config, steps=stage.first), stage.learner, stage.frames, device, trials)
            start, last = stage.first, None
        elif last is not None:
            check_same_run(config, state, {} if stage.frames is None else stage.frames.identity)
            stage.learner.load(state)
        episodes = begin_buffer(stage, last)
        checkpoint.begin_run(config.output_dir, config, start)
        Online(stage, start, episodes).run()
    return result_of(config)


def check_options(config: LeRobotTrainConfig, options: OnlineOptions) -> None:
    """Refuse what contradicts itself."""
    if launched() > 1:
        raise ConfigError(
            f"--online-steps: one process rolls out and learns, and {launched()} were launched; start it without "
            "torchrun or accelerate launch"
        )
    if options.online_steps > config.steps:
        raise ConfigError(f"--online-steps {options.online_steps} of --steps {config.steps}: they are the last of them")
    if config.loader != "roboreel":
        raise ConfigError("--online-steps: LeRobot's loader reads no buffer; leave --loader out")
    if config.dataset == NOTHING and options.online_steps != config.steps:
        raise ConfigError(
            f"--dataset none has nothing for {config.steps - options.online_steps} offline steps: give as many "
            "--online-steps as --steps"
        )


def check_first(config: LeRobotTrainConfig, options: OnlineOptions, state: dict[str, Any], start: int) -> None:
    """Refuse to go on, after step `start`, with other steps online than the run has had."""
    first, begun = config.steps - options.online_steps, last_offline_step(state)
    if begun is not None and begun != first:
        raise ConfigError(
            f"--steps {config.steps} --online-steps {options.online_steps}: the run in {config.output_dir} went online "
            f"after step {begun}; give --online-steps {config.steps - begun}"
        )
    if begun is None and start > first:
        raise ConfigError(
            f"--steps {config.steps} --online-steps {options.online_steps}: the run in {config.output_dir} has done "
            f"{start} steps offline; give --online-steps {config.steps - start} or fewer"
        )


def begin(
    config: LeRobotTrainConfig, options: OnlineOptions, scene: Scene, envs: VectorEnvs, device: torch.device
) -> Stage:
    """Open the data, or make some by random actions, and make a policy for them with fresh weights."""
    policy = make_config(config.policy, config.policy_options, device, amp=config.amp)
    from_nothing = config.dataset == NOTHING
    if from_nothing:
        last = checkpoint.latest(config.output_dir)
        buffer = first_buffer(config.output_dir, options, scene, config.seed, last)
        learned = with_bounds(open_frames(replace(config, dataset=buffer), policy), envs)
    else:
        learned = open_frames(config, policy)
    torch.manual_seed(config.seed)
    learner = LeRobotLearner(config, policy, learned, device)
    if from_nothing and last is not None:  # the statistics are those of its first frames
        before, after = load_processors(policy, last, str(device))
        learner.parts = replace(learner.parts, before=before, after=after)
    frames, windows = learned.frames, learned.frames.dataset.delta_timestamps
    return Stage(config, options, scene, learner, None if from_nothing else frames, windows, device)


def first_buffer(out: Path, options: OnlineOptions, scene: Scene, seed: int, last: Path | None) -> Path:
    """Return a buffer with frames of random actions, or as a checkpoint left it."""
    buffer = out / BUFFER
    if last is not None:
        if not (last / BUFFER).is_dir():
            raise ConfigError(f"--resume: {last} holds no {BUFFER}; begin anew with another --output-dir")
        restore(last / BUFFER, buffer)
        return buffer
    shutil.rmtree(buffer, ignore_errors=True)
    wanted = max(1, options.online_buffer_seed_size)
    capacity = options.capacity
    with Rollouts(scene, options, buffer) as rollouts:
        actor, rolled = rollouts.random_actor(), 0
        while rollouts.frames < (min(wanted, capacity) if isinstance(capacity, int) else wanted):
            before = rollouts.frames
            rollouts.roll(actor, [seed + rolled])
            rolled += 1
            if rollouts.frames == before:  # a ring in bytes is full
                break
    return buffer


def with_bounds(learned: Learned, envs: VectorEnvs) -> Learned:
    """Return the data with the actions' bounds as their least and greatest, where there are bounds."""
    low, high = envs.actions.low, envs.actions.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return learned
    stats: dict[str, Any] = {**learned.stats}
    stats[ACTION] = {**stats[ACTION], "min": low.astype(np.float32), "max": high.astype(np.float32)}
    return replace(learned, stats=stats)
