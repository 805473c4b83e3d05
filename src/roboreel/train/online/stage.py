"""The online part of a run: roll out, learn from a mix, and so on."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from roboreel import LeRobotDatasetV2, MultiLeRobotDatasetV2, RoboreelWarning, checkpoint
from roboreel.errors import ConfigError
from roboreel.train.learner import TrainingFrames, Trials
from roboreel.train.lerobot.actor import LeRobotActor
from roboreel.train.lerobot.checkpoints import write_policy
from roboreel.train.lerobot.learner import LeRobotLearner
from roboreel.train.loop import on_device, take_step
from roboreel.train.metrics import Line, bar_interval_s, since
from roboreel.train.online.apart import Place, RolloutProcess
from roboreel.train.online.mixing import MixedOrder
from roboreel.train.online.options import OnlineOptions, Scene
from roboreel.train.online.rollouts import Rolled, Rollouts, restore, told
from roboreel.train.options import LeRobotTrainConfig
from roboreel.train.seeds import step_seed
from roboreel.train.trackers import Trackers
from roboreel.view import plot_curves

BUFFER, ROLLOUTS = "online_buffer", "rollouts.jsonl"
"""In a run's folder; a checkpoint has a `BUFFER` of its own, as the buffer was then."""


@dataclass(frozen=True)
class Stage:
    """A run that goes online."""

    config: LeRobotTrainConfig
    """Its `steps` are those of the whole run."""
    options: OnlineOptions
    scene: Scene
    learner: LeRobotLearner
    frames: TrainingFrames | None
    """The offline ones; None: there are none."""
    windows: Mapping[str, Sequence[float]]
    """What the policy learns from: key -> seconds from a frame."""
    device: torch.device
    trials: Trials | None = None

    @property
    def buffer(self) -> Path:
        return self.config.output_dir / BUFFER

    @property
    def first(self) -> int:
        """The step that comes before the first online one."""
        return self.config.steps - self.options.online_steps

    def rounds(self, start: int) -> Iterator[tuple[bool, int, int]]:
        """Yield the steps from one rollout to the next: whether one comes first, the step before, the last."""
        between = self.options.online_steps_between_rollouts
        while start < self.config.steps:
            done = (start - self.first) % between
            stop = min(start + between - done, self.config.steps)
            yield done == 0, start, stop
            start = stop


class Rolling(Protocol):
    """Who rolls out."""

    def begin(self, seeds: list[int]) -> None:
        """Have one episode a seed rolled out with the weights as they are."""

    def result(self) -> list[Rolled]:
        """Return what came of what was begun, once it is in the buffer."""

    def snapshot(self, dest: Path) -> None: ...

    def close(self) -> None: ...


class RollingHere:
    """Rolls out in this process, between the steps."""

    def __init__(self, stage: Stage) -> None:
        self._rollouts = Rollouts(stage.scene, stage.options, stage.buffer)
        parts = stage.learner.parts
        self._policy = parts.policy
        self._actor = LeRobotActor(parts.policy, parts.before, parts.after)
        self._found: list[Rolled] = []

    def begin(self, seeds: list[int]) -> None:
        self._policy.eval()
        self._found = self._rollouts.roll(self._actor, seeds)

    def result(self) -> list[Rolled]:
        found, self._found = self._found, []
        return found

    def snapshot(self, dest: Path) -> None:
        self._rollouts.snapshot(dest)

    def close(self) -> None:
        self._rollouts.close()


class RollingApart:
    """Rolls out in another process, while this one learns from what came before."""

    def __init__(self, stage: Stage) -> None:
        self._parts = stage.learner.parts
        with tempfile.TemporaryDirectory() as folder:
            write_policy(stage.learner.parts, Path(folder), stage.learner.fps)
            self._process = RolloutProcess(Place(stage.scene, stage.options, stage.buffer, Path(folder)))
        self._is_busy = False

    def begin(self, seeds: list[int]) -> None:
        self._process.begin(seeds, self._parts.policy.state_dict())
        self._is_busy = True

    def result(self) -> list[Rolled]:
        found, self._is_busy = self._process.result() if self._is_busy else [], False
        return found

    def snapshot(self, dest: Path) -> None:
        self._process.snapshot(dest)

    def close(self) -> None:
        self._process.close()


