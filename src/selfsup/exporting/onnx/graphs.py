"""What the kinds of model have in common on their way to ONNX."""

from __future__ import annotations

import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.models.parity import Difference

MOST_BYTES = 2 << 30  # of a file in protocol buffers


class Exportable(nn.Module, ABC):
    """A network whose call is the graph.

    Attributes:
        inputs, outputs: their names, in the order of the call's arguments and of what it returns.
        given: how Python gives the inputs, to show.
        about: what the file says beside the graph, each as JSON.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    given: str
    about: Mapping[str, Any]

    @abstractmethod
    def example(self) -> tuple[Any, ...]:
        """Arguments of a call."""

    @abstractmethod
    def shapes(self) -> tuple[Any, ...]:
        """Of each argument, which of its dimensions may be of any size, and their names."""

    @abstractmethod
    def compare(self, session: Any) -> Difference:
        """How far onnxruntime on the file is from selfsup in fp32, over all results."""

    def save(self, path: Path) -> None:
        """Write the graph; raises a UserError where a file cannot hold it."""
        size = sum(parameter.numel() * 4 for parameter in self.parameters())
        if size >= MOST_BYTES:
            raise UserError(f"The weights take {size / 2**30:.1f} GiB and a file of ONNX holds 2; export to gguf, say.")
        self.eval()
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                self,
                self.example(),
                input_names=list(self.inputs),
                output_names=list(self.outputs),
                dynamic_shapes=self.shapes(),
                dynamo=True,
                verbose=False,
            )
        program.model.metadata_props.update({name: json.dumps(content) for name, content in self.about.items()})
        program.save(path, external_data=False)


def open_session(path: Path) -> Any:
    """onnxruntime on a file; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


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
