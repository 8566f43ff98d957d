"""From a model and a folder to a better model, or to the honest answer that it did not get better.

    look at both → set texts aside → measure the start → try each candidate for a while → go on with the best → judge

What is measured needs no label: bits per byte of a decoder; of an encoder of texts how well a passage finds the one
that follows it (`selfsup.evaluation.structure`); of one of images how well a view finds the other view of the same
image (`selfsup.evaluation.instances`); of images with texts, whether they find each other. What is held out comes in
two halves: one to choose a candidate by, one to judge what came of it, so that choosing the best of several does not
make it look better than it is.

OUT/adapt.json   what was asked for, and what is known so far; the same command goes on from there
OUT/data/        the texts that are trained on, and those that are set aside (images stay where they are)
OUT/trials/      a run for each candidate; that of the chosen one is gone on with
OUT/report.*     the report: text, JSON, and a picture where matplotlib is installed
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfsup.adapting.candidates import CANDIDATES, Candidate, Subject
from selfsup.adapting.photos import Photos, open_photos
from selfsup.adapting.report import CHOOSING, JUDGING, Adapted, Tried, gain_from_json
from selfsup.adapting.texts import Texts, set_aside
from selfsup.arguments import checked
from selfsup.budget import Clock
from selfsup.config import Duration, shown
from selfsup.data.sources import open_text
from selfsup.errors import Interrupted, UserError
from selfsup.evaluation import DECODER, IMAGES, PAIRS, PROTOCOLS, TEXTS, measure
from selfsup.evaluation.base import Measurement, Score
from selfsup.evaluation.gains import Gain
from selfsup.files import LOCK, expanded, held, write_atomically
from selfsup.inference.opening import load
from selfsup.machine import find_device
from selfsup.models.directories import find_model
from selfsup.report import Reporter, Screen, duration
from selfsup.run import Run, new_directory
from selfsup.training import train

STATE, REPORT = "adapt.json", "report"
# By which a model is measured, by its kind: the first one that is defined for it on its data.
MEASURES = {
    DECODER: ("bits-per-byte", "perplexity"),
    TEXTS: ("structure",),
    IMAGES: ("instances",),
    PAIRS: ("retrieval",),
}
LEAST_BUDGET = 60.0  # seconds
TRIALS = 0.35  # of the budget, for all trials together
LEAST_TRIAL = 10.0  # seconds of one
MEASURING = 0.025  # of the budget, for each measurement
PROBED = 16  # records that are measured on to see how long that takes
LEAST, MOST = 64, 5000  # records that are measured on, as far as there are so many
WORTH = 0.5  # of a trial's time: with less left, going on changes next to nothing
LEAVING = 1.0  # seconds for the report
WIDTH = 120  # of its lines


@checked
def adapt(
    model: str | Path,
    *,
    data: str | Path,
    budget: str | float = "30m",
    out: str | Path | None = None,
    column: str | None = None,
    failures: float = 0.01,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    reporter: Reporter | None = None,
    clock: Clock | None = None,
) -> Adapted:
    """Make a model better for some data, without labels and within a time; or find that it did not get better.

    Args:
        model: a run, or a model directory of any kind.
        data: what a training takes, as a path or a name: texts, images, or images with captions, as the model reads.
        budget: wall time of all of it, such as 30m.
        out: where all that it makes goes; runs/adapt-MODEL-DATA where it is not given. An adaptation that was cut short
            goes on there by the same call.
        column, failures, device, precision, seed: as in a training.
        clock: what the budget is counted by, where it began before this call.

    Raises:
        UserError: no such model or data, a model of another kind, too little text or time; `out` holds something else.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    seconds = _seconds(budget)
    find_device(device)  # says so where there is none
    kind = load(model).kind
    if kind in (DECODER, TEXTS):
        open_text(data, column, failures, "training")  # says so where there is none
    asked = {
        "model": str(expanded(model).absolute()),
        "data": _absolute(str(data)),
        "budget": seconds,
        "column": column,
        "failures": failures,
        "seed": seed,
    }
    try:
        place, how = _place(out, asked), {"device": device, "precision": precision}
    except OSError as error:
        raise UserError(f"Cannot write to {out or 'runs'}: {error.strerror}; give another --out.") from None
    try:
        with held(place, f"{place} is being worked on by another process; wait for it, or give another --out."):
            session = _Session(place, asked, how, reporter or Reporter(), clock or Clock(), kind)
            with session.going_on_later():
                return session.run()
    except UserError:
        _discard(place)
        raise


