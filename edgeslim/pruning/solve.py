"""The best values of the kept weights for a given mask: exact, or by conjugate gradients.

Both minimise  ½ tr (w - t) H (w - t)ᵀ  over every w [out, in] that is zero outside `keep`. Rows decouple.

References
[1] Pruning Foundation Models for High Accuracy without Retraining (arXiv 2410.15567): the multiple removal problem.
[2] Hestenes & Stiefel (1952), section 6: a step of conjugate gradients lowers the objective by ½ α γ.

Letters
    t        target: the weight to come close to [out, in]
    H        damped 2/n X Xᵀ + γI [in, in]
    P, K     pruned and kept positions of a row
    form K   w_K = (t H)_K (H_KK)⁻¹
    form P   w = t - t_P ([H⁻¹]_PP)⁻¹ [H⁻¹]_P,:        the same optimum; the smaller of |K| and |P| is solved
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from edgeslim.errors import PruneError
from edgeslim.pruning.preconditioner import leading
from edgeslim.pruning.product import Product, times_transposed
from edgeslim.pruning.statistics import Factored

MEMORY = 256 << 20  # bytes that the gathered blocks of one chunk of rows may take
ROWS = 512  # that conjugate gradients take at a time: few enough for a cache, enough for a fast product
LOOKBACK = 2  # steps whose progress tells what remains
FEW_INPUTS = 64  # up to so many, past steps tell little of what remains and further ones cost nothing


def objective(w: Tensor, target: Tensor, h: Tensor) -> Tensor:
    """½ (w - t) H (w - t)ᵀ of each row.  w, target: [out, in]; h: [in, in] -> [out]."""
    delta = w - target
    return 0.5 * ((delta @ h) * delta).sum(1)


def solve_exact(target: Tensor, system: Factored, keep: Tensor, memory: int = MEMORY) -> Tensor:
    """The optimum by Cholesky, in chunks of rows whose gathered blocks take `memory` bytes.  target, keep: [out, in].

    Rows with one mask share one factorisation; others are batched by count.

    Raises: PruneError where a block is singular in spite of the damping.
    """
    masks, owner = torch.unique(keep, dim=0, return_inverse=True)
    if masks.shape[0] * 2 <= keep.shape[0]:
        return _solve_shared(target, system, masks, owner)
    kept = keep.sum(1)
    solved = torch.zeros_like(target)
    on_kept = kept * 2 <= keep.shape[1]
    for rows in _chunks(torch.nonzero(on_kept)[:, 0], kept, memory, target.element_size()):
        solved[rows] = _solve_kept(target[rows], system.h, keep[rows])
    if bool((~on_kept).any()):
        inverse = system.inverse
        for rows in _chunks(torch.nonzero(~on_kept)[:, 0], keep.shape[1] - kept, memory, target.element_size()):
            solved[rows] = _solve_pruned(target[rows], inverse, keep[rows])
    return solved


def _solve_shared(target: Tensor, system: Factored, masks: Tensor, owner: Tensor) -> Tensor:
    """One factorisation of H_KK for each distinct mask.  masks: [distinct, in]; owner: [out]."""
    solved = torch.zeros_like(target)
    goal = target @ system.h
    for number, mask in enumerate(masks):
        rows, k = torch.nonzero(owner == number)[:, 0], torch.nonzero(mask)[:, 0]
        block = system.h[k[:, None], k]
        solved[rows[:, None], k] = _positive_solve(block[None], goal[rows[:, None], k].T[None])[0].T
    return solved


def _chunks(rows: Tensor, counts: Tensor, memory: int, item: int) -> Iterator[Tensor]:
    """Split `rows`, sorted by their counts, so that a chunk's padded blocks fit in `memory` bytes."""
    rows = rows[counts[rows].argsort()]
    ordered = counts[rows].tolist()
    first = 0
    while first < len(ordered):
        last = first + 1
        while last < len(ordered) and (last - first + 1) * ordered[last] ** 2 * item * 3 <= memory:
            last += 1
        yield rows[first:last]
        first = last


