"""`selfsup.train`: from a configuration to a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from selfsup.budget import Clock
from selfsup.config import LENGTHS, Settings, read_yaml
from selfsup.data.mixing import is_mixture
from selfsup.data.origins import absolute
from selfsup.distributed import Processes, launch, process_group, restarts
from selfsup.errors import UserError
from selfsup.evaluation import LABELLED, LANGUAGE_MODELS, require_known
from selfsup.files import expanded, writable
from selfsup.loggers import require_installed
from selfsup.machine import Machine, describe
from selfsup.objectives import python_name, recipe_of, resolve
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.paper import Asked, PaperPlan, plan_on_paper
from selfsup.planning import Plan, find_machine, make_plan, require_shardable
from selfsup.report import Reporter, duration
from selfsup.run import Run, new_directory
from selfsup.trainer import Team, Trainer, find_schedule


def train(
    objective: str | type[Recipe] | type[Objective] | None = None,
    *,
    data: object = None,
    model: object = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
    origin: str = "python",
    clock: Clock | None = None,
    **values: Any,
) -> Run:
    """Train, and return the finished run.

    Args:
        objective: a name such as `causal-lm`, a `Recipe`, or an `Objective` of your own: it is built with `model`
            as its only argument (or none), and `data` then is your own records (`len`, `read`).
        data: a path, glob, `hub:NAME` or `sample:NAME`; from Python also a list of texts, a `datasets.Dataset`, a
            source or records of your own.
        model: a preset by name, settings of the model as a mapping, or a network of your own.
        out: the run directory; runs/OBJECTIVE-SOURCE where it is not given.
        config: a YAML file, such as the config.yaml of another run.
        resume: the directory of a run to go on with; with `steps` or `budget`, beyond its end.
        clock: what a budget is counted by, where it began before this call.
        values: any other setting, by short name (`budget="10m"`) or by section (`optim={"lr": 0.01}`).

    Raises:
        UserError: whatever the user can put right.
    """
    given = Given(objective, data, model, values, origin, out, config)
    with process_group() as processes, ExitStack() as held:
        team = Team(processes, reporter or Reporter(processes.leads), clock or Clock())
        if resume is not None:
            return _resume(resume, given, team, held)
        begun = _begun(given, processes)
        if begun is None:
            return _start(given, team, held)
        done = processes.share(bool(begun.summary) if processes.leads else None)
        return begun if done else _resume(begun.directory, given.again(), team, held)


def plan(
    objective: str | type[Recipe] | type[Objective] | None = None,
    *,
    data: object = None,
    model: object = None,
    config: str | Path | None = None,
    gpus: str | None = None,
    tokens: float | str | None = None,
    price: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
    origin: str = "python",
    **values: Any,
) -> tuple[Plan | PaperPlan, Settings]:
    """What `train` with the same arguments would do: sizes, arithmetic, memory, time. Trains and writes nothing.

    Args:
        gpus: machines that are not here, such as `256:h100`: the plan is made on paper, see `selfsup.paper`. Without
            `data`, that is of a training on data of which nothing is known but how much there is.
        tokens: that are trained on, on paper: a number, `140B`; of an objective of images their number.
        price: of a GPU hour, for the cost on paper.
        utilisation: the share of the published rate that is reached, on paper.

    Raises:
        UserError: whatever the user can put right.
    """
    given = Given(objective, data, model, values, origin, config=config)
    asked = None if gpus is None else Asked.of(gpus, tokens, price, utilisation)
    if asked is None and (tokens, price, utilisation) != (None, None, None):
        raise UserError("tokens, price and utilisation belong to a plan on paper; name its machines by gpus (8:h100).")
    settings = given.settings()
    recipe = _recipe(settings, given)
    team = Team(Processes(), reporter or Reporter(False), Clock())
    if asked is not None:
        opened = settings.origin("data.source") != "default"
        if opened:
            _open(recipe, team)
        return plan_on_paper(recipe, asked, opened), settings
    with process_group() as processes:
        made, _ = _prepare(recipe, replace(team, processes=processes))
    return made, settings


@dataclass(frozen=True)
class Given:
    """What `train` or `plan` was called with; `values` by short, dotted or nested keys."""

    objective: object
    data: object
    model: object
    values: Mapping[str, Any]
    origin: str
    out: str | Path | None = None
    config: str | Path | None = None

    def all_values(self) -> dict[str, Any]:
        """All settings that were given; objects from Python are named, not kept."""
        objective = python_name(self.objective) if isinstance(self.objective, type) else self.objective
        data = absolute(str(self.data)) if isinstance(self.data, str | Path) else self.data
        named = {"objective": objective, "data": _in_words(data), "model": _in_words(self.model)}
        return {**self.values, **{name: value for name, value in named.items() if value is not None}}

    @property
    def recipe(self) -> type[Recipe] | None:
        """The recipe that is given itself, where one is."""
        kind = self.objective
        return kind if isinstance(kind, type) and issubclass(kind, Recipe) else None

    def again(self) -> Given:
        """What only Python can give; all else stands in the run's configuration."""
        objective, data, model = (None if _is_named(x) else x for x in (self.objective, self.data, self.model))
        return replace(self, objective=objective, data=data, model=model, values={}, out=None, config=None)

    def settings(self) -> Settings:
        """The settings of a new run; nothing is opened yet."""
        layers: list[tuple[str, Mapping[str, Any]]] = [(self.origin, self.all_values())]
        if self.config is not None:
            values = read_yaml(expanded(self.config))
            values.pop("out", None)  # a run directory belongs to one run
            layers.insert(0, (str(self.config), values))
        settings = resolve(*layers) if self.recipe is None else self.recipe.resolve(*layers)
        for protocol in settings["evaluate.protocols"]:
            require_known(protocol)  # before a step is made, not at the first look
        require_installed(settings["log.to"])
        source = absolute(settings["data.source"])
        settings.change("data.source", source, settings.origin("data.source"))
        if (replay := settings["data.replay"]) is not None:
            source, share = replay.rpartition(":")[::2]
            settings.change("data.replay", f"{absolute(source)}:{share}", settings.origin("data.replay"))
        if self.out is not None:
            settings.change("out", str(expanded(self.out).absolute()), self.origin)
        return settings


