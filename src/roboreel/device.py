"""Where tensors go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roboreel._optional import require
from roboreel.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch


def torch_device(name: str | torch.device) -> torch.device:
    """Return the device of this name, which is there and takes tensors.

    >>> torch_device("cpu")
    device(type='cpu')

    Raises:
        InvalidArgumentError: it is not there, or cannot be.
    """
    framework = require("torch", extra="torch", purpose="using a device")
    try:
        device: torch.device = framework.device(name)
        framework.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:  # torch has one for each way
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(f"device={name!r} cannot be used ({reason}); 'cpu' would do") from error
    return device
