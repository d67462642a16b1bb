"""Block-column patterns found again in a matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslim.exporters.row_blocks import LEAST_ROWS, find_blocks
from edgeslim.pruning.patterns import Blocks, keep_mask


def pruned(outputs: int, inputs: int, rows: int, sparsity: float, seed: int = 0) -> np.ndarray:
    g = torch.Generator().manual_seed(seed)
    keep = keep_mask(torch.rand(outputs, inputs, generator=g), Blocks(rows=rows, sparsity=sparsity))
    return (torch.randn(outputs, inputs, generator=g) * keep).numpy()


@settings(deadline=None, max_examples=30)
@given(
    outputs=st.integers(20, 90),
    rows=st.sampled_from([16, 20, 32]),
    share=st.sampled_from([0.25, 0.5]),
    seed=st.integers(0, 99),
)
def test_a_pattern_is_found_again_with_its_size_and_its_inputs(
    outputs: int, rows: int, share: float, seed: int
) -> None:
    weight = pruned(outputs, 48, rows, share, seed)
    for found in (find_blocks(weight), find_blocks(weight, rows)):
        assert found is not None
        assert found.rows == rows or outputs <= rows
        assert [block.start for block in found.blocks] == list(range(0, outputs, rows))
        assert found.blocks[-1].stop == outputs
        for block in found.blocks:
            np.testing.assert_array_equal(block.columns, np.flatnonzero(weight[block.start : block.stop].any(0)))
        assert found.density == pytest.approx(1 - share)


def test_kept_weights_that_are_zero_do_not_hide_a_block() -> None:
    weight = pruned(96, 64, 32, 0.5)
    weight[np.random.default_rng(0).random(weight.shape) < 0.1] = 0
    found = find_blocks(weight)
    assert found is not None and found.rows == 32 and len(found.blocks) == 3
    assert all(len(block.columns) == 32 for block in found.blocks)


def test_stacked_matrices_whose_blocks_end_early_keep_blocks_of_their_own() -> None:
    weight = np.concatenate([pruned(48, 64, 32, 0.5, 1), pruned(32, 64, 32, 0.5, 2)])
    found = find_blocks(weight)
    assert found is not None
    assert [(block.start, block.stop) for block in found.blocks] == [(0, 32), (32, 48), (48, 80)]


@pytest.mark.parametrize("kind", ["dense", "half at random", "2:4", "blocks too small"])
def test_what_has_no_blocks_is_not_said_to_have_them(kind: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    if kind == "half at random":
        weight[rng.random(weight.shape) < 0.5] = 0
    elif kind == "2:4":
        weight.reshape(64, 16, 4)[:, :, :2] = np.where(
            rng.random((64, 16, 1)) < 0.5, 0, weight.reshape(64, 16, 4)[:, :, :2]
        )
    elif kind == "blocks too small":
        weight = pruned(64, 64, LEAST_ROWS // 2, 0.5)
    found = find_blocks(weight)
    assert found is None or found.density > 0.9


def test_a_given_size_that_is_not_the_matrix_s_finds_what_all_its_rows_leave_out() -> None:
    weight = pruned(64, 64, 32, 0.5)
    assert find_blocks(weight, 16) is not None
    whole = find_blocks(weight, 64)
    assert whole is None or whole.density > 0.6
