"""Every frame once an epoch, the first and last ones of episodes left out."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from roboreel.sampling.drawable import Drawable, Ints
from roboreel.sampling.order import shuffled
from roboreel.sampling.sampler import Epoch, FrameSampler, Take


@dataclass(eq=False)
class EpisodeAwareSampler(FrameSampler):
    """Each frame once an epoch, without the first and last n of each episode, or of some episodes only.

    For `DataLoader(dataset, batch_sampler=EpisodeAwareSampler(dataset, batch_size=64, shuffle=True))`; without
    `batch_size` it gives single indices, for `DataLoader(dataset, batch_size=64, sampler=…)`.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2
    >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
    >>> for length in (3, 1, 4):
    ...     dataset.add_episodes({"action": np.zeros(length, np.float32)})
    >>> list(EpisodeAwareSampler(dataset, batch_size=3, drop_n_last_frames=1))
    [[0, 1, 4], [5, 6]]
    >>> list(EpisodeAwareSampler(dataset, episodes=[0, 2], drop_n_first_frames=1))
    [1, 2, 5, 6, 7]

    The order is a function of (seed, epoch): with the position in it, two integers, a run is taken up exactly, by
    `set_epoch(epoch, start)` or by `load_state_dict`, with any number of workers. Ranks get disjoint parts that
    together are everything, and the same number of batches where `batch_size` is 2 or more.

    Of a dataset that is written meanwhile, an epoch gives the frames that there were when it began, by their places:
    new ones come in the next epoch, or as what a ring has put in those places. Frames that were lost with a writer that
    died are left out.

    Raises:
        InvalidArgumentError: a number that cannot be; at the iteration: nothing to draw.
        EpisodeNotFoundError: an episode that the dataset does not hold. Later ones may leave a ring: they are left out.
    """

    _: KW_ONLY
    shuffle: bool = False
    """Another order in each epoch. Else the episodes one after the other, oldest first."""

    def _frames(self, drawable: Drawable) -> int:
        return drawable.frames

    def _taker(self, epoch: Epoch) -> Take:
        order = shuffled(epoch.frames, self.seed, epoch.number) if self.shuffle else None

        def take(first: int, stop: int) -> Ints:
            mine = slice(first + self.rank, stop, self.world_size)
            positions = np.arange(mine.start, mine.stop, mine.step) if order is None else order[mine]
            return epoch.drawable.indices(positions)

        return take
