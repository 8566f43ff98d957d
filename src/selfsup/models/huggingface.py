"""Model directories in Hugging Face's layout: what all of them share when they are written and opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.files import save_tensors, whole_directory
from selfsup.models.directories import CONFIG, WEIGHTS, damaged, forget_code, write_json

CARD = "README.md"


class Tokenizer(Protocol):
    """What saving asks of a tokenizer."""

    start: int
    end: int
    pad: int | None

    @property
    def plain(self) -> bool:
        """Whether its files have special tokens that stand in a text taken for plain text."""

    def save(self, directory: Path, max_length: int | None = None, fills: bool = False) -> None:
        """Write tokenizer.json and what goes with it, for a model with windows of max_length tokens; one that `fills`
        reads special tokens in texts."""


@contextmanager
def new_model(directory: Path) -> Iterator[Path]:
    """A place whose files become a model directory when the block ends, wholly or not at all, and name no code. Raises
    UserError where the directory exists already."""
    if directory.exists():
        raise UserError(f"{directory} exists already; move it away or save the model elsewhere")
    with whole_directory(directory) as temporary:
        yield temporary
        forget_code(temporary)


def write_network(directory: Path, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A config.json and weights, in fp32, into a directory that exists."""
    write_json(directory / CONFIG, config)
    write_weights(directory / WEIGHTS, weights)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A file of weights: in memory of their own, on the CPU, floating-point numbers in fp32."""
    wide = {name: w.detach().float() if w.is_floating_point() else w.detach() for name, w in weights.items()}
    save_tensors({name: w.to("cpu", copy=True).contiguous() for name, w in wide.items()}, path)


def write_card(directory: Path, card: str) -> None:
    """The model card of a directory."""
    (directory / CARD).write_text(card, encoding="utf-8")


class Layered(Protocol):
    """What determines a module but its weights."""

    @property
    def layers(self) -> int:
        """Of which each has weights of its own."""


C = TypeVar("C", bound=Layered)
M = TypeVar("M", bound=nn.Module)


def built(kind: Callable[[C], M], config: C, weights: dict[str, Tensor], directory: Path) -> M:
    """A module of a config with the weights of a directory, in fp32. Raises UserError where they do not fit together;
    no memory is taken before that is known."""
    if config.layers > len(weights):
        asked = f"{config.layers:,} layers are asked for, and there are {len(weights):,} tensors"
        raise damaged(f"{directory} does not fit its config.json: {asked}")
    try:
        with torch.device("meta"):
            module = kind(config)
    except RuntimeError as error:  # sizes whose product no memory can hold
        raise damaged(f"{directory} has absurd sizes in its config.json ({error})") from None
    require_fit(module, weights, directory)
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return module


def require_fit(module: nn.Module, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Raise a UserError where weights are not exactly what a module has, by name and shape."""
    expected, found = _shapes(module.state_dict()), _shapes(weights)
    for name in sorted(expected.keys() | found.keys()):
        wanted, there = expected.get(name, "absent"), found.get(name, "absent")
        if wanted != there:
            raise damaged(f"{directory} does not fit its config.json: {name} should be {wanted} and is {there}")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: "×".join(map(str, tensor.shape)) for name, tensor in weights.items()}
