"""`image_transform`: what it is given, once a sample or once a batch, and what it may give back."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import roboreel
from roboreel import InvalidArgumentError, LeRobotDatasetV2
from tests.recordings import CAMERA, HEIGHT, WIDTH, made, recording

TOP = "observation.images.top"


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDatasetV2:
    data = recording(6, camera=True)
    data[TOP] = data[CAMERA][:, :4]
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap", image_dtype="uint8")
    dataset.add_episodes(data)
    return dataset


class Recorder:
    """Halves what it is given, and remembers its shape."""

    def __init__(self, takes_batch: bool) -> None:
        self.takes_batch = takes_batch
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.seen.append(tuple(images.shape))
        return images // 2


@pytest.mark.parametrize("window", [(), (2,)])
def test_a_batch_is_one_call_a_camera_and_gives_what_single_samples_give(
    dataset: LeRobotDatasetV2, window: tuple[int, ...]
) -> None:
    if window:
        dataset.set_delta_timestamps({CAMERA: [-0.1, 0], TOP: [-0.1, 0]})
    plain = dataset.get_batch([4, 1, 3])
    one_by_one, at_once = Recorder(takes_batch=False), Recorder(takes_batch=True)
    dataset.image_transform = one_by_one
    singles = dataset.get_batch([4, 1, 3])
    dataset.image_transform = at_once
    together = dataset.get_batch([4, 1, 3])
    assert one_by_one.seen == [(*window, 3, HEIGHT, WIDTH)] * 3 + [(*window, 3, 4, WIDTH)] * 3
    assert at_once.seen == [(3, *window, 3, HEIGHT, WIDTH), (3, *window, 3, 4, WIDTH)]
    for key in (CAMERA, TOP):
        assert torch.equal(singles[key], plain[key] // 2)
        assert torch.equal(together[key], plain[key] // 2)
    assert torch.equal(dataset[4][CAMERA], together[CAMERA][0])


@roboreel.takes_batch
def in_floats(images: Tensor) -> Tensor:
    return images / 255


def test_a_marked_function_goes_to_workers_and_may_change_dtype_and_size(dataset: LeRobotDatasetV2) -> None:
    dataset.image_transform = in_floats
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1)
    first = next(iter(loader))
    assert (first[CAMERA].dtype, first[CAMERA].shape) == (torch.float32, (4, 3, HEIGHT, WIDTH))
    dataset.image_transform = roboreel.takes_batch(lambda images: images[..., ::2, ::2])
    assert dataset[0][CAMERA].shape == (3, HEIGHT // 2, WIDTH // 2)
    module = torch.nn.Flatten(start_dim=1)
    assert roboreel.takes_batch(module) is module
    dataset.image_transform = module
    assert dataset.get_batch([0, 1])[TOP].shape == (2, 3 * 4 * WIDTH)


def test_a_transform_sees_what_image_dtype_says(tmp_path: Path) -> None:
    seen = []

    def look(images: Tensor) -> Tensor:
        seen.append(images.dtype)
        return images

    assert made(tmp_path / "dataset", [3], camera=True, image_transform=look)[1][CAMERA].dtype == torch.float32
    assert seen == [torch.float32]


def second(change: Any) -> Any:
    """A transform that changes the second sample of a batch, and no other."""
    calls = itertools.count()
    return lambda images: change(images) if next(calls) == 1 else images


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (torch.Tensor.numpy, "camera 'observation.image': returned ndarray; it must return a tensor"),
        (second(list), "returned list; it must return a tensor"),
        (second(lambda x: x[:, 1:]), r"uint8 \(3, 16, 24\) for one sample and torch.uint8 \(3, 15, 24\) for another"),
        (second(torch.Tensor.float), r"torch.uint8 .* for one sample and torch.float32 .* for another"),
        (roboreel.takes_batch(lambda x: x[0]), r"a batch \(2, 3, 16, 24\) and returned \(3, 16, 24\); the first axis"),
        (roboreel.takes_batch(lambda x: x[:1]), r"returned \(1, 3, 16, 24\); the first axis, one entry a sample, must"),
        (roboreel.takes_batch(lambda x: x.sum()), r"returned \(\); the first axis"),
        (roboreel.takes_batch(lambda x: [x]), "returned list; it must return"),
    ],
)
def test_what_makes_no_batch_is_refused_by_camera(dataset: LeRobotDatasetV2, transform: Any, words: str) -> None:
    dataset.image_transform = transform
    with pytest.raises(roboreel.InvalidArgumentError, match=words) as caught:
        dataset.get_batch([0, 1])
    assert repr(CAMERA) in str(caught.value)


def test_an_error_inside_names_the_camera(dataset: LeRobotDatasetV2) -> None:
    dataset.image_transform = lambda images: images[:, :, :, 100]
    with pytest.raises(IndexError) as caught:
        dataset[0]
    assert caught.value.__notes__ == [f"in image_transform, camera {CAMERA!r}"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "takes_batch was given 3; a function or a callable object would do"),
        (torch.Tensor.float, "takes no attribute; wrap it"),
        ("".join, "takes no attribute; wrap it"),
    ],
)
def test_what_cannot_be_marked(given: Any, words: str) -> None:
    with pytest.raises(roboreel.InvalidArgumentError, match=words):
        roboreel.takes_batch(given)


def test_a_partial_can_be_marked(dataset: LeRobotDatasetV2) -> None:
    dataset.image_transform = roboreel.takes_batch(functools.partial(torch.div, other=255))
    assert dataset.get_batch([0, 1])[CAMERA].max() <= 1


@pytest.mark.parametrize("given", [5, "resize", [torch.neg], torch.zeros(3)])
def test_what_cannot_be_called_is_refused_at_once(tmp_path: Path, given: Any) -> None:
    dataset = made(tmp_path / "dataset", [2], camera=True)
    said = r"image_transform=.*; a function of a sample's images, .*, that returns a tensor would do"
    with pytest.raises(InvalidArgumentError, match=said):
        LeRobotDatasetV2(tmp_path / "dataset", image_transform=given)
    with pytest.raises(InvalidArgumentError, match=said):
        dataset.image_transform = given
    assert dataset.image_transform is None
