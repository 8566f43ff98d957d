"""Text as training data: documents become one stream of tokens per part, cached on disk, read as windows.

A stream is `[end] d1 [end] d2 [end] … dn [end]`. Inputs are `stream[:-1]` and targets `stream[1:]`, so the
one end token between two documents is both the target that closes the first and the start token of the
second. Where documents stand between two tokens, as those of an encoder do and of some decoders, it is
`[start] d1 [end] [start] d2 [end] … dn [end]`; a decoder is given each start token and never asked for it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.cache import kept
from selfsup.data.shards import Tokens, block_of, runs_of
from selfsup.data.sources import Table, open_text
from selfsup.data.split import hash_of, hold_out
from selfsup.data.tally import Skipped, joint_skipped
from selfsup.data.tokenizer_loading import load_tokenizer, open_tokenizer
from selfsup.data.tokenizer_training import Training, train_on_mixture, train_tokenizer
from selfsup.data.tokenizers import Family, Ids, Kind, TextTokenizer
from selfsup.errors import UserError
from selfsup.report import Progress
from selfsup.seeding import derive

FORMAT = 1  # of a cache entry and of the rules that make it; a change makes new entries
BATCH = 1 << 21  # characters encoded at a time: bounds the memory (about 100 bytes per token)

# Of facts, those that are added up over several corpora.
SUMMED = (
    *("documents", "duplicates", "empty", "characters", "bytes", "unknown_tokens", "truncated"),
    *(f"{part}_{what}" for part in ("training", "validation") for what in ("documents", "tokens", "bytes")),
)

T = TypeVar("T")
Places = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TextFacts:
    """What is known of a prepared corpus, for the plan, the log and the report. Bytes are bytes of UTF-8 text. Token
    counts are lengths of the streams, end tokens included. A part is lossless where its bytes equal the bytes that its
    targets stand for and no token is unknown: only there are bits per byte defined."""

    documents: int
    duplicates: int  # documents that equal an earlier one
    empty: int  # documents without a character that is not white space; left out
    skipped: Skipped
    characters: int
    bytes: int
    training_documents: int
    validation_documents: int
    training_tokens: int
    validation_tokens: int
    training_bytes: int
    validation_bytes: int
    training_lossless: bool
    validation_lossless: bool
    bytes_per_token: float  # over both parts, end tokens included
    unknown_tokens: int
    vocabulary: int
    truncated: int = 0  # documents cut to fit; streams cut none


@dataclass(frozen=True)
class TextCorpus:
    """A corpus that is ready to train on. The streams are memory-mapped (tokens,) arrays of 16 or 32 unsigned bits, or
    lie in shards; the validation stream is None where no part is held out. The fingerprint stands for content and
    choices."""

    tokenizer: TextTokenizer
    train: Tokens
    validation: Tokens | None
    facts: TextFacts
    fingerprint: str


@dataclass(frozen=True)
class EncodedText:
    """A whole source as one stream, for evaluation: tokens (n,), which open and close with the end token."""

    tokens: Ids
    documents: int
    bytes: int
    unknown_tokens: int
    lossless: bool
    skipped: Skipped
    empty: int


def prepare_text(
    source: object,
    tokenizer: str | Path | TextTokenizer = "bpe",
    vocabulary: int | None = None,
    validation: float = 0.1,
    cache: str | Path | None = None,
    failures: float = 0.01,
    progress: Progress | None = None,
    family: Family = "decoder",
) -> TextCorpus:
    """Open, split and encode a corpus, or open what an earlier call with the same content and choices left.

    The split is by document: one belongs to validation where the BLAKE2b hash of its text, as a fraction of
    2^64, lies below `validation`. So duplicates fall on one side, and documents that are added move none.
    Where that leaves a side empty, see `hold_out`. A single document is cut at character `int(n * (1 - validation))`:
    its training stream is not closed, and its validation stream begins with the last training token, as context only.
    Of several copies of a single document, each one's head trains and the tail validates once. A tokenizer that is
    trained here sees the training part only.

    Args:
        source: anything that `open_text` takes.
        tokenizer: `bpe`, `characters`, `words`, a path, or an opened tokenizer.
        vocabulary: size of a tokenizer that is trained here, special tokens included.
        failures: as in `open_text`.
        validation: share of the documents held out, from 0 (none) to below 1.
        cache: directory of prepared corpora; by default $SELFSUP_CACHE, else ~/.cache/selfsup.
        progress: called with the bytes of text done and, where they are known, in all.
        family: whose special tokens stand around the documents.

    Raises:
        UserError: a source, tokenizer or value that cannot be used; a cache that cannot be written.
    """
    if not 0 <= validation < 1:
        raise UserError(f"The validation share must be at least 0 and below 1, not {validation:g}.")
    given = given_tokenizer(tokenizer, family, vocabulary)
    text = open_text(source, failures=failures)
    identity = given.fingerprint if given else (tokenizer, family)
    choices = (FORMAT, text.fingerprint(), identity, vocabulary, validation, failures)
    key = hashlib.blake2b(repr(choices).encode(), digest_size=16).hexdigest()

    def build(directory: Path) -> None:
        told = progress or (lambda done, total: None)
        _build(directory, text, given, cast(Kind, tokenizer), family, vocabulary, validation, told)

    entry = kept("text", key, build, cache)
    return _open(entry, given or load_tokenizer(entry / "tokenizer", family).anew())


def corpus_in_memory(text: Table, tokenizer: str | TextTokenizer, vocabulary: int | None, family: Family) -> TextCorpus:
    """All of a small source as the training part, prepared as by `prepare_text` and kept nowhere."""
    given, scan = given_tokenizer(tokenizer, family, vocabulary), _scan(text, lambda done, total: None)
    size = int(scan.sizes.sum())
    cut = given or train_tokenizer(cast(Kind, tokenizer), text.documents(), vocabulary, size, family)
    stream = Stream(cut)
    tokens = np.concatenate(list(stream.chunks(text.documents(), cut.start)))
    return TextCorpus(cut, tokens, None, _facts(text, scan, stream, Stream(cut)), text.fingerprint())


def training_texts(text: Table, validation: float, progress: Progress) -> Training:
    """The documents of a source that `prepare_text` trains on."""
    parts = _split(text, _scan(text, progress), validation)
    return Training(parts.train, parts.train_bytes)


def shared_tokenizer(
    kind: Kind,
    vocabulary: int | None,
    family: Family,
    shares: Callable[[Sequence[float]], list[float]],
    choices: tuple[object, ...],
    sources: Callable[[], Sequence[Training]],
) -> TextTokenizer:
    """One tokenizer for several sources, see `train_on_mixture`, or the one that an earlier call left in the cache.

    Args:
        shares: of the sources, by their bytes.
        choices: all that it depends on beside kind, vocabulary and family.
        sources: what of each is trained on, read only where the tokenizer is not there.
    """
    key = hashlib.blake2b(repr((FORMAT, kind, vocabulary, family, *choices)).encode(), digest_size=16).hexdigest()

    def build(directory: Path) -> None:
        opened = sources()
        weighed = shares([source.bytes for source in opened])
        train_on_mixture(kind, opened, weighed, vocabulary, family).save(directory / "tokenizer")

    return load_tokenizer(kept("tokenizers", key, build) / "tokenizer", family).anew()


def joint_facts(every: Sequence[TextFacts]) -> TextFacts:
    """What is known of several corpora with one tokenizer, taken together."""
    sums = {name: sum(getattr(facts, name) for facts in every) for name in SUMMED}
    return TextFacts(
        **sums,
        skipped=joint_skipped([facts.skipped for facts in every]),
        training_lossless=all(facts.training_lossless for facts in every),
        validation_lossless=all(facts.validation_lossless for facts in every),
        bytes_per_token=(sums["training_bytes"] + sums["validation_bytes"])
        / (sums["training_tokens"] + sums["validation_tokens"]),
        vocabulary=every[0].vocabulary,
    )


def given_tokenizer(
    tokenizer: str | Path | TextTokenizer, family: Family, vocabulary: int | None
) -> TextTokenizer | None:
    """The tokenizer that is given; None for one that is trained here, which alone has a size to choose."""
    given = open_tokenizer(tokenizer, family)
    if given and vocabulary is not None:
        raise UserError(
            "A vocabulary size goes with a tokenizer that is trained on the corpus (bpe, wordpiece, characters, words) "
            "and this one brings its own: leave the size out."
        )
    return given


def encode_documents(source: object, tokenizer: TextTokenizer) -> EncodedText:
    """All documents of a source as one stream in memory, without a split, to evaluate a model on."""
    text = open_text(source)
    stream = Stream(tokenizer)
    return EncodedText(
        tokens=np.concatenate(list(stream.chunks(text.documents(), tokenizer.start))),
        documents=stream.documents,
        bytes=stream.bytes,
        unknown_tokens=stream.unknown,
        lossless=stream.lossless,
        skipped=text.skipped,
        empty=text.empty,
    )


# -- building ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scan:
    """One pass over the documents: hashes uint64 (documents,), those of what their groups go by, and bytes int64
    (documents,)."""

    hashes: npt.NDArray[np.uint64]
    groups: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    characters: int

    @property
    def distinct(self) -> int:
        return len(np.unique(self.hashes))


@dataclass(frozen=True)
class _Parts:
    """The two parts as documents that can be read again and again."""

    train: Callable[[], Iterable[str]]
    validation: Callable[[], Iterable[str]]
    train_bytes: int
    continued: bool  # the validation part goes on where the training part ends


@dataclass
class Stream:
    """Makes the stream of a part, and counts what it holds."""

    tokenizer: TextTokenizer
    progress: Callable[[int], None] = lambda done: None  # called with the bytes of text that are done
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    covered: int = 0  # bytes that the tokens stand for
    unknown: int = 0
    last: int = 0  # the last token

    @property
    def lossless(self) -> bool:
        return self.covered == self.bytes and self.unknown == 0

    def chunks(self, documents: Iterable[str], opening: int, closed: bool = True) -> Iterator[Ids]:
        """The opening token, the documents with special tokens between them and, where the stream is closed, the end
        token behind the last."""
        tokenizer = self.tokenizer
        sizes = tokenizer.token_bytes()
        between = np.array(tokenizer.between, tokenizer.dtype)
        yield self._counted(np.array([opening], tokenizer.dtype))
        for batch in batches_of(tokenizer, documents):
            runs = []
            encoded = tokenizer.encode_batch([piece for piece, _ in batch])
            for ids, (piece, opens) in zip(encoded, batch, strict=True):
                if opens and self.documents:
                    runs.append(between)
                runs.append(ids)
                self.documents += opens
                self.bytes += len(piece.encode())
            chunk = np.concatenate(runs)
            self.covered += 0 if sizes is None else int(sizes[chunk].sum())
            if tokenizer.unknown is not None:
                self.unknown += int(np.count_nonzero(chunk == tokenizer.unknown))
            if len(chunk):
                yield self._counted(chunk)
            self.progress(self.bytes)
        if closed:
            yield self._counted(between[:1])

    def _counted(self, chunk: Ids) -> Ids:
        self.tokens += len(chunk)
        self.last = int(chunk[-1])
        return chunk


def _build(
    directory: Path,
    text: Table,
    tokenizer: TextTokenizer | None,
    kind: Kind,
    family: Family,
    vocabulary: int | None,
    validation: float,
    progress: Progress,
) -> None:
    """Write an entry: train.bin, validation.bin, tokenizer/ and facts.json."""
    scan = _scan(text, progress)
    total = int(scan.sizes.sum())
    parts = _split(text, scan, validation)
    if tokenizer is None:
        tokenizer = train_tokenizer(kind, parts.train(), vocabulary, parts.train_bytes, family)
    tokenizer.save(directory / "tokenizer")
    training = Stream(tokenizer, lambda done: progress(done, total))
    held_out = Stream(tokenizer, lambda done: progress(training.bytes + done, total))
    write_stream(directory / "train.bin", training.chunks(parts.train(), tokenizer.start, not parts.continued))
    if validation:
        opening = training.last if parts.continued else tokenizer.start
        write_stream(directory / "validation.bin", held_out.chunks(parts.validation(), opening))
    write_facts(directory, _facts(text, scan, training, held_out))


def _facts(text: Table, scan: _Scan, training: Stream, held_out: Stream) -> TextFacts:
    return TextFacts(
        documents=len(scan.hashes),
        duplicates=len(scan.hashes) - scan.distinct,
        empty=text.empty,
        skipped=text.skipped,
        characters=scan.characters,
        bytes=int(scan.sizes.sum()),
        training_documents=training.documents,
        validation_documents=held_out.documents,
        training_tokens=training.tokens,
        validation_tokens=held_out.tokens,
        training_bytes=training.bytes,
        validation_bytes=held_out.bytes,
        training_lossless=training.lossless,
        validation_lossless=held_out.lossless,
        bytes_per_token=(training.bytes + held_out.bytes) / (training.tokens + held_out.tokens),
        unknown_tokens=training.unknown + held_out.unknown,
        vocabulary=training.tokenizer.vocabulary,
    )


def _scan(text: Table, progress: Progress) -> _Scan:
    hashes, groups, sizes = array("Q"), array("Q"), array("q")
    characters = done = 0
    for document, group in text.grouped():
        hashes.append(hash_of(document))
        groups.append(hashes[-1] if group is document else hash_of(group))
        sizes.append(len(document.encode()))
        characters += len(document)
        done += sizes[-1]
        progress(done, None)
    own, asked = np.frombuffer(hashes, np.uint64), np.frombuffer(groups, np.uint64)
    return _Scan(own, asked, np.frombuffer(sizes, np.int64), characters)


def _split(text: Table, scan: _Scan, validation: float) -> _Parts:
    if validation and scan.distinct == 1:
        return _split_one(text, scan, validation)
    chosen = hold_out(scan.groups, validation)

    def part(wanted: bool) -> Iterator[str]:
        return part_of(text.documents(), chosen == wanted, text.name)

    train_bytes = int(scan.sizes[~chosen].sum())
    return _Parts(lambda: part(False), lambda: part(True), train_bytes, continued=False)


def part_of(items: Iterable[T], chosen: npt.NDArray[np.bool_], name: str) -> Iterator[T]:
    """The items of a source that are chosen; raises a UserError where there are not as many as when it was scanned."""
    read = -1
    for read, item in enumerate(items):
        if read == len(chosen):
            break
        if chosen[read]:
            yield item
    if read + 1 != len(chosen):
        raise UserError(f"{name} changed while it was read: start again when it is complete.")


def _split_one(text: Table, scan: _Scan, validation: float) -> _Parts:
    """One distinct document, in one or more copies: its head trains, its tail validates."""
    document = next(text.documents())
    copies = len(scan.hashes)
    place = int(len(document) * (1 - validation))
    heads, tail = [document[:place]] * copies, document[place:]
    return _Parts(lambda: heads, lambda: [tail], copies * len(heads[0].encode()), continued=True)


def batches_of(tokenizer: TextTokenizer, documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, each with whether it opens one, in batches of about `BATCH` characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        for number, piece in enumerate(tokenizer.pieces(document)):
            batch.append((piece, number == 0))
            size += len(piece)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


# -- the cache -----------------------------------------------------------------------------------------------


def write_stream(path: Path, stream: Iterator[Ids]) -> None:
    with path.open("wb") as file:
        for chunk in stream:
            file.write(chunk.data)


def _open(entry: Path, tokenizer: TextTokenizer) -> TextCorpus:
    def stream(name: str) -> Ids | None:
        file = entry / name
        return np.memmap(file, tokenizer.dtype, mode="r") if file.exists() else None

    train, validation = cast(Ids, stream("train.bin")), stream("validation.bin")
    return TextCorpus(tokenizer, train, validation, read_facts(entry), fingerprint=entry.name)


def write_facts(directory: Path, facts: TextFacts) -> None:
    content = json.dumps({"facts": asdict(facts)}, indent=2)
    (directory / "facts.json").write_text(content + "\n", encoding="utf-8")


def read_facts(entry: Path) -> TextFacts:
    recorded = json.loads((entry / "facts.json").read_text(encoding="utf-8"))["facts"]
    skipped = recorded.pop("skipped")
    lists = {name: tuple(skipped.get(name, ())) for name in ("names", "left_out")}
    return TextFacts(**recorded, skipped=Skipped(**skipped | lists))


# -- windows -------------------------------------------------------------------------------------------------


class Windows:
    """A stream as records of T = `window` targets each, map-style.

    Of a stream with N + 1 tokens, window i has the inputs `tokens[iT : iT + T]` and the targets one
    further; there are ceil(N / T). A last window that would be partial starts at N − T instead, and `first`
    marks where its targets have not been covered yet, so that every target counts exactly once. A stream that is
    too short for one window is a UserError. Those of a stream in shards lie in blocks.
    """

    def __init__(self, tokens: Tokens, window: int, end: int) -> None:
        targets = len(tokens) - 1
        if targets < window:
            choose = f"choose a window of at most {targets} or " if targets > 0 else ""
            few = f"The text has {len(tokens)} tokens, too few for one window of {window}"
            raise UserError(f"{few}: {choose}give more text.")
        self.window = window
        self.end = end
        self._length = -(-targets // window)
        self._last_start = targets - window
        self._last_first = (self._length - 1) * window - self._last_start
        self.block = block_of(tokens, window, self._length)
        self._runs = runs_of(tokens, window + 1)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Places) -> dict[str, torch.Tensor]:
        """Windows by index (B,).

        Returns:
            `tokens`: int64 (B, T + 1), inputs and the target behind the last; `first`: int64 (B,), index of
            the first target that counts (0 but for the last window).
        """
        starts = np.minimum(indices.astype(np.int64) * self.window, self._last_start)
        first = np.where(indices == self._length - 1, self._last_first, 0)
        return {
            "tokens": torch.from_numpy(self._runs(starts).astype(np.int64)),
            "first": torch.from_numpy(first.astype(np.int64)),
        }


class Ring(Windows):
    """The windows of a training: in every pass but the first the stream is cut from another place on, as if it were a
    ring, so that a token is met again behind another beginning.

    Where a ring is cut is a function of (seed, epoch). Each of its targets counts once in a pass. What a stream opens
    and closes with stands once in it, if that is one token; else its first token is the target behind its last. A start
    token there is given; the end token there closes a text that goes on in the part that is held out.
    """

    def __init__(self, tokens: Tokens, window: int, end: int, seed: int) -> None:
        super().__init__(tokens, window, end)
        self.seed, self._last_run = seed, self._last_start
        first, last = (int(self._runs(np.array([place]))[0, side]) for place, side in ((0, 0), (self._last_run, -1)))
        self._targets = len(tokens) - (first == last)
        self._length = -(-self._targets // window)
        self.block = block_of(tokens, window, self._length)

    def read(self, indices: Places) -> dict[str, torch.Tensor]:
        """As they are cut in the first pass."""
        return self.read_in(np.zeros_like(indices), indices)

    def read_in(self, epochs: Places, indices: Places) -> dict[str, torch.Tensor]:
        """As they are cut in the passes `epochs` (B,)."""
        wanted = indices.astype(np.int64) * self.window
        starts = np.minimum(wanted, self._targets - self.window)
        passes, which = np.unique(epochs, return_inverse=True)
        begins = np.array([self._begin(int(epoch)) for epoch in passes])[which]
        tokens = self._from((begins + starts) % self._targets).astype(np.int64)
        return {"tokens": torch.from_numpy(tokens), "first": torch.from_numpy(wanted - starts)}

    def _begin(self, epoch: int) -> int:
        return derive(self.seed, "ring", epoch) % self._targets if epoch else 0

    def _from(self, places: Places) -> Ids:
        """The T + 1 tokens of the ring from each of some places (B,) on."""
        runs = np.array(self._runs(np.minimum(places, self._last_run)))
        for row in np.flatnonzero(places > self._last_run):
            tail = runs[row, places[row] - self._last_run :][: self._targets - places[row]]
            head = self._runs(np.array([0]))[0, : runs.shape[1] - len(tail)]
            runs[row] = np.concatenate((tail, head))
        return runs
