"""The processes that train one policy together: one a GPU, on one machine or several.

    torchrun --nproc-per-node 2 -m roboreel train --dataset data/pusht --output-dir outputs/pusht
    accelerate launch --multi_gpu --num_processes 2 -m roboreel train --dataset data/pusht --output-dir outputs/pusht

Each has the same weights and every `world`-th frame of a batch; gradients are averaged before they are clipped, so that
all make the same step. The first one writes. A launcher ends all of them when one fails.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, distributed, nn

from roboreel.errors import ConfigError
from roboreel.policies.part import Part
from roboreel.train.options import RunConfig

TIMEOUT = dt.timedelta(hours=2)
"""How long the others wait for the first, which takes data in, saves and tries checkpoints."""


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> Part:
        """The rows of a batch that are here."""
        return Part(self.rank, self.world, self._total) if self.world > 1 else Part()

    def _total(self, number: Tensor) -> Tensor:
        total = number.detach().clone()
        distributed.all_reduce(total)
        return total

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their means over the processes."""
        if self.world == 1:
            return
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        has = torch.tensor([parameter.grad is not None for parameter in wanted], dtype=torch.int32)
        distributed.all_reduce(has)
        gradients = []
        for parameter, count in zip(wanted, has.tolist(), strict=True):
            if count and parameter.grad is None:  # what the rows here did not need, those of others did
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)

        def mean(flat: Tensor) -> None:
            distributed.all_reduce(flat)
            flat /= self.world

        _together(gradients, mean)

    def mean(self, number: float) -> float:
        """Return the mean over the processes."""
        if self.world == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        distributed.all_reduce(value)
        return float(value) / self.world

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Have all processes have the values of the first."""
        if self.world > 1:
            _together([tensor.detach() for tensor in tensors], lambda flat: distributed.broadcast(flat, 0))

    def share_buffers(self, module: nn.Module) -> None:
        """Have what a step has changed beside the weights, as a codebook of averages, be that of the first."""
        self.share(module.buffers())

    def wait(self) -> None:
        """Return when every process has come here."""
        self.mean(0.0)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Have the first process be through with the block before the others begin it."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


def _together(tensors: list[Tensor], change: Callable[[Tensor], object]) -> None:
    """Change tensors in place, as one flat tensor a type and device: an exchange costs about as much, however large."""

    def kind(tensor: Tensor) -> tuple[str, str]:
        return str(tensor.dtype), str(tensor.device)

    for _, group in groupby(sorted(tensors, key=kind), key=kind):
        some = list(group)
        is_bool = some[0].dtype == torch.bool
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        flat = flat.to(torch.uint8) if is_bool else flat
        change(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in some])
        for tensor, changed in zip(some, parts, strict=True):
            tensor.copy_(changed.view_as(tensor))


def current() -> Processes:
    """Return this process as one of those that have joined; alone, the first of one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


def launched() -> int:
    """Return how many processes a launcher has started for this training; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the others that a launcher has started, as long as the block lasts; one that has joined already stays so."""
    if launched() == 1 or distributed.is_initialized():
        yield current()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield current()
    finally:
        distributed.destroy_process_group()


def local_device(name: str) -> str:
    """Return which device is this process's own: of several GPUs of a machine each process has one.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    if current().world == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        raise ConfigError(
            f"process {own + 1} of this machine finds {there} GPUs: start as many processes as there are, or give "
            "--device cpu"
        )
    torch.cuda.set_device(own)
    return f"cuda:{own}"


def check_batches(config: RunConfig, processes: Processes) -> None:
    """Refuse a batch that the processes cannot share evenly: their gradients would not count alike.

    >>> check_batches(RunConfig("data", "out", batch_size=9), Processes(0, 2))
    Traceback (most recent call last):
    roboreel.errors.ConfigError: --batch-size 9 is shared by 2 processes: give a multiple of 2, as 10
    """
    if rest := config.batch_size % processes.world:
        more = config.batch_size + processes.world - rest
        raise ConfigError(
            f"--batch-size {config.batch_size} is shared by {processes.world} processes: give a multiple of "
            f"{processes.world}, as {more}"
        )
