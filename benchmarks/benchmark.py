"""What a benchmark is: contenders that do the same work on the same data, and goals for how they compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

OURS = "roboreel"
"""The contender that every goal is about."""

Size = Literal["tiny", "quick", "full"]
Setup = Mapping[str, Any]
"""What a contender gets: JSON values, paths as strings."""
Run = Callable[[int], Any]
"""Does the next n batches. What takes its own time returns seconds, as a float; a mapping is the last batch."""
Make = Callable[[Setup], Iterator[Run]]
"""A generator that yields one `Run` and cleans up after it."""
Figures = dict[str, float]


@dataclass(frozen=True)
class Scene:
    """Where made data is kept, and how much of it there is to be."""

    cache: Path
    size: Size

    def pick(self, tiny: int, quick: int, full: int) -> int:
        return {"tiny": tiny, "quick": quick, "full": full}[self.size]


@dataclass(frozen=True)
class Contender:
    """One way to do the work, run in a process of its own."""

    name: str
    make: Make | str
    """A function of ours; or, for a peer, whose modules are not here, `"module:function"`."""
    environment: str = ""
    """The peers' environment that it needs, as in `requirements/peers-….txt`; empty: ours."""
    options: Setup = field(default_factory=dict)
    """Put over the benchmark's setup."""
    one_by_one: bool = False
    """Never more than one batch a turn."""
    own_batches: bool = False
    """It draws its own frames: what it reads is not compared with ours."""
    least: int = 1
    """Never fewer batches a turn."""

    @property
    def reference(self) -> str:
        return self.make if isinstance(self.make, str) else f"{self.make.__module__}:{self.make.__qualname__}"


@dataclass(frozen=True)
class Measured:
    """What was measured of one benchmark."""

    ms: Mapping[str, Sequence[float | None]]
    """For each contender the milliseconds of a batch in each round; None where it sat a round out."""
    figures: Mapping[str, float]

    def median(self, name: str) -> float | None:
        taken = [value for value in self.ms.get(name, ()) if value is not None]
        return statistics.median(taken) if taken else None

    def ratio(self, name: str, to: str) -> float | None:
        """The median over rounds of how many times as long `name` took as `to`; None where one of them did not run.

        >>> Measured({"a": [1.0, 9.0, 4.0], "b": [2.0, None, 2.0]}, {}).ratio("a", "b")
        1.25
        """
        pairs = zip(self.ms.get(name, ()), self.ms.get(to, ()), strict=False)
        ratios = [a / b for a, b in pairs if a is not None and b]
        return statistics.median(ratios) if ratios else None


@dataclass(frozen=True)
class Goal:
    """A figure, and what it is to be; with neither limit it is only told."""

    text: str
    figure: Callable[[Measured], float | None]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "×"

    def to_dict(self, measured: Measured) -> dict[str, Any]:
        """Return text, figure, goal, and whether it is reached; None where a contender was not there."""
        value, reached = self.figure(measured), None
        if value is not None and (self.at_most, self.at_least) != (None, None):
            reached = value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)
        return {
            "text": self.text,
            "figure": value,
            "unit": self.unit,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "reached": reached,
        }


def times_of(to: str, at_most: float | None = None, *, name: str = OURS) -> Goal:
    """At most so many times as long as a floor."""
    return Goal(f"time, in times of {to}", lambda m: m.ratio(name, to), at_most=at_most)


def rate_of(to: str, at_least: float, *, name: str = OURS) -> Goal:
    """At least so much of a floor's rate, or so many times a peer's."""
    return Goal(f"rate, in times of {to}", lambda m: m.ratio(to, name), at_least=at_least)


def milliseconds(at_most: float, *, name: str = OURS) -> Goal:
    return Goal("a batch", lambda m: m.median(name), at_most=at_most, unit="ms")


def figure(name: str, text: str, unit: str, *, at_most: float | None = None) -> Goal:
    return Goal(text, lambda m: m.figures.get(name), at_most=at_most, unit=unit)


@dataclass(frozen=True)
class Benchmark:
    """Work, done by each contender in turns."""

    name: str
    title: str
    prepare: Callable[[Scene], dict[str, Any]]
    """Make the data, once; returns the setup of every contender. `batch_size` is among it."""
    contenders: Sequence[Contender] = ()
    goals: Sequence[Goal] = ()
    count: Callable[[Setup], Figures] | None = None
    """Figures that no clock gives, such as bytes; taken after the contenders have gone."""
