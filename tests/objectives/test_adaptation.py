"""Going on from weights without losing them: frozen parameters, the pull to the start."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import peft
import pytest
import torch
import transformers
from conftest import TINY, TINY_PAIRS, TINY_VISION, Trained, assert_alike
from safetensors.torch import load_file
from seeing_peers import SIZE, save_peer
from tiny_towers import save_towers
from torch import Tensor

import selfsup
from selfsup.config import OptimConfig
from selfsup.errors import UserError
from selfsup.files import save_tensors
from selfsup.objectives.averaging import Tried, choose
from selfsup.objectives.causal_lm import CausalLM, CausalLMRecipe
from selfsup.objectives.recipe import Effort
from selfsup.optim import Optimizer
from selfsup.report import Reporter
from selfsup.saving import Checkpoint
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
    assert run.plan()["facts"]["trained"] == (
        f"{trained_now:,} parameters; {stays:,} stay as they are "
        "(model.freeze=embed_tokens,self_attn.[qk]_proj,model.norm)"
    )


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


def recipe_of(corpus: Path, **given: Any) -> CausalLMRecipe:
    """The recipe, its data open, its sizes decided."""
    recipe = CausalLMRecipe(CausalLMRecipe.resolve(("test", {"data.source": str(corpus), "data.window": 16, **given})))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    return recipe


def prepared(trained: Trained, corpus: Path, key: str, value: str) -> CausalLM:
    objective = recipe_of(corpus, init=trained("causal-lm").directory, **{key: value}).begin()
    assert isinstance(objective, CausalLM)
    return objective


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("embed_token", "nearest are embed_tokens"),
        ("layers.7", "nearest are layers.0"),
        ("self_attn.q_prj", "self_attn.q_proj"),
        ("*", "nothing is left to train"),
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


# -- adapters ------------------------------------------------------------------------------------------------

CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "simcse": "AutoModel",
    "tsdae": "AutoModel",
}
LORA = {"model.lora": 4, "optim.lr": 0.05, "optim.adamw_lr": 0.05}


@pytest.fixture(scope="module")
def adapted(go_on: Train, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`adapted("simcse")`: a finished run of an objective that trained an adapter."""

    @functools.cache
    def run(objective: str) -> selfsup.Run:
        return go_on(tmp_path_factory.mktemp("adapted") / objective, objective, **LORA)

    return run


@torch.no_grad()
def outputs(network: Any) -> Tensor:
    """What `transformers` makes of some tokens."""
    found = network.eval()(torch.arange(24).view(2, 12) % 20 + 1)
    result: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return result


@pytest.mark.parametrize("objective", CLASSES)
def test_an_adapter_opens_in_peft_and_is_the_merged_model(adapted: Trained, trained: Trained, objective: str) -> None:
    opens = getattr(transformers, CLASSES[objective]).from_pretrained
    run, base = adapted(objective), trained(objective).model_directory
    assert json.loads((run.directory / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
    merged, before = outputs(opens(run.model_directory)), outputs(opens(base))
    found = outputs(peft.PeftModel.from_pretrained(opens(base), run.directory / "adapter"))
    assert (merged - before).abs().max() > 1e-3
    assert_alike(found, merged, 1e-5)


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm", "simcse"])
def test_only_adapters_are_trained(adapted: Trained, trained: Trained, objective: str) -> None:
    """And what of an objective is no part of the weights it starts from, such as SimCSE's head."""
    run = adapted(objective)
    assert all(".lora_" in name or name.startswith("projection.") for name in moments(run))
    checkpoint = run.checkpoints().newest()
    assert checkpoint is not None
    base, end = weights(trained(objective)), weights(run)
    changed = {name.removesuffix(".weight") for name in base if not torch.equal(base[name], end[name])}
    where = {name.partition(".lora_")[0].partition(".")[2] for name in moments(run) if ".lora_" in name}
    assert changed == where
    assert all("layers.0." in name for name in changed)
    assert "model.lora=4" in run.plan()["facts"]["trained"]


def test_step_of_an_adapter_is_that_of_peft(trained: Trained, corpus: Path) -> None:
    """Loss and gradients, beside peft's own layers in the network of transformers."""
    ours = prepared(trained, corpus, "model.lora", "3")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(trained("causal-lm").model_directory)
    names = [
        name for name, module in theirs.named_modules() if "layers" in name and isinstance(module, torch.nn.Linear)
    ]
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=6, target_modules=names), theirs)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=draws)
    assert not theirs.load_state_dict(ours.model.state_dict()).missing_keys
    tokens = torch.randint(1, 20, (3, 9), generator=draws)
    hidden = ours.model(tokens)
    torch.nn.functional.cross_entropy(
        (hidden @ ours.model.output_weight.T)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    ).backward()
    theirs(tokens, labels=tokens).loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all(".lora_" in name for name in found)
    for name, gradient in found.items():
        assert_alike(gradient.flatten(), expected[name].flatten(), 1e-5)


