"""Commands of a trained model: use it, measure it, hand it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfsup.cli.options import (
    Captions,
    Column,
    Data,
    Device,
    Dimension,
    Encoder,
    Failures,
    Label,
    Precision,
    Records,
    Rerank,
    Seed,
    SeveralValues,
    Source,
    Templates,
    Window,
    app,
    command,
    free_name,
)
from selfsup.report import print_json, say

Model = Annotated[Path, typer.Argument(help="a run, or a model directory")]

Prompts = Annotated[list[str] | None, typer.Argument(help="texts to go on from; none starts from nothing")]
PromptFile = Annotated[
    str | None, typer.Option("--prompts", help="a file with a prompt on each line, in their place; - reads input")
]


@app.command()
def generate(
    run: Model,
    prompts: Prompts = None,
    file: PromptFile = None,
    tokens: Annotated[int, typer.Option(help="most tokens to write")] = 200,
    stop: Annotated[
        list[str] | None, typer.Option(help="end before this text; may be repeated", metavar="TEXT")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="draw from the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw from the likeliest that hold this probability")] = None,
    min_p: Annotated[float | None, typer.Option(help="drop what is below this share of the likeliest")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="above 1 discourages what was written before")] = 1.0,
    seed: Annotated[int, typer.Option(help="the same seed writes the same text")] = 0,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: bf16 where the machine multiplies it natively")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object; of --prompts one for each, a line each")
    ] = False,
) -> None:
    """Let a model write."""
    from selfsup.inference.writing import generate as write
    from selfsup.inference.writing import prompts_of

    starts = prompts_of(prompts, file)
    streams = len(starts) == 1 and not as_json
    unsaid = starts[:1]  # until the first piece comes: what is refused is refused before a word is printed
    texts = write(
        run,
        starts,
        tokens=tokens,
        stop=stop or (),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        precision=precision,
        stream=(lambda _, piece: say((unsaid.pop() if unsaid else "") + piece, end="")) if streams else None,
    )
    if streams:
        say("".join(unsaid))
    else:
        _tell(starts, texts, as_json, lines=file is not None)


def _tell(starts: Sequence[str], texts: Sequence[str], as_json: bool, lines: bool) -> None:
    """What was written behind each prompt: as text, as one JSON object, or as one on a line for each."""
    written = [{"prompt": start, "text": text} for start, text in zip(starts, texts, strict=True)]
    if as_json:
        for one in written if lines else [{"texts": written}]:
            print_json(one)
    else:
        say("\n\n".join(one["prompt"] + one["text"] for one in written))


def _places(places: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": given["text"], "places": [[vars(candidate) for candidate in place] for place in places]}


@command("selfsup.inference.writing", to_json=_places)
def fill(
    places: Any,
    run: Annotated[Path, typer.Argument(help="a run of masked-lm, or a ModernBERT directory")],
    text: Annotated[str, typer.Argument(help="with [MASK] where a word is hidden")],
    top: Annotated[int, typer.Option(help="candidates to show", min=1)] = 5,
) -> None:
    """Say what stands in the places of a text that say [MASK]."""
    from selfsup.report import to_stdout

    for number, place in enumerate(places, 1):
        if len(places) > 1:
            to_stdout().print(f"place {number}", style="bold")
        for candidate in place:
            say(f"{candidate.probability:6.1%}  {candidate.token}")


@command("selfsup.inspection.show")
def show(
    shown: Any,
    run: Annotated[Path, typer.Argument(help="a run of a vision transformer, or a model directory")],
    images: Annotated[list[Path], typer.Option("--image", help="what it looks at; may be repeated")],
    out: Annotated[Path | None, typer.Option(help="the picture to write, a .png")] = None,
    size: Annotated[
        int | None, typer.Option(help="short side it is looked at with; twice that of training without", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="of the patches that are hidden from a run of mae")] = 0,
) -> None:
    """Show what a network sees in an image: what its patches have in common, where it looks, what it fills in."""
    from selfsup.report import to_stdout

    if out is None:
        out = free_name("show", ".png")
        shown.write(png=out)
    shown.print(to_stdout())
    say(f"\nThe pictures are in {out}.")


@command("selfsup.evaluation", bar="Measuring", running=True, cls=SeveralValues)
def evaluate(
    score: Any,
    run: Model,
    data: Data = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="of language models: bits-per-byte, perplexity; of encoders: linear, knn-20, knn-200, rankme, "
            "alpha-req, uniformity, alignment; of those of texts also retrieval, structure, sts, pseudo-perplexity; of "
            "those of images also instances; of image-text models also retrieval, zero-shot, sts"
        ),
    ] = "bits-per-byte",
    test: Annotated[
        str | None, typer.Option(help="what linear and knn measure on; a fifth of the data without")
    ] = None,
    column: Column = None,
    label: Label = None,
    templates: Templates = None,
    captions: Captions = None,
    split: Annotated[
        str | None, typer.Option(help="whose judgements retrieval of texts reads; test, or the only one, without")
    ] = None,
    rerank: Rerank = None,
    failures: Failures = 1.0,
    device: Device = "auto",
    precision: Precision = "auto",
    records: Records = None,
    window: Window = None,
    seed: Seed = 0,
    dimension: Dimension = None,
) -> None:
    """Measure a model by a named protocol, on a run's held-out part or on other data."""
    from selfsup.report import to_stdout

    score.print(to_stdout())