def _seconds(budget: str | float) -> float:
    try:
        seconds = float(TypeAdapter(Duration).validate_python(budget))
    except ValidationError as error:
        raise UserError(
            f"The budget {shown(budget)} is none ({error.errors()[0]['msg']}); give one such as 30m."
        ) from None
    if seconds < LEAST_BUDGET:
        raise UserError(
            f"A budget of {duration(seconds)} leaves no time for trials; give {duration(LEAST_BUDGET)} or more."
        )
    return seconds


def _absolute(source: str) -> str:
    return source if source.startswith(("sample:", "hub:")) else str(expanded(source).absolute())


def _place(out: str | Path | None, asked: dict[str, Any]) -> Path:
    """The directory of an adaptation, made where it is new. Without a name it is the one of the same call that was cut
    short, or a free one."""
    if out is None:
        named = (Path(asked[key].rpartition(":")[2]).name.partition(".")[0] for key in ("model", "data"))
        name = "-".join(["adapt", *named])
        first = Path("runs") / name
        place = first if _state(first).get("asked") == asked and not (first / f"{REPORT}.json").exists() else None
        place = place or new_directory(name)
    else:
        place = expanded(out)
    there = _state(place).get("asked")
    if there is not None and there != asked:
        differing = ", ".join(sorted(key for key in asked if there.get(key) != asked[key]))
        raise UserError(f"{place} holds another adaptation (its {differing} differ); give another --out.")
    if (place / f"{REPORT}.json").exists():
        raise UserError(f"{place} holds a finished adaptation; see {place / REPORT}.txt, or give another --out.")
    if there is None and place.exists() and {path.name for path in place.iterdir()} - {LOCK}:
        raise UserError(f"{place} holds something else; give another --out.")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _discard(place: Path) -> None:
    """Remove the directory of an adaptation that came to nothing: there is nothing in it but its lock."""
    if place.is_dir() and {path.name for path in place.iterdir()} <= {LOCK}:
        with suppress(OSError):
            (place / LOCK).unlink(missing_ok=True)
            place.rmdir()


def _state(place: Path) -> dict[str, Any]:
    """What an adaptation knows so far; {} where there is none."""
    file = place / STATE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return dict(found)
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; restore it from a copy, or give another --out.") from None


