"""Settings and data: what a user types, and files of texts, records and images."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import yaml
import zstandard
from beir_layout import write_beir
from damage import ODD, of_bytes, of_json, of_json_text
from PIL import Image

from selfsup.config import known_keys, parse_overrides, read_yaml, with_sections
from selfsup.data.images import open_images
from selfsup.data.judged import open_judged
from selfsup.data.pairs import open_pairs
from selfsup.data.sources import open_text
from selfsup.objectives import RECIPES, find_recipe, resolve

WORDS = ("the", "cat", "sat", "ran", "sea", "über", "東京", "naïve", "🙂", "\u2028", "\x85", "[MASK]", "<|endoftext|>")
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
RECORDS = 20


def sentence(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randrange(1, 12)))


# -- settings ------------------------------------------------------------------------------------------------

VALUES = (
    "1",
    "0",
    "-1",
    "8",
    "1e3",
    "1e400",
    ".nan",
    ".inf",
    "true",
    "null",
    "~",
    "[1, 2]",
    "{a: 1}",
    "10m",
    "9" * 400,
)
VALUES += ("'x'", '"x', "2001-12-14", "!!timestamp x", "!!python/name:os.system", "!!binary aGk=", "&a [*a]", "<<: {}")
VALUES += (
    "0x1F",
    "0o17",
    "1:30",
    "=",
    "? a",
    "- a",
    "\ud800",
    "\x00",
    "a: b: c",
    "[" * 40,
    "hf:x",
    "auto",
    "bf16",
    "é",
)


USUAL = (
    "1",
    "8",
    "0.1",
    "0.5",
    "32",
    "true",
    "auto",
    "hf:x",
    "a,b",
    "'1e3'",
    "90s",
    "[0.1, 0.2]",
    "é",
    "cls",
    "x y #z",
)


def settings(random: Random, place: Path) -> None:
    """Words of a command line; what is accepted reads the same from the file that a run keeps of it."""
    sections = {n: s for name in RECIPES for n, s in find_recipe(name).sections().items()}
    keys, words = list(known_keys(with_sections(*sections.items()))), []
    for _ in range(random.randrange(1, 4)):
        key = random.choice(keys)
        if random.random() < 0.2:
            key = random.choice((key.partition(".")[0], key[1:], f"{key}.x", key.upper(), ""))
        value = random.choice(VALUES) if random.random() < 0.4 else random.choice(USUAL)
        words.append(f"{key}{'=' if random.random() < 0.95 else ''}{value}")
    made = resolve(("words", parse_overrides(words)))
    file = place / "config.yaml"
    file.write_text(made.to_yaml(), encoding="utf-8", errors="surrogatepass")
    again = resolve(("file", read_yaml(file)))
    assert again.config == made.config, "it reads otherwise from its file"


def yaml_file(random: Random, place: Path) -> None:
    """A configuration with other values, damaged bytes, or what YAML can do besides."""
    config = {"objective": "causal-lm", "data": {"source": "x", "window": 64}, "train": {"steps": 9, "batch": 8}}
    tricks = (
        "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}1]\n" for n in range(1, random.randrange(3, 40))).replace(
            "*a0", "0"
        ),
        "[" * random.randrange(10, 5000),
        "train: " + "{a: " * random.randrange(10, 3000),
        f"train: {{steps: {random.choice(VALUES)}}}",
        f"train: !!{random.choice(('timestamp', 'set', 'omap', 'pairs', 'python/object:os', 'float', 'int', 'map'))} x",
        "train: &t {steps: 1}\ndata: {<<: *t}\n",
        "&a train: *a\n",
        f"{random.choice(VALUES)}: 1\n",
        "train: {steps: 1}\ntrain: {steps: 2}\n",
        "---\ntrain: {}\n---\ntrain: {}\n",
    )
    choice = random.randrange(3)
    if choice == 0:
        data = of_bytes(yaml.safe_dump(config).encode(), random)
    elif choice == 1:
        data = json.dumps(of_json(config, random)).encode("utf-8", "surrogatepass")
    else:
        data = random.choice(tricks).encode("utf-8", "surrogatepass")
    file = place / "config.yaml"
    file.write_bytes(data)
    resolve(("file", read_yaml(file)))


# -- texts and records ---------------------------------------------------------------------------------------


def _packed(name: str, content: bytes, random: Random, place: Path) -> Path:
    """A file that is damaged before or after it is compressed."""
    ending = random.choice(("", "", *COMPRESS))
    before = random.random() < 0.5
    data = COMPRESS[ending](of_bytes(content, random) if before else content)
    path = place / f"{name}{ending}"
    path.write_bytes(data if before else of_bytes(data, random))
    return path


def texts(random: Random, place: Path) -> None:
    content = "\n".join(sentence(random) for _ in range(RECORDS)).encode()
    path = _packed(random.choice(("a.txt", "a.md")), content, random, place)
    (place / "b.txt").write_text("the cat sat", encoding="utf-8")
    source = random.choice((path, place))
    for document in open_text(source, failures=random.choice((0.01, 0.9))).documents():
        document.encode()


def records(random: Random, place: Path) -> None:
    """Rows of texts, with columns that are no texts, in every format of lines."""
    rows = [{"id": number, "text": sentence(random), "url": f"https://x.org/{number}"} for number in range(RECORDS)]
    name = random.choice(("a.jsonl", "a.json", "a.csv", "a.tsv"))
    if name.startswith("a.json"):
        content = _json(rows, random, whole=name == "a.json" and random.random() < 0.5)
    else:
        content = _separated(rows, "\t" if name == "a.tsv" else random.choice(",,;"))
    path = _packed(name, content, random, place)
    column = random.choice((None, None, "text", "id", "none", "text.x", "", "\x00"))
    failures = random.choice((0.01, 0.9))
    if random.random() < 0.5:
        for document in open_text(path, column, failures).documents():
            document.encode()
    else:
        table = open_text(path, failures=failures)
        list(table.rows())


def collections(random: Random, place: Path) -> None:
    """Documents, queries and judgements in BEIR's layout, of which one file is damaged."""
    write_beir(place)
    file = random.choice(sorted(path for path in place.rglob("*") if path.is_file()))
    file.write_bytes(of_bytes(file.read_bytes(), random))
    found = open_judged(place, failures=random.choice((0.01, 1.0)))
    for entry in (*found.documents(), *found.asked()):
        entry.text.encode()
    assert all(np.isfinite(score) for scores in found.judgements().values() for score in scores.values())


