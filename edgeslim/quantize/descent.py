"""Coordinate descent on the grid: each integer in turn takes its best value while all others stand still.

The objective ½ (w - t) H (w - t)ᵀ never grows; one pass costs as much as two products with H.

References
[1] Behdin et al., QuantEase (arXiv 2309.01885): cyclic coordinate descent for quantization.

Letters
    E        (w - t) H, kept up to date [in, out]
    q, s     integers and scales, w = q · s on the mask
"""

import torch
from torch import Tensor

from edgeslim.quantize.grid import Grid, dequantize, nearest, spread

BLOCK = 128
FEW = 1e-3  # of all integers: a pass that moved no more is the last one


def descend(codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, keep: Tensor, grid: Grid, passes: int) -> Tensor:
    """The integers after at most `passes` passes over the inputs, fewer where next to nothing moves any more.

    codes, target, keep: [out, in]; scales: [out, groups]; h: [in, in]. Only kept integers move.
    """
    inputs = codes.shape[1]
    q, step = codes.T.contiguous(), spread(scales, grid, inputs).T.contiguous()
    gradient = h @ (dequantize(codes, scales, grid) - target).T
    usable = keep.T.contiguous()
    for _ in range(passes):
        moved = 0
        for start in range(0, inputs, BLOCK):
            end = min(start + BLOCK, inputs)
            change = _descend_block(q, step, gradient[start:end].clone(), h, usable, start, end, grid)
            count = int(change.count_nonzero())
            if count:
                gradient.addmm_(h[:, start:end], change)
            moved += count
        if moved <= FEW * codes.numel():
            break
    return q.T.contiguous()


def _descend_block(
    q: Tensor, step: Tensor, gradient: Tensor, h: Tensor, usable: Tensor, start: int, end: int, grid: Grid
) -> Tensor:
    """Move integers start..end of `q` in place; returns by how much their weights changed [end - start, out]."""
    change = torch.empty_like(gradient)
    inner = h[start:end, start:end]
    for i in range(end - start):
        j = start + i
        scale = step[j]
        goal = q[j] * scale - gradient[i] / inner[i, i]
        new = torch.where(usable[j], nearest(goal, scale, grid), q[j])
        torch.mul(new - q[j], scale, out=change[i])
        q[j] = new
        if i + 1 < end - start:
            gradient[i + 1 :].addr_(inner[i, i + 1 :], change[i])
    return change
