"""Import an optional package in the leaf that needs it, or say what to type."""

from __future__ import annotations

import importlib
from types import ModuleType

from roboreel.errors import MissingDependencyError


def require(module: str, *, extra: str | None = None, purpose: str) -> ModuleType:
    """Return the imported `module`, or raise `MissingDependencyError` with the command that installs it.

    >>> require("json", purpose="reading metadata").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the package is there and one of its own imports is broken: hiding that would mislead
        package = f"roboreel[{extra}]" if extra else module.partition(".")[0]
        raise MissingDependencyError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed; "
            f"type: pip install '{package}'"
        ) from error
