"""Tokenizers: three that are trained on the corpus, and any that the `tokenizers` library can open.

- `bpe`: byte-level byte-pair encoding with the pre-tokenizer pattern of Qwen2, which llama.cpp knows too.
  Every text has an encoding and decodes to itself, byte for byte.
- `characters`: one token per Unicode code point of the training text.
- `words`: runs of word characters and runs of punctuation; white space is lost, and decoding joins with
  spaces.

The special token `<|endoftext|>` stands before each document (the start token) and behind it (the end);
here its id is always 0. `characters` and `words` have `<|unk|>` as id 1 for what their vocabulary does not
hold.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from selfsup.errors import UserError

END = "<|endoftext|>"
UNKNOWN = "<|unk|>"

Kind = Literal["bpe", "characters", "words"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The split pattern of Qwen2 (huggingface.co/Qwen/Qwen2-0.5B, tokenizer.json).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SMALLEST_BPE = 256 + 1  # every byte and the end of text
LARGEST = 1 << 16  # ids fit 16 bits
WORDS = 1 << 15  # the most frequent words that are kept by default
BPE_SAMPLE = 32_000_000  # bytes of text that a BPE learns from

# Names that end-of-text tokens go by, for tokenizers whose files do not say.
KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")

PIECE = 1 << 16  # characters after which a long document may be cut for encoding
# Places where neither our BPE, nor words, nor characters can have a token across: behind a line break that no
# white space follows, and before a single space between two ASCII letters (for texts that are one long line).
_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=[A-Za-z])(?= [A-Za-z])")

Ids = npt.NDArray[Any]


class TextTokenizer:
    """A `tokenizers.Tokenizer` together with its end-of-text token.

    It takes the given tokenizer over and makes it ready to encode documents: no truncation, no padding,
    special tokens written out in a text are plain text, and a post-processor that puts the end-of-text
    token in front, so that whoever opens the saved tokenizer gets the start token that the model was
    trained with. Our own encoding never adds it.

    Attributes:
        vocabulary: number of ids, added tokens included (the largest id + 1).
        end: id of the end-of-text token.
        unknown: id of the token for what the vocabulary does not hold, if there is one.
    """

    def __init__(self, tokenizer: Tokenizer, end: str = END, unknown: str | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens([token for token in (end, unknown) if token])
        tokenizer.encode_special_tokens = True
        self.end = cast(int, tokenizer.token_to_id(end))
        self.unknown = tokenizer.token_to_id(unknown) if unknown else None
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[end, "$A"], pair=[end, "$A", end, "$B"], special_tokens=[(end, self.end)]
        )
        self.vocabulary: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self._tokenizer = tokenizer
        self._end = end
        self._unknown = unknown

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of the special tokens, which stand for no text."""
        return frozenset(id_ for id_, token in self._added.items() if token.special)

    @property
    def dtype(self) -> npt.DTypeLike:
        """The smallest of 16 and 32 unsigned bits that holds every id."""
        return np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change with anything that can change an id."""
        content = f"{self.end} {self._tokenizer.to_str()}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    # -- text to ids --

    def encode(self, text: str) -> Ids:
        """The ids of a text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, in parallel, without special tokens; arrays of `dtype`.

        A foreign model may have its end-of-text token as an ordinary piece of text as well; it then becomes
        the unknown token, since it would end the document.
        """
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        batch = [np.array(encoding.ids, self.dtype) for encoding in encodings]
        for ids in batch:
            self._replace_ends(ids)
        return batch

    def _replace_ends(self, ids: Ids) -> None:
        false_ends = ids == self.end
        if not false_ends.any():
            return
        if self.unknown is None or self.unknown == self.end:
            raise UserError(
                f"The data holds {self._end!r} as plain text, which this tokenizer cannot tell from its "
                "end-of-text token: take it out of the data or choose another tokenizer."
            )
        ids[false_ends] = self.unknown

    def pieces(self, document: str) -> list[str]:
        """A long document in pieces whose encodings, joined, are the document's; else the document alone.

        Pieces end at the first harmless place after `PIECE` characters. Documents of tokenizers that are
        not known to have such places (prefix spaces, normalizers, other patterns) stay whole.
        """
        return cut(document) if self._may_cut else [document]

    @cached_property
    def _may_cut(self) -> bool:
        structure = self._structure
        if structure["normalizer"] or any(not token["special"] for token in structure["added_tokens"]):
            return False
        if structure["pre_tokenizer"] is None:
            return structure["model"]["type"] == "BPE" and not structure["model"]["merges"]
        return structure["pre_tokenizer"] in (_as_json(_qwen2()), _as_json(pre_tokenizers.Whitespace()))

    @cached_property
    def _structure(self) -> dict[str, Any]:
        """tokenizer.json as a dictionary."""
        structure: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return structure

    # -- ids to text --

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids, special tokens left out, undecodable bytes as U+FFFD."""
        text: str = self._tokenizer.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True)
        return text

    def tokens(self, ids: Sequence[int] | Ids) -> list[str]:
        """Each id as something to look at.

        Its text with control characters and half characters escaped (`\\n`, `\\xe2`), the name of a special
        token, and for decoders other than ours the token as its file spells it.
        """
        return [self._shown(int(id_)) for id_ in np.asarray(ids)]

    def _shown(self, id_: int) -> str:
        token = self._tokenizer.id_to_token(id_)
        if token is None:
            raise UserError(f"The tokenizer has no token {id_}: its ids end at {self.vocabulary - 1}.")
        if self._bytewise and id_ not in self._added:
            token = bytes(_BYTE_OF[symbol] for symbol in token).decode(errors="backslashreplace")
        return "".join(
            symbol if symbol.isprintable() else symbol.encode("unicode_escape").decode() for symbol in token
        )

    @cached_property
    def _bytewise(self) -> bool:
        return (self._structure["decoder"] or {}).get("type") == "ByteLevel"

    @cached_property
    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return added

    def token_bytes(self) -> npt.NDArray[np.int32] | None:
        """Bytes of UTF-8 text that each id stands for: int32 (vocabulary,), 0 for special tokens.

        None where the bytes of a token are not defined: words (the space between two belongs to neither) and
        decoders other than the byte-level one and the one that just joins.
        """
        joins = self._bytewise or self._structure["decoder"] == _as_json(decoders.Fuse())
        if not joins:
            return None
        sizes = np.zeros(self.vocabulary, np.int32)
        for token, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items():
            sizes[id_] = len(token) if self._bytewise else len(token.encode())
        for id_, token in self._added.items():
            sizes[id_] = 0 if token.special else len(token.content.encode())
        return sizes

    # -- files --

    def save(self, directory: Path, max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, which stock `transformers` opens as they are.

        Opened there, the tokenizer puts the end-of-text token in front of each text, as the model saw it.
        `max_length` is the model's window in tokens.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._end,
            "eos_token": self._end,
            "clean_up_tokenization_spaces": False,
        }
        if self._unknown:
            config["unk_token"] = self._unknown
        if max_length is not None:
            config["model_max_length"] = max_length
        directory.mkdir(parents=True, exist_ok=True)
        text = self._tokenizer.to_str(pretty=True)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


