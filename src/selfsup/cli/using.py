"""Commands of a trained model: use it, measure it, hand it on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfsup.cli.options import (
    Column,
    Command,
    Data,
    Failures,
    Json,
    Label,
    Templates,
    app,
    free_name,
)
from selfsup.errors import UserError
from selfsup.files import expanded, require_free, write_new
from selfsup.report import json_line, print_json, say

MOST_PROMPTS = 16 << 20  # bytes of a file of prompts


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="texts to go on from; none starts from nothing")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--prompts", help="a file with a prompt on each line, in their place; - reads input"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="most tokens to write")] = 200,
    stop: Annotated[
        list[str] | None, typer.Option(help="end before this text; may be repeated", metavar="TEXT")
    ] = None,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object; of --prompts one for each, a line each")
    ] = False,
) -> None:
    """Let a model write."""
    from selfsup.inference.generate import LanguageModel
    from selfsup.inference.opening import load_as

    if file is not None and prompts:
        raise UserError("Prompts are given both by themselves and by --prompts; give them in one way.")
    starts = (prompts or [""]) if file is None else read_prompts(file)
    model = load_as(run, LanguageModel)
    streams = len(starts) == 1 and not as_json
    unsaid = starts[:1]  # until the first piece comes: what is refused is refused before a word is printed
    texts = model.generate(
        starts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        stream=(lambda _, piece: say((unsaid.pop() if unsaid else "") + piece, end="")) if streams else None,
    )
    written = [{"prompt": start, "text": text} for start, text in zip(starts, texts, strict=True)]
    if as_json and file is None:
        print_json({"texts": written})
    elif as_json:
        for one in written:
            print_json(one)
    elif streams:
        say("".join(unsaid))
    else:
        say("\n\n".join(one["prompt"] + one["text"] for one in written))


def read_prompts(file: str) -> list[str]:
    """The lines of a file, or of the standard input for `-`; an empty line is a prompt that starts from nothing.

    Raises:
        UserError: it cannot be read, is no text in UTF-8, holds no line, or has more than `MOST_PROMPTS` bytes.
    """
    from selfsup.files import read_bytes

    name = "The standard input" if file == "-" else file
    try:
        data = (
            sys.stdin.buffer.read(MOST_PROMPTS + 1)
            if file == "-"
            else read_bytes(expanded(file), MOST_PROMPTS)
        )
        lines = data.decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"Cannot read the prompts in {file}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} holds bytes that are no UTF-8, in line {line}; give the prompts in UTF-8."
        ) from None
    if not data or len(data) > MOST_PROMPTS:
        raise UserError(f"{name} holds {len(data):,} bytes of prompts; give 1 to {MOST_PROMPTS:,}.")
    return [line.removesuffix("\r") for line in lines]


@app.command()
def fill(
    run: Annotated[Path, typer.Argument(help="a run of masked-lm, or a ModernBERT directory")],
    text: Annotated[str, typer.Argument(help="with [MASK] where a word is hidden")],
    top: Annotated[int, typer.Option(help="candidates to show", min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Say what stands in the places of a text that say [MASK]."""
    from selfsup.inference.encoder import EncoderModel
    from selfsup.inference.opening import load_as
    from selfsup.report import to_stdout

    places = load_as(run, EncoderModel).fill(text, top)
    if as_json:
        print_json({"text": text, "places": [[vars(candidate) for candidate in place] for place in places]})
        return
    for number, place in enumerate(places, 1):
        if len(places) > 1:
            to_stdout().print(f"place {number}", style="bold")
        for candidate in place:
            say(f"{candidate.probability:6.1%}  {candidate.token}")


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="a run of a vision transformer, or a model directory")],
    image: Annotated[list[Path], typer.Option(help="what it looks at; may be repeated")],
    out: Annotated[Path | None, typer.Option(help="the picture to write, a .png")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="short side it is looked at with; twice that of training without", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the patches that are hidden from a run of mae")] = 0,
    as_json: Json = False,
) -> None:
    """Show what a network sees in an image: what its patches have in common, where it looks, what it fills in."""
    from selfsup.inspection.show import show as look
    from selfsup.report import to_stdout

    require_free(out)
    shown = look(run, image, size=size, seed=seed)
    out = out or free_name("show", ".png")
    write_new(out, shown.to_png())
    if as_json:
        print_json(shown.to_json())
    else:
        shown.print(to_stdout())
        say(f"\nThe pictures are in {out}.")