@pytest.mark.parametrize("objective", CLASSES)
def test_a_run_with_an_adapter_resumes_bit_for_bit(go_on: Train, resume: Train, tmp_path: Path, objective: str) -> None:
    require_same_bits(go_on, resume, tmp_path, objective, **LORA, **{"optim.l2_sp": 0.5})


def test_heads_that_come_first_beside_an_adapter_resume_bit_for_bit(
    go_on: Train, resume: Train, tmp_path: Path
) -> None:
    """The adapter rests when the first checkpoint is made, and is in it."""
    require_same_bits(go_on, resume, tmp_path, "simcse", **LORA, **{"optim.heads_first": 3})


def test_checkpoints_go_without_weights_that_stay(
    go_on: Train, resume: Train, trained: Trained, tmp_path: Path
) -> None:
    """They are read again from the start; a checkpoint that has them all is taken as well."""
    whole, cut = (go_on(tmp_path / name, **LORA) for name in ("whole", "cut"))
    shutil.rmtree(cut.checkpoints_directory / "step-000000004")
    (cut.directory / "summary.json").unlink()
    lean = cut.checkpoints().load(2)
    assert all(".lora_" in name for name in lean.tensors["model"])
    recipe = CausalLMRecipe(cut.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    state = {key: value for key, value in lean.state.items() if key != "still"}
    whole_model = {name: tensor.clone() for name, tensor in lean.model(recipe.begin().state_dict()).items()}
    tensors = {**{name: dict(each) for name, each in lean.tensors.items()}, "model": whole_model}
    shutil.rmtree(cut.checkpoints_directory / "step-000000002")
    checkpoints = cut.checkpoints()
    checkpoints.save(Checkpoint(2, tensors, state))
    checkpoints.close()
    found, expected = weights(resume(cut.directory)), weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_an_adapter_is_not_looked_at_on_other_weights(look_on: Train, trained: Trained, tmp_path: Path) -> None:
    base = shutil.copytree(trained("mae").model_directory, tmp_path / "base")
    run = look_on(tmp_path / "run", "simclr", **LORA, init=base)
    changed = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_tensors(changed, base / "model.safetensors")
    with pytest.raises(UserError, match="starts from have changed"):
        selfsup.inspect(run=run.directory)


def test_an_adapter_of_some_matrices(go_on: Train, trained: Trained, tmp_path: Path) -> None:
    """Named as in other tools; what is frozen by name gets none."""
    run = go_on(tmp_path / "run", **LORA, **{"model.lora_targets": "q_proj,v_proj,down_proj", "model.freeze": "v_proj"})
    start, end = weights(trained("causal-lm")), weights(run)
    changed = {name.split(".")[-2] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"q_proj", "down_proj"}


def test_rates_of_an_adapter(adapted: Trained, corpus: Path, trained: Trained) -> None:
    how = settings(trained("causal-lm").directory, **{"model.lora": 8})
    how.pop("optim.weight_decay")
    made, resolved = plan("causal-lm", data=corpus, **how)
    optim = resolved.config.optim
    assert (optim.matrices, optim.lr, optim.adamw_lr, optim.weight_decay) == ("adamw", 2e-4, 2e-4, 0.0)
    assert resolved["model.lora_alpha"] == 16
    assert "adapter" not in made.facts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model.lora": 4, "init": None}, "model.lora adapts .* --init"),
        ({"model.lora_alpha": 4}, "give their rank by model.lora"),
        ({"model.lora": 4, "model.lora_targets": "query"}, "model.lora_targets names 'query'"),
        ({"model.lora": 4, "model.lora_targets": "lm_head"}, "model.lora_targets names 'lm_head'"),
        ({"model.lora": 4, "model.freeze": "layers"}, "nothing is left to train"),
    ],
)
def test_adapters_that_are_refused(corpus: Path, trained: Trained, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan("causal-lm", data=corpus, **{**settings(trained("causal-lm").directory), **given})


class Own(CausalLM):
    """An objective from Python."""


@pytest.mark.parametrize("key", ["model.lora", "optim.l2_sp", "optim.wise_ft", "optim.heads_first"])
@pytest.mark.parametrize(
    ("objective", "how"),
    [
        ("causal-lm", {"model": "hf:anywhere"}),
        ("masked-lm", {"model": "hf:anywhere"}),
        ("dino", {"model": "timm:resnet18"}),
        ("simclr", {"model": torch.nn.Linear(2, 2)}),
        (Own, {}),
    ],
)
def test_networks_that_are_brought_along_are_not_adapted(objective: Any, how: dict[str, Any], key: str) -> None:
    """By whatever name they come; the sentence says which ones are."""
    with pytest.raises(UserError, match=rf"{key} .* opens itself \(--init DIR\).*hf:DIR.* leave {key} out\.$"):
        plan(objective, **how, **{key: 1})


def test_of_two_towers_the_one_that_can_be_started_is_named() -> None:
    with pytest.raises(UserError, match="name them by --text-init, or leave"):
        plan("clip", model="timm:resnet18", **{"optim.l2_sp": 1.0})
    with pytest.raises(UserError, match="name them by --init or --text-init, or leave"):
        plan("clip", **{"optim.l2_sp": 1.0})


def test_an_extended_run_keeps_its_first_adapter(go_on: Train, resume: Train, tmp_path: Path) -> None:
    run = go_on(tmp_path / "run", **LORA)
    first = (run.directory / "adapter" / "adapter_model.safetensors").read_bytes()
    resume(run.directory, steps=6)
    kept = list((run.directory / "earlier").glob("*/adapter/adapter_model.safetensors"))
    assert [path.read_bytes() for path in kept] == [first]
    assert (run.directory / "adapter" / "adapter_model.safetensors").read_bytes() != first


# -- replay --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other documents than the corpus, some of them not readable."""
    path = tmp_path_factory.mktemp("general") / "general.jsonl"
    lines = [json.dumps({"text": f"On day {n} the sea ran by the hill and sang on. {n * n}"}) for n in range(150)]
    path.write_text("\n".join([*lines, "{", json.dumps({"text": " "}), ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize("objective", CLASSES)
def test_replay_is_drawn_and_told_beside_the_new_data(
    train: Train, trained: Trained, general: Path, tmp_path: Path, objective: str
) -> None:
    run = train(tmp_path / "run", objective, **{"data.replay": f"{general}:0.25"})
    looks = [line for line in run.metrics() if line["split"] == "validation"]
    assert all(line["replay_loss"] != line["loss"] for line in looks)
    facts, documents = run.plan()["facts"], 300 if objective in ("simcse", "tsdae") else 150  # sentences
    assert facts["replay"].startswith(f"25% of each batch from {general}: {documents} documents, ")
    assert facts["replay"].endswith("held out (1 empty ones left out, 1 unreadable ones left out)")
    assert "general.jsonl, line 151" in facts["replay, unreadable"]
    counts = trained(objective).plan()["facts"]
    assert facts["tokens"] == counts["tokens"]  # of the new data alone


def test_a_batch_has_its_share_of_replay(corpus: Path, general: Path, trained: Trained) -> None:
    objective_recipe = recipe_of(corpus, **{"data.replay": f"{general}:0.25", "train.batch": 8})
    mixed, new = objective_recipe.drawn, len(objective_recipe.train)
    for step in range(20):
        _, records = mixed.draw(0, 8 * step, 8 * step + 8)  # type: ignore[attr-defined]
        assert (records >= new).sum() == 2


def test_an_epoch_is_one_of_the_new_data(corpus: Path, general: Path, trained: Trained) -> None:
    how = settings(trained("causal-lm").directory)
    how.pop("steps")
    alone, _ = plan("causal-lm", data=corpus, epochs=2, **how)
    mixed, _ = plan("causal-lm", data=corpus, epochs=2, **how, **{"data.replay": f"{general}:0.5"})
    assert abs(mixed.steps - 2 * alone.steps) <= 1


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_everything_against_forgetting_resumes_bit_for_bit(
    go_on: Train, resume: Train, tmp_path: Path, general: Path, objective: str
) -> None:
    given = {**LORA, "optim.l2_sp": 0.5, "data.replay": f"{general}:0.25", "data.workers": 2}
    require_same_bits(go_on, resume, tmp_path, objective, **given)


def test_replay_that_changed_is_not_resumed(train: Train, resume: Train, general: Path, tmp_path: Path) -> None:
    own = tmp_path / "general.jsonl"
    own.write_bytes(general.read_bytes())
    run = train(tmp_path / "run", **{"data.replay": f"{own}:0.25"})
    own.write_text(general.read_text().replace("sea", "lake"))
    with pytest.raises(UserError, match="changed since the run began"):
        resume(run.directory, steps=20)


@pytest.mark.parametrize(
    ("objective", "replay", "said"),
    [
        ("causal-lm", "general", "a source and its share"),
        ("causal-lm", "general:1.0", "a source and its share"),
        ("causal-lm", ":0.1", "a source and its share"),
        ("causal-lm", "{place}/nothing:0.1", "nothing"),
        ("causal-lm", "{place}/short.txt:0.1", "of data.replay cannot be trained on: The text has"),
        ("simclr", "general:0.1", "simclr has no use for data.replay"),
    ],
)
def test_replay_that_is_refused(
    train: Train, corpus: Path, tmp_path: Path, objective: str, replay: str, said: str
) -> None:
    (tmp_path / "short.txt").write_text("The sea.")
    with pytest.raises(UserError, match=said):
        plan(objective, data=corpus, **{**TINY, "data.replay": replay.format(place=tmp_path)})


# -- averages of start and end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "replayed", "share"),
    [
        ([3.0, 2.0, 1.0], None, 1.0),
        ([3.0, 1.0, 2.0], None, 0.5),
        ([3.0, 2.0, 1.0], [5.0, 5.0, 5.1], 0.5),
        ([3.0, 2.0, 1.0], [5.0, 5.0, 5.04], 1.0),
        ([3.0, 2.0, 1.0], [5.0, 4.0, 4.9], 1.0),
        ([1.0, 2.0, 3.0], [5.0, 4.0, 4.9], 0.0),
        ([3.0, 2.0, 2.0], None, 0.5),
        ([3.0, 2.0, float("nan")], None, 0.5),
        ([float("nan")] * 3, [float("nan")] * 3, 0.0),
    ],
)
def test_the_mix_is_the_best_that_forgets_nothing(
    losses: list[float], replayed: list[float] | None, share: float
) -> None:
    shares = (0.0, 0.5, 1.0)
    tried = [Tried(s, loss, r) for s, loss, r in zip(shares, losses, replayed or [None] * 3, strict=True)]
    assert choose(tried).share == share


def averaged(go_on: Train, out: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[selfsup.Run, float]:
    """A run whose mix is a fifth of its end, whatever the losses say, and that."""
    monkeypatch.setattr("selfsup.trainer.choose", lambda tried: tried[2])
    return go_on(out, **{"optim.wise_ft": True, **given}), 0.2


@pytest.mark.parametrize("lora", [{}, LORA], ids=["all", "adapter"])
def test_the_model_is_the_mix(
    go_on: Train, trained: Trained, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any]
) -> None:
    run, share = averaged(go_on, tmp_path / "run", monkeypatch, **lora, **{"data.replay": f"{general}:0.25"})
    end = go_on(tmp_path / "end", **lora, **{"data.replay": f"{general}:0.25"})
    first, last, found = weights(trained("causal-lm")), weights(end), weights(run)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (1 - share) * first[name] + share * last[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(found[name], last[name]) for name in found)
    told = run.summary["wise_ft"]
    assert told["share"] == share
    assert [mix["share"] for mix in told["tried"]] == [n / 10 for n in range(11)]
    assert {"wise_ft": told} in run.journal()
    assert run.summary["loss"] == pytest.approx(told["tried"][2]["loss"], rel=1e-6)
    assert run.summary["replay_loss"] == pytest.approx(told["tried"][2]["replay_loss"], rel=1e-6)
    assert told["tried"][-1]["loss"] == pytest.approx(end.summary["loss"], rel=1e-6)
    if lora:
        opens = transformers.AutoModelForCausalLM.from_pretrained
        adapter = peft.PeftModel.from_pretrained(opens(trained("causal-lm").model_directory), run.directory / "adapter")
        assert_alike(outputs(adapter), outputs(opens(run.model_directory)), 1e-5)


@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_an_end_that_averages_resumes_bit_for_bit(go_on: Train, resume: Train, tmp_path: Path, objective: str) -> None:
    require_same_bits(go_on, resume, tmp_path, objective, **{"optim.wise_ft": True})


def test_an_end_that_was_cut_short_averages_again(
    go_on: Train, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = averaged(go_on, tmp_path / "run", monkeypatch)
    before, summary = weights(run), run.summary
    (run.directory / "summary.json").unlink()
    again = resume(run.directory)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(again).items())
    assert again.summary["wise_ft"] == summary["wise_ft"]
    assert sum("wise_ft" in entry for entry in again.journal()) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"init": None}, "optim.wise_ft averages .* --init"),
        ({"data.validation": 0}, "optim.wise_ft chooses by held-out"),
    ],
)
def test_averages_that_are_refused(corpus: Path, trained: Trained, given: dict[str, Any], said: str) -> None:
    how = {**settings(trained("causal-lm").directory), "optim.wise_ft": True, **given}
    with pytest.raises(UserError, match=said):
        plan("causal-lm", data=corpus, **how)


