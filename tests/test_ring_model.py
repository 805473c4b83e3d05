"""Everything that can happen to a dataset, in any order, against a list of dicts: a slot holds a frame or nothing.

Frames know what they hold, so that a mix-up shows. A crash is a file effect from which on nothing works any more, not
even undoing; then the objects are dropped without being closed, as a kill drops them.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import observed
from roboreel.format.records import State
from roboreel.store import Store, verify
from tests.ring_model import DELTAS, FPS, OFFSETS, Model, ViewModel, check, check_view, recorded

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=3)
STEPS = st.sampled_from([4, 4, 4, 4, 4, 0, 2, 5, 13])
"""From one frame to the next, in 64ths of a second; 4 is regular."""


class KilledError(BaseException):
    """What no error handling of the library may mistake for a failure that it can mend."""


class Killing:
    """Lets `after` file effects happen, and none after them."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, _kind: str, _path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError


class DatasetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "dataset"

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(
        capacity=st.sampled_from([None, 4, 7, 12, 12]),
        ring=st.booleans(),
        first=st.integers(1, 4),
        camera=st.sampled_from([None, "png", "memmap"]),
    )
    def begin(self, capacity: int | None, ring: bool, first: int, camera: str | None) -> None:
        self.model = Model(capacity, ring and capacity is not None, camera is not None)
        self.snapshot: Model | None = None
        self.views: list[tuple[LeRobotDatasetV2, ViewModel]] = []
        options = {"buffer_capacity": capacity, "use_as_fifo_buffer": self.model.ring, "image_mode": camera}
        self.dataset = self.opened(fps=FPS, **options)
        self.add_now([[k / FPS for k in range(first)]])
        self.reader = self.opened(readonly=True)

    def opened(self, **options: Any) -> LeRobotDatasetV2:
        dataset = LeRobotDatasetV2(self.root, image_dtype="uint8", **options)
        dataset.set_delta_timestamps(DELTAS, on_hole="nearest")
        return dataset

    # What a user does

    def add_now(self, episodes: list[list[float]], no_flush: bool = True) -> None:
        fits = self.model_after(episodes)
        data = recorded(self.model, episodes)
        if len(fits) == len(episodes) + 1:
            self.dataset.add_episodes(data, no_flush)
        else:
            with pytest.raises(roboreel.CapacityError, match="buffer_capacity"):
                self.dataset.add_episodes(data, no_flush)
        self.model = fits[-1]

    def model_after(self, episodes: list[list[float]]) -> list[Model]:
        """The models after none, one, two … of the episodes; as far as they fit."""
        found = [self.model]
        for times in episodes:
            if found[-1].place(len(times)) is None:
                break
            found.append(copy.deepcopy(found[-1]))
            found[-1].add(times)
        return found

    @rule(lengths=LENGTHS, no_flush=st.booleans())
    def add(self, lengths: list[int], no_flush: bool) -> None:
        self.add_now([[k / FPS for k in range(length)] for length in lengths], no_flush)

    @rule(steps=st.lists(STEPS, max_size=5), start=st.integers(0, 20))
    def add_irregular(self, steps: list[int], start: int) -> None:
        self.add_now([(np.cumsum([start, *steps]) / 64).tolist()])

    @precondition(lambda self: self.model.ring)
    @rule()
    def overwrite_all(self) -> None:
        assert self.model.capacity is not None
        self.add_now([[k / FPS for k in range(self.model.capacity)]])

    @rule(closed=st.booleans())
    def reopen(self, closed: bool) -> None:
        if closed:
            self.dataset.close()
        else:
            self.drop()
        self.dataset = self.opened()

    @rule()
    def reopen_reader(self) -> None:
        self.reader = self.opened(readonly=True)

    @precondition(lambda self: self.model.capacity is not None)
    @rule(more=st.integers(0, 6))
    def grow(self, more: int) -> None:
        assert self.model.capacity is not None
        self.dataset.close()
        self.model.capacity += more
        self.dataset = self.opened(buffer_capacity=self.model.capacity)

    @rule()
    def flush(self) -> None:
        self.dataset.flush()

    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        slots, value = self.drawn_edit(data)
        with self.dataset.edit("value") as array:
            array[slots] = value
        self.model = self.model_edited(slots, value)

    def drawn_edit(self, data: st.DataObject) -> tuple[list[int], list[float]]:
        held = [slot for slot, frame in enumerate(self.model.slots) if frame is not None]
        slots = data.draw(st.lists(st.sampled_from(held), unique=True, max_size=6)) if held else []
        return slots, [data.draw(st.integers(-99, 99)) + 0.5, 0.25]

    def model_edited(self, slots: list[int], value: list[float]) -> Model:
        edited = copy.deepcopy(self.model)
        for slot in slots:
            frame = edited.slots[slot]
            assert frame is not None
            frame["value"] = value
        return edited

    @rule()
    def take_snapshot(self) -> None:
        self.dataset.snapshot(self.folder / "snapshot")
        self.snapshot = copy.deepcopy(self.model)

    @rule(data=st.data(), opened=st.booleans())
    def choose_episodes(self, data: st.DataObject, opened: bool) -> None:
        numbers = self.reader.get_unique_episode_indices().tolist()
        if numbers:
            chosen = data.draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
            view = self.opened(episodes=chosen, readonly=True) if opened else self.reader.view(chosen)
            self.views = [(view, ViewModel(self.model, chosen)), *self.views[:1]]

    @rule()
    def pickle_views(self) -> None:
        self.views = [(pickle.loads(pickle.dumps(view)), chosen) for view, chosen in self.views]

    # What befalls him

    @rule(lengths=LENGTHS, after=st.integers(0, 40), no_flush=st.booleans())
    def crash_while_adding(self, lengths: list[int], after: int, no_flush: bool) -> None:
        episodes = [[k / FPS for k in range(length)] for length in lengths]
        models = self.model_after(episodes)
        data = recorded(self.model, episodes)
        try:
            with observed(Killing(after)):
                self.dataset.add_episodes(data, no_flush)
        except (KilledError, roboreel.CapacityError):
            pass
        self.crash()
        done = next(model for model in models if model.episodes == self.state().next_episode_index)
        at = models.index(done)
        if at + 1 < len(models):  # the next one may have been under way
            length = len(episodes[at])
            start = done.place(length)
            assert start is not None
            replaced = range(start, min(start + length, len(done.slots)))
            for slot in set(replaced) - self.held_slots():
                done.slots[slot] = None
        self.model = done

    @rule(data=st.data(), after=st.integers(0, 40))
    def crash_while_editing(self, data: st.DataObject, after: int) -> None:
        slots, value = self.drawn_edit(data)
        try:
            with observed(Killing(after)), self.dataset.edit("value") as array:
                array[slots] = value
        except KilledError:
            pass
        self.crash()
        edited = self.model_edited(slots, value)
        if slots and self.reader.get_batch([slots[0]])["value"][0, OFFSETS.index(0)].tolist() == value:
            self.model = edited  # that no other slot has the old value shows when everything is compared

    @precondition(lambda self: self.model.capacity is not None)
    @rule(more=st.integers(1, 6), after=st.integers(0, 40))
    def crash_while_growing(self, more: int, after: int) -> None:
        assert self.model.capacity is not None
        self.dataset.close()
        try:
            with observed(Killing(after)):
                self.dataset = self.opened(buffer_capacity=self.model.capacity + more)
        except KilledError:
            self.dataset = self.opened()
        self.crash()
        with self.dataset.edit("value"):  # who takes the lock ends what was half done
            pass
        capacity = self.state().capacity
        assert capacity in (self.model.capacity, self.model.capacity + more)
        self.model.capacity = capacity

    @rule(after=st.integers(0, 12), closing=st.booleans())
    def crash_while_flushing(self, after: int, closing: bool) -> None:
        try:
            with observed(Killing(after)):
                if closing:
                    self.dataset.close()
                else:
                    self.dataset.flush()
        except KilledError:
            pass
        self.crash()

    @rule(after=st.integers(0, 60))
    def crash_while_taking_a_snapshot(self, after: int) -> None:
        try:
            with observed(Killing(after)):
                self.dataset.snapshot(self.folder / "snapshot")
        except KilledError:
            pass
        self.crash()
        if (self.folder / "snapshot" / "metadata.json").exists():  # the one before, or the one under way
            generation = LeRobotDatasetV2(self.folder / "snapshot", readonly=True).generation
            if generation == self.reader.generation:
                self.snapshot = copy.deepcopy(self.model)
        else:
            assert self.snapshot is None

    def crash(self) -> None:
        self.drop()
        self.dataset = self.opened()

    def drop(self) -> None:
        """Let go of the objects without closing them: the lock and the files go, nothing is written."""
        self.dataset._opening._writer = None
        del self.dataset
        gc.collect()

    def state(self) -> State:
        """What is committed; the newest episode may be one of those that can no longer be seen."""
        return Store.open(self.root).state

    def held_slots(self) -> set[int]:
        ranges = self.dataset.episode_data_index
        return {i for a, b in zip(ranges["from"].tolist(), ranges["to"].tolist(), strict=True) for i in range(a, b)}

    # What holds after each step

    @rule()
    def every_byte_is_as_it_was_written(self) -> None:
        if any(frame is not None for frame in self.model.slots):
            assert verify(self.root).problems == []

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def the_snapshot_is_as_it_was_taken(self) -> None:
        assert self.snapshot is not None
        assert verify(self.folder / "snapshot").problems == []
        copied = LeRobotDatasetV2(self.folder / "snapshot", readonly=True, image_dtype="uint8")
        copied.set_delta_timestamps(DELTAS, on_hole="nearest")
        check(copied, self.snapshot)

    @invariant()
    def everybody_sees_what_is_stored(self) -> None:
        if not hasattr(self, "reader"):
            return
        check(self.dataset, self.model)
        check(self.reader, self.model)
        for view, chosen in self.views:
            check_view(view, chosen, self.model)
        LeRobotDatasetV2.check_storage_dir_integrity(self.root)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


TestDataset = pytest.mark.usefixtures("_no_waiting_for_the_disk")(DatasetMachine.TestCase)
TestDataset.settings = settings(
    max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
