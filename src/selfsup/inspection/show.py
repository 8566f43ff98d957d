"""What a vision transformer sees in an image: what its patches have in common, and where it looks.

The colours are the first principal components of the patches' features (Oquab et al. 2023, "DINOv2", section 7.5);
attention is that of the last layer (Caron et al. 2021, "DINO", figure 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from selfsup.arguments import checked
from selfsup.data.images import open_images
from selfsup.errors import UserError
from selfsup.files import require_free
from selfsup.inference.base import Model
from selfsup.inference.opening import load_image_model
from selfsup.inference.reconstruction import Reconstruction, reconstruct
from selfsup.inference.vision import ImageModel
from selfsup.inspection.base import Inspection
from selfsup.inspection.blocks import Gallery, Group, Section, Tile, section
from selfsup.inspection.pictures import FIRST, Pixels, patched, ramp
from selfsup.models.attention import Placement
from selfsup.models.directories import find_model
from selfsup.models.kinds import described
from selfsup.models.packing import Pooling
from selfsup.models.pixel_decoder import CONFIG
from selfsup.models.vision import Block, VisionTransformer

HEIGHT, LOW = 150, 90  # of an image on the sheet, and of one among many
ENLARGED = 2  # times the size of training: crops have shown the network parts of images as large as that
MOST_PATCHES = 4096  # of an image: attention compares each with each
COMPONENTS = 3
ENDS = (0.02, 0.98)  # quantiles of a component that are black and full
TINY = 1e-12


@dataclass(frozen=True)
class Insight:
    """What a network makes of an image.

    Attributes:
        name, pixels: of the image, (H, W, 3).
        features: of its patches, (rows, columns, width).
        attention: of each head, how the attention is shared out among the patches, (heads, rows, columns); what is left
            of 1 goes to the class token and the registers.
        filled: what is filled in where most of it is hidden, by a masked autoencoder.
    """

    name: str
    pixels: Pixels
    features: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32]
    filled: Reconstruction | None = None


@checked
def show(
    run: str | Path | Model, images: object, *, out: str | Path | None = None, size: int | None = None, seed: int = 0
) -> Inspection:
    """Look at images through the vision transformer of a run, a model directory, or a model that is open; of two
    towers, that of images.

    Args:
        images: the path of one, or a list of paths, PIL images or uint8 arrays; colours are shared by all of them.
        out: where to write it as a picture, a .png that is not there yet.
        size: the short side that they are looked at with, rounded to patches; by default twice that of the training.
        seed: of the patches that are hidden from a masked autoencoder.

    Raises:
        UserError: no such model or image; a network without patches; a size that makes too many patches.
    """
    require_free(out)
    model = load_image_model(run)
    run = run.path if isinstance(run, Model) else run
    network, pooling = model.backbone, model.features.pooling
    if not isinstance(network, VisionTransformer):
        raise UserError(
            f"{run} holds {described(find_model(run))}, whose patches cannot be shown; "
            "give a run of selfsup's own vision transformer."
        )
    sources = open_images([Path(images)] if isinstance(images, str | Path) else images)
    patches = round((size or ENLARGED * model.size) / network.config.patch)
    insights = [
        look_into(model, Path(sources.place(index)).name, sources.pixels(index), max(1, patches))
        for index in range(len(sources))
    ]
    if (find_model(run) / CONFIG).exists():
        insights = [replace(each, filled=reconstruct(find_model(run), each.pixels, seed)) for each in insights]
    seen = shown(str(run), network.config.patch, model.size, pooling, insights)
    seen.write(png=out)
    return seen


@torch.inference_mode()
def look_into(model: ImageModel, name: str, pixels: Pixels, short: int) -> Insight:
    """What a vision transformer makes of an image (H, W, 3) that is cut into `short` patches along its short side.

    Raises:
        UserError: these are too many patches.
    """
    network, pooling, seen = cast(VisionTransformer, model.backbone), model.features.pooling, model.preprocessing
    config, sides = network.config, pixels.shape[:2]
    rows, columns = (max(1, round(short * side / min(sides))) for side in sides)
    if rows * columns > MOST_PATCHES:
        raise UserError(
            f"{name} would be cut into {rows} by {columns} patches, and no more than {MOST_PATCHES:,} can be shown; "
            "give a smaller --size."
        )
    way = Image.Resampling.BICUBIC if seen.bicubic else Image.Resampling.BILINEAR
    resized = Image.fromarray(pixels).resize((columns * config.patch, rows * config.patch), way)
    mean, std = (torch.tensor(moments).view(3, 1, 1) for moments in (seen.mean, seen.std))
    given = (torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255 - mean) / std
    caught: list[tuple[Tensor, Placement]] = []
    hook = network.layer[-1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
    try:
        states = network(given[None].to(next(network.parameters()).device))[0]
    finally:
        hook.remove()
    queries = slice(0, 1) if pooling == "cls" else slice(config.prefix, None)
    attention = attention_of(cast(Block, network.layer[-1]), *caught[0], queries)[0, :, config.prefix :]
    features = states[config.prefix :].float().cpu().numpy()
    return Insight(
        name, pixels, features.reshape(rows, columns, -1), attention.cpu().numpy().reshape(-1, rows, columns)
    )


def attention_of(block: Block, x: Tensor, placement: Placement, queries: slice) -> Tensor:
    """How the attention of some tokens of a block's input x (B, T, width) is shared out, in the mean: (B, heads, T)."""
    normal, part = block.norm1(x, placement.dtype), block.attention
    q, k = (placement.turned(project(normal)) for project in (part.q_proj, part.k_proj))
    logits = q[:, :, queries] @ k.mT / q.shape[-1] ** 0.5
    shares: Tensor = logits.float().softmax(-1)
    return shares.mean(2)


