"""GPTQ on a mask: one sweep from left to right puts every kept weight on the grid and passes its error on.

References
[1] Frantar et al., GPTQ (arXiv 2210.17323).
[2] Frantar & Alistarh, SparseGPT (arXiv 2301.00774): pruned weights as a grid of zero alone, in the same sweep.

Letters
    w        weight [out, in], changed as the sweep goes
    U        upper triangle with H⁻¹ = Uᵀ U [in, in]
    e        (w_i - q_i s) / U_ii, the error of column i in units of its update [out]
"""

import torch
from torch import Tensor

from edgeslim.quantize.grid import Grid, nearest
from edgeslim.quantize.scales import search_scales

BLOCK = 128


def gptq(w: Tensor, u: Tensor, keep: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Integers [out, in] and scales [out, groups] of `w` on the mask `keep`, both in w's dtype.

    w, keep: [out, in]; u: [in, in]. The scales of a group are searched on the weights as they stand when the sweep
    comes to it; an error of input j costs 1 / U_jj², what is left of it once the inputs after it have adapted.
    """
    columns = w.T.clone(memory_format=torch.contiguous_format)  # [in, out]: the sweep freezes row after row
    kept = keep.T.contiguous()
    codes, scales = torch.zeros_like(columns), []
    cost = u.diagonal().square().reciprocal()
    inputs, width = columns.shape[0], grid.width(w.shape[1])
    for first in range(0, inputs, width):
        last = min(first + width, inputs)
        scale = search_scales((columns[first:last] * kept[first:last]).T, cost[first:last], grid)[:, 0]
        scales.append(scale)
        for start in range(first, last, BLOCK):
            end = min(start + BLOCK, last)
            errors = _sweep_block(columns, codes, kept, scale, u, start, end, grid)
            columns[end:] -= u[start:end, end:].T @ errors
    return codes.T.contiguous(), torch.stack(scales, 1)


def _sweep_block(
    columns: Tensor, codes: Tensor, kept: Tensor, scale: Tensor, u: Tensor, start: int, end: int, grid: Grid
) -> Tensor:
    """Freeze columns start..end, all [in, out], in place; returns their errors e [end - start, out]."""
    errors = torch.empty_like(columns[start:end])
    part, factors = columns[start:end], u[start:end, start:end]
    for i in range(end - start):
        q = nearest(part[i], scale, grid).mul_(kept[start + i])
        codes[start + i] = q
        torch.addcmul(part[i], q, scale, value=-1, out=errors[i]).div_(factors[i, i])
        part[i + 1 :].addr_(factors[i, i + 1 :], errors[i], alpha=-1)
    return errors
