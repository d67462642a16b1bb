"""The reduction suite scores what it says: through kept positions only, with the suffix untouched."""

import math

import numpy as np
import pytest
import torch
from families import VOCAB, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslim.errors import EvaluationError, RecipeError
from edgeslim.evaluate.recall import RecallTask, RecallVocabulary
from edgeslim.evaluate.reduction import score_recall, score_text, text_windows
from edgeslim.evaluate.reduction_suite import (
    Amount,
    compare,
    mean_with_interval,
    recall_tasks,
    score,
    summarize_recall,
)
from edgeslim.evaluate.torch_prompts import TorchPromptModel
from edgeslim.tokens.plan import ReductionPlan

SIZE = 11
TABLE = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE))  # logits by the last token and the sum of all kept


class Bag:
    """A model whose logits depend on the last token and on the sum of everything it kept; `keep` drops positions."""

    def __init__(self, keep):
        self.keep, self.total = keep, None

    def prefill(self, prompts):
        positions = np.array([[n for n in range(prompts.shape[1]) if self.keep(n)]] * len(prompts))
        kept = np.take_along_axis(prompts, positions, 1)
        logits = self._read(kept, np.zeros(len(prompts), int))
        return logits, positions

    def extend(self, tokens):
        return self._read(tokens, self.total)

    def _read(self, tokens, before):
        sums = (before[:, None] + tokens.cumsum(1)) % SIZE
        self.total = sums[:, -1]
        return TABLE[tokens, sums]


def nll(row, target):
    return math.log(sum(math.exp(value) for value in row)) - row[target]


def written_out(window, suffix, keep):
    """One window, one token at a time."""
    context = len(window) - suffix
    total, after, within = 0, [], [math.nan] * (context - 1)
    last = None
    for n, token in enumerate(window[:-1]):
        if n >= context or keep(n):
            total = (total + token) % SIZE
            last = TABLE[token, total]
            if n < context - 1:
                within[n] = nll(last, window[n + 1])
        if n >= context - 1:
            after.append(nll(last, window[n + 1]))
    return after, within


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, SIZE - 1), min_size=12, max_size=12), min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_text_scores_equal_the_rule_written_out(windows, suffix, every, batch):
    def keep(position):
        return position % every == 0

    scores = score_text(Bag(keep), np.array(windows), suffix, batch=batch)
    for row, window in enumerate(windows):
        after, within = written_out(window, suffix, keep)
        np.testing.assert_allclose(scores.suffix[row], after, rtol=1e-6)
        np.testing.assert_allclose(scores.context[row], within, rtol=1e-6)


class Lookup:
    """A model that recalls perfectly from what it kept of the prompt, and says token 0 where it cannot."""

    def __init__(self, keep):
        self.keep, self.read = keep, None

    def prefill(self, prompts):
        positions = np.array([[n for n in range(prompts.shape[1]) if self.keep(n)]] * len(prompts))
        self.read = np.take_along_axis(prompts, positions, 1).tolist()
        return self._said(1), positions

    def extend(self, tokens):
        out = []
        for column in tokens.T:
            for row, token in zip(self.read, column, strict=True):
                row.append(int(token))
            out.append(self._said(1))
        return np.concatenate(out, 1)

    def _said(self, count):
        logits = np.zeros((len(self.read), count, 64))
        for index, row in enumerate(self.read):
            answer = self.after(row)
            logits[index, 0, answer] = 1
        return logits

    @staticmethod
    def after(row):
        """The token after the earlier occurrence of the last token; after a copy marker, after the list marker."""
        key = 0 if row[-1] == 2 else row[-1]
        earlier = [n for n, token in enumerate(row[:-1]) if token == key]
        return row[earlier[0] + 1] if earlier else 0


@pytest.mark.parametrize("kind", ["keyvalue", "copy"])
def test_a_model_that_recalls_is_right_until_the_list_is_dropped(kind):
    task = RecallTask(kind=kind, items=4, distance=20, length=60)
    assert score_recall(Lookup(lambda n: True), task, 12, seed=3, batch=5).mean() == 1.0
    assert score_recall(Lookup(lambda n: n >= 45), task, 12, seed=3).mean() == 0.0
    half = score_recall(Lookup(lambda n: n % 2 == 0), task, 12, seed=3)
    assert half.shape == (12, 1 if kind == "keyvalue" else 4)
    assert half.mean() < 1.0


