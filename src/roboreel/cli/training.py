"""`roboreel train`: the options are those of `roboreel.train.TrainConfig`, or of `LeRobotTrainConfig`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import tyro

from roboreel._optional import require
from roboreel.errors import ConfigError

PROGRAM = "roboreel train"


def run(arguments: Sequence[str]) -> None:
    require("torch", extra="torch", purpose="training")
    from roboreel.evaluate.trials import Trials
    from roboreel.train import LeRobotTrainConfig, TrainConfig, train
    from roboreel.train.metrics import describe
    from roboreel.train.options import LeRobotPolicy

    policy, arguments = take_policy(arguments)
    if policy == "bc":
        told = f"{TrainConfig.__doc__} --policy {'|'.join(get_args(LeRobotPolicy))} trains one of LeRobot's instead."
        config, trial, online = parse(TrainConfig, PROGRAM, told, arguments)
    elif policy in get_args(LeRobotPolicy):
        options, rest = take_policy_options(arguments)
        told = str(LeRobotTrainConfig.__doc__)
        if {"-h", "--help"} & set(rest):
            told += f"\n\nOptions of {policy}, and their defaults:\n\n{policy_defaults(policy)}"
        config, trial, online = parse(LeRobotTrainConfig, f"{PROGRAM} --policy {policy}", told, rest)
        config = dataclasses.replace(config, policy=policy, policy_options=options)
    else:
        raise ConfigError(f"--policy {policy}: give bc, {', '.join(get_args(LeRobotPolicy))}")
    is_online = online is not None and online.online_steps > 0
    trials = Trials(trial, config.output_dir, config.device) if trial.env and trial.eval_episodes else None
    result = run_online(config, online, trial, trials) if is_online else train(config, trials)
    if int(os.environ.get("RANK", "0")):  # of several processes the first tells
        return
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        print(f"{count} processes")
    print(describe(result))
    print(f"{result.checkpoint}\n{config.output_dir / 'curves.png'}")
    if trials is not None:
        print(config.output_dir / "eval" / result.checkpoint.name / "eval.json")


def run_online(config: Any, online: Any, trial: Any, trials: Any) -> Any:
    """Train with an online part, in the environment of the trials."""
    from roboreel.evaluate.options import parse_keys, parse_options
    from roboreel.train.online.options import Scene
    from roboreel.train.online.training import train_online

    if trial.env is None:
        raise ConfigError("--online-steps learn from what the policy does somewhere: give --env, as --env pusht")
    options, keys = parse_options(trial.env_options), parse_keys(trial.env_keys)
    return train_online(config, online, Scene(trial.env, options, keys, trial.env_fps, trial.eval_max_steps), trials)


def parse(kind: type[Any], program: str, told: str, arguments: Sequence[str]) -> tuple[Any, Any, Any]:
    """Parse options of a run, of its trials, and of its online part where it may have one, from one command line."""
    from roboreel.evaluate.trials import TrialOptions
    from roboreel.train import LeRobotTrainConfig
    from roboreel.train.online.options import OnlineOptions

    unnamed = tyro.conf.arg(name="")
    fields = [("run", Annotated[kind, unnamed]), ("trial", Annotated[TrialOptions, unnamed])]
    if issubclass(kind, LeRobotTrainConfig):
        fields.append(("online", Annotated[OnlineOptions, unnamed]))
    command: Any = tyro.cli(
        dataclasses.make_dataclass("Command", fields), prog=program, description=told, args=arguments
    )
    return command.run, command.trial, getattr(command, "online", None)


def policy_defaults(policy: str) -> str:
    """Return the options of one of LeRobot's policies."""
    from roboreel.train.lerobot.policy import defaults_of

    return "  ".join(f"--policy.{name}={value}" for name, value in defaults_of(policy).items())


def take_policy(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return which policy is asked for, and the other arguments.

    >>> take_policy(["--steps", "5", "--policy", "act", "--policy.chunk_size=20"])
    ('act', ['--steps', '5', '--policy.chunk_size=20'])
    """
    policy, rest = "bc", []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--policy":
            if not left:
                raise ConfigError("--policy: give the name of one, as --policy act")
            policy = left.pop(0)
        elif argument.startswith("--policy="):
            policy = argument.partition("=")[2]
        else:
            rest.append(argument)
    return policy, rest


def take_policy_options(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the policy's own options, in its words and sorted, and the other arguments.

    >>> take_policy_options(["--policy.chunk-size", "20", "--steps", "5", "--policy.use_vae=false"])
    (('chunk_size=20', 'use_vae=false'), ['--steps', '5'])
    """
    options: dict[str, str] = {}
    rest = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--policy."):
            rest.append(argument)
            continue
        name, given, value = argument.removeprefix("--policy.").partition("=")
        if not given:
            if not left:
                raise ConfigError(f"{argument}: give a value, as {argument}=20")
            value = left.pop(0)
        options[name.replace("-", "_")] = value  # the last one counts
    return tuple(f"{name}={value}" for name, value in sorted(options.items())), rest