def _positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row of `mask` [b, in] is True, padded to the longest: positions and validity, both [b, k]."""
    counts = mask.sum(1)
    width = int(counts.max())
    places = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return places, torch.arange(width, device=mask.device) < counts[:, None]


def _gather_blocks(matrix: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    """matrix[places, places] of each row, with the identity on padding.  matrix: [in, in] -> [b, k, k]."""
    blocks = matrix[places[:, :, None], places[:, None, :]]
    if not bool(valid.all()):
        blocks *= valid[:, :, None] & valid[:, None, :]
        blocks.diagonal(dim1=1, dim2=2).masked_fill_(~valid, 1.0)
    return blocks


def _solve_kept(target: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    places, valid = _positions(keep)
    goal = (target @ h).gather(1, places) * valid
    found = _positive_solve(_gather_blocks(h, places, valid), goal[:, :, None])[:, :, 0]
    return torch.zeros_like(target).scatter_add_(1, places, found * valid)


def _solve_pruned(target: Tensor, inverse: Tensor, keep: Tensor) -> Tensor:
    places, valid = _positions(~keep)
    removed = target.gather(1, places) * valid
    found = _positive_solve(_gather_blocks(inverse, places, valid), removed[:, :, None])[:, :, 0]
    weights = torch.zeros_like(target).scatter_add_(1, places, found * valid)
    return (target - weights @ inverse) * keep


def _positive_solve(blocks: Tensor, goal: Tensor) -> Tensor:
    """blocks⁻¹ goal by Cholesky; once more in float64 where float32 fails.  blocks: [b, k, k]; goal: [b, k, n]."""
    lower, failed = torch.linalg.cholesky_ex(blocks)
    if not bool(failed.any()):
        return torch.cholesky_solve(goal, lower)
    if blocks.dtype == torch.float64:
        raise PruneError("a block of X Xᵀ is singular in spite of the damping; expected a larger damping")
    return _positive_solve(blocks.double(), goal.double()).to(goal)


def solve_cg(
    target: Tensor, h: Tensor, keep: Tensor, start: Tensor | None = None, tolerance: float = 5e-4, steps: int = 1000
) -> Tensor:
    """The optimum by projected, preconditioned conjugate gradients, many rows at once, no gathers.

    target, keep, start: [out, in]. Starts from `start` on the mask (or from the target). Rows go in groups; a group
    stops when what is yet to gain, foreseen from its last steps, is at most `tolerance` of the objective then left.
    """
    if target.shape[1] <= FEW_INPUTS:
        tolerance *= 1e-3
    scale = h.diagonal().sqrt()
    product = times_transposed((h / scale).div_(scale[:, None]))  # Jacobi's preconditioner is now the identity
    first = leading(product, scale)
    solved = torch.empty_like(target)
    for rows in torch.arange(target.shape[0]).split(ROWS):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        support = keep[part].to(target.dtype)
        solved[part] = (target if start is None else start)[part] * scale * support
        precondition = first.preconditioner(support) if first else Tensor.clone
        _descend_(solved[part], target[part] * scale, product, support, precondition, tolerance, steps)
    return solved.div_(scale)


def _descend_(
    w: Tensor,
    target: Tensor,
    product: Product,
    support: Tensor,
    precondition: Product,
    tolerance: float,
    steps: int,
) -> None:
    """Bring `w` to the optimum, in place.  w, target, support: [rows, in]."""
    tiny = torch.finfo(target.dtype).tiny
    residual = target - w
    image = product(residual)
    left = 0.5 * float(torch.linalg.vecdot(residual, image).sum())
    torch.mul(image, support, out=residual)
    direction = precondition(residual)
    gamma = torch.linalg.vecdot(residual, direction)[:, None]
    gains: list[float] = []
    for _ in range(steps):
        image = product(direction).mul_(support)
        alpha = gamma / torch.linalg.vecdot(direction, image)[:, None].clamp(min=tiny)
        w.addcmul_(alpha, direction)
        residual.addcmul_(alpha, image, value=-1)
        gains.append(0.5 * float((alpha * gamma).sum()))
        if _remaining(gains) <= tolerance * (left - math.fsum(gains)):
            break
        ahead = precondition(residual)
        previous, gamma = gamma, torch.linalg.vecdot(residual, ahead)[:, None]
        torch.addcmul(ahead, gamma / previous.clamp(min=tiny), direction, out=direction)


def _remaining(gains: list[float]) -> float:
    """What is yet to gain if gains fall on as slowly as they ever did over the last steps."""
    if gains[-1] == 0:
        return 0.0
    if len(gains) <= LOOKBACK:
        return math.inf
    slowest = max(gains[k] / gains[k - 1] for k in range(-LOOKBACK, 0))
    return gains[-1] * slowest / (1 - slowest) if slowest < 1 else math.inf
