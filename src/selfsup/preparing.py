"""`selfsup.prepare`: from texts to a prepared corpus, which `selfsup.train` reads block by block."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from selfsup.arguments import checked
from selfsup.config import Settings, shown
from selfsup.data.origins import absolute
from selfsup.data.tokenizers import KINDS
from selfsup.errors import UserError
from selfsup.objectives import DEFAULT, RECIPES, find_recipe, recipe_of, resolve
from selfsup.objectives.recipe import Recipe
from selfsup.objectives.texts import TextRecipe
from selfsup.report import Progress

# What is decided when a corpus is prepared; all else is decided when it is trained on.
DECIDED = {
    "objective",
    *(f"data.{name}" for name in ("source", "column", "split", "tokenizer", "vocabulary", "validation", "failures")),
    "train.seed",
}


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus that is ready, where it lies, and what it holds."""

    directory: Path
    objective: str
    documents: int
    training_tokens: int
    validation_tokens: int
    shards: int
    vocabulary: int
    left_out: dict[str, int]  # documents, by why

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "directory": str(self.directory)}

    def rows(self) -> dict[str, str]:
        """The same for people."""
        left_out = ", ".join(f"{count:,} {what}" for what, count in self.left_out.items())
        return {
            "documents": f"{self.documents:,}" + (f" (left out: {left_out})" if left_out else ""),
            "tokens": f"{self.training_tokens:,} for training, {self.validation_tokens:,} held out, "
            f"vocabulary {self.vocabulary:,}",
            "shards": f"{self.shards:,}, in {self.directory}",
        }


@checked
def prepare(
    objective: str | None = None,
    *,
    out: str | Path,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    duplicates: str = "keep",
    progress: Progress = lambda done, total: None,
    **settings: Any,
) -> PreparedCorpus:
    """Encode texts once, into shards that any number of trainings read. The same call, on any machines that see the
    directory, works with those that have begun; after a stop it goes on; on a corpus that is whole it does nothing.

    Args:
        objective: one that trains on windows of text, such as masked-lm; causal-lm where it is not said.
        out: the directory of the corpus.
        data: a file, folder, pattern, sample:NAME or hub:NAME; the bundled text where it is not said.
        tokenizer: as in a training.
        workers: processes of this machine; as many as it has cores, where it is not said. More than one import the
            program that calls, which has to stand behind `if __name__ == "__main__":`.
        duplicates: `keep`; `exact`: of documents that are equal only the first one stays; `near`: nor of those that
            say nearly the same (`selfsup.data.duplicates`).
        progress: called with bytes of text that are done, and all where they are known.
        settings: data.column, split, vocabulary, validation, failures and train.seed, as in a training.

    Raises:
        UserError: whatever the user can put right.
    """
    from selfsup.data.corpora import Choices, Duplicates
    from selfsup.data.preparing import prepare_corpus

    if duplicates not in get_args(Duplicates):
        raise UserError(f"duplicates is {shown(duplicates)}; give one of {', '.join(get_args(Duplicates))}.")
    given = {"objective": objective or DEFAULT, "data.source": data, "data.tokenizer": tokenizer, **settings}
    resolved = resolve(("given", {key: value for key, value in given.items() if value is not None}))
    recipe = _recipe(resolved)
    chosen = resolved.config.data
    choices = Choices(
        objective=recipe.name,
        family=recipe.family,
        source=absolute(chosen.source),
        column=chosen.column,
        split=chosen.split or "training",
        tokenizer=chosen.tokenizer if chosen.tokenizer in KINDS else absolute(chosen.tokenizer),
        vocabulary=chosen.vocabulary,
        validation=chosen.validation,
        failures=chosen.failures,
        seed=resolved["train.seed"],
        duplicates=duplicates,
    )
    manifest = prepare_corpus(choices, out, workers or _cores(), progress).manifest
    return PreparedCorpus(
        directory=Path(out),
        objective=recipe.name,
        documents=manifest.facts.documents,
        training_tokens=manifest.facts.training_tokens,
        validation_tokens=manifest.facts.validation_tokens,
        shards=len(manifest.train) + len(manifest.validation),
        vocabulary=manifest.facts.vocabulary,
        left_out=manifest.left_out,
    )


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _recipe(settings: Settings) -> type[TextRecipe]:
    """The recipe of the objective. Raises UserError: it trains on no windows of text, or a setting says nothing yet."""
    for key, where in settings.sources.items():
        if key not in DECIDED:
            raise UserError(f"{key} ({where}) is decided when a corpus is trained on; leave it out.")
    recipe: type[Recipe] = recipe_of(settings)
    if not (issubclass(recipe, TextRecipe) and recipe.in_streams):
        streams = [name for name in RECIPES if getattr(find_recipe(name), "in_streams", False)]
        raise UserError(f"{recipe.name} does not train on a prepared corpus; these do: {', '.join(streams)}.")
    return recipe
