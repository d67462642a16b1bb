"""Masks that blocks of rows share: rounds against brute force, float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.layers import layers, least_squares, random_layer, system_of
from torch import Tensor

from edgeslim.pruning.blocks import mask_in_rounds
from edgeslim.pruning.methods import METHODS, PruneConfig, prune_matrix
from edgeslim.pruning.patterns import Blocks, keep_mask, pruned_count
from edgeslim.pruning.solve import objective, solve_exact
from edgeslim.pruning.statistics import Factored, InputStatistics

EXACT = 1e-9  # of the objective, float64


def loss(w: Tensor, system: Factored, keep: Tensor) -> float:
    return float(objective(least_squares(w, system.h, keep), w, system.h).sum())


def greedy_by_brute_force(w: Tensor, system: Factored, count: int) -> Tensor:
    """Remove `count` inputs of all rows one by one, each time the one whose removal leaves the least loss."""
    keep = torch.ones(w.shape[1], dtype=torch.bool)
    for _ in range(count):
        trials = []
        for j in torch.nonzero(keep)[:, 0]:
            trial = keep.clone()
            trial[j] = False
            trials.append((loss(w, system, trial.expand_as(w)), int(j)))
        keep[min(trials)[1]] = False
    return keep


@settings(deadline=None, max_examples=20)
@given(layer=layers(most_inputs=10), rows=st.integers(1, 4))
def test_as_many_rounds_as_inputs_pruned_are_the_greedy_choice_by_least_squares(
    layer: tuple[Tensor, Tensor], rows: int
) -> None:
    w, x = layer
    system = system_of(x)
    pattern = Blocks(rows=rows, sparsity=0.5)
    count = pruned_count(w.shape[1], 0.5)
    keep = mask_in_rounds(w, system.inverse, pattern, rounds=max(count, 1))
    for part, found in zip(w.split(rows), keep.split(rows), strict=True):
        assert (found == found[0]).all() and int((~found[0]).sum()) == count
        greedy = greedy_by_brute_force(part, system, count)
        scale = loss(part, system, torch.zeros_like(part, dtype=torch.bool))
        assert loss(part, system, found) == pytest.approx(
            loss(part, system, greedy.expand_as(part)), rel=EXACT, abs=EXACT * scale
        )


def test_rounds_come_close_to_the_best_of_all_masks_and_beat_one_round() -> None:
    w, x = random_layer(6, 10, 60)
    system, pattern = system_of(x), Blocks(rows=6, sparsity=0.4)
    losses = []
    for pruned in itertools.combinations(range(10), 4):
        keep = torch.ones_like(w, dtype=torch.bool)
        keep[:, list(pruned)] = False
        losses.append(loss(w, system, keep))
    found, at_once = (loss(w, system, mask_in_rounds(w, system.inverse, pattern, rounds)) for rounds in (4, 1))
    assert min(losses) <= found <= at_once
    assert sum(other < found for other in losses) < 0.03 * len(losses)


def test_one_factorisation_a_block_gives_the_least_squares_fit_of_every_row() -> None:
    w, x = random_layer(11, 14, 60)
    system = system_of(x)
    keep = keep_mask(torch.rand_like(w), Blocks(rows=4, sparsity=0.5))
    solved, fitted = solve_exact(w, system, keep), least_squares(w, system.h, keep)
    assert not solved[~keep].any()
    torch.testing.assert_close(objective(solved, w, system.h), objective(fitted, w, system.h), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [4, 5, 24, 100])
def test_every_method_gives_whole_and_ragged_blocks_one_mask_each(method: str, rows: int) -> None:
    w, x = random_layer(24, 20, 100)
    config = PruneConfig(method=method, pattern=Blocks(rows=rows, sparsity=0.25))  # type: ignore[arg-type]
    result = prune_matrix(w, InputStatistics.of(x), config)
    assert all((block == block[0]).all() for block in result.keep.split(rows))
    assert ((~result.keep).sum(1) == 5).all()
    assert not result.weight[~result.keep].any()


def test_methods_rank_on_blocks_as_on_rows() -> None:
    w, x = random_layer(48, 64, 300)
    stats, pattern = InputStatistics.of(x), Blocks(rows=16, sparsity=0.25)
    configs = {name: PruneConfig(method=name, pattern=pattern) for name in METHODS}  # type: ignore[arg-type]
    configs["one round"] = PruneConfig(pattern=pattern, mask_rule="s")
    error = {name: prune_matrix(w, stats, config).relative_error for name, config in configs.items()}
    assert error["mrp"] < error["one round"] < error["sparsegpt"] < min(error["wanda"], error["magnitude"])


def test_blocks_of_one_row_equal_rows_pruned_alone() -> None:
    w, x = random_layer(6, 12, 40)
    stats = InputStatistics.of(x)
    alone = [prune_matrix(row[None], stats, PruneConfig(pattern=Blocks(rows=1, sparsity=0.5))).keep for row in w]
    together = prune_matrix(w, stats, PruneConfig(pattern=Blocks(rows=1, sparsity=0.5))).keep
    assert torch.equal(torch.cat(alone), together)
