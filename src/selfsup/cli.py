"""The command line: one command per public function, thin. What is heavy is imported when a command runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from selfsup.errors import Interrupted, UserError

if TYPE_CHECKING:
    from selfsup.run import Run

app = typer.Typer(
    help="Self-supervised learning: point it at unlabelled data, leave with a model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# What typer raises for words that it does not understand.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OBJECTIVE] [KEY=VALUE]...", help="such as causal-lm model.layers=8"),
]
Data = Annotated[str | None, typer.Option(help="file, folder, glob, hub:NAME or sample:NAME")]
Budget = Annotated[str | None, typer.Option(help="wall time of the whole run: 90s, 10m, 1h30m")]
Steps = Annotated[int | None, typer.Option(help="optimizer updates")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data")]
Batch = Annotated[int | None, typer.Option(help="records per step, over all processes")]
Seed = Annotated[int | None, typer.Option(help="seed of everything random")]
Tokenizer = Annotated[
    str | None, typer.Option(help="bpe, characters, words, or a tokenizer.json or directory")
]
Init = Annotated[str | None, typer.Option(help="a run or Hugging Face directory to start from")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="a YAML file, such as a run's config.yaml")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16")]
Column = Annotated[str | None, typer.Option(help="the text column")]
Label = Annotated[str | None, typer.Option(help="the column of the class")]
Id = Annotated[
    str | None, typer.Option("--id", help="the column of ids; without it a record goes by its place")
]
Chunk = Annotated[int, typer.Option("--batch", help="texts embedded, and kept when interrupted, together")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


@app.command()
def train(
    words: Words = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="the run directory")] = None,
    budget: Budget = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch: Batch = None,
    seed: Seed = None,
    tokenizer: Tokenizer = None,
    init: Init = None,
    config: ConfigFile = None,
    resume: Annotated[Path | None, typer.Option(help="a run to go on with, or to extend")] = None,
    device: Device = None,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Train a model. Without arguments: causal-lm on the bundled Shakespeare, for two minutes."""
    from selfsup.training import train as run_training

    objective, settings = split_words(
        words, budget, steps, epochs, batch, seed, tokenizer, init, device, precision
    )
    place = settings.pop("out", None)
    run = run_training(
        objective,
        data=data,
        out=out or place,
        config=config,
        resume=resume,
        origin="command line",
        **settings,
    )
    if as_json:
        print_json(run.summary)
    else:
        show_end(run)


@app.command()
def plan(
    words: Words = None,
    data: Data = None,
    budget: Budget = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch: Batch = None,
    seed: Seed = None,
    tokenizer: Tokenizer = None,
    init: Init = None,
    config: ConfigFile = None,
    device: Device = None,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Say what a training would be: sizes, arithmetic, memory, time. Trains nothing, writes no run."""
    from selfsup.report import Reporter
    from selfsup.training import plan as make

    objective, settings = split_words(
        words, budget, steps, epochs, batch, seed, tokenizer, init, device, precision
    )
    made, resolved = make(objective, data=data, config=config, origin="command line", **settings)
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows(resolved))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="two or more run directories")],
    plot: Annotated[Path | None, typer.Option(help="draw the curves into this .png or .svg")] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side: curves, final figures, and where their configurations differ."""
    from selfsup.comparison import compare as set_side_by_side
    from selfsup.report import to_stdout

    comparison = set_side_by_side(runs)
    if plot is not None:
        comparison.plot(plot)
    if as_json:
        print_json(comparison.to_json())
    else:
        comparison.print(to_stdout())


@app.command()
def inspect(
    words: Words = None,
    text: Annotated[str | None, typer.Option(help="the text to look at")] = None,
    data: Data = None,
    tokenizer: Annotated[str, typer.Option(help="bpe, characters, words, a run, or a path")] = "bpe",
    run: Annotated[
        Path | None, typer.Option(help="a run: its tokenizer, and what it makes of the task")
    ] = None,
    window: Annotated[int | None, typer.Option(help="tokens to show")] = None,
    html: Annotated[Path | None, typer.Option(help="write the page here")] = None,
    as_json: Json = False,
) -> None:
    """Show the supervision that the data makes: what is shown, what is hidden, who sees what."""
    from selfsup.inspection import inspect as look
    from selfsup.report import to_stdout

    objective, settings = split_words(words)
    inspection = look(
        objective,
        text=text,
        data=data,
        tokenizer=tokenizer,
        run=run,
        window=window,
        **settings,
    )
    if html is not None:
        write_new(html, inspection.to_html())
    if as_json:
        print_json(inspection.to_json())
    else:
        inspection.print(to_stdout())


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="texts to go on from; none starts from nothing")
    ] = None,
    tokens: Annotated[int, typer.Option(help="most tokens to write")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="draw from the k likeliest")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="draw from the likeliest that hold this probability")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="drop what is below this share of the likeliest")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="above 1 discourages what was written before")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="the same seed writes the same text")] = 0,
    as_json: Json = False,
) -> None:
    """Let a model write."""
    from selfsup.run import load_decoder

    model = load_decoder(run)
    starts = prompts or [""]
    streams = len(starts) == 1 and not as_json
    if streams:
        print(starts[0], end="", flush=True)
    texts = model.generate(
        starts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stream=(lambda _, piece: print(piece, end="", flush=True)) if streams else None,
    )
    if as_json:
        written = [{"prompt": start, "text": text} for start, text in zip(starts, texts, strict=True)]
        print_json({"texts": written})
    elif streams:
        print()
    else:
        print("\n\n".join(start + text for start, text in zip(starts, texts, strict=True)))


