"""How alike a network finds what belongs together and what does not: figures of all objectives that contrast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from selfsup.inspection.blocks import ALIEN, OUT, OWN, Matrix, Picture, Table, mean, of_role
from selfsup.inspection.figures import loss, means
from selfsup.objectives.base import Objective, Outputs, Task


@dataclass(frozen=True)
class Alike:
    """What a network makes of a batch.

    Attributes:
        name: of the network.
        similarity: cosine of what is in each row and in each column.
        roles: row by row, what each column is to it: `+` its own, `-` another one, `=` neither.
        figures: each term of the objective's score, in the mean.
        loss: of these records as one batch, their weighted sum.
    """

    name: str
    similarity: list[list[float]]
    roles: list[str]
    figures: dict[str, float]
    loss: float

    def mean(self, role: str) -> float:
        """Of the cosines of a role."""
        return mean(of_role(role, self.roles, self.similarity))

    def hardest(self) -> dict[int, tuple[int, float]]:
        """For each row that has other ones, the one of them that is most similar to it, and the cosine."""
        found = {}
        for row, (roles, cosines) in enumerate(zip(self.roles, self.similarity, strict=True)):
            others = [column for column, role in enumerate(roles) if role == ALIEN]
            if others:
                worst = max(others, key=cosines.__getitem__)
                found[row] = worst, cosines[worst]
        return found

    def own(self, row: int) -> float:
        """The cosine of a row with its own."""
        return self.similarity[row][self.roles[row].index(OWN)]

    def confusions(self) -> list[tuple[int, int]]:
        """The rows to which another one is as near as their own, and that other one; the worst first."""
        excess = {(row, other): cosine - self.own(row) for row, (other, cosine) in self.hardest().items()}
        return sorted((pair for pair in excess if excess[pair] >= 0), key=lambda pair: -excess[pair])

    def found(self) -> float:
        """Share of the rows that have other ones, to which none is as near as their own."""
        return 1 - len(self.confusions()) / max(1, len(self.hardest()))

    def turned(self) -> Alike:
        """With columns as rows."""
        similarity = [list(column) for column in zip(*self.similarity, strict=True)]
        roles = ["".join(column) for column in zip(*self.roles, strict=True)]
        return replace(self, similarity=similarity, roles=roles)

    def matrix(self, rows: Sequence[Picture], columns: Sequence[Picture], **more: object) -> Matrix:
        """As many as are in the margins; all, close together, where none are."""
        down, along = len(rows) or len(self.roles), len(columns) or len(self.roles[0])
        values = [row[:along] for row in self.similarity[:down]]
        return Matrix(self.name, rows, columns, values, [row[:along] for row in self.roles[:down]], **more)  # type: ignore[arg-type]


def roles(own: npt.NDArray[np.bool_], out: npt.NDArray[np.bool_]) -> list[str]:
    """What each column is to each row: its own; else out, where it says nothing; else another one."""
    return ["".join(row) for row in np.where(own, OWN, np.where(out, OUT, ALIEN)).tolist()]


@torch.inference_mode()
def alike(
    name: str, objective: Objective, task: Task, outputs: Outputs, roles: list[str], *vectors: torch.Tensor
) -> Alike:
    """Vectors in rows and in columns, (n, width) each, and the objective's own score of its outputs."""
    rows, columns = (F.normalize(each.float(), dim=-1) for each in vectors)
    figures = means(objective, outputs, task)
    return Alike(name, (rows @ columns.T).tolist(), roles, figures, loss(objective, figures))


def table(networks: Sequence[Alike], rows: dict[str, Callable[[Alike], str]]) -> Table:
    """Figures by name, of each network."""
    names = ["", *(network.name for network in networks)]
    return Table(names, [[name, *map(figure, networks)] for name, figure in rows.items()])