@pytest.mark.parametrize(
    ("make", "kind", "objective", "opens"),
    [
        (foreign.llama, None, "causal-lm", "AutoModelForCausalLM"),
        (foreign.bert, "BertForMaskedLM", "masked-lm", "AutoModelForMaskedLM"),
        (foreign.bert, "BertModel", "simcse", "AutoModel"),
        (foreign.bert, "BertModel", "masked-lm", "AutoModel"),
        (foreign.roberta, "RobertaForMaskedLM", "simcse", "AutoModel"),
        (foreign.bert, "BertModel", "tsdae", "AutoModel"),
    ],
)
def test_an_adapter_has_the_names_of_the_layout(
    corpus: Path, tmp_path: Path, make: Any, kind: str | None, objective: str, opens: str
) -> None:
    """Of matrices that are one here and several there, too."""
    base = make(tmp_path / "base", *([kind] if kind else []))
    run = selfsup.train(
        objective, data=corpus, out=tmp_path / "run", reporter=Reporter(False), **settings(base, **LORA)
    )
    opened = getattr(transformers, opens).from_pretrained
    merged, before = outputs(opened(run.model_directory)), outputs(opened(base))
    adapter = peft.PeftModel.from_pretrained(opened(base), run.directory / "adapter")
    assert (merged - before).abs().max() > 1e-4
    assert_alike(outputs(adapter), merged, 1e-5)


