"""Where the dataset of a LeRobot run comes from, and the storage that it is taken into once."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboreel import LeRobotDatasetV2
from roboreel._optional import require
from roboreel.convert.ingest import fingerprint
from roboreel.errors import ConfigError
from roboreel.lerobot.stored_metadata import StoredMetadata
from roboreel.store import is_dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceOptions:
    """How what LeRobot's options name is taken in."""

    storage_dir: Path | None = None
    """Where the dataset goes, for runs on one dataset. Not given: a place of its own for each, in $HF_HOME/roboreel."""
    decode_images: bool = False
    """Decode cameras into raw pixels once: fastest to read, largest on disk."""
    decoded_cache: str | None = None
    """Keep frames that were decoded, up to this size, as 8GB."""


@dataclass(frozen=True)
class Source:
    """A dataset that was taken in, and what LeRobot says of it."""

    dataset: LeRobotDatasetV2
    meta: Any
    """`LeRobotDatasetMetadata`; `StoredMetadata` of what LeRobot does not read itself."""


def open_source(chosen: Any, options: SourceOptions) -> Source:
    """Take in what `chosen`, LeRobot's `DatasetConfig`, names, or open what is there.

    That is, in this order: `root`, a roboreel dataset or a LeRobot folder of any version; the folder that LeRobot has
    for `repo_id`, where it is whole; the repository `repo_id` on the Hub.

    Raises:
        SourceError, HubError, DiskSpaceError: as `LeRobotDatasetV2.from_lerobot` and `from_huggingface_hub`.
    """
    given: dict[str, Any] = {"decoded_cache": options.decoded_cache, "video_decoder": _decoder(chosen.video_backend)}
    root = None if chosen.root is None else Path(chosen.root)
    if root is not None and is_dataset(root):
        if options.decode_images or options.storage_dir is not None:
            raise ConfigError(
                f"--dataset.root {root} is a roboreel dataset and is read where it is, as it is: leave storage_dir and "
                f"decode_images out; raw pixels: roboreel convert {root} --image-mode memmap"
            )
        dataset = LeRobotDatasetV2(root, readonly=True, **given)
        return Source(dataset, StoredMetadata.of(dataset, chosen.repo_id))
    folder = root if root is not None else _lerobot_home() / chosen.repo_id
    meta = _lerobot_metadata(chosen, folder)
    if meta is not None and _is_read_as_bytes(chosen, meta):
        given["image_dtype"] = "uint8"
    if _is_whole(folder, meta):
        place = options.storage_dir or place_of(folder, decoded=options.decode_images)
        dataset = LeRobotDatasetV2.from_lerobot(folder, place, options.decode_images, readonly=True, **given)
    else:
        dataset = LeRobotDatasetV2.from_huggingface_hub(
            chosen.repo_id,
            options.decode_images,
            revision=chosen.revision if meta is None else meta.revision,
            episodes=None if chosen.episodes is None else sorted(set(chosen.episodes)),
            storage_dir=options.storage_dir,
            readonly=True,
            **given,
        )
    log.info("frames are read from %s", dataset.storage_dir)
    return Source(dataset, meta or StoredMetadata.of(dataset, chosen.repo_id))


def _is_read_as_bytes(chosen: Any, meta: Any) -> bool:
    """Whether LeRobot gives images as uint8, which its loop converts: from 0.6 on those of video, and not others."""
    kinds = {feature["dtype"] for feature in meta.features.values()}
    return hasattr(chosen, "return_uint8") and "video" in kinds and "image" not in kinds


def _decoder(backend: str | None) -> str:
    """Ours for one of LeRobot's: torchcodec where it is asked for and works; LeRobot asks for it unless told."""
    if backend == "torchcodec":
        with contextlib.suppress(Exception):  # it raises what it likes where it finds no FFmpeg
            require("torchcodec.decoders", purpose="decoding")
            return "torchcodec"
        log.warning("torchcodec does not work here: video is decoded by PyAV")
    return "pyav"


def lerobot_module(*names: str) -> Any:
    """Import a module of lerobot's that its versions have by different names."""
    require("lerobot", extra="lerobot", purpose="LeRobot's training")
    found = next((name for name in names if importlib.util.find_spec(name) is not None), names[0])
    return require(found, extra="lerobot", purpose="LeRobot's training")


def _lerobot_home() -> Path:
    constants = require("lerobot.utils.constants", extra="lerobot", purpose="LeRobot's training")
    return Path(constants.HF_LEROBOT_HOME)


def _lerobot_metadata(chosen: Any, folder: Path) -> Any:
    """LeRobot's metadata of a folder, or of the repository, which it then has in that folder; None of old versions."""
    if (folder / "meta_data").is_dir() or (folder / "meta" / "episodes.jsonl").is_file():
        return None
    module = require("lerobot.datasets.lerobot_dataset", extra="lerobot", purpose="LeRobot's training")
    old = lerobot_module("lerobot.datasets.backward_compatibility", "lerobot.datasets.utils")
    try:
        return module.LeRobotDatasetMetadata(chosen.repo_id, root=chosen.root, revision=chosen.revision)
    except old.CompatibilityError as error:
        log.info("%s", str(error).strip().partition("\n")[0])
        return None


def _is_whole(folder: Path, meta: Any) -> bool:
    """Whether a folder has all files that its metadata name; of old versions, whether there is one."""
    if meta is None:
        return (folder / "meta").is_dir() or (folder / "meta_data").is_dir()
    numbers = range(meta.total_episodes)
    paths = {meta.get_data_file_path(k) for k in numbers}
    paths |= {meta.get_video_file_path(k, key) for key in meta.video_keys for k in numbers}
    return all((folder / path).is_file() for path in paths)


def place_of(folder: Path, *, decoded: bool) -> Path:
    """Return where a folder's frames go, beneath `$HF_HOME`, for all runs on it: elsewhere once its content changes."""
    home = Path(os.environ.get("HF_HOME") or _hub_home()).expanduser()
    name = f"{folder.resolve().name}-{fingerprint(folder)}"
    return home / "roboreel" / "folders" / (name + "-decoded" * decoded)


def _hub_home() -> str:
    return str(require("huggingface_hub.constants", extra="hub", purpose="the Hugging Face Hub").HF_HOME)