def _json(rows: list[dict[str, Any]], random: Random, whole: bool) -> bytes:
    rows = [of_json(row, random) if random.random() < 0.1 else row for row in rows]
    lines = [json.dumps(row) for row in rows]
    return (f"[{','.join(lines)}]" if whole else "\n".join(lines)).encode("utf-8", "surrogatepass")


def _separated(rows: list[dict[str, Any]], separator: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


# -- columnar files ------------------------------------------------------------------------------------------


def _table(random: Random) -> pa.Table:
    rows = RECORDS
    text = [sentence(random) if random.random() < 0.9 else None for _ in range(rows)]
    images = [picture(random) for _ in range(rows)]
    columns: dict[str, Any] = {
        "text": random.choice(
            (
                pa.array(text),
                pa.array(text, pa.large_string()),
                pa.array(text).dictionary_encode(),
                pa.array(text, pa.string_view()),
            )
        ),
        "image": random.choice(
            (
                pa.array(images),
                pa.array(images, pa.large_binary()),
                pa.array([{"bytes": image, "path": "x.png"} for image in images]),
                pa.array(images).dictionary_encode(),
            )
        ),
        "label": pa.array([number % 3 for number in range(rows)]),
        "meta": pa.array([{"title": value, "tags": ["a", "b"]} for value in text]),
    }
    return pa.table(columns)


def _columnar_bytes(table: pa.Table, ending: str, random: Random) -> bytes:
    sink = io.BytesIO()
    if ending == ".parquet":
        compression = random.choice(("none", "snappy", "zstd"))
        pq.write_table(
            table, sink, compression=compression, row_group_size=8, write_page_checksum=random.random() < 0.5
        )
    elif ending == ".feather":
        pyarrow.feather.write_feather(table, sink, compression=random.choice(("uncompressed", "lz4", "zstd")))
    else:
        make = random.choice((pa.ipc.new_file, pa.ipc.new_stream))
        with make(sink, table.schema) as writer:
            writer.write_table(table, 8)
    return sink.getvalue()


def columnar(random: Random, place: Path) -> None:
    """Parquet, Arrow files and streams, and feather, as texts, as rows, as images or as pairs."""
    ending = random.choice((".parquet", ".arrow", ".feather"))
    path = place / f"a{ending}"
    path.write_bytes(of_bytes(_columnar_bytes(_table(random), ending, random), random))
    failures = random.choice((0.01, 0.9))
    reader = random.randrange(4)
    if reader == 0:
        for document in open_text(path, random.choice((None, "text", "meta.title")), failures).documents():
            document.encode()
    elif reader == 1:
        list(open_text(path, failures=failures).rows())
    elif reader == 2:
        _look(open_images(path, failures=failures))
    else:
        _look(open_pairs(path, captions=("text",), failures=failures))


# -- images --------------------------------------------------------------------------------------------------

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"}


def picture(random: Random, kind: str = "PNG") -> bytes:
    side = random.randrange(1, 24)
    mode = random.choice(("RGB", "RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"))
    pixels = np.frombuffer(random.randbytes(side * side * 4), np.uint8).reshape(side, side, 4)
    image = Image.fromarray(pixels[..., :3])
    sink = io.BytesIO()
    try:
        image.convert(mode).save(sink, kind)
    except (OSError, ValueError):  # a mode that the format does not know
        image.save(sink, kind)
    return sink.getvalue()


def _look(images: Any) -> None:
    for index in range(len(images)):
        pixels = images.pixels(index, 8)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


def images(random: Random, place: Path) -> None:
    for number in range(3):
        ending = random.choice(list(FORMATS))
        data = picture(random, FORMATS[ending])
        (place / f"{number}{ending}").write_bytes(of_bytes(data, random))
    (place / "good.png").write_bytes(picture(random))
    (place / "good.txt").write_bytes(of_bytes(sentence(random).encode(), random))
    if random.random() < 0.3:
        _look(open_pairs(place, failures=0.99))
    else:
        _look(open_images(place, failures=random.choice((0.01, 0.9))))


ODD_PATHS = (
    "/dev/zero",
    "/dev/stdin",
    "pipe",
    "\x00",
    "../x.png",
    "",
    ".",
    "/",
    "a" * 5000,
    "good.png/x",
    "~/x.png",
    "é\ud800.png",
)


def lists(random: Random, place: Path) -> None:
    """A list of images whose paths are odd, or a folder with metadata of its own."""
    (place / "good.png").write_bytes(picture(random))
    os.mkfifo(place / "pipe")
    rows: list[dict[str, Any]] = [{"file_name": "good.png", "text": sentence(random)} for _ in range(6)]
    for row in rows[2:]:
        row["file_name"] = random.choice(("good.png", *ODD_PATHS))
        if random.random() < 0.2:
            row[random.choice(("file_name", "text"))] = random.choice(ODD)
    name = random.choice(("list.jsonl", "metadata.jsonl", "metadata.csv", "list.tsv"))
    if name.endswith("jsonl"):
        content = "\n".join(map(json.dumps, rows)).encode("utf-8", "surrogatepass")
    else:
        content = _separated(rows, "\t" if name.endswith("tsv") else ",")
    (place / name).write_bytes(content if random.random() < 0.6 else of_bytes(content, random))
    source = place if name.startswith("metadata") and random.random() < 0.5 else place / name
    if random.random() < 0.5:
        _look(open_pairs(source, failures=0.9))
    else:
        _look(open_images(source, failures=0.9))


def archives(random: Random, place: Path) -> None:
    sink = io.BytesIO()
    ending = random.choice((".tar", ".tar", ".tar.gz", ".tgz"))
    with tarfile.open(fileobj=sink, mode="w" if ending == ".tar" else "w:gz") as tar:
        for number in range(4):
            record = f"{random.choice(('', 'a/', '../', '/'))}{number}"
            _add(tar, f"{record}.png", picture(random))
            _add(tar, f"{record}.txt", sentence(random).encode())
            _add(tar, f"{record}.json", json.dumps(random.choice(ODD)).encode("utf-8", "surrogatepass"))
            if random.random() < 0.2:
                link = tarfile.TarInfo(f"{record}.jpg")
                link.type, link.linkname = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "/etc/passwd"
                tar.addfile(link)
    path = place / f"a{ending}"
    path.write_bytes(of_bytes(sink.getvalue(), random))
    reader = random.randrange(3)
    if reader == 0:
        _look(open_images(path, failures=0.9))
    elif reader == 1:
        _look(open_pairs(path, failures=0.9))
    else:
        list(open_text(path, failures=0.9).documents())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


__all__ = ["archives", "columnar", "images", "lists", "of_json_text", "records", "settings", "texts", "yaml_file"]
