"""Sequences of different lengths in rows of one length, so that next to nothing is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selfsup.models.static import StaticEncoder

Pooling = Literal["mean", "cls", "last", "attention"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")  # of texts; the other one is of networks that see
BLOCK = 256  # texts whose vectors are made at once
MULTIPLE = 8  # of rows, and of places in a row: each new shape costs kernels that are made for it, and kept


@dataclass(frozen=True)
class Rows:
    """n sequences laid into rows."""

    documents: Tensor  # (rows, room), the number of the sequence at each position, −1 on padding
    places: Tensor  # (tokens in all,), where those of the sequences, one after the other, lie in the flattened rows
    first: Tensor  # (n,), where each sequence begins in the flattened rows


def pack(lengths: Sequence[int], room: int) -> tuple[list[int], list[int], int]:
    """The row of each sequence and its place there, in rows of `room` places: best fit, longest first.

    (Johnson 1973, "Near-optimal bin packing algorithms".) Returns rows, offsets, and the number of rows.
    """
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left in them
    rows, offsets, count = [0] * len(lengths), [0] * len(lengths), 0
    for sequence in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[sequence]
        left = next((left for left in range(length, room) if open_rows[left]), room)
        if left < room:
            rows[sequence] = open_rows[left].pop()
        else:
            rows[sequence], count = count, count + 1
        offsets[sequence] = room - left
        open_rows[left - length].append(rows[sequence])
    return rows, offsets, count


def lay(lengths: Tensor, room: int = 0) -> Rows:
    """Where each of n sequences of these lengths (n,) comes to lie: several in rows of so much `room`, or as long as
    the longest where that is more."""
    sizes = lengths.tolist()
    room = max(room, rounded(max(sizes))) if len(sizes) > 1 else sizes[0]
    rows, offsets, used = pack(sizes, room)
    count = rounded(used)
    first = torch.tensor(rows, device=lengths.device) * room + torch.tensor(offsets, device=lengths.device)
    numbers = torch.repeat_interleave(torch.arange(len(sizes), device=lengths.device), lengths)
    begins = lengths.cumsum(0) - lengths  # of each sequence among all tokens
    places = torch.arange(len(numbers), device=lengths.device) + (first - begins)[numbers]
    documents = torch.full((count * room,), -1, device=lengths.device)
    documents[places] = numbers
    return Rows(documents.view(count, room), places, first)


def rounded(count: int) -> int:
    """Up to a multiple of `MULTIPLE`; fewer than that stay as they are."""
    return count if count < MULTIPLE else -(-count // MULTIPLE) * MULTIPLE


def side_by_side(lengths: Sequence[int], places: int) -> Iterator[list[int]]:
    """The numbers of sequences that are padded to one length together, the longest first: as many at once as fill so
    many places, and at least one."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        count = max(1, places // lengths[order[start]])
        yield order[start : start + count]
        start += count


def padded(rows: Sequence[npt.NDArray[Any]], fill: int) -> Tensor:
    """Rows of whole numbers, int64 (n, T), with that many more behind the shorter ones."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def flattened(tokens: Tensor, lengths: Tensor) -> Tensor:
    """The tokens of padded texts (B, T) of `lengths` (B,), one after the other."""
    return tokens[torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]]


def embed(encoder: nn.Module, tokens: Tensor, lengths: Tensor, pooling: Pooling, room: int = 0) -> Tensor:
    """One vector per text, (n, width) in fp32 or wider: the mean of its hidden states, or that of its first token, or
    of its last one.

    The encoder makes hidden states (B, T, width) of tokens and document numbers (B, T); `tokens` (tokens in all,) are
    the texts one after the other, each with its start and end token, of `lengths` (n,), laid into rows of at least
    so much `room`. A table of token vectors leaves out those two tokens, and needs no rows.

    Tokens and lengths may be on the host, whatever the encoder is on: then nothing waits for that, since how they are
    laid depends on their numbers.
    """
    if isinstance(encoder, StaticEncoder):
        return encoder.pooled(tokens, lengths)
    device = next(encoder.parameters()).device
    rows = lay(lengths, room)
    laid = tokens.new_zeros(rows.documents.shape)
    laid.view(-1)[rows.places] = tokens
    documents = None if len(lengths) == 1 else rows.documents.to(device, non_blocking=True)
    hidden: Tensor = encoder(laid.to(device, non_blocking=True), documents).flatten(0, 1)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if pooling in ("cls", "last"):
        place = rows.first if pooling == "cls" else rows.first + lengths - 1
        return hidden.index_select(0, place.to(device, non_blocking=True)).to(wide)
    with torch.autocast(hidden.device.type, enabled=False):
        return _means(hidden[rows.places.to(device, non_blocking=True)].to(wide), lengths)


def _means(states: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the states (tokens in all, width) of each text, (n, width): a product with a matrix of shares, of a
    block of texts at a time, for it grows with the square of their number."""
    parts = torch.split(lengths, BLOCK)
    pooled = []
    for part, own in zip(parts, torch.split(states, [int(part.sum()) for part in parts]), strict=True):
        texts = torch.arange(len(part), device=part.device)
        owners = torch.repeat_interleave(texts, part)
        texts, owners, part = (each.to(states.device, non_blocking=True) for each in (texts, owners, part))
        share = (owners == texts[:, None]).to(states.dtype) / part[:, None]
        pooled.append(share @ own)
    return torch.cat(pooled)