class TextStream:
    """Decodes ids one after the other for printing, never half a character.

    The pieces, joined, are what decoding all ids at once gives. `context` are the ids that stand before (the
    prompt), which decide whether a space comes first; they are not printed.
    """

    def __init__(self, tokenizer: TextTokenizer, context: Sequence[int] | Ids = ()) -> None:
        self._tokenizer = tokenizer
        self._before = self._visible(context)[-8:]  # ids that were printed: enough to decide on a space
        self._waiting: list[int] = []

    def push(self, ids: Sequence[int] | Ids) -> str:
        """What the new ids add to the text; empty while a character is incomplete."""
        self._waiting += self._visible(ids)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._print(text)

    def flush(self) -> str:
        """What is left when no more ids come: an incomplete character as U+FFFD."""
        return self._print(self._text())

    def _text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._waiting)[len(before) :]

    def _print(self, text: str) -> str:
        if self._waiting:
            self._before, self._waiting = self._waiting, []
        return text

    def _visible(self, ids: Sequence[int] | Ids) -> list[int]:
        return [id_ for id_ in np.asarray(ids, np.int64).tolist() if id_ not in self._tokenizer.special]


# -- training ------------------------------------------------------------------------------------------------


def vocabulary_size(size: int) -> int:
    """How many tokens a BPE for `size` bytes of text has: 1024·(size / 1 MB)^0.434, as a multiple of 128.

    New words come as a power of the corpus size (Heaps' law); the exponent lies where 1 MB gives 1,024 and
    120 MB about 8,192. At least 384, so that something is learnt beyond the 256 bytes, at most 65,536, so
    that ids take 16 bits (reached at 14 GB).
    """
    fitted = 1024 * math.pow(size / 1e6, 0.434)
    return min(LARGEST, max(384, 128 * round(fitted / 128)))


