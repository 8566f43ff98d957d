"""The one configuration schema, shared by YAML files, `key=value` words on the command line and Python.

What all objectives share stands here; an objective declares a section of its own beside itself.

A value that is `None` here is chosen before the first step, from the data, the machine or the budget; the
resolved configuration holds no such gap, and says for every value where it came from.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from selfsup.errors import UserError, require_text
from selfsup.files import read_bytes
from selfsup.plain_yaml import DEEPEST, MOST_BYTES, Written, YAMLProblem, parse_json, parse_yaml

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> object:
    """`"90s"`, `"10m"`, `"1h30m"` or a plain number of seconds, as seconds."""
    if not isinstance(value, str) or re.fullmatch(r"\d*\.?\d+", value):
        return value
    parts = re.findall(r"(\d*\.?\d+)([smhd])", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError("write a duration such as 90s, 10m or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def number(value: object) -> object:
    """True and false are no numbers, whatever Python makes of them."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def names(value: object) -> object:
    """`a,b` as two names; lists stay as they are."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def replay(value: object) -> object:
    """`SOURCE:SHARE`, as it is."""
    split_replay(str(value))
    return value


def split_replay(value: str) -> tuple[str, float]:
    """The source and the share of `SOURCE:SHARE`."""
    source, _, share = value.rpartition(":")
    try:
        found = float(share)
    except ValueError:
        found = math.nan
    if not source or not 0 < found < 1:
        raise ValueError("write a source and its share of a batch between 0 and 1, such as general/:0.1")
    return source, found


MOST = 2**63 - 1  # what a number of 64 bits holds

Whole = Annotated[int, BeforeValidator(number), Field(ge=-MOST, le=MOST)]
Real = Annotated[float, BeforeValidator(number), Field(allow_inf_nan=False)]
Duration = Annotated[Real, BeforeValidator(seconds), Field(gt=0)]
Count = Annotated[Whole, Field(ge=1)]
Natural = Annotated[Whole, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Rate = Annotated[Real, Field(gt=0)]
Replay = Annotated[str, BeforeValidator(replay)]
Names = Annotated[tuple[str, ...], BeforeValidator(names)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


def said(default: Any, description: str) -> Any:
    """A setting with its default and what it is, as the command line's help says it."""
    return Field(default, description=description)


def with_setting(name: str, kind: Any, setting: Any) -> Callable[[type[S]], type[S]]:
    """Give a section a setting whose name Python keeps for itself, such as `from`; it is read by its dotted key."""

    def given(section: type[S]) -> type[S]:
        field: dict[str, Any] = {name: (kind, setting)}
        return create_model(section.__name__, __base__=section, __module__=section.__module__, **field)

    return given


class DataConfig(Section):
    source: Annotated[str, Field(min_length=1)] = said(
        "sample:shakespeare", "file, folder, glob, hub:NAME or sample:NAME"
    )
    column: str | None = said(None, "the column of the texts or images; found by itself where it is not named")
    split: Literal["train", "validation", "test", "all"] | None = said(
        None, "part of a data set, by the names of its files and folders; train where there is one"
    )
    tokenizer: str = said("bpe", "bpe, wordpiece, characters, words, or a tokenizer.json, directory or run")
    vocabulary: Count | None = said(None, "tokens in the vocabulary of a tokenizer trained here")
    window: Annotated[Whole, Field(ge=2)] | None = said(None, "tokens the model sees at once")
    size: Count | None = said(None, "side of the images that a model sees, in pixels")
    validation: Share = said(0.1, "share of the documents that is held out")
    replay: Replay | None = said(None, "SOURCE:SHARE, what else each batch has a share of, against forgetting")
    failures: Share = said(0.01, "share of unreadable records above which a run is refused")
    workers: Natural = said(1, "threads that read ahead of the training loop")


class ModelConfig(Section):
    preset: str = said("auto", "size by name, auto (from data and budget), hf:DIR, or timm:NAME")
    layers: Count | None = None
    width: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = said(None, "key and value heads (grouped queries)")
    head_dim: Count | None = None
    mlp: Count | None = said(None, "hidden width of the feed-forward blocks")
    tied: bool | None = said(None, "the output head shares the embedding's weights")
    patch: Count | None = said(None, "side of a vision transformer's patches, in pixels")
    stride: Count | None = said(None, "of a convolutional network's first layer, in pixels")
    group: Count | None = said(None, "images whose statistics a convolutional network's layers share in training")
    registers: Natural | None = said(None, "tokens of a vision transformer that stand for nothing in the image")
    dropout: Share | None = said(None, "share of activations an encoder drops in training")
    whiten: bool | None = said(None, "an encoder's features get a whitening map when it is saved")
    init: str | None = said(None, "a run or Hugging Face directory whose weights to start from")
    freeze: Names = said((), "parameters that stay as they are, by patterns on their names")
    lora: Count | None = said(None, "rank of an adapter that is trained in place of the matrices (LoRA)")
    lora_alpha: Rate | None = said(None, "its update is scaled by this over the rank")
    lora_targets: Names = said((), "names of the matrices that get one; those of all blocks where none is named")


