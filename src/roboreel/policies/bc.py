"""Behaviour cloning: from images and states of one frame to a chunk of actions, by flow matching.

People solve the same situation in more than one way. The mean of two ways is often neither, so the policy does not
regress actions: it learns the velocity of a flow from noise to the recorded actions (Lipman et al., "Flow Matching for
Generative Modeling", 2022) and, acting, follows it from a noise of its own to one of the ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from roboreel import LeRobotDatasetV2, checkpoint
from roboreel.errors import ConfigError
from roboreel.policies.networks import ImageEncoder, VelocityNet, random_shift
from roboreel.policies.part import WHOLE, Part
from roboreel.schema import IMAGE_KEY_PREFIX
from roboreel.stats import RunningStats

ACTION = "action"
STATE = "observation.state"
OBSERVATION_PREFIX = "observation."

Stats = Mapping[str, Mapping[str, NDArray[Any]]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class BCConfig:
    """Options of the behaviour-cloning policy."""

    chunk_size: int = 16
    """Actions predicted at once."""
    n_action_steps: int = 8
    """How many of them are carried out before the next look."""
    width: int = 32
    """Channels of the first convolution; the others have twice as many."""
    keypoints: int = 48
    """Keypoints that the encoder places in an image, two numbers each."""
    hidden: int = 256
    """Width of the layers after the encoder."""
    blocks: int = 3
    """Residual blocks after the encoder."""
    noises: int = 8
    """Noises a frame in one training step; the image is encoded once for all of them."""
    flow_steps: int = 8
    """Steps along the flow from noise to actions."""
    shift_pixels: int = 4
    """In training, images are shifted by up to so many pixels each way."""
    relative: bool = True
    """Predict actions as offsets from `observation.state`, where that has the shape of an action."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (1 if name not in ("shift_pixels", "relative") else 0):
                raise ConfigError(f"--policy.{name.replace('_', '-')} {value} is too small")
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"--policy.n-action-steps {self.n_action_steps}: a chunk has only {self.chunk_size} actions; "
                "give fewer, or a longer --policy.chunk-size"
            )
        if self.width % 8:
            raise ConfigError(
                f"--policy.width {self.width}: give a multiple of 8, the channels are normalised in 8 groups"
            )


class Normalizer(nn.Module):
    """To and from zero mean and unit variance; a number that never changes in the data keeps its scale."""

    def __init__(self, shape: Sequence[int], stats: Mapping[str, NDArray[Any]] | None) -> None:
        super().__init__()
        mean = np.zeros(shape) if stats is None else np.broadcast_to(stats["mean"], shape)
        std = np.ones(shape) if stats is None else np.broadcast_to(stats["std"], shape)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(np.where(std > 1e-6, std, 1.0), dtype=torch.float32))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        return values * self.std + self.mean


