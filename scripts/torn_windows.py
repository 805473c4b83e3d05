"""Count torn windows: DataLoader workers read a ring while a writer overwrites, grows, edits, and is killed.

    python -m scripts.torn_windows --windows 1000000

Every frame says in every key which episode and which frame it is, with a checksum, images included. A window counts as
torn where its frames are of two episodes, a key disagrees, bytes of a frame are mixed, or the padding is wrong.
`--broken` switches the protocol off in readers and writer: it must find torn windows, or the count proves nothing.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from roboreel import EpisodeNotFoundError, LeRobotDatasetV2, StorageDirCorruptError
from scripts.reliability import record
from scripts.telling_frames import CAMERA, EPISODE_FRAMES, FPS, Array, Mode, deltas_of, episode_data, problems, tokens


@dataclass
class Args:
    """What is run, and for how long."""

    windows: int = 1_000_000
    """Windows to check, and more until the ring went round and was grown, edited, and its writer killed meanwhile."""
    mode: Mode = "memmap"
    """How the camera is stored; none, with --workers 0: batches of numbers, which go a shorter way between writes."""
    workers: int = 2
    start: Literal["fork", "spawn", "forkserver"] = "fork"
    """How the workers begin."""
    batch: int = 128
    capacity: int = 600
    """Frames of the ring; it grows by a sixth now and then."""
    kill_s: float = 0.5
    """Mean time after which the writer is killed with SIGKILL, and another one begins."""
    rest_s: float = 0.2
    """Pause after each episode of PNG files: a batch that meets a write whenever it is read gives up after 10 s."""
    minutes: float = 60.0
    """Stop after so long at the latest."""
    seed: int = 0
    broken: bool = False
    """Switch the reading protocol off; the count of torn windows must then not be 0."""
    into: str | None = None
    """Record the figures under this name in docs/results/reliability.json."""


# The writer


class Done(ctypes.Structure):
    """What writers have done since the readers began, in memory that outlives each of them."""

    _fields_ = [(name, ctypes.c_int64) for name in ("growths", "edits", "episodes", "frames")]
    growths: int
    edits: int
    episodes: int
    frames: int


def write_for_ever(root: Path, args: Args, seed: int, grow_to: int, done: Done) -> None:
    """Overwrite the ring and edit it until killed; at first give it room for `grow_to` frames."""
    if args.broken:
        break_writer()
    rng, mode = np.random.default_rng(seed), args.mode
    capacity = json.loads((root / "metadata.json").read_bytes())["capacity"]
    dataset = LeRobotDatasetV2(root, buffer_capacity=grow_to)
    done.growths += grow_to > capacity
    numbers = dataset.get_data_by_key("tag")[:, 0]
    number = int(numbers.max()) + 1
    while True:
        length = int(rng.integers(*EPISODE_FRAMES))
        dataset.add_episodes(episode_data(number, length, mode), no_flush=bool(rng.random() < 0.95))
        number += 1
        done.episodes += 1
        done.frames += length
        if rng.random() < (0.2 if mode in ("png", "video") else 0.03):
            with dataset.edit("note") as notes:  # of all frames: the windows after it are all of one version
                version = notes[:, 0].max() + np.uint64(1)
                notes[:, 1] += (version - notes[:, 0]) * np.uint64(0x9E3779B97F4A7C15)
                notes[:, 0] = version
            done.edits += 1
        if rng.random() < 0.05:
            time.sleep(0.002)
        if mode == "png":  # a batch of files takes longer to read than so short an episode to write: it would starve
            time.sleep(args.rest_s)
        if mode == "none":
            time.sleep(rng.exponential(0.01))


def break_writer() -> None:
    """Have the writer leave the owners of what it overwrites as they are until the end."""
    from roboreel.store.slots import SlotFiles

    whole = SlotFiles.write_owners

    def careless(self: SlotFiles, slot: int, words: Array) -> None:
        if np.any(words):
            time.sleep(0.002)  # with new frames under old owners, so that readers meet it on a busy machine too
            whole(self, slot, words)

    SlotFiles.write_owners = careless  # type: ignore[method-assign]


def break_reader() -> None:
    """Have readers take what they gather, without looking whether a writer was there meanwhile."""
    from roboreel.dataset.quick import Quick
    from roboreel.store import store
    from roboreel.store.attempt import UnsettledError

    def careless(self: Any, attempt: Any) -> Any:
        while True:
            self.refresh()
            try:
                return attempt(False)[:1]
            except (UnsettledError, FileNotFoundError):
                self.settle()

    store.Store.read_once = careless  # type: ignore[method-assign]
    begin = Quick.__init__

    def trusting(self: Quick, *about: Any) -> None:
        begin(self, *about)
        self._record = Unchanging()

    Quick.__init__ = trusting  # type: ignore[method-assign,assignment]


class Unchanging(bytes):
    """A live record that any other is taken for."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes)

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, bytes)


# The check


@dataclass
class Check:
    """A `collate_fn`: collates as torch does, then says which windows are torn; picklable for spawned workers."""

    mode: Mode
    broken: bool

    def __call__(self, samples: Any) -> tuple[int, int, list[str]]:
        """Return how many windows were looked at, how many had padding, and what was wrong with the torn ones."""
        from torch.utils.data import default_collate

        batch = {key: np.asarray(value) for key, value in default_collate(samples).items()}
        wrong = problems(batch, self.mode)
        padded = np.any([batch[f"{key}_is_pad"].any(axis=1) for key in deltas_of(self.mode)], axis=0)
        return len(padded), int(padded.sum()), wrong


def start_worker(_: int) -> None:
    """In a spawned worker of a broken run, which inherits no patch; harmless in a forked one."""
    break_reader()


