"""Frames drawn in proportion to weights of frames, of episodes, or taken from a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import InvalidArgumentError
from roboreel.sampling.drawable import Drawable, Ints, check_episodes
from roboreel.sampling.order import integer, uniforms
from roboreel.sampling.sampler import Epoch, FrameSampler, Take
from roboreel.sampling.sum_tree import Floats, SumTree

Weights: TypeAlias = (
    "str | Mapping[int, float] | Callable[[Any], NDArray[Any] | Sequence[float]] | NDArray[Any] | Sequence[float]"
)


@dataclass(eq=False)
class DrawingSampler(FrameSampler):
    """What samplers that draw with replacement have in common: every batch is full."""

    _: KW_ONLY
    num_samples: int | None = None
    """Frames in an epoch, of all ranks together, rounded to whole batches; None: as many as may be drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples is not None:
            self.num_samples = integer("num_samples", self.num_samples)
            if self.num_samples < 1:
                raise InvalidArgumentError(f"num_samples={self.num_samples}; 1 or more, or None would do")

    def _frames(self, drawable: Drawable) -> int:
        wanted = self.num_samples or drawable.frames
        up = 0 if self.drop_last else self._step - 1
        return (wanted + up) // self._step * self._step


@dataclass(eq=False)
class WeightedSampler(DrawingSampler):
    """Frames drawn with replacement, in proportion to their weights; a weight of 0 is never drawn.

    For `DataLoader(dataset, batch_sampler=WeightedSampler(dataset, batch_size=64, weights="next.reward"))`; without
    `batch_size` it gives single indices, for `sampler=`. `weights` are

    - those of the frames: an array (frames,), as of `dataset[i]`;
    - those of the episodes, `{episode_index: weight}`: an episode is drawn by its weight, however long it is, and each
      of its frames alike; episodes that are not named are not drawn;
    - the values of a key: its name;
    - what a function makes of the dataset, an array (frames,):
      `lambda dataset: np.exp(dataset.get_data_by_key("next.reward"))`.

    >>> import numpy as np, tempfile
    >>> from roboreel import LeRobotDatasetV2
    >>> dataset = LeRobotDatasetV2(tempfile.mkdtemp(), fps=10)
    >>> for rewards in ([0, 1, 0], [0, 3]):
    ...     dataset.add_episodes({"next.reward": np.array(rewards, np.float32)})
    >>> drawn = list(WeightedSampler(dataset, weights="next.reward", num_samples=1000))
    >>> drawn.count(1), drawn.count(4)  # 1 to 3
    (262, 738)

    Batch k of an epoch is a function of (seed, epoch, k) and of the weights, so that two integers take a run up
    exactly, by `set_epoch(epoch, start)` or by `load_state_dict`. Ranks draw disjoint parts of one stream. Weights
    follow the dataset: they are made anew when its generation has moved, also within an epoch, and the numbers drawn
    then fall on what there is by then. An array does not follow: frames beyond it weigh 0, and in a ring it weighs
    places. Frames that were lost with a writer that died weigh 0.

    Raises:
        InvalidArgumentError: a number that cannot be; weights that are negative, not finite, or all 0.
        EpisodeNotFoundError: an episode that the dataset does not hold. Later ones may leave a ring: they are left out.
        UnknownKeyError: the dataset has no such key.
    """

    _: KW_ONLY
    weights: Weights

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made: tuple[tuple[int, int], Weights, SumTree] | None = None
        if isinstance(self.weights, Mapping):
            check_episodes(self.dataset, self.weights)
        elif not (isinstance(self.weights, str) or callable(self.weights)) and np.shape(self.weights) != (
            len(self.dataset),
        ):
            raise InvalidArgumentError(
                f"weights of shape {np.shape(self.weights)} for a dataset of {len(self.dataset)} frames; one weight a "
                "frame, {episode_index: weight}, a key or a function of the dataset would do"
            )
        if len(self.dataset):
            self._tree()

    def _taker(self, epoch: Epoch) -> Take:
        def take(first: int, stop: int) -> Ints:
            shares = uniforms(stop - first, self.seed, epoch.number, first)
            return self._tree().find(shares[self.rank :: self.world_size])

        return take

    def _tree(self) -> SumTree:
        """The weights as they are now."""
        now = self.dataset.generation, self.dataset.losses
        if self._made is None or self._made[0] != now or self._made[1] is not self.weights:
            drawable = self._choice.look(self.dataset)
            weights = self._weigh(drawable)
            with np.errstate(over="ignore"):
                if not np.isfinite(weights.sum()):
                    raise InvalidArgumentError("the weights add up to more than a float64 holds; give smaller ones")
            tree = SumTree(weights)
            if not tree.total > 0:
                raise InvalidArgumentError(f"nothing to draw from {self.dataset!r}: every weight is 0")
            self._made = now, self.weights, tree
        return self._made[2]

    def _weigh(self, drawable: Drawable) -> Floats:
        """The weight of each index; 0 where it may not be drawn."""
        weights = self.weights
        if isinstance(weights, Mapping):
            values = np.array([weights.get(episode, 0) for episode in drawable.episodes.tolist()], np.float64)
            _check(values, drawable.episodes, "episode")
            return drawable.spread(values / (drawable.stops - drawable.starts), drawable.reach)
        if isinstance(weights, str):
            found = self.dataset.get_data_by_key(weights)
        else:
            found = weights(self.dataset) if callable(weights) else weights
        values = np.asarray(found)
        if values.ndim != 1 or values.dtype.kind not in "buif":
            raise InvalidArgumentError(
                f"weights of shape {values.shape} and dtype {values.dtype}; one number a frame would do: type "
                "weights=lambda dataset: … to make them of a key"
            )
        indices = drawable.indices(np.arange(drawable.frames))
        indices = indices[indices < len(values)]  # the dataset may have grown since
        weighed = np.zeros(drawable.reach)
        weighed[indices] = values[indices]
        _check(weighed[indices], indices, "index")
        return weighed


def _check(weights: Floats, of: Ints, what: str) -> None:
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if np.any(wrong):
        raise InvalidArgumentError(
            f"{what} {of[wrong][0]} weighs {weights[wrong][0]:g}; weights are finite and 0 or more"
        )
