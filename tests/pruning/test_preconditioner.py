import gc
import weakref

import pytest
import torch
from pruning.layers import random_layer, system_of
from torch import Tensor

from edgeslim.pruning import preconditioner
from edgeslim.pruning.patterns import Unstructured, keep_mask
from edgeslim.pruning.preconditioner import Leading, leading
from edgeslim.pruning.product import times_transposed
from edgeslim.pruning.solve import objective, solve_cg, solve_exact


def orthonormal(inputs: int, columns: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(inputs, columns, generator=g, dtype=torch.float64)).Q


def test_each_row_is_multiplied_by_the_inverse_of_its_own_kept_block() -> None:
    q, beyond, mu = orthonormal(12, 3), torch.tensor([50.0, 7.0, 2.0], dtype=torch.float64), 0.3
    keep = keep_mask(torch.rand(5, 12, generator=torch.Generator().manual_seed(2)), Unstructured(sparsity=0.4))
    residual = torch.randn(5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * keep
    found = Leading(q, mu / beyond).preconditioner(keep.double())(residual)
    for row, kept in enumerate(keep):
        block = (q[kept] * beyond) @ q[kept].T + mu * torch.eye(int(kept.sum()), dtype=torch.float64)
        torch.testing.assert_close(found[row, kept], mu * torch.linalg.solve(block, residual[row, kept]))
        assert not found[row, ~kept].any()


def test_the_leading_eigenvectors_are_found_in_order_of_their_eigenvalues() -> None:
    q, values = orthonormal(100, 100), 100 * 0.7 ** torch.arange(100, dtype=torch.float64)
    found = leading(times_transposed((q * values) @ q.T), values)
    assert found is not None
    assert found.vectors.shape == (100, 10)
    overlap = (found.vectors.flip(1).T @ q[:, :10]).abs()
    torch.testing.assert_close(overlap, torch.eye(10, dtype=torch.float64), atol=1e-2, rtol=0)
    expected = values[10] / (values[:10] - values[10])
    torch.testing.assert_close(found.ratios.flip(0), expected, rtol=0.1, atol=0)


def test_few_inputs_go_without() -> None:
    assert leading(times_transposed(torch.eye(63)), torch.ones(63)) is None


@pytest.mark.parametrize("h", [torch.eye(80), torch.ones(80, 80) + 1e-2 * torch.eye(80), 1e-20 * torch.eye(80)])
def test_a_flat_spectrum_and_rank_one_are_solved_too(h: Tensor) -> None:
    w = torch.randn(4, 80, generator=torch.Generator().manual_seed(0))
    keep = keep_mask(w.abs(), Unstructured(sparsity=0.5))
    solved = solve_cg(w, h, keep, tolerance=1e-5)
    assert torch.isfinite(solved).all()
    assert (objective(solved, w, h) <= objective(w * keep, w, h) * (1 + 1e-4)).all()


def test_eight_steps_then_leave_under_a_quarter_of_what_they_leave_without(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = random_layer(32, 256, 1024, decay=1.0)
    system = system_of(x)
    keep = keep_mask(w.abs(), Unstructured(sparsity=0.5))

    def excess() -> float:
        least = objective(solve_exact(w, system, keep), w, system.h).sum()
        return float(objective(solve_cg(w, system.h, keep, steps=8), w, system.h).sum() / least - 1)

    preconditioned = excess()
    monkeypatch.setattr(preconditioner, "FEWEST", 1000)
    assert preconditioned < excess() / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 33])
def test_products_agree_with_torchs_own(dtype: torch.dtype, rows: int) -> None:
    g = torch.Generator().manual_seed(0)
    z, matrix = torch.randn(rows, 70, generator=g, dtype=dtype), torch.randn(50, 70, generator=g, dtype=dtype)
    torch.testing.assert_close(times_transposed(matrix)(z), z @ matrix.T)
    torch.testing.assert_close(times_transposed(matrix.T)(z[:, :50]), z[:, :50] @ matrix)


def test_a_product_that_is_dropped_gives_its_matrix_back_at_once() -> None:
    product = times_transposed(torch.eye(70))
    gone = weakref.ref(product)
    gc.disable()
    try:
        del product
        assert gone() is None  # a cycle would hold a packed matrix until the next collection
    finally:
        gc.enable()
