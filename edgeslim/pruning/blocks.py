"""Masks that blocks of rows share, in rounds: prune the inputs that cost least, let every other weight adapt, go on.

References
[1] Hassibi & Stork, Optimal Brain Surgeon (1993): the loss of removing one weight.
[2] Kurtic et al., ZipLM (arXiv 2302.04089): the same for whole columns, the inverse brought up to date after each.

Letters
    t        target [out, in]
    w        weights of one block, the optimum on the inputs that it still reads [rows, in]
    B        inverse of the damped H over those inputs; rows and columns of pruned ones are zero [in, in]
    P        the inputs pruned in a round

    an input j costs the block Σ_rows w_j² / (2 B_jj);    w ← w - w_P (B_PP)⁻¹ B_P,:;    B ← B - B_:,P (B_PP)⁻¹ B_P,:
"""

import torch
from torch import Tensor

from edgeslim.pruning.patterns import Blocks, pruned_count, smallest

ROUNDS = 16
"""On correlated random layers at 25 %, the error is 12-16 % below one round's; 8 are 2 % worse, 64 1 % better."""


def mask_in_rounds(target: Tensor, inverse: Tensor, pattern: Blocks, rounds: int = ROUNDS) -> Tensor:
    """Return the mask of `pattern`, found in `rounds` equal rounds.  target: [out, in]; inverse: [in, in] -> bool."""
    parts = target.split(pattern.rows)
    total = pruned_count(target.shape[1], pattern.sparsity)
    keep = torch.stack([_keep_of_block(part, inverse, total, min(rounds, max(total, 1))) for part in parts])
    return pattern.spread(keep, target.shape[0])


def _keep_of_block(target: Tensor, inverse: Tensor, total: int, rounds: int) -> Tensor:
    """Which inputs one block keeps when it loses `total` of them.  target: [rows, in] -> bool [in]."""
    w, b = target.clone(), inverse.clone()
    keep = torch.ones(w.shape[1], dtype=torch.bool, device=w.device)
    for number in range(rounds):
        count = total * (number + 1) // rounds - total * number // rounds
        cost = w.square().sum(0) / (2 * b.diagonal())
        pruned = torch.nonzero(smallest(cost.masked_fill(~keep, torch.inf)[None], count)[0])[:, 0]
        keep[pruned] = False
        if number + 1 < rounds:
            _remove_(w, b, pruned, keep)
    return keep


def _remove_(w: Tensor, b: Tensor, pruned: Tensor, keep: Tensor) -> None:
    """Bring weights and inverse up to date after the inputs `pruned` are gone, in place."""
    rows = b[pruned]
    lower = torch.linalg.cholesky(rows[:, pruned])
    w -= w[:, pruned] @ torch.cholesky_solve(rows, lower)
    half = torch.linalg.solve_triangular(lower, rows, upper=False)
    b.addmm_(half.T, half, alpha=-1)
    w *= keep
    b *= keep
    b *= keep[:, None]
    b.diagonal().masked_fill_(~keep, 1.0)  # no cost is then a division by zero
