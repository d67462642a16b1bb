"""The grid that weights are put on: small integers times a scale shared by a group of consecutive inputs of a row.

    w = q · s      q in [-2^(bits-1), 2^(bits-1) - 1]      s half precision, one for each `group` inputs, of any sign

Two's complement leaves one more step on the negative side; the sign of the scale decides which side of a group gets it.

Letters: out rows, in columns, groups = ceil(in / group), the last one ragged where group does not divide in.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.errors import RecipeError

BITS = (2, 3, 4, 8)
GROUP = 64  # measured on the bundled models, in bits spent on scales against bits spent on values
_SMALLEST = torch.finfo(torch.float16).tiny
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Integers of `bits` bits; `group` inputs share a scale, 0: a whole row does."""

    bits: int
    group: int = GROUP

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise RecipeError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")
        if self.group < 0 or self.group % 4:
            raise RecipeError(f"group must be a multiple of 4, or 0 for whole rows, got {self.group}")

    def __str__(self) -> str:
        return f"int{self.bits}:{self.group}"

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def width(self, inputs: int) -> int:
        """Inputs that share a scale in a row of `inputs`."""
        return min(self.group or inputs, inputs)

    def groups(self, inputs: int) -> int:
        """Scales of a row of `inputs`."""
        return -(-inputs // self.width(inputs))


def parse_grid(text: str) -> Grid:
    """Read ``"int3:64"``, or ``"int3"`` with the usual group.

    Raises: RecipeError naming the rule and the value.
    """
    match = re.fullmatch(r"int(\d+)(?::(\d+))?", text.strip())
    if match is None:
        raise RecipeError(f"quantize must be intBITS or intBITS:GROUP (such as int3:64), got {text!r}")
    return Grid(bits=int(match[1]), group=GROUP if match[2] is None else int(match[2]))


def spread(scales: Tensor, grid: Grid, inputs: int) -> Tensor:
    """The scale of every weight.  scales: [out, groups] -> [out, inputs]."""
    return scales.repeat_interleave(grid.width(inputs), dim=1)[:, :inputs]


def dequantize(codes: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """The weights q · s, in the dtype of `scales`.  codes: [out, in]; scales: [out, groups]."""
    return codes.to(scales.dtype) * spread(scales, grid, codes.shape[1])


def nearest(w: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """The integers of the grid nearest to w / s, in w's dtype.  w: [out, in]; scales: as w, or [out, 1]."""
    return (w / scales).round_().clamp_(grid.lowest, grid.highest)


def half_precision(scales: Tensor) -> Tensor:
    """`scales` rounded to numbers that half precision holds as normal ones, none of them zero; dtype kept."""
    size = scales.abs().clamp(_SMALLEST, _LARGEST).to(torch.float16).to(scales.dtype)
    return torch.where(scales < 0, -size, size)


def bits_per_weight(codes: Tensor, grid: Grid) -> float:
    """Bits a weight by count: values that are not zero and a mask, or all values where that is less; 16-bit scales."""
    density = int(codes.count_nonzero()) / max(codes.numel(), 1)
    return min(grid.bits, density * grid.bits + 1) + 16 / grid.width(codes.shape[1])
