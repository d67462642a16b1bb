"""What a reduction of the prompt costs, in ways that cannot be lucky: the same prompts, dense and reduced.

- Suffix perplexity: a text window's context is read with its tokens reduced; the rest of the window follows unreduced
  and is scored. Nothing of what is scored takes part in the reduction.
- Kept-token perplexity: within the context, what the model says at each position it kept about the original next
  token; coverage is the share kept. Merging may move a later token into an earlier one, which then has seen what it
  is to predict: this figure can flatter merging, the suffix cannot.
- Recall: the share of answers right about a list that stood a distance away (`edgeslim.evaluate.recall`).

Every figure has its dense partner on the same windows and positions. Windows and prompts are drawn anew for each seed;
intervals are 95 % percentile bootstraps over windows or prompts. Needs no torch: a model is a `PromptModel`.

Letters: B prompts, N tokens each, K left after the prefill, M further tokens, V vocabulary, W windows, C context
tokens, S suffix tokens, A answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.errors import EvaluationError, RecipeError
from edgeslim.evaluate.perplexity import nll_of_logits
from edgeslim.evaluate.recall import RecallPrompt, RecallTask, RecallVocabulary, recall_prompts

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]
Reals = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

RELIABLE = 0.95
"""Dense recall below this proves nothing about a reduction."""
SEEDS = (0, 1, 2)
RESAMPLES = 2000
PROMPT = 252
"""Tokens of a recall prompt up to its first answer."""
DISTANCES = (8, 60, 120, 180, 230)
_BATCH = 64


class PromptModel(Protocol):
    """A model that reads prompts, reduced on the way or not, and then tokens after them, unreduced."""

    def prefill(self, prompts: Tokens) -> tuple[Logits, Tokens]:
        """Forget everything, read `prompts` [B, N]; return logits [B, K, V] and positions [B, K] of what is left.

        Positions are those of the original tokens, ascending.
        """

    def extend(self, tokens: Tokens) -> Logits:
        """Read further `tokens` [B, M] and return their logits [B, M, V]."""


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """Negative log-likelihoods, in nats: of the suffix [W, S], and of the context's tokens [W, C - 1].

    Context entry c is what was said at position c about the token after it, not a number where c was not kept.
    """

    suffix: Reals
    context: Reals


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RecallResult:
    """Accuracy of one task, chance beside it; `prompts` are those of all seeds together."""

    kind: str
    items: int
    distance: int
    prompts: int
    accuracy: float
    low: float
    high: float
    chance: float


def text_windows(tokens: Sequence[int] | Tokens, *, seqlen: int, count: int, seed: int) -> Tokens:
    """Return `count` windows [count, seqlen] of `tokens` [N] at random offsets, which follow from `seed`.

    Raises: EvaluationError where the text is shorter than a window.
    """
    if len(tokens) < seqlen:
        raise EvaluationError(f"the text has {len(tokens)} tokens; one window needs {seqlen}")
    starts = np.random.default_rng([seed, seqlen]).integers(len(tokens) - seqlen + 1, size=count)
    return np.stack([np.asarray(tokens[start : start + seqlen], np.int64) for start in starts])


def score_text(
    model: PromptModel, windows: Tokens, suffix: int, *, batch: int = _BATCH, on_progress: Progress | None = None
) -> TextScores:
    """Score `windows` [W, C + S], the last S = `suffix` tokens of each unreduced.

    Raises: RecipeError where nothing is left for a context of two tokens.
    """
    length = windows.shape[1]
    context = length - suffix
    if context < 2 or suffix < 1:
        raise RecipeError(f"suffix must be in [1, {length - 2}] for windows of {length} tokens, got {suffix}")
    after, within = [], []
    for start in range(0, len(windows), batch):
        rows = windows[start : start + batch]
        logits, positions = model.prefill(rows[:, :context])
        after.append(_continue(model, logits[:, -1:], rows[:, context:]))
        within.append(_context_nll(logits, positions, rows[:, :context]))
        if on_progress is not None:
            on_progress(start + len(rows), len(windows))
    return TextScores(suffix=np.concatenate(after), context=np.concatenate(within))


def score_recall(
    model: PromptModel,
    task: RecallTask,
    count: int,
    *,
    seed: int,
    batch: int = _BATCH,
) -> Reals:
    """Return which answers [count, A] of `task` the model gets right (1 or 0), earlier answers given to it."""
    prompts = list(recall_prompts(task, count, seed=seed))
    return np.concatenate([_hits(model, prompts[start : start + batch]) for start in range(0, count, batch)])


def mean_with_interval(values: Reals, *, of: Callable[[Reals], Reals] | None = None, seed: int = 0) -> Share:
    """Return the mean of `values` [W] with its bootstrap interval over W; `of` is applied to means (as np.exp)."""
    resampled = values[_resamples(len(values), seed)].mean(1)
    figures = np.concatenate([[values.mean()], np.quantile(resampled, [0.025, 0.975])])
    mean, low, high = (figures if of is None else of(figures)).tolist()
    return Share(mean=mean, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class ReductionResult:
    """A reduced model beside itself unreduced. Figures of text are None where none was scored.

    `suffix_ratio` is the quotient of the suffix perplexities, its interval over windows paired; `plan` is the plan
    as in config.json.
    """

    plan: dict[str, Any] | None = None
    seeds: tuple[int, ...]
    seqlen: int
    suffix: int
    windows: int
    suffix_perplexity: float | None = None
    suffix_interval: tuple[float, float] | None = None
    dense_suffix_perplexity: float | None = None
    dense_suffix_interval: tuple[float, float] | None = None
    suffix_ratio: float | None = None
    suffix_ratio_interval: tuple[float, float] | None = None
    kept_perplexity: float | None = None
    dense_kept_perplexity: float | None = None
    coverage: float | None = None
    dense_coverage: float | None = None
    recall: tuple[RecallResult, ...]
    dense_recall: tuple[RecallResult, ...]


def recall_tasks(
    vocabulary: RecallVocabulary | None = None,
    *,
    items: Sequence[int] = (4,),
    length: int = PROMPT,
    distances: Sequence[int] = DISTANCES,
) -> list[RecallTask]:
    """Return key-value and copy tasks of `items` at `distances`, all prompts `length` tokens; too far ones left out."""
    vocabulary = vocabulary or RecallVocabulary()
    tasks = []
    for kind in ("keyvalue", "copy"):
        for count in items:
            for distance in distances:
                plain = RecallTask(kind=kind, items=count, distance=distance, vocabulary=vocabulary)
                if plain.least_length <= length:
                    tasks.append(
                        RecallTask(
                            kind=plain.kind, items=count, distance=distance, length=length, vocabulary=vocabulary
                        )
                    )
    return tasks


def summarize_recall(task: RecallTask, hits: Reals) -> RecallResult:
    """Return the accuracy of `hits` [prompts, A] in `task`, its interval over prompts."""
    share = mean_with_interval(hits.mean(1))
    return RecallResult(
        kind=task.kind,
        items=task.items,
        distance=task.distance,
        prompts=len(hits),
        accuracy=share.mean,
        low=share.low,
        high=share.high,
        chance=task.chance,
    )


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much to score: for each of `seeds` `windows` windows of `seqlen` tokens, `prompts` prompts of each task."""

    seqlen: int = 256
    suffix: int = 64
    windows: int = 32
    prompts: int = 64
    seeds: Sequence[int] = SEEDS


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One model on everything: its text scores (None: no text), and its hits for each task."""

    text: TextScores | None
    hits: list[Reals]


def score(
    model_of: Callable[[int], PromptModel],
    tokens: Sequence[int] | Tokens | None,
    tasks: Sequence[RecallTask],
    amount: Amount,
    *,
    on_progress: Progress | None = None,
) -> Scores:
    """Score the model that `model_of` gives for each seed, on the text `tokens` [N] (None: none) and on `tasks`.

    Raises: EvaluationError, RecipeError.
    """
    text: list[TextScores] = []
    hits: list[list[Reals]] = [[] for _ in tasks]
    steps, done = len(amount.seeds) * (len(tasks) + (tokens is not None)), 0
    for seed in amount.seeds:
        model = model_of(seed)
        if tokens is not None:
            drawn = text_windows(tokens, seqlen=amount.seqlen, count=amount.windows, seed=seed)
            text.append(score_text(model, drawn, amount.suffix))
            done = _report(on_progress, done, steps)
        for found, task in zip(hits, tasks, strict=True):
            found.append(score_recall(model, task, amount.prompts, seed=seed))
            done = _report(on_progress, done, steps)
    return Scores(text=_stacked(text) if text else None, hits=[np.concatenate(found) for found in hits])


def compare(
    reduced: Scores, dense: Scores, tasks: Sequence[RecallTask], amount: Amount, plan: dict[str, Any] | None = None
) -> ReductionResult:
    """Return every figure of the suite, each with its dense partner."""
    recall, dense_recall = (
        tuple(summarize_recall(task, hits) for task, hits in zip(tasks, scores.hits, strict=True))
        for scores in (reduced, dense)
    )
    result = ReductionResult(
        plan=plan,
        seeds=tuple(amount.seeds),
        seqlen=amount.seqlen,
        suffix=amount.suffix,
        windows=amount.windows * len(amount.seeds),
        recall=recall,
        dense_recall=dense_recall,
    )
    if reduced.text is None or dense.text is None:
        return result
    return replace(result, **_text_figures(reduced.text, dense.text))


def _text_figures(reduced: TextScores, dense: TextScores) -> dict[str, Any]:
    kept = ~np.isnan(reduced.context)
    suffix, dense_suffix = (mean_with_interval(scores.suffix.mean(1), of=np.exp) for scores in (reduced, dense))
    ratio = mean_with_interval((reduced.suffix - dense.suffix).mean(1), of=np.exp)
    return {
        "suffix_perplexity": suffix.mean,
        "suffix_interval": (suffix.low, suffix.high),
        "dense_suffix_perplexity": dense_suffix.mean,
        "dense_suffix_interval": (dense_suffix.low, dense_suffix.high),
        "suffix_ratio": ratio.mean,
        "suffix_ratio_interval": (ratio.low, ratio.high),
        "kept_perplexity": float(np.exp(reduced.context[kept].mean())),
        "dense_kept_perplexity": float(np.exp(dense.context[kept].mean())),
        "coverage": float(kept.mean()),
        "dense_coverage": 1.0,
    }


def _report(on_progress: Progress | None, done: int, steps: int) -> int:
    """Report one more step and return how many are done."""
    if on_progress is not None:
        on_progress(done + 1, steps)
    return done + 1


def _continue(model: PromptModel, last: Logits, following: Tokens) -> Reals:
    """Return the negative log-likelihoods [B, S] of `following` [B, S], the first by the prefill's `last` [B, 1, V]."""
    first = nll_of_logits(last, following[:, :1])
    if following.shape[1] == 1:
        return first
    return np.concatenate([first, nll_of_logits(model.extend(following[:, :-1]), following[:, 1:])], axis=1)


