"""Models to start from: where they lie, and what helps where a directory holds another one than an objective takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from selfsup.config import Settings, read_yaml
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.models.directories import find_model, read_config
from selfsup.models.kinds import SEEING, described


def tower_directory(place: str | Path, tower: str) -> Path:
    """The model directory to start a tower from: of an image-text run, that of its own tower."""
    directory = find_model(place)
    inside = directory / tower
    return inside if (inside / "config.json").is_file() else directory


def require_image_model(directory: Path, objective: str) -> None:
    """Raise a UserError where a directory holds none whose weights an objective of images starts from (--init)."""
    saved = read_config(directory)
    if saved.get("model_type") not in SEEING:
        timm = saved.get("architecture")
        anew = f" (this one goes by model=timm:{timm}@{directory})" if timm else ""
        raise UserError(
            f"{directory} holds {described(directory)}, and {objective} starts from a vision transformer{anew}; give "
            f"a run of dino, simclr, mae or clip, or one of {', '.join(SEEING)}."
        )


def trained_by_muon(place: str | Path | None) -> bool:
    """Whether a model to start from is that of a run whose matrices Muon trained, as the run's configuration says."""
    if place is None:  # weights of another library
        return False
    directory = find_model(place)
    for above in directory.parents[:2]:  # a tower lies one deeper
        with suppress(UserError):
            optim = read_yaml(above / "config.yaml").get("optim")
            return isinstance(optim, Mapping) and optim.get("matrices") == "muon"
    return False


def make_absolute(settings: Settings, key: str) -> None:
    """A place to start from is kept so that a run can be resumed from anywhere."""
    if settings[key] is not None:
        settings.change(key, str(expanded(settings[key]).absolute()), settings.origin(key))


def take_shape(settings: Settings, section: str, names: Iterable[str], config: object, place: str) -> None:
    """Fill a shape with that of a network to start from; raises a UserError where another one is given."""
    if settings[f"{section}.preset"] != "auto" and settings[f"{section}.layers"] is None:
        raise UserError(f"{place} brings its own shape, so leave {section}.preset out.")
    for name in names:
        found, given = getattr(config, name), settings[f"{section}.{name}"]
        if given not in (None, found):
            raise UserError(f"{place} has {name} {found}, so {section}.{name} is not {given}; leave it out.")
        settings.settle(f"{section}.{name}", found, "init")
