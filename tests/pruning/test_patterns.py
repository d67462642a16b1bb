import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.layers import patterns

from edgeslim.errors import RecipeError
from edgeslim.pruning.patterns import NM, Blocks, Pattern, Unstructured, keep_mask, parse_pattern, pruned_count


@settings(deadline=None)
@given(pattern=patterns(), rows=st.integers(1, 6), inputs=st.integers(1, 30), seed=st.integers(0, 999))
def test_mask_keeps_exact_counts_even_where_scores_tie(pattern: Pattern, rows: int, inputs: int, seed: int) -> None:
    scores = torch.randint(0, 4, (rows, inputs), generator=torch.Generator().manual_seed(seed)).float()
    keep = keep_mask(scores, pattern)
    if isinstance(pattern, NM):
        for group in keep.split(pattern.m, dim=1):
            assert (group.sum(1) == pattern.kept_of(group.shape[1])).all()
    elif isinstance(pattern, Blocks):
        assert all((block == block[0]).all() for block in keep.split(pattern.rows))
        assert ((~keep).sum(1) == pruned_count(inputs, pattern.sparsity)).all()
    elif pattern.scope == "row":
        assert ((~keep).sum(1) == pruned_count(inputs, pattern.sparsity)).all()
    else:
        assert int((~keep).sum()) == pruned_count(rows * inputs, pattern.sparsity)


@settings(deadline=None)
@given(pattern=patterns(), seed=st.integers(0, 999))
def test_no_pruned_score_beats_a_kept_one_it_competes_with(pattern: Pattern, seed: int) -> None:
    scores = torch.rand(5, 13, generator=torch.Generator().manual_seed(seed))
    keep = keep_mask(scores, pattern)
    if isinstance(pattern, Blocks):
        blocks = zip(scores.split(pattern.rows), keep.split(pattern.rows), strict=True)
        pairs = [(part.sum(0, keepdim=True), kept[:1]) for part, kept in blocks]
    elif isinstance(pattern, NM):
        pairs = list(zip(scores.split(pattern.m, 1), keep.split(pattern.m, 1), strict=True))
    else:
        pairs = [(scores, keep)] if pattern.scope == "row" else [(scores.reshape(1, -1), keep.reshape(1, -1))]
    for part, kept in pairs:
        lowest_kept = part.masked_fill(~kept, torch.inf).amin(1)
        assert (part.masked_fill(kept, -torch.inf).amax(1) <= lowest_kept).all()


def test_ties_are_pruned_from_the_left() -> None:
    ones = torch.ones(2, 8)
    assert keep_mask(ones, NM(n=2, m=4))[0].tolist() == [False, False, True, True] * 2
    assert keep_mask(ones, Unstructured(sparsity=0.5))[1].tolist() == [False] * 4 + [True] * 4


def test_sparsity_is_not_lost_to_binary_fractions() -> None:
    assert pruned_count(100, 0.29) == 29  # 100 * 0.29 is 28.999999999999996


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(n=2, m=4)),
        (" 1 : 3 ", NM(n=1, m=3)),
        ("0.5", Unstructured(sparsity=0.5)),
        ("60%", Unstructured(sparsity=0.6)),
        ("block:64", Blocks(rows=64, sparsity=0.5)),
        ("block:320:0.25", Blocks(rows=320, sparsity=0.25)),
    ],
)
def test_patterns_are_read(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:2", "pattern n:m must have 0 < n < m, got 4:2"),
        ("0:4", "pattern n:m must have 0 < n < m, got 0:4"),
        ("1.5", r"sparsity must be in \[0, 1\), got 1.5"),
        ("2-4", "pattern must be n:m .* got '2-4'"),
        ("block:0", "block:ROWS must have at least 1 row, got 0"),
        ("block:8:1.5", r"sparsity must be in \[0, 1\), got 1.5"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused_by_rule_and_value(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_pattern(text)


def test_density_and_sparsity_add_to_one() -> None:
    assert NM(n=1, m=4).density == 0.25 and NM(n=1, m=4).sparsity == 0.75
    assert Unstructured(sparsity=0.3).density == 0.7


def test_the_share_pruned_of_a_block_is_said_beside_the_pattern_or_in_it_and_only_once() -> None:
    assert parse_pattern("block:64", 0.25) == parse_pattern("block:64:0.25") == Blocks(rows=64, sparsity=0.25)
    assert parse_pattern(str(Blocks(rows=64, sparsity=0.25))) == Blocks(rows=64, sparsity=0.25)
    for text in ("block:64:0.25", "2:4", "0.5"):
        with pytest.raises(RecipeError, match=r"sparsity and pattern exclude each other, got 0\.25"):
            parse_pattern(text, 0.25)


def test_an_input_of_a_block_is_worth_the_sum_over_its_rows_and_a_ragged_block_has_fewer() -> None:
    scores = torch.tensor([[9.0, 1, 1, 1], [0, 5, 5, 1], [0, 1, 0, 2]])
    keep = keep_mask(scores, Blocks(rows=2, sparsity=0.5))
    assert keep.tolist() == [[True, False, True, False]] * 2 + [[False, True, False, True]]
