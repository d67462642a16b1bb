"""How each matrix meets the target: which operator, which layout, and why.

`dense` uses standard and com.microsoft operators only. `kernel` packs matrices for the operators of ours: those with
enough zeros as bitmaps (or n:m), the others densely. `auto` is `kernel` where a kernel library for the target is at
hand, else `dense`. `gather` skips the inputs that blocks of outputs do not read, in the operators that `dense` uses.
`tensorrt` is for NVIDIA devices: basic operators of ONNX's own domain, with 2:4 weights where TensorRT looks for them.

Within `kernel`, a matrix becomes sparse where that takes fewer bytes and, by the measured costs of the target's
kernels, is not slower. Costs that nobody has measured do not count, nor any at 3 bits: bytes decide.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgeslim.errors import ExportError, did_you_mean
from edgeslim.exporters.functions import form_name
from edgeslim.exporters.grids import GivenScales, Grids, describe
from edgeslim.exporters.layers import Linear
from edgeslim.exporters.packed import Form, packed_bytes, pattern_of, rounded
from edgeslim.exporters.packed_nodes import Matrix
from edgeslim.exporters.packing import F32, round_to_blocks
from edgeslim.exporters.passes.quantize_linears import BLOCK
from edgeslim.exporters.passes.store_packed import Choice
from edgeslim.runtime.costs import Table, read_costs, speed
from edgeslim.runtime.library import architecture, kernel_library

Weights = Literal["auto", "fp32", "fp16", "int8", "int4", "int3"]
Lowering = Literal["auto", "kernel", "gather", "dense", "tensorrt"]
Rounding = Callable[[str, F32, bool], F32]
"""From a linear's name, its weight [n, k], and whether it is the token embedding (or a head tied to it), to what the
bundle has of it."""

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int3": 3}
GROUP = {"int4": 64, "int3": 64}
"""Inputs that share a scale; other integer forms have one scale a row."""
REFERENCE_ISA = {"x86_64": "avx2", "aarch64": "neon-dot"}
"""The instruction set whose costs stand for an architecture that is not this machine's."""
NOISE = 1.1
"""How much faster the dense layout must have been measured to count: repeated measurements differ by as much."""
STOCK_WEIGHTS = {
    "gather": ("fp32", "fp16"),
    "dense": ("int8", "int4", "fp16", "fp32"),
    "tensorrt": ("fp16", "fp32"),
}
"""The weights of lowerings to stock operators, which have none of 3 bits; the first is what `auto` means there."""
BYTES_FIRST = 3
"""Bits up to which weights are asked for to save bytes: a mask is used wherever it does, and the reason says at what
speed."""
SPARSE_FLOATS = 0.25
"""Zeros from which a float32 matrix is packed: below it, stock products are faster than ours for prompts."""


