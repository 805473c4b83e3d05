"""LeRobot's own dataset, in the place of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roboreel._optional import require
from roboreel.errors import ConfigError
from roboreel.train.lerobot.policy import lerobot
from roboreel.train.options import RunConfig


def open_theirs(options: RunConfig, wanted: Mapping[str, Sequence[float]], frames: int) -> Any:
    """Return LeRobot's own dataset, which has the same frames under the same indices.

    Raises:
        ConfigError: LeRobot does not read the folder, or finds others.
    """
    try:
        dataset = lerobot("datasets.lerobot_dataset").LeRobotDataset(
            f"local/{options.dataset.name}", root=options.dataset, delta_timestamps=wanted, video_backend=_decoder()
        )
    except Exception as error:  # it raises what it likes, and looks on the Hub for what it misses
        raise ConfigError(f"--loader lerobot: LeRobot does not read {options.dataset} ({error})") from error
    if len(dataset) != frames:
        raise ConfigError(f"--loader lerobot: LeRobot finds {len(dataset)} frames in {options.dataset}, not {frames}")
    return dataset


def _decoder() -> str:
    """LeRobot's choice, where it works; it raises what it likes where it finds no FFmpeg."""
    try:
        require("torchcodec.decoders", purpose="decoding")
    except Exception:  # noqa: BLE001 - see above
        return "pyav"
    return "torchcodec"
