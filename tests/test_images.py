"""Images of every mode are decoded by value range, or refused in one line with their number."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from oral_lib.errors import PreflightError
from oral_lib.tasks.images import CellError, decode_images, file_bytes, pad_to_square

RAMP = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


def saved(image, kind="PNG", **rest) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **rest)
    return file.getvalue()


def decoded(file: bytes, pixels: int = 64) -> np.ndarray:
    """[pixels, pixels, 3]"""
    return decode_images([file], pixels, "nearest")[0].permute(1, 2, 0).numpy()


def grey(values: np.ndarray) -> np.ndarray:
    return values[..., None].repeat(3, -1)


WIDE = RAMP.astype(np.uint16) * 257
BIG_ENDIAN = Image.frombytes("I;16B", (64, 64), WIDE.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (saved(RAMP), grey(RAMP)),
        (saved(COLOUR), COLOUR),
        (saved(COLOUR, "TIFF"), COLOUR),
        (saved(COLOUR, "BMP"), COLOUR),
        (saved(COLOUR, "WEBP", lossless=True), COLOUR),
        (saved(COLOUR, "PPM"), COLOUR),
        (saved(RAMP > 99), grey((RAMP > 99) * np.uint8(255))),
        (saved(WIDE), grey(RAMP)),
        (saved(WIDE, "TIFF"), grey(RAMP)),
        (saved(BIG_ENDIAN, "TIFF"), grey(RAMP)),
        (saved(WIDE, "PPM"), grey(RAMP)),
        (saved((RAMP / 255).astype(np.float32), "TIFF"), grey(RAMP)),
        (saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"), COLOUR),
        (saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR),
        (saved(Image.fromarray(COLOUR), "JPEG", quality=100, subsampling=0), COLOUR),
        (saved(Image.fromarray(RAMP).convert("P")), grey(RAMP)),
        (saved(Image.fromarray(RAMP), "GIF"), grey(RAMP)),
    ],
    ids=range(17),
)  # fmt: skip
def test_a_mode_is_decoded_by_what_it_can_hold(file, expected):
    assert np.abs(decoded(file).astype(int) - expected).max() <= 5


def test_lab_is_decoded_in_colour():
    lab = Image.new("LAB", (8, 8), (128, 128 + 60, 128))  # a medium red
    red, green, blue = decoded(saved(lab, "TIFF"), 8)[0, 0].astype(int)
    assert red > green + 50 and red > blue + 50


def test_bits_between_8_and_16_are_scaled_by_their_number():
    file = bytearray(saved((RAMP.astype(np.uint16) * 16) + RAMP // 16, "TIFF"))
    image = Image.open(io.BytesIO(file))
    assert image.tag_v2[258] == (16,)
    row = np.arange(0, 4096, 64, dtype=np.uint16)
    packed = bytearray()
    for one, two in row.reshape(-1, 2).tolist():
        packed += bytes([one >> 4, (one & 15) << 4 | two >> 8, two & 255])
    tags = [(256, 3, 64), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, 1), (279, 4, len(packed))]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I",
                                                       *([n, 0] if kind == 3 else [n]))
        for tag, kind, n in tags
    )  # fmt: skip
    body = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    tiff = b"II*\0" + struct.pack("<I", 8 + len(packed)) + bytes(packed) + body
    assert Image.open(io.BytesIO(tiff)).mode == "I;16"
    values = decoded(tiff)[0, :, 0].astype(int)
    assert np.abs(values - row / 4095 * 255).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16"])
def test_what_is_transparent_is_white(mode):
    image, options = Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    if mode in ("LA", "P"):
        image = image.convert(mode)
    elif mode in ("RGB", "L"):  # one colour is transparent
        image = image.convert("RGB").convert(mode)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    elif mode == "I;16":
        image = np.array([[200 * 257] * 4 + [0] * 4] * 8, np.uint16)
        options = {"transparency": 0}
    pixels = decoded(saved(image, **options), 8)
    assert np.abs(pixels[:, :4].astype(int) - 200).max() <= 2 and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright(kind, orientation):
    from PIL import ImageOps

    upright = Image.new("RGB", (32, 32), "black")
    upright.paste("white", (0, 0, 16, 32))
    upright.paste("red", (0, 0, 16, 16))
    for turned in (upright, *map(upright.transpose, Image.Transpose)):
        exif = Image.Exif()
        exif[274] = orientation
        file = saved(turned, kind, exif=exif)
        probe = Image.new("RGB", (32, 32))
        probe.paste(turned)
        probe.getexif()[274] = orientation
        expected = np.asarray(ImageOps.exif_transpose(probe))
        assert np.abs(decoded(file, 32).astype(int) - expected).mean() < 16


def test_of_a_film_the_first_frame_is_decoded():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        more = {"lossless": True} if kind == "WEBP" else {}
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **more)
        assert np.abs(decoded(file, 8)[0, 0].astype(int) - (255, 0, 0)).max() < 3


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


GOOD = saved(COLOUR)
NOT_FINITE = np.full((8, 8), np.nan, np.float32)
BROKEN = {
    "no image": b"not an image",
    "truncated": GOOD[: len(GOOD) // 2],
    "header only": GOOD[:20],
    "damaged chunk": GOOD[:60] + b"\xff" * 40 + GOOD[100:],
    "bomb": png(60_000, 60_000),
    "large": png(12_000, 12_000),
    "no width": png(0, 5),
    "no data": png(5, 5),
    "32 bits": saved(np.arange(64, dtype=np.int32).reshape(8, 8), "TIFF"),
    "floats above 1": saved(np.full((8, 8), 255, np.float32), "TIFF"),
    "negative floats": saved(np.full((8, 8), -1, np.float32), "TIFF"),
    "not finite": saved(NOT_FINITE, "TIFF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "icon": saved(COLOUR, "ICO"),
    "jpeg": saved(COLOUR, "JPEG")[:300],
    "gif": saved(RAMP, "GIF")[:30],
    "tiff": saved(RAMP, "TIFF")[:100],
    "webp": saved(COLOUR, "WEBP")[:60],
    "ppm": b"P6 9999999999 1 255\n",
    "text bomb": GOOD[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 9**7)) + GOOD[33:],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_decoded_is_named_by_its_number(name, refused):
    with refused(PreflightError, "Image 2 of 3 cannot be decoded", "replace the picture"):
        decode_images([GOOD, GOOD, BROKEN[name]], 8, "bilinear")
    with refused(PreflightError, "Image 0 of 1"):
        pad_to_square([BROKEN[name]], 8)


def test_random_damage_ends_in_an_image_or_one_line():
    stream = np.random.default_rng(0)
    kinds = [("PNG", {}), ("JPEG", {}), ("GIF", {}), ("TIFF", {}), ("WEBP", {}), ("BMP", {})]
    kinds += [("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})]
    for kind, options in kinds:
        file = np.frombuffer(saved(COLOUR[:16, :16], kind, **options), np.uint8)
        for _ in range(60):
            broken = file.copy()
            places = stream.integers(0, len(file), stream.integers(1, 6))
            broken[places] = stream.integers(0, 256, len(places))
            try:
                decode_images([broken.tobytes()[: stream.integers(1, 2 * len(file))]], 4, "nearest")
            except PreflightError as error:
                assert len(str(error).splitlines()) == 1 and "Image 0 of 1" in str(error)


@pytest.mark.parametrize(
    "cell", [None, b"", {"bytes": None, "path": "a.png"}, {}, "a.png", 3.5, []]
)
def test_a_cell_without_a_file_is_refused(cell):
    with pytest.raises(CellError):
        file_bytes(cell)
