"""How much a weight is worth: the scores that masks are chosen by.

References
[1] Sun et al., Wanda (arXiv 2306.11695).
[2] Hassibi & Stork, Optimal Brain Surgeon (1993): the loss of removing one weight.
[3] Pruning Foundation Models for High Accuracy without Retraining (arXiv 2410.15567): scores "S" and "M".

Letters
    w        weight [out, in]
    H⁻¹      inverse of the damped H = 2/n X Xᵀ + γI [in, in]
    P        the pruned positions of one group of m inputs
    L*       the loss of pruning P with every other weight free to adapt: ½ w_P ([H⁻¹]_PP)⁻¹ w_Pᵀ
"""

import itertools
import math

import torch
from torch import Tensor

from edgeslim.errors import RecipeError
from edgeslim.pruning.patterns import NM

MOST_PATTERNS = 1000  # C(8, 4) is 70, C(12, 6) is 924; C(16, 8) would be 12870 passes over the layer


def magnitude_scores(w: Tensor) -> Tensor:
    """|w|.  w: [out, in]."""
    return w.abs()


def wanda_scores(w: Tensor, mean_square: Tensor) -> Tensor:
    """|w| · sqrt(mean x²).  w: [out, in]; mean_square: [in]. Source: [1], eq. 1."""
    return w.abs() * mean_square.sqrt()


def obs_scores(w: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """w² / (2 [H⁻¹]_jj), the paper's "S".  w: [out, in]; inverse_diagonal: [in]. Source: [2], [3]."""
    return w.square() / (2 * inverse_diagonal)


def joint_mask(w: Tensor, inverse: Tensor, pattern: NM) -> Tensor:
    """The n:m mask whose every group has the least joint loss L* ("M").  w: [out, in]; inverse: [in, in].

    Raises: RecipeError where a group has more than 1000 patterns.  Source: [3].
    """
    patterns = math.comb(pattern.m, pattern.n)
    if patterns > MOST_PATTERNS:
        raise RecipeError(f"mask rule m tries at most {MOST_PATTERNS} patterns a group, got {patterns} for {pattern}")
    inputs = w.shape[1]
    whole = inputs - inputs % pattern.m
    parts = []
    if whole:
        parts.append(_best_in_groups(w[:, :whole], inverse[:whole, :whole], pattern.m, pattern.n))
    if tail := inputs - whole:
        parts.append(_best_in_groups(w[:, whole:], inverse[whole:, whole:], tail, pattern.kept_of(tail)))
    return torch.cat(parts, 1)


def _best_in_groups(w: Tensor, inverse: Tensor, m: int, kept: int) -> Tensor:
    rows, inputs = w.shape
    groups = w.reshape(rows, inputs // m, m)
    blocks = inverse.unfold(0, m, m).unfold(1, m, m).diagonal(dim1=0, dim2=1).movedim(-1, 0)  # [groups, m, m]
    least = torch.full(groups.shape[:2], torch.inf, dtype=w.dtype, device=w.device)
    keep = torch.ones_like(groups, dtype=torch.bool)
    for pruned in itertools.combinations(range(m), m - kept):
        loss = _joint_loss(groups, blocks, list(pruned))
        better = loss < least
        least = torch.where(better, loss, least)
        mask = torch.ones(m, dtype=torch.bool, device=w.device)
        mask[list(pruned)] = False
        keep[better] = mask
    return keep.reshape(rows, inputs)


def _joint_loss(groups: Tensor, blocks: Tensor, pruned: list[int]) -> Tensor:
    """L* of one pattern in every group.  groups: [out, groups, m]; blocks: [groups, m, m] -> [out, groups]."""
    w_p = groups[..., pruned]
    inner = torch.linalg.inv(blocks[:, pruned][:, :, pruned])
    return 0.5 * torch.einsum("rgp,gpq,rgq->rg", w_p, inner, w_p)
