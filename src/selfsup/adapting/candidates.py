"""What may make a model better without labels: the one table of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfsup.adapting.photos import Photos
from selfsup.adapting.texts import PASSAGES, QUERY, Texts
from selfsup.evaluation import DECODER, IMAGES, PAIRS, TEXTS
from selfsup.models import kinds
from selfsup.models.directories import read_config

NATIVE = (  # types that --init takes
    *kinds.DECODERS,
    *kinds.ENCODERS,
    *kinds.SEEING,
    kinds.CONVOLVING,
    *kinds.PAIRS,
    kinds.TOWERS,
)
LONG = 200  # characters of a text that says more than a sentence


@dataclass(frozen=True)
class Subject:
    """What is adapted to what: a model directory, the kind of its model, and the data."""

    directory: Path
    kind: str
    data: Texts | Photos

    @property
    def type(self) -> str:
        """What its files call its architecture."""
        saved = read_config(self.directory)
        return str(saved.get("model_type") or saved.get("architecture"))

    @property
    def native(self) -> bool:
        """Whether its arithmetic stands here, so that objectives start from it by --init."""
        return self.type in NATIVE

    @property
    def start(self) -> dict[str, Any]:
        """The settings by which a training starts from it."""
        place = str(self.directory)
        if self.kind == PAIRS:
            return {"model": {"init": place}, "text": {"init": place}}
        if self.native:
            return {"model": {"init": place}}
        return {"model": {"preset": f"timm:{self.type}@{place}" if self.kind == IMAGES else f"hf:{place}"}}


@dataclass(frozen=True)
class Candidate:
    """A training that may help.

    Attributes:
        name: of its run directory.
        kind: of the models that it is for.
        why: what it learns from.
        unfit: why it is not for a model or its data; None where it is.
        settings: beside those that say where it starts.
    """

    name: str
    objective: str
    kind: str
    why: str
    unfit: Callable[[Subject], str | None] = lambda subject: None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _needs_native(subject: Subject) -> str | None:
    return (
        None if subject.native else f"it takes a model's own layers, and those of {subject.type} are no part of selfsup"
    )


def _needs_another(subject: Subject) -> str | None:
    return "it trains no convolutional network of selfsup's own" if subject.type == kinds.CONVOLVING else None


def _needs_patches(subject: Subject) -> str | None:
    return _needs_native(subject) or _needs_another(subject)


def _needs_adapters(subject: Subject) -> str | None:
    return _needs_native(subject) or (None if find_spec("peft") else "adapters need peft: pip install 'selfsup[lora]'")


def _needs_context(subject: Subject) -> str | None:
    if isinstance(subject.data, Texts) and subject.data.length < LONG:
        return f"half of the texts have less than {LONG} characters, so that little stands side by side"
    return None


def _needs_columns(subject: Subject) -> str | None:
    paired = isinstance(subject.data, Texts) and subject.data.pairs
    return None if paired else "no two columns of the data are seen to belong together"


CANDIDATES = (
    Candidate(
        "columns",
        "pairs",
        TEXTS,
        "the texts of a row find each other",
        _needs_columns,
        {"pairs": {"query": QUERY, "passage": PASSAGES}},
    ),
    Candidate(
        "neighbours",
        "pairs",
        TEXTS,
        "passages that stand side by side find each other",
        _needs_context,
        {"pairs": {"from": "neighbours"}},
    ),
    Candidate("tsdae", "tsdae", TEXTS, "a sentence is rebuilt from the vector of what is left of it", _needs_native),
    Candidate("simcse", "simcse", TEXTS, "a sentence finds itself among others"),
    Candidate("masked-lm", "masked-lm", TEXTS, "hidden words are told by those around them", _needs_context),
    Candidate("causal-lm", "causal-lm", DECODER, "every word is told by those before it, all weights trained"),
    Candidate(
        "causal-lm-lora",
        "causal-lm",
        DECODER,
        "the same by adapters of low rank, which forget less",
        _needs_adapters,
        {"model": {"lora": 16}},
    ),
    Candidate("simclr", "simclr", IMAGES, "two views of an image find each other among others"),
    Candidate("dino", "dino", IMAGES, "the parts of an image tell what a teacher says of the whole", _needs_another),
    Candidate("mae", "mae", IMAGES, "hidden patches are filled in from the others", _needs_patches),
    Candidate("clip", "clip", PAIRS, "images and their captions find each other"),
)
