"""What a run on a budget does by the clock: when its decay begins, when it ends, what is kept back for its end.

After the last step come a look at the held-out part, a checkpoint and the model. What those take is measured wherever
the same is done on the way, and counted in steps of that time: a machine that becomes busy slows all of them alike.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from selfsup.config import Settings
from selfsup.distributed import launched_here
from selfsup.objectives.averaging import MIXES
from selfsup.objectives.recipe import Renewal
from selfsup.optim import Decay

FINAL_SHARE = 0.1  # of a run's time, at most, for the last look, at the whole part where that suffices
FORWARD_SHARE = 1 / 3  # of a training step's time, for evaluation, until it is measured
LATELY = 0.02  # of a budget, over which the pace is taken
FEWEST_IN_PACE = 4  # steps, over which it is taken at least
FEWEST_STEPS = 10  # of a run, however late it is
REPLAN_SHARE = 0.01  # of a budget: from one decision about the end to the next, and what one has to change
SHORTEST = 4  # parts, of which one decision leaves one at least
ADJUSTED = 0.1  # relative change of what is left that is worth a new decision
SAVING_SECONDS, SAVING_SHARE = 4.0, 0.03  # kept back for saving, at most, until it is measured
SAVES = 1.6  # of the end, in checkpoints: one, half as much of the model, and a tenth to read the best one
UNHURRIED = 60.0  # a budget in seconds from which on importing another library takes at most a twentieth
COMPARING_SECONDS = 1.0  # kept back for the comparison with it
LEAVING_SECONDS = 0.3  # for all that is small, and the end of the process
NEARLY = 0.9  # of what was planned, from where on it is not worth less
LATE = 1.01  # of a budget: an end that is later is cut short


class Clock:
    """Wall time of a run over all its sessions, by any clock that never goes back.

    It may begin with seconds that had gone by before there was anything to prepare.
    """

    def __init__(self, before: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.before, self._now = before, now
        self._start = now() - before

    @classmethod
    def of_process(cls) -> Clock:
        """Counted from the start of this process, or of the one that started it with others: what a command imports is
        part of its time."""
        process = psutil.Process(os.getppid() if launched_here() else None)
        created, now = process.create_time(), time.time()
        if hasattr(time, "CLOCK_BOOTTIME"):  # counted from the boot, whose own time is known to a second only
            created, now = created - psutil.boot_time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        return cls(max(0.0, now - created))

    def elapsed(self) -> float:
        return self._now() - self._start

    def set(self, elapsed: float) -> None:
        """Go on where an earlier session stood."""
        self._start = self._now() - elapsed


class Budget:
    """The decisions of a run's clock; where no budget ends the run there are none, and all of this only measures.

    Args:
        embedded: records that are embedded when the model is saved.
        compares: whether the model that is saved is compared with another library, if there is time.
    """

    def __init__(self, settings: Settings, clock: Clock, embedded: int, compares: bool) -> None:
        self.settings, self.clock, self.embedded = settings, clock, embedded
        self.seconds: float = settings["train.budget"] or math.inf
        choices = 1 + (len(MIXES) if settings["optim.wise_ft"] else 0)  # the end beside the best look; mixes
        self.weighed = choices * (settings["evaluate.records"] or 0)
        self.compares, self.unhurried = compares, compares and self.seconds >= UNHURRIED
        self._latest: deque[float] = deque()  # seconds of the latest steps
        self._sum = 0.0
        self._steps = 0  # of this session
        self._costs: dict[str, float] = {}  # in steps
        self.writing: float | None = None  # seconds of the last checkpoint
        self.renewal = Renewal()  # of records, in a run of the planned length
        self._decided = -math.inf

    # -- what is measured ----------------------------------------------------------------------------------

    def stepped(self, seconds: float) -> None:
        """A step took so long, reading included."""
        self._steps += 1
        self._latest.append(seconds)
        self._sum += seconds
        window = 0.0 if math.isinf(self.seconds) else LATELY * self.seconds
        while len(self._latest) > FEWEST_IN_PACE and self._sum - self._latest[0] >= window:
            self._sum -= self._latest.popleft()

    @property
    def rehearses(self) -> bool:
        """Whether it is time to see what the end takes: once, when the pace is known."""
        return math.isfinite(self.seconds) and self._steps == FEWEST_IN_PACE

    @property
    def pace(self) -> float:
        """Seconds of a step lately; 0 before the first one."""
        return self._sum / max(1, len(self._latest))

    @contextmanager
    def timed(self, what: str, amount: float = 1.0) -> Iterator[None]:
        """The block does so much of something that is done again at the end."""
        start = self.clock.elapsed()
        yield
        if self.pace:  # a session that only repeats the end makes no step
            self._costs[what] = (self.clock.elapsed() - start) / amount / self.pace

    def _of_records(self, what: str, records: int) -> float:
        """Seconds for something that is done with so many records."""
        each = self._costs.get(what, FORWARD_SHARE / (self.settings.config.train.batch or 1))
        return records * each * self.pace

    def _look(self, records: int) -> float:
        """Seconds for a look at so many held-out records."""
        beside = sum(self._costs.get(what, 0.0) for what in ("statistics", "sample", "measures"))
        return self._of_records("look", records) + beside * self.pace

    def _saving(self) -> float:
        """Seconds for what is saved at the end, and compared."""
        writing = min(SAVING_SECONDS, SAVING_SHARE * self.seconds)
        if self.writing is not None:  # which a busy processor hardly slows
            writing = SAVES * self.writing + LEAVING_SECONDS
        measuring = self._costs.get("statistics", 0.0) * self.pace
        return measuring + self._of_records("embedding", self.embedded) + writing + self.unhurried * COMPARING_SECONDS

    # -- what is decided -----------------------------------------------------------------------------------

    def decide(self, step: int, decays: list[Decay]) -> dict[str, int] | None:
        """Begin the decay, or move its end, when the clock says so after so many steps and these decisions.

        Returns `start` and `end` of the decay, to be journalled; None where nothing changes.
        """
        if math.isinf(self.seconds) or self._steps <= FEWEST_IN_PACE:
            return None
        left = self._left(step)
        least = (decays[-1].end - step) // SHORTEST if decays else 0  # a hiccup is not to end the run
        end = max(FEWEST_STEPS, step + max(1, int(left / self.pace), least))
        due = self._moves(step, end, decays[-1]) if decays else left <= self.settings["optim.decay"] * self.seconds
        if not due:
            return None
        self._decided = self.clock.elapsed()
        return {"start": step, "end": end}

    def _moves(self, step: int, end: int, latest: Decay) -> bool:
        """Whether the end is worth moving; never before what was decided before a resume is repeated."""
        planned, moved = latest.end - step, abs(end - latest.end)
        if step < latest.start or planned <= 1:
            return False
        rested = self.clock.elapsed() - self._decided >= REPLAN_SHARE * self.seconds
        return rested and moved > ADJUSTED * planned and moved * self.pace > REPLAN_SHARE * self.seconds

    def _left(self, step: int) -> float:
        """Seconds for steps until the end begins, without the looks on the way and records that are made anew."""
        last = self._look(self.settings["evaluate.final_records"] or 0) + self._of_records("look", self.weighed)
        last = min(last, FINAL_SHARE * self.seconds)  # on a machine that became slow it has to be shorter
        left = self.seconds - self.clock.elapsed() - last - self._saving()
        every, records = self.settings["evaluate.every"], self.settings["evaluate.records"] or 0
        end = step + int(left / self.pace)
        looks: int = max(0, end // every - (step - 1) // every)
        renewals = sum(step <= due < end for due in self.renewal.steps)
        return left - looks * self._look(records) - renewals * self._renewing()

    def _renewing(self) -> float:
        """Seconds for making records anew; until it is measured, by what could be trained on meanwhile."""
        steps = self._costs.get("renewal", self.renewal.records / (self.settings["train.batch"] or 1))
        return steps * self.pace

    def last_look(self, records: int) -> int:
        """How many held-out records there is time for in the last look, of those that were planned."""
        if math.isinf(self.seconds) or not self.pace:
            return records
        left = LATE * self.seconds - self.clock.elapsed() - self._saving()
        share = max(0.0, left / self._look(records))
        fewest: int = min(records, self.settings["evaluate.batch"])
        return records if share > NEARLY else max(int(share * records), fewest)

    @property
    def hurried(self) -> bool:
        """Whether there is no time to compare the model with another library."""
        if math.isinf(self.seconds) or not self.compares:
            return False
        return not self.unhurried or self.clock.elapsed() + self._saving() > LATE * self.seconds
