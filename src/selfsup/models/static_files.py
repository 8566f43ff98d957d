"""Tables of token vectors as directories that stock sentence-transformers opens: read and written.

DIR/modules.json        its one step, a `StaticEmbedding`
DIR/model.safetensors   `embedding.weight` (vocabulary, width)
DIR/tokenizer.json      of which nothing stands around a text

Sentence-transformers may have the latter two in a directory of their own. Those of model2vec are read too: `embeddings`
(rows, width), the row of each token, `mapping` (vocabulary,), and what it weighs, `weights` (vocabulary,).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from selfsup.models.directories import FLOATS, WEIGHTS, damaged, inside, read_safetensors, table_place
from selfsup.models.features import Features
from selfsup.models.huggingface import Tokenizer, write_weights
from selfsup.models.sentence_transformers import write_table_steps

TABLE = "embedding.weight"
ROWS, MAPPING, SHARES = "embeddings", "mapping", "weights"  # names of model2vec
MOST_NUMBERS = 1 << 30  # of a table whose tokens share rows: the file of one may be far smaller


def write_static(
    directory: Path, table: Tensor, tokenizer: Tokenizer, features: Features, normalized: bool = False
) -> None:
    """Write what stock `SentenceTransformer` opens into a directory that exists; a last step normalises the vectors
    where they are to be."""
    write_weights(directory / WEIGHTS, {TABLE: table})
    tokenizer.save(directory)
    features.write(directory)
    write_table_steps(directory, features, normalized)


def read_static(directory: Path) -> Tensor:
    """The table (vocabulary, width) of a directory of sentence-transformers or model2vec, in fp32. Raises UserError
    where it holds none, or it is damaged."""
    path = static_file(directory, WEIGHTS)
    tensors = read_safetensors(path)
    known = {TABLE} if TABLE in tensors else {ROWS, MAPPING, SHARES}
    if others := sorted(tensors.keys() - known):
        raise damaged(f"{path} holds {others[0]}, which no table of token vectors has")
    table = tensors.pop(TABLE, tensors.get(ROWS, torch.empty(0)))
    if table.ndim != 2 or table.dtype not in FLOATS or not table.numel():
        raise damaged(f"{path} holds no table of token vectors ({TABLE} or {ROWS})")
    return _folded(table, tensors.get(MAPPING), tensors.get(SHARES), path).float()


def static_file(directory: Path, name: str) -> Path:
    """A file of a table, where the directory keeps it."""
    place = table_place(directory)
    assert place is not None
    return inside(directory, (place / name).relative_to(directory).as_posix())


def _folded(rows: Tensor, mapping: Tensor | None, shares: Tensor | None, path: Path) -> Tensor:
    """The vector of each token: the row that it has, times what it weighs, in the precision of the rows."""
    if mapping is not None:
        if mapping.ndim != 1 or mapping.is_floating_point() or not _within(mapping, len(rows)):
            raise damaged(f"{path} gives tokens rows that the table has not ({MAPPING})")
        if len(mapping) * rows.shape[1] > MOST_NUMBERS:
            raise damaged(f"{path} gives {len(mapping):,} tokens rows of {rows.shape[1]:,} numbers, which no model has")
        rows = rows[mapping.long()]
    if shares is None:
        return rows
    if shares.shape != rows.shape[:1] or shares.dtype not in FLOATS:
        raise damaged(f"{path} does not weigh each token ({SHARES})")
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (wide * shares[:, None]).to(rows.dtype)


def _within(numbers: Tensor, count: int) -> bool:
    return not len(numbers) or bool((numbers.min() >= 0) & (numbers.max() < count))
