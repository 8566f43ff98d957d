"""Pairs of texts as training data: texts that belong together by the structure of the data.

Where they come from (`Origin`): `columns`, two columns of a table, each row a pair; `title`, the heading of a document
(a column of titles, else its first line) with the rest of it; `neighbours`, adjacent passages of a document, of whole
sentences; `crops`, two random crops of a document (Izacard et al. 2022, "Unsupervised Dense Information Retrieval with
Contrastive Learning", section 3.1).

A source is prepared once, whatever the windows will be: its texts are encoded one behind the other, in groups of what
belongs together. Pairs that share a text are held out together, so that no text of a held-out pair trains.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from selfsup.data.cache import kept
from selfsup.data.columns import JUDGEMENT_COLUMNS, TITLE_COLUMNS, described, pair_columns, usual
from selfsup.data.parts import Malformed, Values, as_text, head_of, is_blank
from selfsup.data.sentences import RULE, split_sentences
from selfsup.data.sources import Table, TextColumns
from selfsup.data.split import hold_out
from selfsup.data.text import TextCorpus, TextFacts, batches_of, given_tokenizer, part_of, read_facts, write_facts
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizer_training import Training, train_tokenizer
from selfsup.data.tokenizers import Family, Ids, Kind, TextTokenizer
from selfsup.errors import UserError
from selfsup.report import Progress
from selfsup.seeding import mix

FORMAT = 1  # of a cache entry and of the rules that make it; a change makes new entries
Origin = Literal["columns", "title", "neighbours", "crops"]
HEADING_MARKS = " \t\r#=*_"  # of Markdown and wikis, around a heading
MOST_TOGETHER = 0.5  # of the pairs: more of them that hang together are never held out
HOW = "name them with pairs.query and pairs.passage"

Numbers = npt.NDArray[np.int64]


# -- where pairs come from -----------------------------------------------------------------------------------


@dataclass(eq=False)
class PairTable(Table):
    """A source whose records are groups of texts that belong together; see `open_text_pairs`."""

    origin: Origin = "neighbours"
    query: str | None = None  # columns of a pair
    passage: str | None = None

    @property
    def of_documents(self) -> bool:
        """Whether its groups are documents, which pairs are cut from later."""
        return self.origin in ("neighbours", "crops")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of a pair; () of other origins."""
        return (str(self.query), str(self.passage)) if self.origin == "columns" else ()

    @cached_property
    def title(self) -> str | None:
        """The column of titles, where there is one beside the text's."""
        text = self.text_columns.name
        return next((name for name in usual(TITLE_COLUMNS, self.columns) if name != text), None)

    @property
    def text_columns(self) -> TextColumns:
        """Of pairs of columns, none is the text's."""
        return TextColumns((), None, ()) if self.names else super().text_columns

    @property
    def notes(self) -> dict[str, str]:
        return {"pairs": self.told(), **super().notes}

    def told(self) -> str:
        """What belongs together, in words."""
        if self.origin == "columns":
            query, passage = self.names
            read = {head_of(name, self.columns) for name in self.names}
            others = [name for name in self.columns if name not in read]
            return f"{query!r} with {described(passage, others)}"
        if self.origin == "title":
            heading = "the first line of a document" if self.title is None else repr(self.title)
            return f"{heading} with {'the rest of it' if self.title is None else 'its text'}"
        what = "adjacent passages of whole sentences" if self.origin == "neighbours" else "two random crops"
        return f"{what} of a document"

    def fingerprint(self) -> str:
        """Of all columns that are read and of how pairs are made of them."""
        title = (self.title,) if self.origin == "title" and self.title else ()
        read: tuple[str | None, ...] = self.names or (self.column, *title)
        parts = (self.origin, RULE if self.of_documents else 0, *map(self._fingerprint, read))
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def groups(self) -> Iterator[list[str]]:
        """What belongs together: both texts of a pair; or the sentences of a document, with the space before them.

        A row that lacks one of its texts counts as one that cannot be read. Raises a UserError as `Table.rows`.
        """
        if self.origin == "columns":
            for row in self.rows(self.names, check=partial(_lacking, self.names)):
                yield [cast(str, as_text(row.values[name])) for name in self.names]
        elif self.origin == "title":
            columns = [self.title] if self.title else []
            for text, row in self.texts(optional=columns, check=partial(_without_body, self.title)):
                yield cast(list[str], titled(text, row.values.get(str(self.title))))
        else:
            for document in self.documents():
                first, *others = split_sentences(document)
                yield [first, *(f" {sentence}" for sentence in others)]


