"""Unified token reduction by token importance classification (UTRC).

Source: "Rethinking Token Reduction for State Space Models" (EMNLP 2024, arXiv 2410.14725), section 4. What the text
leaves open is decided here:
- Several tokens with one destination are merged in descending similarity, ties by position.
- Of the removed tokens, a hybrid branch prunes the least important ones first; equal ones in merging order.
- Protected tokens are in neither half: they are not removed, and nothing is merged into them.

Letters: B batch, N tokens, C channels, r removed.
"""

import torch
from torch import Tensor

from edgeslim.tokens.matching import best_matches, halves, largest_first, others, smallest_first
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.step import Mixing, Step, mean_merging, pairwise_merging, pruning


def utrc(features: Tensor, importance: Tensor, plan: ReductionPlan, removed: int) -> Step:
    """Return the step that removes the `removed` (1 … half of the unprotected) most similar less important tokens.

    features: [B, N, C], compared by cosine; importance: [B, N].
    """
    tokens = importance.shape[1]
    a, b = halves(importance, plan.unprotected(tokens))
    similarity, matches = best_matches(features, a, b)
    chosen = largest_first(similarity, removed)
    gone, destinations = a.gather(1, chosen), matches.gather(1, chosen)
    pruned = _least_important(importance.gather(1, gone), plan.pruned(removed))
    return Step(
        kept=others(gone, tokens),
        removed=gone,
        destinations=destinations,
        hidden=mixing(plan.hidden, plan.merge, destinations, pruned, tokens),
        residual=mixing(plan.residual, plan.merge, destinations, pruned, tokens),
    )


def mixing(rule: str, merge: str, destinations: Tensor, pruned: Tensor, tokens: int) -> Mixing:
    """Return what the branch rule hybrid, merge or prune does to a branch of N = `tokens`.

    destinations: [B, r], in merging order; pruned: bool [B, r], what a hybrid drops.
    """
    if rule == "prune":
        return pruning(destinations, tokens)
    merged = ~pruned if rule == "hybrid" else torch.ones_like(pruned)
    return (pairwise_merging if merge == "pairwise" else mean_merging)(destinations, merged, tokens)


def _least_important(importance: Tensor, count: int) -> Tensor:
    """Return bool [B, r], true for the `count` smallest of `importance` [B, r]; ties: first in the list."""
    mask = torch.zeros_like(importance, dtype=torch.bool)
    return mask.scatter(1, smallest_first(importance, count), True)
