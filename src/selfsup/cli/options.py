"""What all commands share: their options, and how they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from selfsup.errors import UserError

app = typer.Typer(
    help="Self-supervised learning: point it at unlabelled data, leave with a model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OBJECTIVE] [KEY=VALUE]...", help="such as causal-lm model.layers=8"),
]
Data = Annotated[str | None, typer.Option(help="file, folder, glob, hub:NAME or sample:NAME")]
Budget = Annotated[str | None, typer.Option(help="wall time of the whole run: 90s, 10m, 1h30m")]
Steps = Annotated[int | None, typer.Option(help="optimizer updates")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data")]
Batch = Annotated[int | None, typer.Option(help="records per step, over all processes")]
Seed = Annotated[int | None, typer.Option(help="seed of everything random")]
Tokenizer = Annotated[
    str | None, typer.Option(help="bpe, wordpiece, characters, words, or a tokenizer.json, directory or run")
]
Init = Annotated[str | None, typer.Option(help="a run or Hugging Face directory to start from")]
ImageInit = Annotated[str | None, typer.Option(help="the same, of an image tower (as --init)")]
TextInit = Annotated[str | None, typer.Option(help="the same, of a text tower")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="a YAML file, such as a run's config.yaml")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16")]
Column = Annotated[str | None, typer.Option(help="the column of the texts or images")]
Failures = Annotated[
    float,
    typer.Option(
        help="most of the records, as a share of 1, that may be unreadable; they are left out, counted and named",
        min=0,
        max=1,
    ),
]
Label = Annotated[str | None, typer.Option(help="the column of the class")]
Id = Annotated[
    str | None, typer.Option("--id", help="the column of ids; without it a record goes by its place")
]
Chunk = Annotated[int, typer.Option("--batch", help="records embedded, and kept when interrupted, together")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Templates = Annotated[
    list[str] | None,
    typer.Option(help="texts around the name of a class, {} in its place; by default the name alone"),
]


class Command(TyperCommand):
    """A command whose options that may be repeated take several values at once: `--labels cat dog`.

    So what else is given stands before them, or behind another option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        spread: list[str] = []
        current = None  # the option whose values follow
        for number, word in enumerate(args):
            if word.startswith("-"):
                current = word if word in several else None
            elif current is not None and args[number - 1] != current:
                spread.append(current)
            spread.append(word)
        return super().parse_args(ctx, spread)


def split_words(
    words: list[str] | None,
    budget: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    seed: int | None = None,
    tokenizer: str | None = None,
    init: str | None = None,
    image_init: str | None = None,
    text_init: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    column: str | None = None,
) -> tuple[str | None, dict[str, Any]]:
    """The objective (the first word without `=`), and every setting that was given, by its dotted key."""
    from selfsup.config import SHORT, Config, flatten, known_keys, nearest, parse_overrides

    words = list(words or [])
    objective = next((word for word in words if "=" not in word), None)
    if objective is not None:
        words.remove(objective)
    if init is not None and image_init is not None:
        raise UserError("--init and --image-init say the same; give one of them.")
    flags = {
        "budget": budget,
        "steps": steps,
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "tokenizer": tokenizer,
        "init": init,
        "image_init": image_init,
        "text_init": text_init,
        "device": device,
        "precision": precision,
        "column": column,
    }
    given = dict(flatten({name: value for name, value in flags.items() if value is not None}))
    overrides = dict(flatten(parse_overrides(words)))
    if twice := given.keys() & overrides.keys():
        raise UserError(f"{min(twice)} is given twice, as an option and as key=value; give it once.")
    settings = given | overrides
    unknown = sorted(key for key in settings if "." not in key and key not in Config.model_fields)
    if unknown:  # or a keyword of the function in Python
        raise UserError(
            f"Unknown key '{unknown[0]}' (command line){nearest(unknown[0], [*known_keys(), *SHORT])}"
        )
    named = settings.pop("objective", None)
    if objective is not None and named is not None:
        raise UserError(f"The objective is given twice, {objective} and {named}; give it once.")
    return objective or named, settings


def free_name(name: str, suffix: str) -> Path:
    """A file here that is not there yet: name.html, name-2.html, …"""
    names = (Path(f"{name}{number}{suffix}") for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    return next(path for path in names if not path.exists())
