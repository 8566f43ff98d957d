"""Tokenizers: three that are trained on the corpus, and any that the `tokenizers` library can open.

- `bpe`: byte-level byte-pair encoding with the pre-tokenizer pattern of Qwen2, which llama.cpp knows too.
  Every text has an encoding and decodes to itself, byte for byte.
- `characters`: one token per Unicode code point of the training text.
- `wordpiece`: BERT's, for encoders that need not tell case: text in lower case without accents, words cut into pieces.
- `words`: runs of word characters and runs of punctuation; white space is lost, decoding joins with spaces.

For a decoder the special token `<|endoftext|>` stands before each document (the start token) and behind it (the
end); here its id is always 0. A decoder's tokenizer from elsewhere has its own two. For an encoder a document stands
between `[CLS]` and `[SEP]`, `[MASK]` stands for a hidden token and `[PAD]` for none. `characters` and `words` have
`<|unk|>` (`[UNK]`) for what their vocabulary does not hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors

from selfsup.errors import UserError, require_text

END = "<|endoftext|>"
UNKNOWN = "<|unk|>"


@dataclass(frozen=True)
class Marks:
    """The special tokens of a tokenizer, by the part they play; only an encoder's has one for what is hidden, and that
    of a table none at all."""

    start: str | None
    end: str | None
    unknown: str | None = None
    mask: str | None = None
    pad: str | None = None

    def listed(self) -> list[str]:
        """Each special token once, in the order of their ids."""
        named = [self.pad, self.start, self.end, self.unknown, self.mask]
        return list(dict.fromkeys(token for token in named if token))

    def roles(self) -> dict[str, str]:
        """Each under its name in `transformers`."""
        start, end = ("bos_token", "eos_token") if self.mask is None else ("cls_token", "sep_token")
        others = {"mask_token": self.mask, "pad_token": self.pad, "unk_token": self.unknown}
        return {role: token for role, token in ({start: self.start, end: self.end} | others).items() if token}


# A tower: of texts beside images, as its files say it reads them. A table: of token vectors, nothing but its tokens.
Family = Literal["decoder", "encoder", "tower", "table"]
MARKS: dict[Family, Marks] = {
    "decoder": Marks(END, END, UNKNOWN, pad=END),
    "encoder": Marks("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]"),
    "tower": Marks(END, END, UNKNOWN, pad=END),
    "table": Marks(None, None),
}

Kind = Literal["bpe", "characters", "words", "wordpiece"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The split pattern of Qwen2 (huggingface.co/Qwen/Qwen2-0.5B, tokenizer.json).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a BPE does with a run grows faster than the run is long, so ours cut one after so many characters. No text in
# words has such runs; DNA, base64 and rulers have.
RUN = 1024
BOUNDED_PATTERN = QWEN2_PATTERN.replace("+", f"{{1,{RUN}}}").replace("*", f"{{0,{RUN}}}")

# Texts that are encoded before their ids are taken: what else is known of each takes far more memory.
AT_ONCE = 1 << 14
PIECE = 1 << 16  # characters after which a long document may be cut for encoding
# Places where neither our BPE, nor words, nor characters can have a token across: behind a line break that no
# white space follows, and before a single space between two ASCII letters (for texts that are one long line).
_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=[A-Za-z])(?= [A-Za-z])")

CONFIG = "tokenizer_config.json"
NAMING = ("special_tokens_map.json", CONFIG)  # files that name special tokens, the later with the last word

# Classes of transformers that pad before a text unless their file says otherwise.
PADDING_BEFORE = ("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")

Ids = npt.NDArray[Any]
T = TypeVar("T")


class TextTokenizer:
    """A `tokenizers.Tokenizer`, which it takes over, with the special tokens that stand around documents.

    Texts are neither truncated nor padded, and special tokens written out in them are plain text. A post-processor
    puts the start token (and an encoder's end token) around a text for whoever opens the saved tokenizer; our own
    encoding never does. Special tokens that the vocabulary lacks are added to it.

    A tokenizer from a model's directory goes back into one as it came, with its chat template: of its `files` only
    what has to differ is written anew, and a decoder's text keeps what it had before it, which may be nothing; that of
    a tower keeps what it had behind it too (`framed`).

    Attributes:
        vocabulary: number of ids, added tokens included (the largest id + 1).
        start, end: ids of the tokens that open and close a document, of a decoder often the same one.
        unknown, mask, pad: ids of the tokens for what the vocabulary does not hold, for what is hidden, for
            nothing, where there are such.
        prefix, suffix: ids of what whoever opens the saved tokenizer finds before and behind a text.
        fixed: tokens that each text is padded to, for a network that sees its padding; 0 where none is.
        longest: tokens of a text after which its files cut it, which is left to the model; None where they do not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        marks: Marks = MARKS["decoder"],
        files: Mapping[str, bytes] | None = None,
        framed: bool = False,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder().values()
        present = {token.content for token in added if token.special}
        missing = [token for token in marks.listed() if files is None or token not in present]
        # A hidden word hides the space before it, for a byte-level token holds that space.
        tokens = [AddedToken(token, lstrip=token == marks.mask, special=True) for token in missing]
        tokenizer.add_special_tokens(tokens)
        tokenizer.encode_special_tokens = True
        ids = {role: token and tokenizer.token_to_id(token) for role, token in vars(marks).items()}
        self.start, self.end = cast(int, ids["start"]), cast(int, ids["end"])
        self.unknown, self.mask, self.pad = ids["unknown"], ids["mask"], ids["pad"]
        found = framing(tokenizer)
        decodes = marks.mask is None
        self.prefix = found[0] if files and decodes else [self.start]
        self.suffix = found[1] if framed else [] if decodes else [self.end]
        self.fixed = 0
        self.longest: int | None = None
        wanted = (self.prefix, self.suffix)
        if found != wanted or files is None:
            tokenizer.post_processor = _template(tokenizer, *wanted)
        self.vocabulary: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.marks = marks
        self.files = dict(files or {})
        self._frames = bool(files) and found == wanted  # by its own files
        self._kept = self._frames and not missing
        self._tokenizer = tokenizer

    def anew(self) -> TextTokenizer:
        """The same ids for a model that is not the files', so that they are written wholly anew."""
        return TextTokenizer(self._tokenizer, self.marks)

    def opened(self, ids: Sequence[int] | Ids) -> list[int]:
        """A prompt for a decoder, as whoever opens the saved tokenizer reads it; an empty one is the start token."""
        return [*self.prefix, *np.asarray(ids, np.int64).tolist()] or [self.start]

    @property
    def between(self) -> list[int]:
        """What stands between two documents: one token may close the one and open the other."""
        return [self.end] if self.start == self.end else [self.end, self.start]

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
        between = [self.end] if self.marks.mask else self.between  # an encoder's start is in its template
        content = f"{' '.join(map(str, between))} {self._tokenizer.to_str()}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def agrees(self, other: TextTokenizer) -> bool:
        """Whether texts have the same ids in another one, and documents the same marks between them."""
        parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
        own, others = ([t.between, *(t.structure[part] for part in parts)] for t in (self, other))
        return own == others

    def encode(self, text: str) -> Ids:
        """The ids of a text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, in parallel, without special tokens; arrays of `dtype`. A start or end token that a
        foreign model makes of plain text becomes the unknown token: it would end the text."""
        batch = [np.array(ids, self.dtype) for ids in self._encoded(texts)]
        for ids in batch:
            self._replace_ends(ids)
        return batch

    def encode_joined(self, texts: list[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The same one after the other, (tokens in all,), and how many each text has, (n,)."""
        batch = list(self._encoded(texts))
        ids = np.array(list(chain.from_iterable(batch)), self.dtype)
        self._replace_ends(ids)
        return ids, np.array([len(row) for row in batch], np.int64)

    def _encoded(self, texts: list[str]) -> Iterator[list[int]]:
        for start in range(0, len(texts), AT_ONCE):
            with library_at_work("The tokenizer cannot encode a text"):
                some = interruptible(self._encode, texts[start : start + AT_ONCE])
            yield from some

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            _require_texts(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def _replace_ends(self, ids: Ids) -> None:
        if self.marks.end is None:
            return
        false_ends = (ids == self.end) | (ids == self.start)
        if false_ends.any():
            if self.unknown in (None, self.end, self.start):
                raise UserError(
                    f"The data holds {self.marks.end!r} as plain text, which this tokenizer cannot tell from its "
                    "end-of-text token: take it out of the data or choose another tokenizer."
                )
            ids[false_ends] = self.unknown

    @cached_property
    def apart(self) -> bool:
        """Whether a text can be cut at every space without a change of its ids: what is done to a character depends on
        its word, and no token of a user's own is looked for across words."""
        structure = self.structure
        normalizer, splitting = structure["normalizer"], structure["pre_tokenizer"] or {}
        first = (splitting.get("pretokenizers") or [splitting])[0].get("type")
        return (
            (normalizer is None or normalizer["type"] == "BertNormalizer")
            and first in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
            and structure["model"]["type"] in ("WordPiece", "WordLevel")
            and all(token["special"] for token in structure["added_tokens"])
        )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it, as [start, end) of characters; a character that takes several
        tokens is where each of them stands."""
        with library_at_work("The tokenizer cannot encode a text"):
            encoding = interruptible(self._tokenizer.encode, text, add_special_tokens=False)
        return list(encoding.offsets)

    def encode_marked(self, text: str) -> Ids:
        """The ids of a text in which special tokens, such as [MASK], are what they say; none is added."""
        _require_texts([text])
        self._tokenizer.encode_special_tokens = False
        try:
            with library_at_work("The tokenizer cannot encode a text"):
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = True
        return np.array(encoding.ids, self.dtype)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], most: int) -> list[tuple[Ids, Ids, bool]]:
        """Of two texts each: their ids with what its own files put around a pair, of which text each of them is (as 0
        and 1, where those files say so), and whether a text lost its end. The longer one does where both have no room
        in `most` tokens."""
        if not self._frames:
            raise UserError(
                f"The tokenizer puts no {self.marks.start} and {self.marks.end} around texts; give another."
            )
        self._tokenizer.enable_truncation(most, strategy="longest_first")
        try:
            with library_at_work("The tokenizer cannot encode a text"):
                encodings = self._tokenizer.encode_batch(list(pairs))
        finally:
            self._tokenizer.no_truncation()
        return [(np.array(e.ids), np.array(e.type_ids), bool(e.overflowing)) for e in encodings]

    def room(self, window: int) -> int:
        """Ids of a text that have room in a window, beside what stands around them."""
        return window - len(self.prefix) - len(self.suffix)

    def frame(self, ids: Sequence[int] | Ids) -> Ids:
        """The ids of a text between start and end token, as an encoder reads it, padded where that is `fixed`."""
        framed = np.concatenate([self.prefix, np.asarray(ids), self.suffix]).astype(self.dtype)
        padding = max(0, self.fixed - len(framed))
        return np.pad(framed, (padding, 0) if self._pads_before else (0, padding), constant_values=self.pad or 0)

    @cached_property
    def _pads_before(self) -> bool:
        """Whether padding stands before a text: as its files say, else as their class in transformers has it."""
        said = json_object(self.files, CONFIG)
        usual = "left" if said.get("tokenizer_class") in PADDING_BEFORE else "right"
        return bool(said.get("padding_side", usual) == "left")

    def pieces(self, document: str) -> list[str]:
        """A long document in pieces whose encodings, joined, are the document's; see `cut`. It stays whole where the
        tokenizer has no known seams (prefix spaces, normalizers, other patterns)."""
        return cut(document, self._seam) if self._may_cut else [document]

    def _seam(self, beginning: str) -> int | None:
        """The first place after `PIECE` characters that no token is across, where the tokenizer bounds its runs."""
        if self.structure["pre_tokenizer"] is None:
            return PIECE
        if self.structure["pre_tokenizer"] != _as_json(qwen2_splitting()):
            return None
        looked_at = beginning[: PIECE + 4 * RUN]  # none looks further
        runs = self._tokenizer.pre_tokenizer.pre_tokenize_str(looked_at)
        ends = (int(end) for _, (_, end) in runs if end >= PIECE)
        return next((end for end in ends if _parts(beginning, end)), None)

    @cached_property
    def by_characters(self) -> bool:
        """Whether each token is one character."""
        structure = self.structure
        model, steps = structure["model"], (structure["normalizer"], structure["pre_tokenizer"])
        return steps == (None, None) and model["type"] == "BPE" and not model["merges"]

    @cached_property
    def _may_cut(self) -> bool:
        structure = self.structure
        if structure["normalizer"] or any(not token["special"] for token in structure["added_tokens"]):
            return False
        if structure["pre_tokenizer"] is None:
            return self.by_characters
        known = qwen2_splitting(), qwen2_splitting(QWEN2_PATTERN), pre_tokenizers.Whitespace()
        return structure["pre_tokenizer"] in [_as_json(splitting) for splitting in known]

    @cached_property
    def structure(self) -> dict[str, Any]:
        """tokenizer.json as a dictionary."""
        return dict(json.loads(self._tokenizer.to_str()))

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids, special tokens left out, undecodable bytes as U+FFFD."""
        return str(self._tokenizer.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True))

    def tokens(self, ids: Sequence[int] | Ids) -> list[str]:
        """Each id to look at: its text with control and half characters escaped (`\\n`, `\\xe2`), the name of a special
        token, and for decoders other than ours the token as its file spells it."""
        return [self._shown(int(id_)) for id_ in np.asarray(ids)]

    def _shown(self, id_: int) -> str:
        token = self._tokenizer.id_to_token(id_)
        if token is None:
            raise UserError(f"The tokenizer has no token {id_}: its ids end at {self.vocabulary - 1}.")
        if self._bytewise and id_ not in self._added:
            token = _bytes(token).decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)

    @cached_property
    def _decoder(self) -> str | None:
        return (self.structure["decoder"] or {}).get("type")

    @property
    def _bytewise(self) -> bool:
        return self._decoder == "ByteLevel"

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self._tokenizer.get_added_tokens_decoder())

    def token_bytes(self) -> npt.NDArray[np.int32] | None:
        """Bytes of UTF-8 text that each id stands for: int32 (vocabulary,), 0 for special tokens. None where they are
        not defined: for all decoders but the byte-level one and the one that just joins."""
        if not self._bytewise and self.structure["decoder"] != _as_json(decoders.Fuse()):
            return None
        sizes = np.zeros(self.vocabulary, np.int32)
        for token, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items():
            sizes[id_] = len(_bytes(token) if self._bytewise else token.encode())
        for id_, token in self._added.items():
            sizes[id_] = 0 if token.special else len(token.content.encode())
        return sizes

    def word_parts(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """For each id, bool (vocabulary,): whether its text may go on a word, and whether a word may go on after it. A
        token belongs to the word of the token before it where the first holds for it and the second for the other: both
        texts meet in letters (or within a character), or the token's file marks it (`##`, no `▁`)."""
        goes_on = np.zeros(self.vocabulary, np.bool_)
        open_ended = np.zeros(self.vocabulary, np.bool_)
        marked = self._decoder == "WordPiece"
        for token, id_ in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if id_ in self._added or self.structure["model"]["type"] == "WordLevel":
                continue
            plain = token.removeprefix("##")
            text = _bytes(token).decode(errors="surrogateescape") if self._bytewise else plain
            goes_on[id_] = text != token if marked else _in_word(text[:1])
            open_ended[id_] = marked or _in_word(text[-1:])
        return goes_on, open_ended

    def save(self, directory: Path, max_length: int | None = None, fills: bool = False) -> None:
        """Write tokenizer.json and tokenizer_config.json, which stock `transformers` opens as they are.

        It puts around each text what the model saw there, and takes special tokens written out in a text for plain
        text, but for a model that `fills` what a text says is hidden, and for one with a chat template: these are asked
        by such texts. `max_length` is the model's window in tokens.
        """
        files = {name: content for name, content in self.files.items() if self._kept or "chat_" in name}
        if not self._kept:
            files["tokenizer.json"] = self._tokenizer.to_str(pretty=True).encode()
        files[CONFIG] = self._config(max_length, plain=not (fills or self.chats))
        for name, content in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)

    @property
    def plain(self) -> bool:
        """Whether its files have special tokens that stand in a text taken for plain text."""
        return bool(json_object(self.files, CONFIG).get("split_special_tokens"))

    @property
    def chats(self) -> bool:
        """Whether a chat template comes with it."""
        said = json_object(self.files, CONFIG).get("chat_template")
        return "chat_template.jinja" in self.files or bool(said)

    def _config(self, max_length: int | None, plain: bool) -> bytes:
        """tokenizer_config.json as it came where it says all that is needed, else with what it lacks."""
        given = json_object(self.files, CONFIG)
        needed = self._needed(given, max_length)
        if given.get("split_special_tokens", False) != plain:
            needed["split_special_tokens"] = plain
        if not needed:
            return self.files[CONFIG]
        said = {name: value for name, value in given.items() if name != "auto_map"}  # code that is not here
        return (json.dumps(said | needed, indent=2) + "\n").encode()

    def _needed(self, given: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
        """What tokenizer_config.json has to say, but does not yet, of the class, the special tokens and the length."""
        roles, named = self.marks.roles(), named_tokens(self.files)
        if self._kept and self.marks.mask is None:  # one from elsewhere does without what it has no name for
            roles = {role: token for role, token in roles.items() if role == "eos_token" or role in named}
        needed: dict[str, Any] = {
            role: token for role, token in roles.items() if not self._kept or named.get(role) != token
        }
        if not self._kept or "tokenizer_class" not in given or "auto_map" in given:
            needed |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        longest = given.get("model_max_length", math.inf if self._kept else 0)
        return needed | ({"model_max_length": max_length} if longest < (max_length or 0) else {})


def _require_texts(texts: Iterable[object]) -> None:
    """Raise a UserError where one is no text."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"A text is a string, not of type {type(text).__name__}.")
        require_text(text, "A text")


def interruptible(call: Callable[..., T], *given: Any, **named: Any) -> T:
    """What a long call of the library returns; Ctrl-C ends the wait for it, which in the main thread it could not."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call(*given, **named))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@contextmanager
def library_at_work(what: str) -> Iterator[None]:
    """Whatever the library raises in the block, which are bare exceptions and panics, becomes a UserError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({error}); choose another tokenizer.") from None


def _in_word(symbol: str) -> bool:
    """A letter, or a byte of an unfinished character."""
    return symbol.isalpha() or "\udc80" <= symbol <= "\udcff"


def framing(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and behind a text."""
    encoding = tokenizer.encode("a")
    text = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    first, last = (text[0], text[-1] + 1) if text else (len(encoding.ids), len(encoding.ids))
    return encoding.ids[:first], encoding.ids[last:]


def _template(tokenizer: Tokenizer, before: list[int], behind: list[int]) -> Any:
    """Two texts are one to a decoder; an encoder's both end."""
    opening, closing = ([tokenizer.id_to_token(id_) for id_ in ids] for ids in (before, behind))
    return processors.TemplateProcessing(
        single=[*opening, "$A", *closing],
        pair=[*opening, "$A", *closing, "$B", *closing],
        special_tokens=list(dict(zip([*opening, *closing], [*before, *behind], strict=True)).items()),
    )


class TextStream:
    """Decodes ids one after the other for printing, never half a character: joined, as if decoded at once. `context`
    are the ids that stand before (the prompt), which decide whether a space comes first; none is printed."""

    def __init__(self, tokenizer: TextTokenizer, context: Sequence[int] | Ids = ()) -> None:
        self._tokenizer = tokenizer
        self._before = self._visible(context)[-8:]  # ids that were printed: enough to decide on a space
        self._waiting: list[int] = []

    def push(self, ids: Sequence[int] | Ids) -> str:
        """What the new ids add to the text; empty while a character is incomplete."""
        self._waiting += self._visible(ids)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._print(text)

    def would(self, id_: int) -> str:
        """What one more id would add, together with what waits: an incomplete character as U+FFFD, the name of a
        special token."""
        if id_ in self._tokenizer.special:
            return self._tokenizer.tokens([id_])[0]
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode([*self._before, *self._waiting, id_])[len(before) :]

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


def cut(document: str, seam: Callable[[str], int | None] = lambda _: PIECE) -> list[str]:
    """A document in pieces of `PIECE` characters and what is left to the next harmless place (see `_CUT`). Where there
    is none within `PIECE` more, `seam` is asked for one in what begins there; by default any place will do."""
    pieces, start = [], 0
    while length := _piece(document, start, seam):
        pieces.append(document[start : start + length])
        start += length
    pieces.append(document[start:])
    return pieces


def _parts(text: str, place: int) -> bool:
    """Whether a run of white space that ends at a place would not go on, or end otherwise, were the text's end there:
    the last space before a word is a run of its own."""
    before, behind = text[place - 1], text[place : place + 1]
    return not before.isspace() or before in "\r\n" or behind in ("", " ", "\t", "\r", "\n")


def _piece(document: str, start: int, seam: Callable[[str], int | None]) -> int | None:
    """Characters of the piece that begins at a place; None for all that are left."""
    least, most = start + PIECE, start + 2 * PIECE
    if near := _CUT.search(document, least, most):
        return near.start() - start
    if len(document) <= most:
        return None
    if place := seam(document[start : most + 4 * RUN]):
        return place
    far = _CUT.search(document, most)
    return far and far.start() - start


def qwen2_splitting(pattern: str = BOUNDED_PATTERN) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _as_json(part: Any) -> Any:
    """A pre-tokenizer or decoder as it stands in tokenizer.json."""
    return json.loads(part.__getstate__())


def _byte_of_symbol() -> dict[str, int]:
    """The byte behind each symbol of the byte-level alphabet (`bytes_to_unicode` of GPT-2). Printable Latin-1 stands
    for itself, the other bytes follow from U+0100 on."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of_symbol()
_SYMBOL_OF = {byte: symbol for symbol, byte in _BYTE_OF.items()}


def _bytes(token: str) -> bytes:
    """What a token of the byte-level alphabet stands for; one with other symbols is plain text to its decoder."""
    values = [_BYTE_OF.get(symbol) for symbol in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


def spelt(text: str) -> str:
    """A text in the byte-level alphabet, a symbol for each byte."""
    return "".join(_SYMBOL_OF[byte] for byte in text.encode())


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """What a JSON file holds, an empty object where it is not there."""
    try:
        content = json.loads(files.get(name, b"{}"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        problem = f"The {name} beside the tokenizer is not JSON that holds an object ({error})"
        raise UserError(f"{problem}: mend it or take it away.") from error
    return content


def named_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Special tokens by role (`eos_token`) as the files beside a tokenizer.json name them."""
    named: dict[str, str] = {}
    for file in NAMING:
        for role, token in json_object(files, file).items():
            content = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(content, str):
                named[role] = content
    return named
