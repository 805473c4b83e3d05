"""Images that come as files, or as the bytes of files: PNG stays as it is, everything else is decoded by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from roboreel.convert.foreign import DecodedImages
from roboreel.convert.image_form import image_form, is_png
from roboreel.errors import InvalidArgumentError, SourceError
from roboreel.store import CameraFrames, PngFrames


def image_files(paths: Sequence[str | Path]) -> CameraFrames:
    """Return the frames of a camera that are a file each, in the order given; a file is read when it is its turn.

    PNG files of 8 bits (colour or grey), or of 16 bits (grey: depth in millimetres), are kept as the files that they
    are unless another `image_mode` is asked for. JPEG, WebP, BMP, TIFF, PPM, GIF and JPEG 2000 are decoded to uint8
    (height, width, channels).

    Raises:
        SourceError: the first file is no image; a later one, or one of another size, is refused when it is read.
        InvalidArgumentError: there is no file.

    >>> from roboreel.convert import image_files
    >>> image_files(["examples/data/pusht/nothing.jpg"])
    Traceback (most recent call last):
    ...
    roboreel.errors.SourceError: examples/data/pusht/nothing.jpg: cannot be read (No such file or directory)
    """
    files = [Path(path) for path in paths]
    if not files:
        raise InvalidArgumentError("image_files was given no file; give one for each frame")

    def read(i: int) -> bytes:
        try:
            return files[i].read_bytes()
        except OSError as error:
            raise SourceError(f"{files[i]}: cannot be read ({error.strerror})") from None

    return encoded_images(len(files), read, f"the images beside {files[0]}", lambda i: str(files[i]))


def encoded_images(
    length: int, read: Callable[[int], bytes], source: str, name: Callable[[int], str] | None = None
) -> CameraFrames:
    """Return frames of which `read(i)` gives the bytes of a file, all of the size and kind of the first.

    Errors name `source` and the frame, or what `name(i)` says.
    """

    def named(i: int) -> str:
        return f"{source}, frame {i}" if name is None else name(i)

    first = read(0)
    shape, dtype = image_form(first, named(0))
    png = is_png(first)

    def checked(i: int) -> bytes:
        data = read(i)
        found = image_form(data, named(i))
        if found != (shape, dtype) or is_png(data) != png:
            kind = "a PNG image" if is_png(data) else "an image that is not PNG,"
            raise SourceError(
                f"{named(i)}: {kind} of {found[1]} {found[0]}, where the first is of {dtype} {shape}; bring them "
                "all to one size and kind"
            )
        return data

    files = PngFrames(length, shape, checked, source, dtype)
    return files if png else DecodedImages(files)
