"""One image: every kind of file and of pixels, what is refused, and the scale it is decoded at."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise, png, smooth
from PIL import Image

from selfsup.data.images import decoding
from selfsup.data.images.decoding import END, RATIO, BadImage, decode, hash_of, hash_of_ends, size_of

PIXELS = noise(13, 17)


def refused(image, *words, least=None):
    with pytest.raises(BadImage) as caught:
        decode(image, least)
    for word in words:
        assert word in str(caught.value)


def plain(data):
    """What Pillow makes of a file without orientation or transparency."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(params=["pillow", "simplejpeg"])
def decoder(request, monkeypatch):
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    return request.param


# -- kinds of files and of pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_kinds(kind):
    data = encoded(PIXELS, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, PIXELS)
    assert size_of(data) == (13, 17)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_kinds(kind):
    data = encoded(smooth(40, 50), kind)
    np.testing.assert_array_equal(decode(data), plain(data))
    assert abs(decode(data).astype(int) - smooth(40, 50)).mean() < 8


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    for kind, options in (("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        np.testing.assert_array_equal(decode(data), plain(data))


def test_grey_and_palettes():
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey)), np.repeat(grey[..., None], 3, 2))
    bits = grey > 127
    white = np.repeat(np.where(bits, 255, 0)[..., None], 3, 2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits))), white)
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette)), np.array(palette.convert("RGB")))


def test_transparency_is_over_white():
    alpha = noise(13, 17, 1)[..., :1]
    share = alpha / 255
    expected = PIXELS * share + 255 * (1 - share)
    found = decode(encoded(np.concatenate([PIXELS, alpha], 2)))
    assert abs(found - expected).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.fromarray(alpha[..., 0])])
    assert abs(decode(encoded(grey)) - expected[..., :1]).max() <= 1


def test_a_colour_that_stands_for_transparency():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = (10, 200, 30)
    data = encoded(image, transparency=(0, 0, 0))
    np.testing.assert_array_equal(decode(data)[:, :3], 255)
    np.testing.assert_array_equal(decode(data)[:, 3:], image[:, 3:])


def test_sixteen_bits_give_their_upper_byte():
    grey = np.arange(0, 65536, 257 * 5, dtype=np.uint16)[:48].reshape(6, 8)
    expected = np.repeat((grey >> 8)[..., None], 3, 2)
    np.testing.assert_array_equal(decode(encoded(grey)), expected)
    np.testing.assert_array_equal(decode(encoded(grey, "TIFF")), expected)
    colour = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    data = png((8, 6, 16, 2), [row.astype(">u2").tobytes() for row in colour])
    np.testing.assert_array_equal(decode(data), colour >> 8)


def test_colours_of_print():
    data = encoded(Image.fromarray(smooth(20, 30)).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data), plain(data))


UPRIGHT = {  # EXIF 2.32, table 4.6.4: what turns the stored image into the upright one
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(orientation, decoder):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        np.testing.assert_array_equal(decode(encoded(PIXELS, kind, exif=exif, **options)), UPRIGHT[orientation](PIXELS))
    data = encoded(smooth(24, 40), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data), UPRIGHT[orientation](plain(data)))


def test_orientation_behind_other_segments(decoder):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    data = encoded(smooth(24, 40), "JPEG", exif=exif)
    profile = b"\xff\xe2" + (60_000).to_bytes(2, "big") + bytes(59_998)
    np.testing.assert_array_equal(decode(data[:2] + profile + data[2:]), UPRIGHT[6](plain(data)))


@given(rest=st.binary(max_size=40))
def test_segments_of_any_bytes_are_walked(rest):
    """Where they end before a picture, they tell nothing."""
    may_be_turned = decoding._may_be_turned
    assert may_be_turned(b"\xff\xd8" + rest.replace(b"\xff", b""))
    assert not may_be_turned(b"\xff\xd8\xff\xe0" + (2 + len(rest)).to_bytes(2, "big") + rest + b"\xff\xda")
    assert may_be_turned(b"\xff\xd8\xff\xe0" + (2 + len(rest)).to_bytes(2, "big") + rest + b"\xff\xe1")


def test_damaged_exif_data_do_not_matter(decoder):
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1",
    ):
        data = encoded(smooth(24, 40), "JPEG", exif=exif)
        np.testing.assert_array_equal(decode(data), plain(data))


