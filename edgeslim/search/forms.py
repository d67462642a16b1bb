"""Forms a linear can take: a share of its weights pruned, the rest on a grid."""

from dataclasses import dataclass

from edgeslim.errors import RecipeError
from edgeslim.pruning.patterns import NM, Pattern, parse_pattern
from edgeslim.quantize.grid import Grid, parse_grid

OVERHEAD = 1.0
"""Bits a weight that a mask takes."""


@dataclass(frozen=True, order=True)
class Form:
    """`pattern` as `edgeslim prune` takes it ("0.5", "2:4", "0": nothing pruned), `quantize` likewise ("int3:64")."""

    pattern: str
    quantize: str

    def __str__(self) -> str:
        grid, shape = self.quantize.partition(":")[0], self.shape
        if shape.sparsity == 0:
            return grid
        return f"{shape} {grid}" if isinstance(shape, NM) else f"{shape.sparsity:.3g} {grid}"

    @property
    def shape(self) -> Pattern:
        """The pattern."""
        return parse_pattern(self.pattern)

    @property
    def grid(self) -> Grid:
        """The grid."""
        return parse_grid(self.quantize)

    @property
    def bits(self) -> float:
        """Bits a weight by count: values kept, the mask, scales of whole groups."""
        grid, shape = self.grid, self.shape
        values = grid.bits if shape.sparsity == 0 else shape.density * grid.bits + OVERHEAD
        return values + (16 / grid.group if grid.group else 0)


UNIFORM = tuple(
    Form(pattern, quantize)
    for quantize, patterns in {
        "int3:64": ("0.6", "2:4", "0.5", "0.4", "0"),
        "int4:64": ("0.6", "2:4", "0.5", "0.4", "0"),
        "int8:64": ("0.5", "0"),
    }.items()
    for pattern in patterns
)
"""Forms that are tried for the whole model: those whose bytes a bundle has, which int2, stored in 3 bits, has not."""

CANDIDATES = (
    *(Form(sparsity, "int3:64") for sparsity in ("0.8", "0.7", "0.6", "0.5", "0.4", "0")),
    *(Form(sparsity, "int4:64") for sparsity in ("0.5", "0.4", "0")),
    Form("0", "int8:64"),
)
"""Forms that a single linear chooses from.

By the losses expected of the bundled models: without int8 a choice of 4.25 bits loses twice as much, without 80 %
one of 2.25 bits a quarter more; 30 % with int3 and 60 % with int4 change nothing. int2 would lose a seventh less at 2.5
bits if packed matrices had it, but they store its integers in 3 bits.
"""


def parse_range(text: str) -> tuple[float, float]:
    """Read ``"2.2-4.5"`` as the least and the most bits a weight.

    Raises: RecipeError naming the rule and the value.
    """
    parts = text.split("-")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise RecipeError(f"bits must be LOW-HIGH (such as 2.2-4.5), got {text!r}") from None
    if not 0 < low <= high:
        raise RecipeError(f"bits must be LOW-HIGH with 0 < LOW <= HIGH, got {text!r}")
    return low, high
