"""`selfsup.write_report`: all that a run has to show, on one page; several side by side. A training writes its own.

What is not there, or damaged, is said on the page in place of it. The page is bounded: of long curves and of many looks
it has as many as can be told apart, and what is left out is counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfsup.comparison import compare, figures_of, names_of
from selfsup.config import Settings, flatten, read_yaml
from selfsup.diagnosis import doctor
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes, require_free, whole, whole_file, write_new
from selfsup.inspection import inspect
from selfsup.inspection.page import drawn
from selfsup.objectives import find_declared
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.recipe import Recipe
from selfsup.objectives.texts import TextRecipe
from selfsup.pages import self_contained
from selfsup.planning import Plan
from selfsup.run import Run, finite
from selfsup.run_files import METRICS

REPORT, INSPECTION = "report.html", "inspection.json"
LARGEST = 2_000_000  # bytes of a page
POINTS = 900  # lines of metrics that all curves of a page are drawn from, of each part
LOOKS = 40  # samples of a run
TEXT = 4000  # characters of a sample, or of a model card
PICTURED = 800_000  # characters of the pictures of all looks of a page, and of the inspections
WINDOW = 128  # tokens of the inspection of a first batch
SHARE = 0.01  # of the time that a training has taken, for reports at its looks
INSPECTED = 30.0  # seconds that a training has taken, before its first batch is looked at for the report
NO_CURVES = ("step", "time", "split", "records", "of")  # keys of a line of metrics that are no figures
DAMAGE = (
    UserError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)  # what a file of another version may cause


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Put together all that runs have to show, finished or not; of one run also the inspection of its first batch.

    Args:
        runs: directories, one or several.
        out: the page to write, a file that is not there yet; by default none is written.

    Raises:
        UserError: a directory holds no run, one is given twice, or something lies at `out`.
    """
    require_free(out)
    report = report_of(runs)
    (first, *others) = report["runs"]
    if not others and first["inspection"] is None:
        _inspect_again(Run(runs[0]), first)
    made = Report(report, None if out is None else expanded(out))
    if out is not None:
        made.write(out)
    return made


@dataclass(frozen=True)
class Report:
    """What a page shows, as JSON can hold it, and where the page lies."""

    content: dict[str, Any]
    page: Path | None

    def to_json(self) -> dict[str, Any]:
        return self.content

    def write(self, out: str | Path) -> None:
        """Write the page, a file that is not there yet."""
        write_new(out, page_of(self.content))


def report_of(runs: Sequence[str | Path | Run]) -> dict[str, Any]:
    """All that a report draws, as JSON can hold it; only read from the files of the runs."""
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not opened:
        raise UserError("A report is of one run or more; give their directories.")
    if len({run.directory.resolve() for run in opened}) < len(opened):
        raise UserError("A run is given twice; give each directory once.")
    told = [_told(run, name, len(opened)) for run, name in zip(opened, names_of(opened), strict=True)]
    report: dict[str, Any] = {"kind": "report", "runs": told, "differences": [], "notes": []}
    if len(opened) > 1:
        problems: list[str] = []
        found = _attempt(
            problems, "The runs cannot be compared", lambda: compare([run.directory for run in opened]), None
        )
        if found is not None:
            report |= {"differences": [asdict(each) for each in found.differences], "notes": found.notes}
        report["notes"] += problems
    plain: dict[str, Any] = finite(report)
    return plain


def page_of(report: dict[str, Any]) -> str:
    """The page as HTML, below 2 MB: where it would be more, pictures and inspections are left out, and that is said."""
    title = ", ".join(run["name"] for run in report["runs"])
    page = self_contained(title, "report.js", report)
    if len(page.encode(errors="replace")) <= LARGEST:
        return page
    told = "Left out, since the page would be larger than 2 MB: the inspection, and pictures of looks."
    runs = []
    for run in report["runs"]:
        samples = [{**each, "sections": []} for each in run["samples"] if each["text"]]
        runs.append({**run, "inspection": None, "samples": samples, "problems": [*run["problems"], told]})
    return self_contained(title, "report.js", {**report, "runs": runs})


# -- one run -------------------------------------------------------------------------------------------------