class BCPolicy(nn.Module):
    """A policy for any number of cameras and states; what it needs to act is in its checkpoint."""

    def __init__(self, config: BCConfig, shapes: Shapes, *, fps: float, stats: Stats | None = None) -> None:
        """Make a policy with fresh weights.

        Args:
            config: Its options.
            shapes: One frame's shape for "action" and each observation key; of cameras (C, H, W).
            fps: Frames a second (Hz) of the data: the actions of a chunk are 1 / fps s apart.
            stats: {key: {"mean", "std"}}, of cameras (C, 1, 1) in [0, 1] (of depth in metres); None leaves them to a
                checkpoint.
        """
        super().__init__()
        self.config, self.fps = config, fps
        self.shapes = {key: tuple(shape) for key, shape in shapes.items()}
        self.cameras = [key for key in self.shapes if key.startswith(IMAGE_KEY_PREFIX)]
        self.states = [key for key in self.shapes if key not in self.cameras and key != ACTION]
        self.relative = config.relative and self.shapes.get(STATE) == self.shapes[ACTION]
        scales = {key: (shape[0], 1, 1) if key in self.cameras else shape for key, shape in self.shapes.items()}
        self.normalizers = nn.ModuleDict(
            {
                key.replace(".", "/"): Normalizer(scale, None if stats is None else stats[key])
                for key, scale in scales.items()
            }
        )
        self.encoders = nn.ModuleList(
            ImageEncoder(self.shapes[key][0], config.width, config.keypoints) for key in self.cameras
        )
        size = 2 * config.keypoints * len(self.cameras) + sum(int(np.prod(self.shapes[key])) for key in self.states)
        action_size = config.chunk_size * int(np.prod(self.shapes[ACTION]))
        self.velocity = VelocityNet(action_size, size, config.hidden, config.blocks)
        self._queues: dict[int, list[Tensor]] = {}
        self._generators: dict[int, torch.Generator] = {}

    @classmethod
    def for_dataset(cls, config: BCConfig, dataset: LeRobotDatasetV2) -> BCPolicy:
        """Make a policy for a dataset's cameras, states and actions, normalised by its statistics.

        Raises:
            ConfigError: the dataset has no frames, no actions, or nothing to see.
        """
        if not len(dataset) or dataset.fps is None:
            raise ConfigError(f"{dataset.storage_dir} holds no frames to train on; `roboreel import` makes a dataset")
        shapes, stats = shapes_to_learn(dataset), dict(dataset.stats)
        for key in shapes:
            with np.errstate(over="ignore"):
                usable = np.isfinite(np.asarray(stats[key]["std"], np.float32)).all()
            if not usable:
                raise ConfigError(not_finite(dataset, key))
        if config.relative and shapes.get(STATE) == shapes[ACTION]:
            stats[ACTION] = offset_stats(dataset, config.chunk_size)
        return cls(config, shapes, fps=dataset.fps, stats=stats)

    def delta_timestamps(self) -> dict[str, list[float]]:
        """Return the windows to train on: the action of each frame and of those after it (s)."""
        return {ACTION: [step / self.fps for step in range(self.config.chunk_size)]}

    def forward(self, batch: Mapping[str, Tensor], part: Part = WHOLE) -> Tensor:
        """Return the loss of a batch: "action" (B, chunk, …) with its "action_is_pad", images uint8 (B, C, H, W).

        Depth cameras are float32, in metres. Of a batch that several processes share, `part` says what is here: the
        mean of their losses is the loss of all of it.
        """
        actions = batch[ACTION].float()
        if self.relative:
            actions = actions - batch[STATE].float().unsqueeze(1)
        chunks = self._normalizer(ACTION)(actions).flatten(1)
        size = int(np.prod(self.shapes[ACTION]))
        known = (~batch[f"{ACTION}_is_pad"]).repeat_interleave(size, dim=1)
        features = self._features(batch, self.config.shift_pixels if self.training else 0, part)

        repeats, device, rows = self.config.noises, chunks.device, part.rows(len(chunks))
        noise = part.of(torch.randn(rows, repeats, chunks.shape[1], device=device)).flatten(0, 1)
        time = part.of(torch.rand(rows, repeats, 1, device=device)).flatten(0, 1)
        chunks, known = chunks.repeat_interleave(repeats, 0), known.repeat_interleave(repeats, 0)
        between = noise + time * (chunks - noise) * known  # where the episode is over, there is but noise
        velocity = self.velocity(between, time[:, 0], features, repeats)
        errors = (velocity - (chunks - noise)).square() * known
        # the mean over actions that the episodes have, of the whole batch
        loss: Tensor = errors.sum() * part.world / part.total(known.sum())
        return loss

    @torch.no_grad()
    def predict_chunk(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Follow the flow from `noise` (B, chunk · action size) to chunks of actions (B, chunk, …)."""
        features = self._features(observation)
        chunk = noise
        for step in range(self.config.flow_steps):
            time = torch.full((len(noise),), step / self.config.flow_steps, device=noise.device)
            chunk = chunk + self.velocity(chunk, time, features) / self.config.flow_steps
        shaped = chunk.view(len(noise), self.config.chunk_size, *self.shapes[ACTION])
        actions = self._normalizer(ACTION).inverse(shaped)
        return actions + observation[STATE].unsqueeze(1) if self.relative else actions

    def begin(self, env: int, seed: int) -> None:
        """Forget what was planned for an environment; `seed` fixes what is drawn until the next call."""
        self._queues[env] = []
        self._generators[env] = torch.Generator().manual_seed(seed)

    def select_action(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return the next action (N, …) of N environments; a new chunk where the last one is carried out."""
        count = len(next(iter(observation.values())))
        for env in range(count):
            if env not in self._queues:
                self.begin(env, seed=env)
        if wanting := [env for env in range(count) if not self._queues[env]]:
            size = self.config.chunk_size * int(np.prod(self.shapes[ACTION]))
            noise = torch.stack([torch.randn(size, generator=self._generators[env]) for env in wanting])
            device = next(self.parameters()).device
            chosen = {key: observation[key][wanting].to(device) for key in (*self.cameras, *self.states)}
            chunks = self.predict_chunk(chosen, noise.to(device))[:, : self.config.n_action_steps]
            for env, chunk in zip(wanting, chunks, strict=True):
                self._queues[env] = list(chunk)
        return torch.stack([self._queues[env].pop(0) for env in range(count)])

    def _features(self, batch: Mapping[str, Tensor], shift: int = 0, part: Part = WHOLE) -> Tensor:
        parts = []
        for key, encoder in zip(self.cameras, self.encoders, strict=True):
            images = random_shift(batch[key], shift, part)
            images = images.float() if images.is_floating_point() else images.float() / 255  # depth comes in metres
            parts.append(encoder(self._normalizer(key)(images)))
        # not flatten(1): a state may be a scalar a frame, (B,)
        parts += [self._normalizer(key)(batch[key].float()).reshape(len(batch[key]), -1) for key in self.states]
        return torch.cat(parts, dim=1)

    def _normalizer(self, key: str) -> Normalizer:
        return cast(Normalizer, self.normalizers[key.replace(".", "/")])  # a module's name may have no dots

    def to_dict(self) -> dict[str, Any]:
        """Return weights and what makes the policy, as plain values and tensors."""
        shapes = {key: list(shape) for key, shape in self.shapes.items()}
        return {
            "policy": "bc",
            "config": asdict(self.config),
            "shapes": shapes,
            "fps": self.fps,
            "weights": self.state_dict(),
        }

    @classmethod
    def load(cls, path: Path, device: torch.device) -> BCPolicy:
        """Return the policy of a run, of one checkpoint or of a `policy.pt`, ready to act.

        Raises:
            ConfigError: there is no checkpoint, or it is of another policy.
            SourceError: the checkpoint is damaged.
        """
        file = checkpoint.policy_file(path)
        content = checkpoint.load(file, device)
        if content.get("policy") != "bc":
            raise ConfigError(f"{file} is a checkpoint of the policy {content.get('policy')!r}; this one is 'bc'")
        shapes = {key: tuple(shape) for key, shape in content["shapes"].items()}
        policy = cls(BCConfig(**content["config"]), shapes, fps=content["fps"])
        policy.load_state_dict(content["weights"])
        return policy.to(device).eval()


def shapes_to_learn(dataset: LeRobotDatasetV2) -> dict[str, tuple[int, ...]]:
    """Return the shape of one frame for the action and every camera and (floating-point) state.

    Raises:
        ConfigError: there are no actions, or nothing to see.
    """
    values = {key: value for key, value in dataset[0].items() if torch.is_tensor(value)}
    if ACTION not in values:
        raise ConfigError(f"{dataset.storage_dir} has no key 'action' to learn; it has {dataset.data_keys}")
    seen = [
        key
        for key, value in values.items()
        if key.startswith(OBSERVATION_PREFIX) and (key in dataset.camera_keys or value.is_floating_point())
    ]
    if not seen:
        raise ConfigError(
            f"{dataset.storage_dir} has no camera and no state (keys that begin with {OBSERVATION_PREFIX!r}) "
            f"to act on; it has {dataset.data_keys}"
        )
    return {key: tuple(values[key].shape) for key in [*seen, ACTION]}


def not_finite(dataset: LeRobotDatasetV2, key: str) -> str:
    """Return which episodes have values of a key that are not finite (in float32), and what to do."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(dataset.get_data_by_key(key), np.float32))
    bad = ~finite.reshape(len(dataset), -1).all(axis=1)
    episodes = np.unique(dataset.get_data_by_key(dataset.EPISODE_INDEX_KEY)[bad]).tolist()
    return (
        f"{key!r} has values that are not finite, the first at index {int(bad.argmax())}; leave their episodes out: "
        f"--skip-episodes {' '.join(map(str, episodes))}"
    )


def offset_stats(dataset: LeRobotDatasetV2, chunk_size: int) -> dict[str, NDArray[Any]]:
    """Return the statistics of what the actions of a chunk differ by from the state of its first frame."""
    actions, states, episodes = (dataset.get_data_by_key(key) for key in (ACTION, STATE, dataset.EPISODE_INDEX_KEY))
    running = RunningStats()
    for step in range(min(chunk_size, len(actions))):
        now = slice(0, len(actions) - step)
        running.add((actions[step:] - states[now])[episodes[step:] == episodes[now]])
    return running.result()