# -- networks that see ---------------------------------------------------------------------------------------

SEEING = ("simclr", "mae", "dino", "vicreg", "lejepa")


@pytest.fixture(scope="module")
def look_on(drawings: Path, trained: Trained) -> Train:
    """As `go_on`, from the finished run of MAE."""

    def start(out: Path, /, objective: str, **given: Any) -> selfsup.Run:
        how = {key: value for key, value in TINY_VISION.items() if key != "model"}
        start = trained("mae").directory
        how = {**how, **QUICK, "data": drawings, "init": start, "reporter": Reporter(False), **given}
        return selfsup.train(objective, out=out, **how)

    return start


@torch.no_grad()
def seen(network: Any) -> Tensor:
    side = network.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    states: Tensor = network.eval()(pixel_values=pixels).last_hidden_state
    return states


@pytest.mark.parametrize("objective", SEEING)
def test_an_adapter_of_a_network_that_sees(look_on: Train, trained: Trained, tmp_path: Path, objective: str) -> None:
    run, base = look_on(tmp_path / "run", objective, **LORA), trained("mae").model_directory
    opens = transformers.AutoModel.from_pretrained
    merged, before = seen(opens(run.model_directory)), seen(opens(base))
    adapter = peft.PeftModel.from_pretrained(opens(base), run.directory / "adapter")
    assert (merged - before).abs().max() > 1e-4
    assert_alike(seen(adapter), merged, 1e-5)
    start, end = weights(trained("mae")), weights(run)
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert changed == {name for name in end if name.endswith("_proj.weight")}


