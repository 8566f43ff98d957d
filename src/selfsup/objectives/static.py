"""Tables of token vectors: from nothing, for `pairs` with model=static, and as the student of a text encoder, for
`distill` with it.

From nothing its vectors are drawn, and weighed by how rare their tokens are. A student starts from what the teacher
says of each token of its vocabulary alone (Tulkens and van Dongen 2024, "Model2Vec", github.com/MinishLab/model2vec),
weighed likewise:

e_i = c + s · a / (a + p_i) · (t_i − t̄)      t_i of the teacher, p_i the token's share of all, a = 10⁻⁴

(Arora et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", equation 3), where tokens are counted
in the data, and each once more, c is the mean of the teacher's vectors of the texts, t̄ that of the weighed tokens, and
s brings the means of tokens as near to those vectors as one factor can. From there it learns the teacher's vectors of
the texts as any student does.

A table that is narrower than the teacher's vectors lies in the space of their principal directions. These are
orthonormal, so that its lengths, distances and cosines are those of the vectors in the teacher's space.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selfsup.data.answers import Answers
from selfsup.data.cache import kept_file
from selfsup.data.loader import in_order
from selfsup.data.records import Records
from selfsup.data.shards import Tokens
from selfsup.errors import UserError
from selfsup.models.directories import find_model
from selfsup.models.huggingface import new_model, write_card
from selfsup.models.kinds import described, static
from selfsup.models.packing import flattened
from selfsup.models.parity import exactness
from selfsup.models.static import StaticConfig, StaticEncoder
from selfsup.models.static_files import write_static
from selfsup.models.transformer import TensorModule
from selfsup.objectives.recipe import Effort
from selfsup.objectives.text_networks import Card, TextNetwork

if TYPE_CHECKING:
    from selfsup.inference.encoder import EncoderModel

WIDEST = 384  # numbers of a token's vector, where nothing is said
STATIC_BATCH = 512  # texts: a step costs what the optimizer does with the whole table, whatever their number
RATE = 0.02  # learning rate, as a share of the deviation of the teacher's numbers
FRESH_RATE = 0.05  # and of drawn ones
SIF = 1e-4
SAMPLED = 4096  # texts from which the factor of the start is found, or the principal directions
FORMAT = 1  # of the vectors of single tokens in the cache; a change makes new ones


class Table(TextNetwork):
    """A table of token vectors, and what it leaves."""

    shape = ("width",)
    library = "sentence-transformers"
    own = True

    @property
    def width(self) -> int:
        return int(self.get("width"))

    @property
    def blocks(self) -> float:
        """What is added for a token."""
        return float(self.width)

    def settle_rate(self, deviation: float, share: float, origin: str) -> None:
        """A share of the deviation of a table's numbers. Nothing decays: tokens that no text has would fade."""
        rate = float(f"{share * deviation:.2g}")
        self.settings.settle("optim.lr", rate, origin)
        self.settings.settle("optim.adamw_lr", rate, origin)
        self.settings.settle("optim.weight_decay", 0.0, "recipe")

    def build(self, draws: torch.Generator) -> StaticEncoder:
        """With a table that is not filled yet, see `fill`."""
        around = (self.tokenizer.start, self.tokenizer.end)
        return StaticEncoder(StaticConfig(self.tokenizer.vocabulary, self.width, around=around))

    def shares(self, stream: Tokens) -> Tensor:
        """What share of a stream each token is, (vocabulary,); each is counted once more."""
        counts = np.bincount(np.asarray(stream), minlength=self.tokenizer.vocabulary)
        counts[[self.tokenizer.start, self.tokenizer.end]] = 0
        return torch.from_numpy((counts + 1) / (counts + 1).sum()).float()

    def describe(self) -> str:
        vocabulary = self.tokenizer.vocabulary
        return f"{vocabulary * self.width:,} parameters: {vocabulary:,} token vectors of {self.width} numbers"

    def card_facts(self) -> dict[str, str]:
        layout = "sentence-transformers' `StaticEmbedding`"
        return {"title": "A table of token vectors", "is": self.describe(), "layout": layout}

    def save(self, directory: Path, model: EncoderModel, card: Card, stream: Tokens) -> None:
        table = cast(StaticEncoder, model.network).embedding.weight
        with new_model(directory) as temporary:
            write_static(temporary, table, self.tokenizer.anew(), model.features)
            write_card(temporary, card(exactness(None, "sentence-transformers")))


class FreshTable(Table):
    """One that starts from nothing."""

    def reads(self) -> set[str]:
        return super().reads() | {"model.whiten"}

    def settle(self, effort: Effort, tokens: int) -> None:
        self.settings.settle("model.width", WIDEST, "recipe")
        self.settings.settle("model.whiten", True, "recipe")

    def settle_rates(self, adamw_lr: float) -> None:
        self.settle_rate(1.0, FRESH_RATE, "recipe")

    def fill(self, encoder: StaticEncoder, stream: Tokens, draws: torch.Generator) -> None:
        """Fill a table with drawn vectors, the rarer a token is in a stream the longer."""
        drawn = torch.randn(encoder.embedding.weight.shape, generator=draws)
        shares = self.shares(stream)
        encoder.load_state_dict({"embedding.weight": (SIF / (SIF + shares))[:, None] * drawn})

    def facts(self) -> dict[str, str]:
        return {"start": "drawn vectors, the rarer a token the longer"}


