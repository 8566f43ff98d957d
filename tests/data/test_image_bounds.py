"""What takes too much, never ends or leads elsewhere: each is refused before it does harm, counted and named."""

import bz2
import gzip
import json
import lzma
import os
import struct
import tarfile
import threading
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import archive, encoded, noise, png, write
from PIL import Image

from selfsup.data import discovery
from selfsup.data.images import collection, decoding, open_images, sources
from selfsup.data.images.decoding import BadImage, decode, size_of
from selfsup.data.images.stores import Room, Span
from selfsup.data.pairs import open_pairs
from selfsup.errors import UserError

GOOD = noise(8, 9)


def refused(image, words):
    for read in (decode, size_of):
        with pytest.raises(BadImage, match=words):
            read(image)


# -- paths from data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "struct"])
def test_only_regular_files_are_read(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    good = str(write(tmp_path / "elsewhere" / "good.png", GOOD))
    paths = [good, "pipe.png", "device.png", "folder.png", "/dev/zero", "a\0b.png", "x" * 5000, "\udcff.png"]
    values = [path if kind != "struct" else {"bytes": None, "path": path} for path in paths[:-1]]
    if kind == "jsonl":
        values.append("\ud800.png")
        (tmp_path / "l.jsonl").write_text("\n".join(json.dumps({"path": value}) for value in values))
    else:
        pq.write_table(pa.table({"image": values}), tmp_path / "l.parquet")
    found = open_images(next(tmp_path.glob("l.*")), column="path" if kind == "jsonl" else "image", failures=0.99)
    np.testing.assert_array_equal(found.pixels(0), GOOD)
    assert (found.skipped.count, len(found)) == (len(values) - 1, 1)
    assert sum("it is no regular file" in name for name in found.skipped.names) >= 3


def test_pipes_in_a_folder_are_left_out_and_told(tmp_path):
    write(tmp_path / "good.png", GOOD)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    found = open_images(tmp_path)
    assert len(found) == 1
    (told,) = found.skipped.left_out
    assert "pipes, sockets and devices: 1" in told
    assert ".svg files: 1" in told


def test_a_file_is_looked_at_before_it_is_read(tmp_path):
    write(tmp_path / "good.png", GOOD)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "list.csv").write_text("path\ngood.png\nsparse.png\n")
    pq.write_table(pa.table({"path": ["good.png", "sparse.png"]}), tmp_path / "list.parquet")
    for source in (tmp_path, tmp_path / "list.csv", tmp_path / "list.parquet"):
        found = open_images(source, failures=0.5)
        assert len(found) == 1
        assert "it has more than 268,435,456 bytes" in found.skipped.names[0]


