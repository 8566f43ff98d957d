"""What a plan on paper says of large trainings, beside what was published of them."""

from __future__ import annotations

from typing import Any

from benchmarks.common import Figures, write

GIB = 2**30
NANOCHAT = "karpathy/nanochat"
D20 = f"{NANOCHAT}, a report.md of 2025-11-11 (8 × H100 80GB): 172.57 min at 48.04 %, 11,219,763,200 tokens"
D26 = f"{NANOCHAT}, README of October 2025: d26 trains in about 12 hours (all stages); tokens 20 for each parameter"
ZERO = "Rajbhandari et al. 2020, ZeRO, figure 1: 7.5 billion parameters, Adam, 64 GPUs"
TITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, Llama 3.1 8B"


def nanochat(depth: int, tokens: float, minutes: float, source: str) -> Figures:
    """Time of a training of nanochat's on 8 H100, at the utilisation that its reports say."""
    import selfsup

    width = 64 * depth
    shape = {"layers": depth, "width": width, "heads": width // 128, "mlp": round(8 * width / 3), "tied": False}
    given: dict[str, Any] = {"model": shape, "gpus": "8:h100", "tokens": tokens, "utilisation": 0.4804, "batch": 256}
    plan, _ = selfsup.plan("causal-lm", **given, **{"data.vocabulary": 65536})
    return {"said": plan.seconds / 60, "published": minutes, "unit": "min", "source": source, "flops": plan.flops}


def states(gpus: int, sharded: bool) -> Figures:
    """Weights, gradients and moments of AdamW."""
    from selfsup.models.counting import Kept, Sketch, Stack
    from selfsup.paper import Setup, memory_of

    sketch = Sketch(7_500_000_000, 0, (Stack(1, 1, 1, 1, Kept(0, 0)),))
    memory = memory_of(sketch, Setup(gpus, 1, sharded=sharded, muon=False))
    said = memory.weights + memory.gradients + memory.optimizer
    return {"said": said / 1e9, "published": 1.9 if sharded else 120.0, "unit": "GB", "source": ZERO}


def llama(gpus: int, window: int, records: int) -> Any:
    """What a plan says of Llama 3.1 8B, sharded, with AdamW."""
    from selfsup.models.counting import Sketch, Stack, kept_per_token, matrix_parameters, size_of, sketched
    from selfsup.models.decoder import Decoder, DecoderConfig
    from selfsup.paper import Setup, memory_of

    config = DecoderConfig(
        vocabulary=128256,
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp=14336,
        window=window,
        tied=False,
        layout="llama",
        qk_norm=False,
    )
    decoder = sketched(Decoder, config)
    kept = kept_per_token(4096, 4096, 1024, 14336, turned=True, gated=True)
    stack = Stack(32, 4096, size_of(decoder.model.layers[0]), window, kept)
    sketch = Sketch(size_of(decoder), matrix_parameters(decoder.model.layers), (stack,), 128256, 4096, window)
    return memory_of(sketch, Setup(gpus, records, sharded=True, recomputed=True, muon=False))


def shards() -> Figures:
    """What 128 GPUs hold less than 8 do: no activation is in it."""
    few, many = (llama(gpus, 8192, 2) for gpus in (8, 128))
    less = sum(getattr(few, part) - getattr(many, part) for part in ("weights", "gradients", "optimizer"))
    return {"said": less / GIB, "published": 82.4 - 67.0, "unit": "GiB", "source": f"{TITAN}, tables 1 and 3"}


def recomputed() -> Figures:
    """Its logits stand whole there: three times in fp32 while eager cross-entropy goes back; its sums are in bf16."""
    memory, tokens = llama(8, 32768, 1), 32768
    logits, narrower = 3 * 4 * tokens * 128256, 2 * tokens * 32 * 4096
    said = memory.weights + memory.gradients + memory.optimizer + memory.copies + memory.activations
    return {
        "said": (said - narrower + logits) / GIB,
        "published": 83.9,
        "unit": "GiB",
        "source": f"{TITAN}, table 2: 8 GPUs, 32,768 tokens, activations recomputed, compiled, Float8",
    }


def main(arguments: list[str]) -> None:
    cases = {
        "nanochat d20, 8 H100, time": nanochat(20, 11_219_763_200, 172.57, D20),
        "nanochat d26, 8 H100, time": nanochat(26, 20 * 1_081_999_360, 12 * 60, D26),
        "ZeRO, 7.5 B, replicated, states": states(64, sharded=False),
        "ZeRO, 7.5 B, sharded over 64, states": states(64, sharded=True),
        "Llama 3.1 8B, what 128 GPUs hold less than 8": shards(),
        "Llama 3.1 8B, 8 GPUs, all, with whole logits": recomputed(),
    }
    rows = [
        (f"{name} ({one['source']})", f"{one['said']:,.1f} {one['unit']} said, {one['published']:,.1f} published, "
         f"{one['said'] / one['published'] - 1:+.0%}")
        for name, one in cases.items()
    ]  # fmt: skip
    write("plan_published", "What `selfsup plan` says on paper, beside published figures.", {"cases": cases}, rows)
