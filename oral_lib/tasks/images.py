"""Images: read from tables, generated for the smoke scale, and decoded to tensors of bytes.

An image is decoded and resized once. It is then a row of bytes on the device, which a training step
selects by index. torch is imported by the function that returns a tensor.
"""

import colorsys
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oral_lib.errors import PreflightError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

GENERATED_PIXELS = 16  # pixels, of a generated image
PIXELS = 100_000_000  # of an image that is decoded, at most
# of files that are opened: each decoder is another program that reads strangers' bytes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF


class CellError(ValueError):
    """A cell of a table does not contain the text, number or image that a task requires."""


def file_bytes(cell: Any) -> bytes:
    """The image file in a table's cell: bytes, or the hub's {"bytes": ..., "path": ...}.

    Raises CellError for any other cell.
    """
    file = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(file, bytes | bytearray | memoryview):
        raise CellError("the image cell does not contain bytes")
    if not file:
        raise CellError("the image cell is empty")
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
    for i, file in enumerate(files):
        try:
            with warnings.catch_warnings(action="ignore"):  # the error has all in one line
                image = _rgb(file)
        except Exception as error:  # Pillow passes on whatever its decoders ran into
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            reason = re.sub(r" <_io.BytesIO object at 0x[0-9a-f]+>", "", reason)
            raise PreflightError(
                f"Image {i} of {len(files)} cannot be decoded ({reason}): replace the picture in "
                f"the data set. Formats: {', '.join(FORMATS)}."
            ) from error
        yield image


def _rgb(file: bytes) -> "Image":
    """The first frame in RGB, upright; transparent parts are white, more than 8 bits are scaled.

    Raises ValueError for values of an unknown range, and whatever Pillow raises.
    """
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(file), formats=FORMATS)
    width, height = image.size
    if not 0 < width * height <= PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, at most {PIXELS:,} are decoded")
    image.load()
    if image.mode.startswith(("I", "F")):
        image = _in_bytes(image)
    elif image.mode == "LAB":
        image = _of_lab(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        white.info, image = image.info, white
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def _in_bytes(image: "Image") -> "Image":
    """A grey image of 16 bits or of floats in 8 bits.

    The range of 16 bits is 0 to 65535, that of floats 0 to 1. Integers of 32 bits have no known
    range, except in formats that store 16 bits at most.
    """
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    top = 2.0 ** tags.get(_BITS, (16,))[0] - 1  # such as 12 bits
    if image.mode.startswith("F"):
        top = 1.0
    elif image.mode == "I" and image.format == "TIFF":
        raise ValueError("integers of 32 bits have no known range: save it with 8 or 16 bits")
    if not (values.min() >= 0 and values.max() <= top):  # NaN is neither
        raise ValueError(f"its values are not in 0 to {top:g}: scale them")
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        values = top - values
    if isinstance(transparent := image.info.get("transparency"), int):
        values = np.where(values == transparent, top, values)
    grey = Image.fromarray(np.floor(values * (255 / top) + 0.5).astype(np.uint8))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey


def _of_lab(image: "Image") -> "Image":
    from PIL import ImageCms

    profiles = [ImageCms.createProfile(name) for name in ("LAB", "sRGB")]
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