def _context_nll(logits: Logits, positions: Tokens, context: Tokens) -> Reals:
    """Return [B, C - 1]: what was said at each kept position about the original next token, elsewhere NaN."""
    out = np.full((context.shape[0], context.shape[1]), np.nan)
    following = np.concatenate([context[:, 1:], np.zeros_like(context[:, :1])], axis=1)
    nll = nll_of_logits(logits, np.take_along_axis(following, positions, axis=1))
    np.put_along_axis(out, positions, nll, axis=1)
    return out[:, :-1]


def _hits(model: PromptModel, prompts: list[RecallPrompt]) -> Reals:
    """Return [B, A]: 1 where the model's most likely token is the answer."""
    tokens = np.array([prompt.tokens for prompt in prompts], np.int64)
    answers = np.array([prompt.answers for prompt in prompts])
    start = int(answers[0, 0])
    said = model.prefill(tokens[:, :start])[0][:, -1:].argmax(-1)
    if tokens.shape[1] > start + 1:
        said = np.concatenate([said, model.extend(tokens[:, start:-1]).argmax(-1)], axis=1)
    right = said == tokens[:, start:]
    return np.take_along_axis(right, answers - start, axis=1).astype(np.float64)


def _stacked(scores: list[TextScores]) -> TextScores:
    return TextScores(
        suffix=np.concatenate([each.suffix for each in scores]),
        context=np.concatenate([each.context for each in scores]),
    )


def _resamples(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
