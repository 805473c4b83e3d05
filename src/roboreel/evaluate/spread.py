"""A mean or a rate over episodes, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """A mean over episodes, and how sure it is."""

    mean: float
    std: float
    """Of the episodes (n − 1); 0 for a single one."""
    low: float
    """Lower end of the mean's 95 % interval; of a single episode's −∞, and `high` ∞."""
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return what JSON can hold: an end that is infinite becomes None, null in the file.

        >>> Spread.of([2.0]).to_dict()
        {'mean': 2.0, 'std': 0.0, 'low': None, 'high': None}
        """
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean, deviation and Student's interval; a single value has an interval without ends.

        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, std=1.0, low=-0.48..., high=4.48...)
        """
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, 0.0, -math.inf, math.inf)
        std = statistics.stdev(values)
        half = student_95(count - 1) * std / math.sqrt(count)
        return cls(mean, std, mean - half, mean + half)

    @classmethod
    def of_rate(cls, outcomes: Sequence[bool]) -> Spread:
        """Return a rate with Wilson's interval, which is right at 0 of n and n of n too.

        >>> Spread.of_rate([False] * 10)
        Spread(mean=0.0, std=0.0, low=0.0, high=0.27...)
        """
        count, z = len(outcomes), 1.959964
        rate = sum(outcomes) / count
        middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
        std = math.sqrt(rate * (1 - rate) * count / max(1, count - 1))
        return cls(rate, std, max(0.0, middle - half), min(1.0, middle + half))


def student_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: the half width of a 95 % interval in standard errors.

    >>> round(student_95(1), 2), round(student_95(49), 3)
    (12.71, 2.01)
    """
    few = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # where the expansion around the normal is too small
    if freedom in few:
        return few[freedom]
    z, v = 1.959964, freedom
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)


def describe(summary: Mapping[str, Spread]) -> str:
    """Return a summary as lines of text.

    >>> print(describe({"success": Spread(0.5, 0.51, 0.37, 0.63)}))
    success         0.500  (95 % 0.370 to 0.630; deviation 0.510)
    """
    width = max([14, *map(len, summary)])
    return "\n".join(
        f"{name:{width}} {spread.mean:6.3f}  (95 % {spread.low:.3f} to {spread.high:.3f}; deviation {spread.std:.3f})"
        for name, spread in summary.items()
    )
