"""A decoder in ONNX, with what it keeps of the tokens that it has read.

    input_ids, position_ids (batch, sequence); attention_mask (batch, past_sequence + sequence);
    past_key_values.N.key, past_key_values.N.value (batch, key and value heads, past_sequence, head dimension)
        →  logits (batch, sequence, vocabulary); present.N.key, present.N.value: the same with the new tokens behind

These are optimum's names. Nothing is past in the first call (a
`past_sequence` of 0). Texts of different lengths are padded before their beginnings. Beyond the trained window `selfsup
generate` lets go of the oldest tokens; whoever runs the graph does so, or stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfsup.exporting.onnx.graphs import Exportable
from selfsup.inference.generate import LanguageModel
from selfsup.models.attention import Placement, additive
from selfsup.models.decoder import Decoder, Sight
from selfsup.models.parity import Difference

LENGTHS = (12, 7)  # tokens of the texts that are compared


class Past:
    """Keys and values of earlier positions, (key, value) of each layer, that new ones are put behind."""

    def __init__(self, held: Sequence[tuple[Tensor, Tensor]], group: int) -> None:
        self._held, self._group = held, group
        self.present: list[Tensor] = []

    def extend(self, layer: int, keys: Tensor, values: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """All of a layer, each head as often as it serves one of the queries'."""
        both = [torch.cat(pair, 2) for pair in zip(self._held[layer], (keys, values), strict=True)]
        self.present += both
        first, second = (x if self._group == 1 else x.repeat_interleave(self._group, 1) for x in both)
        return first, second


class DecoderGraph(Exportable):
    """Tokens behind others to logits. Raises UserError where the decoder is no network of selfsup's."""

    given = "{'input_ids': …, 'attention_mask': …, 'position_ids': …, 'past_key_values.0.key': …, …}"

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        if not isinstance(model.decoder, Decoder):
            raise model.decoder.opened.refused("which is not written as ONNX here; optimum may do it")
        self.decoder = model.decoder
        layers = range(self.decoder.config.layers)
        kept = [(f"past_key_values.{n}.{part}", f"present.{n}.{part}") for n in layers for part in ("key", "value")]
        self.inputs = ["input_ids", "attention_mask", "position_ids", *(past for past, _ in kept)]
        self.outputs = ["logits", *(present for _, present in kept)]
        self.about = {"window": self.decoder.config.window, "ends": sorted(model.ends)}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        decoder, config = self.decoder, self.decoder.config
        known = {sight: self._placement(sight, attention_mask, position_ids) for sight in set(config.sights)}
        memory = Past(past, config.heads // config.kv_heads)
        hidden = decoder.states(input_ids, [known[sight] for sight in config.sights], memory)
        return decoder.head(hidden), *memory.present

    def _placement(self, sight: Sight, attention_mask: Tensor, positions: Tensor) -> Placement:
        """Of the newest tokens of a row, whose positions (batch, sequence) these are, among all that it has."""
        tables = self.decoder.config.tables(sight, positions.flatten(), self.decoder.output_weight.dtype)
        cos, sin = (table.view(*positions.shape, 1, -1) for table in tables)
        reached, fresh = attention_mask.shape[1], positions.shape[1]
        places = torch.arange(reached, device=positions.device)
        queries = (torch.arange(fresh, device=positions.device) + (reached - fresh))[:, None]
        visible = places <= queries
        if sight.reach is not None:
            visible = visible & (places > queries - sight.reach)
        visible = (visible & (attention_mask != 0)[:, None, None, :]) | (places == queries)
        return Placement(cos, sin, additive(visible, cos.dtype), sight.reach)

    def example(self) -> tuple[Any, ...]:
        config = self.decoder.config
        batch, held, fresh = 3, 5, 4  # which all differ, and none is 1: nothing is taken for fixed
        shape = (batch, config.kv_heads, held, config.head_dim)
        past = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.layers)]
        tokens, shown = torch.zeros(batch, fresh, dtype=torch.long), torch.ones(batch, held + fresh, dtype=torch.long)
        return tokens, shown, torch.arange(held, held + fresh).repeat(batch, 1), past

    def shapes(self) -> tuple[Any, ...]:
        new, held = {0: "batch", 1: "sequence"}, {0: "batch", 2: "past_sequence"}
        past = [(held, held) for _ in range(self.decoder.config.layers)]
        return new, {0: "batch", 1: "past_sequence + sequence"}, new, past

    def feeds(self, tokens: Tensor, shown: Tensor, past: Sequence[Any] = ()) -> dict[str, Any]:
        """The inputs of a call: new tokens (B, T) behind what an earlier call made of those before them; `shown` (B, S)
        says of all of them which are no padding."""
        config = self.decoder.config
        positions = (shown.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        nothing = torch.zeros(len(tokens), config.kv_heads, 0, config.head_dim).numpy()
        held = list(past) or [nothing] * (2 * config.layers)
        return dict(zip(self.inputs, (tokens.numpy(), shown.numpy(), positions.numpy(), *held), strict=True))

    @torch.inference_mode()
    def compare(self, session: Any) -> Difference:
        """On two texts of different lengths together, of tokens that are drawn: all but their last token, then that."""
        draws, longest = torch.Generator().manual_seed(0), max(LENGTHS)
        tokens = torch.randint(self.decoder.config.vocabulary, (len(LENGTHS), longest), generator=draws)
        shown = (torch.arange(longest) >= longest - torch.tensor(LENGTHS)[:, None]).long()
        first, *past = session.run(self.outputs, self.feeds(tokens[:, :-1], shown[:, :-1]))
        second, *_ = session.run(self.outputs, self.feeds(tokens[:, -1:], shown, past))
        found = torch.cat((torch.from_numpy(first), torch.from_numpy(second)), 1)
        return Difference.largest(
            Difference.between(self.decoder.logits(row[None, -length:])[0], logits[-length:])
            for row, logits, length in zip(tokens, found, LENGTHS, strict=True)
        )
