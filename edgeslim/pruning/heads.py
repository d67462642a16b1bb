"""Heads of a Mamba-2 mixer taken out: the parts of its tensors that stay, and its output projection fitted again.

Letters: H heads, P channels a head, G groups, N state size, I = H·P.

    in_proj    rows     [gate I | x I | B G·N | C G·N | dt H]
    conv1d     channels [x I | B G·N | C G·N]
    norm, out_proj's columns [I];  A_log, D, dt_bias [H]

Heads h·H/G to (h+1)·H/G - 1 read the keys and queries of group h, so every group must keep as many heads.

References
[1] Muñoz, Yuan & Jain, Mamba-Shedder (arXiv 2501.17088): structures removed by measured loss.
[2] Pruning Foundation Models for High Accuracy without Retraining (arXiv 2410.15567): kept weights solved jointly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.errors import PruneError

DAMPING = 0.01
"""Share of the mean squared input that is added to every input's when an output projection is fitted."""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The sizes of one mixer: heads H, channels a head P, groups G, state size N."""

    heads: int
    size: int
    groups: int
    state: int

    @property
    def inner(self) -> int:
        """Channels of all heads, I."""
        return self.heads * self.size

    def without(self, count: int) -> "HeadShape":
        """The shape with `count` heads fewer."""
        return HeadShape(heads=self.heads - count, size=self.size, groups=self.groups, state=self.state)

    def parameters(self, hidden: int, taps: int) -> int:
        """Parameters that go with one head: its rows and columns, convolution with bias, norm, A, D and dt's bias."""
        return hidden * (3 * self.size + 1) + self.size * (taps + 2) + 3


def kept_parts(shape: HeadShape, keep: Sequence[int]) -> dict[str, tuple[int, Tensor]]:
    """Return by tensor name the dimension that shrinks and the indices that stay where the heads `keep` stay.

    Raises: PruneError unless they are ascending, and as many of every group.
    """
    per_group = shape.heads // shape.groups
    counts = [sum(head // per_group == group for head in keep) for group in range(shape.groups)]
    if sorted(set(keep)) != list(keep) or len(set(counts)) != 1 or not counts[0]:
        raise PruneError(f"every group must keep as many heads, in order; got {list(keep)} of {shape.heads}")
    heads = torch.as_tensor(keep, dtype=torch.int64)
    channels = (heads[:, None] * shape.size + torch.arange(shape.size)).flatten()
    shared = torch.arange(2 * shape.groups * shape.state)
    inner = shape.inner
    mixed = torch.cat([channels, inner + shared])
    rows = torch.cat([channels, inner + mixed, 2 * inner + len(shared) + heads])
    return {
        "in_proj.weight": (0, rows),
        "in_proj.bias": (0, rows),
        "conv1d.weight": (0, mixed),
        "conv1d.bias": (0, mixed),
        "norm.weight": (0, channels),
        "out_proj.weight": (1, channels),
        **dict.fromkeys(("A_log", "D", "dt_bias"), (0, heads)),
    }


def norm_gain(mean_square: Tensor, norm_weight: Tensor, shape: HeadShape, keep: Sequence[int]) -> Tensor:
    """Return by what the norm's kept weights [I'] must be multiplied so that kept channels are as before on average.

    The norm divides by the root mean square of a group's channels, which changes with them. mean_square, norm_weight:
    [I], of the norm's output and its weights.
    """
    energy = mean_square / norm_weight.square().clamp_min(torch.finfo(norm_weight.dtype).tiny)
    per_head = energy.view(shape.heads, shape.size).mean(1)
    per_group = shape.heads // shape.groups
    gains = torch.ones(shape.groups, dtype=norm_weight.dtype)
    for group in range(shape.groups):
        kept = [head for head in keep if head // per_group == group]
        own = per_head[group * per_group : (group + 1) * per_group]
        gains[group] = (per_head[kept].mean() / own.mean()).sqrt()
    return torch.stack([gains[head // per_group] for head in keep]).repeat_interleave(shape.size)


def fitted_outputs(target: Tensor, start: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """Return the weight [out, I'] whose outputs for the smaller mixer's inputs x' are nearest to `target` [out, I] x.

    Minimises E‖target x - W' x'‖² + γ ‖W' - start‖²: h is E x' x'ᵀ [I', I'], c is E x x'ᵀ [I, I'], start [out, I'].
    """
    gamma = DAMPING * h.diagonal().mean().double()
    damped = h.double() + gamma * torch.eye(len(h), dtype=torch.float64)
    right = target.double() @ c.double() + gamma * start.double()
    fitted: Tensor = torch.linalg.solve(damped, right.T)
    return fitted.T.to(target.dtype)
