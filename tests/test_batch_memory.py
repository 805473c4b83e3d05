"""The memory of batches is used again, in the process and across workers, and never while somebody reads it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from roboreel import LeRobotDatasetV2, takes_batch

CAMERA = "observation.image"
FRAMES, SIDE = 240, 96
DELTAS: dict[str, list[float]] = {"action": [-0.1, 0, 0.1], CAMERA: [-0.1, 0]}
needs_slabs = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd_create")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of which every value, and every pixel, says which frame it belongs to."""
    folder = tmp_path_factory.mktemp("memory") / "dataset"
    numbers = np.arange(FRAMES)
    with LeRobotDatasetV2(folder, fps=10, image_mode="memmap") as dataset:
        dataset.add_episodes(
            {
                "action": numbers.astype(np.float32),
                CAMERA: np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (FRAMES, SIDE, SIDE, 3)),
                "task": [f"task {number // 100}" for number in numbers],
                "episode_index": numbers // 60,
            },
            no_flush=True,
        )
    return folder


def check(batch: dict[str, Any]) -> None:
    """Every value of a batch belongs to the frame that its index names."""
    index = batch["index"]
    first = index // 60 * 60
    assert torch.equal(batch["action"][:, 0], torch.maximum(index - 1, first).float())
    assert torch.equal(batch["action"][:, 2], torch.minimum(index + 1, first + 59).float())
    assert torch.equal(batch["action_is_pad"][:, 0], index == first)
    images = batch[CAMERA].double() * (255 if batch[CAMERA].is_floating_point() else 1)
    assert images.shape[1:] == (2, 3, SIDE, SIDE)
    for step, wanted in enumerate((torch.maximum(index - 1, first), index)):
        assert (images[:, step] - wanted[:, None, None, None]).abs().max() < 1e-4
    assert batch["task"] == [f"task {number // 100}" for number in index.tolist()]


def opened(root: Path, image_dtype: str = "uint8", **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, delta_timestamps=DELTAS, image_dtype=image_dtype, readonly=True, **options)


class Order:
    """Batches of 16 out of 240 frames, another order in each epoch."""

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        for _ in range(self._batches):
            yield rng.permutation(FRAMES)[:16].tolist()

    def __len__(self) -> int:
        return self._batches


def loader(dataset: Dataset[Any], batches: int, workers: int, start: str | None = "fork", **options: Any) -> Any:
    any_sampler: Any = Order(batches)
    return DataLoader(
        dataset,
        batch_sampler=any_sampler,
        num_workers=workers,
        multiprocessing_context=start if workers else None,
        **options,
    )


@pytest.mark.parametrize(
    ("image_dtype", "workers", "start"),
    [(dtype, *how) for dtype in ("uint8", "float32") for how in ((0, None), (2, "fork"))] + [("uint8", 1, "spawn")],
)
def test_batches_that_are_kept_stay_as_they_are(root: Path, image_dtype: str, workers: int, start: str | None) -> None:
    kept = list(loader(opened(root, image_dtype), 40, workers, start))
    assert len(kept) == 40
    for batch in kept:
        check(batch)
    wanted = [numbers for batch in Order(40) for numbers in batch]
    assert [number for batch in kept for number in batch["index"].tolist()] == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slice_of_one_tensor_keeps_the_memory_of_its_batch(root: Path, workers: int) -> None:
    slices, numbers = [], []
    for batch in loader(opened(root), 30, workers):
        slices.append(batch[CAMERA][3:5, 1, :, 7])
        numbers.append(batch["index"][3:5].clone())
    del batch
    for part, number in zip(slices, numbers, strict=True):
        assert torch.equal(part.amin(dim=(1, 2)).long(), number)
        assert torch.equal(part.amax(dim=(1, 2)).long(), number)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=needs_slabs)])
def test_memory_is_used_again_once_a_batch_is_gone(root: Path, workers: int) -> None:
    places = set()
    for batch in loader(opened(root), 60, workers):
        check(batch)
        places.add(batch[CAMERA].data_ptr())
    # one that is read, one that is filled; of each worker those that it makes ahead
    assert len(places) <= (3 if not workers else workers * 5)


