"""LeRobot's `make_dataset`, and ours in its place.

`lerobot-train` makes its dataset by that one function and has no hook for another. So the name is given another
meaning, in the module that defines it and wherever it was imported by then.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from roboreel._optional import require
from roboreel.errors import ConfigError
from roboreel.lerobot.source import SourceOptions
from roboreel.lerobot.training_data import make_training_data

KNOWN_VERSIONS = ("0.4.4", "0.6.1")
"""Of lerobot, whose training loop was run on our dataset."""

_NAME = "make_dataset"
_FACTORY = "lerobot.datasets.factory"

_installed: Installed | None = None


class Installed:
    """That LeRobot makes our datasets; leaving a `with` block ends it."""

    def __init__(self, original: Callable[..., Any], options: SourceOptions) -> None:
        self._original = original
        self.options = options

        @functools.wraps(original)
        def make_dataset(cfg: Any) -> Any:
            return make_training_data(cfg, self.options)

        self._ours = make_dataset
        _exchange(original, make_dataset)

    def uninstall(self) -> None:
        """Give LeRobot its own function back; once is enough."""
        global _installed  # noqa: PLW0603 - what it stands for is global too: another package's module
        _exchange(self._ours, self._original)
        if _installed is self:
            _installed = None

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.uninstall()


def install(
    *,
    storage_dir: str | Path | None = None,
    decode_images: bool = False,
    decoded_cache: str | None = None,
    force: bool = False,
) -> Installed:
    """Have LeRobot's training loop read our dataset, in this process, until `uninstall()`.

    What `--dataset.repo_id` or `--dataset.root` name is taken in the first time, and opened ever after. Everything else
    is LeRobot's: options, policies, checkpoints. Called again, it takes the new arguments.

        import roboreel.lerobot
        roboreel.lerobot.install()
        from lerobot.scripts.lerobot_train import main
        main()  # as `lerobot-train` would, with the same options

    Args:
        storage_dir: Where the dataset goes, for runs on one dataset. None: a place of its own for each, beneath
            `$HF_HOME/roboreel/`.
        decode_images: Decode cameras into raw pixels once: fastest to read, largest on disk.
        decoded_cache: Keep frames that were decoded, up to "8GB" of them.
        force: Also into a version of lerobot that is none of `KNOWN_VERSIONS`.

    Returns:
        What `with` takes, so that it ends with a block.

    Raises:
        MissingDependencyError: there is no lerobot. ConfigError: there is another version of it.
    """
    global _installed  # noqa: PLW0603 - as above
    place = None if storage_dir is None else Path(storage_dir)
    options = SourceOptions(place, decode_images, decoded_cache)
    _check_version(force)
    if _installed is None:
        factory = require(_FACTORY, extra="lerobot", purpose="LeRobot's training")
        _installed = Installed(getattr(factory, _NAME), options)
    _installed.options = options
    return _installed


def uninstall() -> None:
    """Give LeRobot its own datasets back, where it has ours.

    >>> uninstall()  # where nothing was installed, nothing changes
    """
    if _installed is not None:
        _installed.uninstall()


def _check_version(force: bool) -> None:
    require("lerobot", extra="lerobot", purpose="LeRobot's training")
    try:
        found = version("lerobot")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        found = "unknown"
    if found not in KNOWN_VERSIONS and not force:
        known = ", ".join(KNOWN_VERSIONS)
        raise ConfigError(
            f"lerobot {found} is not among the versions whose training was run on this dataset: {known}; "
            f"type pip install 'lerobot=={KNOWN_VERSIONS[-1]}', or try it all the same: install(force=True), "
            "roboreel lerobot-train --roboreel.force"
        )


def _exchange(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put `new` in the place of `old` in every module of lerobot that has it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "lerobot" and getattr(module, _NAME, None) is old:
            setattr(module, _NAME, new)
