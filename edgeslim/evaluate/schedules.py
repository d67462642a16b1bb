"""Which schedule of a reduction costs least on text. Letters: W windows, C context tokens, S suffix tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeslim.evaluate.reduction import Tokens, score_text
from edgeslim.evaluate.torch_prompts import TorchPromptModel
from edgeslim.tokens.plan import ReductionPlan

Progress = Callable[[int, int], None]

SUFFIX = 64
"""Tokens scored after each reduced context."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the text after a context costs when that is reduced at `layers` (none: not at all)."""

    layers: tuple[int, ...]
    ratio: float
    suffix_nll: float


def try_schedules(
    model: Any,
    windows: Tokens,
    plans: Sequence[ReductionPlan],
    *,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> tuple[Trial, ...]:
    """Return a trial of the unreduced `model`, a transformers causal language model, and one of each of `plans`.

    windows: [W, C + S], S = `SUFFIX`. The mean negative log-likelihood is in nats a token.
    """
    trials = []
    for plan in (None, *plans):
        scores = score_text(TorchPromptModel(model, plan, device), windows, SUFFIX, batch=4)
        layers, ratio = (plan.layers, plan.ratios[0]) if plan is not None else ((), 1.0)
        trials.append(Trial(layers=layers, ratio=ratio, suffix_nll=float(scores.suffix.mean())))
        if on_progress is not None:
            on_progress(len(trials), 1 + len(plans))
    return tuple(trials)
