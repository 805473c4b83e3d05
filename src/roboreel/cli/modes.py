"""`--image-mode` as it is typed."""

from __future__ import annotations

from collections.abc import Sequence

from roboreel.errors import InvalidArgumentError


def parse_modes(typed: Sequence[str]) -> str | dict[str, str] | None:
    """Return `image_mode` for what was typed: one mode, or KEY=MODE once or more.

    >>> parse_modes(["png"]), parse_modes(["observation.images.wrist=memmap"]), parse_modes([])
    ('png', {'observation.images.wrist': 'memmap'}, None)
    """
    if not typed:
        return None
    if len(typed) == 1 and "=" not in typed[0]:
        return typed[0]
    pairs = [text.rpartition("=") for text in typed]
    if not all(key for key, _, _ in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise InvalidArgumentError(
            f"--image-mode {' '.join(typed)}; one mode would do, or CAMERA=MODE for each of some cameras"
        )
    return {key: mode for key, _, mode in pairs}
