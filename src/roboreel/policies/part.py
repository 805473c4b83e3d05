"""Which rows of a batch a process has, where several share one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _same(number: Tensor) -> Tensor:
    return number


@dataclass(frozen=True)
class Part:
    """Every `world`-th row from `rank` on.

    What is drawn is drawn for the whole batch by each process, so that together they draw what one alone would.

    >>> import torch
    >>> Part(1, 2).of(torch.arange(6)).tolist()
    [1, 3, 5]
    """

    rank: int = 0
    world: int = 1
    total: Callable[[Tensor], Tensor] = _same
    """Returns the sum of a number over the processes, without a gradient."""

    def rows(self, count: int) -> int:
        """Return how many rows the whole batch has, of which `count` are here."""
        return count * self.world

    def of(self, drawn: Tensor) -> Tensor:
        """Return what belongs to the rows that are here."""
        return drawn[self.rank :: self.world]


WHOLE = Part()
