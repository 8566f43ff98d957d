"""How a prepared corpus is made: by any number of processes, on as many machines as see its directory.

A source is cut into units: files, or groups of rows of one. What is to be done is a list of tasks, each of which leaves
one file: each unit is scanned (which documents, how long), all are settled together (what is held out, what is removed,
the tokenizer), each is encoded into a shard of its own, and the manifest is written. Whoever works takes the next task
that has no result and that nobody else has taken, by a lease: a file that its owner keeps fresh. A result is a function
of the source and the choices, and takes its name when it is whole. So what a killed process leaves is not seen, and
where two do one task, the second puts the same in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice, pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from filelock import SoftFileLease, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selfsup.data.corpora import CARD, TOKENIZER, Choices, Manifest, Prepared, open_prepared, read_manifest
from selfsup.data.discovery import CORPUS
from selfsup.data.duplicates import BANDS, ROWS, Signatures, near_earlier, require_library, signatures
from selfsup.data.formats import pieces_of
from selfsup.data.parts import is_blank
from selfsup.data.places import Folder
from selfsup.data.sampler import permute
from selfsup.data.shards import Shard, Width, checksums_of, digest
from selfsup.data.sources import Table, no_text, open_text
from selfsup.data.split import hash_of, hold_out
from selfsup.data.tally import Skipped, Tally
from selfsup.data.text import Stream, TextFacts, given_tokenizer, part_of, write_stream
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizer_training import BPE_SAMPLE, train_tokenizer, vocabulary_size
from selfsup.data.tokenizers import Ids, Kind, TextTokenizer, cut
from selfsup.errors import UserError
from selfsup.files import (
    expanded,
    read_bytes,
    remove_leftovers,
    temporary_name,
    whole_directory,
    whole_file,
    writable,
    write_atomically,
)
from selfsup.report import Progress
from selfsup.seeding import derive, uniform

UNITS = 64  # of a source, unless they were smaller or larger than this:
SMALLEST, LARGEST = 1 << 20, 1 << 26  # bytes, of what can be read apart
SAMPLED = 64  # units that a tokenizer is trained on, at most
LEASE = 30.0  # seconds without a sign of life after which a task is taken from whoever has it
PAUSE = 0.2  # seconds between two looks at what others do
SECONDS_BETWEEN = 1.0  # two looks at how far everyone has come
WORK, PLAN = "preparing", "plan.json"  # what is there while a corpus is made
MOST_PLAN = 1 << 28  # bytes
TRAIN, HELD_OUT, REMOVED = 0, 1, 2  # what becomes of a document
PARTS = {"train": TRAIN, "validation": HELD_OUT}


@dataclass(frozen=True)
class Source:
    """The texts that are prepared, in parts as small as can be read apart, with their bytes; and the tokenizer that is
    given."""

    text: Table
    sizes: list[int]
    tokenizer: TextTokenizer | None

    @classmethod
    def of(cls, choices: Choices) -> Self:
        """That of some choices. Raises UserError: there is none, or no such tokenizer."""
        if choices.duplicates == "near":
            require_library()
        given = given_tokenizer(choices.tokenizer, choices.family, choices.vocabulary)
        text = open_text(choices.source, choices.column, choices.failures, choices.split)
        pieces = [piece for part in text.parts for piece in pieces_of(part)]
        return cls(replace(text, parts=[part for part, _ in pieces]), [size for _, size in pieces], given)


class Plan(BaseModel):
    """What is to be made, and of what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: Choices
    tokenizer: str | None  # fingerprint of the one that is given
    pieces: tuple[tuple[str, int], ...]  # files, and groups of rows of files, with their bytes
    units: tuple[tuple[int, int], ...]  # [first, last) of the pieces

    @classmethod
    def of(cls, choices: Choices, source: Source) -> Self:
        pieces = tuple((part.name, size) for part, size in zip(source.text.parts, source.sizes, strict=True))
        given = source.tokenizer and source.tokenizer.fingerprint
        return cls(choices=choices, tokenizer=given, pieces=pieces, units=units_of(source.sizes))