class Online:
    """The online steps of a run, from one on."""

    def __init__(self, stage: Stage, start: int, episodes: int) -> None:
        self._stage, self._start, self._episodes = stage, start, episodes
        self._out = stage.config.output_dir
        self._rollout_s = 0.0
        """Since the last step."""
        self._rolling: Rolling = RollingApart(stage) if stage.options.online_rollouts_apart else RollingHere(stage)

    def run(self) -> None:
        """Learn, to the end of the run."""
        stage, config = self._stage, self._stage.config
        try:
            clock = time.perf_counter()
            self._seed_buffer()
            self._rollout_s = since(clock)[0]
            order, loader = self._mixed()
            line = Line(config.batch_size)
            progress = tqdm(
                desc="online", initial=self._start, total=config.steps, unit="step", mininterval=bar_interval_s()
            )
            with progress, Trackers(config, self._start) as trackers:
                for rolls_first, start, stop in stage.rounds(self._start):
                    clock = time.perf_counter()
                    if rolls_first:
                        self._take(start)
                        self._begin()
                    if not stage.options.online_rollouts_apart:
                        self._take(start)
                    self._rollout_s += since(clock)[0]
                    order.start, order.stop = start, stop
                    self._learn(order, loader, line, trackers, progress)
        finally:
            self._rolling.close()

    def _learn(self, order: MixedOrder, loader: DataLoader[Any], line: Line, trackers: Trackers, progress: Any) -> None:
        config, learner = self._stage.config, self._stage.learner
        clock = time.perf_counter()
        for step, batch in enumerate(loader, order.start + 1):
            ready = on_device(batch, self._stage.device)
            data_s, clock = since(clock)
            found, lr = take_step(config, learner, ready, step, order)
            update_s, clock = since(clock)
            rollout_s, self._rollout_s = self._rollout_s, 0.0
            line.add(loss=found.loss, grad_norm=found.norm, data_s=data_s, update_s=update_s, rollout_s=rollout_s)
            progress.update()
            if step % config.log_every == 0 or step == config.steps:
                progress.set_postfix(line.shown(lr), refresh=False)
                trackers.write(step, line.write(self._out, step, lr))
            if step % config.save_every == 0 or step == config.steps:
                self._save(step, trackers)
                clock = time.perf_counter()  # saving and trying are neither waiting nor computing

    def _save(self, step: int, trackers: Trackers) -> None:
        stage = self._stage
        clock = time.perf_counter()
        self._take(step)
        self._rollout_s += since(clock)[0]
        content = {
            "config": checkpoint.plain(stage.config),
            "dataset": {} if stage.frames is None else stage.frames.identity,
            "online": {"options": checkpoint.plain(stage.options), "scene": checkpoint.plain(stage.scene)},
            "episodes": self._episodes,
        }
        with checkpoint.new_checkpoint(self._out, step) as folder:
            stage.learner.write(folder, step, content)
            self._rolling.snapshot(folder / BUFFER)
        drop_buffers(self._out, stage.options.online_buffers_kept)
        plot_curves(self._out / checkpoint.METRICS, self._out / "curves.png")
        if stage.trials is not None:
            trackers.write(step, stage.trials.run(checkpoint.folder_of(self._out, step)))

    def _begin(self) -> None:
        count = self._stage.options.online_rollout_n_episodes
        first = step_seed(self._stage.config.seed, 0) % (1 << 31) + self._episodes
        self._rolling.begin([first + k for k in range(count)])
        self._episodes += count

    def _take(self, step: int) -> None:
        """Write down what has been rolled out since."""
        found = self._rolling.result()
        frames = len(LeRobotDatasetV2(self._stage.buffer, readonly=True)) if found else 0
        with (self._out / ROLLOUTS).open("a", encoding="utf-8") as file:
            for rolled in found:
                file.write(json.dumps(told(rolled, step, frames)) + "\n")

    def _seed_buffer(self) -> None:
        if self._start > self._stage.first:
            return
        wanted = max(1, self._stage.options.online_buffer_seed_size)
        if isinstance(capacity := self._stage.options.capacity, int):
            wanted = min(wanted, capacity)
        while _frames(self._stage.buffer) < wanted:
            before = _frames(self._stage.buffer)
            self._begin()
            self._take(self._start)
            if _frames(self._stage.buffer) == before:  # a ring in bytes is full
                return

    def _mixed(self) -> tuple[MixedOrder, DataLoader[Any]]:
        stage, config = self._stage, self._stage.config
        online = LeRobotDatasetV2(stage.buffer, readonly=True, image_dtype="uint8")
        offline = None if stage.frames is None else stage.frames.dataset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoboreelWarning)  # of keys that one of the two has more, which nobody needs
            joined = online if offline is None else MultiLeRobotDatasetV2([offline, online])
            joined.set_delta_timestamps(stage.windows, on_hole=config.on_hole)
        drop = int(getattr(stage.learner.parts.config, "drop_n_last_frames", 0))
        order = MixedOrder(
            offline,
            online,
            stage.options.online_sampling_ratio,
            (drop, max(drop, stage.options.online_drop_n_last_frames)),
            config.batch_size,
            config.seed,
        )
        loader = DataLoader(
            joined,
            batch_sampler=order,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=stage.device.type == "cuda",
        )
        return order, loader


