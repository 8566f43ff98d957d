"""An encoder of images in ONNX: pixels of any batch and size to the vectors of images.

    pixels (batch, 3, height, width), normalised  →  features (batch, dimension): what `selfsup embed` gives
                                                     hidden_states (batch, tokens, width): of a vision transformer

The metadata of the file says how an image becomes pixels (`preprocessing`, as transformers' ViTImageProcessor) and what
was done to the hidden states (`features`), each as JSON.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfsup.exporting.onnx.graphs import Exportable
from selfsup.models.backbones import SavedBackbone
from selfsup.models.parity import Difference
from selfsup.models.preprocessors import as_processor
from selfsup.models.vision import CHANNELS, VisionTransformer


class ImageGraph(Exportable):
    """Pixels to vectors, with everything that depends on the size of the images computed in the graph."""

    inputs = ("pixels",)
    given = "{'pixels': pixels}"

    def __init__(self, opened: SavedBackbone) -> None:
        super().__init__()
        self.backbone, self.features, self.size = opened.backbone, opened.features, opened.size
        self.outputs = ["features"] + ["hidden_states"] * isinstance(opened.backbone, VisionTransformer)
        features = {"pooling": opened.features.pooling, "mapped": opened.features.weight is not None}
        self.about = {"preprocessing": as_processor(opened.preprocessing), "features": features}

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        backbone, pooling = self.backbone, self.features.pooling
        if not isinstance(backbone, VisionTransformer):
            return (self.features.map(backbone.embed(pixels, pooling)),)
        states = backbone(pixels)
        return self.features.map(backbone.pool(states, pooling)), states

    def example(self) -> tuple[Any, ...]:
        return (torch.zeros(2, CHANNELS, self.size, self.size),)

    def shapes(self) -> tuple[Any, ...]:
        backbone, dim = self.backbone, torch.export.Dim
        if isinstance(backbone, VisionTransformer):
            sides = {2: backbone.config.patch * dim("rows"), 3: backbone.config.patch * dim("columns")}
        else:
            sides = {2: dim.AUTO, 3: dim.AUTO}  # of any size where the network takes any
        return ({0: dim("batch"), **sides},)

    @torch.inference_mode()
    def compare(self, session: Any) -> Difference:
        """On images of noise: one at the size that the network was made for, and two of the same; of a vision
        transformer also a wide one."""
        size, generator = self.size, torch.Generator().manual_seed(0)
        shapes = [(1, size, size), (2, size, size)]
        if isinstance(self.backbone, VisionTransformer):
            shapes.append((3, size, 2 * size))
        differences = []
        for batch, height, width in shapes:
            pixels = torch.randn(batch, CHANNELS, height, width, generator=generator)
            found = session.run(self.outputs, {"pixels": pixels.numpy()})
            for ours, theirs in zip(self(pixels), found, strict=True):
                differences.append(Difference.between(torch.from_numpy(theirs), ours))
        return Difference.largest(differences)
