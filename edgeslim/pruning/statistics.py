"""What a layer's calibration inputs say of it, gathered batch by batch.

References
[1] Frantar & Alistarh, SparseGPT (arXiv 2301.00774): H as a running mean, its relative damping.

Letters
    d        inputs of the layer
    x        inputs of one batch [..., d], every leading axis a token
    H        2/n X Xᵀ over all n tokens so far [d, d]
    C        2/n X_dense X_prunedᵀ: the dense model's inputs against those of the pruned one [d, d]
    γ        damping, a share of H's mean diagonal
    U        upper triangle with H⁻¹ = Uᵀ U [d, d]
"""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeslim.errors import PruneError


class InputStatistics:
    """Running second moments of a layer's inputs.

    `H` is the mean over the inputs that the pruned model sees. With `cross=True` each batch also brings what the dense
    model sees for the same tokens, and `C` relates the two; a layer can then be fitted to the dense model's output.
    """

    def __init__(
        self,
        inputs: int,
        *,
        cross: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.tokens = 0
        self.h = torch.zeros(inputs, inputs, dtype=dtype, device=device)
        self.c = torch.zeros_like(self.h) if cross else None

    @classmethod
    def of(cls, x: Tensor, x_dense: Tensor | None = None) -> "InputStatistics":
        """Statistics of one batch, in its own dtype and on its device.  x, x_dense: [..., d]."""
        stats = cls(x.shape[-1], cross=x_dense is not None, dtype=x.dtype, device=x.device)
        stats.add(x, x_dense)
        return stats

    def add(self, x: Tensor, x_dense: Tensor | None = None) -> None:
        """Take in one batch.  x: [..., d]; x_dense: the same tokens in the dense model, where C is gathered.

        Raises: PruneError if the inputs do not fit or are not finite.
        """
        flat = self._flat(x)
        new = flat.shape[0]
        if new == 0:
            return
        self.tokens += new
        old = (self.tokens - new) / self.tokens
        self.h.mul_(old).addmm_(flat.T, flat, alpha=2 / self.tokens)
        if self.c is not None:
            if x_dense is None:
                raise PruneError("these statistics relate two streams: expected x_dense with each batch, got none")
            self.c.mul_(old).addmm_(self._flat(x_dense).T, flat, alpha=2 / self.tokens)

    @property
    def mean_square(self) -> Tensor:
        """Mean of x² for each input: [d]."""
        return self.h.diagonal() / 2

    @property
    def dead(self) -> Tensor:
        """Inputs that were zero for every token: bool [d]."""
        return self.h.diagonal() == 0

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.h.shape[0]:
            raise PruneError(f"inputs must have {self.h.shape[0]} features, got shape {tuple(x.shape)}")
        return x.reshape(-1, x.shape[-1]).to(self.h)


@dataclass(frozen=True)
class Factored:
    """H with its damping γ inside, and U with H⁻¹ = Uᵀ U.  h, u: [d, d]."""

    h: Tensor
    u: Tensor
    gamma: float

    def without_inverse(self) -> "Factored":
        """H alone, for rules and solvers that need no U, which takes as much memory as H."""
        return replace(self, u=self.u.new_empty(0, 0))

    @property
    def inverse(self) -> Tensor:
        """H⁻¹: [d, d]."""
        return self.u.T @ self.u

    @property
    def inverse_diagonal(self) -> Tensor:
        """Diagonal of H⁻¹: [d]."""
        return self.u.square().sum(0)


def factor(h: Tensor, damping: float = 0.01) -> Factored:
    """Damp H by γ = damping · mean(diag H) and factor it; where that fails, ten times as much, with a warning.

    h: [d, d], not changed. Dead inputs get a diagonal of one: they touch nothing else.

    Raises: PruneError if H is not finite, or no damping up to 10 · mean(diag H) makes it positive definite.
    """
    diagonal = h.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise PruneError("calibration inputs must be finite, got infinity or NaN in X Xᵀ")
    alive = diagonal > 0
    mean = float(diagonal.sum() / alive.sum().clamp(min=1))
    share = damping
    while share <= max(10.0, damping):
        damped = h.clone()
        damped.diagonal().add_(share * mean)
        damped.diagonal().masked_fill_(~alive, 1.0)
        if (u := _inverse_factor(damped)) is not None:
            return Factored(damped, u, share * mean)
        warnings.warn(f"X Xᵀ is not positive definite at damping {share:g}; trying ten times as much", stacklevel=2)
        share = max(share * 10, 1e-6)
    raise PruneError(f"X Xᵀ is not positive definite at any damping up to {share / 10:g} of its mean diagonal")


def _inverse_factor(h: Tensor) -> Tensor | None:
    """U with H⁻¹ = Uᵀ U, or None.  H = A Aᵀ with A upper (Cholesky of H read backwards), and U = A⁻¹."""
    lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
    if int(failed):
        return None
    eye = torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
    u = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
    return u if bool(torch.isfinite(u).all()) else None
