"""Texts that are written together and of which any may join or leave between two steps.

All of them are gone on with by one token in a step. What a text gets does not depend on the others but for rounding:
each stands at positions of its own, as if it were alone, and sees itself only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from selfsup.inference.decoding import Decoding, Reading
from selfsup.models.attention import additive
from selfsup.models.decoder import DecoderConfig, KeyValueCache

READ = 8192  # tokens of prompts that are read at once, what fills them up to one length included
SMALLEST = 64  # slots of a text
APART = 8  # texts at once where each is read by itself


class Rings:
    """Keys and values of texts of different lengths (rows), each at positions of its own.

    As in a `KeyValueCache` a position attends to the last `config.window` positions, itself included. Position p of a
    row stands in slot p mod `config.window`, where what it replaces is out of sight. There are as many slots as the
    longest row takes, and a window at most. Rows that leave are replaced by the last one, so that all stand side by
    side.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.window = config, config.window
        self.lengths: list[int] = []  # of each row, the positions that it holds or has held
        self.length = 0  # positions that the longest row will have
        self.keys = torch.zeros((config.layers, 0, config.kv_heads, 0, config.head_dim), dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self._newest = torch.zeros(0, dtype=torch.long, device=device)  # of each row, the position that is fed

    def __len__(self) -> int:
        return len(self.lengths)

    def memory(self, rows: int, length: int) -> int:
        """Bytes that so many rows more take, of this length at most, beside those that are there."""
        rows, slots = self._room(len(self) + rows, max(length, self.length))
        return 2 * rows * slots * self.config.layers * self.config.kv_heads * self.config.head_dim * self.keys.itemsize

    def _room(self, rows: int, length: int) -> tuple[int, int]:
        """Rows and slots, with room beyond what is needed, so that taking more is rare."""
        slots = min(self.window, max(SMALLEST, 1 << (length - 1).bit_length()))
        return max(1 << (rows - 1).bit_length(), self.keys.shape[1]), max(slots, self.keys.shape[3])

    def admit(self, cache: KeyValueCache, number: int, length: int, whole: int) -> None:
        """A new last row: what a cache holds of its text of that number, which has `length` positions so far and will
        have `whole` in all."""
        self._reserve(max(whole, self.length))
        first = max(cache.first_position, length - self.window)
        slots = torch.arange(first, length, device=self.keys.device) % self.window
        held = slice(first - cache.first_position, length - cache.first_position)
        for own, read in ((self.keys, cache.keys), (self.values, cache.values)):
            own[:, len(self)].index_copy_(2, slots, read[:, number, :, held])
        self.lengths.append(length)

    def _reserve(self, length: int) -> None:
        """Make room for one row more, and rows of this length."""
        rows, slots = self._room(len(self) + 1, length)
        self.length = length
        layers, held_rows, heads, held_slots, dim = self.keys.shape
        if (rows, slots) == (held_rows, held_slots):
            return
        for name in ("keys", "values"):
            held = getattr(self, name)
            wider = held.new_zeros(layers, rows, heads, slots, dim)  # what is masked is multiplied with 0: no NaN
            wider[:, :held_rows, :, :held_slots] = held
            setattr(self, name, wider)

    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        last = len(self) - 1
        if row != last:
            for held in (self.keys, self.values):
                held[:, row] = held[:, last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.length, self.keys, self.values = 0, self.keys[:, :0, :, :0].clone(), self.values[:, :0, :, :0].clone()

    # -- as a cache --

    def advance(self, count: int) -> Tensor:
        """Make room for the next position of each row, and return them, (B, 1)."""
        if count != 1:
            raise ValueError(f"rows go on by one position, not by {count}")
        self._newest = torch.tensor(self.lengths, device=self.keys.device)
        self.lengths = [length + 1 for length in self.lengths]
        return self._newest[:, None]

    @property
    def _used(self) -> int:
        """Slots that any row has come to."""
        return min(max(self.lengths), self.window)

    def extend(self, layer: int, keys: Tensor, values: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, kv_heads, 1, head_dim) in the room made; returns all that any row sees."""
        rows, slots = torch.arange(len(self), device=keys.device), self._newest % self.window
        seen = []
        for held, fresh in ((self.keys, keys), (self.values, values)):
            held[layer][rows, :, slots] = fresh[:, :, 0]
            seen.append(held[layer, : len(self), :, : self._used])
        return seen[0], seen[1]

    def mask(self, count: int, reach: int | None = None) -> Tensor | None:
        """What the newest position of each row sees, (B, 1, 1, slots), to add; None where all see all slots."""
        used, reach = self._used, min(reach or self.window, self.window)
        if min(self.lengths) >= used and used <= reach:
            return None
        newest = self._newest[:, None]
        ages = (newest - torch.arange(used, device=newest.device)) % self.window
        return additive((ages < reach) & (ages <= newest), self.keys.dtype)[:, None, None]


class Rows(Protocol):
    """The texts that are being written, in an order that changes where one leaves."""

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether there is memory for texts more that will have so many tokens each, prompts included."""

    def groups(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The numbers of prompts that `join` takes at once."""

    def join(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """Texts more, behind those that are there, by their prompts and by how many tokens each will have in all;
        logits (n, vocabulary) of what follows these prompts."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Go on with each text by its token; logits (B, vocabulary) of what follows."""

    def leave(self, row: int) -> None:
        """Take a text out; the last one takes its place."""


class Packed:
    """Rows of a decoder whose arithmetic stands here: one product of matrices serves all of them.

    Args:
        memory: most bytes of keys and values.
    """

    def __init__(self, decoding: Decoding, memory: int) -> None:
        self.decoding, self.memory = decoding, memory
        self.device = decoding.embedding.device
        self.rings = Rings(decoding.config, decoding.dtype, self.device)

    def holds(self, lengths: Sequence[int]) -> bool:
        return self.rings.memory(len(lengths), max(lengths)) <= self.memory

    def groups(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Prompts of like lengths, up to `READ` tokens; one that is longer than the window by itself."""
        group: list[int] = []
        distinct: set[tuple[int, ...]] = set()
        for number in sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), tuple(prompts[number]))):
            prompt = tuple(prompts[number])
            fits = len(prompt) <= self.decoding.config.window and (len(distinct) + 1) * len(prompt) <= READ
            if group and not (fits or prompt in distinct):
                yield group
                group, distinct = [], set()
            group.append(number)
            distinct.add(prompt)
        if group:
            yield group

    @torch.inference_mode()
    def join(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """What follows a prompt's last token is nothing of it and is seen by nothing of it. Equal prompts are read
        once."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        longest = max(map(len, distinct))
        filled = [[*prompt, *[prompt[0]] * (longest - len(prompt))] for prompt in distinct]
        cache = self.decoding.cache(len(distinct), longest)
        last = torch.tensor([len(prompt) - 1 for prompt in distinct], device=self.device)
        tokens = torch.tensor(filled, device=self.device)
        logits = self.decoding(tokens, cache, last if len(distinct) > 1 else None)
        numbers = [distinct.index(tuple(prompt)) for prompt in prompts]
        for number, prompt, length in zip(numbers, prompts, lengths, strict=True):
            self.rings.admit(cache, number, len(prompt), length)
        return logits[numbers]

    def step(self, tokens: Sequence[int]) -> Tensor:
        return self.decoding(torch.tensor(tokens, device=self.device)[:, None], self.rings)

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        self.rings.leave(row)


class Apart:
    """Rows of a decoder of transformers, whose networks differ in how texts of different lengths stand side by side:
    each is read by itself, one after the other.

    Args:
        begin: makes what reads one text.
    """

    def __init__(self, begin: Callable[[], Reading]) -> None:
        self.begin = begin
        self.readings: list[Reading] = []

    def holds(self, lengths: Sequence[int]) -> bool:
        return len(self.readings) + len(lengths) <= APART

    def groups(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        yield from ([number] for number in range(len(prompts)))

    def join(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        fresh = [self.begin() for _ in prompts]
        self.readings += fresh
        return _read(fresh, prompts)

    def step(self, tokens: Sequence[int]) -> Tensor:
        return _read(self.readings, [[token] for token in tokens])

    def leave(self, row: int) -> None:
        last = self.readings.pop()
        if row < len(self.readings):
            self.readings[row] = last


def _read(readings: Sequence[Reading], tokens: Sequence[Sequence[int]]) -> Tensor:
    """What each of some readings makes of its tokens."""
    pairs = zip(readings, tokens, strict=True)
    return torch.cat([read(torch.tensor([list(row)], device=read.tokens.device)) for read, row in pairs])
