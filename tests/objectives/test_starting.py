"""Directories that an objective cannot start from: what is said, and what helps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from tiny_clip import save_tiny_clip
from tiny_encoder import save_tiny
from tiny_vision import save_tiny_vision

import selfsup
from selfsup.errors import UserError
from selfsup.objectives import find_recipe
from selfsup.objectives.recipe import Effort

TIMM = {"architecture": "resnet18", "model_args": {}, "pretrained_cfg": {}}
TEXT, IMAGES = ("causal-lm", "masked-lm", "simcse"), ("simclr", "dino", "mae")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, finished: selfsup.Run) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("directories")
    for name, config in (("timm", TIMM), ("python", {"class": "mine.Net"}), ("unfinished/model/nothing", {})):
        (place / name).mkdir(parents=True)
        (place / name / "config.json").write_text(json.dumps(config))
    (place / "unfinished" / "model").rename(place / "empty")
    (place / "unfinished" / "config.yaml").write_text("objective: causal-lm\n")
    (place / "file").write_text("x")
    return {
        "bert": foreign.bert(place / "bert"),
        "electra": foreign.electra(place / "electra"),
        "llama": foreign.llama(place / "llama"),
        "longrope": longrope(foreign.llama(place / "longrope")),
        "gpt2": foreign.gpt2(place / "gpt2"),
        "encoder": save_tiny(place / "encoder"),
        "decoder": finished.directory,
        "vision": save_tiny_vision(place / "vision"),
        "towers": save_tiny_clip(place / "towers"),
        **{name: place / name for name in ("timm", "python", "unfinished", "empty", "file", "missing")},
    }


def longrope(directory: Path) -> Path:
    """A layout that is known, with positions that are not."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": {"rope_type": "longrope"}}))
    return directory


NOWHERE = {
    "unfinished": "has no model yet; finish it with --resume",
    "empty": "is neither a run nor a model directory",
    "file": "is neither a run nor a model directory",
    "missing": r"There is no .*missing; give the directory of a run or of a model",
}
DECODER = r"a run of causal-lm or a dense decoder \(qwen3, .*\)"
ENCODER = "a run that trained an encoder of texts, or an encoder of type modernbert, bert, .*"
VISION = "starts from a vision transformer; give a run of dino, simclr, mae or clip, or one of dinov3_vit, dinov2"
SAID: list[tuple[tuple[str, ...], str, dict[str, str]]] = [
    (
        ("causal-lm",), "model.init", {
            "gpt2": f"a decoder of type 'gpt2', and causal-lm starts from {DECODER}; leave --init out and give mo",
            "longrope": "rope_type = 'longrope'; only .* can be loaded; leave --init out and give model=hf:",
            "bert": f"a text encoder of type 'bert', and causal-lm starts from {DECODER}; masked-lm and simcse train",
            "encoder": "masked-lm and simcse train encoders",
            "vision": f"an image encoder of type 'dinov3_vit', and causal-lm starts from {DECODER}; give one",
            "towers": f"two towers, and causal-lm starts from {DECODER}; give one",
            "timm": "holds timm's resnet18, and causal-lm",
            **NOWHERE,
        },
    ),
    (
        ("masked-lm", "simcse", "tsdae"), "model.init", {
            "electra": f"of type 'electra', and OBJECTIVE starts from {ENCODER}; leave --init out and give",
            "llama": f"a decoder of type 'llama', and OBJECTIVE starts from {ENCODER}; causal-lm trains decoders",
            "decoder": "a decoder of type 'qwen3'",
            "vision": "give one",
            "towers": r"give its text tower, .*towers/text\.",
            "python": "holds mine.Net, a network from Python",
            **NOWHERE,
        },
    ),
    (
        IMAGES, "model.init", {
            "bert": f"a text encoder of type 'bert', and OBJECTIVE {VISION}",
            "decoder": "a decoder of type 'qwen3'",
            "timm": r"vision transformer \(this one goes by model=timm:resnet18@.*timm\)",
            **NOWHERE,
        },
    ),
    (("clip",), "model.init", {"encoder": f"a text encoder of type 'modernbert', and clip {VISION}", **NOWHERE}),
    (("clip",), "text.init", {"vision": "and a model of texts is asked for; give the directory of one", **NOWHERE}),
    (
        TEXT, "model.preset", {
            "vision": "an image encoder of type 'dinov3_vit', and a model of texts is asked for",
            "timm": "timm's resnet18, and a model of texts is asked for",
            "unfinished": NOWHERE["unfinished"],
            "empty": NOWHERE["empty"],
            "file": "There is no directory .*file; give that of a model, or its name on the hub: OWNER/NAME",
            "missing": "There is no directory .*missing",
        },
    ),
    (("simcse", "masked-lm"), "model.preset", {"towers": "give its text tower"}),
    (("causal-lm",), "model.preset", {"encoder": "transformers has no AutoModelForCausalLM; causal-lm trains dec"}),
    (("masked-lm",), "model.preset", {"llama": "transformers has no AutoModelForMaskedLM; causal-lm trains dec"}),
]  # fmt: skip
CASES = [
    (objective, key, kind, message.replace("OBJECTIVE", objective))
    for objectives, key, said in SAID
    for objective in objectives
    for kind, message in said.items()
]


@pytest.mark.parametrize(("objective", "key", "kind", "message"), CASES)
def test_what_helps_is_said(
    objective: str,
    key: str,
    kind: str,
    message: str,
    directories: dict[str, Path],
    corpus: Path,
    drawings: Path,
    captioned: Path,
) -> None:
    data = corpus if objective in TEXT else captioned if objective == "clip" else drawings
    given: dict[str, Any] = {key: f"{'hf:' if key == 'model.preset' else ''}{directories[kind]}"}
    with pytest.raises(UserError) as error:
        selfsup.plan(objective, data=data, steps=1, **given)
    assert re.search(message, str(error.value)), error.value


def test_a_directory_is_no_name_of_timms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    from types import SimpleNamespace

    from selfsup.models.backbones import open_timm

    known = SimpleNamespace(is_model=lambda name: False, list_models=lambda: ["resnet18"])
    monkeypatch.setitem(sys.modules, "timm", known)
    with pytest.raises(UserError, match=f"to start from a directory of a vision transformer, give --init {tmp_path}"):
        open_timm(f"timm:{tmp_path}", 32)
    with pytest.raises(UserError, match="did you mean timm:resnet18"):
        open_timm("timm:resnet19", 32)


@pytest.mark.parametrize("objective", IMAGES)
def test_what_trials_train_is_not_what_is_started_from(
    objective: str, directories: dict[str, Path], drawings: Path
) -> None:
    """Steps are timed on a model that is thrown away; its weights must not be those that the next one begins with."""
    recipe = find_recipe(objective)
    settings = recipe.resolve(("test", {"data": str(drawings), "init": str(directories["vision"]), "steps": 2}))
    made = recipe(settings)
    made.open(lambda done, total: None)
    made.settle(Effort(steps=2))
    first = made.build()
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.build().state_dict().items())
