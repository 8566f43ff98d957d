"""What the inspections of all objectives of images share: the images that a training takes first, and their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import Section, Tile
from selfsup.inspection.opening import composed, first_batch
from selfsup.inspection.pictures import Box, Pixels, outlined
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.views import View
from selfsup.views.drawn import Drawn, draw_views, levels

if TYPE_CHECKING:
    from selfsup.data.images import ImageRecords
    from selfsup.objectives.images import ImageRecipe

HEIGHT = 130  # of an image on a page
MEASURED = 24  # images that figures of a run are means over


@dataclass(frozen=True)
class Seen:
    """A view of an image: what was drawn for it, and what came of it, (S, S, 3)."""

    drawn: Drawn
    pixels: Pixels

    def box(self, colour: str, name: str = "") -> Box:
        """Its crop, to be drawn into the image."""
        return Box(*self.drawn.box, colour, name)

    def tile(self, image: Pixels, name: str, colour: str | None = None, height: int = HEIGHT) -> Tile:
        """It beside the image (H, W, 3) that it shows a part of."""
        return Tile(self.pixels, name, self.facts(image), height, colour)

    def facts(self, image: Pixels) -> str:
        """What was drawn, in words."""
        drawn, (rows, columns) = self.drawn, image.shape[:2]
        done = {
            "mirrored": drawn.mirrored,
            "recoloured": drawn.jittered,
            "grey": drawn.grey,
            f"blurred by {drawn.sigma:.1f} px": drawn.sigma,
            "solarized": drawn.solarized,
        }
        share = drawn.box[2] * drawn.box[3] / (rows * columns)
        return ", ".join([f"{share:.0%} of the image", *(name for name in done if done[name])])


@dataclass(frozen=True)
class Look:
    """A training as it begins, and the images that it takes first.

    Attributes:
        recipe: opened and settled.
        objective: as it starts.
        batch: the images.
        run: what makes something of the task, where a run was given.
        most: images that are drawn, at most.
    """

    recipe: ImageRecipe
    objective: Objective
    batch: Batch
    run: str | None
    most: int

    @property
    def view(self) -> View:
        """What the objective draws views from."""
        view = self.objective.view
        assert isinstance(view, View)
        return view

    @cached_property
    def images(self) -> list[Pixels]:
        """As they are read, (H, W, 3) each."""
        sizes = self.batch.data["sizes"].tolist()
        pairs = zip(self.batch.data["pixels"], sizes, strict=True)
        return [pixels[:, :height, :width].permute(1, 2, 0).numpy() for pixels, (height, width) in pairs]

    @cached_property
    def names(self) -> list[str]:
        source, records = self.recipe.images.name, cast("ImageRecords", self.recipe.train)
        return [_within(records.place(int(record)), source) for record in self.batch.records]

    @property
    def shown(self) -> range:
        """The images that are drawn."""
        return range(min(self.most, len(self.batch)))

    def seen(self, rendered: Tensor, view: View, number: int) -> list[Seen]:
        """View `number` of each image (n, 3, S, S), and what was drawn for it."""
        batch = self.batch
        drawn = draw_views(batch.data["sizes"], view, batch.seed, batch.epochs, batch.records, number)
        return [Seen(*pair) for pair in zip(drawn, levels(rendered, view), strict=True)]

    def original(self, image: int, boxes: Sequence[Box], name: str = "image") -> Tile:
        """An image with crops drawn in."""
        pixels = self.images[image]
        height, width = pixels.shape[:2]
        return Tile(outlined(pixels, HEIGHT, boxes), name, f"{width} by {height} pixels", HEIGHT)

    def facts(self, what: str = "images that training takes first") -> list[str]:
        size = self.recipe.settings["data.size"]
        return [
            f"the training part of {self.recipe.images.name}",
            f"the {len(self.batch)} of {len(self.recipe.train):,} {what}",
            f"seen at {size} by {size} pixels",
            f"seed {self.batch.seed}, epoch 0",
        ]

    @property
    def limits(self) -> str:
        if len(self.shown) == len(self.batch):
            return ""
        return f"Figures are means over these {len(self.batch)}; the first {len(self.shown)} are drawn."

    def values(self, views: Sequence[Sequence[Seen]]) -> dict[str, Any]:
        """What was drawn for the views of each image, and where it was taken from, as JSON can hold it."""
        images = []
        for name, pixels, own in zip(self.names, self.images, views, strict=True):
            size = {"height": pixels.shape[0], "width": pixels.shape[1]}
            images.append({"name": name, **size, "views": [asdict(seen.drawn) for seen in own]})
        values = {"length": len(self.recipe.train), "seed": self.batch.seed, "run": self.run, "images": images}
        return {"source": self.facts()[0], "size": self.recipe.settings["data.size"], **values}

    def inspection(self, sections: list[Section], values: dict[str, Any], **said: Any) -> Inspection:
        """An inspection of these images; `said` in place of what is said of all."""
        made = Inspection.of(self.recipe.settings["objective"], self.recipe.idea, self.facts(), sections, values)
        return replace(made, **{"limits": self.limits, **said})


def _within(place: str, source: str) -> str:
    """Where an image stands in its source."""
    inner = place.removeprefix(source).lstrip("/, ") if place.startswith(source) else ""
    return inner or Path(place).name


def look_at(request: Request, most: int) -> Look:
    """The data of a request, else that of its run, else the bundled images, as a training begins with them.

    Raises:
        UserError: there are none, or the run is of another objective.
    """
    count = most if request.run is None else max(most, MEASURED)
    return first_of(opened(request), request, count, most)


def first_of(recipe: ImageRecipe, request: Request, count: int, most: int) -> Look:
    """The images that a training takes first, at most so many."""
    run = None if request.run is None else str(request.run)
    return Look(recipe, recipe.begin(), first_batch(recipe, count), run, most)


def opened(request: Request) -> ImageRecipe:
    """A training of what `look_at` looks at, settled; raises what that raises."""
    objective, settings = request.objective, request.settings
    if request.text is not None or request.window is not None:
        raise UserError(f"{objective} looks at images, so --text and --window say nothing to it; give --data.")
    if request.run is not None:
        Run.open(request.run)
    if request.run is not None and settings["objective"] != objective:
        raise UserError(
            f"{request.run} is a run of {settings['objective']}, not of {objective}; leave {objective} out."
        )
    settings.change("objective", objective, "given")
    if settings["model.preset"].startswith("python:"):
        raise UserError(f"{request.run} trained a network from Python, which cannot be built here; give another run.")
    recipe = cast("ImageRecipe", composed(request))
    recipe.open(request.progress)
    if len(recipe.images) - recipe.images.duplicates == 1:  # no training would take it, and yet it can be seen
        settings.change("data.validation", 0.0, "one image")
    recipe.settle(Effort())
    return recipe
