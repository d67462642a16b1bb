"""Schedules: the paper's ratios, the counted cut where it was wanted, and honest refusals."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslim.errors import CheckpointError, RecipeError
from edgeslim.tokens.flops import prefill_flops, shape_of_config
from edgeslim.tokens.plan import METHODS, ReductionPlan
from edgeslim.tokens.schedule import (
    LEAST_LEFT,
    PAPER_LAYERS,
    TOLERANCE,
    counted_cut,
    default_layers,
    fixed,
    formula_cut,
    formula_ratio,
    keeps_enough,
    scheduled,
)

MODELS = Path(__file__).parents[2] / "examples" / "models"
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 768,
    "expand": 2,
    "state_size": 128,
    "n_groups": 1,
    "num_heads": 24,
    "conv_kernel": 4,
    "num_hidden_layers": 24,
    "vocab_size": 50288,
}
MAMBA = {
    "model_type": "mamba",
    "hidden_size": 768,
    "intermediate_size": 1536,
    "state_size": 16,
    "time_step_rank": 48,
    "conv_kernel": 4,
    "num_hidden_layers": 24,
    "vocab_size": 50280,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "num_hidden_layers": 32,
    "vocab_size": 49152,
}


@pytest.mark.parametrize(
    ("depth", "layers", "ratios"),
    [
        (64, (12, 17, 22, 27, 32, 37, 42), (0.9729, 0.9415, 0.9043)),
        (48, (10, 15, 20, 25, 30, 35), (0.9651, 0.9248, 0.8768)),
        (24, (10, 15, 20), (0.8935, 0.7709, 0.6243)),
        (24, (5, 8, 11, 14, 17, 20), (0.9592, 0.9120, 0.8555)),
    ],
)
def test_ratios_by_the_formula_are_the_known_ones(depth, layers, ratios):
    found = [round(formula_ratio(layers, depth, cut), 4) for cut in (0.1, 0.2, 0.3)]
    assert found == list(ratios)


@given(st.integers(1, 100))
def test_default_layers_fit_any_depth(depth):
    layers = default_layers(depth)
    assert layers == tuple(sorted(set(layers)))
    assert 1 <= len(layers) <= 7
    assert layers[0] >= 0 and layers[-1] < depth
    if depth >= 12:
        assert 0.15 <= layers[0] / depth <= 0.3


def test_the_papers_depths_keep_the_papers_layers():
    assert {depth: default_layers(depth) for depth in PAPER_LAYERS} == PAPER_LAYERS
    assert default_layers(48, "truncate") == (-1,)


@pytest.mark.parametrize("config", [MAMBA, MAMBA2, LLAMA], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [0.1, 0.2, 0.3])
def test_the_counted_cut_is_the_wanted_one(config, method, cut):
    shape = shape_of_config(config)
    plan = scheduled(shape, ReductionPlan(method=method), cut, 1024)
    assert plan.flops_cut_counted == pytest.approx(cut, abs=0.002)
    assert plan.flops_cut_counted == pytest.approx(counted_cut(shape, plan, 1024), abs=1e-6)
    assert plan.flops_cut_formula == pytest.approx(formula_cut(plan.layers, plan.ratios, shape.depth), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 2048), st.integers(0, 35), st.sampled_from(METHODS))
def test_a_schedule_meets_its_target_or_says_why_not(tokens, percent, method):
    shape = shape_of_config(MAMBA2)
    try:
        plan = scheduled(shape, ReductionPlan(method=method), percent / 100, tokens)
    except RecipeError as fault:
        assert "longer prompt_tokens" in str(fault)
        assert tokens < 300
        return
    assert abs(counted_cut(shape, plan, tokens) - percent / 100) <= TOLERANCE


@pytest.mark.parametrize("config", [MAMBA, MAMBA2, LLAMA], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("cut", [0.1, 0.2, 0.3])
def test_the_chosen_layers_are_the_last_that_keep_enough(config, cut):
    shape = shape_of_config(config)
    possible = default_layers(shape.depth)
    plan = scheduled(shape, ReductionPlan(), cut, 1024)
    first = possible.index(plan.layers[0])
    assert first > 0
    assert plan.layers == possible[first:]
    assert plan.ratios[0] >= (0.55 if shape.is_scan else 0.7)
    assert math.prod(plan.ratios) >= LEAST_LEFT
    if later := possible[first + 1 :]:
        try:
            fewer = scheduled(shape, ReductionPlan(), cut, 1024, later)
        except RecipeError:
            return
        assert not keeps_enough(shape, fewer)


def test_a_cut_too_large_for_late_layers_takes_all():
    plan = scheduled(shape_of_config(MAMBA2), ReductionPlan(), 0.5, 1024)
    assert plan.layers == default_layers(24)
    assert math.prod(plan.ratios) < LEAST_LEFT


def test_a_prompt_that_is_not_reduced_meets_no_target():
    with pytest.raises(RecipeError, match="at a prompt of 100 tokens, fewer than min_tokens 128; give a longer"):
        scheduled(shape_of_config(MAMBA2), ReductionPlan(min_tokens=128), 0.2, 100)
    shape = shape_of_config(MAMBA2)
    plan = scheduled(shape, ReductionPlan(min_tokens=128), 0.2, 128)
    assert counted_cut(shape, plan, 127) == 0 < counted_cut(shape, plan, 128)


def test_a_cut_of_zero_keeps_everything():
    plan = scheduled(shape_of_config(MAMBA2), ReductionPlan(), 0.0, 1024)
    assert plan.kept(1024) == (1024,) * len(plan.layers)


def test_an_unreachable_cut_names_the_largest():
    shape = shape_of_config(MAMBA2)
    most = counted_cut(shape, fixed(shape, ReductionPlan(), (20,), 0.5, 1024), 1024)
    with pytest.raises(RecipeError, match=rf"flops 0.3 cannot be reached at layers 20.*at most {most:.3f}"):
        scheduled(shape, ReductionPlan(), 0.3, 1024, layers=(20,))
    assert formula_ratio((20,), 24, 0.3) is None


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(RecipeError, match="layers must be at most 23, the model's last, got 24"):
        fixed(shape_of_config(MAMBA2), ReductionPlan(), (10, 24), 0.8, 1024)


def test_flops_of_mamba2_are_those_of_its_matrices_scan_and_head():
    tokens, inner = 10, 1536
    projections = 2 * 768 * (2 * inner + 2 * 128 + 24) + 2 * inner * 768
    convolution, scan = 2 * 4 * (inner + 256), 5 * inner * 128 + 2 * inner
    expected = 24 * tokens * (projections + convolution + scan) + 2 * 768 * 50288
    assert prefill_flops(shape_of_config(MAMBA2), tokens) == expected


def test_a_step_saves_from_the_next_block_on_and_costs_its_own_cosines():
    shape = shape_of_config(MAMBA2)
    random = ReductionPlan(method="random", layers=(10,), ratios=(0.5,), protect_last=0)
    utrc = ReductionPlan(method="utrc", layers=(10,), ratios=(0.5,), protect_last=0)
    saved = prefill_flops(shape, 100) - prefill_flops(shape, 100, random)
    assert saved == 13 * 50 * shape.mixer
    cosines = 2 * 1536 * 50 * 50
    assert prefill_flops(shape, 100, utrc) - prefill_flops(shape, 100, random) == cosines + 100 * (3 + 2) * 1536


def test_in_a_transformer_the_step_lies_between_attention_and_mlp():
    shape = shape_of_config(LLAMA | {"num_hidden_layers": 2})
    plan = ReductionPlan(method="random", layers=(0,), ratios=(0.5,), protect_last=0)
    saved = prefill_flops(shape, 8) - prefill_flops(shape, 8, plan)
    mlp, heads = 2 * 3 * 960 * 2560, 4 * 960
    projections = 2 * 960 * 64 * (2 * 15 + 2 * 5)
    assert saved == 2 * 4 * mlp + 4 * projections + heads * (8 * 9 // 2 - 4 * 5 // 2)


def test_a_sliding_window_bounds_what_a_query_sees():
    shape = shape_of_config(LLAMA | {"model_type": "mistral", "sliding_window": 4, "num_hidden_layers": 1})
    full = shape_of_config(LLAMA | {"num_hidden_layers": 1})
    pairs = sum(min(n + 1, 4) for n in range(10))
    assert prefill_flops(full, 10) - prefill_flops(shape, 10) == 4 * 960 * (55 - pairs)


def test_the_bundled_models_have_shapes():
    for name in ("tiny-llama", "tiny-mamba2"):
        config = json.loads((MODELS / name / "config.json").read_text())
        assert shape_of_config(config).depth == config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "mamba, mamba2, llama, mistral, qwen2, qwen3; the model is of type 'gpt2'"),
        ({"model_type": "mamba2", "hidden_size": 8}, "lacks 'state_size'"),
    ],
)
def test_models_whose_tokens_cannot_be_reduced_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        shape_of_config(config)
