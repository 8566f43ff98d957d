"""Pictures by Pillow: with boxes and hidden patches drawn in, beside and below each other, with text."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

DENSITY = 2  # pixels drawn for each that a page counts
GAP = 12  # between tiles
PAPER, INK, FAINT, GROUND = "#fbfaf8", "#1f2328", "#6b7079", "#f0eee9"
FIRST, SECOND, OTHER = "#e8590c", "#2f6fde", "#0f9d76"  # colours of frames
RAMP = ["#0d0a1f", "#5b1a63", "#b8324f", "#ef7d29", "#fbd87a", "#fffbe6"]  # from little to much, ever brighter
HIDDEN = "#b2aea8"  # of a patch that is not shown
LETTERS = "“”‘’…±°·"  # beyond ASCII, that Pillow's font has


@dataclass(frozen=True)
class Box:
    """A part of a picture, in its pixels, with a name that is drawn into its corner."""

    top: float
    left: float
    height: float
    width: float
    colour: str
    name: str


def outlined(pixels: Pixels, height: int, boxes: Sequence[Box]) -> Pixels:
    """A picture at the height that a page gives it, with boxes drawn in."""
    picture = resized(pixels, height)
    scale = picture.height / pixels.shape[0]
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        left, top = box.left * scale, box.top * scale
        corner = (left + box.width * scale - 1, top + box.height * scale - 1)
        draw.rectangle((left, top, *corner), outline=PAPER, width=3 * DENSITY)
        draw.rectangle((left, top, *corner), outline=box.colour, width=2 * DENSITY)
    for box in filter(lambda box: box.name, boxes):  # names lie above all lines
        _tag(draw, box.left * scale, box.top * scale, box)
    return np.asarray(picture)


def _tag(draw: ImageDraw.ImageDraw, left: float, top: float, box: Box) -> None:
    face = font(11)
    width, height = face.getlength(box.name) + 6 * DENSITY, 14 * DENSITY
    draw.rectangle((left, top, left + width, top + height), fill=box.colour)
    draw.text((left + width / 2, top + height / 2), box.name, "#ffffff", face, anchor="mm")


def patched(pixels: Pixels, hidden: npt.NDArray[np.bool_], colours: Pixels | None = None) -> Pixels:
    """A picture whose hidden patches (rows, columns) are grey, or of a colour each (rows, columns, 3)."""
    rows, columns = hidden.shape
    high, wide = pixels.shape[0] // rows, pixels.shape[1] // columns
    where = hidden.repeat(high, 0).repeat(wide, 1)[..., None]
    cover = ramp(np.zeros(hidden.shape), (HIDDEN,)) if colours is None else colours
    return np.where(where, cover.repeat(high, 0).repeat(wide, 1), pixels)


def ramp(shares: npt.NDArray[np.floating], colours: Sequence[str] = RAMP) -> Pixels:
    """Shares (rows, columns) from 0 to 1 as colours, (rows, columns, 3); what lies beyond is the end."""
    stops = np.linspace(0, 1, len(colours))
    channels = np.array([ImageColor.getrgb(colour) for colour in colours]).T
    return np.stack([np.interp(shares, stops, channel) for channel in channels], -1).round().astype(np.uint8)


def resized(pixels: Pixels, height: int) -> Image.Image:
    """At the height that a page gives it; pixels of small pictures stay squares."""
    picture = Image.fromarray(pixels)
    target = height * DENSITY
    width = max(1, round(target * picture.width / picture.height))
    method = Image.Resampling.NEAREST if target >= picture.height else Image.Resampling.LANCZOS
    return picture.resize((width, target), method)


def data_uri(picture: Image.Image) -> str:
    """A picture within a page that needs nothing beside itself."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode('ascii')}"


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


# -- sheets --


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, of so many pixels of a page."""
    face = ImageFont.load_default(size * DENSITY)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def written(text: str, size: int, colour: str, width: int) -> Image.Image:
    """A text in lines that fit a width."""
    face, step = font(size), round(size * 1.4) * DENSITY
    lines = [""]
    for word in drawable(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if face.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    sheet = blank(width, step * len(lines))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((0, number * step), line, colour, face)
    return sheet


def drawable(text: str) -> str:
    """A text in letters that Pillow's font has: others lose their marks, or become question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("×", "x"))
    kept = (letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() or letter in LETTERS else "?" for letter in kept)


def stacked(parts: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    """One below the other."""
    sheet = blank(width, sum(part.height for part in parts) + gap * max(0, len(parts) - 1))
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + gap
    return sheet


def flowed(parts: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    """In rows of at most a width, as words stand in lines; no wider than it needs to be."""
    rows: list[list[Image.Image]] = [[]]
    for part in parts:
        if rows[-1] and _extent([*rows[-1], part], gap) > width:
            rows.append([])
        rows[-1].append(part)
    sheets = [_row(row, gap) for row in rows]
    return stacked(sheets, max(sheet.width for sheet in sheets), gap)


def _extent(parts: Sequence[Image.Image], gap: int) -> int:
    return sum(part.width + gap for part in parts) - gap


def _row(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    sheet = blank(_extent(parts, gap), max(part.height for part in parts))
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width + gap
    return sheet