def coloured(features: Sequence[npt.NDArray[np.float32]]) -> tuple[list[Pixels], float]:
    """The three principal components of the patches of all images (rows, columns, width), as colours of each.

    Returns:
        (rows, columns, 3) of each, and the share of the variance that the components hold. The sign of a component is
        the one in which its largest weight is positive.
    """
    flat = np.concatenate([each.reshape(-1, each.shape[-1]) for each in features]).astype(np.float64)
    centred = flat - flat.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, : -COMPONENTS - 1 : -1]
    largest = directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])]
    components = centred @ (directions * np.sign(largest))
    low, high = np.quantile(components, ENDS, axis=0)
    levels = 255 * ((components - low) / np.maximum(high - low, TINY)).clip(0, 1)
    starts = np.cumsum([each.shape[0] * each.shape[1] for each in features])[:-1]
    pictures = [
        part.reshape(*each.shape[:2], -1) for part, each in zip(np.split(levels, starts), features, strict=True)
    ]
    explained = variances[-COMPONENTS:].sum() / max(variances.sum(), TINY)
    return [picture.round().astype(np.uint8) for picture in pictures], float(explained)


# -- how it is shown --


def shown(run: str, patch: int, trained: int, looks: Pooling, insights: list[Insight]) -> Inspection:
    """What a run sees in images.

    Args:
        patch, trained: sides of a patch, and of the images that it was trained with, in pixels.
        looks: whose attention is shown: that of the class token (`cls`), or of the patches in the mean (`mean`), as the
            vector of an image is made.
    """
    colours, explained = coloured([insight.features for insight in insights])
    size = patch * min(insights[0].features.shape[:2])
    seen = (
        f"images are looked at with {size} pixels on their short side, in patches of {patch} by {patch}; the network "
        f"was trained at {trained} by {trained}"
    )
    sections = [_in_common(insights, colours, explained), _attended(insights, looks), *_filled(insights)]
    values = {"run": run, "patch": patch, "trained": trained, "looks": looks, "explained": explained}
    values["images"] = [_values(*each) for each in zip(insights, colours, strict=True)]
    idea = "an image is cut into patches; each gets a feature, made by looking at all the others"
    return Inspection("show", f"What {run} sees", idea, [seen], sections, values)


def _values(insight: Insight, colours: Pixels) -> dict[str, Any]:
    (height, width), attention = insight.pixels.shape[:2], insight.attention.round(6).tolist()
    said = {"name": insight.name, "height": height, "width": width}
    return said | {"attention": attention, "colours": colours.tolist()}


def _in_common(insights: list[Insight], colours: list[Pixels], explained: float) -> Section:
    groups = []
    for insight, each in zip(insights, colours, strict=True):
        size = f"{each.shape[0]} by {each.shape[1]} patches"
        groups.append(Group(insight.name, [[_image(insight), Tile(each, "features", size, HEIGHT)]]))
    return section("show", "features", Gallery(groups), explained=explained)


def _attended(insights: list[Insight], looks: Pooling) -> Section:
    whose = "the class token takes" if looks == "cls" else "all patches, in the mean, take"
    groups = []
    for insight in insights:
        heads = [_map(f"head {n}", head) for n, head in enumerate(insight.attention, 1)]
        tiles = [_image(insight, LOW), _map("all heads", insight.attention.mean(0)), *heads]
        groups.append(Group(insight.name, [tiles]))
    return section("show", "attention", Gallery(groups), whose=whose)


def _map(name: str, attention: npt.NDArray[np.float32]) -> Tile:
    return Tile(ramp(attention / attention.max()), name, f"{attention.sum():.0%} on patches", LOW)


def _image(insight: Insight, shown: int = HEIGHT) -> Tile:
    height, width = insight.pixels.shape[:2]
    return Tile(insight.pixels, "image", f"{width} by {height} pixels", shown)


def _filled(insights: list[Insight]) -> list[Section]:
    groups = [Group(each.name, [_tiles(each.filled)]) for each in insights if each.filled is not None]
    return [section("show", "filled", Gallery(groups))] if groups else []


def _tiles(filled: Reconstruction) -> list[Tile]:
    return [
        Tile(filled.image, "image", "its middle", HEIGHT),
        Tile(patched(filled.image, filled.hidden), "shown", f"{filled.hidden.mean():.0%} hidden", HEIGHT),
        Tile(filled.filled, "filled in", "", HEIGHT, FIRST),
        Tile(filled.smooth, "without a model", "the brightness around", HEIGHT),
    ]