@needs_slabs
@pytest.mark.parametrize("persistent", [False, True])
def test_shared_memory_goes_when_the_loader_and_its_batches_have_gone(root: Path, persistent: bool) -> None:
    before = shared_kib()
    batches = loader(opened(root), 20, 2, persistent_workers=persistent)
    for _ in range(2):
        kept = list(batches)
    for batch in kept:
        check(batch)
    assert shared_kib() > before + 20 * 16 * 50
    del kept, batch, batches
    gc.collect()
    assert shared_kib() < before + 16 * 50


@needs_slabs
def test_workers_give_back_what_they_needed_while_batches_were_kept(root: Path) -> None:
    before = shared_kib()
    batches = iter(loader(opened(root), 300, 1))
    kept = [next(batches) for _ in range(40)]
    for batch in kept:
        check(batch)
    taken = shared_kib() - before
    del kept, batch
    for _ in range(200):
        check(next(batches))
    gc.collect()
    assert shared_kib() - before < taken / 3


def shared_kib() -> int:
    """What this process has mapped of shared memory that is really there."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssShmem")).split()[1])


@needs_slabs
def test_a_process_that_is_forked_keeps_what_it_inherited(root: Path) -> None:
    batches = iter(loader(opened(root), 40, 1))
    held = next(batches)
    index = held["index"].clone()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=check_when_told, args=(held, theirs))
    child.start()
    gone = multiprocessing.get_context("fork").Process(target=drop, args=({"batch": held},))
    gone.start()
    gone.join()
    assert torch.equal(held["index"], index)
    check(held)  # though a child has let go of it
    del held
    for batch in batches:  # the worker fills all the slabs that it may
        check(batch)
    ours.send(index)
    assert ours.recv() == "as it was"
    child.join()


def check_when_told(batch: dict[str, Any], told: Any) -> None:
    torch.set_num_threads(1)  # it has none of those that its parent had
    index = told.recv()
    try:
        assert torch.equal(batch["index"], index)
        check(batch)
        told.send("as it was")
    except BaseException as error:
        told.send(repr(error))
        raise


def drop(holder: dict[str, Any]) -> None:
    holder.clear()
    gc.collect()


class KilledAt(Dataset[Any]):
    """A dataset of which the tenth batch ends the worker; killed from outside, it may hold a lock of torch's."""

    def __init__(self, dataset: LeRobotDatasetV2) -> None:
        self._dataset = dataset
        self._batches = 0

    def __getitems__(self, indices: list[int]) -> Any:
        self._batches += 1
        if self._batches == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._dataset.__getitems__(indices)


def test_a_process_forked_while_a_thread_takes_memory_reads_on(root: Path) -> None:
    dataset = opened(root)
    check(dataset.get_batch(range(16)))
    with dataset._buffers._lock:  # as another thread may at that moment
        child = multiprocessing.get_context("fork").Process(target=read_one, args=(dataset,))
        child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0


def read_one(dataset: LeRobotDatasetV2) -> None:
    torch.set_num_threads(1)
    check(dataset.get_batch(range(16)))


def test_a_worker_that_is_killed_leaves_the_next_loader_whole(root: Path) -> None:
    running = iter(loader(KilledAt(opened(root)), 400, 1))
    held = next(running)
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        for _ in running:
            pass
    check(held)
    for batch in loader(opened(root), 5, 1):
        check(batch)
    check(held)


# Ways in which a batch is made


