"""`selfsup.train`: from a configuration to a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from selfsup.budget import Clock
from selfsup.checkpoint import Checkpoint
from selfsup.config import LENGTHS, Settings, flatten, read_yaml
from selfsup.distributed import Processes, process_group
from selfsup.errors import UserError
from selfsup.evaluation import LABELLED, LANGUAGE_MODELS, require_known
from selfsup.files import expanded, writable
from selfsup.machine import Machine, describe
from selfsup.objectives import find_recipe, python_name, resolve
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.planning import Plan, find_machine, make_plan
from selfsup.report import Reporter, duration
from selfsup.run import Run, new_directory
from selfsup.trainer import Trainer, decay_start


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
    clock = clock or Clock()
    given = _given(values, objective, data, model)
    with process_group() as processes, ExitStack() as held:
        reporter = reporter or Reporter(processes.leads)
        if resume is not None:
            return _resume(
                resume, objective, data, model, given, out, config, origin, processes, reporter, held
            )
        settings = _settings(objective, given, out, config, origin)
        recipe = _recipe(settings, objective, data, model)
        return _start(settings, recipe, processes, reporter, clock, held)


def plan(
    objective: str | type[Recipe] | type[Objective] | None = None,
    *,
    data: object = None,
    model: object = None,
    config: str | Path | None = None,
    reporter: Reporter | None = None,
    origin: str = "python",
    **values: Any,
) -> tuple[Plan, Settings]:
    """What `train` with the same arguments would do: sizes, arithmetic, memory, time. Trains and writes nothing."""
    settings = _settings(objective, _given(values, objective, data, model), None, config, origin)
    recipe = _recipe(settings, objective, data, model)
    with process_group() as processes:
        made, _ = _prepare(settings, recipe, processes, reporter or Reporter(False), Clock())
    return made, settings


def _given(values: Mapping[str, Any], objective: object, data: object, model: object) -> dict[str, Any]:
    """All settings that were given; raises a UserError where one is given both by itself and by its key."""
    named = _as_settings(objective, data, model)
    if twice := values.keys() & named.keys():
        raise UserError(f"{min(twice)} is given twice, by itself and by its key; give it once.")
    return {**values, **named}


def _as_settings(objective: object, data: object, model: object) -> dict[str, Any]:
    """What of the three can stand in a configuration; objects from Python are named, not kept."""
    given: dict[str, Any] = {}
    if isinstance(objective, str):
        given["objective"] = objective
    elif isinstance(objective, type):
        given["objective"] = python_name(objective)
    if isinstance(data, Mapping):
        given["data"] = data
    elif isinstance(data, str | Path):
        given["data.source"] = _absolute(str(data))
    elif data is not None:
        given["data.source"] = f"python:{type(data).__name__}"
    if isinstance(model, str | Mapping):
        given["model"] = model
    elif model is not None:
        given["model.preset"] = f"python:{type(model).__name__}"
    return given


def _absolute(source: str) -> str:
    """A local path as an absolute one, so that a run can be resumed from anywhere."""
    if not source or source.startswith(("sample:", "hub:", "python:")):
        return source
    return str(expanded(source).absolute())


def _settings(
    objective: object,
    given: Mapping[str, Any],
    out: str | Path | None,
    config: str | Path | None,
    origin: str,
) -> Settings:
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if config is not None:
        values = read_yaml(expanded(config))
        values.pop("out", None)  # a run directory belongs to one run
        layers.append((str(config), values))
    layers.append((origin, given))
    recipe = _recipe_class(objective)
    settings = resolve(*layers) if recipe is None else recipe.resolve(*layers)
    for protocol in settings["evaluate.protocols"]:
        require_known(protocol)  # before a step is made, not at the first look
    settings.change("data.source", _absolute(settings["data.source"]), settings.origin("data.source"))
    if out is not None:
        settings.change("out", str(expanded(out).absolute()), origin)
    return settings


def _recipe_class(objective: object) -> type[Recipe] | None:
    """The recipe that is given itself, where one is."""
    return objective if isinstance(objective, type) and issubclass(objective, Recipe) else None


def _recipe(settings: Settings, objective: object, data: object, model: object) -> Recipe:
    source = None if isinstance(data, str | Path | Mapping) else data
    if source is None and settings["data.source"].startswith("python:"):
        raise UserError(
            f"The data ({settings['data.source']}) came from Python; go on from there and pass it again."
        )
    module = model if isinstance(model, nn.Module) else None
    if isinstance(objective, type) and issubclass(objective, Recipe):
        return objective(settings, source, module)
    if isinstance(objective, type) and issubclass(objective, Objective):
        from selfsup.objectives.custom import CustomRecipe

        return CustomRecipe(settings, source, module, objective)
    recipe = find_recipe(settings["objective"])
    if module is not None and not recipe.takes_modules:
        raise UserError(
            f"{settings['objective']} takes no network from Python; name one that transformers opens by model=hf:DIR."
        )
    if settings.origin("data.source") == "default":
        settings.change("data.source", recipe.example, "default")
    return recipe(settings, source, module)


def _start(
    settings: Settings,
    recipe: Recipe,
    processes: Processes,
    reporter: Reporter,
    clock: Clock,
    held: ExitStack,
) -> Run:
    if settings["out"] is None:
        source = Path(settings["data.source"].rpartition(":")[2]).name.partition(".")[0]
        directory = new_directory(f"{settings['objective']}-{source}".replace(":", "-"))
        settings.change("out", processes.share(str(directory.absolute())), "free name")
    run = Run(settings["out"])
    if processes.leads:
        run = Run.create(settings["out"])
        held.enter_context(run.held())
    try:
        made, machine = _prepare(settings, recipe, processes, reporter, clock)
        if processes.leads:
            environment = {
                **describe(machine),
                "processes": processes.size,
                "data": recipe.fingerprint(),
                "counts": recipe.counts(),
                "plan": made.to_json(),
                "sources": settings.sources,
            }
            with writable(run.directory, "make room there, or give another --out."):
                run.write_environment(environment)
                run.write_settings(settings)
    except BaseException:
        run.discard()
        raise
    with run.resumable():
        processes.wait()
        reporter.table(made.rows(settings))
        return _fit(recipe, settings, run, machine, processes, clock, reporter, made.steps)


def _prepare(
    settings: Settings, recipe: Recipe, processes: Processes, reporter: Reporter, clock: Clock
) -> tuple[Plan, Machine]:
    _open(recipe, processes, reporter)
    return make_plan(settings, recipe, processes, clock)


def _open(recipe: Recipe, processes: Processes, reporter: Reporter) -> None:
    """Open the data: on each machine one process first, so that the others there find what it prepared."""

    def wait() -> None:
        processes.wait(lambda: reporter.advance(0.0, "waiting for other processes to read their data"))

    with reporter.bar("reading"):
        if processes.prepares:
            recipe.open(reporter.reading)
        wait()
        if not processes.prepares:
            recipe.open(reporter.reading)
        wait()
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
        if protocol not in LANGUAGE_MODELS and not recipe.measurable(protocol in LABELLED):
            needed = "records with their classes" if protocol in LABELLED else "records"
            raise UserError(
                f"{protocol} needs {needed} to be measured on, which this run has none of; name them by evaluate.data."
            )


def _fit(
    recipe: Recipe,
    settings: Settings,
    run: Run,
    machine: Machine,
    processes: Processes,
    clock: Clock,
    reporter: Reporter,
    estimate: int,
    before: int | None = None,
) -> Run:
    trainer = Trainer(recipe, settings, run, machine, processes, clock, reporter)
    checkpoint = _newest(trainer, processes, before)
    trainer.reached = processes.share(run.reached if before is None else 0)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        reporter.say(f"Going on from step {checkpoint.step:,}.")
    elif trainer.checkpoints.steps():
        raise UserError(
            f"All checkpoints in {run.checkpoints_directory} are damaged; restore one from a copy, or start another "
            f"run with --config {run.config_file} --out NEW."
        )
    elif processes.leads:
        run.rewind(0)
    trainer.fit(estimate)
    reporter.say(f"Done in {duration(clock.elapsed())}; the model lies in {run.model_directory}.")
    return run


def _newest(trainer: Trainer, processes: Processes, before: int | None) -> Checkpoint | None:
    """The newest checkpoint, which the leading process reads: others may be on machines that do not see the run."""
    found = trainer.checkpoints.newest(before, trainer.misfit) if processes.leads else None
    place = processes.share(None if found is None else (found.step, found.state, list(found.tensors)))
    if place is None:
        return None
    step, state, names = place
    tensors = {name: processes.share_tensors(found.tensors[name] if found else None) for name in names}
    return Checkpoint(step, tensors, state)


FREE = (*LENGTHS, "data.workers")  # what a resumed run may change without computing anything else


def _resume(
    directory: str | Path,
    objective: object,
    data: object,
    model: object,
    given: Mapping[str, Any],
    out: str | Path | None,
    config: str | Path | None,
    origin: str,
    processes: Processes,
    reporter: Reporter,
    held: ExitStack,
) -> Run:
    """Go on with a run: from its newest whole checkpoint, or, to extend it, from before its decay."""
    run = Run.open(directory) if processes.leads else Run(directory)  # which other machines need not see
    if processes.leads:
        held.enter_context(run.held())
        run.require_readable()
    settings, environment, summary = processes.share(
        (run.settings(_recipe_class(objective)), run.environment(), run.summary) if processes.leads else None
    )
    changes = {key: value for key, value in flatten(given) if key in FREE and value is not None}
    asked = Settings((origin, given), sections=settings.sections)
    others = [key for key in asked.sources if key not in FREE and asked[key] != settings[key]]
    if others or out is not None or config is not None:
        what = ", ".join(others) or ("--out" if out is not None else "--config")
        raise UserError(
            f"A resumed run keeps its configuration, so {what} cannot be given with --resume {directory}; "
            f"start another run with --config {run.config_file} --out NEW."
        )
    length = {key: asked[key] for key in changes if key in LENGTHS and asked[key] != settings[key]}
    if summary and not length:
        raise UserError(
            f"{directory} is finished ({summary['steps']:,} steps); extend it with --steps or --budget, "
            f"or start another with --config {run.config_file} --out NEW."
        )
    clock = Clock()
    if "data.workers" in changes:
        settings.change("data.workers", changes["data.workers"], origin)
    recipe = _recipe(settings, objective, data, model)
    machine = _open_again(run, environment.get("data"), settings, recipe, processes, reporter)
    before = None
    with run.resumable():
        if length:
            before = processes.share(_extend(run, settings, length, origin) if processes.leads else None)
            for key in LENGTHS:
                settings.change(key, processes.share(settings[key]), processes.share(settings.origin(key)))
        estimate = _expected(settings, environment["plan"])
        return _fit(recipe, settings, run, machine, processes, clock, reporter, estimate, before)


def _expected(settings: Settings, plan: Mapping[str, Any]) -> int:
    """Steps that a run is expected to make: as planned, or as many as another budget buys at the planned pace."""
    budget, planned = settings["train.budget"], plan["settings"]["train"].get("budget")
    return round(plan["steps"] * budget / planned) if budget and planned else int(plan["steps"])


def _extend(run: Run, settings: Settings, length: Mapping[str, Any], origin: str) -> int | None:
    """Give a run another length; what it made after its decay began is moved to earlier/.

    Returns:
        The step from before the decay, or None for a run on a budget that has not begun its decay.
    """
    asked = Settings((origin, length))
    if asked["train.epochs"] is not None:
        raise UserError("A run is extended by --steps or --budget; give one of them.")
    begun = decay_start(settings, run)
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
        problem = run.checkpoints().problem(begun)
        if problem is not None:
            raise UserError(
                f"The checkpoint from before the decay (step {begun:,} of {run.directory}) is unusable ({problem}); "
                f"start another run with --config {run.config_file} --out NEW."
            )
        run.set_aside(begun)
    if begun is not None:
        run.note({"extended_from": min(begun, made)})
    for key in ("train.steps", "train.budget"):
        settings.change(key, asked[key], f"{origin}, extending step {begun or made:,}")
    run.write_settings(settings)
    run.write_environment({**run.environment(), "sources": settings.sources})
    return begun


def _open_again(
    run: Run,
    recorded: str | None,
    settings: Settings,
    recipe: Recipe,
    processes: Processes,
    reporter: Reporter,
) -> Machine:
    """Open the data of a run again, and make sure that it is the same data."""
    machine = find_machine(settings, processes)
    _open(recipe, processes, reporter)
    recipe.settle(Effort())
    if recorded != recipe.fingerprint():
        raise UserError(
            f"The data of {run.directory} ({settings['data.source']}) has changed since the run began, so it cannot be "
            f"resumed; restore it, or start another run with --config {run.config_file} --out NEW."
        )
    return machine
