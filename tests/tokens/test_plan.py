"""A plan survives its way through config.json, counts in integers, and refuses what cannot be meant."""

import json
import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslim.errors import CheckpointError, RecipeError
from edgeslim.tokens.plan import METHODS, ReductionPlan, plan_of_config


def plan(**options):
    return ReductionPlan(**{"layers": (3, 5), "ratios": (0.8, 0.75)} | options)


def test_a_plan_comes_back_from_json_as_it_was():
    made = plan(method="ltmp", metric="l2", q=0.2, protect_first=True, seed=7, flops_cut_counted=0.2)
    assert ReductionPlan.from_json(json.loads(json.dumps(made.to_json())), "config.json") == made


@given(st.integers(0, 3000), st.integers(5000, 10000), st.integers(0, 8), st.booleans())
def test_a_step_keeps_the_ceiling_and_at_least_half_of_what_may_go(tokens, grid, last, first):
    made = plan(layers=(0,), ratios=(grid / 10000,), protect_last=last, protect_first=first)
    may_go = max(0, tokens - last - first)
    wanted = tokens - math.ceil(tokens * Fraction(grid, 10000))
    assert made.removed(tokens, 0) == min(wanted, may_go // 2)
    assert len(made.unprotected(tokens)) == may_go
    assert made.kept(tokens) == (tokens - made.removed(tokens, 0),)


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_prompt_shorter_than_the_minimum_is_left_as_it_is(tokens, least):
    kept = plan(min_tokens=least).kept(tokens)
    assert kept == (plan().kept(tokens) if tokens >= least else (tokens, tokens))


@given(st.integers(0, 1000), st.integers(0, 10))
def test_a_hybrid_prunes_the_floor_of_its_share(removed, tenths):
    assert plan(q=tenths / 10).pruned(removed) == removed * tenths // 10


@pytest.mark.parametrize("method", METHODS)
def test_no_method_removes_a_single_token(method):
    made = plan(method=method, layers=(-1,) if method == "truncate" else (0,), ratios=(0.5,), protect_last=0)
    assert made.removed(1, 0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "utcr"}, "did you mean 'utrc'"),
        ({"metric": "clop"}, "did you mean 'clip'"),
        ({"ratios": (0.8,)}, "equally many, got 2 and 1"),
        ({"ratios": (0.8, 0.4)}, r"ratio must be in \[0.5, 1\].*got 0.4"),
        ({"layers": (5, 3)}, "must ascend"),
        ({"layers": (-1, 3)}, "at least 0"),
        ({"layers": (-1,), "ratios": (0.8,)}, "layers of utrc must be at least 0"),
        ({"method": "truncate"}, "before the first block"),
        ({"q": 1.5}, r"q must be in \[0, 1\], got 1.5"),
        ({"protect_last": -1}, "protect_last must be at least 0"),
        ({"min_tokens": 0}, "min_tokens must be at least 1"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": [3]}, "x: edgeslim: reduction: unknown key 'layer'; did you mean 'layers'"),
        ({"layers": 3}, "layers: expected a list of numbers"),
        ({"layers": [0.5, 1]}, "layers: expected a list of numbers"),
        ({"q": "half"}, "q: expected a number"),
        ({"protect_last": 1.5}, "protect_last: expected a number"),
        ({"protect_first": 1}, "protect_first: expected bool"),
        ({"method": None}, "method: expected str"),
        ({"q": 2}, "q must be in"),
    ],
)
def test_a_hostile_configuration_is_one_line_that_says_where(change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        plan_of_config({"edgeslim": {"reduction": plan().to_json() | change}}, "x")
    assert "\n" not in str(caught.value)


def test_a_plan_for_a_deeper_model_is_refused():
    config = {"num_hidden_layers": 5, "edgeslim": {"reduction": plan().to_json()}}
    with pytest.raises(CheckpointError, match="reduction at layer 5; the model has layers 0 to 4"):
        plan_of_config(config)


def test_a_configuration_without_a_plan_has_none():
    assert plan_of_config({"model_type": "mamba2"}) is None
    assert plan_of_config({"edgeslim": None}) is None


def test_plans_and_schedules_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; "
        "import edgeslim.tokens, edgeslim.tokens.plan, edgeslim.tokens.schedule, edgeslim.tokens.flops"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
