"""Tokens per second and latencies of `selfsup serve`, asked by 64 clients at once, beside `generate` with 64 prompts.

By turns: a server with 64 clients in a process of their own, and `generate` alone, one thread each. Beside tokens per
second stand tokens per second of processor time (of the server and its clients together), which others that use the
machine change far less.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.common import Quick, alternate, run, show, spread, write

CLIENTS, TOKENS, PROMPT = 64, 128, 24
LATER = 2  # requests of each client, one after the other, of lengths that differ
QUICK = Quick(("1",), ("uvicorn",))


def save(place: Path) -> None:
    """A decoder of 16 million parameters that never ends a text: 8 layers, 8 heads, width 384."""
    import torch

    from selfsup.data.tokenizer_training import train_tokenizer
    from selfsup.models.decoder import Decoder, DecoderConfig
    from selfsup.models.decoder_layouts import save_model

    tokenizer = train_tokenizer("characters", ["".join(chr(33 + i) for i in range(94))])
    config = DecoderConfig(
        vocabulary=tokenizer.vocabulary, layers=8, width=384, heads=8, kv_heads=8, head_dim=48, mlp=1152,
        window=512, tied=False,
    )  # fmt: skip
    drawn = torch.Generator().manual_seed(0)
    decoder = Decoder(config).initialise(drawn).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=drawn)
        decoder.lm_head.weight[[tokenizer.end, tokenizer.unknown]] = 0  # a logit of 0, which is never the largest
    save_model(place, decoder, tokenizer, "Random weights.")


def prompts(count: int, seed: int = 0) -> list[str]:
    draws = random.Random(seed)
    return ["".join(chr(33 + draws.randrange(94)) for _ in range(PROMPT)) for _ in range(count)]


def lengths(count: int) -> list[int]:
    """Between a quarter of `TOKENS` and all of them."""
    draws = random.Random(1)
    return [draws.randint(TOKENS // 4, TOKENS) for _ in range(count)]


def measure_generate(place: str) -> None:
    """`generate` of as many prompts as there are clients; then of texts of different lengths, which it writes in
    batches, each as long as its longest text."""
    from selfsup.inference.generate import LanguageModel

    model = LanguageModel.load(place)
    model.generate(prompts(2), tokens=2, temperature=0)
    start, spent = time.perf_counter(), time.process_time()
    model.generate(prompts(CLIENTS), tokens=TOKENS, temperature=0)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    wanted = lengths(CLIENTS * LATER)
    start, spent_later = time.perf_counter(), time.process_time()
    for first in range(0, len(wanted), CLIENTS):
        model.generate(prompts(CLIENTS, first), tokens=max(wanted[first : first + CLIENTS]), temperature=0)
    later, spent_later = time.perf_counter() - start, time.process_time() - spent_later
    figures = {"at_once": CLIENTS * TOKENS / seconds, "later": sum(wanted) / later}
    figures |= {"at_once_spent": CLIENTS * TOKENS / spent, "later_spent": sum(wanted) / spent_later}
    print(json.dumps(figures))


async def ask(port: int, body: dict[str, object]) -> tuple[float, float, int, int]:
    """(seconds to the first piece, to the last one, tokens, status) of a streamed answer."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    answer, first = b"", 0.0
    while more := await reader.read(1 << 16):
        answer += more
        first = first or (time.perf_counter() - start if b"data:" in answer or b'"text"' in answer else 0.0)
    writer.close()
    status = int(answer.split(b" ", 2)[1])
    usage = answer.rpartition(b'"completion_tokens":')[2].split(b",")[0]
    return first, time.perf_counter() - start, int(usage) if status == 200 else 0, status


