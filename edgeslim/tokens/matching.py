"""Which token goes with which. Letters: B batch, N tokens, C channels; a tokens that may go (A), b that stay (B).

Every list of positions ascends unless it says otherwise, and every tie goes to what stands first in its list. Sorting
is stable and the first of equal maxima counts, which is what ONNX's TopK and ArgMax do.
"""

import torch
from torch import Tensor

_LEAST_NORM = 1e-12


def smallest_first(scores: Tensor, count: int) -> Tensor:
    """Return the indices [B, count] of the smallest of `scores` [B, N], ascending by score, ties by index."""
    return torch.sort(scores, dim=-1, stable=True).indices[:, :count]


def largest_first(scores: Tensor, count: int) -> Tensor:
    """Return the indices [B, count] of the largest of `scores` [B, N], descending by score, ties by index."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]


def halves(importance: Tensor, unprotected: range) -> tuple[Tensor, Tensor]:
    """Split the unprotected positions into the less important half A and the rest B.

    importance: [B, N]; of u = len(unprotected) positions the floor(u / 2) least important form A.
    Returns positions [B, a] and [B, b], both ascending; protected positions are in neither.
    """
    ranked = smallest_first(importance[:, unprotected.start : unprotected.stop], len(unprotected)) + unprotected.start
    cut = len(unprotected) // 2
    return ranked[:, :cut].sort(-1).values, ranked[:, cut:].sort(-1).values


def alternating(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Split `positions` [B, u] into every second one, A [B, floor(u/2)], and the rest, B, which has the first."""
    return positions[:, 1::2], positions[:, ::2]


def best_matches(features: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each position of `a` [B, a] the most similar of `b` [B, b], by the cosine of `features` [B, N, C].

    Returns that largest cosine [B, a] and the position [B, a] it belongs to; of equal ones the lowest position.
    """
    unit = features / features.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM)
    cosines = take(unit, a) @ take(unit, b).transpose(1, 2)
    found = cosines.argmax(-1)
    return cosines.gather(2, found[..., None])[..., 0], b.gather(1, found)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Return the rows [B, k, C] of `x` [B, N, C] at `positions` [B, k]."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def others(removed: Tensor, tokens: int) -> Tensor:
    """Return the positions [B, N - r] that are not among `removed` [B, r], ascending: the original order."""
    positions = torch.arange(tokens, device=removed.device).expand(len(removed), -1)
    keys = positions.scatter_add(1, removed, torch.full_like(removed, tokens))
    return keys.sort(-1).values[:, : tokens - removed.shape[1]]