def test_captions_are_read_within_bounds(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png", GOOD)
    (tmp_path / "a.txt").write_text("short")
    with (tmp_path / "b.txt").open("wb") as file:
        file.truncate(1 << 40)
    found = open_pairs(tmp_path, failures=0.5)
    assert list(found.captions) == [("short",)]
    assert found.skipped.names == (f"{tmp_path / 'b.png'}: it has no caption",)


# -- bombs ---------------------------------------------------------------------------------------------------


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(*chunks):
    """A good PNG with more before its pixels."""
    data = encoded(GOOD)
    return data[:33] + b"".join(chunks) + data[33:]


def test_more_pixels_than_its_bytes_can_tell_apart():
    refused(png((5000, 5000, 8, 2), [b""]), "far more pixels than its bytes")
    blank = encoded(Image.new("L", (4096, 4096), 255))
    assert decode(blank, 64).shape == (64, 64, 3)  # of images that are not so large, any
    jpeg = bytearray(encoded(noise(64, 64), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 11_000, 11_000)  # a header that lies
    refused(bytes(jpeg), "far more pixels than its bytes")


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_decoders_that_take_twice_the_memory_have_half_the_pixels(kind, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 1000)
    assert decode(encoded(noise(20, 25), kind)).shape == (20, 25, 3)
    refused(encoded(noise(21, 25), kind), "more pixels than")


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_data_beside_the_pixels_are_unpacked_within_bounds(name):
    packed = zlib.compress(bytes(1 << 26), 9)
    start = b"key\0\0" if name != b"iTXt" else b"key\0\1\0\0\0"
    with pytest.raises(BadImage, match="too large"):
        decode(with_chunks(chunk(name, start + packed)))


def test_pieces():
    np.testing.assert_array_equal(decode(with_chunks(*[chunk(b"abCd", b"")] * 900)), GOOD)
    refused(with_chunks(*[chunk(b"abCd", b"")] * 100_000), "too many pieces")
    jpeg = encoded(noise(64, 64), "JPEG")
    refused(jpeg[:2] + b"\xff\xe5\0\2" * 100_000 + jpeg[2:], "too many pieces")


@pytest.mark.parametrize("library", [True, False])
def test_scans(library, monkeypatch):
    if not library:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data[:-2] + 5 * scan + data[-2:]).shape == (64, 64, 3)
    with pytest.raises(BadImage, match="more than the 32 scans"):
        decode(data[:-2] + 100 * scan + data[-2:])
    hidden = data.replace(b"\xff\xc2", b"\xff\xff\xc2", 1)  # fill bytes, that a decoder passes over
    with pytest.raises(BadImage, match="more than the 32 scans"):
        decode(hidden[:-2] + 100 * scan + data[-2:])


def test_what_is_decoded_at_once_is_bounded(tmp_path, monkeypatch):
    room = Room(1000)
    held, most, lock = 0, 0, threading.Lock()

    def work(size):
        nonlocal held, most
        for _ in range(50):
            with room.taken(size):
                with lock:
                    held += min(size, 1000)
                    most = max(most, held)
                with lock:
                    held -= min(size, 1000)

    threads = [threading.Thread(target=work, args=(size,)) for size in (300, 400, 600, 900, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 1000
    taken = []
    for number in range(3):
        write(tmp_path / f"{number}.png", noise(20, 30, number))
    monkeypatch.setattr(
        collection, "ROOM", type("_", (), {"taken": lambda _, size: taken.append(size) or room.taken(1)})()
    )
    found = open_images(tmp_path)
    assert taken == [7 * 20 * 30] * 3
    monkeypatch.setattr(collection, "free_memory", lambda device: 0)
    found = open_images(tmp_path)
    found.pixels(0)
    assert len(taken) == 7


def test_pixels_that_take_far_more_than_their_files_are_not_held(tmp_path, monkeypatch):
    for number in range(3):
        write(tmp_path / f"{number}.png", encoded(Image.new("RGB", (200, 200))))
    assert open_images(tmp_path).stack is not None
    monkeypatch.setattr(collection, "FREE", 0)
    found = open_images(tmp_path)
    assert found.stack is None
    assert found.pixels(2).shape == (200, 200, 3)
    write(tmp_path / "3.png", noise(200, 200))  # which takes as much as its file
    assert open_images(tmp_path / "3.png").stack is not None


def test_bands_give_the_same_pixels(monkeypatch):
    cases = [encoded(noise(40, 50)), encoded(np.concatenate([noise(40, 50), noise(40, 50, 1)[..., :1]], 2))]
    cases.append(encoded(Image.fromarray(noise(40, 50)).quantize(16)))
    cases.append(encoded(Image.fromarray(noise(40, 50)).quantize(16), transparency=3))
    cases.append(encoded(noise(40, 50)[..., 0].astype(np.uint16) * 200))
    cases.append(encoded(Image.fromarray(noise(40, 50)).convert("CMYK"), "TIFF"))
    whole = [decode(data) for data in cases]
    monkeypatch.setattr(decoding, "BAND", 7 * 50)
    for data, expected in zip(cases, whole, strict=True):
        np.testing.assert_array_equal(decode(data), expected)


# -- formats that libraries read -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "extension"), [("AVIF", "avif"), ("HEIF", "heic")])
def test_optional_formats(tmp_path, kind, extension):
    if kind not in decoding.formats():
        pytest.skip(f"no library reads {kind} here")
    picture = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    write(tmp_path / f"a.{extension}", encoded(picture, kind))
    found = open_images(tmp_path)
    assert found.sizes.tolist() == [[40, 60]]
    assert abs(found.pixels(0).astype(int) - picture).max() < 12


def test_formats_without_their_library_are_counted(tmp_path, monkeypatch):
    write(tmp_path / "a.png", GOOD)
    (tmp_path / "b.heic").write_bytes(b"")
    monkeypatch.setattr(sources, "formats", lambda: ("PNG",))
    assert ".heic files: 1" in open_images(tmp_path).skipped.left_out[0]


# -- archives ------------------------------------------------------------------------------------------------


def member(name, size, content=b"", kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    header = info.tobuf(tarfile.GNU_FORMAT)
    return header + content + bytes(-len(content) % 512)


DATA = encoded(GOOD)
FIRST = member("0.png", len(DATA), DATA)
TARS = {
    "huge": FIRST + member("1.png", 8**11 - 1) + bytes(1024),
    "negative": FIRST + member("1.png", -512) + bytes(1024),
    "very negative": FIRST + member("1.png", -(1 << 60)) + bytes(1024),
    "properties": FIRST + member("x", 1 << 30, kind=tarfile.XHDTYPE),
    "long name": FIRST + member("x", 1 << 30, kind=tarfile.GNUTYPE_LONGNAME),
    "no end of properties": FIRST + member("x", 0, kind=tarfile.XHDTYPE) * 3000 + FIRST,
    "nonsense": FIRST + b"nonsense" * 200,
    "half a header": FIRST + FIRST[:200],
}


@pytest.mark.parametrize("name", TARS)
def test_archives_that_lie(tmp_path, name):
    (tmp_path / "a.tar").write_bytes(TARS[name])
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar archive"):
        open_images(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(FIRST + bytes(1024))
    found = open_images(tmp_path, failures=1.0)
    assert len(found) == 1
    assert found.skipped.count == 1
    assert "a.tar: cannot be read as a tar archive" in found.skipped.names[0]


def test_an_archive_without_its_end_is_whole(tmp_path):
    (tmp_path / "a.tar").write_bytes(FIRST)
    assert len(open_images(tmp_path / "a.tar")) == 1


def test_names_that_come_again_are_images_of_their_own(tmp_path):
    pictures = [noise(8, 9, number) for number in range(3)]
    content = b"".join(
        member("a.png", len(data), data) + member("a.txt", 5, f"text{number}".encode())
        for number, data in enumerate(map(encoded, pictures))
    )
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    found = open_pairs(tmp_path / "a.tar")
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(found.pixels(index), picture)
    assert list(found.captions) == [("text0",), ("text1",), ("text2",)]


def test_links_in_archives_are_counted_and_not_followed(tmp_path):
    path = archive(tmp_path / "a.tar", {"../../0.png": DATA, "/1.png": DATA})
    with tarfile.open(path, "a") as file:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../0.png")):
            link = tarfile.TarInfo(f"{kind.decode()}.png")
            link.type, link.linkname = kind, target
            file.addfile(link)
    found = open_images(path, failures=0.5)
    assert len(found) == 2  # names alone: nothing is written by them
    assert [name.rpartition(": ")[2] for name in found.skipped.names] == ["it is a link or no regular file"] * 2


@pytest.mark.parametrize("packed", ["a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.bz2", "a.tar.xz", "a.tar"])
def test_compressed_archives(tmp_path, packed, cache):
    pictures = {f"{number}.png": encoded(noise(8, 9, number)) for number in range(3)}
    content = archive(tmp_path / "plain.tar", pictures).read_bytes()
    (tmp_path / "plain.tar").unlink()
    suffix = {"a.tgz": ".gz", "a.tar": ".gz"}.get(packed, packed[5:])
    (tmp_path / packed).write_bytes(COMPRESS[suffix](content))
    found = open_images(tmp_path)
    for index in range(3):
        np.testing.assert_array_equal(found.pixels(index), noise(8, 9, index))
    assert found.place(1) == f"{tmp_path / packed}, 1.png"
    (tmp_path / packed).write_bytes(COMPRESS[suffix](content)[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        open_images(tmp_path / packed)


def _zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".zst": _zst, ".bz2": bz2.compress, ".xz": lzma.compress}


def test_archives_that_unpack_without_end(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(discovery, "SMALL", 1 << 20)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member("0.png", 1 << 24, bytes(1 << 24))))
    with pytest.raises(UserError, match="far more than its size allows"):
        open_images(tmp_path / "a.tar.gz")
    assert not list(cache.rglob("archive.tar")) or all(f.stat().st_size < 1 << 21 for f in cache.rglob("archive.tar"))


def test_patterns_of_shards(tmp_path):
    for number in range(3):
        archive(tmp_path / f"shard-{number:03}.tar", {"0.png": encoded(noise(8, 9, number))})
    found = open_images(f"{tmp_path}/shard-{{000..001}}.tar")
    assert len(found) == 2
    np.testing.assert_array_equal(found.pixels(1), noise(8, 9, 1))


# -- parts of a data set -------------------------------------------------------------------------------------


def test_parts_of_a_data_set(tmp_path):
    for number, part in enumerate(("train", "test", "val")):
        write(tmp_path / "d" / part / "x.png", noise(8, 9, number))
        pq.write_table(pa.table({"image": [encoded(noise(8, 9, number))]}), tmp_path / f"{part}-00000.parquet")
    for source in (tmp_path / "d", f"{tmp_path}/*.parquet"):
        assert len(open_images(source)) == 3
        assert len(open_images(source, split="all")) == 3
        train = open_images(source, split="training")
        np.testing.assert_array_equal(train.pixels(0), noise(8, 9))
        assert len(train) == 1
        assert "files of the test split: 1" in train.skipped.left_out[0]
        np.testing.assert_array_equal(open_images(source, split="test").pixels(0), noise(8, 9, 1))
    with pytest.raises(UserError, match="has no test split"):
        open_images(tmp_path / "d" / "train", split="test")


def test_reading_stops_at_what_is_asked_for(tmp_path):
    with pytest.raises(OSError, match="more than 10 bytes"):
        Span(str(write(tmp_path / "a", bytes(20))), 0, 20).read(10)
    assert Span(str(tmp_path / "a"), 5, 10).read(10) == bytes(10)