def open_text_pairs(
    source: object,
    column: str | None = None,
    failures: float = 0.01,
    split: str | None = None,
    origin: Origin | None = None,
    query: str | None = None,
    passage: str | None = None,
) -> PairTable:
    """Open any source that `open_text` takes as pairs of texts; nothing but its start is read yet.

    Args:
        column: of the documents; see `open_text`, as for `failures` and `split`.
        origin: where pairs come from; by default the columns that are named, else two of usual names where it is clear
            which (`selfsup.data.columns.PAIR_COLUMNS`), else neighbours.
        query, passage: the columns of a pair.

    Raises:
        UserError: what `open_text` raises; names that do not fit; it is not clear which columns are a pair.
    """
    named = [name for name in (query, passage) if name is not None]
    if len(named) == 1:
        raise UserError(f"A pair has two columns and {named[0]!r} is one; {HOW}, both.")
    if named and (column is not None or origin not in (None, "columns")):
        other = "data.column" if column is not None else f"pairs.from={origin}"
        raise UserError(f"pairs.query and pairs.passage name the columns of pairs; leave {other} out.")
    table = PairTable.of(source, column, failures, split)
    if not named and column is None and origin in (None, "columns"):
        named = usual_pair(table)
    if origin == "columns" and not named:
        there = ", ".join(map(str, table.columns)) or "none"
        raise UserError(f"{table.name} has no two columns of usual names (there are {there}); {HOW}.")
    if named:
        return replace(table, origin="columns", query=named[0], passage=named[1])
    return replace(table, origin=origin or "neighbours")


def usual_pair(table: Table) -> list[str]:
    """The two columns of usual names, [] where there are none; raises a UserError where it is not clear which, or
    whether all rows belong together."""
    rows = next((part.sample().rows for part in table.parts if part.text is None), [])
    found = pair_columns(table.columns, rows)
    if len(found) > 1:
        listed = ", ".join(" with ".join(pair) for pair in found)
        raise UserError(f"{table.name} has several columns that may be pairs ({listed}); {HOW}.")
    if found and (judged := usual(JUDGEMENT_COLUMNS, table.columns)):
        one, other = found[0]
        raise UserError(
            f"{table.name} has {one!r} and {other!r} with {judged[0]!r}, so not all of its rows need belong together; "
            f"leave out those that do not, and {HOW}."
        )
    return list(found[0]) if found else []


def titled(text: str, title: object) -> list[str] | None:
    """The heading of a document and the rest of it; None where there is no rest."""
    if isinstance(title, str) and not is_blank(title):
        return [title, text]
    heading, _, body = text.strip().partition("\n")
    return None if is_blank(body) else [heading.strip(HEADING_MARKS) or heading.strip(), body.strip()]


def _lacking(names: Sequence[str], values: Values) -> str | None:
    for name in names:
        text = as_text(values[name])
        if isinstance(text, Malformed):
            return f"the {name} is no text"
        if is_blank(text):
            return f"the {name} is empty"
    return None


def _without_body(title: str | None, values: Values) -> str | None:
    texts = [value for name, value in values.items() if name != title and isinstance(value, str)]
    alone = any(titled(text, values.get(str(title))) is None for text in texts if not is_blank(text))
    return "there is nothing below its first line" if alone else None


# -- preparing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextGroups:
    """Texts one behind the other, in groups: the ids of all (tokens,), how many each text has (texts,), and how many
    texts there are in each group (groups,)."""

    ids: Ids
    lengths: Numbers
    counts: Numbers

    @cached_property
    def starts(self) -> Numbers:
        """Where each text begins."""
        return self.lengths.cumsum() - self.lengths


@dataclass(frozen=True)
class PairCorpus(TextCorpus):
    """A prepared source of pairs. Its facts count groups as documents, and as duplicates those with a text of an
    earlier one; `train` and `validation` are the ids of all texts, without special tokens."""

    training: TextGroups
    held_out: TextGroups | None