def _is_named(value: object) -> bool:
    """Whether a configuration says all of it; a mixture is a mapping, but none of settings."""
    return isinstance(value, str | Path | Mapping | None) and not (isinstance(value, Mapping) and is_mixture(value))


def _in_words(value: object) -> object:
    return value if _is_named(value) else f"python:{type(value).__name__}"


def _recipe(settings: Settings, given: Given) -> Recipe:
    source = None if _is_named(given.data) else given.data
    if source is None and settings["data.source"].startswith("python:"):
        raise UserError(f"The data ({settings['data.source']}) came from Python; go on from there and pass it again.")
    module = given.model if isinstance(given.model, nn.Module) else None
    if given.recipe is not None:
        return given.recipe(settings, source, module)
    if isinstance(given.objective, type) and issubclass(given.objective, Objective):
        from selfsup.objectives.custom import CustomRecipe

        return CustomRecipe(settings, source, module, given.objective)
    recipe = recipe_of(settings)
    if module is not None and not recipe.takes_modules:
        raise UserError(
            f"{settings['objective']} takes no network from Python; name one that transformers opens by model=hf:DIR."
        )
    if settings.origin("data.source") == "default":
        settings.change("data.source", recipe.example, "default")
    return recipe(settings, source, module)


def _begun(given: Given, processes: Processes) -> Run | None:
    """The run to go on with of processes that their launcher has started again, be it for one of them that ended, or
    for a machine that came or went; None at their first start, or before there was a run.

    Raises a UserError where nothing would say which one it is.
    """
    if not restarts():
        return None
    if given.out is None:
        raise UserError(
            "A launcher that starts its processes again (--max-restarts) needs to know their run; give --out."
        )
    run = Run(given.out)
    begun = processes.leads and run.exists and run.environment().get("launch") == launch()
    return run if processes.share(begun) else None


def _start(given: Given, team: Team, held: ExitStack) -> Run:
    """Train anew."""
    settings, processes = given.settings(), team.processes
    recipe = _recipe(settings, given)
    if settings["out"] is None:
        source = Path(settings["data.source"].rpartition(":")[2]).name.partition(".")[0]
        directory = new_directory(f"{settings['objective']}-{source}".replace(":", "-"))
        settings.change("out", processes.share(str(directory.absolute())), "free name")
    run = Run(settings["out"])
    if processes.leads:
        run = Run.create(settings["out"])
        held.enter_context(run.held())
    try:
        made, machine = _prepare(recipe, team)
        if processes.leads:
            _write_down(run, recipe, made, {**describe(machine), "processes": processes.size, "launch": launch()})
    except BaseException:
        run.discard()
        raise
    with run.resumable():
        processes.wait()
        team.reporter.table(made.rows(settings))
        return _fit(Trainer(recipe, run, machine, team), made.steps)


