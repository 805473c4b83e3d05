"""The storage engine: a directory of episodes, one writer, any number of readers."""

from roboreel.columns.frame_table import FrameTable
from roboreel.columns.frames import ArrayFrames, CameraFrames, PngFrames, VideoFrames
from roboreel.format.files import free_bytes, rename, sync_path
from roboreel.format.manifest import Manifest, check_no_lerobot
from roboreel.store.check import find_problems, is_dataset
from roboreel.store.editing import changed_rows, check_editable
from roboreel.store.episode import Episode, infer_keys
from roboreel.store.layout import discard, frame_bytes
from roboreel.store.store import Store, Touched
from roboreel.store.writer import Writer

__all__ = [
    "ArrayFrames",
    "CameraFrames",
    "Episode",
    "FrameTable",
    "Manifest",
    "PngFrames",
    "Store",
    "Touched",
    "VideoFrames",
    "Writer",
    "changed_rows",
    "check_editable",
    "check_no_lerobot",
    "discard",
    "find_problems",
    "frame_bytes",
    "free_bytes",
    "infer_keys",
    "is_dataset",
    "rename",
    "sync_path",
]