@pytest.mark.parametrize("objective", ["simclr", "dino"])
def test_networks_that_see_resume_bit_for_bit_with_an_adapter(
    look_on: Train, resume: Train, tmp_path: Path, objective: str
) -> None:
    require_same_bits(look_on, resume, tmp_path, objective, **LORA)


@pytest.mark.parametrize("objective", ["simclr", "dino"])
def test_networks_that_see_freeze_and_are_pulled(
    look_on: Train, resume: Train, trained: Trained, tmp_path: Path, objective: str
) -> None:
    given = {"model.freeze": "embeddings", "optim.l2_sp": 0.5, "optim.wise_ft": True}
    require_same_bits(look_on, resume, tmp_path, objective, **given)
    start, end = weights(trained("mae")), load_file(tmp_path / "cut" / "model" / "model.safetensors")
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same >= {name for name in start if name.startswith("embeddings")}


def test_what_two_towers_start_from_goes_on(captioned: Path, trained: Trained, tmp_path: Path) -> None:
    """Each tower has an adapter of its own, and its projection is trained beside it."""
    how = {key: value for key, value in TINY_PAIRS.items() if key not in ("model", "text", "data.vocabulary")}
    starts = {"init": trained("mae").directory, "text_init": trained("simcse").directory}
    given = {**how, **QUICK, **LORA, **starts, "data": captioned, "reporter": Reporter(False)}
    run = selfsup.train(out=tmp_path / "run", **given)
    names = moments(run)
    assert {name.split(".")[0] for name in names if ".lora_A." in name} == {"image", "text"}
    assert all(".lora_" in name for name in names if ".network." in name)
    assert any(name.startswith("image.projection") for name in names)
    opens = transformers.AutoModel.from_pretrained
    adapter = peft.PeftModel.from_pretrained(opens(trained("mae").model_directory), run.directory / "adapter" / "image")
    assert_alike(seen(adapter), seen(opens(run.model_directory / "image")), 1e-5)
    text = peft.PeftModel.from_pretrained(opens(trained("simcse").model_directory), run.directory / "adapter" / "text")
    assert_alike(outputs(text), outputs(opens(run.model_directory / "text")), 1e-5)