NO_GRIDS = Grids()
F16 = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an export does with its matrices: `weights` and `lowering` are settled, no longer auto."""

    weights: Weights
    lowering: Lowering
    reason: str
    costs: Table = field(default_factory=dict)
    grids: Grids = NO_GRIDS
    plain: Weights | None = None
    """The weights of matrices that lie on no grid; None: as `weights`."""
    embedding: Weights | None = None
    """The weights of the token embedding and of a head tied to it; None: as others, of fewer than 8 bits int8."""

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return BITS[self.weights]

    @property
    def is_integer(self) -> bool:
        """Whether weights are rounded to integers."""
        return self.bits <= 8

    @property
    def copies_weights(self) -> bool:
        """Whether onnxruntime may copy weights into layouts of its own, rather than use them in the mapped file."""
        return self.bits < 32 or self.lowering == "gather"

    def select(self, layer: Linear) -> bool:
        """Return whether a linear becomes an operator of ours; of float32 ones only those with zeros enough do."""
        return self.lowering == "kernel" and (self.bits < 32 or layer.sparsity >= SPARSE_FLOATS)

    def choose(self, matrix: Matrix, dense: F32, *, embedding: bool = False) -> Choice:
        """Return the form for the weights `dense` [n, k] of a matrix, and why."""
        given = self.grids.of(matrix.names) if self.is_integer else None
        bits, group = self._width(given, embedding)
        scales = None if given is None else self._checked(given, matrix.name, dense)
        plain = Form(layout="dense", bits=bits, group=group)
        density = float(np.count_nonzero(dense)) / max(dense.size, 1)
        sparse = self._sparse_form(dense, bits, group, density)
        sizes = [packed_bytes(matrix.n, matrix.k, form, density) for form in (plain, sparse)]
        if sizes[1] >= sizes[0]:
            return Choice(form=plain, reason=f"{density:.0%} kept: a mask would not save bytes", scales=scales)
        speeds = [speed(self.costs, form_name(form), density) for form in (plain, sparse)]
        slower = speeds[0] is not None and speeds[1] is not None and speeds[1] * NOISE < speeds[0]
        if slower and bits > BYTES_FIRST:
            return Choice(form=plain, reason=f"{density:.0%} kept: {_rates(plain, sparse, speeds)}", scales=scales)
        why = "not measured here" if None in speeds else _rates(sparse, plain, speeds[::-1])
        reason = f"{density:.0%} kept: {sizes[1] / sizes[0]:.0%} of dense bytes, {why}"
        return Choice(form=sparse, reason=reason, scales=scales)

    def joinable(self, first: Matrix, second: Matrix) -> bool:
        """Return whether two matrices may be packed as one."""
        return not self.is_integer or self.grids.alike(first.names, second.names)

    @property
    def plain_bits(self) -> int:
        """Bits of a matrix that lies on no grid."""
        return BITS[self.plain or self.weights]

    def given_stock(self, name: str) -> GivenScales | None:
        """Return the scales of the linear `name` and the bits that onnxruntime's own operators store it in.

        Raises: ExportError where those cannot take them.
        """
        given = self.grids.of([name])
        if given is None:
            return None
        if given.group < 16 or given.group & (given.group - 1):
            raise ExportError(
                f"{name}: onnxruntime takes scales for 16, 32, 64, 128 or 256 inputs, got {given.group}; "
                "the nearest choice is --lowering kernel"
            )
        return GivenScales(given.scales, max(given.bits, 4 if self.bits <= 4 else 8), given.group)

    def _width(self, given: GivenScales | None, embedding: bool) -> tuple[int, int]:
        """Return bits and group of a matrix."""
        if given is not None:
            return max(given.bits, 0 if self.plain else self.bits), given.group
        weights = self.plain or self.weights
        if embedding:
            weights = self.embedding or ("int8" if weights in GROUP else weights)
        return BITS[weights], GROUP.get(weights, 0)

    def _checked(self, given: GivenScales, name: str, dense: F32) -> F16:
        given.codes(name, dense)
        return given.scales

    def _sparse_form(self, dense: F32, bits: int, group: int, density: float) -> Form:
        pattern = pattern_of(dense)
        if pattern is not None and density > 0.9 * pattern[0] / pattern[1]:
            return Form(layout="nm", bits=bits, group=group, pattern=pattern)
        return Form(layout="bitmap", bits=bits, group=group)

    @property
    def rounding(self) -> Rounding | None:
        """How a weight is rounded on its way into the bundle; None where it stays float32."""
        return None if self.weights == "fp32" else self._rounded

    def _rounded(self, name: str, weight: F32, embedding: bool) -> F32:
        given = self.grids.of([name]) if self.is_integer else None
        if given is not None:
            return given.on_grid(name, weight)
        if self.lowering == "dense" and self.is_integer:
            return round_to_blocks(weight, self.plain_bits, BLOCK)
        bits, group = self._width(None, embedding)
        return rounded(weight, Form(layout="dense", bits=bits, group=group))


def make_plan(
    weights: str,
    lowering: str,
    *,
    library: bool,
    costs: Table | None = None,
    grids: Grids = NO_GRIDS,
    embedding: str = "auto",
) -> Plan:
    """Return the plan for what was asked; `library` says whether a kernel library for the target is at hand.

    Linears that lie on `grids` keep them: weights auto stores their integers in as few bits as hold them and all else
    in 8, asked weights are at least that wide or refused.

    Raises: ExportError for a name that is not known, or weights too narrow for the grids.
    """
    asked = (("weights", weights, Weights), ("lowering", lowering, Lowering), ("embedding", embedding, Weights))
    for name, value, kinds in asked:
        known = get_args(kinds)
        if value not in known:
            raise ExportError(f"{name} must be one of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")
    _check_stock(weights, lowering)
    if grids:
        _check_grids(weights, grids)
    by_grid = bool(grids) and weights == "auto" and lowering not in ("gather", "tensorrt")
    plan = _settle(_by_grids(grids, lowering, library=library) if by_grid else weights, lowering, library=library)
    plan = replace(plan, costs=costs or {}, grids=grids, plain="int8" if by_grid else None)
    return plan if embedding == "auto" else _with_embedding(plan, embedding)  # type: ignore[arg-type]


def _with_embedding(plan: Plan, embedding: Weights) -> Plan:
    if plan.lowering != "kernel" or not plan.is_integer:
        raise ExportError(
            f"embedding {embedding} is for lowering kernel with int8, int4 or int3 weights, "
            f"got {plan.lowering} with {plan.weights}"
        )
    return replace(plan, embedding=embedding)


def _settle(weights: str, lowering: str, *, library: bool) -> Plan:
    settled: Weights = weights if weights != "auto" else STOCK_WEIGHTS.get(lowering, ("int8",))[0]  # type: ignore[assignment]
    if lowering != "auto":
        return Plan(weights=settled, lowering=lowering, reason="as asked")  # type: ignore[arg-type]
    if library:
        return Plan(weights=settled, lowering="kernel", reason="a kernel library is at hand")
    missing = "no kernel library for the target is at hand"
    if settled not in STOCK_WEIGHTS["dense"]:
        return Plan(
            weights=settled, lowering="kernel", reason=f"{missing}, nor a stock operator: function bodies run it"
        )
    return Plan(weights=settled, lowering="dense", reason=missing)


def _by_grids(grids: Grids, lowering: str, *, library: bool) -> str:
    """Return the narrowest weights that hold the integers of `grids`; stock operators have none of 3 bits."""
    stock = lowering == "dense" or (lowering == "auto" and not library)
    return f"int{max(grids.bits, 4) if stock else grids.bits}"


def _check_grids(weights: str, grids: Grids) -> None:
    if weights != "auto" and BITS[weights] < grids.bits:
        listing = ", ".join(f"{count} linears on {grid}" for grid, count in describe(grids).items())
        raise ExportError(
            f"weights {weights} cannot hold the integers of this checkpoint ({listing}); expected auto or "
            f"int{grids.bits}, or a checkpoint pruned with --quantize {weights}"
        )


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