class Encoded(BaseModel):
    """What a unit gave to the part that is trained on, or to the one that is held out."""

    shard: Shard | None
    documents: int
    bytes: int
    unknown: int
    lossless: bool


@dataclass(frozen=True)
class Task:
    """Something to be done once, by whoever comes first; it is done when its result is there."""

    result: Path
    make: Callable[[], None]


@dataclass(frozen=True)
class Settled:
    """What is decided over all documents. Their fates, uint8 (documents,), are those of the units one behind the other,
    which begin at `starts`."""

    fates: npt.NDArray[np.uint8]
    starts: list[int]
    bytes: list[int]  # of the documents of each unit that stay
    single: int | None  # characters of the only document there is that are trained on; the others are held out
    facts: dict[str, Any]  # of `TextFacts`
    removed: dict[str, int]

    def of(self, unit: int) -> npt.NDArray[np.uint8]:
        """The fates of the documents of a unit."""
        return self.fates[self.starts[unit] : self.starts[unit + 1]]

    @cached_property
    def last(self) -> int:
        """The last unit that has a document."""
        return int(np.searchsorted(self.starts, np.flatnonzero(self.fates != REMOVED)[-1], "right")) - 1

    def write(self, path: Path) -> None:
        told = {name: value for name, value in vars(self).items() if name not in ("fates", "last")}
        write_arrays(path, {"fates": self.fates}, told)

    @classmethod
    def read(cls, path: Path) -> Self:
        arrays, told = read_arrays(path)
        return cls(fates=arrays["fates"], **told)


def prepare_corpus(choices: Choices, out: str | Path, workers: int, progress: Progress) -> Prepared:
    """Make a prepared corpus, or go on with one; one that is there is opened.

    Args:
        workers: processes of this machine.
        progress: called with the bytes of text that are done, and all where they are known.

    Raises:
        UserError: a source, tokenizer or value that cannot be used; other choices, or something else, at `out`.
    """
    directory = expanded(out)
    with writable(directory, "make room there, or give another --out."):
        if (directory / CORPUS).is_file():
            _require_same(read_manifest(Folder(directory))[0].choices, choices, directory)
            _clear(directory)
            _lease(directory / CORPUS).unlink(missing_ok=True)
        else:
            _make(_begin(directory, choices), workers, progress)
    return open_prepared(directory)


def _begin(directory: Path, choices: Choices) -> Preparation:
    """What is to be done, written down by whoever comes first."""
    begun = (directory / WORK).is_dir()
    if not begun and directory.exists() and (not directory.is_dir() or any(directory.glob("[!.]*"))):
        raise UserError(f"{directory} exists already and is no corpus that is being prepared; give another name.")
    source = Source.of(choices)
    plan = Plan.of(choices, source)
    if not begun:
        with suppress(FileExistsError), whole_directory(directory / WORK) as work:
            (work / PLAN).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
    found = _read_plan(directory)
    _require_same(found.choices, choices, directory)
    if found != plan:
        raise UserError(
            f"{choices.source}, or the tokenizer, is not what it was when {directory} was begun; restore it, or give "
            "another --out."
        )
    return Preparation(directory, plan, source)


def _read_plan(directory: Path) -> Plan:
    try:
        return Plan.model_validate_json(read_bytes(directory / WORK / PLAN, MOST_PLAN))
    except (OSError, ValidationError) as error:
        reason = getattr(error, "strerror", None) or "it is no plan"
        raise UserError(f"{directory / WORK / PLAN} cannot be read ({reason}); give another --out.") from None


def _require_same(found: Choices, asked: Choices, directory: Path) -> None:
    for name, value in found:
        if value != getattr(asked, name):
            raise UserError(
                f"{directory} is prepared with {name} = {value!r}, not {getattr(asked, name)!r}; give another --out."
            )


