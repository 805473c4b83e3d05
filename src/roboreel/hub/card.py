"""The card of a dataset on the Hub: what it holds, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card_of(repo_id: str, info: Mapping[str, Any], license_id: str | None) -> str:
    """The README.md of a repository, by its info.json: figures, features, licence, how to load it."""
    seconds = info["total_frames"] / info["fps"]
    rows = [
        f"| `{name}` | {feature['dtype']} | {' × '.join(map(str, feature['shape']))} |"
        for name, feature in sorted(info["features"].items())
    ]
    head = ["---", *([f"license: {license_id}"] if license_id else []), "task_categories:", "- robotics"]
    head += [
        "tags:",
        "- LeRobot",
        "- roboreel",
        "configs:",
        "- config_name: default",
        "  data_files: data/*/*.parquet",
        "---",
    ]
    robot = f", recorded with {info['robot_type']}" if info.get("robot_type") else ""
    return "\n".join(
        [
            *head,
            "",
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
            "",
        ]
    )