class Cropped:
    """Gives another size in each batch of 16."""

    calls = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        side = 16 + 24 * (self.calls // 16 % 3)
        self.calls += 1
        return images[..., :side, :side]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_may_give_another_size_in_each_batch(root: Path, workers: int) -> None:
    kept = list(loader(opened(root, image_transform=Cropped()), 12, workers))
    assert [batch[CAMERA].shape for batch in kept] == [(16, 2, 3, side, side) for side in (16, 40, 64)] * 4
    for batch in kept:
        shown = batch[CAMERA][:, 1].flatten(1).long()
        assert (shown == batch["index"][:, None]).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_a_transform_has_made(root: Path, workers: int) -> None:
    for transform in (doubled, doubled_at_once):
        for batch in loader(opened(root, "float32", image_transform=transform), 12, workers):
            batch[CAMERA] = batch[CAMERA] / 2
            check(batch)


def doubled(images: torch.Tensor) -> torch.Tensor:
    return images * 2


@takes_batch
def doubled_at_once(images: torch.Tensor) -> torch.Tensor:
    return images * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_what_numpy_cannot_hold_comes_through(root: Path, dtype: torch.dtype) -> None:
    transform = partial(torch.Tensor.to, dtype=dtype)
    for batch in loader(opened(root, "float32", image_transform=transform), 3, 1):
        assert batch[CAMERA].dtype == dtype
        shown = batch[CAMERA][:, 1, 0, 0, 0].float()
        assert torch.equal(shown, (batch["index"].float() / 255).to(dtype).float())
        assert torch.equal(batch["action"][:, 1].long(), batch["index"])


@needs_slabs
def test_a_collate_fn_may_change_a_batch_and_add_to_it(root: Path) -> None:
    for batch in loader(opened(root), 10, 1, collate_fn=with_more):
        check(batch)
        assert torch.equal(batch["doubled"], batch["action"] * 2)
        assert batch["note"] == "added"
        assert list(batch)[-2:] == ["doubled", "note"]


def with_more(samples: Any) -> dict[str, Any]:
    batch: dict[str, Any] = torch.utils.data.default_collate(samples)
    batch["doubled"] = batch["action"] * 2
    batch["note"] = "added"
    return batch


class Pairs(Dataset[Any]):
    """A user's dataset around ours, which reads a batch for each item."""

    def __init__(self, dataset: LeRobotDatasetV2) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return FRAMES // 2

    def __getitem__(self, i: int) -> Any:
        assert get_worker_info() is not None
        return self.dataset.get_batch([2 * i, 2 * i + 1])


def test_batches_within_a_dataset_of_the_users_own(root: Path) -> None:
    pairs = Pairs(opened(root))
    seen: list[int] = []
    for batch in DataLoader(pairs, batch_size=80, num_workers=1, multiprocessing_context="fork"):  # more than slabs
        assert batch["action"].shape[1:] == (2, 3)
        seen += batch["index"].flatten().tolist()
        assert torch.equal(batch[CAMERA][:, :, 1, 0, 0, 0].long(), batch["index"])
    assert seen == list(range(160)) + list(range(160, 240))
    single: list[int] = []
    for batch in DataLoader(pairs, batch_size=None, num_workers=1, multiprocessing_context="fork"):
        check(batch)
        single += batch["index"].tolist()
    assert single == list(range(240))


@needs_slabs
def test_a_system_that_gives_no_shared_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refused)  # of the forked worker, too
    for batch in loader(opened(root), 5, 1):
        assert type(batch) is dict
        check(batch)


@needs_slabs
def test_thousands_of_batches_may_be_kept_where_few_files_may_be_open(root: Path) -> None:
    script = (
        "import resource, sys\n"
        "from torch.utils.data import DataLoader\n"
        "from roboreel import LeRobotDatasetV2\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "dataset = LeRobotDatasetV2(sys.argv[1], readonly=True, delta_timestamps={'action': [-0.1, 0]})\n"
        "order = [[k % 240] for k in range(3000)]\n"
        "kept = list(DataLoader(dataset, batch_sampler=order, num_workers=2))\n"
        "assert [batch['action'][:, 1].tolist() for batch in kept] == order\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_batches_are_plain_dicts_and_pickle_as_such(root: Path) -> None:
    dataset = opened(root)
    for batch in loader(dataset, 2, 1):
        assert type(batch) is dict
        again = pickle.loads(pickle.dumps(batch))
        check(again)
    sent = ForkingPickler.dumps(dataset.get_batch([1, 2]))
    check(pickle.loads(sent))


def test_a_dataset_sent_elsewhere_begins_with_memory_of_its_own(root: Path) -> None:
    dataset = opened(root)
    check(dataset.get_batch(range(100)))
    check(pickle.loads(pickle.dumps(dataset)).get_batch(range(100)))


def test_memory_that_no_batch_needs_any_more_goes_back(root: Path) -> None:
    dataset = opened(root)
    check(dataset.get_batch([1, 2]))
    tracemalloc.start()
    try:
        dataset.get_batch(range(FRAMES))
        gc.collect()
        images = FRAMES * 2 * SIDE * SIDE * 3
        assert tracemalloc.get_traced_memory()[0] > images  # kept for the next batch of that size
        for _ in range(20):
            dataset.get_batch([1, 2])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < images // 4
    finally:
        tracemalloc.stop()