@dataclass
class _Session:
    """One adaptation from wherever its directory stands to its end."""

    place: Path
    asked: dict[str, Any]
    how: dict[str, str]
    reporter: Reporter
    clock: Clock
    kind: str
    data: Texts | Photos = field(init=False)
    state: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.state = _state(self.place) or {"asked": self.asked, "elapsed": 0.0, "tried": {}}
        self.clock.set(self.clock.elapsed() + self.state["elapsed"])

    @contextmanager
    def going_on_later(self) -> Iterator[None]:
        """Whatever ends the block early leaves the time that was taken, and a sentence on how to go on."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            self.note()
            raise Interrupted(
                f"Stopped; what was made is kept in {self.place}. Give the same command again to go on."
            ) from None
        except UserError:
            self.note()
            if not any((self.place / name).exists() for name in ("data", "trials")):  # it came to nothing
                (self.place / STATE).unlink()
            raise

    def note(self, **known: Any) -> None:
        """Keep what is known, and the time that has gone by."""
        self.state |= {**known, "elapsed": self.clock.elapsed()}
        write_atomically(self.place / STATE, json.dumps(self.state, indent=1) + "\n")

    @property
    def budget(self) -> float:
        return float(self.asked["budget"])

    @property
    def left(self) -> float:
        return self.budget - self.clock.elapsed()

    # -- the way -------------------------------------------------------------------------------------------

    def run(self) -> Adapted:
        self.note()
        self.data = self._look()
        subject = Subject(find_model(self.asked["model"]), self.kind, self.data)
        self._settle_measure()
        start = self._measured(self.asked["model"], "choose")
        self.reporter.say(f"The start: {self.protocol} {start.value:.4f} {start.unit} on {CHOOSING}.")
        fitting = [(each, each.unfit(subject)) for each in CANDIDATES if each.kind == self.kind]
        seconds = max(LEAST_TRIAL, TRIALS * self.budget / max(1, sum(unfit is None for _, unfit in fitting)))
        tried = [self._tried(each, unfit, subject, start, seconds) for each, unfit in fitting]
        chosen = self._chosen(tried)
        gain = None if chosen is None else self._gone_on(chosen)
        return self._report(subject, tried, chosen, gain)

    def _look(self) -> Texts | Photos:
        asked = self.asked
        with self.reporter.bar("reading"):
            if self.kind in (DECODER, TEXTS):
                return set_aside(asked["data"], asked["column"], asked["failures"], asked["seed"], self.place / "data")
            how = {"column": asked["column"], "failures": asked["failures"]}
            return open_photos(asked["data"], how, self.kind == PAIRS, self.reporter.counting)

    def _trial(self, name: str) -> Path:
        return self.place / "trials" / name

    # -- measuring -----------------------------------------------------------------------------------------

    @property
    def protocol(self) -> str:
        """By which all models are measured."""
        return str(self.state["measure"][0])

    def _settle_measure(self) -> None:
        """The first protocol that is defined for the model on its data, on as many records as there is time for, by how
        long a few take."""
        undefined: list[UserError] = []
        for protocol in () if "measure" in self.state else MEASURES[self.kind]:
            began = self.clock.elapsed()
            try:
                self._measured(self.asked["model"], "choose", (protocol, PROBED))
            except UserError as error:
                undefined.append(error)
                continue
            each = (self.clock.elapsed() - began) / PROBED
            self.note(measure=(protocol, round(min(MOST, max(LEAST, MEASURING * self.budget / each)))))
            return
        if undefined:
            raise undefined[-1]

    def _measured(self, place: str | Path, part: str, by: Sequence[Any] | None = None) -> Score:
        """A model on a part that was set aside: by the protocol that is settled, or another one, with its records."""
        protocol, records = by or self.state["measure"]
        how: dict[str, Any] = {"seed": self.asked["seed"], "records": records, **self.how}
        model = load(place)
        with self.reporter.bar("measuring"):
            how |= {"data": self.data.part(part, model), "progress": self.reporter.counting}
            return measure(Measurement(expanded(place), model, **how), protocol)

    # -- trying --------------------------------------------------------------------------------------------

    def _tried(self, each: Candidate, unfit: str | None, subject: Subject, start: Score, seconds: float) -> Tried:
        """A candidate after its trial, which is not made twice."""
        if each.name in self.state["tried"]:
            return Tried.from_json(self.state["tried"][each.name])
        found = Tried(each.name, each.why, unfit)
        if unfit is None:
            self.reporter.say(f"\n{each.name}, for {duration(seconds)}: {each.why}.")
            found = self._after_trial(each, subject, start, seconds)
        self.note(tried=self.state["tried"] | {each.name: found.to_json()})
        return found

    def _after_trial(self, each: Candidate, subject: Subject, start: Score, seconds: float) -> Tried:
        place = self._trial(each.name)
        try:
            run = self._finished(place) if Run(place).exists else self._begin(each, subject, place, seconds)
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # such as a full disk, which says nothing of the candidate
                raise
            return Tried(each.name, each.why, str(error).rstrip("."))
        gain = Gain.of(CHOOSING, True, start, self._measured(place, "choose"))
        self.reporter.say(f"{each.name}: {gain.difference:+.4f} ({gain.verdict}).")
        return Tried(each.name, each.why, None, gain, run.summary["steps"], run.summary["wall_seconds"])

    def _begin(self, each: Candidate, subject: Subject, place: Path, seconds: float) -> Run:
        settings: dict[str, Any] = {**subject.start}
        for section, values in each.settings.items():
            settings[section] = {**settings.get(section, {}), **values}
        given = {"out": place, "budget": seconds, "seed": self.asked["seed"], "reporter": self.reporter, **self.how}
        return train(each.objective, **self.data.training, **settings, **given)

    def _finished(self, place: Path) -> Run:
        """A run that was begun, at its end."""
        run = Run(place)
        return run if run.summary else train(resume=place, reporter=self.reporter)

    # -- going on ------------------------------------------------------------------------------------------

    def _chosen(self, tried: list[Tried]) -> Tried | None:
        """The candidate that gained most; None where none gained anything."""
        sign = -1.0 if PROTOCOLS[self.protocol].better == "lower" else 1.0
        gained = [(sign * each.gain.difference, each) for each in tried if each.gain is not None]
        most, best = max(gained, key=lambda pair: pair[0], default=(0.0, None))
        return best if most > 0 else None

    def _gone_on(self, chosen: Tried) -> Gain:
        """What the time that is left makes of the chosen candidate, by what is held out to judge by."""
        if "gain" in self.state:
            return gain_from_json(self.state["gain"])
        place = self._trial(chosen.name)
        before = self._measured(self.asked["model"], "judge")
        self._extend(place, chosen.seconds)
        gain = Gain.of(JUDGING, True, before, self._measured(place, "judge"))
        self.note(gain=gain.to_json())
        return gain

    def _extend(self, place: Path, taken: float) -> None:
        """Go on with a run until there is just time to measure what came of it; again, where that was cut short."""
        if "until" not in self.state:
            more = self.left - 2 * MEASURING * self.budget - LEAVING
            self.note(until=taken + more if more >= WORTH * taken else 0.0)
        until, has = self.state["until"], self._finished(place).settings()["train.budget"]
        if until > has:
            self.reporter.say(f"\nGoing on with {place.name} for {duration(until - taken)}.")
            train(resume=place, budget=until, reporter=self.reporter)

    # -- the report ----------------------------------------------------------------------------------------

    def _report(self, subject: Subject, tried: list[Tried], chosen: Tried | None, gain: Gain | None) -> Adapted:
        better = chosen is not None and gain is not None and gain.verdict == "gained"
        facts = {"model": f"{self.asked['model']}: {subject.kind} of type {subject.type!r}", **subject.data.told()}
        made = Adapted(
            self.place,
            self.asked["model"],
            facts | {"measured by": f"{self.protocol}, on up to {self.state['measure'][1]:,} records of each half"},
            self.protocol,
            tried,
            None if chosen is None else chosen.name,
            gain,
            str(self._trial(chosen.name)) if better and chosen is not None else self.asked["model"],
            self.clock.elapsed(),
            self.budget,
        )
        with (self.place / f"{REPORT}.txt").open("w", encoding="utf-8") as file:
            screen = Screen(file)
            screen.width = WIDTH
            made.print(screen)
        if find_spec("matplotlib") and any(each.gain for each in tried):
            with suppress(FileNotFoundError):
                (self.place / f"{REPORT}.png").unlink()
            made.gains().plot(self.place / f"{REPORT}.png")
        write_atomically(self.place / f"{REPORT}.json", json.dumps(made.to_json(), indent=1) + "\n")
        return made
