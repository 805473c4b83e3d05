"""Whether a directory holds a dataset, and what a quick look at its frames finds."""

from __future__ import annotations

from pathlib import Path

from roboreel.format import files, paths
from roboreel.store.frame_check import FrameCheck
from roboreel.store.store import Store


def is_dataset(root: Path) -> bool:
    """Whether there is a dataset in the directory; `metadata.json` is the last file that its making writes."""
    with files.looking_at(root):
        return (root / paths.METADATA).exists()


def find_problems(store: Store) -> list[str]:
    """Return a line for each thing in which the files contradict each other, without reading every byte of them."""
    return [str(problem) for problem in FrameCheck(store, every_byte=False).problems()]
