"""What of a source cannot be read: counted and named, and refused where it is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from selfsup.data.parts import Ignored, Malformed, Repaired
from selfsup.errors import Damaged, UserError

NAMED = 5  # skipped records that are named in messages


@dataclass(frozen=True)
class Skipped:
    """The records of a source that could not be read."""

    count: int = 0
    seen: int = 0  # all records, the skipped ones included
    names: tuple[str, ...] = ()  # the first few, each with file, place and reason
    replaced_bytes: int = 0  # undecodable bytes of text files that were kept, as U+FFFD
    left_out: tuple[str, ...] = ()  # what is no record, by its kind, each with how many


def joint_skipped(every: Sequence[Skipped]) -> Skipped:
    """Those of several sources, taken together."""
    return Skipped(
        count=sum(one.count for one in every),
        seen=sum(one.seen for one in every),
        names=tuple(name for one in every for name in one.names)[:NAMED],
        replaced_bytes=sum(one.replaced_bytes for one in every),
        left_out=tuple(what for one in every for what in one.left_out),
    )


class Tally:
    """Counts the records of one pass over a source; too many bad ones end it in a UserError. A pass may be cut into
    parts that are counted apart: then `counts` of each are added, and judged together."""

    def __init__(self, name: str, failures: float) -> None:
        self.name = name
        self.failures = failures
        self._seen = self._bad = self._replaced = 0
        self._names: list[str] = []
        self._ignored: Counter[str] = Counter()

    @contextmanager
    def allowed(self, where: str) -> Iterator[None]:
        """Go on behind a damaged file where everything may fail: it counts as one bad record. Elsewhere it ends the
        reading, since nobody can say which share of the records it takes with it."""
        try:
            yield
        except Damaged as error:
            if self.failures < 1:
                raise
            self.count(where, malformed(where, error))

    def mended(self, value: object) -> object:
        """The value itself; the bytes that had to be replaced in it are counted."""
        if not isinstance(value, Repaired):
            return value
        self._replaced += value.replaced_bytes
        return value.text

    def count(self, where: str, value: object) -> None:
        """Count a record, which is bad where its value is Malformed."""
        if isinstance(value, Ignored):
            self._ignored[value.reason] += 1
            return
        self._seen += 1
        if isinstance(value, Malformed):
            self._bad += 1
            if len(self._names) < NAMED:
                self._names.append(f"{where}: {value.reason}")

    def counts(self) -> dict[str, Any]:
        """What is counted, as JSON has it."""
        numbers = {"seen": self._seen, "bad": self._bad, "replaced": self._replaced}
        return {**numbers, "names": self._names, "ignored": dict(self._ignored)}

    def add(self, counts: dict[str, Any]) -> None:
        """Count what another one has counted of the records that follow."""
        self._seen += counts["seen"]
        self._bad += counts["bad"]
        self._replaced += counts["replaced"]
        self._names = [*self._names, *counts["names"]][:NAMED]
        self._ignored.update(counts["ignored"])

    def close(self) -> Skipped:
        """The count of a complete pass. Raises UserError: more records are bad than may be, or all of them."""
        left_out = tuple(f"{what}: {number:,}" for what, number in self._ignored.items())
        skipped = Skipped(self._bad, self._seen, tuple(self._names), self._replaced, left_out)
        if too_many(skipped, self.failures):
            raise refusal(self.name, skipped, self.failures)
        return skipped


def malformed(name: str, error: Damaged) -> Malformed:
    """What stands in for a whole file that cannot be read."""
    return Malformed(str(error).removeprefix(f"{name} ").removesuffix("."))


def require_share(failures: float) -> None:
    """Raise a UserError where the share that may fail is none."""
    if not 0 <= failures <= 1:
        raise UserError(f"The share of failures must lie between 0 and 1, not at {failures:g}.")


def too_many(skipped: Skipped, failures: float) -> bool:
    """Whether more records are bad than may be, or all of them."""
    return skipped.count > failures * skipped.seen or 0 < skipped.count == skipped.seen


def refusal(name: str, skipped: Skipped, failures: float) -> UserError:
    """What to say of a source with too many bad records."""
    refused = f"{skipped.count} of {skipped.seen} records of {name} cannot be read"
    reasons = "; ".join(skipped.names)
    if skipped.count == skipped.seen:
        return UserError(f"{refused}, so nothing is left; mend them: {reasons}")
    return UserError(
        f"{refused}, more than the share of {failures:g} that may be skipped; mend them or allow more failures "
        f"(--failures, of a training data.failures): {reasons}"
    )