class StaticNetwork(Table):
    """A table for the vocabulary of a teacher."""

    answers: Answers
    alone: npt.NDArray[np.float32]  # what the teacher says of single tokens, (vocabulary, dimension)

    def ask(self, teacher: EncoderModel, precision: str, answers: Answers) -> None:
        """Ask a teacher about the tokens, which has given answers to texts."""
        self.answers, self.alone = answers, token_vectors(teacher, precision)

    def tokenizer_directory(self) -> Path:
        """Raises a UserError where the teacher is a table itself."""
        directory = find_model(self.settings["distill.teacher"])
        if static(directory):
            raise UserError(f"{directory} holds {described(directory)} already; give an encoder for it to learn from.")
        return directory

    @property
    def named(self) -> str:
        return f"The teacher {self.settings['distill.teacher']}"

    def settle(self, effort: Effort, tokens: int) -> None:
        """Raises a UserError where vectors are to be wider than the teacher's."""
        most = self.answers.dimension
        self.settings.settle("model.width", min(most, WIDEST), "teacher")
        if self.width > most:
            raise UserError(
                f"The vectors of {self.settings['distill.teacher']} have {most} numbers, so model.width cannot be "
                f"{self.width}; give {most} or less."
            )

    def settle_rates(self, adamw_lr: float) -> None:
        self.settle_rate(self.answers.spread.variance**0.5, RATE, "teacher")

    def fill(self, encoder: nn.Module, records: Records, stream: Tokens) -> None:
        """Fill a table with what it starts from, for records with answers, which are those of a stream of tokens."""
        config = cast(StaticEncoder, encoder).config
        table = self._first_table(config, records, stream) @ self._directions
        encoder.load_state_dict({"embedding.weight": table})

    def map(self) -> nn.Module:
        """From the vectors of the table into the teacher's space."""
        return nn.Identity() if self.width == self.answers.dimension else Basis(self._directions)

    @cached_property
    def _directions(self) -> Tensor:
        """The principal ones of the teacher's vectors of texts, (dimension, width), around zero; all where the table is
        as wide as these."""
        vectors = self.answers.vectors
        if self.width == self.answers.dimension:
            return torch.eye(self.width)
        some = np.unique(np.linspace(0, len(vectors) - 1, SAMPLED).astype(np.int64))
        return torch.from_numpy(principal(vectors[some], self.width))

    def _first_table(self, config: StaticConfig, records: Records, stream: Tokens) -> Tensor:
        """The vectors that the tokens start with, in the teacher's space, (vocabulary, dimension)."""
        rare = weighed(torch.from_numpy(self.alone), self.shares(stream))
        center = torch.tensor(self.answers.spread.center, dtype=torch.float32)
        return center + factor(rare, center, config.around, records) * rare

    def facts(self) -> dict[str, str]:
        return {"start": "what the teacher says of each token alone, by how rare it is"}


class Basis(TensorModule):
    """x · directionsᵀ: from the coordinates (n, width) of orthonormal directions (dimension, width) to vectors (n,
    dimension). The directions stay."""

    directions: Tensor

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.directions.to(x).T


def factor(rows: Tensor, center: Tensor, around: tuple[int, ...], records: Records) -> float:
    """By which the means of rows (V, d) come nearest to the answers of some records, both from their centers."""
    encoder = StaticEncoder(StaticConfig(len(rows), rows.shape[1], around=around))
    encoder.load_state_dict({"embedding.weight": rows})
    along = across = 0.0
    for batch in in_order(records, min(SAMPLED, len(records)), 0, STATIC_BATCH):
        tokens, lengths, answers = (batch.data[name] for name in ("tokens", "lengths", "answers"))
        with torch.no_grad():
            means = encoder.pooled(flattened(tokens, lengths), lengths)
        along += float((means * (answers - center)).sum())
        across += float(means.square().sum())
    return along / across if along > 0 else 1.0


def weighed(alone: Tensor, shares: Tensor) -> Tensor:
    """The vectors (V, d) of tokens that are `shares` (V,) of all, each from their weighed mean, and the rarer the
    longer (Arora et al. 2017, equation 3)."""
    weights = SIF / (SIF + shares)
    mean = (weights * shares) @ alone / (weights * shares).sum()
    return weights[:, None] * (alone - mean)


def principal(vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """The orthonormal directions (d, width) along which vectors (n, d) are longest, the first the most."""
    wide = vectors.astype(np.float64)
    _, directions = np.linalg.eigh(wide.T @ wide)
    return np.ascontiguousarray(directions[:, ::-1][:, :width], np.float32)


def token_vectors(teacher: EncoderModel, precision: str) -> npt.NDArray[np.float32]:
    """What a teacher says of each token of its vocabulary, alone between what stands around texts, (V, dimension);
    asked once, and kept in the cache."""

    def ask(path: Path) -> None:
        framed = [teacher.tokenizer.frame([token]) for token in range(teacher.tokenizer.vocabulary)]
        np.save(path, teacher.embed_framed(framed, precision))

    key = (FORMAT, teacher.fingerprint, precision)
    return np.asarray(np.load(kept_file("tokens", "vectors.npy", key, ask), allow_pickle=False))