def _write_down(run: Run, recipe: Recipe, made: Plan, where: Mapping[str, Any]) -> None:
    """Keep what the run is, before its first step."""
    data = {"data": recipe.fingerprint(), "counts": recipe.counts(), "start": recipe.adaptation.fingerprint()}
    plan = {"plan": made.to_json(), "sources": recipe.settings.sources}
    with writable(run.directory, "make room there, or give another --out."):
        run.write_environment({**where, **data, **plan})
        run.write_settings(recipe.settings)


def _prepare(recipe: Recipe, team: Team) -> tuple[Plan, Machine]:
    _open(recipe, team)
    return make_plan(recipe, team.processes, team.clock)


def _open(recipe: Recipe, team: Team) -> None:
    """Open the data: on each machine one process first, so that the others there find what it prepared."""
    require_shardable(recipe)
    if not recipe.mixes and is_mixture(recipe.given_source):
        raise UserError(f"{recipe.settings['objective']} trains on one source, not on a mixture; name one by --data.")
    processes, reporter = team.processes, team.reporter
    with reporter.bar("reading"):
        for prepares in (True, False):
            if processes.prepares == prepares:
                recipe.open(reporter.reading)
            processes.wait(lambda: reporter.advance(0.0, "waiting for other processes to read their data"))
    _require_same_data(recipe, processes)
    _require_measurable(recipe)


def _require_same_data(recipe: Recipe, processes: Processes) -> None:
    """Refuse to train on what is one thing here and another one on another machine."""
    data = recipe.fingerprint()
    if processes.share(data) != data:
        raise UserError(
            f"{recipe.settings['data.source']} is not the same here as for process 0; put the same files there on "
            "every machine."
        )


def _require_measurable(recipe: Recipe) -> None:
    """Refuse protocols that there are no records for."""
    if recipe.settings["evaluate.data"] is not None:
        return
    for protocol in recipe.settings["evaluate.protocols"]:
        if protocol in LANGUAGE_MODELS and is_mixture(recipe.given_source):
            raise UserError(f"{protocol} needs one text and a mixture has several; name one by evaluate.data.")
        if protocol not in LANGUAGE_MODELS and not recipe.measurable(protocol in LABELLED):
            needed = "records with their classes" if protocol in LABELLED else "records"
            raise UserError(
                f"{protocol} needs {needed} to be measured on, which this run has none of; name them by evaluate.data."
            )


def _fit(trainer: Trainer, estimate: int, before: int | None = None) -> Run:
    """Train from the newest checkpoint (at or before a step, to extend the run), or from the first step."""
    run, team = trainer.run, trainer.team
    _require_one_directory(trainer)
    checkpoint = trainer.everywhere(lambda: trainer.checkpoints.newest(before, trainer.misfit))
    trainer.reached = team.processes.share(run.reached if before is None else 0)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        team.reporter.say(f"Going on from step {checkpoint.step:,}.")
    elif trainer.checkpoints.steps():
        raise UserError(
            f"All checkpoints in {run.checkpoints_directory} are damaged; restore one from a copy, or "
            f"{run.start_another}."
        )
    elif team.processes.leads:
        run.rewind(0)
    trainer.fit(estimate)
    team.reporter.say(f"Done in {duration(team.clock.elapsed())}; the model lies in {run.model_directory}.")
    return run


def _require_one_directory(trainer: Trainer) -> None:
    """Raise a UserError where processes save together, and one of them does not see where."""
    there = trainer.processes.collect((trainer.run.directory.is_dir(), trainer.processes.name))
    missing = [name for sees, name in there if not sees]
    if trainer.sharded and missing:
        raise UserError(
            f"Every process of a sharded training writes its part of the checkpoints, and {missing[0]} does not see "
            f"{trainer.run.directory}; give an --out that all machines share."
        )


ASIDE = ("data.workers", "log.to")  # which change nothing that is computed
FREE = (*LENGTHS, *ASIDE)  # what a resumed run may change without computing anything else