def units_of(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[first, last) of the pieces of each unit, by their bytes: as few as have enough of them together."""
    enough = min(LARGEST, max(SMALLEST, sum(sizes) // UNITS))
    units, first, held = [], 0, 0
    for number, size in enumerate(sizes, 1):
        held += size
        if held >= enough or number == len(sizes):
            units.append((first, number))
            first, held = number, 0
    return tuple(units)


# -- who does what -------------------------------------------------------------------------------------------


def _make(preparation: Preparation, workers: int, progress: Progress) -> None:
    """Do what is to be done, by several processes where there is work for several, or by this one."""
    workers = min(workers, len(preparation.plan.units))
    if workers == 1:
        preparation.work(lambda: preparation.tell(progress))
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare_process) as pool:
        pending = {pool.submit(_work_at, preparation.directory, preparation.plan) for _ in range(workers)}
        try:
            while pending:
                done, pending = wait(pending, SECONDS_BETWEEN, "FIRST_EXCEPTION")
                for future in done:
                    future.result()
                preparation.tell(progress)
        except BrokenProcessPool:
            raise UserError(
                f"A process that prepared {preparation.directory} was ended by the system, perhaps for its memory; "
                "give the same command again, with fewer --workers: it goes on."
            ) from None
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _prepare_process() -> None:
    """Of several processes each has one thread, where the library of tokenizers would take all cores in every one; and
    Ctrl-C is for the first one, which ends the others."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work_at(directory: Path, plan: Plan) -> None:
    first = parent_process()

    def require_first() -> None:
        if first is not None and not first.is_alive():
            raise SystemExit  # nobody waits for this any more

    Preparation(directory, plan, Source.of(plan.choices)).work(require_first)


def _lease(result: Path) -> Path:
    """What says that somebody makes a result."""
    return result.with_suffix(".lease")


def complete(tasks: Sequence[Task], is_over: Callable[[], bool], tell: Callable[[], None]) -> None:
    """Return when all tasks are done, whoever does them, or all is over; do those that nobody has taken.

    Args:
        tell: called from time to time.
    """
    leases = {task.result: SoftFileLease(_lease(task.result), lease_duration=LEASE) for task in tasks}
    told = time.monotonic()
    while not is_over() and (left := [task for task in tasks if not task.result.exists()]):
        worked = False
        for task in left:
            with suppress(Timeout), leases[task.result].acquire(blocking=False):
                if not task.result.exists():
                    task.make()
                worked = True
            if time.monotonic() - told > SECONDS_BETWEEN:
                told = time.monotonic()
                tell()
        if not worked:
            time.sleep(PAUSE)


class Preparation:
    """A corpus on its way, as everyone sees it who works at it."""

    def __init__(self, directory: Path, plan: Plan, source: Source) -> None:
        self.directory, self.plan, self.choices = directory, plan, plan.choices
        self.text, self.given = source.text, source.tokenizer
        self._settled_file = directory / WORK / "settled.safetensors"

    def work(self, tell: Callable[[], None]) -> None:
        """Do what there is to do, until all is done."""
        units = range(len(self.plan.units))
        stages = [
            [Task(self._scan_file(unit), partial(self._scan, unit)) for unit in units],
            [Task(self._settled_file, self._settle)],
            [Task(self._unit_file(unit), partial(self._encode, unit)) for unit in units],
            [Task(self.directory / CORPUS, self._finish)],
        ]
        if self._is_over():
            return
        for name in self._parts:
            (self.directory / name).mkdir(exist_ok=True)
        try:
            for stage in stages:
                complete(stage, self._is_over, tell)
        except FileNotFoundError:  # somebody else has finished, and cleared up
            if not self._is_over():
                raise

    @property
    def _parts(self) -> list[str]:
        return list(PARTS) if self.choices.validation else ["train"]

    def tell(self, progress: Progress) -> None:
        """How far everyone has come together."""
        units = range(len(self.plan.units))
        with suppress(FileNotFoundError):
            if not self._settled_file.exists():
                files = [sum(size for _, size in self.plan.pieces[slice(*unit)]) for unit in self.plan.units]
                progress(sum(files[unit] for unit in units if self._scan_file(unit).exists()), None)
                return
            done = sum(self._settled.bytes[unit] for unit in units if self._unit_file(unit).exists())
            progress(done, sum(self._settled.bytes))

    def _is_over(self) -> bool:
        return (self.directory / CORPUS).is_file()

    def _scan_file(self, unit: int) -> Path:
        return self.directory / WORK / f"scan-{unit:05}.safetensors"

    def _unit_file(self, unit: int) -> Path:
        return self.directory / WORK / f"unit-{unit:05}.json"

    def _read(self, unit: int, tally: Tally) -> Iterator[str]:
        """The texts of a unit, blank ones too."""
        return self.text.texts_of(slice(*self.plan.units[unit]), tally)

    # -- the tasks -----------------------------------------------------------------------------------------

    def _scan(self, unit: int) -> None:
        """Note of each document of a unit its hash, bytes and characters."""
        tally, blank = Tally(self.text.name, self.choices.failures), 0
        hashes, sizes, lengths = array("Q"), array("q"), array("q")

        def noted() -> Iterator[str]:
            nonlocal blank
            for text in self._read(unit, tally):
                if is_blank(text):
                    blank += 1
                    continue
                hashes.append(hash_of(text))
                sizes.append(len(text.encode()))
                lengths.append(len(text))
                yield text

        near = self.choices.duplicates == "near"
        found = [np.zeros((0, BANDS * ROWS), np.uint32), *(signatures(noted(), self.choices.seed) if near else ())]
        for _ in () if near else noted():
            pass
        arrays = {
            "hashes": np.frombuffer(hashes, np.uint64),
            "sizes": np.frombuffer(sizes, np.int64),
            "lengths": np.frombuffer(lengths, np.int64),
            "signatures": np.concatenate(found),
        }
        write_arrays(self._scan_file(unit), arrays, {"tally": tally.counts(), "empty": blank})

    def _settle(self) -> None:
        """Decide what becomes of each document, and train the tokenizer where none is given."""
        scans = [read_arrays(self._scan_file(unit)) for unit in range(len(self.plan.units))]
        names = ("hashes", "sizes", "lengths", "signatures")
        hashes, sizes, lengths, signed = (np.concatenate([arrays[name] for arrays, _ in scans]) for name in names)
        skipped, empty = self._counted([told for _, told in scans])
        fates, removed = self._removed(hashes, signed)
        kept, share = fates != REMOVED, self.choices.validation
        distinct = len(np.unique(hashes[kept]))
        single = int(lengths[kept][0] * (1 - share)) if share and distinct == 1 else None
        if single is None:
            fates[kept] = np.where(hold_out(hashes[kept], share), HELD_OUT, TRAIN)
        starts = np.cumsum([0, *(len(arrays["hashes"]) for arrays, _ in scans)]).tolist()
        facts = {
            "documents": int(kept.sum()),
            "duplicates": int(kept.sum()) - distinct,
            "empty": empty,
            "skipped": asdict(skipped),
            "characters": int(lengths[kept].sum()),
            "bytes": int(sizes[kept].sum()),
        }
        settled = Settled(fates, starts, _sums(sizes * kept, starts), single, facts, removed)
        tokenizer = self.given or self._trained(settled, _sums(sizes * (fates == TRAIN), starts))
        with suppress(FileExistsError), whole_directory(self.directory / TOKENIZER) as place:
            tokenizer.anew().save(place)
        settled.write(self._settled_file)

    def _counted(self, scans: Sequence[dict[str, Any]]) -> tuple[Skipped, int]:
        """What of the source cannot be read, and how many documents are blank. Raises UserError: too many, or all."""
        tally, empty = Tally(self.text.name, self.choices.failures), 0
        for told in scans:
            tally.add(told["tally"])
            empty += told["empty"]
        skipped = tally.close()
        if skipped.seen == skipped.count + empty:
            raise no_text(self.text.name, skipped, empty)
        return skipped, empty

    def _removed(
        self, hashes: npt.NDArray[np.uint64], signed: Signatures
    ) -> tuple[npt.NDArray[np.uint8], dict[str, int]]:
        """Which documents are removed, and how many by why."""
        fates = np.full(len(hashes), TRAIN, np.uint8)
        if self.choices.duplicates == "keep":
            return fates, {}
        fates[:] = REMOVED
        first = np.sort(np.unique(hashes, return_index=True)[1])  # of each
        fates[first] = TRAIN
        removed = {"exact duplicates": len(hashes) - len(first)}
        if self.choices.duplicates == "near":
            near = first[near_earlier(signed[first])]
            fates[near] = REMOVED
            removed["near duplicates"] = len(near)
        return fates, removed

    def _trained(self, settled: Settled, sizes: Sequence[int]) -> TextTokenizer:
        """A tokenizer that learns from the part that is trained on, of which each unit has so many bytes: from all of
        it, or, where it is more than a BPE or word pieces learn from, from pieces that the seed draws."""
        kind, vocabulary, family = cast(Kind, self.choices.tokenizer), self.choices.vocabulary, self.choices.family
        every, total = range(len(sizes)), sum(sizes)
        if settled.single is not None:
            total = sum(len(text.encode()) for unit in every for text in self._texts(settled, unit, TRAIN))
        if kind in ("characters", "words") or total <= BPE_SAMPLE:
            whole = (text for unit in every for text in self._texts(settled, unit, TRAIN))
            return train_tokenizer(kind, whole, vocabulary, total, family)
        having = np.flatnonzero(sizes)
        order = permute(np.arange(min(SAMPLED, len(having))), len(having), derive(self.choices.seed, "sample"), 0)
        units = np.sort(having[order]).tolist()
        pieces = self._drawn(settled, units, BPE_SAMPLE / sum(sizes[unit] for unit in units))
        return train_tokenizer(kind, pieces, vocabulary or vocabulary_size(total), BPE_SAMPLE, family)

    def _drawn(self, settled: Settled, units: Sequence[int], share: float) -> Iterator[str]:
        """About so large a share of the texts of some units that are trained on, in pieces."""
        for unit in units:
            pieces = (piece for text in self._texts(settled, unit, TRAIN) for piece in cut(text))
            for number, piece in enumerate(pieces):
                if uniform(self.choices.seed, "sample", np.array([unit]), np.array([number]), 1)[0, 0] < share:
                    yield piece

    def _texts(self, settled: Settled, unit: int, fate: int) -> Iterator[str]:
        """The documents of a unit that have a fate; of a single one its beginning is trained on, its end held out."""
        texts = (text for text in self._read(unit, Tally(self.text.name, 1.0)) if not is_blank(text))
        if settled.single is None:
            return part_of(texts, settled.of(unit) == fate, self.text.name)
        alike = part_of(texts, settled.of(unit) == TRAIN, self.text.name)
        if fate == TRAIN:
            return (text[: settled.single] for text in alike)
        return (text[settled.single :] for text in islice(alike, 1))

    def _encode(self, unit: int) -> None:
        """Write the shards of a unit."""
        single = self._settled.single is not None
        training, start = Stream(self._tokenizer), self._tokenizer.start
        goes_on = single and unit == self._settled.last  # the held-out part goes on where this one ends
        parts = {"train": self._part(unit, "train", training, start, closed=not goes_on)}
        if "validation" in self._parts:
            opening = training.last if single else start
            parts["validation"] = self._part(unit, "validation", Stream(self._tokenizer), opening)
        told = {name: part.model_dump() for name, part in parts.items()}
        write_atomically(self._unit_file(unit), json.dumps(told))

    def _part(self, unit: int, name: str, stream: Stream, opening: int, closed: bool = True) -> Encoded:
        """Write what of a stream comes from a unit, if anything does."""
        path, tokens = self.directory / name / f"{unit:05}.bin", 0
        with whole_file(path) as temporary:
            write_stream(temporary, self._chunks(unit, PARTS[name], stream, opening, closed))
            tokens = temporary.stat().st_size // np.dtype(self._tokenizer.dtype).itemsize
            checksums = checksums_of(temporary)
        shard = Shard(name=f"{name}/{path.name}", tokens=tokens, checksums=checksums) if tokens else None
        if shard is None:
            path.unlink()
        return Encoded(
            shard=shard,
            documents=stream.documents,
            bytes=stream.bytes,
            unknown=stream.unknown,
            lossless=stream.lossless,
        )

    def _chunks(self, unit: int, fate: int, stream: Stream, opening: int, closed: bool) -> Iterator[Ids]:
        """The tokens of a unit in a stream. One token may stand between two documents: that before the first one of a
        unit is the last one of the unit before, and the stream begins with the unit that `begins`, come what may."""
        settled, shared = self._settled, len(self._tokenizer.between) == 1
        tail = settled.single is not None and fate == HELD_OUT
        begins = unit == (settled.last if tail else 0)
        has = begins if tail else bool((settled.of(unit) == fate).any())
        chunks = stream.chunks(self._texts(settled, unit, fate) if has else (), opening, closed and has)
        first = next(chunks)
        if begins if shared else has:
            yield first
        yield from chunks

    def _finish(self) -> None:
        """Write the manifest, and clear up."""
        units = [self._read_unit(unit) for unit in range(len(self.plan.units))]
        training, held_out = ([unit[name] for unit in units if name in unit] for name in PARTS)
        folder, tokenizer = self.directory / TOKENIZER, self._tokenizer
        manifest = Manifest(
            choices=self.choices,
            width=cast(Width, np.dtype(tokenizer.dtype).name),
            tokenizer={file.name: digest(file.read_bytes()) for file in sorted(folder.iterdir())},
            facts=_facts(self._settled, training, held_out, tokenizer.vocabulary),
            removed=self._settled.removed,
            train=tuple(part.shard for part in training if part.shard),
            validation=tuple(part.shard for part in held_out if part.shard),
        )
        write_atomically(self.directory / CARD, manifest.card())
        for name in self._parts:
            remove_leftovers(self.directory / name)
        write_atomically(self.directory / CORPUS, manifest.model_dump_json(indent=1) + "\n")
        _clear(self.directory)

    def _read_unit(self, unit: int) -> dict[str, Encoded]:
        told = json.loads(self._unit_file(unit).read_text(encoding="utf-8"))
        return {name: Encoded.model_validate(part) for name, part in told.items()}

    @cached_property
    def _settled(self) -> Settled:
        return Settled.read(self._settled_file)

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self.directory / TOKENIZER, self.choices.family).anew()


