"""What twenty minutes of CLIP are worth on a few pairs held out: retrieval and zero-shot, from scratch and from runs.

Arguments: a parquet file of images with captions and classes, such as emoji.parquet; a place for what is made, which is
kept; seeds (3); minutes (20); the shares of them that DINO and masked LM have where CLIP starts from their towers (1/3
and 1/6); settings as NAME=VALUE, among them texts=PATH, which masked LM then learns instead of the captions. Those of
`model` are of both image towers, those of `text` of both text towers. What
the place already holds is not made again, so that a call that was stopped can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figures, rates, selfsup, show, spread, write

HELD_OUT = 0.1
WAYS = ("image to text", "text to image")
FIGURES = ("R@1", "R@5", "R@10", "median rank")
WORDS = {"data.tokenizer": "wordpiece"}  # as of captions
SIDES = {"scratch": "from scratch", "started": "from own DINO and masked LM"}


@dataclass(frozen=True)
class Plan:
    """The seconds of all that a model costs, the shares of its towers, and settings of the command line."""

    seconds: float
    dino: float
    masked_lm: float
    texts: str | None
    settings: dict[str, str]

    def of(self, section: str) -> dict[str, str]:
        """The settings of a tower by itself, which is the model of another objective."""
        return {
            f"model.{name.removeprefix(section)}": value
            for name, value in self.settings.items()
            if name.startswith(section)
        }

    @property
    def others(self) -> dict[str, str]:
        """The settings that say nothing of the shape of towers."""
        return {name: value for name, value in self.settings.items() if not name.startswith(("model.", "text."))}


@dataclass(frozen=True)
class Data:
    """Parquet files of the pairs that are trained on, and of those that are not."""

    train: Path
    test: Path


def split(source: Path, place: Path) -> Data:
    """A tenth held out: the captions with the smallest BLAKE2b hashes."""
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    hashes = [hashlib.blake2b(name.encode()).digest() for name in table["caption"].to_pylist()]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    count = int(HELD_OUT * len(order))
    data = Data(place / "train.parquet", place / "held-out.parquet")
    for file, rows in ((data.test, order[:count]), (data.train, order[count:])):
        pq.write_table(table.take(sorted(rows)), file)
    return data


def train(objective: str, source: Path, seconds: float, seed: int, settings: dict[str, str], out: Path) -> Figures:
    """One training as a user starts it, on all that it is given."""
    words = [f"{name}={value}" for name, value in settings.items()]
    return selfsup(
        "train", objective, "--data", str(source), "--out", str(out), "--budget", f"{seconds:g}s",
        "--seed", str(seed), "--json", "data.validation=0", *words,
    )  # fmt: skip


def measured(data: Data, run: Path) -> Figures:
    """Retrieval among the held-out pairs, and their classes by name alone."""
    given = ("evaluate", str(run), "--data", str(data.test), "--json", "--protocol")
    return {protocol: selfsup(*given, protocol) for protocol in ("retrieval", "zero-shot")}


def train_clip(
    data: Data, seconds: float, seed: int, settings: dict[str, str], towers: dict[str, Path], out: Path
) -> Figures:
    starts = {name: str(run) for name, run in towers.items()}
    summary = train("clip", data.train, seconds, seed, settings | starts, out)
    return {**summary, **measured(data, out)}


def parts(data: Data, plan: Plan, seeds: int, work: Path) -> dict[str, Callable[[], Figures]]:
    """What is to be made, in order: its name and the call."""
    made: dict[str, Callable[[], Figures]] = {}
    rest = 1 - plan.dino - plan.masked_lm
    for seed in range(seeds):
        names = {kind: f"{kind}-{seed}" for kind in (*SIDES, "dino", "masked-lm")}
        out = {kind: work / name for kind, name in names.items()}
        towers = {"model.init": out["dino"], "text.init": out["masked-lm"]}
        texts = Path(plan.texts) if plan.texts else data.train
        words = plan.of("text.") | ({} if plan.texts else {"data.column": "caption"}) | WORDS
        made[names["scratch"]] = partial(train_clip, data, plan.seconds, seed, plan.settings, {}, out["scratch"])
        made[names["dino"]] = partial(
            train, "dino", data.train, plan.dino * plan.seconds, seed, plan.of("model."), out["dino"]
        )
        made[names["masked-lm"]] = partial(
            train, "masked-lm", texts, plan.masked_lm * plan.seconds, seed, words, out["masked-lm"]
        )
        made[names["started"]] = partial(
            train_clip, data, rest * plan.seconds, seed, plan.others, towers, out["started"]
        )
    return made


def read_plan(words: Sequence[str]) -> tuple[int, Plan]:
    """Seeds, and what each is to be trained like."""
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    seeds, minutes, dino, masked_lm = (
        Fraction(given or usual)
        for given, usual in zip(
            ([word for word in words if "=" not in word] + [""] * 4)[:4], ("3", "20", "1/3", "1/6"), strict=True
        )
    )
    texts = settings.pop("texts", None)
    return int(seeds), Plan(float(60 * minutes), float(dino), float(masked_lm), texts, settings)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print(
            "clip_quality is left out: give it pairs and a place: python -m benchmarks clip_quality emoji.parquet work/"
        )
        return
    work = Path(arguments[1])
    work.mkdir(parents=True, exist_ok=True)
    seeds, plan = read_plan(arguments[2:])
    data = split(Path(arguments[0]), work)
    made: dict[str, Figures] = {}
    for part, make in parts(data, plan, seeds, work).items():
        file = work / f"{part}.json"
        if file.exists():
            made[part] = json.loads(file.read_text(encoding="utf-8"))
            if made[part]["plan"] != asdict(plan):
                sys.exit(f"{file} was made with other settings; give another place, or take it away.")
            continue
        shutil.rmtree(work / part, ignore_errors=True)  # of a call that was stopped
        made[part] = {**rates(), **make(), "plan": asdict(plan)}
        file.write_text(json.dumps(made[part]), encoding="utf-8")
        print(f"{part}: {json.dumps(made[part])}", file=sys.stderr)
    report(plan, seeds, made)


def figures_of(part: Figures) -> dict[str, float]:
    """What is said of one model."""
    details = part["retrieval"]["details"]
    found = {f"{way}, {name}": details[way][name] for way in WAYS for name in FIGURES}
    shot = part["zero-shot"]
    named = {"zero-shot accuracy": shot["value"], "zero-shot balanced accuracy": shot["details"]["balanced"]}
    return found | named


def beside(part: Figures) -> dict[str, str]:
    """What knowing nothing would reach."""
    details = part["retrieval"]["details"]
    found = {f"{way}, {name}": f"{details[way]['chance'][name]:.1f}" for way in WAYS for name in FIGURES}
    shot = part["zero-shot"]
    usual = f"{shot['details']['majority share']:.1f} for {shot['details']['majority']} always"
    return found | {
        "zero-shot accuracy": f"{shot['chance']:.1f}, {usual}",
        "zero-shot balanced accuracy": f"{shot['chance']:.1f}",
    }


def report(plan: Plan, seeds: int, made: dict[str, Figures]) -> None:
    each = {side: [figures_of(made[f"{side}-{seed}"]) for seed in range(seeds)] for side in SIDES}
    chance = beside(made["scratch-0"])
    values: dict[str, dict[str, Any]] = {
        side: {name: spread([one[name] for one in found]) for name in chance} for side, found in each.items()
    }
    gains = {
        name: spread([b[name] - a[name] for a, b in zip(each["scratch"], each["started"], strict=True)])
        for name in chance
    }
    details = made["scratch-0"]["retrieval"]["details"]
    read = Path(plan.texts).stem if plan.texts else "the captions"
    given = " ".join(f"{name}={value}" for name, value in plan.settings.items())
    write(
        "clip_quality",
        f"CLIP trained for {plan.seconds / 60:g} minutes from scratch, and, in the same time, from towers of DINO on "
        f"the pictures ({plan.dino:.0%} of it) and of masked LM on {read} "
        f"({plan.masked_lm:.0%}); measured on "
        f"{details['images']} images and {details['texts']} captions held out by the hash of their captions. Recall "
        "and accuracy in %; classes by their names alone, "
        f"{made['scratch-0']['zero-shot']['details']['classes']} to choose from"
        f"{f'; {given}' if given else ''}.",
        {"plan": asdict(plan), "parts": made, "values": values, "gains": gains},
        [
            (f"{name}, {what} (chance {chance[name]})", show(values[side][name], 1))
            for name in chance
            for side, what in SIDES.items()
        ]
        + [(f"{way}, R@10: {SIDES['started']} − {SIDES['scratch']}", show(gains[f"{way}, R@10"], 1)) for way in WAYS],
    )