def train_tokenizer(
    kind: Kind, documents: Iterable[str], size: int | None = None, total: int | None = None
) -> TextTokenizer:
    """Train a tokenizer on documents; a pure function of its arguments.

    Args:
        kind: `bpe`, `characters` or `words`.
        documents: the training text, streamed.
        size: the largest vocabulary, special tokens included. By default `vocabulary_size` for a BPE, all
            characters, the 32,768 most frequent words.
        total: bytes of the text in UTF-8, which BPE needs; without it, BPE holds all documents to count.

    A BPE learns from at most 32 MB: pieces of about 64 Ki characters, evenly spread over the text.
    """
    smallest = SMALLEST_BPE if kind == "bpe" else len((END, UNKNOWN)) + 1
    if size is not None and size < smallest:
        raise UserError(
            f"A vocabulary of {size} is too small for {kind}: it takes at least {smallest} tokens."
        )
    if kind == "characters":
        return _train_characters(documents, size)
    if kind == "words":
        return _train_words(documents, size or WORDS)
    if total is None:
        documents = list(documents)
        total = sum(len(document.encode()) for document in documents)
    return _train_bpe(documents, total, size or vocabulary_size(total))


def _train_bpe(documents: Iterable[str], total: int, size: int) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _qwen2()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_evenly(_pieces(documents), total, BPE_SAMPLE), trainer)
    return TextTokenizer(tokenizer)


def _train_characters(documents: Iterable[str], size: int | None) -> TextTokenizer:
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    kept = counts.most_common(None if size is None else size - 2)
    symbols = [END, UNKNOWN, *sorted(symbol for symbol, _ in kept)]
    # A BPE without merges is a vocabulary of characters; it is five times as fast as WordLevel over a split.
    vocabulary = {symbol: id_ for id_, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return TextTokenizer(tokenizer, unknown=UNKNOWN)


def _train_words(documents: Iterable[str], size: int) -> TextTokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(_pieces(documents), trainer)
    return TextTokenizer(tokenizer, unknown=UNKNOWN)


def cut(document: str) -> list[str]:
    """A document in pieces of `PIECE` characters and what is left to the next harmless place (see `_CUT`)."""
    pieces, start = [], 0
    while place := _CUT.search(document, start + PIECE):
        pieces.append(document[start : place.start()])
        start = place.start()
    pieces.append(document[start:])
    return pieces


def _pieces(documents: Iterable[str]) -> Iterator[str]:
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


def _qwen2() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _as_json(part: Any) -> Any:
    """A pre-tokenizer or decoder as it stands in tokenizer.json."""
    return json.loads(part.__getstate__())


def _byte_of_symbol() -> dict[str, int]:
    """The byte behind each symbol of the byte-level alphabet (`bytes_to_unicode` of GPT-2).

    Printable Latin-1 stands for itself, the other bytes follow from U+0100 on.
    """
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in itself]
    symbols = {chr(byte): byte for byte in itself}
    return symbols | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_of_symbol()


# -- opening -------------------------------------------------------------------------------------------------


def open_tokenizer(spec: str | Path | TextTokenizer) -> TextTokenizer | None:
    """The tokenizer that `spec` names, or None where it is a kind (`KINDS`) that is trained on the corpus.

    Raises:
        UserError: it is neither a kind nor a path.
    """
    if isinstance(spec, TextTokenizer):
        return spec
    if spec in KINDS:
        return None
    if Path(spec).expanduser().exists():
        return load_tokenizer(Path(spec).expanduser())
    near = difflib.get_close_matches(str(spec), KINDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"There is no tokenizer {str(spec)!r}: {hint}choose {', '.join(KINDS)}, or the path of a "
        "tokenizer.json or of a Hugging Face directory."
    )


def load_tokenizer(path: Path) -> TextTokenizer:
    """Open a tokenizer.json, or a directory that holds one.

    Its end-of-text token is the eos_token, else the bos_token, of the tokenizer_config.json or
    special_tokens_map.json beside it, else a token with a usual name (`KNOWN_ENDS`).

    Raises:
        UserError: no such file, not readable, no end-of-text token.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no {file}: give a tokenizer.json or a directory that holds one.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file} is no tokenizer that the tokenizers library opens ({error}).") from error
    named = _named_ends(file.parent)
    end = next((token for token in (*named, *KNOWN_ENDS) if tokenizer.token_to_id(token) is not None), None)
    if end is None:
        raise UserError(
            f"{file} has no end-of-text token: name it as eos_token in a tokenizer_config.json beside it."
        )
    return TextTokenizer(tokenizer, end, _unknown_token(tokenizer))


def _named_ends(directory: Path) -> list[str]:
    """eos_token and bos_token as the files beside a tokenizer.json name them."""
    named = []
    for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file} is not JSON ({error}): mend it or take it away.") from error
        for role in ("eos_token", "bos_token"):
            token = config.get(role)
            named.append(token["content"] if isinstance(token, dict) else token)
    return [token for token in named if token]


def _unknown_token(tokenizer: Tokenizer) -> str | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram
        token: str = model["vocab"][model["unk_id"]][0]
        return token
    return model.get("unk_token") or None