def test_the_suite_puts_every_figure_beside_its_dense_partner():
    tokens = np.random.default_rng(1).integers(SIZE, size=300)
    tasks = recall_tasks(RecallVocabulary(first=0, size=SIZE), items=(2,), length=30, distances=(3, 15, 99))
    assert [(task.kind, task.distance) for task in tasks] == [
        ("keyvalue", 3),
        ("keyvalue", 15),
        ("copy", 3),
        ("copy", 15),
    ]
    seen = []
    amount = Amount(seqlen=20, suffix=5, windows=4, prompts=3)
    reduced, dense = (
        score(lambda seed, keep=keep: Bag(keep), tokens, tasks, amount, on_progress=lambda *done: seen.append(done))
        for keep in (lambda n: n % 2 == 0, lambda n: True)
    )
    result = compare(reduced, dense, tasks, amount)
    assert result.windows == 12 and result.seeds == (0, 1, 2)
    assert result.coverage == pytest.approx(7 / 14)  # of 14 scored positions 0 … 13 every second
    assert result.dense_coverage == 1.0
    for name in ("suffix_perplexity", "kept_perplexity"):
        assert getattr(result, name) > 1 and getattr(result, f"dense_{name}") > 1
    low, high = result.suffix_interval
    assert low < result.suffix_perplexity < high
    assert result.suffix_ratio == pytest.approx(result.suffix_perplexity / result.dense_suffix_perplexity)
    assert len(result.recall) == len(result.dense_recall) == 4
    assert result.recall[0].prompts == 9
    assert seen[-1] == (15, 15)


def test_a_model_against_itself_loses_nothing():
    tokens = np.random.default_rng(1).integers(SIZE, size=300)
    amount = Amount(seqlen=20, suffix=5, windows=4)
    scores = score(lambda seed: Bag(lambda n: True), tokens, [], amount)
    result = compare(scores, scores, [], amount)
    assert result.suffix_ratio_interval == (1.0, 1.0)
    assert result.kept_perplexity == result.dense_kept_perplexity


def test_windows_follow_from_the_seed_and_lie_inside_the_text():
    tokens = np.arange(50)
    windows = text_windows(tokens, seqlen=10, count=200, seed=4)
    assert np.array_equal(windows, text_windows(tokens, seqlen=10, count=200, seed=4))
    assert not np.array_equal(windows, text_windows(tokens, seqlen=10, count=200, seed=5))
    assert (np.diff(windows, axis=1) == 1).all()
    assert windows[:, 0].min() == 0 and windows[:, -1].max() == 49
    with pytest.raises(EvaluationError, match="the text has 50 tokens; one window needs 51"):
        text_windows(tokens, seqlen=51, count=1, seed=0)


def test_a_suffix_that_leaves_no_context_is_refused():
    with pytest.raises(RecipeError, match=r"suffix must be in \[1, 8\] for windows of 10 tokens, got 9"):
        score_text(Bag(lambda n: True), np.zeros((1, 10), np.int64), 9)


def test_intervals_cover_the_mean_of_what_was_drawn_from():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        share = mean_with_interval(rng.normal(3.0, 1.0, size=40))
        assert share.low <= share.mean <= share.high
        covered += share.low <= 3.0 <= share.high
    assert 0.88 <= covered / 200 <= 0.99
    assert mean_with_interval(np.array([1.0, 0.0, 1.0])) == mean_with_interval(np.array([1.0, 0.0, 1.0]))


def test_recall_results_carry_their_chance():
    task = RecallTask(items=4, distance=7)
    result = summarize_recall(task, np.array([[1.0], [0.0], [1.0], [1.0]]))
    assert (result.accuracy, result.chance, result.prompts, result.distance) == (0.75, 0.25, 4, 7)


@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_a_dense_torch_model_scores_as_transformers_does(family):
    model = tiny_model(family)
    windows = np.random.default_rng(0).integers(VOCAB, size=(3, 24))
    scores = score_text(TorchPromptModel(model), windows, 6, batch=2)
    with torch.no_grad():
        logits = model(torch.from_numpy(windows)).logits.log_softmax(-1).numpy()
    expected = -np.take_along_axis(logits[:, :-1], windows[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(scores.suffix, expected[:, -6:], atol=1e-3)
    np.testing.assert_allclose(scores.context, expected[:, :17], atol=1e-3)


def test_a_reduced_torch_model_is_scored_through_its_kept_positions_only():
    plan = ReductionPlan(method="truncate", layers=(-1,), ratios=(0.75,))
    windows = np.random.default_rng(0).integers(VOCAB, size=(2, 24))
    model = tiny_model("mamba2")
    scores = score_text(TorchPromptModel(model, plan), windows, 8)
    assert np.isnan(scores.context[:, :4]).all() and not np.isnan(scores.context[:, 4:]).any()
    dense = score_text(TorchPromptModel(model), windows[:, 4:], 8)
    np.testing.assert_allclose(scores.suffix, dense.suffix, atol=1e-3)