def _facts(settled: Settled, training: Sequence[Encoded], held_out: Sequence[Encoded], vocabulary: int) -> TextFacts:
    """The facts of a corpus, of what its units gave."""
    skipped = settled.facts["skipped"]
    lists = {name: tuple(skipped[name]) for name in ("names", "left_out")}
    sums: dict[str, Any] = {}
    for name, parts in (("training", training), ("validation", held_out)):
        sums[f"{name}_documents"] = sum(part.documents for part in parts)
        sums[f"{name}_tokens"] = sum(part.shard.tokens for part in parts if part.shard)
        sums[f"{name}_bytes"] = sum(part.bytes for part in parts)
        sums[f"{name}_lossless"] = all(part.lossless for part in parts)
    size, tokens = (sums[f"training_{what}"] + sums[f"validation_{what}"] for what in ("bytes", "tokens"))
    return TextFacts(
        **settled.facts | {"skipped": Skipped(**skipped | lists)},
        **sums,
        bytes_per_token=size / tokens,
        unknown_tokens=sum(part.unknown for part in (*training, *held_out)),
        vocabulary=vocabulary,
    )


def _sums(sizes: npt.NDArray[np.int64], starts: Sequence[int]) -> list[int]:
    """Of each unit."""
    return [int(sizes[first:last].sum()) for first, last in pairwise(starts)]


def _clear(directory: Path) -> None:
    """Remove what was there to make a corpus that is whole."""
    with suppress(FileNotFoundError):
        (directory / WORK).rename(dying := temporary_name(directory / WORK))
        shutil.rmtree(dying, ignore_errors=True)


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], told: dict[str, Any]) -> None:
    """Write arrays and values of JSON as one safetensors file."""
    with whole_file(path) as temporary:
        save_file(arrays, temporary, metadata={"told": json.dumps(told)})


def read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays and values of such a file. Raises UserError: it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["told"])  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and give the same command again.") from error
