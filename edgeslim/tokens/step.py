"""One step of a reduction: which tokens stay, which go where, and what that does to a branch.

Letters: B batch, N tokens before, K after, r = N - K removed, H channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.tokens.matching import largest_first, take


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What a branch becomes: row n times `own` [B, N], plus `weights` [B, r] times the removed rows that go to n.

    `largest`, where given, lets only that many of the removed rows count in each channel, those with the largest
    values; the others count as zero (the released code's "hybrid").
    """

    own: Tensor
    weights: Tensor
    largest: int | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Positions of one step. kept: [B, K], ascending; removed: [B, r], in merging order; destinations: [B, r].

    Both branches keep the same tokens; `hidden` is the branch that leaves the mixer, `residual` what passes it by.
    """

    kept: Tensor
    removed: Tensor
    destinations: Tensor
    hidden: Mixing
    residual: Mixing


def mix(x: Tensor, step: Step, mixing: Mixing) -> Tensor:
    """Return the branch `x` [B, N, H] after the step, [B, K, H], in the original order."""
    gone = take(x, step.removed)
    if mixing.largest is not None:
        gone = _largest_of_each_channel(gone, mixing.largest)
    out = x * mixing.own[..., None].to(x.dtype)
    added = gone * mixing.weights[..., None].to(x.dtype)
    out = out.scatter_add(1, step.destinations[..., None].expand(-1, -1, x.shape[-1]), added)
    return take(out, step.kept)


def pruning(removed: Tensor, tokens: int) -> Mixing:
    """Return what dropping `removed` [B, r] of N = `tokens` does: nothing to those that stay."""
    return Mixing(
        own=torch.ones(len(removed), tokens, device=removed.device),
        weights=torch.zeros(removed.shape, device=removed.device),
    )


def pairwise_merging(destinations: Tensor, merged: Tensor, tokens: int) -> Mixing:
    """Return what merging one pair after the other does: ``f <- (a + f) / 2`` in the order of the list.

    destinations: [B, r], in merging order; merged: bool [B, r], false for removed tokens that are pruned.
    Of k tokens merged into one destination the last has weight 1/2, the one before 1/4, …, the first 2^-k, and the
    destination's own is 2^-k too. Powers of two are exact.
    """
    same = (destinations[:, :, None] == destinations[:, None, :]) & merged[:, None, :]
    from_here_on = same.triu().sum(-1).float()  # merges into the same destination, from this one on
    weights = torch.exp2(-from_here_on) * merged
    own = torch.ones(len(merged), tokens, device=merged.device)
    halved = torch.where(merged, 0.5, 1.0)
    return Mixing(own=own.scatter_reduce(1, destinations, halved, "prod"), weights=weights)


def mean_merging(destinations: Tensor, merged: Tensor, tokens: int) -> Mixing:
    """Return what merging all at once does: a destination becomes the mean of itself and all that goes into it.

    Shapes as in `pairwise_merging`.
    """
    counts = torch.ones(len(merged), tokens, device=merged.device)
    own = 1 / counts.scatter_add(1, destinations, merged.float())
    return Mixing(own=own, weights=own.gather(1, destinations) * merged)


def _largest_of_each_channel(rows: Tensor, count: int) -> Tensor:
    """Return `rows` [B, r, H] with all but the `count` largest values of each channel zero."""
    batch, removed, channels = rows.shape
    flat = rows.transpose(1, 2).reshape(batch * channels, removed)
    keep = torch.zeros_like(flat).scatter(1, largest_first(flat, count), 1.0)
    return rows * keep.view(batch, channels, removed).transpose(1, 2)
