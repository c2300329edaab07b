"""Pictures: as files hold them, made on the spot for the smoke scale, and as bytes on the device.

A picture is decoded and resized once; from then on it is a row of bytes on the device that a
training step picks by its place. Nothing here imports torch before it is asked for.
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

SIDE = 16  # of a picture that is made


def encoded(cell: Any) -> bytes:
    """The file that a table's cell holds: bytes, or the Hub's {"bytes": ..., "path": ...};
    TypeError for a cell without any."""
    file = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(file, bytes | bytearray | memoryview):
        raise TypeError("the cell of the picture holds no bytes")
    return bytes(file)


def made(label: int, labels: int, draw: np.random.Generator, turn: float = 0.0) -> bytes:
    """A picture of class `label`: a square of the class's colour somewhere on grey noise.

    `turn` in [0, 1) moves the colours of all classes round the wheel: another task.
    """
    return _pixmap(_square((label / labels + turn) % 1, draw))


def styled(draw: np.random.Generator, turn: float | None = None) -> bytes:
    """A picture as `made`, of any colour; in the style `turn` in [0, 1), tinted with the colour
    that lies there on the wheel and ruled with dark lines."""
    picture = _square(draw.random(), draw)
    if turn is not None:
        picture = (picture + np.multiply(colorsys.hsv_to_rgb(turn, 1, 1), 255)) / 2
        picture[:: 3 + round(turn)] /= 4
    return _pixmap(picture.astype(np.uint8))


def _square(hue: float, draw: np.random.Generator) -> np.ndarray:
    picture = draw.integers(90, 166, (SIDE, SIDE, 1)).repeat(3, 2).astype(np.uint8)
    top, left = draw.integers(0, SIDE - 9, 2)
    colour = colorsys.hsv_to_rgb(hue, 1, 1)
    picture[top : top + 9, left : left + 9] = np.multiply(colour, 255).round()
    return picture


def _pixmap(picture: np.ndarray) -> bytes:
    return b"P6 %d %d 255\n" % (SIDE, SIDE) + picture.tobytes()  # a portable pixmap


def decoded(files: Sequence[bytes], pixels: int, interpolation: str) -> "Tensor":
    """uint8 [n, 3, pixels, pixels] on the CPU: the whole of every picture, in colour, stretched to
    a square.

    PreflightError when one cannot be read.
    """
    import torch
    from PIL import Image

    how = Image.Resampling[interpolation.upper()]
    table = torch.empty(len(files), 3, pixels, pixels, dtype=torch.uint8)
    for place, picture in enumerate(_opened(files)):
        square = np.asarray(picture.resize((pixels, pixels), how))
        table[place] = torch.from_numpy(square.copy()).permute(2, 0, 1)
    return table


def framed(files: Sequence[bytes], pixels: int) -> np.ndarray:
    """uint8 [n, pixels, pixels, 3]: every picture in its own proportions, white round it, to be
    looked at. PreflightError when one cannot be read."""
    from PIL import Image, ImageOps

    size, how = (pixels, pixels), Image.Resampling.BICUBIC
    return np.stack([ImageOps.pad(p, size, how, color="white") for p in _opened(files)])


def _opened(files: Sequence[bytes]) -> "Iterator[Image]":
    from PIL import Image, UnidentifiedImageError

    for place, file in enumerate(files):
        try:
            yield Image.open(io.BytesIO(file)).convert("RGB")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise PreflightError(
                f"picture {place} of {len(files)} cannot be read ({type(error).__name__}): "
                "put the data set there again."
            ) from error
