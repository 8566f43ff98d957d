"""Tokenizers that are trained on a corpus: see `selfsup.data.tokenizers` for the kinds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from selfsup.data import tokenizers
from selfsup.data.tokenizers import MARKS, Family, Kind, Marks, TextTokenizer, cut, interruptible
from selfsup.errors import UserError

WORD = 100  # characters of the longest word that word pieces are looked for in; a longer run is cut into such words
LARGEST = 1 << 16  # ids fit 16 bits
WORDS = 1 << 15  # the most frequent words that are kept by default
ALPHABET = 1000  # characters that word pieces begin from, at most
BPE_SAMPLE = 32_000_000  # bytes of text that a BPE learns from


class Training(NamedTuple):
    """What of a source is trained on: its texts, which can be read again and again, and their bytes."""

    texts: Callable[[], Iterable[str]]
    bytes: int


def vocabulary_size(size: int) -> int:
    """How many tokens a BPE for `size` bytes of text has: 1024·(size / 1 MB)^0.434, as a multiple of 128.

    New words come as a power of the corpus size (Heaps' law); the exponent lies where 1 MB gives 1,024 and
    120 MB about 8,192. At least 384, so that something is learnt beyond the 256 bytes, at most 65,536, so
    that ids take 16 bits (reached at 14 GB).
    """
    fitted = 1024 * math.pow(size / 1e6, 0.434)
    return min(LARGEST, max(384, 128 * round(fitted / 128)))


def train_tokenizer(
    kind: Kind, documents: Iterable[str], size: int | None = None, total: int | None = None, family: Family = "decoder"
) -> TextTokenizer:
    """Train a tokenizer on documents; a pure function of its arguments.

    Args:
        documents: the training text, streamed.
        size: the largest vocabulary, special tokens included. By default `vocabulary_size` for a BPE and for word
            pieces, all characters, the 32,768 most frequent words.
        total: bytes of the text in UTF-8, which a BPE and word pieces need; else they hold all documents to count.
        family: decides on the special tokens.

    A BPE learns from at most 32 MB: pieces of about 64 Ki characters, evenly spread over the text.
    """
    marks = MARKS[family] if kind != "bpe" else replace(MARKS[family], unknown=None)
    smallest = len(marks.listed()) + {"bpe": 256, "wordpiece": 2}.get(kind, 1)
    if size is not None and size < smallest:
        raise UserError(f"A vocabulary of {size} is too small for {kind}: it takes at least {smallest} tokens.")
    if kind == "characters":
        return _train_characters(documents, size, marks)
    if kind == "words":
        return _train_words(documents, size or WORDS, marks)
    if total is None:
        documents = list(documents)
        total = sum(len(document.encode()) for document in documents)
    train = _train_wordpiece if kind == "wordpiece" else _train_bpe
    return train(documents, total, size or vocabulary_size(total), marks)


def train_on_mixture(
    kind: Kind, sources: Sequence[Training], shares: Sequence[float], size: int | None, family: Family
) -> TextTokenizer:
    """Train one tokenizer for several sources; a pure function of its arguments.

    A BPE and word pieces learn from a sample in which each source has its share, and are as large as for all of their
    text; `characters` and `words` from all of the texts, each once.
    """
    total = sum(source.bytes for source in sources)
    if kind not in ("bpe", "wordpiece"):
        return train_tokenizer(kind, (text for source in sources for text in source.texts()), size, total, family)
    whole = min(BPE_SAMPLE, total)
    sample = (
        text for source, share in zip(sources, shares, strict=True) for text in _as_much(source, round(share * whole))
    )
    return train_tokenizer(kind, sample, size or vocabulary_size(total), whole, family)


def _as_much(source: Training, wanted: int) -> Iterator[str]:
    """About so many bytes of a source, evenly spread over it; of one that has fewer, all of it as often as it takes."""
    times, rest = divmod(wanted, max(1, source.bytes))
    held = list(source.texts()) if times else []
    for _ in range(times):
        yield from held
    if rest:
        yield from _evenly(_pieces(held or source.texts()), source.bytes, rest)


def _train_bpe(documents: Iterable[str], total: int, size: int, marks: Marks) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = tokenizers.qwen2_splitting()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=marks.listed(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = _evenly(_pieces(documents), total, BPE_SAMPLE)
    interruptible(tokenizer.train_from_iterator, sample, trainer)
    return TextTokenizer(tokenizer, marks)


def _train_wordpiece(documents: Iterable[str], total: int, size: int, marks: Marks) -> TextTokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=marks.unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    words = pre_tokenizers.Split(Regex(f".{{1,{WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), words])
    tokenizer.decoder = decoders.WordPiece()
    sample = list(_evenly(_pieces(documents), total, BPE_SAMPLE))
    most = min(ALPHABET, (size - len(marks.listed())) // 2)
    alphabet, inner = _alphabet(tokenizer, sample, most)
    # The library numbers what goes on a word as it meets it, in an order that is never the same; named as special
    # tokens these have their ids, and so ties their winners, before it begins.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*marks.listed(), *(f"##{symbol}" for symbol in inner)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    interruptible(tokenizer.train_from_iterator, sample, trainer)
    plain = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=marks.unknown))
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    plain.decoder = tokenizer.decoder
    return TextTokenizer(plain, marks)


def _alphabet(tokenizer: Tokenizer, sample: Iterable[str], most: int) -> tuple[list[str], list[str]]:
    """The `most` frequent characters of normalised texts, and those of them that stand within words; both sorted."""
    counts: Counter[str] = Counter()
    runs: set[str] = set()
    for text in sample:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(normal)
        runs.update(normal.split())
    kept = [symbol for symbol, _ in counts.most_common() if not symbol.isspace()][:most]
    words = (word for run in runs for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(run))
    inner = {symbol for word in words for symbol in word[1:]}
    return sorted(kept), sorted(inner.intersection(kept))


def _train_characters(documents: Iterable[str], size: int | None, marks: Marks) -> TextTokenizer:
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    special = marks.listed()
    kept = counts.most_common(None if size is None else size - len(special))
    symbols = [*special, *sorted(symbol for symbol, _ in kept)]
    # A BPE without merges is a vocabulary of characters; it is five times as fast as WordLevel over a split.
    vocabulary = {symbol: id_ for id_, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=marks.unknown))
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, marks)


def _train_words(documents: Iterable[str], size: int, marks: Marks) -> TextTokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=marks.unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=marks.listed(), show_progress=False)
    interruptible(tokenizer.train_from_iterator, _pieces(documents), trainer)
    return TextTokenizer(tokenizer, marks)


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    """What is learnt from may be cut anywhere."""
    return (piece for document in documents for piece in cut(document))


def _evenly(pieces: Iterable[str], total: int, limit: int) -> Iterator[str]:
    """About `limit` of the `total` bytes: each piece that comes while no more than the due share is taken."""
    share = min(1.0, limit / max(1, total))
    seen = taken = 0
    for piece in pieces:
        size = len(piece.encode())
        if taken <= share * seen:
            taken += size
            yield piece
        seen += size
