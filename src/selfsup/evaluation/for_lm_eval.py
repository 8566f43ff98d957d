"""A decoder as the lm-evaluation-harness takes a model (Gao et al. 2024), without an export:

    lm_eval.simple_evaluate(model=lm_eval_model("runs/books"), tasks=["lambada_openai"])

lm_eval is no dependency. A text is read behind what the tokenizer of the model puts before it, an empty one behind the
start token; what is longer than the window loses its beginning, but for `loglikelihood_rolling`, which loses no token.
So does the harness's own class for models of transformers, `hf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as
from selfsup.machine import Machine, find_device, find_precision
from selfsup.models.losses import cap_of, capped
from selfsup.models.packing import padded, side_by_side

TOKENS = 4096  # read at once, padding included
LOGITS = 1 << 26  # in memory at once
NEW_TOKENS = 256  # that a task wants where it does not say how many
# What a task may say of how it wants a text to be written.
WRITING = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


class Scored(NamedTuple):
    """Tokens that begin with what is given, of which the last so many are predicted."""

    tokens: list[int]
    predicted: int


class DecoderRequests:
    """What `lm_eval.api.model.LM` asks of a model, answered by a decoder. A request has its arguments as `args`."""

    def __init__(self, model: LanguageModel, precision: str = "auto") -> None:
        super().__init__()
        self.model, self.precision = model, precision

    @property
    def window(self) -> int:
        """Tokens that are read at once."""
        return self.model.decoder.config.window

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the logarithm of the probability of the continuation, and whether each of
        its tokens is the likeliest."""
        return self._answers([self._continued(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each (text,): the logarithm of its probability. One that is longer than the window is cut into windows
        that each begin with the token before; the last one begins early enough to be full."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        found = iter(self._answers([window for each in windows for window in each]))
        return [sum(next(found)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, how): what the model goes on with, up to the first of the texts `until`, the end of the
        document or `max_gen_toks` tokens; the likeliest token each time, unless `do_sample` asks to draw. Raises
        UserError for what cannot be done."""
        return [self._written(context, how) for context, how in (request.args for request in requests)]

    def _written(self, context: str, how: Mapping[str, Any]) -> str:
        if unknown := how.keys() - set(WRITING):
            raise UserError(f"A task asks to write with {min(unknown)}, and what is known is {', '.join(WRITING)}.")
        until = how.get("until") or []
        temperature = float(how.get("temperature", 1.0)) if how.get("do_sample") else 0.0
        drawn = {name: how[name] for name in ("top_k", "top_p") if how.get(name) is not None}
        drawn = drawn if temperature else {}
        tokens = int(how.get("max_gen_toks", NEW_TOKENS))
        return str(self.model.generate(context, tokens, temperature, stop=until, precision=self.precision, **drawn))

    def _continued(self, context: str, continuation: str) -> Scored:
        """White space at the end of a context belongs to the continuation, for so tokenizers have it."""
        kept, opened = context.rstrip(), self.model.tokenizer.opened
        given, ids = self.model.tokenizer.encode_batch([kept, context + continuation])
        before = opened(given)
        whole = opened(ids) if kept else [*before, *ids.tolist()]
        predicted = len(whole) - len(before)
        if predicted > self.window:
            raise UserError(f"A continuation has {predicted} tokens and the model a window of {self.window}.")
        return Scored(whole[-(self.window + 1) :], predicted)

    def _windows(self, text: str) -> Iterator[Scored]:
        before = self.model.tokenizer.opened([])
        tokens, done = [*before, *self.model.tokenizer.encode(text).tolist()], len(before)
        while done < len(tokens):
            end = min(done + self.window, len(tokens))
            yield Scored(tokens[max(0, end - self.window - 1) : end], end - done)
            done = end

    def _answers(self, asked: Sequence[Scored]) -> list[tuple[float, bool]]:
        """Of each, the sum of the logarithms of what is predicted, and whether all of it is the likeliest."""
        answers = [(0.0, True)] * len(asked)
        wanted = [number for number, one in enumerate(asked) if one.predicted]
        for places in side_by_side([len(asked[number].tokens) for number in wanted], TOKENS):
            numbers = [wanted[place] for place in places]
            for number, answer in zip(numbers, self._read([asked[number] for number in numbers]), strict=True):
                answers[number] = answer
        return answers

    @torch.inference_mode()
    def _read(self, asked: Sequence[Scored]) -> list[tuple[float, bool]]:
        """The same of some that are read side by side: what pads a row behind its end is seen by none of it."""
        decoder = self.model.decoder
        device = decoder.output_weight.device
        rows = padded([np.array(one.tokens[:-1]) for one in asked], 0).to(device)
        places = [(row, len(one.tokens) - 1 - one.predicted, len(one.tokens) - 1) for row, one in enumerate(asked)]
        with Machine(device, find_precision(self.precision, device), 0.0).autocast():
            hidden = decoder(rows)
            kept = torch.cat([hidden[row, first:last] for row, first, last in places])
        targets = torch.tensor([t for one in asked for t in one.tokens[-one.predicted :]], device=device)
        losses, likeliest = self._compared(kept, targets)
        counts = [one.predicted for one in asked]
        pairs = zip(torch.split(losses, counts), torch.split(likeliest, counts), strict=True)
        return [(-float(nats.double().sum()), bool(best.all())) for nats, best in pairs]

    def _compared(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """−log p of each target (n,), and whether it is the likeliest token, of hidden states (n, width)."""
        weight = self.model.decoder.output_weight.to(hidden.dtype)
        rows = max(1, LOGITS // len(weight))
        losses, likeliest = [], []
        for states, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logits = capped(states @ weight.T, cap_of(self.model.decoder)).float()
            losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
            likeliest.append(logits.argmax(1) == wanted)
        return torch.cat(losses), torch.cat(likeliest)


def lm_eval_model(path: str | Path, device: str = "auto", precision: str = "auto") -> Any:
    """The decoder of a run or a model directory, an `lm_eval.api.model.LM`. Raises UserError where there is none."""
    from lm_eval.api.model import LM

    model = load_as(path, LanguageModel)
    model.to(find_device(device))
    return type("SelfsupDecoder", (DecoderRequests, LM), {})(model, precision)
