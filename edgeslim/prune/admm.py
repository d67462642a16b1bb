"""Masks by the alternating direction method of multipliers: weights and mask pull at each other until they agree.

References
[1] Meng et al., ALPS (arXiv 2406.07831): ADMM for one-shot pruning; the idea of a growing ρ.

Letters, all in units where diag H = 1 (t ← t · sqrt(H_jj), H_ij ← H_ij / sqrt(H_ii H_jj))
    t        target [out, in]
    W        dense weight, pulled to the target by H and to D by ρ [out, in]
    D        weight on the mask [out, in]
    V        W - D summed over the steps, in units of 1/ρ [out, in]
    ρ        strength of the pull between W and D
    Q, λ     eigenvectors and eigenvalues of H

    W ← t + ρ (D - V - t)(H + ρI)⁻¹;    D ← the pattern's largest of |W + V|;    V ← W + V - D
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.prune.patterns import Pattern, keep_mask


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How ρ grows: from `start`, every `hold` steps, by a factor that falls with the share of the support in motion."""

    start: float = 0.1
    hold: int = 1
    fast: float = 1.3  # more than 10 % of the support changed
    medium: float = 1.2  # more than 0.5 %
    slow: float = 1.1
    steps: int = 60

    def factor(self, moved: float) -> float:
        """By how much ρ grows after the share `moved` of the support has changed."""
        return self.fast if moved > 0.1 else self.medium if moved > 0.005 else self.slow


def admm_mask(
    target: Tensor, h: Tensor, pattern: Pattern, schedule: Schedule | None = None, start: Tensor | None = None
) -> Tensor:
    """The mask on which ADMM settles, or stands after the last step.  target, start: [out, in]; h: [in, in] -> bool.

    `start` is a pruned weight to begin from (D); without one, D is the target itself under its first mask.
    """
    schedule = schedule or Schedule()
    scale = h.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(h / scale / scale[:, None])
    t = target * scale
    y = t if start is None else start * scale
    keep = keep_mask(y.abs() if start is None else y.square(), pattern)
    d, v, rho = y * keep, torch.zeros_like(t), schedule.start
    for step in range(schedule.steps):
        y = (d.sub_(v).sub_(t) @ vectors).mul_(rho / (values.clamp(min=0) + rho)) @ vectors.T
        y.add_(t).add_(v)
        before, keep = keep, keep_mask(y.abs(), pattern)
        moved = float((keep != before).sum()) / max(float(keep.sum()), 1.0)
        if moved == 0 and step:
            break
        d = y * keep
        v = y.sub_(d)
        if (step + 1) % schedule.hold == 0:
            growth = schedule.factor(moved)
            rho *= growth
            v.div_(growth)
    return keep
