"""Grids: their text, range, groups and bits."""

import pytest
import torch

from edgeslim.errors import RecipeError
from edgeslim.quantize.grid import Grid, bits_per_weight, dequantize, half_precision, nearest, parse_grid, spread


def test_text_names_bits_and_group() -> None:
    assert parse_grid("int3:128") == Grid(bits=3, group=128)
    assert parse_grid("int4") == Grid(bits=4, group=64)
    assert str(Grid(bits=8, group=32)) == "int8:32"


@pytest.mark.parametrize("text", ["int5", "3:64", "int3:6", "fp4", "int3:", "int3:-4"])
def test_a_grid_that_does_not_exist_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(RecipeError, match="got"):
        parse_grid(text)


def test_two_complement_gives_one_more_step_below_zero() -> None:
    grid = Grid(bits=3)
    codes = nearest(torch.tensor([[-9.0, -4.4, 0.6, 9.0]]), torch.ones(1, 1), grid)
    assert codes.tolist() == [[-4, -4, 1, 3]]


def test_a_ragged_last_group_has_a_scale_of_its_own() -> None:
    grid = Grid(bits=4, group=4)
    scales = torch.tensor([[1.0, 10.0]])
    assert spread(scales, grid, 6).tolist() == [[1, 1, 1, 1, 10, 10]]
    assert dequantize(torch.ones(1, 6, dtype=torch.int8), scales, grid).tolist() == [[1, 1, 1, 1, 10, 10]]
    assert Grid(bits=4, group=0).groups(100) == 1 and Grid(bits=4, group=64).groups(100) == 2


def test_scales_survive_half_precision_and_are_never_zero() -> None:
    scales = torch.tensor([0.0, 1e-12, -1e-12, 1e9, 0.1234567])
    stored = half_precision(scales)
    assert torch.equal(stored, stored.to(torch.float16).float())
    assert bool((stored != 0).all()) and bool(stored.isfinite().all())
    assert stored[2] < 0


def test_bits_count_values_mask_and_scales_and_leave_a_mask_out_where_it_costs() -> None:
    grid = Grid(bits=4, group=64)
    codes = torch.ones(2, 128)
    assert bits_per_weight(codes, grid) == 4.25
    codes[:, ::2] = 0
    assert bits_per_weight(codes, grid) == 2 + 1 + 0.25
