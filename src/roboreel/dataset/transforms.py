"""The user's `image_transform`: called with a sample's images or a whole batch's, and checked in what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from roboreel._optional import require
from roboreel.dataset.batch import is_plain
from roboreel.dataset.buffers import Room
from roboreel.errors import InvalidArgumentError
from roboreel.schema import KeySpec

if TYPE_CHECKING:
    import torch

    ImageTransform = Callable[[torch.Tensor], torch.Tensor]

AnyTransform = TypeVar("AnyTransform", bound=Callable[..., Any])

_TAKES_BATCH = "takes_batch"


def takes_batch(transform: AnyTransform) -> AnyTransform:
    """Mark an `image_transform` as one to be called once a camera, with the images of a whole batch.

    It is then given (B, C, H, W), or (B, T, C, H, W) where the camera has a window, and returns a tensor with the
    same first axis. Sets the attribute `takes_batch`, which a class may also have itself. `dataset[i]` is a batch of
    one.

    >>> @takes_batch
    ... def halved(images):
    ...     return images / 2
    >>> halved.takes_batch
    True

    Raises:
        InvalidArgumentError: it is no function, or one that takes no attribute, such as a bound method.
    """
    if not callable(transform):
        raise InvalidArgumentError(f"takes_batch was given {transform!r}; a function or a callable object would do")
    try:
        setattr(transform, _TAKES_BATCH, True)
    except AttributeError:
        raise InvalidArgumentError(
            f"{transform!r} takes no attribute; wrap it: takes_batch(lambda images: …), or give a class of your own "
            "with takes_batch = True"
        ) from None
    return transform


def parse_transform(transform: ImageTransform | None) -> ImageTransform | None:
    """Return an `image_transform`; refuse what cannot be one."""
    if transform is not None and not callable(transform):
        raise InvalidArgumentError(
            f"image_transform={transform!r}; a function of a sample's images, a tensor (C, H, W) or (T, C, H, W), that "
            "returns a tensor would do, or None"
        )
    return transform


def transform_images(batch: dict[str, Any], keys: Mapping[str, KeySpec], transform: ImageTransform, room: Room) -> None:
    """Put what `transform` gives for each camera, depth left out, in place of its images, (B[, T], C, H, W).

    What it gives for single samples is put together in memory from `room`.

    Raises:
        InvalidArgumentError: it gave no tensor, or tensors that make no batch; the message names the camera.
    """
    torch = require("torch", extra="torch", purpose="transforming images")
    for key in (key for key, spec in keys.items() if spec.is_camera and not spec.is_depth and key in batch):
        try:
            where = f"image_transform, camera {key!r}"
            if getattr(transform, _TAKES_BATCH, False):
                batch[key] = _of_batch(torch, batch[key], transform, where)
            else:
                batch[key] = _of_samples(torch, batch[key], transform, where, room)
        except InvalidArgumentError:
            raise
        except Exception as error:
            error.add_note(f"in image_transform, camera {key!r}")
            raise


def _of_batch(torch: Any, images: Any, transform: ImageTransform, where: str) -> Any:
    given = transform(images)
    _check_tensor(torch, given, where)
    if given.shape[:1] != images.shape[:1]:
        raise InvalidArgumentError(
            f"{where}: was given a batch {tuple(images.shape)} and returned {tuple(given.shape)}; the first axis, one "
            "entry a sample, must stay: leave takes_batch out if it is for single samples"
        )
    return given


def _of_samples(torch: Any, images: Any, transform: ImageTransform, where: str, room: Room) -> Any:
    given: list[Any] = []
    together = None
    for number, sample in enumerate(images):
        one = transform(sample)
        _check_tensor(torch, one, where)
        first = given[0] if given else one
        if (one.shape, one.dtype) != (first.shape, first.dtype):
            raise InvalidArgumentError(
                f"{where}: returned {first.dtype} {tuple(first.shape)} for one sample and {one.dtype} "
                f"{tuple(one.shape)} for another; a batch needs one shape and one dtype"
            )
        if number == 0:
            together = _room_for(torch, one, len(images), room)
        if together is None:
            given.append(one)
        else:  # at once: it is in the processor's cache yet, and its memory is free for the next one
            together[number] = one
            given = given or [one]
    if not given:
        return images
    return torch.stack(given) if together is None else together


def _room_for(torch: Any, one: Any, count: int, room: Room) -> Any:
    """Return memory for so many of the same kind; None where it has to be torch's."""
    if not is_plain(torch, one):
        return None
    shape, dtype = (count, *one.shape), one.numpy().dtype
    return torch.from_numpy(room.empty(shape, dtype, count * one.nbytes))


def _check_tensor(torch: Any, given: Any, where: str) -> None:
    if not isinstance(given, torch.Tensor):
        raise InvalidArgumentError(f"{where}: returned {type(given).__name__}; it must return a tensor")