@command(
    "selfsup.inference.zero_shot",
    bar="Embedding",
    to_json=lambda answers, given: {"images": [answer.to_json() for answer in answers], **answers.left_out.to_json()},
    cls=SeveralValues,
)
def zero_shot(
    answers: Any,
    run: Annotated[Path, typer.Argument(help="a run of clip, or its model directory")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="files, folders or globs")],
    labels: Annotated[list[str], typer.Option(help="what they may show, such as 'a cat' 'a dog'")],
    column: Column = None,
    templates: Templates = None,
    failures: Failures = 1.0,
    device: Device = "auto",
) -> None:
    """Say which of some texts describes each image, with probabilities."""
    from selfsup.inference.zero_shot import show
    from selfsup.report import Reporter, to_stdout

    show(answers, to_stdout())
    Reporter().table(answers.left_out.rows())


@command("selfsup.evaluation.probe", bar="Embedding")
def probe(
    fitted: Any,
    run: Encoder,
    data: Source,
    out: Annotated[Path, typer.Option(help="the directory of the probe")],
    column: Column = None,
    label: Label = None,
    failures: Failures = 1.0,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="of folds and bootstrap")] = 0,
) -> None:
    """Fit a linear classifier to an encoder's features of labelled texts or images, and keep it."""
    from selfsup.report import to_stdout

    fitted.estimate.print(to_stdout())
    say(f"{out} is fitted to all {fitted.records:,} records. Try: selfsup classify {run} --probe {out} --data NEW")


@command("selfsup.evaluation.probe", bar="Classifying", to_json=None)
def classify(
    answers: Any,
    run: Annotated[Path, typer.Argument(help="the run, or model directory, that the probe was fitted to")],
    probe: Annotated[Path, typer.Option(help="a directory that `selfsup probe` wrote")],
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXTS or IMAGES]...", help="what to classify, in place of --data")
    ] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="write the JSON lines here")] = None,
    column: Column = None,
    failures: Failures = 1.0,
    device: Device = "auto",
) -> None:
    """Tell the class of texts or images: a JSON line for each, with its label and the probability of it."""
    from selfsup.report import Reporter

    Reporter().table(answers.left_out.rows())
    for answer in answers if out is None else ():
        print_json(answer.to_json())


@command("selfsup.exporting")
def export(
    exported: Any,
    run: Model,
    out: Annotated[Path, typer.Option(help="the directory to write; of gguf, onnx and timm the file")],
    to: Annotated[
        str, typer.Option(help="sentence-transformers, transformers, timm, onnx, or gguf")
    ] = "sentence-transformers",
    dimension: Dimension = None,
    quantize: Annotated[
        str | None, typer.Option(help="of gguf, what weights are kept as: f32, f16 or q8_0; f16 without")
    ] = None,
) -> None:
    """Write a model in the layout of another library."""
    if exported.max_difference is not None:
        say(f"max |Δ| = {exported.max_difference:.2e} in fp32 between its vectors by {to} and by selfsup.")
    say(f"{out} opens with: {exported.opens_with}")


@command("selfsup.pushing")
def push(
    pushed: Any,
    run: Model,
    to: Annotated[str, typer.Option(help="NAME/MODEL on the hub", metavar="NAME/MODEL")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell what would go up; send nothing")] = False,
    private: Annotated[bool, typer.Option("--private", help="a model that is made is seen by nobody else")] = False,
    revision: Annotated[str | None, typer.Option(help="the branch; main without it")] = None,
) -> None:
    """Upload a model and its card to the Hugging Face hub."""
    from selfsup.report import to_stdout

    pushed.print(to_stdout())
