"""What UTRC is compared with: five other ways to choose and to combine, and the released code of UTRC itself.

Letters: B batch, N tokens, C channels, r removed. Protected tokens take part in nothing, except in `official_code`.
"""

import torch
from torch import Tensor

from edgeslim.tokens.hashing import random_scores
from edgeslim.tokens.matching import alternating, best_matches, largest_first, others, smallest_first
from edgeslim.tokens.plan import ReductionPlan
from edgeslim.tokens.step import Mixing, Step, mean_merging, pruning


def random_drop(batch: int, tokens: int, plan: ReductionPlan, layer: int, removed: int, device: torch.device) -> Step:
    """Return the step that drops the unprotected tokens with the smallest hash of seed, layer and current position.

    All samples of a batch lose the same positions.
    """
    scores = random_scores(tokens, seed=plan.seed, layer=layer, device=device).expand(batch, -1)
    return _drop_smallest(scores, plan, removed)


def truncate(batch: int, tokens: int, plan: ReductionPlan, removed: int, device: torch.device) -> Step:
    """Return the step that drops the first unprotected tokens."""
    return _drop_smallest(torch.arange(tokens, device=device).expand(batch, -1), plan, removed)


def evit(importance: Tensor, plan: ReductionPlan, removed: int) -> Step:
    """Return the step that drops the least important tokens, ties by position; importance: [B, N].

    Source: "EViT" (arXiv 2202.07800), without its one fused token.
    """
    return _drop_smallest(importance, plan, removed)


def pumer(features: Tensor, plan: ReductionPlan, removed: int) -> Step:
    """Return the step that merges the most similar tokens, whatever their importance; features: [B, N, C].

    Every second unprotected token may go into one of the others; destinations become the mean of all that meet there.
    Source: bipartite matching as in "PuMer" (arXiv 2305.17530) and "ToMe" (2210.09461).
    """
    batch, tokens = features.shape[:2]
    unprotected = plan.unprotected(tokens)
    positions = torch.arange(unprotected.start, unprotected.stop, device=features.device).expand(batch, -1)
    gone, destinations = _most_similar(features, positions, removed)
    merge = mean_merging(destinations, torch.ones_like(gone, dtype=torch.bool), tokens)
    return Step(kept=others(gone, tokens), removed=gone, destinations=destinations, hidden=merge, residual=merge)


def ltmp(features: Tensor, importance: Tensor, plan: ReductionPlan, removed: int) -> Step:
    """Return the step that drops the floor(q r) least important tokens and merges the most similar of the rest.

    The thresholds that "LTMP" (arXiv 2305.17328) learns are here those that give the wanted number of tokens.
    In the list of removed tokens the merged come first, then the dropped. Shapes as in `utrc`.
    """
    batch, tokens = importance.shape
    unprotected = plan.unprotected(tokens)
    dropped = _unprotected_smallest(importance, unprotected, plan.pruned(removed))
    left = others(dropped, tokens)
    inside = left[:, unprotected.start : unprotected.stop - dropped.shape[1]]
    merged, into = _most_similar(features, inside, removed - dropped.shape[1])
    gone = torch.cat([merged, dropped], 1)
    destinations = torch.cat([into, dropped], 1)  # a dropped token goes nowhere: weight 0, into itself
    is_merged = torch.arange(removed, device=gone.device).expand(batch, -1) < merged.shape[1]
    merge = mean_merging(destinations, is_merged, tokens)
    return Step(kept=others(gone, tokens), removed=gone, destinations=destinations, hidden=merge, residual=merge)


def official_code(batch: int, tokens: int, removed: int, device: torch.device) -> Step:
    """Return what UTRC's released code does with its default metric, whatever the tokens are.

    It sorts every channel for itself before it matches. With clipped values row 0 of the sorted matrix then is the
    best match of all others, and the next rows are the most similar: the first r even positions go into position 1.
    Destinations become means over all; the hidden branch lets only the floor(r / 2) largest values of a channel count.
    Source: github.com/wuyushuwys/ToR_SSM, `bipartite_hybrid_pure` and `bipartite_hybrid_merge`.
    """
    gone = (2 * torch.arange(removed, device=device)).expand(batch, -1)
    destinations = torch.ones_like(gone)
    merge = mean_merging(destinations, torch.ones_like(gone, dtype=torch.bool), tokens)
    hidden = Mixing(own=merge.own, weights=merge.weights, largest=removed // 2)
    return Step(kept=others(gone, tokens), removed=gone, destinations=destinations, hidden=hidden, residual=merge)


def _drop_smallest(scores: Tensor, plan: ReductionPlan, removed: int) -> Step:
    tokens = scores.shape[1]
    gone = _unprotected_smallest(scores, plan.unprotected(tokens), removed)
    drop = pruning(gone, tokens)
    return Step(kept=others(gone, tokens), removed=gone, destinations=gone, hidden=drop, residual=drop)


def _unprotected_smallest(scores: Tensor, unprotected: range, count: int) -> Tensor:
    """Return the positions [B, count] of the smallest unprotected `scores` [B, N], smallest first, ties by position."""
    return smallest_first(scores[:, unprotected.start : unprotected.stop], count) + unprotected.start


def _most_similar(features: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return sources and destinations [B, count] among `positions` [B, u], in descending similarity."""
    a, b = alternating(positions)
    similarity, matches = best_matches(features, a, b)
    chosen = largest_first(similarity, count)
    return a.gather(1, chosen), matches.gather(1, chosen)
