"""The committed figures of long runs, `docs/results/reliability.json`: read, and added to with where and when."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "reliability.json"


def read_results(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return {kind of run: {name: figures}}."""
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return results


def record(
    kind: str,
    name: str,
    figures: dict[str, Any],
    path: Path = RESULTS,
    packages: Sequence[str] = ("roboreel", "numpy"),
) -> None:
    """Put the figures of one run beside the others, in place of those of the same name."""
    results = read_results(path)
    results.setdefault(kind, {})[name] = {
        **{key: value for key, value in figures.items() if key not in ("into", "examples")},
        "command": " ".join(["python -m", f"scripts.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }
    ordered = {kind: dict(sorted(results[kind].items())) for kind in sorted(results)}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package != "roboreel":
            raise
        # found by its path, as beside LeRobot
        return str(tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"])
