"""Take a folder of JPEGs and a CSV in as a dataset: a `roboreel.Source` of one's own.

    python examples/import_jpegs.py FOLDER DEST --fps 10

FOLDER has `frames.csv`, a line for each frame, those of an episode together and in order, and beside it the images:

    episode,image,task,state.x,state.y,action.x,action.y
    0,images/000000.jpg,push,0.1,0.2,0.3,0.4
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from roboreel import LeRobotDatasetV2, Source, image_files


class JpegFolder(Source):
    """Lines of a CSV file with the same `episode` are an episode."""

    def __init__(self, folder: Path, fps: float) -> None:
        self.fps = fps
        self.files = [folder]  # when one of them changes, it is another recording
        with (folder / "frames.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        self._episodes = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["episode"])]
        self.lengths = [len(episode) for episode in self._episodes]

    def read_episode(self, number: int) -> dict[str, Any]:
        rows = self._episodes[number]
        return {
            "observation.image": image_files([Path(self.files[0]) / row["image"] for row in rows]),
            "observation.state": numbers(rows, "state."),
            "action": numbers(rows, "action."),
            "task": [row["task"] for row in rows],
        }


def numbers(rows: list[dict[str, str]], prefix: str) -> np.ndarray[Any, Any]:
    """The columns that begin so, as an array (frames, columns)."""
    return np.array([[float(row[name]) for name in row if name.startswith(prefix)] for row in rows], np.float32)


def main(folder: tyro.conf.Positional[Path], dest: tyro.conf.Positional[Path], fps: float) -> None:
    """Take FOLDER in as a dataset in DEST."""
    with LeRobotDatasetV2.from_source(JpegFolder(folder, fps), dest) as dataset:
        print(dataset)


if __name__ == "__main__":
    tyro.cli(main)
