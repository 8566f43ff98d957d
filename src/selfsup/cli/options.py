"""How a command is made of a public function, and the options that several commands have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from selfsup.cli.processes import run_in_processes
from selfsup.config import OF_ONE, SHORT, Config, described, flatten, known_keys, nearest, parse_overrides
from selfsup.errors import UserError
from selfsup.report import leads, print_json

app = typer.Typer(
    help="Self-supervised learning: point it at unlabelled data, leave with a model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[OBJECTIVE] [KEY=VALUE]...", help="such as causal-lm model.layers=8")
]
Encoder = Annotated[Path, typer.Argument(help="the run, or model directory, of an encoder of texts or images")]
Data = Annotated[str | None, typer.Option(help=described("data.source"))]
Source = Annotated[str, typer.Option(help=described("data.source"))]
Column = Annotated[str | None, typer.Option(help=described("data.column"))]
Device = Annotated[str, typer.Option(help=described("train.device"))]
Precision = Annotated[str, typer.Option(help=described("train.precision"))]
Captions = Annotated[list[str] | None, typer.Option(help="the columns of the captions, for retrieval of images")]
Rerank = Annotated[
    Path | None,
    typer.Option(help="a cross-encoder that reads the nearest together with the query and orders them anew"),
]
Seed = Annotated[int, typer.Option(help="of the bootstrap, and of what is drawn")]
Records = Annotated[
    int | None, typer.Option(help="measure on so many records, drawn by the seed; of decoders, windows of text", min=1)
]
Window = Annotated[
    int | None, typer.Option(help="of decoders, tokens of a window; by default the model's, at most 8,192", min=1)
]
Failures = Annotated[
    float,
    typer.Option(
        help="most of the records, as a share of 1, that may be unreadable; they are left out, counted and named",
        min=0,
        max=1,
    ),
]
Label = Annotated[str | None, typer.Option(help="the column of the class")]
Id = Annotated[str | None, typer.Option("--id", help="the column of ids; without it a record goes by its place")]
Dimension = Annotated[int | None, typer.Option(help="keep the first so many numbers of each vector", min=1)]
Chunk = Annotated[int, typer.Option("--batch", help="records embedded, and kept when interrupted, together")]
Passages = Annotated[
    str | None,
    typer.Option(
        help="of long texts: auto cuts them into passages of as many tokens as the model reads, a number into passages "
        "of at most so many; none embeds their beginning",
        metavar="auto|none|TOKENS",
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(help="most tokens that two passages share, in whole sentences; an eighth of a passage without", min=0),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Processes = Annotated[
    int,
    typer.Option(
        min=1, max=1024, help="work in so many processes on this machine; elsewhere, and on several, by torchrun"
    ),
]
Templates = Annotated[
    list[str] | None, typer.Option(help="texts around the name of a class, {} in its place; by default the name alone")
]


class SeveralValues(TyperCommand):
    """A command whose options that may be repeated take several values at once: `--labels cat dog`.

    So what else is given stands before them, or behind another option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {
            name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts
        }
        spread: list[str] = []
        current = None  # the option whose values follow
        for number, word in enumerate(args):
            if word.startswith("-"):
                current = word if word in several else None
            elif current is not None and args[number - 1] != current:
                spread.append(current)
            spread.append(word)
        return super().parse_args(ctx, spread)


def to_json(answer: Any, given: Mapping[str, Any]) -> Any:
    return answer.to_json()