def drop_buffers(out: Path, kept: int) -> None:
    """Remove the copies of the buffer in all but the newest checkpoints; the policies stay."""
    checkpoints, gone = out / checkpoint.CHECKPOINTS, f".{BUFFER}.gone"
    copies = sorted(checkpoints.glob(f"[0-9]*/{BUFFER}"), key=lambda copy: int(copy.parent.name))
    for copy in copies[:-kept]:
        copy.rename(copy.with_name(gone))  # so that none is there in part, wherever this is killed
    for copy in checkpoints.glob(f"[0-9]*/{gone}"):
        shutil.rmtree(copy)


def begin_buffer(stage: Stage, last: Path | None) -> int:
    """Make the buffer and the list of rollouts ready to go on from a checkpoint, or from none.

    Returns the episodes rolled out by then.
    """
    path = stage.config.output_dir / ROLLOUTS
    if last is None or not (last / BUFFER).is_dir():
        if stage.frames is not None:
            shutil.rmtree(stage.buffer, ignore_errors=True)
        path.unlink(missing_ok=True)
        return 0
    state = stage.learner.read(last)
    now = {"options": checkpoint.plain(stage.options), "scene": checkpoint.plain(stage.scene)}
    check_same(now["options"], state["online"]["options"], stage.options.FREE_TO_CHANGE)
    check_same(now["scene"], state["online"]["scene"], ())
    if stage.frames is not None:  # else it is there already, as what the policy was made for
        restore(last / BUFFER, stage.buffer)
    episodes = int(state["episodes"])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    kept = lines[:episodes]  # of those of the checkpoint's own step some came after it
    path.write_text("".join(line for line in kept if line.endswith("\n")), encoding="utf-8")
    return episodes


def check_same(now: dict[str, Any], then: dict[str, Any], free: tuple[str, ...]) -> None:
    """Refuse to resume with other options."""
    changed = [name for name in now if name not in free and now[name] != then.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {then.get(name)!r} and is now {now[name]!r}" for name in changed)
        raise ConfigError(f"--resume goes on with the same options: {listed}")


def _frames(buffer: Path) -> int:
    return len(LeRobotDatasetV2(buffer, readonly=True)) if buffer.is_dir() else 0
