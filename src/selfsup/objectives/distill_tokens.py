"""Distillation of decoders: a student says of each next token what a teacher says of it: which may come, how likely.

L = Σ_t (1 − a) · T² · H(p_t, q_t) − a · log q_t(x_t)          H(p, q) = −Σ_v p(v) log q(v) = KL(p ‖ q) + H(p)

p_t, q_t: the distributions of teacher and student at temperature T, given x_<t (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network", section 2). H(p) is the teacher's alone, so the gradient is that of the forward KL, and
at T = 1 a student that knows nothing costs ln V, whatever its teacher. With T = 1 and a = 0, the defaults, what the
teacher says takes the place of the token that came, as in Busbridge et al. (2025, "Distillation Scaling Laws",
arXiv:2502.08606). The windows, and who sees whom in them, are those of causal LM.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import DistillConfig, Rate, Real
from selfsup.data.records import Batch
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as
from selfsup.models.decoder import Decoder
from selfsup.models.directories import find_model
from selfsup.models.losses import Said, cap_of, linear_distillation
from selfsup.objectives.base import Collectives, Outputs, Task
from selfsup.objectives.causal_lm import ADAMW_LR, CausalLM, Writing, apart
from selfsup.objectives.checks.teachers import teacher_outdone
from selfsup.objectives.held import HoldsTeacher
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import power_of_two
from selfsup.objectives.teachers import beside_teacher, open_teacher
from selfsup.objectives.texts import TextRecipe, take_tokenizer

FIGURES = ("divergence", "cross_entropy", "teacher_cross_entropy")  # that no gradient comes from


class DistillTokensSettings(DistillConfig):
    temperature: Rate = Field(1.0, description="by which the logits of both are divided")
    hard: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.0, description="share of the ordinary loss, of the token that came"
    )


class TokenDistillation(HoldsTeacher, CausalLM):
    """Causal LM whose targets are a teacher's distributions.

    Args:
        model: the student; see `CausalLM`.
        teacher: another such model of the same tokens, which stands still.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, start: int, end: int, temperature: float, hard: float
    ) -> None:
        super().__init__(model, start, end)
        self.temperature, self.hard = temperature, hard
        self.weights = dict.fromkeys(FIGURES, 0.0)
        self.hold(teacher)

    def hide(self, batch: Batch) -> Task:
        task = super().hide(batch)
        predicted = task.counts["cross_entropy"]
        return Task(task.tensors, dict.fromkeys(("distillation", *FIGURES), predicted))

    def predict(self, task: Task) -> Outputs:
        """Hidden states of the student (B, T, width) and of the teacher (B, T, width')."""
        with torch.no_grad():
            taught = self.teacher(task["inputs"], apart(task))
        return {**super().predict(task), "taught": taught}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        student, teacher = (
            Said(outputs[name].flatten(0, 1), cast(Tensor, model.output_weight), cap_of(model))
            for name, model in (("hidden", self.model), ("taught", self.teacher))
        )
        found = linear_distillation(student, teacher, task["targets"].flatten(), self.temperature, self.hard)
        return dict(zip(("distillation", *FIGURES), found, strict=True))


class TokenDistillationRecipe(Writing, TextRecipe):
    """From a text source and a decoder to another decoder that writes as that does."""

    name = "distill"
    section = DistillTokensSettings
    idea = "a student says of each next token what a teacher says of it: which may come, and how likely each is"
    checks = (teacher_outdone,)

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("distill", DistillTokensSettings)

    # -- the teacher ---------------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> LanguageModel:
        return open_teacher(self.settings, partial(load_as, kind=LanguageModel))

    def open_tokenizer(self) -> TextTokenizer | None:
        """The teacher's; raises a UserError where the student brings another one."""
        named, own = self.settings["distill.teacher"], self.teacher.tokenizer
        if self.tokenizer is None and self.network.tokenizer_directory() is None:
            take_tokenizer(self.settings, find_model(named), f"The teacher {named}")
            return own.anew()
        given = super().open_tokenizer()
        if given is not None and not given.agrees(own):
            raise UserError(
                f"{self.network.named} and the teacher {named} have different tokenizers, so that one cannot say the "
                "other's tokens; give a student with the teacher's tokenizer, or leave its weights out for a fresh one."
            )
        return given

    def _teacher_flops(self, window: int) -> float:
        """Of a token in windows of so many, on the teacher's way there; of one of others, two for each parameter."""
        decoder = self.teacher.decoder
        if isinstance(decoder, Decoder):
            return decoder.flops(window) / 3
        return 2.0 * sum(parameter.numel() for parameter in decoder.parameters())

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        self.settle_network(beside_teacher(effort, self._teacher_flops(1)))
        left = self._for_tokens(effort)
        self.settle_window(left)
        self.cut()
        self.settle_batch(left)
        self.network.settle_rates(ADAMW_LR)

    def _for_tokens(self, effort: Effort) -> Effort:
        """What is left of operations for the student, now that its size is known."""
        if effort.flops is None:
            return effort
        own = 6 * self.network.blocks
        return replace(effort, flops=effort.flops * own / (own + self._teacher_flops(1)))

    def settle_window(self, effort: Effort) -> None:
        """No longer than the teacher reads; raises a UserError where it is said to be."""
        given, most = self.settings["data.window"], self.teacher.decoder.config.window
        if given is not None and given > most:
            raise UserError(
                f"The teacher {self.settings['distill.teacher']} reads at most {most} tokens, so data.window cannot be "
                f"{given}; give {most} or less."
            )
        super().settle_window(effort)
        if self.settings["data.window"] > most:
            self.settings.change("data.window", power_of_two(most), "teacher")

    def flops_per_record(self) -> float:
        window = self.settings["data.window"]
        return float(super().flops_per_record() + self._teacher_flops(window) * window)

    # -- the objective -------------------------------------------------------------------------------------

    def objective_on(self, network: nn.Module) -> TokenDistillation:
        tokenizer, options = self.corpus.tokenizer, self.options
        marks = tokenizer.start, tokenizer.end
        return TokenDistillation(network, self.teacher.decoder, *marks, options.temperature, options.hard)

    def chance(self, records: int) -> float:
        """Of a student to which all tokens are alike."""
        share = (1 - self.options.hard) * self.options.temperature**2 + self.options.hard
        return float(share * super().chance(records))

    def facts(self) -> dict[str, str]:
        decoder, options = self.teacher.decoder, self.options
        parameters = sum(parameter.numel() for parameter in decoder.parameters())
        hard = f", {options.hard:.0%} of the loss that of the token that came" if options.hard else ""
        return super().facts() | {
            "teacher": f"{parameters:,} parameters in {self.settings['distill.teacher']}, the distribution of every "
            f"next token at temperature {options.temperature:g}{hard}"
        }

    @property
    def method(self) -> str:  # type: ignore[override]
        return f"distillation of {Path(self.settings['distill.teacher']).name}"