# The run


@dataclass
class Figures:
    """What was counted."""

    windows: int = 0
    padded: int = 0
    torn: int = 0
    kills: int = 0
    growths: int = 0
    edits: int = 0
    episodes_written: int = 0
    """While there were readers."""
    times_round: float = 0.0
    """How often the ring was overwritten, counted in its frames at the beginning."""
    whole_reads: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def met_everything(self) -> bool:
        """Whether there was something of each kind to read beside."""
        return min(self.kills, self.growths, self.edits) >= 1 and self.times_round >= 1

    def take(self, done: Done, capacity: int) -> None:
        """Take over what the writers have counted."""
        self.growths, self.edits, self.episodes_written = done.growths, done.edits, done.episodes
        self.times_round = round(done.frames / capacity, 1)


def run(args: Args, root: Path) -> Figures:
    """Write and read until enough windows are counted."""
    from torch.utils.data import DataLoader

    if args.broken:
        break_reader()
    figures, began = Figures(), time.monotonic()
    writer = Writing(args, root, figures)
    dataset = LeRobotDatasetV2(root, delta_timestamps=deltas_of(args.mode), image_dtype="uint8", readonly=True)
    loader: Any = DataLoader(
        dataset,
        batch_sampler=Batches(dataset, args),
        num_workers=args.workers,
        collate_fn=Check(args.mode, args.broken),
        worker_init_fn=start_worker if args.broken else None,
        multiprocessing_context=args.start if args.workers else None,
    )
    try:
        for checked, padded, wrong in loader:
            figures.windows += checked
            figures.padded += padded
            count(figures, wrong)
            writer.step()
            if figures.windows % (64 * args.batch) < args.batch:
                read_whole(dataset, args.mode, figures)
            figures.take(writer.done, args.capacity)
            enough = figures.windows >= args.windows and (args.broken or figures.met_everything)
            if enough or time.monotonic() - began > 60 * args.minutes:
                break
    finally:
        writer.kill()
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def count(figures: Figures, wrong: list[str]) -> None:
    figures.torn += len(wrong)
    figures.examples += wrong[: 5 - len(figures.examples)]


@dataclass
class Batches:
    """Endless batches of indices drawn below the length as it is: it never shrinks."""

    dataset: LeRobotDatasetV2
    args: Args

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(self.args.seed)
        while True:
            yield rng.integers(0, len(self.dataset), self.args.batch).tolist()


class Writing:
    """The writer's process; `step` kills it now and then and starts the next, now and then with more room."""

    def __init__(self, args: Args, root: Path, figures: Figures) -> None:
        self._args, self._root, self._figures = args, root, figures
        self._rng = np.random.default_rng(args.seed)
        self._capacity = args.capacity
        image_mode = "memmap" if args.mode == "none" else args.mode
        first = LeRobotDatasetV2(root, FPS, args.capacity, use_as_fifo_buffer=True, image_mode=image_mode)
        for number in range(10):
            first.add_episodes(episode_data(number, 20, args.mode))
        first.close()
        self.done: Done = RawValue(Done)
        self._start()

    def _start(self) -> None:
        if self._figures.kills % 8 == 1 and self._capacity < 4 * self._args.capacity:
            self._capacity += self._args.capacity // 6
        seed = self._args.seed + 1000 * self._figures.kills
        target = (self._root, self._args, seed, self._capacity, self.done)
        context = multiprocessing.get_context("fork")  # the parent has numpy loaded: it starts in milliseconds
        self._process = context.Process(target=write_for_ever, args=target, daemon=True)
        self._process.start()
        self._until = time.monotonic() + self._rng.exponential(self._args.kill_s)

    def step(self) -> None:
        if not self._process.is_alive():
            raise SystemExit(f"the writer ended by itself, with exit code {self._process.exitcode}")
        if time.monotonic() > self._until:
            self.kill()
            self._figures.kills += 1
            self._start()

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()


def read_whole(dataset: LeRobotDatasetV2, mode: Mode, figures: Figures) -> None:
    """Read a key and an episode as a whole meanwhile, and check those."""
    tag = dataset.get_data_by_key("tag")
    right = tokens(tag[:, 0], tag[:, 1]).view(np.int64) == tag[:, 3]
    count(figures, [f"get_data_by_key: row {row} is {tag[row].tolist()}" for row in np.flatnonzero(~right)])
    for number in dataset.get_unique_episode_indices()[[0, -1]].tolist():
        try:
            episode = dataset.get_episode(number)
        except EpisodeNotFoundError:  # overwritten between the two calls
            continue
        except StorageDirCorruptError as error:
            count(figures, [str(error)])
            continue
        length = int(episode["tag"][0, 2])
        first = length - len(episode["tag"])
        expected = episode_data(number, length, mode)
        same = [np.array_equal(episode[key], expected[key][first:]) for key in ("tag", "wide")]
        if mode in ("memmap", "png"):
            same.append(np.array_equal(episode[CAMERA], expected[CAMERA][first:]))
        if not all(same):
            count(figures, [f"get_episode({number}): {episode['tag'][:, :2].tolist()}"])
    figures.whole_reads += 1


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="roboreel-windows-") as folder:
        figures = run(args, Path(folder) / "ring")
    shown = asdict(figures)
    print(shown)
    if args.into:
        record("windows", args.into, {**asdict(args), **shown})
    if bool(figures.torn) != args.broken:
        raise SystemExit(f"{figures.torn} torn windows")
    if not args.broken and not figures.met_everything:
        raise SystemExit(f"not everything was met in {args.minutes:g} minutes")


if __name__ == "__main__":
    main()