@app.command()
def fill(
    run: Annotated[Path, typer.Argument(help="a run of masked-lm, or a ModernBERT directory")],
    text: Annotated[str, typer.Argument(help="with [MASK] where a word is hidden")],
    top: Annotated[int, typer.Option(help="candidates to show", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Say what stands in the places of a text that say [MASK]."""
    from selfsup.report import to_stdout
    from selfsup.run import load_encoder

    places = load_encoder(run).fill(text, top)
    if as_json:
        print_json({"text": text, "places": [[vars(candidate) for candidate in place] for place in places]})
        return
    for number, place in enumerate(places, 1):
        if len(places) > 1:
            to_stdout().print(f"place {number}", style="bold")
        for candidate in place:
            to_stdout().print(f"{candidate.probability:6.1%}  {candidate.token}", markup=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    data: Data = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="of language models: bits-per-byte, perplexity; of encoders: sts, linear, knn-20, knn-200, rankme, "
            "alpha-req, uniformity, alignment, pseudo-perplexity"
        ),
    ] = "bits-per-byte",
    test: Annotated[
        str | None, typer.Option(help="what linear and knn measure on; a fifth of the data without")
    ] = None,
    column: Column = None,
    label: Label = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="of the bootstrap, and of what is drawn")] = 0,
    as_json: Json = False,
) -> None:
    """Measure a model by a named protocol, on a run's held-out part or on other data."""
    from selfsup.evaluation import evaluate as measure
    from selfsup.report import Reporter, to_stdout

    reporter = Reporter()
    with reporter.bar("Measuring"):
        score = measure(
            run,
            data=data,
            protocol=protocol,
            test=test,
            column=column,
            label=label,
            device=device,
            seed=seed,
            progress=reporter.counting,
        )
    if as_json:
        print_json(score.to_json())
    else:
        score.print(to_stdout())


@app.command()
def probe(
    run: Annotated[Path, typer.Argument(help="the run, or model directory, of an encoder")],
    data: Annotated[str, typer.Option(help="texts with their classes: file, folder, glob or hub:NAME")],
    out: Annotated[Path, typer.Option(help="the directory of the probe")],
    column: Column = None,
    label: Label = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="of folds and bootstrap")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a linear classifier to an encoder's features of labelled texts, and keep it."""
    from selfsup.inference.probe import Probe, refuse_taken
    from selfsup.report import Reporter, to_stdout

    refuse_taken(out)
    reporter = Reporter()
    with reporter.bar("Embedding"):
        fitted = Probe.fit(
            run, data, column=column, label=label, device=device, seed=seed, progress=reporter.counting
        )
    fitted.save(out)
    if as_json:
        print_json(fitted.to_json())
    else:
        fitted.estimate.print(to_stdout())
        print(
            f'{out} is fitted to all {fitted.records:,} records. Try: selfsup classify {run} --probe {out} "a text"'
        )


@app.command()
def classify(
    run: Annotated[Path, typer.Argument(help="the run, or model directory, that the probe was fitted to")],
    probe: Annotated[Path, typer.Option(help="a directory that `selfsup probe` wrote")],
    texts: Annotated[list[str] | None, typer.Argument(help="texts to classify, in place of --data")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="write the JSON lines here")] = None,
    column: Column = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Tell the class of texts: a JSON line for each, with its label and the probability of it."""
    from selfsup.files import write_atomically
    from selfsup.inference.probe import Probe, refuse_taken
    from selfsup.report import Reporter

    if bool(texts) == (data is not None):
        raise UserError("Give what is to be classified either as texts or with --data.")
    if out is not None:
        refuse_taken(out)
    reporter = Reporter()
    with reporter.bar("Classifying"):
        answers = Probe.load(probe).classify(
            run, texts or data, column=column, device=device, progress=reporter.counting
        )
    lines = "".join(json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in answers)
    if out is None:
        print(lines, end="")
    else:
        write_atomically(out, lines)


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="the run, or model directory, of an encoder")],
    data: Annotated[str, typer.Option(help="file, folder, glob, hub:NAME or sample:NAME")],
    out: Annotated[Path, typer.Option(help="the parquet file to write")],
    half: Annotated[bool, typer.Option("--half", help="store float16")] = False,
    id_column: Id = None,
    column: Column = None,
    batch: Chunk = 4096,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Turn every text of a source into a vector, in a parquet file; the same command goes on after a crash."""
    from selfsup.inference.embed import embed as write
    from selfsup.report import Reporter

    reporter = Reporter()
    with reporter.bar("Embedding"):
        made = write(
            run,
            data,
            out,
            column=column,
            id_column=id_column,
            half=half,
            batch=batch,
            device=device,
            progress=reporter.counting,
        )
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows())


@app.command()
def index(
    out: Annotated[Path, typer.Option(help="the library to make or bring up to date: NAME.lance")],
    run: Annotated[Path | None, typer.Argument(help="the run, or model directory, of an encoder")] = None,
    data: Data = None,
    delete: Annotated[
        list[str] | None, typer.Option(help="in place of RUN and --data: an id to remove; may be repeated")
    ] = None,
    id_column: Id = None,
    column: Column = None,
    batch: Chunk = 4096,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Make a searchable library of a source, or add, update and delete in one."""
    from selfsup.inference import search
    from selfsup.report import Reporter

    if delete:
        if run is not None or data is not None:
            raise UserError("--delete removes records by id, without RUN and --data; give two commands.")
        left = search.delete(out, delete)
        if as_json:
            print_json({"library": str(out), "deleted": len(set(delete)), "records": left})
        else:
            print(f"{len(set(delete)):,} deleted, {left:,} left in {out}.")
        return
    if run is None or data is None:
        raise UserError(
            "Say what makes the vectors and of what: selfsup index RUN --data SOURCE --out NAME.lance"
        )
    reporter = Reporter()
    with reporter.bar("Indexing"):
        made = search.index(
            run,
            data,
            out,
            column=column,
            id_column=id_column,
            batch=batch,
            device=device,
            progress=reporter.counting,
        )
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows())


@app.command()
def search(
    library: Annotated[Path, typer.Argument(help="a library that `selfsup index` made")],
    query: Annotated[str, typer.Argument(help="what to look for")],
    top: Annotated[int, typer.Option(help="hits to show")] = 10,
    where: Annotated[
        str | None, typer.Option(help='a condition on the columns in SQL, such as "year > 1990"')
    ] = None,
    model: Annotated[Path | None, typer.Option(help="where the library's model is now, if it moved")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Find the records of a library that are nearest to a query."""
    from selfsup.inference.hits import show
    from selfsup.inference.search import search as find
    from selfsup.report import to_stdout

    hits = find(library, query, top=top, where=where, model=model, device=device)
    if as_json:
        print_json({"library": str(library), "query": query, "hits": [hit.to_json() for hit in hits]})
    else:
        show(hits, query, to_stdout())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    out: Annotated[Path, typer.Option(help="the directory to write")],
    to: Annotated[str, typer.Option(help="sentence-transformers, or transformers")] = "sentence-transformers",
    as_json: Json = False,
) -> None:
    """Write a model in the layout of another library."""
    from selfsup.exporting import export as write

    exported = write(run, out=out, to=to)
    if as_json:
        print_json(exported.to_json())
        return
    if exported.max_difference is not None:
        print(f"max |Δ| = {exported.max_difference:.2e} in fp32 between its vectors by {to} and by selfsup.")
    print(f"{out} opens with: {exported.opens_with}")


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="a run, finished or not")],
    as_json: Json = False,
) -> None:
    """Say what is wrong with a run, and what helps."""
    from selfsup.doctor import diagnose
    from selfsup.report import to_stdout

    diagnosis = diagnose(run)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        diagnosis.print(to_stdout())


