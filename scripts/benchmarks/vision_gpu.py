"""CIFAR-10 rows that want a GPU: SimCLR on ResNet-18, and DINO, DINO with masked patches and MAE on a small ViT.

    python scripts/benchmarks/vision_gpu.py images/ build/vision_gpu --seconds 540
    python scripts/benchmarks/vision_gpu.py images/ build/vision_gpu --seconds 540    # goes on
    python scripts/benchmarks/vision_gpu.py images/ build/tiny --tiny                 # all of it in minutes, on a CPU

`images/` holds cifar10-train.parquet and cifar10-test.parquet. A call works for so many seconds, stops the training
that it is at, which is saved, and the next call goes on exactly there; what is finished is not made again. All 50,000
images are trained on, none held out, without labels; neighbours and the linear classifier learn from those of the
training images; the 10,000 test images are looked at once, when a run has ended. Figures are in OUT/rows.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import PEERS, first_images  # noqa: E402

SAVING = 60.0  # seconds that a training may take to save itself when it is stopped
MEASURING = 90.0  # seconds that are to be left for an evaluation to begin
Figures = dict[str, Any]


class Row(NamedTuple):
    """An objective, a network of benchmarks/networks.py or selfsup's own, settings, and what is measured at the end."""

    objective: str
    network: str | None
    settings: Figures
    protocols: tuple[str, ...]


VIT = {"model": "vit-ti", "model.patch": 4, "data.validation": 0}
SMALL = ("knn-20", "linear")
ROWS = {
    "simclr-resnet-18": Row(
        "simclr", "resnet-18", {"epochs": 200, "batch": 512, "data.validation": 0}, ("knn-200", "knn-20", "linear")
    ),
    "dino-vit-ti": Row("dino", None, VIT | {"epochs": 200, "dino.ibot": 0}, SMALL),
    "dino-ibot-vit-ti": Row("dino", None, VIT | {"epochs": 200, "dino.ibot": 1}, SMALL),
    "mae-vit-ti": Row("mae", None, VIT | {"epochs": 400}, SMALL),
}  # fmt: skip
TINY: Figures = {"epochs": 2, "batch": 32}
TINY_ROWS = {  # the same paths on networks and data that a CPU manages
    name: row._replace(
        network=row.network and "resnet-9-half",
        settings={**row.settings, **TINY, **({} if row.network else {"model": "vit-atto"})},
    )
    for name, row in ROWS.items()
}


class Place(NamedTuple):
    """Parquet files of all training and test images, and the directory of runs."""

    bank: Path
    test: Path
    out: Path


def command(row: Row, seed: int, run: Path, place: Place) -> list[str]:
    """What begins a training, or goes on with it."""
    begun = (run / "config.yaml").exists()
    given = {**row.settings, "seed": seed}
    if row.network is None:
        start = [sys.executable, "-m", "selfsup", "train"]
        words = [f"{name}={value}" for name, value in given.items()]
        fresh = [row.objective, "--data", str(place.bank), "--out", str(run), *words]
        return [*start, *(["--resume", str(run)] if begun else fresh)]
    what = str(run) if begun else row.objective
    settings = json.dumps(given | {"data": str(place.bank), "out": str(run)})
    kept = [str(vectors_of(run)), f"bank={place.bank}", f"test={place.test}"]
    return [sys.executable, str(PEERS / "train_network.py"), row.network, what, settings, *kept]


def vectors_of(run: Path) -> Path:
    return run.with_name(run.name + ".npz")


def trained(row: Row, run: Path) -> bool:
    """Whether a run has ended, and left what is to be measured."""
    return (run / "summary.json").exists() and (row.network is None or vectors_of(run).exists())


