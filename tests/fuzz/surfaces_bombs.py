"""Small files that stand for much: each is read within the bound on memory and time, or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from selfsup.config import read_yaml
from selfsup.data.images import open_images
from selfsup.data.sources import open_text
from selfsup.data.tokenizer_loading import open_tokenizer
from selfsup.objectives import resolve

PIECE = 1 << 24  # bytes that one frame of a compressed file stands for
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
}


def bombs(random: Random, place: Path) -> None:
    random.choice((_compressed, _pixels, _frames, _values, _anchors, _numbers, _members))(random, place)


def _compressed(random: Random, place: Path) -> None:
    """Frames one behind the other: three to six gigabytes of a text, a line, a field or a value."""
    ending = random.choice(list(COMPRESS))
    name, before, after = random.choice(
        (
            ("a.txt", b"", b""),
            ("a.jsonl", b'{"text": "', b'"}\n'),
            ("a.json", b'[{"text": "', b'"}]'),
            ("a.csv", b"text,id\n", b",1\n"),
            ("a.tsv", b"text\tid\n", b"\t1\n"),
        )
    )
    compress = COMPRESS[ending]
    piece = compress(random.choice((b"a", b" a", b"\x00", "é".encode())) * (PIECE // 2))
    with (place / f"{name}{ending}").open("wb") as file:
        file.write(compress(before) if before else b"")
        for _ in range(random.randrange(200, 400)):
            file.write(piece)
        file.write(compress(after) if after else b"")
    for document in open_text(place / f"{name}{ending}", failures=0.9).documents():
        len(document)


def _png(width: int, height: int) -> bytes:
    """A picture whose rows are all zeros, its data compressed a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    data = b"".join(packer.compress(row) for _ in range(min(height, 20_000))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _pixels(random: Random, place: Path) -> None:
    side = random.choice((8_000, 13_000, 100_000, 2**31 - 1))
    picture = _png(min(side, 13_000), min(side, 13_000)) if side < 20_000 else _png(side, 1000)
    for number in range(random.choice((1, 4))):
        (place / f"{number}.png").write_bytes(picture)
    (place / "good.png").write_bytes(_png(8, 8))
    found = open_images(place, failures=0.9)
    for index in range(len(found)):
        found.pixels(index, 32)


def _frames(random: Random, place: Path) -> None:
    """An animation of thousands of pictures."""
    from PIL import Image

    pictures = [Image.new("P", (400, 400), number % 256) for number in range(2)] * random.choice((100, 500))
    pictures[0].save(place / "a.gif", save_all=True, append_images=pictures[1:])
    found = open_images(place, failures=0.9)
    found.pixels(0, 32)


def _values(random: Random, place: Path) -> None:
    """A table whose few distinct values are long and often meant."""
    value = "a b " * (random.choice((1, 4, 16)) << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"text": column}), place / "a.parquet", compression="zstd")
    if random.random() < 0.5:
        for document in open_text(place / "a.parquet", failures=0.9).documents():
            len(document)
    else:
        for row in open_text(place / "a.parquet", failures=0.9).rows():
            del row


def _anchors(random: Random, place: Path) -> None:
    names = range(1, random.randrange(8, 60))
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n > 1 else '0'] * 9)}]" for n in names]
    (place / "c.yaml").write_text("\n".join(lines), encoding="utf-8")
    resolve(("file", read_yaml(place / "c.yaml")))


def _numbers(random: Random, place: Path) -> None:
    """A tokenizer whose ids leave gaps."""
    last = random.choice((10**6, 10**8, 10**9, 2**31, 2**32 - 1, 2**40))
    special = "<|endoftext|>"
    added = [{"id": last, "content": "x", "special": False}, {"id": 1, "content": special, "special": True}]
    for token in added:
        token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "WordLevel", "vocab": {"a": 0, special: 1, "x": last}, "unk_token": "a"}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    found = open_tokenizer(place)
    assert found is not None
    found.encode("a x")
    found.token_bytes()


class _Zeros(io.RawIOBase):
    """A file of as many zeros as are asked for."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _members(random: Random, place: Path) -> None:
    """An archive whose member says that it is of a size that it is not, or stands for much."""
    sink = io.BytesIO()
    mode = random.choice(("w", "w:gz"))
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        good = _png(8, 8)
        member = tarfile.TarInfo("0.png")
        member.size = len(good)
        tar.addfile(member, io.BytesIO(good))
        if mode == "w":
            lying = tarfile.TarInfo("1.png")
            lying.size = random.choice((10**10, 8**11 - 1))
            sink.write(lying.tobuf())
        else:
            long = tarfile.TarInfo("1.png")
            long.size = 600 << 20
            tar.addfile(long, _Zeros())
    (place / ("a.tar" if mode == "w" else "a.tar.gz")).write_bytes(sink.getvalue())
    found = open_images(place, failures=0.9)
    found.pixels(0, 8)
