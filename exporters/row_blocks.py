"""Block-column sparsity found again in a matrix: runs of output rows that read the same inputs.

Letters: N outputs (rows), K inputs (columns).

    [[x, 0, x, 0],        rows 0-1 read inputs 0 and 2: one block
     [x, 0, x, 0],
     [0, x, x, 0],        rows 2-3 read inputs 1 and 2: another
     [0, x, x, 0]]
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeslim.exporters.packing import F32

GRANULE = 4
"""Rows that are looked at together where the size of blocks is not given: a kept weight that happens to be zero in one
of them is then no hole, and blocks begin at multiples of it."""
LEAST_ROWS = 16
"""Blocks of fewer rows are no pattern that skips work: gathering costs as much as their products."""
SAME = 0.02
"""The part of the inputs in which neighbouring rows of one block may differ, by kept weights that are zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlock:
    """Rows `start` to `stop` of a matrix, which read the inputs `columns` (ascending) and no other."""

    start: int
    stop: int
    columns: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class BlockPattern:
    """The blocks of a matrix [N, K], from the first row to the last; `rows` is the size that all but a ragged one have
    (or a multiple of it, where neighbours read the same inputs)."""

    rows: int
    inputs: int
    blocks: tuple[RowBlock, ...]

    @property
    def density(self) -> float:
        """Share of the products that is left."""
        kept = sum(block.rows * len(block.columns) for block in self.blocks)
        return kept / (self.blocks[-1].stop * self.inputs)

    def __str__(self) -> str:
        return f"block:{self.rows}"


def find_blocks(weight: F32, rows: int | None = None) -> BlockPattern | None:
    """Return the block-column pattern of `weight` [N, K] in blocks of `rows` rows; None: of whatever size is found.

    Returns None where there is none: no block lacks an input, or blocks have fewer than `LEAST_ROWS` rows.
    """
    used = np.asarray(weight) != 0
    if rows is None:
        blocks = tuple(_merged(_chunks(used, GRANULE), used.shape[1]))
    else:
        blocks = tuple(_merged(_chunks(used, rows), 0))
    size = rows or _common_size(blocks)
    least = min(LEAST_ROWS, len(used)) if rows is None else 1
    if size < least or all(len(block.columns) == used.shape[1] for block in blocks):
        return None
    return BlockPattern(rows=size, inputs=used.shape[1], blocks=blocks)


def _chunks(used: npt.NDArray[np.bool_], rows: int) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
    """Yield start, stop and the inputs that any row between them reads, `rows` rows at a time."""
    for start in range(0, len(used), rows):
        stop = min(start + rows, len(used))
        yield start, stop, np.asarray(used[start:stop].any(axis=0))


def _merged(chunks: Iterator[tuple[int, int, npt.NDArray[np.bool_]]], inputs: int) -> Iterator[RowBlock]:
    """Yield blocks of neighbouring chunks that read nearly the same of `inputs` inputs; 0: exactly the same."""
    first, last, reads = next(chunks)
    for start, stop, more in chunks:
        if np.count_nonzero(reads != more) > SAME * inputs:
            yield RowBlock(start=first, stop=last, columns=np.flatnonzero(reads))
            first, reads = start, more
        else:
            reads = reads | more
        last = stop
    yield RowBlock(start=first, stop=last, columns=np.flatnonzero(reads))


def _common_size(blocks: tuple[RowBlock, ...]) -> int:
    return math.gcd(*(block.start for block in blocks)) or blocks[-1].stop
