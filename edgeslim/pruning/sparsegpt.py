"""SparseGPT: one sweep from left to right, each pruned weight's error passed on to the columns not yet visited.

References
[1] Frantar & Alistarh, SparseGPT (arXiv 2301.00774), algorithm 1 and its reference code.

Letters
    w        weight [out, in], changed as the sweep goes
    U        upper triangle with H⁻¹ = Uᵀ U; row i of it is what remains of H⁻¹ once columns < i are frozen [in, in]
    e        (w_i - q_i) / U_ii, the error of column i in units of its update [out]

Where this departs from the reference code: counts are exact (the reference prunes every weight tied with the cut, hence
one too many a block), blocks share the layer's count so that their sum is exact too, and a mask may be given.
"""

from dataclasses import replace

import torch
from torch import Tensor

from edgeslim.pruning.patterns import NM, Blocks, Pattern, Unstructured, keep_mask, pruned_count, smallest

BLOCK = 128


def sweep(
    w: Tensor, u: Tensor, pattern: Pattern | None, keep: Tensor | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Prune by one sweep; returns the weight and its mask, both [out, in].

    w: [out, in]; u: [in, in]. The mask is chosen on the way by `pattern` or, where `keep` is given, taken from it.
    Unstructured masks are chosen per block of columns, over all rows (scope "layer") or in each row (scope "row");
    those that blocks of rows share, per block of columns in each block of rows.
    """
    columns = w.T.clone(memory_format=torch.contiguous_format)  # [in, out]: the sweep freezes row after row
    kept = torch.ones_like(columns, dtype=torch.bool) if keep is None else keep.T.contiguous()
    inputs = columns.shape[0]
    if isinstance(pattern, NM):
        block = max(block - block % pattern.m, pattern.m)  # a group never straddles two blocks
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        if keep is None and isinstance(pattern, Unstructured | Blocks):
            kept[start:end] = _block_mask(columns[start:end], u[start:end, start:end], pattern, start, inputs)
        errors = _sweep_block(columns, kept, u, start, end, pattern if keep is None else None)
        columns[end:] -= u[start:end, end:].T @ errors
    return columns.T.contiguous(), kept.T.contiguous()


def _sweep_block(columns: Tensor, kept: Tensor, u: Tensor, start: int, end: int, pattern: Pattern | None) -> Tensor:
    """Freeze columns start..end of `columns` [in, out] in place; returns their errors e [end - start, out]."""
    errors = torch.empty_like(columns[start:end])
    part, factors = columns[start:end], u[start:end, start:end]
    for i in range(end - start):
        if isinstance(pattern, NM) and (start + i) % pattern.m == 0:
            _choose_group_(columns, kept, u, start + i, pattern)
        torch.mul(part[i], ~kept[start + i], out=errors[i]).div_(factors[i, i])
        part[i].mul_(kept[start + i])
        part[i + 1 :].addr_(factors[i, i + 1 :], errors[i], alpha=-1)
    return errors


def _block_mask(columns: Tensor, factors: Tensor, pattern: Unstructured | Blocks, start: int, inputs: int) -> Tensor:
    """Mask of one block of columns by the weights as they stand.  columns: [block, out]; factors: [block, block]."""
    scores = columns.square() / factors.diagonal().square()[:, None]
    before, after = start, start + columns.shape[0]
    if isinstance(pattern, Unstructured) and pattern.scope == "layer":
        rows = columns.shape[1]
        count = pruned_count(rows * after, pattern.sparsity) - pruned_count(rows * before, pattern.sparsity)
        return ~smallest(scores.reshape(1, -1), count).view(scores.shape)
    count = pruned_count(after, pattern.sparsity) - pruned_count(before, pattern.sparsity)
    of_rows = scores.T.contiguous()
    if isinstance(pattern, Blocks):
        return ~pattern.spread(smallest(pattern.sums(of_rows), count), of_rows.shape[0]).T
    return ~smallest(of_rows, count).T


def _choose_group_(columns: Tensor, kept: Tensor, u: Tensor, first: int, pattern: NM) -> None:
    """Set the mask of the n:m group that starts at input `first`, by the weights as they stand."""
    last = min(first + pattern.m, columns.shape[0])
    scores = columns[first:last].square() / u.diagonal()[first:last].square()[:, None]
    kept[first:last] = keep_mask(scores.T, pattern).T


def reference_pattern(pattern: Pattern) -> Pattern:
    """The pattern as SparseGPT's own rule compares it: unstructured scores over all rows of a block of columns."""
    return replace(pattern, scope="layer") if isinstance(pattern, Unstructured) else pattern
