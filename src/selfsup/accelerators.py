"""GPUs by name: what their makers publish of them, for plans of trainings on machines that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from selfsup.errors import UserError

TOGETHER = 8  # GPUs of one machine, which are linked directly
NETWORK = 50e9  # bytes per second of a GPU to other machines: 400 Gbit/s each, as in a DGX H100 (its datasheet)
MOST = 1_000_000  # GPUs


class Accelerator(NamedTuple):
    """One GPU. Gigabytes are taken as 10⁹ bytes, a little less than is there.

    Attributes:
        memory: bytes.
        flops: of matrix products in bf16 with sums in fp32, without the zeros that double it, FLOP/s.
        bandwidth: of its memory, bytes per second.
        link: to the others of its machine, bytes per second in one direction.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float


# NVIDIA's datasheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU" (SXM; halves of the figures with sparsity),
# "A100 Tensor Core GPU" (SXM), "HGX B200" (an eighth of the board), "L40S" (PCIe 4.0 x16) and "L4"; for the GeForce
# cards the architecture whitepapers of Ada (appendix A) and Blackwell (appendix A), peak with accumulation in fp32.
# AMD's datasheet "Instinct MI300X".
ACCELERATORS = {
    each.name: each
    for each in (
        Accelerator("h100", 80e9, 989.5e12, 3.35e12, 450e9),
        Accelerator("h200", 141e9, 989.5e12, 4.8e12, 450e9),
        Accelerator("b200", 180e9, 2250e12, 8.0e12, 900e9),
        Accelerator("a100-40", 40e9, 312e12, 1.555e12, 300e9),
        Accelerator("a100-80", 80e9, 312e12, 2.039e12, 300e9),
        Accelerator("l40s", 48e9, 362e12, 0.864e12, 32e9),
        Accelerator("l4", 24e9, 121e12, 0.3e12, 32e9),
        Accelerator("rtx4090", 24e9, 165.2e12, 1.008e12, 32e9),
        Accelerator("rtx5090", 32e9, 209.5e12, 1.792e12, 64e9),
        Accelerator("mi300x", 192e9, 1307.4e12, 5.3e12, 448e9),
    )
}


@dataclass(frozen=True)
class Fleet:
    """So many GPUs of one kind."""

    count: int
    gpu: Accelerator

    @property
    def link(self) -> float:
        """By which each of them exchanges with the others, bytes per second."""
        return self.gpu.link if self.count <= TOGETHER else NETWORK

    @classmethod
    def named(cls, text: str) -> Fleet:
        """`256:h100`, or `h100` for one; raises a UserError where that names none."""
        count, _, name = text.rpartition(":")
        if name not in ACCELERATORS:
            raise UserError(f"There is no GPU '{name[:40]}' in the table; there are {', '.join(ACCELERATORS)}.")
        if count and not (count.isascii() and count.isdecimal() and 1 <= len(count) <= 7 and 1 <= int(count) <= MOST):
            raise UserError(f"'{count[:40]}' is no number of GPUs; write 256:{name} for 256 of them.")
        return cls(int(count or 1), ACCELERATORS[name])
