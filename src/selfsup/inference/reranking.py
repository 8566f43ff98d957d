"""Hits of a search in another order: that of a cross-encoder, which reads each together with the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selfsup.errors import UserError
from selfsup.inference.hits import Hit

if TYPE_CHECKING:
    from selfsup.inference.cross_encoder import CrossEncoderModel


def reranked(hits: Sequence[Hit], query: str, model: CrossEncoderModel) -> list[Hit]:
    """All hits, those first that answer the query best by a cross-encoder; of equal ones the nearer first. Raises
    UserError where one has no text."""
    if without := next((hit for hit in hits if not hit.text), None):
        raise UserError(f"{without.source} has no text, and a cross-encoder reads nothing else; leave out --rerank.")
    if not hits:
        return []
    logits = model.logits(query, [hit.text for hit in hits])
    scores = model.squashed(logits)
    order = sorted(range(len(hits)), key=lambda number: -logits[number])
    return [replace(hits[number], reranked=float(scores[number])) for number in order]
