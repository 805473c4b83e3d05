"""Every benchmark runs, on little data and untimed, and whoever does the same work reads the same frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.benchmark import OURS, Benchmark, Contender, Goal, Measured, Scene, milliseconds, rate_of, times_of
from benchmarks.serve import made, timed
from benchmarks.suite import SUITE
from benchmarks.turns import ContenderFailedError, Process, measure, python_of
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("benchmarks"), "tiny")


def rows(value: Any) -> NDArray[Any] | None:
    """A key's values without batch and window axes told apart, pixels last; None for strings."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    if array.ndim >= 4 and array.shape[-3] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, -3, -1)
    return array.reshape(-1)


def same(ours: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the keys that both have; each must hold the same numbers."""
    shared = []
    for key in sorted(set(ours) & set(others)):
        a, b = rows(ours[key]), rows(others[key])
        if a is not None and b is not None:
            a, b = (
                x * np.float32(255) if x.dtype.kind == "f" and y.dtype == np.uint8 else x for x, y in [(a, b), (b, a)]
            )
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=key)
            shared.append(key)
    return shared


@pytest.mark.parametrize("work", SUITE, ids=lambda work: work.name)
def test_every_contender_of_ours_runs_and_agrees(work: Benchmark, scene: Scene) -> None:
    setup = {"cache": str(scene.cache), "size": scene.size, **work.prepare(scene)}
    last: dict[str, Any] = {}
    for contender in work.contenders:
        if not contender.environment:
            with made(contender.reference, {**setup, **contender.options}) as run:
                last[contender.name] = run(2)
    own = {contender.name for contender in work.contenders if contender.own_batches}
    told = {name: value for name, value in last.items() if isinstance(value, Mapping) and name not in own}
    for name, value in told.items():
        if name != OURS and OURS in told:
            assert same(told[OURS], value), f"{OURS} and {name} share no key"
    figures = work.count(setup) if work.count else {}
    assert all(np.isfinite(value) for value in figures.values())
    names = {contender.name for contender in work.contenders}
    result = [goal.to_dict(Measured({name: [1.0] for name in names}, figures)) for goal in work.goals]
    assert all(goal["figure"] is not None for goal in result), "a goal about a contender that there is not"


def test_names_are_unique_and_each_benchmark_has_a_goal_or_figures() -> None:
    names = [benchmark.name for benchmark in SUITE]
    assert len(set(names)) == len(names)
    for benchmark in SUITE:
        contenders = [contender.name for contender in benchmark.contenders]
        assert len(set(contenders)) == len(contenders)
        assert benchmark.goals


def test_contenders_in_turns_give_a_result_with_ratios(scene: Scene) -> None:
    (frames,) = [benchmark for benchmark in SUITE if benchmark.name == "frames"]
    absent = Contender("absent", "nowhere:nothing", "of-nobody")
    broken = Contender("broken", "benchmarks.cases.pusht_windows:take", options={"dataset": "/nowhere"})
    floor = next(contender for contender in frames.contenders if contender.name == "numpy")
    some = Benchmark(
        "some", "two floors", frames.prepare, (floor, absent, broken), (times_of("numpy", 3, name="numpy"),)
    )
    result = measure(some, scene, seconds=0.1)
    assert "make bench-peers" in result["contenders"]["absent"]["missing"]
    assert "/nowhere" in result["contenders"]["broken"]["failed"]
    assert result["contenders"]["numpy"]["ms"] > 0
    assert result["contenders"]["numpy"]["rss_mb"] > 0
    assert result["contenders"]["numpy"]["versions"]["numpy"] == np.__version__
    (goal,) = result["goals"]
    assert (result["contenders"]["numpy"]["same"], result["contenders"]["numpy"]["other"]) == ([], [])
    assert (goal["figure"], goal["at_most"], goal["reached"]) == (1.0, 3, True)


def test_a_process_that_ends_says_why(scene: Scene, tmp_path: Path) -> None:
    python = python_of("")
    assert python is not None
    with pytest.raises(ContenderFailedError, match="no_such_module"):
        Process(Contender("wrong", "no_such_module:make"), python, {}, tmp_path / "log.txt")


def test_a_run_may_time_itself() -> None:
    assert timed(lambda count: 2.5 * count, 2) == 5.0
    assert 0 <= timed(lambda count: count, 2) < 1


@pytest.mark.parametrize(
    ("goal", "ours", "others", "figure", "reached"),
    [
        (times_of("numpy", 3), [3.0, 9.0, 3.0], [1.0, 1.0, 1.0], 3.0, True),
        (times_of("numpy", 3), [3.1, 9.0, 3.1], [1.0, 1.0, 1.0], 3.1, False),
        (rate_of("numpy", 2), [1.0, None, 1.0], [2.0, 2.0, 2.0], 2.0, True),
        (rate_of("numpy", 2), [1.0], [1.9], 1.9, False),
        (rate_of("numpy", 2), [1.0], [None], None, None),
        (rate_of("torchrl", 2), [1.0], [1.0], None, None),
        (milliseconds(0.6), [0.5, 0.7, 0.6], [], 0.6, True),
        (times_of("numpy"), [0.5], [0.25], 2.0, None),
    ],
)
def test_goals(
    goal: Goal, ours: list[float | None], others: list[float | None], figure: float | None, reached: bool | None
) -> None:
    found = goal.to_dict(Measured({OURS: ours, "numpy": others}, {}))
    assert (found["figure"], found["reached"]) == (figure, reached)
