"""LeRobot's own training loop on our dataset: the losses of LeRobotDataset, bit for bit, whatever is asked of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.drop_in import Step, policy_options, train_recorded

import roboreel.lerobot
from roboreel import LeRobotDatasetV2
from roboreel.errors import ConfigError, EpisodeNotFoundError

SLICE = Path(__file__).parents[1] / "data" / "v3.0_pusht_image_slice"
Losses = list[tuple[float, float]]
Train = Callable[..., Losses]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield
    roboreel.lerobot.uninstall()


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train a small policy as `lerobot-train` does, and return (loss, gradient norm) of each step."""
    count = iter(range(100))

    def run(policy: str, *options: str, root: Path = SLICE, steps: int = 3, workers: int = 0) -> Losses:
        given = [
            "--dataset.repo_id=some/name",
            f"--dataset.root={root}",
            "--dataset.video_backend=pyav",
            f"--steps={steps}",
            "--batch_size=4",
            f"--num_workers={workers}",
            "--save_checkpoint=false",
            f"--output_dir={tmp_path / 'runs' / str(next(count))}",
        ]
        return both(train_recorded([*given, *policy_options(policy), *options]))

    return run


def both(steps: Sequence[Step]) -> Losses:
    return [(step.loss, step.grad_norm) for step in steps]


def installed(**options: Any) -> roboreel.lerobot.Installed:
    return roboreel.lerobot.install(**options)


@pytest.mark.parametrize("policy", ["act", "diffusion", "vqbet", "tdmpc"])
def test_every_policy_has_the_losses_that_it_has_on_lerobots_dataset(policy: str, train: Train) -> None:
    theirs = train(policy, steps=5)
    with installed():
        assert train(policy, steps=5) == theirs
    assert len(set(theirs)) == 5


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--dataset.use_imagenet_stats=false",), id="own-statistics"),
        pytest.param(("--dataset.image_transforms.enable=true",), id="transforms"),
        pytest.param(("--dataset.episodes=[2,0]",), id="episodes"),
        pytest.param(("--seed=7", "--policy.use_vae=false"), id="another-seed"),
    ],
)
def test_options_of_the_dataset_mean_what_they_do_with_lerobots(options: tuple[str, ...], train: Train) -> None:
    theirs = train("act", *options)
    with installed():
        assert train("act", *options) == theirs


def test_workers_and_video_change_nothing(train: Train, sample_dir: Path) -> None:
    transformed = "--dataset.image_transforms.enable=true"
    theirs = train("tdmpc", transformed, root=sample_dir, workers=2)
    with installed():
        assert train("tdmpc", transformed, root=sample_dir, workers=2) == theirs
    with installed(decode_images=True):
        assert train("tdmpc", transformed, root=sample_dir, workers=2) == theirs


def test_of_chosen_episodes_no_frame_beyond_their_ends_is_drawn(train: Train) -> None:
    """LeRobot 0.4.4 numbers frames as in the whole dataset, and draws beyond the end of what it loaded."""
    if version("lerobot") == "0.4.4":
        with pytest.raises(IndexError):
            train("diffusion", "--dataset.episodes=[2]")
    else:
        theirs = train("diffusion", "--dataset.episodes=[2]")
        with installed():
            assert train("diffusion", "--dataset.episodes=[2]") == theirs
    theirs = train("diffusion", "--dataset.episodes=[0]")  # whose numbers are the same
    with installed():
        assert train("diffusion", "--dataset.episodes=[0]") == theirs
        assert np.isfinite(train("diffusion", "--dataset.episodes=[2]")).all()
        with pytest.raises(EpisodeNotFoundError, match=r"names \[3\], and .* holds 3 episodes, from 0 to 2"):
            train("diffusion", "--dataset.episodes=[1,3]")


def test_a_folder_is_taken_in_once(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(SLICE, folder)
    with installed():
        first = train("tdmpc", root=folder, steps=1)
        (place,) = (tmp_path / "hf" / "roboreel" / "folders").iterdir()
        with LeRobotDatasetV2(place, readonly=True) as dataset:
            uuid = dataset.uuid
        assert train("tdmpc", root=folder, steps=1) == first
        assert [*(tmp_path / "hf" / "roboreel" / "folders").iterdir()] == [place]
        with LeRobotDatasetV2(place, readonly=True) as dataset:
            assert dataset.uuid == uuid


def test_a_roboreel_dataset_and_an_old_lerobot_folder_are_trained_on(train: Train, tmp_path: Path) -> None:
    with LeRobotDatasetV2.from_lerobot(SLICE, tmp_path / "ours") as dataset:
        dataset.to_lerobot(tmp_path / "v21", "v2.1")
    options = ("--dataset.use_imagenet_stats=false",)
    with installed():
        known = train("diffusion", root=tmp_path / "ours", steps=2)
        assert train("diffusion", root=tmp_path / "v21", steps=2) == known
        # LeRobot's statistics of images are of fewer pixels, those of states and actions are the same
        assert train("act", *options, root=tmp_path / "ours", steps=2) != train("act", *options, steps=2)
    with pytest.raises(ConfigError, match="is read where it is, as it is"), installed(decode_images=True):
        train("act", root=tmp_path / "ours")


def made_by(lerobot_train: Any) -> Any:
    """What the loop calls; from 0.6 on it does so by way of the factory's module."""
    from lerobot.datasets import factory

    return getattr(lerobot_train, "make_dataset", factory.make_dataset)


def test_lerobot_has_its_own_function_back_afterwards() -> None:
    from lerobot.datasets import factory
    from lerobot.scripts import lerobot_train

    own = factory.make_dataset
    with installed() as one:
        assert factory.make_dataset is made_by(lerobot_train) is not own
        assert installed(decode_images=True) is one
        assert one.options.decode_images
    assert factory.make_dataset is made_by(lerobot_train) is own
    roboreel.lerobot.uninstall()
    assert factory.make_dataset is own


def test_an_unknown_version_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboreel.lerobot.dropin.KNOWN_VERSIONS", ("0.4.3",))
    with pytest.raises(ConfigError, match=r"lerobot 0\.\d\.\d is not among the versions .*: 0\.4\.3; type pip install"):
        installed()
    with installed(force=True):
        pass


def test_streaming_is_refused(train: Train) -> None:
    with installed(), pytest.raises(ConfigError, match=r"--dataset\.streaming=true .* leave it out"):
        train("act", "--dataset.streaming=true")
