"""What a reduction of the prompt costs, in ways that cannot be lucky: the same prompts, dense and reduced.

- Suffix perplexity: a text window's context is read with its tokens reduced; the rest of the window follows unreduced
  and is scored. Nothing of what is scored takes part in the reduction.
- Kept-token perplexity: within the context, what the model says at each position it kept about the original next
  token; coverage is the share kept. Merging may move a later token into an earlier one, which then has seen what it
  is to predict: this figure can flatter merging, the suffix cannot.
- Recall: the share of answers right about a list that stood a distance away (`edgeslim.evaluate.recall`).

Every figure has its dense partner on the same windows and positions (`edgeslim.evaluate.reduction_suite`). Needs no
torch: a model is a `PromptModel`.

Letters: B prompts, N tokens each, K left after the prefill, M further tokens, V vocabulary, W windows, C context
tokens, S suffix tokens, A answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.errors import EvaluationError, RecipeError
from edgeslim.evaluate.perplexity import nll_of_logits
from edgeslim.evaluate.recall import RecallPrompt, RecallTask, recall_prompts

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]
Reals = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

BATCH = 64
"""Prompts at a time where nothing bounds them."""


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


def text_windows(tokens: Sequence[int] | Tokens, *, seqlen: int, count: int, seed: int) -> Tokens:
    """Return `count` windows [count, seqlen] of `tokens` [N] at random offsets, which follow from `seed`.

    Raises: EvaluationError where the text is shorter than a window.
    """
    if len(tokens) < seqlen:
        raise EvaluationError(f"the text has {len(tokens)} tokens; one window needs {seqlen}")
    starts = np.random.default_rng([seed, seqlen]).integers(len(tokens) - seqlen + 1, size=count)
    return np.stack([np.asarray(tokens[start : start + seqlen], np.int64) for start in starts])


def score_text(
    model: PromptModel, windows: Tokens, suffix: int, *, batch: int = BATCH, on_progress: Progress | None = None
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
    batch: int = BATCH,
) -> Reals:
    """Return which answers [count, A] of `task` the model gets right (1 or 0), earlier answers given to it."""
    prompts = list(recall_prompts(task, count, seed=seed))
    return np.concatenate([_hits(model, prompts[start : start + batch]) for start in range(0, count, batch)])


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
