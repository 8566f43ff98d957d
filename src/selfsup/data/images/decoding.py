"""One encoded image and its pixels: what is read, what is refused, and at what scale.

Read are JPEG (MPO too), PNG, WebP, GIF, BMP and TIFF, AVIF where Pillow can and HEIF where pillow-heif is installed; an
animation gives its first frame. They become 8-bit RGB: grey and palettes as Pillow converts them, CMYK by Pillow's
formula (no colour profile is applied), 16 bits by their upper byte, transparency over white, turned as the EXIF
orientation says. Of an image more than `RATIO` times as long as it is wide (or the other way round) the middle is kept.

Refused are an empty or a truncated file, what is no image, 32-bit numbers as pixels, and what takes too much to decode:
an image of more than `MOST_PIXELS` (in formats whose decoders take twice the memory, half as many), a large one with
more than `PER_BYTE` pixels for each byte of its file, a file of more than `MOST_BYTES`, a JPEG of more scans than
`MOST_SCANS`, and a PNG or JPEG in far more pieces than programs write.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

RATIO = 3
END = 1 << 16  # bytes at either end of a file that its hash is of

MOST_BYTES = 1 << 28  # of an encoded image
MOST_PIXELS = 1 << 27  # of an image, by its header
TWICE = ("WEBP", "AVIF", "HEIF")  # formats whose decoders hold the image once more
PER_BYTE, LARGE = 200, 1 << 24  # pixels for each byte of its file, of an image of more than so many
MOST_PIECES, PIECE = 1000, 256  # of a PNG or JPEG; more where they are of so many bytes in the mean
MOST_SCANS = 32  # of a JPEG, each of which goes over the whole picture: programs write about ten
WORK = 7  # bytes that a pixel takes while it is decoded: four in Pillow, three in the result
BAND = 1 << 20  # pixels that become RGB at a time

ORIENTATION = 0x0112  # the EXIF tag
JPEG = b"\xff\xd8"  # the first bytes
SCAN = 0xDA  # of JPEG's markers, the one that begins a scan
SEQUENTIAL = {0xC0, 0xC1}  # those that begin a picture which is not progressive

Pixels = npt.NDArray[np.uint8]

# By the EXIF orientation: whether the sides change places, and then the steps in which rows and columns are read.
TURNED = {2: (0, 1, -1), 3: (0, -1, -1), 4: (0, -1, 1)}
TURNED |= {5: (1, 1, 1), 6: (1, 1, -1), 7: (1, -1, -1), 8: (1, -1, 1)}

Encoded = bytes | Image.Image | npt.NDArray[Any]  # a file's content, or an image that Python holds already

# Pillow warns from half the number of pixels that it refuses, and large photographs lie in between; what else it warns
# of is damage beside the pixels, no more than a lost orientation.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):
    """An image that is refused; the message says why, as `it is truncated`."""


def decode(image: Encoded, least: int | None = None) -> Pixels:
    """The pixels of an image, (H, W, 3).

    Args:
        image: the bytes of a file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
        least: a short side that suffices: an image at least twice as large is reduced by whole numbers, a JPEG by 2, 4
            or 8 while it is decoded, the rest by means of pixels, until its short side is in [least, 2 · least).

    Raises:
        BadImage: it is refused.
    """
    if isinstance(image, np.ndarray):
        return reduced(_middle(_rgb_of_array(image)), least)
    if isinstance(image, bytes):
        _refuse_work(image)
        if (fast := _decode_jpeg(image, least)) is not None:
            return reduced(_middle(fast), least)
    with _refusing():
        return reduced(_middle(_decode(image, least)), least)


def _decode(image: bytes | Image.Image, least: int | None) -> Pixels:
    """What Pillow makes of an image, whose own memory is free again when this returns."""
    opened = _open(image) if isinstance(image, bytes) else image
    if isinstance(image, bytes) and least is not None:
        opened.draft(None, (least, least))
    opened.load()
    sides, rows, columns = _turn(opened)
    pixels = _pixels(opened)
    return (pixels.transpose(1, 0, 2) if sides else pixels)[::rows, ::columns]


def reduced(pixels: Pixels, least: int | None) -> Pixels:
    """Pixels (H, W, 3) reduced by the whole number that leaves a short side of at least `least`."""
    factor = 1 if least is None else min(pixels.shape[:2]) // least
    return pixels if factor <= 1 else np.array(Image.fromarray(pixels).reduce(factor))


def size_of(image: Encoded, length: int | None = None) -> tuple[int, int]:
    """Height and width, of a file from its header; `length` is its length, where these are its first bytes, which
    suffice for most. Raises BadImage where it is refused, as far as its header tells."""
    if isinstance(image, np.ndarray):
        height, width = _rgb_of_array(image).shape[:2]
        return height, width
    with _refusing():
        opened = _open(image, length) if isinstance(image, bytes) else image
        if opened is image:
            opened.load()  # here, since threads that decode may meet in one image
        return opened.height, opened.width


def hash_of(image: Encoded) -> int:
    """64 bits of BLAKE2b: of a file's length and of the first and last `END` bytes, of an image in Python all. Of a
    file that may hold its pixels one by one, all: its ends may be margins alone."""
    if isinstance(image, bytes):
        ends = (image,) if stored_plainly(image) else (image[:END], image[max(len(image) - END, END) :])
        return hash_of_ends(len(image), *ends)
    array = np.asarray(image)
    return hash_of_ends(array.shape, np.ascontiguousarray(array).data)


def stored_plainly(head: bytes) -> bool:
    """Whether a file is BMP or TIFF, by its first bytes."""
    return head.startswith((b"BM", b"II*\0", b"MM\0*"))


def hash_of_ends(opening: object, *parts: Any) -> int:
    """The hash of a file by its length, its first `END` bytes, and up to `END` of what follows them."""
    digest = hashlib.blake2b(f"{opening} ".encode(), digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


@cache
def formats() -> tuple[str, ...]:
    """What Pillow calls the formats that are read here."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    optional = (name for name in ("AVIF", "HEIF") if name in Image.OPEN)
    return ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *optional)