class OptimConfig(Section):
    matrices: Literal["muon", "adamw"] = said("muon", "optimizer of the hidden matrices")
    lr: Rate | None = said(None, "peak learning rate of the hidden matrices")
    adamw_lr: Rate | None = said(None, "peak learning rate of everything else")
    momentum: Share = 0.95
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[Real, Field(ge=0)] | None = said(None, "decoupled; off for vectors")
    layer_decay: Annotated[Real, Field(gt=0, le=1)] = said(
        1.0, "rates of each layer of started weights, as a share of those of the layer above it"
    )
    heads_first: Natural = said(0, "steps at first in which started weights rest, so that fresh heads come to fit them")
    l2_sp: Rate | None = said(None, "pull to the weights that a run starts from, in place of weight decay (L2-SP)")
    wise_ft: bool = said(False, "leave an average of start and end, mixed by held-out losses (WiSE-FT)")
    average: Share = said(0.0, "leave an average of the weights over about this last share of the steps")
    clip: Rate = said(1.0, "largest norm of the gradient")
    warmup: Natural | None = said(None, "steps of linear warm-up")
    decay: Annotated[Real, Field(gt=0, le=1)] = said(0.5, "last share of the run, decayed to 0")


class TrainConfig(Section):
    steps: Count | None = said(None, "optimizer updates")
    epochs: Rate | None = said(None, "passes over the training records")
    budget: Duration | None = said(None, "wall time of the whole run, such as 10m")
    batch: Count | None = said(None, "records per step, over all processes")
    micro_batch: Count | None = said(None, "records computed at once in one process")
    seed: Natural = said(0, "seed of everything random")
    device: str = said("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = said("auto", "auto, fp32, bf16")
    compile: bool | None = said(None, "torch.compile; measured where it is not said")
    shard: bool = said(False, "each process holds its rows alone of parameters, gradients and optimizer states (FSDP2)")
    log_every: Count | None = said(None, "steps between two lines of metrics.jsonl")


class CheckpointConfig(Section):
    every: Count | None = said(None, "steps between two checkpoints")
    keep: Count = said(3, "newest checkpoints kept, beside the best and the one before the decay")


class EvaluateConfig(Section):
    every: Count | None = said(None, "steps between two looks at the validation part")
    records: Count | None = said(None, "validation records looked at during the run")
    final_records: Count | None = said(None, "validation records looked at when it ends")
    batch: Count | None = said(None, "validation records scored at once")
    protocols: Names = said((), "protocols measured at each look, on evaluate.data")
    data: str | None = said(None, "what they are measured on")


Logging = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class LogConfig(Section):
    to: Annotated[tuple[Logging, ...], BeforeValidator(names)] = said(
        (), "where figures go beside metrics.jsonl: tensorboard, wandb, mlflow, trackio"
    )


class Config(Section):
    objective: str = "causal-lm"
    out: str | None = said(None, "the run directory")
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    log: LogConfig = Field(default_factory=LogConfig)


class DistillConfig(Section):
    """What all recipes set that learn what a teacher says; each adds its own."""

    teacher: str | None = said(None, "a run or model directory whose answers are learnt")
    kind: str | None = said(None, "what the teacher is, which decides what of its answers is learnt")
    fingerprint: str | None = said(None, "of the teacher, so that no other one takes its place")


# Sections of one objective alone, some of whose settings have short names.
OF_ONE: dict[str, type[Section]] = {"text": ModelConfig, "distill": DistillConfig}

# What everyone sets has a short name: a flag on the command line, a keyword in Python.
SHORT = {
    "data": "data.source",
    "column": "data.column",
    "tokenizer": "data.tokenizer",
    "model": "model.preset",
    "budget": "train.budget",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batch": "train.batch",
    "seed": "train.seed",
    "device": "train.device",
    "precision": "train.precision",
    "init": "model.init",
    "image_init": "model.init",
    "text_init": "text.init",
    "teacher": "distill.teacher",
}
SECTIONS = {name for name, field in Config.model_fields.items() if field.default_factory is not None}
CHOSEN = ("data", "model")  # sections of which each objective reads only a part
LENGTHS = ("train.steps", "train.epochs", "train.budget")


class Settings:
    """A configuration together with where each of its values came from.

    Args:
        layers: (where it comes from, values) from the weakest to the strongest; values may be nested, dotted
            or short (`{"model": {"layers": 8}}`, `{"model.layers": 8}`, `{"budget": "10m"}`).
        sections: those that the objective declares, by name.

    Raises:
        UserError: an unknown key (the nearest known one is named), a value of the wrong type, or more than
            one of steps, epochs and budget in one layer.
    """

    def __init__(
        self, *layers: tuple[str, Mapping[str, Any]], sections: Mapping[str, type[Section]] | None = None
    ) -> None:
        values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.sections = dict(sections or {})
        self._unread: set[str] = set()
        names = {*SECTIONS, *self.sections}
        places: dict[str, str] = {}  # with the lines of files
        for origin, layer in layers:
            given = _once(flatten(layer, sections=names), origin)
            lengths = [key for key in LENGTHS if given.get(key) is not None]
            if len(lengths) > 1:
                raise UserError(f"{' and '.join(lengths)} are both given ({origin}); give one of them.")
            for key in LENGTHS if lengths else ():
                values.pop(key, None)
                self.sources.pop(key, None)
            values |= given
            self.sources |= dict.fromkeys(given, origin)
            lines = dict(flatten(layer.lines)) if isinstance(layer, Written) else {}
            places |= {key: f"{origin}, line {lines[key]}" if key in lines else origin for key in given}
        schema = with_sections(*self.sections.items())
        try:
            self.config = schema.model_validate(nest(values))
        except ValidationError as error:
            raise UserError(explain(error, places, known=known_keys(schema))) from None

    def keep(self, keys: Collection[str]) -> None:
        """Leave only those settings of data, model and objective that a recipe reads; raises a UserError for others."""
        chosen, others = {*CHOSEN, *self.sections}, {*known_keys(type(self.config))} - {*keys}
        self._unread = {key for key in others if key.partition(".")[0] in chosen}
        for key in sorted(self._unread):
            section, name = self._find(key)
            if getattr(section, name) != type(section).model_fields[name].default:
                raise UserError(f"{self['objective']} has no use for {key} here; leave it out.")

    def __getstate__(self) -> dict[str, Any]:
        """For another process; the class of `config` is made anew there."""
        return {**vars(self), "config": self.config.model_dump()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.config = with_sections(*self.sections.items()).model_validate(state["config"])

    def names(self) -> list[str]:
        """The dotted keys that mean something."""
        return [key for key in known_keys(type(self.config)) if key not in self._unread]

    def values(self) -> dict[str, Any]:
        """What stands under these keys, nested, as JSON has it."""
        whole = dict(flatten(self.config.model_dump(mode="json"), sections=()))
        return nest({key: whole.get(key) for key in self.names()})

    def section(self, name: str, kind: type[S]) -> S:
        """A section as it stands, whose values may yet be settled."""
        found = getattr(self.config, name)
        assert isinstance(found, kind)
        return found

    def settle(self, key: str, value: Any, origin: str) -> None:
        """Fill a gap: a value the user left open, and what it was chosen from. Given values are left alone."""
        if self[key] is None:
            self.change(key, value, origin)

    def change(self, key: str, value: Any, origin: str) -> None:
        """Set one value by its dotted key."""
        section, name = self._find(key)
        try:
            setattr(section, name, value)
        except ValidationError as error:
            raise UserError(explain(error, {}, key.removesuffix(name))) from None
        self.sources[key] = origin

    def __getitem__(self, key: str) -> Any:
        return attrgetter(key)(self.config)

    def _find(self, key: str) -> tuple[Section, str]:
        path, _, name = key.rpartition(".")
        return (attrgetter(path)(self.config) if path else self.config), name

    def origin(self, key: str) -> str:
        return self.sources.get(key, "default")

    def to_yaml(self) -> str:
        """The configuration as YAML that `--config` reads back, each value with its origin as a comment."""
        lines = []
        for section, keys in groupby(self.names(), lambda key: key.rpartition(".")[0]):
            lines += [f"{section}:"] if section else []
            lines += [self._line(key, "  " if section else "") for key in keys]
        return "\n".join(lines) + "\n"

    def _line(self, key: str, indent: str) -> str:
        value = self[key]
        plain = list(value) if isinstance(value, tuple) else value
        quotes = '"' if isinstance(value, str) and len(value.splitlines()) > 1 else None
        text = yaml.safe_dump(plain, default_flow_style=True, default_style=quotes, width=math.inf)
        text = text.removesuffix("...\n").strip()
        return f"{indent}{key.rpartition('.')[2]}: {text}".ljust(40) + f"  # {self.origin(key)}"


@cache
def with_sections(*sections: tuple[str, type[Section]]) -> type[Config]:
    """The schema with the sections (name, kind) of an objective beside those of all."""
    fields: dict[str, Any] = {name: (kind, Field(default_factory=kind)) for name, kind in sections}
    return create_model("Config", __base__=Config, **fields) if fields else Config


def flatten(
    values: Mapping[str, Any], prefix: str = "", sections: Collection[str] = SECTIONS
) -> Iterator[tuple[str, Any]]:
    """Nested, dotted or short keys as dotted ones; `flatten({"model": {"layers": 8}})` gives `model.layers`.

    One of the `sections` that holds nothing says nothing. Raises a UserError where a key is no string, or the values
    are nested too deeply (within themselves, perhaps).
    """
    if prefix.count(".") > DEEPEST:
        raise UserError(f"{shown(prefix)} is nested more than {DEEPEST} deep; settings are not.")
    for key, value in values.items():
        if not isinstance(key, str):
            raise UserError(f"{shown(key)} is no name of a setting; names are words, such as 'model.layers'.")
        require_text(f"{key} {value}" if isinstance(value, str | Path) else key, "A setting")
        empty = value is None or (isinstance(value, Mapping) and not value)
        if empty and not prefix and key in sections:
            continue
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        elif not prefix and key in SHORT:
            yield SHORT[key], plain(value)
        else:
            yield f"{prefix}{key}", plain(value)


def _once(pairs: Iterable[tuple[str, Any]], origin: str) -> dict[str, Any]:
    """Dotted keys and values as a dictionary; raises a UserError where a key is given in two forms."""
    given: dict[str, Any] = {}
    for key, value in pairs:
        if key in given:
            raise UserError(f"{shown(key)} is given twice ({origin}), in two forms; give it once.")
        given[key] = value
    return given


def plain(value: Any) -> Any:
    """A value from Python as a file would give it: numbers of NumPy and PyTorch as Python's, paths as text."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = nested
        for depth, part in enumerate(path):
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                above = ".".join(path[: depth + 1])
                raise UserError(f"{key!r} goes below {above!r}, which is a single value.")
        if isinstance(below := place.get(name), dict):
            raise UserError(f"{key!r} is a section; set one of its keys, such as {key}.{next(iter(below))}.")
        place[name] = value
    return nested


def described(key: str) -> str:
    """What the schema says of a setting."""
    *path, name = key.split(".")
    section: Any = Config
    for part in path:
        section = OF_ONE.get(part) or section.model_fields[part].annotation
    return str(section.model_fields[name].description or "")


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest choice, or nothing where none is close."""
    names = list(choices)
    close = difflib.get_close_matches(word[:LONGEST], names, 1, 0.5)
    if not close:  # a bare name that belongs into a section: `layers` for `model.layers`
        close = [name for name in names if name.rpartition(".")[2] == word]
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}."


LONGEST = 80  # characters of a value in a message


class _Shown(reprlib.Repr):
    """Values as a message shows them, however long or deep they are."""

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 4 * LONGEST else f"a number of {value.bit_length():,} bits"


_shown = _Shown()
_shown.maxstring = _shown.maxother = _shown.maxlong = LONGEST
shown = _shown.repr


def explain(error: ValidationError, sources: Mapping[str, str], section: str = "", known: Iterable[str] = ()) -> str:
    """The first problem of a validation error as one sentence; its place is below `section` (such as `data.`)."""
    problem = error.errors()[0]
    key = section + ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
    key = next((full for full in sources if full.startswith(f"{key}.")), key)  # of an unknown section
    origin = f" ({sources[key]})" if key in sources else ""
    if problem["type"] == "extra_forbidden":
        choices = list(known)
        full = next((choice for choice in choices if choice.endswith(f".{key}")), key)
        return f"Unknown key {shown(key)}{origin}{nearest(full, [*choices, *SHORT])}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key!r} cannot be {shown(problem['input'])}{origin}: {reason[0].lower() + reason[1:]}."


def read_yaml(path: Path) -> Written:
    """A configuration file as a mapping; one whose name ends in .json is read as JSON.

    Raises a UserError where it is missing or no regular file, no YAML of plain values, beyond a bound, or no mapping.
    """
    try:
        data = read_bytes(path, MOST_BYTES)
        values, lines = (parse_json(data), {}) if path.suffix == ".json" else parse_yaml(data)
    except (OSError, YAMLProblem) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the configuration {path}: {reason}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no configuration; write keys and values, such as 'train: {{steps: 100}}'.")
    written = Written(values)
    written.lines = lines
    return written


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """`["model.layers=8", "optim.lr=0.01"]` as dotted keys and YAML values.

    Raises a UserError for a word without `=`, or a value that is no YAML of plain values.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{shown(word)} is no setting; write key=value, such as model.layers=8.")
        try:
            values[key], _ = parse_yaml(text)
        except YAMLProblem as problem:
            raise UserError(
                f"The value of {shown(key)} is no valid YAML: {shown(text)}, {problem}; a text with signs of YAML "
                f"stands in quotes within quotes, such as data='\"*.txt\"'."
            ) from None
    return values
