"""A reduced prefill in transformers' own models: what it keeps, and that everything after it goes on unchanged."""

import pytest
import torch
from families import FAMILIES, VOCAB, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from edgeslim.errors import CheckpointError, EvaluationError
from edgeslim.tokens.flops import ATTENTION_FAMILIES
from edgeslim.tokens.plan import METHODS, ReductionPlan
from edgeslim.tokens.prefill import GONE, extend, generate, reduced_prefill

EQUAL = {"atol": 2e-4, "rtol": 2e-4}  # sums in another order, on logits of size 10; wrong state differs by 1e-1
MODELS = ("mamba", "mamba2", *ATTENTION_FAMILIES)
MAMBA = {
    "hidden_size": 64,
    "state_size": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "time_step_rank": 5,
    "conv_kernel": 4,
    "vocab_size": VOCAB,
}


@pytest.fixture(scope="module")
def models():
    made = {family: tiny_model(family) for family in MODELS if family in FAMILIES}
    torch.manual_seed(0)
    made.setdefault("mamba", AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **MAMBA)).eval())
    return made


def prompt(batch, tokens, seed=0):
    return torch.randint(0, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def plan_for(family, method="utrc", **options):
    metric = "attention" if family in ATTENTION_FAMILIES else "clip"
    layers, ratios = ((-1,), (0.7,)) if method == "truncate" else ((0, 1), (0.8, 0.7))
    return ReductionPlan(**{"method": method, "layers": layers, "ratios": ratios, "metric": metric} | options)


@pytest.mark.parametrize("family", MODELS)
def test_without_a_plan_logits_are_transformers(models, family):
    tokens = prompt(2, 30)
    expected = models[family](tokens).logits
    for plan in (None, plan_for(family, ratios=(1.0, 1.0))):
        prefilled = reduced_prefill(models[family], tokens, plan)
        torch.testing.assert_close(prefilled.logits, expected, **EQUAL)
        assert prefilled.positions.tolist() == [list(range(30))] * 2


@pytest.mark.parametrize("family", MODELS)
def test_tokens_after_a_prompt_see_all_of_it(models, family):
    tokens = prompt(2, 30)
    expected = models[family](tokens).logits
    prefilled = reduced_prefill(models[family], tokens[:, :17], None)
    logits, cache = extend(models[family], prefilled.cache, tokens[:, 17:23])
    torch.testing.assert_close(logits, expected[:, 17:23], **EQUAL)
    for at in range(23, 30):
        logits, cache = extend(models[family], cache, tokens[:, at : at + 1])
        torch.testing.assert_close(logits[:, 0], expected[:, at], **EQUAL)
    assert cache.next_position.tolist() == [30, 30]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MODELS)
def test_every_method_keeps_as_many_tokens_as_the_plan_says(models, family, method):
    plan, tokens = plan_for(family, method), prompt(2, 29)
    prefilled = reduced_prefill(models[family], tokens, plan)
    assert prefilled.positions.shape == prefilled.logits.shape[:2] == (2, plan.kept(29)[-1])
    assert (prefilled.positions.diff() > 0).all()
    assert torch.isfinite(prefilled.logits).all()
    if method != "official-code":
        assert prefilled.positions[:, -4:].tolist() == [[25, 26, 27, 28]] * 2


@pytest.mark.parametrize("family", MODELS)
def test_a_single_token_and_a_few_go_through_unharmed(models, family):
    plan = plan_for(family)
    for count in (1, 2, 4):
        tokens = prompt(1, count)
        expected = models[family](tokens).logits
        torch.testing.assert_close(reduced_prefill(models[family], tokens, plan).logits, expected, **EQUAL)
    assert reduced_prefill(models[family], prompt(1, 6), plan).positions.shape == (1, 5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MODELS)
def test_a_padded_batch_equals_its_samples_one_by_one(models, family, method):
    model, plan = models[family], plan_for(family, method)
    lengths = (21, 1, 30, 12)
    samples = [prompt(1, length, seed=length) for length in lengths]
    for side in ("left", "right"):
        tokens, mask = torch.zeros(4, 30, dtype=torch.int64), torch.zeros(4, 30, dtype=torch.int64)
        for row, sample in enumerate(samples):
            where = slice(30 - sample.shape[1], 30) if side == "left" else slice(0, sample.shape[1])
            tokens[row, where], mask[row, where] = sample[0], 1
        together = reduced_prefill(model, tokens, plan, attention_mask=mask)
        following = prompt(4, 3, seed=9)
        after, _ = extend(model, together.cache, following)
        for row, sample in enumerate(samples):
            alone = reduced_prefill(model, sample, plan)
            left = alone.positions.shape[1]
            assert together.positions[row, -left:].tolist() == alone.positions[0].tolist()
            assert (together.positions[row, :-left] == GONE).all()
            torch.testing.assert_close(together.logits[row, -left:], alone.logits[0], **EQUAL)
            expected, _ = extend(model, alone.cache, following[row : row + 1])
            torch.testing.assert_close(after[row], expected[0], **EQUAL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MODELS)
