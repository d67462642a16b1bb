"""The reduction suite: a model whose prompts are reduced beside itself unreduced, over several seeds.

Windows and prompts are drawn anew for each seed; intervals are 95 % percentile bootstraps over windows or prompts.
Needs no torch. Letters as in `edgeslim.evaluate.reduction`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.evaluate.perplexity import windows_at_once
from edgeslim.evaluate.recall import RecallTask, RecallVocabulary
from edgeslim.evaluate.reduction import (
    BATCH,
    PromptModel,
    Reals,
    TextScores,
    Tokens,
    score_recall,
    score_text,
    text_windows,
)

Progress = Callable[[int, int], None]

RELIABLE = 0.95
"""Dense recall below this proves nothing about a reduction."""
LEAST_TEXT_IDS = 256
"""A model of fewer token ids is not scored on text: it cannot have been trained on any."""
SEEDS = (0, 1, 2)
RESAMPLES = 2000
PROMPT = 252
"""Tokens of a recall prompt up to its first answer."""
DISTANCES = (8, 60, 120, 180, 230)


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


def tasks_for(config: Mapping[str, Any], items: tuple[int, ...] = (4,)) -> list[RecallTask]:
    """Return the recall tasks that fit vocabulary and context of `config`, a config.json; none where they do not."""
    vocabulary = RecallVocabulary()
    if (config.get("vocab_size") or 0) < vocabulary.first + vocabulary.size:
        return []
    context = config.get("max_position_embeddings") or 1 << 30
    return recall_tasks(vocabulary, items=items, length=min(PROMPT, context - max(items)))


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
    """How much to score: for each of `seeds` `windows` windows of `seqlen` tokens, `prompts` prompts of each task.

    `batch` of them are given to a model at a time.
    """

    seqlen: int = 256
    suffix: int = 64
    windows: int = 32
    prompts: int = 64
    seeds: Sequence[int] = SEEDS
    batch: int = BATCH

    def fitted(self, vocab_size: int) -> "Amount":
        """Return the amount with fewer prompts at a time where their logits would not fit into memory."""
        return replace(self, batch=min(self.batch, windows_at_once(max(self.seqlen, PROMPT), vocab_size)))


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
            text.append(score_text(model, drawn, amount.suffix, batch=amount.batch))
            done = _report(on_progress, done, steps)
        for found, task in zip(hits, tasks, strict=True):
            found.append(score_recall(model, task, amount.prompts, seed=seed, batch=amount.batch))
            done = _report(on_progress, done, steps)
    return Scores(text=_stacked(text) if text else None, hits=[np.concatenate(found) for found in hits])


def beside_dense(
    reduced: Callable[[int], PromptModel],
    dense: Callable[[int], PromptModel],
    tokens: Sequence[int] | Tokens | None,
    tasks: Sequence[RecallTask],
    amount: Amount,
    *,
    plan: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> ReductionResult:
    """Score both models (functions from a seed, as in `score`) and return every figure of the suite.

    Raises: EvaluationError, RecipeError.
    """

    def half(number: int) -> Progress | None:
        return None if on_progress is None else lambda done, total: on_progress(number * total + done, 2 * total)

    reduced_scores, dense_scores = (
        score(model_of, tokens, tasks, amount, on_progress=half(number))
        for number, model_of in enumerate((reduced, dense))
    )
    return compare(reduced_scores, dense_scores, tasks, amount, plan)


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


def mean_with_interval(values: Reals, *, of: Callable[[Reals], Reals] | None = None, seed: int = 0) -> Share:
    """Return the mean of `values` [W] with its bootstrap interval over W; `of` is applied to means (as np.exp)."""
    resampled = values[_resamples(len(values), seed)].mean(1)
    figures = np.concatenate([[values.mean()], np.quantile(resampled, [0.025, 0.975])])
    mean, low, high = (figures if of is None else of(figures)).tolist()
    return Share(mean=mean, low=low, high=high)


def _report(on_progress: Progress | None, done: int, steps: int) -> int:
    """Report one more step and return how many are done."""
    if on_progress is not None:
        on_progress(done + 1, steps)
    return done + 1


def _stacked(scores: list[TextScores]) -> TextScores:
    return TextScores(
        suffix=np.concatenate([each.suffix for each in scores]),
        context=np.concatenate([each.context for each in scores]),
    )


def _resamples(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