def _told(run: Run, name: str, runs: int) -> dict[str, Any]:
    problems: list[str] = []

    def attempt(what: str, find: Callable[[], Any], otherwise: Any) -> Any:
        return _attempt(problems, what, find, otherwise)

    environment = attempt("environment.json", run.environment, {})
    summary = attempt("The summary", lambda: run.summary, {})
    lines = _lines(run, problems)
    config = attempt("The configuration", lambda: _configuration(run), None) or attempt(
        "config.yaml", lambda: _plain_configuration(run), []
    )
    objective = str(next((value for key, value, _ in config if key == "objective"), summary.get("objective", "")))
    kind, plan = find_declared(objective), environment.get("plan")
    known = attempt("The figures", lambda: asdict(replace(figures_of(run, name, lines), train=[], validation=[])), {})
    figures = {key: value for key, value in known.items() if key not in ("name", "train", "validation")}
    skipped = summary.get("skipped_steps")
    return {
        "name": name,
        "directory": str(run.directory),
        "objective": objective,
        "idea": getattr(kind, "idea", ""),
        "figures": {**figures, "peak_memory": summary.get("peak_memory"), "skipped_steps": skipped},
        "curves": _curves(lines, figures.get("unit"), max(60, POINTS // runs)),
        "samples": _samples(run, problems, runs),
        "sample_title": getattr(kind, "sample_title", Recipe.sample_title),
        "findings": attempt("What the doctor finds", lambda: doctor(run).to_json(), None),
        "scores": summary.get("scores") or [],
        "inspection": attempt("The inspection", lambda: _kept_inspection(run, runs), None),
        "plan": attempt("The plan", lambda: Plan(**plan).rows(run.settings()) if plan else {}, {}),
        "machine": {key: environment.get(key) for key in MACHINE if environment.get(key) is not None},
        "config": config,
        "card": attempt("The model card", lambda: _card(run), None),
        "problems": list(dict.fromkeys(problems)),
    }


MACHINE = ("processor", "accelerator", "threads", "processes", "precision", "platform", "python", "torch", "selfsup")


def _attempt(problems: list[str], what: str, find: Callable[[], Any], otherwise: Any) -> Any:
    """What is found, or something else where a file is missing, damaged or of another version; that is noted."""
    try:
        return find()
    except DAMAGE as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        problems.append(f"{what}: {reason}")
        return otherwise


def _lines(run: Run, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics; of a damaged file those that are whole."""
    try:
        return run.metrics()
    except UserError as error:
        problems.append(str(error))
    found = []
    for line in whole(run.directory / "metrics.jsonl").split(b"\n")[:-1]:
        try:
            found.append(METRICS.validate_python(json.loads(line)).model_dump())
        except (ValueError, RecursionError):
            continue
    return found


def _configuration(run: Run) -> list[list[Any]]:
    """Each key with its value and where that came from."""
    settings = run.settings()
    return [[key, _plain(settings[key]), settings.origin(key)] for key in settings.names()]


def _plain_configuration(run: Run) -> list[list[Any]]:
    """As it stands in the file, where this version of the program does not understand it."""
    return [[key, _plain(value), "config.yaml"] for key, value in flatten(read_yaml(run.config_file))]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _card(run: Run) -> str | None:
    path = run.model_directory / "README.md"
    return path.read_text(encoding="utf-8", errors="replace")[:TEXT] if path.is_file() else None


# -- curves --------------------------------------------------------------------------------------------------


def _curves(lines: list[dict[str, Any]], unit: str | None, points: int) -> dict[str, Any]:
    """Columns of the lines of a part, `train` and `validation`, by the names of figures; how many lines there were; how
    much of the unit a step takes."""
    curves: dict[str, Any] = {"per_step": None}
    for part in ("train", "validation"):
        own = [line for line in lines if line.get("split") == part]
        kept = _thinned(own, points)
        keys = dict.fromkeys(key for line in kept for key, value in line.items() if _is_number(value))
        names = ["step", "time", *(key for key in keys if key not in NO_CURVES)]
        curves[part] = {name: [_rounded(line.get(name)) for line in kept] for name in names} | {"lines": len(own)}
        if part == "train" and own and unit and own[-1].get(unit):
            curves["per_step"] = own[-1][unit] / own[-1]["step"]
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _thinned(lines: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many lines: of each stretch that with the lowest loss and that with the highest, so that no spike is
    lost, and the last one."""
    if len(lines) <= most:
        return lines
    stretches = (most - 1) // 2
    chosen = {len(lines) - 1}
    for number in range(stretches):
        stretch = range(number * len(lines) // stretches, (number + 1) * len(lines) // stretches)
        known = [place for place in stretch if lines[place]["loss"] is not None] or [stretch[0]]
        losses = [lines[place]["loss"] or 0.0 for place in known]
        chosen |= {known[losses.index(min(losses))], known[losses.index(max(losses))]}
    return [lines[place] for place in sorted(chosen)]


# -- samples and inspection ----------------------------------------------------------------------------------


def _samples(run: Run, problems: list[str], runs: int) -> list[dict[str, Any]]:
    """What the model made at each look, text or pictures, by its step; of many looks as many as are told apart."""
    steps: dict[int, dict[str, Path]] = {}
    for path in sorted(run.samples.glob("step-*")) if run.samples.is_dir() else ():
        number, kind = path.stem.removeprefix("step-"), path.suffix
        if number.isdecimal() and kind in (".txt", ".json"):
            steps.setdefault(int(number), {})[kind] = path
    chosen = _spread(sorted(steps), max(4, LOOKS // runs))
    sizes = {step: steps[step][".json"].stat().st_size for step in chosen if ".json" in steps[step]}
    room = PICTURED // runs // max([1, *sizes.values()])  # looks whose pictures there is room for
    pictured = set(_spread(sorted(sizes), room))
    if len(pictured) < len([step for step in steps if ".json" in steps[step]]):
        problems.append(f"Pictures of {len(pictured)} looks are shown; samples/ has all.")
    found = []
    for step in chosen:
        files = {kind: path for kind, path in steps[step].items() if kind == ".txt" or step in pictured}
        sample = _attempt(problems, f"The sample of step {step:,}", partial(_sample, step, files), None)
        found += [] if sample is None else [sample]
    return found


def _sample(step: int, files: dict[str, Path]) -> dict[str, Any] | None:
    text = _text_of(files.get(".txt"))
    sections = json.loads(whole(files[".json"])) if ".json" in files else []
    return {"step": step, "text": text, "sections": sections} if text or sections else None


def _text_of(path: Path | None) -> str:
    if path is None:
        return ""
    text = read_bytes(path, 1 << 20).decode(errors="replace")
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many of them, evenly, the last one among them."""
    if len(steps) <= most:
        return steps
    return [steps[(number + 1) * len(steps) // most - 1] for number in range(most)]


def _kept_inspection(run: Run, runs: int) -> dict[str, Any] | None:
    """What a training left of its first batch, where that is small enough."""
    path = run.directory / INSPECTION
    if not path.is_file() or path.stat().st_size > PICTURED // runs:
        return None
    found: dict[str, Any] = json.loads(whole(path))
    return found


def _inspect_again(run: Run, told: dict[str, Any]) -> None:
    """The inspection of a run that has left none, if its data are still there."""

    def look() -> Mapping[str, Any]:
        return drawn(inspect(run=run.directory, **_window(told["objective"], run.settings())))

    told["inspection"] = _attempt(told["problems"], "The first batch", look, None)


def _window(objective: str, settings: Settings) -> dict[str, Any]:
    """How many tokens of the first window are looked at, where an objective has windows."""
    windows = getattr(find_declared(objective, settings.values()), "inspector", "") == "tokens"
    return {"window": min(WINDOW, settings["data.window"])} if windows else {}


# -- of a training that goes on ------------------------------------------------------------------------------


class Reports:
    """Writes the report of a training: at its looks, as long as that takes little of its time, and at its end. A report
    that cannot be written ends no training; that is said once.

    Args:
        say: tells the user.
    """

    def __init__(self, recipe: Recipe, run: Run, say: Callable[[str], None]) -> None:
        self.recipe, self.run, self.say = recipe, run, say
        self.seconds = 0.0  # that reports have taken
        self.failed: set[str] = set()  # what could not be done, and is not tried again

    def at_look(self, elapsed: float) -> None:
        """Write it, unless reports have taken their share of the time already."""
        if self.seconds <= SHARE * elapsed:
            self.write(elapsed)

    def write(self, elapsed: float) -> None:
        """Write it now."""
        began = time.perf_counter()
        if elapsed >= INSPECTED and not (self.run.directory / INSPECTION).exists():
            self._try("The first batch could not be shown", self._inspect)
        self._try("The report could not be written", self._write)
        self.seconds += time.perf_counter() - began

    def _try(self, failure: str, write: Callable[[], None]) -> None:
        if failure in self.failed:
            return
        try:
            write()
        except Exception as error:  # whatever it is, the training is worth more than its report
            self.say(f"{failure} ({type(error).__name__}: {error}).")
            self.failed.add(failure)

    def _write(self) -> None:
        _replace(self.run.directory / REPORT, page_of(report_of([self.run])))

    def _inspect(self) -> None:
        """Leave the inspection of the first batch, of the data as they are opened already."""
        recipe, objective = self.recipe, self.recipe.settings["objective"]
        opened = {ImageRecipe: "images", TextRecipe: "text"}
        source = next((getattr(recipe, name) for kind, name in opened.items() if isinstance(recipe, kind)), None)
        if source is None or recipe.module is not None or objective.startswith("python:"):
            return
        given = {key: value for key, value in flatten(recipe.settings.values()) if value is not None}
        own = {key: value for key, value in given.items() if key not in ("objective", "out")}
        window = _window(objective, recipe.settings)
        found = drawn(inspect(objective, data=source, **window, **own))
        _replace(self.run.directory / INSPECTION, json.dumps(found, ensure_ascii=True, allow_nan=False))


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the former one or this one; it need not outlive a crash of the machine."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
