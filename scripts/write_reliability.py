"""Write docs/reliability.md from docs/results/reliability.json; `--check` only compares.

python -m scripts.write_reliability
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scripts.reliability import RESULTS, read_results

PAGE = RESULTS.parents[1] / "reliability.md"

CONTRACT = """# What survives, and how often it was tried

Nothing here is typed in: `python -m scripts.write_reliability` writes this page from `docs/results/reliability.json`,
to which the commands below add their figures.

## The contract

- **Killed at any instant** (`kill -9`): reopening shows every committed episode, identical, and nothing of the one
  under way. No repair step. In a ring, the frames that were being replaced at that instant are lost, and nothing else.
- **Power lost**: every episode from before the last `flush()` (`add_episodes` flushes unless `no_flush=True`), less the
  range of a ring that was overwritten since or was about to be: a sixteenth of the ring is taken ahead.
- **An edit** is there whole or not at all, after a kill and after a power cut.
- **A full disk, an I/O error, an exception in between**: an error that says so; everything is as it was, and goes on.
- **Readers in other processes** never see a window of two episodes, or of two versions of one, while a writer
  overwrites, grows, edits or dies. They wait for a living writer at most 10 s, for a dead one not at all.

How it is done stands in [format.md](format.md). The reading protocol was tested on x86-64 only.
"""

SECTIONS = {
    "kills": (
        "Kills",
        "`make torture` starts a writer that adds, overwrites, grows, edits, flushes and reopens, kills it with "
        "SIGKILL after a random time, and compares what is left with the log that the writer kept.",
        {
            "kills": "kills",
            "operations": "operations",
            "lost": "frames lost",
            "lost_in_mid_overwrite": "frames that a ring was replacing when killed",
            "seconds": "s",
        },
    ),
    "windows": (
        "Windows read while written",
        "`make windows` has `DataLoader` workers read windows from a ring whose every frame, images included, says "
        "which it is, while writers overwrite, grow, edit and are killed. With the protocol switched off "
        "(`--broken`) the same check finds torn windows. Without images (`--mode none`) one process reads, the shorter "
        "way wherever nobody writes.",
        {
            "mode": "images",
            "start": "workers begin by",
            "windows": "windows",
            "padded": "with padding",
            "torn": "torn",
            "kills": "writers killed",
            "growths": "growths",
            "edits": "edits",
            "episodes_written": "episodes written",
            "times_round": "times round the ring",
            "seconds": "s",
        },
    ),
    "power cuts": (
        "Power cuts",
        "Simulated in the file layer (`tests/power.py`): what was not synced is missing in any order, torn at sectors "
        "of 512 or 4096 bytes, entries of directories too. After each cut the dataset is opened, read, written to, and "
        "read again.",
        {"histories": "random histories", "cuts": "cuts", "lost": "flushed frames lost"},
    ),
    "faults": (
        "Failing effects",
        "Each write, sync, rename, allocation and removal that adding, overwriting, growing, editing, flushing, taking "
        "a snapshot and closing consist of is made to fail once, in each image mode (`tests/faults.py`), a write also "
        "when half of its bytes are there. After each, the dataset is as before or as it was to become, and the same "
        "object goes on: edits, adds, grows, flushes, takes a snapshot, closes, and `verify` finds nothing.",
        {
            "changes": "kinds of change",
            "faults": "effects failed",
            "told": "told to the caller",
            "undone": "undone",
            "neither": "neither old nor new",
            "seconds": "s",
        },
    ),
    "flips": (
        "Damage found",
        "Bits are flipped and files cut short, one at a time, in what a committed frame, row or key depends on "
        "(`tests/damage.py`), in all three image modes; `roboreel verify` is to find each.",
        {"files": "files", "flipped": "bits flipped", "cut": "files cut", "missed": "not found", "seconds": "s"},
    ),
}


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the text of the page."""
    parts = [CONTRACT]
    for kind, (title, text, columns) in SECTIONS.items():
        runs = results.get(kind, {})
        if not runs:
            continue
        parts += [f"## {title}\n", text + "\n"]
        parts += ["| run | " + " | ".join(columns.values()) + " |", "| --- |" + " ---: |" * len(columns)]
        parts += [f"| {name} | " + " | ".join(_cell(run[key]) for key in columns) + " |" for name, run in runs.items()]
        parts.append("")
        parts += [f"- {name}: `{run['command']}`, {_where(run)}" for name, run in runs.items()]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _where(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"{run['date']}, {run['machine']}, {versions}"


def main() -> None:
    text = page(read_results())
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            raise SystemExit(
                "docs/reliability.md is not what the figures say: type python -m scripts.write_reliability"
            )
        return
    Path(PAGE).write_text(text)


if __name__ == "__main__":
    main()
