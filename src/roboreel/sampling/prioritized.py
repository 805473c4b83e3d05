"""Prioritized experience replay: frames drawn by priorities that training changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.errors import InvalidArgumentError
from roboreel.sampling.drawable import Drawable, Ints
from roboreel.sampling.order import uniforms
from roboreel.sampling.sampler import Epoch, Take
from roboreel.sampling.sum_tree import Floats, SumTree
from roboreel.sampling.weighted import DrawingSampler
from roboreel.windows import stretches

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 1e290
"""That a frame may weigh: as many as a disk can hold add up to what a float64 holds."""
_REMEMBERED = 1024
"""So many batches that were given are known to `state_dict`; a DataLoader asks for 2 a worker ahead."""


@dataclass(eq=False)
class PrioritizedSampler(DrawingSampler):
    """Frames drawn with replacement by priorities that `update` changes in place, for `DataLoader(batch_sampler=)`.

    Schaul, Quan, Antonoglou, Silver: Prioritized Experience Replay, ICLR 2016 (arXiv:1511.05952), the proportional
    variant: frame i is drawn with the probability P(i) = p_i^α / Σ p^α, p_i = priority + eps, one frame from each of
    equal parts of the sum. Frames that are new, also those that a ring puts over others, get the highest priority that
    was ever given (1 at first), and so will be seen; those that are overwritten, dropped or lost weigh 0.

        sampler = PrioritizedSampler(buffer, batch_size=256)
        for batch in DataLoader(buffer, batch_sampler=sampler):
            errors = td_errors(batch)
            (sampler.importance_weights(batch["index"]) * errors**2).mean().backward()
            sampler.update(batch["index"], errors.abs())

    Frames are told by their number, `batch["index"]`, which no other frame ever gets: by the time that its error is
    known a frame may be overwritten, and the one in its place must not take the error over.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2
    >>> buffer = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
    >>> buffer.add_episodes({"action": np.zeros(4, np.float32)})
    >>> sampler = PrioritizedSampler(buffer, batch_size=4, alpha=1, beta=1, eps=0)
    >>> sampler.update([0, 1, 2, 99], [6, 1, 0, 5])  # 99 is no frame of it (any more)
    3
    >>> sampler.probabilities().tolist()
    [0.75, 0.125, 0.0, 0.125]
    >>> next(iter(sampler))
    [0, 0, 0, 1]
    >>> sampler.importance_weights([0, 1])
    tensor([0.1667, 1.0000])

    Batch k of an epoch is a function of (seed, epoch, k) and of the priorities when it is drawn, which are a function
    of the updates before it and of the generations at which they came. All of that is in `state_dict`, also the batches
    that a DataLoader with workers has asked for ahead (by priorities that lack the last updates): after
    `load_state_dict` the very same batches come while the dataset stands still; if it went on, as if it had done so
    just then. Two integers alone take up the random numbers, not the priorities. Ranks draw disjoint parts of one batch
    if each of them is told the updates of all.

    Raises:
        InvalidArgumentError: a number that cannot be; at the iteration: nothing to draw.
        EpisodeNotFoundError: an episode that the dataset does not hold. Later ones may leave a ring: they are left out.
    """

    _: KW_ONLY
    alpha: float = 0.6
    """How much priorities count: 0 draws all frames alike, 1 in proportion."""
    beta: float = 0.4
    """How much `importance_weights` undo the bias; raised to 1 during training by assigning to it."""
    eps: float = 1e-6
    """Added to priorities, so that no frame is out of reach for ever."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is None:
            raise InvalidArgumentError("batch_size=None; priorities are drawn in batches: give a batch_size")
        for name in ("alpha", "beta", "eps"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}; a number, 0 or more, would do")
        self._highest = 1.0
        self._tree = SumTree([])
        self._seen = Drawable.none()
        self._losses = 0
        self._recent: deque[tuple[tuple[int, int], list[int]]] = deque(maxlen=_REMEMBERED)
        """By (epoch, number) the batches that this iteration gave."""
        self._ahead: dict[tuple[int, int], list[int]] = {}
        """By (epoch, number) those that were given before the state was saved that was loaded, and not used."""

    # Drawing

    def _taker(self, epoch: Epoch) -> Take:
        self._recent.clear()

        def take(first: int, stop: int) -> Ints:
            key = epoch.number, first // self._step
            batch = self._ahead.get(key)
            indices = self._drawn(epoch.number, first, stop) if batch is None else np.array(batch, np.int64)
            self._recent.append((key, indices.tolist()))
            return indices

        return take

    def _drawn(self, epoch: int, first: int, stop: int) -> Ints:
        self._follow()
        if not self._tree.total > 0:
            raise InvalidArgumentError(f"nothing to draw from {self.dataset!r}: every priority is 0")
        shares = (np.arange(stop - first) + uniforms(stop - first, self.seed, epoch, first)) / (stop - first)
        return self._tree.find(shares[self.rank :: self.world_size])

    # Priorities

    def update(self, index: Any, priorities: Any) -> int:
        """Set the priorities of frames, and return how many of these are still there to be drawn.

        Args:
            index: The frames' numbers, (B,), `batch["index"]`. Of one that is named twice the last priority counts.
            priorities: (B,), 0 or more, such as absolute TD errors.

        Raises:
            InvalidArgumentError: priorities that are negative or not finite; nothing was changed.
        """
        numbers, values = _numbers(index), _array(priorities).astype(np.float64)
        if numbers.ndim != 1 or numbers.shape != values.shape:
            raise InvalidArgumentError(
                f"index of shape {numbers.shape}, priorities of shape {values.shape}; both must be (B,)"
            )
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise InvalidArgumentError(f"priorities from {values.min()} to {values.max()}; finite ones, 0 or more, do")
        if not len(values):
            return 0
        with np.errstate(over="ignore"):
            weights = self._weight(values)
        if weights.max() > _MOST:
            raise InvalidArgumentError(
                f"priorities up to {values.max():g} with alpha={self.alpha:g} weigh more than {_MOST:g}; give smaller"
            )
        self._follow()
        at = self._seen.indices_of(numbers)
        there = at >= 0
        self._tree.set(at[there], weights[there])
        self._highest = max(self._highest, float(values.max()))
        return int(np.count_nonzero(there))

    def importance_weights(self, index: Any) -> Tensor:
        """Return (N P(i))^-β for frames, a float32 tensor (B,), by the priorities as they are now.

        Divided by the largest of them, so that they only scale down. A frame that has gone since it was drawn counts as
        one that was drawn like all others.

        Args:
            index: The frames' numbers, (B,), `batch["index"]`.
        """
        torch = require("torch", extra="torch", purpose="importance weights")
        self._follow()
        at = self._seen.indices_of(_numbers(index))
        weights = np.zeros(len(at))
        weights[at >= 0] = self._tree.weights[at[at >= 0]]
        ratio = weights * (self._seen.frames / max(self._tree.total, np.finfo(np.float64).tiny))
        corrections = np.where(ratio > 0, ratio, 1) ** -self.beta
        tensor: Tensor = torch.from_numpy((corrections / corrections.max(initial=0)).astype(np.float32))
        return tensor.to(getattr(index, "device", None))

    def probabilities(self) -> Floats:
        """Return the probability of each index to be drawn next, float64 (frames,)."""
        self._follow()
        found = np.zeros(len(self.dataset))
        found[: self._seen.reach] = self._tree.weights[: self._seen.reach] / self._tree.total
        return found

    def _weight(self, priorities: Any) -> Any:
        return (priorities + self.eps) ** self.alpha

    def _follow(self) -> None:
        """Take notice of what came and went: what came is to be seen soon."""
        losses = self.dataset.losses
        if self.dataset.generation == self._seen.generation and losses == self._losses:
            return
        self._losses, now = losses, self._choice.look(self.dataset)
        if now.reach > len(self._tree):
            grown = np.zeros(max(now.reach, 2 * len(self._tree)))
            grown[: len(self._tree)] = self._tree.weights
            self._tree = SumTree(grown)
        gone, new = changes(self._seen, now)
        self._tree.set(gone, np.zeros(len(gone)))
        self._tree.set(new, np.full(len(new), self._weight(self._highest)))
        self._seen = now

    # Where to go on

    def state_dict(self, done: int | None = None) -> dict[str, Any]:
        """As that of other samplers, and the priorities: a float64 tensor (frames,), and what they are of."""
        torch = require("torch", extra="torch", purpose="saving priorities")
        self._follow()
        state = super().state_dict(done)
        epoch, number = state["epoch"], state["position"] // self._step
        known = self._ahead | dict(self._recent)
        ahead: list[list[int]] = []
        if self._running is not None and self._running.number == epoch and number < self._given - _REMEMBERED:
            raise InvalidArgumentError(f"done={done}; {self._given} were given, and the last {_REMEMBERED} are known")
        while (batch := known.get((epoch, number + len(ahead)))) is not None:
            ahead.append(batch)
        return state | {
            "ahead": ahead,
            "ahead_of": self._process,
            "highest": self._highest,
            "beta": self.beta,
            "weights": torch.from_numpy(self._tree.weights[: self._seen.reach].copy()),
            "weighed": self._seen.to_dict(),
        }

    @property
    def _process(self) -> list[int | None]:
        return [self.batch_size, self.rank, self.world_size]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As that of other samplers; batches given and not used come again on the rank that they were drawn for."""
        super().load_state_dict(state)
        ahead = state["ahead"] if state["ahead_of"] == self._process else []  # drawn anew where others share them out
        self._ahead = {(self.epoch, self.start + number): batch for number, batch in enumerate(ahead)}
        self._recent.clear()
        self._highest, self.beta = state["highest"], state["beta"]
        self._tree, self._seen = SumTree(_array(state["weights"])), Drawable.from_dict(state["weighed"])


def changes(before: Drawable, now: Drawable) -> tuple[Ints, Ints]:
    """Return the indices of which the frames have gone, and those at which there are new ones.

    An episode of 4 frames of which 3 were overwritten by a new one:

    >>> before = Drawable(1, np.array([0]), np.array([4]), np.array([0]), np.array([0]))
    >>> now = Drawable(2, np.array([3, 0]), np.array([4, 3]), np.array([0, 1]), np.array([3, 4]))
    >>> [indices.tolist() for indices in changes(before, now)]
    [[0, 1, 2], [0, 1, 2]]
    """
    _, old, new = np.intersect1d(before.episodes, now.episodes, assume_unique=True, return_indices=True)
    moved = (before.firsts - before.starts)[old] != (now.firsts - now.starts)[new]
    same = ~moved & (before.stops[old] == now.stops[new]) & (before.starts[old] <= now.starts[new])
    old, new = old[same], new[same]
    gone_to, came = before.stops.copy(), np.ones(len(now.starts), bool)
    gone_to[old], came[new] = now.starts[new], False
    return stretches(before.starts, gone_to), stretches(now.starts[came], now.stops[came])


def _array(values: Any) -> NDArray[Any]:
    """Tensors, also such as are on a device or need a gradient, as arrays."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _numbers(index: Any) -> Ints:
    numbers = _array(index)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise InvalidArgumentError(f"index of dtype {numbers.dtype}; frames are told by batch['index'], integers")
    return numbers.astype(np.int64)
