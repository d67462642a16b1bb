"""Blocks of small integers: near the weights, exact where they must be, in the layout the kernels read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeslim.exporters.packing import block_scales, pack_codes, packed_shape, round_to_blocks, unpack

finite = st.floats(-1e4, 1e4, width=32)


def _matrices(max_rows: int = 5, max_columns: int = 70) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_columns))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=finite))


@settings(deadline=None)
@given(weight=_matrices(), bits=st.sampled_from([4, 8]), block=st.sampled_from([16, 32, 128]))
def test_unpacking_gives_the_rounded_weights(weight: np.ndarray, bits: int, block: int) -> None:
    codes, scales = pack_codes(weight, bits, block), block_scales(weight, bits, block)

    assert codes.shape == packed_shape(*weight.shape, bits, block)
    np.testing.assert_array_equal(unpack(codes, scales, bits, weight.shape[1]), round_to_blocks(weight, bits, block))


@settings(deadline=None)
@given(weight=_matrices(), bits=st.sampled_from([4, 8]))
def test_no_weight_moves_by_more_than_one_step(weight: np.ndarray, bits: int) -> None:
    step = np.repeat(np.abs(block_scales(weight, bits, 16)), 16, axis=1)[:, : weight.shape[1]]

    # Half a step by rounding; a whole one opposite the largest entry, where two's complement has one code less.
    assert (np.abs(round_to_blocks(weight, bits, 16) - weight) <= step * np.float32(1.001)).all()


@settings(deadline=None)
@given(weight=_matrices(), bits=st.sampled_from([4, 8]))
def test_zeros_and_largest_entries_stay_exact(weight: np.ndarray, bits: int) -> None:
    rounded = round_to_blocks(weight, bits, weight.shape[1])
    magnitude = np.abs(weight).max(axis=1)
    kept = np.abs(rounded).max(axis=1)

    assert (rounded[weight == 0] == 0).all()
    # Below 1e-30 the scale itself would be denormal; such rows count as zero or nearly so.
    np.testing.assert_allclose(kept[magnitude > 1e-30], magnitude[magnitude > 1e-30], rtol=1e-6)


def test_two_codes_share_a_byte_lower_nibble_first() -> None:
    weight = np.array([[-8.0, 7.0, 1.0, 0.0]], np.float32)  # scale 1: codes 0, 15, 9, 8

    assert pack_codes(weight, 4, 4).tolist() == [[[0x00 | 15 << 4, 9 | 8 << 4]]]
    assert block_scales(weight, 4, 4).tolist() == [[1.0]]


def test_rows_are_packed_alike_one_by_one_and_together() -> None:
    weight = np.random.default_rng(0).standard_normal((2500, 40)).astype(np.float32)  # more rows than one chunk

    together = pack_codes(weight, 4, 32)
    np.testing.assert_array_equal(together[[0, 1023, 1024, 2499]], pack_codes(weight[[0, 1023, 1024, 2499]], 4, 32))


@pytest.mark.parametrize(("bits", "largest"), [(8, 0.007), (4, 0.12)])
def test_normal_weights_lose_little(bits: int, largest: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    error = np.linalg.norm(round_to_blocks(weight, bits, 128) - weight) / np.linalg.norm(weight)

    assert error < largest  # uniform steps of 2.7/8 and 2.7/128 standard deviations: 0.10 and 0.0061