def prepare_pairs(
    table: PairTable,
    tokenizer: str | Path | TextTokenizer = "bpe",
    vocabulary: int | None = None,
    validation: float = 0.1,
    leads: tuple[str, str] = ("", ""),
    cache: str | Path | None = None,
    progress: Progress | None = None,
    family: Family = "encoder",
) -> PairCorpus:
    """Split and encode pairs, or open what an earlier call with the same content and choices left.

    The split is by the hash of a document, or of the texts that hang together by pairs. Of a single document the last
    sentences are held out. A tokenizer that is trained here sees the training part only.

    Args:
        leads: what stands right before the texts of a pair, where a prompt ends with it.
        tokenizer, vocabulary, validation, cache, progress, family: as in `prepare_text`.

    Raises:
        UserError: a source, tokenizer or value that cannot be used; nothing can be held out.
    """
    if not 0 <= validation < 1:
        raise UserError(f"The validation share must be at least 0 and below 1, not {validation:g}.")
    given = given_tokenizer(tokenizer, family, vocabulary)
    identity = given.fingerprint if given else (tokenizer, family)
    choices = (FORMAT, table.fingerprint(), identity, vocabulary, validation, table.failures, leads)
    key = hashlib.blake2b(repr(choices).encode(), digest_size=16).hexdigest()

    def build(directory: Path) -> None:
        told = progress or (lambda done, total: None)
        _build(directory, table, given, cast(Kind, tokenizer), family, vocabulary, validation, leads, told)

    entry = kept("pairs", key, build, cache)
    own = given or load_tokenizer(entry / "tokenizer", family).anew()
    training, held_out = _read(entry, "train", own), _read(entry, "validation", own)
    assert training is not None
    ids = None if held_out is None else held_out.ids
    return PairCorpus(own, training.ids, ids, read_facts(entry), entry.name, training, held_out)


def training_pairs(table: PairTable, validation: float, progress: Progress) -> Training:
    """The texts of a source of pairs that `prepare_pairs` trains on."""
    scan = _scan(table, progress)
    part = _parts(table, scan, validation)
    return Training(lambda: (text for group in part(False) for text in group), int(scan.sizes.sum()))


@dataclass(frozen=True)
class _Scan:
    """One pass over the groups: hashes uint64 (groups, 2), of both texts of a pair or twice of a document; bytes int64
    (groups,)."""

    hashes: npt.NDArray[np.uint64]
    sizes: Numbers
    characters: int

    @property
    def repeated(self) -> int:
        """Groups of which a text stood in an earlier one."""
        new = np.zeros(self.hashes.shape, bool)
        for side, of_side in zip(self.hashes.T, new.T, strict=True):
            of_side[np.unique(side, return_index=True)[1]] = True
        return int((~new.all(1)).sum())


def _scan(table: PairTable, progress: Progress) -> _Scan:
    hashes, sizes = array("Q"), array("q")
    characters = done = 0
    for group in table.groups():
        texts = ["".join(group)] * 2 if table.of_documents else group
        for text in texts:
            hashes.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
        sizes.append(sum(len(text.encode()) for text in group))
        characters += sum(map(len, group))
        done += sizes[-1]
        progress(done, None)
    return _Scan(np.frombuffer(hashes, np.uint64).reshape(-1, 2), np.frombuffer(sizes, np.int64), characters)


def hold_out_pairs(hashes: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which pairs are held out, bool (n,), by the hashes of their texts (n, 2): pairs that share a text directly, or by
    way of others, are on one side; where these are most of all, they train. See `hold_out`.

    Raises:
        UserError: all pairs hang together.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts, places = np.unique(hashes, return_inverse=True)
    one, other = places.reshape(-1, 2).T
    edges = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(texts), len(texts)))
    number, component = connected_components(edges, directed=False)
    if share and number == 1:
        raise UserError(
            "All pairs hang together by texts that they share, so none can be held out; give pairs of other texts too, "
            "or data.validation=0."
        )
    least = np.full(number, np.iinfo(np.uint64).max)
    np.minimum.at(least, component, texts)
    own, hashes = component[one], mix(least)  # of two hashes the lesser is no fraction to draw by
    hashes[np.bincount(own, minlength=number) > MOST_TOGETHER * len(own)] = np.iinfo(np.uint64).max
    return hold_out(hashes[own], share)