def _open(data: bytes, length: int | None = None) -> Image.Image:
    if not data:
        raise BadImage("it is empty")
    _refuse_work(data)
    image = Image.open(io.BytesIO(data), formats=formats())
    pixels = image.width * image.height
    if pixels > (MOST_PIXELS // 2 if image.format in TWICE else MOST_PIXELS):
        raise Image.DecompressionBombError
    if pixels > _most_pixels(length or len(data)):
        raise BadImage("it has far more pixels than its bytes can tell apart")
    return image


def _most_pixels(length: int) -> int:
    """Pixels that so many bytes may stand for."""
    return max(LARGE, PER_BYTE * length)


def _refuse_work(data: bytes) -> None:
    """Refuse what takes too much to decode, as far as its pixels do not tell."""
    if len(data) > MOST_BYTES:
        raise BadImage(f"it has more than the {MOST_BYTES >> 20} MiB that are read of an image")
    if _pieces(data) > max(MOST_PIECES, len(data) // PIECE):
        raise BadImage("it is in far too many pieces")
    if _scans(data) > MOST_SCANS:
        raise BadImage(f"it has more than the {MOST_SCANS} scans that are decoded")


def _turn(image: Image.Image) -> tuple[int, int, int]:
    """What of `TURNED` makes it upright. Where the EXIF data are damaged, the image is taken as it stands."""
    with suppress(OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return TURNED.get(image.getexif().get(ORIENTATION, 1), (0, 1, 1))
    return 0, 1, 1


def _pixels(image: Image.Image) -> Pixels:
    """An image as RGB, by bands, since what is made on the way takes several times its memory."""
    rows = max(1, BAND // image.width)
    if image.height <= rows:
        return np.array(_rgb(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        band = (0, top, image.width, min(top + rows, image.height))
        pixels[top : top + rows] = np.asarray(_rgb(image.crop(band)))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage("it has 32-bit numbers as pixels (save it with 8 or 16 bits)")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _rgb_of_array(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8:
        raise BadImage(f"it is an array of {array.dtype} (give uint8 from 0 to 255)")
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        shape = f"{array.shape} (give (height, width, channels), with 1, 3 or 4 channels)"
        raise BadImage(f"it is an array of shape {shape}")
    if array.shape[2] == 4:
        return np.array(_rgb(Image.fromarray(array)))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _middle(pixels: Pixels) -> Pixels:
    """An image without its ends, where it is longer than `RATIO` times its short side."""
    longest = RATIO * min(pixels.shape[:2])
    if max(pixels.shape[:2]) <= longest:
        return np.ascontiguousarray(pixels)
    top, left = (max(side - longest, 0) // 2 for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + longest, left : left + longest])


@contextmanager
def _refusing() -> Iterator[None]:
    """Say what Pillow's errors mean."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:  # decoders of damaged files raise what they like
        raise BadImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more pixels than the {MOST_PIXELS / 1e6:.0f} million that are decoded"
    if "truncated" in text.lower() or "end of file" in text.lower():
        return "it is truncated"
    if "cannot identify" in text:
        return "it is no image of a readable kind"
    return f"it cannot be decoded ({text or type(error).__name__})"


# -- simplejpeg ----------------------------------------------------------------------------------------------


@cache
def _simplejpeg() -> Any:
    """The module; None where it is not installed."""
    with suppress(ImportError):
        return importlib.import_module("simplejpeg")
    return None


def _decode_jpeg(data: bytes, least: int | None) -> Pixels | None:
    """What Pillow gives, several times as fast for small files; None for what needs Pillow after all."""
    library = _simplejpeg()
    if library is None or data[:2] != JPEG or _may_be_turned(data):
        return None
    with suppress(ValueError):
        height, width, space, _ = library.decode_jpeg_header(data)
        short = min(height, width)
        # Of a smaller image several scales give the size that is asked for.
        if short < 16 or space in ("CMYK", "YCCK"):
            return None
        if height * width <= min(MOST_PIXELS, _most_pixels(len(data))):
            factor = 1 if least is None else short // least
            scale = next(scale for scale in (8, 4, 2, 1) if scale <= max(1, factor))
            sides = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
            return np.asarray(library.decode_jpeg(data, **sides), np.uint8)
    return None


def _may_be_turned(data: bytes) -> bool:
    """Whether a segment of a JPEG for EXIF data (APP1) stands before its picture, or none can tell."""
    markers = [marker for marker, _ in _segments(data)]
    return 0xE1 in markers or markers[-1:] != [SCAN]


def _pieces(data: bytes) -> int:
    """How many chunks a PNG has, and how many segments a JPEG before its picture; no more are counted than may be."""
    pieces: Iterator[object] = _chunks(data) if data[:8] == b"\x89PNG\r\n\x1a\n" else _segments(data)
    return sum(1 for _ in itertools.islice(pieces, max(MOST_PIECES, len(data) // PIECE) + 1))


def _chunks(data: bytes) -> Iterator[int]:
    """The place of each chunk of a PNG."""
    place = 8
    while place + 8 <= len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _scans(data: bytes) -> int:
    """How many scans of a JPEG are decoded: one, unless it is progressive or has its colours one after the other."""
    if data[:2] != JPEG:
        return 0
    places = dict(_segments(data))
    frames = [place for marker, place in places.items() if marker in SEQUENTIAL]
    if SCAN in places and len(frames) == 1:
        colours, of_scan = (data[place : place + 1] for place in (frames[0] + 9, places[SCAN] + 4))
        if colours == of_scan:
            return 1
    return data.count(bytes((0xFF, SCAN)))


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker and the place of each segment of a JPEG up to its first scan; of other files none. They are walked,
    since a search through all bytes would keep other threads waiting."""
    place, marker = (2 if data[:2] == JPEG else len(data)), 0
    while marker != SCAN and data[place : place + 1] == b"\xff" and place + 1 < len(data):
        marker = data[place + 1]
        yield marker, place
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
