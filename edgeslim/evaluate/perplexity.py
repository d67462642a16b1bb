"""Perplexity of any model that can score windows of tokens.

The rule (``edgeslim``): the text is tokenized once without special tokens and cut into non-overlapping windows of
`seqlen` tokens; the first token of each window is not scored, an incomplete last window is dropped; perplexity is the
exponential of the mean negative log-likelihood of the scored tokens.

The reference scripts' rule (``reference``; SparseGPT's and Wanda's evaluation): the text is tokenized once *with* the
tokenizer's special tokens (a leading BOS, mostly) and cut the same way; each window's mean over its seqlen - 1 targets
is multiplied by seqlen, these are summed, and perplexity is the exponential of the sum divided by windows x seqlen.
The factor seqlen cancels, so for equal tokens the two rules give the same perplexity: what differs is the special
tokens, which shift every window, and the number of tokens counted (windows x seqlen, not windows x (seqlen - 1)).

Letters: N tokens of the text, B windows at a time, T = seqlen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgeslim.errors import EvaluationError, RecipeError, did_you_mean

Windows = npt.NDArray[np.int64]
Nll = npt.NDArray[np.float64]
Rule = Literal["edgeslim", "reference"]
Progress = Callable[[int, int], None]

_LOGITS_BYTES = 256 << 20  # the most bytes of float32 logits to ask for at once
_ROWS = 256  # positions normalised at once


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexity over `tokens` scored tokens in `windows` windows (by the reference rule, `tokens` counts all)."""

    perplexity: float
    tokens: int
    windows: int


def perplexity(
    tokens: Sequence[int] | Windows,
    score: Callable[[Windows], Nll],
    *,
    seqlen: int,
    rule: Rule = "edgeslim",
    batch: int = 1,
    on_progress: Progress | None = None,
) -> PerplexityResult:
    """Return the perplexity of `tokens` [N], already with or without special tokens as `rule` wants them.

    `score` gives the negative log-likelihoods [B, T-1], in nats, of the tokens after the first of each window [B, T],
    or of equally many of them in each where a model reduces its prompts; it gets `batch` windows at a time.
    `on_progress` is called with the windows done and their number.
    Raises: EvaluationError when there is not one window, or a likelihood is not a number.
    """
    check_rule(rule)
    windows = cut_windows(tokens, seqlen)
    means: list[float] = []
    targets = 0
    for start in range(0, len(windows), batch):
        nll = score(windows[start : start + batch])
        targets += nll.size
        means += nll.mean(axis=1, dtype=np.float64).tolist()
        if on_progress is not None:
            on_progress(len(means), len(windows))
    if bad := [i for i, mean in enumerate(means) if np.isnan(mean)]:
        raise EvaluationError(f"window {bad[0]} of {len(windows)}: the model's log-likelihood is not a number")
    # Windows are equally long: the mean of their means is the mean over all targets, by either rule.
    with np.errstate(over="ignore"):
        value = float(np.exp(np.mean(means)))
    counted = targets + (len(windows) if rule == "reference" else 0)
    return PerplexityResult(perplexity=value, tokens=counted, windows=len(windows))


def encode_text(text: str, encode: Callable[[str, bool], Sequence[int]], rule: Rule = "edgeslim") -> Windows:
    """Return the tokens [N] of `text` as `rule` wants them; `encode(text, special)` is the tokenizer.

    Raises: EvaluationError when the text is empty.
    """
    check_rule(rule)
    if not text.strip():
        raise EvaluationError("the text is empty; perplexity needs at least one window of it")
    return np.asarray(encode(text, rule == "reference"), dtype=np.int64)


def cut_windows(tokens: Sequence[int] | Windows, seqlen: int) -> Windows:
    """Return `tokens` [N] as non-overlapping windows [N // seqlen, seqlen].

    Raises: EvaluationError when they do not fill one window.
    """
    if seqlen < 2:
        raise RecipeError(f"seqlen must be at least 2, got {seqlen}: the first token of a window is not scored")
    count = len(tokens) // seqlen
    if count == 0:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens; one window needs {seqlen}; give a longer text or a smaller seqlen"
        )
    return np.asarray(tokens[: count * seqlen], dtype=np.int64).reshape(count, seqlen)


def nll_of_logits(logits: npt.NDArray[np.floating[Any]], targets: Windows) -> Nll:
    """Return the negative log-likelihood [B, T] of `targets` [B, T] under `logits` [B, T, V], in nats.

    Exponentials in float32 of what lies below each row's largest logit, their sums in float64: relative error 1e-7.
    """
    out = np.empty(targets.shape, np.float64)
    for b in range(targets.shape[0]):
        for start in range(0, targets.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            part = logits[b, rows].astype(np.float32, copy=False)
            chosen = np.take_along_axis(part, targets[b, rows, None], axis=1)[:, 0]
            largest = part.max(axis=1)
            total = np.exp(part - largest[:, None]).sum(axis=1, dtype=np.float64)
            out[b, rows] = np.log(total) + (largest.astype(np.float64) - chosen)
    return out


def windows_at_once(seqlen: int, vocab_size: int) -> int:
    """Return how many windows' float32 logits fit into a fixed budget, at least one."""
    return max(1, _LOGITS_BYTES // (4 * seqlen * vocab_size))


def check_rule(rule: str) -> None:
    """Raise RecipeError when `rule` is not one of `Rule`."""
    if rule not in get_args(Rule):
        raise RecipeError(f"unknown perplexity rule {rule!r}{did_you_mean(rule, get_args(Rule))}")
