"""Seeds for what is drawn in one step."""

from __future__ import annotations

import numpy as np


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of all that is drawn in one step, mixed so that (1, 2) and (2, 1) have nothing in common.

    >>> len({step_seed(1, 2), step_seed(2, 1), step_seed(1, 3), step_seed(1, 2, rank=1)})
    4
    """
    return int(np.random.SeedSequence([seed, step, rank] if rank else [seed, step]).generate_state(1, np.uint64)[0])
