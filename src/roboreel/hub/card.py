"""The card of a dataset on the Hub: what it holds, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BEGIN, _END = "<!-- roboreel: what a push writes -->", "<!-- roboreel: end; what is written elsewhere stays -->"
_HEAD = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(\n|\Z)", re.DOTALL)
_LICENSE = re.compile(r"^license:[ \t]*(.*?)[ \t]*\n", re.MULTILINE)


def card_of(repo_id: str, info: Mapping[str, Any], license_id: str | None, known: str | None = None) -> str:
    """The README.md of a repository, by its info.json: figures, features, licence, how to load it.

    `known` is the README.md that is there: of it, what is between our marks is replaced, and the rest stays. Where it
    has no marks, which others have then written, ours comes after it.
    """
    known = (known or "").replace("\r\n", "\n")
    found = _HEAD.match(known)
    head, text = (found[1] or "", known[found.end() :]) if found else (_head(), known)
    there = _LICENSE.search(head)
    if license_id and (there is None or there[1] != license_id):
        head = f"license: {license_id}\n" + _LICENSE.sub("", head)
    elif there is not None:
        license_id = there[1]
    figures = f"{_BEGIN}\n{_figures(repo_id, info, license_id)}\n{_END}\n"
    start, stop = text.find(_BEGIN), text.find(_END)
    if 0 <= start < stop:
        text = text[:start] + figures + text[stop + len(_END) :].removeprefix("\n")
    else:
        text = f"{text.rstrip()}\n\n{figures}"
    return f"---\n{head}---\n{text}"


def _head() -> str:
    lines = ["task_categories:", "- robotics", "tags:", "- LeRobot", "- roboreel"]
    lines += ["configs:", "- config_name: default", "  data_files: data/*/*.parquet"]
    return "\n".join([*lines, ""])


def _figures(repo_id: str, info: Mapping[str, Any], license_id: str | None) -> str:
    seconds = info["total_frames"] / info["fps"]
    rows = [
        f"| `{name}` | {feature['dtype']} | {' × '.join(map(str, feature['shape']))} |"
        for name, feature in sorted(info["features"].items())
    ]
    robot = f", recorded with {info['robot_type']}" if info.get("robot_type") else ""
    return "\n".join(
        [
            f"# {repo_id}",
            "",
            f"{info['total_episodes']:,} episodes of {info['total_tasks']:,} tasks: {info['total_frames']:,} frames at "
            f"{info['fps']:g} Hz, {seconds / 60:,.1f} minutes{robot}. LeRobot {info['codebase_version']}.",
            "",
            "| feature | dtype | shape |",
            "| --- | --- | --- |",
            *rows,
            "",
            "## Load it",
            "",
            "```python",
            "from roboreel import LeRobotDatasetV2",
            "",
            f'dataset = LeRobotDatasetV2.from_huggingface_hub("{repo_id}")',
            "```",
            "",
            "or with LeRobot:",
            "",
            "```python",
            "from lerobot.datasets.lerobot_dataset import LeRobotDataset",
            "",
            f'dataset = LeRobotDataset("{repo_id}")',
            "```",
            "",
            f"Licence: {license_id or 'none given; ask the authors'}.",
        ]
    )
