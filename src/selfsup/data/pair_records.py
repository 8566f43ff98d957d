"""Pairs of texts as records: of rows, of adjacent passages, and segments of documents of which two crops are drawn.

They have for each of `query` and `passage` its tokens, between the tokens that stand around any text and behind the
prompt of its side; keys that are equal for equal texts; and places: what shares one is no negative.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.records import Batch
from selfsup.data.text_pairs import Numbers, TextGroups
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.errors import UserError
from selfsup.seeding import uniform

SIDES = ("query", "passage")
APART = 4  # passages in a block of a place, see `neighbours`
SHARES = (0.05, 0.5)  # of a segment that a crop has, least and most (Izacard et al. 2022, appendix A.1)


class Framing:
    """How a passage is read: between the tokens that stand around any text, behind a prompt, at most `window` tokens.

    Raises a UserError where the prompt leaves no room for a text.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: str, window: int) -> None:
        self.window, self.pad = window, int(tokenizer.pad or 0)
        said = tokenizer.encode(prompt.rstrip()).tolist()
        self.before = torch.tensor([*tokenizer.prefix, *said], dtype=torch.int64)
        self.after = torch.tensor(tokenizer.suffix, dtype=torch.int64)
        self.around = len(self.before) + len(self.after)
        self.room = window - self.around
        if self.room < 1:
            raise UserError(
                f"A window of {window} holds no token of a text beside the {self.around} around it"
                + (f", prompt {prompt!r} included" if prompt else "")
                + f"; make data.window {self.around + 1} or more."
            )

    def framed(self, tokens: Tensor, first: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs of `lengths` (n,) from `first` (n,) in tokens (n, T), cut to the room: padded (n, window), and their
        lengths (n,), with all that stands around them."""
        before, after = self.before.to(tokens.device), self.after.to(tokens.device)
        kept = lengths.clamp(max=self.room)
        place = torch.arange(self.window, device=tokens.device) - len(before)
        inside = (place >= 0) & (place < kept[:, None])
        taken = tokens.gather(1, (first[:, None] + place).clamp(0, tokens.shape[1] - 1))
        made = taken.masked_fill(~inside, self.pad)
        made[:, : len(before)] = before
        ends = len(before) + kept[:, None] + torch.arange(len(after), device=tokens.device)
        made.scatter_(1, ends, after.expand(len(made), -1))
        return made, kept + self.around


def lead_of(prompt: str) -> str:
    """The space that a prompt ends with, which belongs to the first token of a text behind it."""
    return prompt[len(prompt.rstrip()) :]


class TextPairs:
    """Pairs of passages as records, map-style.

    Args:
        ids: of all texts.
        spans: int64 (n, 2, 2), where query and passage of each pair begin and end in them.
        places: int64 (n, 2); pairs that share one in the same column are no negatives of each other.
        framings: of queries and of passages.

    Attributes:
        truncated: texts that lose their end.
        mean_length: of both texts, with what stands around them.
        chosen: where it holds `negatives`, int32 (n, K), the pairs whose passages are those of each query; they may
            change between two reads.
    """

    def __init__(self, ids: Ids, spans: Numbers, places: Numbers, framings: tuple[Framing, Framing]) -> None:
        self.chosen: Mapping[str, Tensor] = {}
        self._ids, self._spans, self._places, self.framings = ids, spans, places, framings
        rooms = np.array([framing.room for framing in framings])
        lengths = spans[..., 1] - spans[..., 0]
        self.truncated = int((lengths > rooms).sum())
        self.mean_length = float((np.minimum(lengths, rooms) + [f.around for f in framings]).mean())
        self._room = int(rooms.max())
        self._alike = int(rooms.min())  # tokens that say whether two texts are equal, whichever side they are on

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """Pairs by index (B,).

        Returns:
            for each of `query` and `passage`, `_tokens`: int64 (B, T), padded; `_lengths`: int64 (B,); `_keys`: int64
            (B,), equal for texts of equal tokens on either side (and else, up to a chance of 2^-64, different).
            `places`: int64 (B, 2), see above. Where negatives are chosen, the same of `negative` as of `passage`, with
            (B, K) in place of (B,).
        """
        batch = {"places": torch.from_numpy(self._places[indices])}
        for side, name in enumerate(SIDES):
            batch |= {f"{name}_{what}": each for what, each in self.texts(side, indices).items()}
        if (negatives := self.chosen.get("negatives")) is not None:
            chosen = negatives[torch.from_numpy(np.asarray(indices, np.int64))]
            texts = self.texts(SIDES.index("passage"), chosen.flatten().numpy())
            batch |= {f"negative_{what}": each.view(*chosen.shape, *each.shape[1:]) for what, each in texts.items()}
        return batch

    def texts(self, side: int, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """`tokens`, `lengths` and `keys` of one side of pairs by index, see `read`."""
        framing = self.framings[side]
        starts, stops = self._spans[indices, side].T
        texts = gathered(self._ids, starts, np.minimum(stops - starts, self._room), self._room)
        lengths = torch.from_numpy(stops - starts)
        tokens, framed = framing.framed(texts, torch.zeros_like(lengths), lengths)
        keys = keys_of(texts.numpy(), np.minimum(stops - starts, self._alike))
        return {"tokens": tokens, "lengths": framed, "keys": keys}


class Segments:
    """Runs of tokens of documents as records, map-style, of which two crops each are drawn: see `TwoCrops`.

    A document is cut into as few runs of at most `size` tokens as do, all of nearly one length. `short` counts the
    documents of a single token, which are left out; `mean_crop` is in tokens.

    Raises a UserError where there is none.
    """

    def __init__(self, groups: TextGroups, size: int) -> None:
        firsts = groups.counts.cumsum() - groups.counts
        starts = groups.starts[firsts] if len(firsts) else firsts
        lengths = np.diff(starts, append=len(groups.ids))
        self.short = int((lengths < 2).sum())
        starts, lengths = starts[lengths > 1], lengths[lengths > 1]
        if not len(starts):
            raise UserError("No document has two tokens to crop; give more text.")
        parts = -(-lengths // size)
        whose = np.repeat(np.arange(len(parts)), parts)
        within = np.arange(len(whose)) - np.repeat(parts.cumsum() - parts, parts)
        ends = [starts[whose] + part * lengths[whose] // parts[whose] for part in (within, within + 1)]
        self._ids, self._size = groups.ids, size
        self._starts, self._lengths = ends[0], ends[1] - ends[0]
        self.mean_crop = float(self._lengths.mean() * sum(SHARES) / 2)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """Segments by index (B,): `tokens`, int64 (B, size), padded; `lengths` and `keys`, int64 (B,), as of pairs;
        `places`, int64 (B, 2), those of the segments themselves."""
        starts, lengths = self._starts[indices], self._lengths[indices]
        tokens = gathered(self._ids, starts, lengths, self._size)
        return {
            "tokens": tokens,
            "lengths": torch.from_numpy(lengths),
            "keys": keys_of(tokens.numpy(), lengths),
            "places": torch.from_numpy(np.stack([starts, starts], 1)),
        }


def gathered(ids: Ids, starts: Numbers, lengths: Numbers, room: int) -> Tensor:
    """Runs of ids, int64 (n, room), 0 behind their ends."""
    place = np.arange(room)
    found = ids[np.minimum(starts[:, None] + place, max(0, len(ids) - 1))]
    return torch.from_numpy(np.where(place < lengths[:, None], found, 0).astype(np.int64))


def keys_of(tokens: npt.NDArray[np.int64], lengths: Numbers) -> Tensor:
    """int64 (n,), equal for runs of equal tokens."""
    rows = zip(tokens, lengths, strict=True)
    keys = [hashlib.blake2b(row[:length].tobytes(), digest_size=8).digest() for row, length in rows]
    return torch.from_numpy(np.frombuffer(b"".join(keys), np.int64).copy())


def paired(groups: TextGroups, framings: tuple[Framing, Framing]) -> TextPairs:
    """Both texts of each group as a pair; its place is its own."""
    spans = np.stack([groups.starts, groups.starts + groups.lengths], 1).reshape(-1, 2, 2)
    return TextPairs(groups.ids, spans, np.arange(len(spans))[:, None].repeat(2, 1), framings)


def neighbours(groups: TextGroups, framings: tuple[Framing, Framing]) -> TextPairs:
    """Each passage of a document with the next one.

    A place is a block of four passages, and, in the other column, one that begins two passages later: passages of which
    one is the neighbour of the other, or both of a third, share one or the other.

    Raises:
        UserError: no document has two passages.
    """
    spans, document = passages(groups, min(framing.room for framing in framings))
    pairs = np.flatnonzero(document[1:] == document[:-1])
    if not len(pairs):
        window = framings[0].window
        raise UserError(
            f"No document has two passages of up to {window} tokens; give longer documents or a smaller data.window, "
            "or two crops of each (pairs.from=crops)."
        )
    numbers = pairs + APART * document[pairs]  # documents stand a block apart
    places = np.stack([numbers // APART, (numbers + APART // 2) // APART], 1)
    return TextPairs(groups.ids, np.stack([spans[pairs], spans[pairs + 1]], 1), places, framings)


def passages(groups: TextGroups, room: int) -> tuple[Numbers, Numbers]:
    """Runs of whole sentences, as many as have room; a sentence that is longer stands alone.

    Returns:
        where each begins and ends in the ids, int64 (passages, 2), and the number of its document, int64 (passages,).
    """
    ends = groups.lengths.cumsum()
    spans, document, first = array("q"), array("q"), 0
    for number, last in enumerate(groups.counts.cumsum().tolist()):
        while first < last:
            start = int(ends[first] - groups.lengths[first])
            stop = max(first + 1, bisect_right(ends, start + room, first, min(last, first + room)))
            spans.extend((start, int(ends[stop - 1])))
            document.append(number)
            first = stop
    return np.array(spans, np.int64).reshape(-1, 2), np.array(document, np.int64)


class AsRead:
    """The texts of pairs as their records hold them, on the host."""

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        return batch.host

    def whole(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All texts of records, padded (n, T), with their lengths (n,)."""
        tokens, lengths = (torch.cat([data[f"{side}_{what}"] for side in SIDES]) for what in ("tokens", "lengths"))
        return tokens, lengths


@dataclass(frozen=True)
class TwoCrops:
    """Two crops of each segment, of a twentieth to half of it, drawn from (seed, epoch, record)."""

    framings: tuple[Framing, Framing]

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """The texts of pairs, as `TextPairs.read` gives them; equal segments have equal keys."""
        data = batch.host
        lengths = data["lengths"].numpy()
        draws = uniform(batch.seed, "crops", batch.epochs, batch.records, 2 * len(SIDES))
        made = {"places": data["places"]}
        for side, (name, framing) in enumerate(zip(SIDES, self.framings, strict=True)):
            least, most = SHARES
            size = np.maximum(1, (lengths * (least + (most - least) * draws[:, 2 * side])).astype(np.int64))
            first = ((lengths - size + 1) * draws[:, 2 * side + 1]).astype(np.int64)
            run = (torch.from_numpy(numbers).to(data["tokens"].device) for numbers in (first, size))
            tokens, framed = framing.framed(data["tokens"], *run)
            made |= {f"{name}_tokens": tokens, f"{name}_lengths": framed, f"{name}_keys": data["keys"]}
        return made

    def whole(self, data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The beginning of each segment, as a passage."""
        return self.framings[1].framed(data["tokens"], torch.zeros_like(data["lengths"]), data["lengths"])
