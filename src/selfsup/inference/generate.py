"""A decoder with its tokenizer: text that continues prompts, and the loss of each token of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizers import TextStream, TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.base import Model, require_room
from selfsup.inference.decoding import Decoding, Reading
from selfsup.inference.items import digest
from selfsup.inference.rows import Apart, Packed, Rows
from selfsup.inference.sampling import Place, Sampling, choose
from selfsup.machine import Machine, find_precision
from selfsup.models.adapters import AdaptedDecoder, open_decoder
from selfsup.models.decoder import Decoder, KeyValueCache
from selfsup.models.decoder_layouts import LAYOUTS, load_decoder, read_ends
from selfsup.models.directories import read_config
from selfsup.models.features import Features, fingerprint
from selfsup.models.layouts import Unfit
from selfsup.models.losses import cap_of, capped, target_losses

PRECISIONS = ("auto", "fp32", "bf16")
TOGETHER = 64  # prompts that are gone on from at once
MOST_TOKENS = 100_000  # of one text
SCORED = 256  # places of a text whose logits stand in memory at once


class LanguageModel(Model):
    """A decoder, the tokenizer it was trained with, and the tokens that end a text beside the tokenizer's end."""

    kind = "a decoder"

    def __init__(self, decoder: Decoder | AdaptedDecoder, tokenizer: TextTokenizer, ends: Sequence[int] = ()) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.ends = {tokenizer.end, *ends}
        self._kept: tuple[torch.dtype, list[tuple[int, int]], Decoding] | None = None

    @classmethod
    def _open(cls, directory: Path) -> Self:
        """With the network here where that computes the same, else with that of transformers."""
        decoder = _open_decoder(directory)
        tokenizer = load_tokenizer(directory)
        require_room(tokenizer, decoder.config.vocabulary, directory, "decoder")
        return cls(decoder, tokenizer, read_ends(directory))

    def to(self, device: torch.device) -> None:
        self.decoder.to(device)

    @property
    def fingerprint(self) -> str:
        return digest(f"{fingerprint(self.decoder, Features())} {self.tokenizer.fingerprint}".encode())

    def generate(
        self,
        prompts: str | Sequence[str],
        tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[int, str], None] | None = None,
        precision: str = "auto",
    ) -> str | list[str]:
        """The text that follows each prompt, without the prompt: a string for a string, else a list.

        A prompt stands at the beginning of a document (it may be empty), behind what the tokenizer puts there. A
        text ends before a token that closes a document, before that text in `stop` which is first complete, or after
        `tokens` tokens. What is drawn depends on the seed, the prompt's number and the place in its text, not on the
        other prompts.
        `stream(number, piece)` receives each prompt's text piece by piece as it is written; the pieces join to
        what is returned. Beyond the trained window the oldest tokens go out of sight (see KeyValueCache).
        `precision` is that of the products of matrices: `fp32`, `bf16`, or `auto`, which is bf16 where the hardware
        multiplies it natively and the network is one of selfsup's. The same call writes the same text; in bf16,
        rounding may let it differ from what fp32 writes, or the same prompt among others.
        Raises UserError for an argument out of range.
        """
        how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if not texts:
            raise UserError("there is no prompt; give at least one (it may be empty)")
        if not 1 <= tokens <= MOST_TOKENS:
            raise UserError(f"tokens is {tokens}; ask for 1 to {MOST_TOKENS:,}")
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; give {', '.join(PRECISIONS)}")
        if not all(stops):
            raise UserError("a stop is empty; give the text before which to end")
        rows = [self.tokenizer.opened(ids) for ids in self.tokenizer.encode_batch(texts)]
        together = TOGETHER if isinstance(self.decoder, Decoder) else 1  # networks of others differ in what padding is
        written = [
            text
            for first in range(0, len(rows), together)
            for text in self._write(rows[first : first + together], first, tokens, how, seed, stops, stream, precision)
        ]
        return written[0] if isinstance(prompts, str) else written

    def _write(
        self,
        rows: list[list[int]],
        first: int,
        tokens: int,
        how: Sampling,
        seed: int,
        stops: tuple[str, ...],
        stream: Callable[[int, str], None] | None,
        precision: str,
    ) -> list[str]:
        """The texts that follow some prompts, of which the first has the number `first`."""
        streams = [TextStream(self.tokenizer, row) for row in rows]
        endings = [Ending(stops) for _ in rows]
        pieces: list[list[str]] = [[] for _ in rows]
        stopped: set[int] = set()

        def write(number: int, piece: str) -> None:
            pieces[number].append(piece)
            if stream is not None and piece:
                stream(first + number, piece)

        for drawn in self._draw(rows, tokens, how, seed, first, stopped, precision):
            for number, token in drawn:
                write(number, endings[number].push(streams[number].push([token])))
                if endings[number].met:
                    stopped.add(number)
        for number, (unfinished, ending) in enumerate(zip(streams, endings, strict=True)):
            write(number, ending.push(unfinished.flush()) + ending.flush())
        return ["".join(parts) for parts in pieces]

    @torch.inference_mode()
    def token_losses(self, tokens: Sequence[int]) -> Tensor:
        """Loss in nats of each token but the first, given those before it (at most the trained window).

        The first token is usually the start token that opens a document. Returns (len(tokens) − 1,), fp32.
        """
        if len(tokens) < 2:
            raise UserError("a loss needs two tokens or more: one to start from and one to predict")
        decoder, targets = self.decoder, torch.tensor(list(tokens[1:]), device=self.decoder.output_weight.device)
        hidden = self._hidden(tokens[:-1])
        parts = zip(hidden, torch.split(targets, decoder.config.window), strict=True)
        return torch.cat([target_losses(x, decoder.output_weight, y, cap_of(decoder)) for x, y in parts])

    @torch.inference_mode()
    def next_logits(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """Logits of what follows each of the tokens, given those before it (at most the trained window): (n,
        vocabulary) in fp32 of some at a time."""
        weight, cap = self.decoder.output_weight, cap_of(self.decoder)
        for window in self._hidden(tokens):
            for part in torch.split(window, SCORED):
                yield capped(F.linear(part, weight), cap).float()

    def _hidden(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """The last hidden states of one text, a window of them at a time, (n, width)."""
        decoder = self.decoder
        row = torch.tensor([list(tokens)], device=decoder.output_weight.device)
        if isinstance(decoder, Decoder):
            cache = KeyValueCache(decoder.config, 1, len(tokens), None, decoder.output_weight.dtype, row.device)
            read: Callable[[Tensor], Tensor] = partial(decoder, cache=cache)
        else:
            read = decoder  # whose windows do not see each other
        for part in torch.split(row, decoder.config.window, 1):
            yield read(part)[0]

    @torch.inference_mode()
    def _draw(
        self,
        rows: list[list[int]],
        count: int,
        how: Sampling,
        seed: int,
        first: int = 0,
        stopped: Set[int] = frozenset(),
        precision: str = "fp32",
    ) -> Iterator[list[tuple[int, int]]]:
        """Step by step, (row, token) for each text that has not ended; `stopped` rows, which may grow, have."""
        decoder = self.decoder
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        padded = [[row[0]] * pad + row for pad, row in zip(padding, rows, strict=True)]
        fresh = torch.tensor(padded, device=decoder.output_weight.device)
        choose = _Chooser(how, seed, fresh, decoder.config.vocabulary, first)
        writing = set(range(len(rows)))
        read = self._reader(padding, longest + count, precision)
        logits = read(fresh)
        for position in range(count):
            chosen = choose(logits.float(), position)
            drawn = [(n, t) for n, t in enumerate(chosen.tolist()) if n in writing and t not in self.ends]
            yield drawn
            writing = {number for number, _ in drawn} - stopped
            if not writing:
                return
            if position + 1 < count:
                logits = read(chosen[:, None])

    def _reader(self, padding: list[int], length: int, precision: str) -> Callable[[Tensor], Tensor]:
        """What makes of the next tokens (B, T) of some texts the logits (B, vocabulary) of what follows; `length` are
        the tokens that it is to read in all."""
        if isinstance(self.decoder, AdaptedDecoder):
            return _reading(self.decoder, precision)
        decode = self._packed(self.decoder, precision)
        cache = decode.cache(len(padding), length, padding)
        return lambda tokens: decode(tokens, cache)

    def rows(self, precision: str, memory: int) -> Rows:
        """An empty place where texts are written together; their keys and values take at most so many bytes."""
        if isinstance(self.decoder, AdaptedDecoder):
            return Apart(partial(_reading, self.decoder, precision))
        return Packed(self._packed(self.decoder, precision), memory)

    def _packed(self, decoder: Decoder, precision: str) -> Decoding:
        """The decoder prepared to write; anew where its weights have changed."""
        weight = decoder.output_weight
        dtype = torch.bfloat16 if find_precision(precision, weight.device) == "bf16" else weight.dtype
        state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in decoder.parameters()]
        if self._kept is None or self._kept[:2] != (dtype, state):
            self._kept = (dtype, state, Decoding(decoder, dtype))
        return self._kept[2]


def _open_decoder(directory: Path) -> Decoder | AdaptedDecoder:
    if read_config(directory).get("model_type") not in LAYOUTS:
        return open_decoder(directory)
    try:
        return load_decoder(directory)
    except Unfit:
        return open_decoder(directory)


def _reading(decoder: AdaptedDecoder, precision: str) -> Reading:
    given = "fp32" if precision == "auto" else precision  # autocast narrows all weights for each token
    return Reading(decoder, Machine(decoder.output_weight.device, given, 0.0).autocast)


class Ending:
    """Ends a text before the word that is first complete; what may be the beginning of one waits."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.met, self._waiting = stops, False, ""

    def push(self, piece: str) -> str:
        """What can be said of the text so far, beyond what was said; nothing once a stop was met."""
        if self.met:
            return ""
        text = self._waiting + piece
        met = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        self.met = bool(met)
        said = min(met)[1] if met else len(text) - self._begun(text)
        self._waiting = "" if self.met else text[said:]
        return text[:said]

    def flush(self) -> str:
        """What is left when the text ends by itself."""
        left, self._waiting = self._waiting, ""
        return left

    def _begun(self, text: str) -> int:
        """How many characters at the end of a text begin a stop."""
        begun = (
            n for stop in self.stops for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])
        )
        return max(begun, default=0)


class _Chooser:
    """The next token of each row, by the logits, the settings and (for the penalty) the tokens met so far."""

    def __init__(self, how: Sampling, seed: int, prompts: Tensor, vocabulary: int, first: int) -> None:
        self.how = how
        self.seed = seed
        self.numbers = range(first, first + prompts.shape[0])
        self.seen: Tensor | None = None
        if how.repetition_penalty != 1:
            met = torch.zeros(prompts.shape[0], vocabulary, dtype=torch.bool, device=prompts.device)
            self.seen = met.scatter_(1, prompts, True)

    def __call__(self, logits: Tensor, position: int) -> Tensor:
        """Tokens (B,) for logits (B, V); position counts the tokens drawn so far."""
        places = [Place(self.seed, number, position) for number in self.numbers]
        chosen = choose(logits, self.how, places, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        return chosen
