"""Contenders in turns: each a process, A B C A B C …, so that a slow minute of the machine is slow for all of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.benchmark import OURS, Benchmark, Contender, Measured, Scene, Setup

ROOT = Path(__file__).parents[1]
PART_S = 0.15
"""About how long a turn lasts; work of which one batch takes longer does one batch a turn."""
LONGEST_S = 300.0
"""A contender that gives no answer for so long has failed."""


class ContenderFailedError(RuntimeError):
    """A contender's process ended or hangs; holds the last that it said."""


def python_of(environment: str) -> Path | None:
    """The interpreter of a peers' environment, None where it is not installed; ours for an empty name."""
    if not environment:
        return Path(sys.executable)
    path = ROOT / f".venv-peers-{environment}" / "bin" / "python"
    return path if path.exists() else None


class Process:
    """A contender's process."""

    def __init__(self, contender: Contender, python: Path, setup: Setup, log: Path) -> None:
        self._log = log
        command = [str(python), "-m", "benchmarks.serve", contender.reference]
        environment = {**os.environ, **_quiet(python)}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            self.versions = self._ask({**setup, **contender.options})["ready"]
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> float:
        """Do the next `count` batches; returns their seconds."""
        seconds: float = self._ask({"run": count})["seconds"]
        return seconds

    def check(self) -> dict[str, list[Any]]:
        """Read the next batch; returns kind, size and sum of each key's numbers."""
        found: dict[str, list[Any]] = self._ask({"check": 1})["sums"]
        return found

    def memory(self) -> dict[str, float]:
        """Resident and private bytes, of the process and its workers."""
        answer: dict[str, float] = self._ask({"memory": 1})
        return answer

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        with contextlib.suppress(BrokenPipeError):
            pipe_in.write(json.dumps(request).encode() + b"\n")
            pipe_in.flush()
        ready, _, _ = select.select([pipe_out], [], [], LONGEST_S)
        line = pipe_out.readline() if ready else b""
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
            raise ContenderFailedError(said[-1] if ready else f"no answer in {LONGEST_S:g} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Have it end; it ends by itself when there are no more requests."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _quiet(python: Path) -> dict[str, str]:
    """No network, no progress bars; and for torchcodec, where the system has no FFmpeg, the one of PyAV's wheel."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "SVT_LOG": "1"}
    links = python.parents[1] / "ffmpeg"
    if links.is_dir():
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([str(links), str(next(links.iterdir()).resolve().parent)])
    return variables


def measure(benchmark: Benchmark, scene: Scene, seconds: float) -> dict[str, Any]:
    """Run a benchmark, `seconds` a contender; returns what goes into the results."""
    setup = {"cache": str(scene.cache), "size": scene.size, **benchmark.prepare(scene)}
    results: dict[str, dict[str, Any]] = {}
    rounds: Mapping[str, Sequence[float | None]] = {}
    read: dict[str, dict[str, list[Any]]] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for contender in benchmark.contenders:
            python = python_of(contender.environment)
            if python is None:
                results[contender.name] = {"missing": f"make bench-peers makes .venv-peers-{contender.environment}"}
                continue
            log = scene.cache / "logs" / f"{benchmark.name}-{contender.name.replace(' ', '_')}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            try:
                processes[contender.name] = process = Process(contender, python, setup, log)
                stack.callback(process.close)
                read[contender.name] = {} if contender.own_batches else process.check()
            except ContenderFailedError as error:
                processes.pop(contender.name, None)
                results[contender.name] = {"failed": str(error)}
        rounds = in_turns(processes, {contender.name: contender for contender in benchmark.contenders}, seconds)
        for name, process in processes.items():
            results[name] = {"versions": process.versions, **process.memory(), **compared(read, name)}
    measured = Measured(rounds, {} if benchmark.count is None else benchmark.count(setup))
    for name in rounds:
        median = measured.median(name)
        assert median is not None
        results[name] |= {
            "ms": median,
            "samples_per_s": 1000 * setup["batch_size"] / median,
            "rounds": [value and round(value, 5) for value in rounds[name]],
        }
    return {
        "title": benchmark.title,
        "batch_size": setup["batch_size"],
        "contenders": {c.name: results[c.name] for c in benchmark.contenders if c.name in results},
        "figures": measured.figures,
        "goals": [goal.to_dict(measured) for goal in benchmark.goals],
    }


def compared(read: Mapping[str, Mapping[str, list[Any]]], name: str) -> dict[str, list[str]]:
    """Say on which keys a contender's first batch was ours; those of another size are not compared.

    Bytes are the same as floats in [0, 1], as which others give images.

    >>> read = {"roboreel": {"a": ["f", 2, 1.0], "b": ["f", 2, 9.0], "c": ["u", 4, 510.0], "d": ["u", 4, 0.0]}}
    >>> theirs = {"a": ["f", 2, 1.0], "b": ["f", 2, 8.0], "c": ["f", 4, 2.0], "d": ["u", 8, 0.0]}
    >>> compared({**read, "numpy": theirs}, "numpy")
    {'same': ['a', 'c'], 'other': ['b']}
    """
    ours = read.get(OURS, {})
    alike = {key: found for key, found in read[name].items() if key in ours and ours[key][1] == found[1]}
    same = [key for key, found in alike.items() if _is_same(ours[key], found)]
    return {"same": same, "other": [key for key in alike if key not in same]}


def _is_same(one: list[Any], other: list[Any]) -> bool:
    as_floats = {one[0], other[0]} == {"u", "f"}
    sums = [total / 255 if as_floats and kind == "u" else total for kind, _, total in (one, other)]
    return math.isclose(*sums, rel_tol=1e-3, abs_tol=1e-3)


def in_turns(
    processes: Mapping[str, Process], contenders: Mapping[str, Contender], seconds: float
) -> dict[str, list[float | None]]:
    """Return for each process the milliseconds of a batch in each round; None where a slow one sat it out."""
    counts: dict[str, int] = {}
    turns: dict[str, int] = {}
    for name, process in processes.items():
        counts[name], took = paced(process, contenders[name])
        turns[name] = max(3, round(seconds / max(took, PART_S)))
    most = min(max(turns.values(), default=0), max(5, round(seconds / PART_S)))
    rounds: dict[str, list[float | None]] = {name: [] for name in processes}
    names = list(processes)
    deadline = time.monotonic() + 2 * seconds * len(names) + LONGEST_S
    for number in range(most):
        start = number % len(names)
        for name in names[start:] + names[:start]:  # who comes after whom changes too
            share = min(turns[name], most)
            if (number + 1) * share // most == number * share // most or time.monotonic() > deadline:
                rounds[name].append(None)
                continue
            rounds[name].append(1000 * processes[name].run(counts[name]) / counts[name])
    return rounds


def paced(process: Process, contender: Contender) -> tuple[int, float]:
    """Return how many batches this contender does in a turn, and the seconds that they take."""
    took = process.run(1)
    if contender.one_by_one:
        return 1, took
    count = max(contender.least, min(2000, round(PART_S / max(took, 1e-6))))
    if count > 1:  # the first is slow: look again with as many as it will be
        took = process.run(count)
        count = max(contender.least, round(count * PART_S / max(took, 1e-6)))
        return count, max(took, PART_S)
    return count, took
