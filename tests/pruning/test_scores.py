import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.layers import all_masks, least_squares, random_layer, system_of

from edgeslim.errors import RecipeError
from edgeslim.pruning.patterns import NM
from edgeslim.pruning.scores import joint_mask, magnitude_scores, obs_scores, wanda_scores
from edgeslim.pruning.solve import objective


@settings(deadline=None, max_examples=15)
@given(m=st.integers(2, 4), inputs=st.integers(2, 11), seed=st.integers(0, 999), data=st.data())
def test_joint_score_finds_the_group_pattern_of_least_loss(m: int, inputs: int, seed: int, data: st.DataObject) -> None:
    pattern = NM(n=data.draw(st.integers(1, m - 1)), m=m)
    w, x = random_layer(3, inputs, 3 * inputs, seed)
    system = system_of(x)
    keep = joint_mask(w, system.inverse, pattern)
    for start in range(0, inputs, m):
        width = min(m, inputs - start)
        for row in range(3):
            losses = []
            for mask in all_masks(width, pattern.kept_of(width)):
                full = torch.ones(1, inputs, dtype=torch.bool)
                full[0, start : start + width] = mask
                t = w[row : row + 1]
                losses.append((float(objective(least_squares(t, system.h, full), t, system.h)), mask))
            best = min(losses, key=lambda pair: pair[0])[1]
            assert torch.equal(keep[row, start : start + width], best)


def test_joint_score_refuses_more_patterns_than_it_can_try() -> None:
    with pytest.raises(RecipeError, match="at most 1000 patterns a group, got 12870"):
        joint_mask(torch.ones(1, 16), torch.eye(16), NM(n=8, m=16))


def test_obs_score_is_the_loss_of_removing_that_weight_alone() -> None:
    w, x = random_layer(2, 6, 20)
    system = system_of(x)
    scores = obs_scores(w, system.inverse_diagonal)
    for j in range(6):
        keep = torch.ones_like(w, dtype=torch.bool)
        keep[:, j] = False
        torch.testing.assert_close(scores[:, j], objective(least_squares(w, system.h, keep), w, system.h))


def test_magnitude_and_wanda_scores() -> None:
    w = torch.tensor([[-2.0, 1.0]])
    assert magnitude_scores(w).tolist() == [[2.0, 1.0]]
    assert wanda_scores(w, torch.tensor([1.0, 9.0])).tolist() == [[2.0, 3.0]]