def command(
    module: str,
    *,
    bar: str | None = None,
    running: bool = False,
    flags: Sequence[str] = (),
    to_json: Callable[[Any, Mapping[str, Any]], Any] | None = to_json,
    always: Callable[[], Mapping[str, Any]] = dict,
    several: bool = False,
    cls: type[TyperCommand] = TyperCommand,
    name: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of the public function of the same name and the same parameters in a module.

    What is decorated shows the function's answer, its first parameter. Its other parameters are those of the command;
    what is not given is left to the function.

    Args:
        bar: what is going on, said beside a bar that the function moves by its `progress`.
        running: whether it tells by its `running` what comes out so far.
        flags: short names of settings that are options too, beside the words OBJECTIVE and KEY=VALUE.
        to_json: what `--json` prints of the answer, and of what was given; None where there is no such option.
        always: what else the function is given.
        several: whether it may run in several processes of this machine.
        name: of the command, where it is another one than the function's.
    """

    def made(show: Callable[..., None]) -> Callable[..., None]:
        def run(as_json: bool = False, processes: int = 1, **given: Any) -> None:
            if processes > 1:
                run_in_processes(processes, sys.argv[1:])
                return
            function = getattr(import_module(module), show.__name__)
            given = {name: value for name, value in given.items() if value is not None and value != []}
            asked = _understood(given, flags) if flags else given
            answer = _called(function, {**asked, **always()}, bar, running)
            if not leads():  # whose machine need not see what was made
                return
            if as_json and to_json is not None:
                print_json(to_json(answer, given))
            else:
                show(answer, **given)

        parameters = _parameters(show, flags, with_json=to_json is not None)
        if several:
            parameters.append(_parameter("processes", Processes, 1))
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = show.__doc__
        app.command(name or show.__name__.replace("_", "-"), cls=cls)(run)
        return show

    return made


def _parameters(show: Callable[..., None], flags: Iterable[str], with_json: bool) -> list[Parameter]:
    """Of a command: those of the function that shows its answer, with the settings that are flags, and `--json`."""
    hints = get_type_hints(show, include_extras=True)
    _, *own = signature(show).parameters.values()
    named = [each.replace(annotation=hints[each.name]) for each in own if each.kind != Parameter.VAR_KEYWORD]
    settings = [_parameter(name, Annotated[str | None, typer.Option(help=_help(name))], None) for name in flags]
    return named + settings + [_parameter("as_json", Json, False)] * with_json


def _parameter(name: str, annotation: object, default: object) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def _help(name: str) -> str:
    """What the schema says of a setting by its short name."""
    section = SHORT[name].split(".")[0]
    if section in OF_ONE:
        return f"{described(SHORT[name])}, of {section}"
    first = next(short for short, key in SHORT.items() if key == SHORT[name])
    return described(SHORT[name]) if first == name else f"the same as --{first.replace('_', '-')}"


def _called(function: Callable[..., Any], given: Mapping[str, Any], bar: str | None, running: bool) -> Any:
    if bar is None:
        return function(**given)
    from selfsup.report import Reporter

    reporter = Reporter()
    told = {"running": reporter.running} if running else {}
    with reporter.bar(bar):
        return function(**given, progress=reporter.counting, **told)


def _understood(given: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """What a function takes of words and flags: the objective, settings by their keys, and what has its own name."""
    rest = {name: value for name, value in given.items() if name not in ("words", *flags)}
    objective, settings = split_words(given.get("words", []), {f: given[f] for f in flags if f in given})
    if twice := rest.keys() & settings.keys():
        raise UserError(f"{min(twice)} is given twice, as an option and as key=value; give it once.")
    for name in ("data", "tokenizer"):
        if SHORT[name] in settings:
            rest[name] = settings.pop(SHORT[name])
    return {"objective": objective, **rest, **settings}


def split_words(words: Sequence[str], flags: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The objective (the first word without `=`), and every setting that was given, by its dotted key."""
    words = list(words)
    objective = next((word for word in words if "=" not in word), None)
    if objective is not None:
        words.remove(objective)
    given: dict[str, Any] = {}
    for name, value in flags.items():
        if SHORT[name] in given:
            raise UserError(f"{_help(name).replace('the same as', f'--{name} is the same as')}; give one of them.")
        given[SHORT[name]] = value
    overrides = dict(flatten(parse_overrides(words)))
    if twice := given.keys() & overrides.keys():
        raise UserError(f"{min(twice)} is given twice, as an option and as key=value; give it once.")
    settings = given | overrides
    unknown = sorted(key for key in settings if "." not in key and key not in Config.model_fields)
    if unknown:  # or a keyword of the function in Python
        raise UserError(f"Unknown key '{unknown[0]}' (command line){nearest(unknown[0], [*known_keys(), *SHORT])}")
    named = settings.pop("objective", None)
    if objective is not None and named is not None:
        raise UserError(f"The objective is given twice, {objective} and {named}; give it once.")
    return objective or named, settings


def free_name(name: str, suffix: str) -> Path:
    """A file here that is not there yet: name.html, name-2.html, …"""
    names = (Path(f"{name}{number}{suffix}") for number in ("", *(f"-{n}" for n in range(2, 10_000))))
    return next(path for path in names if not path.exists())