@app.command(cls=Command)
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    data: Data = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="of language models: bits-per-byte, perplexity; of encoders: linear, knn-20, knn-200, rankme, "
            "alpha-req, uniformity, alignment; of those of texts also sts, pseudo-perplexity; of image-text models "
            "also retrieval, zero-shot, sts"
        ),
    ] = "bits-per-byte",
    test: Annotated[
        str | None, typer.Option(help="what linear and knn measure on; a fifth of the data without")
    ] = None,
    column: Column = None,
    label: Label = None,
    templates: Templates = None,
    captions: Annotated[
        list[str] | None, typer.Option(help="the columns of the captions, for retrieval")
    ] = None,
    failures: Failures = 1.0,
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
            templates=templates or None,
            captions=captions or (),
            failures=failures,
            device=device,
            seed=seed,
            progress=reporter.counting,
        )
    if as_json:
        print_json(score.to_json())
    else:
        score.print(to_stdout())


@app.command(name="zero-shot", cls=Command)
def zero_shot(
    run: Annotated[Path, typer.Argument(help="a run of clip, or its model directory")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="files, folders or globs")],
    labels: Annotated[list[str], typer.Option(help="what they may show, such as 'a cat' 'a dog'")],
    column: Column = None,
    templates: Templates = None,
    failures: Failures = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Say which of some texts describes each image, with probabilities."""
    from selfsup.inference.zero_shot import TEMPLATES, show
    from selfsup.inference.zero_shot import zero_shot as ask
    from selfsup.report import Reporter, to_stdout

    reporter = Reporter()
    with reporter.bar("Embedding"):
        answers = ask(
            run,
            images,
            labels,
            column=column,
            templates=templates or TEMPLATES,
            failures=failures,
            device=device,
            progress=reporter.counting,
        )
    if as_json:
        print_json({"images": [answer.to_json() for answer in answers], **answers.left_out.to_json()})
    else:
        show(answers, to_stdout())
        reporter.table(answers.left_out.rows())


@app.command()
def probe(
    run: Annotated[
        Path, typer.Argument(help="the run, or model directory, of an encoder of texts or images")
    ],
    data: Annotated[
        str, typer.Option(help="texts or images with their classes: file, folder, glob or hub:NAME")
    ],
    out: Annotated[Path, typer.Option(help="the directory of the probe")],
    column: Column = None,
    label: Label = None,
    failures: Failures = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="of folds and bootstrap")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a linear classifier to an encoder's features of labelled texts or images, and keep it."""
    from selfsup.evaluation.probe import Probe, claimed
    from selfsup.report import Reporter, to_stdout

    reporter = Reporter()
    with claimed(out), reporter.bar("Embedding"):
        fitted = Probe.fit(
            run,
            data,
            column=column,
            label=label,
            failures=failures,
            device=device,
            seed=seed,
            progress=reporter.counting,
        )
        fitted.save(out)
    if as_json:
        print_json(fitted.to_json())
    else:
        fitted.estimate.print(to_stdout())
        say(
            f"{out} is fitted to all {fitted.records:,} records. Try: selfsup classify {run} --probe {out} --data NEW"
        )


@app.command()
def classify(
    run: Annotated[Path, typer.Argument(help="the run, or model directory, that the probe was fitted to")],
    probe: Annotated[Path, typer.Option(help="a directory that `selfsup probe` wrote")],
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXTS or IMAGES]...", help="what to classify, in place of --data"),
    ] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="write the JSON lines here")] = None,
    column: Column = None,
    failures: Failures = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Tell the class of texts or images: a JSON line for each, with its label and the probability of it."""
    from selfsup.evaluation.probe import Probe
    from selfsup.report import Reporter

    if bool(given) == (data is not None):
        raise UserError("Give what is to be classified either by itself or with --data.")
    require_free(out)
    reporter = Reporter()
    with reporter.bar("Classifying"):
        answers = Probe.load(probe).classify(
            run, given or data, column=column, failures=failures, device=device, progress=reporter.counting
        )
    reporter.table(answers.left_out.rows())
    if out is not None:
        write_new(out, "".join(json_line(answer.to_json()) + "\n" for answer in answers))
        return
    for answer in answers:
        print_json(answer.to_json())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run, or a model directory")],
    out: Annotated[Path, typer.Option(help="the directory to write; of onnx and timm the file")],
    to: Annotated[
        str, typer.Option(help="sentence-transformers, transformers, timm, or onnx")
    ] = "sentence-transformers",
    as_json: Json = False,
) -> None:
    """Write a model in the layout of another library."""
    from selfsup.exporting import export as write

    exported = write(run, out=out, to=to)
    if as_json:
        print_json(exported.to_json())
        return
    if exported.max_difference is not None:
        say(f"max |Δ| = {exported.max_difference:.2e} in fp32 between its vectors by {to} and by selfsup.")
    say(f"{out} opens with: {exported.opens_with}")
