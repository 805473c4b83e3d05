"""From the bytes of a loader to what a network takes: moved, augmented and normalised on the device, a batch at a time.

A float32 image is four times its bytes: in the worker's memory, through the queue and over the bus. So a dataset is
asked for `image_dtype="uint8"`, and everything from there on is done where the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from roboreel._optional import require
from roboreel.device import torch_device
from roboreel.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GREY = (0.299, 0.587, 0.114)
"""How much red, green and blue add to how bright a pixel looks (ITU-R BT.601)."""


class ImagePipeline:
    """uint8 images (B, C, H, W), or windows of them (B, T, C, H, W), to float32 on a device, normalised and augmented.

    All T frames of a sample are augmented alike; a policy that sees motion must not see the camera jump. What is drawn
    comes from the CPU's generator, so that a seed means the same on every device.

    >>> import torch
    >>> pipeline = ImagePipeline(mean=[0.5], std=[0.25], random_crop=(2, 2))
    >>> white = torch.full((8, 1, 4, 4), 255, dtype=torch.uint8)
    >>> pipeline(white).shape, pipeline(white).max().item()
    (torch.Size([8, 1, 2, 2]), 2.0)

    With a dataset: `ImagePipeline("cuda", mean=dataset.stats[key]["mean"], std=dataset.stats[key]["std"])`.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        mean: Any = None,
        std: Any = None,
        random_crop: tuple[int, int] | None = None,
        random_shift: int = 0,
        color_jitter: Sequence[float] = (0, 0, 0),
        seed: int | torch.Generator = 0,
    ) -> None:
        """Choose what is done; each is left out by default.

        Args:
            device: Where the images go, and where all of it is computed.
            mean: Of each channel in [0, 1], of shape (C,) or (C, 1, 1): subtracted.
            std: Likewise: divided by, so positive.
            random_crop: (height, width) in pixels to cut out, anywhere; from the middle with `augment=False`.
            random_shift: Move images by up to so many pixels each way, the edge repeated.
            color_jitter: Brightness, contrast and saturation, changed in this order by a factor in 1 − x to 1 + x.
            seed: Fixes what is drawn; or a generator of the CPU, whose state a checkpoint can keep.

        Raises:
            InvalidArgumentError: an argument that cannot be.
        """
        torch = _torch()
        self.device = torch_device(device)
        self._mean, self._std = self._per_channel("mean", mean), self._per_channel("std", std)
        if self._std is not None and not bool((self._std > 0).all()):
            raise InvalidArgumentError(f"std={std!r}; a positive number for each channel would do")
        if random_crop is not None and not _are_numbers(random_crop, 2, Integral, least=1):
            raise InvalidArgumentError(f"random_crop={random_crop!r}; (height, width) in pixels would do")
        if not _are_numbers([random_shift], 1, Integral, least=0):
            raise InvalidArgumentError(f"random_shift={random_shift!r}; a whole number of pixels would do")
        if not _are_numbers(color_jitter, 3, Real, least=0, most=1):
            raise InvalidArgumentError(
                f"color_jitter={color_jitter!r}; three numbers from 0 to 1, for brightness, contrast and saturation, "
                "would do"
            )
        if not (isinstance(seed, torch.Generator) or _are_numbers([seed], 1, Integral, least=0, most=(1 << 63) - 1)):
            raise InvalidArgumentError(f"seed={seed!r}; a whole number from 0 to 2**63 - 1 would do")
        self._crop, self._shift, self._jitter = random_crop, random_shift, tuple(color_jitter)
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if self.generator.device.type != "cpu":
            raise InvalidArgumentError(f"seed is a generator of {self.generator.device}; torch.Generator() would do")

    def __call__(self, images: Tensor, *, augment: bool = True) -> Tensor:
        """Return float32 images on the device; without `augment` the same of the same, as for evaluation.

        Raises:
            InvalidArgumentError: the images are not uint8 (B[, T], C, H, W), or do not fit what was chosen.
        """
        torch = _torch()
        self._check(images)
        # The copy goes on beside what the device does, if the loader pinned the memory (pin_memory=True).
        images = images.to(self.device, non_blocking=True)
        images = self._placed(images, augment)
        values = images.to(torch.float32).div_(255)
        if augment and any(self._jitter):
            values = self._jittered(values)
        if self._mean is not None:
            values = values - self._mean
        return values if self._std is None else values / self._std

    def _per_channel(self, name: str, values: Any) -> Tensor | None:
        if values is None:
            return None
        would_do = "a number for each channel, (C,) or (C, 1, 1), would do"
        try:
            tensor: Tensor = _torch().as_tensor(values, dtype=_torch().float32, device=self.device)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{name}={values!r}; {would_do}") from error
        if tensor.ndim not in (1, 3) or tensor.numel() != tensor.shape[0]:
            raise InvalidArgumentError(f"{name} has shape {tuple(tensor.shape)}; {would_do}")
        if not bool(tensor.isfinite().all()):
            raise InvalidArgumentError(f"{name}={values!r}, not all of which is finite; {would_do}")
        return tensor.reshape(-1, 1, 1)

    def _check(self, images: Tensor) -> None:
        if images.dtype != _torch().uint8 or images.ndim not in (4, 5):
            raise InvalidArgumentError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; uint8 (B, C, H, W) or (B, T, C, H, W) "
                'would do: open the dataset with image_dtype="uint8"'
            )
        channels = images.shape[-3]
        for name, values in (("mean", self._mean), ("std", self._std)):
            if values is not None and len(values) not in (1, channels):
                raise InvalidArgumentError(f"images have {channels} channels, and {name} is for {len(values)}")
        if any(self._jitter) and channels not in (1, 3):
            raise InvalidArgumentError(f"images have {channels} channels; color_jitter is for 3 (RGB) or 1 (grey)")
        if self._crop is not None and (self._crop[0] > images.shape[-2] or self._crop[1] > images.shape[-1]):
            raise InvalidArgumentError(
                f"images are {tuple(images.shape[-2:])} pixels (height, width), and random_crop={self._crop} is larger"
            )

    def _placed(self, images: Tensor, augment: bool) -> Tensor:
        """Cut out and shift, by one look-up of pixels, as bytes: a quarter of what floats would move."""
        torch = _torch()
        if self._crop is None and not (augment and self._shift):
            return images
        batch, sizes = len(images), images.shape[-2:]
        picked = []
        for old, new in zip(sizes, self._crop or sizes, strict=True):
            first = torch.full((batch,), (old - new) // 2)
            if augment:
                first = torch.randint(0, old - new + 1, (batch,), generator=self.generator)
                first = first + torch.randint(-self._shift, self._shift + 1, (batch,), generator=self.generator)
            # Moved to the device as one number a sample; clamped, so that what lies outside is the edge.
            picked.append((first.to(self.device)[:, None] + torch.arange(new, device=self.device)).clamp_(0, old - 1))
        rows, columns = picked
        samples = torch.arange(batch, device=self.device)[:, None, None]
        pixels_first = images[samples, ..., rows[:, :, None], columns[:, None, :]]  # (B, h, w, …)
        return pixels_first.movedim((1, 2), (-2, -1))

    def _jittered(self, values: Tensor) -> Tensor:
        torch = _torch()
        drawn = torch.rand((3, len(values)), generator=self.generator) * 2 - 1
        spans = torch.tensor(self._jitter)[:, None]
        factors = (1 + drawn * spans).to(self.device).reshape(3, -1, *[1] * (values.ndim - 1))
        values = (values * factors[0]).clamp_(0, 1)
        values = torch.lerp(_grey(values).mean(dim=(-2, -1), keepdim=True), values, factors[1]).clamp_(0, 1)
        jittered: Tensor = torch.lerp(_grey(values), values, factors[2])
        return jittered.clamp_(0, 1)


def _grey(values: Tensor) -> Tensor:
    """Return how bright each pixel looks, (…, 1, H, W)."""
    if values.shape[-3] == 1:
        return values
    weights = values.new_tensor(_GREY).reshape(3, 1, 1)
    return (values * weights).sum(dim=-3, keepdim=True)


def _are_numbers(values: Any, count: int, kind: Any, *, least: float, most: float = float("inf")) -> bool:
    """Whether it is so many numbers of a kind within bounds; True and False are none.

    >>> (
    ...     _are_numbers((2, 3), 2, Integral, least=1),
    ...     _are_numbers((2.5, 3), 2, Integral, least=1),
    ...     _are_numbers(5, 2, Integral, least=1),
    ... )
    (True, False, False)
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return False
    return all(isinstance(one, kind) and not isinstance(one, bool) and least <= one <= most for one in values)


def _torch() -> Any:
    return require("torch", extra="torch", purpose="preparing images for a network")
