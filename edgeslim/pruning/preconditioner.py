"""A preconditioner for every row at once: what the leading eigenvectors of H say of each row's own H_KK.

A few directions carry most of what a layer sees; each costs plain conjugate gradients a step or more. H is close to
Q Λ Qᵀ + μI, so is H_KK to Q_K Λ Q_Kᵀ + μI with the same Q for every row, and that is cheap to invert:

    μ (Q_K Λ Q_Kᵀ + μI)⁻¹ = I - Q_K S Q_Kᵀ      S = (Q_Kᵀ Q_K + μ Λ⁻¹)⁻¹

References
[1] Halko, Martinsson & Tropp (arXiv 0909.4061): eigenvectors by random projection and a few passes.
[2] Frangella, Tropp & Udell (arXiv 2110.02820): conjugate gradients preconditioned so, for one matrix.

Letters
    K        kept positions of a row
    Q        leading eigenvectors of H [in, k]
    Λ        by how much their eigenvalues exceed μ, the next one [k]
    S        small inverse of each row [out, k, k]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.pruning.product import Product

FEWEST = 64  # inputs for which this pays
MOST = 64  # eigenvectors; up to there √in of them, for which S costs half a product with H
SPARE = 8  # random directions beyond those wanted
PASSES = 2


@dataclass(frozen=True)
class Leading:
    """The leading eigenvectors Q [in, k] of H, and μ Λ⁻¹ [k]."""

    vectors: Tensor
    ratios: Tensor

    def preconditioner(self, support: Tensor) -> Callable[[Tensor], Tensor]:
        """residual -> μ (Q_K Λ Q_Kᵀ + μI)⁻¹ residual for the rows of `support`, 1 where a weight is kept: [out, in]."""
        small = self._small_inverses(support)

        def apply(residual: Tensor) -> Tensor:
            inner = torch.bmm(small, (residual @ self.vectors)[:, :, None])[:, :, 0]
            return torch.addmm(residual, inner, self.vectors.T, alpha=-1).mul_(support)

        return apply

    def _small_inverses(self, support: Tensor) -> Tensor:
        """S of each row, from Q_Kᵀ Q_K: one product gives its upper triangle for all rows.  -> [out, k, k]."""
        k = self.vectors.shape[1]
        i, j = torch.triu_indices(k, k, device=support.device)
        products = support @ (self.vectors[:, i] * self.vectors[:, j])
        small = support.new_empty(support.shape[0], k, k)
        small[:, i, j] = products
        small[:, j, i] = products
        small.diagonal(dim1=1, dim2=2).add_(self.ratios)
        return torch.cholesky_inverse(torch.linalg.cholesky(small))


def leading(product: Product, like: Tensor) -> Leading | None:
    """Find the leading eigenvectors of the H behind `product`; None where there are too few inputs for them to pay.

    like: [in], of H's dtype and device.
    """
    if like.shape[0] < FEWEST:
        return None
    k = min(math.isqrt(like.shape[0]), MOST)
    seed = torch.Generator().manual_seed(0)
    q = torch.randn(like.shape[0], k + SPARE, generator=seed, dtype=torch.float64).to(like)
    for _ in range(PASSES):
        q = torch.linalg.qr(product(q.T).T).Q
    values, turn = torch.linalg.eigh(product(q.T) @ q)
    mu = values[SPARE - 1]
    beyond = (values[SPARE:] - mu).clamp(min=1e-3 * float(mu))
    return Leading(q @ turn[:, SPARE:], mu / beyond)