def train(row: Row, seed: int, run: Path, place: Place, stop: float) -> None:
    """Begin or go on with a training, until it ends or the clock shows `stop`; how busy the device was is kept."""
    if not (run / "config.yaml").exists():
        shutil.rmtree(run, ignore_errors=True)
    process = subprocess.Popen(command(row, seed, run, place), stdout=subprocess.DEVNULL)
    busy, stopped = [], False
    while process.poll() is None:
        time.sleep(1.0)
        if (share := utilisation()) is not None and (run / "metrics.jsonl").exists():
            busy.append(share)
        if time.perf_counter() > stop and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
        if time.perf_counter() > stop + SAVING:
            process.kill()
    if process.returncode and not stopped:
        sys.exit(f"{run.name} failed with {process.returncode}.")
    if busy:
        with run.with_name(f"{run.name}-utilisation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(busy) + "\n")


def utilisation() -> float | None:
    """The device's share of busy time in percent, where there is an NVIDIA one."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0])


def measure(row: Row, run: Path, place: Place) -> Figures:
    """What the row's protocols say of the last state of a run."""
    if row.network is None:
        sources = ["--data", str(place.bank), "--test", str(place.test), "--json"]
        return {
            protocol: json.loads(
                subprocess.run(
                    [sys.executable, "-m", "selfsup", "evaluate", str(run), "--protocol", protocol, *sources],
                    stdout=subprocess.PIPE, text=True, check=True,
                ).stdout
            )["value"]
            for protocol in row.protocols
        }  # fmt: skip
    import numpy as np

    from selfsup.data.images import open_images
    from selfsup.evaluation.knn import knn
    from selfsup.evaluation.linear import linear

    with np.load(vectors_of(run)) as arrays:
        bank, test = arrays["bank"], arrays["test"]
    classes, right = open_images(place.bank).labels, open_images(place.test).labels
    assert classes is not None
    answers = {
        "knn-200": lambda: knn(bank, classes, test, 200, 0.1),
        "knn-20": lambda: knn(bank, classes, test, 20, 0.07),
        "linear": lambda: linear(bank, classes).predict(test),
    }
    return {protocol: 100 * float((answers[protocol]() == right).mean()) for protocol in row.protocols}


def finish(row: Row, name: str, seed: int, run: Path, place: Place) -> Figures:
    """The figures of a run that has ended."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    file = run.with_name(f"{run.name}-utilisation.jsonl")
    busy = [share for line in file.read_text().splitlines() for share in json.loads(line)] if file.exists() else []
    return {
        "row": name,
        "seed": seed,
        "row_settings": row._asdict(),
        **measure(row, run, place),
        "utilisation": median(busy) if busy else None,
        **{key: summary.get(key) for key in ("wall_seconds", "steps", "loss", "parameters", "peak_memory")},
        **{
            key: environment.get(key)
            for key in ("device", "accelerator", "processor", "torch", "precision", "matrix_flops")
        },
    }


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path, help="the directory of CIFAR-10's parquet files")
    parser.add_argument("out", type=Path, help="where runs and figures are kept")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, in this order")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row")
    parser.add_argument("--seconds", type=float, default=540.0, help="of this call")
    parser.add_argument("--tiny", action="store_true", help="few images, small networks, two epochs")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"
    options.out.mkdir(parents=True, exist_ok=True)
    counts = (256, 128) if options.tiny else (50_000, 10_000)
    bank, test = (
        first_images(options.images / f"cifar10-{part}.parquet", count, options.out)
        for part, count in zip(("train", "test"), counts, strict=True)
    )
    place, stop = Place(bank, test, options.out), begun + options.seconds
    measuring = 0.0 if options.tiny else MEASURING
    rows = TINY_ROWS if options.tiny else ROWS
    planned = [(name, seed) for seed in range(options.seeds) for name in options.rows.split(",")]
    for name, seed in planned:
        row, run = rows[name], options.out / f"{name}-{seed}"
        file = options.out / f"{name}-{seed}.json"
        if file.exists():
            continue
        if not trained(row, run):
            train(row, seed, run, place, stop)
        if not trained(row, run) or time.perf_counter() > stop - measuring:
            print(f"{name}, seed {seed}: stopped; the same command goes on.", file=sys.stderr)
            break
        file.write_text(json.dumps(finish(row, name, seed, run, place)), encoding="utf-8")
        print(file.read_text(encoding="utf-8"), file=sys.stderr)
    made = [options.out / f"{name}-{seed}.json" for name, seed in planned]
    figures = [json.loads(file.read_text(encoding="utf-8")) for file in made if file.exists()]
    (options.out / "rows.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"made": len(figures), "planned": len(planned), "seconds": time.perf_counter() - begun}))


main()
