"""The storage engine: a directory of episodes, one writer, any number of readers."""

from roboreel.columns.base import Decoding, Frames, VideoDecoderName
from roboreel.columns.encode import encode_video
from roboreel.columns.frame_table import FrameTable
from roboreel.columns.frames import (
    IMAGE_FORMATS,
    ArrayFrames,
    CameraFrames,
    PickedFrames,
    PngFrames,
    VideoFrames,
    is_mapped_in,
)
from roboreel.columns.png import encode_png
from roboreel.columns.remux import JoinedVideo, PacketReader, PacketRun
from roboreel.format.files import free_bytes, make_dir, remove
from roboreel.format.filesystem import check_ring_place
from roboreel.format.manifest import Manifest, check_no_lerobot, is_unfinished
from roboreel.format.paths import encode_key
from roboreel.store.attempt import Touched
from roboreel.store.cameras import AskedMode, AskedOptions, CameraStorage
from roboreel.store.capacity import ENCODED_MARGIN, Capacity, check_not_smaller, parse_capacity, with_capacity
from roboreel.store.check import find_problems, is_dataset
from roboreel.store.cloning import SnapshotReport
from roboreel.store.conversion import Conversion, ConversionReport
from roboreel.store.conversion_forecast import CameraForecast, ConversionForecast, encoded_bytes, on_disk, written_bytes
from roboreel.store.conversion_place import put_back
from roboreel.store.editing import changed_rows, check_editable
from roboreel.store.episode import Episode, at_size, check_channels, infer_keys
from roboreel.store.folder_beside import GrowingFile, built_beside, write_file
from roboreel.store.forecast import Forecast, KeyForecast, forecast
from roboreel.store.frame_cache import (
    CacheReport,
    DecodedCache,
    cache_report,
    check_room,
    clear_cache,
    parse_decoded_cache,
)
from roboreel.store.image_size import AskedSize
from roboreel.store.incoming import check_cameras, split_episodes
from roboreel.store.layout import check_empty, discard, frame_bytes
from roboreel.store.pace import Pace
from roboreel.store.read_cost import payoff_text, source_window_seconds, window_seconds
from roboreel.store.repair import Repaired, repair
from roboreel.store.slots import frame_checksums
from roboreel.store.snapshot import request_snapshot
from roboreel.store.store import Store
from roboreel.store.structure import memory_bytes
from roboreel.store.transcoding import CameraSource
from roboreel.store.verify import Report, verify
from roboreel.store.writer import Writer

__all__ = [
    "ENCODED_MARGIN",
    "IMAGE_FORMATS",
    "ArrayFrames",
    "AskedMode",
    "AskedOptions",
    "AskedSize",
    "CacheReport",
    "CameraForecast",
    "CameraFrames",
    "CameraSource",
    "CameraStorage",
    "Capacity",
    "Conversion",
    "ConversionForecast",
    "ConversionReport",
    "DecodedCache",
    "Decoding",
    "Episode",
    "Forecast",
    "FrameTable",
    "Frames",
    "GrowingFile",
    "JoinedVideo",
    "KeyForecast",
    "Manifest",
    "Pace",
    "PacketReader",
    "PacketRun",
    "PickedFrames",
    "PngFrames",
    "Repaired",
    "Report",
    "SnapshotReport",
    "Store",
    "Touched",
    "VideoDecoderName",
    "VideoFrames",
    "Writer",
    "at_size",
    "built_beside",
    "cache_report",
    "changed_rows",
    "check_cameras",
    "check_channels",
    "check_editable",
    "check_empty",
    "check_no_lerobot",
    "check_not_smaller",
    "check_ring_place",
    "check_room",
    "clear_cache",
    "discard",
    "encode_key",
    "encode_png",
    "encode_video",
    "encoded_bytes",
    "find_problems",
    "forecast",
    "frame_bytes",
    "frame_checksums",
    "free_bytes",
    "infer_keys",
    "is_dataset",
    "is_mapped_in",
    "is_unfinished",
    "make_dir",
    "memory_bytes",
    "on_disk",
    "parse_capacity",
    "parse_decoded_cache",
    "payoff_text",
    "put_back",
    "remove",
    "repair",
    "request_snapshot",
    "source_window_seconds",
    "split_episodes",
    "verify",
    "window_seconds",
    "with_capacity",
    "write_file",
    "written_bytes",
]
