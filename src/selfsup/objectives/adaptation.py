"""How training goes on from weights that are there without losing what they know: what of them is trained at all, and
how far it may go."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from selfsup.config import Settings
from selfsup.errors import UserError
from selfsup.files import checksum
from selfsup.models.directories import find_model
from selfsup.models.kinds import IMAGE, TEXT
from selfsup.models.transformer import Linear
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.averaging import Averages
from selfsup.objectives.base import Objective
from selfsup.objectives.starting import tower_directory
from selfsup.seeding import seeded

# Settings that mean something to weights that are started from alone: what each does with these.
OF_A_START = {
    "model.lora": "adapts the weights",
    "optim.l2_sp": "pulls to the weights",
    "optim.wise_ft": "averages with the weights",
    "optim.heads_first": "rests the weights",
}
OF_ADAPTERS = ("model.lora_alpha", "model.lora_targets")

LR = 2e-4  # of adapters, by AdamW without weight decay (Dettmers et al. 2023, "QLoRA", table 9: up to 13B)
ALPHA = 2.0  # times the rank (Biderman et al. 2024, "LoRA learns less and forgets less", arXiv:2405.09673)


class Adaptation:
    """What the settings say of it.

    Args:
        bodies: see `Recipe`; those that the settings can start.

    Raises:
        UserError: something is asked for that needs weights to start from, and there are none, or can be none.
    """

    def __init__(self, settings: Settings, bodies: Sequence[tuple[str, str]]) -> None:
        self.settings, self.candidates = settings, bodies
        self.rank: int | None = settings["model.lora"]
        for key, what in OF_A_START.items():
            self._require_start(key, what)
        if settings["optim.wise_ft"] and not settings["data.validation"]:
            raise UserError("optim.wise_ft chooses by held-out records; give data.validation a share, or leave it out.")
        if self.rank is not None:
            self._settle_lora(self.rank)
        elif settings["model.lora_alpha"] is not None or settings["model.lora_targets"]:
            raise UserError("model.lora_alpha and model.lora_targets are of adapters; give their rank by model.lora.")

    @property
    def bodies(self) -> list[tuple[str, str]]:
        """Those whose weights are started from others."""
        return [(key, name) for key, name in self.candidates if self.settings[key] is not None]

    def _require_start(self, key: str, what: str) -> None:
        if not self.settings[key] or self.bodies:
            return
        if not self.candidates:
            raise UserError(
                f"{key} {what} of networks that selfsup opens itself (--init DIR), not of those that come by "
                f"model=hf:DIR, by model=timm:NAME or from Python; start by --init, or leave {key} out."
            )
        options = (f"--{key.removeprefix('model.').replace('.', '-')}" for key, _ in self.candidates)
        named = " or ".join(dict.fromkeys(options))
        raise UserError(
            f"{key} {what} that a run starts from, and there are none; name them by {named}, or leave it out."
        )

    def _settle_lora(self, rank: int) -> None:
        """An adapter is small and starts at zero: its rates are not those of the weights that it adapts."""
        if find_spec("peft") is None:
            raise UserError("model.lora needs peft: pip install 'selfsup[lora]'.")
        settings = self.settings
        settings.settle("model.lora_alpha", ALPHA * rank, "recipe")
        if settings.origin("optim.matrices") == "default":
            settings.change("optim.matrices", "adamw", "lora")
        for key, value in (("lr", LR), ("adamw_lr", LR), ("weight_decay", 0.0)):
            settings.settle(f"optim.{key}", value, "lora")

    def started(self, objective: Objective) -> list[nn.Parameter]:
        """The parameters that were started from weights."""
        return [parameter for _, parameter in self._named(objective)]

    def factors(self, objective: Objective) -> dict[nn.Parameter, float]:
        """Of the learning rates of started parameters: the layer decay to the power of the layers above theirs (Bao et
        al. 2022, "BEiT", section 3.2). Embeddings lie below the first layer, what follows the last one is as high as
        it can be."""
        decay = self.settings["optim.layer_decay"]
        found: dict[nn.Parameter, float] = {}
        for _, body in self.bodies if decay < 1 else ():
            named = dict(objective.get_submodule(body).named_parameters())
            places = {name: _layer(name) for name in named}
            last = max((place for place in places.values() if place is not None), default=0)
            for name, parameter in named.items():
                place = places[name]
                found[parameter] = decay ** (0 if place is None else last + 1 - place)
        return found

    def averages(self, objective: Objective, start: Objective) -> Averages:
        """What lies between an objective as it began and as it is; the latter is changed."""
        return Averages(self._named(objective), self.started(start))

    def _named(self, objective: Objective) -> list[tuple[str, nn.Parameter]]:
        """The parameters that were started from weights, each with its name in its body."""
        return [named for _, name in self.bodies for named in objective.get_submodule(name).named_parameters()]

    def fingerprint(self) -> str | None:
        """Of the weights to start from, where more than the first step depends on them."""
        if not (self.rank or self.settings["optim.l2_sp"] or self.settings["optim.wise_ft"]):
            return None
        places = [find_model(self.settings[key]) for key in dict(self.bodies)]
        sums = [checksum(file) for place in places for file in sorted(place.rglob("*.safetensors"))]
        return hashlib.blake2b("".join(sums).encode(), digest_size=16).hexdigest()

    # -- what is trained -----------------------------------------------------------------------------------

    def apply(self, objective: Objective) -> None:
        """Freeze what is to stay as it is, and put adapters where they are asked for; raises a UserError where a name
        is of nothing, or nothing is left to train."""
        self._freeze(objective)
        if self.rank is not None:
            self._inject(objective, self.rank)
        if not any(parameter.requires_grad for parameter in objective.parameters()) and self.changes:
            raise UserError(f"With {' and '.join(self.changes)} nothing is left to train; name fewer parameters.")

    def resting(self, objective: Objective) -> list[nn.Parameter]:
        """The trained parameters that rest in the first steps (Kumar et al. 2022, "Fine-tuning can distort pretrained
        features and underperform out-of-distribution", section 3.3). Raises UserError where nothing else is trained."""
        if not self.settings["optim.heads_first"]:
            return []
        rests = {parameter for parameter in self.started(objective) if parameter.requires_grad}
        if not any(p.requires_grad and p not in rests for p in objective.parameters()):
            raise UserError("optim.heads_first rests all that is trained: there are no fresh heads; leave it out.")
        return list(rests)

    @property
    def changes(self) -> list[str]:
        """What is trained otherwise than all of it, as settings."""
        lora = [] if self.rank is None else [f"model.lora={self.rank}"]
        frozen = self.settings["model.freeze"]
        return [*lora, f"model.freeze={','.join(frozen)}"] if frozen else lora

    def still(self, objective: Objective) -> set[str]:
        """Names in its state of what stays as it was started beside adapters: whoever starts again has it again. A
        network of which nothing is trained may follow one of which something is, and is none of these."""
        bodies = self.bodies if self.rank is not None else []
        networks = {
            name: list(objective.get_submodule(name).named_parameters(remove_duplicate=False)) for _, name in bodies
        }
        return {
            f"{body}.{name}"
            for body, named in networks.items()
            if any(parameter.requires_grad for _, parameter in named)
            for name, parameter in named
            if not parameter.requires_grad
        }

    def _freeze(self, objective: Objective) -> None:
        named = dict(objective.named_parameters())
        for pattern in self.settings["model.freeze"]:
            found = [parameter for name, parameter in named.items() if _fits(name, pattern)]
            if not found:
                raise UserError(
                    f"model.freeze names {pattern!r}, and no parameter is called so{_nearest(pattern, named)}"
                )
            for parameter in found:
                parameter.requires_grad = False

    def _inject(self, objective: Objective, rank: int) -> None:
        from selfsup.models.lora import inject

        targets: dict[str, list[str]] = {}  # of weights that are started from: a teacher's are its student's
        for key, name in self.bodies:
            body = objective.get_submodule(name)
            trained = any(parameter.requires_grad for parameter in body.parameters())
            names = targets.setdefault(key, self._targets(body))
            if names:
                with seeded(self.settings["train.seed"], f"lora {key}"):
                    inject(body, names, rank, self.settings["model.lora_alpha"])
            if not (names and trained):
                body.requires_grad_(False)

    def _targets(self, body: nn.Module) -> list[str]:
        """The matrices of its blocks that get an adapter: those that are named, or all; what is frozen gets none."""
        blocks = {
            name: module.weight.requires_grad
            for name, module in body.named_modules()
            if isinstance(module, Linear) and any(word.isdigit() for word in name.split("."))
        }
        wanted = self.settings["model.lora_targets"] or ("*",)
        for pattern in wanted:
            if not any(_fits(name, pattern) for name in blocks):
                raise UserError(
                    f"model.lora_targets names {pattern!r}, and no matrix of a block is called so"
                    f"{_nearest(pattern, blocks)}"
                )
        return [n for n, free in blocks.items() if free and any(_fits(n, pattern) for pattern in wanted)]

    def facts(self, objective: Objective) -> dict[str, str]:
        """How much of the network is trained, for the plan."""
        if not self.changes:
            return {}
        sizes = dict.fromkeys((True, False), 0)
        for parameter in objective.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        told = f"{sizes[True]:,} parameters; {sizes[False]:,} stay as they are ({', '.join(self.changes)})"
        return {"trained": told}

    # -- what is left of it --------------------------------------------------------------------------------

    @contextmanager
    def merged(self, objective: Objective) -> Iterator[None]:
        """Within the block the objective is one without adapters, whose matrices have their updates in them."""
        if self.rank is None:
            yield
            return
        from selfsup.models.lora import merged

        with merged(objective):
            yield

    def save(self, objective: Objective, directory: Path) -> None:
        """Write the adapters, where there are any, as peft reads them: one directory for each start."""
        if self.rank is None:
            return
        from selfsup.models.lora import save

        kept = dict(self.bodies)  # of student and teacher the latter
        for key, name in kept.items():
            place = directory if len(kept) == 1 else directory / name.partition(".")[0]
            body = objective.get_submodule(name)
            tower = IMAGE if isinstance(body, VisionTransformer) else TEXT
            save(body, place, str(tower_directory(self.settings[key], tower)))


def forget_start(settings: Settings) -> None:
    """Settings of a run, of a network that is there whatever it started from."""
    settings.change("model.init", None, "run")
    for key in (*OF_A_START, *OF_ADAPTERS):
        section, name = key.split(".")
        settings.change(key, type(getattr(settings.config, section)).model_fields[name].default, "run")


LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?)\.(\d+)\.")
BELOW = re.compile(r"embed|token|patch|posit")  # in the names of what stands below all layers


def _layer(name: str) -> int | None:
    """Which layer a parameter belongs to by its name, counted from 1; 0 below all layers, None above them."""
    if found := LAYER.search(name):
        return int(found[1]) + 1
    return 0 if BELOW.search(name) else None


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, or some of the words between its dots."""
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """The names that come closest to a pattern, by as many of their words as that has."""
    words = pattern.count(".") + 1
    split = [name.split(".") for name in names]
    pieces = {".".join(name[start : start + words]) for name in split for start in range(len(name) - words + 1)}
    close = difflib.get_close_matches(pattern, sorted(pieces), 3, 0.3) or sorted(pieces)[:3]
    return f"; nearest are {', '.join(close)}." if close else "; names have fewer words."