def test_beside_a_tower_that_is_brought_along_the_other_one_is_adapted(
    captioned: Path, trained: Trained, tmp_path: Path
) -> None:
    how = {key: value for key, value in TINY_PAIRS.items() if key not in ("model", "text", "data.vocabulary")}
    image = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 32))
    given = {**how, **QUICK, **LORA, "model": image, "text_init": trained("simcse").directory}
    run = selfsup.train(out=tmp_path / "run", **given, data=captioned, reporter=Reporter(False))
    names = moments(run)
    assert all(".lora_" in name for name in names if name.startswith("text.network."))
    assert any(name.startswith("image.network.") for name in names)
    assert not any(".lora_" in name for name in names if name.startswith("image."))
    text = transformers.AutoModel.from_pretrained(trained("simcse").model_directory)
    adapter = peft.PeftModel.from_pretrained(text, run.directory / "adapter")
    assert_alike(outputs(adapter), outputs(transformers.AutoModel.from_pretrained(run.model_directory / "text")), 1e-5)


def test_a_start_that_changed_is_not_gone_on_from(
    go_on: Train, resume: Train, trained: Trained, corpus: Path, tmp_path: Path
) -> None:
    """Where the run needs it again."""
    base = shutil.copytree(trained("causal-lm").model_directory, tmp_path / "base")
    run = go_on(tmp_path / "run", **LORA, init=base)
    free = go_on(tmp_path / "free", init=base)
    changed = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_tensors(changed, base / "model.safetensors")
    with pytest.raises(UserError, match=r"weights that .* starts from .* have changed"):
        resume(run.directory, steps=6)
    resume(free.directory, steps=6)


