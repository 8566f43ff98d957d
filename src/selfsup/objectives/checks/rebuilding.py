"""What objectives look for that rebuild a record from its one vector: a decoder that does without it."""

from __future__ import annotations

from selfsup.checks import FEWEST_STEPS, History, Symptom, problem

LEAST = 0.01  # of the loss, by which the vector of another sentence is to cost more
PATIENCE = 0.3  # of the run


@problem(
    seen="the decoder does without the vector: of held-out sentences it costs {loss:.3f}, and {swapped:.3f} from the "
    "vector of another sentence, at step {step:,}",
    why="what a vector says of its sentence is learnt only where it helps to rebuild it; sound runs lie "
    f"above {LEAST:.0%} long before their end",
    remedy="give it more steps: {train} --steps {more}; a decoder learns first what comes after what, then what it is "
    "told",
)
def unused_vector(history: History) -> Symptom | None:
    """The loss from the vector of another sentence is about equal to that from the sentence's own."""
    swapped, losses = (history.curve(name, "validation") for name in ("swapped", "cross_entropy"))
    (step, other), (_, own) = swapped.latest, losses.latest
    history.require_steps(max(PATIENCE * history.steps, FEWEST_STEPS), "what a vector tells")
    share = other / own - 1
    if share >= LEAST:
        return None
    return Symptom(share, LEAST, step, {"loss": own, "swapped": other, "more": 4 * history.steps})