def _resume(directory: str | Path, given: Given, team: Team, held: ExitStack) -> Run:
    """Go on with a run: from its newest whole checkpoint, or, to extend it, from before its decay."""
    processes = team.processes
    run = Run.open(directory) if processes.leads else Run(directory)  # which other machines need not see
    if processes.leads:
        held.enter_context(run.held())
        run.require_readable()
    settings, environment, summary = processes.share(
        (run.settings(given.recipe), run.environment(), run.summary) if processes.leads else None
    )
    asked = Settings((given.origin, given.all_values()), sections=settings.sections)
    changes = _changes(run, settings, asked, given)
    length = {key: value for key, value in changes.items() if key in LENGTHS}
    if summary and not length:
        raise UserError(
            f"{run.directory} is finished ({summary['steps']:,} steps); extend it with --steps or --budget, or "
            f"{run.start_another}."
        )
    team = replace(team, clock=Clock())  # the time that the run has taken already is in its checkpoint
    for key in changes.keys() & set(ASIDE):
        settings.change(key, changes[key], given.origin)
    require_installed(settings["log.to"])
    recipe = _recipe(settings, given)
    machine = open_again(run, environment, recipe, team)
    before = None
    with run.resumable():
        if length:
            before = processes.share(_extend(run, settings, length, given.origin) if processes.leads else None)
            for key in LENGTHS:
                settings.change(key, *processes.share((settings[key], settings.origin(key))))
        return _fit(Trainer(recipe, run, machine, team), _expected(settings, environment["plan"]), before)


def _changes(run: Run, settings: Settings, asked: Settings, given: Given) -> dict[str, Any]:
    """What is to change in a run that goes on; raises a UserError where it would compute something else then."""
    differing = {key: asked[key] for key in asked.sources if asked[key] != settings[key]}
    kept = [key for key in differing if key not in FREE]
    kept += [f"--{name}" for name in ("out", "config") if getattr(given, name) is not None]
    if kept:
        raise UserError(
            f"A resumed run keeps its configuration, so {', '.join(kept)} cannot be given with "
            f"--resume {run.directory}; {run.start_another}."
        )
    return {key: value for key, value in differing.items() if value is not None}


def _expected(settings: Settings, plan: Mapping[str, Any]) -> int:
    """Steps that a run is expected to make: as planned, or as many as another budget buys at the planned pace."""
    budget, planned = settings["train.budget"], plan["settings"]["train"].get("budget")
    return round(plan["steps"] * budget / planned) if budget and planned else int(plan["steps"])


def _extend(run: Run, settings: Settings, length: Mapping[str, Any], origin: str) -> int | None:
    """Give a run another length; what it made after its decay began is moved to earlier/.

    Returns the step from before the decay, or None for a run on a budget that has not begun its decay.
    """
    asked = Settings((origin, length))
    if asked["train.epochs"] is not None:
        raise UserError("A run is extended by --steps or --budget; give one of them.")
    begun = find_schedule(settings, run).start
    steps = run.checkpoints().steps()
    made = run.summary.get("steps") or (steps[-1] if steps else 0)
    if asked["train.steps"] is not None and asked["train.steps"] <= made:
        raise UserError(f"{run.directory} has made {made:,} steps already; give more than that to extend it.")
    wall = run.summary.get("wall_seconds") or 0.0
    if asked["train.budget"] is not None and asked["train.budget"] <= wall:
        raise UserError(
            f"{run.directory} has taken {duration(wall)} already; give a larger --budget (of the whole run)."
        )
    if begun is not None and made > begun:
        if problem := run.checkpoints().problem(begun):
            raise UserError(
                f"The checkpoint from before the decay (step {begun:,} of {run.directory}) is unusable ({problem}); "
                f"{run.start_another}."
            )
        run.set_aside(begun)
    if begun is not None:
        run.note({"extended_from": min(begun, made)})
    for key in ("train.steps", "train.budget"):
        settings.change(key, asked[key], f"{origin}, extending step {begun or made:,}")
    run.write_settings(settings)
    run.write_environment({**run.environment(), "sources": settings.sources})
    return begun


def open_again(run: Run, recorded: Mapping[str, Any], recipe: Recipe, team: Team) -> Machine:
    """Open the data of a run again, and make sure that it is the same data, and the same start."""
    machine = find_machine(recipe.settings, team.processes)
    _open(recipe, team)
    recipe.settle(Effort())
    if recorded.get("start") != recipe.adaptation.fingerprint():
        places = ", ".join(str(recipe.settings[key]) for key in dict(recipe.adaptation.bodies))
        raise UserError(
            f"The weights that {run.directory} starts from ({places}) have changed since it began, so it cannot be "
            f"resumed; restore them, or {run.start_another}."
        )
    if recorded.get("data") != recipe.fingerprint():
        raise UserError(
            f"The data of {run.directory} ({recipe.settings['data.source']}) has changed since the run began, so it "
            f"cannot be resumed; restore it, or {run.start_another}."
        )
    return machine
