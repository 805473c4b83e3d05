"""What joined datasets have in common, and why the rest is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.plan import Form, Group, Part, Plan
from roboreel.schema import KeySpec
from roboreel.stats import KeyStats
from roboreel.windows import Deltas

DATASET_INDEX_KEY = "dataset_index"
_DATASET_INDEX = Part(DATASET_INDEX_KEY, KeySpec(DATASET_INDEX_KEY, np.dtype("<i8"), (), "index"))

_MOST_NAMED = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """What is asked about one of the datasets."""

    parts: Mapping[str, Part]
    """Of each key, as it is given."""
    windows: Mapping[str, Deltas]


@dataclass(frozen=True)
class Joint:
    """The keys that all datasets have alike."""

    names: tuple[str, ...]
    plan: Plan
    """Of a batch's arrays; nothing is read by it."""
    left_out: Mapping[str, str]
    """Each other key, and why."""

    @classmethod
    def of(cls, members: Mapping[int, Member]) -> Joint:
        """Compare the datasets, by their place in the list that was given; those that hold nothing yet are not there.

        >>> action = {size: Part("action", KeySpec("action", np.dtype("<f4"), (size,))) for size in (6, 7)}
        >>> joint = Joint.of({0: Member({"action": action[6]}, {}), 2: Member({"action": action[7]}, {})})
        >>> joint.names, joint.left_out
        ((), {'action': 'float32 (6,) in 0, float32 (7,) in 2'})
        """
        names, left_out = [], {}
        for key in dict.fromkeys(key for member in members.values() for key in member.parts):
            if why := _why_not(key, members):
                left_out[key] = why
            else:
                names.append(key)
        first = next(iter(members.values()), Member({}, {}))
        parts = (*(first.parts[name] for name in names), _DATASET_INDEX)
        return cls(tuple(names), Plan(parts, Group(parts), (), None), left_out)

    def text(self) -> str:
        """Say which keys are left out."""
        shown = [f"  {key!r}: {why}" for key, why in list(self.left_out.items())[:_MOST_NAMED]]
        if more := len(self.left_out) - len(shown):
            shown.append(f"  and {more} more")
        return "\n".join(["keys that the datasets do not have alike are left out (datasets by their place):", *shown])


def _why_not(key: str, members: Mapping[int, Member]) -> str | None:
    if key == DATASET_INDEX_KEY:
        return "says here which of the joined datasets a frame is from"
    if missing := [place for place, member in members.items() if key not in member.parts]:
        return f"not in {' and '.join(map(str, missing))}"
    return _differing(members, lambda member: _form(member.parts[key])) or _differing(
        members, lambda member: _window(member.windows.get(key))
    )


def _differing(members: Mapping[int, Member], tell: Callable[[Member], tuple[object, str]]) -> str | None:
    """Say who has it how, where that is not the same; `tell` gives what is compared, and how to say it."""
    told: dict[object, tuple[str, list[int]]] = {}
    for place, member in members.items():
        what, text = tell(member)
        told.setdefault(what, (text, []))[1].append(place)
    if len(told) < 2:
        return None
    return ", ".join(f"{text} in {' and '.join(map(str, places))}" for text, places in told.values())


def _form(part: Part) -> tuple[object, str]:
    spec = part.spec
    if spec.is_string:
        text = f"text {spec.shape}" if spec.shape else "text"
    else:
        unit = f" in {'m' if part.form is Form.METRES else spec.unit}" if spec.is_depth else ""
        text = f"{part.item[1]} {spec.shape}{unit}"
    return text, text


def _window(deltas: Deltas | None) -> tuple[object, str]:
    if deltas is None:
        return None, "single frames"
    first, last = deltas.seconds[0], deltas.seconds[-1]
    return deltas.signature, f"{len(deltas)} frames from {first:g} s to {last:g} s"


def same(values: Sequence[T]) -> T | None:
    """Return what all values are; None where they differ, or there are none.

    >>> same([10, 10]), same([10, 20]), same([])
    (10, None, None)
    """
    return values[0] if values and all(value == values[0] for value in values) else None


def joined_stats(parts: Sequence[tuple[float, KeyStats]]) -> KeyStats:
    """Return the statistics of a key over several datasets, each weighed by its number of frames.

    >>> one = {"mean": np.array(1.0), "std": np.array(0.0), "min": np.array(1.0), "max": np.array(1.0)}
    >>> two = {"mean": np.array(5.0), "std": np.array(0.0), "min": np.array(5.0), "max": np.array(5.0)}
    >>> stats = joined_stats([(3, one | {"count": np.array([3])}), (1, two | {"count": np.array([1])})])
    >>> {name: value.tolist() for name, value in stats.items()}
    {'mean': 2.0, 'std': 1.7320508075688772, 'min': 1.0, 'max': 5.0, 'count': [4]}
    """
    count = np.array([sum(int(stats["count"][0]) for _, stats in parts)])
    known = [(frames, stats) for frames, stats in parts if "mean" in stats]
    if not known:
        return {"count": count}
    weights: NDArray[Any] = np.array([frames for frames, _ in known], np.float64)
    weights /= weights.sum()

    def stacked(name: str) -> NDArray[Any]:
        return np.stack([stats[name] for _, stats in known])

    shape = (-1, *(1,) * known[0][1]["mean"].ndim)
    shares = weights.reshape(shape)
    with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite, neither is the result
        mean = (shares * stacked("mean")).sum(axis=0)
        variance = (shares * (stacked("std") ** 2 + (stacked("mean") - mean) ** 2)).sum(axis=0)
    return {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": stacked("min").min(axis=0),
        "max": stacked("max").max(axis=0),
        "count": count,
    }
