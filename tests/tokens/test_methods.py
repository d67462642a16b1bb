"""Every method removes and combines what the plain loops of `written_out` do, ties included."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens import written_out

from edgeslim.tokens.hashing import PRIME, random_scores, round_keys
from edgeslim.tokens.methods import Seen, choose
from edgeslim.tokens.plan import METHODS, ReductionPlan
from edgeslim.tokens.step import Step, mix

examples = settings(max_examples=60, deadline=None)
RATIOS = (0.5, 0.62, 0.75, 0.9, 0.97, 1.0)


@dataclass
class Prompt:
    """Integers throughout, and features of four signs: cosines, halves and quarters are exact, ties are many."""

    features: list
    importance: list
    hidden: list
    residual: list

    @property
    def seen(self):
        return Seen(features=tensor(self.features), importance=tensor(self.importance))

    def branches(self, step: Step):
        return mix(tensor(self.hidden), step, step.hidden)[0], mix(tensor(self.residual), step, step.residual)[0]


def tensor(rows):
    return torch.tensor([rows], dtype=torch.float32)


@st.composite
def prompts(draw, least=1, most=24):
    count = draw(st.integers(least, most))

    def rows(values, width):
        row = st.lists(values, min_size=width, max_size=width)
        return draw(st.lists(row, min_size=count, max_size=count))

    return Prompt(
        features=rows(st.sampled_from([-1, 1]), 4),
        importance=[row[0] for row in rows(st.integers(-3, 3), 1)],
        hidden=rows(st.integers(-8, 8), 3),
        residual=rows(st.integers(-8, 8), 2),
    )


@st.composite
def plans(draw, method, **fixed):
    options = {
        "q": draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])),
        "protect_last": draw(st.integers(0, 5)),
        "protect_first": draw(st.booleans()),
        "hidden": draw(st.sampled_from(["hybrid", "merge", "prune"])),
        "residual": draw(st.sampled_from(["hybrid", "merge", "prune"])),
        "seed": draw(st.integers(0, 5)),
    } | fixed
    layers = (-1,) if method == "truncate" else (draw(st.integers(0, 40)),)
    return ReductionPlan(method=method, layers=layers, ratios=(draw(st.sampled_from(RATIOS)),), **options)


def assert_keeps(step, plan, count, gone):
    assert sorted(step.removed[0].tolist()) == sorted(gone)
    assert step.kept[0].tolist() == [n for n in range(count) if n not in set(gone)]


@examples
@given(prompts(), plans("utrc"))
def test_utrc_equals_the_algorithm_written_out(prompt, plan):
    pairs, pruned = written_out.utrc(prompt.features, prompt.importance, plan, plan.ratios[0])
    step = choose(plan, 0, prompt.seen)
    if step is None:
        assert not pairs
        return
    assert step.removed[0].tolist() == [a for a, _ in pairs]
    assert step.destinations[0].tolist() == [b for _, b in pairs]
    assert_keeps(step, plan, len(prompt.features), [a for a, _ in pairs])
    hidden, residual = prompt.branches(step)
    assert hidden.tolist() == written_out.branch(prompt.hidden, pairs, pruned, plan.hidden)
    assert residual.tolist() == written_out.branch(prompt.residual, pairs, pruned, plan.residual)


@examples
@given(prompts(), plans("utrc", merge="mean"))
def test_utrc_can_average_what_shares_a_destination(prompt, plan):
    pairs, pruned = written_out.utrc(prompt.features, prompt.importance, plan, plan.ratios[0])
    step = choose(plan, 0, prompt.seen)
    if step is None:
        return
    ignored = {
        "hybrid": pruned,
        "merge": set(),
        "prune": {a for a, _ in pairs},
    }
    hidden, residual = prompt.branches(step)
    expected = [
        written_out.averaged(rows, pairs, ignored[rule])
        for rows, rule in ((prompt.hidden, plan.hidden), (prompt.residual, plan.residual))
    ]
    torch.testing.assert_close(hidden, tensor(expected[0])[0])
    torch.testing.assert_close(residual, tensor(expected[1])[0])


@examples
@given(prompts(), plans("evit"))
def test_evit_drops_the_least_important(prompt, plan):
    candidates = written_out.unprotected(len(prompt.features), plan)
    removed = written_out.removed_count(len(prompt.features), plan.ratios[0], candidates)
    gone = sorted(candidates, key=lambda n: (prompt.importance[n], n))[:removed]
    check_drop(prompt, plan, gone)


@examples
@given(prompts(), plans("truncate"))
def test_truncation_drops_the_first(prompt, plan):
    candidates = written_out.unprotected(len(prompt.features), plan)
    check_drop(prompt, plan, candidates[: written_out.removed_count(len(prompt.features), plan.ratios[0], candidates)])


@examples
@given(prompts(), plans("random"))
def test_random_drop_takes_the_smallest_hashes(prompt, plan):
    candidates = written_out.unprotected(len(prompt.features), plan)
    removed = written_out.removed_count(len(prompt.features), plan.ratios[0], candidates)
    scores = {n: written_hash(n, round_keys(plan.seed, plan.layers[0])) for n in candidates}
    check_drop(prompt, plan, sorted(candidates, key=scores.__getitem__)[:removed])


def check_drop(prompt, plan, gone):
    step = choose(plan, 0, prompt.seen)
    if step is None:
        assert not gone
        return
    assert_keeps(step, plan, len(prompt.features), gone)
    hidden, residual = prompt.branches(step)
    assert hidden.tolist() == [row for n, row in enumerate(prompt.hidden) if n not in gone]
    assert residual.tolist() == [row for n, row in enumerate(prompt.residual) if n not in gone]


@examples
@given(prompts(), plans("pumer"))
def test_pumer_merges_every_second_token_into_its_most_similar_neighbour_set(prompt, plan):
    pairs = written_out.pumer(prompt.features, plan, plan.ratios[0])
    step = choose(plan, 0, prompt.seen)
    if step is None:
        assert not pairs
        return
    assert list(zip(step.removed[0].tolist(), step.destinations[0].tolist(), strict=True)) == pairs
    for rows, got in zip((prompt.hidden, prompt.residual), prompt.branches(step), strict=True):
        torch.testing.assert_close(got, tensor(written_out.averaged(rows, pairs))[0])


@examples
@given(prompts(), plans("ltmp"))
def test_ltmp_drops_the_least_important_and_merges_the_most_similar_of_the_rest(prompt, plan):
    pairs, dropped = written_out.ltmp(prompt.features, prompt.importance, plan, plan.ratios[0])
    step = choose(plan, 0, prompt.seen)
    if step is None:
        assert not pairs and not dropped
        return
    assert_keeps(step, plan, len(prompt.features), [a for a, _ in pairs] + dropped)
    both = pairs + [(n, n) for n in dropped]
    for rows, got in zip((prompt.hidden, prompt.residual), prompt.branches(step), strict=True):
        torch.testing.assert_close(got, tensor(written_out.averaged(rows, both, set(dropped)))[0])


@examples
@given(prompts(), plans("official-code"))
def test_the_emulation_sends_the_first_even_positions_to_position_one(prompt, plan):
    count = len(prompt.features)
    removed = written_out.removed_count(count, plan.ratios[0], range(count))
    step = choose(plan, 0, prompt.seen)
    if step is None:
        assert removed == 0
        return
    gone = [2 * i for i in range(removed)]
    assert_keeps(step, plan, count, gone)
    hidden, residual = prompt.branches(step)
    torch.testing.assert_close(hidden, tensor(written_out.official_hidden(prompt.hidden, removed))[0])
    torch.testing.assert_close(residual, tensor(written_out.averaged(prompt.residual, [(n, 1) for n in gone]))[0])


@examples
@given(st.lists(prompts(least=9, most=9), min_size=2, max_size=4), st.sampled_from(METHODS), st.data())
def test_a_batch_equals_its_samples_one_by_one(samples, method, data):
    plan = data.draw(plans(method))
    together = choose(
        plan,
        0,
        Seen(
            features=torch.cat([sample.seen.features for sample in samples]),
            importance=torch.cat([sample.seen.importance for sample in samples]),
        ),
    )
    for index, sample in enumerate(samples):
        alone = choose(plan, 0, sample.seen)
        if alone is None:
            assert together is None
            continue
        for name in ("kept", "removed", "destinations"):
            assert getattr(together, name)[index].tolist() == getattr(alone, name)[0].tolist()
        assert torch.equal(together.hidden.weights[index], alone.hidden.weights[0])
        assert torch.equal(together.residual.own[index], alone.residual.own[0])


@pytest.mark.parametrize("method", METHODS)
def test_one_token_is_never_removed(method):
    plan = ReductionPlan(method=method, layers=(-1,) if method == "truncate" else (3,), ratios=(0.5,), protect_last=0)
    assert choose(plan, 0, Seen(features=torch.ones(1, 1, 4), importance=torch.ones(1, 1))) is None


def test_a_ratio_of_one_removes_nothing():
    plan = ReductionPlan(layers=(0,), ratios=(1.0,), protect_last=0)
    assert choose(plan, 0, Seen(features=torch.randn(1, 50, 4), importance=torch.randn(1, 50))) is None


def test_tokens_without_direction_match_the_first_destination():
    features = torch.zeros(1, 6, 4)
    importance = torch.tensor([[0.0, 5.0, 4.0, 1.0, 2.0, 3.0]])
    step = choose(
        ReductionPlan(layers=(0,), ratios=(0.5,), protect_last=0), 0, Seen(features=features, importance=importance)
    )
    assert step.removed.tolist() == [[0, 3, 4]]
    assert step.destinations.tolist() == [[1, 1, 1]]


def test_many_tokens_may_merge_into_one_without_loss_of_weight():
    count = 400  # 2**-200 is no float32 any more: weights underflow to zero and still sum to one
    features, importance = torch.ones(1, count, 4), torch.arange(count, dtype=torch.float32)[None]
    step = choose(
        ReductionPlan(layers=(0,), ratios=(0.5,), protect_last=0), 0, Seen(features=features, importance=importance)
    )
    ones = torch.ones(1, count, 3)
    assert torch.equal(mix(ones, step, step.residual), ones[:, : count // 2])
    assert torch.equal(mix(ones, step, step.hidden), ones[:, : count // 2])


def written_hash(position, keys):
    value = position
    for key in keys:
        value = pow(value + key, 5, PRIME)
    return value


@examples
@given(st.integers(0, 2**31 - 1), st.integers(-1, 200))
def test_the_hash_is_its_formula_and_never_collides(seed, layer):
    scores = random_scores(300, seed=seed, layer=layer)
    keys = round_keys(seed, layer)
    assert scores.tolist() == [written_hash(position, keys) for position in range(300)]
    assert len(set(scores.tolist())) == 300


def test_the_hash_drops_positions_evenly_and_independently_of_layer_and_seed():
    ranks = torch.stack(
        [
            random_scores(256, seed=seed, layer=layer).argsort().argsort().float()
            for seed in range(40)
            for layer in range(10)
        ]
    )
    mean = ranks.mean(0)
    deviation = 256 / 12**0.5 / 400**0.5  # of the mean of 400 uniform ranks
    assert (mean - 127.5).abs().max() < 4.5 * deviation
    correlations = torch.corrcoef(ranks)
    off_diagonal = correlations[~torch.eye(len(ranks), dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5.5 / 256**0.5
