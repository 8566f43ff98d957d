"""To ONNX: one file whose graph turns pixels of any batch and size into the vectors of images.

    pixels (batch, 3, height, width), normalised  →  features (batch, dimension): what `selfsup embed` gives
                                                     hidden_states (batch, tokens, width): of a vision transformer

The metadata of the file says how an image becomes pixels (`preprocessing`, as transformers' ViTImageProcessor) and what
was done to the hidden states (`features`), each as JSON.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.exporting import Written, open_image_model
from selfsup.files import new_file
from selfsup.models.backbones import AnyBackbone, SavedBackbone
from selfsup.models.features import Features
from selfsup.models.parity import Difference
from selfsup.models.preprocessors import as_processor
from selfsup.models.vision import CHANNELS, VisionTransformer


def write(source: Path, path: Path) -> Written:
    """Write the vision model of `source` to the file `path`. Raises UserError where it holds none, or what writes
    ONNX is not installed."""
    opened = open_image_model(source, "onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"Export to ONNX needs onnx and onnxscript ({error}); pip install onnx onnxscript.") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        graph = Graph(opened.backbone.eval(), opened.features)
        _export(graph, opened, temporary)
        difference = compare(temporary, opened, graph)
    opens_with = f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'pixels': pixels}})"
    return opens_with, difference


class Graph(nn.Module):
    """Pixels to vectors, with everything that depends on the size of the images computed in the graph."""

    def __init__(self, backbone: AnyBackbone, features: Features) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.outputs = ["features"] + ["hidden_states"] * isinstance(backbone, VisionTransformer)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        backbone, pooling = self.backbone, self.features.pooling
        if not isinstance(backbone, VisionTransformer):
            return (self.features.map(backbone.embed(pixels, pooling)),)
        states = backbone(pixels)
        return self.features.map(backbone.pool(states, pooling)), states


def _export(graph: Graph, opened: SavedBackbone, path: Path) -> None:
    backbone, size, dim = opened.backbone, opened.size, torch.export.Dim
    if isinstance(backbone, VisionTransformer):
        sides = {2: backbone.config.patch * dim("rows"), 3: backbone.config.patch * dim("columns")}
    else:
        sides = {2: dim.AUTO, 3: dim.AUTO}  # of any size where the network takes any
    pixels = torch.zeros(2, CHANNELS, size, size)
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            graph,
            (pixels,),
            input_names=["pixels"],
            output_names=graph.outputs,
            dynamic_shapes=({0: dim("batch"), **sides},),
            dynamo=True,
            verbose=False,
        )
    features = {"pooling": opened.features.pooling, "mapped": opened.features.weight is not None}
    about = {"preprocessing": as_processor(opened.preprocessing), "features": features}
    program.model.metadata_props.update({name: json.dumps(content) for name, content in about.items()})
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says nothing during the block of what does not concern its user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.inference_mode()
def compare(path: Path, opened: SavedBackbone, graph: Graph) -> Difference | None:
    """How far onnxruntime on a file is from selfsup in fp32, over all results, on images of noise.

    One image at the size it was made for, and two of the same; of a vision transformer also a wide one. None where
    onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size, generator = opened.size, torch.Generator().manual_seed(0)
    shapes = [(1, size, size), (2, size, size)]
    if isinstance(opened.backbone, VisionTransformer):
        shapes.append((3, size, 2 * size))
    differences = []
    for batch, height, width in shapes:
        pixels = torch.randn(batch, CHANNELS, height, width, generator=generator)
        found = session.run(graph.outputs, {"pixels": pixels.numpy()})
        for ours, theirs in zip(graph(pixels), found, strict=True):
            differences.append(Difference.between(torch.from_numpy(theirs), ours))
    return Difference.largest(differences)
