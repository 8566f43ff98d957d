"""Going on from weights without losing them: frozen parameters, the pull to the start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Trained
from safetensors.torch import load_file
from torch import Tensor

import selfsup
from selfsup.config import OptimConfig
from selfsup.errors import UserError
from selfsup.objectives.causal_lm import CausalLM
from selfsup.optim import Optimizer
from selfsup.report import Reporter
from selfsup.training import plan

Train = Callable[..., selfsup.Run]
QUICK = {"steps": 4, "checkpoint.every": 2, "evaluate.every": 4}


def weights(run: selfsup.Run) -> dict[str, Tensor]:
    return load_file(run.model_directory / "model.safetensors")


def moments(run: selfsup.Run) -> set[str]:
    newest = run.checkpoints().newest()
    assert newest is not None
    return {name.rpartition(".")[0] for name in newest.tensors["optimizer"]}


def settings(directory: Path, **given: Any) -> dict[str, Any]:
    """`TINY` for a model that brings its shape and tokenizer."""
    return {**{k: v for k, v in TINY.items() if k not in ("model", "tokenizer")}, **QUICK, "init": directory, **given}


def require_same_bits(go_on: Train, resume: Train, place: Path, objective: str = "causal-lm", **given: Any) -> None:
    """A run whose end was lost, resumed, leaves what one leaves that was not interrupted."""
    whole, cut = (go_on(place / name, objective, **given) for name in ("whole", "cut"))
    shutil.rmtree(cut.checkpoints_directory / "step-000000004")
    (cut.directory / "summary.json").unlink()
    found, expected = weights(resume(cut.directory)), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def go_on(corpus: Path, trained: Trained) -> Train:
    """`go_on(out, objective, …)`: train on from the finished run of an objective."""

    def start(out: Path, /, objective: str = "causal-lm", **given: Any) -> selfsup.Run:
        how = settings(trained(objective).directory, **given)
        return selfsup.train(objective, out=out, data=corpus, reporter=Reporter(False), **how)

    return start


# -- frozen --------------------------------------------------------------------------------------------------


def test_what_is_frozen_keeps_its_bits_and_is_in_no_optimizer(go_on: Train, trained: Trained, tmp_path: Path) -> None:
    run = go_on(tmp_path / "run", **{"model.freeze": "embed_tokens,self_attn.[qk]_proj,model.norm"})
    start, end = weights(trained("causal-lm")), weights(run)
    still = {name for name in start if torch.equal(start[name], end[name])}
    expected = {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
    }
    assert still == expected
    assert moments(run) == {f"model.{name}" for name in start.keys() - expected}
    trained_now, stays = (sum(t.numel() for n, t in start.items() if (n in expected) is kept) for kept in (False, True))
    assert run.plan()["facts"]["trained"] == f"{trained_now:,} parameters; {stays:,} stay as they are"


@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_encoders_freeze(go_on: Train, trained: Trained, tmp_path: Path, objective: str) -> None:
    run = go_on(tmp_path / "run", objective, **{"model.freeze": ["tok_embeddings"]})
    start, end = weights(trained(objective)), weights(run)
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert {name for name in same if "tok_embeddings" in name} == same != set()


def test_a_frozen_parameter_has_no_gradient(trained: Trained, corpus: Path) -> None:
    """In a module whose other parameters have one, whatever computes it."""
    objective = prepared(trained, corpus, "model.freeze", "q_proj,q_norm,down_proj")
    tokens = torch.arange(12).view(2, 6) % 9
    objective.model(tokens).square().sum().backward()
    without = {name for name, p in objective.named_parameters() if p.grad is None and "head" not in name}
    ends = ("q_proj.weight", "q_norm.weight", "down_proj.weight")
    assert without == {name for name, _ in objective.named_parameters() if name.endswith(ends)}


def prepared(trained: Trained, corpus: Path, key: str, value: str) -> CausalLM:
    from selfsup.objectives.causal_lm import CausalLMRecipe
    from selfsup.objectives.recipe import Effort

    how = {"data.source": str(corpus), "init": trained("causal-lm").directory, "data.window": 16, key: value}
    recipe = CausalLMRecipe(CausalLMRecipe.resolve(("test", how)))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    objective = recipe.begin()
    assert isinstance(objective, CausalLM)
    return objective


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("embed_token", "nearest are embed_tokens"),
        ("layers.7", "nearest are layers.0"),
        ("self_attn.q_prj", "self_attn.q_proj"),
        ("*", "leaves nothing to train"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(corpus: Path, trained: Trained, pattern: str, said: str) -> None:
    how = settings(trained("causal-lm").directory, **{"model.freeze": pattern})
    with pytest.raises(UserError, match=r"model\.freeze") as error:
        plan("causal-lm", data=corpus, **how)
    assert said in str(error.value)


# -- the pull to the start -----------------------------------------------------------------------------------


class Two(CausalLM):
    """A matrix that was started from weights, and one that was not."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(4, 3), 0, 0)
        self.head = torch.nn.Linear(3, 3, bias=False)

    def vectors(self) -> list[torch.nn.Parameter]:
        return []


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_l2_sp_is_a_decoupled_step_to_the_start(matrices: str) -> None:
    """Beside an optimizer without it: what is pulled moves as without weight decay, from nearer to the start."""
    rates = {"matrices": matrices, "lr": 0.1, "adamw_lr": 0.2, "weight_decay": 0.5}
    torch.manual_seed(0)
    objective, plain = Two(), Two()
    plain.load_state_dict(objective.state_dict())
    start = {name: p.detach().clone() for name, p in objective.named_parameters()}
    with_pull = Optimizer(objective, OptimConfig(**rates, l2_sp=0.7), torch.float32, objective.model.parameters())
    fields = {"decayed": rates, "free": {**rates, "weight_decay": 0.0}}
    alone = {name: Optimizer(plain, OptimConfig(**how), torch.float32) for name, how in fields.items()}
    for step in range(4):
        for number, (p, q) in enumerate(zip(objective.parameters(), plain.parameters(), strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + number))
            q.grad = p.grad.clone()
        with_pull.step(0.5)
        expected = {}
        with torch.no_grad():
            for name, q in plain.named_parameters():
                lr = 0.1 if name in ("model.weight", "head.weight") else 0.2
                if name.startswith("model"):
                    q -= lr * 0.5 * 0.7 * (q - start[name])
        gradients = {name: q.grad for name, q in plain.named_parameters()}
        for kind, optimizer in alone.items():
            for name, q in plain.named_parameters():
                q.grad = gradients[name] if name.startswith("model") == (kind == "free") else None
            optimizer.step(0.5)
        expected = dict(plain.named_parameters())
        for name, p in objective.named_parameters():
            torch.testing.assert_close(p, expected[name], rtol=1e-6, atol=1e-7)


def test_a_strong_pull_stays_nearer(go_on: Train, trained: Trained, tmp_path: Path) -> None:
    start = weights(trained("causal-lm"))

    def distance(run: selfsup.Run) -> float:
        return sum(float((weights(run)[name] - start[name]).square().sum()) for name in start)

    near = go_on(tmp_path / "near", **{"optim.l2_sp": 50.0})
    assert distance(near) < 0.9 * distance(go_on(tmp_path / "far"))


def test_the_start_of_a_resumed_run_is_read_again(go_on: Train, tmp_path: Path, resume: Train) -> None:
    require_same_bits(go_on, resume, tmp_path, **{"optim.l2_sp": 50.0})


def test_a_pull_without_a_start_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.l2_sp .* --init"):
        train(tmp_path / "run", **{"optim.l2_sp": 0.1})
    assert not (tmp_path / "run").exists()