def _parts(table: PairTable, scan: _Scan, validation: float) -> Callable[[bool], Iterable[list[str]]]:
    """The groups that are held out, or not, which can be read again and again."""
    if validation and table.of_documents and len(np.unique(scan.hashes)) == 1:
        document = next(table.groups())
        if len(document) < 2:
            raise UserError(f"{table.name} holds a single sentence, so none can be held out; give more text.")
        place = min(max(1, int(len(document) * (1 - validation))), len(document) - 1)
        return lambda held_out: [document[place:] if held_out else document[:place]]
    chosen = hold_out_pairs(scan.hashes, validation)
    return lambda held_out: part_of(table.groups(), chosen == held_out, table.name)


def _build(
    directory: Path,
    table: PairTable,
    tokenizer: TextTokenizer | None,
    kind: Kind,
    family: Family,
    vocabulary: int | None,
    validation: float,
    leads: tuple[str, str],
    progress: Progress,
) -> None:
    """Write an entry: ids, lengths and counts of both parts, tokenizer/ and facts.json."""
    scan = _scan(table, progress)
    skipped, empty = table.skipped, table.empty
    part, total = _parts(table, scan, validation), int(scan.sizes.sum())
    if tokenizer is None:
        texts = (text for group in part(False) for text in group)
        tokenizer = train_tokenizer(kind, texts, vocabulary, total, family)
    tokenizer.save(directory / "tokenizer")
    told = {}
    for name, held_out in (("train", False), ("validation", True)):
        if validation or not held_out:
            groups = part(held_out) if table.of_documents else _led(part(held_out), leads)
            told[name] = _write(directory, name, tokenizer, groups, progress, total)
    training, rest = told["train"], told.get("validation", _Written())
    facts = TextFacts(
        documents=len(scan.hashes),
        duplicates=scan.repeated,
        empty=empty,
        skipped=skipped,
        characters=scan.characters,
        bytes=total,
        training_documents=training.groups,
        validation_documents=rest.groups,
        training_tokens=training.tokens,
        validation_tokens=rest.tokens,
        training_bytes=training.bytes,
        validation_bytes=rest.bytes,
        training_lossless=False,  # of no use here: texts are cut to the window
        validation_lossless=False,
        bytes_per_token=(training.bytes + rest.bytes) / max(1, training.tokens + rest.tokens),
        unknown_tokens=training.unknown + rest.unknown,
        vocabulary=tokenizer.vocabulary,
    )
    write_facts(directory, facts)


def _led(groups: Iterable[list[str]], leads: tuple[str, str]) -> Iterator[list[str]]:
    return ([lead + text for lead, text in zip(leads, group, strict=True)] for group in groups)


@dataclass(frozen=True)
class _Written:
    """What a part holds."""

    groups: int = 0
    tokens: int = 0
    bytes: int = 0
    unknown: int = 0


def _write(
    directory: Path, name: str, tokenizer: TextTokenizer, groups: Iterable[list[str]], progress: Progress, total: int
) -> _Written:
    """The ids of a part, the lengths of its texts and the counts of its groups, each a file."""
    lengths, counts = array("i"), array("i")
    tokens = size = unknown = 0

    def texts() -> Iterator[str]:
        for group in groups:
            counts.append(len(group))
            yield from group

    with (directory / f"{name}.bin").open("wb") as file:
        for batch in batches_of(tokenizer, texts()):
            encoded = tokenizer.encode_batch([piece for piece, _ in batch])
            for ids, (piece, opens) in zip(encoded, batch, strict=True):
                if opens:
                    lengths.append(0)
                lengths[-1] += len(ids)
                size += len(piece.encode())
            chunk = np.concatenate(encoded)
            tokens += len(chunk)
            unknown += 0 if tokenizer.unknown is None else int(np.count_nonzero(chunk == tokenizer.unknown))
            file.write(chunk.data)
            progress(size, total)
    for kind, numbers in (("lengths", lengths), ("counts", counts)):
        (directory / f"{name}.{kind}").write_bytes(numbers.tobytes())
    return _Written(len(counts), tokens, size, unknown)


def _read(entry: Path, name: str, tokenizer: TextTokenizer) -> TextGroups | None:
    file = entry / f"{name}.bin"
    if not file.exists():
        return None
    ids = np.memmap(file, tokenizer.dtype, mode="r") if file.stat().st_size else np.empty(0, tokenizer.dtype)
    lengths, counts = (np.fromfile(entry / f"{name}.{kind}", np.int32) for kind in ("lengths", "counts"))
    return TextGroups(ids, lengths.astype(np.int64), counts.astype(np.int64))