def test_an_equal_length_batch_equals_its_samples_one_by_one(models, family, method):
    tokens, plan = prompt(3, 26), plan_for(family, method)
    together = reduced_prefill(models[family], tokens, plan)
    for row in range(3):
        alone = reduced_prefill(models[family], tokens[row : row + 1], plan)
        assert together.positions[row].tolist() == alone.positions[0].tolist()
        torch.testing.assert_close(together.logits[row], alone.logits[0], **EQUAL)


@pytest.mark.parametrize("family", MODELS)
def test_generation_goes_on_token_by_token_from_the_reduced_prompt(models, family):
    model, tokens, plan = models[family], prompt(2, 28), plan_for(family)
    written = generate(model, tokens, plan, 6)
    prefilled = reduced_prefill(model, tokens, plan)
    logits, _ = extend(model, prefilled.cache, written)
    all_logits = torch.cat([prefilled.logits[:, -1:], logits[:, :-1]], 1)
    assert all_logits.argmax(-1).tolist() == written.tolist()


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_transformers_decodes_on_from_the_states_of_a_reduced_prompt(models, family):
    model, plan, tokens = models[family], plan_for(family), prompt(2, 28)
    prefilled = reduced_prefill(model, tokens, plan)
    written = generate(model, tokens, plan, 6)
    cache = DynamicCache(config=model.config)
    for layer, (window, state) in enumerate(prefilled.cache.layers):
        whole = torch.nn.functional.pad(window, (1, 0))  # transformers' window is one longer than the kernel needs
        cache.update_conv_state(whole, layer, conv_kernel_size=whole.shape[-1])
        cache.update_recurrent_state(state, layer)
    chosen = prefilled.logits[:, -1].argmax(-1)
    for at in range(6):
        assert chosen.tolist() == written[:, at].tolist()
        chosen = model(chosen[:, None], cache=cache, use_cache=True).logits[:, -1].argmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_transformers_decodes_on_from_caches_of_different_lengths(models, family):
    model, plan, tokens = models[family], plan_for(family), prompt(2, 28)
    prefilled = reduced_prefill(model, tokens, plan)
    assert prefilled.cache.key_lengths == (28, *plan.kept(28))
    written = generate(model, tokens, plan, 6)
    cache = DynamicCache()
    for layer, (keys, values, _) in enumerate(prefilled.cache.layers):
        cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
    chosen = prefilled.logits[:, -1].argmax(-1)
    for at in range(6):
        assert chosen.tolist() == written[:, at].tolist()
        logits = model(chosen[:, None], position_ids=torch.tensor([[28 + at]] * 2), cache=cache).logits
        chosen = logits[:, -1].argmax(-1)


def test_rotary_angles_are_those_of_the_original_positions(models):
    """Truncation equals transformers on the rest of the prompt at its original positions."""
    model, tokens = models["llama"], prompt(1, 30)
    plan = plan_for("llama", "truncate")
    prefilled = reduced_prefill(model, tokens, plan)
    first = int(prefilled.positions[0, 0])
    assert first == 9
    expected = model(tokens[:, first:], position_ids=torch.arange(first, 30)[None]).logits
    torch.testing.assert_close(prefilled.logits, expected, **EQUAL)


def test_sliding_windows_count_original_positions(models):
    """Three layers of windows of 8 reach 21 back: token 23 cannot know of token 0, however few lie between."""
    plan = plan_for("mistral", "random", layers=(0,), ratios=(0.5,))
    tokens = prompt(1, 24)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    before, after = (reduced_prefill(models["mistral"], each, plan).logits for each in (tokens, changed))
    assert not torch.allclose(before[0, :2], after[0, :2], atol=1e-2)
    torch.testing.assert_close(before[0, -1], after[0, -1], **EQUAL)


@pytest.mark.parametrize("metric", ["attention", "key-norm", "clip", "l1", "l2", "none"])
def test_transformers_have_every_metric(models, metric):
    plan = plan_for("qwen2", metric=metric)
    assert reduced_prefill(models["qwen2"], prompt(1, 28), plan).positions.shape == (1, plan.kept(28)[-1])


def test_a_family_whose_tokens_cannot_be_reduced_is_refused():
    with pytest.raises(CheckpointError, match="the model is of type 'gpt2'"):
        reduced_prefill(tiny_model("gpt2"), prompt(1, 4), None)


def test_an_empty_sample_is_refused(models):
    mask = torch.tensor([[1, 1], [0, 0]])
    with pytest.raises(EvaluationError, match="sample 1 of 2 has no tokens"):
        reduced_prefill(models["mamba2"], prompt(2, 2), None, attention_mask=mask)
