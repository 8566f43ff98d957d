"""What the inspections of all objectives of images share: the images that training takes first, and their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from torch import Tensor

from selfsup.data.records import Batch
from selfsup.data.sampler import draw
from selfsup.errors import UserError
from selfsup.inspection.base import Request
from selfsup.inspection.blocks import PictureInspection, Tile
from selfsup.inspection.pictures import Box, Pixels, outlined
from selfsup.objectives import find_recipe
from selfsup.objectives.base import Effort, Objective
from selfsup.run import Run
from selfsup.views import View
from selfsup.views.drawn import Drawn, draw_views, levels

if TYPE_CHECKING:
    from selfsup.objectives.vision import VisionRecipe

HEIGHT = 130  # of an image on a page
MEASURED = 24  # images that figures of a run are means over

AnyObjective = TypeVar("AnyObjective", bound=Objective)


@dataclass(frozen=True)
class Seen:
    """A view of an image: what was drawn for it, and what came of it, (S, S, 3)."""

    drawn: Drawn
    pixels: Pixels


@dataclass(frozen=True, kw_only=True)
class VisionInspection(PictureInspection):
    """The first images that a training takes, as it takes them; figures are means over all, the first few are drawn.

    Attributes:
        most: images that are drawn.
        source: name of what they were taken from.
        length: images of its training part.
        seed: of the training.
        size: side of what a network sees of an image, in pixels.
        names: of the images.
        images: as they are read, (H, W, 3) each.
        run: what makes something of the task, where a run was given.
    """

    most: ClassVar[int]

    source: str
    length: int
    seed: int
    size: int
    names: list[str]
    images: list[Pixels]
    run: str | None

    @property
    def shown(self) -> range:
        """The images that are drawn."""
        return range(min(self.most, len(self.images)))

    def summary(self) -> str:
        facts = [
            self.source,
            f"the {len(self.images)} of {self.length:,} images that training takes first",
            f"seen at {self.size} by {self.size} pixels",
            f"seed {self.seed}, epoch 0",
        ]
        return ", ".join(facts)

    def limits(self, width: int | None = None) -> str:
        count = len(self.images)
        if len(self.shown) == count:
            return ""
        return f"Figures are means over these {count}; the first {len(self.shown)} are drawn."

    def to_json(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "idea": self.idea,
            "source": self.source,
            "length": self.length,
            "seed": self.seed,
            "size": self.size,
            "run": self.run,
        }

    def described(self, image: int) -> dict[str, Any]:
        """An image, as JSON can hold it."""
        height, width = self.images[image].shape[:2]
        return {"name": self.names[image], "height": height, "width": width}

    def original(self, image: int, boxes: Sequence[Box], name: str = "image") -> Tile:
        """An image with crops drawn in."""
        pixels = self.images[image]
        height, width = pixels.shape[:2]
        return Tile(outlined(pixels, HEIGHT, boxes), name, f"{width} by {height} pixels", HEIGHT)

    def share(self, image: int, seen: Seen) -> float:
        """Of an image that a view shows."""
        _, _, height, width = seen.drawn.box
        rows, columns = self.images[image].shape[:2]
        return float(height * width / (rows * columns))

    def facts(self, image: int, seen: Seen) -> str:
        """What was drawn for a view, in words."""
        drawn = seen.drawn
        done = {
            "mirrored": drawn.mirrored,
            "recoloured": drawn.jittered,
            "grey": drawn.grey,
            f"blurred by {drawn.sigma:.1f} px": drawn.sigma,
            "solarized": drawn.solarized,
        }
        return ", ".join(
            [f"{self.share(image, seen):.0%} of the image", *(name for name in done if done[name])]
        )


def box(seen: Seen, colour: str, name: str) -> Box:
    """The crop of a view."""
    return Box(*seen.drawn.box, colour, name)


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / max(1, len(values))


def described(seen: Seen) -> dict[str, Any]:
    """A view, as JSON can hold it."""
    return asdict(seen.drawn)


# -- what is looked at --


@dataclass(frozen=True)
class Look:
    """A training as it begins, and the images that it takes first.

    Attributes:
        recipe: opened and settled.
        batch: the images.
    """

    recipe: VisionRecipe
    batch: Batch

    def shared(self, run: str | Path | None) -> dict[str, Any]:
        """What every inspection says of them."""
        recipe, images = self.recipe, self.recipe.images
        sizes = self.batch.data["sizes"].tolist()
        return {
            "source": f"the training part of {images.name}",
            "length": len(recipe.train),
            "seed": self.batch.seed,
            "size": recipe.settings["data.size"],
            "names": [_within(recipe.train.place(int(record)), images.name) for record in self.batch.records],
            "images": [
                pixels[:, :height, :width].permute(1, 2, 0).numpy()
                for pixels, (height, width) in zip(self.batch.data["pixels"], sizes, strict=True)
            ],
            "run": None if run is None else str(run),
        }

    def seen(self, rendered: Tensor, view: View, number: int) -> list[Seen]:
        """View `number` of each image (n, 3, S, S), and what was drawn for it."""
        batch = self.batch
        drawn = draw_views(batch.data["sizes"], view, batch.seed, batch.epochs, batch.records, number)
        return [Seen(*pair) for pair in zip(drawn, levels(rendered), strict=True)]


def _within(place: str, source: str) -> str:
    """Where an image stands in its source."""
    inner = place.removeprefix(source).lstrip("/, ") if place.startswith(source) else ""
    return inner or Path(place).name


def look_at(request: Request, objective: str, shown: int) -> Look:
    """The data of a request, else that of its run, else the bundled images, as a training begins with them.

    Raises:
        UserError: there are none, or the run is of another objective.
    """
    return first_of(opened(request, objective), shown if request.run is None else max(shown, MEASURED))


def first_of(recipe: VisionRecipe, count: int) -> Look:
    """The images that a training takes first, at most so many."""
    seed, size = recipe.settings["train.seed"], len(recipe.train)
    epochs, places = draw(seed, 0, min(count, size), size)
    return Look(recipe, Batch(recipe.train.read(places), seed, epochs, places))


def opened(request: Request, objective: str) -> VisionRecipe:
    """A training of what `look_at` looks at, settled; raises what that raises."""
    if request.text is not None or request.window is not None:
        raise UserError(
            f"{objective} looks at images, so --text and --window say nothing to it; give --data."
        )
    settings = request.settings
    if request.run is not None:
        Run.open(request.run)
    if request.run is not None and settings["objective"] != objective:
        raise UserError(
            f"{request.run} is a run of {settings['objective']}, not of {objective}; leave {objective} out."
        )
    settings.change("objective", objective, "given")
    if settings["model.preset"].startswith("python:"):
        raise UserError(
            f"{request.run} trained a network from Python, which cannot be built here; give another run."
        )
    kind = cast("type[VisionRecipe]", find_recipe(objective, settings["model.preset"]))
    named = request.data if isinstance(request.data, str) else kind.example if request.run is None else None
    if named is not None:
        settings.change("data.source", named, "given")
    source = None if isinstance(request.data, str) else request.data
    if source is None and settings["data.source"].startswith("python:"):
        raise UserError(f"{request.run} was trained on data given from Python; name data with --data.")
    recipe = kind(settings, source)
    recipe.open(request.progress)
    if (
        len(recipe.images) - recipe.images.duplicates == 1
    ):  # which no training would take, and yet can be looked at
        settings.change("data.validation", 0.0, "one image")
    recipe.settle(Effort())
    return recipe


def trained(run: Run, objective: AnyObjective) -> AnyObjective:
    """An objective of a run, with the weights of its newest checkpoint.

    Raises:
        UserError: there is none.
    """
    checkpoint = run.checkpoints().newest()
    if checkpoint is None:
        raise UserError(
            f"{run.directory} has no checkpoint yet, so there is nothing it makes of the task; train it first."
        )
    objective.load_state_dict(checkpoint.tensors["model"])
    return objective.eval()