def test_a_new_head_on_weights_is_trained_beside_an_adapter(corpus: Path, tmp_path: Path) -> None:
    base = foreign.bert(tmp_path / "base", "BertModel")
    how = settings(base, **LORA, **{"optim.wise_ft": True})
    run = selfsup.train("masked-lm", data=corpus, out=tmp_path / "run", reporter=Reporter(False), **how)
    names = moments(run)
    assert any(name.startswith("model.head.") for name in names)
    assert all(".lora_" in name for name in names if name.startswith("model.model."))


@pytest.mark.parametrize("peer", ["dinov3-gated", "dinov2", "dinov2-swiglu", "vit-classifier", "siglip", "clip"])
def test_an_adapter_has_the_names_of_classes_that_see(look_on: Train, tmp_path: Path, peer: str) -> None:
    base = save_peer(peer, tmp_path / "base")
    run = look_on(tmp_path / "run", "simclr", **LORA, **{"init": base, "data.size": SIZE})
    opens = transformers.AutoModel.from_pretrained
    merged, before = seen(opens(run.model_directory)), seen(opens(base))
    adapter = peft.PeftModel.from_pretrained(opens(base), run.directory / "adapter")
    assert (merged - before).abs().max() > 1e-4
    assert_alike(seen(adapter), merged, 1e-5)


@pytest.mark.parametrize(("kind", "classes"), [("clip", "CLIP"), ("siglip2", "Siglip")])
def test_two_towers_of_others_have_an_adapter_each(captioned: Path, tmp_path: Path, kind: str, classes: str) -> None:
    base = save_towers(tmp_path / "base", kind)
    lengths = {k: v for k, v in TINY_PAIRS.items() if k.partition(".")[0] in ("train", "evaluate", "checkpoint")}
    how = {**lengths, **QUICK, **LORA, "batch": 8, "precision": "fp32", "init": base}
    run = selfsup.train("clip", data=captioned, out=tmp_path / "run", reporter=Reporter(False), **how)
    for tower, name in (("image", "VisionModel"), ("text", "TextModel")):
        opens = getattr(transformers, classes + name).from_pretrained
        adapter = peft.PeftModel.from_pretrained(opens(base), run.directory / "adapter" / tower)
        look = seen if tower == "image" else outputs
        merged = look(opens(run.model_directory))
        assert (merged - look(opens(base))).abs().max() > 1e-4
        assert_alike(look(adapter), merged, 1e-5)


def test_a_path_to_replay_is_kept_from_anywhere(
    corpus: Path, general: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(general.parent)
    how = settings(trained("causal-lm").directory, **{"data.replay": "general.jsonl:0.1"})
    assert plan("causal-lm", data=corpus, **how)[1]["data.replay"] == f"{general}:0.1"


# -- looked at -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*CLASSES, "mae", "simclr", "dino", "vicreg", "lejepa", "clip"])
def test_a_run_with_an_adapter_is_inspected(
    adapted: Trained, look_on: Train, captioned: Path, trained: Trained, tmp_path: Path, objective: str
) -> None:
    """Its network has the adapter in it."""
    if objective in CLASSES:
        run = adapted(objective)
    elif objective == "clip":
        how = {key: value for key, value in TINY_PAIRS.items() if key not in ("model", "text", "data.vocabulary")}
        given = {**how, **QUICK, **LORA, "text_init": trained("simcse").directory, "reporter": Reporter(False)}
        run = selfsup.train(out=tmp_path / "run", data=captioned, model=TINY_VISION["model"], **given)
    else:
        run = look_on(tmp_path / "run", objective, **LORA)
    assert str(run.directory) in str(selfsup.inspect(run=run.directory))
