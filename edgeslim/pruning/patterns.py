"""Which weights may stay: patterns, and the masks that follow them exactly.

A mask `keep` is a bool tensor [out, in], True where a weight stays. It is always carried explicitly and never read back
from the weights, since a kept weight may be zero.

    Unstructured(sparsity=0.5)      row 0:  x . x . . x . x      any place; a count per row, or one for the layer
    NM(n=2, m=4)                    row 0:  x . x . | . . x x    two KEPT of every four consecutive inputs
    Blocks(rows=2, sparsity=0.5)    row 0:  x . . x x . . x      two rows after the other read the same inputs
                                    row 1:  x . . x x . . x

References
[1] Mishra et al., Accelerating Sparse Deep Neural Networks (arXiv 2104.08378): the 2:4 pattern, n kept of m.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgeslim.errors import RecipeError

Scope = Literal["row", "layer"]


@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Prune the share `sparsity` of all weights, counted in each output row or over the whole layer."""

    sparsity: float
    scope: Scope = "row"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if self.scope not in ("row", "layer"):
            raise RecipeError(f"scope must be 'row' or 'layer', got {self.scope!r}")

    def __str__(self) -> str:
        return f"{self.sparsity:g}" if self.scope == "row" else f"{self.sparsity:g} of the layer"

    @property
    def density(self) -> float:
        """Share of weights kept."""
        return 1 - self.sparsity


@dataclass(frozen=True, kw_only=True)
class NM:
    """Keep `n` of every `m` consecutive inputs; of a ragged last group of L inputs, ceil(n L / m)."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise RecipeError(f"pattern n:m must have 0 < n < m, got {self.n}:{self.m}")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Share of weights kept (exact where m divides the inputs)."""
        return self.n / self.m

    @property
    def sparsity(self) -> float:
        """Share of weights pruned (exact where m divides the inputs)."""
        return 1 - self.n / self.m

    def kept_of(self, length: int) -> int:
        """Count kept of a group of `length` inputs."""
        return math.ceil(self.n * length / self.m)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Let every `rows` consecutive outputs (the last block may have fewer) share their inputs; prune the share
    `sparsity` of these in each block."""

    rows: int
    sparsity: float

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise RecipeError(f"pattern block:ROWS must have at least 1 row, got {self.rows}")
        if not 0 <= self.sparsity < 1:
            raise RecipeError(f"sparsity must be in [0, 1), got {self.sparsity}")

    def __str__(self) -> str:
        return f"block:{self.rows}:{self.sparsity:g}"

    @property
    def density(self) -> float:
        """Share of weights kept."""
        return 1 - self.sparsity

    def sums(self, scores: Tensor) -> Tensor:
        """Sum scores over the rows of each block.  scores: [out, in] -> [blocks, in]."""
        return torch.stack([block.sum(0) for block in scores.split(self.rows)])

    def spread(self, of_blocks: Tensor, outputs: int) -> Tensor:
        """Give each row what its block has.  of_blocks: [blocks, in] -> [outputs, in]."""
        return of_blocks.repeat_interleave(self.rows, 0)[:outputs]


Pattern = Unstructured | NM | Blocks


def parse_pattern(text: str, sparsity: float | None = None) -> Pattern:
    """Read ``"2:4"`` as two kept of every four, ``"0.5"`` or ``"50%"`` as half of each row pruned, ``"block:64"`` as
    blocks of 64 rows with `sparsity` (None: half) of their inputs pruned, ``"block:64:0.25"`` with that share.

    Raises: RecipeError naming the rule and the value.
    """
    if match := re.fullmatch(r"\s*block:(\d+)(?::(\d*\.?\d+))?\s*", text):
        if match[2] is not None and sparsity is not None:
            raise RecipeError(f"sparsity and pattern exclude each other, got {sparsity} and {text!r}")
        asked = float(match[2]) if match[2] is not None else 0.5 if sparsity is None else sparsity
        return Blocks(rows=int(match[1]), sparsity=asked)
    if sparsity is not None:
        raise RecipeError(f"sparsity and pattern exclude each other, got {sparsity} and {text!r}")
    if match := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text):
        return NM(n=int(match[1]), m=int(match[2]))
    if match := re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", text):
        return Unstructured(sparsity=float(match[1]) / (100 if match[2] else 1))
    raise RecipeError(
        "pattern must be n:m (such as 2:4), block:ROWS (such as block:64) or a sparsity (such as 0.5 or 50%), "
        f"got {text!r}"
    )


def pruned_count(total: int, sparsity: float) -> int:
    """Count pruned of `total`: never more than asked, and 0.29 of 100 is 29 in spite of binary fractions."""
    return math.floor(total * sparsity + 1e-6)


def keep_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask that keeps the largest scores.  scores: [out, in] -> bool [out, in].

    Counts are exact; of equal scores the one further left (in row-major order) is pruned first. An input of a block is
    worth the sum of its scores.
    """
    if isinstance(pattern, NM):
        return _keep_of_groups(scores, pattern)
    if isinstance(pattern, Blocks):
        pruned = smallest(pattern.sums(scores), pruned_count(scores.shape[1], pattern.sparsity))
        return pattern.spread(~pruned, scores.shape[0])
    if pattern.scope == "row":
        return ~smallest(scores, pruned_count(scores.shape[1], pattern.sparsity))
    flat = scores.reshape(1, -1)
    return ~smallest(flat, pruned_count(flat.shape[1], pattern.sparsity)).view(scores.shape)


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly `count` smallest of each row, ties from the left.  scores: [rows, n] -> bool [rows, n]."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    cut = _kth_smallest(scores, count)
    marked = scores <= cut
    if int(marked.count_nonzero()) > count * scores.shape[0]:  # no row has fewer
        rows = torch.nonzero(marked.view(torch.int8).sum(1, dtype=torch.int32) > count)[:, 0]
        tied, below = scores[rows] == cut[rows], scores[rows] < cut[rows]
        marked[rows] = below | (tied & (tied.cumsum(1) <= count - below.sum(1, keepdim=True)))
    return marked


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row, from 1: [rows, 1]. On a CPU by numpy, several times faster than torch's."""
    if scores.device.type != "cpu":
        return scores.kthvalue(k, dim=1, keepdim=True).values
    cut = np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k]
    return torch.from_numpy(cut.copy())


def _keep_of_groups(scores: Tensor, pattern: NM) -> Tensor:
    rows, inputs = scores.shape
    whole = inputs - inputs % pattern.m
    keep = torch.empty_like(scores, dtype=torch.bool)
    groups = scores[:, :whole].reshape(rows, -1, pattern.m)
    keep[:, :whole] = (_rank(groups) < pattern.n).reshape(rows, whole)
    if whole < inputs:
        keep[:, whole:] = _rank(scores[:, whole:]) < pattern.kept_of(inputs - whole)
    return keep


def _rank(scores: Tensor) -> Tensor:
    """Places from the largest (0) down along the last axis; of equals, the one further right is larger."""
    place = torch.arange(scores.shape[-1], device=scores.device)
    rank = torch.zeros_like(scores, dtype=torch.int16)
    for j in range(scores.shape[-1]):
        other = scores[..., j : j + 1]
        rank += (other > scores) | ((other == scores) & (place < j))
    return rank
