"""Images: read from tables, generated for the smoke scale, and decoded to tensors of bytes.

An image is decoded and resized once. It is then a row of bytes on the device, which a training step
selects by index. torch is imported by the function that returns a tensor.
"""

import colorsys
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oral_lib.errors import PreflightError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

GENERATED_PIXELS = 16  # pixels, of a generated image


class CellError(ValueError):
    """A cell of a table does not contain the text, number or image that a task requires."""


def file_bytes(cell: Any) -> bytes:
    """The image file in a table's cell: bytes, or the hub's {"bytes": ..., "path": ...}.

    Raises CellError for any other cell.
    """
    file = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(file, bytes | bytearray | memoryview):
        raise CellError("the image cell does not contain bytes")
    return bytes(file)


def square(label: int, labels: int, rng: np.random.Generator, hue: float = 0.0) -> bytes:
    """An image file of class `label` of `labels`: a square in the class's colour on grey noise.

    `hue` in [0, 1) is added to the hue of all classes, which gives another task.
    """
    return _pixmap(_square((label / labels + hue) % 1, rng))


def styled_square(rng: np.random.Generator, hue: float | None = None) -> bytes:
    """An image file as of `square` in a random colour; with `hue` in [0, 1) in a style: tinted
    with that hue and crossed by dark lines."""
    image = _square(rng.random(), rng)
    if hue is not None:
        image = (image + np.multiply(colorsys.hsv_to_rgb(hue, 1, 1), 255)) / 2
        image[:: 3 + round(hue)] /= 4
    return _pixmap(image.astype(np.uint8))


def _square(hue: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [side, side, 3]"""
    image = (
        rng.integers(90, 166, (GENERATED_PIXELS, GENERATED_PIXELS, 1)).repeat(3, 2).astype(np.uint8)
    )
    top, left = rng.integers(0, GENERATED_PIXELS - 9, 2)
    colour = colorsys.hsv_to_rgb(hue, 1, 1)
    image[top : top + 9, left : left + 9] = np.multiply(colour, 255).round()
    return image


def _pixmap(image: np.ndarray) -> bytes:
    return (
        b"P6 %d %d 255\n" % (GENERATED_PIXELS, GENERATED_PIXELS) + image.tobytes()
    )  # a portable pixmap


def decode_images(files: Sequence[bytes], pixels: int, interpolation: str) -> "Tensor":
    """uint8 [n, 3, pixels, pixels] on the CPU: each image in RGB, stretched to a square.

    Raises PreflightError if a file is not an image.
    """
    import torch
    from PIL import Image

    method = Image.Resampling[interpolation.upper()]
    table = torch.empty(len(files), 3, pixels, pixels, dtype=torch.uint8)
    for i, image in enumerate(_opened(files)):
        square = np.asarray(image.resize((pixels, pixels), method))  # [pixels, pixels, 3]
        table[i] = torch.from_numpy(square.copy()).permute(2, 0, 1)  # [3, pixels, pixels]
    return table


def pad_to_square(files: Sequence[bytes], pixels: int) -> np.ndarray:
    """uint8 [n, pixels, pixels, 3]: each image in its own proportions with white borders.

    Raises PreflightError if a file is not an image.
    """
    from PIL import Image, ImageOps

    size, method = (pixels, pixels), Image.Resampling.BICUBIC
    return np.stack([ImageOps.pad(i, size, method, color="white") for i in _opened(files)])


def _opened(files: Sequence[bytes]) -> "Iterator[Image]":
    from PIL import Image, UnidentifiedImageError

    for i, file in enumerate(files):
        try:
            yield Image.open(io.BytesIO(file)).convert("RGB")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise PreflightError(
                f"Image {i} of {len(files)} cannot be decoded ({type(error).__name__}): "
                "replace the data set."
            ) from error
