"""`ImagePipeline`: from a loader's bytes to floats, alike on every device and for every frame of a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import roboreel
from roboreel import ImagePipeline
from tests.recordings import CAMERA, made

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (5, 3, 9, 11), np.uint8))
WINDOWS = IMAGES[:, None].repeat(1, 4, 1, 1, 1)
"""Four times the same frame: what differs after augmentation was augmented differently."""
EVERYTHING: dict[str, Any] = {
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "random_crop": (7, 8),
    "random_shift": 2,
    "color_jitter": (0.3, 0.4, 0.5),
}


def test_bytes_from_disk_become_the_floats_of_the_other_way(tmp_path: Path) -> None:
    plain = made(tmp_path / "dataset", [6], camera=True)
    small = roboreel.LeRobotDatasetV2(tmp_path / "dataset", image_dtype="uint8", readonly=True)
    for dataset in (plain, small):
        dataset.set_delta_timestamps({CAMERA: [-0.1, 0]})
    stats = plain.stats[CAMERA]
    mean, std = (torch.tensor(stats[name], dtype=torch.float32) for name in ("mean", "std"))
    floats = (plain.get_batch([4, 1])[CAMERA] - mean) / std
    found = ImagePipeline(mean=stats["mean"], std=stats["std"])(small.get_batch([4, 1])[CAMERA])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, floats, rtol=2**-22, atol=0)  # two units in the last place


@pytest.mark.parametrize("options", [{}, {"mean": 3 * [0.5]}, {"std": [2.0]}])
def test_nothing_is_done_unasked(options: dict[str, Any]) -> None:
    values = IMAGES.numpy() / np.float32(255)
    wanted = (values - 0.5 * ("mean" in options)) / (2 if "std" in options else 1)
    np.testing.assert_allclose(ImagePipeline(**options)(IMAGES).numpy(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("one", EVERYTHING)
def test_all_frames_of_a_window_are_augmented_alike_and_samples_are_not(one: str) -> None:
    options = {one: EVERYTHING[one]}
    windows = ImagePipeline(**options)(WINDOWS)
    assert torch.equal(windows, windows[:, :1].expand_as(windows))
    assert torch.equal(windows[:, 0], ImagePipeline(**options)(IMAGES))  # and just as single images are
    same = ImagePipeline(**options, seed=7)(IMAGES[:1].expand(8, -1, -1, -1))
    differs = any(not torch.equal(same[0], other) for other in same[1:])
    assert differs == (one not in ("mean", "std"))


def test_a_seed_means_the_same_and_its_state_can_be_kept() -> None:
    first, again, other = (ImagePipeline(**EVERYTHING, seed=seed) for seed in (3, 3, 4))
    a = first(IMAGES)
    assert torch.equal(a, again(IMAGES))
    assert not torch.equal(a, other(IMAGES))
    state = first.generator.get_state()
    b = first(IMAGES)
    assert not torch.equal(a, b)
    resumed = ImagePipeline(**EVERYTHING, seed=torch.Generator())
    resumed.generator.set_state(state)
    assert torch.equal(b, resumed(IMAGES))
    still = first(IMAGES, augment=False)
    assert torch.equal(still, other(IMAGES, augment=False))
    assert still.shape == (5, 3, 7, 8)


def test_crops_and_shifts_are_pieces_of_the_image_with_its_edge_repeated() -> None:
    size, shift = (7, 8), 2
    found = ImagePipeline(random_crop=size, random_shift=shift)(IMAGES).mul(255).round().to(torch.uint8)
    padded = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)), "edge")
    places = set()
    for sample, image in zip(found.numpy(), padded, strict=True):
        pieces = np.lib.stride_tricks.sliding_window_view(image, size, axis=(1, 2))
        match = np.argwhere((pieces == sample[:, None, None]).all(axis=(0, 3, 4)))
        assert len(match) == 1
        places.add(tuple(match[0].tolist()))
    assert len(places) > 1
    middle = ImagePipeline(random_crop=size, random_shift=shift)(IMAGES, augment=False)
    assert torch.equal(middle, IMAGES[..., 1:8, 1:9].float() / 255)


def jittered(image: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
    """One image (3, H, W) in [0, 1], by the words of the documentation."""
    grey = np.array([0.299, 0.587, 0.114])
    image = np.clip(image * factors[0], 0, 1)
    mean = np.tensordot(grey, image, 1).mean()
    image = np.clip(factors[1] * image + (1 - factors[1]) * mean, 0, 1)
    changed: NDArray[Any] = np.clip(factors[2] * image + (1 - factors[2]) * np.tensordot(grey, image, 1), 0, 1)
    return changed


def test_colours_are_changed_as_said() -> None:
    spans = np.array([0.3, 0.4, 0.5])
    found = ImagePipeline(color_jitter=spans.tolist(), seed=5)(IMAGES)
    drawn = torch.rand((3, len(IMAGES)), generator=torch.Generator().manual_seed(5)).numpy() * 2 - 1
    factors = 1 + drawn * spans[:, None]
    for k, image in enumerate(IMAGES.numpy() / 255):
        np.testing.assert_allclose(found[k].numpy(), jittered(image, factors[:, k]), atol=1e-5)
    grey = ImagePipeline(color_jitter=(0, 0, 1))(IMAGES[:, :1])
    torch.testing.assert_close(grey, IMAGES[:, :1] / 255)  # grey has no saturation


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [
        ({}, IMAGES.float(), r"torch.float32 of shape \(5, 3, 9, 11\); uint8 .* open the dataset with image_dtype="),
        ({}, IMAGES[0], r"torch.uint8 of shape \(3, 9, 11\)"),
        ({"mean": [0.5, 0.5]}, IMAGES, "images have 3 channels, and mean is for 2"),
        ({"random_crop": (10, 8)}, IMAGES, r"\(9, 11\) pixels .*, and random_crop=\(10, 8\) is larger"),
        ({"color_jitter": (0.1, 0, 0)}, IMAGES.repeat(1, 2, 1, 1), "6 channels; color_jitter is for 3"),
        ({"std": [1.0, 0.0, 1.0]}, IMAGES, "std=.*; a positive number for each channel"),
        ({"mean": [[0.5], [0.5]]}, IMAGES, r"mean has shape \(2, 1\); a number for each channel"),
        ({"random_crop": (0, 8)}, IMAGES, r"random_crop=\(0, 8\); \(height, width\)"),
        ({"random_shift": -1}, IMAGES, "random_shift=-1"),
        ({"color_jitter": (2, 0, 0)}, IMAGES, r"color_jitter=\(2, 0, 0\)"),
        *(
            ({"random_crop": crop}, IMAGES, "random_crop=.*; .height, width. in pixels")
            for crop in (5, (2.5, 3), (5,), "ab")
        ),
        *(({"random_shift": shift}, IMAGES, "random_shift=.*; a whole number") for shift in (1.5, "a", True)),
        *(({"color_jitter": spans}, IMAGES, "color_jitter=.*; three numbers") for spans in (0.1, "abc", (0, 0, True))),
        *(({"mean": mean}, IMAGES, "mean=.*; a number for each channel") for mean in ("x", [float("nan")] * 3)),
        *(({"seed": seed}, IMAGES, "seed=.*; a whole number") for seed in (1.5, -1, None)),
        ({"device": "bla"}, IMAGES, "device='bla' cannot be used .*; 'cpu' would do"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], images: Tensor, words: str) -> None:
    with pytest.raises(roboreel.InvalidArgumentError, match=words):
        ImagePipeline(**options)(images)


def test_an_empty_batch_stays_empty() -> None:
    assert ImagePipeline(**EVERYTHING)(IMAGES[:0]).shape == (0, 3, 7, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("images", [IMAGES, WINDOWS])
def test_a_gpu_gives_what_the_cpu_gives(images: Tensor) -> None:
    found = ImagePipeline("cuda", **EVERYTHING, seed=3)(images.pin_memory())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), ImagePipeline(**EVERYTHING, seed=3)(images), rtol=1e-4, atol=1e-5)