def split_words(
    words: list[str] | None,
    budget: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    seed: int | None = None,
    tokenizer: str | None = None,
    init: str | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> tuple[str | None, dict[str, Any]]:
    """The objective (a first word without `=`), and every setting that was given, by its dotted key."""
    from selfsup.config import Settings, flatten, parse_overrides

    words = list(words or [])
    objective = words.pop(0) if words and "=" not in words[0] else None
    flags = {
        "budget": budget,
        "steps": steps,
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "tokenizer": tokenizer,
        "init": init,
        "device": device,
        "precision": precision,
    }
    given = dict(flatten({name: value for name, value in flags.items() if value is not None}))
    overrides = dict(flatten(parse_overrides(words)))
    if twice := given.keys() & overrides.keys():
        raise UserError(f"{min(twice)} is given twice, as an option and as key=value; give it once.")
    settings = given | overrides
    Settings(
        ("command line", settings)
    )  # refuses what is no setting, before it can be taken for anything else
    named = settings.pop("objective", None)
    return objective or named, settings


def show_end(run: Run) -> None:
    """What a finished run leaves to look at: its last sample, its figures, and what to do next."""
    from selfsup.objectives import find_recipe

    summary, settings = run.summary, run.settings()
    recipe = find_recipe(settings["objective"], settings["model.preset"])
    samples = sorted(run.samples.glob("*.txt"))
    if samples:
        print(f"\n{recipe.shows}:\n\n{samples[-1].read_text(encoding='utf-8').strip()}\n")
    if summary.get("loss") is not None:
        bits = f", {summary['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in summary else ""
        print(f"Validation loss {summary['loss']:.3f} (chance {summary['chance']:.3f}){bits}.")
    if recipe.useful is not None:
        print(f"Try: {recipe.useful.format(run=os.path.relpath(run.directory))}")


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


def write_new(path: Path, content: str) -> None:
    """Write a file that is not there yet."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{path} exists already; give another name.") from None
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; give another name.") from None


def fail(message: str, code: int) -> NoReturn:
    print(f"selfsup: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(code)


def describe(error: OSError) -> str:
    """What the system refused, and where."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"There is no space left on the device{where}; make room, then go on with --resume RUN."
    return f"{error.strerror or error}{where}; check the path and its permissions."


def main() -> None:
    """Run a command; an error that the user can put right is one sentence and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun started, the first one speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        fail(f"{error.format_message().rstrip('.')}; see selfsup --help.", 2)
    except UserError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(describe(error), 2)
    except Interrupted as interruption:
        fail(str(interruption), 130)
    if code == 130:  # typer's answer to Ctrl-C
        fail("Stopped.", 130)
