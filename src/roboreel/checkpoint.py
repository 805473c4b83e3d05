"""A training run on disk: its configuration, its checkpoints, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

from roboreel.errors import ConfigError, SourceError
from roboreel.view import read_metrics

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
POLICY = "policy.pt"
TRAINING = "training.pt"
PRETRAINED = "pretrained_model"
"""A policy of LeRobot's in a checkpoint."""
LAST = "last"
"""A link to the newest checkpoint, where LeRobot's tools look."""
LOCK, LOCK_OWNER = "train.lock", "train.lock.owner"


@contextlib.contextmanager
def run_lock(output_dir: Path) -> Iterator[None]:
    """Make the folder of a run and be the only one who trains in it, until the block is left or the process ends.

    Raises:
        ConfigError: another process trains there; the message names it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock, owner = filelock.FileLock(output_dir / LOCK), output_dir / LOCK_OWNER
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        try:
            holder = owner.read_text(encoding="utf-8")
        except OSError:  # it has only just begun
            holder = "another process"
        raise ConfigError(
            f"{output_dir} is being trained in by {holder}: wait for its end, or give another --output-dir"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on host {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def latest(output_dir: Path) -> Path | None:
    """Return the checkpoint with the highest step, e.g. `outputs/run/checkpoints/004000`, or None."""
    folder = output_dir / CHECKPOINTS
    there = [path for path in folder.iterdir() if re.fullmatch(r"\d+", path.name)] if folder.is_dir() else []
    return max(there, key=lambda path: int(path.name), default=None)


def folder_of(output_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies, e.g. `outputs/run/checkpoints/004000`."""
    return output_dir / CHECKPOINTS / f"{step:06d}"


def steps_done(output_dir: Path) -> int:
    """Return the step of the last checkpoint in `output_dir`; 0 where there is none."""
    last = latest(output_dir)
    return 0 if last is None else int(last.name)


def policy_file(path: Path) -> Path:
    """Return the `policy.pt` of a run, of a checkpoint, or itself.

    Raises:
        ConfigError: there is none.
    """
    for candidate in (path, path / POLICY, (latest(path) or path) / POLICY):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{path} holds no checkpoint: give a run's output folder, or one of the folders in its {CHECKPOINTS}/"
    )


def pretrained_folder(path: Path) -> Path | None:
    """Return the `pretrained_model` of a run, of a checkpoint, or itself; None where it is no policy of LeRobot's."""
    for candidate in (path, path / PRETRAINED, (latest(path) or path) / PRETRAINED):
        if (candidate / "model.safetensors").is_file() and (candidate / "config.json").is_file():
            return candidate
    return None


def check_policy(folder: Path, wanted: str) -> None:
    """Refuse a checkpoint of another policy than the one `wanted`, as "act"; "bc" is the built-in one.

    Raises:
        ConfigError: it is of another.
        SourceError: it holds none, or is damaged.
    """
    found = policy_name(folder / PRETRAINED) if (folder / PRETRAINED).is_dir() else "bc"
    if found != wanted:
        raise ConfigError(f"{folder} is a checkpoint of the policy {found!r}: go on with --policy {found}")


def policy_name(pretrained: Path) -> str:
    """Return whose the weights in a folder `pretrained_model` are, e.g. "act"."""
    return str(read_json(pretrained / "config.json").get("type"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of a checkpoint.

    Raises:
        SourceError: it is gone, or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as a part of a checkpoint ({error})") from error
    return content


def check_rate(fps: float, envs_fps: float) -> None:
    """Refuse to let a policy of data of `fps` (Hz) act where there are `envs_fps` steps a second."""
    if not math.isclose(fps, envs_fps, rel_tol=1e-3):
        raise ConfigError(
            f"the policy is of data of {fps:g} Hz, and the environment runs at {envs_fps:g} Hz: where it only tells a "
            f"wrong rate, give --env-fps {fps:g}; else data of {envs_fps:g} Hz would do"
        )


def identity(file: Path) -> dict[str, Any]:
    """Return what tells the weights in a `policy.pt` from all others: their hash, and the step they are of."""
    step = load(file, torch.device("cpu")).get("step")
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "step": step}


@contextlib.contextmanager
def new_checkpoint(output_dir: Path, step: int) -> Iterator[Path]:
    """Give a folder to write the checkpoint of a step into; it gets its name once all of it is on disk.

    The metrics of the steps before it are on disk then too.
    """
    with (output_dir / METRICS).open("ab") as file:
        os.fsync(file.fileno())
    final = folder_of(output_dir, step)
    temporary = final.with_name(f".{final.name}.tmp")
    for leftover in (final, temporary):  # of an earlier run that was killed here, or resumed from further back
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    temporary.rename(final)
    if (final / PRETRAINED).is_dir():
        _link_last(final)


def _link_last(newest: Path) -> None:
    """Point `last` at a checkpoint, as LeRobot's tools expect."""
    last, link = newest.with_name(LAST), newest.with_name(f".{LAST}.tmp")
    if last.is_dir() and not last.is_symlink():  # whoever copied the run has followed the link
        shutil.rmtree(last)
    link.unlink(missing_ok=True)
    link.symlink_to(newest.name)
    link.replace(last)


def load(file: Path, device: torch.device) -> dict[str, Any]:
    """Read tensors and plain values; a file that holds code is refused.

    Raises:
        SourceError: the file is not a checkpoint, or damaged.
    """
    try:
        content: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        raise SourceError(f"{file} cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    return content


def plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as what JSON can hold: paths become strings."""
    text = json.dumps(dataclasses.asdict(config), default=str)
    values: dict[str, Any] = json.loads(text)
    return values


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_metrics(output_dir: Path, step: int) -> None:
    """Refuse to go on after `step` where its metrics are gone: the totals of the run would silently be wrong.

    Raises:
        ConfigError: `metrics.jsonl` is not there, or does not reach `step`.
        SourceError: it holds something else.
    """
    metrics = output_dir / METRICS
    if not metrics.is_file() or step not in read_metrics(metrics).get("step", ()):
        raise ConfigError(
            f"--resume: {metrics} does not hold the metrics of step {step}, which the run goes on from; "
            "put it back, or begin anew with another --output-dir"
        )


def begin_run(output_dir: Path, config: Any, step: int) -> None:
    """Write `config.json`, and drop the lines of metrics after `step`, which the run writes (again).

    A last line that a kill cut short goes too.
    """
    write_json(output_dir / CONFIG, plain(config))
    metrics = output_dir / METRICS
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if step else []  # else of no matter
    kept = [line for line in lines if line.endswith("\n") and json.loads(line).get("step", step + 1) <= step]
    temporary = metrics.with_name(f".{METRICS}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(metrics)
