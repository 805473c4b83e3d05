"""Write docs/equivalence.md from docs/results/equivalence.json; `--check` only compares.

python -m scripts.write_equivalence
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scripts.equivalence import RESULTS
from scripts.reliability import read_results

PAGE = RESULTS.parents[1] / "equivalence.md"

HEAD = """# Items are LeRobotDataset's, and where they are not

Nothing here is typed in: `python -m scripts.write_equivalence` writes this page from
`docs/results/equivalence.json`, to which `make equivalence` adds what it finds, in the environment of
`make test-lerobot`.

## How it was compared

`LeRobotDataset` opens a folder, and `LeRobotDatasetV2.from_lerobot` takes the same folder in. Of every item the keys
are compared, and of every key type, shape and bytes: columns, pictures decoded by the same decoder in both (PyAV,
and torchcodec), task strings, and the masks of windows. A *value* is one key of one item; *padded* counts the frames
that masks mark.

- **single**: single frames, without `delta_timestamps`.
- **policy**: states and pictures at -1 and 0 frames, actions from -1 to 14.
- **wide**: every column at -30, -1, 0, 1 and 30 frames, actions from 0 to 99, pictures at 2, 0 and -5, in that order.

LeRobot reads v3.0 alone: it is given folders of v2.1 as its own converter makes them v3.0, while ours reads them as
they are. From folders that declare cameras without a file it is given a copy whose `info.json` does not; ours leaves
them out by itself.

## What was compared
"""

REFUSED = """## What LeRobot does not open

Ours reads these folders; LeRobot, or its converter, says:
"""

DIFFERENCES = """## Where we differ on purpose

Each of these has a test in `tests/lerobot`, or stands in the tables above.

- **Types of columns stay as they are stored.** LeRobot makes all floats float32 and all integers int64. Ours gives
  float64 as float64, uint8 as uint8; cast to LeRobot's type, they are the same bytes. What was recorded exactly is
  then not rounded, and bytes do not take eight times their memory. Columns of float32, int64 and bool, which is what
  LeRobot's own robots record, are alike.
- **A picture is found by its number, not by its time.** Row k of an episode is frame k of its video. Where the
  recorded clock is not k / fps, LeRobot raises `FrameTimestampError` (it looks for a picture within 0.1 ms), or gives
  another row's picture where there is one so near by chance; ours gives the frame.
- **`len` is what is there.** LeRobot takes the number of frames from `info.json`, ours from the rows, with a warning
  where they differ: indices beyond the rows are an error in LeRobot only when they are drawn.
- **What is declared and absent is left out, with a warning**; `strict=True` refuses it. LeRobot looks for it on the
  Hub.
- **Windows of any key.** In LeRobot a window of `task_index`, of strings, or beside video of `timestamp`, is an
  error.
- **Offsets need not be whole frames.** LeRobot refuses those that are not k / fps within 0.1 ms; ours takes the
  nearest frame, of two that are as near the earlier. Where the frames of an episode jitter by less than half a step
  around k / fps, frame k counts as taken at k / fps.
- **Episodes that alone were downloaded are a dataset of their own**, with `index` and `episode_index` from 0. Opened
  with `episodes=`, or taken from a folder with it, they keep their numbers, as in LeRobot.
- **Export.** As in LeRobot's later versions and not in 0.4.4, `min` and `max` of integers and booleans are written as
  floats, and what tells a depth camera is called `is_depth_map`; the `std` of cameras is the true one, where 0.4.4
  squares bytes in bytes, which run over. Lists of lists are written without the extension types of `datasets`:
  pandas, and so LeRobot's own converter, fails at those.
"""

COLUMNS = {
    "folder": "folder",
    "windows": "windows",
    "decoder": "decoder",
    "items": "items",
    "values": "values",
    "pads": "padded",
    "different": "different",
    "refused": "LeRobot raises",
}


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the text of the page."""
    compared = sorted(results["compared"].values(), key=lambda run: (run["folder"] != "pusht", run["folder"]))
    parts = [HEAD, "| " + " | ".join(COLUMNS.values()) + " |", "| --- | --- | --- |" + " ---: |" * (len(COLUMNS) - 3)]
    parts += ["| " + " | ".join(_cell(run[key]) for key in COLUMNS) + " |" for run in compared]
    total = {key: sum(run[key] for run in compared) for key in ("items", "values", "pads", "different", "refused")}
    parts += [f"| **all** | | | {' | '.join(f'**{number:,}**' for number in total.values())} |", ""]
    about = {run["folder"]: _about(run) for run in sorted(compared, key=lambda run: len(run["taken_from"]))}
    parts += [*dict.fromkeys(about[run["folder"]] for run in compared), ""]
    parts += [*dict.fromkeys(_where(run) for run in compared), ""]
    parts += [REFUSED, "| folder | what it says |", "| --- | --- |"]
    parts += [f"| {name} | `{run['error']}` |" for name, run in sorted(results["not opened"].items())]
    return "\n".join([*parts, "", DIFFERENCES]).rstrip() + "\n"


def _about(run: dict[str, Any]) -> str:
    """What a folder holds, what LeRobot was given of it, and what it said."""
    said = f"- {run['folder']}: {run['episodes']:,} episodes, {run['frames']:,} frames"
    if run["frames_there"] != run["frames"]:
        said += f", of which LeRobot counts {run['frames_there']:,}"
    if run["given"]:
        said += f"; LeRobot had it {run['given']}"
    if run["refused"]:
        said += "; it raises `FrameTimestampError`, because the recorded clock is not k / fps"
    for row, other in run["taken_from"].items():
        said += f", and for row {row}, where the clock is so by chance, it gives the picture of row {other}"
    return said


def _where(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"- {run['date']}, {run['machine']}, {versions}"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    text = page(read_results(RESULTS))
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            raise SystemExit(
                "docs/equivalence.md is not what the figures say: type python -m scripts.write_equivalence"
            )
        return
    Path(PAGE).write_text(text)


if __name__ == "__main__":
    main()
