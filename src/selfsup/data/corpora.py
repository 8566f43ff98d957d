"""A prepared corpus: a directory of shards of tokens, with a manifest that says all about them.

    selfsup-corpus.json    the manifest, written last: without it there is no corpus
    tokenizer/             as a model directory has it
    train/00000.bin …      the shards of the stream that is trained on, one behind the other
    validation/00000.bin … and of the one that is held out
    README.md              a card

docs/formats.md describes them. Nothing in it is run, and all of it is bounded before it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from selfsup.data.discovery import CORPUS
from selfsup.data.places import place_of
from selfsup.data.shards import PIECE, Place, Shard, TokenShards, Width, digest
from selfsup.data.text import TextCorpus, TextFacts
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError

FORMAT: Literal["selfsup-corpus-1"] = "selfsup-corpus-1"
TOKENIZER, CARD = "tokenizer", "README.md"
MOST_MANIFEST = 1 << 29  # bytes: the checksums of some ten TB of tokens
MOST_TOKENIZER = 1 << 27  # bytes of a file of it

Duplicates = Literal["keep", "exact", "near"]


class Choices(BaseModel):
    """What was chosen for a corpus; the same choices on the same source make the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: str
    family: Literal["decoder", "encoder"]
    source: str
    column: str | None
    split: str | None
    tokenizer: str
    vocabulary: int | None
    validation: float
    failures: float
    seed: int
    duplicates: Duplicates


class Manifest(BaseModel):
    """All that is known of a prepared corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["selfsup-corpus-1"] = FORMAT
    choices: Choices
    width: Width  # of a token, little-endian
    tokenizer: dict[Literal["tokenizer.json", "tokenizer_config.json"], str]  # the checksums of its files
    facts: TextFacts
    removed: dict[str, int]  # documents, by why they were
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for shard in (*self.train, *self.validation):
            if len(shard.checksums) != -(-shard.tokens * np.dtype(self.width).itemsize // PIECE):
                raise ValueError(f"{shard.name} has not as many checksums as pieces")
        told = (self.facts.training_tokens, self.facts.validation_tokens)
        if tuple(sum(shard.tokens for shard in part) for part in (self.train, self.validation)) != told:
            raise ValueError("its shards have not as many tokens as it tells")
        return self

    @property
    def left_out(self) -> dict[str, int]:
        """How many documents are not in it, by why."""
        counts = {"blank": self.facts.empty, "unreadable": self.facts.skipped.count, **self.removed}
        return {what: count for what, count in counts.items() if count}

    def card(self) -> str:
        """What the corpus is, for people."""
        choices = self.choices
        named = ("validation", "seed", "duplicates", "column", "split")
        told = {name: value for name in named if (value := getattr(choices, name)) is not None}
        return CARD_OF.format(
            **vars(self.facts),
            source=choices.source,
            objective=choices.objective,
            tokenizer=choices.tokenizer,
            choices=", ".join(f"{name} {value}" for name, value in told.items()),
            left_out=", ".join(f"{count:,} {what}" for what, count in self.left_out.items()) or "nothing",
            width=self.width,
            first=self.train[0].name,
            code=np.dtype(self.width).newbyteorder("<").str,
        )


CARD_OF = """\
# A prepared corpus

Text from `{source}`, encoded for `{objective}` and its like by [selfsup](https://pypi.org/project/selfsup/).

| | |
| --- | --- |
| documents | {documents:,} ({training_documents:,} to train on, {validation_documents:,} held out) |
| characters | {characters:,} ({bytes:,} bytes of UTF-8) |
| tokens | {training_tokens:,} to train on, {validation_tokens:,} held out; {bytes_per_token:.2f} bytes each |
| tokenizer | {tokenizer}, vocabulary {vocabulary:,}, in `tokenizer/` |
| chosen by | {choices} |
| left out | {left_out} |

It is trained on by

    selfsup train {objective} --data DIRECTORY

Each shard is an array of little-endian `{width}`; those of `train/`, in the order of their names, are one stream of
documents with special tokens between them, and so are those of `validation/`, which nothing is trained on:

```python
import numpy as np

tokens = np.fromfile("{first}", "{code}")
```
"""


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened: what its manifest says, and its streams."""

    manifest: Manifest
    corpus: TextCorpus


def open_prepared(source: str | Path, failures: float = 0.0) -> Prepared:
    """Open a prepared corpus; nothing but its manifest and its tokenizer is read yet.

    Args:
        failures: the share of its pieces that may be lost.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    place = place_of(source)
    manifest, fingerprint = read_manifest(place)
    tokenizer = _tokenizer(place, manifest)
    if np.dtype(tokenizer.dtype) != np.dtype(manifest.width):
        raise _unreadable(place, "its tokenizer has other numbers than its shards")

    def stream(shards: Sequence[Shard]) -> TokenShards:
        return TokenShards(place, shards, manifest.width, tokenizer.vocabulary, failures)

    held_out = stream(manifest.validation) if manifest.validation else None
    return Prepared(manifest, TextCorpus(tokenizer, stream(manifest.train), held_out, manifest.facts, fingerprint))


def read_manifest(place: Place) -> tuple[Manifest, str]:
    """The manifest of a corpus and its checksum, which stands for all of the content. Raises UserError: there is none,
    or it is damaged."""
    try:
        data = place.whole(CORPUS, MOST_MANIFEST)
    except FileNotFoundError:
        raise UserError(
            f"{place.name} holds no {CORPUS}, so it is no prepared corpus, or not ready yet; give the command that "
            "prepares it again."
        ) from None
    except OSError as error:
        raise _unreadable(place, error.strerror or str(error)) from error
    try:
        return Manifest.model_validate_json(data), hashlib.blake2b(data, digest_size=16).hexdigest()
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise _unreadable(place, f"{where}: {problem['msg']}" if where else problem["msg"]) from None


def _unreadable(place: Place, reason: str) -> UserError:
    return UserError(f"The corpus {place.name} cannot be read ({reason}); restore it from a copy, or prepare it again.")


def _tokenizer(place: Place, manifest: Manifest) -> TextTokenizer:
    """That of a corpus, as it comes into a model."""
    with TemporaryDirectory() as folder:
        for name, checksum in manifest.tokenizer.items():
            try:
                data = place.whole(f"{TOKENIZER}/{name}", MOST_TOKENIZER)
            except OSError as error:
                raise _unreadable(place, f"{TOKENIZER}/{name}: {error.strerror or error}") from error
            if digest(data) != checksum:
                raise _unreadable(place, f"{TOKENIZER}/{name} has the wrong content")
            Path(folder, name).write_bytes(data)
        return load_tokenizer(Path(folder), manifest.choices.family).anew()
