"""The one loop. It knows records, tasks and scores; it knows no objective by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from statistics import median
from typing import Any, NoReturn

import torch
from torch import Tensor

from selfsup.accounting import Accounts, of_run
from selfsup.budget import Budget, Clock
from selfsup.config import Settings
from selfsup.data.loader import in_order
from selfsup.data.mixture import Mixture, looked_at
from selfsup.data.records import Batch, Records
from selfsup.diagnosis import Monitor
from selfsup.distributed import Processes
from selfsup.errors import Interrupted, UserError
from selfsup.evaluation import SUPERVISED, measure
from selfsup.evaluation.base import Measurement
from selfsup.evaluation.spread import spread
from selfsup.inspection.samples import seen_by
from selfsup.loggers import Loggers
from selfsup.machine import Machine, peak_memory
from selfsup.models.parity import import_transformers, uncompared
from selfsup.objectives.averaging import MIXES, Averages, Tried, choose
from selfsup.objectives.recipe import Recipe
from selfsup.optim import Decay, Schedule, misshapen
from selfsup.planning import loader_of, optimizer_of, ready, sharded
from selfsup.report import Reporter, duration
from selfsup.reporting import Reports
from selfsup.run import Run, finite
from selfsup.run_files import STATE, explain
from selfsup.saving import Checkpoint, digest
from selfsup.sharding import load, own, total_norm, whole_state
from selfsup.step import evaluate, gradients
from selfsup.stopping import interruptions

MOST_SKIPPED_IN_A_ROW = 10
REHEARSED = 64  # records that are embedded to see how long that takes
FEATURE_RECORDS = 512  # of which features are looked at
LOWER = 1e-3  # of the held-out loss at the end, that an earlier look has to be lower by to be kept in its place
EVALUATION_SEED = 0  # one fixed task, the same for every run


@dataclass(frozen=True)
class Team:
    """Who works on a training: its processes, the clock of its budget, and what tells the user."""

    processes: Processes
    reporter: Reporter
    clock: Clock


class Trainer:
    """One training from wherever its run stands to its end."""

    def __init__(self, recipe: Recipe, run: Run, machine: Machine, team: Team) -> None:
        self.recipe, self.settings, self.run, self.machine = recipe, recipe.settings, run, machine
        self.team, self.processes, self.reporter, self.clock = team, team.processes, team.reporter, team.clock
        settings, processes = self.settings, self.processes
        self.sharded = sharded(recipe, processes)
        self.objective = ready(recipe, machine, processes)
        self.optimizer = optimizer_of(recipe, self.objective, settings.config.optim, machine)
        self.resting = recipe.adaptation.resting(self.objective)
        self.still = recipe.adaptation.still(self.objective)
        self.checkpoints = run.checkpoints(settings["checkpoint.keep"], processes if self.sharded else None)
        self.schedule: Schedule = processes.share(find_schedule(settings, run) if processes.leads else None)
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.best: dict[str, float] | None = None  # the look with the lowest held-out loss, its step and that
        self.best_before_decay: dict[str, float] | None = None  # the same when the run began to decay
        self.kept: dict[str, float] | None = None  # that look, where its weights are kept in place of the end's
        self.starts: dict[int, dict[str, Any]] = {}  # what the start was, by the records that were looked at
        self.saved: int | None = None
        self.pace: list[float] = []  # seconds of the latest steps
        self.accounts = Accounts()
        self.reports = Reports(recipe, run, self.reporter.say)
        self.scores: list[dict[str, Any]] = []  # of the protocols that the latest look measured
        self.logged = 0  # step of the last line of metrics
        self.monitor = Monitor(run.directory, settings, run.environment(), recipe.checks)
        names = settings["log.to"] if processes.leads else ()
        self.loggers = Loggers(names, run.loggers_directory, settings, self.reporter.say)
        self.reached = 0  # step up to which an earlier session is repeated, with its decisions and no others
        self.estimate = 0  # of the number of steps, where a budget decides it
        self.budget = Budget(settings, self.clock, recipe.whitening_records, recipe.checks_layout)

    # -- where the run stands ------------------------------------------------------------------------------

    def misfit(self, checkpoint: Checkpoint) -> str | None:
        """What keeps a checkpoint from being one of this run; None where nothing does."""
        try:
            STATE.validate_python(checkpoint.state)
        except ValueError as error:
            return f"state.json, {explain(error)}"
        expected = self.objective.state_dict()
        if problem := misshapen(checkpoint.model(expected), expected):
            return f"its model, {problem}"
        moments = checkpoint.tensors.get("optimizer", {})
        if len(moments) != checkpoint.state.get("optimizer", len(moments)):
            return "its optimizer lacks tensors"
        if problem := self.optimizer.misfit(moments):
            return f"its optimizer, {problem}"
        problem = misshapen(checkpoint.tensors.get("renewed", {}), self.recipe.renewed)
        return None if problem is None else f"its records, {problem}"

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand exactly where a checkpoint stood."""
        self._take(checkpoint)
        self.recipe.renewed.update(checkpoint.tensors.get("renewed", {}))
        state = checkpoint.state
        self.step = self.saved = self.logged = checkpoint.step
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.best, self.best_before_decay = state["best"], state.get("best_before_decay")
        self.clock.set(state["elapsed"])
        if self.processes.leads:
            self.run.rewind(self.step, look_again=self._at_end)
        self.processes.wait()

    def _take(self, checkpoint: Checkpoint) -> None:
        """The weights of a checkpoint, and what the optimizer remembers of them."""
        load(self.objective, checkpoint.model(self.objective.state_dict()))
        self.optimizer.load_state(checkpoint.tensors["optimizer"])

    def _save(self) -> None:
        if self.saved == self.step or not (self.processes.leads or self.sharded):
            return
        moments, model = self.optimizer.state(), self.objective.state_dict()
        for name in self.still:
            del model[name]
        state = {
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "best_before_decay": self.best_before_decay,  # of a run that is extended from there
            "elapsed": self.clock.elapsed(),
            "optimizer": len(moments),
            "still": self._digest_of_still,
        }
        marked = {int(best["step"]) for best in (self.best, self.best_before_decay) if best}
        if self.schedule.start is not None:
            marked.add(self.schedule.start)
        tensors = {"model": model, "optimizer": moments}
        tensors |= {"renewed": self.recipe.renewed} if self.recipe.renewed else {}
        with self.accounts.checkpoints.running():
            self.checkpoints.save(Checkpoint(self.step, tensors, state), marked)
        self.saved = self.step

    @cached_property
    def _digest_of_still(self) -> str | None:
        """Of the weights that checkpoints go without: they are at every step what they are at the first one."""
        model = self.objective.state_dict()
        return digest({name: model[name] for name in self.still}) if self.still else None

    def everywhere(self, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """The checkpoint that the leading process finds, on every process: others may not see the run's directory."""
        processes = self.processes
        found = find() if processes.leads else None
        place = processes.share(None if found is None else (found.step, found.state, list(found.tensors)))
        if place is None:
            return None
        step, state, names = place
        if self.sharded:
            return self.checkpoints.load(step)  # of which each process keeps its rows
        tensors = {name: processes.share_tensors(dict(found.tensors[name]) if found else None) for name in names}
        return Checkpoint(step, tensors, state)

    # -- the loop ------------------------------------------------------------------------------------------

    def fit(self, estimate: int) -> dict[str, Any]:
        """Train to the end, as many steps as the plan expects (`estimate`), and leave the model and its summary behind.

        Raises:
            UserError: ten steps in a row without a finite loss, or a disk that takes no more.
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; the run is saved. Behind the last look it is finished instead.
        """
        self.estimate = estimate
        self.budget.renewal = self.recipe.renewal(self.settings["train.steps"] or estimate)
        with interruptions() as interrupted, self.loggers.following(self.run.metrics):
            try:
                self._look_at_start()
                self._make_steps(interrupted)
                return self._finish(interrupted)
            finally:
                self.checkpoints.close()

    def _look_at_start(self) -> None:
        """Score what a run starts from, before its first step, by the records of the looks and of the last one; once,
        whatever becomes of the process. What is told is what the last look is compared with."""
        if self.processes.leads:
            lines = (line for line in self.run.metrics() if (line["step"], line["split"]) == (0, "validation"))
            self.starts = {line["records"]: line for line in lines}
        self.starts = self.processes.share(self.starts)
        if self.step or not self.recipe.started:
            return
        final = self.settings["evaluate.final_records"]
        for records in (self.settings["evaluate.records"], final):
            if records not in self.starts:
                with self._merged():
                    self.starts[records] = self._evaluate(records) if records == final else self._look(records)

    def _make_steps(self, interrupted: list[int]) -> None:
        with ExitStack() as reading, self.reporter.bar("training"):
            batches = reading.enter_context(closing(self._batches()))
            while not self._finished():
                self._look_around(bool(interrupted))
                if self.step in self.budget.renewal.steps:
                    reading.close()  # what was read ahead is of records that go
                    self._renew(interrupted)
                    batches = reading.enter_context(closing(self._batches()))
                began = self.clock.elapsed()
                with self.accounts.data.running():
                    read = next(batches)
                self._update([batch.to(self.machine.device) for batch in read])
                self.budget.stepped(self.clock.elapsed() - began)

    def _batches(self) -> Generator[list[Batch]]:
        """The micro-batches of each step from here on."""
        return loader_of(self.recipe, self.processes, self.settings["data.workers"]).steps(self.step)

    def _renew(self, interrupted: list[int]) -> None:
        """Make records anew by the model as it stands. A checkpoint of this step holds the former ones: whoever goes on
        from there comes by here. One process alone stops while it does so, several when they have done so."""
        began = time.perf_counter()

        def progress(done: int, total: int | None) -> None:
            if interrupted and self.processes.size == 1:
                raise Interrupted
            left = (time.perf_counter() - began) * ((total or done) / max(1, done) - 1)
            self.reporter.advance(done / (total or 1), f"{done:,} of {total:,}, {duration(left)} left")

        try:
            with self._merged(), self.budget.timed("renewal"):
                told = self.recipe.renew(self.objective, self.processes, self.machine.autocast, progress)
        except Interrupted:
            self._save()
            self._stop()
        self.processes.wait()
        self.objective.train()
        self.reporter.say(f"step {self.step:,}  {told} ({duration(time.perf_counter() - began)})")

    def _finished(self) -> bool:
        self._decide()
        return self._at_end

    @property
    def _at_end(self) -> bool:
        return self.schedule.end is not None and self.step >= self.schedule.end

    def _due(self, key: str) -> bool:
        """Whether so many steps have gone by since the last time that this was done."""
        return self.step > 0 and self.step % self.settings[key] == 0

    def _look_around(self, interrupted: bool) -> None:
        """What is due between two steps: a look at the validation part, a checkpoint, the user's wish to stop."""
        if self.budget.rehearses:
            with self._merged():
                self._rehearse()
        if self._due("evaluate.every") and self.saved != self.step:
            with self._merged():
                self._evaluate(self.settings["evaluate.records"])
            if self.monitor.due(self.step):
                self._diagnose()
            if self.processes.leads:
                self.reports.at_look(self.clock.elapsed())
        if before_decay := self.step == self.schedule.start:
            self.best_before_decay = self.best
        interrupted = self.processes.share(interrupted)
        if interrupted or before_decay or self._due("checkpoint.every") or self._may_be_kept:
            self._save()
        if interrupted:
            self._stop()

    @property
    def _may_be_kept(self) -> bool:
        """Whether the weights of this step are those with the lowest held-out loss so far."""
        return self.recipe.losses_compare and self.best is not None and self.best["step"] == self.step

    def _stop(self) -> NoReturn:
        """End a training that has been asked to stop and whose checkpoint is being written."""
        self.checkpoints.wait()
        self.processes.wait()  # whoever ends first may end the others
        raise Interrupted(
            f"Stopped at step {self.step:,}; everything is saved. Go on with: "
            f"selfsup train --resume {self.run.directory}"
        )

    def _update(self, batches: list[Any]) -> None:
        start = time.perf_counter()
        for parameter in self.resting:
            parameter.requires_grad_(self.step >= self.settings["optim.heads_first"])
        with self.accounts.step():
            figures = gradients(self.objective, batches, self.processes, self.machine.autocast)
            figures |= self._group_norms()
            norm = self.optimizer.clip(self.settings["optim.clip"])
        loss = float(figures["loss"])
        multiplier = self.schedule.multiplier(self.step)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(multiplier)
            self.optimizer.average(self.step + 1)
            self.objective.after_step(self.step, self._steps_expected())
            self.skipped_in_a_row = 0
        else:
            self._skip(figures, loss)
        self.step += 1
        self.pace = [*self.pace[-20:], time.perf_counter() - start]
        self._log(figures, norm, multiplier)

    def _group_norms(self) -> dict[str, Tensor]:
        """The norm of the gradient of each part of the objective that is worth a figure of its own."""
        return {
            f"grad_norm_{name}": total_norm(p.grad for p in part.parameters() if p.grad is not None)
            for name, part in self.objective.gradient_groups().items()
        }

    def _steps_expected(self) -> int:
        """The length of the run as it was known at this step, be it made for the first time or again."""
        begun = self.schedule.begun(self.step)
        return self.settings["train.steps"] or (begun[-1].end if begun else self.estimate)

    def _skip(self, figures: dict[str, Tensor], loss: float) -> None:
        """Count and name a step without a finite loss or gradient; too many in a row end the run."""
        culprits = [term for term, value in figures.items() if not torch.isfinite(value)]
        culprits = culprits or [
            f"the gradient of {name}"
            for parameter, name in self.optimizer.names.items()
            if parameter.grad is not None and not bool(torch.isfinite(own(parameter.grad)).all())
        ]
        culprits = list(dict.fromkeys(chain.from_iterable(self.processes.collect(culprits))))
        self.optimizer.clear()
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.reporter.say(f"Step {self.step + 1:,} skipped: {', '.join(culprits[:3])} is not finite.")
        if self.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            self.checkpoints.wait()
            raise UserError(
                f"{MOST_SKIPPED_IN_A_ROW} steps in a row up to step {self.step + 1:,} gave no finite loss or gradient "
                f"({culprits[0]}, loss {loss}); the last good checkpoint is step {self.saved or 0}; start anew with a "
                f"lower optim.lr and optim.adamw_lr (now {self.settings['optim.lr']:g} and "
                f"{self.settings['optim.adamw_lr']:g}), or with --precision fp32."
            )

    def _log(self, figures: dict[str, Tensor], norm: float, multiplier: float) -> None:
        """A line of metrics where one is due, and the bar."""
        due = self._due("train.log_every") or not math.isfinite(norm) or self.step == 1
        if due and self.processes.leads:
            self._write(self._line(figures, norm, multiplier))
        if due or self.reporter.console.is_terminal:
            share, left = self._progress()
            rate = self.settings["train.batch"] * self.recipe.units_per_record / median(self.pace)
            told = f"loss {float(figures['loss']):.3f}  {rate:,.0f} {self.recipe.unit}/s  {left} left"
            self.reporter.advance(share, f"step {self.step:,}  {told}")

    def _line(self, figures: dict[str, Tensor], norm: float, multiplier: float) -> dict[str, Any]:
        """Of metrics.jsonl, of the step that was made."""
        means = {name: float(value) for name, value in figures.items()}
        records, units = self.settings["train.batch"], self.recipe.units_per_record
        rate, since = records / median(self.pace), (self.step - self.logged) * median(self.pace)
        self.logged = self.step
        return {
            **self._stamp("train"),
            **means,
            **self.recipe.figures(means, "train"),
            "lr": self.optimizer.lr if multiplier else 0.0,
            "grad_norm": norm,
            self.recipe.unit: self.step * records * units,
            f"{self.recipe.unit}_per_second": round(rate * units, 1),
            "utilisation": round(rate * self.recipe.flops_per_record() / self.machine.flops / self.processes.size, 4),
            **self.accounts.shares(since),
        }

    def _write(self, line: dict[str, Any]) -> None:
        """A line of metrics, on the disk and then to the loggers."""
        self.run.log(line)
        self.loggers.log(line)

    def _stamp(self, split: str) -> dict[str, Any]:
        return {"step": self.step, "time": round(self.clock.elapsed(), 3), "split": split}

    def _progress(self) -> tuple[float, str]:
        """The share of the run that is done, and the time that is left."""
        budget, end = self.settings["train.budget"], self.schedule.end or 0
        if budget is None:
            return self.step / (end or 1), duration((end - self.step) * median(self.pace))
        elapsed = self.clock.elapsed()
        return min(1.0, elapsed / budget), duration(max(0.0, budget - elapsed))

    # -- the budget ----------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Where a budget ends the run: begin the decay, or move its end, when the clock says so.

        The decision is in the journal, on the disk, before it takes effect, so that a run which is killed and
        resumed repeats it.
        """
        if self.settings["train.budget"] is None or not self.pace or self.step < self.reached:
            return
        self.budget.writing = self.checkpoints.seconds
        decision = self.processes.share(self.budget.decide(self.step, self.schedule.decays))
        if decision is None:
            return
        if self.processes.leads:
            self.run.note(decision)
        self.schedule.decays.append(Decay(decision["start"], decision["end"]))

    def _last_look(self) -> int | None:
        """The held-out records of the last look: as many as were planned, or as there is time for."""
        planned: int | None = self.settings["evaluate.final_records"]
        if planned is not None and self.processes.leads:
            looked = self._journalled("look", planned, self.budget.last_look(planned))
            if looked < planned:
                self.reporter.say(f"The last look is at {looked:,} of {planned:,} records: the budget is spent.")
            planned = looked
        shared: int | None = self.processes.share(planned)
        return shared

    def _journalled(self, what: str, planned: int, fitting: int) -> int:
        """A decision of the clock about the end: the one that stands in the journal since the run was extended (an
        end that was cut short made it), or what fits now, which goes there where it is not what was planned."""
        decided = None
        for entry in self.run.journal():
            decided = None if "extended_from" in entry else entry.get(what, decided)
        if decided is None and fitting != planned:
            self.run.note({what: fitting})
        return fitting if decided is None else int(decided)

    # -- looks and the end ---------------------------------------------------------------------------------

    @contextmanager
    def _merged(self) -> Iterator[None]:
        """What is looked at and saved is the model as a user opens it: adapters are in its matrices, and each process
        has all of it. All of them enter the block, and may do different things in it."""
        with self.optimizer.averaged(), self._whole(), self.recipe.adaptation.merged(self.objective):
            with self.budget.timed("statistics"):
                self.recipe.measure_statistics(self.objective)
            yield

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Within the block the objective is another one with the same weights, none of which is elsewhere."""
        if not self.sharded:
            yield
            return
        trained = self.objective
        self.objective = self.recipe.begin().to(self.machine.device).train()
        self.objective.load_state_dict(whole_state(trained), assign=True)
        try:
            yield
        finally:
            self.objective = trained

    def _evaluate(self, records: int | None) -> dict[str, float]:
        """Look, and tell the user."""
        figures = self._look(records)
        start = self.starts.get(records or 0, {})
        told = [
            f"{k} {v:.4f}" + (f" (start {start[k]:.4f})" if k in start else "")
            for k, v in figures.items()
            if k == "loss" or v != figures["loss"]  # without the terms that only repeat it
        ]
        if told:
            of = f"step {self.step:,}" if self.kept is None else f"kept, step {self.kept['step']:,}"
            self.reporter.say("  ".join([of, *told]))
        return figures

    def _look(self, records: int | None) -> dict[str, float]:
        """Score held-out records, log it, leave a sample; {} where nothing is held out."""
        if self.recipe.validation is None or records is None:
            return {}
        figures = self._losses(self.recipe.validation, records)
        sound = math.isfinite(figures["loss"])
        with self.budget.timed("sample"):
            sample = self.recipe.sample(self.objective) if sound and self.processes.leads else None
            pictures = seen_by(self.recipe, self.objective) if sound and self.processes.leads else []
        figures |= self.recipe.figures(figures, "validation")
        if sound and self.processes.leads:
            with self.budget.timed("measures"):
                figures |= self._measure(records)
        self.processes.wait()  # protocols may take longer than a collective waits
        self.objective.train()
        if sound and self.step and self.kept is None and (self.best is None or figures["loss"] < self.best["loss"]):
            self.best = {"step": self.step, "loss": figures["loss"]}
        self._log_look(records, figures)
        if sample is not None:
            self.run.write_sample(self.step, sample)
        if pictures:
            self.run.write_pictures(self.step, pictures)
        return figures

    def _log_look(self, records: int, figures: dict[str, float]) -> None:
        """A line of metrics; that of weights which are kept in place of the end's is no point of the run's curve."""
        start = self.starts.get(records, {})
        beside = {"start_loss": start["loss"]} if start else {}
        stamp = self._stamp("validation") if self.kept is None else {**self._stamp("kept"), "of": self.kept["step"]}
        if self.processes.leads:
            self._write({**stamp, "records": records, **figures, **beside})

    def _losses(self, source: Records, records: int) -> dict[str, float]:
        """The loss of records of the held-out part; of what is replayed as many, `replay_loss`."""
        replayed = None if self.recipe.replay is None else self.recipe.replay.validation
        with self.budget.timed("look", records):
            figures = self._scores(source, records)
            if replayed is not None:
                figures["replay_loss"] = self._score(replayed, min(records, len(replayed)))["loss"]
        return figures

    def _scores(self, source: Records, records: int) -> dict[str, float]:
        """The loss of records of a source; of a mixture that of each of its sources too, `loss/NAME`, and for the whole
        the mean of all by their shares."""
        if not isinstance(source, Mixture):
            return self._score(source, records)
        shared = looked_at(source, records)
        found = [self._score(part, number) for _, part, number in shared]
        weighed = [(share, each) for (share, *_), each in zip(shared, found, strict=True)]
        whole = {term: sum(share * each[term] for share, each in weighed) for term in found[0]}
        return whole | {f"loss/{name}": each["loss"] for name, each in zip(source.names, found, strict=True)}

    def _score(self, source: Records, records: int) -> dict[str, float]:
        """The loss of records spread evenly over a source; leaves the objective in evaluation mode."""
        batch, processes = self.settings["evaluate.batch"], self.processes
        batches = in_order(source, records, EVALUATION_SEED, batch, processes.rank, processes.size)
        on_device = (batch.to(self.machine.device) for batch in batches)
        self.objective.eval()
        return evaluate(self.objective, on_device, self.processes, self.machine.autocast)

    def _rehearse(self) -> None:
        """Do a little of what the end does, to know what it takes; what it imports is imported here."""
        if self.recipe.validation is not None:
            records = min(len(self.recipe.validation), self.settings["evaluate.batch"])
            self._losses(self.recipe.validation, records)
        if self.processes.leads:
            if records := min(REHEARSED, self.recipe.whitening_records):
                self.recipe.whitened(self.objective, records)
                with self.budget.timed("embedding", records):
                    self.recipe.whitened(self.objective, records)
            if self.budget.unhurried:
                import_transformers()
        self.objective.train()

    def _measure(self, records: int) -> dict[str, float]:
        """What needs no label, of the features of held-out records, and the protocols that the user named."""
        features = self.recipe.features(self.objective, min(records, FEATURE_RECORDS))
        figures = {} if features is None or len(features) < 2 else spread(features)
        protocols = self.settings["evaluate.protocols"]
        self.scores = []
        if not protocols:
            return figures
        named, device = self.settings["evaluate.data"], str(self.machine.device)
        reading = {} if named is None else self.recipe.reading_options()
        model = self.recipe.model(self.objective)
        for protocol in protocols:
            data, test = self.recipe.examples(protocol in SUPERVISED, records) if named is None else (named, None)
            how = {"device": device, "seed": EVALUATION_SEED, "test": test, **reading}
            score = measure(Measurement(self.run.directory, model, data, **how), protocol)
            figures[protocol] = score.value
            self.scores.append(score.to_json())
            if score.left_out.skipped:
                self.reporter.say(f"{protocol}: skipped: {score.left_out.rows()['skipped']}")
        return figures

    def _keep_best(self) -> None:
        """Put the weights of the best look in place of the end's, if its held-out loss is plainly lower. For that the
        end is looked at by the records of all other looks. Where losses do not compare over steps, the end is kept."""
        best, held_out, records = self.best, self.recipe.validation, self.settings["evaluate.records"]
        if best is None or held_out is None or not self.recipe.losses_compare or best["step"] == self.step:
            return
        with self._merged():
            end = self._losses(held_out, records)
        if end["loss"] <= best["loss"]:
            self.best = {"step": self.step, "loss": end["loss"]}
        if end["loss"] - best["loss"] <= LOWER * abs(end["loss"]):
            return
        self.checkpoints.wait()
        if (found := self.everywhere(lambda: self._checkpoint_of(int(best["step"])))) is None:
            return
        self._log_look(records, end | self.recipe.figures(end, "validation"))
        self._take(found)
        self.kept = {**best, "end_loss": end["loss"]}
        told = f"step {best['step']:,} ({best['loss']:.4f}; {end['loss']:.4f} at the end)"
        self.reporter.say(f"The held-out loss was lowest at {told}: its weights are kept.")
        self._note({"kept": self.kept})

    def _checkpoint_of(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; where it is damaged or gone, that is said."""
        found = self.checkpoints.whole(step, self.misfit)
        if isinstance(found, Checkpoint):
            return found
        self.reporter.say(
            f"The held-out loss was lowest at step {step:,}, whose checkpoint is damaged ({found}): the end is kept."
        )
        return None

    def _note(self, choice: dict[str, Any]) -> None:
        """A choice about the model, in the journal; an end that was cut short may have left it there."""
        if self.processes.leads and finite(choice) not in self.run.journal():
            self.run.note(choice)

    def _average(self) -> dict[str, Any]:
        """Put the weights between start and end, where held-out records say; the choice, for journal and summary."""
        averages = self.recipe.adaptation.averages(self.objective, self.recipe.begin().to(self.machine.device))
        tried = [self._tried(averages, share) for share in MIXES]
        chosen = choose(tried)
        averages.mix(chosen.share)
        told = "; ".join(mix.told for mix in dict.fromkeys((tried[0], chosen, tried[-1])))
        self.reporter.say(f"Averages of start and end (WiSE-FT), held-out losses: {told}.")
        self.reporter.say(f"The model is {chosen.share:.0%} of the end and {1 - chosen.share:.0%} of the start.")
        averaged = {"wise_ft": {"share": chosen.share, "tried": [mix._asdict() for mix in tried]}}
        self._note(averaged)
        return averaged

    def _tried(self, averages: Averages, share: float) -> Tried:
        """A mix of start and end, and what it costs."""
        averages.mix(share)
        held_out, records = self.recipe.validation, self.settings["evaluate.records"]
        with self._merged():
            figures = {} if held_out is None else self._losses(held_out, records)
        return Tried(share, figures.get("loss", math.nan), figures.get("replay_loss"))

    def _chance_of_looks(self, records: int | None) -> float | None:
        """What knowing nothing costs in the last look: where records meet in the score, by the sizes of its batches."""
        batch: int | None = self.settings["evaluate.batch"]
        if not records or not batch:
            return self.recipe.chance(self.settings["train.batch"])
        chance = 0.0
        for share, _, number in looked_at(self.recipe.validation or self.recipe.train, records):
            sizes = [min(batch, number - start) for start in range(0, number, batch)]
            known = [found for size in sizes if (found := self.recipe.chance(size)) is not None]
            if len(known) < len(sizes):
                return None
            chance += share * sum(each * size for each, size in zip(known, sizes, strict=True)) / number
        return chance

    def _diagnose(self) -> None:
        """Say what the figures so far show to be wrong, and did not show before."""
        if self.processes.leads:
            for finding in self.monitor.look(self.run.metrics(), self.step):
                self.reporter.say(finding.line())

    def _finish(self, interrupted: list[int]) -> dict[str, Any]:
        """The last checkpoint, the last look, the model directory, and the summary that says the run is done."""
        self._save()  # before the looks, which may be long, and which a resume makes again
        self._keep_best()
        self.optimizer.keep_averages()
        averaged = self._average() if self.settings["optim.wise_ft"] else {}
        records = self._last_look()
        with self._merged():
            figures = self._evaluate(records)
        if self.processes.share(bool(interrupted)):
            self._stop()
        self._diagnose()
        self.checkpoints.wait()
        units = self.step * self.settings["train.batch"] * self.recipe.units_per_record
        start = self.starts.get(records or 0, {})
        summary = {
            "objective": self.settings["objective"],
            **figures,
            **{f"start_{name}": start[name] for name in figures if name in start},
            **averaged,
            "chance": self._chance_of_looks(records),
            "best": self.best,
            "kept": self.kept,
            "steps": self.step,
            self.recipe.unit: units,
            "parameters": sum(parameter.numel() for parameter in self.objective.parameters()),
            "skipped_steps": self.skipped,
            "validation_records": records,
        }
        summary |= {"accounting": of_run(self.run.metrics())} if self.processes.leads else {}
        with self._merged():
            if self.processes.leads:
                self._write_model(summary)
        if self.processes.leads:
            self.recipe.adaptation.save(self.objective, self.run.adapter_directory)
            summary["peak_memory"] = peak_memory(self.machine.device)
            summary["wall_seconds"] = round(self.clock.elapsed(), 3)
            summary |= {"scores": self.scores} if self.scores else {}
            self.loggers.finish(summary)
            self.run.write_summary(summary)
            self.reports.write(self.clock.elapsed())
        self.processes.wait()
        return summary

    def _write_model(self, summary: dict[str, Any]) -> None:
        self.run.make_way_for_model()
        compares = self._journalled("compared", True, not self.budget.hurried)  # its export does it else
        with nullcontext() if compares else uncompared():
            self.recipe.save(self.objective, self.run.model_directory, summary)


def find_schedule(settings: Settings, run: Run) -> Schedule:
    """The schedule as configured, or, where a budget ends the run, as its journal says so far."""
    steps, optim = settings["train.steps"], settings.config.optim
    if steps is not None:
        extended = max((entry.get("extended_from", 0) for entry in run.journal()), default=0)
        start = max(steps - max(1, round(steps * optim.decay)), extended)
        return Schedule(optim.warmup or 0, [Decay(start, steps)])
    decays: list[Decay] = []
    for entry in run.journal():
        if "extended_from" in entry:
            decays = [decay for decay in decays if decay.start < entry["extended_from"]]
        elif "start" in entry:
            decays.append(Decay(entry["start"], entry["end"]))
    return Schedule(optim.warmup or 0, decays)