async def load(port: int, server: psutil.Process) -> dict[str, object]:
    """All clients at once with one text each, whole and streamed; then each with several texts one after the other."""
    plain = {"temperature": 0, "max_tokens": TOKENS}
    await asyncio.gather(*(ask(port, {"prompt": p, "max_tokens": 2}) for p in prompts(2)))
    figures: dict[str, object] = {}
    for name, more in (
        ("at_once", {}), ("streamed", {"stream": True, "stream_options": {"include_usage": True}})
    ):  # fmt: skip
        start, before = time.perf_counter(), spent(server)
        answers = await asyncio.gather(*(ask(port, {"prompt": p, **plain, **more}) for p in prompts(CLIENTS)))
        figures[name] = sum(one[2] for one in answers) / (time.perf_counter() - start)
        figures[f"{name}_spent"] = sum(one[2] for one in answers) / (spent(server) - before)
        figures[f"{name}_errors"] = sum(one[3] != 200 for one in answers)
        figures[f"{name}_latencies"] = percentiles([one[1] for one in answers])
        figures[f"{name}_first"] = percentiles([one[0] for one in answers])
    wanted = lengths(CLIENTS * LATER)

    async def client(number: int) -> list[tuple[float, float, int, int]]:
        own = range(number, len(wanted), CLIENTS)
        some = prompts(LATER, number)
        return [
            await ask(port, {"prompt": p, **plain, "max_tokens": wanted[k]}) for p, k in zip(some, own, strict=True)
        ]

    start, before = time.perf_counter(), spent(server)
    answers = [one for own in await asyncio.gather(*map(client, range(CLIENTS))) for one in own]
    figures["later"] = sum(one[2] for one in answers) / (time.perf_counter() - start)
    figures["later_spent"] = sum(one[2] for one in answers) / (spent(server) - before)
    figures["later_errors"] = sum(one[3] != 200 for one in answers)
    figures["later_latencies"] = percentiles([one[1] for one in answers])
    return figures


def spent(server: psutil.Process) -> float:
    """Seconds of processor time of the server and of this process."""
    times = server.cpu_times()
    return times.user + times.system + time.process_time()


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"p{share}": round(ordered[min(len(ordered) - 1, share * len(ordered) // 100)], 4) for share in (50, 90, 99)
    }


def measure_serve(place: str) -> None:
    """The server in a process of its own, and the clients in this one."""
    words = [sys.executable, "-m", "selfsup", "serve", place, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().split("/v1")[0].rpartition(":")[2])
    try:
        print(json.dumps(asyncio.run(load(port, psutil.Process(server.pid)))))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["generate"]:
        measure_generate(arguments[1])
        return
    if arguments[:1] == ["serve"]:
        measure_serve(arguments[1])
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "decoder"
        save(place)
        rounds = alternate(
            int(arguments[0]) if arguments else 3,
            generate=lambda: run(sys.executable, "-m", "benchmarks", "serving", "generate", str(place)),
            serve=lambda: run(sys.executable, "-m", "benchmarks", "serving", "serve", str(place)),
        )
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {"rounds": rounds}
    later = f"{LATER} texts each, of {TOKENS // 4} to {TOKENS}"
    for kind, what in (("at_once", f"{TOKENS} tokens each"), ("later", later), ("streamed", "streamed")):
        for side in ("generate", "serve"):
            if kind in rounds[0][side]:
                rows.append((f"{side}, {what}: tokens/s", show(spread([one[side][kind] for one in rounds]), 0)))
        theirs = "at_once" if kind == "streamed" else kind  # which has no streams
        shares = [one["serve"][f"{kind}_spent"] / one["generate"][f"{theirs}_spent"] for one in rounds]
        figures[kind] = spread(shares)
        rows.append((f"serve / generate, {what}, by processor time", show(spread(shares))))
    for kind, what in (
        ("at_once_latencies", "whole"),
        ("streamed_first", "streamed, first piece"),
        ("later_latencies", "later"),
    ):
        told = (
            f"{share} {median(one['serve'][kind][share] for one in rounds):.2f} s" for share in ("p50", "p90", "p99")
        )
        rows.append((f"serve, {what}: latency", ", ".join(told)))
    errors = sum(one["serve"][f"{kind}_errors"] for one in rounds for kind in ("at_once", "streamed", "later"))
    rows.append(("serve: errors", str(errors)))
    write(
        "serving",
        f"{CLIENTS} clients at once, greedy, prompts of {PROMPT} tokens, 8 layers, width 384, one thread each. The "
        "machine was shared with other work, so the comparison is by processor time.",
        figures,
        rows,
    )
