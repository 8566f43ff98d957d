"""What a model of a run writes, by the run's directory: texts that go on from prompts, and hidden words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as

if TYPE_CHECKING:
    from selfsup.inference.encoder import Candidate

MOST_PROMPTS = 16 << 20  # bytes of a file of prompts


@checked
def generate(
    run: str | Path,
    prompts: str | Sequence[str] | None = None,
    *,
    file: str | Path | None = None,
    tokens: int = 200,
    stop: str | Sequence[str] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stream: Callable[[int, str], None] | None = None,
    precision: str = "auto",
) -> list[str]:
    """The text that the model of a run, or of a model directory, writes behind each prompt.

    Args:
        prompts: texts to go on from; none is one empty prompt.
        file: in their place, a file with a prompt on each line; `-` is the standard input.
        tokens, stop, temperature, top_k, top_p, min_p, repetition_penalty, seed, stream, precision: as
            `LanguageModel.generate` takes them.

    Raises:
        UserError: no model that writes, prompts that cannot be read, an argument out of range.
    """
    starts = prompts_of(prompts, file)
    texts = load_as(run, LanguageModel).generate(
        starts, tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, stream, precision
    )
    return [texts] if isinstance(texts, str) else texts


@checked
def fill(run: str | Path, text: str, top: int = 5) -> list[list[Candidate]]:
    """The likeliest words in each place of a text that says [MASK], as the model of a run sees it. Raises UserError
    where the model fills in no words, the text has no such place, or `top` is below 1."""
    return load_as(run, EncoderModel).fill(text, top)


def prompts_of(prompts: str | Sequence[str] | None, file: str | Path | None) -> list[str]:
    """The prompts that are given by themselves or in a file; one that is empty where there are none."""
    if file is None:
        return [prompts] if isinstance(prompts, str) else list(prompts or [""])
    if prompts:
        raise UserError("Prompts are given both by themselves and by --prompts; give them in one way.")
    return read_prompts(str(file))


def read_prompts(file: str) -> list[str]:
    """The lines of a file, or of the standard input for `-`; an empty line is a prompt that starts from nothing. Raises
    UserError where it cannot be read, is no text in UTF-8, holds no line, or more than `MOST_PROMPTS` bytes."""
    given = file == "-"
    name = "The standard input" if given else file
    try:
        data = sys.stdin.buffer.read(MOST_PROMPTS + 1) if given else read_bytes(expanded(file), MOST_PROMPTS)
        lines = data.decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"Cannot read the prompts in {file}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name} holds bytes that are no UTF-8, in line {line}; give the prompts in UTF-8.") from None
    if not data or len(data) > MOST_PROMPTS:
        raise UserError(f"{name} holds {len(data):,} bytes of prompts; give 1 to {MOST_PROMPTS:,}.")
    return [line.removesuffix("\r") for line in lines]
