"""Perplexity is counted by the stated rule, and alike for a checkpoint and the bundle made from it."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslim.errors import EvaluationError, RecipeError
from edgeslim.evaluate.perplexity import (
    PerplexityResult,
    cut_windows,
    encode_text,
    nll_of_logits,
    perplexity,
    windows_at_once,
)

VOCAB = 11
TABLE = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 2  # logits of the next token after each token


def bigram(windows):
    """Score [B, T-1] under the bigram model of TABLE."""
    log_p = TABLE - np.log(np.exp(TABLE).sum(axis=1, keepdims=True))
    return -log_p[windows[:, :-1], windows[:, 1:]]


def brute_force(tokens, seqlen):
    """The rule in words, one token at a time: perplexity and the number of scored tokens."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - seqlen + 1, seqlen):
        for i in range(start + 1, start + seqlen):
            row = TABLE[tokens[i - 1]]
            total -= row[tokens[i]] - math.log(sum(math.exp(x) for x in row))
            count += 1
    return math.exp(total / count), count


@given(st.lists(st.integers(0, VOCAB - 1), min_size=12, max_size=80), st.integers(2, 12), st.integers(1, 5))
def test_perplexity_equals_the_rule_written_out(tokens, seqlen, batch):
    result = perplexity(tokens, bigram, seqlen=seqlen, batch=batch)
    expected, count = brute_force(tokens, seqlen)
    assert result.perplexity == pytest.approx(expected, rel=1e-12)
    assert (result.tokens, result.windows) == (count, len(tokens) // seqlen)


@given(st.lists(st.integers(0, VOCAB - 1), min_size=12, max_size=80), st.integers(2, 12))
def test_the_reference_rule_is_that_of_the_reference_scripts(tokens, seqlen):
    windows = len(tokens) // seqlen
    scaled = [bigram(np.array([tokens[i * seqlen : (i + 1) * seqlen]])).mean() * seqlen for i in range(windows)]
    result = perplexity(tokens, bigram, seqlen=seqlen, rule="reference")
    assert result.perplexity == pytest.approx(math.exp(sum(scaled) / (windows * seqlen)), rel=1e-12)
    assert result.tokens == windows * seqlen


def test_windows_do_not_overlap_and_an_incomplete_last_one_is_dropped():
    assert cut_windows([0, 1, 2, 3, 4, 5, 6, 7], 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_special_tokens_are_added_by_the_reference_rule_only():
    encode = lambda text, special: [99, 1] if special else [1]  # noqa: E731
    assert encode_text("x", encode).tolist() == [1]
    assert encode_text("x", encode, "reference").tolist() == [99, 1]


def test_progress_counts_windows():
    seen = []
    perplexity([1] * 10, bigram, seqlen=2, batch=2, on_progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_text_shorter_than_a_window_says_how_many_tokens_it_has():
    with pytest.raises(EvaluationError, match="the text has 7 tokens; one window needs 8"):
        perplexity([1] * 7, bigram, seqlen=8)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_one_clear_error(text):
    with pytest.raises(EvaluationError, match="the text is empty"):
        encode_text(text, lambda text, special: [])


def test_a_model_that_gives_no_number_is_reported():
    with pytest.raises(EvaluationError, match="window 0 of 2: the model's log-likelihood is not a number"):
        perplexity([1] * 4, lambda w: np.full((len(w), 1), np.nan), seqlen=2)


def test_a_hopeless_model_has_infinite_perplexity():
    assert perplexity([1, 1], lambda w: np.full((1, 1), 1e5), seqlen=2).perplexity == math.inf


def test_unknown_rules_and_impossible_windows_are_refused():
    with pytest.raises(RecipeError, match="unknown perplexity rule 'referense'; did you mean 'reference'"):
        perplexity([1, 2], bigram, seqlen=2, rule="referense")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="seqlen must be at least 2, got 1"):
        perplexity([1, 2], bigram, seqlen=1)


def test_the_log_likelihood_is_exact_to_float32_even_for_huge_logits():
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(2, 300, 50)) * 10 + 5000).astype(np.float32)
    targets = rng.integers(0, 50, (2, 300))
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    log_p = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(nll_of_logits(logits, targets), expected, rtol=1e-6, atol=1e-6)


def test_the_batch_is_bounded_by_the_logits_bytes():
    assert windows_at_once(2048, 150_000) == 1
    assert windows_at_once(256, 4096) * 256 * 4096 * 4 <= 256 << 20


@pytest.fixture(scope="module")
def text():
    from families import CORPUS

    rng = random.Random(0)
    words = " ".join(CORPUS).split()
    return " ".join(rng.choice(words) for _ in range(400))


@pytest.fixture(scope="module", params=["llama", "mamba2"])
def exported(request, tmp_path_factory):
    """A tiny checkpoint of each family and its fp32 bundle."""
    import torch
    from families import save_tiny

    from edgeslim.exporters.bundle import export_checkpoint

    torch.set_num_threads(1)  # models this small only lose by a second one
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = save_tiny(root / "checkpoint", request.param)
    (root / "bundle").mkdir()
    export_checkpoint(checkpoint, root / "bundle", weights="fp32", lowering="dense")
    return checkpoint, root / "bundle"


def load(checkpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize("rule", ["edgeslim", "reference"])
def test_checkpoint_and_bundle_agree(exported, text, rule):
    from edgeslim.evaluate import bundle_perplexity, model_perplexity

    checkpoint, bundle = exported
    model, tokenizer = load(checkpoint)
    of_model = model_perplexity(model, tokenizer, text, seqlen=32, rule=rule)
    of_bundle = bundle_perplexity(bundle, text, seqlen=32, rule=rule, threads=1)
    assert isinstance(of_bundle, PerplexityResult)
    assert of_bundle.perplexity == pytest.approx(of_model.perplexity, rel=1e-3)
    assert (of_bundle.tokens, of_bundle.windows) == (of_model.tokens, of_model.windows)


def test_the_checkpoint_scores_as_transformers_own_loss(exported, text):
    import torch

    from edgeslim.evaluate import model_perplexity

    model, tokenizer = load(exported[0])
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    windows = tokens[: len(tokens) // 32 * 32].view(-1, 32)
    with torch.inference_mode():
        loss = model.eval()(windows, labels=windows).loss
    assert model_perplexity(model, tokenizer, text, seqlen=32).perplexity == pytest.approx(loss.exp().item(), rel=1e-4)


def test_a_window_longer_than_the_context_is_refused(exported, text):
    from edgeslim.evaluate import model_perplexity

    model, tokenizer = load(exported[0])
    model.config.max_position_embeddings = 16
    with pytest.raises(RecipeError, match="seqlen must be at most 16, the model's context, got 32"):
        model_perplexity(model, tokenizer, text, seqlen=32)


def test_a_short_text_is_said_before_the_graph_is_loaded(exported, tmp_path):
    import shutil

    from edgeslim.evaluate import bundle_perplexity

    bundle = Path(shutil.copytree(exported[1], tmp_path / "bundle"))
    (bundle / "scoring.onnx").unlink()
    with pytest.raises(EvaluationError, match="one window needs 64"):
        bundle_perplexity(bundle, "short", seqlen=64)