def test_arrays_and_pillow_images():
    np.testing.assert_array_equal(decode(PIXELS), PIXELS)
    for array in (PIXELS[..., 0], PIXELS[..., :1]):
        np.testing.assert_array_equal(decode(array), np.repeat(PIXELS[..., :1], 3, 2))
    clear = np.concatenate([PIXELS, np.zeros((13, 17, 1), np.uint8)], 2)
    assert (decode(clear) == 255).all()
    np.testing.assert_array_equal(decode(Image.fromarray(PIXELS)), PIXELS)
    opened = Image.open(io.BytesIO(encoded(smooth(80, 80), "JPEG")))
    assert decode(opened, least=20).shape == (20, 20, 3)
    assert opened.size == (80, 80)  # what belongs to the user stays as it was
    assert size_of(PIXELS) == size_of(Image.fromarray(PIXELS)) == (13, 17)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_and_damaged_files(kind, decoder):
    data = encoded(noise(64, 64), kind)
    for length in (1, 10, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        refused(data[:length])
    refused(b"", "empty")
    refused(data[: len(data) // 2], "truncated" if kind in ("JPEG", "PNG") else "")


def test_what_is_no_image(decoder):
    for data in (b"<html>not found</html>", b"\0" * 1000, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"BM"):
        refused(data)
    with pytest.raises(BadImage, match="no image"):
        size_of(b"some text")


def test_numbers_that_are_no_colours():
    for array in (np.ones((3, 4), np.float32), np.ones((3, 4), np.int32)):
        refused(encoded(array, "TIFF"), "32-bit")
    refused(np.ones((3, 4, 3)), "float64")
    for shape in ((3, 4, 2), (3,), (0, 4, 3), (2, 3, 4, 3)):
        refused(np.zeros(shape, np.uint8), "shape")


def test_decompression_bombs(decoder, monkeypatch):
    bomb = png((20000, 20000, 8, 2), [b""])
    for read in (decode, size_of):
        with pytest.raises(BadImage, match="134 million"):
            read(bomb)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 2000)
    fits, too_large = (encoded(smooth(side, 50), "JPEG") for side in (40, 41))
    assert decode(fits).shape == (40, 50, 3)
    refused(too_large, "million", least=5)


# -- scale ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 150), st.sampled_from(["JPEG", "PNG", "array"]))
def test_no_side_falls_below_what_is_needed(height, width, least, kind):
    pixels = smooth(height, width)
    found = decode(pixels if kind == "array" else encoded(pixels, kind), least)
    short, long = sorted((height, width))
    side = min(found.shape[:2])
    assert min(least, short) <= side < max(2 * least, short + 1 if short < 2 * least else 0)
    assert max(found.shape[:2]) <= RATIO * side
    if short < 2 * least and long <= RATIO * short:
        assert found.shape == (height, width, 3)


@pytest.mark.parametrize(
    ("kind", "factor"), [*(("JPEG", f) for f in (2, 4, 8, 16)), *(("PNG", f) for f in (2, 3, 5, 16))]
)
def test_reduction_is_the_mean_of_blocks(kind, factor, decoder):
    pixels = smooth(16 * factor, 20 * factor)
    found = decode(encoded(pixels, kind, **({"quality": 100} if kind == "JPEG" else {})), least=16)
    blocks = pixels.reshape(16, factor, 20, factor, 3).mean((1, 3))
    assert found.shape == blocks.shape
    assert abs(found - blocks).max() <= (0.6 if kind == "PNG" else 6)


def test_a_strip_gives_its_middle():
    strip = noise(4, 100)
    np.testing.assert_array_equal(decode(encoded(strip)), strip[:, 44:56])
    np.testing.assert_array_equal(decode(encoded(strip.transpose(1, 0, 2))), strip[:, 44:56].transpose(1, 0, 2))
    assert decode(noise(1, 1000)).shape == (1, 3, 3)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from(["RGB", "L"]),
    st.integers(0, 2),
    st.booleans(),
    st.none() | st.integers(1, 60),
)
def test_simplejpeg_gives_the_same_pixels(height, width, mode, subsampling, progressive, least):
    pytest.importorskip("simplejpeg")
    image = Image.fromarray(noise(height, width)).convert(mode)
    data = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive)
    assert (decoding._decode_jpeg(data, least) is None) == (min(height, width) < 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_simplejpeg", lambda: None)
        slow = decode(data, least)
    np.testing.assert_array_equal(decode(data, least), slow)


# -- hashes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, END - 1, END, END + 1, 2 * END - 1, 2 * END, 3 * END])
def test_the_ends_of_a_file_give_its_hash(length):
    data = np.random.default_rng(0).bytes(length)
    rest = max(0, min(END, length - END))
    assert hash_of(data) == hash_of_ends(length, data[:END], data[length - rest :])
    assert hash_of(data) != hash_of(data + b"\0")


def test_hashes_of_images_in_python():
    assert hash_of(PIXELS) == hash_of(PIXELS.copy()) == hash_of(Image.fromarray(PIXELS))
    assert hash_of(PIXELS) != hash_of(PIXELS.reshape(17, 13, 3))
    changed = PIXELS.copy()
    changed[5, 5, 0] ^= 1
    assert hash_of(PIXELS) != hash_of(changed)
