"""How each matrix meets the target: which operator, which layout, and why.

`dense` uses standard and com.microsoft operators only. `kernel` packs matrices for the operators of ours: those with
enough zeros as bitmaps (or n:m), the others densely. `auto` is `kernel` where a kernel library for the target is at
hand, else `dense`. `gather` skips the inputs that blocks of outputs do not read, in the operators that `dense` uses.

Within `kernel`, a matrix becomes sparse where that takes fewer bytes and, by the measured costs of the target's
kernels, is not slower. Costs that nobody has measured do not count: bytes decide.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from edgeslim.errors import ExportError, did_you_mean
from edgeslim.exporters.functions import form_name
from edgeslim.exporters.layers import Linear
from edgeslim.exporters.packed import Form, packed_bytes, pattern_of, rounded
from edgeslim.exporters.packed_nodes import Matrix
from edgeslim.exporters.packing import F32, round_to_blocks
from edgeslim.exporters.passes.quantize_linears import BLOCK
from edgeslim.exporters.passes.store_packed import Choice
from edgeslim.runtime.costs import Table, read_costs, speed
from edgeslim.runtime.library import architecture, kernel_library

Weights = Literal["auto", "fp32", "fp16", "int8", "int4", "int3"]
Lowering = Literal["auto", "kernel", "gather", "dense"]
Rounding = Callable[[F32, bool], F32]
"""From a weight [n, k], and whether it is the token embedding (or a head tied to it), to what the bundle has of it."""

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int3": 3}
GROUP = {"int4": 64, "int3": 64}
"""Inputs that share a scale; other integer forms have one scale a row."""
REFERENCE_ISA = {"x86_64": "avx2", "aarch64": "neon-dot"}
"""The instruction set whose costs stand for an architecture that is not this machine's."""
NOISE = 1.1
"""How much faster the dense layout must have been measured to count: repeated measurements differ by as much."""
STOCK_WEIGHTS = {"gather": ("fp32", "fp16"), "dense": ("int8", "int4", "fp16", "fp32")}
"""The weights of lowerings to stock operators, which have none of 3 bits; the first is what `auto` means there."""
SPARSE_FLOATS = 0.25
"""Zeros from which a float32 matrix is packed: below it, stock products are faster than ours for prompts."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an export does with its matrices: `weights` and `lowering` are settled, no longer auto."""

    weights: Weights
    lowering: Lowering
    reason: str
    costs: Table = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return BITS[self.weights]

    @property
    def is_integer(self) -> bool:
        """Whether weights are rounded to integers."""
        return self.bits <= 8

    def select(self, layer: Linear) -> bool:
        """Return whether a linear becomes an operator of ours; of float32 ones only those with zeros enough do."""
        return self.lowering == "kernel" and (self.bits < 32 or layer.sparsity >= SPARSE_FLOATS)

    def choose(self, matrix: Matrix, dense: F32, *, embedding: bool = False) -> Choice:
        """Return the form for the weights `dense` [n, k] of a matrix, and why."""
        weights = "int8" if embedding and self.weights in GROUP else self.weights
        bits, group = BITS[weights], GROUP.get(weights, 0)
        plain = Form(layout="dense", bits=bits, group=group)
        density = float(np.count_nonzero(dense)) / max(dense.size, 1)
        sparse = self._sparse_form(dense, bits, group, density)
        sizes = [packed_bytes(matrix.n, matrix.k, form, density) for form in (plain, sparse)]
        if sizes[1] >= sizes[0]:
            return Choice(form=plain, reason=f"{density:.0%} kept: a mask would not save bytes")
        speeds = [speed(self.costs, form_name(form), density) for form in (plain, sparse)]
        if speeds[0] is not None and speeds[1] is not None and speeds[1] * NOISE < speeds[0]:
            return Choice(form=plain, reason=f"{density:.0%} kept: {_rates(plain, sparse, speeds)}")
        why = "not measured here" if None in speeds else _rates(sparse, plain, speeds[::-1])
        return Choice(form=sparse, reason=f"{density:.0%} kept: {sizes[1] / sizes[0]:.0%} of dense bytes, {why}")

    def _sparse_form(self, dense: F32, bits: int, group: int, density: float) -> Form:
        pattern = pattern_of(dense)
        if pattern is not None and density > 0.9 * pattern[0] / pattern[1]:
            return Form(layout="nm", bits=bits, group=group, pattern=pattern)
        return Form(layout="bitmap", bits=bits, group=group)

    @property
    def rounding(self) -> Rounding | None:
        """How a weight is rounded on its way into the bundle; None where it stays float32."""
        if self.weights == "fp32":
            return None
        if self.lowering == "dense" and self.is_integer:
            return lambda weight, embedding: round_to_blocks(weight, self.bits, BLOCK)
        linear = Form(layout="dense", bits=self.bits, group=GROUP.get(self.weights, 0))
        table = Form(layout="dense", bits=8) if self.weights in GROUP else linear
        return lambda weight, embedding: rounded(weight, table if embedding else linear)


def make_plan(weights: str, lowering: str, *, library: bool, costs: Table | None = None) -> Plan:
    """Return the plan for what was asked; `library` says whether a kernel library for the target is at hand.

    Raises: ExportError for a name that is not known.
    """
    for name, value, known in (("weights", weights, get_args(Weights)), ("lowering", lowering, get_args(Lowering))):
        if value not in known:
            raise ExportError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")
    _check_stock(weights, lowering)
    settled: Weights = weights if weights != "auto" else STOCK_WEIGHTS.get(lowering, ("int8",))[0]  # type: ignore[assignment]
    if lowering != "auto":
        return Plan(weights=settled, lowering=lowering, reason="as asked", costs=costs or {})  # type: ignore[arg-type]
    if library:
        return Plan(weights=settled, lowering="kernel", reason="a kernel library is at hand", costs=costs or {})
    missing = "no kernel library for the target is at hand"
    if settled not in STOCK_WEIGHTS["dense"]:
        return Plan(
            weights=settled, lowering="kernel", reason=f"{missing}, nor a stock operator: function bodies run it"
        )
    return Plan(weights=settled, lowering="dense", reason=missing)


def _check_stock(weights: str, lowering: str) -> None:
    known = STOCK_WEIGHTS.get(lowering)
    if known is None or weights in ("auto", *known):
        return
    nearest = min(known, key=lambda name: abs(BITS[name] - BITS[weights]))
    raise ExportError(
        f"lowering {lowering} takes weights {', '.join(known)}, got {weights}: onnxruntime has no operator for it; "
        f"the nearest is {nearest}"
    )


def target_costs(libraries: Iterable[str]) -> Table:
    """Return the kernel costs to choose by: this machine's where it is the target, else those of its architecture."""
    target = next(iter(libraries), architecture())
    library = kernel_library() if target == architecture() else None
    return read_costs(library.chosen if library is not None else REFERENCE_ISA.get(target, ""))


def _rates(first: Form, second: Form, speeds: list[float | None]) -> str:
    return f"{form_name(first)} {speeds[0]:.0f}, {form_name(second)} {speeds[1]:.0f} Gweights/s measured"
