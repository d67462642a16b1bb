"""Matrices whose weights lie on a grid already: their scales are given, and packing them rounds nothing.

The names of linears are those of the checkpoint. A matrix of the graph may be one linear, a part that the graph names
otherwise, or several on top of each other (`a.q_proj+k_proj+v_proj`); its scales are put together in the same order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.errors import CheckpointError, ExportError
from edgeslim.exporters.packing import F32
from edgeslim.gridfile import GRID_FILE, LinearGrid, read_grids

WIDTHS = (3, 4, 8)
"""Bits that packed values can have; integers of fewer bits are stored in the next wider ones."""
_OTHER_NAMES = {
    "q_proj+k_proj+v_proj": ("qkv_proj", "c_attn"),
    "attn.o_proj": ("attn.c_proj",),
    "mlp.up_proj": ("mlp.c_fc",),
    "mlp.down_proj": ("mlp.c_proj",),
}
"""Endings of names in a graph, and what the checkpoints of some families call the same linear."""
_RESIDUAL = 2.0**-8  # of q: what rounding q · s to bfloat16 can make, twice over
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class GivenScales:
    """Scales float16 [n, groups] of a matrix, for `group` inputs each (0: a row), and the bits of its integers."""

    scales: npt.NDArray[np.float16]
    bits: int
    group: int

    def codes(self, name: str, weight: F32) -> npt.NDArray[np.int8]:
        """Return the integers [n, k] of `weight` [n, k].

        Raises: ExportError where the weight is none of the grid's: it was changed since it was put there.
        """
        half = 1 << (self.bits - 1)
        pieces = []
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            ratio = weight[rows] / self.spread(rows, weight.shape[1])
            q = np.rint(ratio)
            off = np.abs(ratio - q) > np.maximum(np.abs(q), 1) * _RESIDUAL
            if off.any() or (q < -half).any() or (q >= half).any():
                raise ExportError(
                    f"{name}: its weights do not lie on the grid that {GRID_FILE} has for them; expected the tensors "
                    f"as `edgeslim prune --quantize` wrote them (prune again, or delete {GRID_FILE} to round them anew)"
                )
            pieces.append(q.astype(np.int8))
        return np.concatenate(pieces)

    def on_grid(self, name: str, weight: F32) -> F32:
        """Return `weight` [n, k] without what its storage rounded off: q · s in float32.

        Raises: ExportError as `codes`.
        """
        return np.asarray(self.codes(name, weight) * self.spread(slice(None), weight.shape[1]), np.float32)

    def spread(self, rows: slice, inputs: int) -> F32:
        """Return the scale of every weight of some rows: float32 [rows, inputs]."""
        return np.repeat(self.scales[rows].astype(np.float32), self.group or inputs, axis=1)[:, :inputs]


@dataclass(frozen=True)
class Grids:
    """The grids of a checkpoint's linears, by name; none where it was not quantized."""

    entries: Mapping[str, LinearGrid] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def bits(self) -> int:
        """The bits that the widest integers take when packed."""
        return max(_width(entry) for entry in self.entries.values())

    def of(self, names: Iterable[str]) -> GivenScales | None:
        """Return the scales of the matrix that stacks the linears `names`, None where they lie on no grid.

        Raises: ExportError where only some of them do, or on grids that no one matrix can have.
        """
        parts = [part for name in names for part in self._parts(name)]
        found = [entry for _, entry in parts if entry is not None]
        if not found:
            return None
        if len(found) < len(parts) or len({entry.grid.group for entry in found}) > 1:
            listing = ", ".join(f"{name} {'none' if entry is None else entry.grid}" for name, entry in parts)
            raise ExportError(f"linears that the graph joins lie on grids that do not go together: {listing}")
        scales = np.concatenate([entry.scales for entry in found])
        return GivenScales(scales, max(_width(entry) for entry in found), found[0].grid.group)

    def alike(self, first: Iterable[str], second: Iterable[str]) -> bool:
        """Return whether two matrices may become one: on no grid both, or on grids of equal bits and group."""
        grids = [self.of(names) for names in (first, second)]
        shapes = [grid and (grid.bits, grid.group) for grid in grids]
        return shapes[0] == shapes[1]

    def _parts(self, name: str) -> list[tuple[str, LinearGrid | None]]:
        """Return the linears that a matrix called `name` consists of, each with its grid."""
        for ending, others in _OTHER_NAMES.items():
            for other in others if name.endswith(ending) else ():
                alias = name.removesuffix(ending) + other
                if alias in self.entries:
                    return [(alias, self.entries[alias])]
        prefix, _, tail = name.rpartition(".")
        names = [f"{prefix}.{part}".lstrip(".") for part in tail.split("+")]
        return [(each, self.entries.get(each)) for each in names]


def read_checkpoint_grids(folder: Path) -> Grids:
    """Return the grids of the checkpoint in `folder`.

    Raises: ExportError where their file is damaged.
    """
    try:
        return Grids(read_grids(folder / GRID_FILE))
    except CheckpointError as fault:
        raise ExportError(str(fault)) from None


def _width(entry: LinearGrid) -> int:
    return min(width for width in WIDTHS if width >= entry.grid.bits)


def describe(grids: Grids) -> dict[str, Any]:
    """Return how many linears lie on each grid, for reasons and manifests."""
    counts: dict[str, int] = {}
    for entry in grids.entries.values():
        counts[str(entry.grid)] = counts.get(str(entry.grid), 0) + 1
    return dict(sorted(counts.items()))
