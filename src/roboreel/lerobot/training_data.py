"""Our dataset, in the shape in which LeRobot's training loop asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from roboreel import LeRobotDatasetV2, takes_batch
from roboreel._optional import require
from roboreel.dataset.batch import Batch
from roboreel.errors import ConfigError, EpisodeNotFoundError
from roboreel.lerobot.source import Source, SourceOptions, lerobot_module, open_source

_EPISODES = ("dataset_from_index", "dataset_to_index")


def make_training_data(cfg: Any, options: SourceOptions) -> TrainingData:
    """Do what LeRobot's `make_dataset` does with a `TrainPipelineConfig`, with our dataset."""
    factory = require("lerobot.datasets.factory", extra="lerobot", purpose="LeRobot's training")
    transforms = lerobot_module("lerobot.datasets.transforms", "lerobot.transforms")
    chosen = cfg.dataset
    if getattr(chosen, "eval_split", 0):
        raise ConfigError(
            f"--dataset.eval_split={chosen.eval_split}: LeRobot would read both parts by its own dataset; leave it "
            "out, or train on some --dataset.episodes"
        )
    if chosen.streaming:
        raise ConfigError(
            "--dataset.streaming=true reads from the Hub while it trains; a roboreel dataset is on the disk, and "
            "shuffled: leave it out"
        )
    source = open_source(chosen, options)
    if chosen.episodes is not None:
        source = _only(source, chosen.episodes)
    source.dataset.set_delta_timestamps(factory.resolve_delta_timestamps(cfg.policy, source.meta))
    if chosen.use_imagenet_stats:
        for key in source.meta.camera_keys:
            for name, values in factory.IMAGENET_STATS.items():
                source.meta.stats[key][name] = require("torch", purpose="training").tensor(values)
    images = transforms.ImageTransforms(chosen.image_transforms) if chosen.image_transforms.enable else None
    return TrainingData(source, images)


def _only(source: Source, episodes: Sequence[int]) -> Source:
    """The source as a view of these episodes, in the order in which they are stored, as LeRobot has them.

    `meta.episodes` then says where they begin in the view. LeRobot's own says it of the whole dataset, and draws frames
    beyond the end of what it loaded.
    """
    held = source.dataset.get_unique_episode_indices().tolist()
    wanted = sorted(set(episodes))
    if unknown := sorted(set(wanted) - set(held)):
        raise EpisodeNotFoundError(
            f"--dataset.episodes names {unknown[:5]}, and {source.dataset.storage_dir} holds {len(held)} episodes, "
            f"from {min(held)} to {max(held)}"
        )
    view = source.dataset.view(wanted)
    bounds = view.episode_data_index
    found = dict(zip(_EPISODES, (bounds["from"].tolist(), bounds["to"].tolist()), strict=True))
    if hasattr(source.meta.episodes, "select"):  # a table of `datasets`, with more columns than these
        table = source.meta.episodes.select(wanted).remove_columns(list(_EPISODES))
        for name, values in found.items():
            table = table.add_column(name, values)
        source.meta.episodes = table
    else:
        source.meta.episodes = found
    return Source(view, source.meta)


class TrainingData:
    """A dataset for LeRobot's training loop: items as those of `LeRobotDataset`, read a batch at a time."""

    episodes = None
    """All that there are: what was chosen is all that is shown."""
    absolute_to_relative_idx = None
    """Frames are numbered as they are shown (asked for from lerobot 0.6 on)."""

    def __init__(self, source: Source, image_transforms: Callable[[Any], Any] | None) -> None:
        self.dataset: LeRobotDatasetV2 = source.dataset
        self.meta = source.meta
        self.image_transforms = image_transforms
        # Images of ours lie channel-last in memory, for which convolutions take other ways and round otherwise.
        self.dataset.image_transform = takes_batch(_channel_first)

    @property
    def num_frames(self) -> int:
        return len(self.dataset)

    @property
    def num_episodes(self) -> int:
        return self.dataset.num_episodes

    @property
    def fps(self) -> float:
        return float(self.meta.fps)

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        features: dict[str, dict[str, Any]] = self.meta.features
        return features

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"TrainingData({self.dataset!r})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.__getitems__([index])[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        torch = require("torch", purpose="training")
        batch = self.dataset.__getitems__(indices)
        assembled = batch.assembled
        for key, value in assembled.items():
            is_number = hasattr(value, "is_floating_point")
            if is_number and not (key in self.meta.camera_keys and value.dtype == torch.uint8):
                assembled[key] = _as_python_would(value)
        if self.image_transforms is not None:
            self._transform(assembled, len(batch))
        return batch

    def _transform(self, assembled: dict[str, Any], size: int) -> None:
        """Transform the images in the order in which LeRobot does, so that each is given the same random numbers."""
        torch = require("torch", purpose="training")
        assert self.image_transforms is not None
        given = [{key: self.image_transforms(assembled[key][i]) for key in self.meta.camera_keys} for i in range(size)]
        for key in self.meta.camera_keys:
            assembled[key] = torch.stack([images[key] for images in given])


def _channel_first(images: Any) -> Any:
    return images.contiguous()


def _as_python_would(values: Any) -> Any:
    """Numbers as LeRobot gives them: by way of Python's, which become float32 and int64."""
    torch = require("torch", purpose="training")
    if values.dtype == torch.bool:
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.int64)
