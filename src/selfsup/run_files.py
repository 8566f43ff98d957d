"""What the JSON files of a run hold, checked where they are read: whoever reads them finds what they say here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from selfsup.errors import UserError
from selfsup.files import whole

RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # what shows that a directory is a run; where its model lies


def number(value: object) -> object:
    """A number that fits a float, as it is: whole ones stay whole."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not whole and not isinstance(value, float):
        raise ValueError("it is no number")
    return value


Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Real = Annotated[Any, AfterValidator(number)]
Number = Real | None  # None: it was not finite, or is not known
Step = Annotated[int, Field(ge=1, lt=1 << 53)]


class Keys(BaseModel):
    """Keys that are read; there may be others."""

    model_config = ConfigDict(extra="allow", strict=True)


class Length(Keys):
    budget: Number = None


class Planned(Keys):
    train: Length


class Plan(Keys):
    steps: Step
    settings: Planned
    parameters: Count | None = None
    chance: Number = None


class Environment(Keys):
    """environment.json: what a figure needs beside it, the plan, and what data and start were."""

    data: str | None = None
    start: str | None = None
    plan: Plan | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, Count] = Field(default_factory=dict)


class Best(Keys):
    step: Count
    loss: Number


class Kept(Best):
    """The look whose weights are kept in place of the end's, and what these cost."""

    end_loss: Number


class Mix(Keys):
    """A mix of start and end that was tried: its share of the end, and its losses on held-out records."""

    share: Real
    loss: Number
    replay_loss: Number = None


class Mixes(Keys):
    share: Real
    tried: list[Mix]


class Summary(Keys):
    """summary.json: the final figures."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)
    objective: str = ""
    steps: Count
    skipped_steps: Count = 0
    best: Best | None = None
    kept: Kept | None = None
    max_difference: Number | dict[str, Number] = None  # of a model of two towers, of each
    wise_ft: Mixes | None = None
    scores: list[dict[str, Any]] = Field(default_factory=list)  # of protocols, with their intervals
    accounting: dict[str, Real] = Field(default_factory=dict)  # see selfsup.accounting


class Line(Keys):
    """A line of metrics.jsonl; its other keys are figures."""

    __pydantic_extra__: dict[str, Number] = Field(init=False)
    step: Step
    time: Real
    loss: Number


class TrainLine(Line):
    """One that a step of the training left."""

    split: Literal["train"]
    grad_norm: Number


class LookLine(Line):
    """One that a look at the held-out part left."""

    step: Count  # 0 for a look at what the run starts from
    split: Literal["validation"]


class KeptLine(Line):
    """The last look, where it is at weights that are kept in place of the end's, and of which step they are."""

    split: Literal["kept"]
    of: Step


class Decay(Keys):
    """A line of journal.jsonl: the decay lies between these steps."""

    start: Count
    end: Count

    @field_validator("end")
    @classmethod
    def _in_order(cls, end: int, others: ValidationInfo) -> int:
        if end <= others.data.get("start", -1):
            raise ValueError("it does not lie behind the start")
        return end


class Extension(Keys):
    """Another kind: the run went on from this step."""

    extended_from: Count


class Look(Keys):
    """Another: the last look is at so many held-out records."""

    look: Count


class Comparison(Keys):
    """Another: whether the saved model is compared with another library's."""

    compared: bool


class Average(Keys):
    """Another: the model is an average of start and end, with this share of the end."""

    wise_ft: Mixes


class Keeping(Keys):
    """Another: the weights of an earlier look are kept in place of the end's."""

    kept: Kept


class State(Keys):
    """state.json of a checkpoint: what a trainer knows beside its tensors."""

    skipped: Count
    skipped_in_a_row: Count
    best: Best | None
    best_before_decay: Best | None = None
    elapsed: Real
    optimizer: Count | None = None  # how many tensors it had
    still: str | None = None  # digest of the weights that it goes without


ENVIRONMENT, SUMMARY, STATE = TypeAdapter(Environment), TypeAdapter(Summary), TypeAdapter(State)
METRICS = TypeAdapter(Annotated[TrainLine | LookLine | KeptLine, Field(discriminator="split")])
JOURNAL = TypeAdapter(Decay | Extension | Look | Comparison | Average | Keeping)


def read_object(path: Path, kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The object of a JSON file; raises a UserError where the file is not there, or holds something else."""
    try:
        return _checked(whole(path), kind)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; restore it from a copy.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({explain(error)}); restore it from a copy.") from None


def read_lines(path: Path, kind: TypeAdapter[Any]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that a crash cut short is left out.

    Raises a UserError where a line holds something else.
    """
    try:
        lines = whole(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; restore it from a copy.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_checked(line, kind))
        except ValueError as error:
            raise UserError(
                f"Line {number} of {path} is damaged ({explain(error)}); remove it, or restore the file from a copy."
            ) from None
    return found


def _checked(content: bytes, kind: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(content.decode())
        if b"\\u" in content:  # which may be half a character, and could not be written again
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    kind.validate_python(found)
    return found


def explain(error: ValueError) -> str:
    """What is wrong with a JSON object, in a few words."""
    if not isinstance(error, ValidationError):
        return "it is no JSON"
    problem = error.errors()[0]
    reason = str(problem["msg"]).removeprefix("Value error, ")
    reason = "it is no object" if problem["type"] in ("model_type", "model_attributes_type") else reason
    kinds = ("Decay", "Extension", "Look", "Comparison", "Average", "Keeping", "train", "validation", "kept")
    place = ".".join(str(part) for part in problem["loc"] if part not in kinds)
    return f"{place[:100] or 'all of it'}: {reason[0].lower()}{reason[1:200]}"
